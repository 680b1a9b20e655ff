"""Deciding which worker serves a range, by region, state and exclusions, and saying why.

Workers of one state lie on rings of their own: one ring of all of them and one for each region. Looking on
the ring of the ``up`` ones finds exactly what walking past all others would find, at a cost that does not
grow with the number of full workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from functools import lru_cache
from hashlib import blake2b
from heapq import merge
from itertools import islice, product
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from kollator.pool.ring import REMOVED_POINTS_MAX, RING_SIZE, Ring, point_hashes, position_of
from kollator.pool.standing import PREFERENCE, UsableState

Reason = Literal["ring", "pinned", "pin-fallback", "other-region", "overflow", "no-workers"]
SkipReason = Literal["excluded", "full", "draining", "other-region", "down", "unknown"]

SKIPPED_MAX = 32
"""The most workers that an assignment names as passed by; who needs more reads ``/workers``."""
UNWELL_POINTS = 20_000
"""No more points are computed to say which unwell workers were passed by: some milliseconds' worth."""
PLACING = 4
"""Putting a point on a ring takes so many times what sweeping one takes."""
PLACED_AT_ONCE = 4_096
"""The ring of a region with so few points is made when it is first asked for, in some milliseconds."""


class WorkerRef(Struct, frozen=True):
    """A worker's name and region."""

    id: str
    region: str


class Skipped(Struct, frozen=True):
    """A worker that was passed by.

    ``excluded`` by the caller, ``full`` or ``draining``, ``other-region`` than the one asked for, ``down`` although
    connected; the worker of a pin also when it is ``down`` and gone, or ``unknown``. ``why`` is ``operator`` where an
    operator drains it, and the reason (see ``rows.Unwell``) where it is connected and not well.
    """

    worker: str
    reason: SkipReason
    why: str = ""


class RingPosition(Struct, frozen=True):
    """Where a range lies and where the point lies that took it: 0 to ``RING_SIZE`` - 1 (2^44 - 1), clockwise.

    ``point`` is None when no point decided: a pin to a worker, or nobody there.
    """

    range: int
    point: int | None = None


class Assignment(Struct, frozen=True):
    """The worker of an address and why it is that one.

    ``reason``, the first of these that holds:

    - ``no-workers``: nobody is left who is not excluded; ``worker`` is None.
    - ``pin-fallback``: a pin covers the address, but its worker is not up (the first of ``skipped`` says why)
      or its region has nobody up; the ring decided.
    - ``overflow``: nobody up is left; the ring as if none were full or, with only draining ones left, as if
      none were draining. ``state`` says which.
    - ``pinned``: ``pin`` named the worker, or its region did and the ring of that region decided.
    - ``other-region``: the region asked for has nobody up.
    - ``ring``: the range's place on the ring decided.

    ``region`` is the worker's. ``alternates`` are who would follow, never in a worse state than the worker.
    ``skipped`` (at most ``SKIPPED_MAX``) are those that lie nearer on the ring, or in the region asked for,
    nearest first, and unwell ones that would have been taken instead.
    """

    address: str
    range: str
    worker: str | None
    region: str
    state: UsableState | None
    alternates: tuple[WorkerRef, ...]
    reason: Reason
    position: RingPosition
    pin: str | None = None
    skipped: tuple[Skipped, ...] = ()


class Placed(NamedTuple):
    """A usable worker as the rings know it."""

    region: str
    points: int
    state: UsableState


class Candidate(NamedTuple):
    """A worker that may be taken, and the position of the point that offers it."""

    worker: str
    position: int
    state: UsableState


