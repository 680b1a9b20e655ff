"""One WebSocket as the switchboard sees it: what is known of its peer, and two verbs."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from kollator.guard.limits import Allowance


class Stage(IntEnum):
    """How far a connection has come. The order counts: it is an index, and up to ``JOINING`` nobody was welcomed."""

    HELLO = 0
    """Open, nothing said."""
    AUTH = 1
    """A worker that was sent a challenge."""
    JOINING = 2
    """A worker whose mac was right and whose registration is being written."""
    CLIENT = 3
    WORKER = 4
    ENDED = 5
    """Closed or about to be: nothing it says counts any more, nothing is sent to it."""


class Claim(NamedTuple):
    """What a worker says it is, in its hello; true once its mac was right. ``capacity`` is in sessions."""

    id: str
    region: str
    capacity: int
    address: str
    nonce: str


class Connection:
    """Base of the protocol that carries a connection; the switchboard calls ``send`` and ``close``.

    The values below are defaults of the class: an instance holds only what differs, because there are tens of
    thousands of them.
    """

    stage: Stage = Stage.HELLO
    id: str = ""
    """A client's from its welcome on, a worker's since its mac was right."""
    address: str = ""
    """The peer's IP address, as far as trusted proxies tell it."""
    allowance: Allowance | None = None
    """The rate of messages it may send; None: any."""
    full_at: float = 0.0
    over_rate: int = 0
    bad_in_a_row: int = 0

    # a client's
    since_ms: int = 0
    """When it came with a ticket, in Unix milliseconds: of two connections the newer one counts."""
    region: str | None = None
    """The region it last asked for."""
    assigned: str = ""
    talked: tuple[str, ...] = ()
    """The workers it sent messages to, the newest last."""

    # a worker's
    claim: Claim | None = None
    server_nonce: str = ""
    left_politely: bool = False
    """It closed its connection in order."""

    def send(self, payload: bytes) -> bool:
        """Sends one encoded message. False: it was not taken, too much waits already to be written."""
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        """Closes the WebSocket with one of the contract's codes. Harmless when it is closed already."""
        raise NotImplementedError
