"""Finds connections whose peer is gone without a word: one sweep over all, no timer for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from kollator.signaling.protocol import SignalingProtocol

TURN_S = 1.0
"""How often a slice of the connections is looked at, in seconds."""


class KeepAlive:
    """Pings every idle client once an interval and drops those that were silent for a whole one.

    ``connections`` gives the connections to sweep; workers are left out, the health monitor pings them.
    """

    def __init__(self, interval_s: float, connections: Callable[[], Iterable[SignalingProtocol]]) -> None:
        self._interval_s = interval_s
        self._connections = connections
        self._sweep: Iterator[SignalingProtocol] = iter(())
        self._slice = 0

    def turn(self) -> None:
        """Looks at the next slice; a sweep of all takes one interval."""
        for _ in range(self._slice):
            connection = next(self._sweep, None)
            if connection is None:
                break
            self._look(connection)
        else:
            if self._slice:
                return
        every = list(self._connections())
        self._sweep = iter(every)
        self._slice = -(-len(every) // max(1, round(self._interval_s / TURN_S)))

    @staticmethod
    def _look(connection: SignalingProtocol) -> None:
        if connection.heard:
            connection.heard = False
            connection.ping(b"")
        else:
            connection.drop("silent for too long")
