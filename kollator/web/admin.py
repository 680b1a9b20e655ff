"""``/admin``: what operators ask and change over HTTP, with a bearer token (RFC 6750).

Nothing is told without the token, not even which paths there are. Bodies and queries are read strictly, so that a slip
is told and not half obeyed. An answer to a change comes after the change is on disk. No page of another origin can
ask (there is no CORS here), and a browser sends no bearer token by itself. What the endpoints do is the affair of
``Admin``; this module only speaks HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct
from twisted.internet.defer import Deferred
from twisted.web.http import Request
from twisted.web.resource import Resource

from kollator.web.refusal import Refusal
from kollator.web.resources import Answer, JsonResource, Views, argument, plant

CONNECTIONS = 1000
"""So many connections are listed when the query names no limit."""
CONNECTIONS_MAX = 10_000
PATTERNS_MAX = 64
"""So many namespaces whose debug events are logged may be named."""

Role = Literal["client", "worker"]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Pattern = Annotated[str, Meta(min_length=1, max_length=128)]


class PinRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /admin/pins``: a range, and the worker or the region that it is tied to."""

    cidr: Name
    worker: Name | None = None
    region: Name | None = None


class UnpinRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """``DELETE /admin/pins``, where the query does not name the range."""

    cidr: Name


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that has no more to say."""


class Debug(Struct, frozen=True, forbid_unknown_fields=True):
    """``/admin/log``, asked and answered: the namespaces whose debug events are logged, as DEBUG has them."""

    debug: Annotated[list[Pattern], Meta(max_length=PATTERNS_MAX)]


class Pin(Struct, frozen=True, omit_defaults=True):
    """A range, and what it is tied to: one of the two."""

    cidr: str
    worker: str = ""
    region: str = ""


class Pins(Struct, frozen=True):
    """``GET /admin/pins``."""

    pins: list[Pin]


class Pinned(NamedTuple):
    """A pin that was set, and whether its range had none before."""

    pin: Pin
    is_new: bool


class Unpinned(Struct, frozen=True):
    """``DELETE /admin/pins``."""

    removed: Pin


class Drained(Struct, frozen=True):
    """``GET /admin/workers``: the workers that operators drain."""

    drained: list[str]


class DrainedWorker(Struct, frozen=True):
    """``POST /admin/workers/<id>/drain`` and ``undrain``: the worker, as in ``/workers``."""

    worker: Any


class FrontDrain(Struct, frozen=True):
    """``POST /admin/front/drain`` and ``undrain``."""

    node: str
    draining: bool


class ConnectionTotals(Struct, frozen=True):
    """How many clients this front has, and how many workers are connected to any front."""

    client: int
    worker: int


class ConnectionEntry(Struct, frozen=True, omit_defaults=True):
    """One connection: of a client to this front, or of a worker to any.

    ``since_s``: how long it is there, for clients that came with a ticket; ``assigned``: a client's worker;
    ``state``: a worker's; ``address`` only for who asks for addresses.
    """

    id: str
    role: Role
    front: str
    since_s: float | None = None
    assigned: str | None = None
    state: str | None = None
    address: str | None = None


class Connections(Struct, frozen=True):
    """``GET /admin/connections``: those that were asked for, up to the limit; ``total`` is of all there are."""

    node: str
    total: ConnectionTotals
    connections: list[ConnectionEntry]
    truncated: bool


class Admin(Protocol):
    """What the endpoints ask. ``by`` is the address of who asks. Everything may raise ``Refusal``, or fail with it."""

    def authenticate(self, by: str, credentials: Sequence[bytes]) -> None:
        """Lets the values of ``Authorization`` pass, or raises ``Refusal``."""

    def pins(self) -> Pins:
        """The pins in force."""

    def pin(self, by: str, cidr: str, worker: str, region: str) -> Deferred[Pinned]:
        """Ties a range to a worker or a region, of which one is empty."""

    def unpin(self, by: str, cidr: str) -> Deferred[Pin]:
        """Removes a pin, which is returned."""

    def drained(self) -> Drained:
        """The workers that operators drain."""

    def drain_worker(self, by: str, worker: str) -> Deferred[DrainedWorker]:
        """No new clients for a worker."""

    def undrain_worker(self, by: str, worker: str) -> Deferred[DrainedWorker]:
        """As before."""

    def drain_front(self, by: str) -> Deferred[FrontDrain]:
        """No new clients for this front."""

    def undrain_front(self, by: str) -> Deferred[FrontDrain]:
        """As before."""

    def connections(self, role: Role | None, front: str | None, addresses: bool, limit: int) -> Connections:
        """The connections of a role and a front (None: any)."""

    def debug(self) -> Debug:
        """The namespaces whose debug events are logged."""

    def set_debug(self, by: str, patterns: Sequence[str]) -> Debug:
        """Logs those of others."""


_pin_request = msgspec.json.Decoder(PinRequest)
_unpin_request = msgspec.json.Decoder(UnpinRequest)
_nothing = msgspec.json.Decoder(Nothing)
_debug = msgspec.json.Decoder(Debug)

T = TypeVar("T")


def _read(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    body = request.content.read()  # type: ignore[union-attr]
    try:
        return decoder.decode(body if body.strip() else b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise Refusal(400, "bad-request", f"the body is not what is asked for: {str(problem)[:200]}") from None


def _arguments(request: Request, *names: bytes) -> dict[bytes, str]:
    """The arguments of a query that may have ``names``, each once. Raises ``Refusal`` for any other."""
    unknown = sorted(set(request.args or {}) - set(names))
    if unknown:
        shown = unknown[0].decode("utf-8", "replace")[:64]
        raise Refusal(400, "bad-request", f"the query of this path has nothing called {shown!r}")
    return {name: value for name in names if (value := argument(request, name)) is not None}


class AdminResource(JsonResource):
    """A resource for who has the token; what is nowhere is nowhere for them alone."""

    def __init__(self, views: Views, admin: Admin) -> None:
        super().__init__(views)
        self.admin = admin

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Nothing is below but what was put there."""
        return AdminNotFound(self.views, self.admin)

    def by(self, request: Request) -> str:
        """The address of who asks."""
        return self.views.caller(request).address

    def _answer(self, request: Request) -> Answer | Deferred[Answer | None] | None:
        self.admin.authenticate(self.by(request), request.requestHeaders.getRawHeaders(b"authorization", []))
        return self._admitted(request)

    def _admitted(self, request: Request) -> Answer | Deferred[Answer | None] | None:
        return super()._answer(request)