class Rings:
    """All usable workers on the ring of their state, and those of regions that are asked for on rings of their own.

    A region's ring says what walking the common one and passing by all others would say. So it is made only when
    the region is asked for, in slices where it is large, and until it is whole the common one is walked. The region
    ``""`` is no region: asking for it means any.

    Who is not ``walked`` is known here and lies on no ring, which saves the time of putting it there.
    """

    def __init__(self, *, walked: bool = True) -> None:
        self.placed: dict[str, Placed] = {}
        self.points = 0
        self.digest = 0
        """The sum of the hashes of all that is placed (see ``Pool.digest``)."""
        self.joined: Rings | None = None
        """Others that are walked along with these, as if all lay on the same rings."""
        self._walked = walked
        self._rings: dict[tuple[UsableState, str], Ring] = {}
        self._members: dict[tuple[UsableState, str], set[str]] = {}
        self._unplaced: dict[str, list[str]] = {}  # for each region with a ring of its own, who is not on it yet
        # A worker may go on two rings one after the other.
        self._points_of = lru_cache(maxsize=2)(point_hashes)

    def place_of(self, worker: str) -> Placed | None:
        """Say where a worker is placed, here or in those that were joined; None when it is in neither."""
        placed = self.placed.get(worker)
        return placed if placed is not None or self.joined is None else self.joined.placed.get(worker)

    def count(self, state: UsableState) -> int:
        """Count the workers of a state, those that were joined too."""
        ring = self._rings.get((state, ""))
        own = len(ring) if ring is not None else 0
        return own if self.joined is None else own + self.joined.count(state)

    def update(self, workers: Iterable[str], places: Mapping[str, Placed]) -> None:
        """Place these workers as ``places`` has them; who is not in it is taken out."""
        leaving: list[str] = []
        entering: dict[str, Placed] = {}
        for worker in workers:
            before, after = self.placed.get(worker), places.get(worker)
            if before == after:
                continue
            if before is not None:
                leaving.append(worker)
                self.digest -= element("worker", worker, *before)
            if after is not None:
                entering[worker] = after
                self.digest += element("worker", worker, *after)
        self.remove_all(leaving)
        for worker, placed in entering.items():
            self.add(worker, placed)

    def remove_all(self, workers: Iterable[str]) -> None:
        """Take workers out. Raises ``KeyError`` when one is not there.

        However many regions they are of, ``REMOVED_POINTS_MAX`` bounds the points that all rings together take out.
        """
        leaving: dict[tuple[UsableState, str], list[str]] = {}
        points = 0
        for worker in workers:
            region, count, state = self.placed.pop(worker)
            self.points -= count
            if not self._walked:
                continue
            for key in ((state, ""), (state, region)) if region else ((state, ""),):
                leaving.setdefault(key, []).append(worker)
                points += count
        for key, names in leaving.items():
            if key[1]:
                members = self._members[key]
                members.difference_update(names)
                if not members:
                    del self._members[key]
                if not any((state, key[1]) in self._members for state in PREFERENCE):
                    self._unplaced.pop(key[1], None)
            ring = self._rings.get(key)
            if ring is not None:
                ring.remove_all([name for name in names if name in ring], marked=points > REMOVED_POINTS_MAX)
                if not ring:
                    del self._rings[key]

    def add(self, worker: str, placed: Placed) -> None:
        """Put a worker in. Raises ``ValueError`` as ``Ring.add`` does."""
        region, points, state = placed
        if self._walked:
            self._put(worker, points, (state, ""))
            if region:
                self._members.setdefault((state, region), set()).add(worker)
                unplaced = self._unplaced.get(region)
                if unplaced:
                    unplaced.append(worker)
                elif unplaced is not None:
                    self._put(worker, points, (state, region))
        self.placed[worker] = placed
        self.points += points

    def _put(self, worker: str, points: int, key: tuple[UsableState, str]) -> None:
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = Ring(self._points_of)
        ring.add(worker, points)

    def sweep(self, points_max: int) -> bool:
        """Do a slice of what was put off: what the rings put off (see ``Ring``), and rings of regions.

        Says whether more is left.
        """
        for ring in self._rings.values():
            if ring.garbage and points_max > 0:
                stored = ring.points + ring.garbage
                ring.sweep(points_max)
                points_max -= stored  # what is left of the slice is for the next ring: many have a little each
        for region, unplaced in self._unplaced.items():
            if unplaced:
                self._place(region, points_max // PLACING)
                break
        return any(ring.garbage for ring in self._rings.values()) or any(self._unplaced.values())

    def _place(self, region: str, points_max: int) -> None:
        """Put workers of a region on its ring, so many points of them."""
        unplaced = self._unplaced[region]
        while unplaced and points_max > 0:
            worker = unplaced.pop()
            placed = self.placed.get(worker)
            if placed is not None and placed.region == region:
                ring = self._rings.get((placed.state, region))
                if ring is None or worker not in ring:
                    self._put(worker, placed.points, (placed.state, region))
                    points_max -= placed.points

    def _is_whole(self, region: str) -> bool:
        """Whether the ring of a region can be walked; makes it, or begins to, when the region is a new one."""
        unplaced = self._unplaced.get(region)
        if unplaced is None:
            workers = [worker for state in PREFERENCE for worker in self._members.get((state, region), ())]
            if not workers:
                return True
            unplaced = self._unplaced[region] = workers
            self._place(region, PLACED_AT_ONCE)
        return not unplaced

    def _steps(
        self, state: UsableState, region: str, hash64: int, without: Set[str]
    ) -> Iterator[tuple[str, int]]:
        """Walk the workers of a state and a region, ``""`` for all, as ``Ring.steps`` does."""
        own = self._own_steps(state, region, hash64, without)
        if self.joined is None:
            return own
        start = position_of(hash64)
        others = self.joined._own_steps(state, region, hash64, without)
        return merge(own, others, key=lambda step: ((step[1] - start) % RING_SIZE, step[0]))

    def _own_steps(
        self, state: UsableState, region: str, hash64: int, without: Set[str]
    ) -> Iterator[tuple[str, int]]:
        if not region or self._is_whole(region):
            ring = self._rings.get((state, region))
            if ring is not None:
                yield from ring.steps(hash64, without)
            return
        left = len(self._members.get((state, region), set()).difference(without))
        if left:
            for worker, position in self._rings[(state, "")].steps(hash64, without):
                if self.placed[worker].region == region:
                    yield worker, position
                    left -= 1
                    if not left:
                        return

    def candidates(self, hash64: int, region: str, without: Set[str]) -> Iterator[Candidate]:
        """Name every worker once in the order of preference: by state, the region's first, then clockwise."""
        for state in PREFERENCE:
            taken = without
            if region:
                met = set(without)
                for worker, position in self._steps(state, region, hash64, without):
                    met.add(worker)
                    yield Candidate(worker, position, state)
                taken = met
            for worker, position in self._steps(state, "", hash64, taken):
                yield Candidate(worker, position, state)

    def passed_by(
        self,
        hash64: int,
        region: str,
        excluded: Collection[str],
        chosen: Candidate | None,
        unwell: Mapping[str, Placed],
    ) -> list[Skipped]:
        """Name, nearest first, whom a search passed by before it took ``chosen`` (None: it found nobody).

        ``unwell`` are some that were not searched; those are named that would have been taken before ``chosen``.
        """
        start = position_of(hash64)
        if chosen is None:
            reach, rank, abroad = RING_SIZE, len(PREFERENCE), True
        else:
            reach, rank = (chosen.position - start) % RING_SIZE, PREFERENCE.index(chosen.state)
            place = self.place_of(chosen.worker)
            abroad = place is None or place.region != region
        found: dict[str, int] = {}
        for state, of_region in product(PREFERENCE, {"", region}):
            # Of a region that had nobody everyone was passed by, and so was everyone in a better state.
            all_round = PREFERENCE.index(state) < rank or (of_region != "" and abroad)
            for worker, position in islice(self._steps(state, of_region, hash64, frozenset()), SKIPPED_MAX + 1):
                distance = (position - start) % RING_SIZE
                if distance >= reach and not all_round:
                    break
                if chosen is None or worker != chosen.worker:
                    found[worker] = distance
        last = (rank, bool(region) and abroad, reach)
        points_left = UNWELL_POINTS
        for worker, placed in unwell.items():
            if points_left > 0:
                points_left -= placed.points
                points = self._points_of(worker, placed.points)
                distance = min((position_of(point) - start) % RING_SIZE for point in points)
                if (PREFERENCE.index(placed.state), bool(region) and placed.region != region, distance) < last:
                    found[worker] = distance
        nearest = sorted(found, key=lambda worker: (found[worker], worker))[:SKIPPED_MAX]
        return [
            Skipped(worker, "down" if worker in unwell else self._why_not(worker, excluded, rank))
            for worker in nearest
        ]

    def _why_not(self, worker: str, excluded: Collection[str], rank: int) -> SkipReason:
        if worker in excluded:
            return "excluded"
        place = self.place_of(worker)
        if place is None or place.state == "up" or PREFERENCE.index(place.state) <= rank:
            return "other-region"
        return place.state


def element(*content: str | int) -> int:
    """Hash one element of the pool's digest; JSON keeps its parts apart."""
    encoded = msgspec.json.encode(content)
    return int.from_bytes(blake2b(encoded, digest_size=32, person=b"kollator digest").digest(), "big")
