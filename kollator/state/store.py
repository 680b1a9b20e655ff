"""The store: the replicated rows, what this front keeps for itself, and changes to and from other fronts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import apsw

from kollator.state import dbfile, extension, lineage, tables
from kollator.state.changes import BATCH_BYTES, Batch, Change, Cursor, value_bytes
from kollator.state.database import MEMORY, SCHEMA_VERSION, Database, Synchronous, select
from kollator.state.errors import StorageFailedError
from kollator.state.lineage import NewId, Origin
from kollator.state.replication import MergeResult, Replication
from kollator.state.rows import AttachmentRow, FrontRow, Row, row_key
from kollator.state.tables import TABLES, Table, Value

MetaValue = str | bytes | int
WRITE_BYTES = BATCH_BYTES // 2
"""Rows beyond this are written in another transaction, so that every db_version fits in a batch."""

_ROW_BYTES = 96
"""A bound on a change's size without its key and its value."""


def _random_id() -> bytes:
    return os.urandom(16)


class WriteResult(NamedTuple):
    """Whether a write changed anything, and the last db_version of the log after it."""

    changed: bool
    db_version: int


class _Statements(NamedTuple):
    every: str
    one: str
    insert: str
    where: str


def _statements(table: Table) -> _Statements:
    names = [column.name for column in table.keys + table.values]
    columns = ", ".join(names)
    where = " AND ".join(f"{column.name} = ?" for column in table.keys)
    return _Statements(
        f"SELECT {columns} FROM {table.name} ORDER BY {', '.join(column.name for column in table.keys)}",
        f"SELECT {columns} FROM {table.name} WHERE {where}",
        f"INSERT INTO {table.name} ({columns}) VALUES ({', '.join('?' * len(names))})",
        where,
    )


_SQL = {name: _statements(table) for name, table in TABLES.items()}


