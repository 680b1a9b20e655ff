"""Single probes of health addresses: what goes out, and what is made of the answers."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from kollator.pool.workersfile import parse_health
from kollator.probing import BODY_BYTES, ProbeFailed, Prober
from tests.certificates import self_signed_pem

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Wire(StringTransport):
    """A connection in memory, which is closed in the reactor's next turn."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.ending = ""
        self.lost = False

    def loseConnection(self) -> None:
        """To be closed in order."""
        self.ending = self.ending or "closed"

    def abortConnection(self) -> None:
        """To be reset."""
        self.ending = "aborted"

    def turn(self, reason: Exception | None = None) -> None:
        """The reactor's next turn; ``reason`` is why the other side closes."""
        if not self.lost and (self.ending or reason is not None):
            self.lost = True
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))


class ProberTests(SynchronousTestCase):
    """Single probes over connections in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.prober = Prober(self.reactor, "1.2")
        self.addCleanup(lambda: self.assertEqual(self.reactor.getDelayedCalls(), []))

    def begin(self, text: str) -> Deferred[None]:
        """Begins a probe."""
        self.outcome = self.prober.probe(parse_health(text))
        return self.outcome

    def connect(self) -> Wire:
        """The connection that it asked for is made."""
        factory: Any = self.reactor.tcpClients[-1][2]
        protocol = factory.buildProtocol(None)
        wire = Wire(protocol)
        protocol.makeConnection(wire)
        return wire

    def answer(self, data: bytes, text: str = "http://192.0.2.1:9000/") -> Wire:
        """A probe that is answered so; one byte at a time if that is not too much."""
        self.begin(text)
        wire = self.connect()
        for piece in (data[at : at + 1] for at in range(len(data))) if len(data) < 1000 else (data,):
            if wire.ending:
                break
            wire.protocol.dataReceived(piece)
        return wire

    def why(self) -> str:
        """Why the probe failed."""
        return str(self.failureResultOf(self.outcome, ProbeFailed).value)

    def test_tcp(self) -> None:
        """Without it plain TCP would not be probed, or leave its connection behind."""
        self.begin("tcp:192.0.2.1:9000")
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 9000))
        wire = self.connect()
        self.assertEqual((wire.value(), wire.ending), (b"", "closed"))
        self.assertNoResult(self.outcome)
        wire.turn()
        self.successResultOf(self.outcome)

    def test_ipv6(self) -> None:
        """Without it an IPv6 address would be taken for a name."""
        self.begin("tcp:[2001:db8::1]:9000")
        self.assertEqual(self.reactor.tcpClients[0][:2], ("2001:db8::1", 9000))
        self.connect().turn()
        self.successResultOf(self.outcome)

    def test_refused(self) -> None:
        """Without it a port that nobody listens on would pass for healthy."""
        self.begin("tcp:192.0.2.1:9000")
        factory: Any = self.reactor.tcpClients[0][2]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.assertEqual(self.why(), "connection refused")

    def test_request(self) -> None:
        """Without it virtual hosts would answer for another one, and logs would not tell whose request it is."""
        for text, host in (
            ("http://192.0.2.1:9000/a?b=c", b"192.0.2.1:9000"),
            ("http://192.0.2.1/a?b=c", b"192.0.2.1"),
            ("http://[2001:DB8::1]:9000/a?b=c", b"[2001:db8::1]:9000"),
        ):
            wire = self.answer(OK, text)
            line, *fields = wire.value().split(b"\r\n")
            self.assertEqual(line, b"GET /a?b=c HTTP/1.1")
            self.assertIn(b"Host: " + host, fields)
            self.assertIn(b"User-Agent: kollator-front/1.2", fields)
            self.assertIn(b"connection: close", [field.lower() for field in fields])
            wire.turn()
            self.successResultOf(self.outcome)

    def test_healthy(self) -> None:
        """Without it servers that end their answers in other ways would be taken for broken."""
        for data in (
            OK,
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
            b"HTTP/1.0 299 Fine\n\n",
        ):
            wire = self.answer(data)
            wire.turn(ConnectionDone())
            self.successResultOf(self.outcome)
            self.assertNotEqual(wire.ending, "aborted")

    def test_until_closed(self) -> None:
        """Without it an answer whose end is the connection's would be waited for in vain."""
        wire = self.answer(b"HTTP/1.0 200 OK\r\n\r\nfine")
        self.assertNoResult(self.outcome)
        wire.turn(ConnectionDone())
        self.successResultOf(self.outcome)

    def test_other_status(self) -> None:
        """Without it an error, or a redirect to a page that says all is well, would pass for healthy."""
        for status in (300, 301, 302, 307, 400, 401, 404, 500, 503):
            wire = self.answer(b"HTTP/1.1 %d X\r\nLocation: http://192.0.2.9/\r\nContent-Length: 0\r\n\r\n" % status)
            wire.turn()
            self.assertEqual(self.why(), f"HTTP status {status}")
            self.assertEqual(self.reactor.tcpClients.pop()[0], "192.0.2.1")

    def test_long_body(self) -> None:
        """Without it a worker that answers with a film would have it read to its end."""
        wire = self.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(BODY_BYTES))
        self.assertEqual(wire.ending, "")
        wire.protocol.dataReceived(b"x")
        self.assertNotEqual(wire.ending, "")
        wire.turn()
        self.successResultOf(self.outcome)

    def test_long_headers(self) -> None:
        """Without it headers without an end would be kept until the memory is full."""
        self.begin("http://192.0.2.1/")
        wire = self.connect()
        wire.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n")
        for number in range(10_000):
            if wire.ending:
                break
            wire.protocol.dataReceived(b"X-%d: %s\r\n" % (number, b"y" * 100))
        self.assertEqual(wire.ending, "aborted")
        wire.turn(ConnectionLost())
        self.why()

    def test_nonsense(self) -> None:
        """Without it some answer would be an unhandled error, or healthy."""
        for data in (
            b"",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\0" * 300,
            b"\r\n" * 20,
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/9.9 -200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"x" * 20_000,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ):
            wire = self.answer(data)
            wire.turn(ConnectionDone())
            why = self.why()
            self.assertTrue(0 < len(why) <= 160 and why.isprintable(), why)
            self.assertEqual(self.flushLoggedErrors(), [], data)

    def test_broken_off(self) -> None:
        """Without it a probe that takes too long would go on, or end before its connection is gone."""
        for data, text in (
            (b"", "http://192.0.2.1/"),
            (b"HTTP/1.1 200", "http://192.0.2.1/"),
            (OK[:-1], "http://192.0.2.1/"),
        ):
            wire = self.answer(data, text)
            self.outcome.cancel()
            self.assertEqual(wire.ending, "aborted")
            self.assertNoResult(self.outcome)
            wire.turn(ConnectionLost())
            self.failureResultOf(self.outcome, ProbeFailed, CancelledError)

    def test_broken_off_while_connecting(self) -> None:
        """Without it an address that does not answer would keep its socket."""
        for text in ("tcp:192.0.2.1:9000", "http://192.0.2.1/"):
            self.begin(text)
            self.outcome.cancel()
            self.failureResultOf(self.outcome, ProbeFailed, CancelledError)
            self.assertTrue(self.reactor.connectors[-1].stoppedConnecting)

    def test_broken_off_at_its_end(self) -> None:
        """Without it a time-out in the very last moment would be an unhandled error."""
        self.begin("tcp:192.0.2.1:9000")
        wire = self.connect()
        self.outcome.cancel()
        wire.turn()
        self.successResultOf(self.outcome)
        del wire
        self.reactor.tcpClients.clear()
        gc.collect()  # an error that nobody has taken in is logged when its Deferred goes
        self.assertEqual(self.flushLoggedErrors(), [])


