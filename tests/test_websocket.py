"""Frames at the front's end (RFC 6455 section 5), and that nothing grows that a peer can feed."""

from __future__ import annotations

import json
import struct

from kollator.signaling.messages import MESSAGE_BYTES, Close
from kollator.signaling.websocket import CLOSE_TIMEOUT_S, FRAMES
from tests.signaling_bench import (
    BINARY,
    CLOSE,
    HELLO,
    PING,
    PONG,
    TEXT,
    SignalingTestCase,
    frame,
    text,
)
from tests.switchboard_bench import MESSAGE_RATE


class FrameTests(SignalingTestCase):
    """Frames of every kind, at an open connection."""

    def setUp(self) -> None:
        """Open one, and count what reaches the switchboard."""
        super().setUp()
        self.open = self.peer().opens()
        self.received: list[bytes] = []
        receive = self.bench.board.receive

        def noted(connection: object, payload: bytes, now: float) -> None:
            self.received.append(payload)
            receive(connection, payload, now)  # type: ignore[arg-type]

        self.bench.board.receive = noted  # type: ignore[assignment,method-assign]

    def test_text(self) -> None:
        """Without it no message would come through, byte by byte or several at once."""
        data = frame(TEXT, HELLO) + text(type="assign") + text(type="assign")
        for at in range(len(data)):
            self.open.gives(data[at : at + 1])
        self.assertEqual([message["type"] for message in self.open.hears()], ["welcome", "assigned", "assigned"])
        self.open.gives(text(type="assign") * 3)
        self.assertEqual(len(self.open.hears()), 3)

    def test_fragments(self) -> None:
        """Without it a client whose library fragments could not be understood."""
        pieces = [HELLO[:5], b"", HELLO[5:20]]
        self.open.gives(frame(TEXT, pieces[0], fin=False) + frame(0, pieces[1], fin=False))
        self.open.gives(frame(PING, b"between") + frame(0, pieces[2], fin=False))
        self.assertEqual(self.open.takes(), [(PONG, b"between")])
        self.open.gives(frame(0, HELLO[20:]))
        self.assertEqual(self.received, [HELLO])
        self.assertEqual(self.open.hears()[0]["type"], "welcome")

    def test_character_across_fragments(self) -> None:
        """Without it a fragment that ends within a character would be taken for broken text."""
        payload = '{"type":"hello","role":"client","ref":"\u00fc\U0001f600"}'.encode()
        for at in range(1, len(payload)):
            self.open.gives(frame(TEXT, payload[:at], fin=False) + frame(0, payload[at:]))
        self.assertEqual(self.received, [payload] * (len(payload) - 1))

    def test_largest_message(self) -> None:
        """Without it a message of exactly 64 KiB would be refused."""
        whole = HELLO + b" " * (MESSAGE_BYTES - len(HELLO))
        self.open.gives(frame(TEXT, whole))
        self.open.gives(frame(TEXT, whole[:60_000], fin=False) + frame(0, whole[60_000:]))
        self.assertEqual([len(payload) for payload in self.received], [MESSAGE_BYTES] * 2)
        self.assertEqual([message["type"] for message in self.open.hears()], ["welcome", "error"])

    def test_largest_message_is_passed_on(self) -> None:
        """Without it a message that the rules allow would break the connection of its sender, for a longer name."""
        client = self.open
        client.gives(frame(TEXT, HELLO))
        self.bench.worker("w")
        message = b'{"type":"offer","to":"w","sdp":"%s"}'
        client.gives(frame(TEXT, message % (b"v" * (MESSAGE_BYTES - len(message) + 2))))
        worker = self.bench.board.workers["w"]
        self.assertEqual(len(worker.sent[0]["sdp"]), MESSAGE_BYTES - len(message) + 2)  # type: ignore[attr-defined]
        answer = json.dumps({"type": "answer", "to": client.protocol.id, "sdp": ""})
        padding = "v" * (MESSAGE_BYTES - len(answer))
        self.bench.board.receive(worker, answer.replace('""', f'"{padding}"').encode(), 0.0)
        self.assertEqual(client.hears()[-1]["sdp"], padding)

    def test_too_large(self) -> None:
        """Without it a message without end would fill the memory, or its sender not know what was wrong."""
        self.open.gives(frame(TEXT, size=1 << 30))
        self.assertClosed(self.open, Close.TOO_LARGE, "error")
        for _ in range(100):
            self.open.gives(b"x" * 10_000)
        self.assertEqual((len(self.open.protocol.text), len(self.open.protocol.data), self.received), (0, 0, []))
        self.assertEqual(self.bench.counters.errors["too-large"], 1)

    def test_too_large_in_fragments(self) -> None:
        """Without it the limit would be that of a frame, and a message could be of any size."""
        for _ in range(16):
            self.open.gives(frame(TEXT if not self.open.protocol.inside_message else 0, b"x" * 4096, fin=False))
        self.assertEqual(self.open.takes(), [])
        self.open.gives(frame(0, b"x"))
        self.assertClosed(self.open, Close.TOO_LARGE, "error")
        self.assertEqual(self.received, [])

    def test_close_frame_behind_what_is_too_large(self) -> None:
        """Without it a client that answers our close frame would be kept waiting for the end of the connection."""
        self.open.gives(frame(TEXT, b"x" * (MESSAGE_BYTES + 1)) + frame(CLOSE, struct.pack("!H", 1009)))
        self.assertClosed(self.open, Close.TOO_LARGE, "error")
        self.assertIsNotNone(self.open.socket.lost)

    def test_binary(self) -> None:
        """Without it binary messages would be taken for text."""
        for data in (
            frame(BINARY, HELLO),
            frame(BINARY, b"", fin=False) + frame(0, HELLO),
            frame(BINARY, size=1 << 40) + b"x" * 100_000,
        ):
            peer = self.peer().opens()
            peer.gives(data)
            self.assertClosed(peer, Close.BINARY)
            self.assertEqual((len(peer.protocol.text), len(peer.protocol.data)), (0, 0))
        self.assertEqual(self.received, [])

    def test_not_utf_8(self) -> None:
        """Without it broken text would be passed on to who closes for it (RFC 6455 section 8.1)."""
        for data in (
            frame(TEXT, b'{"type":"bye","x":"\xff"}'),
            frame(TEXT, b'{"type":"bye","x":"\xed\xa0\x80"}'),
            frame(TEXT, b'{"x":"\xc3'),
            frame(TEXT, b'{"x":"\xc3', fin=False) + frame(0, b'"}'),
        ):
            peer = self.peer().opens()
            peer.gives(data)
            self.assertClosed(peer, 1007)
        self.assertEqual(self.received, [])
        self.assertEqual(self.bench.counters.closes["other"], 4)

    def test_protocol_errors(self) -> None:
        """Without it what breaks RFC 6455 section 5 would be taken for a message."""
        for data in (
            frame(TEXT, HELLO, mask=None),
            frame(TEXT, HELLO, rsv=4),
            frame(3, HELLO),
            frame(11, b""),
            frame(0, HELLO),
            frame(TEXT, b"{", fin=False) + frame(TEXT, HELLO),
            frame(PING, b"x", fin=False),
            frame(PING, b"x" * 126),
            frame(CLOSE, b"x"),
            frame(CLOSE, struct.pack("!H", 1005)),
            struct.pack("!BBH", 0x81, 0xFE, 5) + b"\0\0\0\0" + b"12345",
            struct.pack("!BBQ", 0x81, 0xFF, 1 << 63) + b"\0\0\0\0",
        ):
            peer = self.peer().opens()
            peer.gives(data)
            self.assertClosed(peer, 1002)
            peer.gives(frame(TEXT, HELLO))
        self.assertEqual(self.received, [])

    def test_endless_control_frame(self) -> None:
        """Without it a control frame of a terabyte would be collected until the connection is cut."""
        self.open.gives(frame(PING, size=1 << 40))
        self.assertClosed(self.open, 1002)
        for _ in range(100):
            self.open.gives(b"x" * 10_000)
        held: int = sum(map(len, self.open.protocol.control_frame_data))
        self.assertEqual((held, len(self.open.protocol.data)), (0, 0))

    def test_endless_empty_fragments(self) -> None:
        """Without it a list of empty pieces would grow for as long as somebody sends them."""
        self.open.gives(frame(TEXT, b"", fin=False))
        self.open.gives(frame(0, b"", fin=False) * 5000)
        self.assertEqual((len(self.open.protocol.text), len(self.open.protocol.data)), (0, 0))
        self.assertFalse(getattr(self.open.protocol, "frame_data", None))
        self.assertFalse(getattr(self.open.protocol, "message_data", None))

    def test_ping(self) -> None:
        """Without it clients that check whether the front is alive would think that it is not."""
        self.open.gives(frame(PING, b"") + frame(PING, b"x" * 125))
        self.assertEqual(self.open.takes(), [(PONG, b""), (PONG, b"x" * 125)])

    def test_pong(self) -> None:
        """Without it the health monitor would not learn of a worker's answer."""
        self.open.protocol.ping(b"17")
        self.assertEqual(self.open.takes(), [(PING, b"17")])
        self.open.gives(frame(PONG, b"17") + frame(PONG, b""))
        self.assertEqual(self.bench.pongs, [b"17", b""])

    def test_signs_of_life(self) -> None:
        """Without it the keep-alive would drop a client that is there."""
        for data in (frame(PING), frame(PONG), text(type="assign")):
            self.open.protocol.heard = False
            self.open.gives(data)
            self.assertTrue(self.open.protocol.heard)

    def test_flood_of_frames(self) -> None:
        """Without it a peer could keep the front busy with frames that are no messages, and no rate would notice."""
        self.bench.exempt = False
        for data in (frame(PING), frame(PONG), frame(0, b"", fin=False)):
            peer = self.peer().opens()
            peer.gives(frame(TEXT, b"", fin=False))
            burst = int(MESSAGE_RATE * 4 * FRAMES)
            peer.gives(data * (burst - 1))
            self.assertTrue(all(opcode == PONG for opcode, _ in peer.takes()))
            pongs = len(self.bench.pongs)
            peer.gives(data * 1000)
            self.assertClosed(peer, Close.RATE_LIMITED)
            self.assertEqual((peer.socket.reading, peer.protocol.data), (False, b""))
            for _ in range(10):
                peer.protocol.dataReceived(data)  # TLS may have some more
            self.assertLessEqual(len(self.bench.pongs), pongs + 1)
            self.clock.advance(CLOSE_TIMEOUT_S)
            self.clock.advance(0)
            self.assertIsNotNone(peer.socket.lost)

    def test_small_fragments_are_no_flood(self) -> None:
        """Without it a client at its message rate would be closed for the fragments of its messages."""
        self.bench.exempt = False
        peer = self.peer().opens()
        peer.gives(frame(TEXT, HELLO))
        data = json.dumps({"type": "connected", "to": "w1"}).encode()
        pieces = [data[at : at + 3] for at in range(0, len(data), 3)]
        message = b"".join(
            frame(0 if index else TEXT, piece, fin=index == len(pieces) - 1) for index, piece in enumerate(pieces)
        )
        for _ in range(20):
            self.clock.advance(1.0)
            peer.gives(message * int(MESSAGE_RATE))
        self.assertEqual([message["type"] for message in peer.hears()], ["welcome"])
        self.assertEqual(self.bench.counters.handoffs, 20 * MESSAGE_RATE)
