"""What travels between fronts: changes, cursors and batches, and what of it may reach the database.

A ``Change`` is one row of cr-sqlite's ``crsql_changes``: one column of one row, with the counters that decide
which of two concurrent values wins. All of these encode to MessagePack arrays as they are.

cr-sqlite takes nearly anything that is inserted there, and one of the values crashes the process. So
``validate`` is the wall: what it lets through is within the tables' own types and limits.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Any

from msgspec import Meta, Struct

from kollator.state.tables import COUNTER_MAX, TABLES

BATCH_BYTES = 262_144
"""A batch is cut at this size. Local writes are cut at half of it, so every db_version fits in a batch."""
SLICE_CHANGES = 128
"""Changes merged at a time where the reactor waits: a few milliseconds."""
PK_BYTES_MAX = 1024
KEY_TEXT_BYTES_MAX = 127
"""Longer text is packed differently by different builds of cr-sqlite."""
DB_VERSION_MAX = 2**63 - 1
SEQ_MAX = 2**31
SITE_ID_BYTES = 16

SENTINEL = "-1"
"""The column name of a change that is about the row itself: made or deleted."""


class Change(Struct, frozen=True, array_like=True, gc=False):
    """One row of ``crsql_changes``, its nine columns in order.

    ``pk`` is the packed primary key, ``cid`` the column's name, ``col_version`` and ``cl`` (causal length:
    odd, the row is alive) decide merges, ``db_version`` and ``seq`` place it in the sender's log, and
    ``site_id`` is the database that wrote it first.
    """

    table: str
    pk: bytes
    cid: str
    val: Any
    col_version: int
    db_version: int
    site_id: bytes
    cl: int
    seq: int


class Cursor(Struct, frozen=True, array_like=True):
    """A place in one sender's log: everything up to ``db_version`` has been applied.

    ``epoch`` names the opening of the sender's database in which the place was told. It is random, so a
    database that was wiped, or that an older copy has replaced, does not know it (see ``lineage``), and a
    number that means something else by now is not mistaken for progress. The default is the beginning.
    """

    epoch: Annotated[bytes, Meta(max_length=SITE_ID_BYTES)] = b""
    db_version: Annotated[int, Meta(ge=0, le=DB_VERSION_MAX)] = 0


START = Cursor()


class Batch(Struct, frozen=True, array_like=True):
    """A stretch of one sender's log, in whole db_versions.

    ``since`` is the cursor it goes on from and ``cursor`` the one it leads to; with ``more`` the next stretch
    begins there. ``sites`` are the databases that wrote the changes: the sender, being authenticated, vouches
    for them. ``rewound``: ``since`` was not a place in this log, so the batch begins at the beginning.
    """

    changes: list[Change]
    since: Cursor
    cursor: Cursor
    more: bool = False
    sites: list[bytes] = []
    rewound: bool = False


def pack_key(columns: tuple[str, ...]) -> bytes:
    """cr-sqlite's packing of a primary key of text columns.

    One byte for the number of columns; for each, 0x0B (text, with a length of one byte), that length and the
    UTF-8. Raises ``ValueError`` for text that is not 1 to 127 bytes or that has a NUL.
    """
    packed = bytearray((len(columns),))
    for text in columns:
        data = text.encode()
        if not 1 <= len(data) <= KEY_TEXT_BYTES_MAX or 0 in data:
            raise ValueError("a key column is 1 to 127 bytes of UTF-8 without NUL")
        packed += bytes((0x0B, len(data)))
        packed += data
    return bytes(packed)


def unpack_key(packed: bytes, count: int) -> tuple[str, ...]:
    """The text columns of a packed primary key: the inverse of ``pack_key``.

    Raises ``ValueError`` unless there are exactly ``count`` of them in the one canonical encoding.
    """
    if len(packed) > PK_BYTES_MAX or packed[:1] != bytes((count,)):
        raise ValueError("a packed key of another shape")
    columns = []
    at = 1
    for _ in range(count):
        length = packed[at + 1] if at + 1 < len(packed) else 0
        columns.append(packed[at + 2 : at + 2 + length].decode())
        at += 2 + length
    if pack_key(tuple(columns)) != packed:
        raise ValueError("a packed key that is not canonical")
    return tuple(columns)


@lru_cache(maxsize=4096)
def _key_allowed(name: str, pk: bytes) -> bool:
    keys = TABLES[name].keys
    try:
        columns = unpack_key(pk, len(keys))
    except ValueError:
        return False
    return all(column.allowed(value) for column, value in zip(keys, columns, strict=True))


_VALUES = {table.name: {column.name: column.allowed for column in table.values} for table in TABLES.values()}


def validate(change: Change, *, known_sites: Container[bytes]) -> str | None:
    """Why this change must not reach the database, in a few words of a fixed set; None when it may.

    ``known_sites`` are the site ids of the cluster's databases. Nothing is assumed of the fields' types, so
    it holds for a change from any decoder. It refuses everything that the extension should have refused, then
    what the tables do not allow: another value than the column may have, and deletes, because rows are never
    deleted here (so ``cl`` is always 1).
    """
    name, pk, cid, col_version, cl = change.table, change.pk, change.cid, change.col_version, change.cl
    values = _VALUES.get(name) if type(name) is str else None
    if values is None:
        return "unknown table"
    if type(pk) is not bytes or len(pk) > PK_BYTES_MAX or not _key_allowed(name, pk):
        return "bad key"
    if type(cl) is not int or not 1 <= cl <= COUNTER_MAX:
        return "bad cl"
    if type(col_version) is not int or not 0 <= col_version <= COUNTER_MAX:
        return "bad col_version"
    if type(change.db_version) is not int or not 0 <= change.db_version <= DB_VERSION_MAX:
        return "bad db_version"
    if type(change.seq) is not int or not 0 <= change.seq <= SEQ_MAX:
        return "bad seq"
    if type(change.site_id) is not bytes or len(change.site_id) != SITE_ID_BYTES:
        return "bad site_id"
    if change.site_id not in known_sites:
        return "unknown site"
    if cid == SENTINEL:
        if change.val is not None:
            return "bad value"
        if col_version != cl:
            return "bad col_version"
    else:
        allowed = values.get(cid) if type(cid) is str else None
        if allowed is None:
            return "unknown column"
        if not allowed(change.val):
            return "bad value"
        if cl % 2 == 0:
            return "bad cl"
        if col_version == 0 and cl == 1:
            return "bad col_version"
    return None if cl == 1 else "delete"


def change_bytes(change: Change) -> int:
    """An upper bound of a change's size as MessagePack."""
    return 72 + len(change.table) + len(change.pk) + len(change.cid) + value_bytes(change.val)


def value_bytes(value: object) -> int:
    """An upper bound of what a value adds to 9 bytes of MessagePack."""
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    return len(value) if type(value) is bytes else 0


def slices(changes: Iterable[Change], at_least: int = SLICE_CHANGES) -> Iterator[list[Change]]:
    """Cut a batch into pieces to be merged one at a time, between which the reactor may turn.

    A piece ends only where another row begins, so no reader sees a row between two of its columns. Merge
    every piece but the last without a cursor.
    """
    piece: list[Change] = []
    for change in changes:
        if len(piece) >= at_least and (change.table, change.pk) != (piece[-1].table, piece[-1].pk):
            yield piece
            piece = []
        piece.append(change)
    if piece:
        yield piece
