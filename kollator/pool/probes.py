"""Probes of workers' own health addresses: which is due when, which took too long, what its outcome means. Pure.

One failure takes a worker out, as an unanswered ping does; two successes in a row bring it back.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

from kollator.pool.workersfile import HealthTarget

UNDER_WAY_MAX = 64
"""Probes under way at a time: sockets of one front; others wait their turn."""
SUCCESSES = 2
"""So many in a row bring a worker back."""
HISTORY_MAX = 20_000
"""Workers that left while they were out, and are out when they come back: twice what a front is made for."""

Turn = Literal["out", "back"]


class Probe(NamedTuple):
    """A probe to be begun now; ``number`` names it."""

    worker: str
    target: HealthTarget
    number: int


class _Watched:
    """A worker that is probed."""

    __slots__ = ("at", "gone", "number", "out", "successes", "target", "worker")

    def __init__(self, worker: str, target: HealthTarget, out: bool) -> None:
        self.worker = worker
        self.target = target
        self.out = out
        self.successes = 0
        self.number = 0  # of the probe whose outcome counts
        self.at = 0.0
        self.gone = False


class _Running:
    """A probe under way."""

    __slots__ = ("extended", "late", "until", "worker")

    def __init__(self, worker: str, until: float) -> None:
        self.worker = worker
        self.until = until
        self.extended = False
        self.late = False


class ProbeBook:
    """The probes of the workers connected to one front.

    Each worker is probed every ``interval_s``, with at most one probe under way, and ``most`` in all; one that gets
    no turn in time misses it. A probe may take ``timeout_s``. All times are seconds of one clock.

    The caller asks ``overdue`` and ``due`` at least every half time-out. When it comes more than that too late, its own
    process was held up and answers may lie unread in its sockets: the probes under way get one more time-out then.
    """

    def __init__(self, interval_s: float, timeout_s: float, most: int = UNDER_WAY_MAX) -> None:
        if interval_s <= 0 or timeout_s <= 0 or most < 1:
            raise ValueError("the interval, the time-out and the number of probes must be positive")
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self._most = most
        self._watched: dict[str, _Watched] = {}
        self._heap: list[tuple[float, int, _Watched]] = []
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._running: dict[int, _Running] = {}
        self._busy: set[str] = set()
        self._were_out: OrderedDict[str, None] = OrderedDict()  # the one that left first comes first
        self._serial = 0
        self._number = 0
        self._now = float("-inf")

    def __contains__(self, worker: str) -> bool:
        return worker in self._watched

    @property
    def under_way(self) -> int:
        """How many probes are."""
        return len(self._running)

    def is_out(self, worker: str) -> bool:
        """Whether the probes say that the worker is not to be used."""
        watched = self._watched.get(worker)
        return watched is not None and watched.out

    def watch(self, worker: str, target: HealthTarget, now: float, phase: float) -> int | None:
        """Probe a worker from now on, first after ``phase`` (0 to 1) of an interval.

        For one that is probed already nothing changes but its target; then the number of the probe under way that is
        worth nothing any more is returned. A worker is taken for healthy until a probe says otherwise.
        """
        self._mind_the_clock(now)
        watched = self._watched.get(worker)
        if watched is not None:
            if watched.target == target:
                return None
            watched.target, watched.successes = target, 0
            return self._void(watched)
        out = worker in self._were_out
        self._were_out.pop(worker, None)
        watched = self._watched[worker] = _Watched(worker, target, out)
        self._put(watched, now + phase % 1.0 * self.interval_s)
        return None

    def unwatch(self, worker: str, *, left: bool = False) -> int | None:
        """Probe it no more; ``left``: it is gone, and comes back as it was.

        Returns the number of its probe under way that is worth nothing any more, if there is one.
        """
        watched = self._watched.pop(worker, None)
        if watched is None:
            return None
        watched.gone = True
        self._waiting.pop(worker, None)
        if left and watched.out:
            self._were_out[worker] = None
            while len(self._were_out) > HISTORY_MAX:
                self._were_out.popitem(last=False)
        return self._void(watched)

    def overdue(self, now: float) -> list[int]:
        """Number the probes that have taken too long, each once: they are to be broken off, then ``ended``."""
        late: list[int] = []
        for number, running in self._running.items():
            running.until = min(running.until, now + self.timeout_s)  # the clock may be set back
            if running.late or running.until > now:
                continue
            if now - running.until > self.timeout_s / 2 and not running.extended:
                running.extended = True
                running.until = now + self.timeout_s
            else:
                running.late = True
                late.append(number)
        return late

    def due(self, now: float) -> list[Probe]:
        """Name the probes to be begun now; their time-out runs from now on."""
        self._mind_the_clock(now)
        while self._heap and self._heap[0][0] <= now:
            watched = heappop(self._heap)[2]
            if not watched.gone:
                # The phase is kept, and what was missed in a pause is not made up for.
                self._put(watched, watched.at + (int((now - watched.at) / self.interval_s) + 1) * self.interval_s)
                if watched.worker not in self._busy:  # by a probe, perhaps of its earlier connection
                    self._waiting.setdefault(watched.worker)
        begun: list[Probe] = []
        while self._waiting and len(self._running) < self._most:
            worker, _ = self._waiting.popitem(last=False)
            watched = self._watched[worker]
            self._number += 1
            watched.number = self._number
            self._running[self._number] = _Running(worker, now + self.timeout_s)
            self._busy.add(worker)
            begun.append(Probe(worker, watched.target, self._number))
        return begun

    def ended(self, number: int, healthy: bool) -> Turn | None:
        """Note a probe's outcome. Says when it takes the worker ``out`` or brings it ``back``."""
        running = self._running.pop(number, None)
        if running is None:
            return None
        self._busy.discard(running.worker)
        watched = self._watched.get(running.worker)
        if watched is None or watched.number != number:
            return None
        watched.number = 0
        if not healthy:
            watched.successes = 0
            was_out, watched.out = watched.out, True
            return None if was_out else "out"
        watched.successes += 1
        if watched.out and watched.successes >= SUCCESSES:
            watched.out = False
            return "back"
        return None

    def _void(self, watched: _Watched) -> int | None:
        number, watched.number = watched.number, 0
        return number or None

    def _put(self, watched: _Watched, at: float) -> None:
        watched.at = at
        self._serial += 1
        heappush(self._heap, (at, self._serial, watched))
        if len(self._heap) > 2 * len(self._watched) + 64:
            self._heap = [item for item in self._heap if not item[2].gone]
            heapify(self._heap)

    def _mind_the_clock(self, now: float) -> None:
        back = self._now - now
        self._now = now
        if back > 0:  # it was set back, and with it goes what is due
            for _, _, watched in self._heap:
                watched.at -= back
            self._heap = [(watched.at, serial, watched) for _, serial, watched in self._heap]
            heapify(self._heap)
