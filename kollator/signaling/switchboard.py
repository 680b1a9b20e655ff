"""Who is connected to this front, and where a message goes: the whole of the contract's section 2, pure.

The adapter hands in what was received and when; the switchboard calls ``send`` and ``close`` of connections, and
the callables it was made with. Nothing here waits for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

from msgspec import UNSET, UnsetType

from kollator.guard.keys import front_mac, matching_key
from kollator.guard.limits import Allowance
from kollator.guard.tickets import BadTicket, TicketBook, client_id
from kollator.signaling.connection import Claim, Connection, Stage
from kollator.signaling.mailboxes import Absent, Mailboxes
from kollator.signaling.messages import (
    MESSAGE_BYTES,
    Answer,
    AnswerFrom,
    Assign,
    Assigned,
    Auth,
    Bye,
    ByeFrom,
    Candidate,
    CandidateFrom,
    Challenge,
    Close,
    Connected,
    Draining,
    ErrorCode,
    Hello,
    IceServer,
    Limits,
    Offer,
    OfferFrom,
    Refused,
    Relayed,
    Status,
    Welcome,
    WorkerLost,
    WorkerRef,
    WorkerWelcome,
    decode,
    encode,
)

BAD_MESSAGES = 10
"""So many messages in a row that are none close the connection (4400)."""
TALKED = 8
"""The workers remembered of a client: those it spoke to last."""
BURST_S = 4.0
"""The message rate's burst, in seconds' worth of messages."""
OVER_RATE = 200
"""So many more refusals than acceptances close a connection that keeps sending over its rate (4429)."""

Outcome = Literal["sent", "busy", "unknown", "forbidden"]
Assigner = Callable[[str, str | None, Collection[str]], tuple[WorkerRef | None, list[WorkerRef]]]
"""(IP address, region or None, excluded workers) to the worker and the alternates."""


class Registrar(Protocol):
    """Who keeps the rows of the workers that this front holds."""

    def worker_joined(self, claim: Claim, done: Callable[[bool], None]) -> None:
        """Writes a worker's registration; ``done`` is called once, with whether it is on disk."""

    def worker_left(self, claim: Claim) -> None:
        """The connection that made this claim is gone. Ignored when a newer claim has replaced it."""

    def worker_status(self, worker: str, sessions: int, draining: bool) -> None:
        """The worker told its load."""


class Elsewhere(Protocol):
    """The other fronts."""

    def to_worker(self, worker: str, client: str, payload: bytes) -> Outcome:
        """Sends a client's message towards a worker that another front holds."""

    def to_client(self, client: str, worker: str, payload: bytes) -> Outcome:
        """Sends a worker's message towards a client of another front."""


class Tally(Protocol):
    """What is counted; plain integers, read by the metrics."""

    errors: dict[str, int]
    messages_received: int
    messages_relayed: int
    handoffs: int


