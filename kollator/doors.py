"""What is behind the doors of a front's listening endpoints: the pages, the JSON endpoints, /admin, the WebSockets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from twisted.web.resource import Resource

from kollator.admin import FrontAdmin
from kollator.cluster.worker_sync import WorkerSyncFactory
from kollator.drain import reconnect_in_ms
from kollator.web.admin import admin_tree
from kollator.web.pages import load_assets
from kollator.web.resources import resource_tree
from kollator.web.site import FrontSite, upgrade_to

if TYPE_CHECKING:
    from kollator.assembly import Front


def open_doors(front: Front) -> None:
    """Lets connections in to a front whose rooms are all there."""
    settings = front.settings
    admission = front.gate.admission(front.reactor.seconds)
    sockets: dict[bytes, Any] = {b"signaling": front.signaling}
    if settings.peers:
        sockets[b"worker-sync"] = WorkerSyncFactory(front.links.acceptor, front.reactor, front.gate.handshake_address)
    taking_over = {name: upgrade_to(factory, admission) for name, factory in sockets.items()}
    site = FrontSite(
        resource_tree(front.views, load_assets(), taking_over, _admin(front)),
        front.reactor,
        header_timeout_s=settings.header_timeout_s,
        responded=front.counters.respond,
    )
    front.debug.watch("kollator:web", lambda wanted: setattr(site, "debug", wanted))
    upgrades = {b"/" + name: factory for name, factory in sockets.items()}
    front.door.open(site=site, upgrades=upgrades, admission=admission, places=front.gate.places)


def _admin(front: Front) -> Resource | None:
    settings = front.settings
    if not settings.admin_tokens:
        return None
    front.admin = FrontAdmin(
        node=settings.node_id,
        tokens=settings.admin_tokens,
        pool=front.pool,
        writer=front.writer,
        signaling=front.signaling,
        drain=front.drain,
        reconnect_in_ms=reconnect_in_ms,
        debug=front.debug,
        entry_of=front.views.worker,
        monotonic=front.reactor.seconds,
        wall=time.time,
        audit=front.audit.note,
    )
    return admin_tree(front.views, front.admin)
