"""A reactor by hand that runs no process: a child is an object that a test makes talk and end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure


class Child:
    """A process that was started: what it was told, and what the test has it do. ``stubborn``: TERM does not end it."""

    def __init__(
        self, protocol: Any, executable: str, arguments: Sequence[str], environment: Mapping[str, str] | None
    ) -> None:
        self.protocol = protocol
        self.executable = executable
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self.written = b""
        self.signals: list[str] = []
        self.ended = False
        self.stubborn = False

    # What the front calls.

    def write(self, data: bytes) -> None:
        self.written += data

    def signalProcess(self, name: str) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(name)
        if name == "KILL" or not self.stubborn:
            self.end(signal=9 if name == "KILL" else 15)

    # What the test calls.

    def say(self, data: bytes) -> None:
        self.protocol.outReceived(data)

    def log(self, data: bytes) -> None:
        self.protocol.errReceived(data)

    def end(self, status: int = 0, signal: int | None = None) -> None:
        self.ended = True
        failed = status or signal
        reason: Any = ProcessTerminated(status, signal) if failed else ProcessDone(0)
        self.protocol.processEnded(Failure(reason))


class Processes(Clock):
    """The reactor. ``refuses`` holds errors that the next starts meet with."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Child] = []
        self.refuses: list[OSError] = []

    @property
    def child(self) -> Child:
        """The latest one."""
        return self.children[-1]

    def callWhenRunning(self, call: Callable[..., Any], *args: Any) -> None:
        call(*args)

    def spawnProcess(
        self, protocol: Any, executable: str, args: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> Child:
        if self.refuses:
            raise self.refuses.pop(0)
        self.children.append(Child(protocol, executable, args, env))
        return self.child
