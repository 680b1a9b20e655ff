"""Periodic tasks that survive their own mistakes: a LoopingCall that raises would stop for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kollator.clock import Clock

log = Logger("kollator:observe")


class Loop(Service):
    """Calls ``turn`` every ``interval_s`` seconds while it runs; what ``turn`` raises is logged and counted.

    ``failed`` is called with the loop's name at each failure.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], object],
        interval_s: float,
        clock: Clock,
        failed: Callable[[str], object] = lambda name: None,
    ) -> None:
        self.name: Any = name
        self._turn = turn
        self._interval_s = interval_s
        self._failed = failed
        call: Any = LoopingCall(self._guarded)
        call.clock = clock
        self._call = call

    def startService(self) -> None:
        """Begins, one interval from now."""
        super().startService()
        self._call.start(self._interval_s, now=False)

    def stopService(self) -> None:
        """Ends."""
        super().stopService()
        if self._call.running:  # not when the service never ran
            self._call.stop()

    def _guarded(self) -> None:
        try:
            self._turn()
        except Exception:
            log.failure("a turn of the loop {name} failed", name=self.name)
            self._failed(self.name)
