"""What must not happen, whatever comes: an unhandled exception, a hang, a table that grows."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from twisted.logger import LogLevel, formatEvent, globalLogPublisher

BATCH_CPU_S = 120.0
"""The processor time that a batch may take: hundreds of times what it takes."""
_CONTAINERS = (dict, list, set, deque)
_LOOKED_INTO = 64
"""So many values of a container are looked into."""


class Broken(AssertionError):
    """An invariant does not hold."""


class Hang(BaseException):
    """A batch does not come to an end. No ``except Exception`` of the product takes it."""


class Watch:
    """Collects what is logged as a failure or an error, and what an interpreter cannot raise. A context manager."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._observer: Any = self._observe

    def __enter__(self) -> Watch:
        globalLogPublisher.addObserver(self._observer)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self._observer)
        sys.unraisablehook = self._hook

    def _observe(self, event: Mapping[str, Any]) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            self._problems.append(f"{formatEvent(dict(event))}\n{failure.getTraceback()}")
        elif event.get("log_level") in (LogLevel.error, LogLevel.critical):
            self._problems.append(formatEvent(dict(event)))

    def _unraisable(self, unraisable: Any) -> None:
        self._problems.append(f"unraisable: {unraisable.exc_value!r} in {unraisable.object!r}")

    def check(self) -> None:
        """Raises ``Broken`` when there was something since the last time."""
        problems, self._problems = self._problems, []
        if problems:
            raise Broken("\n".join(problems[:3]))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raises ``Hang`` in what runs longer than ``BATCH_CPU_S``; a slow machine is no hang."""
    cpu_s = BATCH_CPU_S
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"over {cpu_s:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def tables(root: object) -> dict[str, int]:
    """The sizes of all containers that the product's objects below ``root`` hold, by their path."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque([("", root)])
    while waiting:
        path, one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, _CONTAINERS):
            found[path] = len(one)
            values = one.values() if isinstance(one, dict) else one
            for number, inner in zip(range(_LOOKED_INTO), list(values), strict=False):
                waiting.append((f"{path}[{number}]", inner))
        elif one is root or _is_ours(type(one)):
            waiting.extend((f"{path}.{name}".lstrip("."), inner) for name, inner in _attributes(one))
    return found


def _is_ours(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == "kollator" for base in kind.__mro__[:3])


def _attributes(one: object) -> Iterator[tuple[str, object]]:
    yield from list(getattr(one, "__dict__", {}).items())
    for base in type(one).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            with contextlib.suppress(AttributeError):
                yield name, getattr(one, mangled)


def grown(before: Mapping[str, int], after: Mapping[str, int], slack: int, allowed: Mapping[str, int]) -> list[str]:
    """What has over ``slack`` entries more than before, but for paths that begin as ``allowed`` says, up to its cap."""
    found = []
    for path, size in after.items():
        cap = next((cap for start, cap in allowed.items() if path.startswith(start)), before.get(path, 0) + slack)
        if size > cap:
            found.append(f"{path} has {size} entries, {cap} were expected at most")
    return found
