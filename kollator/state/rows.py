"""The replicated rows, one frozen type for each table: what the pool is a pure function of.

One writer a column (the design's rule for merges that cannot lose anything):

=============  =======================================  ==============================
row            written by                               never written by
=============  =======================================  ==============================
FrontRow       the front itself; ``retired`` by the     any other front
               leader alone
WorkerRow      a front that holds the worker            a front that does not hold it
AttachmentRow  the front it names                       any other front
PinRow         the front an operator spoke to           (the newest statement wins)
DrainRow       the front an operator spoke to           (the newest statement wins)
=============  =======================================  ==============================

Rows are never deleted: a front is retired, an attachment is ``down``, a pin without a target is removed, and a drain
that is over says so.
"""

from __future__ import annotations

from typing import Literal, Union

from msgspec import Struct

AttachmentState = Literal["up", "full", "draining", "down"]
Unwell = Literal["ping", "hold-down", "probe", "webrtc"]
"""Why a worker that is connected is not to be used: it does not answer pings, or has not for long enough; the
operator's probe of it fails; no data channel to it can be opened."""
Why = Literal["", Unwell]
"""Why a worker is ``down`` although it is connected; empty for every other state, and for one that left."""
WHYS: tuple[Unwell, ...] = ("ping", "hold-down", "probe", "webrtc")
"""The first of these that holds is the one that is told."""


class FrontRow(Struct, frozen=True):
    """A front server. It is alive while ``incarnation > retired``.

    ``incarnation`` grows by one at each start of the front; the leader declares the front dead by writing
    that number to ``retired``.
    """

    id: str
    incarnation: int = 0
    retired: int = 0
    region: str = ""
    url: str = ""
    draining: bool = False


class WorkerRow(Struct, frozen=True):
    """What a worker said of itself when it registered. ``capacity`` is in concurrent sessions."""

    id: str
    region: str = ""
    capacity: int = 100
    address: str = ""


class AttachmentRow(Struct, frozen=True):
    """A worker as seen by one front that holds (or held) its connection.

    It counts only while the front is alive and ``incarnation`` is the front's present one. ``down`` with a ``why`` is
    a worker that is connected and not well; without one it has left.
    """

    worker: str
    front: str
    incarnation: int = 0
    state: AttachmentState = "down"
    why: Why = ""


class PinRow(Struct, frozen=True):
    """An IP range (canonical CIDR) tied to a worker or to a region; both empty: the pin is removed."""

    cidr: str
    worker: str = ""
    region: str = ""


class DrainRow(Struct, frozen=True):
    """Whether an operator wants a worker to get no new clients, whatever it says of itself."""

    worker: str
    draining: bool = False


Row = Union[FrontRow, WorkerRow, AttachmentRow, PinRow, DrainRow]


def row_key(row: Row) -> tuple[str, ...]:
    """What names a row among all rows: its table and its primary key."""
    if isinstance(row, AttachmentRow):
        return ("attachments", row.worker, row.front)
    if isinstance(row, WorkerRow):
        return ("workers", row.id)
    if isinstance(row, FrontRow):
        return ("fronts", row.id)
    if isinstance(row, PinRow):
        return ("pins", row.cidr)
    return ("drains", row.worker)
