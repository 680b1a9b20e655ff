"""What is remembered of clients whose connection dropped: pure, bounded, and forgotten after 30 seconds.

A client that changes networks is gone for a moment only. Messages for it are kept meanwhile and handed over
when it comes back with its ticket.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from kollator.signaling.connection import Connection

KEEP_S = 30.0
"""How long a dropped client is remembered, in seconds."""
MESSAGES = 32
"""The most messages kept for one client."""
BYTES = 256 * 1024
"""The most bytes kept for one client."""
CLIENTS = 20_000
"""The most dropped clients remembered; the one that left first is forgotten first."""
TOTAL_BYTES = 8 * 1024 * 1024
"""The most bytes kept for all of them together."""


class Absent:
    """A client that is not connected: since when, what its connection knew of it, and what waits for it."""

    __slots__ = ("assigned", "bytes", "left_at", "messages", "region", "talked")

    def __init__(self, connection: Connection, left_at: float) -> None:
        self.left_at = left_at
        self.assigned = connection.assigned
        self.talked = connection.talked
        self.region = connection.region
        self.messages: list[bytes] = []
        self.bytes = 0


class Mailboxes:
    """The dropped clients by id, the one that left first in front."""

    def __init__(self) -> None:
        self._absent: OrderedDict[str, Absent] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._absent)

    def __contains__(self, client: str) -> bool:
        return client in self._absent

    def left(self, client: str, connection: Connection, now: float) -> None:
        """Remembers a client whose connection dropped at ``now``."""
        self._forget(client)
        self._absent[client] = Absent(connection, now)
        if len(self._absent) > CLIENTS:
            self._forget(next(iter(self._absent)))

    def keep(self, client: str, payload: bytes, now: float) -> Literal["kept", "full", "unknown"]:
        """Keeps one encoded message for ``client``: ``unknown`` when it never was here or left too long ago."""
        absent = self._absent.get(client)
        if absent is None or now - absent.left_at >= KEEP_S:
            return "unknown"
        size = len(payload)
        if len(absent.messages) >= MESSAGES or absent.bytes + size > BYTES or self.bytes + size > TOTAL_BYTES:
            return "full"
        absent.messages.append(payload)
        absent.bytes += size
        self.bytes += size
        return "kept"

    def returned(self, client: str, now: float) -> Absent | None:
        """Takes out what is remembered of ``client``; ``None`` when that is nothing, or too old."""
        absent = self._forget(client)
        if absent is None or now - absent.left_at >= KEEP_S:
            return None
        return absent

    def expire(self, now: float) -> None:
        """Forgets everyone who left ``KEEP_S`` or longer ago."""
        while self._absent:
            client, absent = next(iter(self._absent.items()))
            if now - absent.left_at < KEEP_S:
                return
            self._forget(client)

    def _forget(self, client: str) -> Absent | None:
        absent = self._absent.pop(client, None)
        if absent is not None:
            self.bytes -= absent.bytes
        return absent
