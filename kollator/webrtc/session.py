"""The worker's peer connections: one session a client (and ``session`` label), each with one data channel.

A session begins with an offer and is answered once, with all candidates of our own. The client's candidates
may come at any time after the offer. When the worker ends it, ``bye`` says why:

=============  ======================================================================================
``full``       the worker has as many sessions as it takes
``bad-offer``  the offer is none, or not of exactly one section of data channels
``timeout``    no data channel was open 30 s after the offer
``failed``     the connection broke
``restart``    ICE restart, which aiortc cannot do: make a new connection
``going-away`` the worker stops
=============  ======================================================================================

A second offer with the same label: the same again is answered with the same answer (it got lost on the way);
one of another peer connection, with another certificate, replaces the session.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from msgspec import UNSET, UnsetType
from twisted.logger import Logger

from kollator.signaling.messages import Answer, Bye, ByeFrom, CandidateFrom, IceServer, OfferFrom

from . import channel as wire
from .ice import IceServers, answered
from .offer import Offer, read_candidate, read_offer
from .serving import FileService, Serving

log = Logger(namespace="kollator:webrtc")

OPEN_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0
CANDIDATES = 64
"""Candidates of a client that are tried. A browser has a dozen; each costs packets to the address in it."""
SESSIONS_PER_CLIENT = 16
"""One client must not take all of a worker's capacity by opening sessions that it does not use."""
CLOSING_SESSIONS = 64
"""Sessions that are being closed on top of the capacity: who opens and closes all the time waits for that."""

Send = Callable[[Answer | Bye], None]
Label = str | UnsetType | None


