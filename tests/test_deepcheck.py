"""The front's side of the deep check, with a probe in memory and a clock by hand."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from kollator.children import FIRST_RESTART_S
from kollator.deepcheck import DeepCheck
from kollator.pool.checks import CHECK_S, PREPARE_S, Check, Phases, Result, decode_check, encode
from tests.children import Processes

URL = "ws://127.0.0.1:8080/signaling"
TIMES = Phases(1.0, 2.0, 3.0, 4.0, 5.0)
SILENT_S = 2 * (PREPARE_S + CHECK_S)


class DeepCheckCase(SynchronousTestCase):
    """A deep check every five seconds; ``told`` is what it said of workers, ``outcomes`` of checks."""

    interval_s = 5.0

    def setUp(self) -> None:
        self.reactor = Processes()
        self.url: str | None = URL
        self.workers = ["w1"]
        self.told: list[Any] = []
        self.outcomes: list[str] = []
        self.measured: list[tuple[str, float]] = []
        self.read = 0
        self.deep = DeepCheck(
            self.interval_s,
            self.reactor,
            url=lambda: self.url,
            workers=lambda: iter(self.workers),
            unwell=lambda worker, why, said: self.told.append(("unwell", worker, why, said)),
            well=lambda worker, why: self.told.append(("well", worker, why)),
            measured=lambda phase, seconds: self.measured.append((phase, seconds)),
            checked=self.outcomes.append,
        )

    def start(self) -> None:
        self.deep.startService()
        self.addCleanup(self.deep.stopService)

    def asked(self) -> list[Check]:
        """What the probe was asked since the last time."""
        lines = self.reactor.child.written[self.read :].splitlines(keepends=True)
        self.read = len(self.reactor.child.written)
        return [decode_check(line) for line in lines]

    def next(self) -> Check:
        """The next check."""
        self.reactor.advance(self.interval_s)
        (check,) = self.asked()
        return check

    def passed(self, check: Check) -> None:
        self.reactor.child.say(encode(Result(check.check, check.worker, True, phases=TIMES)))

    def failed(self, check: Check, own: bool = False, error: str = "not done within 10 s") -> None:
        result = Result(check.check, check.worker, False, phase="connect" if own else "answer", error=error, own=own)
        self.reactor.child.say(encode(result))


class OffTests(DeepCheckCase):
    """Without an interval."""

    interval_s = 0.0

    def test_nothing(self) -> None:
        """Without it every front would carry a second process that nobody asked for."""
        self.deep.startService()
        self.assertEqual((self.reactor.children, self.reactor.getDelayedCalls()), ([], []))
        self.deep.forget("w1")
        self.deep.stopService()


class AskingTests(DeepCheckCase):
    """What the probe is asked, and when."""

    def test_round(self) -> None:
        """Without it a worker would be left out, or checked out of turn."""
        self.workers = ["w2", "w1", "w3"]
        self.start()
        self.assertEqual(self.asked(), [])
        seen = []
        for _ in range(4):
            check = self.next()
            self.assertEqual((check.url, check.limit_s), (URL, CHECK_S))
            seen.append((check.check, check.worker))
            self.passed(check)
        self.assertEqual(seen, [(1, "w1"), (2, "w2"), (3, "w3"), (4, "w1")])

    def test_one_at_a_time(self) -> None:
        """Without it slow workers would heap up checks, whose results then mix."""
        self.start()
        check = self.next()
        self.reactor.advance(self.interval_s)
        self.assertEqual(self.asked(), [])
        self.passed(check)
        self.assertEqual(self.next().check, 2)

    def test_no_worker(self) -> None:
        """Without it a front without workers would fail at every interval."""
        self.workers = []
        self.start()
        self.reactor.advance(self.interval_s)
        self.assertEqual(self.asked(), [])
        self.workers = ["w1"]
        self.assertEqual(self.next().worker, "w1")

    def test_no_way(self) -> None:
        """Without it a front with TLS alone would check nothing and not say what to set."""
        self.url = None
        with capturedLogs() as events:
            self.start()
            self.reactor.pump([self.interval_s] * 3)
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn])
        self.assertIn("DEEP_HEALTH_URL", events[0]["log_format"])
        self.assertEqual(self.reactor.children, [])

    def test_secrets_stay(self) -> None:
        """Without it the keys of the front would lie in the environment of a process that talks to workers."""
        self.patch(os, "environ", {"PATH": "/bin", "WORKER_KEY": "secret", "TURN_SECRET": "secret", "PORT": "1"})
        self.start()
        child = self.reactor.child
        self.assertEqual(child.environment, {"PATH": "/bin"})
        self.assertEqual(child.arguments, [sys.executable, "-m", "kollator.webrtc.probe"])


class VerdictTests(DeepCheckCase):
    """What the front makes of the results."""

    def test_success(self) -> None:
        """Without it the phases would not be seen by those who look at metrics."""
        self.start()
        self.passed(self.next())
        self.assertEqual(
            self.measured,
            [("connect", 0.001), ("welcome", 0.002), ("answer", 0.003), ("ice", 0.004), ("open", 0.005)],
        )
        self.assertEqual((self.outcomes, self.told), (["ok"], []))

    def test_out_and_back(self) -> None:
        """Without it a worker without WebRTC would stay in the ring, or never come back."""
        self.start()
        self.failed(self.next())
        self.assertEqual(self.told, [])
        self.failed(self.next())
        ((verdict, worker, why, said),) = self.told
        self.assertEqual((verdict, worker, why), ("unwell", "w1", "webrtc"))
        self.assertIn("answer: not done within 10 s", said)
        self.failed(self.next())
        self.passed(self.next())
        self.assertEqual(self.told[1:], [("well", "w1", "webrtc")])
        self.assertEqual(self.outcomes, ["failed", "failed", "failed", "ok"])

    def test_the_probes_own(self) -> None:
        """Without it a front that is full or drains would take all its workers out."""
        self.start()
        with capturedLogs() as events:
            for error in ("refused", "refused", "refused", "other"):
                self.failed(self.next(), own=True, error=error)
            self.assertEqual((self.told, self.outcomes), ([], ["aborted"] * 4))
            self.passed(self.next())
            self.failed(self.next(), own=True, error="other")
        reasons = [event["reason"] for event in events]
        self.assertEqual(reasons, ["connect: refused", "connect: other", "connect: other"])

    def test_own_failure_between(self) -> None:
        """Without it trouble of the probe would wash a worker's failure away."""
        self.start()
        self.failed(self.next())
        self.failed(self.next(), own=True)
        self.failed(self.next())
        self.assertEqual([told[0] for told in self.told], ["unwell"])

    def test_left_meanwhile(self) -> None:
        """Without it the result about a connection that is gone would count against the next one."""
        self.start()
        self.failed(self.next())
        check = self.next()
        self.deep.forget("w1")
        self.failed(check)
        self.failed(self.next())
        self.assertEqual((self.told, self.outcomes), ([], ["failed", "aborted", "failed"]))

    def test_another_left(self) -> None:
        """Without it any worker that leaves would void the check that is under way."""
        self.start()
        check = self.next()
        self.deep.forget("w2")
        self.passed(check)
        self.assertEqual(self.outcomes, ["ok"])

    def test_lines_of_others(self) -> None:
        """Without it a line that something prints, or a late result, would be taken for the result."""
        self.start()
        self.reactor.child.say(encode(Result(0, "w1", True, phases=TIMES)))
        check = self.next()
        with capturedLogs() as events:
            self.reactor.child.say(b"warning: something\n" + b"\xff" * 70_000 + b"\n")
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn] * 2)
        self.reactor.child.say(encode(Result(check.check + 1, "w1", True, phases=TIMES)))
        self.assertEqual(self.outcomes, [])
        self.passed(check)
        self.passed(check)
        self.assertEqual(self.outcomes, ["ok"])


