"""Limits: token buckets, connection counts and back-off after failures, all in tables that cannot grow.

A bucket is kept as one number, the time at which it is full again (the generic cell rate algorithm, ITU-T
I.371): it allows exactly what a bucket of ``burst`` tokens allows that gains ``rate`` tokens a second. Times
are seconds of any clock. One that is set back costs a key at most the wait of an empty bucket.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from kollator.guard.addresses import limit_key

_ROUNDING_S = 1e-6
"""Seconds since 1970 in a float are exact to a quarter of a microsecond; nobody is refused for less."""
_SWEPT_EACH_TIME = 2
"""More than one entry comes in, so a table full of old entries empties while it is used."""
_MAX_DOUBLINGS = 30
BACKOFF_BASE_S = 1.0
"""After a first failure: others behind the same address, whose proofs are good, are not kept out for long."""


class Allowance:
    """A rate, for buckets whose one number is kept by somebody else: a connection, for its messages.

    ``rate`` is in tokens a second, ``burst`` in tokens. Raises ``ValueError`` when one is not above zero. One
    instance serves every connection, which keeps a float (zero at first: a full bucket)::

        full_at = allowance.spend(self.full_at, now)
        if full_at < 0:
            refuse()
        else:
            self.full_at = full_at
    """

    __slots__ = ("_burst", "_interval_s", "_span_s")

    def __init__(self, rate: float, burst: float) -> None:
        if not (0 < rate < math.inf and 0 < burst < math.inf):
            raise ValueError("a rate and a burst are numbers above zero")
        self._burst = burst
        self._interval_s = 1.0 / rate
        self._span_s = burst / rate

    def spend(self, full_at: float, now: float, cost: float = 1.0) -> float:
        """Return what to keep in place of ``full_at``, or -1.0 when the bucket holds less than ``cost``.

        A cost over the burst takes a full bucket, or it could never be paid.
        """
        span_s = self._span_s
        if full_at < now:
            full_at = now
        elif full_at > now + span_s:
            full_at = now + span_s
        full_at += (cost if cost < self._burst else self._burst) * self._interval_s
        return full_at if full_at - now <= span_s + _ROUNDING_S else -1.0

    def wait_s(self, full_at: float, now: float, cost: float = 1.0) -> float:
        """Return the seconds until ``cost`` would be allowed, 0.0 when it is already."""
        span_s = self._span_s
        owed_s = min(max(full_at - now, 0.0), span_s)
        wait_s = owed_s + min(cost, self._burst) * self._interval_s - span_s
        return wait_s if wait_s > _ROUNDING_S else 0.0


class TokenBuckets:
    """A bucket for each key, such as an address, in a table of at most ``max_entries``.

    ``rate`` is in tokens a second, ``burst`` in tokens. A bucket that is full again is forgotten; when the
    table is still full, the one that was used least recently goes. Each call costs the same however large the
    table.
    """

    __slots__ = ("_allowance", "_full_at", "_max_entries")

    def __init__(self, rate: float, burst: float, max_entries: int) -> None:
        if max_entries < 1:
            raise ValueError("a table has one entry at least")
        self._allowance = Allowance(rate, burst)
        self._max_entries = max_entries
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of buckets in the table."""
        return len(self._full_at)

    def take(self, key: str, now: float, cost: float = 1.0) -> float:
        """Take ``cost`` tokens and return 0.0; or take none and return the seconds until they are there."""
        table = self._full_at
        before = table.get(key, now)
        after = self._allowance.spend(before, now, cost)
        if after >= 0:
            table[key] = after
        # Also when refused: the bucket of someone who hammers must not be the stalest one.
        table.move_to_end(key)
        self._trim(now)
        return 0.0 if after >= 0 else self._allowance.wait_s(before, now, cost)

    def wait_s(self, key: str, now: float, cost: float = 1.0) -> float:
        """Return what ``take`` would, without taking."""
        return self._allowance.wait_s(self._full_at.get(key, now), now, cost)

    def _trim(self, now: float) -> None:
        table = self._full_at
        for _ in range(_SWEPT_EACH_TIME):
            if not table:
                return
            stalest = next(iter(table))
            if table[stalest] > now and len(table) <= self._max_entries:
                return
            del table[stalest]


