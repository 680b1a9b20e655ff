"""A front as a member of its cluster: election, sync and the leader's duties over whatever carries frames.

It knows no sockets. The links (or a simulated network) tell it ``link_up``, ``link_down`` and ``received``, and it
answers through ``send``; the store is used through ``in_store`` alone, one call after the other, off the reactor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.election import Election, ElectionFrame
from kollator.cluster.readies import Readies
from kollator.cluster.replica import Incoming, Outgoing
from kollator.cluster.wire import (
    Ack,
    Changes,
    Frame,
    Heartbeat,
    HeartbeatReply,
    Ping,
    Pong,
    PreVote,
    PreVoteReply,
    Pull,
    Summary,
    Vote,
    VoteReply,
)
from kollator.pool.pool import Pool
from kollator.state.changes import Batch
from kollator.state.replication import MergeResult
from kollator.state.rows import FrontRow, Row
from kollator.state.store import Store

log = Logger("kollator:cluster")

SLICE_S = 0.004
"""The longest that merged rows are applied to the pool in one turn of the reactor."""
PULL_WAIT_S = 2.0
"""How long a new leader waits at most for its followers' rows before it acts."""

InStore = Callable[..., "Deferred[Any]"]
"""Calls a function of the store with its arguments, one at a time and in order."""


class PeerState(NamedTuple):
    """One other front, as this one sees it."""

    node: str
    state: str
    """``leader``, ``follower`` (linked), ``unreachable`` or ``retired``."""
    sync_lag_ms: float | None


class _Peer:
    __slots__ = ("incoming", "outgoing", "site", "up")

    def __init__(self) -> None:
        self.up = True
        self.outgoing = Outgoing()
        self.incoming: Incoming | None = None


