"""A disk that takes its time, and may fail: one call after the other, and news of each a while after it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from kollator.state.errors import StorageFailedError

FAST_S = (0.0001, 0.002)
SLOW_S = (0.0, 0.4)


class Disk:
    """What a front's ``in_store`` is made of. It is gone with the front's life."""

    def __init__(self, later: Callable[..., None], rng: Random, done: Callable[[], bool]) -> None:
        """``later(seconds, call, *args)`` belongs to the front's life; ``done`` is called when a call has had its
        effect and nobody knows yet, and tells whether the front still lives.
        """
        self.delay_s = FAST_S
        self.failing = 0.0
        self.longest = 0
        self._later = later
        self._rng = rng
        self._done = done
        self._queue: deque[tuple[Callable[..., Any], tuple[Any, ...], Deferred[Any]]] = deque()
        self._busy = False

    def in_store(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Call in turn; the Deferred fires with what it returned."""
        done: Deferred[Any] = Deferred()
        self._queue.append((call, args, done))
        self.longest = max(self.longest, len(self._queue))
        self._turn()
        return done

    def _turn(self) -> None:
        if self._queue and not self._busy:
            self._busy = True
            self._later(self._rng.uniform(*self.delay_s), self._execute)

    def _execute(self) -> None:
        call, args, done = self._queue.popleft()
        result: Any
        try:
            if self._rng.random() < self.failing:
                raise StorageFailedError("SQLITE_PATH: the disk fails, as it was told to")
            result = call(*args)
        except Exception:
            result = Failure()
        if self._done():
            self._later(self._rng.uniform(*self.delay_s) / 2, self._report, done, result)

    def _report(self, done: Deferred[Any], result: Any) -> None:
        self._busy = False
        done.callback(result)
        self._turn()