class FailureBackoff:
    """How long a key that failed, such as the address of a worker with a wrong proof, must stay away.

    ``base_s`` seconds after the first failure, twice as long after each further one, ``max_s`` at most. A key
    is forgotten ``max_s`` after its wait is over, when it succeeds, or as the stalest of ``max_entries``.
    """

    __slots__ = ("_base_s", "_max_entries", "_max_s", "_table")

    def __init__(self, base_s: float, max_s: float, max_entries: int) -> None:
        if not 0 < base_s <= max_s < math.inf:
            raise ValueError("a back-off starts above zero and does not start above its longest")
        if max_entries < 1:
            raise ValueError("a table has one entry at least")
        self._base_s = base_s
        self._max_s = max_s
        self._max_entries = max_entries
        self._table: OrderedDict[str, tuple[int, float, bool]] = OrderedDict()
        """Failures, the time until which to stay away, and whether ``mention`` was asked since."""

    def __len__(self) -> int:
        """Return the number of keys in the table."""
        return len(self._table)

    def failed(self, key: str, now: float) -> float:
        """Note a failure and return the seconds to stay away."""
        table = self._table
        failures, until, _ = table.pop(key, (0, 0.0, False))
        if until + self._max_s <= now:
            failures = 0
        wait_s = min(self._base_s * 2.0 ** min(failures, _MAX_DOUBLINGS), self._max_s)
        table[key] = (failures + 1, now + wait_s, False)
        for _ in range(_SWEPT_EACH_TIME):
            stalest = next(iter(table))
            if table[stalest][1] + self._max_s > now and len(table) <= self._max_entries:
                break
            del table[stalest]
        return wait_s

    def wait_s(self, key: str, now: float) -> float:
        """Return the seconds that a key must still stay away, 0.0 when it may try."""
        _, until, _ = self._table.get(key, (0, 0.0, False))
        return min(max(until - now, 0.0), self._max_s)

    def mention(self, key: str) -> bool:
        """Return whether to say that a key came too early: once after each failure."""
        entry = self._table.get(key)
        if entry is None or entry[2]:
            return False
        self._table[key] = (*entry[:2], True)
        return True

    def succeeded(self, key: str) -> None:
        """Forget the failures of a key."""
        self._table.pop(key, None)


class AddressBackoff:
    """The back-off of IP addresses, IPv6 ones by their /64: ``BACKOFF_BASE_S`` at first, ``max_s`` at most.

    ``max_s`` of 0.0: none at all. ``spared`` tells addresses that are left alone.
    """

    __slots__ = ("_backoff", "_spared")

    def __init__(self, max_s: float, max_entries: int, spared: Callable[[str], bool]) -> None:
        self._backoff = FailureBackoff(min(BACKOFF_BASE_S, max_s), max_s, max_entries) if max_s else None
        self._spared = spared

    def keeps_out(self, address: str, now: float) -> bool:
        """Return whether an address has failed so recently that it is not to be asked for another proof."""
        backoff = self._backoff
        return backoff is not None and not self._spared(address) and backoff.wait_s(limit_key(address), now) > 0

    def mention(self, address: str) -> bool:
        """Return whether to say that an address was kept out: once after each failure."""
        return self._backoff is not None and self._backoff.mention(limit_key(address))

    def failed(self, address: str, now: float) -> None:
        """Note a wrong proof. Of those that were under way together only the first counts."""
        if self._backoff is not None and not self._spared(address) and not self.keeps_out(address, now):
            self._backoff.failed(limit_key(address), now)

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address: a proof was good."""
        if self._backoff is not None:
            self._backoff.succeeded(limit_key(address))


class ConnectionCounts:
    """How many connections there are, in all and for each key (``addresses.limit_key``).

    The table has an entry for each key that has a connection, so ``max_total`` bounds it. Raises
    ``ValueError`` when a limit is below one.
    """

    __slots__ = ("_by_key", "_exempt", "_max_per_key", "_max_total", "total")

    def __init__(self, max_total: int, max_per_key: int) -> None:
        if max_total < 1 or max_per_key < 1:
            raise ValueError("a connection limit is one at least")
        self._max_total = max_total
        self._max_per_key = max_per_key
        self._by_key: dict[str, int] = {}
        self._exempt = 0
        self.total = 0

    def admit(self, key: str | None) -> Literal["total", "address"] | None:
        """Count a connection and return ``None``; or count nothing and name the limit that is reached.

        A key of ``None`` is exempt from the limit of its address, never from the total.
        """
        if self.total >= self._max_total:
            return "total"
        if key is None:
            self._exempt += 1
        else:
            count = self._by_key.get(key, 0)
            if count >= self._max_per_key:
                return "address"
            self._by_key[key] = count + 1
        self.total += 1
        return None

    def release(self, key: str | None) -> None:
        """Count an admitted connection out. Raises ``ValueError`` for one that is not in."""
        count = self._exempt if key is None else self._by_key.get(key, 0)
        if count < 1:
            raise ValueError("released a connection that was not admitted")
        if key is None:
            self._exempt -= 1
        elif count == 1:
            del self._by_key[key]
        else:
            self._by_key[key] = count - 1
        self.total -= 1

    def of(self, key: str) -> int:
        """Return how many connections a key has."""
        return self._by_key.get(key, 0)


def retry_after_s(wait_s: float) -> int:
    """Return a wait as whole seconds, rounded up, one at least, for ``Retry-After`` (RFC 9110, 10.2.3)."""
    return max(1, math.ceil(wait_s - _ROUNDING_S))
