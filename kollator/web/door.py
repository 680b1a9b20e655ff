"""The door of every listening endpoint: looks at the first request and hands the connection on.

A WebSocket upgrade goes straight to Autobahn, so a connection that lives for hours never pays for an HTTP request
object; everything else goes to twisted.web. What does not finish its first header in time is dropped, a TLS handshake
and the PROXY protocol's header before it included.

Each connection has a place from its first moment to its end, or until the signaling counts it. Where there is none
left it is aborted without a word: an answer, and the wait for the peer to read it, would cost more than the attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.python.failure import Failure

from kollator.clock import Call, Clock
from kollator.deadlines import Deadlines
from kollator.guard.places import Place, Places
from kollator.net.fasttransport import FastServer
from kollator.web.refusal import LastWord, Refusal, hand_over

HEADER_BYTES = 16_384
"""The largest header of an upgrade request; more is answered 431 (RFC 6585 section 5)."""
ADDRESS_S = 1.0
"""When a connection that came over the PROXY protocol and said nothing is looked at again: the header that names its
address comes first, but nobody tells of it."""
NO_LIMIT = 1 << 62

Admission = Callable[[str, Mapping[str, str]], Refusal | None]
"""(the transport's peer address, lower-case header names to values) to a refusal, or None."""


def parse_head(head: bytes) -> dict[str, str] | None:
    """The header fields of a request head (without its last empty line), names in lower case.

    Fields that come several times are joined by commas (RFC 9110 section 5.3). None when a line is no field.
    """
    found = []
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        found.append((name, value))
    return join_fields(found)


def join_fields(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names and values as they came to one value for each name, in lower case."""
    fields: dict[str, str] = {}
    for name, value in found:
        name, value = name.lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def is_upgrade(fields: Mapping[str, str]) -> bool:
    """Whether a request asks for a WebSocket (RFC 6455 section 4.2.1)."""
    return "websocket" in fields.get("upgrade", "").lower()


def peer_host(transport: Any) -> str:
    """The address at the other end of a connection; empty where there is none, as on a UNIX socket."""
    if type(transport) is FastServer:  # which has it, and would make an object of it first
        return transport.hostname
    return getattr(transport.getPeer(), "host", None) or ""


def address_to_come(transport: Any) -> bool:
    """Whether a header of the PROXY protocol is to name the peer of a connection that was just accepted."""
    while transport is not None:
        if isinstance(transport, HAProxyProtocolWrapper):
            return True
        transport = getattr(transport, "transport", None)  # below TLS
    return False


class Farewell(LastWord):
    """A last word that keeps the place of its connection until the end."""

    place: Place | None = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gives the place back."""
        super().connectionLost(reason)
        if self.place is not None:
            self.place.leave()


class Door(Protocol):
    """One accepted connection whose kind is not known yet."""

    factory: DoorFactory
    transport: Any

    def __init__(self) -> None:
        self._head = b""
        self._timer: Call | None = None
        self._place: Place | None = None
        self._nameless = False
        """A proxy has yet to tell the address of the peer."""
        self._peer = ""

    def connectionMade(self) -> None:
        """Starts the clock of the first header; before the door is open, there is nothing to wait for."""
        if self.factory.site is None:
            self.transport.abortConnection()
            return
        self._peer = peer_host(self.transport)
        self._nameless = address_to_come(self.transport)
        self._place = self.factory.places.take(None if self._nameless else self._peer)
        if self._place is None:
            self.transport.abortConnection()
        elif self._nameless:
            self._timer = self.factory.clock.callLater(self._look_after_s, self._look)
        else:
            self.factory.waiting.start(self, self.factory.header_timeout_s)

    def dataReceived(self, data: bytes) -> None:
        """Collects until the kind is clear."""
        if self._place is None or (self._nameless and not self._named()):
            return
        self._head += data
        path = self._upgrade_path()
        if path is None:
            return
        if not path:
            self._become(self.factory.site)
            return
        end = self._head.find(b"\r\n\r\n", 0, HEADER_BYTES + 4)
        if end < 0:
            if len(self._head) >= HEADER_BYTES + 4:
                self._refuse(Refusal(431, "too-large", f"a request header has {HEADER_BYTES} bytes at most"))
            return
        fields = parse_head(self._head[:end])
        if fields is None:
            self._refuse(Refusal(400, "bad-request", "a line of the header is not a field"))
        elif not is_upgrade(fields):
            self._become(self.factory.site)
        else:
            refusal = self.factory.admission(self._peer, fields)
            if refusal is not None:
                self._say(refusal)
            else:
                self._become(self.factory.upgrades[path])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone before its kind was clear."""
        self._stop_timer()
        if self._place is not None:
            self._place.leave()

    @property
    def _look_after_s(self) -> float:
        return min(ADDRESS_S, self.factory.header_timeout_s)

    def _look(self) -> None:
        left_s = self.factory.header_timeout_s - self._look_after_s
        self._timer = self.factory.clock.callLater(left_s, self.too_slow)
        if peer_host(self.transport) != self._peer:
            self._named()

    def _named(self) -> bool:
        """The address is known. False: it has no place left."""
        self._nameless = False
        self._peer = peer_host(self.transport)
        if self._place is None or self._place.named(self._peer):
            return True
        self._place = None
        self._stop_timer()
        self.transport.abortConnection()
        return False

    def _upgrade_path(self) -> bytes | None:
        """The path of an upgrade that this may be, b"" when it is none, None while too little has come."""
        undecided = False
        for path in self.factory.upgrades:
            start = b"GET " + path
            if self._head.startswith(start):
                following = self._head[len(start) : len(start) + 1]
                if following in (b" ", b"?"):
                    return path
                undecided = undecided or following == b""
            elif start.startswith(self._head):
                undecided = True
        return None if undecided else b""

    def _become(self, factory: Any) -> None:
        protocol = factory.buildProtocol(self.transport.getPeer())
        if protocol is None:
            self.transport.abortConnection()
            return
        self._make_way(protocol)
        protocol.dataReceived(self._head)

    def _refuse(self, refusal: Refusal) -> None:
        self.factory.refused("header")
        self._say(refusal)

    def _say(self, refusal: Refusal) -> None:
        self._make_way(Farewell(refusal, self.factory.clock))

    def _make_way(self, protocol: Any) -> None:
        self._stop_timer()
        place, self._place = self._place, None
        pass_on(place, protocol)
        hand_over(self.transport, self, protocol)
        protocol.makeConnection(self.transport)

    def too_slow(self) -> None:
        """The first header did not come in time."""
        self._timer = None
        if self._head:
            self._refuse(Refusal(408, "too-slow", "the request's header did not come in time"))
        else:
            self.transport.abortConnection()

    def _stop_timer(self) -> None:
        self.factory.waiting.stop(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def pass_on(place: Place | None, protocol: Any) -> None:
    """Leaves a connection's place to its next protocol; one that does not know of places is counted elsewhere."""
    if hasattr(protocol, "place"):
        protocol.place = place
    elif place is not None:
        place.leave()


class DoorFactory(Factory):
    """The doors of the listening endpoints, closed until ``open`` is called.

    ``upgrades`` maps the paths of WebSockets to their factories, ``site`` takes all other requests,
    ``admission`` says whether one more WebSocket is taken, ``places`` are for the connections that are none, or not
    yet. ``refused`` is told of each connection that is refused for its header.
    """

    protocol: Any = Door
    noisy = False

    def __init__(
        self, *, clock: Clock, header_timeout_s: float, refused: Callable[[str], object] = lambda reason: None
    ) -> None:
        self.clock = clock
        self.header_timeout_s = header_timeout_s
        self.refused = refused
        self.site: Any = None
        self.upgrades: dict[bytes, Any] = {}
        self.waiting: Deadlines[Door] = Deadlines(clock, lambda door: door.too_slow())
        """The connections whose first header has not come."""
        self.admission: Admission = lambda peer, fields: None
        self.places = Places(NO_LIMIT, NO_LIMIT)

    def open(
        self, *, site: Any, upgrades: Mapping[bytes, Any], admission: Admission, places: Places | None = None
    ) -> None:
        """Lets connections in."""
        if places is not None:
            self.places = places
        self.site = site
        self.upgrades = dict(upgrades)
        self.admission = admission
        site.doStart()
        for factory in self.upgrades.values():
            factory.doStart()

    def stopFactory(self) -> None:
        """Stops what is behind the doors, after the last endpoint was closed."""
        self.waiting.close()
        if self.site is not None:
            self.site.doStop()
        for factory in self.upgrades.values():
            factory.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        """A door for one accepted connection."""
        return super().buildProtocol(addr)
