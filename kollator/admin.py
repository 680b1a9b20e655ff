"""What operators ask of a running front and change in it: pins, drains, the list of connections, the log.

**Changes are made one after the other.** Each is written to the store first, and counts when it is on disk. One that
cannot be stored is refused (503 ``no-database``) and not made, now or later: the writer tries a row whose write failed
again until it is stored, so the row as it stood before is handed to it in place of the refused one. Until the database
takes writes again, every further change is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from hmac import compare_digest
from itertools import islice
from typing import Protocol, TypeVar

from msgspec.structs import replace
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.drain import Drain
from kollator.guard.addresses import limit_key
from kollator.guard.limits import FailureBackoff, TokenBuckets, retry_after_s
from kollator.observe.logs import DebugNamespaces
from kollator.pool.pool import Pool
from kollator.pool.ranges import canonical_cidr
from kollator.settings.values import debug_namespaces
from kollator.signaling.protocol import SignalingFactory
from kollator.state.errors import StoreError
from kollator.state.rows import DrainRow, FrontRow, PinRow, Row
from kollator.state.writer import Writer
from kollator.web.admin import (
    ConnectionEntry,
    Connections,
    ConnectionTotals,
    Debug,
    Drained,
    DrainedWorker,
    FrontDrain,
    Pin,
    Pinned,
    Pins,
    Role,
)
from kollator.web.answers import WorkerEntry
from kollator.web.refusal import Refusal

log = Logger("kollator:admin")

PINS_MAX = 2048
"""The most pins in force: listing them takes some 10 ms."""
WAITING_MAX = 64
"""So many changes may wait for the one that is being written."""

BACKOFF_S = 1.0
"""How long an address stays away after a failed authentication that is not free; twice as long after each further."""
BACKOFF_MAX_S = 60.0
FREE_FAILURES = 5
"""So many failures of an address have no consequences, and one more in each ``BACKOFF_MAX_S``."""
ADDRESSES = 10_000
"""The most addresses whose failures are remembered."""

T = TypeVar("T")


class Audit(Protocol):
    """Takes what the audit log is to say."""

    def __call__(self, event: str, **fields: str | int) -> object:
        """Takes one event."""


class TokenGate:
    """Who has the token. Every one of ``tokens`` is good, which is how they are changed.

    ``audit`` is told of each failure, but not of attempts during the back-off that follows: those are refused unread.
    """

    def __init__(self, tokens: Sequence[bytes], audit: Audit) -> None:
        self._digests = [sha256(token).digest() for token in tokens]
        self._audit = audit
        self._free = TokenBuckets(1.0 / BACKOFF_MAX_S, FREE_FAILURES, ADDRESSES)
        self._backoff = FailureBackoff(BACKOFF_S, BACKOFF_MAX_S, ADDRESSES)

    def admit(self, address: str, credentials: Sequence[bytes], now: float) -> None:
        """Takes the values of ``Authorization`` (RFC 6750 section 2.1). ``now`` is in monotonic seconds.

        Raises ``Refusal``: 401 without a token that is good, 429 during a back-off.
        """
        key = limit_key(address)
        wait_s = self._backoff.wait_s(key, now)
        if wait_s > 0:
            raise Refusal(429, "rate-limited", "too many wrong tokens from this address", retry_after_s(wait_s))
        if self._matches(_token(credentials)):
            self._backoff.succeeded(key)
            return
        if self._free.take(key, now) > 0:
            self._backoff.failed(key, now)
        self._audit("auth-failed", target="admin", address=address, reason="token" if credentials else "no-token")
        headers = {b"www-authenticate": b"Bearer"}
        raise Refusal(401, "unauthorized", "this needs a bearer token of ADMIN_TOKEN_FILE", headers=headers)

    def _matches(self, token: bytes) -> bool:
        # Digests have one length, and all are compared: the time tells nothing of the tokens or their number.
        given, found = sha256(token).digest(), False
        for digest in self._digests:
            found |= compare_digest(digest, given)
        return found and bool(token)


def _token(credentials: Sequence[bytes]) -> bytes:
    """The token in the values of ``Authorization``; empty when there is none, or more than one value."""
    scheme, _, token = credentials[0].strip().partition(b" ") if len(credentials) == 1 else (b"", b"", b"")
    return token.strip() if scheme.lower() == b"bearer" else b""


class FrontAdmin:
    """The answers of one front to its operators, for ``kollator.web.admin``.

    ``entry_of`` shows a worker as ``/workers`` does. ``reconnect_in_ms`` draws the time that a client is told to come
    back after. ``debug`` are the namespaces of the process. ``monotonic`` and ``wall`` are clocks in seconds, the
    latter since 1970. ``audit`` is told of every change, once it is made, and of every failed authentication.
    """

    def __init__(
        self,
        *,
        node: str,
        tokens: Sequence[bytes],
        pool: Pool,
        writer: Writer,
        signaling: SignalingFactory,
        drain: Drain,
        reconnect_in_ms: Callable[[], int],
        debug: DebugNamespaces,
        entry_of: Callable[[str], WorkerEntry | None],
        monotonic: Callable[[], float],
        wall: Callable[[], float],
        audit: Audit,
    ) -> None:
        self._node = node
        self._gate = TokenGate(tokens, audit)
        self._pool = pool
        self._writer = writer
        self._signaling = signaling
        self._drain = drain
        self._reconnect_in_ms = reconnect_in_ms
        self._debug = debug
        self._entry_of = entry_of
        self._monotonic = monotonic
        self._wall = wall
        self._audit = audit
        self._turns = DeferredLock()

    def authenticate(self, by: str, credentials: Sequence[bytes]) -> None:
        """Lets the values of ``Authorization`` pass, or raises ``Refusal``."""
        self._gate.admit(by, credentials, self._monotonic())

    # -- pins ---------------------------------------------------------------------------------------------------------

    def pins(self) -> Pins:
        """The pins in force, in the order of their networks."""
        return Pins([_shown(row) for row in self._pool.pins()])

    def pin(self, by: str, cidr: str, worker: str, region: str) -> Deferred[Pinned]:
        """Ties a range to a worker or a region (the other is empty), in place of what it was tied to."""

        def act() -> Deferred[Pinned]:
            row = PinRow(_canonical(cidr), worker, region)
            if worker:
                self._known(worker)
            elif not any(view.region == region for view in self._pool.workers()):
                raise Refusal(404, "unknown-region", f"no worker is known in a region called {region[:64]!r}")
            pinned = {pin.cidr for pin in self._pool.pins()}
            is_new = cidr not in pinned
            if is_new and len(pinned) >= PINS_MAX:
                raise Refusal(409, "too-many-pins", f"there are {PINS_MAX} pins; remove one first")

            def stored(_: None) -> Pinned:
                target = {"worker": worker} if worker else {"region": region}
                self._audit("admin", action="pin", address=by, cidr=cidr, **target)
                return Pinned(_shown(row), is_new)

            return self._store(row).addCallback(stored)

        return self._change(act)

    def unpin(self, by: str, cidr: str) -> Deferred[Pin]:
        """Removes a pin, which is returned."""

        def act() -> Deferred[Pin]:
            found = self._pinned(_canonical(cidr))
            if found is None:
                raise Refusal(404, "unknown-pin", f"{cidr} is not pinned")

            def stored(_: None) -> Pin:
                self._audit("admin", action="unpin", address=by, cidr=cidr)
                return _shown(found)

            return self._store(PinRow(cidr)).addCallback(stored)

        return self._change(act)

    def _pinned(self, cidr: str) -> PinRow | None:
        return next((row for row in self._pool.pins() if row.cidr == cidr), None)

    # -- drains -------------------------------------------------------------------------------------------------------

    def drained(self) -> Drained:
        """The workers that operators drain, sorted."""
        return Drained(self._pool.drains())

    def drain_worker(self, by: str, worker: str) -> Deferred[DrainedWorker]:
        """No new clients for a worker, on any front; those that it has stay."""
        return self._change(lambda: self._turn_worker(by, worker, True))

    def undrain_worker(self, by: str, worker: str) -> Deferred[DrainedWorker]:
        """New clients for a worker, unless it is full or says itself that it drains."""
        return self._change(lambda: self._turn_worker(by, worker, False))

    def _turn_worker(self, by: str, worker: str, draining: bool) -> Deferred[DrainedWorker]:
        self._known(worker)

        def stored(_: None) -> DrainedWorker:
            self._audit("admin", action="drain-worker" if draining else "undrain-worker", address=by, worker=worker)
            return DrainedWorker(self._entry_of(worker))

        return self._store(DrainRow(worker, draining)).addCallback(stored)

    def drain_front(self, by: str) -> Deferred[FrontDrain]:
        """No new clients for this front, nor any new WebSocket: before its hello a worker looks like a client.

        Its clients are told to go; its workers stay. It lasts until ``undrain_front``, or until the front ends.
        """
        return self._change(lambda: self._turn_front(by, True))

    def undrain_front(self, by: str) -> Deferred[FrontDrain]:
        """New clients for this front; a front that is stopping takes none."""
        return self._change(lambda: self._turn_front(by, False))

    def _turn_front(self, by: str, draining: bool) -> Deferred[FrontDrain]:
        if self._drain.stopping and not draining:
            raise Refusal(503, "draining", "this front is stopping")

        def stored(_: None) -> FrontDrain:
            if draining:
                self._drain.order(self._signaling, self._reconnect_in_ms)
            else:
                self._drain.recall()
            self._audit("admin", action="drain-front" if draining else "undrain-front", address=by, front=self._node)
            return FrontDrain(self._node, self._drain.draining)

        def renewed(failure: Failure) -> Deferred[None]:
            failure.trap(ValueError)  # another life of this front began meanwhile, whose row is another one
            return self._store(self._own_row(draining))

        return self._store(self._own_row(draining)).addErrback(renewed).addCallback(stored)

    def reincarnated(self) -> None:
        """This front has begun another life while it runs, whose row says that it takes clients: if not, so be it."""

        def act() -> Deferred[None] | None:
            if not self._drain.draining:
                return None
            return self._writer.write([self._own_row(True)]).addErrback(lambda _: None)  # which tries again

        self._turns.run(act).addErrback(
            lambda failure: log.failure("it could not be said that this front drains", failure=failure)
        )

    def _own_row(self, draining: bool) -> FrontRow:
        return replace(self._pool.front(self._node) or FrontRow(self._node), draining=draining)

    # -- connections and the log --------------------------------------------------------------------------------------

    def connections(self, role: Role | None, front: str | None, addresses: bool, limit: int) -> Connections:
        """The clients of this front and the workers of all, as far as they are of the role and the front asked for.

        Sorted by role and id; at most ``limit`` of them.
        """
        if front is not None and front != self._node and self._pool.front(front) is None:
            raise Refusal(404, "unknown-front", f"no front is called {front[:64]!r}")
        clients, counts = self._signaling.switchboard.clients, self._pool.counts()
        unwell = 0 if self._pool.panic else self._pool.unwell  # in a panic they are among those that are up
        total = ConnectionTotals(len(clients), counts.total - counts.down + unwell)
        ours = [] if role == "worker" or front not in (None, self._node) else sorted(clients)[: limit + 1]
        shown = [self._client(client, addresses) for client in ours]
        if role != "client":
            shown += islice(self._workers(front, addresses), limit + 1 - len(shown))
        return Connections(self._node, total, shown[:limit], len(shown) > limit)

    def _workers(self, front: str | None, addresses: bool) -> Iterator[ConnectionEntry]:
        for view in self._pool.workers():
            address = view.address if addresses else None
            for node in self._pool.connected_to(view.id):
                if front in (None, node):
                    yield ConnectionEntry(view.id, "worker", node, state=view.state, address=address)

    def _client(self, client: str, addresses: bool) -> ConnectionEntry:
        connection = self._signaling.switchboard.clients[client]
        since_s = max(0.0, round(self._wall() - connection.since_ms / 1000, 3)) if connection.since_ms else None
        assigned, address = connection.assigned or None, connection.address if addresses else None
        return ConnectionEntry(client, "client", self._node, since_s, assigned, address=address)

    def debug(self) -> Debug:
        """The namespaces whose debug events are logged."""
        return Debug(list(self._debug.patterns))

    def set_debug(self, by: str, patterns: Sequence[str]) -> Debug:
        """Logs those of others, until the front ends or others are named."""
        try:
            wanted = debug_namespaces(list(dict.fromkeys(patterns)))
        except ValueError as problem:
            raise Refusal(400, "bad-request", str(problem)) from None
        self._debug.set(wanted)
        self._audit("admin", action="log", address=by, debug=",".join(wanted))
        return self.debug()

    # -- how a change is made -----------------------------------------------------------------------------------------

    def _known(self, worker: str) -> None:
        if self._pool.worker(worker) is None:
            raise Refusal(404, "unknown-worker", f"no worker is called {worker[:64]!r}")

    def _change(self, act: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Calls ``act`` when it is its turn. Raises ``Refusal`` when that may be long."""
        if self._turns.locked and self._writer.problem is not None:
            raise self._no_database()
        if len(self._turns.waiting) >= WAITING_MAX:
            raise Refusal(503, "busy", "too many changes wait to be written; come back in a moment", 1)
        return self._turns.run(act)

    def _store(self, row: Row) -> Deferred[None]:
        """Writes one row. Fires when it is on disk and the pool has it; fails with ``Refusal`` when it is not."""
        if self._writer.problem is not None:
            raise self._no_database()
        return self._writer.write([row]).addErrback(self._take_back, row)

    def _take_back(self, failure: Failure, row: Row) -> Failure:
        if failure.check(StoreError) is None:
            return failure
        self._writer.write([self._present(row)]).addErrback(lambda _: None)
        raise self._no_database()

    def _present(self, row: Row) -> Row:
        """A row as it counts now."""
        if isinstance(row, PinRow):
            return self._pinned(row.cidr) or PinRow(row.cidr)
        if isinstance(row, DrainRow):
            return DrainRow(row.worker, self._pool.drained(row.worker))
        return self._pool.front(self._node) or row

    @staticmethod
    def _no_database() -> Refusal:
        return Refusal(503, "no-database", "the database takes no writes; nothing was changed")


def _canonical(cidr: str) -> str:
    """The CIDR, when it is written as it should be. Raises ``Refusal``."""
    try:
        canonical = canonical_cidr(cidr)
    except ValueError as problem:
        raise Refusal(400, "bad-request", f"{problem}; write one like 203.0.113.0/24 or 2001:db8::/32") from None
    if canonical != cidr:
        raise Refusal(400, "bad-request", f"{cidr!r} is not the network's canonical form; write {canonical}")
    return cidr


def _shown(row: PinRow) -> Pin:
    return Pin(row.cidr, row.worker, row.region)
