"""Files that are read again while the front runs: when they change, and on SIGHUP."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.logger import Logger

from kollator.observe.loops import Loop

log = Logger("kollator:front")

INTERVAL_S = 1.0
"""How often files are looked at."""

Reload = Callable[[], object]
"""Reads something again; may return a Deferred that fires when that is done."""


class _Watched:
    def __init__(self, path: str, call: Reload) -> None:
        self.path = os.path.abspath(path)  # a daemon may change its folder
        self.call = call
        self.mark = mark(self.path)


class Reloads(MultiService):
    """Calls the registered reloaders. One that raises, or fails, is logged and does not stop the others.

    A reloader runs once at a time; asked again meanwhile, it runs once more when it is done. ``failed`` is called
    with the name of the loop when looking itself fails.
    """

    def __init__(
        self, reactor: Any, interval_s: float = INTERVAL_S, failed: Callable[[str], object] = lambda name: None
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._watched: list[_Watched] = []
        self._on_hangup: list[Reload] = []
        self._running: dict[Reload, Deferred[None]] = {}
        self._again: set[Reload] = set()
        self._previous: Any = None
        Loop("reload", self._look, interval_s, reactor, failed).setServiceParent(self)

    def watch(self, path: str, call: Reload) -> None:
        """From now on ``call`` is called when the file at ``path`` changes, appears or is gone, and on SIGHUP.

        To miss no change, watch first and read then. One reloader of several files is called once for all of them.
        """
        self._watched.append(_Watched(path, call))

    def on_hangup(self, call: Reload) -> None:
        """``call`` is called on SIGHUP."""
        self._on_hangup.append(call)

    def startService(self) -> None:
        """Takes SIGHUP over and begins to look."""
        super().startService()
        self._previous = signal.signal(signal.SIGHUP, self._signalled)

    def stopService(self) -> Deferred[Any]:
        """Gives SIGHUP back; fires when no reloader is under way any more."""
        if self.running and signal.getsignal(signal.SIGHUP) == self._signalled:
            signal.signal(signal.SIGHUP, self._previous or signal.SIG_DFL)
        self._again.clear()
        return DeferredList([maybeDeferred(super().stopService), *self._running.values()])

    def _signalled(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._hung_up)

    def _hung_up(self) -> None:
        if self.running:
            log.info("SIGHUP: files are read again")
            for watched in self._watched:
                watched.mark = mark(watched.path)
            self._run_all([*(watched.call for watched in self._watched), *self._on_hangup])

    def _look(self) -> None:
        changed = []
        for watched in self._watched:
            found = mark(watched.path)
            if found != watched.mark:
                watched.mark = found
                changed.append(watched.call)
        self._run_all(changed)

    def _run_all(self, calls: Iterable[Reload]) -> None:
        for call in dict.fromkeys(calls):
            self._run(call)

    def _run(self, call: Reload) -> None:
        if call in self._running:
            self._again.add(call)
            return
        over = self._running[call] = Deferred()
        done = maybeDeferred(call)
        done.addErrback(lambda failure: log.failure("something could not be read again", failure=failure))
        done.addCallback(lambda _: self._ran(call, over))

    def _ran(self, call: Reload, over: Deferred[None]) -> None:
        del self._running[call]
        if call in self._again:
            self._again.discard(call)
            self._run(call)
        over.callback(None)


def mark(path: str) -> tuple[int, int, int] | None:
    """What tells one state of a file from another: time of change in ns, size in bytes, inode; None: it is not there.

    A file that was renamed into place has another inode.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
