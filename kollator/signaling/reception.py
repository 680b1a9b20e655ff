"""What happens between a connection's opening and its welcome: the contract's ``hello`` and ``auth``. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import UnsetType

from kollator.guard.keys import front_mac, matching_key
from kollator.guard.limits import AddressBackoff, Allowance
from kollator.guard.tickets import CLIENT_ID_RANDOM_BYTES, BadTicket, TicketBook, client_id
from kollator.signaling.connection import Claim, Connection, Stage
from kollator.signaling.decoding import Refused, ref_of
from kollator.signaling.directory import Directory
from kollator.signaling.interfaces import Note, Registrar, Tally
from kollator.signaling.messages import (
    MESSAGE_BYTES,
    Auth,
    Challenge,
    Close,
    Hello,
    IceServer,
    Limits,
    Welcome,
    WorkerWelcome,
    encode,
)

BURST_S = 4.0
"""The message rate's burst, in seconds' worth of messages."""
RATED_CAPACITY = 100
"""A worker of a larger capacity, in sessions, has a higher message rate in proportion: it talks to more clients."""


class Reception:
    """Lets clients and workers in. ``welcomed`` is called with each, right after its welcome was sent; ``arrived``
    with each client that had a ticket, and with the time.

    ``wall`` returns Unix seconds (tickets outlive a process), ``random_bytes`` as many bytes as asked for;
    ``message_rate`` is messages a second. ``worker_allowed`` says whether workers may come from an IP address,
    ``worker_listed`` whether the operator takes a worker, by its id and its address.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        node: str,
        tickets: TicketBook,
        worker_keys: Sequence[bytes],
        worker_allowed: Callable[[str], bool],
        worker_listed: Callable[[str, str], bool],
        ice_servers: Callable[[str], list[IceServer]],
        registrar: Registrar,
        tally: Tally,
        random_bytes: Callable[[int], bytes],
        wall: Callable[[], float],
        message_rate: float,
        welcomed: Callable[[Connection], None],
        arrived: Callable[[str, int], None],
        note: Note,
        auth_backoff: AddressBackoff | None = None,
    ) -> None:
        self._auth_backoff = auth_backoff or AddressBackoff(0.0, 1, lambda address: True)
        self._directory = directory
        self._node = node
        self._tickets = tickets
        self._worker_keys = tuple(worker_keys)
        self._worker_allowed = worker_allowed
        self._worker_listed = worker_listed
        self._ice_servers = ice_servers
        self._registrar = registrar
        self._tally = tally
        self._random_bytes = random_bytes
        self._wall = wall
        self._limits = Limits(MESSAGE_BYTES, message_rate)
        self._welcomed = welcomed
        self._arrived = arrived
        self._note = note

    def hello(self, connection: Connection, hello: Hello, now: float) -> None:
        """Welcomes a client, or challenges a worker. Raises ``Refused``."""
        if hello.role == "client":
            self._welcome_client(connection, hello, now)
        else:
            self._challenge_worker(connection, hello, now)

    def auth(self, connection: Connection, auth: Auth, now: float) -> None:
        """Has the registration of a worker written that knows a key; closes the connection of any other."""
        claim, nonce = connection.claim, connection.server_nonce
        if claim is None:
            return
        key = matching_key(
            self._worker_keys, auth.mac, claim.id, claim.region, claim.capacity, claim.nonce, nonce
        )
        if key is None:
            self._auth_backoff.failed(connection.address, now)
            self._refuse_worker(connection, claim.id, "wrong mac", event="auth-failed")
            self._directory.end(connection, Close.UNAUTHENTICATED, "authentication failed", now)
            return
        self._auth_backoff.succeeded(connection.address)
        if not self._worker_listed(claim.id, claim.address):
            self._refuse_worker(connection, claim.id, "not listed", event="worker-unlisted")
            self._directory.end(connection, Close.NOT_ALLOWED, "this worker is not listed", now)
            return
        del connection.server_nonce
        self._directory.begin_worker(connection, claim)
        mac = front_mac(self._worker_keys[0], claim.id, claim.nonce, nonce)
        ref = ref_of(auth)
        self._registrar.worker_joined(claim, lambda stored: self._joined(connection, claim, mac, ref, stored, now))

    def _welcome_client(self, connection: Connection, hello: Hello, now: float) -> None:
        assigned = ""
        if hello.ticket:
            try:
                client, assigned = self._tickets.open(hello.ticket, self._wall())
            except BadTicket as bad:
                raise Refused("bad-ticket", f"{bad}; say hello again, without the ticket") from None
        else:
            client = client_id(self._random_bytes(CLIENT_ID_RANDOM_BYTES))
        absent = self._directory.enter_client(connection, client, now)
        if absent is not None:
            assigned = absent.assigned  # newer than the ticket's
            connection.talked = absent.talked
            connection.region = absent.region
            self._tally.clients_returned += 1
        connection.assigned = assigned
        self._tally.clients_joined += 1
        self._note("client-joined", client=client, returned=absent is not None)
        ticket, _ = self._tickets.issue(client, self._wall(), assigned)
        welcome = Welcome(client, self._node, ticket, self._ice_servers(client), self._limits, ref_of(hello))
        connection.send(encode(welcome))
        if absent is not None:
            for payload in absent.messages:
                if not connection.send(payload):  # cut off as too slow: they wait for its next connection
                    self._directory.mailboxes.keep(client, payload, now)
        self._welcomed(connection)
        if hello.ticket and connection.stage is Stage.CLIENT:  # else it was cut off meanwhile
            connection.since_ms = int(self._wall() * 1000)
            self._arrived(client, connection.since_ms)

    def _challenge_worker(self, connection: Connection, hello: Hello, now: float) -> None:
        if not isinstance(hello.id, str) or not isinstance(hello.nonce, str):
            raise Refused("bad-message", "the hello of a worker has an id and a nonce")
        if not self._worker_allowed(connection.address):
            self._refuse_worker(connection, hello.id, "address not allowed")
            self._directory.end(connection, Close.NOT_ALLOWED, "workers may not connect from this address", now)
            return
        if self._auth_backoff.keeps_out(connection.address, now):
            if self._auth_backoff.mention(connection.address):
                self._refuse_worker(connection, hello.id, "backing-off", event="auth-failed")
            else:
                self._tally.workers_refused += 1
            self._directory.end(connection, Close.UNAUTHENTICATED, "authentication failed a moment ago", now)
            return
        address = hello.address or connection.address
        connection.claim = Claim(hello.id, hello.region, hello.capacity, address, hello.nonce)
        connection.server_nonce = self._random_bytes(32).hex()
        connection.stage = Stage.AUTH
        connection.send(encode(Challenge(connection.server_nonce, ref_of(hello))))

    def _joined(
        self, connection: Connection, claim: Claim, mac: str, ref: str | UnsetType, stored: bool, now: float
    ) -> None:
        if connection.stage is not Stage.JOINING:  # it left while its registration was being written
            if stored:
                self._registrar.worker_left(claim)
            return
        if not stored:
            self._note(
                "worker-refused", worker=claim.id, address=connection.address, reason="the registration was not stored"
            )
            self._directory.refuse(connection, Refused("internal", "the registration could not be stored", ref))
            self._directory.end(connection, Close.TRY_AGAIN_LATER, "registration not stored", now)
            return
        self._directory.enter_worker(connection)
        if connection.allowance is not None and claim.capacity > RATED_CAPACITY:
            rate = self._limits.messagesPerSecond * claim.capacity / RATED_CAPACITY
            connection.allowance = Allowance(rate, rate * BURST_S)
        self._tally.workers_joined += 1
        self._note(
            "worker-joined",
            worker=claim.id,
            address=connection.address,
            region=claim.region,
            capacity=claim.capacity,
        )
        connection.send(encode(WorkerWelcome(claim.id, self._node, self._ice_servers(claim.id), mac, ref)))
        self._welcomed(connection)

    def _refuse_worker(
        self, connection: Connection, worker: str, reason: str, *, event: str = "worker-refused"
    ) -> None:
        self._tally.workers_refused += 1
        self._note(event, worker=worker, address=connection.address, reason=reason)
