"""Simulated time: events in the order in which they are due, and for each front a clock of its own."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock


class World:
    """The one true time, which nobody but the simulator sees. ``clock`` is for the code under test."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = 0

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock.rightNow

    def at(self, when: float, call: Callable[..., Any], *args: Any) -> None:
        """Call at that time, in the order of the requests where times are equal."""
        self._number += 1
        heapq.heappush(self._heap, (max(when, self.now), self._number, call, args))

    def run(self, until: float) -> None:
        """Let everything happen that is due by then."""
        clock, heap = self.clock, self._heap
        while True:
            due = heap[0][0] if heap else until + 1
            if clock.calls and clock.calls[0].getTime() < min(due, until):
                clock.advance(max(0.0, clock.calls[0].getTime() - clock.rightNow))
                continue
            if due > until:
                break
            _, _, call, args = heapq.heappop(heap)
            clock.rightNow = max(clock.rightNow, due)
            self.events += 1
            call(*args)
        clock.advance(max(0.0, until - clock.rightNow))


class SkewedClock:
    """The clock of one front: it began anywhere, runs too fast or too slow, and leaps when it is set."""

    def __init__(self, world: World, offset: float, rate: float) -> None:
        self.offset = offset
        self.rate = rate
        self._clock = world.clock

    def seconds(self) -> float:
        """The time on this clock."""
        return self.offset + self.rate * self._clock.rightNow

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the reactor's."""
        return self._clock.callLater(delay / self.rate, call, *args, **kwargs)
