"""The changes that go between this front's store and those of its peers, over whatever carries frames.

What this front writes is sent to every linked peer at once (``committed``). What it merges is sent on as well, for
a peer that the writer does not reach, but later and all that came meanwhile together: in a full mesh everyone has
it already, and passing each change on at once would take n squared frames for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.replica import Incoming, Outgoing
from kollator.cluster.wire import Ack, Changes, Frame, Pull, Summary
from kollator.state.changes import Batch, Cursor
from kollator.state.replication import MergeResult
from kollator.state.rows import Row
from kollator.state.store import Store

log = Logger("kollator:cluster")

FORWARDED_AT_ONCE = 4
"""Merged changes go on after one sync interval for so many peers; more peers, in proportion later."""
AGAIN_S = 1.0
"""How long after the store failed a link's sync is begun again."""

InStore = Callable[..., "Deferred[Any]"]
"""Calls a function of the store with its arguments, one at a time and in order."""


class _Peer:
    __slots__ = ("begin_at", "incoming", "outgoing", "up")

    def __init__(self) -> None:
        self.up = True
        self.begin_at: float | None = None
        self.outgoing = Outgoing()
        self.incoming: Incoming | None = None


class Sync:
    """The sync of one front with all its peers.

    ``in_store`` calls functions of the ``store`` off the reactor, ``send`` gives a frame to a peer's link,
    ``cut_all`` closes all links so that they are made anew, ``took`` is given the rows that a merge has changed,
    in the order of the store, and ``refused`` counts changes by the reason why they were not let in.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        in_store: InStore,
        send: Callable[[str, Frame], object],
        cut_all: Callable[[], object],
        took: Callable[[Sequence[Row]], object],
        digest: Callable[[], str],
        interval_s: float,
        refused: Callable[[str, int], object] = lambda reason, count: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._in_store = in_store
        self._send = send
        self._cut_all = cut_all
        self._took = took
        self._digest = digest
        self._interval_s = interval_s
        self._refused = refused
        self._peers: dict[str, _Peer] = {}
        self._reads: dict[Cursor, list[tuple[str, _Peer]]] = {}
        self._forward_at: float | None = None
        self._renewing = False
        self._stopped = False

    def __contains__(self, peer: str) -> bool:
        return peer in self._peers

    def linked(self) -> list[str]:
        """The peers that have a link."""
        return list(self._peers)

    # -- what the links tell ------------------------------------------------------------------------------------------

    def link_up(self, peer: str) -> None:
        """A link to ``peer`` is established."""
        self.link_down(peer)
        self._peers[peer] = _Peer()
        self._begin(peer, self._peers[peer])

    def link_down(self, peer: str) -> None:
        """The link is gone, and what was on its way."""
        gone = self._peers.pop(peer, None)
        if gone is not None:
            gone.up = False

    def received(self, peer: str, frame: Frame) -> bool:
        """Takes a frame of ``peer``; False when it is none of the sync's."""
        known = self._peers.get(peer)
        if isinstance(frame, Changes):
            if known is not None:
                self._take_changes(peer, known, frame)
        elif isinstance(frame, Ack):
            if known is not None:
                known.outgoing.acknowledged(frame.cursor, self._clock.seconds())
                self._push(peer, known)
        elif isinstance(frame, Pull):
            if known is not None:
                self._take_pull(peer, known, frame)
        else:
            return False
        return True

    def take_summary(self, peer: str, summary: Summary | None) -> None:
        """A frame of ``peer`` told what it has."""
        known = self._peers.get(peer)
        if summary is None or known is None:
            return
        now = self._clock.seconds()
        known.outgoing.acknowledged(summary.applied, now)
        if known.incoming is not None and known.incoming.summarised(summary, now):
            self._send(peer, known.incoming.pull(now))

    # -- what frames tell ---------------------------------------------------------------------------------------------

    def summary(self, peer: str) -> Summary:
        """What a frame to ``peer`` tells of this front: ``head`` is as much of the log as the peer should have."""
        known = self._peers.get(peer)
        head = (known.outgoing.told if known is not None else None) or self._store.head()
        applied = known.incoming.applied if known is not None and known.incoming is not None else Cursor()
        return Summary(head, applied, self._digest())

    def unacknowledged(self, peer: str) -> Changes | None:
        """What a heartbeat to ``peer`` carries along."""
        known = self._peers.get(peer)
        return known.outgoing.unacknowledged() if known is not None else None

    # -- what the member asks -----------------------------------------------------------------------------------------

    def committed(self) -> None:
        """Rows were stored: they are sent to whoever lacks them, now."""
        self._forward_at = None
        head, now = self._store.head(), self._clock.seconds()
        for peer, known in list(self._peers.items()):
            known.outgoing.owe(head, now)
            self._push(peer, known)

    def tick(self) -> None:
        """Does what is due. To be called every few milliseconds."""
        now = self._clock.seconds()
        if self._forward_at is not None and now >= self._forward_at:
            self.committed()
        for peer, known in list(self._peers.items()):
            if known.begin_at is not None and now >= known.begin_at:
                self._begin(peer, known)
            self._push(peer, known)

    def pull_all(self) -> None:
        """Asks every peer for everything that it has; ``lacking`` tells who has not answered."""
        now = self._clock.seconds()
        for peer, known in list(self._peers.items()):
            if known.incoming is not None:
                self._send(peer, known.incoming.pull(now))

    def lacking(self, peer: str) -> bool:
        """Whether ``peer`` is linked and has rows that are not here yet, as far as is known."""
        known = self._peers.get(peer)
        return known is not None and (known.incoming is None or not known.incoming.complete)

    def has_all(self, peer: str) -> bool:
        """Whether ``peer`` has acknowledged this log to its end, or has not asked for it."""
        known = self._peers.get(peer)
        return known is None or known.outgoing.acked in (None, self._store.head())

    def lag_s(self, peer: str) -> float | None:
        """Seconds that ``peer`` is behind, or took to acknowledge; None when it has no link or told nothing yet."""
        known = self._peers.get(peer)
        return known.outgoing.lag_s(self._clock.seconds()) if known is not None else None

    def depths(self) -> dict[str, int]:
        """The longest queue of each kind, by name: for the tests, that none is without a bound."""
        outgoing = [known.outgoing.in_flight for known in self._peers.values()]
        merging = [known.incoming.merging for known in self._peers.values() if known.incoming is not None]
        return {"in flight": max(outgoing, default=0), "merging": max(merging, default=0), "reads": len(self._reads)}

    def stop(self) -> None:
        """Nothing more is sent."""
        self._stopped = True
        for peer in list(self._peers):
            self.link_down(peer)

    # -- pulling ------------------------------------------------------------------------------------------------------

    def _begin(self, peer: str, known: _Peer) -> None:
        known.begin_at = None

        def begun(applied: Cursor) -> None:
            if known.up:
                now = self._clock.seconds()
                known.incoming = Incoming(applied, now)
                self._send(peer, known.incoming.pull(now))

        def failed(failure: Failure) -> None:
            known.begin_at = self._clock.seconds() + AGAIN_S
            self._store_failed(failure)

        self._in_store(self._store.cursor_of, peer).addCallbacks(begun, failed).addErrback(self._failed)

    def _take_changes(self, peer: str, known: _Peer, frame: Changes) -> None:
        incoming = known.incoming
        if incoming is None:
            return
        batch = frame.batch()
        fate = incoming.arrived(batch, self._clock.seconds())
        if fate == "known":
            self._send(peer, Ack(incoming.applied))
        if fate != "new":
            return

        def merge() -> MergeResult:
            since = None if batch.rewound else batch.since
            return self._store.merge(
                batch.changes, sender=peer, since=since, cursor=batch.cursor, sites=batch.sites
            )

        def merged(result: MergeResult) -> None:
            for reason, count in result.refused:
                log.warn("{count} changes of {peer} refused: {reason}", count=count, peer=peer, reason=reason)
                self._refused(reason, count)
            now = self._clock.seconds()
            gap = incoming.merged(batch, result.cursor, now)
            if known.up:
                self._send(peer, Ack(result.cursor, sum(count for _, count in result.refused)))
                if gap:
                    self._send(peer, incoming.pull(now))
            if result.rows:
                self._forward_soon(now)
                self._took(result.rows)

        def failed(failure: Failure) -> None:
            incoming.merge_failed()
            self._store_failed(failure)

        self._in_store(merge).addCallbacks(merged, failed).addErrback(self._failed)

    # -- pushing ------------------------------------------------------------------------------------------------------

    def _forward_soon(self, now: float) -> None:
        if self._forward_at is None:
            self._forward_at = now + self._interval_s * ceil(max(1, len(self._peers)) / FORWARDED_AT_ONCE)

    def _take_pull(self, peer: str, known: _Peer, pull: Pull) -> None:
        if not self._store.knows(pull.after) and not self._renewing:
            # The peer has more of this log than there is: the file was wiped or put back.
            self._renewing = True
            self._in_store(self._store.renew_site_id).addCallbacks(self._renewed, self._renewal_failed).addErrback(
                self._failed
            )
        known.outgoing.pulled(pull, self._store.head(), self._clock.seconds())
        self._push(peer, known)

    def _renewed(self, renewed: bool) -> None:
        self._renewing = False
        if renewed and not self._stopped:
            log.warn("the database was put back: it has a new site id, and links are made anew")
            self._cut_all()

    def _renewal_failed(self, failure: Failure) -> None:
        self._renewing = False
        self._store_failed(failure)
        self._cut_all()  # the next pull asks again

    def _push(self, peer: str, known: _Peer) -> None:
        after = known.outgoing.next_read(self._clock.seconds())
        if after is None:
            return
        waiting = self._reads.get(after)
        if waiting is not None:  # one reading does for all who are at the same place
            waiting.append((peer, known))
            return
        self._reads[after] = [(peer, known)]
        self._in_store(self._store.changes_since, after).addCallbacks(
            self._read, self._not_read, (after,), {}, (after,), {}
        ).addErrback(self._failed)

    def _read(self, batch: Batch, after: Cursor) -> None:
        now = self._clock.seconds()
        for peer, known in self._reads.pop(after):
            frame = known.outgoing.read(batch, now)
            if known.up:
                if frame is not None:
                    self._send(peer, frame)
                self._push(peer, known)

    def _not_read(self, failure: Failure, after: Cursor) -> None:
        for _, known in self._reads.pop(after):
            known.outgoing.read_failed()
        self._store_failed(failure)

    def _store_failed(self, failure: Failure) -> None:
        log.error("the store failed for the cluster: {problem}", problem=failure.getErrorMessage())

    def _failed(self, failure: Failure) -> None:
        log.failure("the sync could not go on", failure=failure)
