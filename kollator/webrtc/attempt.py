"""One deep check: opens a data channel to one worker through a front, as a browser does, and times the phases.

Candidates are gathered before the offer and travel in it. What the worker sends is taken as the worker takes a
client's: its candidates one by one, so that one that cannot be used costs itself and not the check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from msgspec import UNSET
from twisted.logger import Logger

from kollator.pool.checks import ERROR_CHARS, PREPARE_S, Check, Phase, Phases, Result
from kollator.signaling.messages import (
    AnswerFrom,
    Bye,
    ByeFrom,
    CandidateFrom,
    Draining,
    Error,
    Hello,
    Offer,
    ToClient,
    Welcome,
    WorkerLost,
    decoder,
    encode,
)

from . import channel as wire
from .ice import IceServers, answered
from .offer import read_candidate, read_offer
from .session import CANDIDATES

log = Logger(namespace="kollator:webrtc")

CLOSE_S = 2.0
"""How long a peer connection may take to close after a check; then it is left to its own time-outs."""
EXCUSES = ("full", "going-away")
"""Reasons of a worker's ``bye`` that are no failure: it does as it should, and takes no session now."""

_decoder: msgspec.json.Decoder[Any] = decoder(ToClient)


class Gone(Exception):
    """The WebSocket cannot be opened, or is closed. Its text says why."""


class Line(Protocol):
    """A WebSocket to a front."""

    def send(self, payload: bytes) -> None:
        """Sends a text message; what is sent after the end is lost."""

    async def receive(self) -> bytes:
        """The next text message. Raises ``Gone``."""

    async def close(self) -> None:
        """Closes it, in bounded time. Raises nothing."""


Dial = Callable[[str], Awaitable[Line]]
"""Opens a WebSocket to a URL. Raises ``OSError`` or ``Gone``."""


class _Ended(Exception):
    """The check has failed. ``own``: for a reason that is not the worker's."""

    def __init__(self, text: str, own: bool) -> None:
        super().__init__(text)
        self.own = own


async def attempt(order: Check, dial: Dial, ice: IceServers) -> Result:
    """Makes a check, in bounded time; nothing of it is left when it returns, or is cancelled.

    The times are bounded by ``PREPARE_S``, ``order.limit_s`` and ``CLOSE_S``, one after the other.
    """
    check = _Attempt(order, dial, ice)
    try:
        await check.run()
        return Result(order.check, order.worker, True, phases=Phases(**check.took_ms))
    except _Ended as failed:
        return Result(
            order.check, order.worker, False, phase=check.phase, error=_printable(str(failed)), own=failed.own
        )
    finally:
        await check.close()


