"""The clockwork of the health checks: pings go out, silence and returns are told."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.health import HealthBook
from kollator.pool.monitor import TURN_S, HealthMonitor


class MonitorTests(SynchronousTestCase):
    """One monitor with the contract's defaults: a ping a second, a second to answer."""

    def setUp(self) -> None:
        """Watches w1, whose first ping is due after half an interval."""
        clock: Any = Clock()
        self.clock = clock
        self.noted: list[tuple[str, str]] = []
        self.pings: list[tuple[str, int]] = []
        self.answers: list[float] = []
        self.monitor = HealthMonitor(
            HealthBook(1.0, 1.0),
            clock,
            ping=lambda worker, number: self.pings.append((worker, number)),
            unwell=lambda worker, why, said: self.noted.append(("unwell", why)),
            well=lambda worker, why: self.noted.append(("well", why)),
            phase=lambda: 0.5,
            answered=self.answers.append,
        )

    def turn(self, seconds: float, answer: bool = False) -> None:
        """Lets the monitor turn for a while; every ping is answered at once, or none."""
        for _ in range(round(seconds / TURN_S)):
            self.clock.advance(TURN_S)
            before = len(self.pings)
            self.monitor.turn()
            if answer:
                for worker, number in self.pings[before:]:
                    self.monitor.ponged(worker, b"%d" % number)

    def test_well(self) -> None:
        """A worker that answers is pinged once an interval, and nothing else happens."""
        self.monitor.joined("w1")
        self.turn(10.0, answer=True)
        self.assertEqual((len(self.pings), self.noted), (10, []))
        self.assertEqual(self.answers, [0.0] * 10)

    def test_silence_and_return(self) -> None:
        """One that falls silent is out after the time-out, and back after its hold-down once it answers."""
        self.monitor.joined("w1")
        self.turn(1.45)
        self.assertEqual(self.noted, [])
        self.turn(0.15)
        self.assertEqual(self.noted, [("unwell", "ping")])
        self.turn(0.9, answer=True)
        self.assertEqual(len(self.noted), 1)
        self.turn(0.2, answer=True)
        # The new reason first: with none at all for a moment, clients would be sent to it.
        self.assertEqual(self.noted[1:], [("unwell", "hold-down"), ("well", "ping")])
        self.turn(2.0, answer=True)
        self.assertEqual(self.noted[3:], [("well", "hold-down")])

    def test_silence_during_the_hold_down(self) -> None:
        """One that is silent again before it was back is told to be silent, not to be waiting for ever."""
        self.monitor.joined("w1")
        for _ in range(3):  # the second and the third hold-down are longer than a ping takes
            for _ in range(200):
                if ("unwell", "ping") not in self.noted:
                    self.turn(TURN_S)
            self.assertEqual(self.noted[-1:], [("unwell", "ping")])
            self.noted.clear()
            for _ in range(200):
                if not self.noted:
                    self.turn(TURN_S, answer=True)
            self.assertEqual(self.noted, [("unwell", "hold-down"), ("well", "ping")])
        self.turn(10.0, answer=True)
        self.assertEqual(self.noted[2:], [("well", "hold-down")])

    def test_round_trip(self) -> None:
        """The time of an answer is measured, for the histogram."""
        self.monitor.joined("w1")
        while not self.pings:
            self.turn(TURN_S)
        self.clock.advance(0.25)
        self.monitor.ponged("w1", b"%d" % self.pings[0][1])
        self.assertEqual(self.answers, [0.25])

    def test_foreign_pongs(self) -> None:
        """A pong says what a peer likes; only the answer to the last ping is one."""
        self.monitor.joined("w1")
        self.turn(0.6)
        for payload in (b"", b"-1", b"x", b"\xb2", b"1" * 125, b"99", b" 1", b"1.0", b"\xd9\xa1"):
            self.monitor.ponged("w1", payload)
            self.monitor.ponged("w2", payload)
        self.assertEqual(self.answers, [])

    def test_flapping(self) -> None:
        """One that goes and comes back again and again is held down, and told to be."""
        for _ in range(3):
            self.monitor.joined("w1")
            self.monitor.left("w1")
        self.noted.clear()
        self.monitor.joined("w1")
        self.assertEqual(self.noted, [("unwell", "hold-down")])
        self.turn(10.0, answer=True)
        self.assertEqual(self.noted, [("unwell", "hold-down"), ("well", "hold-down")])

    def test_spread(self) -> None:
        """A thousand workers that come back within a second are not pinged at once, now or later."""
        phase = random.Random(1).random
        monitor = HealthMonitor(
            HealthBook(1.0, 1.0),
            self.clock,
            ping=lambda worker, number: self.pings.append((worker, number)),
            unwell=lambda worker, why, said: self.noted.append(("unwell", why)),
            well=lambda worker, why: self.noted.append(("well", why)),
            phase=phase,
        )
        for number in range(1000):
            monitor.joined(f"w{number}")
        most = 0
        for _ in range(round(5.0 / TURN_S)):
            self.clock.advance(TURN_S)
            self.pings.clear()
            monitor.turn()
            most = max(most, len(self.pings))
            for worker, sent in self.pings:
                monitor.ponged(worker, b"%d" % sent)
        self.assertEqual(self.noted, [])
        self.assertLess(most, 2 * 1000 * TURN_S)

    def test_left(self) -> None:
        """One that is gone is neither pinged nor called silent."""
        self.monitor.joined("w1")
        self.turn(0.6)
        self.monitor.left("w1")
        self.turn(5.0)
        self.assertEqual((len(self.pings), self.noted), (1, []))
