"""What can go wrong at a front's start, as one line that names the setting and the remedy; and what is read then."""

from __future__ import annotations

import os

from twisted.logger import Logger

from kollator.guard.keys import weakness
from kollator.pool.workersfile import FILE_BYTES, WorkersFile, WorkersFileError, parse_workers_file
from kollator.settings import Settings
from kollator.state.store import Store
from kollator.text import one_line

log = Logger("kollator:front")


class StartError(Exception):
    """The front cannot start: one line that names the setting and the remedy."""


def read_workers_file(path: str | None) -> WorkersFile:
    """The operator's list of workers, empty without a file. Raises ``StartError``."""
    if path is None:
        return WorkersFile({})
    try:
        return _workers_file(path)
    except OSError as problem:
        raise StartError(f"WORKERS_FILE: {path} cannot be read: {problem.strerror}; name a JSON file") from None
    except WorkersFileError as problem:
        raise StartError(f"WORKERS_FILE: {path}: {problem}; mend it, or leave the setting out") from None


def load_workers_file(path: str) -> WorkersFile | str:
    """The same list later on, or in a few words why it cannot be had. It never waits for what is not a file."""
    try:
        return _workers_file(path) if os.path.isfile(path) else "is not there, or no file"
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"
    except WorkersFileError as problem:
        return f"cannot be used: {problem}"


def _workers_file(path: str) -> WorkersFile:
    with open(path, "rb") as file:
        return parse_workers_file(file.read(FILE_BYTES + 1))


def own_ticket_key(store: Store) -> bytes:
    """The key that a front without a cluster signs its tickets with: made once, kept in its database."""
    key = store.get("ticket_key")
    if not isinstance(key, bytes):
        key = os.urandom(32)
        store.put("ticket_key", key)
    return key


def warn_of(settings: Settings, *, workers: bool, turn: bool) -> None:
    """Says what an operator has probably forgotten. ``workers`` can register, ``turn`` servers can be told of."""
    if not workers:
        log.warn("WORKER_KEY_FILE is not set: no worker can register")
    for name, keys in (
        ("CLUSTER_KEY", settings.cluster_keys),
        ("WORKER_KEY", settings.worker_keys),
        ("ADMIN_TOKEN_FILE", settings.admin_tokens),
    ):
        weak = weakness(keys)
        if weak:
            log.warn("{setting}: {weak}", setting=name, weak=weak)
    if not turn:
        log.warn("TURN_SERVERS is set without TURN_SECRET: clients are not told of them")


def cannot_listen(description: str, problem: object) -> StartError:
    """The error of a port that cannot be bound."""
    return StartError(
        f"HOST, PORT, LISTEN: {description!r} cannot be listened on: {one_line(problem)}; "
        "stop what uses it, or choose another address or port"
    )
