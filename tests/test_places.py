"""Plain connections are counted, from their first moment to their last, whatever becomes of them."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.places import Place, Places
from kollator.net.tls import Credentials
from kollator.web.door import ADDRESS_S
from kollator.web.refusal import LINGER_S
from kollator.web.site import IDLE_S
from tests.certificates import self_signed_pem, write_pair
from tests.fronts import Front, FrontTestCase
from tests.wires import PEER, UPGRADE, Wire, read_answers, request

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "10.0.0.1", "")
OTHER = "198.51.100.1"
V2_PREFIX = b"\r\n\r\n\x00\r\nQUIT\n"


def proxied(address: str) -> bytes:
    """A header of the PROXY protocol, version 1."""
    return f"PROXY TCP4 {address} 192.0.2.1 50000 80\r\n".encode()


def proxied_v2(address: str) -> bytes:
    """A header of the PROXY protocol, version 2."""
    packed = bytes(int(part) for part in address.split("."))
    return V2_PREFIX + b"\x21\x11" + struct.pack("!H4s4sHH", 12, packed, packed, 50000, 80)


class PlacesTests(SynchronousTestCase):
    """The counts themselves."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["take", "later", "name", "leave"]), st.integers(0, 30)), max_size=80))
    def test_never_over_a_limit(self, steps: list[tuple[str, int]]) -> None:
        """Without it some order of arrivals, names and ends would leak places, or give too many away."""
        told: list[tuple[str, str]] = []
        places = Places(6, 2, lambda address: address == "10.0.0.1", lambda *refusal: told.append(refusal))
        taken: list[tuple[Place, str | None]] = []

        def key(address: str) -> str:
            return "2001:db8::/64" if ":" in address else address

        for step, number in steps:
            address = ADDRESSES[number % len(ADDRESSES)]
            before = len(told)
            used = Counter(key(known) for _, known in taken if known is not None)
            room = len(taken) < 6 and (address == "10.0.0.1" or used[key(address)] < 2)
            if step in ("take", "later"):
                place = places.take(address if step == "take" else None)
                self.assertEqual(place is not None, room if step == "take" else len(taken) < 6)
                self.assertEqual(len(told) > before, place is None)
                if place is not None:
                    taken.append((place, address if step == "take" else None))
            elif taken:
                place, known = taken.pop(number % len(taken))
                if step == "leave":
                    place.leave()
                    place.leave()
                elif known is None:
                    named = place.named(address)
                    self.assertEqual(named, address == "10.0.0.1" or used[key(address)] < 2)
                    if named:
                        taken.append((place, address))
                    place_is_taken = place.taken
                    self.assertEqual(place_is_taken, named)
                else:
                    taken.append((place, known))
            self.assertEqual(places.taken, len(taken))
        for place, _ in taken:
            place.leave()
        self.assertEqual(places.taken, 0)

    def test_after_the_end(self) -> None:
        """Without it a place that was given back would be given back once more."""
        places = Places(2, 1)
        place = places.take(PEER)
        assert place is not None
        place.leave()
        self.assertTrue(place.named("192.0.2.2"))
        self.assertEqual((places.taken, place.taken), (0, False))


class PlacesTestCase(FrontTestCase):
    """A front with few places."""

    environ: ClassVar = {
        "HTTP_CONNECTIONS": "5", "HTTP_CONNECTIONS_PER_IP": "2", "MAX_CONNECTIONS": "3", "HEADER_TIMEOUT": "10",
        "RATE_LIMIT_EXEMPT": "127.0.0.0/8", "TRUSTED_PROXIES": "10.0.0.0/8",
    }

    def setUp(self) -> None:
        """The door counts."""
        super().setUp()
        self.open(self.front)

    def open(self, front: Front) -> None:
        """Opens the doors as the assembly does."""
        front.door.open(
            site=front.site, upgrades={b"/signaling": front.signaling}, admission=front.gate.admission(
                front.clock.seconds), places=front.gate.places)

    @property
    def taken(self) -> int:
        """How many places are."""
        return self.front.gate.places.taken

    def lost(self, *peers: str, factory: Any = None) -> list[bool]:
        """Which of new connections from there are closed at once."""
        return [self.front.connect(peer, factory=factory).lost for peer in peers]


