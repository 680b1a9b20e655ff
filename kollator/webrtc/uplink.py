"""The worker's WebSocket to one front: registering, relaying, and coming back when it is lost.

One ``Uplink`` a front. Nothing is taken from a front before it has shown that it knows the key. What the
clients send goes to the ``Desk``; answers go back through the uplink that the client's message came over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from msgspec import DecodeError, ValidationError
from msgspec.json import Decoder
from service_identity import VerificationError
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator import __version__
from kollator.signaling.messages import (
    MESSAGE_BYTES,
    SUBPROTOCOL,
    Answer,
    Auth,
    Bye,
    ByeFrom,
    CandidateFrom,
    Challenge,
    Close,
    Draining,
    Error,
    Hello,
    IceServer,
    OfferFrom,
    Status,
    ToWorker,
    WorkerWelcome,
    decoder,
    encode,
)

from .backoff import Backoff
from .registration import Registration, UntrustedFrontError

REGISTER_TIMEOUT_S = 10.0
"""From the open WebSocket to the front's welcome."""
STATUS_INTERVAL_S = 1.0
KEEPALIVE_S = 15.0
"""The front is pinged this often and has this long to answer: one that vanished without a word is noticed."""
STABLE_S = 10.0
"""A registration that held this long ends the backoff: a front that drops everybody is not hammered."""
REPLACED_PAUSE_S = 300.0
"""Two workers with one id would otherwise throw each other out for ever."""
DRAINED_CAP_S = 600.0

Send = Callable[[Answer | Bye], None]
"""Sends to the client; what is sent when the front is gone is lost."""

log = Logger(namespace="kollator:worker")
_decoder: Decoder[Any] = decoder(ToWorker)


class Call(Protocol):
    """What is used of an ``Call``."""

    def active(self) -> bool: ...  # noqa: D102

    def cancel(self) -> None: ...  # noqa: D102


class Clock(Protocol):
    """What is used of an ``IReactorTime``."""

    def seconds(self) -> float: ...  # noqa: D102

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> Any: ...  # noqa: D102


class Desk(Protocol):
    """Where the clients' messages go: the sessions of all fronts together."""

    @property
    def sessions(self) -> int:
        """How many sessions there are now."""

    def received(self, message: OfferFrom | CandidateFrom | ByeFrom, send: Send) -> None:
        """A client's message; ``send`` is the way back."""

    def unreachable(self, client: str) -> None:
        """A message to this client could not be delivered."""

    def told_ice_servers(self, servers: Sequence[IceServer]) -> None:
        """What a front recommends for new sessions."""