class Session:
    """One client's peer connection. ``closed`` is called once, when the session begins to close."""

    def __init__(
        self,
        client: str,
        label: Label,
        *,
        ice: IceServers,
        files: FileService,
        closed: Callable[[Session], None],
    ) -> None:
        self.client = client
        self.label = label
        self.opened = False
        self._ice = ice
        self._files = files
        self._closed = closed
        self._send: Send | None = None
        self._offer: Offer | None = None
        self._answer: Answer | None = None
        self._connection: RTCPeerConnection | None = None
        self._described = False
        self._early: list[str] = []
        self._candidates = 0
        self._adding: set[asyncio.Task[None]] = set()
        self._negotiation: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._serving: Serving | None = None
        self._closing: asyncio.Task[None] | None = None

    # -- what the client says -------------------------------------------------------------------------------

    def start(self, offer: Offer, send: Send) -> None:
        """Answers the first offer."""
        loop = asyncio.get_running_loop()
        self._started_s = loop.time()
        self._offer = offer
        self._send = send
        self._timer = loop.call_later(OPEN_TIMEOUT_S, self.close, "timeout")
        self._negotiation = loop.create_task(self._negotiate(offer))

    def again(self, offer: Offer, send: Send) -> bool:
        """A further offer. False: it is another peer connection's, for another session."""
        before = self._offer
        if before is None or offer.fingerprint != before.fingerprint:
            return False
        self._send = send
        if offer.ufrag != before.ufrag:
            self.close("restart")
        elif self._answer is not None:
            send(self._answer)
        return True

    def candidate(self, message: CandidateFrom, send: Send) -> None:
        """A trickled candidate (RFC 8838). End-of-candidates is not passed on: see ``offer``."""
        self._send = send
        found = message.candidate
        if found is None or found.candidate is UNSET or not found.candidate or self._offer is None:
            return
        ufrag = found.usernameFragment
        if ufrag is not UNSET and ufrag is not None and ufrag != self._offer.ufrag:
            return
        if self._described:
            self._add(found.candidate)
        elif len(self._early) < CANDIDATES:
            self._early.append(found.candidate)

    # -- ending ---------------------------------------------------------------------------------------------

    def close(self, reason: str | None = None) -> None:
        """Ends the session; with a reason, the client is told."""
        if self._closing is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._closing = asyncio.ensure_future(self._close())
        log.info("session of {client} closed: {reason}", client=self.client, reason=reason or "the client is gone")
        self._closed(self)
        if reason is not None and self._send is not None:
            self._send(Bye(self.client, self.label, reason))

    async def wait_closed(self) -> None:
        """Done when nothing of a session that was closed runs any more. Raises nothing."""
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def _close(self) -> None:
        try:
            if self._serving is not None:
                await self._serving.close()
            if self._negotiation is not None:
                # Not cancelled: aioice would leave its own tasks behind.
                await asyncio.wait([self._negotiation])
            for task in self._adding:
                task.cancel()
            if self._adding:
                await asyncio.wait(self._adding)
            if self._connection is not None:
                await asyncio.wait_for(self._connection.close(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            log.warn("a peer connection did not close in {limit_s} s", limit_s=CLOSE_TIMEOUT_S)
        except Exception:
            log.failure("a peer connection did not close")

    # -- the peer connection --------------------------------------------------------------------------------

    async def _negotiate(self, offer: Offer) -> None:
        """Answers the offer. Raises nothing, whatever aiortc makes of it."""
        try:
            answer = await self._answered(offer)
        except Exception as problem:
            # Its text may quote the SDP.
            log.info(
                "offer of {client} refused: {kind}", client=self.client, kind=type(problem).__name__
            )
            self.close("bad-offer")
            return
        if self._closing is None and self._send is not None:
            self._answer = answer
            self._send(answer)

    async def _answered(self, offer: Offer) -> Answer:
        servers = await self._ice.current()
        connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection = connection
        connection.on("datachannel", self._channel)
        connection.on("connectionstatechange", self._state_changed)
        await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        self._described = True
        for text in offer.candidates + self._early:
            self._add(text)
        self._early.clear()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await connection.setLocalDescription(await connection.createAnswer())
        sdp = connection.localDescription.sdp
        if servers:
            self._ice.gathered(loop.time() - started_s, answered(sdp))
        return Answer(self.client, sdp, self.label)

    def _add(self, text: str) -> None:
        candidate = read_candidate(text)
        if candidate is None or self._connection is None or self._closing is not None:
            return
        self._candidates += 1
        if self._candidates > CANDIDATES:
            return
        # A task each: a name (mDNS) takes a second to resolve, and must not hold the others up.
        task = asyncio.ensure_future(self._adding_of(self._connection, candidate))
        self._adding.add(task)
        task.add_done_callback(self._adding.discard)

    async def _adding_of(self, connection: RTCPeerConnection, candidate: object) -> None:
        try:
            await connection.addIceCandidate(candidate)  # type: ignore[arg-type]
        except Exception as problem:
            log.debug("a candidate cannot be used: {kind}", kind=type(problem).__name__)

    def _state_changed(self) -> None:
        state = self._connection.connectionState if self._connection is not None else ""
        if state in ("failed", "closed"):
            # Closed: the client did that, and knows.
            self.close("failed" if state == "failed" else None)

    def _channel(self, channel: RTCDataChannel) -> None:
        reliable = channel.maxRetransmits is None and channel.maxPacketLifeTime is None
        expected = (channel.label, channel.protocol) == (wire.LABEL, wire.PROTOCOL)
        if not (expected and reliable and channel.ordered) or self._serving is not None or self._closing:
            channel.close()
            return
        if self._timer is not None:
            self._timer.cancel()
        self.opened = True
        self._serving = Serving(channel, self._files)
        channel.on("close", self.close)
        took_ms = (asyncio.get_running_loop().time() - self._started_s) * 1000
        log.info("session of {client} open after {ms:.0f} ms", client=self.client, ms=took_ms)


class Sessions:
    """All sessions of the worker, over all fronts: what an uplink calls its ``Desk``.

    ``capacity`` is in sessions; ``changed`` is called whenever their number has changed.
    """

    def __init__(
        self, capacity: int, files: FileService, ice: IceServers, changed: Callable[[], None]
    ) -> None:
        self._capacity = capacity
        self._files = files
        self._ice = ice
        self._changed = changed
        self._open: dict[tuple[str, str], Session] = {}
        self._closing: set[Session] = set()
        self._of_client: Counter[str] = Counter()
        self._stopped = False

    @property
    def sessions(self) -> int:
        """How many sessions there are now, those that are being made included."""
        return len(self._open)

    def received(self, message: OfferFrom | CandidateFrom | ByeFrom, send: Send) -> None:
        """A client's message; ``send`` is the way back."""
        client, label = message.from_, message.session
        if isinstance(message, OfferFrom):
            self._offered(client, label, message.sdp, send)
        elif isinstance(message, CandidateFrom):
            if (session := self._open.get(_key(client, label))) is not None:
                session.candidate(message, send)
        else:
            # A bye without a label is one to everything.
            for session in [s for s in self._open.values() if s.client == client]:
                if session.label == label or not isinstance(label, str):
                    session.close()

    def unreachable(self, client: str) -> None:
        """A message to this client could not be delivered: what is not open yet will never be."""
        for session in [s for s in self._open.values() if s.client == client and not s.opened]:
            session.close()

    def told_ice_servers(self, servers: Sequence[IceServer]) -> None:
        """What a front recommends for new sessions."""
        self._ice.told(servers)

    async def close(self) -> None:
        """Ends all sessions with ``going-away`` and takes no more; done when nothing of them runs."""
        self._stopped = True
        for session in list(self._open.values()):
            session.close("going-away")
        await asyncio.gather(*(session.wait_closed() for session in self._closing))

    def _offered(self, client: str, label: Label, sdp: str, send: Send) -> None:
        try:
            offer = read_offer(sdp)
        except ValueError:
            send(Bye(client, label, "bad-offer"))
            return
        old = self._open.get(_key(client, label))
        if old is not None:
            if old.again(offer, send):
                return
            old.close()
        if self._stopped:
            send(Bye(client, label, "going-away"))
        elif (
            len(self._open) >= self._capacity
            or self._of_client[client] >= SESSIONS_PER_CLIENT
            or len(self._open) + len(self._closing) >= self._capacity + CLOSING_SESSIONS
        ):
            log.info("session of {client} refused: full", client=client)
            send(Bye(client, label, "full"))
        else:
            session = Session(client, label, ice=self._ice, files=self._files, closed=self._ended)
            self._open[_key(client, label)] = session
            self._of_client[client] += 1
            session.start(offer, send)
            self._changed()

    def _ended(self, session: Session) -> None:
        self._open.pop(_key(session.client, session.label), None)
        self._of_client[session.client] -= 1
        if not self._of_client[session.client]:
            del self._of_client[session.client]
        self._closing.add(session)
        asyncio.ensure_future(session.wait_closed()).add_done_callback(
            lambda _: self._closing.discard(session)
        )
        self._changed()


def _key(client: str, label: Label) -> tuple[str, str]:
    return client, label if isinstance(label, str) else ""