class DoorTests(PlacesTestCase):
    """Connections at the door, and those that speak HTTP."""

    def test_per_address(self) -> None:
        """Without it one address could hold every place there is, with connections that say nothing."""
        self.assertEqual(self.lost(PEER, PEER, PEER, OTHER), [False, False, True, False])
        self.assertEqual(self.front.counters.refused["address"], 1)
        self.assertEqual(self.lost("2001:db8::1", "2001:db8::2", "2001:db8::3"), [False, False, True])

    def test_in_all(self) -> None:
        """Without it many addresses together could take every file descriptor."""
        self.assertEqual(self.lost(*[f"192.0.2.{number}" for number in range(6)]), [False] * 5 + [True])
        self.assertEqual(self.front.counters.refused["total"], 1)

    def test_spared(self) -> None:
        """Without it everybody behind one reverse proxy would share the places of one address."""
        for spared in ("127.0.0.1", "10.1.2.3"):
            self.assertEqual(self.lost(*[spared] * 6), [False] * 5 + [True])
            for wire in self.front.wires:
                wire.hang_up()

    def test_nothing_is_written(self) -> None:
        """Without it a flood would be answered, each answer at a cost."""
        self.lost(PEER, PEER)
        wire = self.front.connect()
        self.assertEqual((wire.lost, wire.value(), self.taken), (True, b"", 2))
        wire.protocol.dataReceived(request("GET", "/health/live"))
        self.assertEqual((wire.value(), self.taken), (b"", 2))

    def test_silence(self) -> None:
        """Without it a connection that says nothing would keep its place for ever."""
        self.lost(PEER, PEER)
        self.front.advance(10.0)
        self.assertEqual((self.taken, self.lost(PEER)), (0, [False]))

    def test_http(self) -> None:
        """Without it a connection would be free once it has said a word of HTTP."""
        wire = self.front.connect().send(request("GET", "/health/live"))
        self.assertEqual((read_answers(wire.taken())[0].status, self.taken), (200, 1))
        wire.send(request("GET", "/health/live"))
        self.assertEqual((read_answers(wire.taken())[0].status, self.taken), (200, 1))
        self.front.advance(IDLE_S)
        self.assertEqual((wire.lost, self.taken), (True, 0))

    def test_refused(self) -> None:
        """Without it those that are told to go, and do not, would not count."""
        for bad in (b"nonsense\r\n\r\n", request("GET", "/signaling", UPGRADE)[:-2] + b"nonsense\r\n\r\n"):
            wire = self.front.connect().send(bad)
            self.assertEqual((read_answers(wire.taken())[0].status, self.taken), (400, 1))
            self.front.advance(LINGER_S)
            self.assertEqual((wire.lost, self.taken), (True, 0))

    def test_websocket(self) -> None:
        """Without it a WebSocket would count twice, or not at all on its way from one count to the other."""
        first = self.front.connect().send(request("GET", "/signaling", UPGRADE))
        self.assertEqual((self.taken, self.front.gate._counts.total), (0, 1))
        second = self.front.connect(factory=None).send(request("GET", "/health/live")).send(
            request("GET", "/signaling", UPGRADE))
        self.assertEqual((self.taken, self.front.gate._counts.total), (0, 2))
        third = self.front.connect(OTHER).send(request("GET", "/signaling", UPGRADE))
        self.assertEqual((self.taken, self.front.gate._counts.total), (0, 3))
        beyond = self.front.connect("198.51.100.2").send(request("GET", "/signaling", UPGRADE))
        self.assertEqual((self.taken, self.front.gate._counts.total), (1, 3), "MAX_CONNECTIONS does not count it")
        for wire in (first, second, third, beyond):
            wire.hang_up()
        self.assertEqual((self.taken, self.front.gate._counts.total), (0, 0))

    def test_bad_handshake(self) -> None:
        """Without it a handshake that fails would give its place back before the connection is over."""
        wire = self.front.connect().send(request("GET", "/signaling", UPGRADE | {"Sec-WebSocket-Version": "8"}))
        self.assertTrue(wire.value().startswith(b"HTTP/1.1 4"))
        wire.hang_up()
        self.assertEqual(self.taken, 0)

    def test_other_websockets(self) -> None:
        """Without it a link between fronts, which its own limits count, would keep a place all its life."""
        class Link(Wire):
            """Any protocol that knows nothing of places."""

        class Links:
            def doStart(self) -> None:
                """Nothing."""

            def buildProtocol(self, addr: Any) -> Any:
                return Link()

        Link.dataReceived = Link.makeConnection = Link.connectionLost = lambda *_: None  # type: ignore[attr-defined]
        factory: Any = Links()
        self.front.door.open(site=self.front.site, upgrades={b"/worker-sync": factory},
                             admission=lambda peer, fields: None, places=self.front.gate.places)
        self.front.connect().send(request("GET", "/worker-sync", UPGRADE))
        self.assertEqual(self.taken, 0)

    def test_lost_at_every_stage(self) -> None:
        """Without it a peer that vanishes at the right moment would take a place with it, until none is left."""
        for sent in (
            *(request("GET", "/signaling", UPGRADE), request("POST", "/bootstrap", body=b"{}")),
            request("GET", "/signaling", UPGRADE)[:-2] + b"nonsense\r\n\r\n",
            request("GET", "/health") + request("GET", "/signaling", UPGRADE),
        ):
            for length in range(0, len(sent) + 1, 7):
                self.front.connect().send(sent[:length]).hang_up()
                self.assertEqual((self.taken, self.front.gate._counts.total), (0, 0), sent[:length])


