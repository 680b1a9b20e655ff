"""Files that are read again when they change, and on SIGHUP."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.reloading import Reloads, mark


class Reactor(Clock):
    """A clock that takes calls of other threads, for its next turn."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[Callable[[], Any]] = []

    def callFromThread(self, call: Callable[[], Any]) -> None:
        """In its next turn."""
        self.called.append(call)

    def turn(self) -> None:
        """That turn."""
        called, self.called = self.called, []
        for call in called:
            call()


class ReloadsTestCase(SynchronousTestCase):
    """Reloaders that run, with the signals of the test's own process."""

    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        self.before: list[int] = []
        signal.signal(signal.SIGHUP, self._before)
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "file"
        self.path.write_text("one")
        self.reactor = Reactor()
        self.failed: list[str] = []
        self.reloads = Reloads(self.reactor, failed=self.failed.append)
        self.called: list[str] = []

    def _before(self, number: int, frame: object) -> None:
        self.before.append(number)

    def start(self) -> None:
        """Begins, and stops after the test."""
        self.reloads.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Stops, after which no call may be left."""
        self.successResultOf(self.reloads.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def noted(self, name: str) -> Callable[[], None]:
        """A reloader that notes its call."""
        return lambda: self.called.append(name)

    def calls(self, seconds: float = 1.0) -> list[str]:
        """Who is called within that time."""
        self.called = []
        self.reactor.advance(seconds)
        return self.called

    def hang_up(self) -> list[str]:
        """Who is called by a SIGHUP."""
        self.called = []
        signal.raise_signal(signal.SIGHUP)
        self.reactor.turn()
        return self.called


class ChangesTests(ReloadsTestCase):
    """Changed files."""

    def setUp(self) -> None:
        super().setUp()
        self.reloads.watch(str(self.path), self.noted("file"))
        self.start()

    def replace(self, text: str) -> None:
        """Renames a new file into place, of the same time and size."""
        other = self.folder / "other"
        other.write_text(text)
        found = self.path.stat()
        os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
        other.rename(self.path)

    def test_unchanged(self) -> None:
        """Without it the file would be read each second."""
        self.assertEqual([self.calls(), self.calls()], [[], []])

    def test_written(self) -> None:
        """Without it a change would be missed, or be acted upon again and again."""
        self.path.write_text("three")
        self.assertEqual([self.calls(0.5), self.calls(0.5), self.calls()], [[], ["file"], []])

    def test_same_size(self) -> None:
        """Without it a change of a digit would be missed."""
        found = self.path.stat()
        os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
        self.assertEqual(self.calls(), ["file"])

    def test_same_time(self) -> None:
        """Without it a change that keeps the file's time, as copying tools do, would be missed."""
        found = self.path.stat()
        self.path.write_text("three")
        os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns))
        self.assertEqual(self.calls(), ["file"])

    def test_renamed_into_place(self) -> None:
        """Without it a file that is put in place as it ought to be would be missed where it looks like the old one."""
        self.replace("two")
        self.assertEqual([self.calls(), self.calls()], [["file"], []])

    def test_behind_a_link(self) -> None:
        """Without it a file that a container's volume changes, by changing a link, would be missed."""
        first, second, link = self.folder / "1", self.folder / "2", self.folder / "link"
        for path in (first, second):
            path.write_text("same")
        link.symlink_to("1")
        self.reloads.watch(str(link), self.noted("link"))
        (self.folder / "new").symlink_to("2")
        (self.folder / "new").rename(link)
        self.assertEqual(self.calls(), ["link"])

    def test_half_written(self) -> None:
        """Without it what was read before the writer was done would be the last word."""
        self.path.write_text('{"half')
        self.assertEqual(self.calls(), ["file"])
        with self.path.open("a") as file:
            file.write('": 1}')
        self.assertEqual(self.calls(), ["file"])

    def test_gone(self) -> None:
        """Without it a missing file would be complained of each second, or not be seen when it is back."""
        self.path.unlink()
        self.assertEqual([self.calls(), self.calls()], [["file"], []])
        self.path.write_text("one")
        self.assertEqual([self.calls(), self.calls()], [["file"], []])

    def test_before_the_start(self) -> None:
        """Without it what changed while the front was starting would not be seen until the next change."""
        reloads = Reloads(self.reactor)
        reloads.watch(str(self.path), self.noted("early"))
        self.path.write_text("later")
        reloads.startService()
        self.addCleanup(reloads.stopService)
        self.assertIn("early", self.calls())

    def test_other_folder(self) -> None:
        """Without it a daemon that changes its folder would look for its files there."""
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.reloads.watch("file", self.noted("relative"))
        os.chdir("/")
        self.assertEqual(self.calls(), [])

    def test_files_of_one(self) -> None:
        """Without it a certificate and its key would be read twice, once while they do not match."""
        key, both = self.folder / "key", self.noted("both")
        for path in (key, self.folder / "certificate"):
            path.write_text("old")
            self.reloads.watch(str(path), both)
            path.write_text("newer")
        self.assertEqual(self.calls(), ["both"])

    def test_one_that_raises(self) -> None:
        """Without it one reloader's mistake would stop the others, now and from then on."""

        def mistaken() -> None:
            raise ValueError("a mistake")

        reloads = Reloads(self.reactor, failed=self.failed.append)
        reloads.watch(str(self.path), mistaken)
        reloads.watch(str(self.path), self.noted("other"))
        reloads.startService()
        self.addCleanup(reloads.stopService)
        for text in ("two", "three"):
            self.path.write_text(text)
            self.assertEqual(sorted(self.calls()), ["file", "other"])
            self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.failed, [])

    def test_mark(self) -> None:
        """Without it a path that is none would be an error each second."""
        self.assertIsNone(mark(str(self.folder / "nothing")))
        self.assertIsNone(mark("a\0b"))
        self.assertEqual(mark(str(self.path)), mark(str(self.path)))