class AdminNotFound(AdminResource):
    """Where nothing is."""

    def _admitted(self, request: Request) -> Answer | Deferred[Answer | None] | None:
        raise Refusal(404, "not-found", "there is nothing at this path")


class PinsResource(AdminResource):
    """``/admin/pins``"""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """A pin, by its range."""
        return PinResource(self.views, self.admin, path) if path else super().getChild(path, request)

    def get(self, request: Request) -> Pins:
        """All of them."""
        _arguments(request)
        return self.admin.pins()

    def post(self, request: Request) -> Deferred[Pin]:
        """Sets one: 201 when its range had none, else 200."""
        _arguments(request)
        asked = _read(request, _pin_request)
        if (asked.worker is None) == (asked.region is None):
            raise Refusal(400, "bad-request", "a pin names a worker or a region, one of the two")

        def pinned(done: Pinned) -> Pin:
            request.setResponseCode(201 if done.is_new else 200)
            return done.pin

        return self.admin.pin(self.by(request), asked.cidr, asked.worker or "", asked.region or "").addCallback(pinned)

    def delete(self, request: Request) -> Deferred[Unpinned]:
        """Removes the one that the query or the body names."""
        named = _arguments(request, b"cidr").get(b"cidr")
        if named is None:
            named = _read(request, _unpin_request).cidr
        else:
            _read(request, _nothing)
        return self.admin.unpin(self.by(request), named).addCallback(Unpinned)