class ProxyProtocolTests(PlacesTestCase):
    """Connections whose address a proxy tells first (``haproxy:`` endpoints)."""

    def setUp(self) -> None:
        """All come from one proxy, which is not among TRUSTED_PROXIES."""
        super().setUp()
        self.factory: Any = HAProxyWrappingFactory(self.front.door)
        self.proxy = "203.0.113.200"

    def connect(self, said: bytes) -> Wire:
        """A connection of the proxy's."""
        return self.front.connect(self.proxy, factory=self.factory).send(said)

    def test_by_the_address_that_is_told(self) -> None:
        """Without it all clients of a proxy would share the places of its address, or have none of their own."""
        ask = request("GET", "/health/live")
        for header in (proxied, proxied_v2):
            wires = [self.connect(header(PEER) + ask) for _ in range(3)] + [self.connect(header(OTHER) + ask)]
            self.assertEqual([wire.lost for wire in wires], [False, False, True, False])
            self.assertEqual([bool(wire.value()) for wire in wires], [True, True, False, True])
            self.assertEqual(self.taken, 3)
            for wire in wires:
                wire.hang_up()
            self.assertEqual(self.taken, 0)

    def test_silent_ones(self) -> None:
        """Without it one client behind a proxy could hold every place with connections that say nothing."""
        wires = [self.connect(proxied(PEER)) for _ in range(4)]
        self.assertEqual((self.taken, [wire.lost for wire in wires]), (4, [False] * 4))
        self.front.advance(ADDRESS_S)
        self.assertEqual((self.taken, [wire.lost for wire in wires]), (2, [False, False, True, True]))
        wires[0].send(request("GET", "/health/live"))
        self.assertTrue(wires[0].value().startswith(b"HTTP/1.1 200 "))
        self.front.advance(10.0 - ADDRESS_S)
        self.assertEqual((wires[1].lost, self.taken), (True, 1))

    def test_proxy_that_tells_nothing_yet(self) -> None:
        """Without it a proxy that opens connections ahead would be shut out as one client."""
        self.assertEqual(self.lost(*[self.proxy] * 6, factory=self.factory), [False] * 5 + [True])
        self.front.advance(ADDRESS_S)
        self.assertEqual(self.taken, 5)
        self.front.advance(10.0 - ADDRESS_S)
        self.assertEqual(self.taken, 0)

    def test_short_header_time(self) -> None:
        """Without it a header time-out under a second would not be kept."""
        self.front.door.header_timeout_s = 0.5
        wire = self.connect(proxied(PEER))
        self.front.clock.advance(0.5)
        self.front.clock.advance(0.0)
        self.assertTrue(wire.settle().lost)

    def test_no_header(self) -> None:
        """Without it who reaches such an endpoint past its proxy would be served, or leak a place."""
        wire = self.connect(request("GET", "/health/live"))
        self.assertEqual((wire.lost, wire.value(), self.taken), (True, b"", 0))


class TlsTests(PlacesTestCase):
    """Connections that have yet to finish their TLS handshake."""

    def setUp(self) -> None:
        """A TLS endpoint's factory."""
        super().setUp()
        key, certificate = write_pair(Path(self.mktemp()), self_signed_pem("front.example"))
        credentials: Any = Credentials(str(key), str(certificate))
        door: Any = self.front.door
        self.factory = TLSMemoryBIOFactory(credentials, False, door, self.front.clock)
        client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        client.set_connect_state()
        self.assertRaises(SSL.WantReadError, client.do_handshake)
        self.hello = client.bio_read(16_384)

    def test_half_done(self) -> None:
        """Without it a handshake that is never finished would cost nobody a place, and last for ever."""
        for said in (b"", self.hello[:40], self.hello):
            wires = [self.front.connect(factory=self.factory) for _ in range(3)]
            for wire in wires[: 3 if said else 0]:
                wire.send(said)
            self.assertEqual(([wire.lost for wire in wires], self.taken), ([False, False, True], 2))
            self.front.advance(9.5)
            self.assertEqual([wire.lost for wire in wires], [False, False, True])
            self.front.advance(0.5)
            self.assertEqual(([wire.lost for wire in wires], self.taken), ([True] * 3, 0))

    def test_refused_at_once(self) -> None:
        """Without it a connection without a place would still be given a handshake, the dearest thing there is."""
        self.lost(PEER, PEER, factory=self.factory)
        wire = self.front.connect(factory=self.factory).send(self.hello)
        self.assertTrue(wire.lost)
        self.assertLess(len(wire.value()), 10, "no more than an alert, which is not sent when a socket is aborted")
