"""How a WebSocket ends (RFC 6455 section 7), and how one does that reads slowly or not at all."""

from __future__ import annotations

from kollator.signaling.backlogs import waiting_bytes
from kollator.signaling.messages import Close
from kollator.signaling.websocket import CLOSE_TIMEOUT_S
from tests.signaling_bench import (
    CLOSE,
    HELLO,
    PING,
    PONG,
    TEXT,
    WRITE_BUFFER_BYTES,
    MemorySocket,
    SignalingTestCase,
    frame,
    text,
)


class CloseTests(SignalingTestCase):
    """How a connection ends, from either side."""

    def test_peer_closes(self) -> None:
        """Without it a client would wait for the answer to its close frame."""
        for code in (1000, 1001, 3000, 4000):
            peer = self.peer().joins()
            peer.hears()
            peer.closes(code)
            self.assertClosed(peer, 1000)
            self.assertIsNotNone(peer.socket.lost)
        peer = self.peer().opens()
        peer.gives(frame(CLOSE))
        self.assertClosed(peer, 1000)

    def test_front_closes(self) -> None:
        """Without it what is closed could stay open, or be cut before it has read why."""
        peer = self.peer().joins()
        peer.hears()
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        self.bench.factory.end(peer.protocol, Close.REPLACED, "again")
        peer.socket.flush()
        self.assertClosed(peer, Close.GOING_AWAY)
        self.assertIsNone(peer.socket.lost)
        peer.gives(frame(TEXT, HELLO) + frame(PING))
        peer.closes(1001)
        self.assertEqual((peer.takes(), peer.socket.lost.value.__class__.__name__), ([], "ConnectionDone"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_call_is_left(self) -> None:
        """Without it each connection would leave a call, and itself in memory, until some time-out."""
        for way in ("vanishes", "closes"):
            peer = self.peer().joins()
            if way == "vanishes":
                self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
            getattr(peer, way)()
            self.assertIsNotNone(peer.socket.lost)
            self.assertEqual(self.clock.getDelayedCalls(), [], way)

    def test_no_answer_to_our_close_frame(self) -> None:
        """Without it a peer could keep a connection that was closed, and speak on for ever."""
        peer = self.peer().joins()
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        peer.gives(frame(TEXT, HELLO))
        self.clock.advance(CLOSE_TIMEOUT_S - 0.1)
        self.assertIsNone(peer.socket.lost)
        self.clock.advance(0.1)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)

    def test_nothing_after_the_close_frame(self) -> None:
        """Without it a browser would get messages on a connection that is closing (RFC 6455 section 5.5.1)."""
        peer = self.peer().joins()
        peer.hears()
        self.bench.factory.end(peer.protocol, Close.GOING_AWAY, "front going away")
        self.assertFalse(peer.protocol.send(b"{}"))
        peer.protocol.ping(b"1")
        peer.protocol.close(Close.DONE, "")
        peer.socket.flush()
        self.assertClosed(peer, Close.GOING_AWAY)

    def test_lost_without_a_word(self) -> None:
        """Without it a connection that breaks in the middle of a message would stay in the tables."""
        for data in (b"", frame(TEXT, HELLO)[:10], frame(TEXT, HELLO, fin=False), frame(TEXT, size=1 << 30)):
            peer = self.peer().joins()
            peer.gives(data)
            peer.vanishes()
        self.assertEqual((dict(self.bench.board.clients), self.bench.inside), ({}, []))

    def test_lost_before_it_opened(self) -> None:
        """Without it a connection that never finished its handshake would be counted out without being in."""
        for data in (b"", b"GET /signaling HTTP/1.1\r\n"):
            peer = self.peer()
            peer.gives(data)
            peer.vanishes()
        self.assertEqual(self.bench.factory.getConnectionCount(), 0)

    def test_peer_that_closes_and_reads_nothing(self) -> None:
        """Without it megabytes would wait for ever for one who has said goodbye."""
        peer = self.peer().joins()
        peer.socket.window = 0
        peer.protocol.send(b"x" * 500_000)
        peer.closes()
        self.assertIsNone(peer.socket.lost)
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)

    def test_data_after_the_end(self) -> None:
        """Without it what TLS still delivers after the end would be collected."""
        peer = self.peer().joins()
        peer.socket.window = 0
        peer.closes()
        for _ in range(10):
            peer.protocol.dataReceived(b"x" * 65_536)
        self.assertEqual(peer.protocol.data, b"")

    def test_drop(self) -> None:
        """Without it a peer that is silent would be sent a close frame that it cannot answer."""
        peer = self.peer().joins()
        peer.hears()
        peer.protocol.drop("silent")
        self.assertEqual((dict(self.bench.board.clients), peer.takes()), ({}, []))
        self.clock.advance(0)
        self.assertEqual(peer.socket.lost.value.__class__.__name__, "ConnectionAborted")
        peer.protocol.drop("again")


