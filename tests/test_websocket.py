"""RFC 6455 at the front's end: handshake, frames, closing, and that nothing grows that a peer can feed."""

from __future__ import annotations

import json
import random
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from kollator.signaling.messages import MESSAGE_BYTES, Close
from kollator.signaling.websocket import CLOSE_TIMEOUT_S, FRAMES, HEADER_BYTES, waiting_bytes
from tests.signaling_bench import (
    BINARY,
    CLOSE,
    HANDSHAKE_TIMEOUT_S,
    HEAD,
    PING,
    PONG,
    TEXT,
    WRITE_BUFFER_BYTES,
    MemorySocket,
    Peer,
    SignalingTestCase,
    frame,
    text,
)
from tests.switchboard_bench import MESSAGE_RATE

HELLO = b'{"type":"hello","role":"client"}'


class HandshakeTests(SignalingTestCase):
    """The request and its answer."""

    def test_accepted(self) -> None:
        """Without it no client could connect (the key and its answer are the RFC's, section 1.3)."""
        head = self.peer().asks()
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
        self.assertIn(b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", head)
        self.assertNotIn(b"Sec-WebSocket-Protocol", head)
        self.assertNotIn(b"\r\nServer:", head)

    def test_subprotocol(self) -> None:
        """Without it a browser that offers the subprotocol would close the connection itself."""
        for offered, selected in (
            ("kollator.v1", True),
            ("other, kollator.v1", True),
            ("other", False),
        ):
            head = self.peer().asks(Sec_WebSocket_Protocol=offered)
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
            self.assertEqual(b"\r\nSec-WebSocket-Protocol: kollator.v1" in head, selected)

    def test_no_extension(self) -> None:
        """Without it permessage-deflate would cost 100 KB a connection, or an odd offer be refused altogether."""
        for offer in ("permessage-deflate; client_max_window_bits", "permessage-deflate; server_max_window_bits=99"):
            head = self.peer().asks(Sec_WebSocket_Extensions=offer)
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "))
            self.assertNotIn(b"Sec-WebSocket-Extensions", head)

    def test_refused_in_the_form_of_all_errors(self) -> None:
        """Without it a client that asks wrongly would get an answer that is no HTTP response of this front."""
        for request, changes, status, code in (
            ("GET /signaling HTTP/1.1", {"Sec_WebSocket_Version": "8"}, 400, "bad-request"),
            ("GET /signaling HTTP/1.1", {"Sec_WebSocket_Version": None}, 400, "bad-request"),
            ("GET /signaling HTTP/1.1", {"Sec_WebSocket_Key": "short"}, 400, "bad-request"),
            ("GET /signaling HTTP/1.1", {"Sec_WebSocket_Key": "\xfc" * 24}, 400, "bad-request"),
            ("GET /signaling HTTP/1.1", {"Host": None}, 400, "bad-request"),
            ("GET /signaling HTTP/1.1", {"Origin": "http://[", "Host": "a"}, 400, "bad-request"),
            ("GET /signaling HTTP/1.1", {"Upgrade": None}, 426, "upgrade-required"),
            ("POST /signaling HTTP/1.1", {}, 405, "method-not-allowed"),
            ("GET /signaling HTTP/1.0", {}, 505, "bad-request"),
            ("\xff\xfe", {}, 400, "bad-request"),
        ):
            peer = self.peer()
            head = peer.asks(request, **changes)
            body = bytes(peer.socket.out)[len(head) + 4 :]
            self.assertTrue(head.startswith(b"HTTP/1.1 %d " % status), head)
            self.assertIn(b"Content-Length: %d" % len(body), head)
            self.assertEqual(json.loads(body)["error"]["code"], code)
            self.assertIsNotNone(peer.socket.lost)
            self.assertEqual(b"Sec-WebSocket-Version: 13" in head, changes == {"Sec_WebSocket_Version": "8"})
        self.assertEqual(self.bench.counters.refused["header"], 10)

    def test_in_pieces(self) -> None:
        """Without it a handshake that comes in several segments would fail, or one with a message behind it."""
        peer = self.peer()
        lines = [f"{name}: {value}" for name, value in HEAD.items()]
        head = "\r\n".join(["GET /signaling?x=1 HTTP/1.1", *lines, "", ""]).encode()
        for at in range(len(head) - 1):
            peer.gives(head[at : at + 1])
        peer.gives(head[-1:] + frame(TEXT, HELLO) + text(type="assign"))
        answer, _, frames = bytes(peer.socket.out).partition(b"\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 101 "))
        self.assertIn(b'"type":"welcome"', frames)
        self.assertIn(b'"type":"assigned"', frames)

    def test_header_too_large(self) -> None:
        """Without it a header without end would fill the memory."""
        peer = self.peer()
        peer.gives(b"GET /signaling HTTP/1.1\r\nX: ")
        for _ in range(HEADER_BYTES // 1024):
            peer.gives(b"x" * 1024)
        self.assertTrue(peer.socket.out.startswith(b"HTTP/1.1 431 "))
        self.assertIsNotNone(peer.socket.lost)

    def test_too_slow(self) -> None:
        """Without it connections that never ask would stay for ever."""
        peer = self.peer()
        peer.gives(b"GET /sig")
        self.clock.advance(HANDSHAKE_TIMEOUT_S - 0.1)
        self.assertIsNone(peer.socket.lost)
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)

    def test_header_lines_end_where_http_says(self) -> None:
        """Without it a client behind a trusted proxy could write the proxy's headers: Autobahn splits lines at NEL."""
        for separator in ("\x85", "\x0b", "\x0c", "\x1c", "\n", "\r"):
            peer = self.peer()
            peer.asks(X_City=f"\xc3{separator}X-Forwarded-For: 127.0.0.1{separator}Origin: http://evil.example")
            self.assertEqual(peer.protocol.address, "192.0.2.1", repr(separator))
            self.assertIsNone(self.bench.origins[-1])

    def test_answer_that_is_not_read(self) -> None:
        """Without it who asks wrongly and reads nothing would keep a connection for ever."""
        peer = self.peer()
        peer.socket.window = 0
        peer.asks(Upgrade=None)
        self.assertIsNone(peer.socket.lost)
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)


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
        for data in (frame(PING), frame(PONG, b"x"), frame(0, b"", fin=False)):
            peer = self.peer().opens()
            peer.gives(frame(TEXT, b"", fin=False))
            burst = int(MESSAGE_RATE * 4 * FRAMES)
            peer.gives(data * (burst - 1))
            self.assertTrue(all(opcode == PONG for opcode, _ in peer.takes()))
            pongs = len(self.bench.pongs)
            peer.gives(data * 1000)
            self.assertClosed(peer, Close.RATE_LIMITED)
            self.assertEqual((peer.socket.reading, peer.protocol.data), (False, b""))
            peer.protocol.dataReceived(data * 10)  # TLS may have some more
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


