"""The settings of a worker: the command line and the environment, every value checked."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen
from OpenSSL import crypto
from twisted.internet.ssl import Certificate
from twisted.python import usage

from kollator.settings import SettingError, values
from kollator.settings.table import Setting

PEM_BYTES = 1_048_576
"""The largest file of authorities: ten times what systems ship."""
_PEM_END = b"-----END CERTIFICATE-----"


def front_urls(items: Sequence[str]) -> tuple[str, ...]:
    """The fronts' WebSocket URLs; one without a path gets ``/signaling``."""
    urls = tuple(values.signaling_url(item) for item in items)
    if not urls:
        raise ValueError("no front is named; write one like ws://front.example:8080/signaling")
    for url in urls:
        if urls.count(url) > 1:
            raise ValueError(f"{values.quoted(url)} is named twice; name each front once")
    return urls


def address(text: str) -> str:
    """What the worker tells operators about where it is: a name or an address."""
    if len(text) > 255 or not text.isprintable():
        raise ValueError(f"{values.quoted(text)} is not an address; use at most 255 printable characters")
    return text


def worker_id(text: str) -> str:
    """A worker's id."""
    if not values.NODE_ID.fullmatch(text):
        raise ValueError(f"{values.quoted(text)} is not a worker id; use 1 to 64 of A-Z a-z 0-9 . _ : -")
    return text


def certificates(text: str) -> tuple[Certificate, ...]:
    """The certificates of a PEM file."""
    try:
        with open(values.path(text), "rb") as file:
            pem = file.read(PEM_BYTES)
        found = [Certificate.loadPEM(part + _PEM_END) for part in pem.split(_PEM_END)[:-1]]
    except OSError as problem:
        reason = problem.strerror
        raise ValueError(f"{values.quoted(text)} cannot be read ({reason}); name a PEM file") from None
    except crypto.Error:
        found = []
    if not found:
        raise ValueError(f"{values.quoted(text)} holds no certificates in PEM; name a file that does")
    return tuple(found)


TABLE = (
    Setting("fronts", "WORKER_FRONTS", "front", None, front_urls,
            "WebSocket URL of a front to register with, as ws://127.0.0.1:8080/signaling",
            shown="none, one is needed", split=" "),
    Setting("id", "WORKER_ID", "id", None, worker_id,
            "this worker's id, unlike any other's", shown="host name"),
    Setting("keys", "WORKER_KEY_FILE", "key-file", None, values.keys_from_file,
            "file with the key that the fronts know, one a line: the first signs",
            shown="none, one is needed"),
    Setting("keys", "WORKER_KEY", "", None, values.keys, "the key itself, in place of the file"),
    Setting("folder", "WORKER_FOLDER", "folder", "", values.folder,
            "folder to serve, read-only", shown="a small built-in one"),
    Setting("region", "WORKER_REGION", "region", "", values.region, "where this worker is", nothing=""),
    Setting("capacity", "WORKER_CAPACITY", "capacity", "100", values.whole(1, 1_000_000),
            "how many sessions it takes at once", unit="sessions"),
    Setting("address", "WORKER_ADDRESS", "address", "", address,
            "what operators see as its address", nothing=""),
    Setting("stun", "STUN_SERVERS", "stun", None, values.ice_urls("stun", "stuns"),
            "STUN servers in place of those that the fronts name; empty: none", shown="the fronts'",
            split=",", empty=True),
    Setting("turn", "TURN_SERVERS", "turn", "", values.ice_urls("turn", "turns"),
            "TURN servers in place of those that the fronts name; they need TURN_SECRET", shown="the fronts'",
            split=","),
    Setting("turn_secrets", "TURN_SECRET_FILE", "", "", values.keys_from_file,
            "file with the secret of the TURN servers (coturn: use-auth-secret)", nothing=()),
    Setting("turn_secrets", "TURN_SECRET", "", "", values.keys, "the secret itself, in place of the file",
            nothing=()),
    Setting("turn_ttl_s", "TURN_TTL", "", "3600", values.seconds(60, 604_800),
            "how long TURN credentials are good for", unit="s"),
    Setting("ca", "WORKER_CA_FILE", "ca-file", "", certificates,
            "PEM file with the authorities that may certify a wss:// front", shown="the system's",
            nothing=()),
    Setting("debug", "DEBUG", "", "", values.debug_namespaces,
            "namespaces whose debug events are logged, as kollator:*", split=","),
    Setting("log_format", "LOG_FORMAT", "log-format", "text", values.choice("text", "json"),
            "text: lines to read; json: one object a line"),
    Setting("until_eof", "WORKER_UNTIL_EOF", "", "false", values.boolean,
            "ends when its standard input ends, for a parent process that may die"),
)  # fmt: skip
"""A worker's settings, as the front's table has them."""