class ProbeTests(DeepCheckCase):
    """When the probe itself does not do as it should."""

    def test_dies(self) -> None:
        """Without it one crash would be the end of all checks, or a failure of the worker."""
        self.start()
        self.next()
        self.reactor.child.end(1)
        self.assertEqual((self.told, self.outcomes), ([], ["aborted"]))
        self.read = 0
        self.reactor.advance(FIRST_RESTART_S)
        self.assertEqual(len(self.reactor.children), 2)
        self.passed(self.next())
        self.assertEqual(self.outcomes, ["aborted", "ok"])

    def test_dies_idle(self) -> None:
        """Without it a crash between two checks would be counted as a check."""
        self.start()
        self.passed(self.next())
        self.reactor.child.end(1)
        self.assertEqual(self.outcomes, ["ok"])

    def test_hangs(self) -> None:
        """Without it a probe that hangs would end all checks without a word."""
        self.start()
        self.next()
        self.reactor.advance(SILENT_S - 0.1)
        self.assertEqual(self.reactor.child.signals, [])
        self.reactor.advance(0.1)
        self.assertEqual(self.reactor.child.signals, ["KILL"])
        self.assertEqual((self.told, self.outcomes), ([], ["aborted"]))
        self.read = 0
        self.reactor.advance(FIRST_RESTART_S)
        self.passed(self.next())
        self.assertEqual(self.outcomes, ["aborted", "ok"])

    def test_stop(self) -> None:
        """Without it a front could not end while a check is under way, or the probe would outlive it."""
        self.deep.startService()
        self.next()
        self.successResultOf(self.deep.stopService())
        self.assertTrue(self.reactor.child.ended)
        self.assertEqual((self.reactor.getDelayedCalls(), self.outcomes), ([], []))