class CloseTests(SignalingTestCase):
    """How a connection ends, from either side."""

    def test_peer_closes(self) -> None:
        """Without it a client would wait for the answer to its close frame."""
        for code in (1000, 1001, 3000, 4000):
            peer = self.peer().joins()
            peer.hears()
            peer.closes(code)
            self.assertClosed(peer, 1000)
            self.assertIsNotNone(peer.socket.lost)
        peer = self.peer().opens()
        peer.gives(frame(CLOSE))
        self.assertClosed(peer, 1000)

    def test_front_closes(self) -> None:
        """Without it what is closed could stay open, or be cut before it has read why."""
        peer = self.peer().joins()
        peer.hears()
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        self.bench.factory.end(peer.protocol, Close.REPLACED, "again")
        peer.socket.flush()
        self.assertClosed(peer, Close.GOING_AWAY)
        self.assertIsNone(peer.socket.lost)
        peer.gives(frame(TEXT, HELLO) + frame(PING))
        peer.closes(1001)
        self.assertEqual((peer.takes(), peer.socket.lost.value.__class__.__name__), ([], "ConnectionDone"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_call_is_left(self) -> None:
        """Without it each connection would leave a call, and itself in memory, until some time-out."""
        for way in ("vanishes", "closes"):
            peer = self.peer().joins()
            if way == "vanishes":
                self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
            getattr(peer, way)()
            self.assertIsNotNone(peer.socket.lost)
            self.assertEqual(self.clock.getDelayedCalls(), [], way)

    def test_no_answer_to_our_close_frame(self) -> None:
        """Without it a peer could keep a connection that was closed, and speak on for ever."""
        peer = self.peer().joins()
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        peer.gives(frame(TEXT, HELLO))
        self.clock.advance(CLOSE_TIMEOUT_S - 0.1)
        self.assertIsNone(peer.socket.lost)
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)

    def test_nothing_after_the_close_frame(self) -> None:
        """Without it a browser would get messages on a connection that is closing (RFC 6455 section 5.5.1)."""
        peer = self.peer().joins()
        peer.hears()
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        self.assertFalse(peer.protocol.send(b"{}"))
        peer.protocol.ping(b"1")
        peer.protocol.close(Close.DONE, "")
        peer.socket.flush()
        self.assertClosed(peer, Close.GOING_AWAY)

    def test_lost_without_a_word(self) -> None:
        """Without it a connection that breaks in the middle of a message would stay in the tables."""
        for data in (b"", frame(TEXT, HELLO)[:10], frame(TEXT, HELLO, fin=False), frame(TEXT, size=1 << 30)):
            peer = self.peer().joins()
            peer.gives(data)
            peer.vanishes()
        self.assertEqual((dict(self.bench.board.clients), self.bench.inside), ({}, []))

    def test_lost_before_it_opened(self) -> None:
        """Without it a connection that never finished its handshake would be counted out without being in."""
        for data in (b"", b"GET /signaling HTTP/1.1\r\n"):
            peer = self.peer()
            peer.gives(data)
            peer.vanishes()
        self.assertEqual(self.bench.factory.getConnectionCount(), 0)

    def test_peer_that_closes_and_reads_nothing(self) -> None:
        """Without it megabytes would wait for ever for one who has said goodbye."""
        peer = self.peer().joins()
        peer.socket.window = 0
        peer.protocol.send(b"x" * 500_000)
        peer.closes()
        self.assertIsNone(peer.socket.lost)
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)

    def test_data_after_the_end(self) -> None:
        """Without it what TLS still delivers after the end would be collected."""
        peer = self.peer().joins()
        peer.socket.window = 0
        peer.closes()
        for _ in range(10):
            peer.protocol.dataReceived(b"x" * 65_536)
        self.assertEqual(peer.protocol.data, b"")

    def test_drop(self) -> None:
        """Without it a peer that is silent would be sent a close frame that it cannot answer."""
        peer = self.peer().joins()
        peer.hears()
        peer.protocol.drop("silent")
        self.assertEqual((dict(self.bench.board.clients), peer.takes()), ({}, []))
        self.clock.advance(0)
        self.assertEqual(peer.socket.lost.value.__class__.__name__, "ConnectionAborted")
        peer.protocol.drop("again")