class Store:
    """Everything that is kept, of one front, in one file. Synchronous, for one thread at a time.

    Another thread waits for its turn, at longest for one transaction. Every method but ``close`` raises
    ``StoreError`` when the disk is full, reading or writing fails, or the store is closed; what it was to
    write is then not written. A process that forks must open its store after that.
    """

    def __init__(self, database: Database, node_id: str, new_site_id: NewId, origin: Origin) -> None:
        """Not called directly: see ``open``."""
        self.node_id = node_id
        self.origin = origin
        """What was found: ``new``, ``known`` (this node's own), or ``copy`` (another node's)."""
        self._database = database
        self._new_site_id = new_site_id
        self._renewed = origin != "known"
        self._epochs = lineage.Epochs(database, node_id, new_site_id)
        self._replication = Replication(database, self._epochs)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        node_id: str,
        extension: str | None = None,
        new_site_id: NewId = _random_id,
        synchronous: Synchronous = "NORMAL",
        image: bytes | None = None,
    ) -> Store:
        """Open the database at ``path`` for a node, making it if there is none; ``:memory:`` for one in
        memory.

        ``extension`` is the setting CRSQLITE_PATH. ``new_site_id`` draws 16 random bytes, for site ids and
        epochs. ``synchronous`` is SQLite's: with NORMAL a loss of power may take back the last transactions,
        which peers then find out (see ``lineage``), with FULL not. ``image`` (with ``:memory:``) is what
        ``image()`` of another store gave.

        Raises a ``StoreError`` of one line that names the setting and the remedy. A file that is not a sound
        database of ours, of this version or an older one, and not in use elsewhere, is left as it was.
        """
        _check_node(node_id)
        library = _library(extension)
        database = Database.open(path, library, synchronous=synchronous, image=image)
        try:
            origin = lineage.adopt(database, node_id, new_site_id)
            database.load()
            return cls(database, node_id, new_site_id, origin)
        except BaseException:
            database.close()
            raise

    @staticmethod
    def check(path: str, *, extension: str | None = None) -> None:
        """Find out what would keep ``open`` from working, without changing anything. Raises ``StoreError``.

        For the time before a daemon forks, when errors still reach the operator's terminal.
        """
        _library(extension)
        if path != MEMORY:
            path = dbfile.absolute(path)
            dbfile.check_path(path)
            lock = dbfile.FileLock(path)
            try:
                dbfile.inspect(path, SCHEMA_VERSION)
            finally:
                lock.release()

    def close(self) -> None:
        """Close the database and let its file go. Idempotent."""
        self._database.close()

    def image(self) -> bytes:
        """The whole database as the bytes of a database file: for a backup, or to be opened in memory."""
        return self._database.image()

    # -- rows ------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every replicated row, in the order of tables and keys: equal lists on fronts that agree."""
        with self._database.use() as connection:
            return [
                tables.from_stored(table, values)
                for name, table in TABLES.items()
                for values in select(connection, _SQL[name].every)
            ]

    def write(self, rows: Iterable[Row], *, durable: bool = False) -> WriteResult:
        """Store rows; only columns that differ are written, so a write that changes nothing leaves no change.

        Of two rows with one key the later counts. All go into one transaction, or several when they are more
        than 128 KiB. ``durable``: they are on disk, past a loss of power, when this returns.

        ``retired`` of this front's own row is left alone (the leader writes it); of another front's row it is
        the only column that may differ.

        Raises ``ValueError`` when a value is not allowed or the row is not this front's to write; then
        nothing is written.
        """
        newest: dict[tuple[str, ...], Row] = {}
        for row in rows:
            newest[row_key(row)] = row
        with self._database.use() as connection:
            writes = [write for row in newest.values() if (write := self._difference(connection, row)) is not None]
            for some in _portions(writes):
                with self._database.transaction(durable=durable):
                    for sql, bindings, _ in some:
                        connection.execute(sql, bindings)
            return WriteResult(bool(writes), self._database.head)

    def begin_incarnation(self, region: str, url: str) -> FrontRow:
        """Store this front's row for a new start, and return it.

        Its ``incarnation`` is one above what is stored, and above ``retired``, so the front is alive and what
        was attached to its former life does not count. Call it again when a merge shows that this database
        had forgotten a former life: an ``incarnation`` or ``retired`` of one's own not below the present one.
        """
        with self._database.use() as connection:
            stored = select(connection, _SQL["fronts"].one, (self.node_id,))
            before = FrontRow(self.node_id) if not stored else tables.from_stored(TABLES["fronts"], stored[0])
            assert isinstance(before, FrontRow)  # for the type checker: it is that table's row
            now = FrontRow(
                self.node_id, max(before.incarnation, before.retired) + 1, before.retired, region, url, False
            )
            if now.incarnation > tables.COUNTER_MAX:
                raise StorageFailedError(
                    f"NODE_ID: the incarnations of {self.node_id} are used up: give this front another id"
                )
            self.write([now], durable=True)  # a number that peers have seen is never used again
            return now

    def _difference(self, connection: apsw.Connection, row: Row) -> _Write | None:
        table = tables.table_of(row)
        values = tables.to_stored(row)
        wrong = tables.problem(table, values)
        if wrong is not None:
            raise ValueError(f"a value that is not allowed for {wrong}")
        if isinstance(row, AttachmentRow) and row.front != self.node_id:
            raise ValueError("an attachment is written by the front that it names")
        keys, sql = len(table.keys), _SQL[table.name]
        key = values[:keys]
        found = select(connection, sql.one, key)
        stored: tuple[Value, ...] | None = found[0] if found else None
        if isinstance(row, FrontRow):
            values = self._front_values(row, values, stored)
        if stored is None:
            return sql.insert, values, _size_bytes(key, values[keys:])
        changed = [
            (column.name, new)
            for column, new, old in zip(table.values, values[keys:], stored[keys:], strict=True)
            if new != old
        ]
        if not changed:
            return None
        assignments = ", ".join(f"{name} = ?" for name, _ in changed)
        new_values = tuple(new for _, new in changed)
        return (
            f"UPDATE {table.name} SET {assignments} WHERE {sql.where}",
            new_values + key,
            _size_bytes(key, new_values),
        )

    def _front_values(
        self, row: FrontRow, values: tuple[Value, ...], stored: tuple[Value, ...] | None
    ) -> tuple[Value, ...]:
        before = None if stored is None else tables.from_stored(TABLES["fronts"], stored)
        assert before is None or isinstance(before, FrontRow)
        if row.id != self.node_id:
            if before is None or (row.incarnation, row.region, row.url, row.draining) != (
                before.incarnation,
                before.region,
                before.url,
                before.draining,
            ):
                raise ValueError("of another front's row only retired may change")
            if row.retired < before.retired:
                raise ValueError("retired only grows")
            return values
        if before is not None and row.incarnation < before.incarnation:
            raise ValueError("incarnation only grows")
        return (*values[:2], 0 if before is None else before.retired, *values[3:])

    # -- what is not replicated ------------------------------------------------------------------------------

    def get(self, key: str) -> MetaValue | None:
        """What this front has put under a key; None when there is nothing."""
        with self._database.use() as connection:
            found = select(connection, "SELECT value FROM meta WHERE key = ?", (key,))
        return found[0][0] if found else None

    def put(self, key: str, value: MetaValue) -> None:
        """Keep a small value of this front's own under a key. A copy of the file does not keep it."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def vote(self) -> tuple[int, str | None]:
        """The newest term that this front knows of, and whom it has voted for in that term. At first (0,
        None).
        """
        with self._database.use() as connection:
            found = select(connection, "SELECT term, voted_for FROM votes")
        return (found[0][0], found[0][1]) if found else (0, None)

    def save_vote(self, term: int, voted_for: str | None) -> None:
        """Store a term and a vote; it is on disk, past a loss of power, when this returns.

        Raises ``ValueError`` for an older term, and for another vote in the same term: a promise is not taken
        back.
        """
        with self._database.use():
            stored_term, stored_vote = self.vote()
            if (term, voted_for) == (stored_term, stored_vote):
                return
            if term < stored_term or (term == stored_term and stored_vote is not None):
                raise ValueError("a vote is not changed within its term, and terms only grow")
            with self._database.transaction(durable=True) as connection:
                connection.execute(
                    "INSERT INTO votes (one, term, voted_for) VALUES (1, ?, ?)"
                    " ON CONFLICT (one) DO UPDATE SET term = excluded.term, voted_for = excluded.voted_for",
                    (term, voted_for),
                )

    # -- other fronts ----------------------------------------------------------------------------------------

    def site_id(self) -> bytes:
        """The database's own id, 16 bytes: new with each new file and copy, and after ``renew_site_id``."""
        with self._database.use() as connection:
            return bytes(select(connection, "SELECT crsql_site_id()")[0][0])

    def db_version(self) -> int:
        """The last db_version of the log. From memory."""
        return self._database.head

    def head(self) -> Cursor:
        """The end of the log, as a cursor: what a heartbeat tells. From memory."""
        return self._epochs.head

    def knows(self, cursor: Cursor) -> bool:
        """Whether a peer's cursor is a place in this log. If it is not, this file was wiped or put back."""
        return self._epochs.knows(cursor)

    def renew_site_id(self) -> bool:
        """Give this database a new site id, and return whether it did.

        To be called when a peer shows a cursor that ``knows`` denies (``lineage`` says why). Once for each
        opening is enough, and a database that was new or a copy has a new one anyway: then it does nothing.
        Nobody need be told: each change carries its site id, and a peer's batches name those that it vouches for.
        """
        with self._database.use():
            if self._renewed:
                return False
            lineage.renew_site_id(self._database, self._new_site_id)
            self._replication.reload_sites()
            self._renewed = True
            return True

    def changes_since(self, cursor: Cursor, *, limit_bytes: int = BATCH_BYTES) -> Batch:
        """The stretch of this log that follows a peer's cursor, cut at whole db_versions.

        It is at most ``limit_bytes`` of MessagePack, or one db_version that is larger: local writes make none
        over 128 KiB, and a merge makes one no larger than the frame it came in. What the peer wrote itself is in
        it too, for it may have lost it. A cursor that is not a place in this log is answered from the beginning,
        ``rewound``.
        """
        return self._replication.changes_since(cursor, limit_bytes)

    def merge(
        self,
        changes: Sequence[Change],
        *,
        sender: str,
        since: Cursor | None = None,
        cursor: Cursor | None = None,
        sites: Iterable[bytes] = (),
    ) -> MergeResult:
        """Merge a batch of an authenticated peer, or a slice of one, in one transaction with the cursor.

        ``sender`` is the peer's node id and ``sites`` the databases it vouches for. ``cursor`` is stored as
        the place reached in the sender's log; leave it out for all slices but the last. With ``since`` it is
        stored only if that is where this database stood, so a batch after a lost one leaves no gap behind.
        Returns the rows that changed, what was refused, and the cursor that now holds.

        A change that ``validate`` or cr-sqlite refuses is left out and counted, and the others are merged:
        the cursor moves past it, or one bad row would stop the sync for ever.

        This front's own rows may be among those that changed, when this database was wiped or put back and
        peers know a former life: then begin a new incarnation and write what is true now.
        """
        return self._replication.merge(changes, sender, since, cursor, sites)

    def cursor_of(self, sender: str) -> Cursor:
        """How much of a peer's log has been applied here; the beginning for one that is new."""
        return self._replication.cursor_of(sender)


_Write = tuple[str, tuple[Value, ...], int]


def _check_node(node_id: str) -> None:
    if tables.problem(TABLES["fronts"], tables.to_stored(FrontRow(node_id))) is not None:
        raise ValueError("a node id is 1 to 64 of A-Z a-z 0-9 . _ : -")


def _library(explicit: str | None) -> str:
    library = extension.find(explicit)
    extension.verify(library)
    return library


def _size_bytes(key: tuple[Value, ...], values: tuple[Value, ...]) -> int:
    key_bytes = sum(value_bytes(value) + 2 for value in key)
    return sum(_ROW_BYTES + key_bytes + value_bytes(value) for value in values)


def _portions(writes: list[_Write]) -> Iterator[list[_Write]]:
    some: list[_Write] = []
    size_bytes = 0
    for write in writes:
        if some and size_bytes + write[2] > WRITE_BYTES:
            yield some
            some, size_bytes = [], 0
        some.append(write)
        size_bytes += write[2]
    if some:
        yield some
