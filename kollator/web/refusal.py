"""Answers that are errors: one class for the resources and the door, and an end of a connection they survive."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from kollator.clock import Call, Clock
from kollator.web.answers import BODY_BYTES, ErrorBody, Failing

JSON = b"application/json; charset=utf-8"
LINGER_S = 10.0
"""How long a refused peer is listened to after its answer, in seconds."""
LINGER_BYTES = 64 * 1024 * 1024
"""How much of what a refused peer still sends is read (and dropped)."""


class Refusal(Exception):
    """An answer that is an error.

    ``status`` is HTTP's, ``code`` the contract's, ``message`` for people, ``headers`` what goes with it;
    ``retry_after_s`` of 0 means that none is told.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        retry_after_s: int = 0,
        headers: dict[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s:
            self.headers[b"retry-after"] = b"%d" % retry_after_s

    @property
    def body(self) -> bytes:
        """The error in the contract's form."""
        return msgspec.json.encode(ErrorBody(Failing(self.code, str(self))))

    def answer(self) -> bytes:
        """The whole answer, for a connection that is closed after it."""
        body = self.body
        fields = {
            b"content-type": JSON,
            b"content-length": b"%d" % len(body),
            b"cache-control": b"no-store",
            b"connection": b"close",
            **self.headers,
        }
        lines = [b"HTTP/1.1 %d %s" % (self.status, phrase(self.status))]
        lines += [name + b": " + value for name, value in fields.items()]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


def phrase(status: int) -> bytes:
    """The reason phrase of a status."""
    return HTTPStatus(status).phrase.encode("ascii")


def too_large() -> Refusal:
    """The refusal of a request whose body is over the limit."""
    return Refusal(413, "too-large", f"a request body has {BODY_BYTES} bytes at most")


def upgrade_required() -> Refusal:
    """What a path that only speaks WebSocket says to anything else (RFC 9110 section 15.5.22)."""
    headers = {b"upgrade": b"websocket", b"connection": b"upgrade"}
    return Refusal(426, "upgrade-required", "this path speaks WebSocket only", headers=headers)


class LastWord(Protocol):
    """The protocol of a connection that is refused: says so, and drops what still comes, within bounds.

    A connection that is closed with something unread is reset by TCP, and the answer may be lost with it
    (RFC 9112 section 9.6). So the front says that it has finished, and waits for the peer to say so too.
    """

    transport: Any

    def __init__(self, refusal: Refusal, clock: Clock) -> None:
        self._answer = refusal.answer()
        self._clock = clock
        self._timer: Call | None = None
        self._left_bytes = LINGER_BYTES

    def connectionMade(self) -> None:
        """Answers, and says that nothing more will come."""
        transport = self.transport
        self._timer = self._clock.callLater(LINGER_S, transport.abortConnection)
        transport.write(self._answer)
        if ISSLTransport.providedBy(transport):
            transport.loseConnection()  # TLS waits for the other side's close by itself, for ever if need be
        elif hasattr(transport, "loseWriteConnection"):
            transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        """Drops it."""
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer has gone, or was cut."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def hand_over(transport: Any, old: Any, new: Any) -> None:
    """Makes ``new`` the protocol of ``transport`` in place of ``old``; where it has no place for one, ``old`` forwards.

    ``new`` is not told of its transport: whoever made it does that.
    """
    for slot in ("wrappedProtocol", "protocol"):  # of a wrapper such as TLS, of a socket
        if getattr(transport, slot, None) is old:
            setattr(transport, slot, new)
            return
    old.dataReceived = lambda data: new.dataReceived(data)
    old.connectionLost = lambda reason: new.connectionLost(reason)
