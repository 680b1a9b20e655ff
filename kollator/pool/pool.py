"""The pool: replicated rows in, assignments out.

The pool is a pure function of the set of the latest rows, whatever the order in which they came: a row may
come before those it refers to. Fronts that hold the same rows give the same answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from heapq import nsmallest

from msgspec import Struct

from kollator.pool.assignment import (
    SKIPPED_MAX,
    Assignment,
    Candidate,
    Placed,
    Reason,
    RingPosition,
    Rings,
    Skipped,
    SkipReason,
    WorkerRef,
    element,
)
from kollator.pool.ranges import PinTable, canonical_cidr, cidr_order, parse_address, range_of
from kollator.pool.ring import key_hash, position_of, weight
from kollator.pool.standing import PREFERENCE, Standings, State
from kollator.state.rows import AttachmentRow, DrainRow, FrontRow, PinRow, Row, WorkerRow

_DIGEST_SIZE = 1 << 256


class WorkerView(Struct, frozen=True):
    """A worker as all fronts see it.

    ``fronts`` are as ``Pool.fronts_of`` names them. ``why`` is the reason of a worker that is connected and not well
    (see ``rows.Unwell``), ``operator`` for one that an operator drains, else empty.
    """

    id: str
    region: str
    capacity: int
    state: State
    fronts: tuple[str, ...]
    address: str
    why: str = ""


class Counts(Struct, frozen=True):
    """The number of workers by state, and of all that were ever named."""

    up: int
    full: int
    draining: int
    down: int
    total: int


class Pool:
    """The mapping of ranges to workers that follows from the rows applied so far.

    ``replicas`` is the number of ring points of a worker of capacity 100. ``panic_threshold`` is in percent: when
    less of the connected workers than that are well, those that are not count as ``up`` too, for they cannot all be
    broken, and the few that are left would break under the load (the panic threshold of Envoy). 0: never.
    Raises ``ValueError`` when one of them is out of range.
    """

    def __init__(self, *, replicas: int = 150, panic_threshold: float = 0.0) -> None:
        if replicas < 1:
            raise ValueError(f"a worker needs at least one point, not {replicas}")
        if not 0.0 <= panic_threshold <= 100.0:
            raise ValueError(f"a panic threshold is 0 to 100 percent, not {panic_threshold}")
        self.replicas = replicas
        self.panic_threshold = panic_threshold
        self._standings = Standings()
        self._workers: dict[str, WorkerRow] = {}
        self._pins: dict[str, PinRow] = {}
        self._pin_table: PinTable[PinRow] = PinTable()
        self._rings = Rings()
        # A panic begins and ends at once because the unwell lie ready for it, on rings of their own.
        self._unwell = Rings(walked=panic_threshold > 0)
        self.changes = 0
        """A number that is another one after each change of what ``workers``, ``points`` and ``digest`` give."""
        self._digest = element("replicas", replicas)
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
                    affected.update(self._standings.apply_front(row))
                case WorkerRow():
                    if self._workers.get(row.id) != row:
                        self._workers[row.id] = row
                        affected.add(row.id)
                case AttachmentRow():
                    affected.update(self._standings.apply_attachment(row))
                case PinRow():
                    self._apply_pin(row)
                case DrainRow():
                    affected.update(self._standings.apply_drain(row))
        return self._update(affected) if affected else ()

    def _apply_pin(self, row: PinRow) -> None:
        try:
            canonical = canonical_cidr(row.cidr) == row.cidr
        except ValueError:
            canonical = False
        if not canonical:
            # Two spellings of one network would let the order decide: every front ignores all but one.
            return
        self.changes += 1
        before = self._pins.pop(row.cidr, None)
        if before is not None:
            self._pin_table.remove(row.cidr)
            self._digest -= _pin_element(before)
        if row.worker or row.region:
            self._pins[row.cidr] = row
            self._pin_table.insert(row.cidr, row)
            self._digest += _pin_element(row)

    def _update(self, affected: Set[str]) -> tuple[str, ...]:
        self.changes += 1
        rings, unwell = self._rings, self._unwell
        usable = {worker for worker in affected if rings.place_of(worker) is not None}
        well_places: dict[str, Placed] = {}
        unwell_places: dict[str, Placed] = {}
        for worker in affected:
            self._views.pop(worker, None)
            row, standing = self._workers.get(worker), self._standings.of(worker)
            if row is not None and standing is not None:
                place = Placed(row.region, weight(row.capacity, self.replicas), standing.state)
                (unwell_places if standing.why else well_places)[worker] = place
        self._listing = None
        rings.update(affected, well_places)
        unwell.update(affected, unwell_places)
        panic_before, well = self.panic, len(rings.placed)
        if panic_before != (100 * well < self.panic_threshold * (well + len(unwell.placed))):
            if panic_before:
                usable |= unwell.placed.keys() - affected
            rings.joined = None if panic_before else unwell
            self._views.clear()
        return tuple(sorted(worker for worker in usable if rings.place_of(worker) is None))

    def sweep(self, points_max: int = 20_000) -> bool:
        """Do a slice (a few milliseconds) of the tidying that follows when many workers left at once.

        Nothing depends on it but memory and a little time for each assignment. Says whether more is left.
        """
        return self._rings.sweep(points_max) or self._unwell.sweep(points_max)

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
        place_of = self._rings.place_of
        excluded = {worker for worker in exclude if place_of(worker) is not None}
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
                elif explain:
                    skipped.append(Skipped(pin.worker, unfit, self._why(pin.worker, unfit)))
        without = excluded | {chosen.worker} if chosen is not None else excluded
        candidates = self._rings.candidates(hash64, region, without)
        if chosen is None:
            chosen = next(candidates, None)
            if fell_back and chosen is not None and pin is not None and chosen.worker == pin.worker:
                fell_back = False  # nobody is up, and the ring leads to the pin's worker too
                skipped.clear()
            if explain:
                skipped = self._passed_by(hash64, region, exclude, chosen, skipped)
        refs: list[WorkerRef] = []
        if chosen is not None and alternates > 0:
            for candidate in candidates:
                if candidate.state != chosen.state:
                    break
                refs.append(WorkerRef(candidate.worker, self._region_of(candidate)))
                if len(refs) >= alternates:
                    break
        return Assignment(
            address=address,
            range=text,
            worker=chosen.worker if chosen is not None else None,
            region=self._region_of(chosen) if chosen is not None else "",
            state=chosen.state if chosen is not None else None,
            alternates=tuple(refs),
            reason=self._reason(chosen, region, pin, fell_back),
            position=RingPosition(
                position_of(hash64), chosen.position if chosen is not None and chosen.position >= 0 else None
            ),
            pin=pin.cidr if pin is not None else None,
            skipped=tuple(skipped),
        )

    def _region_of(self, candidate: Candidate) -> str:
        place = self._rings.place_of(candidate.worker)
        return place.region if place is not None else ""

    def _passed_by(
        self, hash64: int, region: str, exclude: Collection[str], chosen: Candidate | None, named: list[Skipped]
    ) -> list[Skipped]:
        """Add to those who are named already whom the search on the rings passed by."""
        unwell: dict[str, Placed] = {}
        if not self.panic and self._unwell.placed:
            some = nsmallest(SKIPPED_MAX, self._unwell.placed.keys() - exclude)
            unwell = {worker: self._unwell.placed[worker] for worker in some}
        passed = self._rings.passed_by(hash64, region, exclude, chosen, unwell)
        named_already = {skip.worker for skip in named}
        found = [*named, *(skip for skip in passed if skip.worker not in named_already)]
        return [Skipped(skip.worker, skip.reason, self._why(skip.worker, skip.reason)) for skip in found[:SKIPPED_MAX]]

    def _why(self, worker: str, state: State | SkipReason) -> str:
        """Say more of a worker that is down, draining or (in a panic) up."""
        if state == "draining" and worker in self._standings.drained:
            return "operator"
        standing = self._standings.of(worker) if state in ("down", "up") else None
        return standing.why if standing is not None else ""

    def _unfit(self, worker: str, exclude: Collection[str]) -> SkipReason | None:
        """Say why a pin's worker cannot be taken, None when it can."""
        if worker in exclude:
            return "excluded"
        place = self._rings.place_of(worker)
        if place is None:
            return "down" if worker in self._workers else "unknown"
        return None if place.state == "up" else place.state

    def _reason(self, chosen: Candidate | None, region: str, pin: PinRow | None, fell_back: bool) -> Reason:
        if chosen is None:
            return "no-workers"
        abroad = bool(region) and self._region_of(chosen) != region
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
            place = self._rings.place_of(worker)
            state: State = place.state if place is not None else "down"
            view = self._views[worker] = WorkerView(
                id=worker,
                region=row.region,
                capacity=row.capacity,
                state=state,
                fronts=self.fronts_of(worker),
                address=row.address,
                why=self._why(worker, state),
            )
        return view

    def workers(self) -> list[WorkerView]:
        """Show all workers, sorted by id."""
        if self._listing is None:
            self._listing = [view for id in sorted(self._workers) if (view := self.worker(id)) is not None]
        return list(self._listing)

    def fronts_of(self, worker: str) -> tuple[str, ...]:
        """Name the live fronts through which a worker may be used, sorted.

        They are those that see it well; in a panic, where none does, all that it is connected to.
        """
        fronts = self._standings.well_at(worker)
        return fronts if fronts or not self.panic else self._standings.connected_to(worker)

    def connected_to(self, worker: str) -> tuple[str, ...]:
        """Name the live fronts that a worker is connected to, well or not, sorted."""
        return self._standings.connected_to(worker)

    def front(self, front: str) -> FrontRow | None:
        """Give the row of a front, None when there is none."""
        return self._standings.fronts.get(front)

    def fronts(self) -> list[FrontRow]:
        """Give the rows of all fronts, dead ones too, sorted by id."""
        return [row for _, row in sorted(self._standings.fronts.items())]

    def is_alive(self, front: str) -> bool:
        """Say whether a front is known and not retired."""
        return self._standings.is_alive(front)

    def drained(self, worker: str) -> bool:
        """Say whether an operator drains a worker, known or not."""
        return worker in self._standings.drained

    def drains(self) -> list[str]:
        """Name the workers that an operator drains, sorted."""
        return sorted(self._standings.drained)

    @property
    def unwell(self) -> int:
        """The number of workers that are connected to a live front and well at none."""
        return len(self._unwell.placed)

    @property
    def panic(self) -> bool:
        """Whether so few of the connected workers are well that the others are used too."""
        return self._rings.joined is not None

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
        return self._rings.points + (self._unwell.points if self.panic else 0)

    @property
    def digest(self) -> str:
        """A fingerprint of the mapping, in hex: equal on two fronts when they map every range alike.

        It covers the replicas, the pins, and each usable worker's id, region, points and state. It is the sum
        of the hashes of these elements modulo 2^256 (AdHash: Bellare and Micciancio, 1997), so it is
        independent of order and follows every change at the cost of that change. It finds accidents; it is no
        defence against who chooses rows to collide.
        """
        workers = self._rings.digest + (self._unwell.digest if self.panic else 0)
        return f"{(self._digest + workers) % _DIGEST_SIZE:064x}"


def _pin_element(row: PinRow) -> int:
    return element("pin", row.cidr, row.worker, row.region)
