"""How long to wait before the next attempt. Pure: chance comes in as a callable."""

from __future__ import annotations

from collections.abc import Callable

DOUBLINGS = 32
"""More would only make a large number larger, long past any cap."""


class Backoff:
    """Exponential backoff with full jitter.

    The n-th delay is drawn evenly from 0 to ``base_s`` * 2^n, to ``cap_s`` at most: a thousand workers that
    lost the same front come back spread over the whole time, not in waves (Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015).

    ``uniform`` gives numbers from 0 to 1; ``floor_s`` is waited in any case, on top.
    """

    def __init__(
        self, uniform: Callable[[], float], base_s: float, cap_s: float, floor_s: float = 0.0
    ) -> None:
        self._uniform = uniform
        self._base_s = base_s
        self._cap_s = cap_s
        self._floor_s = floor_s
        self._attempts = 0

    def next_s(self) -> float:
        """The next delay in seconds."""
        ceiling_s = min(self._cap_s, self._base_s * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, DOUBLINGS)
        return self._floor_s + self._uniform() * ceiling_s

    def reset(self) -> None:
        """All is well again: the next delay is a first one."""
        self._attempts = 0
