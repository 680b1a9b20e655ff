"""What one peer lacks of this front's log, and what this front lacks of the peer's: pure, one of each for a peer.

The store does the reading and merging; these decide what is to be read and sent next, notice a gap, and measure
how far behind the peer is. A lost frame is a gap like any other, and ends in a ``Pull`` or in sending again.

What a peer has only moves on, whatever is lost, doubled or late, until it says otherwise in a ``Pull``.

Nobody's writes are left out, not even the peer's own: a database that was put back has lost some of them, and need
not know. What it has, it merges as nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from kollator.cluster.wire import HEARTBEAT_CHANGES_BYTES, Changes, Pull, Summary
from kollator.state.changes import Batch, Cursor, change_bytes

WINDOW = 4
"""The most batches that are sent and not acknowledged: 1 MiB."""
MERGING_MAX = 2 * WINDOW
"""The most batches of a peer that wait to be merged."""
RESEND_S = 1.0
"""A batch that is not acknowledged after that long, or four times the last round trip, is sent again."""
GAP_S = 0.25
"""A peer that is ahead of what came from it for so long is asked for the rest; again after twice that, and so on."""
GAP_MAX_S = 4.0
"""The longest time between two such questions."""


def _reaches(cursor: Cursor, other: Cursor) -> bool:
    """Whether ``cursor`` is in the same opening of a log as ``other`` and not before it."""
    return cursor.epoch == other.epoch and cursor.db_version >= other.db_version


class _Flight(NamedTuple):
    cursor: Cursor
    sent_at: float
    changes: Changes | None
    """Kept where it is small enough to go into a heartbeat."""


class Outgoing:
    """What a peer has of this front's log.

    ``owe`` says that the peer should have the log up to here, ``next_read`` where to read on, and ``read`` takes
    what was read and gives the frame to be sent.
    """

    def __init__(self) -> None:
        self.acked: Cursor | None = None
        """The place in this log that the peer has on disk; None until it told."""
        self.latency_s: float | None = None
        """From sending to acknowledgement, the last time it was measured."""
        self._due: Cursor | None = None
        self._sent = Cursor()
        self._reading = False
        self._void = False
        self._answer = False
        self._flight: deque[_Flight] = deque()
        self._behind_since: float | None = None

    @property
    def told(self) -> Cursor | None:
        """The place up to which the peer should have this log, or ask for it; None before it has pulled."""
        return None if self.acked is None else self._due if self._answer else self._sent

    @property
    def in_flight(self) -> int:
        """How many batches are sent and not acknowledged."""
        return len(self._flight)

    def pulled(self, pull: Pull, head: Cursor, now: float) -> None:
        """The peer asks for the log from a place on: whatever is under way is void, but for the same answer."""
        self._due = head
        if self._answer and not self._flight and self.acked == pull.after:
            return
        self.acked = self._sent = pull.after
        self._answer = True
        self._void = self._reading
        self._flight.clear()
        self._behind_since = None if pull.after == head else now

    def owe(self, head: Cursor, now: float) -> None:
        """The peer should have the log up to ``head``, its end."""
        if self.acked is None or self.acked == head:
            return
        self._due = head
        if self._behind_since is None:
            self._behind_since = now

    def next_read(self, now: float) -> Cursor | None:
        """The place to read on from, if anything is to be sent; ``read`` must follow, or ``read_failed``."""
        if self._due is None or self.acked is None or self._reading:
            return None
        if self._flight and now - self._flight[0].sent_at > max(RESEND_S, 4 * (self.latency_s or 0.0)):
            self._sent = self.acked
            self._flight.clear()
        if len(self._flight) >= WINDOW or not (self._answer or not _reaches(self._sent, self._due)):
            return None
        self._reading = True
        return self._sent

    def read(self, batch: Batch, now: float) -> Changes | None:
        """What was read: the frame to send, or None when a ``Pull`` has made it void."""
        void = self._void or batch.since != self._sent or self._due is None
        self._reading = self._void = False
        if void or self._due is None:
            return None
        changes = Changes.of(batch)
        self._sent = batch.cursor
        self._answer = batch.more
        if not _reaches(self._due, batch.cursor):
            self._due = batch.cursor
        size_bytes = sum(change_bytes(change) for change in batch.changes)
        small = size_bytes <= HEARTBEAT_CHANGES_BYTES
        self._flight.append(_Flight(batch.cursor, now, changes if small else None))
        return changes

    def read_failed(self) -> None:
        """The store could not read; the next turn tries again."""
        self._reading = self._void = False

    def acknowledged(self, cursor: Cursor, now: float) -> None:
        """The peer has everything up to ``cursor`` on its disk."""
        if self.acked is None or self._due is None or not _reaches(self._due, cursor) or _reaches(self.acked, cursor):
            return  # of another log, or late
        self.acked = cursor
        if not _reaches(self._sent, cursor):  # it was sent again meanwhile
            self._sent = cursor
            self._void = self._reading
        while self._flight and _reaches(cursor, self._flight[0].cursor):
            self.latency_s = max(0.0, now - self._flight.popleft().sent_at)
        if _reaches(cursor, self._due):
            self._behind_since = None

    def unacknowledged(self) -> Changes | None:
        """What a heartbeat carries along: the oldest batch under way, where it is small."""
        return self._flight[0].changes if self._flight else None

    def lag_s(self, now: float) -> float | None:
        """How long the peer has been behind; where it is not, how long the last acknowledgement took."""
        if self.acked is None:
            return None
        if self._behind_since is not None:
            return max(0.0, now - self._behind_since)
        return self.latency_s or 0.0


class Incoming:
    """What this front has of a peer's log; ``applied`` is what it has stored."""

    def __init__(self, applied: Cursor, now: float) -> None:
        self.applied = applied
        """The place in the peer's log that is on disk here."""
        self.complete = False
        """Everything that the peer had when it was last asked is here."""
        self._waiting: deque[tuple[Cursor, Cursor]] = deque()
        self._patience_s = GAP_S
        self._asked_at = now
        self._heard_at = now

    @property
    def merging(self) -> int:
        """How many batches are being merged or wait for it."""
        return len(self._waiting)

    def pull(self, now: float) -> Pull:
        """The frame that asks for what is missing."""
        self.complete = False
        self._asked_at = now
        return Pull(self.applied)

    def arrived(self, batch: Batch, now: float) -> Literal["new", "known", "waiting", "too-many"]:
        """A batch came. A ``new`` one is to be merged, and ``merged`` or ``merge_failed`` to follow, in order; one
        that is ``known`` only to be acknowledged; one that is ``waiting`` to be merged has come twice; with
        ``too-many`` waiting it is let go, and will be sent again.
        """
        self._heard_at = now
        self._patience_s = GAP_S
        if _reaches(self.applied, batch.cursor):
            self.complete = self.complete or not batch.more
            return "known"
        if (batch.since, batch.cursor) in self._waiting:
            return "waiting"
        if len(self._waiting) >= MERGING_MAX:
            return "too-many"
        self._waiting.append((batch.since, batch.cursor))
        return "new"

    def merged(self, batch: Batch, applied: Cursor, now: float) -> bool:
        """A batch was merged and ``applied`` is the place that holds now. True: there is a gap, so pull."""
        self._waiting.popleft()
        self.applied = applied
        if not _reaches(applied, batch.cursor):
            return not self._waiting and self._may_ask(now)
        if not batch.more:
            self.complete = True
        return False

    def merge_failed(self) -> None:
        """The store could not merge; the batch is sent again."""
        self._waiting.popleft()

    def summarised(self, summary: Summary, now: float) -> bool:
        """The peer tells how far its log should be here. True: something is missing for a while, so pull."""
        if _reaches(self.applied, summary.head):
            self.complete = True
            return False
        return not self._waiting and now - self._heard_at > GAP_S and self._may_ask(now)

    def _may_ask(self, now: float) -> bool:
        if now - self._asked_at <= self._patience_s:
            return False
        self._patience_s = min(2 * self._patience_s, GAP_MAX_S)
        return True