class SlowConsumerTests(SignalingTestCase):
    """A peer that reads slowly, or not at all."""

    def setUp(self) -> None:
        """A client whose network takes nothing any more."""
        super().setUp()
        self.client = self.peer().joins()
        self.client.hears()
        self.client.socket.window = 0

    def waiting(self) -> int:
        """What waits for it, in bytes."""
        waiting = waiting_bytes(self.client.socket)
        assert waiting is not None
        return waiting

    def test_cut_at_the_cap(self) -> None:
        """Without it one client that does not read would fill the memory (Twisted pauses again at every write)."""
        sent = 0
        while self.client.protocol.send(b"x" * 10_000):
            sent += 1
            self.assertLess(sent, 200)
        self.assertGreater(sent, 100)
        self.assertLessEqual(self.waiting(), WRITE_BUFFER_BYTES + 200)
        self.assertEqual(dict(self.bench.board.clients), {})
        self.client.socket.window = 1 << 60
        self.client.socket.flush()
        self.assertEqual(len(self.client.takes()[:-1]), sent)
        self.assertEqual(self.bench.counters.closes["4413"], 1)

    def test_close_frame_waits_and_then_the_connection_is_cut(self) -> None:
        """Without it one who never reads would keep its megabyte."""
        while self.client.protocol.send(b"x" * 10_000):
            pass
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertIsNotNone(self.client.socket.lost)

    def test_slow_but_steady(self) -> None:
        """Without it a busy worker would be cut whose buffer is never quite empty."""
        for _ in range(1000):
            self.assertTrue(self.client.protocol.send(b"x" * 10_000))
            self.client.socket.window = max(0, self.waiting() - 100_000)
            self.client.socket.flush()
        self.assertGreater(len(self.client.socket.out), 8 * WRITE_BUFFER_BYTES)

    def test_caught_up(self) -> None:
        """Without it what went out long ago would count."""
        for _ in range(3):
            for _ in range(90):
                self.assertTrue(self.client.protocol.send(b"x" * 10_000))
            self.client.socket.window = 1 << 60
            self.client.socket.flush()
            self.assertEqual(self.client.protocol.held_back, -1)
            self.client.socket.window = 0

    def test_pings_and_messages_count_alike(self) -> None:
        """Without it the pings to a worker that hangs would pile up."""
        while self.client.protocol.send(b"x" * 10_000):
            if self.waiting() > WRITE_BUFFER_BYTES - 15_000:
                break
        for _ in range(1000):
            self.client.protocol.ping(b"x" * 100)
        self.assertLessEqual(self.waiting(), WRITE_BUFFER_BYTES + 200)
        self.assertEqual(dict(self.bench.board.clients), {})

    def test_answers_to_pings_do_not_pile_up(self) -> None:
        """Without it one who pings and does not read would fill the memory with our answers."""
        self.client.protocol.send(b"x" * 70_000)
        for number in range(10_000):
            self.client.protocol.dataReceived(frame(PING, b"%d" % number))
        self.assertLess(self.waiting(), 71_000)
        self.client.socket.window = 1 << 60
        self.client.socket.flush()
        self.assertEqual(self.client.takes()[1:], [(PONG, b"9999")])
        self.client.protocol.send(b"x" * 70_000)
        self.client.protocol.send(b"x" * 70_000)
        self.assertEqual([opcode for opcode, _ in self.client.takes()], [TEXT, TEXT])

    def test_errors_count_too(self) -> None:
        """Without it one who sends rubbish and does not read would fill the memory with our errors."""
        for _ in range(20_000):
            self.client.protocol.dataReceived(text(type="bye", to="nobody"))
        self.assertLess(self.waiting(), WRITE_BUFFER_BYTES + 1000)
        self.assertEqual(dict(self.bench.board.clients), {})

    def test_what_waits_below_tls(self) -> None:
        """Without it an encrypted connection would be cut at an estimate, or the attribute be gone unnoticed."""
        socket = MemorySocket(self.clock)

        class Wrapper:
            transport = socket

        socket.write(b"x" * 1000)
        socket.write(b"x" * 100)
        self.assertEqual((waiting_bytes(socket), waiting_bytes(Wrapper())), (1100, 1100))
        socket.window = 300
        socket.protocol = self.client.protocol
        socket.doWrite()
        socket.write(b"x" * 10)
        self.assertEqual(waiting_bytes(socket), 810)
        self.assertIsNone(waiting_bytes(object()))
