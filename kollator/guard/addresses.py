"""Whose request it is: ranges of addresses, and what trusted proxies say of the client behind them.

An IPv4 address inside IPv6 (``::ffff:192.0.2.1``) is that IPv4 address everywhere, and a zone (``%eth0``)
counts for nothing. A peer without an address, on a unix socket, is an empty string and in no range.

A header is believed only when the peer's own address is trusted. Then the hops are walked from the right, the
end that the nearest proxy wrote, to the first that is not trusted: that is the client, and what stands
further left may be made up. ``X-Forwarded-For`` goes before ``Forwarded`` (RFC 7239) where both are there,
since most proxies write the first and hand on the second as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, inet_ntop, inet_pton
from typing import NamedTuple

from kollator.guard.hosts import host_port

Network = IPv4Network | IPv6Network

MAX_NETWORKS = 4096
MAX_HOPS = 32
"""Proxies that are walked through before the rest of a header is not looked at."""
MAX_HOP_BYTES = 512
"""One hop of a header: an address, at most with a protocol and a host name."""

_MAX_ADDRESS_CHARS = 64
_CACHED_ADDRESSES = 4096
_RECENT_ADDRESSES = 256  # a handshake asks for the same address several times within a moment
_MAPPED = IPv6Network("::ffff:0:0/96")
_QUOTE, _COMMA = b'",'
# An address or a name in place of one, and a port or a name in place of that (RFC 7239 section 6).
_NODE = re.compile(r"(?:\[([^\]]+)\]|([^\[\]:]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_HIDDEN = re.compile(r"unknown|_[A-Za-z0-9._-]+", re.IGNORECASE)
# One pair of a Forwarded element. Values with a colon or brackets ought to be quoted, but often are not.
_PAIR = re.compile(
    r"""[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^ \t;,="\\]+))[ \t]*(?:;|\Z)"""
)
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a text of CIDRs and single addresses, separated by commas or white space.

    Raises ``ValueError`` that names the piece which is not one, or has bits set outside its prefix.
    """
    pieces = text.replace(",", " ").split()
    if len(pieces) > MAX_NETWORKS:
        raise ValueError(f"there are {len(pieces)} networks, {MAX_NETWORKS} at most")
    return tuple(_network(piece) for piece in pieces)


class NetworkSet:
    """Tells quickly whether an address is in one of many networks. False when there are none."""

    __slots__ = ("_by_prefix", "_cached")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        by_prefix: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            prefixes = by_prefix.setdefault((network.version, shift), set())
            prefixes.add(int(network.network_address) >> shift)
        self._by_prefix = tuple((*length, frozenset(prefixes)) for length, prefixes in by_prefix.items())
        self._cached = lru_cache(maxsize=_CACHED_ADDRESSES)(self._contains)

    def __bool__(self) -> bool:
        """Return whether there is any network: an address may be in it."""
        return bool(self._by_prefix)

    def contains(self, address: str) -> bool:
        """Return whether an address is in one of the networks; False for a text that is no address."""
        # A long text would only fill the memory of the cache.
        return bool(self._by_prefix) and len(address) <= _MAX_ADDRESS_CHARS and self._cached(address)

    def _contains(self, address: str) -> bool:
        parsed = _parse(address)
        if parsed is None:
            return False
        number, version = int(parsed), parsed.version
        return any(
            version == network_version and number >> shift in prefixes
            for network_version, shift, prefixes in self._by_prefix
        )


def limit_key(address: str) -> str:
    """Return what limits are kept by: an IPv4 address, an IPv6 address's /64, else the text itself, cut.

    A /64 is what one host gets (RFC 6177): limits by single addresses would be no limits.
    """
    if ":" not in address or len(address) > _MAX_ADDRESS_CHARS:  # which would only fill the memory of the cache
        return address[:_MAX_ADDRESS_CHARS]
    return _cached_key(address)


@lru_cache(maxsize=_RECENT_ADDRESSES)
def _cached_key(address: str) -> str:
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address if parsed is None else str(parsed)


def client_address(
    peer: str, forwarded_for: Sequence[bytes], forwarded: Sequence[bytes], trusted: NetworkSet
) -> str:
    """Return the address of a client in plain form.

    ``peer`` is the connection's own address, ``forwarded_for`` and ``forwarded`` are the values of each
    ``X-Forwarded-For`` and ``Forwarded`` line in the order received. A hop that is malformed, hidden or
    ``unknown`` ends the walk, and so do ``MAX_HOPS``: the last good hop is the answer, at worst the peer.
    """
    if not trusted.contains(peer):
        return _plain(peer) or peer
    return _client_hop(peer, forwarded_for, forwarded, trusted).address


def client_scheme_host(
    peer: str,
    scheme: str,
    host: str | None,
    fallback_host: str,
    trusted: NetworkSet,
    *,
    forwarded_for: Sequence[bytes] = (),
    forwarded: Sequence[bytes] = (),
    forwarded_proto: Sequence[bytes] = (),
    forwarded_host: Sequence[bytes] = (),
) -> tuple[str, str]:
    """Return ``http`` or ``https`` and the ``host[:port]`` that the client used, fit to be put into a URL.

    ``scheme`` is the connection's own (``ws`` is ``http``), ``host`` the ``Host`` header. A trusted proxy may
    set both, with ``X-Forwarded-Proto`` and ``X-Forwarded-Host``, else with ``proto`` and ``host`` of the
    ``Forwarded`` element that the client's address comes from. In a list with a value from each proxy it is
    the value from the one that saw the client. ``fallback_host`` is the answer where no host passes
    ``hosts.parse_host_port``.
    """
    hop = _client_hop(peer, forwarded_for, forwarded, trusted)
    proto, named = "", ""
    if hop.depth:
        proto = _value_at(forwarded_proto, hop.depth) or hop.proto
        named = _value_at(forwarded_host, hop.depth) or hop.host
    return (
        _SCHEMES.get(proto.lower()) or _SCHEMES.get(scheme.lower(), "http"),
        host_port(named) or host_port(host or "") or fallback_host,
    )


class _Hop(NamedTuple):
    """Where the walk ended: at what the ``depth``-th proxy from the right said; 0: no proxy is trusted."""

    address: str
    depth: int = 0
    proto: str = ""
    host: str = ""


def _client_hop(
    peer: str, forwarded_for: Sequence[bytes], forwarded: Sequence[bytes], trusted: NetworkSet
) -> _Hop:
    if not trusted.contains(peer):
        return _Hop(_plain(peer) or peer)
    hop = _Hop(_plain(peer) or peer, 1)
    if any(line.strip() for line in forwarded_for):
        told: Iterator[_Hop | None] = (_from_address(text) for text in _from_right(forwarded_for))
    else:
        told = (_from_element(text) for text in _from_right(forwarded))
    for depth, said in enumerate(told, 1):
        if said is None or depth > MAX_HOPS:
            break
        hop = _Hop(said.address or hop.address, depth, said.proto or hop.proto, said.host or hop.host)
        if not trusted.contains(said.address):
            break
    return hop


def _from_address(text: str) -> _Hop | None:
    address = _node(text)
    return None if address is None else _Hop(address)


def _from_element(text: str) -> _Hop | None:
    """Read one element of ``Forwarded`` (RFC 7239 section 4); ``None`` when it is malformed."""
    values: dict[str, str] = {}
    position = 0
    while position < len(text):
        pair = _PAIR.match(text, position)
        if pair is None or pair[1].lower() in values:
            return None
        quoted, bare = pair[2], pair[3]
        values[pair[1].lower()] = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        position = pair.end()
    address = _node(values["for"]) if "for" in values else ""
    return None if address is None else _Hop(address, 0, values.get("proto", ""), values.get("host", ""))


def _node(text: str) -> str | None:
    """Return the address of a hop without its port; empty for a hidden one, ``None`` for a malformed one."""
    bare = text.count(":") > 1 and not text.startswith("[")
    match = None if bare else _NODE.fullmatch(text)
    name = (match[1] or match[2]) if match else text
    if _HIDDEN.fullmatch(name):
        return ""
    return _plain(name)


def _from_right(lines: Sequence[bytes]) -> Iterator[str]:
    """Yield the members of a list header, right-most first, and an unusable one where a member is too long.

    From the right, since an open quote in the client's part must not swallow what a proxy appended.
    """
    for line in reversed(lines):
        end = position = len(line)
        quoted = False
        while position > 0:
            position -= 1
            if end - position > MAX_HOP_BYTES:
                yield "?"
                return
            if line[position] == _QUOTE:
                quoted = not quoted or _is_escaped(line, position)
            elif line[position] == _COMMA and not quoted:
                if member := line[position + 1 : end].strip():
                    yield member.decode("latin-1")
                end = position
        if member := line[:end].strip():
            yield member.decode("latin-1")


def _is_escaped(line: bytes, position: int) -> bool:
    before = line[max(0, position - MAX_HOP_BYTES) : position]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def _value_at(lines: Sequence[bytes], depth: int) -> str:
    """Return the ``depth``-th value from the right, the left-most where there are fewer, empty for none."""
    found = ""
    for count, value in enumerate(_from_right(lines), 1):
        found = value
        if count == depth:
            break
    return found


def _plain(text: str) -> str | None:
    # A long text would only fill the memory of the cache.
    return _cached_plain(text) if len(text) <= _MAX_ADDRESS_CHARS else None


@lru_cache(maxsize=_RECENT_ADDRESSES)
def _cached_plain(text: str) -> str | None:
    parsed = _parse(text)
    if parsed is None or parsed.version == 6 or ":" in text:
        return None if parsed is None else str(parsed)
    return text  # an IPv4 address has no other form


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    return _cached_parse(text) if len(text) <= _MAX_ADDRESS_CHARS else None


@lru_cache(maxsize=_RECENT_ADDRESSES)
def _cached_parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return _plain_ipv4(text)
    except (OSError, ValueError):
        pass
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _plain_ipv4(text: str) -> IPv4Address:
    """Most addresses, in a tenth of the time of ``ip_address``. Raises ``OSError`` or ``ValueError`` for others."""
    packed = inet_pton(AF_INET, text)
    if inet_ntop(AF_INET, packed) != text:  # some systems take leading zeros
        raise ValueError(text)
    return IPv4Address(packed)


def _network(piece: str) -> Network:
    try:
        network = ip_network(piece)
    except ValueError as problem:
        remedy = ""
        if "host bits" in str(problem):
            remedy = f"; did you mean {ip_network(piece, strict=False)}?"
        raise ValueError(f"{piece[:100]!r} is not an address or a CIDR range{remedy}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        inner = network.network_address.ipv4_mapped
        return IPv4Network((int(inner or 0), network.prefixlen - 96))
    return network
