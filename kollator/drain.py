"""How a front stops: it tells every connection, waits for them to leave, closes the rest, exits with 0.

And how an operator has it take no new clients for a while, without stopping.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kollator.clock import Clock
from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close, Draining, encode
from kollator.signaling.protocol import SignalingFactory

log = Logger("kollator:front")

RECONNECT_MS = (100, 2000)
"""When clients that are told ``draining`` are to come back: spread, so that other fronts see no burst."""
LOOK_S = 0.02
"""How often it is looked whether all have left, in seconds."""
CLOSE_S = 1.0
"""How long the closing handshakes of the last connections may take, in seconds."""


def reconnect_in_ms() -> int:
    """Draws the time after which one client is to come back."""
    return random.randint(*RECONNECT_MS)


class Drain:
    """One front's way down, and an operator's drain, which has a way back.

    ``draining`` is true from the first step of either on: no new clients are taken then. ``stopping`` is true from
    the first step of the way down.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.draining = False
        self.stopping = False
        self._hurried = False

    def order(self, told: SignalingFactory, reconnect_in_ms: Callable[[], int]) -> None:
        """An operator wants no new clients here: those there are told to go, each at its own (jittered) time.

        Workers stay, for the clients of other fronts, and clients may: nobody is closed. Who has not said yet what it
        is, is told as well. Does nothing when the front drains already.
        """
        if self.draining:
            return
        self.draining = True
        board = told.switchboard
        leaving = [*board.clients.values(), *(one for one in board.waiting if one.stage is Stage.HELLO)]
        log.info("an operator drains this front: {count} connections are told", count=len(leaving))
        for connection in leaving:
            connection.send(encode(Draining(reconnect_in_ms())))

    def recall(self) -> None:
        """The operator wants clients again. Nobody is told, and a front that stops goes on with that."""
        if self.draining and not self.stopping:
            self.draining = False
            log.info("this front is no longer drained")

    def begin(self, told: SignalingFactory, timeout_s: float, reconnect_in_ms: Callable[[], int]) -> Deferred[None]:
        """Tells every connection; fires when all have left, at the latest after ``timeout_s``."""
        self.draining = self.stopping = True
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


class Hurried(Protocol):
    """What a second signal ends the patience of."""

    def hurry(self) -> None:
        """Waits for nobody any more."""


class StopSignals(Service):
    """SIGTERM and SIGINT stop the reactor in order, with exit status 0; a second one ends the draining at once."""

    def __init__(self, reactor: Any, drain: Hurried) -> None:
        self._reactor = reactor
        self._drain = drain
        self._stopping = False
        self._asked_before = False

    def startService(self) -> None:
        """Takes the signals over at once, and again when the reactor has installed its own handlers."""
        super().startService()
        self._take()
        self._reactor.callWhenRunning(self._take)

    def _take(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._reactor.callFromThread(self._asked))

    def stop(self) -> None:
        """Stops the reactor; nothing when that is under way."""
        if not self._stopping:
            self._stopping = True
            self._reactor.callWhenRunning(self._reactor.stop)

    def hurry(self) -> None:
        """Ends the draining."""
        self._drain.hurry()

    def _asked(self) -> None:
        if self._asked_before:  # by a signal: a supervisor's order, and the signal that came with it, are one
            log.info("asked again: stopping at once")
            self.hurry()
        self._asked_before = True
        self.stop()
