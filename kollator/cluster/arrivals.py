"""Rows that merges have changed, on their way to the pool: a slice at a time, so that the reactor never stalls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.logger import Logger

from kollator.clock import Clock
from kollator.state.rows import Row, row_key

log = Logger("kollator:cluster")

SLICE_S = 0.004
"""How long rows are applied in one turn of the reactor."""
CHUNK = 8
"""Rows applied between two looks at the clock."""


class Arrivals:
    """The queue before the pool. Of a row that waits only the newest version is kept, so it is never longer than
    the tables are. ``apply`` takes a few rows.
    """

    def __init__(self, clock: Clock, apply: Callable[[Sequence[Row]], object]) -> None:
        self._clock = clock
        self._apply = apply
        self._rows: dict[tuple[str, ...], Row] = {}
        self._turning = False
        self._stopped = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._rows)

    def take(self, rows: Iterable[Row]) -> None:
        """Queues rows, to be called in the order of the store; the first slice is applied at once."""
        for row in rows:
            self._rows[row_key(row)] = row
        if self._rows and not self._turning:
            self._turning = True
            self._turn()

    def forget(self, rows: Iterable[Row]) -> None:
        """The store has newer versions of these rows than any that waits, and the pool is told by others."""
        for row in rows:
            self._rows.pop(row_key(row), None)

    def stop(self) -> None:
        """Nothing more is applied."""
        self._stopped = True
        self._rows.clear()

    def _turn(self) -> None:
        until = self._clock.seconds() + SLICE_S
        while self._rows and not self._stopped:
            keys = [key for key, _ in zip(self._rows, range(CHUNK), strict=False)]
            try:
                self._apply([self._rows.pop(key) for key in keys])
            except Exception:
                log.failure("merged rows could not be applied")
            if self._rows and self._clock.seconds() >= until:
                self._clock.callLater(0, self._turn)
                return
        self._turning = False
