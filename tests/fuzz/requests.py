"""HTTP bytes as a client that is no honest one writes them."""

from __future__ import annotations

import json

from tests.admins import METHODS, NOWHERE, OTHER_TOKEN, PATHS, TOKEN
from tests.fuzz.frames import HANDSHAKE, message
from tests.fuzz.mutation import Mutator
from tests.wires import UPGRADE, request

PUBLIC = (
    "/", "/status", "/static/app.js", "/static/kollator.js", "/favicon.ico", "/health", "/health/live", "/health/ready",
    "/workers", "/workers/assign?ip=203.0.113.9", "/workers/assign?ip=2001:db8::1&region=us-west", "/metrics",
    "/schema.json", "/bootstrap", "/signaling", "/worker-sync", "/nowhere",
)  # fmt: skip
BODIES = {
    "/bootstrap": {"region": "us-west", "exclude": ["w1"]},
    "/admin/pins": {"cidr": "203.0.113.0/24", "worker": "bystander"},
    "/admin/log": {"debug": ["kollator:*"]},
}
ORDERS = {
    "/admin/pins": "POST", "/admin/log": "PUT", "/admin/workers/bystander/drain": "POST", "/admin/front/drain": "POST",
    "/admin/workers/bystander/undrain": "POST", "/admin/front/undrain": "POST", "/admin/pins/203.0.113.0/24": "DELETE",
    "/admin/pins?cidr=203.0.113.0/24": "DELETE",
}
"""What changes something, and how it is asked for."""
_FIELDS = (
    ("Host", "front.example:8080"), ("Host", "[::1]:80"), ("Origin", "https://front.example:8080"), ("Origin", "null"),
    ("X-Forwarded-For", "198.51.100.1, 10.0.0.1"), ("Forwarded", 'for="[2001:db8::1]:80";proto=https;host=x'),
    ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "a.example"), ("Expect", "100-continue"), ("TE", "trailers"),
    ("Connection", "close"), ("Connection", "Upgrade, keep-alive"), ("Upgrade", "websocket"), ("Upgrade", "h2c"),
    ("Accept", "application/openmetrics-text;version=1.0.0"), ("If-None-Match", '"x", *'), ("Range", "bytes=0-1"),
    ("Content-Type", "multipart/form-data; boundary=x"), ("Content-Type", "application/x-www-form-urlencoded"),
    ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity"), ("Transfer-Encoding", "gzip, chunked"),
    ("Content-Length", "0"), ("Content-Length", "5"), ("Content-Length", "-1"), ("Content-Length", "+5"),
    ("Content-Length", "5, 5"), ("Content-Length", "1" * 30), ("Content-Length", "70000"), ("Cookie", "a=b; " * 50),
    ("Authorization", "Basic dTpw"), ("Authorization", "Bearer"), ("Authorization", "Bearer " + "x" * 3000),
    ("Access-Control-Request-Method", "POST"), ("Sec-WebSocket-Version", "99"), ("Sec-WebSocket-Key", "short"),
    ("Sec-WebSocket-Protocol", "kollator.v1, other"), ("Sec-WebSocket-Extensions", "permessage-deflate"),
)  # fmt: skip
_LINE_ENDS = (b"\n", b"\r", b"\r\r\n", b"\r\n\r\n", b"\x85", b"\x0b", b"\0\r\n", b"\r\n ", b"\r\n\t")
_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.10",
             "http/1.1", "HTTP/1.1 x", "ICY", "")  # fmt: skip


def stream(mutator: Mutator) -> bytes:
    """What one client sends: a request, or some one after the other."""
    source = mutator.source
    requests = [one(mutator) for _ in range(source.choice((1, 1, 1, 2, 3, 8)))]
    data = b"".join(requests)
    match source.randrange(12):
        case 0 | 1:
            data = mutator.changed(data, [HANDSHAKE, *requests])
        case 2:
            at = source.randrange(max(1, data.count(b"\r\n")))
            parts = data.split(b"\r\n")
            data = b"\r\n".join(parts[: at + 1]) + source.choice(_LINE_ENDS) + b"\r\n".join(parts[at + 1 :])
    return data


def one(mutator: Mutator) -> bytes:
    """One request, mostly as it should be but for one thing."""
    source = mutator.source
    if mutator.chance(0.08):
        messages = [message(mutator, b'{"type":"hello","role":"client"}') for _ in range(source.randrange(3))]
        return HANDSHAKE + b"".join(messages)
    is_admin = mutator.chance(0.4)
    target = source.choice((*PATHS, *ORDERS, *NOWHERE)) if is_admin else source.choice(PUBLIC)
    path = target.partition("?")[0]
    method = ORDERS.get(path, "POST" if path in BODIES else "GET")
    if mutator.chance(0.25):
        method = source.choice(METHODS)
    fields: dict[str, str] = {}
    if is_admin and mutator.chance(0.7):
        fields["Authorization"] = f"Bearer {source.choice((TOKEN, TOKEN, OTHER_TOKEN, 'wrong'))}"
    if path in ("/signaling", "/worker-sync") and mutator.chance(0.5):
        fields |= UPGRADE
    body = b""
    if path in BODIES and mutator.chance(0.8):
        body = mutator.json(BODIES[path])
    elif mutator.chance(0.1):
        body = source.choice((b"{}", b"x" * 65_536, b"x" * 65_537, json.dumps({"a": [1]}).encode()))
    if mutator.chance(0.3):
        target = _target(mutator, target)
    data = request(method, target, fields, body, source.choice(_VERSIONS) if mutator.chance(0.2) else "HTTP/1.1")
    head, _, _ = data.partition(b"\r\n\r\n")
    if mutator.chance(0.35):
        head += b"".join(_field(mutator) for _ in range(source.choice((1, 2, 5))))
    if mutator.chance(0.02):
        head += b"".join(b"\r\nX-%d: y" % number for number in range(source.choice((90, 200, 600))))
    if mutator.chance(0.02):
        head += b"\r\nX-Long: " + b"y" * source.choice((5_000, 16_384, 40_000))
    if body and mutator.chance(0.15):
        head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
        body = _chunks(mutator, body)
    return head + b"\r\n\r\n" + body


def _target(mutator: Mutator, target: str) -> str:
    source = mutator.source
    match source.randrange(6):
        case 0:
            return f"http://other.example:99{target}"
        case 1:
            return source.choice(("*", "", "//", "/..", "/%", "/%00", "/%ff", "http:", "https://", "a:80", "/" * 99))
        case 2:
            return f"{target}{source.choice(('/', '?', '?ip=x', '?ip=1.1.1.1&ip=2.2.2.2', '#x', ';', '%2f', '?%ff=%'))}"
        case 3:
            return f"{target}?{'a=b&' * source.choice((10, 2000))}"
        case _:
            return mutator.text(target).encode("latin-1", "replace").decode("latin-1")


def _field(mutator: Mutator) -> bytes:
    name, value = mutator.source.choice(_FIELDS)
    line = f"{name}: {value}".encode("latin-1")
    return b"\r\n" + (mutator.changed(line) if mutator.chance(0.3) else line)


def _chunks(mutator: Mutator, body: bytes) -> bytes:
    source = mutator.source
    size = source.choice((1, 7, 1000, 100_000))
    pieces = [body[at : at + size] for at in range(0, min(len(body), 50 * size), size)]
    extension = source.choice((b"", b"", b";a=b", b";" + b"x" * 2000))
    data = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    data += source.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"00000000000000000000\r\n\r\n", b""))
    return mutator.changed(data) if mutator.chance(0.4) else data
