"""``WS /signaling`` on Autobahn: frames in, the switchboard decides, frames out (RFC 6455)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from kollator.clock import Clock
from kollator.guard.limits import Allowance
from kollator.signaling.connection import Connection
from kollator.signaling.messages import MESSAGE_BYTES, SUBPROTOCOL, Close
from kollator.signaling.switchboard import Switchboard

log = Logger("kollator:signaling")

CLOSE_TIMEOUT_S = 3.0
"""How long a peer has to answer a close frame before the connection is dropped."""
PAUSED_BYTES = 65_536
"""What Twisted holds back before it pauses a producer: so much waits at least when ``pauseProducing`` is called."""


@implementer(IPushProducer)
class SignalingProtocol(WebSocketServerProtocol, Connection):  # type: ignore[misc]
    """One connection. The factory has what all of them share."""

    factory: SignalingFactory
    transport: Any
    held_back = -1
    """Bytes written since the transport asked for a pause; -1 while it takes everything."""
    heard = True
    """Something came since the last keep-alive ping."""
    admitted = False

    # -- Autobahn's hooks -------------------------------------------------------------------------------------------

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Selects the subprotocol; a client that offers none speaks v1."""
        host = getattr(self.transport.getPeer(), "host", "") or ""
        self.address = self.factory.address_of(host, request.headers)
        self.origin_permitted = self.factory.origin_permitted(host, request.headers, self.transport)
        return SUBPROTOCOL if SUBPROTOCOL in request.protocols else None

    def onOpen(self) -> None:
        """Admits the connection, or closes it with the reason."""
        self.transport.registerProducer(self, True)
        self.factory.opened(self)

    def onMessageBegin(self, isBinary: bool) -> None:
        """A binary message is refused at its first frame, not collected."""
        if isBinary:
            self.failedByMe = True
            self.factory.end(self, Close.BINARY, "text messages only")
        super().onMessageBegin(isBinary)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """One complete text message, valid UTF-8."""
        if self.state != self.STATE_OPEN:
            return
        self.heard = True
        self.factory.received(self, payload)

    def onPong(self, payload: bytes) -> None:
        """An answer to a ping of the health monitor or of the keep-alive."""
        self.heard = True
        self.factory.ponged(self, payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is over, whoever ended it and however far it had come."""
        self.factory.closed(self)

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        # Autobahn's hook at the header of a frame that is too large: its payload is skipped, not collected.
        self.failedByMe = True
        self.factory.too_large(self)

    # -- what the switchboard calls -----------------------------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """Writes one text message, unless more than the cap waits for this peer already: then it is cut (4413)."""
        if self.state != self.STATE_OPEN:
            return False
        if self.held_back >= 0:
            if PAUSED_BYTES + self.held_back + len(payload) > self.factory.write_buffer_bytes:
                self.factory.end(self, Close.SLOW_CONSUMER, "too much waits to be written")
                return False
            self.held_back += len(payload)
        self.sendMessage(payload)
        return True

    def close(self, code: int, reason: str) -> None:
        """Starts the closing handshake with one of the contract's codes."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode("utf-8")[:123])

    # -- keep-alive and health ----------------------------------------------------------------------------------------

    def ping(self, payload: bytes) -> None:
        """Sends a ping (RFC 6455 section 5.5.2)."""
        if self.state == self.STATE_OPEN:
            self.sendPing(payload)

    def drop(self, reason: str) -> None:
        """Ends the TCP connection without a closing handshake: the peer is not there any more."""
        self.wasNotCleanReason = reason
        self.wasClean = True  # keeps Autobahn from a warning a connection
        self.dropConnection(abort=True)

    # -- IPushProducer: the transport tells when it is behind ---------------------------------------------------------

    def pauseProducing(self) -> None:
        """More waits than the transport likes."""
        self.held_back = 0

    def resumeProducing(self) -> None:
        """All of it went out."""
        self.held_back = -1

    def stopProducing(self) -> None:
        """The transport is gone."""


class SignalingFactory(WebSocketServerFactory):  # type: ignore[misc]
    """What the connections of one front share: the switchboard, the limits and the clock.

    ``address_of`` and ``origin_permitted`` read the handshake's headers, ``admit`` and ``release`` count
    connections for an IP address (``admit`` returns why not, or None), ``allowance_of`` gives the message rate for
    an address (None: any).
    """

    protocol: Any = SignalingProtocol
    noisy = False

    def __init__(
        self,
        *,
        reactor: Clock,
        switchboard: Switchboard,
        address_of: Callable[[str, dict[str, str]], str],
        origin_permitted: Callable[[str, dict[str, str], Any], bool],
        admit: Callable[[str], str | None],
        release: Callable[[str], None],
        allowance_of: Callable[[str], Allowance | None],
        write_buffer_bytes: int,
        handshake_timeout_s: float,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        super().__init__(protocols=[SUBPROTOCOL], server="", reactor=reactor)
        self.setProtocolOptions(
            webStatus=False,
            maxFramePayloadSize=0,
            maxMessagePayloadSize=MESSAGE_BYTES,
            failByDrop=False,
            openHandshakeTimeout=handshake_timeout_s,
            closeHandshakeTimeout=CLOSE_TIMEOUT_S,
            tcpNoDelay=True,
        )
        self.clock = reactor
        self.switchboard = switchboard
        self.address_of = address_of
        self.origin_permitted = origin_permitted
        self.write_buffer_bytes = write_buffer_bytes
        self.waiting: dict[SignalingProtocol, float] = {}
        """The connections that were not welcomed yet, each with the time it opened, the oldest first."""
        self.pong: Callable[[SignalingProtocol, bytes], None] = lambda connection, payload: None
        self._admit = admit
        self._release = release
        self._allowance_of = allowance_of
        self._refused = refused

    def opened(self, connection: SignalingProtocol) -> None:
        """The handshake is done: the connection counts from here, or is closed with the reason."""
        if not connection.origin_permitted:
            self._refused("origin")
            connection.close(Close.NOT_ALLOWED, "origin not allowed")
            return
        reason = self._admit(connection.address)
        if reason is not None:
            self._refused(reason)
            connection.close(Close.TRY_AGAIN_LATER, "too many connections")
            return
        connection.admitted = True
        connection.allowance = self._allowance_of(connection.address)
        self.waiting[connection] = self.clock.seconds()

    def received(self, connection: SignalingProtocol, payload: bytes) -> None:
        """One text message of an open connection."""
        if not connection.admitted:
            return
        try:
            self.switchboard.receive(connection, payload, self.clock.seconds())
        except Exception:
            log.failure("a message of connection {id!r} could not be handled", id=connection.id)
            self.end(connection, Close.INTERNAL, "internal error")
        if connection.stage > 2 and connection in self.waiting:
            del self.waiting[connection]

    def too_large(self, connection: SignalingProtocol) -> None:
        """A message over the limit began."""
        self.switchboard.too_large(connection, self.clock.seconds())

    def ponged(self, connection: SignalingProtocol, payload: bytes) -> None:
        """A pong came."""
        self.pong(connection, payload)

    def end(self, connection: Connection, code: int, reason: str) -> None:
        """Closes a connection that broke a rule of the wire."""
        self.switchboard.end(connection, code, reason, self.clock.seconds())

    def closed(self, connection: SignalingProtocol) -> None:
        """A connection is over."""
        self.waiting.pop(connection, None)
        self.switchboard.closed(connection, self.clock.seconds())
        if connection.admitted:
            connection.admitted = False
            self._release(connection.address)

    def expire(self, hello_timeout_s: float) -> None:
        """Closes the connections that said no ``hello`` in time (4408)."""
        now = self.clock.seconds()
        late = []
        for connection, since in self.waiting.items():
            if now - since < hello_timeout_s:
                break
            late.append(connection)
        for connection in late:
            self.waiting.pop(connection, None)
            if connection.stage <= 1:
                self._refused("no-hello")
                self.end(connection, Close.NO_HELLO, "no hello in time")
