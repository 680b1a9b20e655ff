"""The client application's files, read once at start: small, immutable, each with a strong ETag."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import attrs

CONTENT_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}

PAGE_HEADERS = {
    # The page loads its own scripts and styles only, and speaks to fronts only: WebSocket and fetch.
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"connect-src 'self' ws: wss: http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
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


@attrs.frozen
class Assets:
    """All files by name."""

    files: dict[bytes, Asset]

    def page(self, name: bytes) -> Asset:
        """One of the HTML pages."""
        return self.files[name]


def load_assets() -> Assets:
    """The files of ``kollator/web/static``."""
    found: dict[bytes, Asset] = {}
    for entry in files("kollator.web").joinpath("static").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        content_type = CONTENT_TYPES.get(suffix)
        if content_type is None or not entry.is_file():
            continue
        body = entry.read_bytes()
        headers = {b"cache-control": CACHE}
        if suffix == ".html":
            headers |= PAGE_HEADERS
        etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode("ascii")
        found[entry.name.encode("ascii")] = Asset(content_type, body, etag, headers)
    return Assets(found)
