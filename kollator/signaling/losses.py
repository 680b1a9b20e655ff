"""When the clients of lost workers are told: at once while they are few, spread and in slices when they are many. Pure.

All of them answer the news with an offer to another worker. Ten thousand offers in one moment would make the workers
that are left fall silent as well, and the telling alone would hold the front up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

from kollator.signaling.connection import Connection

FEW = 100
"""So many clients are told at once: four milliseconds' work, and no burst that matters to a worker, whose usual
capacity is a hundred sessions.
"""
PER_SECOND = 2_000
"""More than that are told at this pace, until the spread is at its longest: a fifth of what a front can tell."""
SPREAD_S = 1.0
"""The longest spread, in seconds: who waits longer finds out for itself that its worker does not answer."""
SLICE = 100
"""The most clients told in one turn: the same four milliseconds, and ten thousand a second, so that the longest spread
is kept for as many.
"""
SCAN = 1_000
"""The most clients looked at in one turn for whether a lost worker concerns them: a millisecond or two."""
TURN_S = 0.01
"""How often ``Switchboard.turn`` is to be called, in seconds."""

_RANDOM_BYTES = 4


class Search:
    """Finds the clients whom lost workers concern, ``SCAN`` of them a turn.

    There is one search at a time; what is lost meanwhile is searched for in the next one, all together.
    """

    def __init__(self) -> None:
        self._lost: frozenset[str] = frozenset()
        self._left: list[str] = []
        self._next: set[str] = set()

    def begin(self, workers: Collection[str]) -> None:
        """These workers are lost."""
        self._next.update(workers)

    def step(self, clients: Mapping[str, Connection]) -> list[str]:
        """Looks at some more of ``clients``; returns the ids of those that are concerned."""
        if not self._left:
            if not self._next:
                return []
            self._lost, self._next = frozenset(self._next), set()
            self._left = list(clients)
        some = self._left[-SCAN:]
        del self._left[-SCAN:]
        return [id_ for id_ in some if id_ in clients and concerned(clients[id_], self._lost)]


def concerned(client: Connection, lost: frozenset[str]) -> bool:
    """Whether a client was assigned to one of the lost workers, or talked to it."""
    return client.assigned in lost or (bool(client.talked) and not lost.isdisjoint(client.talked))


class Losses:
    """The clients that are to be told that a worker is lost, each at a random time of its own.

    Which workers those are is not kept: it is asked when the client's time has come, so that losses which overlap are
    told together and a worker that is back by then is no loss. ``random_bytes`` returns as many bytes as asked for.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._waiting: set[str] = set()
        """Each of them is in one of the lists below. Lists of ids give the garbage collector nothing to look at."""
        self._new: list[list[str]] = []
        """By the turn, counted from the next one, in which they are to be told."""
        self._later: dict[int, list[str]] = {}
        """By the turn, counted from the beginning of time."""
        self._due: deque[str] = deque()

    def __len__(self) -> int:
        """How many clients wait."""
        return len(self._waiting)

    def add(self, clients: Collection[str], present: Collection[str]) -> None:
        """Gives each of ``clients`` that does not wait yet its time, within a spread that grows with their number.

        ``present`` are all clients that are here, and no more than there are of those are kept waiting.
        """
        waiting = self._waiting
        new = [client for client in clients if client not in waiting]
        waiting.update(new)
        if len(waiting) > len(present):
            self._forget_all_but(present)
        turns = math.ceil(min(len(waiting) / PER_SECOND, SPREAD_S) / TURN_S)
        while len(self._new) < turns:
            self._new.append([])
        drawn = self._random_bytes(_RANDOM_BYTES * len(new))
        for at, client in enumerate(new):
            number = int.from_bytes(drawn[_RANDOM_BYTES * at : _RANDOM_BYTES * (at + 1)], "big")
            self._new[turns * number >> 8 * _RANDOM_BYTES].append(client)

    def due(self, now: float) -> Iterator[str]:
        """The clients whose time has come, ``SLICE`` of them at most, those who have waited longest first.

        Each is forgotten as it is handed out; those that are not asked for go on waiting.
        """
        if not self._waiting:
            return
        turn = int(now / TURN_S)
        for number, clients in enumerate(self._new, turn):
            self._later.setdefault(number, []).extend(clients)
        self._new.clear()
        for number in sorted(number for number in self._later if number <= turn):
            self._due.extend(self._later.pop(number))
        for _ in range(min(SLICE, len(self._due))):
            client = self._due.popleft()
            self._waiting.discard(client)
            yield client

    def _forget_all_but(self, present: Collection[str]) -> None:
        waiting = self._waiting
        waiting.intersection_update(present)
        self._new = [[client for client in clients if client in waiting] for clients in self._new]
        self._later = {
            turn: [client for client in clients if client in waiting] for turn, clients in self._later.items()
        }
        self._due = deque(client for client in self._due if client in waiting)
