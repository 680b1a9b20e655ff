"""Two fronts in memory, one on the fast path and one on the plain one, that are told the same and compared."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling.fastpath import FastSignalingFactory
from kollator.signaling.protocol import SignalingFactory
from kollator.web.door import DoorFactory
from kollator.web.fastdoor import FastDoorFactory
from kollator.web.refusal import Refusal
from tests.signaling_bench import (
    HANDSHAKE_TIMEOUT_S,
    HEAD,
    MemorySocket,
    SignalingBench,
)

REQUEST = "GET /signaling HTTP/1.1"
RATE = 4.0
"""Messages a second of a connection that has a limit: low, so that streams reach it."""


class Site(Factory):
    """What is behind the door for other requests."""

    noisy = False

    class Page(Protocol):
        """Says what it was sent."""

        def dataReceived(self, data: bytes) -> None:
            """An answer of a kind."""
            transport: Any = self.transport
            transport.write(b"page for " + data)

    protocol = Page


class Twin(SignalingBench):
    """A bench of either kind, with a door in front of it."""

    def __init__(self, fast: bool, exempt: bool = True) -> None:
        super().__init__(kind=FastSignalingFactory if fast else SignalingFactory, rate=RATE)
        self.exempt = exempt
        self.refusal: Refusal | None = None
        doors: Any = FastDoorFactory if fast else DoorFactory
        self.door = doors(clock=self.clock, header_timeout_s=HANDSHAKE_TIMEOUT_S, refused=self.counters.refuse)
        self.door.open(
            site=Site(), upgrades={b"/signaling": self.factory}, admission=lambda peer, fields: self.refusal
        )
        self.received: list[bytes] = []
        receive = self.board.receive

        def noted(connection: Any, payload: bytes, now: float) -> None:
            self.received.append(payload)
            receive(connection, payload, now)

        self.board.receive = noted  # type: ignore[method-assign]
        self.worker("w")
        self.received.clear()
        self.sockets: list[MemorySocket] = []

    def connect(self, through_the_door: bool = True) -> MemorySocket:
        """A connection that has said nothing."""
        socket = MemorySocket(self.clock)
        factory: Any = self.door if through_the_door else self.factory
        socket.protocol = factory.buildProtocol(socket.getPeer())
        socket.protocol.makeConnection(socket)
        self.sockets.append(socket)
        return socket

    def give(self, socket: MemorySocket, data: bytes) -> None:
        """Bytes arrive."""
        if socket.reading and socket.lost is None:
            socket.protocol.dataReceived(data)
        socket.flush()

    def seen(self) -> dict[str, Any]:
        """Everything that anybody could notice."""
        connections = [socket.protocol for socket in self.sockets]
        return {
            "out": [bytes(socket.out) for socket in self.sockets],
            "lost": [socket.lost is not None for socket in self.sockets],
            "reading": [socket.reading for socket in self.sockets],
            "received": self.received,
            "pongs": self.pongs,
            "inside": self.inside,
            "errors": dict(self.counters.errors),
            "refused": dict(self.counters.refused),
            "origins": self.origins,
            "places": self.door.places.taken,
            "count": self.factory.getConnectionCount(),
            "calls": sorted(call.getTime() for call in calls(self)),
            "state": [
                (c.state, c.stage, c.heard, c.held_back, c.address, c.full_at, c.frames_full_at, c.deaf, c.failedByMe)
                for c in connections
                if isinstance(c, SignalingFactory.protocol)
            ],
        }


def calls(bench: Twin) -> list[Any]:
    """What is still to come."""
    return list(bench.clock.getDelayedCalls())


def handshake(request: str = REQUEST, **changes: str | None) -> bytes:
    """A request for a WebSocket; a header of None is left out."""
    headers = HEAD | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([request, *lines, "", ""]).encode("latin-1")


class TwinTests(SynchronousTestCase):
    """Two benches, one of each kind, that are told the same."""

    def twins(self, exempt: bool = True) -> tuple[Twin, Twin]:
        return Twin(False, exempt), Twin(True, exempt)

    def assert_same(self, plain: Twin, fast: Twin, step: object) -> None:
        one, other = plain.seen(), fast.seen()
        for name, value in one.items():
            self.assertEqual(other[name], value, f"{name}, after {step!r:.300}")

    def finish(self, plain: Twin, fast: Twin) -> None:
        for bench in (plain, fast):
            bench.clock.advance(60)
            for socket in bench.sockets:
                socket.window = 1 << 60
                socket.flush()
                if socket.lost is None:
                    socket.protocol.connectionLost(Failure(ConnectionDone()))
            self.assertEqual(calls(bench), [])
            self.assertEqual(bench.factory.getConnectionCount(), 0)
