"""Which web pages may use this front: the ``Origin`` header (RFC 6454) against an allow-list.

A browser lets any page open a WebSocket to anywhere and says only which page it was. So the front is the one
to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kollator.guard.hosts import parse_host_port

_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://([^/\s]{1,300})")
_SCHEMES = {"ws": "http", "wss": "https"}
_PORTS = {"http": 80, "https": 443}

_Parsed = tuple[str, str, int | None]


class OriginPolicy:
    """Permits the origins of a list; with an empty list, the host that the request itself went to.

    ``allowed`` has origins such as ``https://example.com`` or ``http://localhost:3000``, each scheme, host
    and port exact, or ``*`` for all of them. A list takes the place of the same host: a front that serves its
    own page too must have itself in it. Raises ``ValueError`` that names the piece which is not an origin.
    """

    __slots__ = ("_allowed", "_any")

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._any = "*" in allowed
        self._allowed = frozenset(_setting(piece) for piece in allowed if piece != "*")

    def permits(self, origin: str | None, host: str) -> bool:
        """Return whether a request may be served.

        ``origin`` is the header or ``None``: no browser sent it, so no page can have made it. ``host`` is the
        ``host[:port]`` that the client used (``addresses.client_scheme_host``).
        """
        if origin is None or self._any:
            return True
        parsed = _parse(origin)
        if parsed is None:
            return False
        if self._allowed:
            return parsed in self._allowed
        own = parse_host_port(host)
        if own is None or parsed[0] not in _PORTS:
            return False
        # Not the scheme: behind a TLS proxy that nobody told of, an https page comes to a plain port.
        return parsed[1:] == (own[0], own[1] or _PORTS[parsed[0]])


def _setting(piece: str) -> _Parsed:
    parsed = _parse(piece.removesuffix("/"))
    if parsed is None:
        raise ValueError(f"{piece[:100]!r} is not an origin; write https://host, https://host:port or *")
    return parsed


def _parse(origin: str) -> _Parsed | None:
    """Return scheme, host and port; ``None`` for what is not one origin, ``null`` among it."""
    match = _ORIGIN.fullmatch(origin)
    where = parse_host_port(match[2]) if match else None
    if match is None or where is None:
        return None
    scheme = match[1].lower()
    scheme = _SCHEMES.get(scheme, scheme)
    host, port = where
    return scheme, host, port or _PORTS.get(scheme)
