"""The clock that the adapters are handed: the reactor in a front, ``task.Clock`` in the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Call(Protocol):
    """A call that is to come (``IDelayedCall``)."""

    def cancel(self) -> None:
        """Calls it off; an error when it is over."""

    def active(self) -> bool:
        """Whether it is still to come."""


class Clock(Protocol):
    """Time as Twisted's reactors tell it (``IReactorTime``), for type checkers that know no zope interfaces."""

    def seconds(self) -> float:
        """Seconds of a clock that suits differences."""

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Calls ``call`` after ``delay`` seconds."""
