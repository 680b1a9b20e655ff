"""Lookups of host names that cannot pile up, for connections that are attempted again and again."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver, IResolutionReceiver
from twisted.logger import Logger
from zope.interface import implementer

from kollator.text import one_line

log = Logger("kollator:front")

LOOKUPS_MAX = 64
"""Names that are looked up at a time, and how many may wait for the same one."""


@implementer(IHostnameResolver)
class SharedLookups:
    """Name lookups, at most one of a name under way.

    They run in threads and cannot be broken off: with a name server that hangs, each new probe would leave one more
    behind. Who asks while there are too many is told that there is no such name.
    """

    def __init__(self, resolver: Any) -> None:
        self._resolver = resolver
        self._asking: dict[tuple[str, int], list[Any]] = {}

    def resolveHostName(
        self,
        receiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        """As ``IHostnameResolver`` has it."""
        receiver.resolutionBegan(None)
        key = (hostName, portNumber)
        waiting = self._asking.get(key)
        if waiting is None and len(self._asking) < LOOKUPS_MAX:
            self._asking[key] = [receiver]
            answers = _Answers(self, key)
            try:
                self._resolver.resolveHostName(answers, hostName, portNumber, addressTypes, transportSemantics)
            except Exception as problem:
                log.warn("{name} cannot be looked up: {problem}", name=hostName, problem=one_line(problem))
                self.answered(key, [])
        elif waiting is not None and len(waiting) < LOOKUPS_MAX:
            waiting.append(receiver)
        else:
            receiver.resolutionComplete()
        return None

    def answered(self, key: tuple[str, int], addresses: list[Any]) -> None:
        """A lookup is over."""
        for receiver in self._asking.pop(key, ()):
            for address in addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()


@implementer(IResolutionReceiver)
class _Answers:
    def __init__(self, lookups: SharedLookups, key: tuple[str, int]) -> None:
        self._lookups = lookups
        self._key = key
        self._addresses: list[Any] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Nothing is to be done."""

    def addressResolved(self, address: Any) -> None:
        """One of them."""
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        """That was all."""
        self._lookups.answered(self._key, self._addresses)


@implementer(IReactorPluggableNameResolver)
class ReactorWithLookups:
    """The reactor, with these lookups in place of its own."""

    def __init__(self, reactor: Any, lookups: SharedLookups) -> None:
        self._reactor = reactor
        self.nameResolver = lookups

    def installNameResolver(self, resolver: Any) -> None:
        """Not here."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
