"""A simulated cluster, what can be done to it, and what must hold whatever is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from kollator.cluster.readies import READIES_MAX
from kollator.cluster.replica import MERGING_MAX, WINDOW
from kollator.cluster.wire import Ack, Changes, Frame, Heartbeat, HeartbeatReply, Vote, VoteReply
from kollator.pool.pool import Pool
from kollator.state.changes import START
from kollator.state.rows import AttachmentRow, FrontRow
from tests.sim.disk import FAST_S
from tests.sim.fronts import REPLICAS, Front
from tests.sim.network import FAIR_S, Network
from tests.sim.world import SkewedClock, World

NAMES = [f"f{number}" for number in range(1, 65)]
HEAL_S = 10.0
"""All fronts are the same at the latest so many simulated seconds after everything works again."""
AFTER_S = 2.0
"""What happened last may show so long: a leader whose clock was set back is late with a heartbeat, and loses office."""
QUIET_S = 4.0
"""And then nothing changes for so long, which is longer than it takes to retire a front."""
LOOK_S = 0.1
TRACE_LINES = 300


class Broken(AssertionError):
    """An invariant does not hold. The text has the seed and what happened last."""


class Cluster:
    """``size`` fronts that run, linked as the network allows. Everything follows from ``seed``."""

    def __init__(self, seed: int, size: int, *, verbose: bool = False) -> None:
        self.seed = seed
        self.rng = Random(f"{seed}/{size}")
        self.world = World()
        self.network = Network(self.world, self.rng)
        self.network.sent = self._check_sent
        self.names = NAMES[:size]
        self.majority = size >= 3
        self.fronts: dict[str, Front] = {}
        self.images: dict[str, bytes] = {}
        """What is on the disks of the fronts that do not run."""
        self.durable: dict[str, bytes] = {}
        """The same, less what a loss of power takes."""
        self.older: dict[str, bytes] = {}
        """What was on the disks a while ago."""
        self.leaders: dict[int, str] = {}
        self.doubtful_term = 0
        """Up to here two leaders in a term are nobody's fault: a front's vote was wiped from its disk."""
        self.crash_at_disk = 0.0
        self.converged_after_s = 0.0
        self.failure: Broken | None = None
        """The first invariant that did not hold: who raises it may be in the middle of a Deferred, which eats it."""
        self._verbose = verbose
        self._trace: deque[tuple[Any, ...]] = deque(maxlen=TRACE_LINES)
        self._clocks = {
            name: SkewedClock(self.world, self.rng.uniform(0, 1e6), self.rng.uniform(0.97, 1.03))
            for name in self.names
        }
        self._ids = 0
        for name in self.names:
            self.start(name, None)

    # -- fronts -------------------------------------------------------------------------------------------------------

    def start(self, name: str, image: bytes | None) -> None:
        """A front starts on what is on its disk; None: nothing is."""
        front = self.fronts[name] = Front(
            name,
            self.names,
            self.world,
            self.network,
            self.rng,
            self._clocks[name],
            image=image,
            new_id=self._new_id,
            quorum="majority" if self.majority else "available",
            changed=self._changed,
            stored=self._stored,
        )
        self.images.pop(name, None)
        self.network.join(front)
        self.note(name, "starts", front.member.own.incarnation, front.store.origin)

    def crash(self, name: str, *, silently: bool) -> None:
        """A front ends as by kill -9; ``silently``: nor does its kernel close its connections."""
        front = self.fronts.pop(name, None)
        if front is None:
            return
        self.note(name, "crashes")
        self.check_acknowledged(front)
        self.durable[name] = front.durable
        self.images[name] = front.end()
        self.network.leave(name, silently=silently)

    def forget_vote(self) -> None:
        """A front will start without the votes it has cast."""
        terms = [front.member.election.term for front in self.fronts.values()]
        self.doubtful_term = max([self.doubtful_term, *terms, *self.leaders])

    def _new_id(self) -> bytes:
        self._ids += 1
        return self._ids.to_bytes(8, "big") + self.rng.randbytes(8)

    # -- time ---------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass; the bounds are checked several times a second, everything else as it happens."""
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.run(min(end, self.world.now + LOOK_S))
            if self.failure is not None:
                raise self.failure
            for front in self.fronts.values():
                self._check_bounds(front)

    def mend(self) -> None:
        """Everything works again."""
        self.note("all", "is well")
        self.network.unreliable = False
        self.network.delay_s = FAIR_S
        self.crash_at_disk = 0.0
        for name in self.names:
            if name not in self.fronts:
                self.start(name, self.images[name])
        for front in self.fronts.values():
            front.paused_until = 0.0
            front.wake()  # not only when its pause would have been over
            front.disk.failing = 0.0
            front.disk.delay_s = FAST_S
        self.network.heal()

    def heal(self, within_s: float = HEAL_S) -> float:
        """Everything works again; returns how long it takes until all fronts are the same. Raises ``Broken``."""
        self.mend()
        self.converged_after_s = self._wait(self.difference, within_s)
        return self.converged_after_s

    def star(self, hub: str) -> None:
        """Everything works, but all fronts reach no other than ``hub``: the rows are the same. Raises ``Broken``."""
        self.mend()
        self.note("all", "have links to", hub, "alone")
        spokes = [name for name in self.names if name != hub]
        self.network.cut(spokes, spokes)
        for number, one in enumerate(spokes):
            for other in spokes[:number]:
                self.network.reset(one, other)
        self._wait(self.row_difference, HEAL_S)

    def _wait(self, difference: Callable[[], str | None], within_s: float) -> float:
        began = self.world.now
        while (why := difference()) is not None:
            if self.world.now - began > within_s:
                raise self.broken(f"not the same {within_s:g} s after everything works again: {why}")
            self.run(LOOK_S)
        return self.world.now - began

    def rest(self) -> None:
        """Nothing happens, so nothing may change. Raises ``Broken``."""
        self.run(AFTER_S)
        self._wait(self.difference, HEAL_S)
        heads = {name: front.store.head() for name, front in self.fronts.items()}
        standings = {name: front.member.standing for name, front in self.fronts.items()}
        self.run(QUIET_S)
        for name, front in self.fronts.items():
            if front.member.standing != standings[name]:
                raise self.broken(f"{name} was {standings[name]} and is {front.member.standing}, without a reason")
            if front.store.head() != heads[name]:
                raise self.broken(f"the rows of {name} change, without a reason")
        why = self.difference()
        if why is not None:
            raise self.broken(f"no longer the same, without a reason: {why}")

    # -- what must hold -----------------------------------------------------------------------------------------------

    def difference(self) -> str | None:
        """Why the fronts are not the same, and as they should be; None when they are."""
        fronts = list(self.fronts.values())
        leading = [front.name for front in fronts if front.member.standing.role == "leader"]
        views = {(front.member.standing.term, front.member.standing.leader) for front in fronts}
        if len(leading) != 1 or len(views) != 1:
            return f"leaders {leading}, views {sorted(map(str, views))}"
        if not self.fronts[leading[0]].member.synchronised:
            return "the leader has not all that its followers have"
        if self.network.linked() != len(fronts) * (len(fronts) - 1) // 2:
            return "not all are linked"
        return self.row_difference()

    def row_difference(self) -> str | None:
        """Why the fronts have not the same rows, or other rows than they should; None when they have."""
        fronts = list(self.fronts.values())
        unwritten = [front.name for front in fronts if front.writer.problem is not None or not front.writer.idle]
        if unwritten:
            return f"{unwritten} have rows that the disk did not take, or not yet"
        if len({front.pool.digest for front in fronts}) != 1:
            return "the digests differ"
        rows = fronts[0].store.rows()
        for front in fronts[1:]:
            others = front.store.rows()
            if others != rows:
                differing = sorted(map(str, set(rows) ^ set(others)))
                return f"{fronts[0].name} and {front.name} differ in {differing[:6]}"
        return self._misstated(rows)

    def _misstated(self, rows: Sequence[Any]) -> str | None:
        whole = Pool(replicas=REPLICAS)
        whole.apply_all(rows)
        attachments = {(row.worker, row.front): row for row in rows if isinstance(row, AttachmentRow)}
        own = {row.id: row for row in rows if isinstance(row, FrontRow)}
        for front in self.fronts.values():
            if front.pool.digest != whole.digest:
                return f"the pool of {front.name} is not what its rows are"
            row = own.get(front.name)
            if row is None or row.incarnation != front.member.own.incarnation or row.retired >= row.incarnation:
                return f"{front.name} lives as {front.member.own} and is told to be {row}"
            for worker in front.held:
                _, stated = front.roster.rows(worker)
                if attachments.get((worker, front.name)) != stated:
                    return f"{front.name} says {stated}, told is {attachments.get((worker, front.name))}"
            for (worker, holder), found in attachments.items():
                ghost = holder == front.name and worker not in front.held and found.state != "down"
                if ghost and found.incarnation >= row.incarnation:
                    return f"{front.name} does not hold what {found} says"
        return None

    def check_acknowledged(self, front: Front) -> None:
        """Whatever this front says it has of others' logs is on its disk."""
        mine: dict[tuple[str, bytes, str], tuple[int, Any]] | None = None
        for other in self.fronts.values():
            cursor = front.store.cursor_of(other.name)
            if other is front or cursor == START or not other.store.knows(cursor):
                continue
            if mine is None:
                changes = front.store.changes_since(START, limit_bytes=1 << 40).changes
                mine = {(change.table, change.pk, change.cid): (change.col_version, change.val) for change in changes}
            heads = other.store.head()
            for change in other.store.changes_since(START, limit_bytes=1 << 40).changes:
                if cursor.epoch != heads.epoch or change.db_version > cursor.db_version:
                    continue
                have = mine.get((change.table, change.pk, change.cid), (-1, None))
                if have[0] < change.col_version:
                    raise self.broken(f"{front.name} has not what it has acknowledged to {other.name}: {change}")

    def _check_sent(self, one: str, other: str, frame: Frame) -> None:
        if self._verbose and not isinstance(frame, Heartbeat | HeartbeatReply):
            self.note(one, "to", other, frame)
        store = self.fronts[one].store
        if isinstance(frame, Ack):
            stored = store.cursor_of(other)
            if stored.epoch != frame.cursor.epoch or stored.db_version < frame.cursor.db_version:
                raise self.broken(f"{one} acknowledges {frame.cursor} to {other} and has stored {stored}")
        elif isinstance(frame, Vote | VoteReply | Heartbeat | HeartbeatReply):
            term, voted_for = store.vote()
            if frame.term > term:
                raise self.broken(f"{one} sends {frame} and has stored term {term}")
            mine = one if isinstance(frame, Vote) else other if isinstance(frame, VoteReply) and frame.granted else None
            if mine is not None and frame.term == term and mine != voted_for:
                raise self.broken(f"{one} sends {frame} to {other} and has stored a vote for {voted_for}")
            if isinstance(frame, Heartbeat):
                self._check_leader(one, frame.term)
        elif isinstance(frame, Changes) and len(frame.changes) > 4096:
            raise self.broken(f"{one} sends a batch of {len(frame.changes)} changes")

    def _changed(self, front: Front) -> None:
        standing = front.member.standing
        self.note(front.name, standing.role, "term", standing.term, "leader", standing.leader)
        if standing.role == "leader":
            self._check_leader(front.name, standing.term)
            if front.store.vote()[0] < standing.term:
                raise self.broken(f"{front.name} leads in term {standing.term} and has not stored that")

    def _check_leader(self, name: str, term: int) -> None:
        if self.majority and term > self.doubtful_term and self.leaders.setdefault(term, name) != name:
            raise self.broken(f"{self.leaders[term]} and {name} lead in term {term}")

    def _stored(self, front: Front) -> bool:
        """A call of the store is done, and nobody was told yet."""
        if front.store.vote() != front.durable_vote:
            front.durable_vote = front.store.vote()
            front.durable = front.store.image()  # a vote is flushed, and all before it
        if self.crash_at_disk and self.rng.random() < self.crash_at_disk:
            self.note(front.name, "crashes between the disk and the network")
            self.crash(front.name, silently=self.rng.random() < 0.5)
            return False
        return True

    def _check_bounds(self, front: Front) -> None:
        depths = front.member.depths()
        bounds = {
            "in flight": WINDOW,
            "merging": MERGING_MAX,
            "reads": len(self.names),
            "readies": READIES_MAX,
            "rows": 0,
        }
        for name, bound in bounds.items():
            if depths[name] > bound:
                raise self.broken(f"{front.name}: {name} is {depths[name]}, over {bound}")
        if front.disk.longest > 32 * len(self.names):
            raise self.broken(f"{front.name}: {front.disk.longest} calls waited for the disk")

    # -- the trace ----------------------------------------------------------------------------------------------------

    def note(self, *what: Any) -> None:
        """Something happened."""
        self._trace.append((self.world.now, *what))
        if self._verbose:
            print(f"{self.world.now:9.4f}", *what, flush=True)

    def broken(self, what: str) -> Broken:
        """What to raise when something does not hold."""
        lines = [f"{when:9.4f} " + " ".join(str(word)[:400] for word in words) for when, *words in self._trace]
        lines.append(f"seed {self.seed}, {len(self.names)} fronts, {self.world.now:.4f} s: {what}")
        self.failure = self.failure or Broken("\n".join(lines))
        return self.failure

    def close(self) -> None:
        """End it."""
        for front in list(self.fronts.values()):
            front.end()
        self.fronts.clear()
