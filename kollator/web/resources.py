"""The resource tree of a front (twisted.web): JSON endpoints, the pages, and what is said where nothing is.

What the endpoints tell comes from ``Views``, callables that the front is wired with; this module only speaks HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from kollator.guard.limits import retry_after_s
from kollator.signaling.messages import Region
from kollator.web.answers import Bootstrap, BootstrapRequest, Explanation, Health
from kollator.web.pages import Asset
from kollator.web.refusal import JSON, Refusal, phrase, upgrade_required

log = Logger("kollator:web")

NO_WORKERS_RETRY_S = 3
"""What ``Retry-After`` says while there is no worker, in seconds."""
DRAINING_RETRY_S = 1
"""What it says while this front is about to stop: another one is there at once."""

_encode = msgspec.json.encode
_bootstrap_request = msgspec.json.Decoder(BootstrapRequest)
_METHODS = {b"GET": "get", b"HEAD": "get", b"POST": "post", b"PUT": "put", b"DELETE": "delete"}
_ETAG = re.compile(rb'"[^"]*"')

Answer = tuple[bytes, bytes]
"""Content type and body."""
Upgrade = Callable[[Request], None]
"""Takes a request's connection over, or raises ``Refusal``."""


class Caller(NamedTuple):
    """Who asks: the client's IP address, and the scheme and host it used, as far as trusted proxies tell."""

    address: str
    scheme: str
    host: str


