"""The resource tree of a front (twisted.web): JSON endpoints, the pages, and what is said where nothing is.

What the endpoints tell comes from ``Views``, callables that the front is wired with; this module only speaks HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from kollator.web.answers import Bootstrap, BootstrapRequest, ErrorBody, Explanation, Failing, Health, Workers
from kollator.web.pages import Asset, Assets

log = Logger("kollator:web")

JSON = b"application/json; charset=utf-8"
NO_WORKERS_RETRY_S = 3
"""What ``Retry-After`` says while there is no worker, in seconds."""

encode = msgspec.json.encode
_bootstrap_request = msgspec.json.Decoder(BootstrapRequest)


class HttpError(Exception):
    """An answer that is an error: status, the contract's code, what to tell people, more headers."""

    def __init__(self, status: int, code: str, message: str, headers: dict[bytes, bytes] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Caller(NamedTuple):
    """Who asks: the client's IP address, and the scheme and host it used, as far as trusted proxies tell."""

    address: str
    scheme: str
    host: str


class Views(Protocol):
    """What the endpoints show."""

    def caller(self, request: Request) -> Caller:
        """Who sent this request."""

    def origin_permitted(self, origin: str, caller: Caller) -> bool:
        """Whether a page of ``origin`` may read the answer."""

    def health(self) -> Health:
        """The front's state."""

    def ready(self) -> str | None:
        """None when new clients should be sent here, else why not."""

    def workers(self) -> Workers:
        """All workers and the ring."""

    def explain(self, address: str, region: str | None) -> Explanation:
        """An assignment with its reasons. Raises ``ValueError`` for what is not an IP address."""

    def throttle(self, caller: Caller) -> float:
        """0.0 when one more bootstrap is allowed, else seconds to wait."""

    def bootstrap(self, caller: Caller, region: str | None, exclude: Collection[str]) -> Bootstrap | None:
        """A new client and its worker; None when there is no worker."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for Prometheus."""

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the signaling messages."""


class JsonResource(Resource):
    """A resource that answers in JSON, its errors too. Subclasses have ``get`` or ``post``, which return a body."""

    get: Callable[[Request], Any] | None = None
    post: Callable[[Request], Any] | None = None

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views = views

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Nothing is below but what was put there."""
        return NotFound(self.views)

    def render(self, request: Request) -> bytes | int:
        """Answers with the method's result, or with the error in the contract's form."""
        request.setHeader(b"server", b"kollator-front")
        request.setHeader(b"x-content-type-options", b"nosniff")
        try:
            content_type, body = self._answer(request)
        except HttpError as error:
            request.setResponseCode(error.status)
            for name, value in error.headers.items():
                request.setHeader(name, value)
            content_type, body = JSON, encode(ErrorBody(Failing(error.code, str(error))))
        except Exception:
            log.failure("a request to {path!r} could not be answered", path=request.path[:200])
            request.setResponseCode(500)
            content_type, body = JSON, encode(ErrorBody(Failing("internal", "the front could not answer this")))
        if content_type:
            request.setHeader(b"content-type", content_type)
        request.setHeader(b"content-length", b"%d" % len(body))
        if not request.responseHeaders.hasHeader(b"cache-control"):
            request.setHeader(b"cache-control", b"no-store")
        if request.method == b"HEAD":
            request.write(b"")
            return b""
        return body

    def _answer(self, request: Request) -> tuple[bytes, bytes]:
        if getattr(request.content, "too_large", False):
            raise HttpError(413, "too-large", "a request body has 65536 bytes at most")
        methods = {b"GET": self.get, b"HEAD": self.get, b"POST": self.post}
        allowed = sorted(name for name, answer in methods.items() if answer is not None)
        allow = {b"allow": b", ".join([*allowed, b"OPTIONS"])}
        if request.method == b"OPTIONS" and allowed:
            return self.options(request, allow[b"allow"])
        answer = methods.get(request.method)
        if answer is None:
            raise HttpError(405, "method-not-allowed", "this resource does not have that method", allow)
        return self.encoded(answer(request))

    def options(self, request: Request, allow: bytes) -> tuple[bytes, bytes]:
        """Which methods there are."""
        request.setResponseCode(204)
        request.setHeader(b"allow", allow)
        return b"", b""

    def encoded(self, answer: Any) -> tuple[bytes, bytes]:
        """Content type and bytes of what a method returned."""
        return JSON, encode(answer)


class NotFound(JsonResource):
    """Where nothing is, whatever the method."""

    def _answer(self, request: Request) -> tuple[bytes, bytes]:
        raise HttpError(404, "not-found", "there is nothing at this path")


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
            raise HttpError(503, why_not, f"this front takes no new clients: {why_not}")
        return {"status": "ready"}


class WorkersResource(JsonResource):
    """``/workers``"""

    def get(self, request: Request) -> Workers:
        """All workers and the ring."""
        return self.views.workers()


class AssignResource(JsonResource):
    """``/workers/assign``: explains an assignment, changes nothing."""

    def get(self, request: Request) -> Explanation:
        """The assignment of ``ip``, with its reasons."""
        address = _argument(request, b"ip")
        if address is None:
            raise HttpError(400, "bad-request", "the query needs ip=<IPv4 or IPv6 address>")
        try:
            return self.views.explain(address, _argument(request, b"region"))
        except ValueError:
            raise HttpError(400, "bad-request", "ip is not an IPv4 or IPv6 address") from None


class BootstrapResource(JsonResource):
    """``/bootstrap``: a client begins. Pages of permitted origins may ask from elsewhere (CORS)."""

    def post(self, request: Request) -> Bootstrap:
        """A client id, its ticket and its worker."""
        caller = self.views.caller(request)
        self._share(request, caller)
        wait_s = self.views.throttle(caller)
        if wait_s > 0:
            retry = {b"retry-after": b"%d" % max(1, math.ceil(wait_s))}
            raise HttpError(429, "rate-limited", "too many bootstraps from this address", retry)
        body = request.content.read()  # type: ignore[union-attr]
        try:
            asked = _bootstrap_request.decode(body) if body.strip() else BootstrapRequest()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            raise HttpError(400, "bad-request", f"the body is not what is asked for: {str(problem)[:200]}") from None
        answer = self.views.bootstrap(caller, asked.region, asked.exclude or ())
        if answer is None:
            retry = {b"retry-after": b"%d" % NO_WORKERS_RETRY_S}
            raise HttpError(503, "no-workers", "no worker is connected; come back in a moment", retry)
        return answer

    def options(self, request: Request, allow: bytes) -> tuple[bytes, bytes]:
        """A browser's preflight (Fetch standard, CORS protocol)."""
        if self._share(request, self.views.caller(request)):
            request.setHeader(b"access-control-allow-methods", b"POST")
            request.setHeader(b"access-control-allow-headers", b"content-type")
            request.setHeader(b"access-control-max-age", b"600")
        return super().options(request, allow)

    def _share(self, request: Request, caller: Caller) -> bool:
        request.setHeader(b"vary", b"Origin")
        origin = request.getHeader("origin")
        if origin is None or not origin.isprintable() or not self.views.origin_permitted(origin, caller):
            return False
        request.setHeader("access-control-allow-origin", origin)
        request.setHeader(b"access-control-expose-headers", b"Retry-After")
        return True


class MetricsResource(JsonResource):
    """``/metrics``"""

    def get(self, request: Request) -> tuple[str, bytes]:
        """The text that Prometheus scrapes."""
        return self.views.metrics(request.getHeader("accept") or "")

    def encoded(self, answer: tuple[str, bytes]) -> tuple[bytes, bytes]:
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
        """The file, with its headers."""
        asset = self._asset
        for name, value in asset.headers.items():
            request.setHeader(name, value)
        request.setETag(asset.etag)  # answers 304 by itself where it matches
        return asset

    def encoded(self, answer: Asset) -> tuple[bytes, bytes]:
        """Its own type and bytes."""
        return answer.content_type, answer.body

    def render(self, request: Request) -> bytes | int:
        """As any, but nothing is sent where the client's copy is the same."""
        body = super().render(request)
        if request.code == 304:
            request.responseHeaders.removeHeader(b"content-type")
            request.responseHeaders.removeHeader(b"content-length")
            return b""
        return body


class UpgradeResource(JsonResource):
    """The path of a WebSocket, for who comes with plain HTTP, or on a connection that served HTTP before.

    ``upgrade`` takes the request's connection over; it returns False when the request asks for no WebSocket.
    """

    def __init__(self, views: Views, upgrade: Callable[[Request], bool]) -> None:
        super().__init__(views)
        self._upgrade = upgrade

    def render(self, request: Request) -> bytes | int:
        """Hands the connection over, or says what is missing."""
        if request.method == b"GET" and self._upgrade(request):
            return NOT_DONE_YET
        return super().render(request)

    def get(self, request: Request) -> None:
        """Always 426 (RFC 9110 section 15.5.22)."""
        headers = {b"upgrade": b"websocket", b"connection": b"upgrade"}
        raise HttpError(426, "upgrade-required", "this path speaks WebSocket only", headers)


def _argument(request: Request, name: bytes) -> str | None:
    values = (request.args or {}).get(name)
    return values[0].decode("utf-8", "replace") if values else None


def resource_tree(
    views: Views, assets: Assets, upgrades: dict[bytes, Callable[[Request], bool]]
) -> Resource:
    """The whole tree: ``upgrades`` maps the WebSockets' path segments to what takes a connection over."""
    root = NotFound(views)

    def put(parent: JsonResource, segment: bytes, child: Any) -> None:
        parent.putChild(segment, child)

    put(root, b"", AssetResource(views, assets.page(b"index.html")))
    put(root, b"status", AssetResource(views, assets.page(b"status.html")))
    static = NotFound(views)
    for name, asset in assets.files.items():
        put(static, name, AssetResource(views, asset))
    put(root, b"static", static)
    health = HealthResource(views)
    put(health, b"live", LiveResource(views))
    put(health, b"ready", ReadyResource(views))
    put(root, b"health", health)
    workers = WorkersResource(views)
    put(workers, b"assign", AssignResource(views))
    put(root, b"workers", workers)
    put(root, b"bootstrap", BootstrapResource(views))
    put(root, b"metrics", MetricsResource(views))
    put(root, b"schema.json", SchemaResource(views))
    for segment, upgrade in upgrades.items():
        put(root, segment, UpgradeResource(views, upgrade))
    favicon = assets.files.get(b"favicon.svg")
    if favicon is not None:
        put(root, b"favicon.ico", AssetResource(views, favicon))
    return root
