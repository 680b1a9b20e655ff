"""What waits to be written on one link: in order, in one write for each turn of the reactor, never without end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from kollator.clock import Call, Clock

log = Logger("kollator:cluster")

CHUNK_BYTES = 65_536
"""So much is written at once: what a transport takes before it asks for a pause. It never holds more than two."""


class TurnEnd:
    """Calls that are made when this turn of the reactor is over, all of them by one delayed call."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[Callable[[], object]] = []
        self._delayed: Call | None = None

    def call(self, function: Callable[[], object]) -> None:
        """Calls ``function`` once, as soon as the reactor has nothing else to do in this turn."""
        self._calls.append(function)
        if self._delayed is None:
            self._delayed = self._clock.callLater(0, self._run)

    def cancel(self) -> None:
        """Forgets what was to be called."""
        self._calls.clear()
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None

    def _run(self) -> None:
        self._delayed = None
        calls, self._calls = self._calls, []
        for function in calls:
            try:
                function()
            except Exception:
                log.failure("a link could not be written to")


@implementer(IPushProducer)
class Outbox:
    """The bytes for one transport, which pauses it (``IPushProducer``) while it is behind.

    What the transport cannot take yet is kept here, where it can be counted and thrown away: only what is under
    ``CHUNK_BYTES`` is ever beyond reach.
    """

    def __init__(self, transport: Any, clock: Clock, turn_end: TurnEnd) -> None:
        self.waiting_bytes = 0
        """What the transport has not taken yet."""
        self.behind_since: float | None = None
        """Since when the transport has been writing what it took last, in seconds of the clock; None: it is done."""
        self._transport = transport
        self._clock = clock
        self._turn_end = turn_end
        self._waiting: deque[bytes] = deque()
        self._announced = False
        self._closed = False
        transport.registerProducer(self, True)

    def put(self, data: bytes) -> None:
        """Sends ``data`` after everything before it, at the end of this turn or when a chunk is full."""
        if self._closed:
            return
        self.waiting_bytes += len(data)
        if len(data) <= CHUNK_BYTES:
            self._waiting.append(data)
        else:
            self._waiting.extend(data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
        if self.behind_since is not None:
            return
        if self.waiting_bytes >= CHUNK_BYTES:
            self.flush()
        elif not self._announced:
            self._announced = True
            self._turn_end.call(self._turn_ended)

    def flush(self) -> None:
        """Writes what the transport takes."""
        if self.waiting_bytes <= CHUNK_BYTES and self.behind_since is None and not self._closed:
            if self._waiting:
                everything = b"".join(self._waiting)
                self._waiting.clear()
                self.waiting_bytes = 0
                self._transport.write(everything)
            return
        while self._waiting and self.behind_since is None and not self._closed:
            chunk = [self._waiting.popleft()]
            size_bytes = len(chunk[0])
            while self._waiting and size_bytes + len(self._waiting[0]) <= CHUNK_BYTES:
                chunk.append(self._waiting.popleft())
                size_bytes += len(chunk[-1])
            self.waiting_bytes -= size_bytes
            self._transport.write(b"".join(chunk))

    def close(self, last: bytes = b"") -> None:
        """Lets go of the transport, after ``last``. What the transport was too slow for is thrown away."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        self._waiting.clear()
        self.waiting_bytes = 0
        self._transport.unregisterProducer()
        if last:
            self._transport.write(last)

    def _turn_ended(self) -> None:
        self._announced = False
        self.flush()

    # IPushProducer

    def pauseProducing(self) -> None:
        """The transport has enough; it may say so more than once."""
        if self.behind_since is None:
            self.behind_since = self._clock.seconds()

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        self.behind_since = None
        self.flush()

    def stopProducing(self) -> None:
        """The transport is gone."""
        self._closed = True
        self._waiting.clear()
        self.waiting_bytes = 0
