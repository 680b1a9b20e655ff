"""The audit log's file: lines are queued by whoever has something to say, and written by a thread.

A disk that is full or hangs holds nobody up: lines wait, and beyond ``QUEUE_LINES`` are counted. The file is rotated by
its size, and opened anew when somebody else has moved it away.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Call, Clock
from kollator.guard.audit import REPEAT_S, Repetitions, entry
from kollator.observe.loops import Loop

log = Logger("kollator:observe")

TURN_S = 0.2
"""How often what waits is written, in seconds: so much a crash of the process may cost."""
RETRY_S = 1.0
"""How long after a failed write the next one is tried."""
STOP_S = 2.0
"""How long a stop waits for the disk at most."""
QUEUE_LINES = 10_000
"""The most lines that wait: about two megabytes, and more than a turn brings."""
MODE = 0o600

InThread = Callable[..., "Deferred[Any]"]
"""Runs a function, with its arguments, one at a time and in order, outside the reactor's thread."""


class AuditError(Exception):
    """The audit log cannot be written at the start: one line that names the setting and the remedy."""


class AuditLog(Service):
    """The audit log of the front ``node``.

    ``path`` is its file, None: nothing is written. When the file would be larger than ``max_bytes`` it becomes
    ``path``.1, that one ``path``.2, and so on up to ``files``. ``wall`` returns Unix seconds; ``counted`` takes
    ``written``, ``failed`` (at the first attempt) or ``lost`` and a number of lines.
    """

    def __init__(
        self,
        path: str | None,
        *,
        node: str,
        max_bytes: int,
        files: int,
        in_thread: InThread,
        clock: Clock,
        wall: Callable[[], float],
        counted: Callable[[str, int], object] = lambda outcome, number: None,
        loop_failed: Callable[[str], object] = lambda name: None,
    ) -> None:
        self._file = None if path is None else AuditFile(path, max_bytes, files)
        self._node = node
        self._in_thread = in_thread
        self._clock = clock
        self._wall = wall
        self._counted = counted
        self._loop = Loop("audit", self._turn, TURN_S, clock, loop_failed)
        self._repetitions = Repetitions()
        self._queue: deque[str] = deque()
        self._lost = 0
        """Lines for which there was no room, and of which no line tells yet."""
        self._writing = False
        self._failed = 0
        """So many lines at the front of the queue have failed once."""
        self._not_before = 0.0
        self._problem: str | None = None
        self._stopped: Deferred[None] | None = None
        self._limit: Call | None = None

    @property
    def problem(self) -> str | None:
        """Why nothing is written, or not as it should be; None while all is well."""
        return self._problem

    def open(self) -> None:
        """Opens the file, at once. Raises ``AuditError``."""
        if self._file is not None:
            try:
                self._file.open()
            except OSError as problem:
                raise AuditError(
                    f"AUDIT_LOG: {self._file.path!r} cannot be written: {problem.strerror}; "
                    "name a file that this user may write, or set it empty for none"
                ) from None

    def startService(self) -> None:
        """Opens the file, if it is not open yet, and begins to write. Raises ``AuditError``."""
        self.open()
        self._stopped = None
        super().startService()
        if self._file is not None:
            self._loop.startService()

    def stopService(self) -> Deferred[None]:
        """Writes what waits; fires when the file is closed, or the disk takes too long."""
        super().stopService()
        if self._file is None:
            return succeed(None)
        self._loop.stopService()
        self._tell_repetitions(self._clock.seconds() + REPEAT_S)
        stopped = self._stopped = Deferred()
        self._limit = self._clock.callLater(STOP_S, self._over)
        self._not_before = 0.0
        self._write()
        return stopped

    def reopen(self) -> None:
        """Has the file opened anew by its path with the next write, after somebody has moved it away."""
        if self._file is not None:
            self._file.stale = True

    def note(self, event: str, **fields: object) -> None:
        """Takes an event with its fields (``guard.audit.EVENTS``). Never raises, and never waits for the disk."""
        if self._file is None or self._stopped is not None:
            return
        try:
            if self._repetitions.take(event, fields, self._clock.seconds()):
                self._queue_line(event, fields)
        except Exception:
            log.failure("an event could not be put into the audit log")
            self._lose(1)

    # -- the queue ----------------------------------------------------------------------------------------------------

    def _queue_line(self, event: str, fields: Any) -> None:
        line = entry(event, self._wall(), self._node, fields)
        if not line:
            log.debug("the audit log knows no event {event!r}", event=event)
        elif len(self._queue) < QUEUE_LINES:
            self._queue.append(line)
        else:
            self._lose(1)

    def _lose(self, number: int) -> None:
        self._lost += number
        self._counted("lost", number)

    def _tell_repetitions(self, now: float) -> None:
        for event, fields in self._repetitions.due(now):
            self._queue_line(event, fields)

    def _turn(self) -> None:
        self._tell_repetitions(self._clock.seconds())
        self._write()

    # -- the file -----------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Has the thread write what waits, unless it is at it."""
        if self._writing or self._clock.seconds() < self._not_before:
            return
        file = self._file
        assert file is not None
        if self._lost and len(self._queue) < QUEUE_LINES:
            self._queue.append(entry("audit-lost", self._wall(), self._node, {"count": self._lost}))
            self._lost = 0
        if not self._queue and not file.stale:
            self._close_if_stopped()
            return
        self._writing = True
        lines = list(islice(self._queue, QUEUE_LINES))
        done = maybeDeferred(self._in_thread, file.write, lines)
        done.addCallbacks(self._written, self._broke, (len(lines),), {}, (len(lines),), {})
        done.addErrback(lambda failure: log.failure("a write of the audit log was followed by an error", failure))

    def _written(self, outcome: Written, count: int) -> None:
        self._writing = False
        for _ in range(outcome.lines):
            self._queue.popleft()
        if outcome.lines:
            self._counted("written", outcome.lines)
        self._failed = max(0, self._failed - outcome.lines)
        self._say(outcome.problem)
        if outcome.lines < count:
            self._not_written(count - outcome.lines)
        elif self._stopped is not None:
            self._write()

    def _not_written(self, count: int) -> None:
        self._not_before = self._clock.seconds() + RETRY_S
        if count > self._failed:
            self._counted("failed", count - self._failed)
            self._failed = count
        self._close_if_stopped()

    def _broke(self, failure: Failure, count: int) -> None:
        self._writing = False
        self._say(failure.getErrorMessage())
        self._not_written(count)

    def _say(self, problem: str | None) -> None:
        """Tells the log when an outage begins, and when it ends."""
        before, self._problem = self._problem, problem
        assert self._file is not None
        if problem is not None and problem != before:
            log.error("AUDIT_LOG: {path} {problem}", path=self._file.path, problem=problem)
        elif problem is None and before is not None:
            log.info("AUDIT_LOG: {path} is written again", path=self._file.path)

    # -- stop ---------------------------------------------------------------------------------------------------------

    def _close_if_stopped(self) -> None:
        if self._stopped is not None and self._file is not None and not self._stopped.called:
            closed = maybeDeferred(self._in_thread, self._file.close)
            closed.addBoth(lambda _: self._over())

    def _over(self) -> None:
        limit, self._limit = self._limit, None
        if limit is not None and limit.active():
            limit.cancel()
        if self._stopped is not None and not self._stopped.called:
            if self._queue:
                log.error("{count} lines of the audit log were not written before the stop", count=len(self._queue))
            self._stopped.callback(None)


