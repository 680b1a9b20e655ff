"""A front as a member of its cluster: election, sync and the leader's duties over whatever carries frames.

It knows no sockets. The links (or a simulated network) tell it ``link_up``, ``link_down`` and ``received``, and it
answers through ``send``; the store is used through ``in_store`` alone, one call after the other, off the reactor.

**What a leader does carries its term in this way.** The only act is a retirement: ``retired`` of a front becomes
the incarnation that nobody hears. It is written only as long as the term it was decided in is the newest that is
on this front's disk. Once it is a row, every front takes it, whatever its own term: whether a row is merged must
not depend on who merges it, or fronts would hold different rows for ever. And a retirement that comes late does no
lasting harm: it names one incarnation of one front, so it cannot touch a later one; a front that lives answers it
with a new incarnation; and a dead one that it brings back (an older number won) is retired again by the leader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.arrivals import Arrivals
from kollator.cluster.election import Election, ElectionFrame
from kollator.cluster.readies import Readies, Standing
from kollator.cluster.sync import InStore, Sync
from kollator.cluster.wire import (
    Frame,
    Heartbeat,
    HeartbeatReply,
    Ping,
    Pong,
    PreVote,
    PreVoteReply,
    Summary,
    Vote,
    VoteReply,
)
from kollator.pool.pool import Pool
from kollator.state.rows import AttachmentRow, FrontRow, Row
from kollator.state.store import Store

log = Logger("kollator:cluster")

PULL_WAIT_S = 2.0
"""How long a new leader waits at most for its followers' rows before it acts."""
DUTIES_S = 0.1
"""How often the leader looks for fronts to retire."""
RETURN_S = 0.5
"""The shortest time between two new incarnations of one life."""
STRANGER_S = 60.0
"""A front that PEERS does not name and that came back from a retirement is not retired again before that."""

_ELECTION = (PreVote, PreVoteReply, Vote, VoteReply, Heartbeat, HeartbeatReply)


class PeerState(NamedTuple):
    """One other front, as this one sees it."""

    node: str
    state: str
    """``leader``, ``follower`` (linked), ``unreachable`` or ``retired``."""
    sync_lag_ms: float | None