class HangupTests(ReloadsTestCase):
    """Real signals to this process."""

    def test_all(self) -> None:
        """Without it an operator could not have read again what looks unchanged; and nothing acts inside the signal."""
        self.reloads.watch(str(self.path), self.noted("file"))
        self.reloads.on_hangup(self.noted("other"))
        self.start()
        signal.raise_signal(signal.SIGHUP)
        self.assertEqual(self.called, [])
        self.reactor.turn()
        self.assertEqual(self.called, ["file", "other"])
        self.assertEqual(self.before, [])

    def test_not_twice(self) -> None:
        """Without it a change that a SIGHUP has had read would be read once more."""
        self.reloads.watch(str(self.path), self.noted("file"))
        self.start()
        self.path.write_text("three")
        self.assertEqual(self.hang_up(), ["file"])
        self.assertEqual(self.calls(), [])

    def test_handler_before(self) -> None:
        """Without it a front that has stopped would keep the signal for itself."""
        self.reloads.on_hangup(self.noted("other"))
        self.reloads.startService()
        signal.raise_signal(signal.SIGHUP)
        self.stop()
        self.reactor.turn()
        self.assertEqual((self.called, self.before), ([], []), "the signal came too late")
        signal.raise_signal(signal.SIGHUP)
        self.assertEqual((self.called, self.before), ([], [signal.SIGHUP]))

    def test_handler_since(self) -> None:
        """Without it the stop would take the signal from whoever has taken it over."""
        self.reloads.startService()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.stop()
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    def test_never_started(self) -> None:
        """Without it a front that fails to start would not stop in order."""
        self.stop()
        self.assertEqual(self.hang_up(), [])
        self.assertEqual(self.before, [signal.SIGHUP])


class SlowTests(ReloadsTestCase):
    """Reloaders that take their time."""

    def setUp(self) -> None:
        super().setUp()
        self.under_way: list[Deferred[None]] = []
        self.reloads.on_hangup(self.slow)
        self.start()

    def slow(self) -> Deferred[None]:
        """Begins one."""
        self.under_way.append(Deferred())
        return self.under_way[-1]

    def end(self, problem: Exception | None = None) -> None:
        """Ends the one that began first."""
        ended = self.under_way.pop(0)
        ended.callback(None) if problem is None else ended.errback(problem)

    def test_one_at_a_time(self) -> None:
        """Without it two readings could end in the wrong order; and what came meanwhile is read once more."""
        for _ in range(3):
            self.hang_up()
        self.assertEqual(len(self.under_way), 1)
        self.end()
        self.assertEqual(len(self.under_way), 1)
        self.end()
        self.assertEqual(len(self.under_way), 0)

    def test_one_that_fails(self) -> None:
        """Without it a failure would be told nobody, and be the last reading."""
        self.hang_up()
        self.end(ValueError("a mistake"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.hang_up()
        self.end()

    def test_stop(self) -> None:
        """Without it a reading could end in a front whose database is closed."""
        self.hang_up()
        self.hang_up()
        stopped = self.reloads.stopService()
        self.assertNoResult(stopped)
        self.end()
        self.successResultOf(stopped)
        self.assertEqual(self.under_way, [])