class Switchboard:
    """The connections of one front and the rules of what they may say.

    ``now`` is monotonic seconds, ``wall`` a function that returns Unix seconds (tickets outlive a process).
    """

    def __init__(
        self,
        *,
        node: str,
        tickets: TicketBook,
        worker_keys: Sequence[bytes],
        worker_allowed: Callable[[str], bool],
        ice_servers: Callable[[str], list[IceServer]],
        assign: Assigner,
        usable: Callable[[str], bool],
        registrar: Registrar,
        elsewhere: Elsewhere | None = None,
        tally: Tally,
        random_bytes: Callable[[int], bytes],
        wall: Callable[[], float],
        message_rate: float,
        handed_off: Callable[[float], None] = lambda ms: None,
        note: Callable[..., None] = lambda event, **fields: None,
    ) -> None:
        self.node = node
        self.clients: dict[str, Connection] = {}
        self.workers: dict[str, Connection] = {}
        self.mailboxes = Mailboxes()
        self._tickets = tickets
        self._worker_keys = tuple(worker_keys)
        self._worker_allowed = worker_allowed
        self._ice_servers = ice_servers
        self._assign = assign
        self._usable = usable
        self._registrar = registrar
        self.elsewhere = elsewhere
        self._tally = tally
        self._random_bytes = random_bytes
        self._wall = wall
        self._message_rate = message_rate
        self._handed_off = handed_off
        self._note = note
        self._from_client = {
            Offer: self._relay_to_worker,
            Answer: self._relay_to_worker,
            Candidate: self._relay_to_worker,
            Bye: self._relay_to_worker,
            Assign: self._assign_client,
            Connected: self._count_handoff,
        }
        self._from_worker = {
            Offer: self._relay_to_client,
            Answer: self._relay_to_client,
            Candidate: self._relay_to_client,
            Bye: self._relay_to_client,
            Status: self._take_status,
        }

    # -- what the adapter calls -----------------------------------------------------------------------------------

    def receive(self, connection: Connection, payload: bytes, now: float) -> None:
        """Takes one text message. Never raises for anything in ``payload``."""
        if connection.stage is Stage.ENDED:
            return
        self._tally.messages_received += 1
        allowance = connection.allowance
        if allowance is not None and not self._within_rate(connection, allowance, now):
            return
        try:
            message = decode(payload)
        except Refused as refused:
            self._refuse(connection, refused)
            self._count_bad(connection, now)
            return
        if connection.bad_in_a_row:
            connection.bad_in_a_row = 0
        try:
            stage = connection.stage
            if stage is Stage.CLIENT:
                act = self._from_client.get(type(message))
            elif stage is Stage.WORKER:
                act = self._from_worker.get(type(message))
            else:
                self._before_welcome(connection, message, now)
                return
            if act is None:
                raise Refused(
                    "forbidden", "this role does not send such a message", _text(message.ref), _target(message)
                )
            act(connection, message, now)  # type: ignore[operator]
        except Refused as refused:
            self._refuse(connection, refused)

    def too_large(self, connection: Connection, now: float) -> None:
        """The connection sent a message over ``MESSAGE_BYTES``: told, then closed (1009)."""
        if connection.stage is not Stage.ENDED:
            self._refuse(connection, Refused("too-large", f"a message has {MESSAGE_BYTES} bytes at most"))
            self.end(connection, Close.TOO_LARGE, "message too large", now)

    def closed(self, connection: Connection, now: float) -> None:
        """The connection is gone, whoever closed it."""
        stage, connection.stage = connection.stage, Stage.ENDED
        if self.clients.get(connection.id) is connection:
            del self.clients[connection.id]
            self.mailboxes.left(connection.id, now, connection.assigned, connection.talked)
            self._note("client-left", client=connection.id)
        elif stage is Stage.WORKER and connection.claim is not None:
            if self.workers.get(connection.id) is connection:
                del self.workers[connection.id]
            self._registrar.worker_left(connection.claim)
            self._note("worker-left", worker=connection.id)

    def end(self, connection: Connection, code: int, reason: str, now: float) -> None:
        """Closes a connection from this side: at once it counts as gone, what it says is ignored."""
        self.closed(connection, now)
        connection.close(code, reason)

    def workers_lost(self, workers: Collection[str]) -> int:
        """Tells every client here that was assigned to one of ``workers`` or talked to it, each with a new one.

        Returns how many were told.
        """
        told = 0
        for client in list(self.clients.values()):
            for worker in {client.assigned, *client.talked}.intersection(workers):
                self._tell_lost(client, worker)
                told += 1
        return told

    def drain(self, reconnect_in_ms: Callable[[], int]) -> None:
        """Tells every connection that this front is about to stop; each is given its own (jittered) time."""
        for connection in [*self.clients.values(), *self.workers.values()]:
            connection.send(encode(Draining(reconnect_in_ms())))

    def connections(self) -> list[Connection]:
        """Every welcomed connection."""
        return [*self.clients.values(), *self.workers.values()]

    # -- before the welcome ---------------------------------------------------------------------------------------

    def _before_welcome(self, connection: Connection, message: object, now: float) -> None:
        if connection.stage is Stage.HELLO and isinstance(message, Hello):
            if message.role == "client":
                self._welcome_client(connection, message, now)
            else:
                self._challenge_worker(connection, message, now)
        elif connection.stage is Stage.AUTH and isinstance(message, Auth):
            self._authenticate_worker(connection, message, now)
        else:
            expected = "hello" if connection.stage is Stage.HELLO else "auth, then the welcome"
            ref = _text(getattr(message, "ref", UNSET))
            raise Refused("not-allowed-yet", f"expected first: {expected}", ref, _target(message))

    def _welcome_client(self, connection: Connection, hello: Hello, now: float) -> None:
        ref = _text(hello.ref)
        if hello.ticket:
            try:
                client, assigned = self._tickets.open(hello.ticket, self._wall())
            except BadTicket as bad:
                raise Refused("bad-ticket", f"{bad}; say hello again, without the ticket", ref) from None
        else:
            client, assigned = client_id(self._random_bytes(12)), ""
        older = self.clients.get(client)
        absent = self.mailboxes.returned(client, now)
        if older is not None:
            absent = Absent(now, older.assigned, older.talked)
            self._replace(older)
        if absent is not None:
            assigned = absent.assigned or assigned
            connection.talked = absent.talked
        connection.id = client
        connection.assigned = assigned
        connection.stage = Stage.CLIENT
        self.clients[client] = connection
        ticket, _ = self._tickets.issue(client, self._wall(), assigned)
        connection.send(
            encode(
                Welcome(
                    client,
                    self.node,
                    ticket,
                    self._ice_servers(client),
                    Limits(MESSAGE_BYTES, self._message_rate),
                    hello.ref,
                )
            )
        )
        self._note("client-joined", client=client, returned=absent is not None or bool(hello.ticket))
        if absent is not None:
            for payload in absent.messages:
                connection.send(payload)
        if assigned and not self._usable(assigned):
            self._tell_lost(connection, assigned)

    def _challenge_worker(self, connection: Connection, hello: Hello, now: float) -> None:
        if not isinstance(hello.id, str) or not isinstance(hello.nonce, str):
            raise Refused("bad-message", "the hello of a worker has an id and a nonce", _text(hello.ref))
        if not self._worker_allowed(connection.address):
            self._note("worker-refused", worker=hello.id, address=connection.address, reason="address not allowed")
            self.end(connection, Close.NOT_ALLOWED, "workers may not connect from this address", now)
            return
        address = hello.address or connection.address
        connection.claim = Claim(hello.id, hello.region, hello.capacity, address, hello.nonce)
        connection.server_nonce = self._random_bytes(32).hex()
        connection.stage = Stage.AUTH
        connection.send(encode(Challenge(connection.server_nonce, hello.ref)))

    def _authenticate_worker(self, connection: Connection, auth: Auth, now: float) -> None:
        claim = connection.claim
        if claim is None:
            return
        key = matching_key(
            self._worker_keys, auth.mac, claim.id, claim.region, claim.capacity, claim.nonce, connection.server_nonce
        )
        if key is None:
            self._note("worker-refused", worker=claim.id, address=connection.address, reason="wrong mac")
            self.end(connection, Close.UNAUTHENTICATED, "authentication failed", now)
            return
        connection.stage = Stage.JOINING
        mac = front_mac(key, claim.id, claim.nonce, connection.server_nonce)
        connection.server_nonce = ""
        self._registrar.worker_joined(
            claim, lambda stored: self._welcome_worker(connection, claim, mac, auth.ref, stored)
        )

    def _welcome_worker(
        self, connection: Connection, claim: Claim, mac: str, ref: str | UnsetType | None, stored: bool
    ) -> None:
        if connection.stage is not Stage.JOINING:  # it left while its registration was being written
            self._registrar.worker_left(claim)
            return
        if not stored:
            self._refuse(connection, Refused("internal", "the registration could not be stored", _text(ref)))
            connection.stage = Stage.ENDED
            connection.close(Close.TRY_AGAIN_LATER, "registration not stored")
            return
        older = self.workers.get(claim.id)
        if older is not None:
            self._note("worker-replaced", worker=claim.id, address=connection.address)
            self._replace(older)
        connection.id = claim.id
        connection.stage = Stage.WORKER
        self.workers[claim.id] = connection
        if connection.allowance is not None and claim.capacity > 100:  # it talks to that many more clients
            rate = self._message_rate * claim.capacity / 100
            connection.allowance = Allowance(rate, rate * BURST_S)
        connection.send(encode(WorkerWelcome(claim.id, self.node, self._ice_servers(claim.id), mac, ref)))
        self._note("worker-joined", worker=claim.id, address=connection.address, region=claim.region)

    def _replace(self, older: Connection) -> None:
        older.stage = Stage.ENDED
        older.close(Close.REPLACED, "replaced by a newer connection")

    # -- from clients -----------------------------------------------------------------------------------------------

    def _relay_to_worker(self, client: Connection, message: Relayed, now: float) -> None:
        worker = message.to
        payload = encode(_passed_on(message, client.id))
        target = self.workers.get(worker)
        outcome: Outcome
        if target is not None:
            outcome = "sent" if target.send(payload) else "busy"
        elif worker in self.clients or worker in self.mailboxes:
            outcome = "forbidden"
        elif self.elsewhere is not None:
            outcome = self.elsewhere.to_worker(worker, client.id, payload)
        else:
            outcome = "unknown"
        if outcome != "sent":
            raise _undelivered(outcome, message)
        self._tally.messages_relayed += 1
        if worker not in client.talked:
            client.talked = (*client.talked[1 - TALKED :], worker) if client.talked else (worker,)

    def _assign_client(self, client: Connection, message: Assign, now: float) -> None:
        if message.region is not None:
            client.region = message.region
        worker, alternates = self._assign(client.address, client.region, message.exclude or ())
        client.assigned = worker.id if worker is not None else ""
        client.send(encode(Assigned(worker, alternates, message.ref)))

    def _count_handoff(self, client: Connection, message: Connected, now: float) -> None:
        self._tally.handoffs += 1
        if isinstance(message.ms, float | int):
            self._handed_off(message.ms)

    def _tell_lost(self, client: Connection, worker: str) -> None:
        replacement, _ = self._assign(client.address, client.region, (worker,))
        if client.assigned == worker or not client.assigned:
            client.assigned = replacement.id if replacement is not None else ""
        client.talked = tuple(other for other in client.talked if other != worker)
        client.send(encode(WorkerLost(worker, replacement)))

    # -- from workers -----------------------------------------------------------------------------------------------

    def _relay_to_client(self, worker: Connection, message: Relayed, now: float) -> None:
        client = message.to
        payload = encode(_passed_on(message, worker.id))
        outcome = self.deliver_to_client(client, payload, now)
        if outcome == "unknown":
            if client in self.workers:
                outcome = "forbidden"
            elif self.elsewhere is not None:
                outcome = self.elsewhere.to_client(client, worker.id, payload)
        if outcome != "sent":
            raise _undelivered(outcome, message)
        self._tally.messages_relayed += 1

    def deliver_to_client(self, client: str, payload: bytes, now: float) -> Outcome:
        """Sends one encoded message to a client of this front, or keeps it for one that dropped just now."""
        target = self.clients.get(client)
        if target is not None:
            return "sent" if target.send(payload) else "busy"
        kept = self.mailboxes.keep(client, payload, now)
        return "sent" if kept == "kept" else "busy" if kept == "full" else "unknown"

    def _take_status(self, worker: Connection, message: Status, now: float) -> None:
        self._registrar.worker_status(worker.id, message.sessions, message.draining)

    # -- refusals ---------------------------------------------------------------------------------------------------

    def _refuse(self, connection: Connection, refused: Refused) -> None:
        self._tally.errors[refused.code] += 1
        connection.send(encode(refused.error()))

    def _count_bad(self, connection: Connection, now: float) -> None:
        connection.bad_in_a_row += 1
        if connection.bad_in_a_row >= BAD_MESSAGES:
            self.end(connection, Close.BAD_MESSAGES, "too many bad messages in a row", now)

    def _within_rate(self, connection: Connection, allowance: Allowance, now: float) -> bool:
        """Whether one more message is allowed. Refusals weigh against acceptances: a flood ends the connection."""
        full_at = allowance.spend(connection.full_at, now)
        if full_at >= 0:
            connection.full_at = full_at
            if connection.over_rate:
                connection.over_rate -= 1
            return True
        connection.over_rate += 1
        self._refuse(connection, Refused("rate-limited", "too many messages a second"))
        if connection.over_rate >= OVER_RATE:
            self._note("rate-limited", address=connection.address, id=connection.id)
            self.end(connection, Close.RATE_LIMITED, "rate limited", now)
        return False


