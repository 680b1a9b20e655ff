"""Carries out what the election says, in order: first to disk, then to the peers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.cluster.election import Election, ElectionFrame, Ready

log = Logger("kollator:cluster")

READIES_MAX = 1_000
"""What may wait for a slow disk; after that frames are dropped, oldest first, which does no harm."""


class Readies:
    """The queue between an election and the world.

    ``persist`` writes term and vote to disk, ``send`` gives a frame to a peer's link, ``changed`` is called when
    role, leader or term have changed and may be acted on.
    """

    def __init__(
        self,
        election: Election,
        *,
        persist: Callable[[int, str | None], Deferred[Any]],
        send: Callable[[str, ElectionFrame], object],
        changed: Callable[[], object],
    ) -> None:
        self._election = election
        self._persist = persist
        self._send = send
        self._changed = changed
        self._queue: deque[Ready] = deque()
        self._busy = False
        self._owed = False

    def carry(self, ready: Ready) -> None:
        """Carries a ``Ready`` out as soon as those before it are."""
        if not (ready.persist or ready.send or ready.changed):
            return
        self._queue.append(ready)
        if len(self._queue) > READIES_MAX:
            dropped = self._queue.popleft()
            self._owed = self._owed or dropped.persist is not None
        self._turn()

    def _turn(self) -> None:
        while self._queue and not self._busy:
            ready = self._queue[0]
            if ready.persist is None and not self._owed:
                self._queue.popleft()
                self._release(ready)
                continue
            self._busy = True
            # The newest vote: what is on disk may be ahead of what is sent, never behind it.
            self._persist(*self._election.vote).addCallbacks(self._persisted, self._failed).addErrback(
                lambda failure: log.failure("the election could not go on", failure=failure)
            )

    def _persisted(self, _: Any) -> None:
        self._busy = self._owed = False
        self._release(self._queue.popleft())
        self._turn()

    def _failed(self, failure: Failure) -> None:
        self._busy = False
        self._owed = True
        ready = self._queue.popleft()
        log.error("the vote could not be stored: {problem}", problem=failure.getErrorMessage())
        if ready.changed and not self._queue:
            self._queue.append(Ready(changed=True))

    def _release(self, ready: Ready) -> None:
        for peer, frame in ready.send:
            self._send(peer, frame)
        if ready.changed:
            self._changed()
