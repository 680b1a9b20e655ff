"""A front in memory with its admin interface, and an operator who has the token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kollator.admin import FrontAdmin
from kollator.observe.logs import DebugNamespaces
from kollator.web.admin import admin_tree
from kollator.web.answers import WorkerEntry
from kollator.web.resources import resource_tree
from kollator.web.site import FrontSite, upgrade_to
from tests.fronts import ASSETS, Front, FrontTestCase
from tests.wires import Answer, request

TOKEN = "the token of these tests, of 44 characters.."
OTHER_TOKEN = "the token before it was changed, still good."
OPERATOR = "198.51.100.7"

PATHS = {
    "/admin/pins": "DELETE, GET, HEAD, OPTIONS, POST",
    "/admin/pins/203.0.113.0/24": "DELETE, OPTIONS",
    "/admin/workers": "GET, HEAD, OPTIONS",
    "/admin/workers/w1/drain": "OPTIONS, POST",
    "/admin/workers/w1/undrain": "OPTIONS, POST",
    "/admin/front/drain": "OPTIONS, POST",
    "/admin/front/undrain": "OPTIONS, POST",
    "/admin/connections": "GET, HEAD, OPTIONS",
    "/admin/log": "GET, HEAD, OPTIONS, POST, PUT",
}
NOWHERE = ("/admin", "/admin/", "/admin/nothing", "/admin/pins/", "/admin/pins/1.2.3.0/24/x", "/admin/pins/1.2.3.0/",
           "/admin/workers/", "/admin/workers/w1", "/admin/workers/w1/", "/admin/workers/w1/drain/x", "/admin/front",
           "/admin/workers//drain", "/admin/front/", "/admin/front/x", "/admin/log/x", "/admin/connections/")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW")


class AdminFront(Front):
    """A front that has ADMIN_TOKEN_FILE. What the audit log is told is in ``audited``."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(environ)
        self.audited: list[dict[str, Any]] = []
        self.debug = DebugNamespaces(self.settings.debug)
        self.reconnect_ms = iter(range(100, 100_000))
        self.admin = FrontAdmin(
            node=self.settings.node_id,
            tokens=(TOKEN.encode(), OTHER_TOKEN.encode()),
            pool=self.pool,
            writer=self.writer,
            signaling=self.signaling,
            drain=self.drain,
            reconnect_in_ms=lambda: next(self.reconnect_ms),
            debug=self.debug,
            entry_of=self.entry_of,
            monotonic=self.clock.seconds,
            wall=self.wall,
            audit=self.audit,
        )
        admission = self.gate.admission(self.clock.seconds)
        upgrades = {b"signaling": upgrade_to(self.signaling, admission)}
        self.site = FrontSite(
            resource_tree(self.views, ASSETS, upgrades, admin_tree(self.views, self.admin)),
            self.clock,
            header_timeout_s=self.settings.header_timeout_s,
            responded=self.counters.respond,
        )
        self.door.open(site=self.site, upgrades={b"/signaling": self.signaling}, admission=admission)

    def entry_of(self, worker: str) -> WorkerEntry | None:
        """A worker as ``/workers`` shows it."""
        return next((entry for entry in self.views.workers().workers if entry.id == worker), None)

    def audit(self, event: str, **fields: str | int) -> None:
        """Keeps what the audit log is told."""
        self.audited.append({"event": event, **fields})

    def order(
        self, method: str, target: str, body: Any = None, *, token: str | None = TOKEN, peer: str = OPERATOR
    ) -> Answer:
        """One request of an operator; ``body`` is bytes, or what is sent as JSON."""
        return self.ask(method, target, bearer(token), encoded(body), peer=peer)

    def break_disk(self) -> None:
        """The database takes no writes any more, and is found out."""
        self.store._database.connection.execute("PRAGMA query_only=1").fetchall()

    def mend_disk(self) -> None:
        """It does again; the next try comes with time."""
        self.store._database.connection.execute("PRAGMA query_only=0").fetchall()


def bearer(token: str | None) -> dict[str, str]:
    """The header of a token; none for None."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def encoded(body: Any) -> bytes:
    """A body: bytes as they are, nothing for None, else JSON."""
    return body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()


def order(method: str, target: str, body: Any = None) -> bytes:
    """The bytes of an operator's request."""
    return request(method, target, bearer(TOKEN), encoded(body))


class AdminTestCase(FrontTestCase):
    """A test with one such front."""

    front: AdminFront

    def setUp(self) -> None:
        """Builds the front."""
        self.front = AdminFront(self.environ)
        self.addCleanup(self._close)

    def answered(self, answer: Answer, status: int = 200) -> Any:
        """The body of an answer that has this status."""
        self.assertEqual(answer.status, status, answer.body)
        return answer.json()
