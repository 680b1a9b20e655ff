"""Child processes of a front, without processes: their lines, their restarts and their end; and the demo worker."""

from __future__ import annotations

import os
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from kollator.children import (
    FIRST_RESTART_S,
    KILL_S,
    LOG_LINE_BYTES,
    LONGEST_RESTART_S,
    STEADY_S,
    ChildProcess,
    Command,
    Lines,
)
from kollator.demo import DemoWorker
from tests.children import Processes

URL = "ws://127.0.0.1:8080/signaling"


class LinesTests(SynchronousTestCase):
    """A stream cut into lines."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=12)), st.integers(1, 8))
    def test_however_it_comes(self, chunks: list[bytes], limit_bytes: int) -> None:
        """Without it a line that comes in two pieces, or two in one, would be another line."""
        lines = Lines(limit_bytes)
        found = [line for chunk in chunks for line in lines.feed(chunk)]
        self.assertEqual(found, [line[:limit_bytes] for line in b"".join(chunks).split(b"\n")[:-1]])

    def test_endless(self) -> None:
        """Without it a child that never ends its line would fill the front's memory."""
        lines = Lines(10)
        for _ in range(1000):
            self.assertEqual(lines.feed(b"x" * 100), [])
        self.assertEqual(len(lines._rest), 10)
        self.assertEqual(lines.feed(b"\nnext\n"), [b"x" * 10, b"next"])


class ChildCase(SynchronousTestCase):
    """One child process on a reactor by hand."""

    def setUp(self) -> None:
        self.reactor = Processes()
        self.command: Command | None = Command(["/bin/program", "argument"], {"NAME": "value"})
        self.said: list[bytes] = []
        self.ends = 0
        self.process = self.make()

    def make(self, **options: Any) -> ChildProcess:
        return ChildProcess(
            "the program", self.reactor, lambda: self.command, Logger("test"), ended=self.ended, **options
        )

    def ended(self) -> None:
        self.ends += 1

    def stop(self) -> Deferred[None]:
        """Stops the service while there is a child."""
        over = self.process.stopService()
        assert over is not None
        return over

    def assert_over(self) -> None:
        """Nothing runs and nothing is to come."""
        self.assertEqual([child for child in self.reactor.children if not child.ended], [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class RunningTests(ChildCase):
    """While all is well."""

    def test_started(self) -> None:
        """Without it another program would run, or with another environment."""
        self.assertFalse(self.process.alive)
        self.process.startService()
        child = self.reactor.child
        self.assertEqual(
            (child.executable, child.arguments, child.environment),
            ("/bin/program", ["/bin/program", "argument"], {"NAME": "value"}),
        )
        self.assertTrue(self.process.alive)

    def test_nothing_to_run(self) -> None:
        """Without it a child without its arguments would be tried again and again."""
        self.command = None
        self.process.startService()
        self.assertEqual(self.reactor.children, [])
        self.assert_over()
        self.assertIsNone(self.process.stopService())

    def test_output(self) -> None:
        """Without it what a worker says would be lost, or not in lines."""
        self.process.startService()
        with capturedLogs() as events:
            self.reactor.child.say(b"one\ntw")
            self.reactor.child.log(b"error \xff\n" + b"x" * 5000 + b"\n")
            self.reactor.child.say(b"o\n")
        lines = [event["line"] for event in events]
        self.assertEqual(lines, ["one", "error \ufffd", "x" * LOG_LINE_BYTES, "two"])

    def test_conversation(self) -> None:
        """Without it results of a probe would go to the log, and its log would be taken for results."""
        self.process = self.make(said=self.said.append, line_bytes=6)
        self.process.write(b"lost")
        self.process.startService()
        with capturedLogs() as events:
            self.reactor.child.say(b"result\ntoo long\n")
            self.reactor.child.log(b"log\n")
        self.process.write(b"order\n")
        self.assertEqual(self.said, [b"result", b"too lo"])
        self.assertEqual([event["line"] for event in events], ["log"])
        self.assertEqual(self.reactor.child.written, b"order\n")


class RestartTests(ChildCase):
    """When it ends by itself."""

    def end_and_wait(self) -> float:
        """Ends the child; returns after how long there is another one."""
        count = len(self.reactor.children)
        self.reactor.child.end(1)
        self.assertFalse(self.process.alive)
        call: Any
        (call,) = self.reactor.getDelayedCalls()
        delay_s = call.getTime() - self.reactor.seconds()
        self.reactor.advance(delay_s)
        self.assertEqual(len(self.reactor.children), count + 1)
        return delay_s

    def test_backoff(self) -> None:
        """Without it a child that dies at its start would keep a core busy with its deaths."""
        self.process.startService()
        with capturedLogs() as events:
            delays = [self.end_and_wait() for _ in range(7)]
        self.assertEqual(delays, [FIRST_RESTART_S, 2, 4, 8, 16, LONGEST_RESTART_S, LONGEST_RESTART_S])
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn] * 7)
        self.assertEqual(self.ends, 7)

    def test_steady(self) -> None:
        """Without it a child that dies once a day would be away for half a minute in the end."""
        self.process.startService()
        for _ in range(4):
            self.end_and_wait()
        self.reactor.advance(STEADY_S + 1)
        self.assertEqual(self.end_and_wait(), FIRST_RESTART_S)
        self.assertEqual(self.end_and_wait(), 2 * FIRST_RESTART_S)

    def test_no_more_processes(self) -> None:
        """Without it a machine that is short of processes for a moment would cost the child for good."""
        self.reactor.refuses = [OSError(11, "Resource temporarily unavailable")]
        with capturedLogs() as events:
            self.process.startService()
        self.assertFalse(self.process.alive)
        self.assertEqual(len(events), 1)
        self.reactor.advance(FIRST_RESTART_S)
        self.assertTrue(self.process.alive)

    def test_killed(self) -> None:
        """Without it a child that hangs would stay."""
        self.process.kill()
        self.process.startService()
        self.process.kill()
        self.assertEqual(self.reactor.children[0].signals, ["KILL"])
        self.reactor.advance(FIRST_RESTART_S)
        self.assertEqual((len(self.reactor.children), self.process.alive), (2, True))


