"""The fast transport on real sockets, against Twisted's own."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet import tcp
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from kollator.net.fasttransport import ACCEPTED, BACKLOG, READ_BYTES, FastServer, quicken

reactor: Any = global_reactor


class Recorder(Protocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[Any] = Deferred()
        self.data = b""
        self.chunks: list[int] = []
        self.paused = 0

    def connectionMade(self) -> None:
        """It is there."""
        self.made.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Something came."""
        self.data += data
        self.chunks.append(len(data))

    def connectionLost(self, reason: Any = None) -> None:
        """It is over."""
        self.lost.callback(type(reason.value).__name__)


class TransportTestCase(TestCase):
    """A connection whose other end is a plain socket."""

    timeout = 60

    @inlineCallbacks
    def setUp(self) -> Any:  # type: ignore[override]
        """One accepted connection."""
        self.protocol = Recorder()
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: self.protocol  # type: ignore[method-assign]
        port = yield TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.assertTrue(quicken(port))
        self.addCleanup(port.stopListening)
        self.peer = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(self.peer.close)
        yield self.protocol.made
        self.transport: Any = self.protocol.transport
        self.assertIsInstance(self.transport, FastServer)

    def end(self) -> Deferred[Any]:
        """Hangs up."""
        self.peer.close()
        return self.protocol.lost


