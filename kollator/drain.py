"""How a front stops: it tells every connection, waits for them to leave, closes the rest, exits with 0."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kollator.clock import Clock
from kollator.signaling.messages import Close
from kollator.signaling.protocol import SignalingFactory

log = Logger("kollator:front")

LOOK_S = 0.02
"""How often it is looked whether all have left, in seconds."""
CLOSE_S = 1.0
"""How long the closing handshakes of the last connections may take, in seconds."""


class Drain:
    """One front's way down. ``draining`` is true from its first step on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.draining = False
        self._hurried = False

    def begin(self, told: SignalingFactory, timeout_s: float, reconnect_in_ms: Callable[[], int]) -> Deferred[None]:
        """Tells every connection; fires when all have left, at the latest after ``timeout_s``."""
        self.draining = True
        switchboard = told.switchboard
        count = len(switchboard.connections())
        if count:
            log.info("draining: {count} connections are told, up to {timeout_s:g} s", count=count, timeout_s=timeout_s)
        switchboard.drain(reconnect_in_ms)
        return self.wait(lambda: not switchboard.connections(), timeout_s)

    def close(self, closed: SignalingFactory) -> Deferred[None]:
        """Closes whoever is left (1001); fires when the closing handshakes are done."""
        for connection in closed.switchboard.connections():
            closed.end(connection, Close.GOING_AWAY, "front going away")
        return self.wait(lambda: closed.getConnectionCount() == 0, CLOSE_S)

    def hurry(self) -> None:
        """Waits for nobody any more."""
        self._hurried = True

    def wait(self, over: Callable[[], bool], timeout_s: float) -> Deferred[None]:
        """Fires when ``over`` says so, at the latest after ``timeout_s``, or when somebody is in a hurry."""
        until = self._clock.seconds() + timeout_s
        if over() or self._hurried:
            return succeed(None)

        def look() -> None:
            if over() or self._hurried or self._clock.seconds() >= until:
                looking.stop()

        looking: Any = LoopingCall(look)
        looking.clock = self._clock
        waited: Deferred[None] = looking.start(LOOK_S, now=False)
        return waited.addCallback(lambda _: None)


class StopSignals(Service):
    """SIGTERM and SIGINT stop the reactor in order, with exit status 0; a second one ends the draining at once."""

    def __init__(self, reactor: Any, drain: Drain) -> None:
        self._reactor = reactor
        self._drain = drain
        self._stopping = False

    def startService(self) -> None:
        """Takes the signals over at once, and again when the reactor has installed its own handlers."""
        super().startService()
        self._take()
        self._reactor.callWhenRunning(self._take)

    def _take(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._reactor.callFromThread(self._asked))

    def _asked(self) -> None:
        if self._stopping:
            log.info("asked again: stopping at once")
            self._drain.hurry()
            return
        self._stopping = True
        self._reactor.callWhenRunning(self._reactor.stop)
