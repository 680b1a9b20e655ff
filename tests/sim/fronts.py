"""One front of the simulation: the real parts of a front's cluster side, and the glue between them.

The glue is what ``front.py`` and the registry do: a worker's news becomes rows of the roster, the writer stores
them, ``committed`` sends them, and what other fronts wrote goes to the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred

from kollator.cluster.election import Election, Quorum
from kollator.cluster.member import Member
from kollator.cluster.wire import Frame, Summary
from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.state.rows import AttachmentRow, FrontRow, Row, WorkerRow
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
        self.held: dict[str, WorkerRow] = {}
        self.writer = Writer(self.store, self._write, clock)
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
            apply=self.pool.apply_all,
            restate=self._restate,
            reincarnated=self._reincarnated,
            retire_after_s=RETIRE_S,
            changed=lambda: changed(self),
        )
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
            self._world.at(self.paused_until, self._run, call, *args)
            return
        call(*args)

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

    def _write(self, call: Callable[..., Any], batch: dict[Any, Row]) -> Deferred[Any]:
        def written(result: Any) -> Any:
            if self.alive:
                # Rows that others write too go to the pool in the order of the store, and in no other.
                self.pool.apply_all([row for row in batch.values() if not isinstance(row, AttachmentRow)])
                self.member.committed(batch.values())
            return result

        return self.disk.in_store(call, batch).addCallback(written)

    def say(self, rows: Sequence[Row]) -> None:
        """Rows of this front: to the pool at once, and to the disk."""
        if rows:
            self.pool.apply_all(rows)
            self.writer.write(rows).addErrback(lambda failure: None)

    def join(self, worker: WorkerRow) -> None:
        """A worker registers: it counts when it is on disk."""
        self.held[worker.id] = worker
        self.writer.write(self.roster.joined(worker, worker)).addCallbacks(
            lambda _: self.pool.apply_all(self.roster.rows(worker.id)[1:]),
            lambda failure: self._leave(worker),
        )

    def leave(self, worker: str) -> None:
        """Its connection is gone."""
        if worker in self.held:
            self._leave(self.held[worker])

    def _leave(self, worker: WorkerRow) -> None:
        if self.alive and self.held.get(worker.id) is worker:
            del self.held[worker.id]
            self.say(self.roster.left(worker.id, worker))

    def _restate(self, row: AttachmentRow) -> None:
        true = next((own for own in self.roster.rows(row.worker) if isinstance(own, AttachmentRow)), None)
        if true is None:
            if row.state == "down" or row.incarnation < self.member.own.incarnation:
                return
            true = AttachmentRow(row.worker, self.name, self.member.own.incarnation, "down")
        if row != true:
            self.say([true])

    def _reincarnated(self, own: FrontRow) -> None:
        roster = Roster(self.name, own.incarnation)
        rows: list[Row] = []
        for worker in self.held.values():
            rows += roster.joined(worker, worker)
            state = next(row.state for row in self.roster.rows(worker.id) if isinstance(row, AttachmentRow))
            if state == "full":
                rows += roster.status(worker.id, worker.capacity, False)
            elif state == "draining":
                rows += roster.status(worker.id, 0, True)
            elif state == "down":
                rows += roster.unwell(worker.id)
        self.roster = roster
        self.pool.apply_all([own, *rows])
        self.say(rows)
