"""The HTTP side of a connection: bounds, time-outs, pipelining, odd requests, and the way to a WebSocket."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory, Protocol

from kollator.signaling.protocol import SignalingProtocol
from kollator.web.answers import BODY_BYTES
from kollator.web.door import DoorFactory
from kollator.web.refusal import LINGER_S
from kollator.web.resources import resource_tree
from kollator.web.site import BODY_S, IDLE_S, FrontSite, upgrade_to
from kollator.web.turns import HOLD_S
from tests.fronts import ASSETS, FrontTestCase
from tests.wires import PEER, UPGRADE, Answer, Wire, read_answers, request

LIVE = request("GET", "/health/live")


def post(body: bytes, **headers: str) -> bytes:
    """A bootstrap."""
    return request("POST", "/bootstrap", headers, body)


def chunked(*chunks: bytes) -> bytes:
    """A bootstrap whose body comes in chunks, of which the last is not the end."""
    return request("POST", "/bootstrap", {"Transfer-Encoding": "chunked"}) + b"".join(
        b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks
    )


class HttpTestCase(FrontTestCase):
    """With answers that end a connection."""

    def last_word(self, wire: Wire, status: int, code: str) -> Answer:
        """The answer, after which the front says that it has finished, and listens on until the peer has."""
        (answer,) = read_answers(wire.taken())
        self.assert_error(answer, status, code)
        self.assertEqual(answer.header("Connection"), "close")
        self.assertEqual((wire.half_closed, wire.lost), (True, False))
        wire.send(LIVE)
        self.assertEqual(wire.taken(), b"")
        return answer


class BodyTests(HttpTestCase):
    """Request bodies, up to the limit and beyond."""

    def test_limit(self) -> None:
        """64 KiB are read, however they come."""
        body = b"{}" + b" " * (BODY_BYTES - 2)
        for sent in (post(body), chunked(body) + b"0\r\n\r\n", chunked(body[:9], body[9:]) + b"0\r\n\r\n"):
            wire = self.front.connect()
            for start in range(0, len(sent), 9999):
                wire.send(sent[start : start + 9999])
            self.assert_error(read_answers(wire.taken())[0], 503, "no-workers")
            self.assertFalse(wire.half_closed)

    def test_announced_too_large(self) -> None:
        """A body that is announced as too large is refused before it comes, and the answer survives it."""
        for length in (BODY_BYTES + 1, 10**10, 10**5000):
            digits = b"1" + b"0" * 5000 if length > 10**100 else b"%d" % length
            wire = self.front.connect().send(b"POST /bootstrap HTTP/1.1\r\nContent-Length: " + digits + b"\r\n\r\n")
            self.last_word(wire, 413, "too-large")
            for _ in range(20):
                wire.send(bytes(65536))
            self.assertEqual((wire.taken(), wire.lost), (b"", False))
            wire.hang_up()
        self.assertEqual(self.front.counters.responses, {("other", "413"): 3})

    def test_not_asked_for(self) -> None:
        """Who asks first (Expect: 100-continue, as curl does) is spared the sending."""
        head = b"POST /bootstrap HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        self.last_word(self.front.connect().send(head % (BODY_BYTES + 1)), 413, "too-large")
        wire = self.front.connect().send(head % 2)
        self.assertEqual(wire.taken(), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assert_error(read_answers(wire.send(b"{}").taken())[0], 503, "no-workers")

    def test_chunks_too_large(self) -> None:
        """A body that grows without end is refused at the limit, and nothing of it is kept."""
        wire = self.front.connect().send(chunked(bytes(BODY_BYTES)))
        self.assertEqual(wire.taken(), b"")
        self.last_word(wire.send(b"1\r\nx\r\n0\r\n\r\n"), 413, "too-large")
        wire = self.front.connect().send(chunked(bytes(BODY_BYTES + 1)) + b"0\r\n\r\n" + LIVE)
        self.last_word(wire, 413, "too-large")

    def test_malformed_chunks(self) -> None:
        """What is no chunk is answered, once."""
        for chunks in (b"x\r\n", b"-1\r\n", b"2\r\nabcd\r\n", b"1;" + b"x" * 2000, b"0\r\n" + b"x" * 70000):
            wire = self.front.connect().send(chunked() + chunks)
            self.last_word(wire, 400, "bad-request")

    def test_both_lengths(self) -> None:
        """Two ways to tell a body's length are how requests are smuggled past a proxy (RFC 9112 section 6.1)."""
        for first, second in (
            ("Content-Length: 2", "Transfer-Encoding: chunked"),
            ("Transfer-Encoding: chunked", "Content-Length: 2"),
            ("Content-Length: 2", "Content-Length: 3"),
        ):
            wire = self.front.connect().send(f"POST /bootstrap HTTP/1.1\r\n{first}\r\n{second}\r\n\r\n{{}}".encode())
            self.last_word(wire, 400, "bad-request")

    def test_forms_are_bodies(self) -> None:
        """What curl sends by default is called a form and is JSON; a real form is no reason to fail."""
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        self.assert_error(self.front.ask("POST", "/bootstrap", form, b'{"region":""}'), 503, "no-workers")
        self.assert_error(self.front.ask("POST", "/bootstrap", form, b"region=eu"), 400, "bad-request")
        parts = {"Content-Type": "multipart/form-data; boundary=x"}
        self.assert_error(self.front.ask("POST", "/bootstrap", parts, b'{"region":""}'), 503, "no-workers")


