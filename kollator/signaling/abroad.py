"""This front's connections as the exchange with other fronts uses them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import UNSET

from kollator.signaling.connection import Connection, Stage
from kollator.signaling.decoding import Refused
from kollator.signaling.directory import Directory
from kollator.signaling.frames import is_utf8
from kollator.signaling.interfaces import Outcome
from kollator.signaling.mailboxes import Absent
from kollator.signaling.messages import ErrorCode

REASONS: dict[Outcome, tuple[ErrorCode, str]] = {
    "busy": ("target-busy", "too much waits for the target already; try again"),
    "unknown": ("unknown-target", "nobody of that id is connected"),
    "forbidden": ("forbidden", "clients talk to workers, and workers to clients"),
}
"""What the sender of a message that could not be delivered is told."""


class Abroad:
    """What other fronts may do with the connections of this one, ``node``.

    ``deliver_to_client`` is the switchboard's; ``welcomed`` tells a client what it would have been told had it been
    here before.
    """

    def __init__(
        self,
        node: str,
        directory: Directory,
        deliver_to_client: Callable[[str, bytes, float], Outcome],
        welcomed: Callable[[Connection], None],
    ) -> None:
        self._node = node
        self._directory = directory
        self._deliver_to_client = deliver_to_client
        self._welcomed = welcomed

    def deliver_to_worker(self, worker: str, payload: bytes) -> Outcome:
        """Sends an encoded message to a worker of this front."""
        connection = self._directory.workers.get(worker)
        if connection is None or not is_utf8(payload):
            return "unknown"
        return "sent" if connection.send(payload) else "busy"

    def deliver_to_client(self, client: str, payload: bytes, now: float) -> Outcome:
        """Sends an encoded message to a client of this front, or keeps it for one that dropped just now."""
        return self._deliver_to_client(client, payload, now) if is_utf8(payload) else "unknown"

    def undelivered(self, sender: str, target: str, outcome: Outcome, ref: str | None) -> bool:
        """Tells a client or worker that its message did not arrive; False when it is not connected here."""
        connection = self._directory.clients.get(sender) or self._directory.workers.get(sender)
        if connection is None:
            return False
        if outcome in REASONS:
            code, reason = REASONS[outcome]
            self._directory.refuse(connection, Refused(code, reason, UNSET if ref is None else ref, target))
        return True

    def moved_away(
        self, client: str, at_ms: int, front: str, now: float
    ) -> tuple[str, Sequence[str], Sequence[bytes]] | None:
        """A client has connected to ``front``, at that time (Unix milliseconds).

        Closes an older connection of it here (4409); of two of the same time the one at the higher id is newer.
        Returns its assigned worker, the workers it talked to and the messages that were kept for it; None when
        nothing is known of it here, or the connection here is newer.
        """
        connection = self._directory.clients.get(client)
        absent: Absent | None
        if connection is None:
            absent = self._directory.mailboxes.returned(client, now)
        elif (connection.since_ms, self._node) > (at_ms, front):
            return None
        else:
            absent = Absent(connection, now)
            self._directory.remove_client(connection)
        return None if absent is None else (absent.assigned, absent.talked, absent.messages)

    def arrivals(self, since_ms: int) -> list[tuple[str, int]]:
        """The clients that are connected here and came with a ticket at that time or later, each with its time."""
        return [
            (client, connection.since_ms)
            for client, connection in self._directory.clients.items()
            if connection.since_ms and connection.since_ms >= since_ms
        ]

    def inherited(
        self, client: str, assigned: str, talked: Sequence[str], payloads: Sequence[bytes], now: float
    ) -> None:
        """What another front remembered of a client that is here now: it goes on as if it had always been here.

        One that has left again finds its messages when it comes back.
        """
        connection = self._directory.clients.get(client)
        if connection is not None:
            connection.assigned = connection.assigned or assigned
            connection.talked = connection.talked or tuple(talked)
        for payload in payloads:
            self.deliver_to_client(client, payload, now)
        if connection is not None and connection.stage is Stage.CLIENT:
            self._welcomed(connection)
