"""One link between two fronts: the handshake, then frames in both directions, over whatever carries a stream.

A link is opened, established, over and gone, in this order. It is over once this end has decided so or has noticed
that the other one did: from then on nothing is received or sent. It is gone when its transport is. An owner, the
``Links`` of a front, decides about it and looks at it now and then (``look``): a link has no timer of its own.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, NamedTuple, Protocol, get_args

from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.handshake import Handshake, Rejected
from kollator.cluster.outbox import Outbox, TurnEnd
from kollator.cluster.wire import (
    FRAME_BYTES,
    OPENING_BYTES,
    BadFrame,
    Changes,
    Frame,
    Opening,
    Ping,
    Pong,
    Refusal,
    RefusalReason,
    Summary,
    ToClient,
    ToWorker,
    decode,
    encode,
)

log = Logger("kollator:cluster")

SOFT_BYTES = 1_048_576
"""When more than that waits to be written, a link is busy, and takes nothing that can be had again."""
HARD_BYTES = 8_388_608
"""When more than that would wait, the link is cut."""
STALLED_S = 10.0
"""How long the transport may take for one chunk (64 KiB) before the peer is taken not to read any more."""
HANDSHAKE_S = 5.0
"""How long a link may take to be established, connecting included."""
PING_S = 1.0
"""A link on which no summary was sent for so long sends a ``Ping``: by the summary its peer sees what it lacks."""
KEEPALIVE_S = 3.0
"""A link on which nothing came for so long is cut."""
DOUBT_S = 1.0
"""The same, for a link whose peer has just tried to make another one."""
CLOSING_S = 1.0
"""How long a transport may take to write the last frame and close."""

Reason = str
REASONS: tuple[Reason, ...] = (
    *get_args(RefusalReason),
    *("too-large", "malformed", "unknown-type"),  # bytes that are no frame, after the handshake
    "handshake-timeout",
    "silent",  # nothing came for KEEPALIVE_S
    "lost",  # the transport broke, or the peer closed it without a word
    "closed-early",  # the same, before the handshake was done
    "tls",  # a TLS handshake failed: one end has not shown the certificate that the other wants
    "not-reached",  # the peer could not be connected to
    "half-open",  # too many links were being opened
    "backed-off",  # an address that failed has come back too soon
    "websocket",  # not a good WebSocket
    "origin",  # a browser
    "cut",  # this front wanted the link to be made anew
    "internal",  # a frame that this front failed to handle; the link goes on
    "refused-by-peer",  # the peer named one of the reasons before the handshake was done, or "too-slow"
)
"""Everything that is counted, and nothing else."""

_AGAIN = (ToWorker, ToClient, Changes)
"""What a busy link does not take: its sender is told, or sends it again."""
_BENIGN = ("duplicate-link", "stopping")
_length = struct.Struct("!I")


class End(NamedTuple):
    """Why a link is over: one of ``REASONS``, and more for whoever reads the log."""

    reason: Reason
    detail: str = ""
    by_peer: bool = False

    @property
    def counted_as(self) -> Reason:
        """The reason for the counters."""
        return "refused-by-peer" if self.by_peer and self.reason not in _BENIGN else self.reason

    def __str__(self) -> str:
        text = f"the peer says {self.reason}" if self.by_peer else self.reason
        return f"{text} ({self.detail})" if self.detail else text


def is_tls_failure(reason: Failure) -> bool:
    """Whether a transport was lost because its TLS handshake failed, by OpenSSL or by the check of the host name."""
    # Where these have not been imported there is no TLS; they are large, see kollator.lean.
    kinds = [
        getattr(sys.modules[module], error)
        for module, error in (("OpenSSL.SSL", "Error"), ("service_identity", "VerificationError"))
        if module in sys.modules
    ]
    return reason.check(*kinds) is not None


class Owner(Protocol):
    """Who a link belongs to."""

    def admits(self, link: PeerLink, peer: str) -> RefusalReason | None:
        """Whether ``link`` may be established, now that ``peer`` has proved that it is there: a reason if not."""

    def established(self, link: PeerLink, peer: str) -> None:
        """From here on frames are sent and received."""

    def received(self, link: PeerLink, peer: str, frame: Frame) -> None:
        """A frame came."""

    def ended(self, link: PeerLink, end: End) -> None:
        """The link is over. Called once for every link."""

    def gone(self, link: PeerLink) -> None:
        """Its transport is gone too. Called once, after ``ended``."""

    def summary(self, peer: str) -> Summary | None:
        """What pings and pongs to ``peer`` tell of this front."""


class PeerLink(Int32StringReceiver):
    """One end of one link.

    ``address`` is the other end's, for limits and the log; ``serial`` is higher for a link that was begun later.
    """

    MAX_LENGTH = OPENING_BYTES
    transport: Any = None

    def __init__(
        self, owner: Owner, handshake: Handshake, clock: Clock, turn_end: TurnEnd, *, address: str, serial: int
    ) -> None:
        self.address = address
        self.serial = serial
        self.dialled = handshake.role == "dialler"
        self.peer: str | None = None
        """The front at the other end, once the link is established."""
        self.established_at: float | None = None
        self.end: End | None = None
        """Why it is over; None while it is not."""
        self.answered = False
        """The other end has greeted, so a proof was sent if this end dialled."""
        self._owner = owner
        self._handshake = handshake
        self._clock = clock
        self._turn_end = turn_end
        self._outbox: Outbox | None = None
        self._began_at = self._heard_at = self._told_at = clock.seconds()
        self._ended_at = 0.0
        self._heard_by: float | None = None
        self._pings = 0
        self._aborted = False
        self._gone = False

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """More waits to be written than the link likes."""
        return self._outbox is not None and self._outbox.waiting_bytes > SOFT_BYTES

    def send(self, frame: Frame) -> bool:
        """Sends a frame. False: it was not taken, as the link is not established, is busy, or is cut (too slow).

        A busy link still takes what keeps the cluster together. Raises ``ValueError`` for a frame over the limit.
        """
        outbox = self._outbox
        if outbox is None or self.established_at is None or self.end is not None:
            return False
        if outbox.waiting_bytes > SOFT_BYTES and isinstance(frame, _AGAIN):
            return False
        payload = encode(frame)
        if outbox.waiting_bytes + len(payload) > HARD_BYTES:
            self.close("too-slow", "too much waits to be written")
            return False
        outbox.put(_length.pack(len(payload)) + payload)
        if getattr(frame, "summary", None) is not None:
            self._told_at = self._clock.seconds()
        return True

    # -- ending -------------------------------------------------------------------------------------------------------

    def close(self, reason: RefusalReason, detail: str = "") -> None:
        """Tells the peer the reason and closes."""
        self._finish(End(reason, detail), Refusal(reason))

    def abort(self, reason: Reason, detail: str = "") -> None:
        """Closes at once, without a word: the other end is not there, or nobody to talk to."""
        if self._finish(End(reason, detail), None, hang_up=False):
            self._abort()

    def fail(self, reason: Reason, detail: str = "") -> None:
        """The link is over; its transport is closed by somebody else, or never was."""
        self._finish(End(reason, detail), None, hang_up=False)

    def _finish(self, end: End, last: Refusal | None, hang_up: bool = True) -> bool:
        if self.end is not None:
            return False
        self.end = end
        self._ended_at = self._clock.seconds()
        if self._outbox is not None and not hang_up:
            self._outbox.stopProducing()
        elif self._outbox is not None:
            self._outbox.close(b"" if last is None else _framed(last))
            self.transport.loseConnection()
        self._owner.ended(self, end)
        if self.transport is None:
            self._go()
        elif self._outbox is None and hang_up:
            self._abort()  # not even connected all the way
        return True

    def _abort(self) -> None:
        if self.transport is not None and not self._aborted and not self._gone:
            self._aborted = True
            self.transport.abortConnection()

    def _go(self) -> None:
        if not self._gone:
            self._gone = True
            self._owner.gone(self)

    # -- what time brings ---------------------------------------------------------------------------------------------

    def doubt(self) -> None:
        """The peer behaves as if this link were no more: it has ``DOUBT_S`` to show that it is."""
        if self._heard_by is None:
            self._heard_by = self._clock.seconds() + DOUBT_S
            self._ping()

    def shift(self, by_s: float) -> None:
        """The clock has leapt, or this process has slept: nobody can be blamed for that time."""
        self._began_at += by_s
        self._heard_at += by_s
        self._told_at += by_s
        self._ended_at += by_s
        if self._heard_by is not None:
            self._heard_by += by_s
        if self._outbox is not None and self._outbox.behind_since is not None:
            self._outbox.behind_since += by_s

    def look(self, now: float, keepalive_s: float) -> None:
        """Does what is due. To be called several times a second."""
        if self.end is not None:
            if now - self._ended_at >= CLOSING_S:
                self._abort()
        elif self.established_at is None:
            if now - self._began_at >= HANDSHAKE_S:
                self.abort("handshake-timeout")
        elif now - self._heard_at >= keepalive_s or (self._heard_by is not None and now >= self._heard_by):
            self.abort("silent", f"nothing came for {now - self._heard_at:.1f} s")
        elif self._stalled(now):
            self.close("too-slow", "nothing is read")
        elif now - self._told_at >= PING_S:
            self._ping()

    def _stalled(self, now: float) -> bool:
        since = None if self._outbox is None else self._outbox.behind_since
        return since is not None and now - since >= STALLED_S

    def _ping(self) -> None:
        if self.peer is not None:
            self._pings += 1
            self.send(Ping(self._pings, self._owner.summary(self.peer)))

    # -- the transport ------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Begins the handshake."""
        if self.end is not None:
            self._abort()
            return
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass  # not TCP
        self._outbox = Outbox(self.transport, self._clock, self._turn_end)
        for frame in self._handshake.start():
            self._write(frame)

    def dataReceived(self, data: bytes) -> None:
        """Takes a piece of the stream, wherever it was cut."""
        if self.end is not None:
            return
        self._heard_at = self._clock.seconds()
        self._heard_by = None
        if self.peer is None:
            super().dataReceived(data)
            return
        # What Twisted's does, in a third of the time: all that is relayed between fronts comes by here.
        if self._unprocessed:
            data = self._unprocessed + data
            self._unprocessed = b""
        begin, end = 0, len(data)
        while end - begin >= _length.size:
            (size_bytes,) = _length.unpack_from(data, begin)
            if size_bytes > FRAME_BYTES:
                self.lengthLimitExceeded(size_bytes)
                return
            after = begin + _length.size + size_bytes
            if after > end:
                break
            self._take(self.peer, data[begin + _length.size : after])
            if self.end is not None:
                return
            begin = after
        if begin < end:
            self._unprocessed = data[begin:]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The transport is gone."""
        early = "tls" if is_tls_failure(reason) else "closed-early"
        self.fail(early if self.established_at is None else "lost", reason.getErrorMessage())
        self._go()

    def lengthLimitExceeded(self, length: int) -> None:
        """A frame over the limit is refused at its length."""
        if self.established_at is None:
            self.close("bad-frame", f"{length} bytes")
        else:
            self._refuse("too-large", f"{length} bytes")

    def stringReceived(self, string: bytes) -> None:
        """Takes a frame of the opening, or one that came together with its end."""
        if self.end is not None:
            return
        if self.peer is None:
            self._take_opening(string)
        else:
            self._take(self.peer, string)

    def _take(self, peer: str, payload: bytes) -> None:
        try:
            frame = decode(payload)
        except BadFrame as problem:
            self._refuse(problem.reason, str(problem).partition(": ")[2])
            return
        if type(frame) is Refusal:
            self._finish(End(frame.reason, by_peer=True), None)
            return
        self._owner.received(self, peer, frame)
        if type(frame) is Ping:
            self.send(Pong(frame.number, self._owner.summary(peer)))

    def _take_opening(self, payload: bytes) -> None:
        try:
            answers = self._handshake.receive(payload)
        except Rejected as problem:
            self._finish(End(problem.reason, by_peer=problem.by_peer), problem.refusal)
            return
        self.answered = True
        peer = self._handshake.peer
        refusal = None if peer is None else self._owner.admits(self, peer)
        if refusal is not None:  # before the last proof: the other end never takes the link for established
            self.close(refusal)
            return
        for frame in answers:
            self._write(frame)
        if peer is not None:
            self.peer = peer
            self.MAX_LENGTH = FRAME_BYTES
            self.established_at = self._clock.seconds()
            self._owner.established(self, peer)

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._finish(End(reason, detail), Refusal("bad-frame"))

    def _write(self, frame: Opening) -> None:
        if self._outbox is not None:
            self._outbox.put(_framed(frame))
            self._outbox.flush()


class TurnedAway(TwistedProtocol):
    """A connection that gets no link."""

    transport: Any

    def connectionMade(self) -> None:
        """Closes it."""
        self.transport.abortConnection()


def _framed(frame: Opening) -> bytes:
    payload = encode(frame)
    return _length.pack(len(payload)) + payload
