"""Writes to the store in a thread of its own, so that the reactor never waits for the disk.

Rows that wait are kept by their key, the newest of each, and go out together: one transaction a turn of the
thread, however many rows came meanwhile. So the queue is bounded by the number of rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Call, Clock
from kollator.state.errors import StoreError
from kollator.state.rows import Row, row_key

log = Logger("kollator:state")

RETRY_S = 1.0
"""How long after a failed write the next one is tried."""
HANG_S = 5.0
"""A write that takes longer than this is a problem, although it may yet succeed."""

InThread = Callable[..., "Deferred[Any]"]
"""Runs a function, with its arguments, one at a time and in order, outside the reactor's thread."""

_Key = tuple[str, ...]


class RowStore(Protocol):
    """What is asked of the store."""

    def write(self, rows: Iterable[Row]) -> object:
        """Stores rows in one transaction. Raises ``ValueError`` for a row that is not allowed, and writes none then."""

    def put(self, key: str, value: int) -> object:
        """Keeps a number that is not replicated."""


class _Waiting(NamedTuple):
    done: Deferred[None]
    keys: frozenset[_Key]


class Writer:
    """The one queue of writes to the store."""

    def __init__(self, store: RowStore, in_thread: InThread, clock: Clock) -> None:
        self._store = store
        self._in_thread = in_thread
        self._clock = clock
        self._pending: dict[_Key, Row] = {}
        self._waiting: list[_Waiting] = []
        self._running = False
        self._began_s = 0.0
        self._retry: Call | None = None
        self._stopped: Deferred[None] | None = None
        self._probes = 0
        self._problem: str | None = None
        self.committed: Callable[[Collection[Row]], object] = lambda rows: None
        """Called with the rows of each write that succeeded, before anything else learns of it."""

    @property
    def problem(self) -> str | None:
        """Why the database takes no writes: the last one failed, or hangs; None when it did not."""
        if self._problem is None and self._running and self._clock.seconds() - self._began_s > HANG_S:
            return "a write does not come to its end"
        return self._problem

    @property
    def idle(self) -> bool:
        """Whether everything that was to be written is."""
        return not (self._running or self._pending or self._waiting)

    def write(self, rows: Iterable[Row]) -> Deferred[None]:
        """Queues rows. Fires when they are on disk, fails when they could not be written this time.

        Rows whose write failed with a ``StoreError`` stay queued and are tried again, so that failure tells only
        that they are not safe yet. A row that the store does not allow fails with its ``ValueError`` and is dropped.
        After ``stop`` nothing is queued any more.
        """
        if self._stopped is not None:
            return fail(StoreError("SQLITE_PATH: the front is stopping, nothing more is written"))
        keys = set()
        for row in rows:
            key = row_key(row)
            keys.add(key)
            self._pending.pop(key, None)  # the newest statement goes last
            self._pending[key] = row
        waiting = _Waiting(Deferred(), frozenset(keys))
        self._waiting.append(waiting)
        self._turn()
        return waiting.done

    def probe(self) -> None:
        """Finds out whether the database takes writes, when nothing else is being written: ``problem`` tells."""
        if self._stopped is None:
            self._turn(probe=True)

    def stop(self) -> Deferred[None]:
        """Writes what waits, once, and fires when the thread is done with it."""
        stopped = self._stopped = Deferred()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._turn()
        self._stop_if_idle()
        return stopped

    def _turn(self, *, probe: bool = False) -> None:
        if self._running or self._retry is not None or not (self._pending or self._waiting or probe):
            return
        batch, self._pending = self._pending, {}
        waiting, self._waiting = self._waiting, []
        self._running = True
        self._began_s = self._clock.seconds()
        running = maybeDeferred(self._in_thread, self._store_batch, batch)
        running.addCallbacks(self._written, self._failed, (batch, waiting), {}, (batch, waiting), {})
        running.addErrback(lambda failure: log.failure("a write was followed by an error", failure=failure))

    def _store_batch(self, batch: dict[_Key, Row]) -> dict[_Key, ValueError]:
        """In the thread: stores all, or all but those that are not allowed, which are returned."""
        if not batch:
            self._probes += 1
            self._store.put("probe", self._probes)
            return {}
        try:
            self._store.write(batch.values())
            return {}
        except ValueError:
            return self._store_each(batch)

    def _store_each(self, batch: dict[_Key, Row]) -> dict[_Key, ValueError]:
        refused: dict[_Key, ValueError] = {}
        for key, row in batch.items():
            try:
                self._store.write([row])
            except ValueError as problem:
                refused[key] = problem
        return refused

    def _written(
        self, refused: dict[_Key, ValueError], batch: dict[_Key, Row], waiting: list[_Waiting]
    ) -> None:
        self._running = False
        if self._problem is not None:
            log.info("the database takes writes again")
        self._problem = None
        for key, problem in refused.items():
            log.error("the row {key} was dropped: {problem}", key=repr(key), problem=str(problem))
        if batch:
            self._tell([row for key, row in batch.items() if key not in refused])
        for done, keys in waiting:
            culprit = next((refused[key] for key in keys if key in refused), None)
            if culprit is None:
                done.callback(None)
            else:
                done.errback(culprit)
        self._turn()
        self._stop_if_idle()

    def _tell(self, rows: list[Row]) -> None:
        try:
            self.committed(rows)
        except Exception:
            log.failure("{count} rows were written and could not be passed on", count=len(rows))

    def _failed(self, failure: Failure, batch: dict[_Key, Row], waiting: list[_Waiting]) -> None:
        self._running = False
        self._pending = batch | self._pending  # what came meanwhile is newer
        if self._problem is None:
            log.error("the database does not take writes: {problem}", problem=failure.getErrorMessage())
        self._problem = failure.getErrorMessage()
        if self._stopped is None:
            self._retry = self._clock.callLater(RETRY_S, self._try_again)
        for done, _ in waiting:
            done.errback(failure)
        if self._stopped is not None:
            if self._pending:
                log.error("{count} rows were not written before the stop", count=len(self._pending))
            for done, _ in self._waiting:
                done.errback(failure)
            self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        if self._stopped is not None and not self._running and not self._stopped.called:
            self._stopped.callback(None)

    def _try_again(self) -> None:
        self._retry = None
        self._turn(probe=True)
