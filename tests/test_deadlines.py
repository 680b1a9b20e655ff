"""Time-outs of many with one timer."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.deadlines import TURN, Deadlines


class CountingClock(Clock):
    """Counts what it is asked for."""

    turns = 0

    def callLater(self, *args: Any, **kwargs: Any) -> Any:
        """As any clock."""
        self.turns += 1
        return super().callLater(*args, **kwargs)


class DeadlinesTests(SynchronousTestCase):
    """On a clock that is told what time it is."""

    def setUp(self) -> None:
        """Nobody waits."""
        self.clock = CountingClock()
        self.late: list[int] = []
        self.deadlines: Deadlines[int] = Deadlines(self.clock, self.late.append)

    def timers(self) -> int:
        """How many calls are to come."""
        return len(self.clock.getDelayedCalls())

    def test_in_time(self) -> None:
        """Without it somebody would be cut off early, or never."""
        for number in range(5):
            self.deadlines.start(number, 10)
            self.clock.advance(1)
        self.assertEqual((len(self.deadlines), self.timers()), (5, 1))
        self.clock.advance(4.875)
        self.assertEqual(self.late, [])
        for number in range(5):
            self.clock.advance(0.125)
            self.assertEqual(self.late, list(range(number + 1)))
            self.clock.advance(0.875)
        self.assertEqual((len(self.deadlines), self.timers()), (0, 0))

    def test_who_came_in_time(self) -> None:
        """Without it a connection that has long been served would be cut off, or a timer stay behind."""
        for number in range(3):
            self.deadlines.start(number, 10)
        self.deadlines.stop(0)
        self.deadlines.stop(0)
        self.deadlines.stop(7)
        self.clock.advance(9)
        self.deadlines.start(3, 10)
        self.clock.advance(1)
        self.assertEqual(self.late, [1, 2])
        self.deadlines.stop(3)
        self.assertEqual(self.timers(), 0)
        self.clock.advance(100)
        self.assertEqual(self.late, [1, 2])

    def test_many_at_once(self) -> None:
        """Without it thousands that are late together would hold the reactor."""
        for number in range(2 * TURN + 1):
            self.deadlines.start(number, 10)
        turns = self.clock.turns
        self.clock.advance(10)
        self.assertEqual(self.late, list(range(2 * TURN + 1)))
        self.assertEqual(self.clock.turns - turns, 2, "calls for the next turn")
        self.assertEqual(self.timers(), 0)

    def test_what_fails(self) -> None:
        """Without it one that cannot be cut off would keep all others."""
        def late(number: int) -> None:
            if number == 0:
                raise ValueError(number)
            if number == 1:
                self.deadlines.stop(2)
                self.deadlines.start(4, 10)
            self.late.append(number)

        self.deadlines = Deadlines(self.clock, late)
        for number in range(4):
            self.deadlines.start(number, 10)
        self.clock.advance(10)
        self.assertEqual(self.late, [1, 3])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.clock.advance(10)
        self.assertEqual(self.late, [1, 3, 4])

    def test_close(self) -> None:
        """Without it a timer would outlive the service."""
        self.deadlines.close()
        self.deadlines.start(1, 10)
        self.deadlines.close()
        self.assertEqual((len(self.deadlines), self.timers()), (0, 0))