class Member:
    """One member. ``own`` is this front's row, as ``Store.begin_incarnation`` gave it.

    ``send`` gives a frame to a peer's link, ``cut_all`` closes all links so that they are made anew. ``apply``
    takes rows of others that are in the store to the pool. What this front says of itself is never taken from the
    store: where a merge has changed one of its attachments, ``restate`` is called with it and is to write what is
    true; where it was retired, or a former life of it comes back, it begins a new incarnation, and ``reincarnated``
    is called with its row, which is to go to the pool together with what is attached, as one change, so that
    nobody here loses a worker, and what is attached is to be written with it. ``changed`` is called when role,
    leader, term or ``synchronised`` have changed.
    """

    def __init__(
        self,
        election: Election,
        store: Store,
        pool: Pool,
        clock: Clock,
        *,
        own: FrontRow,
        in_store: InStore,
        send: Callable[[str, Frame], object],
        cut_all: Callable[[], object],
        apply: Callable[[Sequence[Row]], object],
        restate: Callable[[AttachmentRow], object],
        reincarnated: Callable[[FrontRow], object],
        retire_after_s: float,
        sync_interval_s: float = 0.1,
        changed: Callable[[], object] = lambda: None,
        refused: Callable[[str, int], object] = lambda reason, count: None,
    ) -> None:
        self.election = election
        self.node = election.node
        self.own = own
        self.standing = Standing("follower", election.term, None)
        """Role, term and leader that may be acted on: what they rest on is on disk."""
        self.synchronised = False
        """This front leads and has the rows of every follower it could reach."""
        self._store = store
        self._pool = pool
        self._clock = clock
        self._in_store = in_store
        self._send = send
        self._restate = restate
        self._reincarnated = reincarnated
        self._retire_after_s = retire_after_s
        self._changed = changed
        self._leading_since = 0.0
        self._awaited: set[str] = set()
        self._duties_at = 0.0
        self._retiring = False
        self._returned_at: dict[str, float] = {}
        self._disowned = False
        self._returning = False
        self._return_at = 0.0
        self._stopped = False
        self._arrivals = Arrivals(clock, apply)
        self._sync = Sync(
            store,
            clock,
            in_store=in_store,
            send=send,
            cut_all=cut_all,
            took=self._took,
            digest=lambda: pool.digest,
            interval_s=sync_interval_s,
            refused=refused,
        )
        self._readies = Readies(
            election,
            persist=lambda term, vote: in_store(store.save_vote, term, vote),
            send=self._send_election,
            changed=self._stand,
        )

    def lead_alone(self) -> None:
        """A front without peers leads at once, not a moment later. To be called before anything else is.

        The store is called directly: nothing waits for it yet. Raises ``StoreError``.
        """
        if len(self.election.members) == 1:
            ready = self.election.tick(self._clock.seconds())
            if ready.persist is not None:
                self._store.save_vote(*ready.persist)
            self._stand(Standing(self.election.role, self.election.term, self.election.leader))
            self._do_duties(self._clock.seconds())

    # -- what the links tell ------------------------------------------------------------------------------------------

    def link_up(self, peer: str) -> None:
        """A link to ``peer`` is established."""
        if not self._stopped:
            self._sync.link_up(peer)
            self._readies.carry(self.election.connected(peer, self._clock.seconds()))

    def link_down(self, peer: str) -> None:
        """The link is gone."""
        self._sync.link_down(peer)

    def heard(self, peer: str) -> None:
        """A frame of ``peer`` came that is for the exchange: it lives."""
        if not self._stopped and peer in self._sync:
            self.election.heard(peer, self._clock.seconds())

    def received(self, peer: str, frame: Frame) -> bool:
        """Takes a frame of ``peer``; False when it is neither the election's nor the sync's."""
        if self._stopped or peer not in self._sync:
            return True
        now = self._clock.seconds()
        if isinstance(frame, _ELECTION):
            if isinstance(frame, Heartbeat | HeartbeatReply):
                if frame.changes is not None:
                    self._sync.received(peer, frame.changes)
                self._sync.take_summary(peer, frame.summary)
            self._readies.carry(self.election.receive(peer, frame, now))
            return True
        self.election.heard(peer, now)
        if isinstance(frame, Ping | Pong):
            self._sync.take_summary(peer, frame.summary)
            return True
        return self._sync.received(peer, frame)

    def summary(self, peer: str) -> Summary:
        """What pings and pongs to ``peer`` tell of this front."""
        return self._sync.summary(peer)

    # -- what the front tells -----------------------------------------------------------------------------------------

    def committed(self, rows: Iterable[Row] = ()) -> None:
        """The store has just written ``rows`` of this front: they are sent to whoever lacks them, now.

        To be called as soon as the write is done, before other calls of the store are.
        """
        self._arrivals.forget(rows)
        if not self._stopped:
            self._sync.committed()

    def tick(self) -> None:
        """To be called every few milliseconds."""
        if self._stopped:
            return
        now = self._clock.seconds()
        if now >= self.election.due:
            self._readies.carry(self.election.tick(now))
        self._sync.tick()
        if self._disowned and not self._returning and now >= self._return_at:
            self._return(now)
        if self.standing.role == "leader" and now >= self._duties_at:
            self._duties_at = now + DUTIES_S
            self._do_duties(now)

    def stop(self) -> None:
        """Nothing more is sent or done."""
        self._stopped = True
        self._sync.stop()
        self._arrivals.stop()

    # -- what it shows ------------------------------------------------------------------------------------------------

    def peers(self) -> list[PeerState]:
        """All other members, as this front sees them."""
        states = []
        for node in sorted(self.election.members - {self.node}):
            retired = self._pool.front(node) is not None and not self._pool.is_alive(node)
            if retired or node not in self._sync:
                states.append(PeerState(node, "retired" if retired else "unreachable", None))
                continue
            lag_s = self._sync.lag_s(node)
            state = "leader" if self.standing.leader == node else "follower"
            states.append(PeerState(node, state, None if lag_s is None else round(lag_s * 1000, 3)))
        return states

    def settled(self) -> bool:
        """Whether every linked peer has acknowledged all that this front has."""
        return all(self._sync.has_all(peer) for peer in self._sync.linked())

    def depths(self) -> dict[str, int]:
        """The longest queue of each kind, by name: for the tests, that none is without a bound."""
        return {**self._sync.depths(), "readies": len(self._readies), "rows": len(self._arrivals)}

    # -- election -----------------------------------------------------------------------------------------------------

    def _send_election(self, peer: str, frame: ElectionFrame) -> None:
        if peer not in self._sync or self._stopped:
            return
        if isinstance(frame, Heartbeat | HeartbeatReply):
            frame = msgspec.structs.replace(
                frame, summary=self._sync.summary(peer), changes=self._sync.unacknowledged(peer)
            )
        self._send(peer, frame)

    def _stand(self, standing: Standing) -> None:
        if self._stopped:
            return
        was, self.standing = self.standing, standing
        if standing.role != "leader":
            self.synchronised = False
        elif (was.role, was.term) != ("leader", standing.term):
            self.synchronised = False
            self._leading_since = self._duties_at = self._clock.seconds()
            self._awaited = set(self._sync.linked())
            self._sync.pull_all()
        log.info("{node} is {role} in term {term}", node=self.node, role=standing.role, term=standing.term)
        self._changed()

    # -- the leader's duties ------------------------------------------------------------------------------------------

    def _do_duties(self, now: float) -> None:
        if (self.election.role, self.election.term) != ("leader", self.standing.term):
            return  # it leads no longer; its standing says so as soon as the disk does
        if not self.synchronised:
            self._awaited = {peer for peer in self._awaited if self._sync.lacking(peer)}
            if self._awaited and now - self._leading_since < PULL_WAIT_S:
                return
            self.synchronised = True
            log.info("{node} leads and has what its followers have", node=self.node)
            self._sync.committed()
            self._changed()
        if self._retiring:
            return
        unheard = self.election.unheard(now, self._retire_after_s)
        dead = [
            msgspec.structs.replace(row, retired=row.incarnation)
            for row in self._pool.fronts()
            if row.incarnation > row.retired
            and (row.id in unheard or (row.id not in self.election.members and self._is_gone(row.id, now)))
        ]
        if dead:
            self._retiring = True
            self._in_store(self._write_retirement, self.standing.term, dead).addCallbacks(
                self._retired, self._not_retired
            ).addErrback(self._failed)

    def _is_gone(self, stranger: str, now: float) -> bool:
        """Whether a front that PEERS does not name was taken out of the cluster, as far as can be told."""
        returned_at = self._returned_at.get(stranger)
        return now - self._leading_since >= self._retire_after_s and (
            returned_at is None or now - returned_at >= STRANGER_S
        )

    def _write_retirement(self, term: int, dead: list[FrontRow]) -> list[FrontRow]:
        """In the store's turn. Raises ``ValueError`` when one of the fronts has changed meanwhile."""
        if self._store.vote()[0] != term:
            return []
        self._store.write(dead)
        return dead

    def _retired(self, dead: list[FrontRow]) -> None:
        self._retiring = False
        if dead:
            names = ", ".join(row.id for row in dead)
            log.warn("{names}: heard by no quorum, retired in term {term}", names=names, term=self.standing.term)
            self._arrivals.take(dead)
            self.committed()

    def _not_retired(self, failure: Failure) -> None:
        self._retiring = False
        if not isinstance(failure.value, ValueError):
            log.error("a retirement could not be stored: {problem}", problem=failure.getErrorMessage())

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _took(self, rows: Sequence[Row]) -> None:
        """Rows that a merge has changed, as they are in the store now."""
        others: list[Row] = []
        for row in rows:
            if isinstance(row, AttachmentRow) and row.front == self.node:
                self._restate(row)
                continue
            if isinstance(row, FrontRow) and row.id == self.node:
                if not self._is_own(row):
                    self._disowned = True
                    continue
            elif isinstance(row, FrontRow):
                self._note_return(row)
            others.append(row)
        self._arrivals.take(others)

    def _is_own(self, row: FrontRow) -> bool:
        """Whether the row is this life's, and not retired; else peers know a life that the file has forgotten."""
        return row.retired < self.own.incarnation and row == msgspec.structs.replace(self.own, retired=row.retired)

    def _note_return(self, row: FrontRow) -> None:
        """A front that is back with a new incarnation was heard of, by whatever way."""
        known = self._pool.front(row.id)
        if row.incarnation > row.retired and (known is None or row.incarnation > known.incarnation):
            now = self._clock.seconds()
            self.election.heard(row.id, now)
            if known is not None and row.id not in self.election.members:
                self._returned_at[row.id] = now

    def _return(self, now: float) -> None:
        self._returning = True
        self._return_at = now + RETURN_S
        self._in_store(self._store.begin_incarnation, self.own.region, self.own.url).addCallbacks(
            self._returned, self._not_returned
        ).addErrback(self._failed)

    def _returned(self, row: FrontRow) -> None:
        self._returning = self._disowned = False
        log.warn("{node} is back as incarnation {number}", node=self.node, number=row.incarnation)
        self.own = row
        self._reincarnated(row)
        self.committed([row])

    def _not_returned(self, failure: Failure) -> None:
        self._returning = False
        log.error("the front's row could not be stored: {problem}", problem=failure.getErrorMessage())

    def _failed(self, failure: Failure) -> None:
        log.failure("the cluster could not go on", failure=failure)
