"""The pool: replicated rows in, assignments out.

The pool is a pure function of the set of the latest rows, whatever the order in which they came: a row may
come before those it refers to. Fronts that hold the same rows give the same answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b

import msgspec
from msgspec import Struct

from kollator.pool.assignment import (
    PREFERENCE,
    SKIPPED_MAX,
    Assignment,
    Candidate,
    Placed,
    Reason,
    RingPosition,
    Rings,
    Skipped,
    SkipReason,
    State,
    UsableState,
    WorkerRef,
)
from kollator.pool.ranges import PinTable, canonical_cidr, cidr_order, parse_address, range_of
from kollator.pool.ring import key_hash, position_of, weight
from kollator.state.rows import AttachmentRow, FrontRow, PinRow, Row, WorkerRow

_DIGEST_SIZE = 1 << 256


class WorkerView(Struct, frozen=True):
    """A worker as all fronts see it. ``fronts`` are the live ones that hold it, sorted."""

    id: str
    region: str
    capacity: int
    state: State
    fronts: tuple[str, ...]
    address: str


class Counts(Struct, frozen=True):
    """The number of workers by state, and of all that were ever named."""

    up: int
    full: int
    draining: int
    down: int
    total: int


class Pool:
    """The mapping of ranges to workers that follows from the rows applied so far.

    ``replicas`` is the number of ring points of a worker of capacity 100.
    """

    def __init__(self, *, replicas: int = 150) -> None:
        if replicas < 1:
            raise ValueError(f"a worker needs at least one point, not {replicas}")
        self.replicas = replicas
        self._fronts: dict[str, FrontRow] = {}
        self._workers: dict[str, WorkerRow] = {}
        # Attachments that are not down, by worker and front; and which workers a front has there.
        self._held: dict[str, dict[str, AttachmentRow]] = {}
        self._holding: dict[str, set[str]] = {}
        self._pins: dict[str, PinRow] = {}
        self._pin_table: PinTable[PinRow] = PinTable()
        self._rings = Rings()
        self._digest = _element("replicas", replicas)
        self._views: dict[str, WorkerView] = {}
        self._listing: list[WorkerView] | None = None

    # -- rows in

    def apply(self, row: Row) -> tuple[str, ...]:
        """Take the latest version of a row in.

        Returns the workers that were usable in any way and are now down, sorted.
        """
        return self.apply_all((row,))

    def apply_all(self, rows: Iterable[Row]) -> tuple[str, ...]:
        """Take several rows in as one change; returns as ``apply`` does."""
        affected: set[str] = set()
        for row in rows:
            match row:
                case FrontRow():
                    self._apply_front(row, affected)
                case WorkerRow():
                    if self._workers.get(row.id) != row:
                        self._workers[row.id] = row
                        affected.add(row.id)
                case AttachmentRow():
                    self._apply_attachment(row, affected)
                case PinRow():
                    self._apply_pin(row)
        return self._update(affected) if affected else ()

    def _apply_front(self, row: FrontRow, affected: set[str]) -> None:
        before = self._fronts.get(row.id)
        self._fronts[row.id] = row
        if before is None or (before.incarnation, before.retired) != (row.incarnation, row.retired):
            affected |= self._holding.get(row.id, set())

    def _apply_attachment(self, row: AttachmentRow, affected: set[str]) -> None:
        held = self._held.setdefault(row.worker, {})
        if row.state != "down":
            if held.get(row.front) == row:
                return
            held[row.front] = row
            self._holding.setdefault(row.front, set()).add(row.worker)
        else:
            # Down is the same as not there, and rows are never deleted: nothing is kept of it.
            gone = held.pop(row.front, None)
            if not held:
                del self._held[row.worker]
            if gone is None:
                return
            holding = self._holding[row.front]
            holding.discard(row.worker)
            if not holding:
                del self._holding[row.front]
        affected.add(row.worker)

    def _apply_pin(self, row: PinRow) -> None:
        try:
            canonical = canonical_cidr(row.cidr) == row.cidr
        except ValueError:
            canonical = False
        if not canonical:
            # Two spellings of one network would let the order decide: every front ignores all but one.
            return
        before = self._pins.pop(row.cidr, None)
        if before is not None:
            self._pin_table.remove(row.cidr)
            self._digest -= _pin_element(before)
        if row.worker or row.region:
            self._pins[row.cidr] = row
            self._pin_table.insert(row.cidr, row)
            self._digest += _pin_element(row)

    def _update(self, affected: Collection[str]) -> tuple[str, ...]:
        self._listing = None
        placed = self._rings.placed
        leaving: list[str] = []
        entering: dict[str, Placed] = {}
        lost: list[str] = []
        for worker in affected:
            self._views.pop(worker, None)
            before, after = placed.get(worker), self._place_of(worker)
            if before == after:
                continue
            if before is not None:
                leaving.append(worker)
                self._digest -= _worker_element(worker, before)
                if after is None:
                    lost.append(worker)
            if after is not None:
                entering[worker] = after
                self._digest += _worker_element(worker, after)
        self._rings.remove_all(leaving)
        for worker, place in entering.items():
            self._rings.add(worker, place)
        return tuple(sorted(lost))

    def _place_of(self, worker: str) -> Placed | None:
        row = self._workers.get(worker)
        state = self._state_of(worker)
        if row is None or state is None:
            return None
        return Placed(row.region, weight(row.capacity, self.replicas), state)

    def _state_of(self, worker: str) -> UsableState | None:
        states = {row.state for row in self._held.get(worker, {}).values() if self._in_force(row)}
        for state in reversed(PREFERENCE):
            if state in states:
                return state
        return None

    def _in_force(self, row: AttachmentRow) -> bool:
        front = self._fronts.get(row.front)
        return front is not None and front.retired < front.incarnation == row.incarnation

    def sweep(self, points_max: int = 20_000) -> bool:
        """Do a slice (a few milliseconds) of the tidying that follows when many workers left at once.

        Nothing depends on it but memory and a little time for each assignment. Says whether more is left.
        """
        return self._rings.sweep(points_max)

    # -- answers out

    def assign(
        self,
        address: str,
        *,
        region: str = "",
        exclude: Collection[str] = (),
        alternates: int = 2,
        explain: bool = True,
    ) -> Assignment:
        """Say who serves an address, and why.

        ``region`` is the one asked for, empty for any; ``exclude`` names workers the caller does not want
        (the wire allows 256); at most ``alternates`` others are named; without ``explain`` nobody is listed
        as skipped. Raises ``ValueError`` for what is not an address.
        """
        ip = parse_address(address)
        text = range_of(ip)
        hash64 = key_hash(text)
        placed = self._rings.placed
        excluded = {worker for worker in exclude if worker in placed}
        found = self._pin_table.lookup(ip) if self._pins else None
        pin = found[1] if found is not None else None
        skipped: list[Skipped] = []
        chosen: Candidate | None = None
        fell_back = False
        if pin is not None:
            region = pin.region or region
            if pin.worker:
                unfit = self._unfit(pin.worker, exclude)
                fell_back = unfit is not None
                if unfit is None:
                    chosen = Candidate(pin.worker, -1, "up")
                else:
                    skipped.append(Skipped(pin.worker, unfit))
        without = excluded | {chosen.worker} if chosen is not None else excluded
        candidates = self._rings.candidates(hash64, region, without)
        if chosen is None:
            chosen = next(candidates, None)
            if explain:
                named = {skip.worker for skip in skipped}
                passed = self._rings.passed_by(hash64, region, excluded, chosen)
                skipped = (skipped + [skip for skip in passed if skip.worker not in named])[:SKIPPED_MAX]
        refs: list[WorkerRef] = []
        if chosen is not None and alternates > 0:
            for candidate in candidates:
                if candidate.state != chosen.state:
                    break
                refs.append(WorkerRef(candidate.worker, placed[candidate.worker].region))
                if len(refs) >= alternates:
                    break
        return Assignment(
            address=address,
            range=text,
            worker=chosen.worker if chosen is not None else None,
            region=placed[chosen.worker].region if chosen is not None else "",
            state=chosen.state if chosen is not None else None,
            alternates=tuple(refs),
            reason=self._reason(chosen, region, pin, fell_back),
            position=RingPosition(
                position_of(hash64), chosen.position if chosen is not None and chosen.position >= 0 else None
            ),
            pin=pin.cidr if pin is not None else None,
            skipped=tuple(skipped),
        )

    def _unfit(self, worker: str, exclude: Collection[str]) -> SkipReason | None:
        """Say why a pin's worker cannot be taken, None when it can."""
        if worker in exclude:
            return "excluded"
        place = self._rings.placed.get(worker)
        if place is None:
            return "down" if worker in self._workers else "unknown"
        return None if place.state == "up" else place.state

    def _reason(self, chosen: Candidate | None, region: str, pin: PinRow | None, fell_back: bool) -> Reason:
        if chosen is None:
            return "no-workers"
        abroad = bool(region) and self._rings.placed[chosen.worker].region != region
        if pin is not None and (fell_back or (abroad and not pin.worker)):
            return "pin-fallback"
        if chosen.state != "up":
            return "overflow"
        if pin is not None:
            return "pinned"
        return "other-region" if abroad else "ring"

    def worker(self, worker: str) -> WorkerView | None:
        """Show a worker, None when no row names it."""
        view = self._views.get(worker)
        row = self._workers.get(worker)
        if view is None and row is not None:
            view = self._views[worker] = WorkerView(
                id=worker,
                region=row.region,
                capacity=row.capacity,
                state=self._state_of(worker) or "down",
                fronts=self.fronts_of(worker),
                address=row.address,
            )
        return view

    def workers(self) -> list[WorkerView]:
        """Show all workers, sorted by id."""
        if self._listing is None:
            self._listing = [view for id in sorted(self._workers) if (view := self.worker(id)) is not None]
        return list(self._listing)

    def fronts_of(self, worker: str) -> tuple[str, ...]:
        """Name the live fronts that hold a worker, sorted."""
        return tuple(sorted(row.front for row in self._held.get(worker, {}).values() if self._in_force(row)))

    def front(self, front: str) -> FrontRow | None:
        """Give the row of a front, None when there is none."""
        return self._fronts.get(front)

    def fronts(self) -> list[FrontRow]:
        """Give the rows of all fronts, dead ones too, sorted by id."""
        return [self._fronts[id] for id in sorted(self._fronts)]

    def is_alive(self, front: str) -> bool:
        """Say whether a front is known and not retired."""
        row = self._fronts.get(front)
        return row is not None and row.incarnation > row.retired

    def pins(self) -> list[PinRow]:
        """Give the pins in force, in the order of their networks."""
        return sorted(self._pins.values(), key=lambda row: cidr_order(row.cidr))

    def counts(self) -> Counts:
        """Count the workers by state."""
        up, full, draining = (self._rings.count(state) for state in PREFERENCE)
        total = len(self._workers)
        return Counts(up=up, full=full, draining=draining, down=total - up - full - draining, total=total)

    @property
    def points(self) -> int:
        """The number of points of all usable workers."""
        return self._rings.points

    @property
    def digest(self) -> str:
        """A fingerprint of the mapping, in hex: equal on two fronts when they map every range alike.

        It covers the replicas, the pins, and each usable worker's id, region, points and state. It is the sum
        of the hashes of these elements modulo 2^256 (AdHash: Bellare and Micciancio, 1997), so it is
        independent of order and follows every change at the cost of that change. It finds accidents; it is no
        defence against who chooses rows to collide.
        """
        return f"{self._digest % _DIGEST_SIZE:064x}"


def _element(*content: str | int) -> int:
    """Hash one element of the digest; JSON keeps its parts apart."""
    encoded = msgspec.json.encode(content)
    return int.from_bytes(blake2b(encoded, digest_size=32, person=b"kollator digest").digest(), "big")


def _worker_element(worker: str, placed: Placed) -> int:
    return _element("worker", worker, placed.region, placed.points, placed.state)


def _pin_element(row: PinRow) -> int:
    return _element("pin", row.cidr, row.worker, row.region)
