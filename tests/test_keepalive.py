"""Who is pinged and dropped when nothing comes any more."""

from __future__ import annotations

from kollator.signaling.keepalive import TURN_S, KeepAlive
from tests.signaling_bench import PING, PONG, Peer, SignalingTestCase, frame, text

INTERVAL_S = 30.0


class KeepAliveTests(SignalingTestCase):
    """A keep-alive of thirty seconds over real connections, turned by hand."""

    def setUp(self) -> None:
        """Sweep the clients, as the front does."""
        super().setUp()
        self.keepalive = KeepAlive(INTERVAL_S, lambda: [*self.bench.board.clients.values()])  # type: ignore[list-item]

    def turn(self, seconds: float = INTERVAL_S) -> None:
        """Let so much time pass."""
        for _ in range(round(seconds / TURN_S)):
            self.clock.advance(TURN_S)
            self.keepalive.turn()

    def clients(self, count: int) -> list[Peer]:
        """Clients that were welcomed."""
        peers = [self.peer().joins() for _ in range(count)]
        for peer in peers:
            peer.hears()
        return peers

    def pings(self, peer: Peer) -> int:
        """How often a client was pinged."""
        frames = peer.takes()
        self.assertEqual({opcode for opcode, _ in frames} - {PING}, set())
        return len(frames)

    def test_each_once_an_interval(self) -> None:
        """Without it few clients would be pinged every few seconds, or the last of many never."""
        for count in (1, 3, 100):
            peers = self.clients(count)
            self.turn()
            for _ in range(3):
                for peer in peers:
                    self.assertEqual(self.pings(peer), 1)
                    peer.gives(frame(PONG))
                self.turn()
            for peer in peers:
                peer.closes()

    def test_spread_over_the_interval(self) -> None:
        """Without it thousands of pings would be sent in one turn."""
        peers = self.clients(300)
        most = 0
        for _ in range(round(INTERVAL_S)):
            self.turn(TURN_S)
            most = max(most, sum(self.pings(peer) for peer in peers))
        self.assertLess(most, 60)

    def test_silent_ones_are_dropped(self) -> None:
        """Without it clients that vanished without a word would stay for ever."""
        silent, answering, talking = self.clients(3)
        self.turn()
        answering.gives(frame(PONG))
        talking.gives(text(type="assign"))
        self.turn()
        self.clock.advance(0)
        self.assertIsNotNone(silent.socket.lost)
        self.assertEqual(list(self.bench.board.clients), [answering.protocol.id, talking.protocol.id])
        self.assertIn(silent.protocol.id, self.bench.board.mailboxes)

    def test_not_before_a_whole_interval(self) -> None:
        """Without it a client would be dropped for a pause of seconds, because others came and went."""
        kept = self.clients(1)[0]
        for _ in range(round(INTERVAL_S) * 3):
            others = self.clients(5)
            self.turn(TURN_S)
            for peer in others:
                peer.closes()
            if kept.takes():
                for _ in range(round(INTERVAL_S) - 1):
                    self.turn(TURN_S)
                self.assertIsNone(kept.socket.lost)
                kept.gives(frame(PONG))

    def test_those_that_left_are_let_be(self) -> None:
        """Without it the sweep would stumble over a connection that was closed since it began."""
        peers = self.clients(4)
        self.keepalive.turn()
        peers[0].vanishes()
        peers[1].closes()
        self.bench.factory.end(peers[2].protocol, 1001, "front going away")
        self.turn(INTERVAL_S * 2)
        self.clock.advance(0)
        self.assertEqual((dict(self.bench.board.clients), self.bench.inside), ({}, []))
