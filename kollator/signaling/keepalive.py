"""Finds connections whose peer is gone without a word: one sweep over all, no timer for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kollator.signaling.websocket import TextSocket

TURN_S = 1.0
"""How often a part of the connections is looked at, in seconds."""


class KeepAlive:
    """Pings every idle client once an interval and drops those that were silent for a whole one.

    ``connections`` gives the connections to sweep; workers are left out, the health monitor pings them. To be
    turned every ``TURN_S``. Each connection has its own turn within the interval, whoever comes and goes.
    """

    def __init__(self, interval_s: float, connections: Callable[[], Iterable[TextSocket]]) -> None:
        self._turns = max(1, round(interval_s / TURN_S))
        self._connections = connections
        self._sweep: list[list[TextSocket]] = []

    def turn(self) -> None:
        """Looks at the next part; all of them take one interval."""
        if not self._sweep:
            self._sweep = [[] for _ in range(self._turns)]
            for connection in self._connections():
                self._sweep[hash((connection,)) % self._turns].append(connection)
        for connection in self._sweep.pop():
            if connection.heard:
                connection.heard = False
                connection.ping(b"")
            else:
                connection.drop("silent for too long")
