"""The door of every listening endpoint: looks at the first request and hands the connection on.

A WebSocket upgrade goes straight to Autobahn, so a connection that lives for hours never pays for an HTTP request
object; everything else goes to twisted.web. What does not finish its first header in time is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from kollator.clock import Call, Clock

HEADER_BYTES = 16_384
"""The largest header of an upgrade request; more is answered 431 (RFC 6585 section 5)."""

PHRASES = {
    400: "Bad Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Refusal(NamedTuple):
    """Why an upgrade is answered by plain HTTP. ``retry_after_s`` of 0 means none is told."""

    status: int
    code: str
    message: str
    retry_after_s: int = 0


Admission = Callable[[str, Mapping[str, str]], Refusal | None]
"""(the transport's peer address, lower-case header names to values) to a refusal, or None."""


def answer(refusal: Refusal) -> bytes:
    """The whole HTTP answer to a refused upgrade; the connection is closed after it."""
    body = msgspec.json.encode({"error": {"code": refusal.code, "message": refusal.message}})
    lines = [
        f"HTTP/1.1 {refusal.status} {PHRASES[refusal.status]}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if refusal.retry_after_s:
        lines.append(f"Retry-After: {refusal.retry_after_s}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def parse_head(head: bytes) -> dict[str, str] | None:
    """The header fields of a request head (without its last empty line), names in lower case.

    Fields that come several times are joined by commas (RFC 9110 section 5.3). None when a line is no field.
    """
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        name = name.lower()
        value = value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def is_upgrade(fields: Mapping[str, str]) -> bool:
    """Whether a request asks for a WebSocket (RFC 6455 section 4.2.1)."""
    return "websocket" in fields.get("upgrade", "").lower()


def hand_over(transport: Any, old: Protocol, new: Any) -> bool:
    """Makes ``new`` the protocol of ``transport`` in place of ``old``. False: this transport does not let us."""
    for slot in ("wrappedProtocol", "protocol"):
        if getattr(transport, slot, None) is old:
            setattr(transport, slot, new)
            return True
    return False


class Door(Protocol):
    """One accepted connection whose kind is not known yet."""

    factory: DoorFactory
    transport: Any

    def __init__(self) -> None:
        self._head = b""
        self._timer: Call | None = None
        self._inner: Any = None

    def connectionMade(self) -> None:
        """Starts the clock of the first header."""
        self._timer = self.factory.clock.callLater(self.factory.header_timeout_s, self._too_slow)

    def dataReceived(self, data: bytes) -> None:
        """Collects until the kind is clear."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._head += data
        target = self._upgrade_target()
        if target is None:
            return
        site = self.factory.site
        if target == b"" and site is not None:
            self._become(site)
            return
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > HEADER_BYTES:
                self._refuse(Refusal(431, "too-large", f"a request header has {HEADER_BYTES} bytes at most"))
            return
        fields = parse_head(self._head[:end])
        if fields is None:
            self._refuse(Refusal(400, "bad-request", "a line of the header is not a field"))
        elif not is_upgrade(fields) and site is not None:
            self._become(site)
        else:
            host = getattr(self.transport.getPeer(), "host", "") or ""
            refusal = self.factory.admission(host, fields)
            if refusal is not None:
                self._refuse(refusal)
            else:
                self._become(self.factory.upgrades[target])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone before (or, where the transport could not be handed over, after) its kind was clear."""
        self._stop_timer()
        if self._inner is not None:
            self._inner.connectionLost(reason)

    def _upgrade_target(self) -> bytes | None:
        """The path that may be an upgrade, b"" for anything else, None while too little has come."""
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
        self._stop_timer()
        transport = self.transport
        protocol = factory.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.abortConnection()
            return
        head, self._head = self._head, b""
        if not hand_over(transport, self, protocol):
            self._inner = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(head)

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_timer()
        self._head = b""
        self._inner = Protocol()  # swallows what else comes
        self.transport.write(answer(refusal))
        self.transport.loseConnection()

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DoorFactory(Factory):
    """The doors of the listening endpoints, closed until ``open`` is called.

    ``upgrades`` maps the paths of WebSockets to their factories, ``site`` takes all other requests,
    ``admission`` says whether one more WebSocket is taken.
    """

    protocol: Any = Door
    noisy = False

    def __init__(self, *, clock: Clock, header_timeout_s: float) -> None:
        self.clock = clock
        self.header_timeout_s = header_timeout_s
        self.site: Any = None
        self.upgrades: dict[bytes, Any] = {}
        self.admission: Admission = lambda peer, fields: None

    def open(self, *, site: Any, upgrades: Mapping[bytes, Any], admission: Admission) -> None:
        """Lets connections in."""
        self.site = site
        self.upgrades = dict(upgrades)
        self.admission = admission
        site.doStart()
        for factory in self.upgrades.values():
            factory.doStart()

    def stopFactory(self) -> None:
        """Stops what is behind the doors, after the last endpoint was closed."""
        if self.site is not None:
            self.site.doStop()
        for factory in self.upgrades.values():
            factory.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        """A door for one accepted connection; none before ``open``."""
        if self.site is None:
            return None
        door = Door()
        door.factory = self
        return door
