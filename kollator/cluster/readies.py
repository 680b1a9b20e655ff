"""Carries out what the election says, in order: first to disk, then to the peers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.cluster.election import Election, ElectionFrame, Ready, Role

log = Logger("kollator:cluster")

READIES_MAX = 1_000
"""What may wait for a slow disk; after that frames are dropped, oldest first, which does no harm."""


class Standing(NamedTuple):
    """Role, term and leader that may be acted on and shown: what they rest on is on disk."""

    role: Role
    term: int
    leader: str | None


class _Waiting(NamedTuple):
    ready: Ready
    standing: Standing | None


class Readies:
    """The queue between an election and the world.

    ``persist`` writes term and vote to disk, ``send`` gives a frame to a peer's link, ``changed`` is called with
    the new standing when role, leader or term have changed and may be acted on.
    """

    def __init__(
        self,
        election: Election,
        *,
        persist: Callable[[int, str | None], Deferred[Any]],
        send: Callable[[str, ElectionFrame], object],
        changed: Callable[[Standing], object],
    ) -> None:
        self._election = election
        self._persist = persist
        self._send = send
        self._changed = changed
        self._queue: deque[_Waiting] = deque()
        self._busy = False
        self._unsaved = False  # a vote was dropped before it was on disk: the newest goes there before anything is sent
        self._untold = False  # and with it a change of role

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    def carry(self, ready: Ready) -> None:
        """Carries a ``Ready`` out as soon as those before it are. To be called with each, right after its making."""
        if not (ready.persist or ready.send or ready.changed):
            return
        self._queue.append(_Waiting(ready, self._standing() if ready.changed else None))
        if len(self._queue) > READIES_MAX:
            self._drop(self._queue.popleft())
        self._turn()

    def _standing(self) -> Standing:
        return Standing(self._election.role, self._election.term, self._election.leader)

    def _turn(self) -> None:
        while self._queue and not self._busy:
            waiting = self._queue.popleft()
            if waiting.ready.persist is None and not (self._unsaved or self._untold):
                self._release(waiting)
                continue
            if self._untold:
                waiting = waiting._replace(standing=self._standing())
            self._busy = True
            self._unsaved = self._untold = False
            # The newest vote: what is on disk may be ahead of what is sent, never behind it.
            self._persist(*self._election.vote).addCallbacks(
                self._persisted, self._failed, (waiting,), {}, (waiting,), {}
            ).addErrback(lambda failure: log.failure("the election could not go on", failure=failure))

    def _persisted(self, _: Any, waiting: _Waiting) -> None:
        self._busy = False
        self._release(waiting)
        self._turn()

    def _failed(self, failure: Failure, waiting: _Waiting) -> None:
        self._busy = False
        log.error("the vote could not be stored: {problem}", problem=failure.getErrorMessage())
        self._unsaved = True
        self._drop(waiting)
        self._turn()

    def _drop(self, waiting: _Waiting) -> None:
        self._unsaved = self._unsaved or waiting.ready.persist is not None
        self._untold = self._untold or waiting.standing is not None

    def _release(self, waiting: _Waiting) -> None:
        for peer, frame in waiting.ready.send:
            self._send(peer, frame)
        if waiting.standing is not None:
            self._changed(waiting.standing)
