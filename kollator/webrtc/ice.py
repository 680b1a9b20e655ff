"""Which STUN and TURN servers new sessions use.

aiortc answers an offer only when it has gathered all its candidates, and waits 5 s for a server that is
silent. So the servers are tried once, before the first client comes; while none answers, sessions have host
candidates only, without the wait, and every few minutes the servers are tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection
from aiortc.rtcicetransport import parse_stun_turn_uri
from msgspec import UNSET
from twisted.logger import Logger

from kollator.signaling.messages import IceServer

log = Logger(namespace="kollator:webrtc")

STALL_S = 2.0
"""Gathering that took longer than this has waited for a silent server."""
RETRY_S = 300.0
TRIAL_WAIT_S = 1.0
"""How long an answer waits for the first trial; a server that takes longer is no help in a session's start."""

Gather = Callable[[list[RTCIceServer]], Awaitable[bool]]


async def gather_once(servers: list[RTCIceServer]) -> bool:
    """Whether any of the servers answers; takes up to 5 s when none does."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
    try:
        connection.createDataChannel("probe")
        await connection.setLocalDescription(await connection.createOffer())
        return answered(connection.localDescription.sdp)
    finally:
        await connection.close()


def answered(sdp: str) -> bool:
    """Whether a local description shows that a STUN or TURN server has answered."""
    return " typ srflx" in sdp or " typ relay" in sdp


class IceServers:
    """The servers for new sessions: the fronts' or our own.

    ``stun``: our own STUN URLs in place of what the fronts say, empty for none; ``turn``: makes our own TURN
    servers, with fresh credentials, in place of the fronts'; ``gather`` tries servers.
    """

    def __init__(
        self,
        stun: Sequence[str] | None = None,
        turn: Callable[[], Sequence[IceServer]] | None = None,
        gather: Gather = gather_once,
    ) -> None:
        self._stun = None if stun is None else [IceServer(list(stun))]
        self._turn = turn
        self._gather = gather
        self._told: Sequence[IceServer] = ()
        self._tried: list[str] = []
        self._silent_until_s: float | None = None
        self._trial: asyncio.Task[None] | None = None

    def told(self, servers: Sequence[IceServer]) -> None:
        """What a front recommends. The latest word counts, since TURN credentials expire."""
        self._told = servers
        self._try_if_due(self._servers())

    async def current(self) -> list[RTCIceServer]:
        """The servers for a session that begins now: none while they are silent."""
        servers = self._servers()
        self._try_if_due(servers)
        if self._silent_until_s is None and self._trial is not None and not self._trial.done():
            await asyncio.wait([self._trial], timeout=TRIAL_WAIT_S)
            if not self._trial.done():
                return []
        return servers if self._silent_until_s is None else []

    def gathered(self, took_s: float, any_answer: bool) -> None:
        """What gathering candidates with these servers was like."""
        if any_answer or took_s < STALL_S:
            self._silent_until_s = None
            return
        if self._silent_until_s is None:
            log.warn("no STUN or TURN server answers: sessions have host candidates only, for now")
        self._silent_until_s = asyncio.get_running_loop().time() + RETRY_S

    def _servers(self) -> list[RTCIceServer]:
        stun = self._told if self._stun is None else self._stun
        turn = self._told if self._turn is None else self._turn()
        return _usable(stun, "stun") + _usable(turn, "turn")

    def _try_if_due(self, servers: list[RTCIceServer]) -> None:
        urls = [str(server.urls) for server in servers]
        now_s = asyncio.get_running_loop().time()
        if urls != self._tried:
            self._silent_until_s = None
        elif self._silent_until_s is not None and now_s >= self._silent_until_s:
            self._silent_until_s = now_s + RETRY_S
        else:
            return
        self._tried = urls
        if servers and (self._trial is None or self._trial.done()):
            self._trial = asyncio.ensure_future(self._trying(servers))

    async def _trying(self, servers: list[RTCIceServer]) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            any_answer = await self._gather(servers)
        except Exception as problem:
            log.warn("the ICE servers could not be tried: {kind}", kind=type(problem).__name__)
            return
        self.gathered(loop.time() - started_s, any_answer)


def _usable(servers: Sequence[IceServer], kind: str) -> list[RTCIceServer]:
    """Those of a kind, a URL each, that aiortc can use: the others would make it refuse to start."""
    usable: list[RTCIceServer] = []
    for server in servers:
        username = None if server.username is UNSET else server.username
        credential = None if server.credential is UNSET else server.credential
        for url in server.urls:
            if not url.startswith(kind) or (kind == "turn" and credential is None):
                continue
            try:
                parse_stun_turn_uri(url)
            except ValueError:
                continue
            usable.append(RTCIceServer(url, username, credential))
    return usable
