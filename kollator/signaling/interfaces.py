"""What the rest of the front does for signaling, as signaling calls it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol

from kollator.signaling.connection import Claim
from kollator.signaling.messages import WorkerRef

Outcome = Literal["sent", "busy", "unknown", "forbidden"]
Assigner = Callable[[str, str | None, Collection[str]], tuple[WorkerRef | None, list[WorkerRef]]]
"""(IP address, region or None, excluded workers) to the worker and the alternates."""
Note = Callable[..., None]
"""Takes the name of an event and its fields, for the log."""


class Registrar(Protocol):
    """Who keeps the rows of the workers that this front holds."""

    def worker_joined(self, claim: Claim, done: Callable[[bool], None]) -> None:
        """Writes a worker's registration; ``done`` is called once, with whether it is on disk.

        The claim takes the place of an older one of the same worker, of which nothing more is told.
        """

    def worker_left(self, claim: Claim, politely: bool = False) -> None:
        """The connection that made this claim is gone. Never called before ``done``.

        ``politely``: the worker closed it in order (1000 or 1001).
        """

    def worker_status(self, worker: str, sessions: int, draining: bool) -> None:
        """The worker told its load."""


class Elsewhere(Protocol):
    """The other fronts."""

    @property
    def is_alone(self) -> bool:
        """No other front is linked."""

    def to_worker(self, worker: str, client: str, payload: bytes, ref: str | None) -> Outcome:
        """Sends a client's message towards a worker that another front holds; ``ref`` comes back when it fails."""

    def to_client(self, client: str, worker: str, payload: bytes, ref: str | None) -> Outcome:
        """Sends a worker's message towards a client of another front."""

    def arrived(self, client: str, at_ms: int) -> None:
        """A client has come here with a ticket, at that time (Unix milliseconds)."""


class Tally(Protocol):
    """What is counted; plain integers, read by the metrics."""

    errors: dict[str, int]
    messages_received: int
    messages_relayed: int
    messages_kept: int
    handoffs: int
    worker_lost_told: int
    clients_joined: int
    clients_returned: int
    workers_joined: int
    workers_refused: int

    def close(self, code: int) -> None:
        """Counts a connection that this front closed with ``code``."""
