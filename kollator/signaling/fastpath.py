"""The fast path of ``WS /signaling``: whole text messages, pings and pongs without Autobahn's parser.

A connection is a ``SignalingProtocol`` and behaves as one, to the byte. What most connections do all the time is
done here directly: a plain handshake, whole frames, one write for each message. Everything else (fragments, closing,
frames that break a rule, messages of 64 KiB, odd handshakes, frames that come in many pieces) goes to Autobahn's
parser, with the state that it expects, until that is between two frames again.

Autobahn sets some sixty attributes for each connection. Here they are the class's, a class made for each factory, so
an idle connection holds what differs and nothing else. ``tests.test_fast_assumptions`` holds what is relied upon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from twisted.logger import Logger

from kollator.guard.limits import Allowance
from kollator.guard.places import Place
from kollator.signaling.connection import Stage
from kollator.signaling.fastclose import FastClosing, is_plain_close
from kollator.signaling.frames import (
    CLOSE,
    MASKED,
    PING,
    PONG,
    TEXT,
    TWO_BYTES,
    accept_key,
    next_text,
    text_frame,
    unmask,
)
from kollator.signaling.idle import DEFAULTS, HANDSHAKE, PARSER
from kollator.signaling.messages import SUBPROTOCOL
from kollator.signaling.protocol import SignalingFactory
from kollator.signaling.websocket import FRAMES, TextSocket

log = Logger("kollator:signaling")

_OPEN: int = WebSocketServerProtocol.STATE_OPEN
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
_PORT = r"(:([1-9]\d{0,3}|[1-5]\d{4}))?"
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])" + _PORT).fullmatch
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])" + _PORT).fullmatch
_EXTENSIONS = re.compile(r"[a-z-]+(; ?[a-z_]+(=\d+)?)*").fullmatch
_CONTROL = frozenset({PING, PONG, CLOSE})
_UPGRADES = frozenset({"upgrade", "keep-alive, upgrade"})


class FastSignalingProtocol(FastClosing):
    """One connection. Made by a ``FastSignalingFactory``, whose own subclass has the factory and its options."""

    __slots__ = (
        "address",
        "admitted",
        "allowance",
        "assigned",
        "data",
        "frames_full_at",
        "full_at",
        "heard",
        "held_back",
        "id",
        "paid",
        "parsing",
        "place",
        "since_ms",
        "stage",
        "state",
        "talked",
        "transport",
    )

    def __init__(self) -> None:
        self.stage = Stage.HELLO
        self.id = self.address = self.assigned = ""
        self.talked: tuple[str, ...] = ()
        self.allowance: Allowance | None = None
        self.full_at = self.frames_full_at = 0.0
        self.since_ms = 0
        self.heard = True
        self.held_back = -1
        self.place: Place | None = None
        self.admitted = False
        self.transport: Any = None
        self.state = self.STATE_CONNECTING
        self.data = b""
        self.parsing = False
        """Autobahn's parser is within a frame or a message."""
        self.paid = False
        """The frame at the start of ``data`` is counted already."""

    @property
    def is_open(self) -> Deferred[None]:
        """For Autobahn to fire; nobody waits for it."""
        return Deferred()

    @property
    def is_closed(self) -> Deferred[None]:
        """For Autobahn to fire; nobody waits for it."""
        return Deferred()

    # -- the handshake ------------------------------------------------------------------------------------------------

    def enter(self, transport: Any, key: str, subprotocol: bool) -> None:
        """Answers a plain handshake, whose ``address`` and ``origin_permitted`` are known, and is open."""
        self.transport = transport
        try:
            transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass  # no TCP
        factory: Any = self.factory
        factory.countConnections += 1
        transport.write(b"%b%b\r\n\r\n" % (factory.switching[subprotocol], accept_key(key.encode("ascii"))))
        self.state = self.STATE_OPEN
        self._onOpen()

    def makeConnection(self, transport: ITransport) -> None:
        """Begins any other handshake."""
        self.transport = transport
        self.connectionMade()

    def _connectionMade(self) -> None:
        # Autobahn's would set all that is the class's here, and write it into its log.
        factory: Any = self.factory
        timeout_s = factory.openHandshakeTimeout
        if timeout_s > 0:
            self.openHandshakeTimeoutCall = factory._batched_timer.call_later(timeout_s, self.onOpenHandshakeTimeout)
        factory.countConnections += 1

    def succeedHandshake(self, res: Any) -> None:
        """What was kept of the request is not kept any longer."""
        super().succeedHandshake(res)
        if self.state == self.STATE_OPEN:
            self._forget(HANDSHAKE)
            self._between_frames()

    # -- what comes in ------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Takes whole text messages and control frames; the rest goes to Autobahn's parser."""
        if self.parsing or self.state != _OPEN:
            self._parse(data)
            return
        kept = self.data
        if kept:
            data = kept + data
        factory: Any = self.factory
        at, end = 0, len(data)
        while end - at >= 6:
            payload = next_text(data, at)
            if payload is not None:
                first, size = TEXT, len(payload)
                stop = at + size + (6 if size < TWO_BYTES else 8)
            else:
                first, size, start = data[at], data[at + 1] - MASKED, at + 6
                stop = start + size
                if first not in _CONTROL or not 0 <= size < TWO_BYTES or stop > end:
                    break
                payload = unmask(data[start:stop], data[at + 2 : start]) if size else b""
                if first == CLOSE and not is_plain_close(payload):
                    break
            if self.allowance is not None and not self._pay(self.allowance):
                break
            at = stop
            if first == TEXT:
                self.heard = True
                if factory.debug:
                    self.received(payload)
                else:  # the same, a call less
                    try:
                        factory.switchboard.receive(self, payload, factory.clock.seconds())
                    except Exception:
                        self.not_handled()
            elif first == PONG:
                self.onPong(payload)
            elif first == PING:
                self.onPing(payload)
            else:
                self.closing(payload)
            if self.state != _OPEN or self.parsing:
                break
        if at < end or kept:
            self._rest(data[at:] if at else data, fresh=not kept or at > 0)

    def _rest(self, data: bytes, fresh: bool) -> None:
        """What is no whole frame, or none for the fast path.

        The start of a ``fresh`` one is kept, once: who sends a frame in many pieces is not to have each looked at
        again and again. Autobahn's parser would read its header and its text as they come, and so they are here.
        """
        if not data:
            self.data = b""
            return
        if self.state == self.STATE_OPEN and fresh and self._is_start(data):
            self.data = data
            return
        self.data = b""
        self._parse(data)

    def _is_start(self, data: bytes) -> bool:
        """Whether this is the start of a frame that the fast path takes, as far as can be seen."""
        first, at = data[0], 6
        if len(data) < 2:
            return True
        size = data[1] - MASKED
        if not 0 <= size <= TWO_BYTES or (first != TEXT and (size == TWO_BYTES or (first != PONG and first != PING))):
            return False
        if size == TWO_BYTES:
            at = 8
            if len(data) >= 4:
                size = data[2] << 8 | data[3]
        if len(data) < at:
            return True
        if size >= len(data) - at and size and (at == 6 or size >= TWO_BYTES):
            if len(data) == at + size:
                return False  # whole, and yet it was not taken
            if first == TEXT and not unmask(data[at:], data[at - 4 : at]).isascii():
                return False
            if self.allowance is not None:
                self.paid = self._pay(self.allowance)
                return self.paid
            return True
        return False

    def _pay(self, allowance: Allowance) -> bool:
        """Counts a frame, as ``onFrameBegin`` does for the parser's. False: one too many."""
        if self.paid:
            self.paid = False
            return True
        full_at = allowance.spend(self.frames_full_at, self.factory.clock.seconds(), 1 / FRAMES)
        if full_at < 0:
            return False
        self.frames_full_at = full_at
        return True

    def _parse(self, data: bytes) -> None:
        self.parsing = True
        super().dataReceived(data)
        self._between_frames()

    def _between_frames(self) -> None:
        """Back to the fast path, when Autobahn's parser is between two frames and nothing is wrong."""
        if self.state != self.STATE_OPEN or self.failedByMe:
            return
        if self.current_frame is None and not self.inside_message:
            self.parsing = False
            self._forget(PARSER)

    def _forget(self, names: tuple[str, ...]) -> None:
        own = self.__dict__
        for name in names:
            own.pop(name, None)

    def onFrameBegin(self) -> None:
        """The header of a frame that the parser takes."""
        if self.utf8validator is None:
            self.utf8validator = Utf8Validator()
        if self.paid:
            self.paid = False
            super(TextSocket, self).onFrameBegin()
        else:
            super().onFrameBegin()

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, payload: bytes) -> bool:
        """As any ``TextSocket``: the frame is built and written once."""
        if self.held_back >= 0:
            return super().send(payload)
        if self.state != _OPEN:
            return False
        frame = text_frame(payload)
        self.transport.write(frame)
        if self.held_back < 0:  # as mostly
            return True
        self.held_back += len(frame)
        self.factory.backlogs.grew(len(frame))
        state: int = self.state
        return state == self.STATE_OPEN


