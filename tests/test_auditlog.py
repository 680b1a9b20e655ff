"""The audit log's file: rotation, outages, and that nobody waits for it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from kollator.observe.auditlog import (
    QUEUE_LINES,
    RETRY_S,
    STOP_S,
    TURN_S,
    AuditError,
    AuditFile,
    AuditLog,
)
from tests.fronts import Disk


class AuditLogTestCase(SynchronousTestCase):
    """An audit log in a folder of its own, on a clock by hand; no call may be left when it has stopped."""

    max_bytes = 4096
    files = 3

    def setUp(self) -> None:
        """Makes it; nothing is started."""
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, "front.audit.jsonl")
        clock: Any = Clock()
        self.clock = clock
        self.disk = Disk()
        self.counts: Counter[str] = Counter()
        self.said: list[tuple[str, str]] = []
        hear: Any = self.hear
        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)
        self.audit = self.make(self.path)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def hear(self, event: Any) -> None:
        """Keeps what is logged above debug."""
        if event.get("log_namespace") == "kollator:observe" and event["log_level"] > LogLevel.debug:
            self.said.append((event["log_level"].name, event["log_format"].format(**event)))

    def make(self, path: str | None) -> AuditLog:
        """One for that path."""
        return AuditLog(
            path,
            node="front-1",
            max_bytes=self.max_bytes,
            files=self.files,
            in_thread=self.disk,
            clock=self.clock,
            wall=lambda: 1_700_000_000.0 + self.clock.seconds(),
            counted=lambda outcome, number: self.counts.update({outcome: number}),
        )

    def start(self) -> AuditLog:
        """The log, running."""
        self.audit.startService()
        return self.audit

    def stop(self) -> None:
        """Stops it, which must be over at once."""
        self.successResultOf(self.audit.stopService())

    def turn(self, seconds: float = TURN_S) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    def lines(self, path: str = "") -> list[dict[str, Any]]:
        """What a file holds: whole lines of JSON."""
        with open(path or self.path) as file:
            text = file.read()
        self.assertTrue(not text or text.endswith("\n"))
        return [json.loads(line) for line in text.splitlines()]

    def all_ids(self) -> list[str]:
        """The ids in all files, the oldest first."""
        numbers = sorted(int(name.rpartition(".")[2]) for name in os.listdir(self.folder) if name[-1].isdigit())
        paths = [f"{self.path}.{number}" for number in reversed(numbers)] + [self.path]
        return [line["id"] for path in paths for line in self.lines(path) if "id" in line]


class WritingTests(AuditLogTestCase):
    """Lines on their way to the file."""

    def test_written(self) -> None:
        """Without it nothing would be in the log, or not in the order in which it happened."""
        audit = self.start()
        audit.note("worker-registered", id="w1", address="192.0.2.9", region="", capacity=100)
        self.turn()
        audit.note("admin", action="pin", target="203.0.113.0/24", address="192.0.2.8", token="secret")
        self.turn()
        first, second = self.lines()
        self.assertEqual((first["event"], first["node"], first["id"]), ("worker-registered", "front-1", "w1"))
        self.assertEqual(second["time"], "2023-11-14T22:13:20.200Z")
        self.assertNotIn("secret", str(second))
        self.assertEqual(self.counts, {"written": 2})
        self.stop()

    def test_mode(self) -> None:
        """Without it every user of the machine could read who was here."""
        self.start()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.stop()

    def test_appends(self) -> None:
        """Without it a restart would wipe what was written before; the file's own mode is the operator's."""
        with open(self.path, "w") as file:
            file.write('{"id":"old"}\n')
        os.chmod(self.path, 0o640)
        self.start().note("worker-left", id="new")
        self.stop()
        self.assertEqual(self.all_ids(), ["old", "new"])
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o640)

    def test_noted_before_the_start_and_at_the_stop(self) -> None:
        """Without it the first and the last events of a front would be missing."""
        self.audit.note("worker-left", id="w1")
        self.start().note("worker-left", id="w2")
        self.stop()
        self.audit.note("worker-left", id="w3")
        self.assertEqual(self.all_ids(), ["w1", "w2"])
        self.start().note("worker-left", id="w4")
        self.stop()
        self.assertEqual(self.all_ids(), ["w1", "w2", "w4"])

    def test_nobody_waits(self) -> None:
        """Without it a disk that hangs would hold up the front, or have two threads write at once."""
        audit = self.start()
        self.disk.held = True
        audit.note("worker-left", id="w1")
        self.turn()
        audit.note("worker-left", id="w2")
        for _ in range(50):
            self.turn()
        self.assertEqual((len(self.disk), self.lines()), (1, []))
        self.disk.turn()
        self.turn()
        self.disk.turn()
        self.assertEqual(self.all_ids(), ["w1", "w2"])
        self.disk.held = False
        self.stop()

    def test_nothing_to_write(self) -> None:
        """Without it an idle front would wake a thread five times a second."""
        self.start()
        self.disk.held = True
        for _ in range(10):
            self.turn()
        self.assertEqual(len(self.disk), 0)
        self.disk.held = False
        self.stop()

    def test_no_room(self) -> None:
        """Without it a disk that hangs would fill the memory, or what was dropped would not be told."""
        audit = self.start()
        self.disk.held = True
        for number in range(QUEUE_LINES + 7):
            audit.note("worker-left", id=f"w{number}")
        self.assertEqual(self.counts, {"lost": 7})
        self.disk.held = False
        self.turn()
        self.turn()
        self.assertEqual(self.counts, {"lost": 7, "written": QUEUE_LINES + 1})
        (lost,) = [line for line in self.lines() if line["event"] == "audit-lost"]
        self.assertEqual(lost["count"], 7)
        self.stop()

    def test_repetitions(self) -> None:
        """Without it one client that hits a limit again and again would be most of the log; its count must be right."""
        audit = self.start()
        for _ in range(100):
            audit.note("limit-hit", reason="message-rate", address="192.0.2.1", id="c1")
        self.turn(1.0)
        self.turn()
        audit.note("limit-hit", reason="message-rate", address="192.0.2.1", id="c2")
        audit.note("limit-hit", reason="message-rate", address="192.0.2.1", id="c3")
        self.stop()
        self.assertEqual([line.get("count", 1) for line in self.lines()], [1, 99, 2])
        self.assertEqual([line["id"] for line in self.lines()], ["c1", "c1", "c3"])

    def test_never_raises(self) -> None:
        """Without it a mistake in a note would break what it is about."""
        audit = self.start()

        class Broken:
            def __hash__(self) -> int:
                raise ValueError("a mistake")

        audit.note("no-such-event", id="w1")
        audit.note("worker-left", id=b"w1", sdp="v=0", reason=object())
        broken: Any = Broken()
        audit.note(broken)
        self.turn()
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual([line["event"] for line in self.lines()], ["worker-left", "audit-lost"])
        self.stop()

    def test_without_a_file(self) -> None:
        """Without it a front with no audit log would need other code."""
        audit = self.make(None)
        audit.note("worker-left", id="w1")
        audit.startService()
        audit.reopen()
        audit.note("worker-left", id="w1")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(audit.stopService())
        self.assertEqual((os.listdir(self.folder), self.counts), ([], {}))


class RotationTests(AuditLogTestCase):
    """The file and those before it."""

    max_bytes = 500

    def test_by_size(self) -> None:
        """Without it the log would fill the disk in time, or lose a line where one file ends."""
        audit = self.start()
        for number in range(12):
            audit.note("worker-left", id=f"w{number:02}", reason="x" * 50)
            if number % 3 == 0:
                self.turn()
        self.stop()
        self.assertEqual(self.all_ids(), [f"w{number:02}" for number in range(12)])
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            self.assertLessEqual(os.stat(path).st_size, self.max_bytes)
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_so_many_files(self) -> None:
        """Without it old files would pile up, or the newest be thrown away."""
        audit = self.start()
        for number in range(40):
            audit.note("worker-left", id=f"w{number:02}", reason="x" * 50)
        self.stop()
        names = {os.path.basename(self.path) + ending for ending in ("", ".1", ".2", ".3")}
        self.assertEqual(set(os.listdir(self.folder)), names)
        ids = self.all_ids()
        self.assertEqual(ids, [f"w{number:02}" for number in range(40 - len(ids), 40)])

    def test_a_line_larger_than_a_file(self) -> None:
        """Without it such a line would be tried for ever, and everything after it wait."""
        self.audit = AuditLog(
            self.path, node="front-1", max_bytes=10, files=2, in_thread=self.disk, clock=self.clock, wall=lambda: 0.0
        )
        for worker in ("w1", "w2"):
            self.audit.note("worker-left", id=worker)
        self.start()
        self.turn()
        self.stop()
        self.assertEqual(self.all_ids(), ["w1", "w2"])

    def test_cannot_be_rotated(self) -> None:
        """Without it lines would be lost, or older files be pushed out one after the other, for a file that stays."""
        os.mkdir(self.path + ".1")  # a file cannot take a folder's place
        with open(os.path.join(self.path + ".1", "x"), "w"):
            pass
        self.audit = AuditLog(
            self.path, node="front-1", max_bytes=500, files=1, in_thread=self.disk, clock=self.clock, wall=lambda: 0.0
        )
        audit = self.start()
        for number in range(30):
            audit.note("worker-left", id=f"w{number:02}", reason="x" * 50)
            self.turn()
        self.assertEqual([line["id"] for line in self.lines()], [f"w{number:02}" for number in range(30)])
        self.assertEqual(len(self.said), 1)
        self.assertIn("cannot be rotated", self.said[0][1])
        self.assertIn("cannot be rotated", audit.problem or "")
        self.stop()

    def test_moved_by_somebody_else(self) -> None:
        """Without it the front would write on into a file that logrotate has moved, or deleted."""
        audit = self.start()
        audit.note("worker-left", id="w1")
        self.turn()
        os.rename(self.path, self.path + ".old")
        audit.note("worker-left", id="w2")
        self.turn()
        os.unlink(self.path)
        audit.note("worker-left", id="w3")
        self.turn()
        self.assertEqual([line["id"] for line in self.lines(self.path + ".old")], ["w1"])
        self.assertEqual([line["id"] for line in self.lines()], ["w3"])
        self.stop()

    def test_reopen(self) -> None:
        """Without it the file that logrotate wants to compress would stay open, and be missing until the next event."""
        audit = self.start()
        self.turn()
        os.rename(self.path, self.path + ".old")
        audit.reopen()
        self.turn()
        self.assertEqual(self.lines(), [])
        self.stop()

    def test_a_device(self) -> None:
        """Without it a terminal, or nothing, could not be named; a device must not be moved."""
        file = AuditFile("/dev/null", 10, 2)
        file.open()
        self.assertEqual(file.write(["line\n"] * 50), (50, None))
        file.close()
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))


class OutageTests(AuditLogTestCase):
    """A disk that does not take lines."""

    def test_start(self) -> None:
        """Without it a front would start that cannot do what it is told, with a traceback or in silence."""
        for path in (os.path.join(self.folder, "none", "audit.jsonl"), self.folder):
            error = self.assertRaises(AuditError, self.make(path).open)
            self.assertRegex(str(error), r"\AAUDIT_LOG: '.+' cannot be written: .+; .+\Z")
            self.assertEqual(len(str(error).splitlines()), 1)
            self.assertRaises(AuditError, self.make(path).startService)
        os.mkfifo(self.path)
        self.assertRaises(AuditError, self.make(self.path).open)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        error = self.assertRaises(AuditError, self.make(self.path).open)
        self.assertIn("it is not a file", str(error))

    def test_lines_wait(self) -> None:
        """Without it what happens while the disk is full would be lost, or the log be full of complaints."""
        audit = self.start()
        os.unlink(self.path)
        os.rename(self.folder, self.folder + ".away")
        for number in range(20):
            audit.note("worker-left", id=f"w{number}")
            self.turn()
        self.assertEqual(len(self.said), 1)
        self.assertEqual(self.said[0][0], "error")
        self.assertIn("AUDIT_LOG", self.said[0][1])
        self.assertIn("No such file", audit.problem or "")
        self.assertGreater(self.counts["failed"], 5)
        os.rename(self.folder + ".away", self.folder)
        self.turn(RETRY_S)
        self.turn()
        self.assertEqual(self.all_ids(), [f"w{number}" for number in range(20)])
        self.assertLessEqual(self.counts["failed"], 20)
        self.assertEqual((self.counts["written"], audit.problem), (20, None))
        self.assertEqual([level for level, _ in self.said], ["error", "info"])
        self.stop()

    def test_failed_lines_are_counted_once(self) -> None:
        """Without it one line on a disk that is full for an hour would look like thousands."""
        audit = self.start()
        os.rename(self.folder, self.folder + ".away")
        audit.note("worker-left", id="w1")
        for _ in range(10):
            self.turn(RETRY_S)
        self.assertEqual(self.counts, {"failed": 1})
        audit.note("worker-left", id="w2")
        for _ in range(10):
            self.turn(RETRY_S)
        self.assertEqual(self.counts, {"failed": 2})
        self.stop()

    def test_a_second_outage(self) -> None:
        """Without it only the first outage would be counted, or the disk be tried all the time."""
        audit = self.start()
        for outage in range(1, 4):
            os.rename(self.folder, self.folder + ".away")
            audit.note("worker-left", id=f"w{outage}")
            calls: list[int] = []
            audit._in_thread = lambda *arguments, calls=calls: calls.append(1) or self.disk(*arguments)
            for _ in range(50):
                self.turn()
            self.assertLessEqual(len(calls), 50 * TURN_S / RETRY_S + 1)
            self.assertEqual(self.counts["failed"], outage)
            os.rename(self.folder + ".away", self.folder)
            self.turn(RETRY_S)
            self.turn()
            self.assertEqual(self.counts["written"], outage)
        self.stop()

    def test_disk_full_within_a_line(self) -> None:
        """Without it half a line would be left, which no tool can read, or a line be written twice."""
        file = AuditFile(self.path, 1 << 30, 2)
        file.open()
        self.assertEqual(file.write(["a" * 99 + "\n"]), (1, None))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, hard))
        try:
            written, problem = file.write(["b" * 99 + "\n", "c" * 99 + "\n"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        self.assertEqual(written, 0)
        self.assertIn(os.strerror(errno.EFBIG), problem or "")
        with open(self.path) as text:
            self.assertEqual(text.read(), "a" * 99 + "\n")
        self.assertEqual(file.write(["d\n"]), (1, None))
        file.close()

    def test_full_after_a_rotation(self) -> None:
        """Without it the lines of a file that was full would be written again into the next one."""
        file = AuditFile(self.path, 20, 2)
        file.open()
        append = file._append

        def fail_at_c(data: bytes) -> None:
            if data.startswith(b"c"):
                raise OSError(errno.ENOSPC, "No space left on device")
            append(data)

        self.patch(file, "_append", fail_at_c)
        self.assertEqual(file.write(["a" * 10 + "\n", "b" * 10 + "\n", "c" * 10 + "\n"])[0], 2)
        file.close()

    def test_a_thread_that_fails(self) -> None:
        """Without it an error that is none of the disk's would stop the log for ever."""
        audit = self.start()
        in_thread, audit._in_thread = audit._in_thread, lambda *arguments: fail(ValueError("a mistake"))
        audit.note("worker-left", id="w1")
        self.turn()
        self.assertEqual((audit.problem, self.counts["failed"]), ("a mistake", 1))
        audit._in_thread = in_thread
        self.turn(RETRY_S)
        self.assertEqual((self.all_ids(), audit.problem), (["w1"], None))
        self.stop()

    def test_stop_while_the_disk_hangs(self) -> None:
        """Without it a front could not be stopped."""
        audit = self.start()
        self.disk.held = True
        audit.note("worker-left", id="w1")
        self.turn()
        stopped: Deferred[None] = audit.stopService()
        self.assertNoResult(stopped)
        self.turn(STOP_S)
        self.successResultOf(stopped)
        self.assertIn("1 lines", self.said[-1][1])
        self.disk.held = False
        self.disk.turn()
        self.assertEqual(self.all_ids(), ["w1"])

    def test_stop_while_it_writes(self) -> None:
        """Without it what came during the last write would be missing."""
        audit = self.start()
        self.disk.held = True
        audit.note("worker-left", id="w1")
        self.turn()
        audit.note("worker-left", id="w2")
        stopped = audit.stopService()
        while len(self.disk):
            self.assertNoResult(stopped)
            self.disk.turn()
        self.successResultOf(stopped)
        self.assertEqual(self.all_ids(), ["w1", "w2"])

    def test_stop_while_the_disk_is_full(self) -> None:
        """Without it the end of a front would wait for a disk that stays full, or the loss not be told."""
        audit = self.start()
        os.rename(self.folder, self.folder + ".away")
        audit.note("worker-left", id="w1")
        self.stop()
        self.assertIn("were not written", self.said[-1][1])
