"""What one peer lacks of this front's log, and what this front lacks of the peer's: pure, one of each for a peer.

The store does the reading and merging; these decide what is to be read and sent next, notice a gap, and measure
how far behind the peer is. A lost frame is a gap like any other, and ends in a ``Pull`` or in sending again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from kollator.cluster.wire import HEARTBEAT_CHANGES_BYTES, Changes, Pull, Summary
from kollator.state.changes import Batch, Cursor, change_bytes

WINDOW = 4
"""The most batches that are sent and not acknowledged: 1 MiB."""
RESEND_S = 1.0
"""A batch that is not acknowledged after that long is sent again."""
GAP_S = 0.25
"""A peer that is ahead of what came from it for so long is asked for the rest."""


class Read(NamedTuple):
    """A stretch of the log to be read: after which cursor, and whose own writes may be left out."""

    after: Cursor
    exclude_site: bytes | None


class _Flight(NamedTuple):
    cursor: Cursor
    sent_at: float
    changes: Changes | None
    """Kept where it is small enough to go into a heartbeat."""


class Outgoing:
    """What a peer has of this front's log."""

    def __init__(self) -> None:
        self.acked: Cursor | None = None
        """The place in this log that the peer has on disk; None until it told."""
        self.latency_s: float | None = None
        """From sending to acknowledgement, the last time it was measured."""
        self._sent: Cursor | None = None
        self._site: bytes | None = None
        self._whole = True
        self._reading = False
        self._more = False
        self._flight: deque[_Flight] = deque()
        self._behind_since: float | None = None

    def pulled(self, pull: Pull) -> None:
        """The peer asks for the log from a place on: whatever is under way is void."""
        self.acked = self._sent = pull.after
        self._site = pull.site
        self._whole = not pull.without_own
        self._more = True
        self._flight.clear()

    def next_read(self, head: Cursor, now: float) -> Read | None:
        """What to read now, if anything; ``read`` must follow, or ``read_failed``."""
        if self._sent is None or self._reading:
            return None
        if head != self.acked and self._behind_since is None:
            self._behind_since = now
        if self._flight and now - self._flight[0].sent_at > RESEND_S:
            self._sent = self.acked
            self._flight.clear()
        if len(self._flight) >= WINDOW or self._sent is None or not (self._more or self._sent != head):
            return None
        self._reading = True
        return Read(self._sent, None if self._whole else self._site)

    def read(self, batch: Batch, now: float) -> Changes | None:
        """What was read: the frame to send, or None when a ``Pull`` has made it void."""
        self._reading = False
        if self._sent is None or batch.since != self._sent:
            return None
        changes = Changes.of(batch)
        self._sent = batch.cursor
        self._more = batch.more
        if not batch.more:
            self._whole = False  # from here on it is pushed what it cannot have itself
        size_bytes = sum(change_bytes(change) for change in batch.changes)
        self._flight.append(_Flight(batch.cursor, now, changes if size_bytes <= HEARTBEAT_CHANGES_BYTES else None))
        return changes

    def read_failed(self) -> None:
        """The store could not read; the next turn tries again."""
        self._reading = False

    def acknowledged(self, cursor: Cursor, head: Cursor, now: float) -> None:
        """The peer has everything up to ``cursor`` on its disk."""
        if self._sent is None:
            return
        places = [flight.cursor for flight in self._flight]
        if cursor in places:
            for _ in range(places.index(cursor) + 1):
                flight = self._flight.popleft()
            self.latency_s = max(0.0, now - flight.sent_at)
        elif cursor != self.acked and cursor != self._sent:
            self._sent = cursor  # it stands elsewhere than thought: go on from there
            self._flight.clear()
        self.acked = cursor
        if cursor == head:
            self._behind_since = None

    def unacknowledged(self) -> Changes | None:
        """What a heartbeat carries along: the oldest batch under way, where it is small."""
        return self._flight[0].changes if self._flight else None

    def lag_s(self, head: Cursor, now: float) -> float | None:
        """How long the peer has been behind; where it is not, how long the last acknowledgement took."""
        if self.acked is None:
            return None
        if head != self.acked and self._behind_since is not None:
            return now - self._behind_since
        return self.latency_s or 0.0


class Incoming:
    """What this front has of a peer's log."""

    def __init__(self, site: bytes, applied: Cursor, now: float) -> None:
        self.site = site
        self.applied = applied
        """The place in the peer's log that is on disk here."""
        self.complete = False
        """Everything that the peer had when it was last asked is here."""
        self._merging = 0
        self._asked_at = now
        self._heard_at = now

    def pull(self, now: float) -> Pull:
        """The frame that asks for what is missing."""
        self.complete = False
        self._asked_at = now
        return Pull(self.applied, self.site)

    def arrived(self, now: float) -> bool:
        """A batch came: whether it is to be merged; when too many wait already, it is let go and asked for again."""
        self._heard_at = now
        if self._merging >= 2 * WINDOW:
            return False
        self._merging += 1
        return True

    def merged(self, batch: Batch, applied: Cursor, now: float) -> bool:
        """A batch was merged and ``applied`` is the place that holds now. True: there is a gap, so pull."""
        self._merging -= 1
        self.applied = applied
        if applied != batch.cursor:
            return self._may_ask(now)
        if not batch.more:
            self.complete = True
        return False

    def merge_failed(self) -> None:
        """The store could not merge; the peer is asked again when its next summary shows the gap."""
        self._merging -= 1

    def summarised(self, summary: Summary, now: float) -> bool:
        """The peer tells where its log ends. True: something is missing for a while, so pull."""
        if summary.head == self.applied:
            self.complete = True
            return False
        return not self._merging and now - self._heard_at > GAP_S and self._may_ask(now)

    def _may_ask(self, now: float) -> bool:
        return now - self._asked_at > GAP_S