class _Attempt:
    def __init__(self, order: Check, dial: Dial, ice: IceServers) -> None:
        self.phase: Phase = "connect"
        self.took_ms: dict[str, float] = {}
        self._order = order
        self._label = f"check-{order.check}"
        self._dial = dial
        self._servers = ice
        loop = asyncio.get_running_loop()
        self._now_s = loop.time
        self._line: Line | None = None
        self._connection: RTCPeerConnection | None = None
        self._offered = False
        self._candidates: list[str] | None = []
        """Those that came before the answer; None afterwards."""
        self._added = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._answer: asyncio.Future[str] = loop.create_future()
        self._reached: asyncio.Future[None] = loop.create_future()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[_Ended] = loop.create_future()

    async def run(self) -> None:
        """Goes through the phases. Raises ``_Ended``."""
        try:
            async with asyncio.timeout(PREPARE_S):
                line = await self._connect()
                sdp = await self._offer(line)
        except TimeoutError:
            raise _Ended(f"not done within {PREPARE_S:g} s", own=True) from None
        except OSError as problem:
            raise _Ended(problem.strerror or str(problem), own=True) from None
        except Gone as problem:
            raise _Ended(str(problem), own=True) from None
        try:
            async with asyncio.timeout(self._order.limit_s):
                await self._open(line, sdp)
        except TimeoutError:
            raise _Ended(f"not done within {self._order.limit_s:g} s", own=False) from None

    async def close(self) -> None:
        """Ends what was begun; the worker is told. Raises nothing."""
        for task in self._tasks:
            task.cancel()
        if self._line is not None and self._offered:
            self._line.send(encode(Bye(self._order.worker, self._label)))
        if self._connection is not None:
            try:
                await asyncio.wait_for(self._connection.close(), CLOSE_S)
            except TimeoutError:
                log.debug("a peer connection did not close in {limit_s} s", limit_s=CLOSE_S)
            except Exception:
                log.failure("a peer connection did not close")
        if self._line is not None:
            await self._line.close()

    # -- the phases ---------------------------------------------------------------------------------------------------

    async def _connect(self) -> Line:
        began_s = self._now_s()
        line = self._line = await self._dial(self._order.url)
        began_s = self._done(began_s, "welcome")
        line.send(encode(Hello("client")))
        while not isinstance(message := _decoded(await line.receive()), Welcome):
            if isinstance(message, Error):
                raise _Ended(message.message, own=True)
        self._done(began_s, "answer")
        self._servers.told(message.iceServers)
        return line

    async def _offer(self, line: Line) -> str:
        servers = await self._servers.current()
        connection = self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        connection.on("connectionstatechange", self._state_changed)
        connection.on("iceconnectionstatechange", self._state_changed)
        channel = connection.createDataChannel(wire.LABEL, protocol=wire.PROTOCOL)
        channel.on("open", lambda: _settle(self._opened))
        began_s = self._now_s()
        await connection.setLocalDescription(await connection.createOffer())
        sdp: str = connection.localDescription.sdp
        if servers:
            self._servers.gathered(self._now_s() - began_s, answered(sdp))
        if "a=candidate:" not in sdp:
            raise _Ended("this machine has no network interface for WebRTC", own=True)
        return sdp

    async def _open(self, line: Line, sdp: str) -> None:
        self._spawn(self._listen(line))
        began_s = self._now_s()
        self._offered = True
        line.send(encode(Offer(self._order.worker, sdp, self._label)))
        await self._accept(await self._until(self._answer))
        began_s = self._done(began_s, "ice")
        await self._until(self._reached)
        began_s = self._done(began_s, "open")
        await self._until(self._opened)
        self._done(began_s, "open")

    def _done(self, began_s: float, following: Phase) -> float:
        """A phase is over; returns when."""
        now_s = self._now_s()
        self.took_ms[f"{self.phase}_ms"] = round((now_s - began_s) * 1000, 3)
        self.phase = following
        return now_s

    async def _until(self, awaited: asyncio.Future[Any]) -> Any:
        """What is awaited, unless the check ends before that."""
        await asyncio.wait((awaited, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not awaited.done():
            raise self._ended.result()
        return awaited.result()

    # -- the worker ---------------------------------------------------------------------------------------------------

    async def _listen(self, line: Line) -> None:
        """What the front says from the offer on."""
        try:
            while True:
                message = _decoded(await line.receive())
                if isinstance(message, AnswerFrom | CandidateFrom | ByeFrom):
                    if message.from_ == self._order.worker:
                        self._said(message)
                elif isinstance(message, Error):
                    self._end(message.message, own=message.code != "target-busy")
                elif isinstance(message, Draining):
                    self._end("the front is about to stop", own=True)
                elif isinstance(message, WorkerLost) and message.worker == self._order.worker:
                    self._end("the worker is gone", own=True)
        except Gone as problem:
            self._end(str(problem), own=True)

    def _said(self, message: AnswerFrom | CandidateFrom | ByeFrom) -> None:
        if isinstance(message, AnswerFrom):
            _settle(self._answer, message.sdp)
        elif isinstance(message, ByeFrom):
            self._end(f"the worker said bye: {message.reason or 'no reason'}", own=message.reason in EXCUSES)
        elif message.candidate is not None and message.candidate.candidate is not UNSET:
            self._heard(message.candidate.candidate)

    async def _accept(self, answer: str) -> None:
        assert self._connection is not None
        try:
            description = read_offer(answer)  # which reads any description of one section
            await self._connection.setRemoteDescription(RTCSessionDescription(description.sdp, "answer"))
        except Exception as problem:  # aiortc raises whatever it likes; its text may quote the SDP
            raise _Ended(f"its answer cannot be used ({type(problem).__name__})", own=False) from None
        heard, self._candidates = self._candidates, None
        for text in description.candidates + (heard or []):
            self._heard(text)

    def _heard(self, text: str) -> None:
        """A candidate of the worker's."""
        if self._candidates is not None:
            if len(self._candidates) < CANDIDATES:
                self._candidates.append(text)
            return
        self._added += 1
        candidate = read_candidate(text) if self._added <= CANDIDATES else None
        if candidate is not None and self._connection is not None:
            self._spawn(self._add(self._connection, candidate))

    async def _add(self, connection: RTCPeerConnection, candidate: Any) -> None:
        try:
            await connection.addIceCandidate(candidate)
        except Exception as problem:
            log.debug("a candidate cannot be used: {kind}", kind=type(problem).__name__)

    def _state_changed(self) -> None:
        assert self._connection is not None
        if self._connection.iceConnectionState in ("connected", "completed"):
            _settle(self._reached)
        for state in (self._connection.iceConnectionState, self._connection.connectionState):
            if state in ("failed", "closed"):
                self._end(f"the connection {state}", own=False)

    def _end(self, text: str, own: bool) -> None:
        _settle(self._ended, _Ended(text, own))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _decoded(payload: bytes) -> Any:
    """A message of the front; None for one that is not known here."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _settle(future: asyncio.Future[Any], result: Any = None) -> None:
    if not future.done():
        future.set_result(result)


def _printable(text: str) -> str:
    """Texts of others on their way into a log: one line, not too long."""
    return "".join(char if char.isprintable() else "?" for char in text[:ERROR_CHARS])
