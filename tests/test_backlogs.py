"""What waits to be written to all WebSockets together has a bound, and nobody pays for it but who does not read."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling.backlogs import RELIEF, UNSEEN_BYTES, Backlogs, waiting_bytes
from tests import signaling_bench
from tests.signaling_bench import HELLO, TEXT, WRITE_BUFFER_BYTES, Peer, SignalingTestCase, frame

MAX_BYTES = 100_000


class Socket:
    """A transport with Twisted's buffers, to the extent that they are looked at."""

    offset = 0
    _tempDataLen = 0

    def __init__(self) -> None:
        self.dataBuffer = b""


class Reader:
    """A connection as the WebSocket is one: it enters and leaves as its transport tells it to."""

    def __init__(self, backlogs: Backlogs) -> None:
        self.backlogs = backlogs
        self.transport = Socket()
        self.held_back = -1
        self.was_cut = False

    @property
    def waiting(self) -> int:
        """What waits."""
        return len(self.transport.dataBuffer)

    def write(self, size_bytes: int) -> None:
        """The front writes."""
        if self.was_cut:
            return
        self.transport.dataBuffer += bytes(size_bytes)
        if self.held_back < 0 and self.waiting > UNSEEN_BYTES:
            self.backlogs.enter(self)
        if self.held_back >= 0:
            self.held_back += size_bytes
            self.backlogs.grew(size_bytes)

    def read(self, size_bytes: int) -> None:
        """The peer reads."""
        if not self.was_cut:
            self.transport.dataBuffer = self.transport.dataBuffer[size_bytes:]
            if not self.waiting:
                self.backlogs.leave(self)

    def cut(self) -> None:
        """All that waits is let go."""
        assert not self.was_cut
        self.was_cut = True
        self.write(5)
        self.transport.dataBuffer = b""


class BacklogsTests(SynchronousTestCase):
    """The sum."""

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 9), st.one_of(st.integers(1, 30_000), st.integers(-40_000, -1))), max_size=100
        )
    )
    def test_bounded(self, steps: list[tuple[int, int]]) -> None:
        """Without it the sum could pass its bound, or somebody be cut without need, or not the one with the most."""
        backlogs = Backlogs(MAX_BYTES)
        readers = [Reader(backlogs) for _ in range(10)]
        for number, change in steps:
            reader = readers[number]
            before = {other: other.waiting for other in readers}
            if change > 0 and not reader.was_cut:
                before[reader] += change
            if change > 0:
                reader.write(change)
            else:
                reader.read(-change)
            behind = [other for other in readers if other.held_back >= 0]
            unseen = sum(other.waiting for other in readers if other.held_back < 0)
            self.assertLessEqual(sum(other.waiting for other in behind), MAX_BYTES)
            self.assertLessEqual(unseen, len(readers) * UNSEEN_BYTES)
            self.assertLessEqual(backlogs.total_bytes, MAX_BYTES)
            self.assertGreaterEqual(backlogs.total_bytes, sum(other.waiting for other in behind))
            self.assertEqual(len(backlogs), len(behind))
            cut = [other for other in before if other.was_cut and before[other]]
            if cut:
                self.assertGreater(sum(before.values()), MAX_BYTES * (1 - RELIEF) - len(readers) * UNSEEN_BYTES)
                self.assertGreaterEqual(
                    min(before[other] for other in cut) + UNSEEN_BYTES, max(other.waiting for other in readers))
        for reader in readers:
            backlogs.leave(reader)
            backlogs.leave(reader)
        self.assertEqual((backlogs.total_bytes, len(backlogs)), (0, 0))

    def test_seldom_looked_through(self) -> None:
        """Without it each write near the bound would cost a look at every connection."""
        backlogs = Backlogs(MAX_BYTES)
        looks = 0
        relieve = backlogs._relieve

        def counted() -> None:
            nonlocal looks
            looks += 1
            relieve()

        self.patch(Backlogs, "_relieve", lambda self: counted())
        readers = [Reader(backlogs) for _ in range(4)]
        for _ in range(13):
            for reader in readers:
                reader.write(1900)
        self.assertEqual((looks, [reader.was_cut for reader in readers]), (0, [False] * 4))
        for _ in range(2000):
            for reader in readers:
                reader.write(100)
                reader.read(100)
        self.assertLess(looks, 100)
        self.assertEqual(sum(reader.was_cut for reader in readers), 1)

    def test_slow_but_steady(self) -> None:
        """Without it who always has a little waiting would be cut for what it has read long since."""
        backlogs = Backlogs(MAX_BYTES)
        readers = [Reader(backlogs) for _ in range(4)]
        for reader in readers:
            reader.write(10_000)
        for _ in range(200):
            for reader in readers:
                reader.write(5000)
                reader.read(5000)
        self.assertEqual([reader.was_cut for reader in readers], [False] * 4)

    def test_one_that_fails(self) -> None:
        """Without it one connection that cannot be cut would make the sum wrong for all others, for good."""
        backlogs = Backlogs(MAX_BYTES)
        reader = Reader(backlogs)
        self.patch(reader, "cut", lambda: 1 / 0)
        self.assertRaises(ZeroDivisionError, reader.write, MAX_BYTES + 1)
        self.assertEqual((backlogs.total_bytes, len(backlogs)), (0, 0))
        other = Reader(backlogs)
        other.write(MAX_BYTES * 2)
        self.assertTrue(other.was_cut)


