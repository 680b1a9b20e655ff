"""The plain handshake at the fast door: taken where it is one, and answered as Autobahn answers it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling.fastpath import FastSignalingFactory
from kollator.web.door import parse_head
from kollator.web.fastdoor import is_plain, plain_fields
from kollator.web.refusal import Refusal
from tests.signaling_bench import (
    HANDSHAKE_TIMEOUT_S,
    HEAD,
    HELLO,
    TEXT,
    MemorySocket,
    frame,
    text,
)
from tests.twins import REQUEST, Twin, TwinTests, handshake

FEW = settings(max_examples=40, deadline=None, database=None, derandomize=True)


class FieldTests(SynchronousTestCase):
    """The header fields of a plain head."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(
        st.sampled_from(["Host", "host", "ORIGIN", "X-Forwarded-For", "a_b-1"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12),
    ), min_size=1, max_size=6))
    def test_as_any_head(self, lines: list[tuple[str, str]]) -> None:
        """Without it limits and origins would be judged by other values than on the usual way."""
        head = "\r\n".join(["GET /signaling HTTP/1.1", *(f"{name}:{value}" for name, value in lines)]).encode()
        self.assertIsNotNone(is_plain(head))
        self.assertEqual(plain_fields(head), parse_head(head))


class HandshakeTests(TwinTests):
    """The door and the handshake."""

    def both(self, data: bytes, **state: Any) -> bool:
        """Gives it to both, in one piece and in two; returns whether the fast one took it as plain."""
        fast_one = False
        for pieces in ([data], [data[:20], data[20:]]):
            twins = self.twins()
            for bench in twins:
                for name, value in state.items():
                    setattr(bench, name, value)
                socket = bench.connect()
                entered: list[object] = []
                if isinstance(bench.factory, FastSignalingFactory):
                    begin = bench.factory.begin
                    bench.factory.begin = lambda *args, begin=begin, entered=entered: (  # type: ignore[method-assign]
                        entered.append(begin(*args)) or entered[-1]  # type: ignore[func-returns-value]
                    )
                for piece in pieces:
                    bench.give(socket, piece)
                fast_one = fast_one or any(entered)
            for bench in twins:
                bench.origins.clear()  # the fast path may ask twice
            self.assert_same(*twins, data)
            self.finish(*twins)
        return fast_one

    def test_plain(self) -> None:
        """Without it the handshakes of browsers and of the usual libraries would take the long way."""
        chrome = {"Origin": "https://front.example", "Cookie": "a=b", "Sec-WebSocket-Extensions":
                  "permessage-deflate; client_max_window_bits", "Connection": "Upgrade"}
        firefox = {"Origin": "http://192.0.2.1:8080", "Sec-WebSocket-Extensions": "permessage-deflate",
                   "Accept": "*/*", "Sec-WebSocket-Protocol": "kollator.v1", "Upgrade": "WebSocket"}
        usual: list[dict[str, Any]] = [{}, chrome, firefox, {"Host": "[2001:db8::1]:8080"}, {"Host": "front"}]
        for changes in usual:
            self.assertTrue(self.both(handshake(**changes)), changes)

    def test_frames_behind_the_request(self) -> None:
        """Without it a client that does not wait for the answer would lose its first message."""
        self.assertTrue(self.both(handshake() + frame(TEXT, HELLO) + text(type="assign")[:9]))

    def test_in_two_pieces(self) -> None:
        """Without it what stood in the first piece, such as a proxy's word on the address, would not count."""
        twins = self.twins()
        for bench in twins:
            socket = bench.connect()
            bench.give(socket, REQUEST.encode() + b"\r\nX-Forwarded-For: 192.0.2.9\r\nX: ")
            bench.give(socket, handshake())
            self.assertEqual(socket.protocol.address, "192.0.2.9")
        self.assert_same(*twins, "two pieces")

    def test_behind_a_proxy(self) -> None:
        """Without it the address of the proxy would pass for the client's, when the request comes late or at once."""
        for wait_s in (0.0, HANDSHAKE_TIMEOUT_S - 0.5):
            for bench in self.twins():
                socket = MemorySocket(bench.clock)
                peer: Any = socket.getPeer()
                wrapper: Any = HAProxyWrappingFactory(bench.door).buildProtocol(peer)
                socket.protocol = wrapper
                wrapper.makeConnection(socket)
                bench.give(socket, b"PROXY TCP4 203.0.113.7 192.0.2.1 50000 8080\r\n")
                bench.clock.advance(wait_s)
                bench.give(socket, handshake())
                self.assertTrue(bytes(socket.out).startswith(b"HTTP/1.1 101 "), socket.out)
                self.assertEqual(wrapper.wrappedProtocol.address, "203.0.113.7")

    def test_refused(self) -> None:
        """Without it the limits would not hold for plain handshakes."""
        refusal = Refusal(429, "rate-limited", "too many")
        for state in ({"refusal": refusal}, {"full": "total"}, {"origin_permitted": False}):
            self.assertTrue(self.both(handshake(Origin="http://a.example"), **state), state)

    def test_odd(self) -> None:
        """Without it a handshake that Autobahn refuses, or reads in another way, might be let in."""
        odd: tuple[dict[str, Any], ...] = (
            {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ="}, {"Sec-WebSocket-Key": None},
            {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="},
            {"Sec-WebSocket-Version": "12"}, {"Sec-WebSocket-Version": "13, 13"}, {"Sec-WebSocket-Version": None},
            {"Host": None}, {"Host": ""}, {"Host": "front:x"}, {"Host": "front:99999"}, {"Host": "a, b"},
            {"Upgrade": "websocket, h2c"}, {"Upgrade": "xwebsocket"}, {"Connection": "close"}, {"Connection": None},
            {"Connection": "Upgrade, close"}, {"Origin": "null"}, {"Origin": "file://"}, {"Origin": "x"},
            {"Origin": "http://a:99999"}, {"Sec-WebSocket-Protocol": "other"},
            {"Sec-WebSocket-Protocol": "other, kollator.v1"}, {"Sec-WebSocket-Protocol": "kollator.v1, kollator.v1"},
            {"Sec-WebSocket-Extensions": "a, b"}, {"Sec-WebSocket-Extensions": "; ="}, {"X": "a\x85b"}, {"X": "a\tb"},
            {"X y": "z"}, {"X": "y" * 5000}, {"X": "y" * 20_000},
        )
        for changes in odd:
            self.assertFalse(self.both(handshake(**changes)), changes)
        for request in ("GET /signaling?a=b HTTP/1.1", "GET /signaling HTTP/1.0", "POST /signaling HTTP/1.1",
                        "GET /signaling/ HTTP/1.1", "GET  /signaling HTTP/1.1", "GET /signaling#a HTTP/1.1",
                        "get /signaling HTTP/1.1", "GET /else HTTP/1.1"):
            self.assertFalse(self.both(handshake(request)), request)

    def test_other_requests(self) -> None:
        """Without it pages would not be served on the shared port."""
        self.assertFalse(self.both(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
        self.assertFalse(self.both(b"GET /signaling HTTP/1.1\r\nHost: a\r\n\r\n"))

    def test_judge_that_fails(self) -> None:
        """Without it a mistake of ours would end in another way than it does on the plain path."""
        fast = Twin(True)

        def broken(*args: object) -> str:
            raise ZeroDivisionError

        fast.factory.address_of = broken
        socket = fast.connect()
        fast.give(socket, handshake())
        self.assertTrue(bytes(socket.out).startswith(b"HTTP/1.1 500 "), socket.out)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.finish(fast, fast)

    @FEW
    @given(st.lists(st.sampled_from([
        ("Host", "a"), ("Host", "a:1"), ("Upgrade", "websocket"), ("Upgrade", "WEBSOCKET"), ("Connection", "Upgrade"),
        ("Connection", "keep-alive, Upgrade"), ("Sec-WebSocket-Key", HEAD["Sec-WebSocket-Key"]),
        ("Sec-WebSocket-Version", "13"), ("Origin", "http://a"), ("Origin", "https://[::1]:44"), ("X", ""),
        ("Sec-WebSocket-Protocol", "kollator.v1"), ("Sec-WebSocket-Extensions", "permessage-deflate; a=1"),
        ("X-Forwarded-For", "192.0.2.77"), ("X_Y", "z"), ("Content-Length", "5"), ("X", " \t "), ("X", "\xfc"),
    ]), max_size=9), st.lists(st.sampled_from(["", " ", "  "]), min_size=9, max_size=9))
    def test_any_headers(self, fields: list[tuple[str, str]], spaces: list[str]) -> None:
        """Without it some order or repetition of headers would be read differently on the two paths."""
        fields = [*HEAD.items()][: 5 - len(fields) // 2] + fields
        lines = [f"{name}:{spaces[at % 9]}{value}{spaces[at % 7]}" for at, (name, value) in enumerate(fields)]
        self.both("\r\n".join([REQUEST, *lines, "", ""]).encode("latin-1"))
