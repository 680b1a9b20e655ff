"""The health monitor: pings the workers that this front holds and tells who fell silent and who came back.

What is due when is the ``HealthBook``'s affair; this asks it, by a clock that it is given, and acts on the answers.
"""

from __future__ import annotations

from collections.abc import Callable

from kollator.clock import Clock
from kollator.pool.health import HealthBook
from kollator.state.rows import Unwell

TURN_S = 0.05
"""How often the book is asked, in seconds: how exact the time-out is."""

_NUMBER_DIGITS = 20


class HealthMonitor:
    """Watches the workers of one front.

    ``ping`` sends a ping with a number to a worker's connection. ``unwell`` is called with a worker, the reason and a
    sentence for the log, ``well`` when that reason is over: ``ping`` while it is silent, ``hold-down`` while it waits
    after it came back. ``phase`` draws a number from 0 to 1 that spreads the pings over
    the interval; ``answered`` takes each round trip in seconds.
    """

    def __init__(
        self,
        book: HealthBook,
        clock: Clock,
        *,
        ping: Callable[[str, int], object],
        unwell: Callable[[str, Unwell, str], object],
        well: Callable[[str, Unwell], object],
        phase: Callable[[], float],
        answered: Callable[[float], object] = lambda rtt_s: None,
    ) -> None:
        self._book = book
        self._clock = clock
        self._ping = ping
        self._unwell = unwell
        self._well = well
        self._phase = phase
        self._answered = answered

    def joined(self, worker: str) -> None:
        """The worker is connected to this front now."""
        hold_s = self._book.joined(worker, self._clock.seconds(), self._phase())
        if hold_s > 0:
            self._unwell(worker, "hold-down", f"it came back after falling out and is held down for {hold_s:g} s")

    def left(self, worker: str, politely: bool = False) -> None:
        """The connection is gone; ``politely`` when the worker itself closed it in order."""
        self._book.left(worker, self._clock.seconds(), politely=politely)

    def ponged(self, worker: str, payload: bytes) -> None:
        """A pong came from a worker."""
        if payload.isdigit() and len(payload) <= _NUMBER_DIGITS:
            answer = self._book.answered(worker, self._clock.seconds(), int(payload))
            if answer is not None:
                self._answered(answer.rtt_s)
                if answer.hold_s is not None:  # first the new reason: it must not be well for a moment in between
                    self._unwell(worker, "hold-down", f"it answers again and is held down for {answer.hold_s:g} s")
                    self._well(worker, "ping")

    def turn(self) -> None:
        """One round: who fell silent, who is back, whom to ping."""
        now = self._clock.seconds()
        for worker in self._book.overdue(now):
            self._unwell(worker, "ping", "it did not answer a ping in time")
        for worker in self._book.recovered(now):
            self._well(worker, "hold-down")
        for ping in self._book.due(now):
            self._ping(ping.worker, ping.number)
