"""A target behind the links: frames of peers that know the key, to election, sync and exchange as they are wired."""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar, cast

import msgspec
from twisted.internet.task import Clock

from kollator.cluster.readies import READIES_MAX
from kollator.cluster.replica import MERGING_MAX, WINDOW
from kollator.cluster.service import Cluster
from kollator.cluster.wire import BadFrame, ToWorker, decode, encode
from kollator.pool.pool import Pool
from kollator.settings import Settings
from kollator.state.rows import WorkerRow
from kollator.state.tables import TABLES, problem, to_stored
from tests.fronts import Disk, open_store
from tests.fuzz.oracle import Broken, grown, tables
from tests.fuzz.peerframes import FRAMES, MESSAGE, hostile_frame, pack
from tests.fuzz.target import Target, told
from tests.link_net import any_clock
from tests.switchboard_bench import Bench

PEERS = ("b", "c")
ROWS = {"member._pool": 10**6, "exchange": 10**6, "member._store": 10**6, "member._sync._store": 10**6}
"""What a peer that has the key may fill with rows and names."""


class Links:
    """The links to both peers; what is sent over them is looked at and kept."""

    def __init__(self, target: MemberTarget) -> None:
        self.sent: list[tuple[str, Any]] = []
        self._target = target

    def send(self, peer: str, sent: Any) -> bool:
        """Takes a frame that another front takes too. Raises ``Broken`` for any other."""
        try:
            decode(encode(sent))
        except BadFrame as bad:
            raise Broken(f"a frame that no front takes ({bad}): {sent!r}") from None
        self.sent.append((peer, sent))
        self._target.reached[f"sent {sent.__struct_config__.tag}"] += 1
        return True

    def up(self) -> list[str]:
        """Both."""
        return list(PEERS)

    def cut_all(self) -> None:
        """Nothing: they are made anew at once."""


class MemberTarget(Target):
    """Frames of peers that have the key, to what is behind the link: election, sync with a real store, exchange."""

    name = "member"
    cases: ClassVar = 3000
    batch: ClassVar = 100

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        clock = self.clock = Clock()
        self.bench = Bench(seed)
        self.disk = Disk()
        self.store = open_store()
        self.pool = Pool(replicas=4)
        own = self.store.begin_incarnation("", "")
        self.pool.apply_all(self.store.rows())
        self.links = Links(self)
        self.cluster = Cluster(
            Settings.load({}, {"NODE_ID": "front-1", "PEERS": "b=tcp:b:1 c=tcp:c:1", "CLUSTER_KEY": "k" * 32}),
            cast(Any, self.links), self.store, self.pool, self.bench.board.abroad, any_clock(clock), own=own,
            in_store=self.disk, apply=self.pool.apply_all, restate=lambda row: None,
            reincarnated=lambda row: self.pool.apply_all([row]), uniform=Random(seed).uniform,
            wall=lambda: self.bench.wall, loop_failed=lambda name: None,
        )  # fmt: skip
        self.bench.board.elsewhere = self.cluster.exchange
        self.client, self.worker = self.bench.client(), self.bench.worker("bystander")
        self.heard: list[bytes] = []
        for wire in (self.client, self.worker):  # a peer that has the key may have anything sent on
            wire.send = self._heard  # type: ignore[method-assign]
        for peer in PEERS:
            self.cluster.established(peer)
        self.before = tables(self.cluster)

    def _heard(self, payload: bytes) -> bool:
        self.heard.append(payload)
        return True

    def case(self) -> None:
        """One frame of one of the peers."""
        source = self.source
        peer = source.choice(PEERS)
        payload = hostile_frame(self.mutator, [self.client.id, "bystander", "front-1"])
        if self.mutator.chance(0.3):
            payload = self._answer()
        self.said.append((peer, payload))
        received = told(BadFrame, lambda: decode(payload))
        if isinstance(received, BadFrame):
            self.reached["bad frame"] += 1
            return
        self.reached[received.__struct_config__.tag] += 1
        self.cluster.received(peer, received)
        if self.mutator.chance(0.05):
            self.cluster.lost(peer)
            self.cluster.established(peer)
        if self.mutator.chance(0.05):
            self.disk.held = not self.disk.held
        while len(self.disk) and (not self.disk.held or self.mutator.chance(0.5)):
            self.disk.turn()
        self._pass(source.choice((0.0, 0.0, 0.01, 0.2)))
        del self.links.sent[:-50]
        self.heard.clear()

    def _answer(self) -> bytes:
        """A frame that goes with what the member has said last."""
        for _, sent in reversed(self.links.sent):
            values = msgspec.to_builtins(sent, builtin_types=(bytes,))
            if isinstance(values, list):
                return pack(self.mutator.value(values) if self.mutator.chance(0.7) else values)
        return encode(self.source.choice(FRAMES))

    def _pass(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.05))):
            self.clock.advance(seconds and 0.05)
            self.bench.now += seconds and 0.05
            self.cluster.member.tick()
        depths = self.cluster.member.depths()
        for name, bound in {"in flight": WINDOW, "merging": MERGING_MAX, "reads": 3, "readies": READIES_MAX}.items():
            if depths[name] > bound:
                raise Broken(f"{name} is {depths[name]}, over {bound}")

    def settle(self) -> None:
        """The other peer is served still, and all rows are what a row may be."""
        self.disk.held = False
        for _ in range(200):
            while len(self.disk):
                self.disk.turn()
            self._pass(0.05)
            if not len(self.disk):
                break
        self.bench.board.turn(self.bench.now)
        self.heard.clear()
        self.cluster.received("c", ToWorker("bystander", "stranger", MESSAGE))
        if self.heard != [MESSAGE]:
            raise Broken("a message of the other peer does not reach the worker here")
        for row in self.store.rows():
            stored = to_stored(row)
            table = next(table for table in TABLES.values() if table.row is type(row))
            if problem(table, stored) is not None:
                raise Broken(f"a row that may not be: {row!r}")
        before = self.store.db_version()
        self.store.write([WorkerRow("after", capacity=7)])
        if not before <= self.store.db_version() <= before + 1 or before > 1_000_000:
            raise Broken(f"the log went from {before} to {self.store.db_version()}")
        # Of clients and workers of other fronts rows and ways are remembered (``exchange.ROUTES``).
        more = grown(self.before, tables(self.cluster), 64, ROWS)
        if more:
            raise Broken("; ".join(more))

    def close(self) -> None:
        """The store is closed."""
        self.cluster.member.stop()
        self.store.close()


