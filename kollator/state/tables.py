"""How each replicated row is stored, and which values its columns may have.

The same checks stand before a row of ours is written and before a row of a peer's is merged, so nothing that
one front stores is refused by another. A test compares these tables with ``schema/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Network, ip_network
from typing import Any, NamedTuple

from msgspec.structs import astuple

from kollator.state.rows import WHYS, AttachmentRow, DrainRow, FrontRow, PinRow, Row, WorkerRow

ID_PATTERN = r"[A-Za-z0-9._:-]{1,64}"
"""The contract's ids (PROTOCOL.md section 2), for a full match."""
COUNTER_MAX = 2**53
"""The largest counter: what every JSON reader still holds exactly."""
CAPACITY_MAX = 1_000_000
REGION_MAX_CHARS = 64
ADDRESS_MAX_CHARS = 255
URL_MAX_CHARS = 512

Value = int | str
Check = Callable[[Any], bool]


class Column(NamedTuple):
    """A column and the test that its values pass."""

    name: str
    allowed: Check


class Table(NamedTuple):
    """A replicated table: its primary key and its other columns, in the order of the row's fields."""

    name: str
    row: type[Row]
    keys: tuple[Column, ...]
    values: tuple[Column, ...]


def _matches(pattern: str) -> Check:
    match = re.compile(pattern).fullmatch
    return lambda value: type(value) is str and match(value) is not None


def _counts(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _text(max_chars: int) -> Check:
    # No control characters (NUL does not converge) and no lone surrogates (they have no UTF-8).
    return _matches(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{0,{max_chars}}}")


@lru_cache(maxsize=1024)
def is_canonical_cidr(text: str) -> bool:
    """Whether this is the one spelling of a network, so that it names one row.

    Host bits are clear, there is no scope id, and a network of IPv4-mapped addresses is written as the IPv4
    network it is.
    """
    if len(text) > 43 or "%" in text:
        return False
    try:
        network = ip_network(text)
    except ValueError:
        return False
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return False
    return str(network) == text


_id = _matches(ID_PATTERN)
_id_or_none = _matches(rf"(?:{ID_PATTERN})?")
_counter = _counts(0, COUNTER_MAX)
_region = _text(REGION_MAX_CHARS)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "fronts",
            FrontRow,
            (Column("id", _id),),
            (
                Column("incarnation", _counter),
                Column("retired", _counter),
                Column("region", _region),
                Column("url", _text(URL_MAX_CHARS)),
                Column("draining", _counts(0, 1)),
            ),
        ),
        Table(
            "workers",
            WorkerRow,
            (Column("id", _id),),
            (
                Column("region", _region),
                Column("capacity", _counts(1, CAPACITY_MAX)),
                Column("address", _text(ADDRESS_MAX_CHARS)),
            ),
        ),
        Table(
            "attachments",
            AttachmentRow,
            (Column("worker", _id), Column("front", _id)),
            (
                Column("incarnation", _counter),
                Column("state", _matches("up|full|draining|down")),
                Column("why", _matches("|".join(("", *WHYS)))),
            ),
        ),
        Table(
            "pins",
            PinRow,
            (Column("cidr", lambda value: type(value) is str and is_canonical_cidr(value)),),
            (Column("worker", _id_or_none), Column("region", _region)),
        ),
        Table("drains", DrainRow, (Column("worker", _id),), (Column("draining", _counts(0, 1)),)),
    )
}
"""Every replicated table by its name."""

_BY_ROW = {table.row: table for table in TABLES.values()}


def table_of(row: Row) -> Table:
    """The table that holds a row."""
    return _BY_ROW[type(row)]


def to_stored(row: Row) -> tuple[Value, ...]:
    """The columns of a row as the database has them, key first; a flag is 0 or 1."""
    values = astuple(row)
    if type(row) is FrontRow or type(row) is DrainRow:
        return (*values[:-1], int(values[-1]))
    return values


def from_stored(table: Table, values: tuple[Any, ...]) -> Row:
    """The row of those columns: the inverse of ``to_stored``."""
    if table.row is FrontRow:
        name, incarnation, retired, region, url, draining = values
        return FrontRow(name, incarnation, retired, region, url, bool(draining))
    if table.row is DrainRow:
        worker, draining = values
        return DrainRow(worker, bool(draining))
    return table.row(*values)


def problem(table: Table, stored: tuple[Any, ...]) -> str | None:
    """The name of the first column whose value is not allowed, or None."""
    for column, value in zip(table.keys + table.values, stored, strict=True):
        if not column.allowed(value):
            return f"{table.name}.{column.name}"
    return None
