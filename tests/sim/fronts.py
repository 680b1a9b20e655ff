"""One front of the simulation: the real parts of a front that are about its rows, wired together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any

from kollator.cluster.election import Election, Quorum
from kollator.cluster.member import Member
from kollator.cluster.wire import Frame, Summary
from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.registry import Registry
from kollator.signaling.connection import Claim
from kollator.state.rows import AttachmentRow, PinRow, Row, WorkerRow
from kollator.state.store import Store
from kollator.state.writer import Writer
from tests.sim.disk import Disk
from tests.sim.network import Network
from tests.sim.world import SkewedClock, World

TICK_S = 0.05
HEARTBEAT_S = 0.1
TIMEOUT_S = 0.5
RETIRE_S = 3.0
REPLICAS = 4
"""Ring points of a worker: few, as the ring is not what is tested here."""


class Front:
    """A front while it lives. ``crashed`` is told that it must end, in the middle of whatever it does."""

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        world: World,
        network: Network,
        rng: Random,
        clock: SkewedClock,
        *,
        image: bytes | None,
        new_id: Callable[[], bytes],
        quorum: Quorum,
        changed: Callable[[Front], object],
        stored: Callable[[Front], bool],
    ) -> None:
        self.name = name
        self.alive = True
        self.paused_until = 0.0
        self._held: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.clock = clock
        self._world = world
        self._network = network
        self._rng = rng
        self.disk = Disk(self.later, rng, lambda: stored(self) and self.alive)
        self.store = Store.open(":memory:", node_id=name, image=image, new_site_id=new_id)
        own = self.store.begin_incarnation("", "")
        self.durable = self.store.image()
        self.durable_vote = self.store.vote()
        self.pool = Pool(replicas=REPLICAS)
        self.pool.apply_all(self.store.rows())
        self.roster = Roster(name, own.incarnation)
        self.held: dict[str, Claim] = {}
        self.writer = Writer(self.store, self.disk.in_store, clock)
        self.registry = Registry(
            self.pool,
            self.roster,
            self.writer,
            lost=lambda workers: None,
            joined=lambda worker: None,
            left=lambda worker, politely: None,
        )
        term, voted_for = self.store.vote()
        election = Election(
            name,
            names,
            quorum=quorum,
            stands=True,
            heartbeat_s=HEARTBEAT_S,
            timeout_s=TIMEOUT_S,
            draw=rng.uniform,
            now=clock.seconds(),
            term=term,
            voted_for=voted_for,
        )
        self.member = Member(
            election,
            self.store,
            self.pool,
            clock,
            own=own,
            in_store=self.disk.in_store,
            send=lambda peer, frame: network.send(name, peer, frame),
            cut_all=lambda: network.cut_all(name),
            apply=self.registry.merged,
            restate=self.registry.restate,
            reincarnated=self.registry.reincarnated,
            retire_after_s=RETIRE_S,
            changed=lambda: changed(self),
        )
        self.writer.committed = self._committed
        self.later(rng.uniform(0, TICK_S), self._tick)

    # -- time ---------------------------------------------------------------------------------------------------------

    def later(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Calls after that long on the true clock, if this life goes on; a paused front's calls wait."""
        if delay_s <= 0 and self.paused_until <= self._world.now:
            self._run(call, *args)
        else:
            self._world.at(self._world.now + delay_s, self._run, call, *args)

    def _run(self, call: Callable[..., Any], *args: Any) -> None:
        if not self.alive:
            return
        if self.paused_until > self._world.now:
            self._held.append((call, args))
            self._world.at(self.paused_until, self.wake)
            return
        call(*args)

    def wake(self) -> None:
        """Makes the calls that have waited for the end of a pause."""
        held, self._held = self._held, []
        for call, args in held:
            self._run(call, *args)

    def _tick(self) -> None:
        self.member.tick()
        due_s = (self.member.election.due - self.clock.seconds()) / self.clock.rate
        self._world.at(self._world.now + min(TICK_S, max(0.001, due_s)), self._run, self._tick)

    def end(self) -> bytes:
        """The life is over; returns what is on the disk."""
        self.alive = False
        image = self.store.image()
        self.member.stop()
        self.store.close()
        return image

    # -- the network --------------------------------------------------------------------------------------------------

    def link_up(self, peer: str) -> None:
        """A link was made."""
        self.member.link_up(peer)

    def link_down(self, peer: str) -> None:
        """It is gone."""
        self.member.link_down(peer)

    def received(self, peer: str, frame: Frame) -> None:
        """A frame came."""
        self.member.received(peer, frame)

    def summary(self, peer: str) -> Summary:
        """For pings."""
        return self.member.summary(peer)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _committed(self, rows: Collection[Row]) -> None:
        # Rows that others write too go to the pool in the order of the store, whoever waits for them or not.
        self.pool.apply_all([row for row in rows if not isinstance(row, AttachmentRow)])
        self.member.committed(rows)

    def join(self, worker: WorkerRow) -> None:
        """A worker registers: it counts when it is on disk."""
        claim = self.held[worker.id] = Claim(worker.id, worker.region, worker.capacity, worker.address, "")

        def done(stored: bool) -> None:
            if not stored and self.held.get(worker.id) is claim:
                del self.held[worker.id]

        self.registry.worker_joined(claim, done)

    def leave(self, worker: str) -> None:
        """Its connection is gone."""
        claim = self.held.pop(worker, None)
        if claim is not None:
            self.registry.worker_left(claim)

    def pin(self, pin: PinRow) -> None:
        """An operator ties a range to a worker."""
        self.writer.write([pin]).addErrback(lambda failure: None)