@frozen(kw_only=True, slots=True)
class WorkerSettings:
    """Everything a worker is told at its start. Keys are not in its ``repr``.

    ``folder`` is None for the built-in one. ``stun`` is None and ``turn`` empty where the fronts' servers are
    used; ``ca`` is empty where the system's authorities are.
    """

    fronts: tuple[str, ...]
    id: str
    keys: tuple[bytes, ...] = field(repr=False)
    folder: str | None
    region: str
    capacity: int
    address: str
    stun: tuple[str, ...] | None
    turn: tuple[str, ...]
    turn_secrets: tuple[bytes, ...] = field(repr=False)
    turn_ttl_s: float
    ca: tuple[Certificate, ...]
    debug: tuple[str, ...]
    log_format: str
    until_eof: bool

    @classmethod
    def load(
        cls,
        options: Mapping[str, object],
        environ: Mapping[str, str],
        host_name: Callable[[], str] = socket.gethostname,
    ) -> WorkerSettings:
        """The settings from a ``WorkerOptions`` and the environment; an option wins.

        Reads the files that are named. Raises ``SettingError`` for the first thing that is wrong.
        """
        given: dict[str, Any] = {}
        for row in TABLE:
            try:
                text = row.given(options, environ)
                if text is not None and row.field in given:
                    raise ValueError("it is given in two ways; give one of the two")
                if text is not None:
                    given[row.field] = row.parse(text)
            except ValueError as problem:
                raise SettingError(row.name, str(problem)) from None
        for row in TABLE:
            if row.field not in given and row.default is not None:
                given[row.field] = row.default_value()
        given.setdefault("id", values.node_id_of_host(host_name()))
        given.setdefault("stun", None)
        for row in TABLE:
            if row.field not in given:
                raise SettingError(row.name, f"it is not set; give the {row.help}")
        return cls(**given)


def _text(row: Setting) -> str:
    again = "; repeatable" if row.split else ""
    return f"{row.help} [{row.variable}; default: {row.default_text}{again}]"


class WorkerOptions(usage.Options):
    """The command line of ``twistd kollator-worker``."""

    synopsis = "[options]"
    longdesc = (
        "Registers with each front, answers WebRTC offers and serves a folder over the data channel. The"
        " environment variable in brackets does the same as an option; an option wins over it."
    )
    optParameters = [  # noqa: N815, RUF012
        [row.option, None, None, _text(row)] for row in TABLE if row.option and not row.split
    ]
    settings: WorkerSettings

    def postOptions(self) -> None:
        """Checks everything. Raises ``SystemExit`` with one line for what is wrong."""
        try:
            self.settings = WorkerSettings.load(self, os.environ)
        except SettingError as problem:
            raise SystemExit(f"kollator-worker: {problem}") from None


def _add_repeatable(row: Setting) -> None:
    def collect(self: WorkerOptions, value: str) -> None:
        self.setdefault(row.option, []).append(value)

    collect.__doc__ = _text(row)
    setattr(WorkerOptions, "opt_" + row.option.replace("-", "_"), collect)


for _row in TABLE:
    if _row.option and _row.split:
        _add_repeatable(_row)