class SlowConsumerTests(SignalingTestCase):
    """A peer that reads slowly, or not at all."""

    def setUp(self) -> None:
        """A client whose network takes nothing any more."""
        super().setUp()
        self.client = self.peer().joins()
        self.client.hears()
        self.client.socket.window = 0

    def waiting(self) -> int:
        """What waits for it, in bytes."""
        waiting = waiting_bytes(self.client.socket)
        assert waiting is not None
        return waiting

    def test_cut_at_the_cap(self) -> None:
        """Without it one client that does not read would fill the memory (Twisted pauses again at every write)."""
        sent = 0
        while self.client.protocol.send(b"x" * 10_000):
            sent += 1
            self.assertLess(sent, 200)
        self.assertGreater(sent, 100)
        self.assertLessEqual(self.waiting(), WRITE_BUFFER_BYTES + 200)
        self.assertEqual(dict(self.bench.board.clients), {})
        self.client.socket.window = 1 << 60
        self.client.socket.flush()
        self.assertEqual(len(self.client.takes()[:-1]), sent)
        self.assertEqual(self.bench.counters.closes["4413"], 1)

    def test_close_frame_waits_and_then_the_connection_is_cut(self) -> None:
        """Without it one who never reads would keep its megabyte."""
        while self.client.protocol.send(b"x" * 10_000):
            pass
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertIsNotNone(self.client.socket.lost)

    def test_slow_but_steady(self) -> None:
        """Without it a busy worker would be cut whose buffer is never quite empty."""
        for _ in range(1000):
            self.assertTrue(self.client.protocol.send(b"x" * 10_000))
            self.client.socket.window = max(0, self.waiting() - 100_000)
            self.client.socket.flush()
        self.assertGreater(len(self.client.socket.out), 8 * WRITE_BUFFER_BYTES)

    def test_caught_up(self) -> None:
        """Without it what went out long ago would count."""
        for _ in range(3):
            for _ in range(90):
                self.assertTrue(self.client.protocol.send(b"x" * 10_000))
            self.client.socket.window = 1 << 60
            self.client.socket.flush()
            self.assertEqual(self.client.protocol.held_back, -1)
            self.client.socket.window = 0

    def test_pings_and_messages_count_alike(self) -> None:
        """Without it the pings to a worker that hangs would pile up."""
        while self.client.protocol.send(b"x" * 10_000):
            if self.waiting() > WRITE_BUFFER_BYTES - 15_000:
                break
        for _ in range(1000):
            self.client.protocol.ping(b"x" * 100)
        self.assertLessEqual(self.waiting(), WRITE_BUFFER_BYTES + 200)
        self.assertEqual(dict(self.bench.board.clients), {})

    def test_answers_to_pings_do_not_pile_up(self) -> None:
        """Without it one who pings and does not read would fill the memory with our answers."""
        self.client.protocol.send(b"x" * 70_000)
        for number in range(10_000):
            self.client.protocol.dataReceived(frame(PING, b"%d" % number))
        self.assertLess(self.waiting(), 71_000)
        self.client.socket.window = 1 << 60
        self.client.socket.flush()
        self.assertEqual(self.client.takes()[1:], [(PONG, b"9999")])

    def test_errors_count_too(self) -> None:
        """Without it one who sends rubbish and does not read would fill the memory with our errors."""
        for _ in range(20_000):
            self.client.protocol.dataReceived(text(type="bye", to="nobody"))
        self.assertLess(self.waiting(), WRITE_BUFFER_BYTES + 1000)
        self.assertEqual(dict(self.bench.board.clients), {})

    def test_what_waits_below_tls(self) -> None:
        """Without it an encrypted connection would be cut at an estimate, or the attribute be gone unnoticed."""
        socket = MemorySocket(self.clock)

        class Wrapper:
            transport = socket

        socket.write(b"x" * 1000)
        socket.write(b"x" * 100)
        self.assertEqual((waiting_bytes(socket), waiting_bytes(Wrapper())), (1100, 1100))
        socket.window = 300
        socket.protocol = self.client.protocol
        socket.doWrite()
        socket.write(b"x" * 10)
        self.assertEqual(waiting_bytes(socket), 810)
        self.assertIsNone(waiting_bytes(object()))


