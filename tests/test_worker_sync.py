"""``/worker-sync``: what is special to links over WebSocket. What they share with TCP is in ``test_link``."""

from __future__ import annotations

import random
import struct
from typing import Any

import txaio
from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WrappingWebSocketClientFactory, WrappingWebSocketServerFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.wire import Refusal, Vote, encode
from kollator.cluster.worker_sync import (
    HEADER_BYTES,
    MESSAGE_BYTES,
    PATH,
    SENT_BYTES,
    WorkerSyncClientFactory,
    WorkerSyncEndpoint,
    WorkerSyncFactory,
    client_endpoint,
)
from kollator.web.door import DoorFactory
from kollator.web.site import FrontSite, upgrade_to
from tests.link_net import URL, Front, NetCase, Stranger, framed

REQUEST = (
    b"GET /worker-sync HTTP/1.1\r\nHost: front.example:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


def ws_frame(
    payload: bytes, opcode: int = 2, fin: bool = True, masked: bool = True, length: int | None = None
) -> bytes:
    """A WebSocket frame (RFC 6455 section 5.2), masked with zeros."""
    size = len(payload) if length is None else length
    head = bytes([opcode | (0x80 if fin else 0)])
    mask = 0x80 if masked else 0
    if size < 126:
        head += bytes([mask | size])
    elif size < 65_536:
        head += bytes([mask | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", size)
    return head + (bytes(4) if masked else b"") + payload


class WebSocketCase(NetCase):
    """A front that is dialled over WebSocket, and raw bytes to it."""

    websocket = True

    def front(self, **how: Any) -> Front:
        """A front whose one peer cannot be dialled."""
        front = self.net.front("a", "b", **how)
        front.links.privilegedStartService()
        front.links._dialler.turn = lambda now, linked: None  # type: ignore[union-attr, method-assign]
        front.start()
        self.logged.clear()
        front.counts.clear()
        return front

    def raw(self, front: Front, data: bytes = b"") -> Stranger:
        """Somebody connects and speaks raw bytes."""
        stranger: Stranger = self.net.join(Factory.forProtocol(Stranger), front)
        stranger.transport.write(data)
        self.net.settle()
        return stranger

    def refused(self, front: Front, reason: str) -> None:
        """One counter, one line."""
        self.assertEqual(front.counts, {reason: 1})
        self.assertEqual(len(self.lines()), 1, self.lines())
        self.assertIn(reason, self.lines()[0])


class HandshakeTests(WebSocketCase):
    """The request and its answer."""

    def test_the_answer(self) -> None:
        """Without it another implementation of WebSocket could not link: nothing needs to be offered."""
        for offered in (b"", b"Sec-WebSocket-Protocol: binary, base64\r\n"):
            front = self.front()
            stranger = self.raw(front, REQUEST + offered + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
            head = stranger.received.decode()
            self.assertIn("101 Switching Protocols", head)
            self.assertIn("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", head)
            self.assertEqual("Sec-WebSocket-Protocol: binary" in head, bool(offered))
            self.assertNotIn("Extensions", head)
            self.assertNotIn("Server:", head)

    def test_browsers_are_refused(self) -> None:
        """Without it any page could make its visitors' browsers knock at a front behind a firewall."""
        for name in (b"Origin", b"oRiGiN", b"Sec-WebSocket-Origin"):
            for value in (b"https://front.example:8080", b"null", b"", b"\xff\x1b[2J"):
                self.net = self.new_net()
                front = self.front()
                stranger = self.raw(front, REQUEST + name + b": " + value + b"\r\n\r\n")
                self.assertIn(b"HTTP/1.1 403 Forbidden\r\n", stranger.received)
                self.assertIn(b'{"error":{"code":"forbidden"', stranger.received)
                self.assertTrue(stranger.is_closed)
                self.refused(front, "origin")
                self.assertTrue(self.lines()[0].isprintable())
                self.stop()
                self.logged.clear()

    def test_requests_that_are_no_good_handshake(self) -> None:
        """Without it they would be answered in another form than all errors, logged twice, or not counted."""
        cases = (
            REQUEST.replace(b"13", b"7") + b"\r\n",
            REQUEST.replace(b"dGhl", b"d\xffl") + b"\r\n",
            REQUEST.replace(b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n") + b"\r\n",
            REQUEST + b"X: a\x85X-Forwarded-For: 10.0.0.1\r\n\r\n",
            REQUEST + b"X: a\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
            b"POST" + REQUEST[3:] + b"\r\n",
            b"\r\n\r\n",
            b"\xff\xff\r\n\r\n",
        )
        for request in cases:
            with self.subTest(request=request):
                self.net = self.new_net()
                front = self.front()
                stranger = self.raw(front, request)
                self.assertRegex(stranger.received, rb"^HTTP/1.1 4\d\d [A-Z]")
                self.assertIn(b"\r\nContent-Type: application/json; charset=utf-8\r\n", stranger.received)
                self.refused(front, "websocket")
                self.net.run(1.5)
                self.assertTrue(stranger.is_closed)
                self.stop()
                self.logged.clear()

    def test_a_header_without_an_end(self) -> None:
        """Without it whoever dials could fill the memory before the link's own limits begin."""
        front = self.front()
        stranger = self.raw(front, REQUEST + b"X: " + b"x" * HEADER_BYTES)
        self.assertTrue(stranger.is_closed)
        self.refused(front, "websocket")
        self.stop()

    def test_a_header_that_never_ends_is_cut_in_time(self) -> None:
        """Without it a slow request would hold a place for ever."""
        front = self.front()
        stranger = self.raw(front, REQUEST)
        self.net.run(6)
        self.assertTrue(stranger.is_closed)
        self.refused(front, "handshake-timeout")
        self.stop()

    def test_the_address_that_a_proxy_tells(self) -> None:
        """Without it all who come through a proxy would share one address, and one of them shut out the others."""
        front = self.front()
        front.listener.address_of = lambda host, headers: headers.get("x-forwarded-for", host)
        self.net.noise(front, b"\xff" * 8)
        self.assertEqual(front.counts, {"bad-frame": 1})
        forwarded = REQUEST + b"X-Forwarded-For: 192.0.2.7\r\n\r\n"
        bad = ws_frame(b"\xff" * 8)
        self.net.run(2)
        self.raw(front, forwarded + bad)
        self.assertEqual(front.counts, {"bad-frame": 2})
        self.assertIn("192.0.2.7", self.lines()[-1])
        stranger = self.raw(front, forwarded + bad)
        self.assertIn(b"HTTP/1.1 503 Service Unavailable", stranger.received)
        self.assertEqual(front.counts, {"bad-frame": 2, "backed-off": 1})
        self.assertIn(b"101", self.raw(front, REQUEST + b"\r\n").received, "not the proxy's own")
        self.stop()


class MessageTests(WebSocketCase):
    """What comes once the WebSocket is open."""

    def opened(self, front: Front) -> Stranger:
        """A WebSocket that speaks raw bytes."""
        stranger = self.raw(front, REQUEST + b"\r\n")
        stranger.received = b""
        return stranger

    def test_boundaries_mean_nothing(self) -> None:
        """Without it a proxy that cuts messages anew would break links."""
        front = self.front()
        peer = self.net.impostor(front, "b")
        data = b"".join(framed(encode(Vote(number))) for number in range(50))
        chance = random.Random(2)
        while data:
            cut = min(len(data), chance.randrange(1, 40))
            peer.transport.sendMessage(data[:cut], isBinary=True, fragmentSize=chance.choice([1, 3, 1000]))
            data = data[cut:]
        self.net.settle()
        self.assertEqual(front.frames(), [Vote(number) for number in range(50)])
        self.stop()

    def test_messages_that_break_the_rules(self) -> None:
        """Without it a peer could make this front keep what it should not, or raise what nobody handles."""
        cases = (
            ws_frame(b"AAAA", opcode=1),
            ws_frame(b"", opcode=1),
            ws_frame(b"x", masked=False),
            ws_frame(b"x", opcode=3),
            ws_frame(b"x", opcode=0),
            ws_frame(b"", opcode=2 | 0x40),
            ws_frame(b"", length=MESSAGE_BYTES + 1),
            ws_frame(b"", length=2**62),
            ws_frame(b"x" * 300, opcode=9),
            ws_frame(b"x", opcode=9, fin=False),
            ws_frame(b"x", opcode=8),
            ws_frame(b"\x00\x01", opcode=8),
            ws_frame(b"\x03\xe8\xff\xff", opcode=8),
            ws_frame(b"", fin=False) + ws_frame(b"", opcode=0, length=MESSAGE_BYTES + 1),
        )
        for data in cases:
            with self.subTest(data=data[:20]):
                self.net = self.new_net()
                front = self.front()
                stranger = self.opened(front)
                stranger.transport.write(data)
                self.net.run(1.2)
                self.assertTrue(stranger.is_closed)
                self.assertEqual(sum(front.counts.values()), 1)
                self.assertIn(next(iter(front.counts)), ("websocket", "closed-early"))
                self.assertLessEqual(len(self.lines()), 1)
                self.stop()
                self.logged.clear()

    def test_random_bytes(self) -> None:
        """Without it some bytes could raise what nobody handles."""
        chance = random.Random(9)
        for seed in range(60):
            self.net = self.new_net(seed)
            front = self.front()
            stranger = self.opened(front) if seed % 3 else self.raw(front)
            good = (REQUEST + b"\r\n") if not seed % 3 else ws_frame(chance.randbytes(20))
            for _ in range(10):
                data = bytearray(good)
                for _ in range(chance.randrange(4)):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                stranger.transport.write(bytes(data))
                self.net.settle()
            self.net.run(7, step_s=0.5)
            self.assertTrue(stranger.is_closed)
            self.stop()

    def test_a_message_that_never_ends_is_not_kept(self) -> None:
        """Without it the limits of the link would begin after a whole message: here its first bytes are refused."""
        front = self.front()
        stranger = self.opened(front)
        stranger.transport.write(ws_frame(b"\xff" * 100, length=MESSAGE_BYTES))
        self.net.settle()
        self.refused(front, "bad-frame")
        self.net.run(1.5)
        self.assertTrue(stranger.is_closed)
        self.stop()

    def test_pings_are_answered_and_a_close_frame_ends_the_link(self) -> None:
        """Without it a proxy that checks its connections would cut them."""
        front = self.front()
        stranger = self.opened(front)
        stranger.transport.write(ws_frame(b"are you there", opcode=9))
        self.net.settle()
        self.assertEqual(stranger.received, ws_frame(b"are you there", opcode=10, masked=False))
        peer = self.net.impostor(front, "b")
        peer.transport.sendClose(1000)
        self.net.settle()
        self.assertEqual(front.ups(), ["up b", "down b"])
        self.assertEqual(front.counts, {"lost": 1})
        self.stop()

    def test_large_frames_leave_in_messages_of_a_bounded_size(self) -> None:
        """Without it a proxy's own limit could break a link with the first large batch."""
        front = self.front()
        peer = self.net.impostor(front, "b")
        sizes: list[int] = []
        peer.transport.onMessage = lambda payload, isBinary: sizes.append(len(payload))
        link = front.links._up["b"]
        link.transport.write(b"x" * 200_000)
        self.net.settle()
        self.assertEqual(sizes, [SENT_BYTES, SENT_BYTES, SENT_BYTES, 200_000 - 3 * SENT_BYTES])
        self.stop()


    def test_it_is_a_transport_to_the_end(self) -> None:
        """Without it a frame that comes a moment too late would be an unhandled error."""
        front = self.front()
        self.net.impostor(front, "b")
        stream: Any = front.links._up["b"].transport
        self.assertEqual((stream.getPeer().host, stream.getHost().host), ("10.0.9.9", "10.0.0.1"))
        stream.unregisterProducer()
        stream.loseConnection()
        for _ in range(2):
            stream.write(b"late")
            stream.writeSequence([b"late", b"r"])
            stream.loseConnection()
            self.net.settle()
        self.assertEqual((front.ups(), front.counts), (["up b", "down b"], {"lost": 1}))
        stream.abortConnection()
        self.stop()


class ClientTests(NetCase):
    """The end that dials, when the other one is no front."""

    websocket = True

    def answered(self, answer: bytes) -> tuple[Front, Any]:
        """A front whose request gets that answer; and the protocol that got the request."""
        server = Factory.forProtocol(Stranger)
        net = self.net
        self.other = net.front("b", "a").start()
        self.other.listener = server
        self.other.links._dialler.turn = lambda now, linked: None  # type: ignore[union-attr, method-assign]
        front = net.front("a", "b")
        front.start()
        net.settle()
        stranger = next(end.protocol for end in net.transports if isinstance(end.protocol, Stranger))
        stranger.transport.write(answer)
        net.settle()
        return front, stranger

    def test_the_request(self) -> None:
        """Without it a front in another version, or a proxy, might not take it."""
        _, stranger = self.answered(b"")
        head = stranger.received.decode()
        self.assertTrue(head.startswith("GET /worker-sync HTTP/1.1\r\nHost: front.example:8080\r\n"))
        self.assertIn("\r\nSec-WebSocket-Protocol: binary\r\n", head)
        self.assertNotIn("Extensions", head)
        self.assertNotIn("Origin", head)
        self.stop()

    def test_answers_that_are_no_websocket(self) -> None:
        """Without it the operator would not learn why there is no link, or the log would be filled with it."""
        cases = (
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "not-reached", "404"),
            (b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "not-reached", ""),
            (b"\x00\x00\x00\x10hello", "handshake-timeout", ""),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEADER_BYTES, "websocket", "header"),
            (b"\xff\r\n\r\n", "websocket", "decode"),
        )
        for answer, reason, text in cases:
            with self.subTest(answer=answer[:40]):
                self.net = self.new_net()
                front, _ = self.answered(answer)
                self.net.held.add("b")
                self.net.run(6)
                self.assertEqual(front.counts.pop(reason), 1)
                lines = [line for line in self.lines() if "cannot be linked" in line]
                self.assertEqual(len(lines), 1 + bool(front.counts))
                self.assertIn(text, lines[0])
                self.stop()
                self.logged.clear()

    def test_urls(self) -> None:
        """Without it a slip in PEERS would show only when the peer is dialled."""
        clock: Any = MemoryReactorClock()
        for url in ("ws://host/worker-sync", "wss://host:8443/front/worker-sync", "ws://[::1]:8080/worker-sync"):
            self.assertIsInstance(client_endpoint(clock, url), WorkerSyncEndpoint)
            host = WorkerSyncClientFactory(None, url, clock).host
        self.assertEqual(host, "[::1]", "as the Host header has it (RFC 9110 section 7.2)")
        for url in ("ws://host/", "ws:///worker-sync", "http://host/worker-sync", "ws://host:port/worker-sync"):
            with self.assertRaises(ValueError, msg=url):
                client_endpoint(clock, url)


class DoorTests(WebSocketCase):
    """Behind the doors of a front."""

    def through(self, listener: Any) -> Front:
        """A front whose links come through ``listener``."""
        front = self.front()
        front.listener = listener(WorkerSyncFactory(front.links.acceptor, self.net.clock))
        return front

    def door(self, factory: WorkerSyncFactory) -> DoorFactory:
        """The door of a listening endpoint."""
        clock: Any = self.net.clock
        door = DoorFactory(clock=clock, header_timeout_s=5)
        site: Any = FrontSite(None, clock)
        door.open(site=site, upgrades={PATH.encode(): factory}, admission=lambda peer, fields: None)
        self.addCleanup(door.stopFactory)
        return door

    def test_a_link_through_the_door(self) -> None:
        """Without it ``/worker-sync`` would not share the port of everything else."""
        front = self.through(self.door)
        peer = self.net.impostor(front, "b")
        peer.say(Vote(1))
        self.net.settle()
        self.assertEqual((front.ups(), front.frames()), (["up b"], [Vote(1)]))
        front.links.cut("b", "too-slow")
        self.net.settle()
        self.assertEqual(peer.heard(), [Refusal("too-slow")])
        self.stop()

    def test_a_link_on_a_connection_that_served_requests(self) -> None:
        """Without it a reverse proxy that keeps connections open could not pass links on."""
        front = self.front()
        factory = WorkerSyncFactory(front.links.acceptor, self.net.clock)
        upgrade = upgrade_to(factory, lambda peer, fields: None)
        site: Any = FrontSite(None, self.net.clock)  # type: ignore[arg-type]
        site.getResourceFor = lambda request: _Upgraded(upgrade)
        front.listener = site
        peer = self.net.impostor(front, "b")
        peer.say(Vote(1))
        self.net.settle()
        self.assertEqual((front.ups(), front.frames()), (["up b"], [Vote(1)]))
        self.net.run(0.5)
        self.stop()


class _Upgraded:
    isLeaf = True

    def __init__(self, upgrade: Any) -> None:
        self._upgrade = upgrade

    def render(self, request: Any) -> int:
        self._upgrade(request)
        return 1  # twisted.web's NOT_DONE_YET


class AutobahnTests(SynchronousTestCase):
    """The habits of Autobahn's wrapping that are changed here: when one of these fails, a change can go."""

    def wrapped(self, factory: Any) -> Any:
        """The server's end of Autobahn's own wrapping, opened."""
        clock = Clock()
        config: Any = txaio
        self.patch(config.config, "loop", clock)
        self.clock = clock
        wrapping = WrappingWebSocketServerFactory(factory, URL, reactor=clock)
        protocol = wrapping.buildProtocol(None)
        self.transport = StringTransport()
        protocol.makeConnection(self.transport)
        protocol.dataReceived(REQUEST + b"Sec-WebSocket-Protocol: binary\r\n\r\n")
        return protocol

    def test_messages_are_collected(self) -> None:
        """A stranger's message is kept up to its end."""
        protocol = self.wrapped(Factory.forProtocol(Stranger))
        protocol.dataReceived(ws_frame(b"x" * 1000, length=2000))
        self.assertEqual(protocol._proto.received, b"")

    def test_text_and_compression_are_offered(self) -> None:
        """Both ways to make work for the other end are on offer."""
        factory: Any = WrappingWebSocketClientFactory(Factory.forProtocol(Stranger), URL, reactor=Clock())
        self.assertEqual(factory.protocols, ["binary", "base64"])
        self.assertTrue(factory.perMessageCompressionOffers)

    def test_writing_too_late_raises(self) -> None:
        """``write`` after ``loseConnection`` raises."""
        protocol = self.wrapped(Factory.forProtocol(Stranger))
        protocol.loseConnection()
        with self.assertRaises(Disconnected):
            protocol.write(b"late")

    def test_there_is_no_abort(self) -> None:
        """There is no ``abortConnection``, and ``loseConnection`` raises before the WebSocket is open."""
        protocol = self.wrapped(Factory.forProtocol(Stranger))
        self.assertFalse(hasattr(protocol, "abortConnection"))
        unopened = protocol.factory.buildProtocol(None)
        unopened.makeConnection(StringTransport())
        with self.assertRaises(Exception):  # noqa: B017
            unopened.loseConnection()

    def test_data_after_the_end_and_no_reason(self) -> None:
        """``dataReceived`` is called after ``loseConnection``, and ``connectionLost`` gets None."""
        reasons: list[Any] = []

        class Noting(Stranger):
            def connectionLost(self, reason: Any = None) -> None:
                reasons.append(reason)

        protocol = self.wrapped(Factory.forProtocol(Noting))
        protocol.loseConnection()
        protocol.dataReceived(ws_frame(b"late"))
        self.assertEqual(protocol._proto.received, b"late")
        protocol.connectionLost()
        self.assertEqual(reasons, [None])
        self.assertNotEqual(self.clock.getDelayedCalls(), [], "a time-out outlives the connection")

    def test_an_answer_that_is_not_utf8(self) -> None:
        """The client's ``dataReceived`` raises what nobody handles."""
        self.wrapped(Factory.forProtocol(Stranger))
        factory: Any = WrappingWebSocketClientFactory(Factory.forProtocol(Stranger), URL, reactor=self.clock)
        client = factory.buildProtocol(None)
        client.makeConnection(StringTransport())
        with self.assertRaises(UnicodeDecodeError):
            client.dataReceived(b"\xff\r\n\r\n")

    def test_a_factory_that_builds_nothing(self) -> None:
        """``buildProtocol`` may return None; here that is an ``AttributeError``."""
        factory = Factory.forProtocol(Protocol)
        factory.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        with self.assertRaises(AttributeError):
            WrappingWebSocketServerFactory(factory, URL, reactor=Clock()).buildProtocol(None)

