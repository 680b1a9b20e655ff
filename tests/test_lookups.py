"""Lookups of names that cannot pile up."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from kollator.net.lookups import LOOKUPS_MAX, ReactorWithLookups, SharedLookups


class Names:
    """A name server that takes its time."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []
        self.broken = False

    def resolveHostName(self, receiver: Any, hostName: str, *others: Any) -> None:
        """Begins a lookup."""
        if self.broken:
            raise RuntimeError("no threads")
        self.asked.append((receiver, hostName))

    def answer(self, *addresses: str) -> None:
        """Ends the one that began first."""
        receiver, _ = self.asked.pop(0)
        receiver.resolutionBegan(None)
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 80))
        receiver.resolutionComplete()


class LookupsTests(SynchronousTestCase):
    """Endpoints that share their lookups."""

    def setUp(self) -> None:
        self.names = Names()
        self.memory = MemoryReactorClock()
        self.reactor: Any = ReactorWithLookups(self.memory, SharedLookups(self.names))

    def connect(self, name: str = "worker") -> Any:
        """Begins a connection to a name."""
        factory: Any = Factory.forProtocol(Protocol)
        return HostnameEndpoint(self.reactor, name, 80).connect(factory)

    def test_shared(self) -> None:
        """Without it a name server that hangs would be asked the same again and again, each in a thread of its own."""
        attempts = [self.connect(), self.connect(), self.connect("other")]
        self.assertEqual([name for _, name in self.names.asked], ["worker", "other"])
        attempts[1].cancel()
        self.failureResultOf(attempts[1])
        self.names.answer("192.0.2.1")
        self.assertEqual([client[0] for client in self.memory.tcpClients], ["192.0.2.1"])
        self.names.answer()
        self.failureResultOf(attempts[2], DNSLookupError)
        attempts[0].cancel()
        self.failureResultOf(attempts[0])
        self.connect().addErrback(lambda _: None)
        self.assertEqual(len(self.names.asked), 1, "asked anew: names get other addresses")

    def test_limits(self) -> None:
        """Without it the names, or those who wait for one, would pile up after all."""
        same = [self.connect() for _ in range(LOOKUPS_MAX + 1)]
        self.failureResultOf(same[-1], DNSLookupError)
        self.assertNoResult(same[-2])
        others = [self.connect(f"w{number}") for number in range(LOOKUPS_MAX)]
        self.failureResultOf(others[-1], DNSLookupError)
        self.assertNoResult(others[-2])
        self.assertEqual(len(self.names.asked), LOOKUPS_MAX)
        while self.names.asked:
            self.names.answer()
        for attempt in same[:-1] + others[:-1]:
            self.failureResultOf(attempt, DNSLookupError)

    def test_broken(self) -> None:
        """Without it a lookup that cannot even begin would be waited for for ever."""
        self.names.broken = True
        for _ in range(2):
            self.failureResultOf(self.connect(), DNSLookupError)
