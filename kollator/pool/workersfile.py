"""WORKERS_FILE: what the operator says of workers, in JSON, by worker id or by address. Pure.

It overrides what a worker says of itself (seed document, "Worker Pool Configuration"), and may name a probe::

    {"192.168.1.100": {"region": "us-west", "capacity": 100, "health": "tcp:192.168.1.100:9000"},
     "w7": {"capacity": 400, "health": "http://10.0.0.7:8080/healthz"}}
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from kollator.guard.hosts import parse_host_port

FILE_BYTES = 16 * 1024 * 1024
"""The largest file that is read: some 200,000 workers."""
HEALTH_CHARS = 2048

_SHOWN_CHARS = 80
_CACHED_TARGETS = 16_384  # more than a front has workers: they are all looked at when the file changes
_LIKE = '{"region": "us-west", "capacity": 100}'
_MUST_BE = {
    "region": "at most 64 characters, none of them a control character",
    "capacity": "a whole number of sessions from 1 to 1000000",
    "health": "a text like tcp:192.0.2.1:9000 or http://192.0.2.1:9000/health",
}
_FIELD = re.compile(r"at `\$\.(\w+)`")
_TCP = re.compile(r"tcp:([!-~]+)")
_HTTP = re.compile(r"(https?)://([^/?#@\s]+)((?:[/?][!-~]*)?)", re.ASCII)
_PORTS = {"http": 80, "https": 443}


class WorkersFileError(ValueError):
    """The file cannot be used: one line, what is wrong and where."""


class HealthTarget(NamedTuple):
    """What a probe asks: ``host`` without brackets; ``path`` with its query, empty for plain TCP."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def url(self) -> str:
        """The URL of an HTTP probe."""
        return f"{self.scheme}://{self._authority}{self.path}"

    @property
    def shown(self) -> str:
        """The target for a log: without the query, which may hold a secret."""
        if self.scheme == "tcp":
            return f"tcp:{self._authority}"
        return f"{self.scheme}://{self._authority}{self.path.partition('?')[0]}"

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """What is said of one worker; None: what it says itself counts. ``capacity`` is in sessions, ``health`` names a
    probe as ``parse_health`` takes it.
    """

    region: Annotated[str, Meta(max_length=64, pattern=r"^[^\x00-\x1f\x7f\ud800-\udfff]*$(?!\n)")] | None = None
    capacity: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    health: str | None = None

    def __post_init__(self) -> None:
        if self.health is not None:
            parse_health(self.health)

    @property
    def target(self) -> HealthTarget | None:
        """What is probed, None for nothing."""
        return parse_health(self.health) if self.health is not None else None


class WorkersFile:
    """The entries of one file, by worker id or address; IPv6 addresses in their plain form."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def of(self, worker: str, *addresses: str) -> Entry | None:
        """The entry of a worker: by its id, or else by the first of its addresses that is listed."""
        for name in (worker, *addresses):
            entry = self.entries.get(_plain(name))
            if entry is not None:
                return entry
        return None


@lru_cache(_CACHED_TARGETS)
def parse_health(text: str) -> HealthTarget:
    """Parse ``tcp:host:port`` or ``http://host:port/path`` (also https), with an IPv6 address in brackets.

    Raises ``ValueError`` with a line that quotes the text.
    """
    if len(text) <= HEALTH_CHARS and (tcp := _TCP.fullmatch(text)):
        parsed = parse_host_port(tcp[1])
        if parsed is not None and parsed[1] is not None:
            return HealthTarget("tcp", parsed[0].strip("[]"), parsed[1])
    elif len(text) <= HEALTH_CHARS and (http := _HTTP.fullmatch(text)) and "#" not in text:
        scheme, authority, path = http.groups()
        parsed = parse_host_port(authority)
        if parsed is not None:
            path = path if path.startswith("/") else f"/{path}"
            return HealthTarget(scheme, parsed[0].strip("[]"), parsed[1] or _PORTS[scheme], path)
    raise ValueError(
        f"health {_shown(text)} is not a probe; write tcp:192.0.2.1:9000, tcp:[2001:db8::1]:9000"
        " or http://192.0.2.1:9000/health"
    )


def parse_workers_file(content: bytes) -> WorkersFile:
    """The entries of a file. Raises ``WorkersFileError``, which names the entry that is wrong."""
    if len(content) > FILE_BYTES:
        raise WorkersFileError(f"it has over {FILE_BYTES} bytes")
    try:
        loaded = json.loads(content, object_pairs_hook=_without_duplicates)
    except WorkersFileError:
        raise
    except (ValueError, RecursionError) as problem:
        raise WorkersFileError(f"it is not JSON: {_clean(str(problem))}") from None
    if not isinstance(loaded, dict):
        raise WorkersFileError("it is not an object of entries by worker id or address")
    entries: dict[str, Entry] = {}
    for name, value in loaded.items():
        plain = _plain(name)
        if plain in entries:
            raise WorkersFileError(f"{_shown(name)} is in it twice, in two spellings")
        entries[plain] = _entry(name, value)
    return WorkersFile(entries)


def _entry(name: str, value: Any) -> Entry:
    try:
        return msgspec.convert(value, Entry)
    except (msgspec.ValidationError, UnicodeEncodeError) as problem:  # the latter for lone surrogates
        said = str(problem)
        field = _FIELD.search(said)
        if field and field[1] in _MUST_BE:
            said = f"{field[1]} must be {_MUST_BE[field[1]]}"
        elif not isinstance(value, dict):
            said = f"an entry is an object like {_LIKE}"
        raise WorkersFileError(f"{_shown(name)}: {_clean(said)}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise WorkersFileError(f"{_shown(twice)} is in it twice")
    return found


def _plain(name: str) -> str:
    if ":" not in name:
        return name
    try:
        return str(IPv6Address(name))
    except AddressValueError:
        return name


def _shown(text: str) -> str:
    """A text for people, in quotes: cut when escapes have made it long, not before."""
    whole = repr(text[:_SHOWN_CHARS])
    return whole if len(whole) <= _SHOWN_CHARS + 2 else f"{whole[:_SHOWN_CHARS]}…"


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))[:300]
