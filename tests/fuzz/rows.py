"""A target in front of the database: rows of the sync to the wall, and on to a real cr-sqlite store."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

from kollator.cluster.wire import BadFrame, Changes, decode
from kollator.state.changes import START, Change, Cursor, pack_key, validate
from kollator.state.rows import AttachmentRow, PinRow, WorkerRow
from kollator.state.store import Store
from kollator.state.tables import TABLES, problem, to_stored
from tests.fronts import open_store
from tests.fuzz.oracle import Broken
from tests.fuzz.peerframes import hostile_row, pack
from tests.fuzz.target import Target, told
from tests.test_changes import SITE

COUNTER_MAX = 2**53
REASONS = frozenset({
    "unknown table", "bad key", "unknown column", "bad value", "bad cl", "bad col_version", "bad db_version", "bad seq",
    "bad site_id", "unknown site", "delete",
})  # fmt: skip
"""All that ``validate`` says. "refused by cr-sqlite" is not among them: nothing gets so far that is refused there."""


class RowTarget(Target):
    """Changes of a peer that has the key, one at a time and in batches, to a store that others sync with."""

    name = "changes"
    cases: ClassVar = 4000
    batch: ClassVar = 125

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.store = open_store()
        self.store.begin_incarnation("", "")
        self.store.write([
            WorkerRow("w1", "us-west", 100, "192.0.2.1"), AttachmentRow("w1", "front-1", 1, "up"),
            PinRow("203.0.113.0/24", "w1"),
        ])  # fmt: skip
        batch = self.store.changes_since(START)
        self.good, self.sites = batch.changes, {*batch.sites, SITE}
        self.cursor = 0

    def case(self) -> None:
        """One batch of a row or some, as they come out of a frame."""
        changes = [hostile_row(self.mutator, self.good) for _ in range(self.source.choice((1, 1, 1, 4)))]
        self.said += changes
        if self.mutator.chance(0.5):
            changes = self._framed(changes)
        refused = 0
        for change in changes:
            reason = validate(change, known_sites=self.sites)
            if reason is None and not harmless(change):
                raise Broken(f"this would reach the database: {change!r}")
            if reason is not None and reason not in REASONS:
                raise Broken(f"a reason of no fixed words: {reason!r}")
            refused += reason is not None
            self.reached[str(reason)] += 1
        self.cursor += 1
        cursor = Cursor(b"e" * 16, self.cursor)
        result = self.store.merge(changes, sender="x", cursor=cursor, sites=[SITE])
        counts = dict(result.refused)
        if set(counts) - REASONS or sum(counts.values()) != refused:
            raise Broken(f"the store refused {counts}, the wall {refused} of {len(changes)}")
        if result.cursor != cursor:
            raise Broken(f"the cursor is {result.cursor}: the sync would not go on")
        for row in result.rows:
            check_row(row)

    def _framed(self, changes: list[Change]) -> list[Change]:
        """The same as they come over the wire, those that no frame can carry left out."""
        carried: list[Change] = []
        for change in changes:
            row = [getattr(change, name) for name in change.__struct_fields__]
            payload = pack(["changes", [row], [b"", 0], [b"e" * 16, 1], False, [SITE], False])
            frame = told(BadFrame, partial(decode, payload))
            if isinstance(frame, Changes):
                carried += frame.batch().changes
        return carried

    def settle(self) -> None:
        """The store goes on: it writes, nobody's row is gone, and another store that takes its log is the same."""
        before = self.store.db_version()
        self.store.write([WorkerRow("after", capacity=7)])
        if self.store.db_version() != before + 1 or before > 1_000_000:
            raise Broken(f"the log went from {before} to {self.store.db_version()}")
        rows = self.store.rows()
        for row in rows:
            check_row(row)
        if not any(isinstance(row, WorkerRow) and row.id == "w1" for row in rows):
            raise Broken("a row was deleted")
        other = Store.open(":memory:", node_id="other")
        try:
            batch = self.store.changes_since(START, limit_bytes=1 << 40)
            refused = other.merge(batch.changes, sender="front-1", sites=batch.sites).refused
            differing = sorted(set(map(repr, rows)) ^ set(map(repr, other.rows())))
            if refused or differing:
                raise Broken(f"another store refuses {refused}, and the two differ in {differing}")
        finally:
            other.close()

    def close(self) -> None:
        """The store is closed."""
        self.store.close()


def check_row(row: Any) -> None:
    """Raises ``Broken`` for a row with a value that its column may not have."""
    table = next(table for table in TABLES.values() if table.row is type(row))
    found = problem(table, to_stored(row))
    if found is not None:
        raise Broken(f"{found} is not allowed: {row!r}")


def harmless(change: Change) -> bool:
    """Whether cr-sqlite takes a change as its official build does, by what was measured of it.

    Written a second time, from the measurements and not from ``validate``, which must not let through more.
    """
    table = TABLES.get(change.table) if type(change.table) is str else None
    return (
        table is not None
        and _is_key(change.pk, len(table.keys))
        and type(change.cid) is str
        and change.cid in {"-1", *(column.name for column in table.values)}
        and _is_value(change.val, change.cid == "-1")
        and _counts(change.cl, 1, COUNTER_MAX)
        and (change.cl % 2 == 1 or change.cid == "-1")
        and _counts(change.col_version, 0 if change.cl > 1 else 1, COUNTER_MAX)
        and (change.cid != "-1" or change.col_version == change.cl)
        and _counts(change.db_version, 0, 2**63 - 1)
        and _counts(change.seq, 0, 2**31)
        and type(change.site_id) is bytes
        and len(change.site_id) == 16
    )


def _counts(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_key(pk: Any, columns: int) -> bool:
    if type(pk) is not bytes or len(pk) > 1024 or pk[:1] != bytes([columns]):
        return False
    texts, rest = [], pk[1:]
    while rest:
        if rest[0] != 0x0B or len(rest) < 2 or not 1 <= rest[1] <= 127 or len(rest) < 2 + rest[1]:
            return False
        texts.append(rest[2 : 2 + rest[1]])
        rest = rest[2 + rest[1] :]
    try:
        decoded = tuple(text.decode() for text in texts)
    except UnicodeDecodeError:
        return False
    return len(texts) == columns and not any("\0" in text for text in decoded) and pack_key(decoded) == pk


def _is_value(value: Any, is_sentinel: bool) -> bool:
    if is_sentinel:
        return value is None
    if type(value) is int:
        return -(2**63) <= value < 2**63
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is not str or "\0" in value or len(value) > 4096:
        return False
    return value.isascii() or value == value.encode("utf-8", "replace").decode()
