"""What a front tells of itself at each scrape of its metrics, asked of its rooms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kollator.observe.metrics import Gauges

if TYPE_CHECKING:
    from kollator.assembly import Front


def front_gauges(front: Front) -> Gauges:
    """The gauges of one front, whose rooms need not be there yet. The uptime begins now."""

    def workers() -> Mapping[str, float]:
        counts = front.pool.counts()
        return {"up": counts.up, "full": counts.full, "draining": counts.draining, "down": counts.down}

    def sync_lag_s() -> Mapping[str, float]:
        peers = front.cluster.member.peers()
        return {peer.node: peer.sync_lag_ms / 1000 for peer in peers if peer.sync_lag_ms is not None}

    started = front.reactor.seconds()
    return Gauges(
        connections=lambda: {"client": len(front.switchboard.clients), "worker": len(front.switchboard.workers)},
        workers=workers,
        absent_clients=lambda: len(front.switchboard.mailboxes),
        ring_points=lambda: front.pool.points,
        uptime_s=lambda: front.reactor.seconds() - started,
        leader=lambda: float(front.cluster.member.standing.role == "leader"),
        term=lambda: front.cluster.member.standing.term,
        draining=lambda: float(front.drain.draining),
        sync_lag_s=sync_lag_s,
        unwell=lambda: front.pool.unwell,
        panic=lambda: float(front.pool.panic),
        peer_up=lambda: {peer.node: float(front.links.is_up(peer.node)) for peer in front.settings.peers},
    )
