"""The real WebSockets of a front without a network: sockets in memory, a peer that writes frames by hand."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.task import Clock
from twisted.internet.tcp import _AbortingMixin
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.limits import Allowance
from kollator.signaling.fastpath import FastSignalingFactory
from kollator.signaling.protocol import SignalingFactory
from tests.switchboard_bench import MESSAGE_RATE, Bench

HELLO = b'{"type":"hello","role":"client"}'
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASK = b"\x01\x02\x03\x04"
HANDSHAKE_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 10.0
WRITE_BUFFER_BYTES = 1024 * 1024

HEAD = {
    "Host": "front.example:8080",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


FACTORY: Any = SignalingFactory if os.environ.get("FAST_PATH") == "false" else FastSignalingFactory
"""The tests of the signaling run in both modes."""


class MemorySocket(_AbortingMixin, FileDescriptor):  # type: ignore[misc]
    """The server's end of a TCP connection: Twisted's own buffers and producers, above a network of ``window`` bytes.

    What was sent is in ``out``; ``window`` shrinks by it, and ``flush`` sends what has room.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)  # type: ignore[arg-type]
        self.connected = 1
        self.out = bytearray()
        self.window = 1 << 60
        self.reading = True
        self.writing = False
        self.protocol: Any = None
        self.lost: Any = None

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 50_000)

    def startReading(self) -> None:
        self.reading = True

    def stopReading(self) -> None:
        self.reading = False

    def startWriting(self) -> None:
        self.writing = True

    def stopWriting(self) -> None:
        self.writing = False

    def writeSomeData(self, data: bytes) -> int:
        sent = bytes(data[: self.window])
        self.out += sent
        self.window -= len(sent)
        return len(sent)

    def flush(self) -> None:
        """Turns the reactor until nothing moves."""
        while self.writing and (self.window or not self.dataBuffer):
            if self.doWrite() is CONNECTION_DONE:
                self.connectionLost(Failure(ConnectionDone()))

    def connectionLost(self, reason: Failure) -> None:
        if self.lost is None:
            super().connectionLost(reason)
            self.lost = reason
            self.protocol.connectionLost(reason)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = MASK, rsv: int = 0, size: int = -1
) -> bytes:
    """A client's frame (RFC 6455 section 5.2); ``size`` lies about the length of the payload."""
    size = len(payload) if size < 0 else size
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    masked = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", first, masked | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    if not mask:
        return head + payload
    body = int.from_bytes(payload, "big") ^ int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return head + mask + body.to_bytes(len(payload), "big")


def text(**message: Any) -> bytes:
    """A client's message in one frame."""
    return frame(TEXT, json.dumps(message).encode())


class Peer:
    """A client's end. ``frames`` are those that came and were not taken yet, as (opcode, payload)."""

    def __init__(self, bench: SignalingBench) -> None:
        self.bench = bench
        self.socket = MemorySocket(bench.clock)
        factory: Any = bench.factory
        self.protocol = factory.buildProtocol(self.socket.getPeer())
        self.socket.protocol = self.protocol
        self.protocol.makeConnection(self.socket)
        self.head = b""
        self._read = 0

    def gives(self, data: bytes) -> None:
        """Bytes arrive at the front."""
        if self.socket.reading and self.socket.lost is None:
            self.protocol.dataReceived(data)
        self.socket.flush()

    def asks(self, request: str = "GET /signaling HTTP/1.1", **changes: Any) -> bytes:
        """A handshake; returns the head of the answer. A header of None is left out."""
        headers = HEAD | {name.replace("_", "-"): value for name, value in changes.items()}
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        self.gives("\r\n".join([request, *lines, "", ""]).encode("latin-1"))
        self.head, end, _ = bytes(self.socket.out).partition(b"\r\n\r\n")
        self._read = len(self.head + end)
        return self.head

    def opens(self) -> Peer:
        """A handshake that must succeed."""
        assert self.asks().startswith(b"HTTP/1.1 101 "), self.head
        return self

    def joins(self, ticket: str | None = None) -> Peer:
        """A handshake and a client's hello; the welcome is left to be taken."""
        self.opens().gives(text(type="hello", role="client", **({"ticket": ticket} if ticket else {})))
        return self

    def takes(self) -> list[tuple[int, bytes]]:
        """The frames that have come, whole ones."""
        self.socket.flush()
        frames = []
        data = self.socket.out
        while len(data) >= self._read + 2:
            first, size = data[self._read], data[self._read + 1]
            at = self._read + 2
            if size == 126:
                size, at = struct.unpack("!H", data[at : at + 2])[0], at + 2
            elif size == 127:
                size, at = struct.unpack("!Q", data[at : at + 8])[0], at + 8
            if len(data) < at + size:
                break
            assert first & 0x80, "the front sends whole messages"
            frames.append((first & 15, bytes(data[at : at + size])))
            self._read = at + size
        return frames

    def hears(self) -> list[dict[str, Any]]:
        """The messages that have come; other frames are an error."""
        frames = self.takes()
        assert all(opcode == TEXT for opcode, _ in frames), frames
        return [json.loads(payload) for _, payload in frames]

    def closes(self, code: int = 1000) -> None:
        """A close frame."""
        self.gives(frame(CLOSE, struct.pack("!H", code)))

    def vanishes(self) -> None:
        """The TCP connection ends."""
        self.socket.connectionLost(Failure(ConnectionDone()))


