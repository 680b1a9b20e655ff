"""The PROXY protocol: whoever can reach such an endpoint can send anything in place of a header."""

from __future__ import annotations

import random
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from kollator.net.proxyheader import ProxyHeaderEndpoint
from kollator.web.door import address_to_come
from tests.wires import PEER, Wire

V2 = b"\r\n\r\n\x00\r\nQUIT\n"
HEADERS = (
    b"PROXY TCP4 203.0.113.7 192.0.2.1 1234 80\r\n",
    b"PROXY TCP6 2001:db8::7 ::1 1234 80\r\n",
    b"PROXY UNKNOWN\r\n",
    V2 + b"\x21\x11" + struct.pack("!H4s4sHH", 12, b"\xcb\0\x71\x07", bytes(4), 1234, 80),
    V2 + b"\x21\x21" + struct.pack("!H16s16sHH", 36, b"\x20\x01\x0d\xb8" + bytes(11) + b"\x07", bytes(16), 1234, 80),
    V2 + b"\x20\0\0\0",
)
PEERS = ("203.0.113.7", "2001:db8::7", PEER, "203.0.113.7", "2001:db8:0:0:0:0:0:7", PEER)


class Behind(Protocol):
    """Keeps what came, and fails at a word."""

    said = b""

    def dataReceived(self, data: bytes) -> None:
        """More of it."""
        self.said += data
        if b"fail" in self.said:
            raise ZeroDivisionError


class Endpoint:
    """Any endpoint, which says what it is to serve."""

    def listen(self, factory: Any) -> Any:
        """Fires with the factory in place of a port."""
        return succeed(factory)


class ProxyHeaderTests(SynchronousTestCase):
    """Connections to such an endpoint."""

    def setUp(self) -> None:
        """What is listened with."""
        endpoint = ProxyHeaderEndpoint(Endpoint())
        self.factory = self.successResultOf(endpoint.listen(Factory.forProtocol(Behind)))

    def connect(self, data: bytes) -> Wire:
        """A connection over which that came."""
        return Wire().open(self.factory).send(data)

    def test_good(self) -> None:
        """Without it the front would not know whose connection it is."""
        for header, peer in zip(HEADERS, PEERS, strict=True):
            wire = self.connect(header + b"hello")
            self.assertEqual((wire.protocol.wrappedProtocol.said, wire.protocol.getPeer().host), (b"hello", peer))
            self.assertTrue(address_to_come(wire.protocol))

    def test_almost_good(self) -> None:
        """Without it a stranger could fill the log with errors that look like ours."""
        for header in (
            *(b"PROXY TCP4 1.1.1.\xff 1.1.1.1 1 2\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 x 2\r\n", b"PROXY \r\n"),
            *(b"PROXY TCP4\r\n", b"PROXY UNKNOWN\n\r\n", V2 + b"\x21\x11\0\x01\0", V2 + b"\x21\xff\0\0"),
            *(V2 + b"\x31\x11\0\0", b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 " + b"1" * 200),
        ):
            self.assertTrue(self.connect(header + b"hello").lost, header)

    def test_in_pieces(self) -> None:
        """Without it a client whose first bytes come later, or with the header, would be cut or misread."""
        wire = self.connect(HEADERS[0][:20]).send(HEADERS[0][20:]).send(b"hel").send(b"PROXY UNKNOWN\r\n")
        self.assertEqual(wire.protocol.wrappedProtocol.said, b"helPROXY UNKNOWN\r\n")

    @settings(max_examples=100, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_anything(self, source: random.Random) -> None:
        """Without it some header would raise."""
        for header in HEADERS:
            data = bytearray(header + b"hello")
            for _ in range(source.randrange(5)):
                at = source.randrange(len(data) or 1)
                change = source.choice((b"", b" ", b"\r\n", b"\xff", b"9" * 20, bytes([source.randrange(256)])))
                data[at : at + source.randrange(4)] = change
            cut = source.randrange(len(data) + 1)
            self.connect(bytes(data[:cut]).replace(b"fail", b"")).send(bytes(data[cut:]))

    def test_what_is_behind(self) -> None:
        """Without it a mistake of the front's own would pass for a bad header."""
        wire = self.connect(HEADERS[0])
        self.assertRaises(ZeroDivisionError, wire.send, b"fail")
        self.assertRaises(ZeroDivisionError, self.connect, HEADERS[0] + b"fail")
