"""What a front answers, as far as it is shown.

The definition of these bodies is the front's (``kollator.web``). Here they are read as a stranger would: only the
keys that are shown, and a text where the front has one of a few words, since the front may be of a newer version than
this program. Keys that have not always been there are optional.
"""

from __future__ import annotations

from msgspec import Struct


class Failing(Struct, frozen=True):
    """What went wrong, for machines and for people."""

    code: str
    message: str


class ErrorBody(Struct, frozen=True):
    """Every answer that is an error."""

    error: Failing


class Skipped(Struct, frozen=True):
    """A worker that was passed by; ``why`` says more of the reason."""

    worker: str
    reason: str
    why: str = ""


class Explanation(Struct, frozen=True):
    """``GET /workers/assign``."""

    ip: str
    range: str
    worker: str | None
    alternates: list[str]
    reason: str
    region: str = ""
    position: int | None = None
    point: int | None = None
    pin: str | None = None
    skipped: list[Skipped] = []


class Worker(Struct, frozen=True):
    """One worker of ``GET /workers``; ``why`` says why it is not up, where that is known."""

    id: str
    region: str
    capacity: int
    sessions: int
    state: str
    fronts: list[str]
    address: str
    why: str = ""


class Ring(Struct, frozen=True):
    """The hash ring."""

    replicas: int
    points: int
    digest: str


class Workers(Struct, frozen=True):
    """``GET /workers``."""

    workers: list[Worker]
    ring: Ring


class OneWorker(Struct, frozen=True):
    """``POST /admin/workers/ID/drain`` and ``undrain``."""

    worker: Worker


class Drained(Struct, frozen=True):
    """``GET /admin/workers``: whom an operator took out."""

    drained: list[str]


class Pin(Struct, frozen=True):
    """A range, and the worker or the region it is tied to."""

    cidr: str
    worker: str | None = None
    region: str | None = None


class Pins(Struct, frozen=True):
    """``GET /admin/pins``."""

    pins: list[Pin]


class RemovedPin(Struct, frozen=True):
    """``DELETE /admin/pins``."""

    removed: Pin


class ClusterNode(Struct, frozen=True):
    """One front as the one that is asked sees it."""

    node: str
    state: str
    sync_lag_ms: float | None = None


class WorkerCounts(Struct, frozen=True):
    """Workers that are usable, and all."""

    up: int
    total: int


class ConnectionCounts(Struct, frozen=True):
    """WebSockets by role."""

    client: int
    worker: int


class RingDigest(Struct, frozen=True):
    """What two fronts compare."""

    digest: str


class Health(Struct, frozen=True):
    """``GET /health``."""

    status: str
    node: str
    version: str
    role: str
    leader: str | None
    term: int
    cluster: list[ClusterNode]
    workers: WorkerCounts
    connections: ConnectionCounts
    ring: RingDigest
    uptime_s: float
    synchronised: bool | None = None


class FrontDrain(Struct, frozen=True):
    """``POST /admin/front/drain`` and ``undrain``."""

    node: str
    draining: bool


class Connection(Struct, frozen=True):
    """One WebSocket; ``address`` only when it was asked for."""

    id: str
    role: str
    front: str
    since_s: float | None = None
    assigned: str | None = None
    state: str | None = None
    address: str | None = None


class Connections(Struct, frozen=True):
    """``GET /admin/connections``."""

    node: str
    total: ConnectionCounts
    connections: list[Connection]
    truncated: bool


class Log(Struct, frozen=True):
    """``GET`` and ``PUT /admin/log``."""

    debug: list[str]
