"""The JSON bodies of the HTTP endpoints, as typed structs: the one definition (contract, section 1)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from kollator.signaling.messages import Exclude, IceServer, Region, WorkerRef

BODY_BYTES = 65_536
"""The largest request body; more is answered 413."""


class Failing(Struct, frozen=True):
    """What went wrong, for machines and for people."""

    code: str
    message: str


class ErrorBody(Struct, frozen=True):
    """Every answer that is an error."""

    error: Failing


class BootstrapRequest(Struct, frozen=True):
    """What ``POST /bootstrap`` may be told; an empty body is an empty one of these."""

    region: Region | None = None
    exclude: Exclude | None = None


class Bootstrap(Struct, frozen=True):
    """What a client needs to begin. ``expires`` is the ticket's, in Unix seconds."""

    client: str
    ticket: str
    expires: int
    worker: WorkerRef
    alternates: list[WorkerRef]
    signaling: str
    iceServers: list[IceServer]  # noqa: N815
    node: str


class ClusterNode(Struct, frozen=True):
    """One front as this one sees it. ``sync_lag_ms`` is None where nothing was measured."""

    node: str
    state: str
    sync_lag_ms: float | None = None


class WorkerCounts(Struct, frozen=True):
    """``up``: usable now (full and draining ones too); ``total``: known."""

    up: int
    total: int


class ConnectionCounts(Struct, frozen=True):
    """WebSockets of this front, welcomed ones."""

    client: int
    worker: int


class RingDigest(Struct, frozen=True):
    """Equal on two fronts exactly when they give the same assignments."""

    digest: str


class Health(Struct, frozen=True):
    """``GET /health``. The status is ok on 200, otherwise 503."""

    status: Literal["ok", "draining", "degraded"]
    node: str
    version: str
    role: Literal["leader", "follower", "candidate"]
    leader: str | None
    term: int
    cluster: list[ClusterNode]
    workers: WorkerCounts
    connections: ConnectionCounts
    ring: RingDigest
    uptime_s: float
    synchronised: bool
    """A leader has the rows of every follower that it could reach."""


class WorkerEntry(Struct, frozen=True):
    """One worker of ``GET /workers``. ``sessions`` is what it told this front last.

    ``why``: ``ping``, ``hold-down``, ``probe`` or ``webrtc`` for one that is connected and not well, ``operator`` for
    one that an operator drains, else empty.
    """

    id: str
    region: str
    capacity: int
    sessions: int
    state: Literal["up", "down", "full", "draining"]
    fronts: list[str]
    address: str
    why: str = ""


class Ring(Struct, frozen=True):
    """The hash ring: virtual nodes for capacity 100, points in all, digest."""

    replicas: int
    points: int
    digest: str


class Workers(Struct, frozen=True):
    """``GET /workers``."""

    workers: list[WorkerEntry]
    ring: Ring


class SkippedWorker(Struct, frozen=True):
    """A worker that stood before the chosen one on the ring, and why it was passed by; ``why`` says more of it."""

    worker: str
    reason: str
    why: str = ""


class Explanation(Struct, frozen=True):
    """``GET /workers/assign``: who would be assigned, and why."""

    ip: str
    range: str
    region: str
    """The worker's."""
    worker: str | None
    alternates: list[str]
    reason: str
    position: int = 0
    """The range's place on the ring, 0 to 2^44 - 1."""
    point: int | None = None
    """The place of the virtual node that took it; None where none decided."""
    pin: str | None = None
    skipped: list[SkippedWorker] = field(default_factory=list)


