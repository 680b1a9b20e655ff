"""The deep check: every so often a data channel to the next worker is really opened, by a process of its own.

The process is ``kollator.webrtc.probe``, which comes to this front as any client does. Two failures in a row take a
worker out with the reason ``webrtc``; checks of it go on, and the next success brings it back. What goes wrong on this
side of the worker (no way to the front, a probe that dies) counts against nobody.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

from twisted.application.service import MultiService
from twisted.logger import Logger

from kollator.children import ChildProcess, Command
from kollator.clock import Call
from kollator.observe.loops import Loop
from kollator.pool.checks import (
    CHECK_S,
    FAILURES,
    LINE_BYTES,
    PREPARE_S,
    BadLine,
    Check,
    CheckBook,
    Phase,
    Result,
    decode_result,
    encode,
)
from kollator.settings.table import TABLE
from kollator.state.rows import Unwell

log = Logger("kollator:pool")

SHOWN_BYTES = 200

PROBE = "kollator.webrtc.probe"

Outcome = Literal["ok", "failed", "aborted"]


class DeepCheck(MultiService):
    """The deep checks of one front, one at a time, every ``interval_s`` seconds; 0: none, and no process.

    ``url`` is where the probe finds this front's signaling, None for nowhere; ``workers`` are the ids of those held
    here that would take a session, or that are out for this check's verdict alone. ``unwell`` (with the reason and a
    sentence for the log) and ``well`` are told the verdicts, ``measured`` the seconds of each phase of a check that
    succeeded, ``checked`` what came of each check: ``ok``, ``failed``, or ``aborted`` when it says nothing of a worker.
    """

    def __init__(
        self,
        interval_s: float,
        reactor: Any,
        *,
        url: Callable[[], str | None],
        workers: Callable[[], Iterable[str]],
        unwell: Callable[[str, Unwell, str], object],
        well: Callable[[str, Unwell], object],
        measured: Callable[[Phase, float], object] = lambda phase, seconds: None,
        checked: Callable[[Outcome], object] = lambda outcome: None,
        loop_failed: Callable[[str], object] = lambda name: None,
        limit_s: float = CHECK_S,
    ) -> None:
        super().__init__()
        self._clock = reactor
        self._url = url
        self._workers = workers
        self._unwell = unwell
        self._well = well
        self._measured = measured
        self._checked = checked
        self._limit_s = limit_s
        self._book = CheckBook()
        self._serial = 0
        self._watch: Call | None = None
        """What kills a probe that is silent; None while no check is under way."""
        self._worker: str | None = None
        """Whose check is under way; None also when that one has left meanwhile."""
        self._complaint = ""
        self._probe = ChildProcess(
            "the probe of the deep check",
            reactor,
            self._command,
            log,
            said=self._said,
            line_bytes=LINE_BYTES + 1,
            ended=self._probe_ended,
        )
        if interval_s:
            self._probe.setServiceParent(self)
            Loop("deep", self.turn, interval_s, reactor, loop_failed).setServiceParent(self)

    def stopService(self) -> Any:
        """Ends the probe; fires when it is gone."""
        self._drop()
        return super().stopService()

    def turn(self) -> None:
        """Asks for the next check, unless there is one under way."""
        url = self._url()
        if self._watch is not None or url is None or not self._probe.alive:
            return
        self._worker = worker = self._book.next(self._workers())
        if worker is not None:
            self._serial += 1
            # Twice what the probe takes at most: it hangs then, or the machine does.
            self._watch = self._clock.callLater(2 * (PREPARE_S + self._limit_s), self._silent)
            self._probe.write(encode(Check(self._serial, worker, url, self._limit_s)))

    def forget(self, worker: str) -> None:
        """The worker left, or came anew: what was found about it before counts no more, nor what is being found."""
        self._book.forget(worker)
        if self._worker == worker:
            self._worker = None

    def _command(self) -> Command | None:
        if self._url() is None:
            log.warn("workers are not checked: LISTEN has no plain tcp: endpoint for that; set DEEP_HEALTH_URL")
            return None
        # The front's settings, its keys among them, are none of the probe's business.
        own = {setting.variable for setting in TABLE}
        environment = {name: value for name, value in os.environ.items() if name not in own}
        return Command([sys.executable, "-m", PROBE], environment)

    def _said(self, line: bytes) -> None:
        try:
            result = decode_result(line)
        except BadLine as problem:
            shown = line[:SHOWN_BYTES].decode("ascii", "backslashreplace")
            log.warn("the probe wrote a line that is ignored ({problem}): {line}", problem=str(problem), line=shown)
            return
        if self._watch is None or result.check != self._serial:
            return
        worker = self._worker
        self._drop()
        if worker is None or result.own:
            self._checked("aborted")
            if worker is not None:
                self._complain(worker, f"{result.phase}: {result.error}")
        else:
            self._complaint = ""
            self._judge(worker, result)

    def _judge(self, worker: str, result: Result) -> None:
        if result.phases is not None:
            self._checked("ok")
            for phase, seconds in result.phases.seconds():
                self._measured(phase, seconds)
            if self._book.passed(worker):
                self._well(worker, "webrtc")
            return
        self._checked("failed")
        said = f"no data channel to it could be opened ({result.phase}: {result.error})"
        if self._book.failed(worker):
            self._unwell(worker, "webrtc", f"{said}, {FAILURES} times in a row")
        else:
            log.info("worker {worker}: {said}", worker=worker, said=said)

    def _complain(self, worker: str, reason: str) -> None:
        if reason != self._complaint:  # once, not at every interval
            self._complaint = reason
            log.warn("worker {worker} could not be checked ({reason})", worker=worker, reason=reason)

    def _silent(self) -> None:
        self._watch = None  # it has just come to its end
        self._worker = None
        self._checked("aborted")
        log.warn("the probe of the deep check does not answer, and is killed")
        self._probe.kill()

    def _probe_ended(self) -> None:
        if self._watch is not None:
            self._checked("aborted")
        self._drop()

    def _drop(self) -> None:
        """No check is under way any more."""
        watch, self._watch, self._worker = self._watch, None, None
        if watch is not None:
            watch.cancel()
