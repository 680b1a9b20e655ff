"""Who is here, by id: how connections get into the tables, and how they leave them. Pure."""

from __future__ import annotations

from kollator.signaling.connection import Claim, Connection, Stage
from kollator.signaling.decoding import Refused
from kollator.signaling.interfaces import Note, Registrar, Tally
from kollator.signaling.mailboxes import Absent, Mailboxes
from kollator.signaling.messages import Close, encode

_LIMITS: dict[int, str] = {
    Close.TOO_LARGE: "message-size",
    Close.BAD_MESSAGES: "bad-messages",
    Close.NO_HELLO: "no-hello",
    Close.SLOW_CONSUMER: "slow-consumer",
    Close.RATE_LIMITED: "message-rate",
}
"""The limits whose excess closes a connection, by the close code."""


class Directory:
    """The connections of one front, and the clients that dropped a moment ago.

    A connection is in ``clients``, ``joining`` or ``workers`` under its id exactly as long as its stage says so, and
    until its welcome in ``waiting``, with the time it opened, the oldest first. ``now`` is monotonic seconds
    throughout.
    """

    def __init__(self, registrar: Registrar, tally: Tally, note: Note) -> None:
        self.waiting: dict[Connection, float] = {}
        self.clients: dict[str, Connection] = {}
        self.joining: dict[str, Connection] = {}
        self.workers: dict[str, Connection] = {}
        self.mailboxes = Mailboxes()
        self._registrar = registrar
        self._tally = tally
        self._note = note

    def opened(self, connection: Connection, now: float) -> None:
        """A connection was admitted."""
        self.waiting[connection] = now

    def enter_client(self, connection: Connection, client: str, now: float) -> Absent | None:
        """Puts a client in, in place of its older connection. Returns what is remembered of it, if anything."""
        older = self.clients.pop(client, None)
        if older is None:
            absent = self.mailboxes.returned(client, now)
        else:
            absent = Absent(older, now)
            self._note("client-replaced", client=client, address=connection.address, replaced=older.address)
            self._replace(older)
        self.waiting.pop(connection, None)
        connection.id = client
        connection.stage = Stage.CLIENT
        self.clients[client] = connection
        return absent

    def remove_client(self, connection: Connection) -> None:
        """Takes a client out that has a newer connection to another front."""
        del self.clients[connection.id]
        self._note("client-replaced", client=connection.id, address="", replaced=connection.address)
        self._replace(connection)

    def begin_worker(self, connection: Connection, claim: Claim) -> None:
        """Lets a worker in whose registration is yet to be written, in place of its older connections."""
        for table in (self.workers, self.joining):
            older = table.pop(claim.id, None)
            if older is not None:
                self._note(
                    "worker-replaced", worker=claim.id, address=connection.address, replaced=older.address
                )
                self._replace(older)
        connection.id = claim.id
        connection.stage = Stage.JOINING
        self.joining[claim.id] = connection

    def enter_worker(self, connection: Connection) -> None:
        """Puts a worker in whose registration is written."""
        del self.joining[connection.id]
        self.waiting.pop(connection, None)
        connection.stage = Stage.WORKER
        self.workers[connection.id] = connection

    def refuse(self, connection: Connection, refused: Refused) -> None:
        """Answers a message that was not accepted."""
        self._tally.errors[refused.code] += 1
        connection.send(encode(refused.error()))

    def end(self, connection: Connection, code: int, reason: str, now: float) -> None:
        """Closes a connection from this side: at once it counts as gone, what it says is ignored."""
        if connection.stage is not Stage.ENDED:
            limit = _LIMITS.get(code)
            if code == Close.TRY_AGAIN_LATER and connection.stage is Stage.HELLO:
                limit = "connections"
            if limit is not None:
                self._note("limit-hit", reason=limit, id=connection.id, address=connection.address)
            self.closed(connection, now)
            self._close(connection, code, reason)

    def closed(self, connection: Connection, now: float) -> None:
        """The connection is gone, whoever closed it. May be told more than once."""
        stage, connection.stage = connection.stage, Stage.ENDED
        if stage is Stage.CLIENT:
            del self.clients[connection.id]
            self.mailboxes.left(connection.id, connection, now)
            self._note("client-left", client=connection.id)
        elif stage is Stage.WORKER:
            del self.workers[connection.id]
            self._note(
                "worker-left",
                worker=connection.id,
                address=connection.address,
                reason="said good-bye" if connection.left_politely else "connection closed",
            )
            if connection.claim is not None:
                self._registrar.worker_left(connection.claim, connection.left_politely)
        else:
            self.waiting.pop(connection, None)
            if stage is Stage.JOINING:  # the registrar is told when it is done with the registration
                del self.joining[connection.id]

    def _replace(self, older: Connection) -> None:
        self.waiting.pop(older, None)
        older.stage = Stage.ENDED
        self._close(older, Close.REPLACED, "replaced by a newer connection")

    def _close(self, connection: Connection, code: int, reason: str) -> None:
        self._tally.close(code)
        connection.close(code, reason)