class Views(Protocol):
    """What the endpoints show."""

    def caller(self, request: Request) -> Caller:
        """Who sent this request."""

    def is_own(self, request: Request) -> bool:
        """Whether the connection is the caller's own, and no proxy's that has others' requests on it too."""

    def origin_permitted(self, origin: str, caller: Caller) -> bool:
        """Whether a page of ``origin`` may read the answer."""

    def health(self) -> Health:
        """The front's state."""

    def ready(self) -> str | None:
        """None when new clients should be sent here, else why not."""

    def workers_page(self) -> bytes:
        """All workers and the ring: ``Workers`` in JSON."""

    def explain(self, address: str, region: str | None) -> Explanation:
        """An assignment with its reasons. Raises ``ValueError`` for what is not an IP address."""

    def throttle(self, caller: Caller) -> float:
        """0.0 when one more bootstrap is allowed, else seconds to wait."""

    def bootstrap(self, caller: Caller, region: str | None, exclude: Collection[str]) -> Bootstrap | None:
        """A new client and its worker; None when there is no worker."""

    def bootstrap_refused(self, code: str) -> None:
        """Counts a bootstrap that was answered with an error."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for Prometheus."""

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the signaling messages."""


def fields_of(request: Request) -> dict[str, str]:
    """A request's header fields: names in lower case, values that came several times joined by commas."""
    return {
        name.decode("latin-1").lower(): ", ".join(value.decode("latin-1") for value in values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }


class JsonResource(Resource):
    """A resource that answers in JSON, its errors too.

    Subclasses have ``get``, ``post``, ``put`` or ``delete``, which return a body, or a Deferred that fires with one,
    whether anybody still waits for it or not. They raise, or fail with, ``Refusal``; anything else is our mistake.
    """

    get: Callable[[Request], Any] | None = None
    post: Callable[[Request], Any] | None = None
    put: Callable[[Request], Any] | None = None
    delete: Callable[[Request], Any] | None = None

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views = views

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Nothing is below but what was put there."""
        return NotFound(self.views)

    def render(self, request: Request) -> int:
        """Answers with the method's result, or with the error in the contract's form."""
        try:
            answer = self._answer(request)
        except Refusal as refusal:
            answer = self._refused(request, refusal)
        except Exception:
            answer = self._failed(Failure(), request)
        if isinstance(answer, Deferred):
            self._finish_later(request, answer)
        else:
            self._finish(answer, request)
        return NOT_DONE_YET

    def _finish(self, answer: Answer | None, request: Request) -> None:
        if answer is None:  # the connection speaks something else now
            return
        content_type, body = answer
        if request.code not in (204, 304):  # RFC 9110 section 8.6
            request.setHeader(b"content-type", content_type)
            request.setHeader(b"content-length", b"%d" % len(body))
        if not request.responseHeaders.hasHeader(b"cache-control"):
            request.setHeader(b"cache-control", b"no-store")
        request.write(body)  # which twisted.web leaves out after HEAD, 204 and 304
        request.finish()

    def _finish_later(self, request: Request, answer: Deferred[Answer | None]) -> None:
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)
        answer.addErrback(self._failed, request)
        answer.addCallback(lambda found: None if gone else self._finish(found, request))
        answer.addErrback(lambda failure: log.failure("an answer could not be sent", failure=failure))

    def _answer(self, request: Request) -> Answer | Deferred[Answer | None] | None:
        if request.method == b"OPTIONS":
            request.setHeader(b"allow", self._allowed())
            request.setResponseCode(204)
            self.preflight(request)
            return b"", b""
        method = getattr(self, _METHODS.get(request.method, ""), None)
        if method is None:
            headers = {b"allow": self._allowed()}
            raise Refusal(405, "method-not-allowed", "this path does not have that method", headers=headers)
        found = method(request)
        return found.addCallback(self.encoded) if isinstance(found, Deferred) else self.encoded(found)

    def _allowed(self) -> bytes:
        has = [method for method, name in _METHODS.items() if getattr(self, name) is not None]
        return b", ".join(sorted([*has, b"OPTIONS"]))

    def _failed(self, failure: Failure, request: Request) -> Answer:
        if isinstance(failure.value, Refusal):
            return self._refused(request, failure.value)
        log.failure("a request to {path!r} could not be answered", failure, path=request.path[:200])
        return self._refused(request, Refusal(500, "internal", "the front could not answer this"))

    def _refused(self, request: Request, refusal: Refusal) -> Answer:
        if refusal.status == 429 and self.views.is_own(request):
            request.channel.hold()  # type: ignore[attr-defined]
        request.setResponseCode(refusal.status, phrase(refusal.status))
        for name, value in refusal.headers.items():
            request.setHeader(name, value)
        return JSON, refusal.body

    def preflight(self, request: Request) -> None:
        """Adds what a page of another origin needs to know before it asks."""

    def encoded(self, answer: Any) -> Answer | None:
        """Content type and bytes of what a method returned; bytes are JSON already."""
        return JSON, answer if isinstance(answer, bytes) else _encode(answer)


class NotFound(JsonResource):
    """Where nothing is, whatever the method."""

    def _answer(self, request: Request) -> Answer | Deferred[Answer | None] | None:
        raise Refusal(404, "not-found", "there is nothing at this path")


class HealthResource(JsonResource):
    """``/health``"""

    def get(self, request: Request) -> Health:
        """The state; 503 unless it is ok."""
        health = self.views.health()
        if health.status != "ok":
            request.setResponseCode(503)
        return health


class LiveResource(JsonResource):
    """``/health/live``: that this answers is the answer."""

    def get(self, request: Request) -> dict[str, str]:
        """200 as long as the loop turns."""
        return {"status": "live"}


class ReadyResource(JsonResource):
    """``/health/ready``"""

    def get(self, request: Request) -> dict[str, str]:
        """200, or 503 with the reason."""
        why_not = self.views.ready()
        if why_not is not None:
            raise Refusal(503, why_not, f"this front takes no new clients: {why_not}")
        return {"status": "ready"}


class WorkersResource(JsonResource):
    """``/workers``"""

    def get(self, request: Request) -> bytes:
        """All workers and the ring."""
        return self.views.workers_page()


class AssignResource(JsonResource):
    """``/workers/assign``: explains an assignment, changes nothing."""

    def get(self, request: Request) -> Explanation:
        """The assignment of ``ip``, with its reasons."""
        address = argument(request, b"ip")
        if address is None:
            raise Refusal(400, "bad-request", "the query needs ip=<IPv4 or IPv6 address>")
        region = argument(request, b"region")
        try:
            return self.views.explain(address, msgspec.convert(region, Region | None))
        except msgspec.ValidationError:
            raise Refusal(400, "bad-request", "region has 64 characters at most, none of them a control") from None
        except ValueError:
            raise Refusal(400, "bad-request", "ip is not an IPv4 or IPv6 address") from None


class BootstrapResource(JsonResource):
    """``/bootstrap``: a client begins. Pages of permitted origins may ask from elsewhere (CORS)."""

    def post(self, request: Request) -> Bootstrap:
        """A client id, its ticket and its worker."""
        caller = self.views.caller(request)
        self._share(request, caller)
        try:
            return self._begin(request, caller)
        except Refusal as refusal:
            self.views.bootstrap_refused(refusal.code)
            raise

    def _begin(self, request: Request, caller: Caller) -> Bootstrap:
        wait_s = self.views.throttle(caller)
        if wait_s > 0:
            raise Refusal(429, "rate-limited", "too many bootstraps from this address", retry_after_s(wait_s))
        body = request.content.read()  # type: ignore[union-attr]
        try:
            asked = _bootstrap_request.decode(body) if body.strip() else BootstrapRequest()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            raise Refusal(400, "bad-request", f"the body is not what is asked for: {str(problem)[:200]}") from None
        if self.views.ready() == "draining":
            raise Refusal(503, "draining", "this front is about to stop; ask another", DRAINING_RETRY_S)
        answer = self.views.bootstrap(caller, asked.region, asked.exclude or ())
        if answer is None:
            raise Refusal(503, "no-workers", "no worker is connected; come back in a moment", NO_WORKERS_RETRY_S)
        return answer

    def preflight(self, request: Request) -> None:
        """What a browser asks first for a page of another origin (Fetch standard, CORS protocol)."""
        if self._share(request, self.views.caller(request)):
            request.setHeader(b"access-control-allow-methods", b"POST")
            request.setHeader(b"access-control-allow-headers", b"content-type")
            request.setHeader(b"access-control-max-age", b"600")

    def _share(self, request: Request, caller: Caller) -> bool:
        request.setHeader(b"vary", b"Origin")
        origins = request.requestHeaders.getRawHeaders(b"origin")
        origin = b"" if origins is None else b", ".join(origins)
        if origins is None or not self.views.origin_permitted(origin.decode("latin-1"), caller):
            return False
        request.setHeader(b"access-control-allow-origin", origin)
        request.setHeader(b"access-control-expose-headers", b"Retry-After")
        return True


class MetricsResource(JsonResource):
    """``/metrics``"""

    def get(self, request: Request) -> tuple[str, bytes]:
        """The text that Prometheus scrapes."""
        return self.views.metrics(fields_of(request).get("accept", ""))

    def encoded(self, answer: tuple[str, bytes]) -> Answer:
        """As it is."""
        return answer[0].encode("ascii"), answer[1]


class SchemaResource(JsonResource):
    """``/schema.json``"""

    def get(self, request: Request) -> dict[str, Any]:
        """The schema."""
        return self.views.schema()


class AssetResource(JsonResource):
    """One file of the client application, with its ETag; the pages with their security headers."""

    def __init__(self, views: Views, asset: Asset) -> None:
        super().__init__(views)
        self._asset = asset

    def get(self, request: Request) -> Asset:
        """The file, or 304 when the client's copy is the same (RFC 9110 section 13.1.2)."""
        asset = self._asset
        for name, value in asset.headers.items():
            request.setHeader(name, value)
        known = b",".join(request.requestHeaders.getRawHeaders(b"if-none-match", []))
        if known.strip() == b"*" or asset.etag in _ETAG.findall(known):  # W/ makes no difference here
            request.setResponseCode(304)
        return asset

    def encoded(self, answer: Asset) -> Answer:
        """Its own type and bytes."""
        return answer.content_type, answer.body


class UpgradeResource(JsonResource):
    """The path of a WebSocket, for who comes with plain HTTP, or on a connection that served HTTP before."""

    def __init__(self, views: Views, upgrade: Upgrade) -> None:
        super().__init__(views)
        self._upgrade = upgrade

    def get(self, request: Request) -> None:
        """Hands the connection over."""
        if request.method == b"HEAD":
            raise upgrade_required()
        self._upgrade(request)

    def encoded(self, answer: None) -> None:
        """Nothing: the connection speaks WebSocket now."""


def argument(request: Request, name: bytes) -> str | None:
    """An argument of the query, None when it is not there. Raises ``Refusal`` when it is there twice."""
    values = (request.args or {}).get(name, [])
    if len(values) > 1:
        raise Refusal(400, "bad-request", f"{name.decode()} is in the query more than once")
    return values[0].decode("utf-8", "replace") if values else None


def resource_tree(
    views: Views, assets: Mapping[bytes, Asset], upgrades: Mapping[bytes, Upgrade], admin: Resource | None = None
) -> Resource:
    """The whole tree: ``upgrades`` maps the WebSockets' path segments to what takes a connection over."""
    root, static = NotFound(views), NotFound(views)
    health, workers = HealthResource(views), WorkersResource(views)
    tree: dict[Resource, dict[bytes, Any]] = {
        root: {
            b"": AssetResource(views, assets[b"index.html"]),
            b"status": AssetResource(views, assets[b"status.html"]),
            b"favicon.ico": AssetResource(views, assets[b"favicon.svg"]),
            b"static": static,
            b"health": health,
            b"workers": workers,
            b"bootstrap": BootstrapResource(views),
            b"metrics": MetricsResource(views),
            b"schema.json": SchemaResource(views),
            **({} if admin is None else {b"admin": admin}),
            **{segment: UpgradeResource(views, upgrade) for segment, upgrade in upgrades.items()},
        },
        static: {name: AssetResource(views, asset) for name, asset in assets.items()},
        health: {b"live": LiveResource(views), b"ready": ReadyResource(views)},
        workers: {b"assign": AssignResource(views)},
    }
    plant(tree)
    return root


def plant(tree: Mapping[Resource, Mapping[bytes, Any]]) -> None:
    """Puts children, by their path segments, below their parents."""
    for parent, children in tree.items():
        for segment, child in children.items():
            parent.putChild(segment, child)
