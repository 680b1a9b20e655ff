"""A WebSocket for text messages on Autobahn, with a bound to everything a peer can bring about. See ``TextSocket``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kollator.clock import Call
from kollator.guard.limits import Allowance
from kollator.guard.places import Place
from kollator.signaling.backlogs import UNSEEN_BYTES, waiting_bytes, watch
from kollator.signaling.messages import MESSAGE_BYTES, Close

log = Logger("kollator:signaling")

CLOSE_TIMEOUT_S = 3.0
"""How long a peer has to answer a close frame, and to read what was written to it, before it is cut off."""
HEADER_BYTES = 16_384
"""The largest request header."""
CONTROL_BYTES = 125
"""The largest payload of a control frame (RFC 6455 section 5.5)."""
FRAMES = 16
"""So many frames (fragments, pings, pongs) are allowed for each message that is: tiny ones are work for nothing."""

_ABUSE = (Close.BAD_MESSAGES, Close.RATE_LIMITED, Close.SLOW_CONSUMER)
_ERRORS = {405: "method-not-allowed", 426: "upgrade-required", 431: "too-large", 500: "internal"}
_LINE_ENDS_TO_SPACES = bytes(0x20 if chr(byte) in "\n\v\f\r\x1c\x1d\x1e\x85" else byte for byte in range(256))


class PeerLog:
    """Autobahn's log. What a peer can bring about is for debugging: nobody fills the log from outside.

    Autobahn's own debug events come with every frame, and are left out.
    """

    def debug(self, text: str, **values: object) -> None:
        """Nothing."""

    def info(self, text: str, **values: object) -> None:
        """A debug event."""
        log.debug(text, **values)

    warn = error = info


@implementer(IPushProducer)
class TextSocket(WebSocketServerProtocol):  # type: ignore[misc]
    """One WebSocket, the server's end.

    Autobahn parses the handshake and the frames (RFC 6455). This class sees to it that of what a peer sends no more
    is kept than one message, of what it does not read no more than the factory's ``write_buffer_bytes`` and, together
    with what others do not read, its ``backlogs`` allow, that closing has an end, and that what breaks the protocol is
    told by ``violated``, once. Subclasses have the methods from ``admit`` to ``closed``; the factory has a ``clock``.
    """

    factory: Any
    transport: Any
    log: Any = PeerLog()
    allowance: Allowance | None = None
    """The rate of messages that the peer may send; None: any."""
    heard = True
    """Something came; for who asks now and then and sets it to False."""
    held_back = -1
    """Bytes written since the transport was behind, as an upper bound; -1 while it is not. Kept by the backlogs."""
    owed_pong: bytes | None = None
    """The last ping that came while the transport was behind (RFC 6455 section 5.5.3: it alone is answered)."""
    place: Place | None = None
    """Where the door counts the connection, until it is admitted."""
    frames_full_at = 0.0
    deaf = False
    """Nothing is read any more."""
    text: bytes | bytearray = b""
    """What has come of a message."""
    cutting: Call | None = None

    # -- what subclasses do -------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """The handshake is done."""

    def received(self, text: bytes) -> None:
        """One complete text message came, valid UTF-8; perhaps after we have closed."""

    def overflowed(self) -> None:
        """A message over ``MESSAGE_BYTES`` began: to be closed."""

    def violated(self, code: int, reason: str) -> None:
        """The peer broke a rule of the wire: to be closed with that code."""

    def ponged(self, payload: bytes) -> None:
        """A pong came."""

    def handshake_failed(self) -> None:
        """The request was no good handshake and is answered so."""

    def gone(self) -> None:
        """Nothing can be sent any more. Called once or more often."""

    def closed(self) -> None:
        """The TCP connection is over, however far the WebSocket had come."""

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """Writes one text message; False: it was not taken, as the socket closes or too much waits already (4413).

        What is relayed may be a little larger than ``MESSAGE_BYTES``: ``from`` is not as long as ``to`` was.
        """
        if self.state != self.STATE_OPEN or not self._has_room(len(payload)):
            return False
        self.sendFrame(opcode=1, payload=payload)
        state: int = self.state  # it may have been the one too many of all connections together
        return state == self.STATE_OPEN

    def close(self, code: int, reason: str) -> None:
        """Starts the closing handshake. Harmless when it is closed already."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode("utf-8")[:123])
            if code in _ABUSE:  # who floods would be read until its answer comes, among all the rest
                self.deaf = True
                self.data = b""
                self.transport.pauseProducing()

    def ping(self, payload: bytes) -> None:
        """Sends a ping (RFC 6455 section 5.5.2)."""
        if self.state == self.STATE_OPEN and self._has_room(len(payload)):
            self.sendPing(payload)

    def drop(self, reason: str) -> None:
        """Ends the TCP connection without a closing handshake: the peer is not there any more."""
        self.gone()
        self.wasNotCleanReason = reason
        self.dropConnection(abort=True)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Writes bytes; Autobahn sends everything through here."""
        self.transport.write(data)
        if self.held_back >= 0:
            self.held_back += len(data)
            self.factory.backlogs.grew(len(data))

    def cut(self) -> None:
        """Ends a connection at once for what waits to be written to it; a close frame could not get past that."""
        self.violated(Close.SLOW_CONSUMER, "too much waits to be written to all connections")
        self.drop("too much waits to be written")

    def _has_room(self, size_bytes: int) -> bool:
        if self.held_back < 0:
            return True
        cap = self.factory.write_buffer_bytes
        if UNSEEN_BYTES + self.held_back + size_bytes > cap:
            # An upper bound: some of it was sent since. Look closer.
            waiting = waiting_bytes(self.transport)
            if waiting is None or waiting + size_bytes > cap:
                self.violated(Close.SLOW_CONSUMER, "too much waits to be written")
                return False
            self.factory.backlogs.corrected(self, waiting)
        return True

    # IPushProducer

    def pauseProducing(self) -> None:
        """More waits than the transport likes; it says so again with every write."""
        if self.held_back < 0:
            self.factory.backlogs.enter(self)

    def resumeProducing(self) -> None:
        """All of it went out."""
        self.factory.backlogs.leave(self)
        if self.owed_pong is not None:
            payload, self.owed_pong = self.owed_pong, None
            self.sendPong(payload)

    def stopProducing(self) -> None:
        """The transport is gone."""

    # -- the TCP connection -------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Begins the handshake. Autobahn's own looks up TLS details that nobody needs and some transports lack."""
        self.peer = getattr(self.transport.getPeer(), "host", "") or ""
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass  # no TCP
        self._connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Parses what has come."""
        if self.deaf or self.state == self.STATE_CLOSED:
            return  # Autobahn would keep it
        self._dataReceived(data)
        if self.state == self.STATE_CONNECTING and len(self.data) > HEADER_BYTES:
            self.failHandshake("the header is too large", 431)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leaves no call behind, and nothing counted."""
        self.factory.backlogs.leave(self)
        self.leave_place()
        for call in (self.closeHandshakeTimeoutCall, self.cutting):
            if call is not None and call.active():
                call.cancel()
        self.closeHandshakeTimeoutCall = self.cutting = None
        self._connectionLost(reason)  # type: ignore[arg-type]

    def leave_place(self) -> None:
        """The connection is not the door's to count any more."""
        place = self.place
        if place is not None:
            self.place = None
            place.leave()

    def _closeConnection(self, abort: bool = False) -> None:
        self.data = b""
        if abort and not self.wasClean:
            self.transport.abortConnection()
        else:  # also after a good closing handshake: an abort could destroy what the peer has yet to read
            self.cutting = self.factory.clock.callLater(CLOSE_TIMEOUT_S, self.transport.abortConnection)
            self.transport.loseConnection()

    # -- the handshake ------------------------------------------------------------------------------------------------

    def processHandshake(self) -> None:
        """Parses the request, once it is whole.

        Autobahn also splits it where no HTTP parser does, and so a client behind a trusted proxy could write header
        lines of the proxy's. Such characters become spaces.
        """
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if end:
            self.data = b"\r\n".join(line.translate(_LINE_ENDS_TO_SPACES) for line in head.split(b"\r\n")) + end + rest
            super().processHandshake()

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Answers a request that is no good handshake."""
        self.handshake_failed()
        super().failHandshake(reason, code, responseHeaders)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Writes the answer, in the form of all the front's errors."""
        body = msgspec.json.encode({"error": {"code": _ERRORS.get(code, "bad-request"), "message": reason[:200]}})
        lines = [
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}",
            "Content-Type: application/json; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(["Allow: GET"] if code == HTTPStatus.METHOD_NOT_ALLOWED else []),
            *(f"{name}: {value}" for name, value in responseHeaders or ()),
        ]
        self.sendData("\r\n".join([*lines, "", ""]).encode("ascii") + body)

    def _onOpen(self) -> None:
        try:
            watch(self.transport)
            self.transport.registerProducer(self, True)
            self.admit()
        except Exception:
            log.failure("a connection could not be admitted")
            self.drop("not admitted")

    # -- what comes in ------------------------------------------------------------------------------------------------

    def onFrameBegin(self) -> None:
        """The header of a frame. Who sends far more of them than messages is closed and not listened to."""
        allowance = self.allowance
        if allowance is not None:
            full_at = allowance.spend(self.frames_full_at, self.factory.clock.seconds(), 1 / FRAMES)
            if full_at < 0:
                self._fail_connection(Close.RATE_LIMITED, "too many frames")
                self.deaf = True
                self.data = b""
                self.transport.pauseProducing()
            else:
                self.frames_full_at = full_at
        super().onFrameBegin()

    def onFrameData(self, payload: bytes) -> bool | None:
        """A piece of a frame. Of a connection that failed only what may be the answer to the close frame counts."""
        if not self.failedByMe:
            return super().onFrameData(payload)
        if self.current_frame.opcode > 7 and self.current_frame.length <= CONTROL_BYTES:
            self.control_frame_data.append(payload)
        return None

    def onMessageBegin(self, isBinary: bool) -> None:
        """A binary message is refused at its first frame, not collected."""
        self.message_data_total_length = 0
        self.text = bytearray()
        if isBinary:
            self._fail_connection(Close.BINARY, "text messages only")

    def onMessageFrameBegin(self, length: int) -> None:
        """A message over the limit is refused at the header of the frame that takes it there."""
        self.message_data_total_length += length
        if self.message_data_total_length > MESSAGE_BYTES and not self.failedByMe:
            self.failedByMe = True
            self.overflowed()

    def onMessageFrameData(self, payload: bytes) -> None:
        """A piece of a message. All go into one buffer: a list of tiny ones would take many times their size."""
        self.text += payload

    def onMessageFrameEnd(self) -> None:
        """Nothing."""

    def onMessageEnd(self) -> None:
        """The end of a message, unless it was refused on the way."""
        text, self.text = bytes(self.text), b""
        if not self.failedByMe:
            self.heard = True
            self.received(text)

    def onPing(self, payload: bytes) -> None:
        """Answers, unless a backlog of answers would build up."""
        self.heard = True
        if self.held_back < 0:
            self.sendPong(payload)
        else:
            self.owed_pong = payload

    def onPong(self, payload: bytes) -> None:
        """An answer, or a sign of life that nobody asked for."""
        self.heard = True
        self.ponged(payload)

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> bool | None:
        """The peer closes, or answers our closing: it is gone, though its TCP connection may take a moment."""
        stop: bool | None = super().onCloseFrame(code, reasonRaw)
        self.left_politely = code in (Close.DONE, Close.GOING_AWAY)
        self.gone()
        return stop

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The TCP connection is over."""
        self.closed()

    def _fail_connection(self, code: int = Close.GOING_AWAY, reason: str = "") -> None:
        # Autobahn's hook for everything that breaks RFC 6455 (section 7.1.7); it then goes on parsing.
        if not self.failedByMe:
            self.failedByMe = True
            self.violated(code, reason)
