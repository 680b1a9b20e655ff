"""What the tests of TLS endpoints share: certificates in files, endpoints in memory, and a client to call them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from kollator.net.endpoints import ListenEndpoint, listen_endpoint
from kollator.net.tls import Credentials
from tests.certificates import Authority, write_pair

ROOT = Authority()


class Echo(Protocol):
    """Says who it was told that the client is, and sends back what comes."""

    def dataReceived(self, data: bytes) -> None:
        """What came."""
        transport: Any = self.transport
        transport.write(transport.getPeer().host.encode() + b" " + data)


class Caller:
    """A TLS client of Python's own, on one connection in memory to what an endpoint listens with."""

    def __init__(self, clock: Any, server: Any, context: ssl.SSLContext, *, before: bytes = b"",
                 session: ssl.SSLSession | None = None) -> None:
        self._clock = clock
        self._transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.7", 1))
        self._server = server.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
        self._server.makeConnection(self._transport)
        if before:
            self._server.dataReceived(before)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost", session=session)
        self._repeat(self.tls.do_handshake)

    def _repeat(self, action: Callable[[], Any]) -> Any:
        for _ in range(10):
            try:
                return action()
            except ssl.SSLWantReadError:
                said = self._out.read()
                if said:
                    self._server.dataReceived(said)
                    self._clock.advance(0)  # what is written is put together until then
                self._in.write(self._transport.value())
                self._transport.clear()
        raise AssertionError("nothing came")

    def ask(self, data: bytes) -> Any:
        """What the server answers. Raises ``ssl.SSLError`` when it has refused the connection."""
        self.tls.write(data)
        return self._repeat(lambda: self.tls.read(1000))

    def serial(self) -> int:
        """The number of the certificate that the server showed."""
        shown = self.tls.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


def trusting(root: str = ROOT.pem, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client that trusts an authority, with a key and certificate of its own perhaps."""
    context = ssl.create_default_context(cadata=root)
    if pair is not None:
        context.load_cert_chain(pair[1], pair[0])
    return context


class EndpointTestCase(SynchronousTestCase):
    """Certificates in a folder, endpoints on a reactor in memory."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.reactor: Any = MemoryReactorClock()
        self.key, self.certificate = write_pair(self.folder, ROOT.issue("localhost"))

    def described(self, *more: str) -> str:
        """An endpoint string."""
        return ":".join(["ssl:443", f"privateKey={self.key}", f"certKey={self.certificate}", *more])

    def endpoint(self, description: str | None = None, **options: Any) -> tuple[ListenEndpoint, Any]:
        """The endpoint of a string, and the factory that it listens with."""
        endpoint = listen_endpoint(self.reactor, description or self.described(), **options)
        self.successResultOf(endpoint.listen(Factory.forProtocol(Echo)))
        return endpoint, self.reactor.tcpServers[-1][1]

    def call(self, server: Any, context: ssl.SSLContext | None = None, **options: Any) -> Caller:
        """Connects to what an endpoint listens with; a client that trusts ``ROOT`` unless told."""
        return Caller(self.reactor, server, context or trusting(), **options)

    def credentials(self, endpoint: ListenEndpoint) -> Credentials:
        """Those of a TLS endpoint."""
        assert endpoint.credentials is not None
        return endpoint.credentials

    def assert_refused(self, server: Any, context: ssl.SSLContext, reason: str) -> None:
        """That a client gets no answer, for this reason."""
        with self.assertRaisesRegex(ssl.SSLError, reason):
            self.call(server, context).ask(b"x")

    @contextmanager
    def logged(self, level: Any = LogLevel.info) -> Iterator[list[str]]:
        """What is logged by the module from this level on."""
        lines: list[str] = []

        def note(event: Any) -> None:
            if event["log_namespace"] == "kollator:tls" and event["log_level"] >= level:
                lines.append(event["log_format"].format(**event))

        observer: Any = note
        globalLogPublisher.addObserver(observer)
        try:
            yield lines
        finally:
            globalLogPublisher.removeObserver(observer)
