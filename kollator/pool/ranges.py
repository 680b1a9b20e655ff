"""Client addresses as ranges (IPv4 /24, IPv6 /48) and pins found by the longest prefix.

All of it is on the way of every ``POST /bootstrap``, so addresses are parsed by the C library and pins are
found with one dictionary access for each distinct prefix length.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")

TEXT_MAX = 128
"""The longest text that is looked at, in characters: 45 for an address, and room for a scope id or a mask."""

_BITS = {4: 32, 6: 128}
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


class Address(NamedTuple):
    """An IP address: its version (4 or 6) and its bits as an integer."""

    version: int
    value: int


def parse_address(text: str) -> Address:
    """Read an IP address as the pool sees it.

    An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is the IPv4 address in it, and a scope id
    (``%eth0``, RFC 4007 section 11) is dropped: it names a link of this host, not the client.

    Raises ``ValueError`` for anything else.
    """
    try:
        if ":" not in text:
            return Address(4, int.from_bytes(inet_pton(AF_INET, text), "big"))
        plain, percent, scope = text[: TEXT_MAX + 1].partition("%")
        if len(text) > TEXT_MAX or (percent and (not scope or "%" in scope)):
            raise ValueError
        packed = inet_pton(AF_INET6, plain)
    except (OSError, ValueError, TypeError):
        raise ValueError(f"not an IP address: {str(text)[:TEXT_MAX]!r}") from None
    if packed.startswith(_MAPPED_PREFIX):
        return Address(4, int.from_bytes(packed[12:], "big"))
    return Address(6, int.from_bytes(packed, "big"))


def range_of(address: Address) -> str:
    """Name the range of a parsed address: canonical CIDR text, /24 for IPv4 and /48 for IPv6 (RFC 5952)."""
    version, value = address
    if version == 4:
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.0/24"
    first, second, third = value >> 112, value >> 96 & 0xFFFF, value >> 80 & 0xFFFF
    if third:
        return f"{first:x}:{second:x}:{third:x}::/48"
    if second:
        return f"{first:x}:{second:x}::/48"
    return f"{first:x}::/48" if first else "::/48"


def client_range(address: str) -> str:
    """Name the range that decides about a client: the key of the ring.

    Clients of one /24 (IPv4) or /48 (IPv6, what RFC 6177 gives to one site) share a worker.
    Raises ``ValueError`` for what is not an address.
    """
    return range_of(parse_address(address))


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read a network with host bits allowed; one inside ``::ffff:0:0/96`` is the IPv4 network in it."""
    if not isinstance(text, str) or len(text) > TEXT_MAX:
        raise ValueError(f"not a CIDR: {str(text)[:TEXT_MAX]!r}")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"not a CIDR: {text!r}") from None
    packed = network.network_address.packed
    if network.version == 6 and packed.startswith(_MAPPED_PREFIX):  # so its prefix is 96 or longer
        return IPv4Network((packed[12:], network.prefixlen - 96))
    return network


def canonical_cidr(text: str) -> str:
    """Give the one spelling of a network: host bits cleared, an address alone is /32 or /128.

    Raises ``ValueError`` for what is not a network.
    """
    network = _parse_network(text)
    # Not str(network): Python writes a scope id back.
    return f"{type(network.network_address)(int(network.network_address))}/{network.prefixlen}"


def cidr_order(cidr: str) -> tuple[int, int, int]:
    """Sort key for networks: version, first address, prefix length. Raises ``ValueError``."""
    network = _parse_network(cidr)
    return network.version, int(network.network_address), network.prefixlen


class PinTable(Generic[V]):
    """Networks with a value each; the longest prefix that holds an address wins.

    One dictionary for each prefix length in use, so a lookup costs at most 33 accesses for IPv4 and 129 for
    IPv6, whatever the number of networks.
    """

    def __init__(self) -> None:
        # By version: (bits to shift out, network bits -> (cidr, value)), the longest prefix first.
        self._levels: dict[int, list[tuple[int, dict[int, tuple[str, V]]]]] = {4: [], 6: []}

    def __len__(self) -> int:
        return sum(len(level) for levels in self._levels.values() for _, level in levels)

    def insert(self, cidr: str, value: V) -> None:
        """Put a network in, or give it another value. Raises ``ValueError`` for what is not a network."""
        network = _parse_network(cidr)
        shift = _BITS[network.version] - network.prefixlen
        levels = self._levels[network.version]
        level = next((level for present, level in levels if present == shift), None)
        if level is None:
            level = {}
            levels.append((shift, level))
            levels.sort(key=lambda entry: entry[0])
        level[int(network.network_address) >> shift] = (canonical_cidr(cidr), value)

    def remove(self, cidr: str) -> bool:
        """Take a network out; say whether it was there. Raises ``ValueError`` for what is not a network."""
        network = _parse_network(cidr)
        shift = _BITS[network.version] - network.prefixlen
        levels = self._levels[network.version]
        for at, (present, level) in enumerate(levels):
            if present == shift:
                removed = level.pop(int(network.network_address) >> shift, None)
                if not level:
                    del levels[at]
                return removed is not None
        return False

    def lookup(self, address: Address) -> tuple[str, V] | None:
        """Find the longest network that holds the address: its canonical CIDR and its value."""
        version, value = address
        for shift, level in self._levels[version]:
            found = level.get(value >> shift)
            if found is not None:
                return found
        return None
