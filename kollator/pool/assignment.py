"""Deciding which worker serves a range, by region, state and exclusions, and saying why.

Workers of one state lie on rings of their own: one ring of all of them and one for each region. Looking on
the ring of the ``up`` ones finds exactly what walking past all others would find, at a cost that does not
grow with the number of full workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

from msgspec import Struct

from kollator.pool.ring import RING_SIZE, Ring, point_hashes, position_of

UsableState = Literal["up", "full", "draining"]
State = Literal["up", "full", "draining", "down"]
Reason = Literal["ring", "pinned", "pin-fallback", "other-region", "overflow", "no-workers"]
SkipReason = Literal["excluded", "full", "draining", "other-region", "down", "unknown"]

PREFERENCE: tuple[UsableState, ...] = ("up", "full", "draining")
"""States in the order in which workers are taken: full ones when no other is left, draining ones last."""

SKIPPED_MAX = 32
"""The most workers that an assignment names as passed by; who needs more reads ``/workers``."""


class WorkerRef(Struct, frozen=True):
    """A worker's name and region."""

    id: str
    region: str


class Skipped(Struct, frozen=True):
    """A worker that was passed by.

    ``excluded`` by the caller, ``full`` or ``draining`` as it said, ``other-region`` than the one asked for;
    ``down`` and ``unknown`` only for the worker of a pin.
    """

    worker: str
    reason: SkipReason


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
    nearest first.
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
    """All usable workers, each on the ring of its state and on that of its state and region.

    The region ``""`` is no region: it has no ring of its own, and asking for it means any.
    """

    def __init__(self) -> None:
        self.placed: dict[str, Placed] = {}
        self.points = 0
        self._rings: dict[tuple[UsableState, str], Ring] = {}
        # A worker goes on two rings one after the other.
        self._points_of = lru_cache(maxsize=2)(point_hashes)

    def count(self, state: UsableState) -> int:
        """Count the workers of a state."""
        ring = self._rings.get((state, ""))
        return len(ring) if ring is not None else 0

    def remove_all(self, workers: Iterable[str]) -> None:
        """Take workers out. Raises ``KeyError`` when one is not there."""
        leaving: dict[tuple[UsableState, str], list[str]] = {}
        for worker in workers:
            region, points, state = self.placed.pop(worker)
            self.points -= points
            for key in _keys(state, region):
                leaving.setdefault(key, []).append(worker)
        for key, names in leaving.items():
            ring = self._rings[key]
            ring.remove_all(names)
            if not ring:
                del self._rings[key]

    def add(self, worker: str, placed: Placed) -> None:
        """Put a worker in. Raises ``ValueError`` as ``Ring.add`` does."""
        region, points, state = placed
        for key in _keys(state, region):
            ring = self._rings.get(key)
            if ring is None:
                ring = self._rings[key] = Ring(self._points_of)
            ring.add(worker, points)
        self.placed[worker] = placed
        self.points += points

    def sweep(self, points_max: int) -> bool:
        """Do a slice of what the rings put off (see ``Ring``); say whether more is left."""
        for ring in self._rings.values():
            if ring.garbage:
                ring.sweep(points_max)
                break
        return any(ring.garbage for ring in self._rings.values())

    def candidates(self, hash64: int, region: str, without: Set[str]) -> Iterator[Candidate]:
        """Name every worker once in the order of preference: by state, the region's first, then clockwise."""
        for state in PREFERENCE:
            near = self._rings.get((state, region)) if region else None
            taken = without
            if near is not None:
                met = set(without)
                for worker, position in near.steps(hash64, without):
                    met.add(worker)
                    yield Candidate(worker, position, state)
                taken = met
            common = self._rings.get((state, ""))
            if common is not None:
                for worker, position in common.steps(hash64, taken):
                    yield Candidate(worker, position, state)

    def passed_by(
        self, hash64: int, region: str, excluded: Collection[str], chosen: Candidate | None
    ) -> list[Skipped]:
        """Name, nearest first, whom a search passed by before it took ``chosen`` (None: it found nobody)."""
        start = position_of(hash64)
        if chosen is None:
            reach, rank, abroad = RING_SIZE, len(PREFERENCE), True
        else:
            reach, rank = (chosen.position - start) % RING_SIZE, PREFERENCE.index(chosen.state)
            abroad = self.placed[chosen.worker].region != region
        found: dict[str, int] = {}
        for (state, of_region), ring in self._rings.items():
            if of_region and of_region != region:
                continue
            # Of a region that had nobody everyone was passed by, and so was everyone in a better state.
            all_round = PREFERENCE.index(state) < rank or (of_region != "" and abroad)
            for worker, position in islice(ring.steps(hash64), SKIPPED_MAX + 1):
                distance = (position - start) % RING_SIZE
                if distance >= reach and not all_round:
                    break
                if chosen is None or worker != chosen.worker:
                    found[worker] = distance
        nearest = sorted(found, key=lambda worker: (found[worker], worker))[:SKIPPED_MAX]
        return [Skipped(worker, self._why_not(worker, excluded, rank)) for worker in nearest]

    def _why_not(self, worker: str, excluded: Collection[str], rank: int) -> SkipReason:
        if worker in excluded:
            return "excluded"
        state = self.placed[worker].state
        return state if state != "up" and PREFERENCE.index(state) > rank else "other-region"


def _keys(state: UsableState, region: str) -> tuple[tuple[UsableState, str], ...]:
    return ((state, ""), (state, region)) if region else ((state, ""),)