class PinResource(AdminResource):
    """``/admin/pins/203.0.113.0/24``: the slash of the range may be encoded or not."""

    def __init__(self, views: Views, admin: Admin, *segments: bytes) -> None:
        super().__init__(views, admin)
        self._segments = segments

    def getChild(self, path: bytes, request: Request) -> Resource:
        """What comes after the slash."""
        if len(self._segments) == 1 and path:
            return PinResource(self.views, self.admin, *self._segments, path)
        return super().getChild(path, request)

    def delete(self, request: Request) -> Deferred[Unpinned]:
        """Removes the pin."""
        _arguments(request)
        _read(request, _nothing)
        cidr = b"/".join(self._segments).decode("utf-8", "replace")
        return self.admin.unpin(self.by(request), cidr).addCallback(Unpinned)


class DrainedResource(AdminResource):
    """``/admin/workers``"""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """A worker, by its id."""
        return WorkerResource(self.views, self.admin, path) if path else super().getChild(path, request)

    def get(self, request: Request) -> Drained:
        """Those that operators drain."""
        _arguments(request)
        return self.admin.drained()


class WorkerResource(AdminNotFound):
    """``/admin/workers/<id>``: nothing but what is below it."""

    def __init__(self, views: Views, admin: Admin, segment: bytes) -> None:
        super().__init__(views, admin)
        worker = segment.decode("utf-8", "replace")
        drain = OrderResource(views, admin, lambda by: admin.drain_worker(by, worker))
        undrain = OrderResource(views, admin, lambda by: admin.undrain_worker(by, worker))
        plant({self: {b"drain": drain, b"undrain": undrain}})


class OrderResource(AdminResource):
    """What is done by a POST that has no more to say. ``obey`` is called with the address of who orders it."""

    def __init__(self, views: Views, admin: Admin, obey: Callable[[str], Deferred[Any]]) -> None:
        super().__init__(views, admin)
        self._obey = obey

    def post(self, request: Request) -> Deferred[Any]:
        """Does it."""
        _arguments(request)
        _read(request, _nothing)
        return self._obey(self.by(request))


class ConnectionsResource(AdminResource):
    """``/admin/connections``"""

    def get(self, request: Request) -> Connections:
        """Those that the query asks for."""
        asked = _arguments(request, b"role", b"front", b"addresses", b"limit")
        role, limit = asked.get(b"role"), asked.get(b"limit", str(CONNECTIONS))
        if role not in (None, "client", "worker"):
            raise Refusal(400, "bad-request", "role is client or worker")
        addresses = {"true": True, "false": False}.get(asked.get(b"addresses", "false"))
        if addresses is None:
            raise Refusal(400, "bad-request", "addresses is true or false")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= CONNECTIONS_MAX):
            raise Refusal(400, "bad-request", f"limit is a number from 1 to {CONNECTIONS_MAX}")
        return self.admin.connections(role, asked.get(b"front"), addresses, int(limit))  # type: ignore[arg-type]


class LogResource(AdminResource):
    """``/admin/log``"""

    def get(self, request: Request) -> Debug:
        """What is logged."""
        _arguments(request)
        return self.admin.debug()

    def put(self, request: Request) -> Debug:
        """Has other namespaces logged, none when the list is empty."""
        _arguments(request)
        return self.admin.set_debug(self.by(request), _read(request, _debug).debug)

    post = put


def admin_tree(views: Views, admin: Admin) -> Resource:
    """What is at ``/admin`` and below it."""
    root, front = AdminNotFound(views, admin), AdminNotFound(views, admin)
    plant(
        {
            root: {
                b"pins": PinsResource(views, admin),
                b"workers": DrainedResource(views, admin),
                b"front": front,
                b"connections": ConnectionsResource(views, admin),
                b"log": LogResource(views, admin),
            },
            front: {
                b"drain": OrderResource(views, admin, admin.drain_front),
                b"undrain": OrderResource(views, admin, admin.undrain_front),
            },
        }
    )
    return root
