"""twisted.web's Site with bounds on what one connection may cost, and the take-over of one by a WebSocket."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request, datetimeToString
from twisted.web.server import Site

from kollator.clock import Clock
from kollator.guard.places import Place
from kollator.web.answers import BODY_BYTES
from kollator.web.door import Admission, Farewell, is_upgrade, pass_on, peer_host
from kollator.web.refusal import Refusal, hand_over, too_large, upgrade_required
from kollator.web.request import FrontRequest
from kollator.web.resources import fields_of
from kollator.web.turns import Turns

log = Logger("kollator:web")

IDLE_S = 60.0
"""How long a connection may be quiet between two requests, and how long the last answer may take to go out."""
HEADER_S = 10.0
"""How long a request's header may take from its first byte, where the settings say nothing else."""
BODY_S = 30.0
"""How long a request's body may take, from the end of its header."""

_PREAMBLE = b"Server: kollator-front\r\nX-Content-Type-Options: nosniff\r\nDate: %s\r\n"


class FrontChannel(HTTPChannel):
    """One HTTP connection, with what ``HTTPChannel`` leaves open.

    Its time-outs run from the beginning of what they bound, where a byte now and then would put off twisted.web's.
    Requests that were sent ahead wait until the answers before them are on their way, and then for their turn (see
    ``turns``). Whoever sends too much, or no HTTP, is told so in the contract's form.

    Most requests come in one piece and are answered at once. For them no timer is made and nothing is written twice:
    the timer of the idle connection runs on, and is put off; the head of an answer goes out with its body.
    """

    factory: FrontSite
    transport: Any
    place: Place | None = None
    """The door's, to be given back at the end."""
    _begun = False  # a request has begun to come
    _in_body = False  # and its header is complete
    _closing = False
    _is_new = True  # nothing was answered yet
    _waiting = False  # for its turn, or held
    _hold = False  # to be held when the present answer is complete
    _secure: bool | None = None
    _peer: Any = None
    _host: Any = None
    _head = b""  # of an answer, which goes out with its body
    _next: Any = None  # the protocol that has taken the connection over

    def dataReceived(self, data: bytes) -> None:
        """Part of a request, or of several."""
        if self._busyReceiving:  # what came behind a body is put back
            LineReceiver.dataReceived(self, data)
            return
        if not (self.requests or self._buffer or self._waiting or self.factory.turns.take()):
            self._wait(self._queue_new if self._is_new else self.factory.turns.queue)
        self._read(data)

    def _read(self, data: bytes) -> None:
        LineReceiver.dataReceived(self, data)  # HTTPChannel's own would put the time-out off
        if self.requests or self._buffer:
            self._expect()

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
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """A request is complete."""
        if self._next is None:
            self.timeOut = None  # or HTTPChannel would cancel the timer, and make another after the answer
            super().allContentReceived()
            if self.requests and self._next is None:
                self.setTimeout(None)  # an answer may take its time

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
        self._begun = self._in_body = self._is_new = False
        if self._head:
            self.write(b"")
        if self._hold and self.persistent:
            self._wait(self.factory.turns.hold)
        super().requestDone(request)
        if self.persistent:
            self._await()
            if self._buffer and not self._waiting and self._next is None:
                self._wait(self.factory.turns.queue)

    def hold(self) -> None:
        """After the present answer no request is taken from this connection for a while."""
        self._hold = True

    def _queue_new(self, channel: FrontChannel) -> None:
        self.factory.turns.queue(channel, new=True)

    def _wait(self, how: Callable[[FrontChannel], None]) -> None:
        self._hold = False
        self.paused = self._waiting = True
        how(self)

    def go_on(self) -> None:
        """Its turn has come."""
        self._waiting = False
        if not self._waitingForTransport:
            self.transport.resumeProducing()
            self._read_on()

    def _read_on(self) -> None:
        self.paused = self._waiting
        self._await()
        try:
            self._read(b"")
        except Exception:  # as the reactor does it
            log.failure("a request could not be read")
            self.transport.abortConnection()

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """The head of an answer: what all answers have, and its own."""
        lines = [b"%s %s %s\r\n%s" % (version, code, reason, self.factory.preamble())]
        for name, values in headers.getAllRawHeaders():
            for value in values:
                lines.append(b"%s: %s\r\n" % (name, value))
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def write(self, data: bytes) -> None:
        """Part of an answer."""
        head, self._head = self._head, b""
        self.transport.write(head + data if head else data)

    def writeSequence(self, iovec: Any) -> None:
        """Parts of an answer."""
        self.write(b"".join(iovec))

    def isSecure(self) -> bool:
        """Whether the connection speaks TLS, which does not change, nor does what follows."""
        if self._secure is None:
            self._secure = super().isSecure()
        return self._secure

    def getPeer(self) -> Any:
        """The address of the peer."""
        if self._peer is None:
            self._peer = super().getPeer()
        return self._peer

    def getHost(self) -> Any:
        """The address that the peer connected to."""
        if self._host is None:
            self._host = super().getHost()
        return self._host

    def pauseProducing(self) -> None:
        """So much of the answers waits to be written that no more of the requests is read."""
        super().pauseProducing()
        self.paused = True  # LineReceiver's: what was read already waits too
        self.transport.pauseProducing()
        self._await()

    def resumeProducing(self) -> None:
        """All of it went out."""
        super().resumeProducing()
        self._read_on()

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
        if self._waiting:
            self.factory.turns.forget(self)
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

    def _expect(self) -> None:
        """Part of a request is here; the clock of the rest runs from the first byte, that of a body from its header."""
        if self._handlingRequest:
            return
        if self._waiting:
            if len(self._buffer) > self._optimisticEagerReadSize:
                self.transport.pauseProducing()
        elif self.requests and not self.line_mode and not self._in_body:
            self._begun = self._in_body = True
            self._await()
        elif not self._begun:
            self._begun = True
            self._await()

    def _await(self) -> None:
        if self._next is None and not self._closing and not self._handlingRequest:  # an answer may take its time
            if self._begun and not self.paused:
                self.setTimeout(BODY_S if self._in_body else self.factory.header_timeout_s)
            else:
                self.setTimeout(IDLE_S)


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
        self.turns = Turns(clock)
        self._preamble = b""
        self._preamble_s = -1

    def startFactory(self) -> None:
        """There is no access log to open."""

    def stopFactory(self) -> None:
        """Nor to close."""

    def getContentFile(self, length: int | None) -> BytesIO:
        """Where a request's body goes."""
        return BytesIO()

    def preamble(self) -> bytes:
        """The lines that all answers have, made once a second."""
        now_s = int(time.time())
        if now_s != self._preamble_s:
            self._preamble_s = now_s
            self._preamble = _PREAMBLE % datetimeToString(now_s)
        return self._preamble

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