class SignalingBench(Bench):
    """A bench with the real factory, or another ``kind``. ``exempt`` connections have no message ``rate``."""

    def __init__(self, seed: int = 1, kind: Any = None, rate: float = MESSAGE_RATE) -> None:
        super().__init__(seed)
        self.clock = Clock()
        self.clock.advance(1000.5)
        self.exempt = True
        self.origins: list[str | None] = []
        self.origin_permitted = True
        self.full: str | None = None
        self.inside: list[str] = []
        self.pongs: list[bytes] = []
        self.factory = (kind or FACTORY)(
            reactor=self.clock,
            switchboard=self.board,
            address_of=lambda peer, headers: headers.get("x-forwarded-for", peer),
            origin_permitted=self._origin_permitted,
            admit=self._admit,
            release=self.inside.remove,
            allowance_of=lambda address: None if self.exempt else Allowance(rate, rate * 4),
            write_buffer_bytes=WRITE_BUFFER_BYTES,
            handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
            refused=self.counters.refuse,
        )
        self.factory.pong = lambda connection, payload: self.pongs.append(payload)

    def _origin_permitted(self, peer: str, headers: dict[str, str], transport: Any) -> bool:
        self.origins.append(headers.get("origin"))
        return self.origin_permitted

    def _admit(self, address: str) -> str | None:
        if self.full is None:
            self.inside.append(address)
        return self.full


class SignalingTestCase(SynchronousTestCase):
    """Has a bench. At the end no call may be left, and nothing may have been logged but debug and ``noted`` events."""

    def setUp(self) -> None:
        """Make a front without connections, and listen to the log."""
        self.bench = SignalingBench()
        self.clock = self.bench.clock
        self.logged: list[dict[str, Any]] = []
        observer: Any = self._log
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def tearDown(self) -> None:
        """Let everything time out."""
        self.clock.advance(60)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual([event.get("log_format") for event in self.logged], [])
        self.assertEqual(self.bench.factory.getConnectionCount(), len(self.bench.inside))

    def _log(self, event: Any) -> None:
        if event.get("log_level") is not LogLevel.debug:
            self.logged.append(event)

    def peer(self) -> Peer:
        """A new connection, nothing said."""
        return Peer(self.bench)

    def assertClosed(self, peer: Peer, code: int, *before: str) -> None:
        """The last frame is a close frame with that code; before it came messages of these types."""
        frames = peer.takes()
        self.assertEqual([json.loads(payload)["type"] for _, payload in frames[:-1]], list(before))
        self.assertTrue(frames, "nothing came")
        self.assertEqual((frames[-1][0], struct.unpack("!H", frames[-1][1][:2])[0]), (CLOSE, code))
