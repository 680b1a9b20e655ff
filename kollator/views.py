"""What the HTTP endpoints ask, answered from the pool and the guard."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from time import perf_counter
from typing import Any, Literal, NamedTuple

import msgspec
from twisted.web.http import Request

import kollator
from kollator.gate import Gate
from kollator.guard.addresses import limit_key
from kollator.guard.tickets import TicketBook, client_id
from kollator.guard.turn import IceServers
from kollator.observe.metrics import Metrics, add
from kollator.pool.pool import Pool, WorkerView
from kollator.pool.roster import Roster
from kollator.settings import Settings
from kollator.signaling.messages import WorkerRef, schema
from kollator.signaling.switchboard import Switchboard
from kollator.web import answers
from kollator.web.answers import (
    Bootstrap,
    ClusterNode,
    Explanation,
    Health,
    Ring,
    RingDigest,
    SkippedWorker,
    WorkerCounts,
    WorkerEntry,
    Workers,
)
from kollator.web.resources import Caller

_FIELDS = {
    name.title().encode("ascii"): name
    for name in ("host", "x-forwarded-for", "forwarded", "x-forwarded-proto", "x-forwarded-host")
}
"""What of a request's header tells who sent it: from twisted.web's spelling to that of the gate."""
_TOLD_BY_PROXIES = tuple(name for name in _FIELDS if name != b"Host")


class Standing(NamedTuple):
    """The place of a front in its cluster."""

    role: Literal["leader", "follower", "candidate"]
    leader: str | None
    term: int
    cluster: list[ClusterNode]
    synchronised: bool = True
    """A leader has what its followers have; a follower lacks nothing of its leader's."""


class _Encoded(NamedTuple):
    """What ``GET /workers`` has of a worker, and what that was made of."""

    view: WorkerView
    sessions: int
    entry: msgspec.Raw


