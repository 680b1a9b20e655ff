"""The cluster's service: which frame is whose, and what each of them shows."""

from __future__ import annotations

from random import Random
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.service import TURN_S, Cluster
from kollator.cluster.wire import Frame, Ping, ToClient, ToWorker, Undelivered
from kollator.pool.pool import Pool
from kollator.settings import Settings
from tests.fronts import Disk, open_store
from tests.link_net import any_clock
from tests.switchboard_bench import Bench


class Links:
    """The links to both peers; what is sent over them is kept."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Frame]] = []

    def send(self, peer: str, frame: Frame) -> bool:
        self.sent.append((peer, frame))
        return True

    def up(self) -> list[str]:
        return ["b", "c"]

    def cut_all(self) -> None: ...


class ServiceTests(SynchronousTestCase):
    """A front with two peers."""

    def setUp(self) -> None:
        """Both links are there."""
        self.clock, self.bench, self.links = Clock(), Bench(1), Links()
        self.clock.advance(1000.0)
        store = open_store()
        self.addCleanup(store.close)
        pool = Pool(replicas=4)
        self.cluster = Cluster(
            Settings.load({}, {"NODE_ID": "a", "PEERS": "b=tcp:b:1 c=tcp:c:1", "CLUSTER_KEY": "k" * 32}),
            cast(Any, self.links), store, pool, self.bench.board.abroad, any_clock(self.clock),
            own=store.begin_incarnation("", ""), in_store=Disk(), apply=pool.apply_all, restate=lambda row: None,
            reincarnated=lambda row: None, uniform=Random(1).uniform, wall=lambda: 1e9, loop_failed=lambda name: None,
        )
        self.bench.board.elsewhere = self.cluster.exchange
        for peer in ("b", "c"):
            self.cluster.established(peer)

    def silent_s(self, peer: str) -> float:
        """How long a peer has not been heard."""
        return self.cluster.member.election.silent_s(peer, self.clock.seconds())

    def test_what_is_relayed_shows_life(self) -> None:
        """Without it a front that is busy with signaling could be declared dead, and its workers with it."""
        frames = (ToClient("nobody", "w", b"{}"), ToWorker("nobody", "x", b"{}"))
        for number in range(2000):
            self.clock.advance(0.003)
            self.cluster.received("b", frames[number % 2])
            self.assertLessEqual(self.silent_s("b"), TURN_S + 0.001)
            self.cluster.member.tick()
        self.assertGreater(self.silent_s("c"), 5.0)

    def test_clock_set_back(self) -> None:
        """Without it nobody would be heard any more until the clock is where it was."""
        self.cluster.received("b", ToWorker("nobody", "x", b"{}"))
        self.clock.rightNow -= 500.0
        for _ in range(300):
            self.clock.advance(0.1)
            self.cluster.received("c", Ping(1))
            self.cluster.received("b", ToWorker("nobody", "x", b"{}"))
            self.assertLess(self.silent_s("b"), 0.2)

    def test_each_to_its_own(self) -> None:
        """Without it a message would end at the election, or a ping at the clients."""
        client = self.bench.client()
        client.sent.clear()
        self.cluster.received("b", ToClient(client.id, "w", b'{"type":"bye"}'))
        self.assertEqual(len(client.sent), 1)
        self.links.sent.clear()
        self.cluster.received("c", ToWorker("nobody", "x", b"{}"))
        ((peer, refusal),) = self.links.sent
        self.assertEqual((peer, type(refusal)), ("c", Undelivered))
        self.clock.advance(3.0)
        self.cluster.received("c", Ping(1))
        self.assertEqual(self.silent_s("c"), 0.0)