class Member:
    """One member.

    ``send`` gives a frame to a peer's link (False: it has none, or too much waits), ``cut_all`` closes all links
    so that they are made anew. ``apply`` takes rows that merges have changed; ``write`` stores and applies rows
    of this front's own (the leader's duties); ``reincarnate`` is called when this front was retired and is
    alive. ``changed`` is called when role, leader or term have changed.
    """

    def __init__(
        self,
        election: Election,
        store: Store,
        pool: Pool,
        clock: Clock,
        *,
        in_store: InStore,
        send: Callable[[str, Frame], bool],
        cut_all: Callable[[], object],
        apply: Callable[[Sequence[Row]], object],
        write: Callable[[Iterable[Row]], object],
        reincarnate: Callable[[], object],
        incarnation: Callable[[], int],
        retire_after_s: float,
        sync_interval_s: float = 0.1,
        changed: Callable[[], object] = lambda: None,
        refused: Callable[[str, int], object] = lambda reason, count: None,
    ) -> None:
        self.election = election
        self.node = election.node
        self.synchronised = False
        """This front leads and has the rows of every follower it could reach."""
        self._store = store
        self._pool = pool
        self._clock = clock
        self._in_store = in_store
        self._send = send
        self._cut_all = cut_all
        self._apply = apply
        self._write = write
        self._reincarnate = reincarnate
        self._incarnation = incarnation
        self._retire_after_s = retire_after_s
        self._sync_interval_s = sync_interval_s
        self._changed = changed
        self._refused = refused
        self._peers: dict[str, _Peer] = {}
        self._rows: deque[Row] = deque()
        self._applying = False
        self._leading_since: float | None = None
        self._awaited: set[str] = set()
        self._forward_at: float | None = None
        self._stopped = False
        self._readies = Readies(
            election,
            persist=lambda term, vote: in_store(store.save_vote, term, vote),
            send=self._send_election,
            changed=self._role_changed,
        )
        self.role = election.role
        """The role that may be acted on: what it rests on is on disk."""

    # -- what the links tell ------------------------------------------------------------------------------------------

    def link_up(self, peer: str) -> None:
        """A link to ``peer`` is established."""
        self._peers[peer] = _Peer()
        self._readies.carry(self.election.connected(peer, self._clock.seconds()))
        self._store_call(lambda: (self._store.cursor_of(peer), self._store.site_id())).addCallback(
            self._begin_sync, peer, self._peers[peer]
        ).addErrback(self._store_failed)

    def link_down(self, peer: str) -> None:
        """The link is gone."""
        gone = self._peers.pop(peer, None)
        if gone is not None:
            gone.up = False
        self._awaited.discard(peer)

    def received(self, peer: str, frame: Frame) -> bool:
        """Takes a frame of ``peer``; False when it is none of the election's or the sync's."""
        now = self._clock.seconds()
        known = self._peers.get(peer)
        if known is None or self._stopped:
            return True
        if isinstance(frame, PreVote | PreVoteReply | Vote | VoteReply | Heartbeat | HeartbeatReply):
            if isinstance(frame, Heartbeat | HeartbeatReply):
                self._take_summary(peer, known, frame.summary, now)
                if frame.changes is not None:
                    self._take_changes(peer, known, frame.changes, now)
            self._readies.carry(self.election.receive(peer, frame, now))
            return True
        self.election.heard(peer, now)
        if isinstance(frame, Pull):
            self._take_pull(peer, known, frame)
        elif isinstance(frame, Changes):
            self._take_changes(peer, known, frame, now)
        elif isinstance(frame, Ack):
            known.outgoing.acknowledged(frame.cursor, self._store.head(), now)
            self._push(peer, known)
        elif isinstance(frame, Ping | Pong):
            self._take_summary(peer, known, frame.summary, now)
        else:
            return False
        return True

    def summary(self, peer: str) -> Summary:
        """What a frame to ``peer`` tells of this front."""
        known = self._peers.get(peer)
        incoming = known.incoming if known is not None else None
        if incoming is None:
            return Summary(self._store.head(), digest=self._pool.digest)
        return Summary(self._store.head(), incoming.applied, self._pool.digest)

    # -- what time brings ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """To be called every few milliseconds."""
        if self._stopped:
            return
        now = self._clock.seconds()
        if now >= self.election.due:
            self._readies.carry(self.election.tick(now))
        if self._forward_at is not None and now >= self._forward_at:
            self.committed()
        for peer, known in list(self._peers.items()):
            self._push(peer, known)
        if self.role == "leader":
            self._do_duties(now)
        own = self._pool.front(self.node)
        if own is not None and own.retired >= self._incarnation():
            self._reincarnate()

    def committed(self) -> None:
        """Rows were stored: they are sent to whoever lacks them, now."""
        self._forward_at = None
        for peer, known in list(self._peers.items()):
            self._push(peer, known)

    def stop(self) -> None:
        """Nothing more is sent or done."""
        self._stopped = True

    def peers(self) -> list[PeerState]:
        """All other members, as this front sees them."""
        now = self._clock.seconds()
        head = self._store.head()
        states = []
        for node in sorted(self.election.members - {self.node}):
            known = self._peers.get(node)
            row = self._pool.front(node)
            if known is None:
                retired = row is not None and row.incarnation <= row.retired
                states.append(PeerState(node, "retired" if retired else "unreachable", None))
            else:
                lag_s = known.outgoing.lag_s(head, now)
                state = "leader" if self.election.leader == node else "follower"
                states.append(PeerState(node, state, None if lag_s is None else round(lag_s * 1000, 3)))
        return states

    # -- election -----------------------------------------------------------------------------------------------------

    def _send_election(self, peer: str, frame: ElectionFrame) -> None:
        known = self._peers.get(peer)
        if known is None:
            return
        if isinstance(frame, Heartbeat | HeartbeatReply):
            frame = msgspec.structs.replace(
                frame, summary=self.summary(peer), changes=known.outgoing.unacknowledged()
            )
        self._send(peer, frame)

    def _role_changed(self) -> None:
        election = self.election
        was, self.role = self.role, election.role
        if self.role != "leader":
            self.synchronised = False
            self._leading_since = None
        elif was != "leader" or self._leading_since is None:
            now = self._clock.seconds()
            self._leading_since = now
            self.synchronised = False
            self._awaited = set(self._peers)
            for peer, known in self._peers.items():
                if known.incoming is not None:
                    self._send(peer, known.incoming.pull(now))
        log.info("{node} is {role} in term {term}", node=self.node, role=self.role, term=election.term)
        self._changed()

    def _do_duties(self, now: float) -> None:
        since = self._leading_since
        if since is None or not self.election.accepts(self.election.term, self.node):
            return
        if not self.synchronised:
            for peer in list(self._awaited):
                known = self._peers.get(peer)
                if known is None or (known.incoming is not None and known.incoming.complete):
                    self._awaited.discard(peer)
            if self._awaited and now - since < PULL_WAIT_S:
                return
            self.synchronised = True
            log.info("{node} leads and has what its followers have", node=self.node)
            self._changed()
        dead = set(self.election.unheard(now, self._retire_after_s))
        if now - since >= self._retire_after_s:
            dead.update(row.id for row in self._pool.fronts() if row.id not in self.election.members)
        rows = [
            msgspec.structs.replace(row, retired=row.incarnation)
            for row in self._pool.fronts()
            if row.id in dead and row.incarnation > row.retired and row.id != self.node
        ]
        if rows:
            names = ", ".join(row.id for row in rows)
            log.warn("{names} is not heard by a quorum: retired in term {term}", names=names, term=self.election.term)
            self._write(rows)

    # -- sync ---------------------------------------------------------------------------------------------------------

    def _begin_sync(self, found: tuple[Any, bytes], peer: str, known: _Peer) -> None:
        if known.up and not self._stopped:
            now = self._clock.seconds()
            known.incoming = Incoming(found[1], found[0], now)
            self._send(peer, known.incoming.pull(now))

    def _take_pull(self, peer: str, known: _Peer, pull: Pull) -> None:
        if not self._store.knows(pull.after):
            # The peer has more of this log than there is: the file was wiped or put back.
            self._store_call(self._store.renew_site_id).addCallback(self._renewed).addErrback(self._store_failed)
        known.outgoing.pulled(pull)
        self._push(peer, known)

    def _renewed(self, renewed: bool) -> None:
        if renewed:
            log.warn("the database was wiped or restored: it has a new site id, and links are made anew")
            self._cut_all()

    def _push(self, peer: str, known: _Peer) -> None:
        read = known.outgoing.next_read(self._store.head(), self._clock.seconds())
        if read is None:
            return

        def done(batch: Batch) -> None:
            frame = known.outgoing.read(batch, self._clock.seconds())
            if frame is not None and known.up and not self._stopped:
                self._send(peer, frame)
                self._push(peer, known)

        def failed(failure: Failure) -> None:
            known.outgoing.read_failed()
            self._store_failed(failure)

        self._store_call(
            lambda: self._store.changes_since(read.after, exclude_site=read.exclude_site)
        ).addCallbacks(done, failed).addErrback(self._store_failed)

    def _take_summary(self, peer: str, known: _Peer, summary: Summary | None, now: float) -> None:
        if summary is None:
            return
        if known.outgoing.acked is not None and summary.applied != known.outgoing.acked:
            known.outgoing.acknowledged(summary.applied, self._store.head(), now)
        if known.incoming is not None and known.incoming.summarised(summary, now):
            self._send(peer, known.incoming.pull(now))

    def _take_changes(self, peer: str, known: _Peer, frame: Changes, now: float) -> None:
        incoming = known.incoming
        if incoming is None or (frame.cursor == incoming.applied and not frame.more) or not incoming.arrived(now):
            return
        batch = frame.batch()

        def merge() -> MergeResult:
            return self._store.merge(
                batch.changes,
                sender=peer,
                since=None if batch.rewound else batch.since,
                cursor=batch.cursor,
                sites=batch.sites,
            )

        def merged(result: MergeResult) -> None:
            for reason, count in result.refused:
                log.warn("{count} changes of {peer} refused: {reason}", count=count, peer=peer, reason=reason)
                self._refused(reason, count)
            self._take_rows(result.rows)
            gap = incoming.merged(batch, result.cursor, self._clock.seconds())
            if known.up and not self._stopped:
                self._send(peer, Ack(result.cursor, sum(count for _, count in result.refused)))
                if gap:
                    self._send(peer, incoming.pull(self._clock.seconds()))
            if result.rows and self._forward_at is None:
                self._forward_at = self._clock.seconds() + self._sync_interval_s

        def failed(failure: Failure) -> None:
            incoming.merge_failed()
            self._store_failed(failure)

        self._store_call(merge).addCallbacks(merged, failed).addErrback(self._store_failed)

    def _take_rows(self, rows: Sequence[Row]) -> None:
        self._rows.extend(rows)
        if self._rows and not self._applying:
            self._applying = True
            self._apply_slice()

    def _apply_slice(self) -> None:
        until = self._clock.seconds() + SLICE_S
        while self._rows:
            rows = [self._rows.popleft() for _ in range(min(8, len(self._rows)))]
            for row in rows:
                self._note_return(row)
            try:
                self._apply(rows)
            except Exception:
                log.failure("merged rows could not be applied")
            if self._rows and self._clock.seconds() >= until:
                self._clock.callLater(0, self._apply_slice)
                return
        self._applying = False

    def _note_return(self, row: Row) -> None:
        """A front that is back with a new incarnation was heard of, by whatever way."""
        if isinstance(row, FrontRow) and row.incarnation > row.retired:
            known = self._pool.front(row.id)
            if known is None or row.incarnation > known.incarnation:
                self.election.heard(row.id, self._clock.seconds())

    def _store_call(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return self._in_store(function, *args)

    def _store_failed(self, failure: Failure) -> None:
        log.error("the store failed for the cluster: {problem}", problem=failure.getErrorMessage())
