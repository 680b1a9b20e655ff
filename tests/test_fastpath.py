"""The fast path does what the plain one does, to the byte, whatever comes and however it is cut."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from kollator.signaling.fastpath import FastSignalingProtocol
from kollator.signaling.messages import MESSAGE_BYTES, Close
from tests.signaling_bench import (
    BINARY,
    CLOSE,
    HELLO,
    PING,
    PONG,
    TEXT,
    WRITE_BUFFER_BYTES,
    frame,
    text,
)
from tests.twins import Twin, TwinTests, handshake

FEW = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def some_frames(chance: random.Random) -> bytes:
    """One step of a peer: mostly what clients send, sometimes anything that RFC 6455 allows, or does not."""
    kind = chance.randrange(40)
    mask = bytes(chance.randrange(256) for _ in range(4))
    if kind < 8:
        return frame(TEXT, HELLO, mask=mask)
    if kind < 14:
        sdp = "v=0\r\n" * chance.choice((0, 3, 20, 400))
        return frame(TEXT, json.dumps({"type": "offer", "to": "w", "sdp": sdp, "ref": "r"}).encode(), mask=mask)
    if kind < 16:
        return text(type="assign") * chance.randrange(1, 5)
    if kind < 18:
        return frame(TEXT, '{"type":"bye","to":"w","reason":"\u00fc\U0001f600\u20ac"}'.encode(), mask=mask)
    if kind < 20:
        return frame(chance.choice((PING, PONG)), bytes(chance.randrange(126)), mask=mask)
    if kind < 23:  # fragments, with a control frame between them
        whole = chance.choice((HELLO, "\u00fc\U0001f600".encode() * 9, b"\xff" * 20))
        at = chance.randrange(len(whole) + 1)
        between = chance.choice((b"", frame(PING, b"between"), frame(TEXT, b"{}")))
        return frame(TEXT, whole[:at], fin=False) + between + frame(0, whole[at:])
    odd = odd_frames(chance.choice((0, 1, 124, 125, 126, 127, 128, 129, 65_535, 65_536, 65_537)), mask)
    anything = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 30)))
    return chance.choice([*odd, anything])


def odd_frames(size: int, mask: bytes) -> list[bytes]:
    """What few clients send, and none should: limits, violations, broken text, closing."""
    return [
        frame(TEXT, b"x" * size, mask=mask),
        frame(TEXT, b"{}\xff", mask=mask),
        frame(TEXT, "\u00fc".encode()[:1], mask=mask),
        frame(TEXT, b"\xed\xa0\x80", mask=mask),
        frame(TEXT, b"", mask=mask),
        frame(TEXT, b"\xff" * 40, mask=mask),
        frame(TEXT, "\u00fc".encode()[:1], fin=False) + frame(0, "\u00fc".encode()[1:]),
        frame(BINARY, HELLO, mask=mask),
        frame(TEXT, HELLO, mask=None),
        frame(PING, b"", mask=None),
        *(frame(TEXT, HELLO, rsv=rsv) for rsv in (1, 2, 4)),
        *(frame(opcode, b"?", mask=mask) for opcode in (3, 7, 11, 15)),
        frame(0, b"nothing to go on with", mask=mask),
        frame(PING, b"x" * size, mask=mask),
        frame(PONG, b"", fin=False),
        *(b"\x81\xfe" + struct.pack("!H", short) + mask + b"x" * short for short in (0, 5, 125)),
        *(b"\x81\xff" + struct.pack("!Q", long) + mask + b"x" * 9 for long in (5, 65_535, 1 << 40, 1 << 63)),
        *(frame(CLOSE, said) for said in (b"", b"\x03", b"\x03\xe8", b"\x03\xe9bye", b"\x00\x01", b"\x03\xe8\xff")),
        frame(PING, b"x") * 30,
    ]


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    """The pieces in which it arrives."""
    way = chance.randrange(4)
    if way == 0 or len(data) < 2:
        return [data]
    if way == 1 and len(data) < 3000:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted({chance.randrange(1, len(data)) for _ in range(chance.randrange(1, 6))})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


class StreamTests(TwinTests):
    """Open connections."""

    @FEW
    @given(st.integers(0, 1 << 32), st.booleans())
    def test_any_stream(self, seed: int, exempt: bool) -> None:
        """Without it a client could find out, by what is written, closed or delivered, which path it is on."""
        chance = random.Random(seed)
        plain, fast = self.twins(exempt)
        pairs = [(plain.connect(), fast.connect()) for _ in range(2)]
        for one, other in pairs:
            plain.give(one, handshake())
            fast.give(other, handshake())
        self.assertIsInstance(pairs[0][1].protocol, FastSignalingProtocol)
        pieces = [cut(b"".join(some_frames(chance) for _ in range(chance.randrange(1, 6))), chance) for _ in range(6)]
        for piece in [piece for some in pieces for piece in some]:
            which = chance.randrange(8) == 0
            act = chance.randrange(24)
            for bench, socket in zip((plain, fast), pairs[which], strict=True):
                if act == 0:
                    bench.clock.advance(0.25)
                elif act == 1:
                    socket.window = 5_000
                elif act == 2:
                    socket.window = 1 << 60
                    socket.flush()
                elif act == 3 and socket.protocol is not None:
                    socket.protocol.ping(b"p")
                bench.give(socket, piece)
            self.assert_same(plain, fast, (act, piece))
        self.finish(plain, fast)

    def test_each_oddity(self) -> None:
        """Without it some violation would be let through on one of the paths, or told with another code."""
        plain, fast = self.twins()
        for odd in [odd for size in (1, 125, 126, 65_536) for odd in odd_frames(size, b"\x01\x02\x83\xff")]:
            for pieces in ([odd], [odd[:3], odd[3:]], [frame(TEXT, HELLO) + odd[:9], odd[9:] + frame(TEXT, HELLO)]):
                for bench in (plain, fast):
                    bench.sockets.clear()
                    bench.received.clear()
                    socket = bench.connect()
                    bench.give(socket, handshake())
                for piece in pieces:
                    for bench in (plain, fast):
                        bench.sockets[0].protocol.heard = False
                        bench.give(bench.sockets[0], piece)
                    self.assert_same(plain, fast, piece)

    def test_debug_events(self) -> None:
        """Without it what somebody sends could not be seen on the fast path, or would always be written down."""
        events: list[dict[str, Any]] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        plain, fast = self.twins()
        for bench in (plain, fast):
            socket = bench.connect()
            bench.give(socket, handshake())
            for bench.factory.debug in (False, True, False):
                bench.give(socket, frame(TEXT, HELLO))
            self.assertEqual([event["what"] for event in events if "what" in event], ["hello, 32 bytes"])
            events.clear()
        self.assert_same(plain, fast, "debug")
        self.finish(plain, fast)

    def test_every_cut_of_a_message(self) -> None:
        """Without it a message would be lost, or come twice, for where the network has cut it."""
        messages = [frame(TEXT, HELLO), text(type="assign", ref="\u00fc"), frame(PING, b"p"), text(type="assign") * 2]
        data = b"".join(messages) + frame(TEXT, b" " * 200)
        plain, fast = self.twins()
        for at in range(1, len(data)):
            for bench in (plain, fast):
                bench.sockets.clear()
                bench.received.clear()
                socket = bench.connect()
                bench.give(socket, handshake())
                bench.give(socket, data[:at])
            self.assert_same(plain, fast, at)
            for bench in (plain, fast):
                bench.give(bench.sockets[0], data[at:])
            self.assert_same(plain, fast, at)

    def test_counted_once(self) -> None:
        """Without it a frame that comes in two pieces would count as two, or as none, against its sender's rate."""
        plain, fast = self.twins(exempt=False)
        for bench in (plain, fast):
            socket = bench.connect()
            bench.give(socket, handshake())
            for data in (text(type="assign"), frame(TEXT, '{"a":"\u00fc"}'.encode())) * 40:
                bench.give(socket, data[:-3])
                bench.clock.advance(0.001)
                bench.give(socket, data[-3:])
        self.assert_same(plain, fast, "pieces")

    def test_too_many_frames(self) -> None:
        """Without it tiny frames would be work for nothing, and nobody would stop them."""
        plain, fast = self.twins(exempt=False)
        for bench in (plain, fast):
            socket = bench.connect()
            bench.give(socket, handshake())
            bench.give(socket, frame(PONG) * 2000)
            self.assertFalse(socket.reading)
        self.assert_same(plain, fast, "pongs")
        self.finish(plain, fast)

    def test_slow_reader(self) -> None:
        """Without it what waits for a client that does not read would be without a bound on the fast path."""
        plain, fast = self.twins()
        for bench in (plain, fast):
            socket = bench.connect()
            bench.give(socket, handshake())
            bench.give(socket, frame(TEXT, HELLO))
            socket.window = 0
            socket.protocol.send(b"x" * 10_000)
        self.assertGreater(fast.sockets[0].protocol.held_back, 0)
        self.assert_same(plain, fast, "behind")
        for bench in (plain, fast):
            connection = bench.sockets[0].protocol
            sent = 0
            while connection.send(b"x" * 60_000):
                sent += 60_000
                self.assertLess(sent, 2 * WRITE_BUFFER_BYTES)
            self.assertGreater(sent, WRITE_BUFFER_BYTES // 2)
        self.assert_same(plain, fast, "sent")
        self.finish(plain, fast)


class PathTests(TwinTests):
    """Which way a frame takes."""

    def setUp(self) -> None:
        """One open connection on the fast path."""
        self.bench = Twin(True)
        self.socket = self.bench.connect()
        self.bench.give(self.socket, handshake())
        self.connection = self.socket.protocol

    def test_whole_frames(self) -> None:
        """Without it the fast path would not be taken, and nobody would notice."""
        def parse(data: bytes) -> None:
            self.fail("this was for the fast path")

        names = {"__slots__": (), "_parse": staticmethod(parse)}
        self.connection.__class__ = type("Watched", (type(self.connection),), names)
        whole = frame(TEXT, HELLO) + frame(PING, b"a") + frame(PONG, b"b") + frame(TEXT, b" " * 65_535)
        self.bench.give(self.socket, whole + text(type="assign")[:20])
        self.bench.give(self.socket, text(type="assign")[20:])
        self.bench.give(self.socket, frame(TEXT, "\u00fc".encode()))
        self.assertEqual([len(payload) for payload in self.bench.received], [len(HELLO), 65_535, 18, 2])
        self.assertEqual(self.bench.pongs, [b"b"])

    def test_back_to_the_fast_path(self) -> None:
        """Without it one fragment would leave a connection on the slow path, with its memory, for good."""
        empty = dict(self.connection.__dict__)
        for data in (frame(TEXT, HELLO[:5], fin=False), frame(PING), frame(0, HELLO[5:])):
            self.bench.give(self.socket, data)
            self.assertEqual(self.connection.parsing, data[0] != 0x80)
        self.assertEqual(dict(self.connection.__dict__).keys(), empty.keys())
        data = text(type="assign", ref="x" * 60)
        for at in range(len(data)):  # byte by byte: the parser's affair, from the third on
            self.bench.give(self.socket, data[at : at + 1])
            self.assertEqual(self.connection.parsing, 6 <= at + 1 < len(data))  # since its header is whole
        self.assertFalse(self.connection.parsing)
        self.assertEqual(dict(self.connection.__dict__).keys(), empty.keys())

    def test_idle_connection_keeps_little(self) -> None:
        """Without it an attribute for each connection might creep in unseen."""
        self.bench.give(self.socket, frame(TEXT, HELLO))
        self.assertLessEqual(set(self.connection.__dict__), {"origin_permitted"})
        slow = self.bench.connect(through_the_door=False)
        self.bench.give(slow, handshake(Connection="Upgrade, x"))
        self.bench.give(slow, frame(TEXT, HELLO))
        self.assertIsInstance(slow.protocol, FastSignalingProtocol)
        self.assertLessEqual(set(slow.protocol.__dict__), {"origin_permitted", "connected"})

    def test_largest(self) -> None:
        """Without it a message of 64 KiB, whose length takes eight bytes, would be refused, or a larger one not."""
        self.bench.give(self.socket, frame(TEXT, b" " * MESSAGE_BYTES))
        self.assertEqual([len(payload) for payload in self.bench.received], [MESSAGE_BYTES])
        self.bench.give(self.socket, frame(TEXT, b" " * (MESSAGE_BYTES + 1)))
        self.assertIn(struct.pack("!H", Close.TOO_LARGE), bytes(self.socket.out)[-30:])