class TransportTests(TransportTestCase):
    """What a transport does."""

    def test_addresses(self) -> Deferred[Any]:
        """Without it limits, logs and the audit would have the wrong address, or none."""
        host, port = self.peer.getsockname()
        peer = self.transport.getPeer()
        self.assertEqual((peer.type, peer.host, peer.port), ("TCP", host, port))
        self.assertEqual(self.transport.client, (host, port))
        self.assertEqual(self.transport.hostname, host)
        self.assertEqual(self.transport.getHost().port, self.peer.getpeername()[1])
        self.assertIn(host, repr(self.transport) + self.transport.logPrefix())
        return self.end()

    def test_no_delay(self) -> Deferred[Any]:
        """Without it a message would wait until the one before it is acknowledged, for 40 ms and more."""
        self.transport.setTcpNoDelay(True)
        self.assertTrue(self.transport.getTcpNoDelay())
        self.transport.setTcpNoDelay(False)
        self.assertFalse(self.transport.getTcpNoDelay())
        return self.end()

    def test_sent_at_once(self) -> Deferred[Any]:
        """Without it every message would wait for a turn of the reactor, which is most of what it costs."""
        self.transport.write(b"now")
        self.peer.settimeout(10)
        self.assertEqual(self.peer.recv(100), b"now")  # no turn came between
        self.transport.writeSequence([b"a", b"b"])
        self.assertEqual(self.peer.recv(100), b"ab")
        return self.end()

    @inlineCallbacks
    def test_more_than_the_socket_takes(self) -> Any:
        """Without it a large answer would be cut, mixed up, or be kept after it is gone."""
        class Producer:
            said: list[str] = []  # noqa: RUF012

            def pauseProducing(self) -> None:
                self.said.append("pause")

            def resumeProducing(self) -> None:
                self.said.append("resume")

            def stopProducing(self) -> None:
                self.said.append("stop")

        producer = Producer()
        self.transport.registerProducer(producer, True)
        kept = set(vars(self.transport))
        blocks = [bytes([number]) * 100_000 for number in range(100)]
        for block in blocks:
            self.transport.write(block)
        self.assertEqual(producer.said[0], "pause")
        wanted = b"".join(blocks)
        got = b""
        self.peer.setblocking(False)
        while len(got) < len(wanted):
            try:
                got += self.peer.recv(1 << 20)
            except BlockingIOError:
                pass
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            yield turn
        self.assertEqual(got, wanted)
        while set(vars(self.transport)) - kept:
            turn = Deferred()
            reactor.callLater(0, turn.callback, None)
            yield turn
        self.assertEqual(producer.said[-1], "resume")
        yield self.end()
        self.assertEqual(producer.said[-1], "stop")

    @inlineCallbacks
    def test_closing(self) -> Any:
        """Without it the last message before the end would be lost."""
        self.transport.write(b"last")
        self.transport.write(b" words" * 1000)
        self.transport.loseConnection()
        yield self.protocol.lost
        self.assertEqual(self.transport.fileno(), -1)
        self.transport.write(b"too late")
        self.peer.settimeout(10)
        data = b""
        while more := self.peer.recv(65_536):
            data += more
        self.assertEqual(data, b"last" + b" words" * 1000)

    @inlineCallbacks
    def test_aborting(self) -> Any:
        """Without it something would be sent to a peer that was cut off, and the connection stay."""
        self.transport.abortConnection()
        self.transport.write(b"not this")
        yield self.protocol.lost
        self.peer.settimeout(10)
        try:
            self.assertEqual(self.peer.recv(100), b"")
        except ConnectionResetError:
            pass

    @inlineCallbacks
    def test_reset_by_the_peer(self) -> Any:
        """Without it a connection that broke while we wrote would never be told of, or raise where nobody looks."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.peer.close()
        self.transport.write(b"x")
        self.transport.write(b"y")
        yield self.protocol.lost
        self.assertEqual(self.transport.fileno(), -1)

    @inlineCallbacks
    def test_bounded_reads(self) -> Any:
        """Without it one connection could hold the reactor with what it sent in a burst."""
        self.peer.sendall(b"x" * 200_000)
        self.peer.close()
        yield self.protocol.lost
        self.assertEqual(len(self.protocol.data), 200_000)
        self.assertLessEqual(max(self.protocol.chunks), READ_BYTES)


class PortTests(TestCase):
    """Which ports are quickened."""

    @inlineCallbacks
    def test_other_kinds(self) -> Any:
        """Without it a front on a UNIX socket would not start, or have connections with half of what they need."""
        path = self.mktemp()
        port = yield UNIXServerEndpoint(reactor, path[-80:]).listen(Factory.forProtocol(Recorder))
        self.addCleanup(port.stopListening)
        self.assertFalse(quicken(port))
        self.assertIsNot(port.transport, FastServer)

    @inlineCallbacks
    def test_backlog(self) -> Any:
        """Without it an operator's own backlog would be overruled."""
        listened: list[int] = []
        self.patch(socket.socket, "listen", lambda self, backlog: listened.append(backlog))
        for backlog, expected in ((50, [50, BACKLOG]), (7, [7])):
            factory: Any = Factory.forProtocol(Recorder)
            port = tcp.Port(0, factory, backlog, "127.0.0.1", reactor)
            port.createInternetSocket = lambda: socket.socket()  # type: ignore[method-assign]
            port.startListening()
            self.assertTrue(quicken(port))
            yield port.stopListening()
            self.assertEqual(listened, expected)
            listened.clear()

    @inlineCallbacks
    def test_some_are_accepted(self) -> Any:
        """Without it a flood of connections would hold everybody else up until the whole backlog is accepted."""
        made: list[Protocol] = []
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: made.append(Protocol()) or made[-1]  # type: ignore[func-returns-value]
        port = tcp.Port(0, factory, 500, "127.0.0.1", reactor)
        port.startListening()
        self.addCleanup(port.stopListening)
        self.assertTrue(quicken(port))
        wanted = 3 * ACCEPTED
        peers = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(wanted)]
        for peer in peers:
            self.addCleanup(peer.close)
        told = []
        while len(made) < wanted:
            before = len(made)
            port.doRead()
            told.append(len(made) - before)
        self.assertEqual(told, [ACCEPTED] * 3)
        for protocol in made:
            transport: Any = protocol.transport
            transport.abortConnection()
        turn: Deferred[None] = Deferred()
        reactor.callLater(0, turn.callback, None)
        yield turn
