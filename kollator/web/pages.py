"""The client application's files, read once at start: small, immutable, each with a strong ETag."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePath

import attrs

CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}

HEADERS = {
    ".html": {
        # The page loads its own scripts and styles only. The signaling URL names the host that the browser used, but
        # not every browser counts ws: of the page's own host as 'self'.
        b"content-security-policy": (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            b"connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        b"x-frame-options": b"DENY",
        b"referrer-policy": b"no-referrer",
        b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    },
    # Pages of other origins import the client library from here; it is the same for everybody.
    ".js": {b"access-control-allow-origin": b"*"},
}
CACHE = b"no-cache"
"""Copies are kept and asked about each time (a 304 costs little): page and scripts are always of one version."""


@attrs.frozen
class Asset:
    """One file: its type, its bytes, its ETag (quoted) and its headers."""

    content_type: bytes
    body: bytes = attrs.field(repr=False)
    etag: bytes
    headers: dict[bytes, bytes]


def load_assets() -> dict[bytes, Asset]:
    """The files of ``kollator/web/static`` by name."""
    found: dict[bytes, Asset] = {}
    for entry in files("kollator.web").joinpath("static").iterdir():
        suffix = PurePath(entry.name).suffix
        content_type = CONTENT_TYPES.get(suffix)
        if content_type is None or not entry.is_file():
            continue
        body = entry.read_bytes()
        etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode("ascii")
        headers = {b"cache-control": CACHE, b"etag": etag, **HEADERS.get(suffix, {})}
        found[entry.name.encode("ascii")] = Asset(content_type, body, etag, headers)
    return found
