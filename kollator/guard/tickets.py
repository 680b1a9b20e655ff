"""Tickets: signed, expiring proof of a client's id, which every front with the same key accepts.

A ticket is text of under 300 characters, all fit for JSON and URLs, in seven fields::

    v1.<key id>.<client id>.<worker id>.<issued>.<expires>.<mac>

The worker is the one that the client was assigned to, or nothing: whichever front the client lands on then
knows whose loss concerns it. A worker id may have dots in it, no field after it does, so each text has one
reading. Times are in whole seconds since 1970. ``mac`` is HMAC-SHA256 over everything before the last dot, in
base64url without padding. Its key is derived from a cluster key with HKDF-SHA256 (RFC 5869, no salt, info
``kollator.v1 ticket``), so a ticket says nothing about the cluster key and no other proof can pass for one.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from typing import Literal

from kollator.guard.keys import Key, hkdf

MAX_TICKET_CHARS = 300
CLIENT_ID_RANDOM_BYTES = 12
"""96 bits: ids are never handed out twice, and never guessed."""
CLOCK_SKEW_S = 60
"""How far the clock of the front that issued a ticket may be ahead of this one's."""

Reason = Literal["malformed", "unknown-key", "forged", "expired", "from-the-future"]

_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WORKER_ID = re.compile(r"[A-Za-z0-9._:-]{0,64}")
_TICKET = re.compile(
    r"v1\.([A-Za-z0-9_-]{8})\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9._:-]{0,64})"
    r"\.([0-9]{1,12})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})"
)


class BadTicket(Exception):
    """A ticket that does not give a client its id back. ``reason`` is for the audit log and the counters."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class TicketBook:
    """Issues tickets and reads them.

    ``keys`` are the cluster keys, at least one: the first signs, all are accepted. ``ttl_s`` is how long a
    ticket is good for, in seconds, at least one. Raises ``ValueError`` for anything else.
    """

    __slots__ = ("_secrets", "_signing_id", "ttl_s")

    def __init__(self, keys: Sequence[bytes], ttl_s: float) -> None:
        if not keys:
            raise ValueError("tickets need a key")
        if not 1 <= ttl_s < 1e9:
            raise ValueError("a ticket lives for one second at least")
        self.ttl_s = int(ttl_s)
        self._secrets = {_key_id(key): _secret(key) for key in keys}
        self._signing_id = _key_id(keys[0])

    def issue(self, client_id: str, now: float, worker: str = "") -> tuple[str, int]:
        """Return a ticket for a client and the time it expires; both times in seconds since 1970.

        ``worker`` is the one that the client is assigned to, if any. Raises ``ValueError`` for an id that is
        not 1 to 64 URL-safe characters (``client_id`` makes such ids), and for what is no worker id.
        """
        if not _CLIENT_ID.fullmatch(client_id):
            raise ValueError("a client id is 1 to 64 of A-Z a-z 0-9 _ -")
        if not _WORKER_ID.fullmatch(worker):
            raise ValueError("a worker id is up to 64 of A-Z a-z 0-9 . _ : -")
        issued = int(now)
        expires = issued + self.ttl_s
        signed = f"v1.{self._signing_id}.{client_id}.{worker}.{issued}.{expires}"
        return f"{signed}.{_mac(self._secrets[self._signing_id], signed)}", expires

    def open(self, ticket: str, now: float) -> tuple[str, str]:
        """Return the id of the client that a ticket was issued to, and its worker's, "" for none.

        Raises ``BadTicket`` when it is malformed, signed with another key, forged, expired, or issued over
        ``CLOCK_SKEW_S`` seconds after ``now``.
        """
        fields = _TICKET.fullmatch(ticket) if len(ticket) <= MAX_TICKET_CHARS else None
        if fields is None:
            raise BadTicket("malformed")
        key_id, client, worker, issued, expires, mac = fields.groups()
        secret = self._secrets.get(key_id)
        if secret is None:
            raise BadTicket("unknown-key")
        # The text is compared, not the decoded bytes: of several texts for the same bytes one is good.
        if not hmac.compare_digest(_mac(secret, ticket[: fields.start(6) - 1]), mac):
            raise BadTicket("forged")
        if now >= int(expires):
            raise BadTicket("expired")
        if int(issued) > now + CLOCK_SKEW_S:
            raise BadTicket("from-the-future")
        return client, worker


def client_id(random_bytes: bytes) -> str:
    """Return a new client id, 16 URL-safe characters, from ``CLIENT_ID_RANDOM_BYTES`` random bytes."""
    if len(random_bytes) != CLIENT_ID_RANDOM_BYTES:
        raise ValueError(f"a client id takes {CLIENT_ID_RANDOM_BYTES} random bytes")
    return base64.urlsafe_b64encode(random_bytes).decode()


def _mac(secret: bytes, signed: str) -> str:
    digest = hmac.digest(secret, signed.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _secret(key: bytes) -> bytes:
    return Key(hkdf(key, b"kollator.v1 ticket", 32))


def _key_id(key: bytes) -> str:
    return base64.urlsafe_b64encode(hkdf(key, b"kollator.v1 ticket key id", 6)).decode()
