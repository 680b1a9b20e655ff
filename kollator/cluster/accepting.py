"""Who may begin a link with this front: the limits of those who have proved nothing yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory
from twisted.logger import Logger

from kollator.clock import Clock
from kollator.cluster.link import End, PeerLink, Reason, TurnedAway
from kollator.guard.addresses import limit_key
from kollator.guard.limits import Allowance, FailureBackoff, TokenBuckets

log = Logger("kollator:cluster")

HALF_OPEN_MAX = 64
"""The most accepted links whose peer has not proved who it is. For one more, the oldest goes."""
BACKED_OFF_FIRST_S = 0.1
BACKED_OFF_LAST_S = 1.0
"""How long an address whose link was refused is not listened to. Not for long: others may share the address."""
ADDRESSES_MAX = 1024
LINES_A_SECOND = 0.2
LINES_AT_ONCE = 10
"""How much may be logged about those who are no peers."""
TLS_SAID_AGAIN_S = 60.0
"""A front whose certificate is refused tries for ever: that is logged so often for each address."""

_BLAMELESS = ("closed-early", "stopping", "duplicate-link", "half-open", "backed-off", "handshake-timeout")
"""Not held against an address: load balancers look whether a port is open, and fronts may be slow."""
_NOT_SAID = ("closed-early", "stopping", "duplicate-link", "backed-off")


class Acceptor(Factory):
    """Builds links for accepted connections: for the endpoints of PEER_LISTEN, and for ``/worker-sync``.

    ``begin`` makes a link for an address. ``count`` takes the reason for each connection that gets none. ``exempt``
    tells addresses that are always listened to. ``noted`` takes the address and the reason of each link that was
    refused, but for those that are nobody's fault.
    """

    noisy = False

    def __init__(
        self,
        begin: Callable[[str], PeerLink],
        clock: Clock,
        count: Callable[[Reason], object],
        exempt: Callable[[str], bool],
        noted: Callable[[str, str], object] = lambda address, reason: None,
    ) -> None:
        self.is_open = False
        self._begin = begin
        self._clock = clock
        self._count = count
        self._exempt = exempt
        self._noted = noted
        self._half_open: dict[PeerLink, None] = {}
        self._backoff = FailureBackoff(BACKED_OFF_FIRST_S, BACKED_OFF_LAST_S, ADDRESSES_MAX)
        self._lines = Allowance(LINES_A_SECOND, LINES_AT_ONCE)
        self._lines_full_at = 0.0
        self._tls_lines = TokenBuckets(1 / TLS_SAID_AGAIN_S, 1, ADDRESSES_MAX)
        self._unsaid = 0

    def buildProtocol(self, addr: Any) -> Any:
        """A link, or what closes the connection: a factory that TLS is wrapped around must build something."""
        return self.link(addr) or TurnedAway()

    def link(self, addr: Any) -> PeerLink | None:
        """A link, or None when this address is not to be listened to now."""
        address = host_of(addr)
        if not self.is_open:
            return None
        if not self._listened_to(address):
            self._count("backed-off")
            return None
        if len(self._half_open) >= HALF_OPEN_MAX:
            oldest = next(iter(self._half_open))
            oldest.abort("half-open", f"{len(self._half_open)} are being opened")
        link = self._begin(address)
        self._half_open[link] = None
        return link

    def moved(self, link: PeerLink, address: str) -> bool:
        """A proxy told the address of a new link. False: that one is not to be listened to now."""
        link.address = address
        if self._listened_to(address):
            return True
        link.fail("backed-off")
        return False

    def proved(self, link: PeerLink) -> None:
        """The peer has shown who it is."""
        self._half_open.pop(link, None)

    def refused(self, link: PeerLink, end: End) -> None:
        """A link was over before it was established: that is held against its address, and said, if not too often."""
        self._half_open.pop(link, None)
        if end.reason not in _BLAMELESS and not end.by_peer:
            self.blame(link)
        if end.reason in _NOT_SAID:
            return
        self._noted(link.address, end.reason)
        now = self._clock.seconds()
        if end.reason == "tls" and self._tls_lines.take(limit_key(link.address), now):
            return
        full_at = self._lines.spend(self._lines_full_at, now)
        if full_at < 0:
            self._unsaid += 1
            return
        self._lines_full_at = full_at
        more, self._unsaid = self._unsaid, 0
        log.warn(
            "a link from {address} was refused: {why}{more}",
            address=link.address,
            why=str(end),
            more=f"; so were {more} that were not mentioned" if more else "",
        )

    def blame(self, link: PeerLink) -> None:
        """The address of ``link`` is not listened to for a moment."""
        self._backoff.failed(limit_key(link.address), self._clock.seconds())

    def _listened_to(self, address: str) -> bool:
        return self._exempt(address) or not self._backoff.wait_s(limit_key(address), self._clock.seconds())


def host_of(address: Any) -> str:
    """The IP address in one of Twisted's; "" where there is none."""
    return getattr(address, "host", "") or ""
