"""twisted.web's Site with bounds on what one connection may cost, and the take-over of one by a WebSocket."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.server import Request as ServerRequest
from twisted.web.server import Site

from kollator.clock import Clock
from kollator.guard.places import Place
from kollator.web.answers import BODY_BYTES
from kollator.web.door import Admission, Farewell, is_upgrade, pass_on, peer_host
from kollator.web.refusal import Refusal, hand_over, too_large
from kollator.web.resources import fields_of, upgrade_required

log = Logger("kollator:web")

IDLE_S = 60.0
"""How long a connection may be quiet between two requests, and how long the last answer may take to go out."""
HEADER_S = 10.0
"""How long a request's header may take from its first byte, where the settings say nothing else."""
BODY_S = 30.0
"""How long a request's body may take, from the end of its header."""

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


class FrontChannel(HTTPChannel):
    """One HTTP connection, with what ``HTTPChannel`` leaves open.

    Its time-outs run from the beginning of what they bound, where a byte now and then would put off twisted.web's.
    Requests that were sent ahead wait until the answers before them are on their way. Whoever sends too much, or
    no HTTP, is told so in the contract's form.
    """

    factory: FrontSite
    transport: Any
    place: Place | None = None
    """The door's, to be given back at the end."""
    _begun = False  # a request has begun to come
    _closing = False
    _next: Any = None  # the protocol that has taken the connection over

    def dataReceived(self, data: bytes) -> None:
        """Part of a request, or of several."""
        if data:
            self._begin()
        LineReceiver.dataReceived(self, data)  # HTTPChannel's own would put the time-out off
        if self._buffer or self.requests:  # the beginning of the next request came with the last
            self._begin()

    def headerReceived(self, line: bytes) -> bool:
        """One field of a header."""
        try:
            return super().headerReceived(line)
        except ValueError:  # Content-Length has more digits than Python converts
            self.refuse(too_large())
            return False

    def allHeadersReceived(self) -> None:
        """The body comes next. One that is announced too large is not waited for, nor asked for (Expect)."""
        if (self.length or 0) > BODY_BYTES:
            self.refuse(too_large())
            return
        if self.length != 0:
            self.setTimeout(BODY_S)
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """A request is complete."""
        if self._next is None:
            super().allContentReceived()

    def rawDataReceived(self, data: bytes) -> None:
        """Part of a body, or what comes after a request that is being answered."""
        if self._next is None:
            super().rawDataReceived(data)
        else:
            self._next.dataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line of the header is too long for any good request."""
        if self.requests:
            self.refuse(Refusal(431, "too-large", f"a line of the header has {self.MAX_LENGTH} bytes at most"))
        else:
            self.refuse(Refusal(414, "too-large", f"a request line has {self.MAX_LENGTH} bytes at most"))

    def requestDone(self, request: Request) -> None:
        """An answer is complete; the next request may begin."""
        self._begun = False
        super().requestDone(request)
        if self.persistent:
            self._await()

    def pauseProducing(self) -> None:
        """So much of the answers waits to be written that no more of the requests is read."""
        super().pauseProducing()
        self.paused = True  # LineReceiver's: what was read already waits too
        self.transport.pauseProducing()
        self._await()

    def resumeProducing(self) -> None:
        """All of it went out."""
        super().resumeProducing()
        self.paused = False
        self._await()
        LineReceiver.dataReceived(self, b"")

    def loseConnection(self) -> None:
        """Closes the connection once the last answer went out, and in any case after a while."""
        super().loseConnection()
        self._closing = True
        self.setTimeout(IDLE_S)

    def timeoutConnection(self) -> None:
        """What was waited for did not come."""
        if self._closing:
            self.transport.abortConnection()
        elif self._begun and not self.paused:
            self.refuse(Refusal(408, "too-slow", "the request did not come in time"))
        else:
            self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        if self.place is not None:
            self.place.leave()
        super().connectionLost(reason)

    def refuse(self, refusal: Refusal) -> None:
        """Answers in place of a resource, and closes the connection."""
        if self._next is None:
            self.factory.responded("", refusal.status)
            word = Farewell(refusal, self.factory.reactor)
            self._make_way(word)
            word.makeConnection(self.transport)

    def upgrade(self, request: Request, protocol: Any) -> None:
        """Leaves the connection to a WebSocket protocol, which is given the request to parse its own handshake."""
        head = [request.method + b" " + request.uri + b" " + request.clientproto]
        for name, values in request.requestHeaders.getAllRawHeaders():
            head += [name + b": " + value for value in values]
        ahead, self._dataBuffer = b"".join(self._dataBuffer), []
        self._make_way(protocol)
        try:
            protocol.makeConnection(self.transport)
            self.transport.resumeProducing()  # it may be paused for what was read ahead
            protocol.dataReceived(b"\r\n".join(head) + b"\r\n\r\n" + ahead)
        except Exception:  # as the reactor does it; HTTP is not spoken here any more
            log.failure("a WebSocket could not take a connection over")
            self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # HTTPChannel's one way to refuse a request; its own answer has no body and may be lost to a reset.
        if self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders:
            self.refuse(Refusal(431, "too-large", "the request's header is too large"))
        else:
            self.refuse(Refusal(400, "bad-request", "the request is not HTTP/1.1 as it should be"))

    def _make_way(self, protocol: Any) -> None:
        self._next = protocol
        place, self.place = self.place, None
        pass_on(place, protocol)
        self.setTimeout(None)
        self.setRawMode()  # what is left of the present chunk goes to rawDataReceived
        self._networkProducer.unregisterProducer()
        hand_over(self.transport, self, protocol)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._await()

    def _await(self) -> None:
        if self._next is None and not self._closing and not self._handlingRequest:  # an answer may take its time
            self.setTimeout(self.factory.header_timeout_s if self._begun and not self.paused else IDLE_S)


class FrontRequest(ServerRequest):
    """One request: its body bounded, its target in any form that a client may use."""

    defaultContentType = None  # noqa: N815 (Twisted's name)
    channel: Any
    content: Any

    def handleContentChunk(self, data: bytes) -> None:
        """Part of the body; one that grows too large is not waited for."""
        if self.content.tell() + len(data) > BODY_BYTES:
            self.channel.refuse(too_large())
        else:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Brings the target into origin form (RFC 9112 section 3.2), then answers."""
        absolute = _ABSOLUTE.fullmatch(path)
        if absolute is not None:
            authority, path = absolute.groups()
            path = path if path.startswith(b"/") else b"/" + path
            self.requestHeaders.setRawHeaders(b"host", [authority])
        elif path == b"*" and command == b"OPTIONS":
            path = b"/"  # about the server as a whole, of which this is as good as any
        elif not path.startswith(b"/"):
            self.channel.refuse(Refusal(400, "bad-request", "the request's target is not a path"))
            return
        self.requestHeaders.removeHeader(b"content-type")  # twisted.web would look for forms in what is called one
        super().requestReceived(command, path, version)


