"""``WS /worker-sync``: the byte stream of a link in binary WebSocket messages, whose boundaries mean nothing.

This is Autobahn's wrapping of a stream protocol in a WebSocket (``WrappingWebSocketServerFactory``, ``-Client-``)
with these of its habits changed:

* It collects whole messages. Here each piece is handed on as it comes, so that a stranger can make a front keep no
  more than over TCP.
* It offers base64 in text messages, and compression. Here there is neither.
* ``write`` raises once the WebSocket closes. A transport must swallow what comes too late.
* It has no ``abortConnection``, and ``loseConnection`` raises before the WebSocket is open.
* ``connectionLost`` gets ``None`` for a reason, ``dataReceived`` is called after ``loseConnection``, and a factory
  that builds nothing ends in an ``AttributeError``.
* Its time-outs run on the reactor that txaio has chosen, and some outlive the connection. A link has its own.
* An answer that is not UTF-8 raises in the client's ``dataReceived``.
* What a peer breaks is logged as a warning each time. A link counts it, and says it so often as is good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from autobahn.twisted.websocket import (
    WrappingWebSocketAdapter,
    WrappingWebSocketClientFactory,
    WrappingWebSocketClientProtocol,
    WrappingWebSocketServerFactory,
    WrappingWebSocketServerProtocol,
)
from autobahn.websocket.protocol import WebSocketProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, clientFromString, wrapClientTLS
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kollator.cluster.link import PeerLink, TurnedAway, is_tls_failure

log = Logger("kollator:cluster")

PATH = "/worker-sync"
SUBPROTOCOL = "binary"
"""Websockify's name for a byte stream; it need not be offered."""
MESSAGE_BYTES = 1_048_576
"""The largest message that is taken. What is sent is cut into ``SENT_BYTES``."""
SENT_BYTES = 65_536
HEADER_BYTES = 16_384
"""The largest header of a request or an answer."""

_ERRORS = {403: "forbidden", 426: "upgrade-required", 503: "try-again-later"}


class PeerLog:
    """Autobahn's log. What a peer can bring about is for debugging: nobody fills the log from outside."""

    def debug(self, text: str, **values: object) -> None:
        """Nothing: Autobahn's own debug events come with every frame."""

    def info(self, text: str, **values: object) -> None:
        """A debug event."""
        log.debug(text, **values)

    warn = error = info


class _Stream(WrappingWebSocketAdapter, WebSocketProtocol):  # type: ignore[misc]
    """Either end: a WebSocket below, a link above, for which it is the transport."""

    log: Any = PeerLog()
    transport: Any
    state: Any
    data: bytes
    _proto: PeerLink
    _tls_failure: Failure | None = None

    # -- below: Autobahn's hooks --------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Begins the WebSocket's handshake. Autobahn's own looks up TLS details that some transports lack."""
        self.peer = getattr(self.transport.getPeer(), "host", "") or ""
        self._connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remembers a failed TLS handshake, of which Autobahn would hand on no more than the text."""
        if is_tls_failure(reason):
            self._tls_failure = reason
        super().connectionLost(reason)  # type: ignore[misc]

    def dataReceived(self, data: bytes) -> None:
        """Parses what has come; nothing once the link is over, which Autobahn would keep."""
        if self.state == self.STATE_CLOSED:
            return
        try:
            self._dataReceived(data)
        except Exception as problem:  # it decodes an answer without asking whether it is UTF-8
            self._fail_connection(0, _excerpt(str(problem)))
        if self.state == self.STATE_CONNECTING and len(self.data) > HEADER_BYTES:
            self._fail_connection(0, "the header is too large")

    def _onOpen(self) -> None:
        self._binaryMode = True
        if self._proto.end is not None:
            self.abortConnection()
        else:
            self._proto.makeConnection(self)

    def onMessageBegin(self, isBinary: bool) -> None:
        """Text is refused at its first frame."""
        self.message_data_total_length = 0
        if not isBinary:
            self._fail_connection(self.CLOSE_STATUS_CODE_UNSUPPORTED_DATA, "binary messages only")

    def onMessageFrameBegin(self, length: int) -> None:
        """A message over the limit is refused at the header of the frame that takes it there."""
        self.message_data_total_length += length
        if self.message_data_total_length > MESSAGE_BYTES:
            self._fail_connection(self.CLOSE_STATUS_CODE_MESSAGE_TOO_BIG, "a message is too large")

    def onMessageFrameData(self, payload: bytes) -> None:
        """A piece of the stream."""
        if payload and self.state == self.STATE_OPEN:
            self._proto.dataReceived(payload)

    def onMessageFrameEnd(self) -> None:
        """Nothing: a frame's end has no meaning."""

    def onMessageEnd(self) -> None:
        """Nothing: a message's end has no meaning."""

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The TCP connection is over."""
        if self._tls_failure is not None:
            self._proto.connectionLost(self._tls_failure)
        elif wasClean:
            self._proto.connectionLost(Failure(ConnectionDone()))
        else:
            self._proto.connectionLost(Failure(ConnectionLost(reason or "")))

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        # Autobahn's hook for whatever breaks RFC 6455 once the WebSocket is open.
        self._proto.abort("websocket", reason)

    # -- above: ITransport for the link -------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Sends a piece of the stream, or swallows it when it comes too late."""
        for start in range(0, len(data), SENT_BYTES):
            if self.state == self.STATE_OPEN:
                self.sendMessage(data[start : start + SENT_BYTES], isBinary=True)

    def loseConnection(self) -> None:
        """Closes once everything is written."""
        if self.state == self.STATE_OPEN:
            self.sendClose()
        elif self.state == self.STATE_CONNECTING:
            self.abortConnection()

    def abortConnection(self) -> None:
        """Closes at once."""
        self.wasNotCleanReason = "aborted"
        if self.state == self.STATE_CLOSED:
            self.transport.abortConnection()  # it was to be closed, and hangs
        else:
            self.dropConnection(abort=True)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """As TCP's."""
        self.transport.setTcpNoDelay(enabled)