class StopTests(ChildCase):
    """When the front stops."""

    def test_ends(self) -> None:
        """Without it a child would outlive its front, or be started again in the middle of its stop."""
        self.process.startService()
        self.successResultOf(self.stop())
        self.assertEqual(self.reactor.child.signals, ["TERM"])
        self.assertEqual(len(self.reactor.children), 1)
        self.assert_over()

    def test_stubborn(self) -> None:
        """Without it a child that ignores SIGTERM would keep the front from ending."""
        self.process.startService()
        self.reactor.child.stubborn = True
        over = self.stop()
        self.reactor.advance(KILL_S - 0.1)
        self.assertNoResult(over)
        self.reactor.advance(0.1)
        self.successResultOf(over)
        self.assertEqual(self.reactor.child.signals, ["TERM", "KILL"])
        self.assert_over()

    def test_between_two_lives(self) -> None:
        """Without it a child that is away at the moment would come back after the front's end."""
        self.process.startService()
        self.reactor.child.end(1)
        self.assertIsNone(self.process.stopService())
        self.assert_over()

    def test_before_the_start(self) -> None:
        """Without it a front that is stopped before its reactor runs would start a child on its way down."""
        waiting: list[Any] = []
        self.patch(self.reactor, "callWhenRunning", waiting.append)
        self.process.startService()
        self.process.stopService()
        for call in waiting:
            call()
        self.assertEqual((len(waiting), self.reactor.children), (1, []))

    def test_gone_already(self) -> None:
        """Without it a child that ends by itself in the same moment would raise in the front's stop."""
        self.process.startService()
        child = self.reactor.child
        child.ended = True  # it is dead, and nobody has been told yet
        over = self.stop()
        self.assertNoResult(over)
        child.end()
        self.successResultOf(over)
        self.assert_over()


class DemoTests(SynchronousTestCase):
    """The demo worker."""

    def setUp(self) -> None:
        self.reactor = Processes()
        self.patch(os, "environ", {"PATH": "/bin", "WORKER_ID": "other", "WORKER_TURN": "x"})

    def test_command(self) -> None:
        """Without it the demo worker would not find its front, or take another worker's settings."""
        demo = DemoWorker(self.reactor, lambda: URL, b"the key", "/srv/files")
        demo.startService()
        child = self.reactor.child
        self.assertEqual(child.executable, sys.executable)
        self.assertEqual(child.arguments[-1], "kollator-worker")
        self.assertEqual(
            child.environment,
            {
                "PATH": "/bin",
                "PYTHONUNBUFFERED": "1",
                "WORKER_FOLDER": "/srv/files",
                "WORKER_FRONTS": URL,
                "WORKER_ID": "demo",
                "WORKER_KEY": "the key",
                "WORKER_UNTIL_EOF": "1",
            },
        )
        self.assertIsNotNone(demo.stopService())
        self.assertTrue(child.ended)

    def test_built_in_folder(self) -> None:
        """Without it a demo worker without a folder of its own would not start."""
        DemoWorker(self.reactor, lambda: URL, b"the key", None).startService()
        self.assertNotIn("WORKER_FOLDER", self.reactor.child.environment)

    def test_nowhere_to_go(self) -> None:
        """Without it a front with TLS alone would start a worker that can never register."""
        with capturedLogs() as events:
            DemoWorker(self.reactor, lambda: None, b"the key", None).startService()
        self.assertEqual([event["log_level"] for event in events], [LogLevel.error])
        self.assertEqual(self.reactor.children, [])
