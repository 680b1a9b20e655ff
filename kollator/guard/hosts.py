"""The grammar of ``host[:port]``, stricter than RFC 3986 section 3.2.2: what a client may name a front by."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

MAX_HOST_CHARS = 253
_MAX_TEXT_CHARS = MAX_HOST_CHARS + len(":65535")
# An underscore is not in RFC 1123, but container networks have such names.
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST_PORT = re.compile(rf"(?:\[([0-9A-Fa-f:.]{{2,45}})\]|({_LABEL}(?:\.{_LABEL})*\.?))(?::([0-9]{{1,5}}))?")


def parse_host_port(text: str) -> tuple[str, int | None] | None:
    """Return a host, in lower case or an IPv6 address in brackets, and its port if it has one.

    ``None`` when the text is not a host name of ASCII labels, an IPv4 address or a bracketed IPv6 address,
    with a port of 1 to 65535 or none. Nothing but letters, digits and ``._-[]:`` is ever in a host that is
    returned.
    """
    match = _HOST_PORT.fullmatch(text) if len(text) <= _MAX_TEXT_CHARS else None
    if match is None:
        return None
    address, name, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 1 <= port <= 65_535:
        return None
    try:
        if address:
            return f"[{IPv6Address(address)}]", port
        if name.rstrip(".").rpartition(".")[2].isdigit():
            # As browsers have it (WHATWG URL, "ends in a number"): it is an IPv4 address or nothing.
            return str(IPv4Address(name)), port
    except AddressValueError:
        return None
    return (name.lower(), port) if len(name) <= MAX_HOST_CHARS else None


def host_port(text: str) -> str | None:
    """Return ``host[:port]`` in its plain form, or ``None`` when ``parse_host_port`` refuses it."""
    parsed = parse_host_port(text)
    if parsed is None:
        return None
    host, port = parsed
    return host if port is None else f"{host}:{port}"
