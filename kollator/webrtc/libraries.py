"""aiortc and aioice in this process: what they say goes to Twisted's log, what they leave behind is ended.

They work with tasks that nobody waits for. A peer that breaks off or sends nonsense makes such a task fail,
sometimes with an assertion; the session then ends by itself, so that is no error of ours.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

TASKS_TIMEOUT_S = 2.0
_LIBRARIES = ("aiortc", "aioice")

log = Logger(namespace="kollator:webrtc")


def listen(loop: asyncio.AbstractEventLoop) -> None:
    """Takes over what the libraries log, from warnings on, and what tasks end with that nobody waits for."""
    loop.set_exception_handler(task_failed)
    for name in (*_LIBRARIES, "asyncio"):
        logger = logging.getLogger(name)
        # Below this level aiortc logs session descriptions.
        logger.setLevel(logging.WARNING)
        logger.handlers = [_Forwarding()]
        logger.propagate = False


async def end_tasks() -> None:
    """Ends what is left running, so that the process does not stop in the middle of it."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=TASKS_TIMEOUT_S)


def task_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler. What came out of a library alone is one line, ours is an error."""
    problem = context.get("exception")
    if not isinstance(problem, BaseException):
        log.warn("asyncio: {text}", text=str(context.get("message"))[:200])
        return
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(problem.__traceback__)]
    ours = any(name.startswith("kollator") for name in frames)
    if not ours and any(name.startswith(_LIBRARIES) for name in frames):
        log.info("a peer connection broke off: {kind}", kind=type(problem).__name__)
    else:
        failure = Failure(problem, type(problem), problem.__traceback__)  # type: ignore[no-untyped-call]
        log.failure("a task failed", failure)


class _Forwarding(logging.Handler):
    """One line in Twisted's log for what a library warns of, which may be a whole traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().strip().splitlines() or [""]
        log.info("{library}: {text}", library=record.name, text=lines[-1][:200])