class SocketTests(TestCase):
    """A few probes over real sockets."""

    def listen(self, answer: bytes, tls: str = "") -> int:
        """Has a server listen that gives this answer; returns its port."""

        class Server(Protocol):
            transport: Any

            def dataReceived(self, data: bytes) -> None:
                self.transport.write(answer)
                self.transport.loseConnection()

        factory: Any = Factory.forProtocol(Server)
        factory.noisy = False
        running: Any = reactor
        if tls:
            options = PrivateCertificate.loadPEM(tls).options()
            port = running.listenSSL(0, factory, options, interface="127.0.0.1")
        else:
            port = running.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        found: int = port.getHost().port
        return found

    async def test_http(self) -> None:
        """Without it what works in memory might not work over a socket; by address, and by name."""
        port = self.listen(OK)
        for text in (f"http://127.0.0.1:{port}/", f"tcp:127.0.0.1:{port}", f"tcp:localhost:{port}"):
            await Prober(reactor, "1").probe(parse_health(text))

    async def test_https(self) -> None:
        """Without it whoever answers under the worker's name would be believed."""
        port = self.listen(OK, "".join(self_signed_pem("127.0.0.1")))
        probe: Any = Prober(reactor, "1").probe(parse_health(f"https://127.0.0.1:{port}/"))
        why = await self.assertFailure(probe, ProbeFailed)
        self.assertIn("certificate verify failed", str(why))

    async def test_not_tls(self) -> None:
        """Without it a port that speaks no TLS would keep the probe waiting, or be an unhandled error."""
        port = self.listen(b"no TLS\r\n")
        await self.assertFailure(Prober(reactor, "1").probe(parse_health(f"https://127.0.0.1:{port}/")), ProbeFailed)