class FrontSite(Site):
    """The HTTP side of a listening endpoint.

    ``responded`` is called after each answer with its path ("/static" and "/admin" for all below them, "" where no
    resource answered) and its status. With ``debug`` each request is a debug event.
    """

    protocol: Any = FrontChannel
    requestFactory = FrontRequest  # noqa: N815 (Twisted's name)
    noisy = False

    def __init__(
        self,
        root: Any,
        clock: Clock,
        debug: bool = False,
        *,
        header_timeout_s: float = HEADER_S,
        responded: Callable[[str, int], object] = lambda path, status: None,
    ) -> None:
        super().__init__(root, timeout=IDLE_S, reactor=clock)
        self.header_timeout_s = header_timeout_s
        self.responded = responded
        self.debug = debug

    def startFactory(self) -> None:
        """There is no access log to open."""

    def stopFactory(self) -> None:
        """Nor to close."""

    def getContentFile(self, length: int | None) -> BytesIO:
        """Where a request's body goes."""
        return BytesIO()

    def log(self, request: Request) -> None:
        """One count and one debug event a request."""
        self.responded(_path_of(request), request.code)
        if self.debug:
            log.debug(
                "{method} {path} {code}",
                method=request.method.decode("latin-1"),
                path=request.path.decode("latin-1"),
                code=request.code,
            )


def _path_of(request: Any) -> str:
    segments: list[bytes] = request.prepath
    if segments[0] in (b"static", b"admin"):
        return "/" + segments[0].decode("ascii")
    return "/" + b"/".join(segments).decode("latin-1")


def upgrade_to(factory: Any, admission: Admission) -> Callable[[Request], None]:
    """What an ``UpgradeResource`` calls for a request on a connection that served others before.

    Reverse proxies that keep connections open do that. Raises ``Refusal``, or leaves the connection to a protocol
    of ``factory``.
    """

    def upgrade(request: Request) -> None:
        fields = fields_of(request)
        if not is_upgrade(fields):
            raise upgrade_required()
        channel: Any = request.channel
        refusal = admission(peer_host(channel.transport), fields)
        if refusal is not None:
            raise refusal
        protocol = factory.buildProtocol(channel.transport.getPeer())
        if protocol is None:
            raise Refusal(503, "busy", "no more connections are taken here; come back in a moment", 1)
        channel.upgrade(request, protocol)

    return upgrade