class _Line(WebSocketClientProtocol):
    """One WebSocket; all it knows is its uplink."""

    uplink: Uplink
    registration: Registration
    registered_at_s: float | None = None
    wrong_host = False
    left: bool = False
    """True from the moment that we close it: nothing it still says counts."""

    def onOpen(self) -> None:
        self.uplink.opened(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if not isBinary and not self.left:
            self.uplink.received(self, payload)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.wrong_host = isinstance(reason.value, VerificationError)
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        # Autobahn knows other reasons of TLS, but not this one.
        told = "its certificate is for another host" if self.wrong_host else reason or ""
        self.uplink.closed(self, code or 0, told)


class Uplink(Service):
    """The connection to one front, for as long as the service runs.

    ``connect`` is an endpoint's; ``worker`` and ``keys`` are as for ``Registration``; ``nonce`` makes a fresh
    nonce; ``uniform`` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        url: str,
        connect: Callable[[WebSocketClientFactory], Deferred[Any]],
        worker: Hello,
        keys: Sequence[bytes],
        desk: Desk,
        *,
        clock: Clock,
        uniform: Callable[[], float],
        nonce: Callable[[], str],
    ) -> None:
        self.url = url
        self._connect_to = connect
        self._worker = worker
        self._keys = keys
        self._desk = desk
        self._clock = clock
        self._nonce = nonce
        self._retry = Backoff(uniform, base_s=0.5, cap_s=30.0)
        self._refused = Backoff(uniform, base_s=30.0, cap_s=540.0, floor_s=60.0)
        self._replaced = Backoff(uniform, base_s=60.0, cap_s=60.0, floor_s=REPLACED_PAUSE_S)
        self._line: _Line | None = None
        self._connecting: Deferred[Any] | None = None
        self._waiting: Call | None = None
        self._deadline: Call | None = None
        self._leaving: Call | None = None
        self._status_due: Call | None = None
        self._status_at_s = -STATUS_INTERVAL_S
        self._status_told = -1
        self._come_back_at_s: float | None = None
        self._over: Deferred[None] | None = None

    @property
    def registered(self) -> bool:
        """Whether the front has accepted this worker, and has shown that it may be trusted."""
        return self._line is not None and not self._line.left and self._line.registered_at_s is not None

    def startService(self) -> None:
        """Connects, and from now on again and again."""
        super().startService()  # type: ignore[no-untyped-call]
        self._connect()

    def stopService(self) -> Deferred[None] | None:
        """Closes with 1000; the Deferred fires when the connection is really gone."""
        super().stopService()  # type: ignore[no-untyped-call]
        _cancel(self._waiting)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._line is None:
            return None
        self._over = over = Deferred[None]()
        self._leave(self._line, Close.DONE, "the worker stops")
        return over

    def sessions_changed(self) -> None:
        """Tells the front the new load, at most once a second."""
        if not self.registered or self._status_due is not None or self._status_told == self._desk.sessions:
            return
        wait_s = self._status_at_s + STATUS_INTERVAL_S - self._clock.seconds()
        self._status_due = self._clock.callLater(max(0.0, wait_s), self._send_status)

    # -- called by the line ---------------------------------------------------------------------------------

    def opened(self, line: _Line) -> None:
        """The WebSocket is open: says hello."""
        line.registration = Registration(self._worker, self._keys, self._nonce())
        _send(line, line.registration.hello)
        self._deadline = self._clock.callLater(REGISTER_TIMEOUT_S, self._not_registered, line)

    def received(self, line: _Line, payload: bytes) -> None:
        """A text message of the front. Raises nothing, whatever it is."""
        try:
            self._received(line, _decoder.decode(payload))
        except ValidationError:
            # A newer front may say more than this worker knows.
            log.debug("front {url} sent a message that this worker does not know", url=self.url)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            log.warn("front {url} sent something that is no JSON; ignored", url=self.url)
        except UntrustedFrontError as problem:
            log.error("front {url} is not trusted, and left: {reason}", url=self.url, reason=str(problem))
            self._leave(line, Close.UNAUTHENTICATED, "this front is not trusted")
        except Exception:
            log.failure("a message of front {url} could not be handled", url=self.url)

    def closed(self, line: _Line, code: int, reason: str) -> None:
        """The WebSocket is closed, or never opened."""
        self._line = None
        _cancel(self._deadline, self._status_due, self._leaving)
        self._status_due = None
        if self._over is not None:
            over, self._over = self._over, None
            over.callback(None)
        elif self.running:
            self._try_again(self._pause_s(line, code, reason))

    # -- connecting -----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        factory = WebSocketClientFactory(  # type: ignore[no-untyped-call]
            self.url,
            protocols=[SUBPROTOCOL],
            useragent=f"kollator-worker/{__version__}",
            reactor=self._clock,
        )
        factory.protocol = self._new_line  # type: ignore[assignment]
        factory.noisy = False
        factory.setProtocolOptions(  # type: ignore[no-untyped-call]
            # A relayed message has ``from`` where the client had ``to``, and may be a little larger for it.
            maxMessagePayloadSize=2 * MESSAGE_BYTES,
            maxFramePayloadSize=2 * MESSAGE_BYTES,
            autoPingInterval=KEEPALIVE_S,
            autoPingTimeout=KEEPALIVE_S,
        )
        self._come_back_at_s = None
        connecting = self._connecting = self._connect_to(factory)
        connecting.addCallbacks(self._connected, self._not_connected).addErrback(self._failed)

    def _new_line(self) -> _Line:
        line = _Line()
        line.uplink = self
        return line

    def _connected(self, line: _Line) -> None:
        self._connecting = None
        self._line = line

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if self.running:
            delay_s = self._retry.next_s()
            why = failure.getErrorMessage() or type(failure.value).__name__
            self._say("warn", "cannot be reached", delay_s, why)
            self._try_again(delay_s)

    def _failed(self, failure: Failure) -> None:
        log.failure("connecting to front {url} failed", failure=failure, url=self.url)

    def _try_again(self, delay_s: float) -> None:
        self._waiting = self._clock.callLater(delay_s, self._connect)

    def _pause_s(self, line: _Line, code: int, reason: str) -> float:
        """How long to stay away after a connection has ended in this way; says so in the log."""
        now_s = self._clock.seconds()
        if line.registered_at_s is not None and now_s - line.registered_at_s >= STABLE_S:
            self._retry.reset()
            self._refused.reset()
        if code == Close.REPLACED:
            why = f"give each worker an id of its own, and name each front once: {self._worker.id} came twice"
            return self._say("error", "has another worker with this id", self._replaced.next_s(), why)
        if code == Close.UNAUTHENTICATED and not line.left:
            why = "compare the worker key here and there"
            return self._say("error", "does not accept the key", self._refused.next_s(), why)
        if code == Close.NOT_ALLOWED:
            why = "see its WORKER_ALLOW"
            return self._say("error", "does not accept this address", self._refused.next_s(), why)
        if self._come_back_at_s is not None:
            # The backoff on top, for a front that takes its workers back while it drains.
            delay_s = max(0.0, self._come_back_at_s - now_s) + self._retry.next_s()
            return self._say("info", "drains", delay_s, "as it asked")
        if line.left:
            return self._say("warn", "was left", self._refused.next_s(), "it was not trusted")
        return self._say("warn", "is gone", self._retry.next_s(), f"{code} {reason[:200]}")

    def _say(self, level: str, what: str, delay_s: float, why: str) -> float:
        text = "front {url} {what} ({reason}); again in {delay_s:.1f} s"
        getattr(log, level)(text, url=self.url, what=what, reason=why, delay_s=delay_s)
        return delay_s

    def _not_registered(self, line: _Line) -> None:
        log.warn("front {url} did not register this worker in time", url=self.url)
        line.dropConnection(abort=True)

    def _leave(self, line: _Line, code: int, reason: str) -> None:
        line.left = True
        _cancel(self._deadline, self._status_due, self._leaving)
        if line.state == line.STATE_OPEN:
            line.sendClose(code, reason)
        else:
            line.dropConnection(abort=True)

    # -- messages -------------------------------------------------------------------------------------------

    def _received(self, line: _Line, message: Any) -> None:
        if isinstance(message, Error):
            self._told_error(message)
        elif isinstance(message, Draining):
            if self._come_back_at_s is None:
                self._drain(line, min(max(message.reconnectInMs, 0) / 1000, DRAINED_CAP_S))
        elif isinstance(message, Challenge):
            _send(line, line.registration.answer(message))
        elif isinstance(message, WorkerWelcome):
            line.registration.check(message)
            self._welcomed(line, message)
        elif line.registered_at_s is not None:
            self._desk.received(message, lambda reply: self._reply(line, reply))

    def _welcomed(self, line: _Line, welcome: WorkerWelcome) -> None:
        _cancel(self._deadline)
        line.registered_at_s = self._clock.seconds()
        text = "registered as {id} with front {url} (node {node})"
        log.info(text, id=welcome.id, url=self.url, node=welcome.node)
        self._desk.told_ice_servers(welcome.iceServers)
        self._status_told = -1
        self.sessions_changed()

    def _drain(self, line: _Line, wait_s: float) -> None:
        """The front is about to stop. It may still relay for a while, and waits for us to leave."""
        log.info("front {url} is about to stop", url=self.url)
        self._come_back_at_s = self._clock.seconds() + wait_s
        self._leaving = self._clock.callLater(wait_s, self._leave, line, Close.DONE, "the front drains")

    def _told_error(self, error: Error) -> None:
        if error.code == "unknown-target" and isinstance(error.to, str):
            self._desk.unreachable(error.to)
        else:
            refusal = "front {url} refused a message: {code}: {text}"
            log.warn(refusal, url=self.url, code=error.code, text=error.message[:200])

    def _reply(self, line: _Line, message: Answer | Bye) -> None:
        if line is self._line and self.registered:
            _send(line, message)

    def _send_status(self) -> None:
        self._status_due = None
        if self._line is not None:
            self._status_at_s = self._clock.seconds()
            self._status_told = self._desk.sessions
            _send(self._line, Status(self._status_told))


def _send(line: _Line, message: Hello | Auth | Status | Answer | Bye) -> None:
    try:
        line.sendMessage(encode(message))  # type: ignore[no-untyped-call]
    except Disconnected:
        # The front has just closed; what becomes of that is told by ``closed``.
        pass


def _cancel(*calls: Call | None) -> None:
    for call in calls:
        if call is not None and call.active():
            call.cancel()