def _passed_on(message: Relayed, sender: str) -> OfferFrom | AnswerFrom | CandidateFrom | ByeFrom:
    kind = type(message)
    if kind is Candidate:
        return CandidateFrom(sender, message.candidate, message.session)  # type: ignore[union-attr]
    if kind is Offer:
        return OfferFrom(sender, message.sdp, message.session)  # type: ignore[union-attr]
    if kind is Answer:
        return AnswerFrom(sender, message.sdp, message.session)  # type: ignore[union-attr]
    return ByeFrom(sender, message.session, message.reason)  # type: ignore[union-attr]


_REASONS: dict[Outcome, tuple[ErrorCode, str]] = {
    "busy": ("target-busy", "too much waits for the target already; try again"),
    "unknown": ("unknown-target", "nobody of that id is connected"),
    "forbidden": ("forbidden", "clients talk to workers, and workers to clients"),
}


def _undelivered(outcome: Outcome, message: Relayed) -> Refused:
    code, reason = _REASONS[outcome]
    return Refused(code, reason, _text(message.ref), message.to)


def _text(ref: str | UnsetType | None) -> str | UnsetType:
    return ref if isinstance(ref, str) else UNSET


def _target(message: object) -> str | UnsetType:
    return getattr(message, "to", UNSET)