class TogetherTests(SignalingTestCase):
    """Clients that do not read, each of them within its own cap."""

    bound = 2 * 1024 * 1024

    def setUp(self) -> None:
        """A front with a bound of twice the cap of one connection."""
        self.patch(signaling_bench, "FACTORY", partial(signaling_bench.FACTORY, write_buffers_bytes=self.bound))
        super().setUp()
        self.backlogs = self.bench.factory.backlogs

    def stuck(self) -> Peer:
        """A client whose network takes nothing any more."""
        peer = self.peer().joins()
        peer.hears()
        peer.socket.window = 0
        return peer

    def waiting(self, peers: list[Peer]) -> int:
        """What waits for all that are still there."""
        for peer in peers:
            peer.socket.flush()
        self.clock.advance(0)
        return sum(waiting_bytes(peer.socket) or 0 for peer in peers if peer.socket.lost is None)

    def test_those_with_the_most(self) -> None:
        """Without it enough clients that read nothing, each within its cap, would fill the memory."""
        greedy, modest = [self.stuck() for _ in range(3)], [self.stuck() for _ in range(5)]
        reader = self.peer().joins()
        reader.hears()
        for peer in modest:
            self.assertTrue(peer.protocol.send(b"x" * 50_000))
        for _ in range(100):
            for peer in greedy:
                peer.protocol.send(b"x" * 10_000)
                self.assertLess(self.waiting([*greedy, *modest]), self.bound + 20_000)
            self.assertTrue(reader.protocol.send(b"x" * 10_000))
            reader.socket.flush()
        self.assertEqual(sum(peer.socket.lost is not None for peer in greedy), 2)
        self.assertEqual([peer.socket.lost for peer in [*modest, reader]], [None] * 6)
        self.assertEqual(self.bench.counters.closes["4413"], 2)
        notes = [fields["reason"] for event, fields in self.bench.notes if event == "limit-hit"]
        self.assertEqual(notes, ["slow-consumer"] * 2)
        self.assertEqual(len(self.bench.board.clients), 7)

    def test_caught_up(self) -> None:
        """Without it clients that read a little late would be cut for what they have read long since."""
        peers = [self.stuck() for _ in range(3)]
        for _ in range(20):
            for peer in peers:
                for _ in range(50):
                    self.assertTrue(peer.protocol.send(b"x" * 10_000))
            self.assertEqual(len(self.backlogs), 3)
            for peer in peers:
                peer.socket.window = 1 << 60
                peer.socket.flush()
                peer.socket.window = 0
            self.assertEqual((self.backlogs.total_bytes, len(self.backlogs)), (0, 0))

    def test_the_one_that_is_written_to(self) -> None:
        """Without it a message would count as sent that was let go with its connection."""
        bench = self.bench
        bench.factory.backlogs = self.backlogs = Backlogs(WRITE_BUFFER_BYTES // 2)
        peer = self.stuck()
        sent = 0
        while peer.protocol.send(b"x" * 10_000):
            sent += 1
            self.assertLess(sent, 60)
        self.assertEqual(sent, (WRITE_BUFFER_BYTES // 2 - UNSEEN_BYTES) // 10_004)
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)
        self.assertEqual((self.backlogs.total_bytes, len(self.backlogs), dict(bench.board.clients)), (0, 0, {}))

    def test_measured_on_the_way(self) -> None:
        """Without it a reader that is slow and steady would be measured at every single message."""
        peer = self.stuck()
        for _ in range(500):
            self.assertTrue(peer.protocol.send(b"x" * 10_000))
            peer.socket.window = max(0, (waiting_bytes(peer.socket) or 0) - 100_000)
            peer.socket.flush()
            self.assertLess(self.backlogs.total_bytes, WRITE_BUFFER_BYTES + 20_000)
            peer.socket.window = 0

    def test_two_hundred(self) -> None:
        """Without it 200 stuck readers could together hold what 200 caps make."""
        peers = [self.stuck() for _ in range(200)]
        for _ in range(12):
            for peer in peers:
                peer.protocol.send(b"x" * 3000)
        self.assertLess(self.waiting(peers), self.bound + 200 * UNSEEN_BYTES)
        left = [peer for peer in peers if peer.socket.lost is None]
        self.assertTrue(0 < len(left) < 200)
        for peer in left:
            self.assertIs(peer.protocol.state, peer.protocol.STATE_OPEN)

    def test_closed_for_its_own_cap(self) -> None:
        """Without it what waits behind a close frame would not count, though it is there until the connection ends."""
        peer = self.stuck()
        while peer.protocol.send(b"x" * 10_000):
            pass
        self.assertGreater(self.backlogs.total_bytes, WRITE_BUFFER_BYTES - 20_000)
        self.clock.advance(10)
        self.clock.advance(0)
        self.assertEqual((peer.socket.lost is None, self.backlogs.total_bytes), (False, 0))

    def test_its_own_doing(self) -> None:
        """Without it a client that asks and does not read would not be measured by what it is answered."""
        peers = [self.stuck() for _ in range(4)]
        bad: Any = frame(TEXT, HELLO)
        for peer in peers:
            for _ in range(6000):
                peer.protocol.dataReceived(bad)
        self.assertLess(self.waiting(peers), self.bound + 20_000)
