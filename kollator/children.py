"""Child processes of a front: started again when they end, ended with the front, however that ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Call

FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 30.0
STEADY_S = 60.0
"""A child that lived so long is started again after the shortest time when it ends."""
KILL_S = 3.0
"""How long the child has to end by itself when the front stops."""
LOG_LINE_BYTES = 4096


@frozen
class Command:
    """What to run: the arguments, of which the first is the program, and the whole environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


class Lines:
    """Cuts a stream of bytes into lines. Of a line over ``limit_bytes`` that much is given, when it is complete."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their line feeds."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: self._limit_bytes]
        return [line[: self._limit_bytes] for line in lines]


class _Child(ProcessProtocol):
    """The running process: its output, line by line."""

    def __init__(
        self, said: Callable[[bytes], object], logged: Callable[[bytes], object], line_bytes: int,
        ended: Callable[[Failure], object],
    ) -> None:
        self._said = (Lines(line_bytes), said)
        self._logged = (Lines(LOG_LINE_BYTES), logged)
        self._ended = ended

    def outReceived(self, data: bytes) -> None:
        """Hands whole lines of standard output on."""
        lines, said = self._said
        for line in lines.feed(data):
            said(line)

    def errReceived(self, data: bytes) -> None:
        """Hands whole lines of standard error on."""
        lines, logged = self._logged
        for line in lines.feed(data):
            logged(line)

    def processEnded(self, reason: Failure) -> None:
        """The child is gone and its output is read."""
        self._ended(reason)


class ChildProcess(Service):
    """Keeps a child process running while the service does: one that ends is started again, after a growing pause.

    ``title`` names it in ``log``, where its standard error goes. ``command`` tells what to run each time, and is asked
    once the reactor runs; None: nothing, for good. ``said`` takes each line of standard output (``line_bytes`` of it
    at most) and must not raise; without it these are logged, too. ``ended`` is called each time that the child has
    ended, and must not raise.

    The child's standard input is a pipe: when the front dies, however it dies, the pipe closes, and the child is to
    end then.
    """

    def __init__(
        self,
        title: str,
        reactor: Any,
        command: Callable[[], Command | None],
        log: Logger,
        *,
        said: Callable[[bytes], object] | None = None,
        line_bytes: int = LOG_LINE_BYTES,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        self._title = title
        self._reactor = reactor
        self._command = command
        self._log = log
        self._said = self._logged if said is None else said
        self._line_bytes = line_bytes
        self._told_ended = ended
        self._process: Any = None
        self._restart: Call | None = None
        self._delay_s = FIRST_RESTART_S
        self._started_at = 0.0
        self._over: Deferred[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a child now."""
        return self._process is not None

    def startService(self) -> None:
        """Starts the child."""
        super().startService()
        self._reactor.callWhenRunning(self._start)

    def stopService(self) -> Deferred[None] | None:
        """Ends the child, by force after ``KILL_S``; fires when it is gone."""
        super().stopService()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is None:
            return None
        over = self._over = Deferred[None]()
        killing = self._reactor.callLater(KILL_S, self.kill)

        def gone(result: None) -> None:
            if killing.active():
                killing.cancel()

        over.addCallback(gone)
        self._signal("TERM")
        return over

    def write(self, data: bytes) -> None:
        """Writes to the child's standard input; nothing happens when there is no child."""
        if self._process is not None:
            self._process.write(data)

    def kill(self) -> None:
        """Ends the child by force. It is started again, unless the service stops."""
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        if self._process is not None:
            try:
                self._process.signalProcess(name)
            except ProcessExitedAlready:
                pass

    def _start(self) -> None:
        self._restart = None
        command = self._command() if self.running else None
        if command is None:
            return
        self._started_at = self._reactor.seconds()
        child = _Child(self._said, self._logged, self._line_bytes, self._ended)
        try:
            self._process = self._reactor.spawnProcess(
                child, command.arguments[0], command.arguments, dict(command.environment)
            )
        except OSError as problem:  # no more processes or files for us, for now
            self._again(str(problem))

    def _logged(self, line: bytes) -> None:
        self._log.info("{line}", line=line.decode("utf-8", "replace"))

    def _ended(self, reason: Failure) -> None:
        self._process = None
        self._told_ended()
        if self._over is not None:
            over, self._over = self._over, None
            over.callback(None)
        else:
            self._again(reason.getErrorMessage())

    def _again(self, reason: str) -> None:
        if self._reactor.seconds() - self._started_at > STEADY_S:
            self._delay_s = FIRST_RESTART_S
        self._log.warn(
            "{title} ended ({reason}); it starts again in {delay_s:g} s",
            title=self._title,
            reason=reason,
            delay_s=self._delay_s,
        )
        self._restart = self._reactor.callLater(self._delay_s, self._start)
        self._delay_s = min(self._delay_s * 2, LONGEST_RESTART_S)
