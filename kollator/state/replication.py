"""Changes to other fronts and from them: the store's half that speaks ``crsql_changes``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import apsw

from kollator.state.changes import (
    SITE_ID_BYTES,
    START,
    Batch,
    Change,
    Cursor,
    change_bytes,
    validate,
)
from kollator.state.database import Database, select
from kollator.state.errors import StorageFailedError
from kollator.state.lineage import Epochs
from kollator.state.rows import Row
from kollator.state.tables import TABLES, from_stored

SITES_MAX = 65_536
"""Databases that this one has ever heard of: 1 MiB of ids. A front is a new one with each new file."""

_COLUMNS = '"table", pk, cid, val, col_version, db_version, site_id, cl, seq'
_SINCE = f"SELECT {_COLUMNS} FROM crsql_changes WHERE db_version > ? ORDER BY db_version, seq"
# 0 for the db_version: cr-sqlite goes on from the largest that it has seen, and 2^63-1 would be the last.
_MERGE = f"INSERT INTO crsql_changes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?)"


def _changed_since(name: str) -> str:
    table = TABLES[name]
    keys = [column.name for column in table.keys]
    columns = ", ".join(f"t.{name}" for name in keys + [column.name for column in table.values])
    # The + keeps SQLite from reading the whole clock in the order of its keys.
    return (
        f"SELECT {columns} FROM (SELECT DISTINCT +key AS key FROM {name}__crsql_clock WHERE db_version > ?) AS c"
        f" JOIN {name}__crsql_pks AS p ON p.__crsql_key = c.key"
        f" JOIN {name} AS t ON {' AND '.join(f't.{key} = p.{key}' for key in keys)}"
    )


_CHANGED_SINCE = {name: _changed_since(name) for name in TABLES}


class MergeResult(NamedTuple):
    """What a merge did. ``rows`` are the rows that changed, as they are now; ``refused`` counts by reason."""

    rows: list[Row]
    refused: list[tuple[str, int]]
    cursor: Cursor


class Replication:
    """The database's own log, and what it has of others'."""

    def __init__(self, database: Database, epochs: Epochs) -> None:
        self._database = database
        self._epochs = epochs
        self._sites: set[bytes] = set()
        self.reload_sites()

    def reload_sites(self) -> None:
        """Read the known site ids from the database: its own and those it has merged changes of."""
        with self._database.use() as connection:
            self._sites.update(site for (site,) in select(connection, "SELECT site_id FROM crsql_site_id"))

    def changes_since(self, cursor: Cursor, limit_bytes: int) -> Batch:
        """See ``Store.changes_since``."""
        with self._database.use() as connection:
            rewound = not self._epochs.knows(cursor)
            after = 0 if rewound else cursor.db_version
            if after >= self._database.head:
                return Batch([], cursor, self._epochs.head, rewound=rewound)
            changes, last, more = _read(connection, after, limit_bytes)
            end = Cursor(self._epochs.current, last) if more else self._epochs.head
        return Batch(changes, cursor, end, more, sorted({change.site_id for change in changes}), rewound)

    def merge(
        self,
        changes: Sequence[Change],
        sender: str,
        since: Cursor | None,
        cursor: Cursor | None,
        sites: Iterable[bytes],
    ) -> MergeResult:
        """See ``Store.merge``."""
        with self._database.use() as connection:
            self._learn(sites)
            allowed: list[Change] = []
            refused: Counter[str] = Counter()
            for change in changes:
                reason = validate(change, known_sites=self._sites)
                if reason is None:
                    allowed.append(change)
                else:
                    refused[reason] += 1
            stored = self.cursor_of(sender)
            if cursor is None or (since is not None and since != stored):
                cursor = stored
            before = self._database.head
            try:
                self._insert(allowed, sender, stored, cursor)
            except apsw.Error:
                refused["refused by cr-sqlite"] += self._insert_one_by_one(allowed, sender, stored, cursor)
            rows: list[Row] = []
            if self._database.head > before:
                for name in TABLES:  # fronts before what depends on them
                    for values in select(connection, _CHANGED_SINCE[name], (before,)):
                        rows.append(from_stored(TABLES[name], values))
        return MergeResult(rows, sorted((+refused).items()), cursor)

    def cursor_of(self, sender: str) -> Cursor:
        """See ``Store.cursor_of``."""
        with self._database.use() as connection:
            found = select(connection, "SELECT epoch, db_version FROM cursors WHERE sender = ?", (sender,))
        return Cursor(*found[0]) if found else START

    def _learn(self, sites: Iterable[bytes]) -> None:
        for site in sites:
            if type(site) is bytes and len(site) == SITE_ID_BYTES and len(self._sites) < SITES_MAX:
                self._sites.add(site)

    def _insert(self, changes: list[Change], sender: str, stored: Cursor, cursor: Cursor) -> None:
        if not changes and cursor == stored:
            return
        with self._database.transaction() as connection:
            connection.executemany(_MERGE, map(_bindings, changes))
            _save_cursor(connection, sender, stored, cursor)

    def _insert_one_by_one(self, changes: list[Change], sender: str, stored: Cursor, cursor: Cursor) -> int:
        """As ``_insert``, but leaves out the changes that are at fault; returns how many those are."""
        refused = 0
        with self._database.transaction() as connection:
            for change in changes:
                connection.execute("SAVEPOINT one")
                try:
                    connection.execute(_MERGE, _bindings(change))
                except apsw.Error:
                    if not self._is_at_fault(change):
                        raise
                    # A failed insert leaves parts of itself behind.
                    connection.execute("ROLLBACK TO one")
                    refused += 1
                connection.execute("RELEASE one")
            _save_cursor(connection, sender, stored, cursor)
        return refused

    def _is_at_fault(self, change: Change) -> bool:
        """Whether cr-sqlite refuses the change on an empty database too.

        Its own error does not tell: a full disk comes out of it as "SQL logic error", and to take that for a
        bad row would lose every row that comes while the disk is full.
        """
        scratch = self._database.scratch()
        try:
            with scratch.transaction() as connection:
                connection.execute(_MERGE, _bindings(change))
            return False
        except StorageFailedError:
            return True
        finally:
            scratch.close()


def _read(connection: apsw.Connection, after: int, limit_bytes: int) -> tuple[list[Change], int, bool]:
    """Whole db_versions up to the limit (at least one), the last one's number, and whether there are more."""
    changes: list[Change] = []
    size_bytes = 0
    version = after
    whole, last = 0, after  # the changes up to the last db_version that was read to its end, and that one
    rows = connection.cursor()
    try:
        for values in rows.execute(_SINCE, (after,)):
            change = Change(*values)
            size_bytes += change_bytes(change)
            if change.db_version != version:
                whole, last, version = len(changes), version, change.db_version
            if size_bytes > limit_bytes and whole:
                return changes[:whole], last, True
            changes.append(change)
        return changes, version, False
    finally:
        rows.close(True)  # not read to its end, it would keep the log from being folded in


def _bindings(change: Change) -> tuple[object, ...]:
    return (
        change.table,
        change.pk,
        change.cid,
        change.val,
        change.col_version,
        change.site_id,
        change.cl,
        change.seq,
    )


def _save_cursor(connection: apsw.Connection, sender: str, stored: Cursor, cursor: Cursor) -> None:
    if cursor != stored:
        connection.execute(
            "INSERT INTO cursors (sender, epoch, db_version) VALUES (?, ?, ?)"
            " ON CONFLICT (sender) DO UPDATE SET epoch = excluded.epoch, db_version = excluded.db_version",
            (sender, cursor.epoch, cursor.db_version),
        )
