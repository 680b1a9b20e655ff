"""The operator's list of workers as a front uses it: read at the start, read again when it changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from kollator.pool.workersfile import Entry, WorkersFile
from kollator.starting import load_workers_file, read_workers_file

log = Logger("kollator:pool")


class WorkersList:
    """WORKERS_FILE at ``path``, None for none; ``only``: workers that it does not list may not register.

    ``changed`` is called after each reading that brought other entries. ``in_thread`` runs a function with its
    arguments where it may take its time: a large file takes longer than the loop may stand still. Raises
    ``StartError`` when the file cannot be used.
    """

    def __init__(
        self,
        path: str | None,
        *,
        only: bool = False,
        changed: Callable[[], object] = lambda: None,
        in_thread: Callable[..., Deferred[Any]] = maybeDeferred,
    ) -> None:
        self.changed = changed
        self._only = only
        self._in_thread = in_thread
        self._listed = read_workers_file(path)
        self._path = os.path.abspath(path) if path is not None else None  # a daemon may change its folder

    def __len__(self) -> int:
        return len(self._listed)

    def of(self, worker: str, *addresses: str) -> Entry | None:
        """The entry of a worker: by its id, or else by the first of its addresses that is listed."""
        return self._listed.of(worker, *addresses)

    def permits(self, worker: str, *addresses: str) -> bool:
        """Whether the worker may register. Its address is what it says it is, as is its id."""
        return not self._only or self._listed.of(worker, *addresses) is not None

    def reload(self) -> Deferred[None]:
        """Reads the file again; fires when that is done. A file that cannot be used changes nothing but the log."""
        if self._path is None:
            return maybeDeferred(lambda: None)
        return self._in_thread(load_workers_file, self._path).addCallback(self._loaded)

    def _loaded(self, loaded: WorkersFile | str) -> None:
        if isinstance(loaded, str):
            log.error("WORKERS_FILE: {path} {problem}; what it said before counts", path=self._path, problem=loaded)
        elif loaded.entries != self._listed.entries:
            self._listed = loaded
            log.info("WORKERS_FILE: {path} was read again, {count} workers", path=self._path, count=len(loaded))
            self.changed()
