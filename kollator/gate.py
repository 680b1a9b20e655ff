"""Who is let in, asked by the door, the WebSocket handshake and the endpoints, and answered from the guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kollator.guard.addresses import NetworkSet, client_address, client_scheme_host, limit_key
from kollator.guard.limits import AddressBackoff, Allowance, ConnectionCounts, TokenBuckets, retry_after_s
from kollator.guard.origins import OriginPolicy
from kollator.guard.places import Places
from kollator.settings import Settings
from kollator.signaling.interfaces import Note
from kollator.signaling.switchboard import BURST_S
from kollator.web.door import Admission
from kollator.web.refusal import Refusal
from kollator.web.resources import DRAINING_RETRY_S, Caller

RATE_BURST_S = 5.0
"""The burst of the rates for each address, in seconds' worth."""
ADDRESSES = 50_000
"""The most addresses that are remembered, for each of two rates and the back-off: some 180 bytes each."""


class Gate:
    """Who is let in: addresses behind proxies, origins, counts and rates.

    ``refused`` counts a reason, ``note`` tells the audit log of a limit that an address has hit.
    """

    def __init__(
        self,
        settings: Settings,
        draining: Callable[[], bool],
        refused: Callable[[str], None],
        note: Note = lambda event, **fields: None,
    ) -> None:
        self._trusted = NetworkSet(settings.trusted_proxies)
        self._exempt = NetworkSet(settings.rate_limit_exempt)
        self._worker_networks = NetworkSet(settings.worker_allow)
        self._origins = OriginPolicy(settings.allowed_origins)
        self._counts = ConnectionCounts(settings.max_connections, settings.connections_per_ip)
        rate = settings.connection_rate_per_ip
        self._connecting = TokenBuckets(rate, rate * RATE_BURST_S, ADDRESSES)
        rate = settings.bootstrap_rate_per_ip
        self._bootstrapping = TokenBuckets(rate, rate * RATE_BURST_S, ADDRESSES)
        self._messages = Allowance(settings.message_rate, settings.message_rate * BURST_S)
        self._draining = draining
        self._refused = refused
        self._note = note
        self.auth_backoff = AddressBackoff(settings.auth_backoff_s, ADDRESSES, self._exempt.contains)
        """Keeps out addresses whose workers have failed to authenticate."""
        self.places = Places(
            settings.http_connections,
            settings.http_connections_per_ip,
            lambda address: self._exempt.contains(address) or self._trusted.contains(address),
            self._no_place,
        )
        """For the connections that are no WebSockets, or not yet."""

    def caller(self, peer: str, fields: Mapping[str, str], scheme: str, fallback_host: str) -> Caller:
        """Who asks, by the connection and (from trusted proxies) the headers, whose names are in lower case."""
        forwarded_for, forwarded = _lines(fields, "x-forwarded-for"), _lines(fields, "forwarded")
        used_scheme, host = client_scheme_host(
            peer,
            scheme,
            fields.get("host"),
            fallback_host,
            self._trusted,
            forwarded_for=forwarded_for,
            forwarded=forwarded,
            forwarded_proto=_lines(fields, "x-forwarded-proto"),
            forwarded_host=_lines(fields, "x-forwarded-host"),
        )
        return Caller(client_address(peer, forwarded_for, forwarded, self._trusted), used_scheme, host)

    def origin_permitted(self, origin: str | None, caller: Caller) -> bool:
        """Whether a page of that origin may use this front."""
        return self._origins.permits(origin, caller.host)

    def handshake_address(self, peer: str, fields: Mapping[str, str]) -> str:
        """The client's address of a WebSocket handshake."""
        return client_address(peer, _lines(fields, "x-forwarded-for"), _lines(fields, "forwarded"), self._trusted)

    def handshake_origin_permitted(self, peer: str, fields: Mapping[str, str], transport: Any) -> bool:
        """Whether the page that opens a WebSocket may."""
        origin = fields.get("origin")
        if origin is None:
            return True
        scheme = "https" if hasattr(transport, "getPeerCertificate") else "http"
        return self.origin_permitted(origin, self.caller(peer, fields, scheme, ""))

    def admission(self, now: Callable[[], float]) -> Admission:
        """The door's question: may one more WebSocket begin?"""

        def admit(peer: str, fields: Mapping[str, str]) -> Refusal | None:
            if self._draining():
                self._refused("draining")
                return Refusal(503, "draining", "this front is about to stop; ask another", DRAINING_RETRY_S)
            address = self.handshake_address(peer, fields)
            if self._exempt.contains(address):
                return None
            wait_s = self._connecting.take(limit_key(address), now())
            if wait_s > 0:
                self._refused("rate")
                self._note("limit-hit", reason="connection-rate", address=address)
                return Refusal(429, "rate-limited", "too many new connections from this address", retry_after_s(wait_s))
            return None

        return admit

    def bootstrap_wait_s(self, address: str, now: float) -> float:
        """0.0 when one more bootstrap from that address is allowed, else seconds to wait."""
        if self._exempt.contains(address):
            return 0.0
        wait_s = self._bootstrapping.take(limit_key(address), now)
        if wait_s > 0:
            self._note("limit-hit", reason="bootstrap-rate", address=address)
        return wait_s

    def admit(self, address: str) -> str | None:
        """Counts an open WebSocket in, or says which limit is reached."""
        return self._counts.admit(self._count_key(address))

    def release(self, address: str) -> None:
        """Counts an admitted WebSocket out."""
        self._counts.release(self._count_key(address))

    def allowance(self, address: str) -> Allowance | None:
        """The rate of messages of a connection from that address."""
        return None if self._exempt.contains(address) else self._messages

    def worker_allowed(self, address: str) -> bool:
        """Whether workers may come from there."""
        return not self._worker_networks or self._worker_networks.contains(address)

    def _no_place(self, limit: str, address: str) -> None:
        self._refused(limit)
        self._note("limit-hit", reason="http-connections", address=address)

    def _count_key(self, address: str) -> str | None:
        return None if self._exempt.contains(address) else limit_key(address)


def _lines(fields: Mapping[str, str], name: str) -> list[bytes]:
    return [fields[name].encode("latin-1", "replace")] if name in fields else []
