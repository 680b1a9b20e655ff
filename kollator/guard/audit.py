"""What the audit log says, and what it never says: one table of events and their fields, and one line of JSON each.

A field that the table does not have for an event is dropped, so that no session description and no secret gets in by
being passed along. What anybody may bring about as often as they like is told at most once a second for each reason
and address, with how often it was.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

VALUE_CHARS = 256
"""What is longer is cut: ids have 64 characters at most, addresses 45."""
REPEAT_S = 1.0
"""Repetitions are told so often at most, in seconds."""
REPEAT_KEYS = 256
"""So many reasons and addresses have lines of their own within ``REPEAT_S``, further ones one line for each event and
reason together: an attack from many addresses must not push what was written before out of the rotated files.
"""

EVENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "front-started": ("version", "incarnation"),
        "front-stopped": (),
        "front-retired": ("id", "term"),
        "worker-registered": ("id", "address", "region", "capacity"),
        "worker-refused": ("id", "address", "reason", "count"),
        "worker-unlisted": ("id", "address", "reason", "count"),
        "worker-replaced": ("id", "address", "replaced"),
        "worker-left": ("id", "address", "reason"),
        "client-replaced": ("id", "address", "replaced", "count"),
        "auth-failed": ("id", "address", "target", "reason", "count"),
        "limit-hit": ("id", "address", "reason", "count"),
        "peer-linked": ("id", "address", "term"),
        "peer-refused": ("id", "address", "reason", "term", "count"),
        "admin": ("action", "target", "address", "worker", "region", "cidr", "front", "debug", "reason", "status"),
        "reloaded": ("target", "reason"),
        "audit-lost": ("count",),
    }
)
"""The fields that each event may have, in the order in which they are written, after ``time``, ``node`` and ``event``.

``id`` is whom it is about: a worker, a client or a front; ``replaced`` the address of the older connection.
"""
REPEATED = frozenset(
    {"worker-refused", "worker-unlisted", "client-replaced", "auth-failed", "limit-hit", "peer-refused"}
)
"""Events that anybody can bring about, with no key."""

_SIGNALING = {"worker-joined": "worker-registered"}
_INT_BITS = 64

Fields = Mapping[str, object]


def entry(event: str, time_s: float, node: str, fields: Fields) -> str:
    """One line of the audit log, with its line break; "" for an event that is not in the table.

    ``time_s`` is in Unix seconds. A line is JSON (RFC 8259) in ASCII: control characters are escaped, the time is as
    in RFC 3339, in UTC, with milliseconds. Strings are cut at ``VALUE_CHARS``; a value that is neither a string nor
    an integer is dropped, as is a field that the table does not name.
    """
    names = EVENTS.get(event)
    if names is None:
        return ""
    record: dict[str, str | int | None] = {"time": _time(time_s), "node": _clipped(node), "event": event}
    for name in names:
        value = fields.get(name)
        # The exact types: what a subclass is when it is written is anybody's guess.
        if type(value) is str:
            record[name] = _clipped(value)
        elif type(value) is bool or (type(value) is int and value.bit_length() <= _INT_BITS):
            record[name] = value
    return json.dumps(record, separators=(",", ":")) + "\n"


def of_signaling(event: str, fields: Fields) -> tuple[str, dict[str, object]] | None:
    """What the audit log says of an event that signaling has noted; None when that is nothing.

    There a worker's id is its ``worker`` and a client's its ``client``; here both are ``id``.
    """
    name = _SIGNALING.get(event, event)
    if name not in EVENTS:
        return None
    return name, {("id" if field in ("worker", "client") else field): value for field, value in fields.items()}


class Repeated(NamedTuple):
    """An event that is to be written now, with ``count`` among its fields when it stands for several."""

    event: str
    fields: dict[str, object]


class _Seen:
    """Since when an event is held back, how many of it, and the newest one's fields."""

    __slots__ = ("count", "fields", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.fields: Fields = {}


class Repetitions:
    """Events of ``REPEATED`` by reason and address: the first is told at once, what follows once in ``REPEAT_S``.

    Nothing is left out of the counts: those of all lines together are how many there were. Times are seconds of one
    monotonic clock.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, object, object], _Seen] = OrderedDict()
        """By event, reason and address, the one that was written first in front."""

    def __len__(self) -> int:
        """How many entries are kept."""
        return len(self._seen)

    def take(self, event: str, fields: Fields, now: float) -> bool:
        """Whether an event is to be written now; otherwise it is counted, and ``due`` tells of it."""
        if event not in REPEATED:
            return True
        reason, address = _key(fields.get("reason")), _key(fields.get("address"))
        seen = self._seen.get((event, reason, address))
        if seen is None and len(self._seen) < REPEAT_KEYS:
            self._seen[event, reason, address] = _Seen(now)
            return True
        if seen is None:
            if len(self._seen) >= 2 * REPEAT_KEYS:
                reason = None
            fields = {"reason": reason}
            seen = self._seen.setdefault((event, reason, None), _Seen(now))
        seen.count += 1
        seen.fields = fields
        return False

    def due(self, now: float) -> Iterator[Repeated]:
        """What is to be written of events that were held back for ``REPEAT_S``."""
        for key in list(self._seen):
            seen = self._seen[key]
            if now - seen.since < REPEAT_S:
                return
            del self._seen[key]
            if seen.count:
                again = self._seen[key] = _Seen(now)  # goes last
                again.fields = seen.fields
                yield Repeated(key[0], {**seen.fields, "count": seen.count})


def _key(value: object) -> object:
    return value[:VALUE_CHARS] if type(value) is str else None


def _time(time_s: float) -> str | None:
    if not math.isfinite(time_s):
        return None
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    except (ValueError, OverflowError, OSError):
        return None


def _clipped(text: str) -> str:
    """The text without lone surrogates, which JSON cannot hold (RFC 8259 section 8.2), and not too long."""
    return text[:VALUE_CHARS].encode("utf-8", "backslashreplace").decode("utf-8")[:VALUE_CHARS]