class FrontViews:
    """The answers of one front.

    ``monotonic`` is the clock of the limits and the uptime, ``wall`` gives Unix seconds (tickets outlive a process),
    ``timer`` measures what goes into the histograms; all in seconds. ``trouble`` says why no new clients should
    come, ``draining`` or what else is wrong, None when nothing is.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        gate: Gate,
        pool: Pool,
        roster: Roster,
        switchboard: Switchboard,
        tickets: TicketBook,
        ice_servers: IceServers,
        metrics: Metrics,
        random_bytes: Callable[[int], bytes],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        standing: Callable[[], Standing],
        trouble: Callable[[], str | None],
        timer: Callable[[], float] = perf_counter,
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._pool = pool
        self._roster = roster
        self._switchboard = switchboard
        self._tickets = tickets
        self._ice_servers = ice_servers
        self._metrics = metrics
        self._random_bytes = random_bytes
        self._monotonic = monotonic
        self._wall = wall
        self._standing = standing
        self._trouble = trouble
        self._timer = timer
        self._started = monotonic()
        self._workers_page = b""
        self._workers_changes = (-1, -1)
        self._encoded: dict[str, _Encoded] = {}  # of each worker, and workers are never forgotten

    def caller(self, request: Request) -> Caller:
        """Who sent an HTTP request."""
        scheme = "https" if request.isSecure() else "http"
        fields: dict[str, str] = {}
        for name, values in request.requestHeaders.getAllRawHeaders():
            field = _FIELDS.get(name)
            if field is not None:
                fields[field] = b", ".join(values).decode("latin-1")
        return self._gate.caller(_peer(request), fields, scheme, self._own_host(request.getHost()))

    def is_own(self, request: Request) -> bool:
        """Whether the connection is the caller's own, and no proxy's that has others' requests on it too."""
        headers = request.requestHeaders
        if not any(map(headers.hasHeader, _TOLD_BY_PROXIES)):
            return True
        return limit_key(_peer(request)) == limit_key(self.caller(request).address)

    def _own_host(self, own: Any) -> str:
        """The address that the client's connection came to, for who names no host."""
        host, port = getattr(own, "host", None) or "localhost", getattr(own, "port", self._settings.port)
        return f"[{host.partition('%')[0]}]:{port}" if ":" in host else f"{host}:{port}"

    def origin_permitted(self, origin: str, caller: Caller) -> bool:
        """Whether a page of ``origin`` may read an answer."""
        return self._gate.origin_permitted(origin, caller)

    def health(self) -> Health:
        """``GET /health``."""
        counts = self._pool.counts()
        switchboard = self._switchboard
        standing = self._standing()
        trouble = self._trouble()
        return Health(
            status="ok" if trouble is None else "draining" if trouble == "draining" else "degraded",
            node=self._settings.node_id,
            version=kollator.__version__,
            role=standing.role,
            leader=standing.leader,
            term=standing.term,
            cluster=standing.cluster,
            workers=WorkerCounts(up=counts.total - counts.down, total=counts.total),
            connections=answers.ConnectionCounts(client=len(switchboard.clients), worker=len(switchboard.workers)),
            ring=RingDigest(self._pool.digest),
            uptime_s=round(self._monotonic() - self._started, 3),
            synchronised=standing.synchronised,
        )

    def ready(self) -> str | None:
        """None, or why no new clients should come."""
        return self._trouble()

    def worker(self, worker: str) -> WorkerEntry | None:
        """One worker as ``GET /workers`` shows it; None when it was never named."""
        view = self._pool.worker(worker)
        return None if view is None else self._entry(view)

    def workers(self) -> Workers:
        """``GET /workers``."""
        entries = [self._entry(view) for view in self._pool.workers()]
        return Workers(entries, self._ring())

    def workers_page(self) -> bytes:
        """``workers`` in JSON, made again when something that it shows has changed, of those workers that have."""
        changes = (self._pool.changes, self._roster.changes)
        if self._workers_changes != changes:
            entries = [self._encoded_entry(view) for view in self._pool.workers()]
            page = {"workers": entries, "ring": self._ring()}
            self._workers_page = msgspec.json.encode(page)
            self._workers_changes = changes
        return self._workers_page

    def _encoded_entry(self, view: WorkerView) -> msgspec.Raw:
        known = self._encoded.get(view.id)
        sessions = self._roster.sessions(view.id)
        if known is None or known.view is not view or known.sessions != sessions:
            entry = msgspec.Raw(msgspec.json.encode(self._entry(view)))
            known = self._encoded[view.id] = _Encoded(view, sessions, entry)
        return known.entry

    def _ring(self) -> Ring:
        return Ring(self._settings.hash_replicas, self._pool.points, self._pool.digest)

    def _entry(self, view: WorkerView) -> WorkerEntry:
        return WorkerEntry(
            id=view.id,
            region=view.region,
            capacity=view.capacity,
            sessions=self._roster.sessions(view.id),
            state=view.state,
            fronts=list(view.fronts),
            address=view.address,
            why=view.why,
        )

    def explain(self, address: str, region: str | None) -> Explanation:
        """``GET /workers/assign``. Raises ``ValueError`` for what is not an address."""
        found = self._pool.assign(address, region=self._settings.region if region is None else region)
        return Explanation(
            ip=address,
            range=found.range,
            region=found.region,
            worker=found.worker,
            alternates=[other.id for other in found.alternates],
            reason=found.reason,
            position=found.position.range,
            point=found.position.point,
            pin=found.pin,
            skipped=[SkippedWorker(skipped.worker, skipped.reason, skipped.why) for skipped in found.skipped],
        )

    def throttle(self, caller: Caller) -> float:
        """0.0 when one more bootstrap is allowed, else seconds to wait."""
        return self._gate.bootstrap_wait_s(caller.address, self._monotonic())

    def bootstrap(self, caller: Caller, region: str | None, exclude: Collection[str]) -> Bootstrap | None:
        """``POST /bootstrap``: a new client with its worker, or None."""
        started = self._timer()
        worker, alternates = self.assign(caller.address, region, exclude)
        if worker is None:
            return None
        client = client_id(self._random_bytes(12))
        now = self._wall()
        ticket, expires = self._tickets.issue(client, now, worker.id)
        scheme = "wss" if caller.scheme == "https" else "ws"
        answer = Bootstrap(
            client=client,
            ticket=ticket,
            expires=expires,
            worker=worker,
            alternates=alternates,
            signaling=f"{scheme}://{caller.host}/signaling",
            iceServers=self._ice_servers.for_client(client, now),
            node=self._settings.node_id,
        )
        add(self._metrics.counters.bootstraps, "assigned")
        self._metrics.bootstrapped(self._timer() - started)
        return answer

    def bootstrap_refused(self, code: str) -> None:
        """Counts a bootstrap that was answered with an error."""
        add(self._metrics.counters.bootstraps, code)

    def assign(
        self, address: str, region: str | None, exclude: Collection[str]
    ) -> tuple[WorkerRef | None, list[WorkerRef]]:
        """The worker of a client, and who comes after it; a client that names no region gets this front's."""
        started = self._timer()
        wanted = self._settings.region if region is None else region
        try:
            found = self._pool.assign(address, region=wanted, exclude=exclude, explain=False)
        except ValueError:  # no IP address: a client that came through a UNIX socket
            found = self._pool.assign("0.0.0.0", region=wanted, exclude=exclude, explain=False)
        self._metrics.assigned(self._timer() - started)
        add(self._metrics.counters.assignments, found.reason)
        alternates = [WorkerRef(other.id, other.region) for other in found.alternates]
        return (None if found.worker is None else WorkerRef(found.worker, found.region)), alternates

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """``GET /metrics``."""
        return self._metrics.render(accept)

    def schema(self) -> dict[str, Any]:
        """``GET /schema.json``."""
        return _schema()


def _peer(request: Request) -> str:
    return getattr(request.getClientAddress(), "host", None) or ""


_schema = cache(schema)
