"""Time-outs of many at once, all of the same length, with one timer among them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.logger import Logger

from kollator.clock import Call, Clock

log = Logger("kollator:front")

TURN = 200
"""So many are dealt with in one turn of the reactor; it has other things to do as well."""

T = TypeVar("T", bound=Hashable)


class Deadlines(Generic[T]):
    """Those that wait for something, oldest first; ``late`` is called with each that has waited too long.

    A timer of its own for each would cost more than all the rest of a short wait. Here one runs until the oldest is
    due, whoever that is by then, or until nobody waits any more.
    """

    def __init__(self, clock: Clock, late: Callable[[T], object]) -> None:
        self._clock = clock
        self._late = late
        self._due: dict[T, float] = {}
        self._timer: Call | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._due)

    def start(self, one: T, delay_s: float) -> None:
        """From now on it waits. ``delay_s`` is to be the same for all."""
        self._due[one] = self._clock.seconds() + delay_s
        if self._timer is None:
            self._timer = self._clock.callLater(delay_s, self._turn)

    def stop(self, one: T) -> None:
        """It waits no longer. Harmless when it did not."""
        if self._due.pop(one, None) is not None and not self._due:
            self._stop_timer()

    def close(self) -> None:
        """Forgets all, and the timer."""
        self._due.clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for _ in range(TURN):
            one, due = next(iter(self._due.items()), (None, 0.0))
            if one is None or due > now:
                break
            del self._due[one]
            try:
                self._late(one)
            except Exception:
                log.failure("a time-out could not be dealt with")
        if self._due and self._timer is None:
            due = next(iter(self._due.values()))
            self._timer = self._clock.callLater(max(0.0, due - now), self._turn)
