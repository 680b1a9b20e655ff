"""The numbers of a front, for Prometheus and OpenMetrics.

Hot paths add one to a plain integer of ``Counters``; what a scrape needs beside that is asked for at the
scrape. Label values come from the fixed sets below, or from the configuration (peers): never from a client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from attrs import frozen
from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from twisted.logger import Logger

from kollator.signaling.messages import Close, ErrorCode

log = Logger("kollator:observe")

OTHER = "other"
REFUSALS = ("origin", "total", "address", "rate", "no-hello", "draining", "header", OTHER)
"""Why a connection was refused: "total" and "address" are the limits of connections, "rate" that of new
ones.
"""
BOOTSTRAPS = ("assigned", "no-workers", "bad-request", "rate-limited", OTHER)
ASSIGNMENTS = ("ring", "pinned", "pin-fallback", "other-region", "overflow", "no-workers", OTHER)
WORKERS_LOST = ("closed", "ping", "probe", "webrtc", "replaced", OTHER)
LOOPS = (
    *("health", "hello", "keepalive", "mailboxes", "database", "pool", "election"),
    *("losses", "audit", "reload", "probes", "deep", OTHER),
)
PROBES = ("ok", "failed", OTHER)
DEEP_CHECKS = ("ok", "failed", "aborted", OTHER)
"""What came of a deep check; "aborted" is the checking process' own trouble, not the worker's."""
DEEP_PHASES = ("connect", "welcome", "answer", "ice", "open")
"""The phases of a deep check, in their order."""
AUDIT_LINES = ("written", "lost", "failed", OTHER)
"""What became of an audit line. "failed": it could not be written at the first attempt, and is tried again; "lost":
there was no room left for it.
"""
ROWS_REFUSED = (
    *("unknown table", "unknown column", "unknown site", "bad key", "bad value", "bad cl", "bad col_version"),
    *("bad db_version", "bad seq", "bad site_id", "refused by cr-sqlite", OTHER),
)
"""Why a change of another front was left out."""
ROUTES = (
    "/",
    "/static",
    "/status",
    "/health",
    "/health/live",
    "/health/ready",
    "/workers",
    "/workers/assign",
    "/bootstrap",
    "/metrics",
    "/schema.json",
    "/favicon.ico",
    "/signaling",
    "/worker-sync",
    "/admin",
    OTHER,
)
STATUSES = (200, 201, 204, 304, 400, 401, 403, 404, 405, 408, 409, 413, 414, 426, 429, 431, 500, 503)
MAX_PEERS = 256
"""So many label values at most for a gauge; a cluster is far smaller."""
LONGEST_HANDOFF_S = 600.0
"""A client tells its own time: what is longer counts as this, lest one lie spoil the sum."""
RTT_WEIGHT = 0.05
"""The weight of one round trip in the mean: the mean is over about the last twenty answers."""

_HANDOFF_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
_REQUEST_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_LOOKUP_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)
_PING_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Counters:
    """What is counted, as plain integers that only grow.

    Hot code writes ``counters.handoffs += 1`` and ``counters.errors[code] += 1``. The dictionaries hold
    every key from the start. Where a key could be a new one, ``add`` counts it as "other".
    """

    __slots__ = (
        "assignments",
        "audit_lines",
        "bootstraps",
        "clients_joined",
        "clients_returned",
        "closes",
        "deep_checks",
        "errors",
        "handoffs",
        "links_ended",
        "loop_failures",
        "messages_kept",
        "messages_received",
        "messages_relayed",
        "probes",
        "refused",
        "responses",
        "rows_refused",
        "scrape_errors",
        "worker_lost_told",
        "workers_joined",
        "workers_lost",
        "workers_refused",
    )

    def __init__(self) -> None:
        self.messages_received = 0
        self.messages_relayed = 0
        self.messages_kept = 0
        self.handoffs = 0
        self.clients_joined = 0
        self.clients_returned = 0
        self.workers_joined = 0
        self.workers_refused = 0
        self.worker_lost_told = 0
        self.scrape_errors = 0
        self.errors: dict[str, int] = dict.fromkeys(get_args(ErrorCode), 0)
        self.closes: dict[str, int] = dict.fromkeys((*_close_codes(), OTHER), 0)
        self.refused: dict[str, int] = dict.fromkeys(REFUSALS, 0)
        self.bootstraps: dict[str, int] = dict.fromkeys(BOOTSTRAPS, 0)
        self.assignments: dict[str, int] = dict.fromkeys(ASSIGNMENTS, 0)
        self.workers_lost: dict[str, int] = dict.fromkeys(WORKERS_LOST, 0)
        self.loop_failures: dict[str, int] = dict.fromkeys(LOOPS, 0)
        self.links_ended: dict[str, int] = {OTHER: 0}
        self.rows_refused: dict[str, int] = dict.fromkeys(ROWS_REFUSED, 0)
        self.probes: dict[str, int] = dict.fromkeys(PROBES, 0)
        self.deep_checks: dict[str, int] = dict.fromkeys(DEEP_CHECKS, 0)
        self.audit_lines: dict[str, int] = dict.fromkeys(AUDIT_LINES, 0)
        self.responses: dict[tuple[str, str], int] = {}

    def refuse(self, reason: str) -> None:
        """Count a refused connection."""
        add(self.refused, reason)

    def close(self, code: int) -> None:
        """Count a connection that this front closed with that code."""
        add(self.closes, str(code))

    def respond(self, route: str, status: int) -> None:
        """Count an HTTP answer. The path is not a label; ``route`` is one of ``ROUTES``."""
        key = (route if route in ROUTES else OTHER, str(status) if status in STATUSES else OTHER)
        self.responses[key] = self.responses.get(key, 0) + 1


def add(counts: dict[str, int], key: str, number: int = 1) -> None:
    """Add under a key, or under "other" where there is no such key."""
    counts[key if key in counts else OTHER] += number


def _close_codes() -> list[str]:
    return sorted(str(code) for name, code in vars(Close).items() if name.isupper() and isinstance(code, int))


@frozen(kw_only=True)
class Gauges:
    """What is asked for at a scrape. A gauge that is ``None`` is left out; one that raises is left out and
    logged.

    ``connections`` is by role, ``workers`` by state, ``sync_lag_s`` (seconds) and ``peer_up`` by the peer's
    node id; ``absent_clients`` are those whose messages are kept; ``leader`` is whether this front leads; ``panic``
    whether workers are used although they are unwell; ``unwell`` how many are connected and not healthy.
    """

    connections: Callable[[], Mapping[str, float]] | None = None
    workers: Callable[[], Mapping[str, float]] | None = None
    unwell: Callable[[], float] | None = None
    panic: Callable[[], float] | None = None
    absent_clients: Callable[[], float] | None = None
    ring_points: Callable[[], float] | None = None
    uptime_s: Callable[[], float] | None = None
    leader: Callable[[], float] | None = None
    term: Callable[[], float] | None = None
    draining: Callable[[], float] | None = None
    sync_lag_s: Callable[[], Mapping[str, float]] | None = None
    peer_up: Callable[[], Mapping[str, float]] | None = None


# Attribute, metric, explanation, label ("" for none).
_COUNTERS = (
    ("messages_received", "messages_received", "Signaling messages received.", ""),
    ("messages_relayed", "messages_relayed", "Signaling messages passed on to their target.", ""),
    ("messages_kept", "messages_kept", "Messages kept for a client whose connection had dropped.", ""),
    ("handoffs", "handoffs", "Data channels that clients reported open.", ""),
    ("clients_joined", "clients_joined", "Clients welcomed.", ""),
    ("clients_returned", "clients_returned", "Clients welcomed that came back with a ticket.", ""),
    ("workers_joined", "workers_joined", "Workers registered.", ""),
    ("workers_refused", "workers_refused", "Workers refused for their proof or address.", ""),
    ("scrape_errors", "scrape_errors", "Gauges that could not be read at a scrape.", ""),
    ("errors", "errors", "Error messages sent, by code.", "code"),
    ("closes", "connections_closed", "WebSocket connections that this front closed, by close code.", "code"),
    ("refused", "connections_refused", "Connections refused, by reason.", "reason"),
    ("bootstraps", "bootstraps", "Answers to /bootstrap, by outcome.", "outcome"),
    ("assignments", "assignments", "Workers assigned, by reason.", "reason"),
    ("workers_lost", "workers_lost", "Workers that left the ring, by cause.", "cause"),
    ("worker_lost_told", "worker_lost_told", "Losses of a worker that clients were told of.", ""),
    ("probes", "probes", "Probes of workers by their health address, by outcome.", "outcome"),
    ("deep_checks", "deep_checks", "Data channels opened to workers as a check, by outcome.", "outcome"),
    ("audit_lines", "audit_lines", "Lines of the audit log, by what became of them.", "outcome"),
    ("links_ended", "links_ended", "Links to other fronts that ended, or were not made, by reason.", "reason"),
    ("rows_refused", "rows_refused", "Changes of other fronts that were left out, by reason.", "reason"),
    ("loop_failures", "loop_failures", "Rounds of a periodic task that failed, by task.", "task"),
)
_GAUGES = (
    ("connections", "connections", "WebSocket connections now, by role.", "role", ""),
    ("workers", "workers", "Workers known, by state.", "state", ""),
    ("unwell", "workers_unwell", "Workers that are connected and not healthy.", "", ""),
    ("panic", "panic", "1 while too few workers are healthy, so that all that are connected are used.", "", ""),
    ("absent_clients", "absent_clients", "Clients away for whom messages are kept.", "", ""),
    ("ring_points", "ring_points", "Virtual nodes on the ring.", "", ""),
    ("uptime_s", "uptime_seconds", "Time since the start of this front.", "", "seconds"),
    ("leader", "leader", "1 while this front leads the cluster.", "", ""),
    ("term", "term", "Election term.", "", ""),
    ("draining", "draining", "1 while this front is about to stop.", "", ""),
    ("sync_lag_s", "sync_lag_seconds", "How far a peer is behind this front's changes.", "peer", "seconds"),
    ("peer_up", "peer_up", "1 while the link to a peer is up.", "peer", ""),
)


class _Collector:
    """Turns counters and gauges into metric families, at each scrape."""

    def __init__(
        self, counters: Counters, gauges: Gauges, rtt_s: Callable[[], float | None], node: str, version: str
    ) -> None:
        self._counters = counters
        self._gauges = gauges
        self._rtt_s = rtt_s
        self._info = {"node": node, "version": version}

    def describe(self) -> Iterable[Metric]:
        """No names up front, so that registering asks no gauge."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families but the histograms. The gauges come first: they may add to ``scrape_errors``."""
        yield InfoMetricFamily("kollator_build", "This front.", self._info)
        for attribute, name, text, label, unit in _GAUGES:
            ask = getattr(self._gauges, attribute)
            family = None if ask is None else self._gauge(ask, name, text, label, unit)
            if family is not None:
                yield family
        rtt_s = self._rtt_s()
        if rtt_s is not None:
            text = "Mean round trip of the last pings to workers of this front, the newest weighing most."
            yield GaugeMetricFamily("kollator_worker_rtt", text, value=rtt_s, unit="seconds")
        for attribute, name, text, label in _COUNTERS:
            count = getattr(self._counters, attribute)
            counter = CounterMetricFamily(f"kollator_{name}", text, labels=[label] if label else None)
            for key, value in count.items() if label else (("", count),):
                counter.add_metric([key] if label else [], value)
            yield counter
        responses = CounterMetricFamily(
            "kollator_http_responses", "HTTP answers, by route and status.", labels=["route", "status"]
        )
        for (route, status), value in self._counters.responses.items():
            responses.add_metric([route, status], value)
        yield responses

    def _gauge(
        self, ask: Callable[[], Mapping[str, float] | float], name: str, text: str, label: str, unit: str
    ) -> Metric | None:
        family = GaugeMetricFamily(f"kollator_{name}", text, labels=[label] if label else None, unit=unit)
        try:
            value = ask()
            if isinstance(value, Mapping):
                for key in sorted(value)[:MAX_PEERS]:
                    family.add_metric([key], float(value[key]))
            else:
                family.add_metric([], float(value))
        except Exception:
            self._counters.scrape_errors += 1
            log.failure("the gauge {gauge} could not be read", gauge=name)
            return None
        return family