class GarbageTests(SignalingTestCase):
    """Bytes that make no sense, before and after the handshake."""

    def feed(self, source: random.Random, peer: Peer) -> None:
        """Some of everything, in pieces of any size."""
        data = b""
        for _ in range(source.randrange(1, 8)):
            payload = source.choice([HELLO, b"{", b"", source.randbytes(source.randrange(200)), b"\xff" * 130])
            data += source.choice(
                [
                    frame(
                        source.randrange(16),
                        payload,
                        fin=source.random() < 0.7,
                        mask=source.choice([b"abcd", b"abcd", b"abcd", None]),
                        rsv=source.choice([0, 0, 0, 0, 1, 4]),
                        size=source.choice([-1, -1, -1, -1, 0, 3, 70_000, 1 << 62]),
                    ),
                    frame(TEXT, HELLO),
                    source.randbytes(source.randrange(30)),
                ]
            )
        while data:
            cut = source.randrange(1, len(data) + 1)
            peer.gives(data[:cut])
            data = data[cut:]

    @settings(max_examples=100, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_after_the_handshake(self, source: random.Random) -> None:
        """Without it some order of frames could raise, or leave a connection that is never closed."""
        self.bench.exempt = source.random() < 0.5
        peer = self.peer().opens()
        for _ in range(6):
            self.feed(source, peer)
        if source.random() < 0.3:
            self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
            self.feed(source, peer)
        self.assertLessEqual(len(peer.protocol.text), MESSAGE_BYTES)
        self.assertLess(len(peer.protocol.data), 20)
        frames = peer.takes()
        self.assertNotIn(CLOSE, [opcode for opcode, _ in frames[:-1]])
        if peer.protocol.state != peer.protocol.STATE_OPEN:
            self.assertEqual(dict(self.bench.board.clients), {})
        self.bench.factory.expire(0.0)
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)
        self.assertEqual((self.bench.inside, dict(self.bench.factory.waiting)), ([], {}))

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_before_the_handshake(self, source: random.Random) -> None:
        """Without it bytes that are nearly a request could raise."""
        lines = [f"{name}: {value}" for name, value in HEAD.items()]
        head = bytearray("\r\n".join(["GET /signaling HTTP/1.1", *lines, "", ""]).encode())
        for _ in range(source.randrange(1, 6)):
            at = source.randrange(len(head))
            head[at : at + source.randrange(3)] = source.randbytes(source.randrange(3))
        peer = self.peer()
        peer.gives(bytes(head))
        self.feed(source, peer)
        self.assertRegex(bytes(peer.socket.out[:13]), rb"\A(HTTP/1\.1 [145]0?\d+ |\Z)")
        self.clock.advance(HANDSHAKE_TIMEOUT_S)
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertEqual((self.bench.inside, dict(self.bench.factory.waiting)), ([], {}))