class LinkSource(Protocol):
    """Where the links come from: ``accepting.Acceptor``."""

    def link(self, addr: Any) -> PeerLink | None:
        """A link, or None when the address is not listened to."""

    def moved(self, link: PeerLink, address: str) -> bool:
        """A proxy told the address of a link; False: that one is not listened to."""


class WorkerSyncProtocol(_Stream, WrappingWebSocketServerProtocol):  # type: ignore[misc]
    """The end that was dialled."""

    factory: WorkerSyncFactory

    def processHandshake(self) -> None:
        """Parses the request, but for a browser's, which tells an Origin.

        And but for one that Autobahn would split into other lines than a proxy in front did.
        """
        head, end, _ = self.data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value for name, _, value in (line.partition(":") for line in lines[1:])}
        origin = fields.get("origin", fields.get("sec-websocket-origin"))
        if not end:
            return
        if lines != head.decode("latin-1").splitlines():
            self.failHandshake("a line of the header ends in its middle")
        elif origin is not None:
            self._proto.fail("origin", _excerpt(origin.strip()))
            self.failHandshake("not for browsers", ConnectionDeny.FORBIDDEN)
        else:
            super().processHandshake()

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Refuses an address that failed a moment ago."""
        host = getattr(self.transport.getPeer(), "host", "") or ""
        if not self.factory.links.moved(self._proto, self.factory.address_of(host, request.headers)):
            raise ConnectionDeny(ConnectionDeny.SERVICE_UNAVAILABLE, "try again later")
        return SUBPROTOCOL if SUBPROTOCOL in request.protocols else None

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Answers a request that is no good handshake."""
        self._proto.fail("websocket", _excerpt(reason))
        super().failHandshake(reason, code, responseHeaders)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Writes the answer, in the form of all the front's errors."""
        error = {"code": _ERRORS.get(code, "bad-request"), "message": reason[:200]}
        body = msgspec.json.encode({"error": error})
        lines = [
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}",
            "Content-Type: application/json; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in responseHeaders or ()),
        ]
        self.sendData("\r\n".join([*lines, "", ""]).encode("ascii") + body)


