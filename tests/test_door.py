"""The door: what an accepted connection is, told from its first bytes, however they come."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import HTTPChannel

from kollator.signaling.protocol import SignalingProtocol
from kollator.web.door import HEADER_BYTES, Door, DoorFactory, is_upgrade, parse_head
from kollator.web.refusal import LINGER_BYTES, LINGER_S
from tests.fronts import FrontTestCase
from tests.wires import PEER, UPGRADE, Wire, read_answers, request

UPGRADE_REQUEST = request("GET", "/signaling", UPGRADE)


def handshake_with(*lines: bytes) -> bytes:
    """An upgrade request with further header lines."""
    return UPGRADE_REQUEST[:-2] + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


class HeadTests(SynchronousTestCase):
    """The header of an upgrade request."""

    def test_fields(self) -> None:
        """The guard looks fields up by their names in lower case, and lists may come in several lines."""
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for:2.2.2.2 \r\nEmpty:"
        self.assertEqual(parse_head(head), {"host": "a", "x-forwarded-for": "1.1.1.1, 2.2.2.2", "empty": ""})

    def test_no_fields(self) -> None:
        """A line that is no field must not be read as one: folded lines and blanks before the colon hide things."""
        for line in (b"nonsense", b": x", b" folded: x", b"a : x", b"\tb: x"):
            self.assertIsNone(parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + line), line)

    def test_upgrade(self) -> None:
        """Clients write the name of the protocol as they like."""
        self.assertTrue(is_upgrade({"upgrade": "WebSocket"}))
        self.assertTrue(is_upgrade({"upgrade": "h2c, websocket"}))
        self.assertFalse(is_upgrade({"upgrade": "h2c"}))
        self.assertFalse(is_upgrade({}))


class ThroughTests(FrontTestCase):
    """Connections that are let through."""

    def test_upgrade(self) -> None:
        """A WebSocket is Autobahn's from its first byte, with nothing of HTTP left around it."""
        wire = self.front.connect().send(UPGRADE_REQUEST)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        self.assertIsInstance(wire.protocol, SignalingProtocol)

    def test_upgrade_with_query(self) -> None:
        """A query does not hide the path."""
        wire = self.front.connect().send(request("GET", "/signaling?room=1", UPGRADE))
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))

    def test_byte_by_byte(self) -> None:
        """TCP may cut a request anywhere."""
        wire = self.front.connect()
        for position in range(len(UPGRADE_REQUEST)):
            self.assertEqual(wire.taken(), b"")
            wire.send(UPGRADE_REQUEST[position : position + 1])
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        wire = self.front.connect()
        for byte in request("GET", "/health/live"):
            wire.send(bytes([byte]))
        self.assertEqual(read_answers(wire.taken())[0].status, 200)

    def test_plain_request(self) -> None:
        """All that is no upgrade is twisted.web's at once."""
        for method, target, status in (
            ("GET", "/health/live", 200),
            ("GET", "/signalin", 404),
            ("GET", "/signalings", 404),
            ("GET", "/signaling/", 404),
            ("GET", "/signaling", 426),
            ("GET", "/signaling?x=1", 426),
            ("POST", "/signaling", 405),
            ("get", "/health/live", 405),
            ("G", "/", 405),
        ):
            answer = self.front.ask(method, target)
            self.assertEqual(answer.status, status, (method, target))

    def test_upgrade_elsewhere(self) -> None:
        """A WebSocket that is wanted where none is gets the answer of that path."""
        for method, target, status in (
            ("GET", "/", 200),
            ("GET", "/nothing", 404),
            ("POST", "/signaling", 405),
            ("HEAD", "/signaling", 426),
            ("GET", "/signaling/x", 404),
        ):
            answer = self.front.ask(method, target, UPGRADE)
            self.assertEqual(answer.status, status, (method, target))

    def test_absolute_target(self) -> None:
        """A proxy may write the whole URL (RFC 9112 section 3.2.2), also for a WebSocket."""
        wire = self.front.connect().send(request("GET", "http://front.example/signaling", UPGRADE))
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        self.assertIsInstance(wire.protocol, SignalingProtocol)
        answer = self.front.ask("GET", "HTTP://other.example/health/live")
        self.assertEqual(answer.status, 200)

    def test_empty_line_first(self) -> None:
        """An empty line before a request is overlooked (RFC 9112 section 2.2), also before an upgrade."""
        wire = self.front.connect().send(b"\r\n" + UPGRADE_REQUEST)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))

    def test_frames_behind_the_request(self) -> None:
        """What an eager client sends right behind its handshake is not lost."""
        close = b"\x88\x82\0\0\0\0\x03\xe8"
        for wire in (self.front.connect(), self.front.connect(factory=self.front.site)):
            wire.send(UPGRADE_REQUEST + close)
            self.assertTrue(wire.taken().endswith(b"\r\n\r\n\x88\x02\x03\xe8"))
            self.assertTrue(wire.lost)

    def test_two_paths(self) -> None:
        """A second WebSocket path, even one that begins like the first, goes to its own factory."""
        echo = WrappingFactory(self.front.site)
        self.front.door.open(
            site=self.front.site,
            upgrades={b"/sig": echo, b"/signaling": self.front.signaling},
            admission=lambda peer, fields: None,
        )
        wire = self.front.connect().send(UPGRADE_REQUEST)
        self.assertIsInstance(wire.protocol, SignalingProtocol)
        wire = self.front.connect().send(request("GET", "/sig", UPGRADE))
        self.assertIsInstance(wire.protocol, ProtocolWrapper)


