"""``WS /signaling``: what comes over each WebSocket goes to the switchboard; the factory has what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.logger import Logger

from kollator.clock import Call, Clock
from kollator.guard.limits import Allowance
from kollator.signaling.backlogs import Backlogs
from kollator.signaling.connection import Connection, Stage
from kollator.signaling.decoding import described
from kollator.signaling.messages import SUBPROTOCOL, Close
from kollator.signaling.switchboard import Switchboard
from kollator.signaling.websocket import CLOSE_TIMEOUT_S, PeerLog, TextSocket

log = Logger("kollator:signaling")

WRITE_BUFFERS_BYTES = 256 * 1024 * 1024
"""For all connections together, where the settings say nothing else."""


class SignalingProtocol(TextSocket, Connection):  # type: ignore[misc]
    """One connection: a WebSocket to its peer, a ``Connection`` to the switchboard."""

    factory: SignalingFactory
    admitted = False
    origin_permitted = False

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Selects the subprotocol; a client that offers none speaks v1. No extension is negotiated."""
        self.websocket_extensions: list[object] = []
        peer = self.peer or ""
        try:
            self.address = self.factory.address_of(peer, request.headers)
            self.origin_permitted = self.factory.origin_permitted(peer, request.headers, self.transport)
        except Exception:
            log.failure("the handshake of a connection could not be judged")
            raise ConnectionDeny(ConnectionDeny.INTERNAL_SERVER_ERROR, "internal error") from None
        return SUBPROTOCOL if SUBPROTOCOL in request.protocols else None

    def handshake_failed(self) -> None:
        """Is counted."""
        self.factory.refused("header")

    def admit(self) -> None:
        """The factory takes it, or closes it with the reason."""
        self.factory.opened(self)

    def received(self, text: bytes) -> None:
        """The switchboard's affair."""
        factory = self.factory
        if factory.debug:
            log.debug("from {id!r} at {address}: {what}", id=self.id, address=self.address, what=described(text))
        try:
            factory.switchboard.receive(self, text, factory.clock.seconds())
        except Exception:
            self.not_handled()

    def not_handled(self) -> None:
        """A message led to an exception, the one that is being handled: logged, told, then closed (1011)."""
        log.failure("a message of connection {id!r} could not be handled", id=self.id)
        self.factory.switchboard.failed(self, self.factory.clock.seconds())

    def overflowed(self) -> None:
        """Told, then closed (1009)."""
        self.factory.switchboard.too_large(self, self.factory.clock.seconds())

    def violated(self, code: int, reason: str) -> None:
        """Closed."""
        log.debug("connection {id!r} from {address}: {reason}", id=self.id, address=self.address, reason=reason)
        self.factory.end(self, code, reason)

    def ponged(self, payload: bytes) -> None:
        """The health monitor's affair."""
        self.factory.pong(self, payload)

    def gone(self) -> None:
        """The switchboard forgets it."""
        self.factory.gone(self)

    def closed(self) -> None:
        """Is counted out."""
        self.factory.closed(self)


class Timer:
    """Autobahn's time-outs on the clock of the factory; its own timer takes the global reactor's, and rounds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def call_later(self, delay_s: float, call: Callable[..., Any], *args: Any) -> Call:
        """As Autobahn calls it."""
        return self._clock.callLater(delay_s, call, *args)


class SignalingFactory(WebSocketServerFactory):  # type: ignore[misc]
    """What the connections of one front share: the switchboard, the limits and the clock.

    ``address_of`` and ``origin_permitted`` read the handshake's headers, ``admit`` and ``release`` count
    connections for an IP address (``admit`` returns why not, or None), ``allowance_of`` gives the message rate for
    an address (None: any). ``refused`` takes the reason why a connection was turned away. ``write_buffer_bytes`` may
    wait to be written to one connection, ``write_buffers_bytes`` to all together. With ``debug`` each message is a
    debug event, by its type, target and size.
    """

    protocol: Any = SignalingProtocol
    log: Any = PeerLog()
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
        write_buffers_bytes: int = WRITE_BUFFERS_BYTES,
        refused: Callable[[str], None] = lambda reason: None,
        debug: bool = False,
    ) -> None:
        super().__init__(protocols=[SUBPROTOCOL], server="", reactor=reactor)
        self._batched_timer = Timer(reactor)
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            allowNullOrigin=True,  # origins are the guard's affair, ``origin_permitted``
            failByDrop=False,
            openHandshakeTimeout=handshake_timeout_s,
            closeHandshakeTimeout=CLOSE_TIMEOUT_S,
        )
        self.clock = reactor
        self.switchboard = switchboard
        self.address_of = address_of
        self.origin_permitted = origin_permitted
        self.refused = refused
        self.debug = debug
        self.write_buffer_bytes = write_buffer_bytes
        self.backlogs = Backlogs(write_buffers_bytes)
        self.waiting = switchboard.waiting
        self.pong: Callable[[SignalingProtocol, bytes], None] = lambda connection, payload: None
        self._admit = admit
        self._release = release
        self._allowance_of = allowance_of

    def opened(self, connection: SignalingProtocol) -> None:
        """The handshake is done: the connection counts from here, or is closed with the reason."""
        if not connection.origin_permitted:
            self.refused("origin")
            self.end(connection, Close.NOT_ALLOWED, "origin not allowed")
            return
        reason = self._admit(connection.address)
        if reason is not None:
            self.refused(reason)
            self.end(connection, Close.TRY_AGAIN_LATER, "too many connections")
            return
        connection.admitted = True
        connection.leave_place()
        connection.allowance = self._allowance_of(connection.address)
        self.switchboard.opened(connection, self.clock.seconds())

    def end(self, connection: Connection, code: int, reason: str) -> None:
        """Closes a connection from this side."""
        self.switchboard.end(connection, code, reason, self.clock.seconds())

    def gone(self, connection: SignalingProtocol) -> None:
        """Nothing can be sent to a connection any more."""
        self.switchboard.closed(connection, self.clock.seconds())

    def closed(self, connection: SignalingProtocol) -> None:
        """A connection is over."""
        self.gone(connection)
        if connection.admitted:
            self._release(connection.address)

    def expire(self, hello_timeout_s: float) -> None:
        """Closes the connections that did not say who they are in time (4408)."""
        now = self.clock.seconds()
        late = []
        for connection, since in self.waiting.items():
            if now - since < hello_timeout_s:
                break
            late.append(connection)
        for connection in late:
            if connection.stage is not Stage.JOINING:  # that one waits for us
                self.refused("no-hello")
                self.end(connection, Close.NO_HELLO, "no hello in time")