class Metrics:
    """The metrics of one front: a registry of its own, its histograms, and the page for a scrape."""

    def __init__(self, counters: Counters, gauges: Gauges, *, node: str, version: str) -> None:
        self.counters = counters
        self._registry = registry = CollectorRegistry()
        self._rtt_s: float | None = None
        registry.register(_Collector(counters, gauges, lambda: self._rtt_s, node, version))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"kollator_{name}", text, buckets=buckets, unit="seconds", registry=registry)

        self._handoff = histogram(
            "handoff",
            "From a client's offer to its open data channel, as the client tells it.",
            _HANDOFF_BUCKETS_S,
        )
        self._bootstrap = histogram("bootstrap", "Time to answer /bootstrap.", _REQUEST_BUCKETS_S)
        self._assignment = histogram("assignment", "Time to find a client's worker.", _LOOKUP_BUCKETS_S)
        self._ping = histogram("worker_ping", "Time until a worker answered a ping.", _PING_BUCKETS_S)
        deep = Histogram(
            "kollator_deep_check",
            "Time that each phase of a deep check took, of those that succeeded.",
            labelnames=("phase",),
            buckets=_HANDOFF_BUCKETS_S,
            unit="seconds",
            registry=registry,
        )
        self._deep = {phase: deep.labels(phase) for phase in DEEP_PHASES}
        self.bootstrapped: Callable[[float], None] = self._bootstrap.observe
        """Takes the seconds that a request to ``/bootstrap`` took."""
        self.assigned: Callable[[float], None] = self._assignment.observe
        """Takes the seconds that an assignment took."""

    def ponged(self, rtt_s: float) -> None:
        """Takes the seconds that a worker took to answer a ping.

        Their mean is exponentially weighted, ``RTT_WEIGHT`` for the newest, over all workers of this front together.
        """
        self._ping.observe(rtt_s)
        mean_s = self._rtt_s
        self._rtt_s = rtt_s if mean_s is None else mean_s + RTT_WEIGHT * (rtt_s - mean_s)

    def deep_measured(self, phase: str, seconds: float) -> None:
        """Takes how long a phase of a deep check took, one of ``DEEP_PHASES``; of any other nothing is kept."""
        histogram = self._deep.get(phase)
        if histogram is not None and seconds >= 0 and not math.isnan(seconds):
            histogram.observe(min(seconds, LONGEST_HANDOFF_S))

    def handed_off(self, ms: float) -> None:
        """Takes the milliseconds that a client reported with ``connected``."""
        if ms >= 0 and not math.isnan(ms):
            self._handoff.observe(min(ms / 1000.0, LONGEST_HANDOFF_S))

    def render(self, accept: str) -> tuple[str, bytes]:
        """The content type and the body of ``GET /metrics`` for the request's Accept header ("" for none).

        OpenMetrics 1.0.0 for who prefers it to plain text, the Prometheus text format 0.0.4 for everybody
        else.
        """
        if wants_openmetrics(accept):
            body: bytes = generate_openmetrics(self._registry)  # type: ignore[no-untyped-call]
            return CONTENT_TYPE_OPENMETRICS, body
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry)


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header (RFC 9110 section 12.5.1) names OpenMetrics and likes no plain text better."""
    open_weight = 0.0
    text_weight = 0.0
    for media_range in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in media_range.split(";"))
        weight = _weight(parameters)
        if kind == "application/openmetrics-text":
            open_weight = max(open_weight, weight)
        elif kind in ("text/plain", "text/*", "*/*"):
            text_weight = max(text_weight, weight)
    return open_weight > 0 and open_weight >= text_weight


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0.0 <= weight <= 1.0 else 0.0
    return 1.0
