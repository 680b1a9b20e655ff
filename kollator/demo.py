"""``--demo-worker``: a reference worker as a child process of the front, started again when it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Call

log = Logger("kollator:demo")

FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 30.0
STEADY_S = 60.0
"""A child that lived so long starts again at once when it ends."""
KILL_S = 3.0
"""How long the child has to end by itself when the front stops."""
LINE_BYTES = 4096

TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


class _Child(ProcessProtocol):
    """The running worker: its output becomes log lines."""

    def __init__(self, ended: Callable[[Failure], None]) -> None:
        self._ended = ended
        self._line = b""

    def outReceived(self, data: bytes) -> None:
        """Logs whole lines."""
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-LINE_BYTES:]
        for line in lines:
            log.info("{line}", line=line[:LINE_BYTES].decode("utf-8", "replace"))

    def errReceived(self, data: bytes) -> None:
        """Logs what comes on standard error the same way."""
        self.outReceived(data)

    def processEnded(self, reason: Failure) -> None:
        """The child is gone and its output is read."""
        self._ended(reason)


class DemoWorker(Service):
    """Runs ``twistd kollator-worker`` against this front. ``url`` tells the front's signaling URL once it listens.

    The child's standard input is a pipe that nobody writes to: when the front dies, however it dies, the pipe
    closes and the worker ends.
    """

    def __init__(self, reactor: Any, url: Callable[[], str | None], key: bytes, folder: str | None) -> None:
        self._reactor = reactor
        self._url = url
        self._key = bytes(key)
        self._folder = folder
        self._process: Any = None
        self._restart: Call | None = None
        self._delay_s = FIRST_RESTART_S
        self._started_at = 0.0
        self._over: Deferred[None] | None = None

    def startService(self) -> None:
        """Starts the child."""
        super().startService()
        self._reactor.callWhenRunning(self._start)

    def stopService(self) -> Deferred[None] | None:
        """Ends the child; fires when it is gone."""
        super().stopService()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is None:
            return None
        self._over = Deferred()
        killing = self._reactor.callLater(KILL_S, self._signal, "KILL")

        def gone(result: None) -> None:
            if killing.active():
                killing.cancel()

        self._over.addCallback(gone)
        self._signal("TERM")
        return self._over

    def _start(self) -> None:
        self._restart = None
        url = self._url()
        if not self.running:
            return
        if url is None:
            log.error("--demo-worker needs a plain tcp: endpoint in LISTEN")
            return
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
        environment |= {
            "WORKER_KEY": self._key.decode("utf-8"),
            "WORKER_FRONTS": url,
            "WORKER_ID": "demo",
            "WORKER_UNTIL_EOF": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if self._folder:
            environment["WORKER_FOLDER"] = self._folder
        arguments = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "--reactor=asyncio", "kollator-worker"]
        self._started_at = self._reactor.seconds()
        self._process = self._reactor.spawnProcess(_Child(self._ended), sys.executable, arguments, environment)

    def _signal(self, name: str) -> None:
        try:
            self._process.signalProcess(name)
        except (ProcessExitedAlready, AttributeError):
            pass

    def _ended(self, reason: Failure) -> None:
        self._process = None
        if self._over is not None:
            self._over.callback(None)
            return
        if self._reactor.seconds() - self._started_at > STEADY_S:
            self._delay_s = FIRST_RESTART_S
        log.warn(
            "the demo worker ended ({reason}); it starts again in {delay_s:g} s",
            reason=reason.getErrorMessage(),
            delay_s=self._delay_s,
        )
        self._restart = self._reactor.callLater(self._delay_s, self._start)
        self._delay_s = min(self._delay_s * 2, LONGEST_RESTART_S)
