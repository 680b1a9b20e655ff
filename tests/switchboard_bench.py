"""A switchboard with everything around it in memory: connections that record, a registrar that may take its time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.keys import worker_mac
from kollator.guard.limits import Allowance
from kollator.guard.tickets import TicketBook
from kollator.observe.metrics import Counters
from kollator.signaling.connection import Claim, Connection, Stage
from kollator.signaling.messages import Close, IceServer, WorkerRef
from kollator.signaling.switchboard import Switchboard

KEYS = (b"the first key", b"the key from before the rotation")
NONCE = "0123456789abcdef0123456789abcdef"
MESSAGE_RATE = 100.0
SDP = "v=0\r\n"


class Wire(Connection):
    """A connection that records; ``slow`` makes it be cut at the next message, as the real one is."""

    def __init__(self, bench: Bench, address: str = "192.0.2.1") -> None:
        self.bench = bench
        self.address = address
        self.sent: list[dict[str, Any]] = []
        self.late: list[bytes] = []
        self.code: int | None = None
        self.slow = False
        bench.board.opened(self, bench.now)

    def send(self, payload: bytes) -> bool:
        """Records, unless it is closed or slow."""
        if self.code is not None:
            self.late.append(payload)
            return False
        if self.slow:
            self.bench.board.end(self, Close.SLOW_CONSUMER, "slow", self.bench.now)
            return False
        self.sent.append(json.loads(payload))
        return True

    def close(self, code: int, reason: str) -> None:
        """Records the first code."""
        if self.code is None:
            self.code = code

    def says(self, message: Any = None, **keys: Any) -> dict[str, Any]:
        """Sends a message to the switchboard and returns what came last, {} when nothing came."""
        count = len(self.sent)
        payload = message if isinstance(message, bytes) else json.dumps(keys).encode()
        self.bench.board.receive(self, payload, self.bench.now)
        return self.sent[-1] if len(self.sent) > count else {}

    def take(self) -> list[dict[str, Any]]:
        """What was sent to it since the last time."""
        sent, self.sent = self.sent, []
        return sent


class Registrations:
    """A registrar. ``stores`` is True or False to answer at once, None to wait for ``finish``."""

    def __init__(self) -> None:
        self.stores: bool | None = True
        self.waiting: list[tuple[Claim, Callable[[bool], None]]] = []
        self.held: dict[str, Claim] = {}
        self.loads: list[tuple[str, int, bool]] = []
        self.lost: Callable[[Collection[str]], object] = lambda workers: None

    def worker_joined(self, claim: Claim, done: Callable[[bool], None]) -> None:
        """As the registry: the newest claim counts from the start."""
        self.held[claim.id] = claim
        self.waiting.append((claim, done))
        if self.stores is not None:
            self.finish(0, self.stores)

    def worker_left(self, claim: Claim, politely: bool = False) -> None:
        """Ignored when a newer claim has replaced it."""
        if self.held.get(claim.id) is claim:
            del self.held[claim.id]
            self.lost([claim.id])

    def worker_status(self, worker: str, sessions: int, draining: bool) -> None:
        """Recorded."""
        self.loads.append((worker, sessions, draining))

    def finish(self, index: int = 0, stored: bool = True) -> None:
        """The disk has answered."""
        claim, done = self.waiting.pop(index)
        if not stored and self.held.get(claim.id) is claim:
            del self.held[claim.id]
        done(stored)


class Front:
    """Another front, which answers with ``outcome``."""

    def __init__(self) -> None:
        self.outcome: Any = "sent"
        self.is_alone = False
        self.asked: list[tuple[str, str, bytes]] = []
        self.arrivals: list[tuple[str, int]] = []

    def to_worker(self, worker: str, client: str, payload: bytes, ref: str | None) -> Any:
        """Recorded."""
        self.asked.append((worker, client, payload))
        return self.outcome

    def to_client(self, client: str, worker: str, payload: bytes, ref: str | None) -> Any:
        """Recorded."""
        self.asked.append((client, worker, payload))
        return self.outcome

    def arrived(self, client: str, at_ms: int) -> None:
        """Recorded."""
        self.arrivals.append((client, at_ms))


class Bench:
    """The switchboard, its surroundings and the time."""

    def __init__(self, seed: int = 1) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000.0
        self.pool: list[str] = []
        """The workers that are usable, in the order in which they are assigned."""
        self.counters = Counters()
        self.registrar = Registrations()
        self.registrar.lost = self.lose
        self.tickets = TicketBook([b"ticket key"], 3600)
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.handoffs: list[float] = []
        self.assigned: list[tuple[str, str | None, tuple[str, ...]]] = []
        self.banned: set[str] = set()
        """Addresses that no worker may come from."""
        self.elsewhere: set[str] = set()
        """Workers that are better talked to at another front."""
        self.unlisted: set[str] = set()
        """Workers, and addresses, that the operator does not take."""
        self.board = Switchboard(
            node="signaling-1",
            tickets=self.tickets,
            worker_keys=KEYS,
            worker_allowed=lambda address: address not in self.banned,
            worker_listed=lambda *names: not self.unlisted.intersection(names),
            ice_servers=lambda who: [IceServer(["stun:stun.example"])],
            assign=self.assign,
            usable=lambda worker: worker in self.pool,
            here=lambda worker: worker not in self.elsewhere,
            registrar=self.registrar,
            tally=self.counters,
            random_bytes=random.Random(seed).randbytes,
            wall=lambda: self.wall,
            message_rate=MESSAGE_RATE,
            handed_off=self.handoffs.append,
            note=lambda event, **fields: self.notes.append((event, fields)),
        )

    def assign(
        self, address: str, region: str | None, exclude: Collection[str]
    ) -> tuple[WorkerRef | None, list[WorkerRef]]:
        """The first of the pool, the others as alternates."""
        self.assigned.append((address, region, tuple(sorted(exclude))))
        found = [WorkerRef(worker, "us-west") for worker in self.pool if worker not in exclude]
        return (found[0] if found else None), found[1:]

    def lose(self, workers: Collection[str]) -> None:
        """As the registry: the pool knows first, then the clients."""
        self.pool = [worker for worker in self.pool if worker not in workers]
        self.board.workers_lost(workers)

    def limited(self, wire: Wire) -> Wire:
        """The same connection, from an address that is not exempt."""
        wire.allowance = Allowance(MESSAGE_RATE, MESSAGE_RATE * 4)
        return wire

    def client(self, ticket: str | None = None) -> Wire:
        """A welcomed client; its welcome is the first of what was sent."""
        wire = Wire(self)
        wire.says(type="hello", role="client", **({"ticket": ticket} if ticket else {}))
        return wire

    def challenged(self, worker: str = "w1", **keys: Any) -> Wire:
        """A worker that has said hello."""
        wire = Wire(self, "192.0.2.9")
        hello = {"role": "worker", "id": worker, "region": "us-west", "capacity": 100, "nonce": NONCE} | keys
        wire.says(type="hello", **hello)
        return wire

    def proves(self, wire: Wire, key: bytes = KEYS[0], **keys: Any) -> dict[str, Any]:
        """Lets a challenged worker answer with its mac, and returns what it gets."""
        claim = wire.claim
        assert claim is not None
        nonce = next(message for message in wire.sent if message["type"] == "challenge")["nonce"]
        mac = worker_mac(key, claim.id, claim.region, claim.capacity, claim.nonce, nonce)
        return wire.says(type="auth", mac=mac, **keys)

    def worker(self, worker: str = "w1", **keys: Any) -> Wire:
        """A registered worker, usable and with nothing sent to it that was not taken."""
        wire = self.challenged(worker, **keys)
        self.proves(wire)
        if wire.stage is Stage.WORKER:
            wire.take()
        if worker not in self.pool:
            self.pool.append(worker)
        return wire


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    """The types of messages, in their order."""
    return [message["type"] for message in messages]


class BenchTestCase(SynchronousTestCase):
    """Has a bench; nothing may have been sent to a connection after it was closed."""

    def setUp(self) -> None:
        """Make an empty bench."""
        self.bench = Bench()
        self.board = self.bench.board

    def assertError(self, message: dict[str, Any], code: str, **keys: Any) -> None:
        """The message is an error with that code, and with exactly those of ``ref`` and ``to``."""
        self.assertEqual(message.get("type"), "error", message)
        self.assertEqual(message["code"], code)
        self.assertTrue(message["message"])
        self.assertEqual({key: message[key] for key in message.keys() & {"ref", "to"}}, keys)
