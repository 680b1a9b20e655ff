"""TLS in memory: versions, ciphers and certificates of listening endpoints, and the door behind real TLS."""

from __future__ import annotations

import json
import ssl
from functools import cache
from typing import Any

from OpenSSL.crypto import X509, PKey
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory

from kollator.signaling.protocol import SignalingProtocol
from kollator.web.refusal import LINGER_S
from tests.certificates import self_signed
from tests.fronts import FrontTestCase
from tests.wires import UPGRADE, read_answers, request, text_frame


@cache
def context() -> Any:  # zope's interfaces are not known to mypy
    """A server's side of TLS, with a certificate of its own making."""
    key, certificate = self_signed("front.example")
    return CertificateOptions(
        privateKey=PKey.from_cryptography_key(key), certificate=X509.from_cryptography(certificate)
    )


def behind_tls(door: Any, clock: Any) -> TLSMemoryBIOFactory:
    """The door as a TLS endpoint listens with it."""
    return TLSMemoryBIOFactory(context(), False, door, clock)


class Tunnel:
    """A TLS client of Python's own over one connection to the front."""

    def __init__(self, test: FrontTestCase) -> None:
        self.front = test.front
        self.wire = self.front.connect(factory=behind_tls(self.front.door, self.front.clock))
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        self._from_front, self._to_front = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting.wrap_bio(self._from_front, self._to_front)
        self._repeat(self._tls.do_handshake)

    @property
    def protocol(self) -> Any:
        """What serves the connection."""
        return self.wire.protocol.wrappedProtocol

    def send(self, data: bytes) -> bytes:
        """Sends, and returns what comes back; b"" at the end."""
        self._tls.write(data)
        return self.receive()

    def receive(self) -> bytes:
        """What has come; b"" at the end."""
        data: bytes = self._repeat(lambda: self._tls.read(1_000_000))
        return data

    def close(self) -> None:
        """The client closes its side of TLS."""
        try:
            self._repeat(self._tls.unwrap)
        except ssl.SSLError:
            pass
        self._pump()

    def _pump(self) -> None:
        self.wire.send(self._to_front.read())
        self.front.clock.advance(0)
        self._from_front.write(self.wire.taken())

    def _repeat(self, action: Any) -> Any:
        for _ in range(10):
            try:
                return action()
            except ssl.SSLWantReadError:
                self._pump()
            except ssl.SSLZeroReturnError:
                return b""
        raise AssertionError("nothing came")


class TlsTests(FrontTestCase):
    """Requests, WebSockets and refusals."""

    def test_request_and_url(self) -> None:
        """A page that came by https is sent to wss."""
        self.front.worker()
        tunnel = Tunnel(self)
        told = tunnel.send(request("POST", "/bootstrap") + request("GET", "/health/live"))
        answers = read_answers(told + tunnel.receive())
        self.assertEqual([answer.status for answer in answers], [200, 200])
        self.assertEqual(answers[0].json()["signaling"], "wss://front.example:8080/signaling")

    def test_websocket(self) -> None:
        """At once, or on a connection that served a request before; the page's origin is an https one."""
        handshake = request("GET", "/signaling", UPGRADE | {"Origin": "https://front.example:8080"})
        for before in (False, True):
            tunnel = Tunnel(self)
            if before:
                self.assertEqual(read_answers(tunnel.send(request("GET", "/health/live")))[0].status, 200)
            self.assertTrue(tunnel.send(handshake).startswith(b"HTTP/1.1 101 "))
            self.assertIsInstance(tunnel.protocol, SignalingProtocol)
            told = tunnel.send(text_frame(b'{"type":"hello","role":"client"}'))
            self.assertEqual(json.loads(told[told.index(b"{") :])["type"], "welcome")

    def test_refusal(self) -> None:
        """The answer comes, then the end of TLS, although the peer goes on sending; its own end ends it all."""
        tunnel = Tunnel(self)
        (answer,) = read_answers(tunnel.send(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(5000)))
        self.assert_error(answer, 413, "too-large")
        self.assertEqual(tunnel.receive(), b"")
        tunnel.close()
        self.assertTrue(tunnel.wire.lost)

    def test_peer_that_does_not_close(self) -> None:
        """Twisted waits for the other side of TLS to close for ever; the front does not."""
        tunnel = Tunnel(self)
        self.assertEqual(read_answers(tunnel.send(b"nonsense\r\n\r\n"))[0].status, 400)
        self.front.advance(LINGER_S - 0.5)
        self.assertFalse(tunnel.wire.lost)
        self.front.advance(0.5)
        self.assertTrue(tunnel.wire.lost)

    def test_no_handshake(self) -> None:
        """A peer that never begins to speak TLS is dropped as one that sends no header is."""
        wire = self.front.connect(factory=behind_tls(self.front.door, self.front.clock))
        self.front.advance(self.front.settings.header_timeout_s)
        self.assertTrue(wire.lost)
