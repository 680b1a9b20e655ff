"""One connection to one database: opening in the right order, transactions, errors, closing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import apsw

from kollator.state import dbfile, extension
from kollator.state.errors import PathError, StoreError
from kollator.state.tables import TABLES

Synchronous = Literal["NORMAL", "FULL"]

MEMORY = ":memory:"

MIGRATIONS: tuple[Path, ...] = tuple(sorted(Path(__file__).with_name("schema").glob("[0-9][0-9][0-9].sql")))
SCHEMA_VERSION = len(MIGRATIONS)

_OURS = f"PRAGMA application_id={dbfile.APPLICATION_ID}"
_HEAD = (
    "SELECT max("
    + ", ".join(f"(SELECT coalesce(max(db_version), 0) FROM {name}__crsql_clock)" for name in TABLES)
    + ")"
)


class Database:
    """An open database with cr-sqlite in it, for one thread at a time (it waits for its turn).

    Make it with ``open``, which leaves cr-sqlite out; ``load`` brings it in. In between, the local tables can
    be put in order. ``head`` is the last db_version that is stored.
    """

    def __init__(self, path: str, library: str, synchronous: Synchronous) -> None:
        self.path = path
        self.head = 0
        self._library = library
        self._synchronous = synchronous
        self._connection: apsw.Connection | None = None
        self._lock: dbfile.FileLock | None = None
        self._turn = RLock()
        self._depth = 0
        self._loaded = False
        self._has_log = False

    @classmethod
    def open(cls, path: str, library: str, *, synchronous: Synchronous, image: bytes | None = None) -> Database:
        """Check the file, take its lock, connect. ``image`` is what a database in memory begins with.

        Raises ``StoreError``; the file is then as it was.
        """
        if path == MEMORY:
            database = cls(path, library, synchronous)
            database._connect(image)
            return database
        database = cls(dbfile.absolute(path), library, synchronous)
        dbfile.check_path(database.path)
        database._lock = dbfile.FileLock(database.path)
        try:
            dbfile.inspect(database.path, SCHEMA_VERSION)
            database._connect()
        except BaseException:
            database.close()
            raise
        return database

    @property
    def connection(self) -> apsw.Connection:
        """The connection. Raises ``StoreError`` after ``close``."""
        if self._connection is None:
            raise StoreError(f"SQLITE_PATH: {self.path} is closed: start the front again")
        return self._connection

    @contextmanager
    def use(self) -> Iterator[apsw.Connection]:
        """The connection, for this thread alone; SQLite's errors become ``StoreError`` at the outermost one."""
        with self._turn:
            self._depth += 1
            try:
                yield self.connection
            except apsw.Error as problem:
                if self._depth > 1:
                    raise
                raise dbfile.failure(problem, self.path) from problem
            finally:
                self._depth -= 1

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[apsw.Connection]:
        """A write transaction: committed whole, or rolled back by any exception.

        ``durable``: on disk, past a loss of power, before this returns. ``head`` is right afterwards.
        """
        with self.use() as connection:
            sync = durable and self._synchronous != "FULL" and self.path != MEMORY
            if sync:
                connection.execute("PRAGMA synchronous=FULL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            finally:
                if sync:
                    connection.execute("PRAGMA synchronous=NORMAL")
            if self._has_log:
                self.head = read_head(connection)

    def load(self) -> None:
        """Load cr-sqlite, then bring the schema up to date. Raises ``StoreError``."""
        with self.use() as connection:
            extension.load(connection, self._library)
            self._loaded = True
            self._migrate(connection)
            self._has_log = True
            self.head = read_head(connection)

    def reopen(self, change: Callable[[apsw.Connection], None]) -> None:
        """Close, connect again, and let ``change`` write in one transaction before cr-sqlite is loaded.

        What cr-sqlite reads once, as it is loaded, can be changed only so. The lock is kept throughout.
        """
        with self.use() as connection:
            image = connection.serialize("main") if self.path == MEMORY else None
            self._disconnect()
            self._connect(image)
            with self.transaction() as connection:
                change(connection)
            self.load()

    def scratch(self) -> Database:
        """An empty database in memory with the same extension and schema, to be closed by the caller."""
        scratch = Database.open(MEMORY, self._library, synchronous=self._synchronous)
        scratch.load()
        return scratch

    def image(self) -> bytes:
        """The database as the bytes of a database file."""
        with self.use() as connection:
            return connection.serialize("main")

    def close(self) -> None:
        """Close the connection and let the file go. Idempotent."""
        with self._turn:
            try:
                self._disconnect()
            finally:
                if self._lock is not None:
                    self._lock.release()

    def _connect(self, image: bytes | None = None) -> None:
        with self._turn:
            try:
                connection = self._connection = apsw.Connection(self.path)
                if self.path == MEMORY:
                    if image is None:
                        connection.execute(_OURS).fetchall()
                    else:
                        # Bytes 18 and 19 say "WAL", which memory has not (sqlite.org/fileformat.html 1.3.3).
                        connection.deserialize("main", image[:18] + b"\1\1" + image[20:])
                    return
                connection.set_busy_timeout(dbfile.BUSY_TIMEOUT_MS)
                if not dbfile.has_bytes(self.path):
                    # The first transaction of all, so that a file is ours from its first page on.
                    connection.execute(_OURS).fetchall()
                    os.chmod(self.path, 0o600)
                # To learn of a lock here, and not from the extension, which cannot tell why it fails.
                connection.execute("BEGIN IMMEDIATE; COMMIT").fetchall()
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchall()[0][0]
                if mode != "wal":
                    raise PathError(f"SQLITE_PATH: {self.path} can have no write-ahead log: name a local file")
                connection.execute(f"PRAGMA synchronous={self._synchronous}").fetchall()
            except apsw.Error as problem:
                raise dbfile.failure(problem, self.path) from problem

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                self._has_log = False
                if self._loaded:
                    self._loaded = False
                    extension.finalize(connection)
            finally:
                connection.close()

    def _migrate(self, connection: apsw.Connection) -> None:
        version: int = select(connection, "PRAGMA user_version")[0][0]
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            with self.transaction():
                connection.execute(script.read_text(encoding="utf-8")).fetchall()
                if version > 0:
                    # Peers may have sent what was refused until now: ask them for everything again.
                    connection.execute("DELETE FROM cursors").fetchall()
                connection.execute(f"PRAGMA user_version={number}").fetchall()


def read_head(connection: apsw.Connection) -> int:
    """The last db_version that is stored.

    Not ``crsql_db_version()``: a write that changed nothing raises that one, and gives the number away again
    after the next opening.
    """
    head: int = select(connection, _HEAD)[0][0]
    return head


def select(connection: apsw.Connection, sql: str, bindings: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
    """Every row of a statement, which is then over."""
    return connection.execute(sql, bindings).fetchall()
