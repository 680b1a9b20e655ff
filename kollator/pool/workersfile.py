"""WORKERS_FILE: what the operator says of workers, in JSON, by worker id or by address. Pure.

It overrides what a worker says of itself (seed document, "Worker Pool Configuration")::

    {"192.168.1.100": {"region": "us-west", "capacity": 100}, "w7": {"capacity": 400}}
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

FILE_BYTES = 16 * 1024 * 1024
"""The largest file that is read: some 200,000 workers."""


class WorkersFileError(ValueError):
    """The file cannot be used: one line, what is wrong and where."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """What is said of one worker; None: what it says itself counts. ``capacity`` is in sessions."""

    region: Annotated[str, Meta(max_length=64, pattern=r"^[^\x00-\x1f\x7f\ud800-\udfff]*$(?!\n)")] | None = None
    capacity: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class WorkersFile:
    """The entries of one file, by worker id or address."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def of(self, worker: str, *addresses: str) -> Entry | None:
        """The entry of a worker: by its id, or else by the first of its addresses that is listed."""
        for name in (worker, *addresses):
            entry = self.entries.get(name)
            if entry is not None:
                return entry
        return None


def parse_workers_file(content: bytes) -> WorkersFile:
    """The entries of a file. Raises ``WorkersFileError``."""
    if len(content) > FILE_BYTES:
        raise WorkersFileError(f"it has over {FILE_BYTES} bytes")
    try:
        loaded = json.loads(content, object_pairs_hook=_without_duplicates)
    except WorkersFileError:
        raise
    except (ValueError, RecursionError) as problem:
        raise WorkersFileError(f"it is not JSON: {problem}") from None
    try:
        return WorkersFile(msgspec.convert(loaded, dict[str, Entry]))
    except msgspec.ValidationError as problem:
        raise WorkersFileError(f"{problem}; an entry is like {{\"region\": \"us-west\", \"capacity\": 100}}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise WorkersFileError(f"{twice[:80]!r} is in it twice")
    return found
