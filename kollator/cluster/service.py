"""The cluster of a front as one service: its links, its membership and its exchange, wired together.

A front without peers is a cluster of one: the same machinery, with nobody to talk to. It leads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from kollator.clock import Clock
from kollator.cluster.election import Election
from kollator.cluster.exchange import Exchange, Local
from kollator.cluster.links import Links
from kollator.cluster.member import Member
from kollator.cluster.sync import InStore
from kollator.cluster.wire import Frame
from kollator.observe.loops import Loop
from kollator.pool.pool import Pool
from kollator.settings import Settings
from kollator.state.rows import AttachmentRow, FrontRow, Row
from kollator.state.store import Store

log = Logger("kollator:cluster")

TURN_S = 0.01
"""How often the member is turned, in seconds: how exact heartbeats are."""


class Cluster(MultiService):
    """The cluster as the front ``own`` is in it.

    ``local`` are this front's connections. ``apply`` takes rows of others to the pool, ``restate`` and
    ``reincarnated`` are ``Member``'s. ``uniform`` draws a number between two others, ``wall`` gives Unix seconds.
    """

    def __init__(
        self,
        settings: Settings,
        links: Links,
        store: Store,
        pool: Pool,
        local: Local,
        clock: Clock,
        *,
        own: FrontRow,
        in_store: InStore,
        apply: Callable[[Sequence[Row]], object],
        restate: Callable[[AttachmentRow], object],
        reincarnated: Callable[[FrontRow], object],
        uniform: Callable[[float, float], float],
        wall: Callable[[], float],
        loop_failed: Callable[[str], object],
        rows_refused: Callable[[str, int], object] = lambda reason, count: None,
    ) -> None:
        super().__init__()
        self.links = links
        self._heard_at: dict[str, float] = {}
        self._clock = clock
        self._wall = wall
        term, voted_for = store.vote()
        election = Election(
            settings.node_id,
            [peer.node for peer in settings.peers],
            quorum="available" if settings.quorum == "available" else "majority",
            stands=settings.leader_election,
            heartbeat_s=settings.heartbeat_interval_s,
            timeout_s=settings.election_timeout_s,
            draw=uniform,
            now=clock.seconds(),
            term=term,
            voted_for=voted_for,
        )
        self.member = Member(
            election,
            store,
            pool,
            clock,
            own=own,
            in_store=in_store,
            send=links.send,
            cut_all=links.cut_all,
            apply=apply,
            restate=restate,
            reincarnated=reincarnated,
            retire_after_s=settings.front_retire_after_s,
            sync_interval_s=settings.sync_interval_s,
            refused=rows_refused,
        )
        self.exchange = Exchange(
            settings.node_id, local, send=links.send, up=lambda: sorted(links.up()), fronts_of=pool.fronts_of
        )
        Loop("election", self.member.tick, TURN_S, clock, loop_failed).setServiceParent(self)

    # -- what the links tell ------------------------------------------------------------------------------------------

    def established(self, peer: str) -> None:
        """There is a link to ``peer``."""
        self.member.link_up(peer)
        self.exchange.link_up(peer)

    def lost(self, peer: str) -> None:
        """There is none any more."""
        self.member.link_down(peer)
        self.exchange.link_down(peer, int(self._wall() * 1000))

    def received(self, peer: str, frame: Frame) -> None:
        """A frame came over the link to ``peer``."""
        now = self._clock.seconds()
        if self.exchange.received(peer, frame, now):  # as mostly
            if not 0 <= now - self._heard_at.get(peer, 0.0) < TURN_S:  # who is heard more often lives no more for it
                self._heard_at[peer] = now
                self.member.heard(peer)
        elif not self.member.received(peer, frame):
            log.debug("{peer} sent a frame that is not expected: {kind}", peer=peer, kind=type(frame).__name__)

    def stopService(self) -> Deferred[Any] | None:
        """Stops the member."""
        self.member.stop()
        stopped: Deferred[Any] | None = super().stopService()
        return stopped
