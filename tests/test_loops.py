"""Periodic tasks that outlive their own mistakes."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.observe.loops import Loop


class LoopTests(SynchronousTestCase):
    """One loop on a clock by hand."""

    def setUp(self) -> None:
        """Makes it."""
        clock: Any = Clock()
        self.clock = clock
        self.turns = 0
        self.mistakes = 0
        self.failed: list[str] = []
        self.loop = Loop("health", self._turn, 2.0, clock, self.failed.append)

    def _turn(self) -> None:
        self.turns += 1
        if self.mistakes:
            self.mistakes -= 1
            raise ValueError("a mistake")

    def test_turns(self) -> None:
        """Each interval has one turn, the first an interval after the start."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.loop.startService()
        self.clock.advance(1.9)
        self.assertEqual(self.turns, 0)
        self.clock.pump([0.1, 2.0, 2.0])
        self.assertEqual(self.turns, 3)

    def test_mistakes(self) -> None:
        """A turn that fails is logged and counted, and the next one comes: a LoopingCall alone would stop for ever."""
        self.mistakes = 2
        self.loop.startService()
        self.clock.pump([2.0] * 4)
        self.assertEqual((self.turns, self.failed), (4, ["health", "health"]))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_held_up(self) -> None:
        """Turns that were missed while the process was held up are not made up for."""
        self.loop.startService()
        self.clock.advance(61.0)
        self.assertEqual(self.turns, 1)

    def test_stop_and_again(self) -> None:
        """After the stop nothing is left to come; a service may be stopped that never ran, and started again."""
        self.loop.stopService()
        self.loop.startService()
        self.loop.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.loop.startService()
        self.clock.advance(2.0)
        self.assertEqual(self.turns, 1)
        self.loop.stopService()

    def test_stop_within_a_turn(self) -> None:
        """A turn may be what stops the front."""
        clock: Any = self.clock
        loop = Loop("last", lambda: loop.stopService(), 1.0, clock)
        loop.startService()
        self.clock.advance(1.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
