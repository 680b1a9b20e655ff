"""What each connection may say, and where a message goes: the contract's section 2, pure.

The adapter hands in what was received and when; the switchboard calls ``send`` and ``close`` of connections, and
the callables it was made with. Nothing here waits for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from msgspec import UnsetType

from kollator.guard.limits import AddressBackoff, Allowance
from kollator.guard.tickets import TicketBook
from kollator.signaling.abroad import REASONS, Abroad
from kollator.signaling.connection import Connection, Stage
from kollator.signaling.decoding import PROBLEMS, Refused, addressed, decode, parse, ref_of
from kollator.signaling.directory import Directory
from kollator.signaling.interfaces import Assigner, Elsewhere, Note, Outcome, Registrar, Tally
from kollator.signaling.losses import FEW, SCAN, Losses, Search, concerned
from kollator.signaling.messages import (
    MESSAGE_BYTES,
    Answer,
    Assign,
    Assigned,
    Auth,
    Bye,
    Candidate,
    Close,
    Connected,
    Draining,
    Hello,
    IceServer,
    Offer,
    Relayed,
    Status,
    WorkerLost,
    encode,
)
from kollator.signaling.reception import BURST_S as BURST_S
from kollator.signaling.reception import Reception
from kollator.signaling.relayed import PASSED_ON, Malformed

BAD_MESSAGES = 10
"""So many messages in a row that are none close the connection (4400)."""
TALKED = 8
"""The workers remembered of a client: those it spoke to last."""
OVER_RATE = 200
"""So many more refusals than acceptances close a connection that keeps sending over its rate (4429)."""
_ENDED = Stage.ENDED  # a member of an enumeration takes longer to look up than all else that is asked of a message

Act = Callable[[Connection, Any, float], None]
"""Does what a message asks for. Raises ``Refused``."""


class Switchboard:
    """The connections of one front and the rules of what they may say.

    ``now`` is monotonic seconds, ``wall`` a function that returns Unix seconds (tickets outlive a process).
    ``assign`` finds a client's worker, ``usable`` says whether a worker is connected to any front, ``here`` whether
    one that is connected to this front is best talked to here, and not by way of another that it is connected to as
    well; ``handed_off`` takes the milliseconds of a hand-off. With ``check_descriptions`` only descriptions and
    candidates are passed on that look like some.
    """

    def __init__(
        self,
        *,
        node: str,
        tickets: TicketBook,
        worker_keys: Sequence[bytes],
        worker_allowed: Callable[[str], bool],
        worker_listed: Callable[[str, str], bool] = lambda worker, address: True,
        ice_servers: Callable[[str], list[IceServer]],
        assign: Assigner,
        usable: Callable[[str], bool],
        here: Callable[[str], bool] = lambda worker: True,
        registrar: Registrar,
        elsewhere: Elsewhere | None = None,
        tally: Tally,
        random_bytes: Callable[[int], bytes],
        wall: Callable[[], float],
        message_rate: float,
        handed_off: Callable[[float], None] = lambda ms: None,
        note: Note = lambda event, **fields: None,
        auth_backoff: AddressBackoff | None = None,
        check_descriptions: bool = False,
    ) -> None:
        self._checks = check_descriptions
        self._directory = directory = Directory(registrar, tally, note)
        self.waiting = directory.waiting
        self.clients = directory.clients
        self.workers = directory.workers
        self.mailboxes = directory.mailboxes
        self.abroad = Abroad(node, directory, self.deliver_to_client, self._welcomed)
        """This front's connections, for the exchange with other fronts."""
        self.elsewhere = elsewhere
        self._assign = assign
        self._usable = usable
        self._here = here
        self._registrar = registrar
        self._tally = tally
        self._handed_off = handed_off
        self._reconnect_in_ms: Callable[[], int] | None = None
        self._losses = Losses(random_bytes)
        self._search = Search()
        reception = Reception(
            directory,
            node=node,
            tickets=tickets,
            worker_keys=worker_keys,
            worker_allowed=worker_allowed,
            worker_listed=worker_listed,
            ice_servers=ice_servers,
            registrar=registrar,
            tally=tally,
            random_bytes=random_bytes,
            wall=wall,
            message_rate=message_rate,
            welcomed=self._welcomed,
            arrived=self._arrived,
            note=note,
            auth_backoff=auth_backoff,
        )
        from_client: dict[type, Act] = dict.fromkeys((Offer, Answer, Candidate, Bye), self._relay_to_worker)
        from_client |= {Assign: self._assign_client, Connected: self._count_handoff}
        from_worker: dict[type, Act] = dict.fromkeys((Offer, Answer, Candidate, Bye), self._relay_to_client)
        from_worker |= {Status: self._take_status}
        self._acts: tuple[dict[type, Act], ...] = (
            {Hello: reception.hello},
            {Auth: reception.auth},
            {},
            from_client,
            from_worker,
        )
        """What is done with which message, by the connection's stage."""

    # -- what the adapter calls -----------------------------------------------------------------------------------

    def opened(self, connection: Connection, now: float) -> None:
        """A connection was admitted; it has yet to say hello."""
        self._directory.opened(connection, now)

    def receive(self, connection: Connection, payload: bytes, now: float) -> None:
        """Takes one text message. Never raises for anything in ``payload``."""
        stage = connection.stage
        if stage is _ENDED:
            return
        self._tally.messages_received += 1
        allowance = connection.allowance
        if allowance is not None and not self._within_rate(connection, allowance, payload, now):
            return
        try:
            message = parse(payload)
        except PROBLEMS:
            try:
                message = decode(payload)  # looks closer
            except Refused as refused:
                self._refuse(connection, refused, now)
                return
        act = self._acts[stage].get(type(message))
        try:
            if act is None:
                raise _out_of_place(stage)
            act(connection, message, now)
        except Refused as refused:
            self._refuse(connection, refused.about(message), now)
        else:
            if connection.bad_in_a_row:
                connection.bad_in_a_row = 0

    def too_large(self, connection: Connection, now: float) -> None:
        """The connection sent a message over ``MESSAGE_BYTES``: told, then closed (1009)."""
        if connection.stage is not Stage.ENDED:
            self._directory.refuse(connection, Refused("too-large", f"a message has {MESSAGE_BYTES} bytes at most"))
            self._directory.end(connection, Close.TOO_LARGE, "message too large", now)

    def failed(self, connection: Connection, now: float) -> None:
        """A message could not be handled for a reason of this front's own: told, then closed (1011)."""
        if connection.stage is not Stage.ENDED:
            self._directory.refuse(connection, Refused("internal", "the front could not handle this message"))
            self._directory.end(connection, Close.INTERNAL, "internal error", now)

    def closed(self, connection: Connection, now: float) -> None:
        """The connection is gone, whoever closed it. May be told more than once."""
        self._directory.closed(connection, now)

    def end(self, connection: Connection, code: int, reason: str, now: float) -> None:
        """Closes a connection from this side: at once it counts as gone, what it says is ignored."""
        self._directory.end(connection, code, reason, now)

    def workers_lost(self, workers: Collection[str]) -> int:
        """Has every client here told that was assigned to one of ``workers`` or talked to it, with a new assignment.

        A few are told at once, many by ``turn``, each at a random time; where there are many clients, ``turn`` finds
        out whom to tell. Returns how many messages were sent at once.
        """
        if len(self.clients) > SCAN:
            self._search.begin(workers)
            return 0
        lost = frozenset(workers)
        found = [client for client in self.clients.values() if concerned(client, lost)]
        if len(found) <= FEW and not self._losses:
            return sum(self._tell_lost(client, lost) for client in found)
        self._losses.add([client.id for client in found], self.clients)
        return 0

    def turn(self, now: float) -> None:
        """Tells the clients whose time has come of the workers they have lost. To be called every ``losses.TURN_S``.

        Who is gone by then is told when it comes back, here or on another front.
        """
        found = self._search.step(self.clients)
        if found:
            self._losses.add(found, self.clients)
        for client in self._losses.due(now):
            connection = self.clients.get(client)
            if connection is not None:
                self._tell_unusable(connection)

    def drain(self, reconnect_in_ms: Callable[[], int]) -> None:
        """Tells every connection that this front is about to stop; each is given its own (jittered) time.

        Who is welcomed later is told once more, when it has its ticket.
        """
        self._reconnect_in_ms = reconnect_in_ms
        for connection in self.connections():
            connection.send(encode(Draining(reconnect_in_ms())))

    def connections(self) -> list[Connection]:
        """Every connection, also those that were not welcomed yet."""
        return [*self.waiting, *self.clients.values(), *self.workers.values()]

    def deliver_to_client(self, client: str, payload: bytes, now: float) -> Outcome:
        """Sends one encoded message to a client of this front, or keeps it for one that dropped just now."""
        target = self.clients.get(client)
        if target is not None:
            return "sent" if target.send(payload) else "busy"
        kept = self.mailboxes.keep(client, payload, now)
        if kept == "kept":
            self._tally.messages_kept += 1
            return "sent"
        return "busy" if kept == "full" else "unknown"

    # -- from clients -----------------------------------------------------------------------------------------------

    def _relay_to_worker(self, client: Connection, message: Relayed, now: float) -> None:
        worker = message.to
        try:
            payload = PASSED_ON[type(message)](message, client.id, self._checks)
        except Malformed as malformed:
            raise self._malformed_for_worker(worker, malformed.problem) from None
        target = self.workers.get(worker)
        outcome: Outcome
        if target is not None and self._here(worker):
            outcome = "sent" if target.send(payload) else "busy"
        elif self.elsewhere is not None:
            outcome = self.elsewhere.to_worker(worker, client.id, payload, _plain(message.ref))
        else:
            outcome = "unknown"
        if outcome == "unknown" and (worker in self.clients or worker in self.mailboxes):
            outcome = "forbidden"
        if outcome != "sent":
            raise _undelivered(outcome)
        self._tally.messages_relayed += 1
        if worker not in client.talked:
            client.talked = (*client.talked[1 - TALKED :], worker)

    def _malformed_for_worker(self, worker: str, problem: str) -> Refused:
        if worker in self.workers or self._usable(worker):
            return _malformed_content(problem)
        return _undelivered("forbidden" if worker in self.clients or worker in self.mailboxes else "unknown")

    def _assign_client(self, client: Connection, message: Assign, now: float) -> None:
        if message.region is not None:
            client.region = message.region
        worker, alternates = self._assign(client.address, client.region, message.exclude or ())
        client.assigned = worker.id if worker is not None else ""
        client.send(encode(Assigned(worker, alternates, ref_of(message))))

    def _count_handoff(self, client: Connection, message: Connected, now: float) -> None:
        self._tally.handoffs += 1
        if isinstance(message.ms, float | int):
            self._handed_off(message.ms)

    # -- from workers -----------------------------------------------------------------------------------------------

    def _relay_to_client(self, worker: Connection, message: Relayed, now: float) -> None:
        client = message.to
        try:
            payload = PASSED_ON[type(message)](message, worker.id, self._checks)
        except Malformed as malformed:
            raise self._malformed_for_client(client, malformed.problem) from None
        target = self.clients.get(client)
        outcome: Outcome
        if target is not None:  # as mostly: ``deliver_to_client``, a call less
            outcome = "sent" if target.send(payload) else "busy"
        else:
            outcome = self.deliver_to_client(client, payload, now)
        if outcome == "unknown" and self.elsewhere is not None:
            outcome = self.elsewhere.to_client(client, worker.id, payload, _plain(message.ref))
        if outcome == "unknown" and (client in self.workers or self._usable(client)):
            outcome = "forbidden"
        if outcome != "sent":
            raise _undelivered(outcome)
        self._tally.messages_relayed += 1

    def _malformed_for_client(self, client: str, problem: str) -> Refused:
        if client in self.workers or self._usable(client):
            return _undelivered("forbidden")
        is_here = client in self.clients or client in self.mailboxes
        if is_here or (self.elsewhere is not None and not self.elsewhere.is_alone):
            return _malformed_content(problem)
        return _undelivered("unknown")

    def _take_status(self, worker: Connection, message: Status, now: float) -> None:
        self._registrar.worker_status(worker.id, message.sessions, message.draining)

    def _arrived(self, client: str, at_ms: int) -> None:
        if self.elsewhere is not None:
            self.elsewhere.arrived(client, at_ms)

    # -- what clients and workers are told unasked --------------------------------------------------------------------

    def _welcomed(self, connection: Connection) -> None:
        """Tells a connection, right after its welcome, what it would have been told had it been here before."""
        if connection.stage is Stage.CLIENT:
            self._tell_unusable(connection)
        if self._reconnect_in_ms is not None:
            connection.send(encode(Draining(self._reconnect_in_ms())))

    def _tell_unusable(self, client: Connection) -> None:
        known = {client.assigned, *client.talked}
        self._tell_lost(client, {worker for worker in known if worker and not self._usable(worker)})

    def _tell_lost(self, client: Connection, lost: Collection[str]) -> int:
        known = [worker for worker in dict.fromkeys((client.assigned, *client.talked)) if worker in lost]
        if not known:
            return 0
        replacement, alternates = self._assign(client.address, client.region, lost)
        if client.assigned not in lost:  # it may have asked for this one: no reason to take it away
            replacement = next((other for other in alternates if other.id == client.assigned), replacement)
        client.assigned = replacement.id if replacement is not None else ""
        client.talked = tuple(worker for worker in client.talked if worker not in lost)
        for worker in known:
            client.send(encode(WorkerLost(worker, replacement)))
        self._tally.worker_lost_told += len(known)
        return len(known)

    # -- refusals ---------------------------------------------------------------------------------------------------

    def _refuse(self, connection: Connection, refused: Refused, now: float) -> None:
        self._directory.refuse(connection, refused)
        if not refused.is_bad:
            connection.bad_in_a_row = 0
            return
        connection.bad_in_a_row += 1
        if connection.bad_in_a_row >= BAD_MESSAGES:
            self._directory.end(connection, Close.BAD_MESSAGES, "too many bad messages in a row", now)

    def _within_rate(self, connection: Connection, allowance: Allowance, payload: bytes, now: float) -> bool:
        """Whether one more message is allowed. Refusals weigh against acceptances: a flood ends the connection."""
        full_at = allowance.spend(connection.full_at, now)
        if full_at >= 0:
            connection.full_at = full_at
            if connection.over_rate:
                connection.over_rate -= 1
            return True
        connection.over_rate += 1
        ref, to = addressed(payload)
        self._directory.refuse(connection, Refused("rate-limited", "too many messages a second", ref, to))
        if connection.over_rate >= OVER_RATE:
            self._directory.end(connection, Close.RATE_LIMITED, "rate limited", now)
        return False


def _malformed_content(problem: str) -> Refused:
    # The message itself is one, so that it is not among the ten bad ones; the rate bounds who sends many of these.
    refused = Refused("bad-message", problem)
    refused.is_bad = False
    return refused


def _undelivered(outcome: Outcome) -> Refused:
    return Refused(*REASONS[outcome])


def _plain(ref: str | UnsetType | None) -> str | None:
    return ref if isinstance(ref, str) else None


def _out_of_place(stage: Stage) -> Refused:
    if stage > Stage.JOINING:
        return Refused("forbidden", "this role does not send such a message")
    expected = "hello" if stage is Stage.HELLO else "auth" if stage is Stage.AUTH else "nothing before the welcome"
    return Refused("not-allowed-yet", f"expected first: {expected}")