class RefusalTests(FrontTestCase):
    """Connections that are not let through."""

    environ: ClassVar = {"CONNECTION_RATE_PER_IP": "1", "HEADER_TIMEOUT": "10"}

    def assert_refused(self, wire: Wire, status: int, code: str) -> None:
        """The answer came, the connection is half closed, and ends with the peer's half."""
        (answer,) = read_answers(wire.taken())
        self.assert_error(answer, status, code)
        self.assertEqual(answer.header("Connection"), "close")
        self.assertEqual((wire.half_closed, wire.lost), (True, False))
        wire.send(b"what was under way\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        self.assertEqual((wire.taken(), wire.lost), (b"", False))

    def test_rate(self) -> None:
        """Who opens connections too fast is told when to come back; others are not affected."""
        for _ in range(5):
            self.assertTrue(self.front.connect().send(UPGRADE_REQUEST).taken().startswith(b"HTTP/1.1 101 "))
        wire = self.front.connect().send(UPGRADE_REQUEST)
        (answer,) = read_answers(wire.value())
        self.assertEqual(answer.header("Retry-After"), "1")
        self.assert_refused(wire, 429, "rate-limited")
        other = self.front.connect("198.51.100.1").send(UPGRADE_REQUEST)
        self.assertTrue(other.taken().startswith(b"HTTP/1.1 101 "))
        self.assertEqual(self.front.counters.refused["rate"], 1)
        self.front.advance(1.0)
        self.assertTrue(self.front.connect().send(UPGRADE_REQUEST).taken().startswith(b"HTTP/1.1 101 "))

    def test_rate_of_an_ipv6_network(self) -> None:
        """One host has a whole /64 of addresses: a limit for each of them would be none."""
        for number in range(5):
            self.front.connect(f"2001:db8::{number:x}").send(UPGRADE_REQUEST)
        self.assert_refused(self.front.connect("2001:db8::99").send(UPGRADE_REQUEST), 429, "rate-limited")

    def test_draining(self) -> None:
        """A front that is about to stop sends newcomers to another one."""
        self.front.drain.draining = True
        self.assert_refused(self.front.connect().send(UPGRADE_REQUEST), 503, "draining")
        self.assertEqual(self.front.counters.refused["draining"], 1)

    def test_header_too_large(self) -> None:
        """A header without end must not fill the memory, whether it comes whole or in pieces."""
        filler = b"X-Filler: " + b"x" * HEADER_BYTES
        self.assert_refused(self.front.connect().send(handshake_with(filler)), 431, "too-large")
        wire = self.front.connect().send(UPGRADE_REQUEST[:-2])
        sent = 0
        while not wire.value():
            wire.send(b"x" * 1000)
            sent += 1000
        self.assertLess(sent, HEADER_BYTES + 2000)
        self.assert_refused(wire, 431, "too-large")
        self.assertEqual(self.front.counters.refused["header"], 2)

    def test_largest_header(self) -> None:
        """A header of just the limit is let through."""
        filler = b"X-Filler: " + b"x" * (HEADER_BYTES - len(UPGRADE_REQUEST) + 4 - len(b"X-Filler: \r\n"))
        self.assertEqual(len(handshake_with(filler)), HEADER_BYTES + 4)
        wire = self.front.connect().send(handshake_with(filler))
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))

    def test_no_header(self) -> None:
        """A line that is no field is refused before anybody else has to make sense of it."""
        self.assert_refused(self.front.connect().send(handshake_with(b"nonsense")), 400, "bad-request")

    def test_slow_header(self) -> None:
        """A byte now and then must not hold a connection open."""
        wire = self.front.connect().send(b"GET /signaling HTTP/1.1\r\n")
        for _ in range(9):
            self.front.advance(1.0)
            wire.send(b"x")
            self.assertEqual(wire.value(), b"")
        self.front.advance(1.0)
        self.assert_refused(wire, 408, "too-slow")

    def test_silence(self) -> None:
        """A connection that says nothing is dropped without a word."""
        wire = self.front.connect()
        self.front.advance(9.5)
        self.assertFalse(wire.lost)
        self.front.advance(0.5)
        self.assertEqual((wire.lost, wire.taken()), (True, b""))

    def test_linger_ends(self) -> None:
        """A refused peer that neither leaves nor stops sending is cut in the end."""
        wire = self.front.connect().send(handshake_with(b"nonsense"))
        self.front.advance(LINGER_S - 0.5)
        self.assertFalse(wire.lost)
        self.front.advance(0.5)
        self.assertTrue(wire.lost)
        wire = self.front.connect().send(handshake_with(b"nonsense"))
        megabyte = bytes(1024 * 1024)
        for _ in range(LINGER_BYTES // len(megabyte)):
            wire.send(megabyte)
        self.assertFalse(wire.lost)
        wire.send(b"x")
        self.assertTrue(wire.lost)

    def test_lost_at_every_stage(self) -> None:
        """A peer that vanishes leaves nothing behind: no call to come, no count."""
        front = self.front
        for sent in (UPGRADE_REQUEST, handshake_with(b"nonsense"), request("POST", "/bootstrap", body=b"{}")):
            for length in range(0, len(sent) + 1, 7):
                front.connect().send(sent[:length]).hang_up()
                self.assertEqual((front.clock.getDelayedCalls(), front.signaling.getConnectionCount()), ([], 0))


class HandOverTests(FrontTestCase):
    """Transports of several kinds, all of which must come to serve the next protocol."""

    def test_wrapped_transport(self) -> None:
        """Under TLS and the PROXY protocol the connection belongs to a wrapper."""
        wire = self.front.connect(factory=WrappingFactory(self.front.door))
        wrapper = wire.protocol
        self.assertIsInstance(wrapper.wrappedProtocol, Door)
        wire.send(request("GET", "/health/live"))
        self.assertIsInstance(wrapper.wrappedProtocol, HTTPChannel)
        self.assertEqual(read_answers(wire.taken())[0].status, 200)
        wire.send(UPGRADE_REQUEST)
        self.assertIsInstance(wrapper.wrappedProtocol, SignalingProtocol)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        wire.hang_up()
        self.assertEqual(self.front.signaling.getConnectionCount(), 0)

    def test_transport_without_a_slot(self) -> None:
        """A transport that cannot be given another protocol is served all the same, to the end."""
        door: Any = self.front.door

        class Keeper(Protocol):
            """Holds the door where the door does not look."""

            def connectionMade(self) -> None:
                self.kept = door.buildProtocol(None)
                self.kept.makeConnection(self.transport)

            def dataReceived(self, data: bytes) -> None:
                self.kept.dataReceived(data)

            def connectionLost(self, reason: Any = None) -> None:
                self.kept.connectionLost(reason)

        keepers = Factory.forProtocol(Keeper)
        wire = self.front.connect(factory=keepers).send(UPGRADE_REQUEST)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        self.assertEqual(self.front.signaling.getConnectionCount(), 1)
        wire.hang_up()
        self.assertEqual(self.front.signaling.getConnectionCount(), 0)
        wire = self.front.connect(factory=keepers).send(request("GET", "/health/live"))
        self.assertEqual(read_answers(wire.taken())[0].status, 200)
        wire.send(UPGRADE_REQUEST)
        self.assertTrue(wire.taken().startswith(b"HTTP/1.1 101 "))
        wire.hang_up()
        self.assertEqual(self.front.signaling.getConnectionCount(), 0)

    def test_closed_door(self) -> None:
        """Before the front is ready nobody is let in, and nothing breaks."""
        door = DoorFactory(clock=self.front.clock, header_timeout_s=10)
        self.assertTrue(self.front.connect(factory=door).lost)
        door.doStart()
        door.doStop()

    def test_what_is_behind_begins_and_ends(self) -> None:
        """What is behind the doors is started with them and stopped after the last endpoint is closed."""
        noted: list[str] = []

        class Behind:
            def doStart(self) -> None:
                noted.append("start")

            def doStop(self) -> None:
                noted.append("stop")

        door = DoorFactory(clock=self.front.clock, header_timeout_s=10)
        door.open(site=Behind(), upgrades={b"/a": Behind()}, admission=lambda peer, fields: None)
        door.doStart()
        door.doStart()
        door.doStop()
        self.assertEqual(noted, ["start"] * 2)
        door.doStop()
        self.assertEqual(noted, ["start"] * 2 + ["stop"] * 2)


class AdversaryTests(FrontTestCase):
    """Any bytes at all."""

    environ: ClassVar = {"TRUSTED_PROXIES": f"{PEER}/32", "CONNECTION_RATE_PER_IP": "1000"}

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.sampled_from(
                    [b"GET ", b"/signaling", b" HTTP/1.1\r\n", b"Upgrade: websocket\r\n", b"\r\n", b"\r\n\r\n", b":",
                     b"Host: x\r\n", b"Connection: upgrade\r\n", b"X-Forwarded-For: 1.1.1.1\r\n", b"?", UPGRADE_REQUEST]
                ),
                st.binary(max_size=40),
            ),
            max_size=12,
        )
    )
    def test_any_bytes(self, pieces: list[bytes]) -> None:
        """Nothing that comes in raises, and nothing is left when it is over."""
        wire = self.front.connect()
        for piece in pieces:
            wire.send(piece)
        self.front.advance(20.0)
        wire.hang_up()
        self.assertEqual((self.front.clock.getDelayedCalls(), self.flushLoggedErrors()), ([], []))
