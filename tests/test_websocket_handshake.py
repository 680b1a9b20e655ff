"""The handshake of a WebSocket (RFC 6455 section 4), and bytes that make no sense before and after it."""

from __future__ import annotations

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kollator.signaling.messages import MESSAGE_BYTES, Close
from kollator.signaling.websocket import CLOSE_TIMEOUT_S, HEADER_BYTES
from tests.signaling_bench import (
    CLOSE,
    HANDSHAKE_TIMEOUT_S,
    HEAD,
    HELLO,
    TEXT,
    Peer,
    SignalingTestCase,
    frame,
    text,
)


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