class HeaderTests(HttpTestCase):
    """Headers that are too large, or none."""

    def test_no_http(self) -> None:
        """What is no request is told so in the contract's form."""
        for sent in (
            b"GET\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"G(T / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
            b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: abc\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"GET health HTTP/1.1\r\n\r\n",
            b"GET * HTTP/1.1\r\n\r\n",
            b"CONNECT other.example:443 HTTP/1.1\r\n\r\n",
            b"GET ftp://front.example/health HTTP/1.1\r\n\r\n",
        ):
            self.last_word(self.front.connect().send(sent), 400, "bad-request")

    def test_header_too_large(self) -> None:
        """A header is 16 KiB at most, in lines, in all and in their number."""
        line = b"X: " + b"x" * 990 + b"\r\n"
        for sent in (
            b"GET / HTTP/1.1\r\n" + line * 17 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 501 + b"\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"x" * 20000,
            b"GET / HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
        ):
            self.last_word(self.front.connect().send(sent), 431, "too-large")
        self.last_word(self.front.connect().send(b"GET /" + b"x" * 20000), 414, "too-large")
        wire = self.front.connect().send(b"GET / HTTP/1.1\r\n" + line * 15 + b"\r\n")
        self.assertEqual(read_answers(wire.taken())[0].status, 200)

    def test_answer_on_a_kept_connection(self) -> None:
        """Answers that were given before are not touched by what comes then."""
        wire = self.front.connect().send(LIVE + b"nonsense\r\n\r\n" + LIVE)
        self.front.clock.advance(0)
        statuses = [answer.status for answer in read_answers(wire.taken())]
        self.assertEqual(statuses, [200, 400])


class TargetTests(FrontTestCase):
    """The forms of a request's target (RFC 9112 section 3.2)."""

    def test_absolute(self) -> None:
        """A whole URL is the same request, and its host the host that was meant."""
        self.front.worker()
        for target, host in (
            ("http://a.example/bootstrap", "a.example"),
            ("HTTP://A.example:81/bootstrap?x=1", "a.example:81"),
            ("https://[2001:db8::1]:8443/bootstrap", "[2001:db8::1]:8443"),
        ):
            answer = self.front.ask("POST", target)
            self.assertEqual(answer.json()["signaling"], f"ws://{host}/signaling", target)
        self.assertEqual(self.front.ask("GET", "http://a.example").status, 200)
        self.assertEqual(self.front.ask("GET", "http://a.example?x=1").status, 200)
        self.assertEqual(self.front.ask("GET", "http://a.example/nothing").status, 404)

    def test_asterisk(self) -> None:
        """OPTIONS * asks whether anybody is there."""
        answer = self.front.ask("OPTIONS", "*")
        self.assertEqual((answer.status, answer.header("Server")), (204, "kollator-front"))

    def test_encoded_paths(self) -> None:
        """A path is compared after decoding; an encoded slash is no slash."""
        self.assertEqual(self.front.ask("GET", "/%68ealth/live").status, 200)
        for path in ("/health%2Flive", "/%00", "/%ff", "/health/", "//health", "/health/live/", "/static/",
                     "/static/../health", "/static/..%2findex.html", "/static/%2e%2e/index.html", "/.", "/%"):
            answer = self.front.ask("GET", path)
            self.assertEqual((answer.status, answer.code), (404, "not-found"), path)


class KeptTests(HttpTestCase):
    """Several requests on one connection."""

    environ: ClassVar = {"HEADER_TIMEOUT": "10"}

    def test_pipelined(self) -> None:
        """Requests that were sent ahead are answered in order, bodies among them."""
        sent = LIVE + post(b"{}") + request("HEAD", "/health/live") + request("GET", "/nothing") + LIVE
        for size in (1, 7, 50, len(sent)):
            wire = self.front.connect()
            for start in range(0, len(sent), size):
                wire.send(sent[start : start + size])
            self.front.clock.advance(0)
            answers = read_answers(wire.taken(), ["GET", "POST", "HEAD"])
            self.assertEqual([answer.status for answer in answers], [200, 503, 200, 404, 200], size)

    def test_connection_close(self) -> None:
        """Who wants one answer gets one."""
        wire = self.front.connect().send(request("GET", "/health/live", {"Connection": "close"}) + LIVE)
        self.assertEqual([answer.status for answer in read_answers(wire.taken())], [200])
        self.assertTrue(wire.lost)

    def test_http_1_0(self) -> None:
        """Old clients read until the end of the connection, and may send no Host."""
        wire = self.front.connect().send(b"GET /health/live HTTP/1.0\r\n\r\n")
        self.assertTrue(wire.lost)
        self.assertTrue(wire.value().startswith(b"HTTP/1.0 200 OK\r\n"))
        (answer,) = read_answers(wire.taken())
        self.assertEqual(answer.json(), {"status": "live"})

    def test_idle(self) -> None:
        """A connection that is kept is closed after a minute without a request, and without a word."""
        wire = self.front.connect().send(LIVE)
        wire.clear()
        self.front.advance(IDLE_S - 1)
        self.assertFalse(wire.lost)
        self.front.advance(1)
        self.assertEqual((wire.lost, wire.taken()), (True, b""))

    def test_requests_put_the_end_off(self) -> None:
        """A connection that is used stays."""
        wire = self.front.connect()
        for _ in range(5):
            self.assertEqual(read_answers(wire.send(LIVE).taken())[0].status, 200)
            self.front.advance(IDLE_S - 1)
        self.assertFalse(wire.lost)

    def test_slow_header(self) -> None:
        """A header that comes byte by byte has the time of HEADER_TIMEOUT and no more, first request or later."""
        for before in (b"", LIVE):
            wire = self.front.connect().send(before + b"POST /bootstrap HT")
            self.front.clock.advance(0)
            wire.clear()
            for _ in range(19):
                self.front.advance(0.5)
                wire.send(b"T")
            self.assertEqual(wire.taken(), b"")
            self.front.advance(0.5)
            self.last_word(wire, 408, "too-slow")

    def test_slow_body(self) -> None:
        """So has a body, which the idle time-out alone would let go on for months."""
        wire = self.front.connect().send(b"POST /bootstrap HTTP/1.1\r\nContent-Length: 60000\r\n\r\n")
        for _ in range(int(BODY_S) - 1):
            self.front.advance(1.0)
            wire.send(b" ")
        self.assertEqual(wire.taken(), b"")
        self.front.advance(1.0)
        self.last_word(wire, 408, "too-slow")
        self.front.advance(LINGER_S)
        self.assertTrue(wire.lost)

    def test_lost_anywhere(self) -> None:
        """A peer may vanish in the midst of anything."""
        for sent in (post(b"{}"), chunked(b"{}")):
            for length in range(len(sent)):
                wire = self.front.connect().send(LIVE + sent[:length])
                wire.hang_up()
        self.front.advance(0)
        self.assertEqual(self.front.clock.getDelayedCalls(), [])


class UpgradeTests(HttpTestCase):
    """A WebSocket on a connection that served requests before, as proxies that keep connections do it."""

    environ: ClassVar = {"CONNECTION_RATE_PER_IP": "1"}

    def test_upgrade(self) -> None:
        """It is Autobahn's from then on, and its end is the connection's."""
        wire = self.front.connect().send(LIVE)
        wire.clear()
        wire.send(request("GET", "/signaling", UPGRADE))
        self.assertTrue(wire.value().startswith(b"HTTP/1.1 101 "))
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", wire.taken())
        self.assertIsInstance(wire.protocol, SignalingProtocol)
        self.assertEqual(wire.protocol.address, PEER)
        text = b'{"type":"hello","role":"client"}'
        wire.send(b"\x81" + bytes([0x80 | len(text)]) + bytes(4) + text)
        self.assertIn(b'"type":"welcome"', wire.taken())
        self.assertEqual(len(self.front.switchboard.clients), 1)
        wire.hang_up()
        self.assertEqual(len(self.front.switchboard.clients), 0)

    def test_no_time_out_is_left(self) -> None:
        """The time-outs of HTTP must not end a WebSocket."""
        wire = self.front.connect().send(LIVE + request("GET", "/signaling", UPGRADE))
        self.front.advance(10 * IDLE_S)
        self.assertFalse(wire.lost)

    def test_refused(self) -> None:
        """A refusal is an answer like any other: the connection goes on."""
        self.front.drain.draining = True
        wire = self.front.connect().send(LIVE)
        wire.clear()
        wire.send(request("GET", "/signaling", UPGRADE))
        (answer,) = read_answers(wire.taken())
        self.assert_error(answer, 503, "draining")
        self.assertEqual(answer.header("Retry-After"), "1")
        self.front.drain.draining = False
        for _ in range(5):
            self.front.connect().send(request("GET", "/signaling", UPGRADE))
        (answer,) = read_answers(wire.send(request("GET", "/signaling", UPGRADE)).taken())
        self.assert_error(answer, 429, "rate-limited")
        wire.send(LIVE)
        self.front.advance(HOLD_S)
        self.assertEqual(read_answers(wire.taken())[0].status, 200)

    def test_bad_handshake(self) -> None:
        """What Autobahn refuses is refused here too, and ends."""
        handshake = {**UPGRADE, "Sec-WebSocket-Version": "7"}
        wire = self.front.connect().send(LIVE)
        wire.clear()
        wire.send(request("GET", "/signaling", handshake))
        self.assertIn(wire.taken()[:12], (b"HTTP/1.1 400", b"HTTP/1.1 426"))
        self.front.advance(10.0)
        self.assertTrue(wire.lost)

    def test_protocol_that_fails(self) -> None:
        """A mistake in what takes over ends that connection, with nothing of HTTP written into it."""

        def fail(data: bytes) -> None:
            raise ValueError("a mistake")

        class Failing(Protocol):
            dataReceived = staticmethod(fail)

        upgrade = upgrade_to(Factory.forProtocol(Failing), lambda peer, fields: None)
        site = FrontSite(resource_tree(self.front.views, ASSETS, {b"ws": upgrade}), self.front.clock)
        wire = self.front.connect(factory=site).send(request("GET", "/ws", UPGRADE))
        self.assertEqual((wire.lost, wire.taken()), (True, b""))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_factory_that_takes_no_more(self) -> None:
        """A factory may make no protocol: that is an answer too, and no broken connection."""

        class Full:
            def buildProtocol(self, addr: object) -> None:
                """Nobody."""

            def doStart(self) -> None:
                """Nothing to do."""

        upgrade = upgrade_to(Full(), lambda peer, fields: None)
        site = FrontSite(resource_tree(self.front.views, ASSETS, {b"ws": upgrade}), self.front.clock)
        wire = self.front.connect(factory=site).send(request("GET", "/ws", UPGRADE) + LIVE)
        self.front.clock.advance(0)
        answers = read_answers(wire.taken())
        self.assert_error(answers[0], 503, "busy")
        self.assertEqual(answers[1].status, 200)
        door = DoorFactory(clock=self.front.clock, header_timeout_s=10)
        door.open(site=site, upgrades={b"/ws": Full()}, admission=lambda peer, fields: None)
        self.assertTrue(self.front.connect(factory=door).send(request("GET", "/ws", UPGRADE)).lost)

    def test_body_before_the_frames(self) -> None:
        """What stands behind a handshake with a body is not lost either."""
        wire = self.front.connect().send(LIVE)
        wire.clear()
        wire.send(request("GET", "/signaling", UPGRADE, b"body") + b"\x88\x82\0\0\0\0\x03\xe8")
        self.assertTrue(wire.taken().endswith(b"\x88\x02\x03\xe8"))


class AdversaryTests(FrontTestCase):
    """Requests that are nearly right."""

    environ: ClassVar = {"TRUSTED_PROXIES": f"{PEER}/32", "CONNECTION_RATE_PER_IP": "1000"}

    pieces = st.one_of(
        st.sampled_from(
            [b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"/", b"/health", b"/bootstrap", b"/workers/assign?ip=", b"::1",
             b"/signaling", b"/static/kollator.js", b"http://a/", b"*", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n",
             b"\r\n\r\n", b"Host: a\r\n", b"Content-Length: 5\r\n", b"Content-Length: 70000\r\n", b"{}", b"0\r\n\r\n",
             b"Transfer-Encoding: chunked\r\n", b"10001\r\n", b"Expect: 100-continue\r\n", b"Origin: null\r\n",
             b"Upgrade: websocket\r\n", b"Connection: close\r\n", b'If-None-Match: "x", *\r\n', b"&region=%ff",
             b"X-Forwarded-For: ::1, x\r\n", b"Forwarded: for=\"[::1]\";host=a\r\n", b" x: folded\r\n", LIVE,
             post(b'{"region":"eu"}'), request("GET", "/signaling", UPGRADE)]
        ),
        st.binary(max_size=30),
    )

    @settings(max_examples=100, deadline=None)
    @given(st.lists(pieces, max_size=25), st.integers(1, 60))
    def test_any_requests(self, pieces: list[bytes], size: int) -> None:
        """Nothing raises, no answer is an internal error, and nothing is left when it is over."""
        sent = b"".join(pieces)
        wire = self.front.connect()
        for start in range(0, len(sent), size):
            wire.send(sent[start : start + size])
        self.assertNotIn(b" 500 ", wire.value())
        self.front.advance(60.0)
        wire.hang_up()
        self.assertEqual((self.front.clock.getDelayedCalls(), self.flushLoggedErrors()), ([], []))