class Written(NamedTuple):
    """How many lines are in the file now, and what is wrong with it, if anything."""

    lines: int
    problem: str | None


class AuditFile:
    """The file itself and its rotated predecessors. Its methods are called by one thread at a time."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self.path = path
        self.stale = False
        """It is to be opened anew."""
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1

    def open(self) -> None:
        """Opens the file if it is not open, to append. It is made with mode 0600. Raises ``OSError``."""
        if self._fd >= 0:
            return
        # Not to block: a FIFO without a reader would hold the start up for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(self.path, flags, MODE)
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            os.close(fd)
            raise OSError(0, "it is not a file")
        self._fd = fd

    def write(self, lines: Sequence[str]) -> Written:
        """Appends lines, as many as the disk takes, each of them whole. Lines are ASCII and end with a line break.

        A device has no size, and is never rotated.
        """
        at = 0
        problem = None
        try:
            if self.stale or self._is_moved():
                self.stale = False
                self.close()
            self.open()
            while at < len(lines):
                size = os.fstat(self._fd).st_size
                if problem is None and size and size + len(lines[at]) > self._max_bytes:
                    problem = self._rotated()
                    continue
                end = at + 1
                size += len(lines[at])
                while end < len(lines) and (size + len(lines[end]) <= self._max_bytes or problem is not None):
                    size += len(lines[end])
                    end += 1
                self._append("".join(lines[at:end]).encode("ascii"))
                at = end
        except OSError as error:
            problem = f"cannot be written: {error.strerror}"
        return Written(at, problem)

    def close(self) -> None:
        """Closes the file, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _is_moved(self) -> bool:
        """Whether the path leads to another file than the one that is open, or to none."""
        if self._fd < 0:
            return False
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    def _append(self, data: bytes) -> None:
        """Writes all of ``data``, or takes back what was written of it and raises ``OSError``."""
        start = os.fstat(self._fd).st_size
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
        except OSError:
            if done and os.fstat(self._fd).st_size == start + done:
                os.ftruncate(self._fd, start)
            raise

    def _rotated(self) -> str | None:
        """Moves the file and its predecessors on by one, and begins a new one; or says why that cannot be.

        No more are moved than must be, so that a file that cannot be moved does not cost the others.
        """
        names = [self.path, *(f"{self.path}.{number}" for number in range(1, self._files + 1))]
        free = next((at for at, name in enumerate(names) if not os.path.lexists(name)), self._files)
        try:
            for at in range(free, 0, -1):
                os.replace(names[at - 1], names[at])
        except OSError as error:
            return f"cannot be rotated: {error.strerror}"
        self.close()
        self.open()
        return None
