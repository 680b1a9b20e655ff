"""The settings of a front: one table, one frozen ``Settings``, read once at the start and checked as a whole.

An option wins over the environment, the environment over the default. Times are seconds inside; outside they
have the unit that the table names. Nothing here imports the reactor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from kollator.guard.addresses import Network
from kollator.settings import values
from kollator.settings.options import FrontOptions
from kollator.settings.table import TABLE, Setting, table
from kollator.settings.values import Peer

__all__ = ["TABLE", "FrontOptions", "Peer", "Setting", "SettingError", "Settings", "table"]


class SettingError(Exception):
    """A setting that cannot be used: one line, "SETTING: what is wrong; what to do"."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(values.one_line(f"{setting}: {problem}"))


@frozen(kw_only=True, slots=True)
class Settings:
    """Everything a front is told at its start; ``load`` makes one. Keys are not in its ``repr``."""

    port: int
    host: str
    listen: tuple[str, ...]
    node_id: str
    region: str
    leader_election: bool
    peers: tuple[Peer, ...]
    peer_listen: tuple[str, ...]
    peer_client_ca: str | None
    cluster_keys: tuple[bytes, ...] = field(repr=False)
    worker_keys: tuple[bytes, ...] = field(repr=False)
    workers_file: str | None
    workers_file_only: bool
    worker_health_timeout_s: float
    worker_health_interval_s: float
    deep_health_interval_s: float
    deep_health_url: str | None
    panic_threshold: float
    hash_replicas: int
    database: str
    sync_interval_s: float
    stun_servers: tuple[str, ...]
    turn_servers: tuple[str, ...]
    turn_secrets: tuple[bytes, ...] = field(repr=False)
    turn_ttl_s: float
    allowed_origins: tuple[str, ...]
    trusted_proxies: tuple[Network, ...]
    worker_allow: tuple[Network, ...]
    quorum: str
    heartbeat_interval_s: float
    election_timeout_s: float
    front_retire_after_s: float
    max_connections: int
    connections_per_ip: int
    connection_rate_per_ip: float
    bootstrap_rate_per_ip: float
    message_rate: float
    rate_limit_exempt: tuple[Network, ...]
    write_buffer_bytes: int
    write_buffers_bytes: int
    http_connections: int
    http_connections_per_ip: int
    auth_backoff_s: float
    check_descriptions: bool
    drain_timeout_s: float
    keepalive_interval_s: float
    hello_timeout_s: float
    header_timeout_s: float
    ticket_ttl_s: float
    admin_tokens: tuple[bytes, ...] = field(repr=False)
    audit_log: str | None
    audit_log_bytes: int
    audit_log_files: int
    processes: int
    fast_path: bool
    debug: tuple[str, ...]
    log_format: str
    crsqlite_path: str | None
    demo_worker: bool
    demo_folder: str | None

    @classmethod
    def load(
        cls,
        options: Mapping[str, object],
        environ: Mapping[str, str],
        host_name: Callable[[], str] = socket.gethostname,
    ) -> Settings:
        """The settings from a ``FrontOptions`` (any mapping by long option names will do) and the
        environment.

        Reads the key files. Variables that are not in the table are ignored. Raises ``SettingError`` for the
        first thing that is wrong, in the order of the table; what contradicts another setting comes last.
        """
        given: dict[str, Any] = {}
        names: dict[str, str] = {}
        for row in TABLE:
            try:
                text = row.given(options, environ)
                if text is None:
                    continue
                if row.field in given:
                    raise ValueError(f"{names[row.field]} is given too; give one of the two")
                given[row.field] = row.parse(text)
            except ValueError as problem:
                raise SettingError(row.name, str(problem)) from None
            names[row.field] = row.name
        complete: dict[str, Any] = {
            row.field: row.default_value() for row in TABLE if row.default is not None
        } | given
        _derive(complete, host_name)
        _check(complete)
        return cls(**complete)


def _derive(chosen: dict[str, Any], host_name: Callable[[], str]) -> None:
    """Put in the defaults that follow from other settings."""
    interface = chosen["host"].replace(":", r"\:")  # in an endpoint string a colon parts arguments
    chosen.setdefault("listen", (f"tcp:{chosen['port']}:interface={interface}",))
    if "node_id" not in chosen:
        chosen["node_id"] = values.node_id_of_host(host_name())
    chosen.setdefault("quorum", "available" if len(chosen["peers"]) == 1 else "majority")
    chosen.setdefault("peer_listen", ("tcp:9090",))
    if not chosen["peers"]:
        chosen["peer_listen"] = ()
    if chosen["demo_folder"]:
        chosen["demo_worker"] = True
    if "audit_log" not in chosen:
        database = chosen["database"]
        chosen["audit_log"] = None if database == ":memory:" else os.path.splitext(database)[0] + ".audit.jsonl"


def _check(chosen: dict[str, Any]) -> None:
    """Raise ``SettingError`` where two settings contradict each other."""
    if any(peer.node == chosen["node_id"] for peer in chosen["peers"]):
        own = values.quoted(chosen["node_id"])
        raise SettingError(
            "PEERS (--peer)", f"{own} is this front itself; name the other fronts, or change NODE_ID"
        )
    if chosen["peers"] and not chosen["cluster_keys"]:
        problem = "PEERS is set and there is no key; name the file with the key that all fronts share"
        raise SettingError("CLUSTER_KEY_FILE (--cluster-key-file)", problem)
    if chosen["workers_file_only"] and not chosen["workers_file"]:
        problem = "there is no WORKERS_FILE, so that no worker could register; name one, or leave this out"
        raise SettingError("WORKERS_FILE_ONLY (--workers-file-only)", problem)
    least_s = 3 * chosen["heartbeat_interval_s"]
    for name, variable in (
        ("election_timeout_s", "ELECTION_TIMEOUT"),
        ("front_retire_after_s", "FRONT_RETIRE_AFTER"),
    ):
        if chosen[name] < least_s * (1 - 1e-9):
            remedy = f"use {least_s * 1000:.12g} or more, or a shorter HEARTBEAT_INTERVAL"
            raise SettingError(variable, f"it is shorter than three heartbeats; {remedy}")
