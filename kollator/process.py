"""The process of a front: garbage collection, open files, and the reactor's dispatch, set for many connections."""

from __future__ import annotations

import gc
import resource
import select
import sys
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger
from twisted.python import log as legacy_log

from kollator.compiled import speedups
from kollator.net.fasttransport import turn

log = Logger("kollator:front")

THRESHOLDS = (5_000, 10, 10)
"""Python's own are 700, 10, 10: far too often for a process where almost everything lives for hours, and reference
counts free nearly all that does not."""
FILES_BESIDE = 256
"""Open files that are not connections of clients: the database, logs, links to peers, the reactor's own."""
EVENTS = 128
"""Events that are taken from epoll at once: a bound on what is done between two looks at the clock."""
ENDINGS = 32
"""Ends of connections that are told in one turn, or as many as there were other events: for a signaling connection that
takes a tenth of a millisecond, and when a network breaks thousands end in one moment. Others are heard in between.
"""
_WAIT_FOR_EVER = -1.0


def tune(max_connections: int, reactor: Any = None) -> None:
    """What a front does when it has started, before clients come.

    Everything that is there by now stays for the life of the process: the garbage collector is not to look at it
    again. ``max_connections`` is what the settings allow; when the open files do not, that is said. With a ``reactor``
    its dispatch is made lean.
    """
    files = raise_open_files()
    if files < max_connections + FILES_BESIDE:
        log.warn(
            "MAX_CONNECTIONS is {connections}, but this process may have {files} open files only; "
            "raise the limit of the service (LimitNOFILE, ulimit -n), or lower MAX_CONNECTIONS",
            connections=max_connections,
            files=files,
        )
    if reactor is not None:
        dispatch_lean(reactor)
        if speedups is None:
            log.info(
                "nothing is compiled here, so a message takes half as much CPU time again; "
                "install a C compiler and Python's headers, then the front once more"
            )
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def raise_open_files() -> int:
    """Raises the soft limit of open files to the hard one; returns how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return sys.maxsize if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as problem:
        log.warn("the limit of open files stays at {soft}: {problem}", soft=soft, problem=str(problem))
        return sys.maxsize if soft == resource.RLIM_INFINITY else soft
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def dispatch_lean(reactor: Any) -> bool:
    """Has an epoll reactor hand on its events without a logging context for each.

    Twisted's own makes one, and looks at the file descriptor once more; together they cost as much as reading a
    message. Returns False for a reactor of another kind, which is left as it is.
    """
    try:
        from twisted.internet.epollreactor import EPollReactor
    except ImportError:  # no epoll here
        return False
    if type(reactor) is not EPollReactor:
        log.debug("{reactor} keeps its own dispatch", reactor=type(reactor).__name__)
        return False
    running: Any = reactor
    running.doIteration = lean_iteration(reactor)
    return True


class Endings:
    """Connections of a reactor that have ended: ``ENDINGS`` are told so in a turn, the others in the turns to come.

    Those that wait are not listened to any more. All that is done of them at once is to find out that they have ended,
    and nobody else's events wait for what follows from it.
    """

    def __init__(self, reactor: Any) -> None:
        self._disconnect = reactor._disconnectSelectable
        self._remove_reader, self._remove_writer = reactor.removeReader, reactor.removeWriter
        self._waiting: dict[Any, tuple[Any, bool]] = {}
        self._left = self._found = 0
        reactor._disconnectSelectable = self.disconnect  # which its ``_doReadOrWrite`` calls

    def disconnect(self, selectable: Any, why: Any, in_read: bool) -> None:
        """A connection has ended; in place of the reactor's ``_disconnectSelectable``."""
        self._found += 1
        if self._left > 0:
            self._left -= 1
            self._disconnect(selectable, why, in_read)
        else:
            self._remove_reader(selectable)
            self._remove_writer(selectable)
            self._waiting.setdefault(selectable, (why, in_read))

    def turn(self, events: int) -> bool:
        """A turn begins, after one with so many events: tells some of those that wait. Whether more are left."""
        # As many as there were other events, or connections that come and go in great number would pile up.
        self._left, self._found = max(ENDINGS, events - self._found), 0
        while self._waiting and self._left > 0:
            selectable = next(iter(self._waiting))
            why, in_read = self._waiting.pop(selectable)
            try:
                if selectable.fileno() != -1:  # somebody may have closed it meanwhile
                    self._left -= 1
                    self._disconnect(selectable, why, in_read)
            except BaseException:
                legacy_log.err()
        return bool(self._waiting)


def lean_iteration(reactor: Any) -> Callable[[float | None], None]:
    """``doIteration`` of an epoll reactor: waits for events, and hands them on."""
    poll = reactor._poller.poll
    selectables = reactor._selectables
    endings = Endings(reactor)
    readable, read_or_write, disconnect = select.EPOLLIN, reactor._doReadOrWrite, endings.disconnect
    events: list[tuple[int, int]] = []

    def iterate(timeout: float | None) -> None:
        nonlocal events
        if endings.turn(len(events)):
            timeout = 0.0
        try:
            events = poll(_WAIT_FOR_EVER if timeout is None else timeout, EVENTS)
        except InterruptedError:
            events = []
            return
        turn.running = True
        try:
            for descriptor, event in events:
                selectable = selectables.get(descriptor)
                if selectable is None:  # closed by one of the events before
                    continue
                try:
                    if event != readable:
                        read_or_write(selectable, descriptor, event)
                        continue
                    why = selectable.doRead()
                except BaseException:
                    legacy_log.err()
                    why = sys.exc_info()[1]
                    disconnect(selectable, why, False)
                else:
                    if why:
                        disconnect(selectable, why, True)
        finally:
            turn.end()

    return iterate
