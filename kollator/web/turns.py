"""Whose turn it is: how many requests are answered before the reactor turns, and who waits for longer.

So many requests are answered in a turn of the reactor, of one connection never two. What comes beyond that waits in a
queue: timers, relayed messages and new connections come in between, however much is asked for at once. Those who come
for the first time need not wait behind all those who stay and ask again: one of each goes on, one after the other.

A connection that was refused for its rate is not listened to for a while. Closing it would be worse: a new one costs
the front more than the request did, and the peer less than the wait. Those that have waited are listened to again
slowly, so that many of them together cannot keep a front busy with refusing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from kollator.clock import Call, Clock

AT_ONCE = 16
"""So many requests are answered in a turn of the reactor: a few milliseconds' worth."""
HOLD_S = 1 / 16
"""How long a refused connection is not listened to, in seconds, when there are few. Who counts refusals on one
connection comes to an end; where there are many each waits for longer."""
RELEASED_AT_ONCE = 8
RELEASE_EVERY_S = 0.02
"""400 held connections a second are listened to again at most: refusing them takes a tenth of a processor."""


class Waiting(Protocol):
    """A connection whose turn is to come."""

    def go_on(self) -> None:
        """It has come. Does not raise."""


class Turns:
    """The connections of one site that wait. Each does so in one way at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left = AT_ONCE
        self._new: OrderedDict[Waiting, None] = OrderedDict()
        self._kept: OrderedDict[Waiting, None] = OrderedDict()
        self._held: OrderedDict[Waiting, float] = OrderedDict()
        self._turn: Call | None = None
        """The next, or the one that is under way."""
        self._release: Call | None = None

    def __len__(self) -> int:
        return len(self._new) + len(self._kept) + len(self._held)

    def take(self) -> bool:
        """Whether one more request may be answered now. Whoever hears no is to ``queue``."""
        if self._left <= 0 or self._turn is not None:
            return False
        self._left -= 1
        return True

    def queue(self, waiting: Waiting, *, new: bool = False) -> None:
        """Has it go on in a later turn of the reactor, after those that wait already; ``new`` ones among themselves."""
        (self._new if new else self._kept)[waiting] = None
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._take_turns)

    def hold(self, waiting: Waiting) -> None:
        """Has it go on after ``HOLD_S``, or later where there are many."""
        self._held[waiting] = self._clock.seconds() + HOLD_S
        if self._release is None:
            self._release = self._clock.callLater(HOLD_S, self._release_some)

    def forget(self, waiting: Waiting) -> None:
        """It is gone, whether it waited or not."""
        self._new.pop(waiting, None)
        self._kept.pop(waiting, None)
        self._held.pop(waiting, None)
        if self._turn is not None and self._turn.active() and not self._new and not self._kept:
            self._turn.cancel()
            self._turn = None
        if self._release is not None and not self._held:
            self._release.cancel()
            self._release = None

    def _take_turns(self) -> None:
        count = min(AT_ONCE, len(self._new) + len(self._kept))
        for number in range(count):
            queue = self._new if self._new and (number % 2 == 0 or not self._kept) else self._kept
            if queue:  # one may have ended another
                queue.popitem(last=False)[0].go_on()
        self._left = AT_ONCE - count
        more = self._new or self._kept
        self._turn = self._clock.callLater(0, self._take_turns) if more else None

    def _release_some(self) -> None:
        self._release = None
        now = self._clock.seconds()
        for _ in range(RELEASED_AT_ONCE):
            if not self._held or next(iter(self._held.values())) > now:
                break
            self._held.popitem(last=False)[0].go_on()
        if self._held and self._release is None:
            due_s = next(iter(self._held.values())) - now
            self._release = self._clock.callLater(max(due_s, RELEASE_EVERY_S), self._release_some)
