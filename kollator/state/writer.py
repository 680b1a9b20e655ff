"""Writes to the store in a thread of its own, so that the reactor never waits for the disk.

Rows that wait are kept by their key, the newest of each, and go out together: one transaction a turn of the
thread, however many rows came meanwhile. So the queue is bounded by the number of rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Call, Clock
from kollator.state.rows import Row, row_key

log = Logger("kollator:state")

RETRY_S = 1.0
"""How long after a failed write the next one is tried."""

InThread = Callable[..., "Deferred[Any]"]
"""Runs a function, with its arguments, one at a time and in order, outside the reactor's thread."""


class RowStore(Protocol):
    """What is asked of the store."""

    def write(self, rows: Iterable[Row]) -> object:
        """Stores rows in one transaction."""


class Writer:
    """The one queue of writes to the store."""

    def __init__(self, store: RowStore, in_thread: InThread, clock: Clock) -> None:
        self._store = store
        self._in_thread = in_thread
        self._clock = clock
        self._pending: dict[tuple[str, ...], Row] = {}
        self._waiting: list[Deferred[None]] = []
        self._running: Deferred[Any] | None = None
        self._retry: Call | None = None
        self._stopped: Deferred[None] | None = None
        self.problem: str | None = None
        """Why the last write failed; None when it did not."""

    def write(self, rows: Iterable[Row]) -> Deferred[None]:
        """Queues rows. Fires when they are on disk, fails when they could not be written this time.

        Rows whose write failed stay queued and are tried again, so a failure tells only that they are not
        safe yet.
        """
        for row in rows:
            key = row_key(row)
            self._pending.pop(key, None)  # the newest statement goes last
            self._pending[key] = row
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        self._turn()
        return done

    def stop(self) -> Deferred[None]:
        """Writes what waits, once, and fires when the thread is done with it. Nothing may be written after."""
        self._stopped = Deferred()
        stopped = self._stopped
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._turn()
        if self._running is None:
            stopped.callback(None)
        return stopped

    def _turn(self) -> None:
        if self._running is not None or self._retry is not None or not (self._pending or self._waiting):
            return
        batch, self._pending = self._pending, {}
        waiting, self._waiting = self._waiting, []
        self._running = self._in_thread(self._store.write, list(batch.values()))
        self._running.addCallbacks(self._written, self._failed, (waiting,), {}, (batch, waiting), {})
        self._running.addErrback(lambda failure: log.failure("a write was followed by an error", failure=failure))

    def _written(self, _: Any, waiting: list[Deferred[None]]) -> None:
        self._running = None
        if self.problem is not None:
            log.info("the database takes writes again")
        self.problem = None
        for done in waiting:
            done.callback(None)
        self._next()

    def _failed(self, failure: Failure, batch: dict[tuple[str, ...], Row], waiting: list[Deferred[None]]) -> None:
        self._running = None
        self._pending = batch | self._pending  # what came meanwhile is newer
        if self.problem is None:
            log.error("the database does not take writes: {problem}", problem=failure.getErrorMessage())
        self.problem = failure.getErrorMessage()
        for done in waiting:
            done.errback(failure)
        if self._stopped is None:
            self._retry = self._clock.callLater(RETRY_S, self._try_again)
        else:
            log.error("{count} rows were not written before the stop", count=len(self._pending))
            self._stopped.callback(None)

    def _try_again(self) -> None:
        self._retry = None
        self._turn()

    def _next(self) -> None:
        if self._pending or self._waiting:
            self._turn()
        elif self._stopped is not None:
            self._stopped.callback(None)