class WorkerSyncFactory(WrappingWebSocketServerFactory):  # type: ignore[misc]
    """For ``upgrades`` of the door and for ``upgrade_to``: takes ``/worker-sync`` and makes links of it.

    ``links`` is the ``acceptor`` of a front's ``Links``. ``address_of`` tells the address of a client from that of the
    transport and the headers (lower-case names), where proxies are trusted.
    """

    noisy = False

    def __init__(
        self,
        links: LinkSource,
        reactor: Any,
        address_of: Callable[[str, Mapping[str, str]], str] = lambda host, headers: host,
    ) -> None:
        super().__init__(links, "ws://localhost" + PATH, reactor=reactor, enableCompression=False)
        self.links = links
        self.address_of = address_of
        self.protocols = self._subprotocols = [SUBPROTOCOL]
        self.server = ""
        self.setProtocolOptions(webStatus=False, failByDrop=True, openHandshakeTimeout=0, closeHandshakeTimeout=0)

    def buildProtocol(self, addr: Any) -> Any:
        """One end of a WebSocket with its link, or what closes the connection when the address is not listened to."""
        link = self.links.link(addr)
        return TurnedAway() if link is None else _wired(WorkerSyncProtocol(), self, link)

    def startFactory(self) -> None:
        """Nothing."""

    def stopFactory(self) -> None:
        """Nothing."""


class WorkerSyncClientProtocol(_Stream, WrappingWebSocketClientProtocol):  # type: ignore[misc]
    """The end that dials."""

    def onConnect(self, response: Any) -> None:
        """Takes the answer; Autobahn has checked that nothing was selected which was not offered."""

    def failHandshake(self, reason: str) -> None:
        """The other end is no front, or refuses."""
        self._proto.fail("not-reached", _excerpt(reason))
        super().failHandshake(reason)


class WorkerSyncClientFactory(WrappingWebSocketClientFactory):  # type: ignore[misc]
    """Wraps the factory of a link that dials ``url``."""

    noisy = False

    def __init__(self, factory: Any, url: str, reactor: Any) -> None:
        super().__init__(factory, url, reactor=reactor, enableCompression=False)
        self.protocols = self._subprotocols = [SUBPROTOCOL]
        self.useragent = None
        if ":" in self.host:
            self.host = f"[{self.host}]"  # for the Host header
        self.setProtocolOptions(
            failByDrop=True, openHandshakeTimeout=0, closeHandshakeTimeout=0, serverConnectionDropTimeout=0
        )

    def buildProtocol(self, addr: Any) -> Any:
        """One end of a WebSocket, with the link that dials."""
        return _wired(WorkerSyncClientProtocol(), self, self._factory.buildProtocol(addr))


def _excerpt(text: str) -> str:
    return ascii(text)[1:-1][:120]


def _wired(stream: Any, factory: Any, link: PeerLink) -> Any:
    stream.factory = factory
    stream._proto = link
    link.transport = stream  # so that it can be aborted before it is open
    return stream


@implementer(IStreamClientEndpoint)
class WorkerSyncEndpoint:
    """Connects to a ``ws://`` or ``wss://`` URL that ends in ``/worker-sync``. Raises ``ValueError`` for others.

    A certificate must be good for the URL's host, by the roots that OpenSSL trusts (``SSL_CERT_FILE`` and
    ``SSL_CERT_DIR`` name others).
    """

    def __init__(self, reactor: Any, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname or not parts.path.endswith(PATH):
            raise ValueError(f"{url!r} is not a ws:// or wss:// URL that ends in {PATH}")
        self._reactor = reactor
        self._url = url
        port = parts.port or (443 if parts.scheme == "wss" else 80)
        endpoint: Any = HostnameEndpoint(reactor, parts.hostname, port)
        if parts.scheme == "wss":
            from twisted.internet.ssl import optionsForClientTLS

            endpoint = wrapClientTLS(optionsForClientTLS(parts.hostname), endpoint)
        self._endpoint = endpoint

    def connect(self, factory: Any) -> Deferred[Any]:
        """Fires when the TCP connection is made; the protocol is connected once the WebSocket is open."""
        connected: Deferred[Any] = self._endpoint.connect(WorkerSyncClientFactory(factory, self._url, self._reactor))
        return connected


def client_endpoint(reactor: Any, description: str) -> Any:
    """What reaches a peer: by a Twisted client endpoint string, or a URL.

    Raises ``ValueError`` for what cannot be used, and whatever Twisted's parsers raise.
    """
    if "://" in description:
        return WorkerSyncEndpoint(reactor, description)
    return clientFromString(reactor, description)
