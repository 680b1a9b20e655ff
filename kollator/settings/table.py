"""The table of a front's settings: each one's names, default, unit, check and explanation, in one place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from kollator.settings import values
from kollator.settings.values import milliseconds, seconds, whole


@attrs.frozen
class Setting:
    """One row of the table.

    ``field`` is the attribute of ``Settings``; of two rows with the same one, only one may be given.
    ``default`` is a text for ``parse``; where it is empty, ``nothing`` is the value; where it is ``None``,
    the value follows from other settings. ``shown`` describes the default where its text does not. ``split``
    says how the variable's text is cut into items: "" not at all, " " at white space, "," at commas and
    white space; the option of such a setting is repeatable. ``flag`` is the text that an option without a
    value stands for. ``empty`` is true where an empty variable is a value of its own; elsewhere it counts as
    not set.
    """

    field: str
    variable: str
    option: str
    default: str | None
    parse: Callable[[Any], object]
    help: str
    unit: str = attrs.field(default="", kw_only=True)
    shown: str = attrs.field(default="", kw_only=True)
    split: str = attrs.field(default="", kw_only=True)
    flag: str = attrs.field(default="", kw_only=True)
    empty: bool = attrs.field(default=False, kw_only=True)
    nothing: object = attrs.field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """How messages call it: the variable, and the option where there is one."""
        return f"{self.variable} (--{self.option})" if self.option else self.variable

    @property
    def default_text(self) -> str:
        """The default with its unit, as help and README show it."""
        return f"{self.shown or self.default or 'none'} {self.unit}".rstrip()

    def default_value(self) -> object:
        """The value when nothing is given. Not for a default that follows from other settings."""
        if not self.default:
            return () if self.split else self.nothing
        return self.parse(self._items([self.default], cut=True) if self.split else self.default)

    def given(self, options: Mapping[str, object], environ: Mapping[str, str]) -> str | list[str] | None:
        """The text, or the items, that the user gave; ``None`` when the default is to be taken.

        Raises ``ValueError`` for an option whose empty value has no meaning.
        """
        chosen = options.get(self.option) if self.option else None
        if self.flag:
            chosen = self.flag if chosen else None
        if chosen is None:
            text = environ.get(self.variable, "").strip()
            if not text and not (self.empty and self.variable in environ):
                return None
            return self._items([text], cut=True) if self.split else text
        if self.split:
            texts = chosen if isinstance(chosen, list | tuple) else [chosen]
            return self._items([str(text) for text in texts], cut=self.split == ",")
        text = str(chosen).strip()
        if not text and not self.empty:
            raise ValueError("the value is empty; give one, or leave the option out")
        return text

    def _items(self, texts: Sequence[str], cut: bool) -> list[str]:
        if cut:
            between = r"[,\s]+" if self.split == "," else r"\s+"
            texts = [item for text in texts for item in re.split(between, text)]
        return [item.strip() for item in texts if item.strip()]


_count = whole(1, 10_000_000)
_rate = values.decimal(0.001, 1_000_000)

TABLE: tuple[Setting, ...] = (
    Setting("port", "PORT", "port", "8080", whole(0, 65_535),
            "TCP port for HTTP and WebSocket; 0: a free one"),
    Setting("host", "HOST", "host", "0.0.0.0", values.host, "address of the interface to listen on"),
    Setting("listen", "LISTEN", "listen", None, values.endpoints,
            "server endpoint strings to listen on, in place of PORT and HOST",
            split=" ", shown="tcp:PORT:interface=HOST"),
    Setting("node_id", "NODE_ID", "node-id", None, values.node_id, "this front's name in the cluster",
            shown="host name"),
    Setting("region", "REGION", "region", "", values.region,
            "this front's region, whose workers its clients get first",
            shown="empty", empty=True, nothing=""),
    Setting("leader_election", "LEADER_ELECTION", "no-leader-election", "true", values.boolean,
            "whether this front may lead; false: it votes and never stands", flag="false"),
    Setting("peers", "PEERS", "peer", "", values.peers,
            "the other fronts of the cluster, each as node=endpoint",
            split=" ", shown="none: a cluster of one"),
    Setting("peer_listen", "PEER_LISTEN", "peer-listen", None, values.endpoints,
            "server endpoint strings for the other fronts", split=" ", shown="tcp:9090 when PEERS is set"),
    Setting("peer_client_ca", "PEER_CLIENT_CA", "", "", values.path,
            "PEM file of the authorities that must have signed the client certificate of a front that links in by TLS",
            shown="none: no client certificates"),
    Setting("cluster_keys", "CLUSTER_KEY", "", "", values.keys,
            "key that the fronts share, in place of CLUSTER_KEY_FILE", nothing=()),
    Setting("cluster_keys", "CLUSTER_KEY_FILE", "cluster-key-file", "", values.keys_from_file,
            "file (mode 0600) with the key that the fronts share; the first line signs, all are good",
            shown="none; required when PEERS is set", nothing=()),
    Setting("worker_keys", "WORKER_KEY", "", "", values.keys,
            "key that workers register with, in place of WORKER_KEY_FILE", nothing=()),
    Setting("worker_keys", "WORKER_KEY_FILE", "worker-key-file", "", values.keys_from_file,
            "file (mode 0600) with the key that workers register with; the first line signs, all are good",
            shown="none: no worker can register", nothing=()),
    Setting("workers_file", "WORKERS_FILE", "workers", "", values.path,
            "JSON file that gives workers, by their id or address, a region, a capacity and a health probe; read again"
            " when it changes and on SIGHUP"),
    Setting("workers_file_only", "WORKERS_FILE_ONLY", "workers-file-only", "false", values.boolean,
            "refuses workers that WORKERS_FILE does not list", flag="true"),
    Setting("worker_health_timeout_s", "WORKER_HEALTH_TIMEOUT", "worker-health-timeout", "1000",
            milliseconds(1), "a worker whose ping is unanswered for that long leaves the ring", unit="ms"),
    Setting("worker_health_interval_s", "WORKER_HEALTH_INTERVAL", "worker-health-interval", "1000",
            milliseconds(1), "time between two pings of a worker", unit="ms"),
    Setting("deep_health_interval_s", "DEEP_HEALTH_INTERVAL", "", "0", seconds(0, 86_400),
            "time between two deep checks, each of which opens a data channel to the next worker in a process of its"
            " own; 0: none", unit="s"),
    Setting("deep_health_url", "DEEP_HEALTH_URL", "", "", values.signaling_url,
            "WebSocket URL of this front's signaling, as its deep check uses it", shown="its own plain TCP port"),
    Setting("panic_threshold", "PANIC_THRESHOLD", "", "0", values.decimal(0, 100),
            "when less than this share of the connected workers is healthy, all are used, as Envoy's panic threshold"
            " has it; 0: never; the same on every front", unit="%"),
    Setting("hash_replicas", "CONSISTENT_HASH_REPLICAS", "hash-replicas", "150", whole(1, 10_000),
            "virtual nodes of a worker of capacity 100, others in proportion; the same on every front"),
    Setting("database", "SQLITE_PATH", "database", "./signaling.db", values.path, "the database file"),
    Setting("sync_interval_s", "SYNC_INTERVAL", "sync-interval", "100", milliseconds(1),
            "longest time until a change is sent to the other fronts", unit="ms"),
    Setting("stun_servers", "STUN_SERVERS", "stun", "stun:stun.l.google.com:19302",
            values.ice_urls("stun", "stuns"), "STUN URLs for browsers and workers; empty: none",
            split=",", empty=True),
    Setting("turn_servers", "TURN_SERVERS", "turn", "", values.ice_urls("turn", "turns"),
            "TURN URLs for browsers and workers", split=","),
    Setting("turn_secrets", "TURN_SECRET", "", "", values.keys,
            "the TURN servers' static-auth-secret (coturn: use-auth-secret)", nothing=()),
    Setting("turn_secrets", "TURN_SECRET_FILE", "", "", values.keys_from_file,
            "file (mode 0600) with that secret", nothing=()),
    Setting("turn_ttl_s", "TURN_TTL", "", "86400", seconds(1, 31_536_000),
            "how long TURN credentials are good for", unit="s"),
    Setting("allowed_origins", "ALLOWED_ORIGINS", "allow-origin", "", values.origins,
            "origins of the pages that may use this front", split=",", shown="same host"),
    Setting("trusted_proxies", "TRUSTED_PROXIES", "trust-proxy", "", values.networks,
            "networks (CIDR) of the proxies whose X-Forwarded-* headers are believed", split=","),
    Setting("worker_allow", "WORKER_ALLOW", "worker-allow", "", values.networks,
            "networks (CIDR) that workers may come from", split=",", shown="any"),
    Setting("quorum", "QUORUM", "quorum", None, values.choice("majority", "available"),
            "whether a leader needs a majority of the fronts, or one front is enough",
            shown="majority; available with two fronts"),
    Setting("heartbeat_interval_s", "HEARTBEAT_INTERVAL", "", "100", milliseconds(1, 60_000),
            "time between two heartbeats of the leader", unit="ms"),
    Setting("election_timeout_s", "ELECTION_TIMEOUT", "", "500", milliseconds(3),
            "time without a leader until an election, drawn from 1x to 2x of it; at least three heartbeats",
            unit="ms"),
    Setting("front_retire_after_s", "FRONT_RETIRE_AFTER", "", "3000", milliseconds(3, 86_400_000),
            "the leader retires a front that is silent for that long, and with it its workers; at least three"
            " heartbeats", unit="ms"),
    Setting("max_connections", "MAX_CONNECTIONS", "", "20000", _count, "WebSocket connections at a time"),
    Setting("connections_per_ip", "CONNECTIONS_PER_IP", "", "200", _count,
            "WebSocket connections at a time from one IPv4 address or IPv6 /64"),
    Setting("connection_rate_per_ip", "CONNECTION_RATE_PER_IP", "", "20", _rate,
            "new WebSocket connections from one address; burst 5x", unit="per s"),
    Setting("bootstrap_rate_per_ip", "BOOTSTRAP_RATE_PER_IP", "", "10", _rate,
            "requests to /bootstrap from one address; burst 5x", unit="per s"),
    Setting("message_rate", "MESSAGE_RATE", "", "100", _rate,
            "messages of one connection; burst 4x", unit="per s"),
    Setting("rate_limit_exempt", "RATE_LIMIT_EXEMPT", "", "127.0.0.0/8,::1/128", values.networks,
            "networks (CIDR) that the limits for each address leave alone; empty: nobody",
            split=",", empty=True),
    Setting("write_buffer_bytes", "WRITE_BUFFER_BYTES", "", "1048576", whole(1024, 1_073_741_824),
            "what may wait to be written to one connection before it is closed (4413)", unit="bytes"),
    Setting("write_buffers_bytes", "WRITE_BUFFERS_BYTES", "", "16777216", whole(65_536, 1_099_511_627_776),
            "what may wait to be written to all connections together; beyond it, those with the most are closed (4413)",
            unit="bytes"),
    Setting("http_connections", "HTTP_CONNECTIONS", "", "2000", _count,
            "connections at a time that speak HTTP, or have yet to say what they speak"),
    Setting("http_connections_per_ip", "HTTP_CONNECTIONS_PER_IP", "", "100", _count,
            "the same from one IPv4 address or IPv6 /64; trusted proxies and exempt networks are not counted"),
    Setting("auth_backoff_s", "AUTH_BACKOFF", "", "60", seconds(0, 86_400),
            "how long an address whose workers failed to authenticate is refused at most: from 1 s, doubling; 0: not"
            " at all", unit="s"),
    Setting("check_descriptions", "CHECK_DESCRIPTIONS", "", "true", values.boolean,
            "whether session descriptions and candidates are checked for their form before they are passed on"),
    Setting("drain_timeout_s", "DRAIN_TIMEOUT", "", "5", seconds(0, 3600),
            "how long a stopping front waits at most for its connections to leave", unit="s"),
    Setting("keepalive_interval_s", "KEEPALIVE_INTERVAL", "", "30", seconds(0, 3600),
            "time between two pings of a client's idle connection; 0: none", unit="s"),
    Setting("hello_timeout_s", "HELLO_TIMEOUT", "", "10", seconds(0.1, 3600),
            "how long a connection may take to say hello (4408)", unit="s"),
    Setting("header_timeout_s", "HEADER_TIMEOUT", "", "10", seconds(0.1, 3600),
            "how long a connection may take to send a request's headers", unit="s"),
    Setting("ticket_ttl_s", "TICKET_TTL", "", "86400", seconds(1, 31_536_000),
            "how long a client's ticket is good for", unit="s"),
    Setting("admin_tokens", "ADMIN_TOKEN_FILE", "admin-token-file", "", values.keys_from_file,
            "file (mode 0600) with the bearer token of /admin, several of them one a line",
            shown="none: there is no /admin", nothing=()),
    Setting("audit_log", "AUDIT_LOG", "audit-log", None, values.path_or_none,
            "file of the audit log, a JSON object a line; empty: none",
            shown="SQLITE_PATH with .audit.jsonl for its ending", empty=True),
    Setting("audit_log_bytes", "AUDIT_LOG_BYTES", "", "16777216", whole(4096, 1_099_511_627_776),
            "size at which the audit log is rotated", unit="bytes"),
    Setting("audit_log_files", "AUDIT_LOG_FILES", "", "5", whole(1, 1000),
            "rotated audit logs that are kept"),
    Setting("processes", "PROCESSES", "processes", "1", whole(1, 64),
            "fronts on the same port, each a process of its own and a front of one cluster"),
    Setting("fast_path", "FAST_PATH", "", "true", values.boolean,
            "whether plain text frames are taken by the front itself; false: by Autobahn alone"),
    Setting("debug", "DEBUG", "", "", values.debug_namespaces,
            "namespaces whose debug events are logged: kollator:*, or kollator:signaling,kollator:cluster",
            split=","),
    Setting("log_format", "LOG_FORMAT", "log-format", "text", values.choice("text", "json"),
            "text: lines to read; json: one object a line"),
    Setting("crsqlite_path", "CRSQLITE_PATH", "", "", values.path, "another build of the cr-sqlite extension",
            shown="the one in the package"),
    Setting("demo_worker", "DEMO_WORKER", "demo-worker", "false", values.boolean,
            "starts a worker beside the front, to try it out", flag="true"),
    Setting("demo_folder", "DEMO_FOLDER", "demo-folder", "", values.folder,
            "folder that the demo worker serves; starts that worker too", shown="a small built-in one"),
)


def table() -> tuple[tuple[str, str, str, str], ...]:
    """The settings as the README lists them: variable, option ("" for none), default with its unit,
    explanation.
    """
    return tuple((row.variable, _option_text(row), row.default_text, row.help) for row in TABLE)


def _option_text(row: Setting) -> str:
    if not row.option:
        return ""
    return f"--{row.option} (repeatable)" if row.split else f"--{row.option}"