class FastSignalingFactory(SignalingFactory):
    """A ``SignalingFactory`` whose connections take the fast path. ``begin`` is for the door."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        options: dict[str, Any] = {}
        for name in WebSocketServerProtocol.CONFIG_ATTRS:
            value = getattr(self, name)
            options[name] = staticmethod(value) if callable(value) else value
        self.protocol = type("FastSignalingConnection", (FastSignalingProtocol,), {
            "__slots__": (), "__doc__": FastSignalingProtocol.__doc__, "factory": self, **DEFAULTS, **options,
        })
        start = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
        chosen = b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode("ascii") + b"\r\n"
        self.switching = (start + b"Sec-WebSocket-Accept: ", start + chosen + b"Sec-WebSocket-Accept: ")
        """The answer to a plain handshake up to its last value: without a subprotocol, with it."""
        assert not self.server and not self.headers, "these would belong into the answer"

    def buildProtocol(self, addr: Any) -> Any:
        """A connection for any handshake."""
        return self.protocol()

    def begin(self, peer: str, fields: Mapping[str, str], transport: Any) -> FastSignalingProtocol | None:
        """A connection for a plain handshake, to be told to ``enter``; None when Autobahn must look at it.

        ``fields`` are those of a ``GET`` of HTTP/1.1 without a query, in visible ASCII and spaces, with their names
        in lower case; several of one name are joined by commas.
        """
        get = fields.get
        offered, origin, extensions = get("sec-websocket-protocol"), get("origin"), get("sec-websocket-extensions")
        if (
            get("upgrade", "").lower() != "websocket"
            or get("connection", "").lower() not in _UPGRADES
            or get("sec-websocket-version") != "13"
            or not _KEY(get("sec-websocket-key", ""))
            or not _HOST(get("host", ""))
            or (offered is not None and offered != SUBPROTOCOL)
            or (extensions is not None and not _EXTENSIONS(extensions))
            or (origin is not None and not _ORIGIN(origin))
        ):
            return None
        try:
            address = self.address_of(peer, dict(fields))
            permitted = self.origin_permitted(peer, dict(fields), transport)
        except Exception:
            return None  # it fails again, and is answered so
        connection: FastSignalingProtocol = self.protocol()
        connection.address = peer if address == peer else address  # one text for the transport and for us
        if permitted:
            connection.origin_permitted = True
        return connection
