"""A front without sockets and disk: the real rooms, wired as in ``kollator.assembly``, on a clock by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.drain import Drain
from kollator.gate import Gate
from kollator.guard.tickets import TicketBook
from kollator.guard.turn import IceServers
from kollator.observe.metrics import Counters, Gauges, Metrics, add
from kollator.pool.health import HealthBook
from kollator.pool.monitor import HealthMonitor
from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.registry import Registry
from kollator.settings import Settings
from kollator.signaling.connection import Claim
from kollator.signaling.fastpath import FastSignalingFactory
from kollator.signaling.protocol import SignalingFactory
from kollator.signaling.switchboard import Switchboard
from kollator.state.rows import FrontRow
from kollator.state.store import Store
from kollator.state.writer import Writer
from kollator.views import FrontViews, Standing
from kollator.web.answers import ClusterNode
from kollator.web.door import DoorFactory
from kollator.web.fastdoor import FastDoorFactory
from kollator.web.pages import load_assets
from kollator.web.resources import resource_tree
from kollator.web.site import FrontSite, upgrade_to
from tests.wires import JSON, PEER, UPGRADE, Answer, Wire, read_answers, request, text_frame

WALL_S = 1_800_000_000.0
"""Unix seconds at the beginning of a test."""
KEY = b"the worker key of these tests"

ASSETS = load_assets()


class Disk:
    """The thread of the writer: at once, unless it is held up; then ``turn`` runs what waits, one after the other."""

    def __init__(self) -> None:
        self.held = False
        self._calls: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if not self.held:
            return maybeDeferred(function, *args)
        done: Deferred[Any] = Deferred()
        self._calls.append((done, lambda: function(*args)))
        return done

    def __len__(self) -> int:
        return len(self._calls)

    def turn(self) -> None:
        """Runs the call that waits longest."""
        done, call = self._calls.pop(0)
        maybeDeferred(call).chainDeferred(done)


@cache
def _empty_database() -> bytes:
    """A database with its tables made, which is most of the work of a new one."""
    store = Store.open(":memory:", node_id="front-1")
    try:
        return store.image()
    finally:
        store.close()


def open_store() -> Store:
    """A new store in memory, of the node ``front-1``."""
    return Store.open(":memory:", node_id="front-1", image=_empty_database())


class Front:
    """One front in memory. ``environ`` are its settings."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        mode = {"FAST_PATH": os.environ["FAST_PATH"]} if "FAST_PATH" in os.environ else {}
        self.settings = settings = Settings.load({}, {"NODE_ID": "front-1", **mode, **(environ or {})})
        clock: Any = Clock()  # which mypy does not take for a kollator.clock.Clock, for the name of an argument
        self.clock = clock
        self.counters = Counters()
        self.drain = Drain(clock)
        self.disk = Disk()
        self.store = open_store()
        self.wires: list[Wire] = []
        self.pings: list[tuple[str, int]] = []
        self.writer = Writer(self.store, self.disk, clock)
        self.pool = Pool(replicas=settings.hash_replicas, panic_threshold=settings.panic_threshold)
        self.roster = Roster(settings.node_id, 1)
        self.metrics = Metrics(self.counters, Gauges(), node=settings.node_id, version="0")
        self.gate = Gate(settings, lambda: self.drain.draining, self.counters.refuse)
        self.tickets = TicketBook([b"the cluster key of these tests"], settings.ticket_ttl_s)
        own = self.store.begin_incarnation(settings.region, "")
        assert own == FrontRow("front-1", 1, 0, settings.region), own
        self.pool.apply(own)
        ice_servers = IceServers(settings.stun_servers, settings.turn_servers, settings.turn_secrets, 600)
        self.registry = Registry(
            self.pool,
            self.roster,
            self.writer,
            lost=lambda workers: self.switchboard.workers_lost(workers),
            joined=lambda worker: self.monitor.joined(worker),
            left=lambda worker, politely: self.monitor.left(worker, politely),
            counted=lambda cause: add(self.counters.workers_lost, cause),
            soon=lambda call: clock.callLater(0, call),
        )
        self.writer.committed = self.registry.committed
        self._random = 0
        self.switchboard = Switchboard(
            node=settings.node_id,
            tickets=self.tickets,
            worker_keys=(KEY,),
            worker_allowed=self.gate.worker_allowed,
            auth_backoff=self.gate.auth_backoff,
            check_descriptions=settings.check_descriptions,
            ice_servers=lambda who: ice_servers.for_client(who, self.wall()),
            assign=lambda address, region, exclude: self.views.assign(address, region, exclude),
            usable=lambda worker: bool(self.pool.fronts_of(worker)),
            here=lambda worker: self.roster.is_well(worker) or not self.pool.fronts_of(worker),
            registrar=self.registry,
            tally=self.counters,
            random_bytes=self.random_bytes,
            wall=self.wall,
            message_rate=settings.message_rate,
        )
        self.views = FrontViews(
            settings=settings,
            gate=self.gate,
            pool=self.pool,
            roster=self.roster,
            switchboard=self.switchboard,
            tickets=self.tickets,
            ice_servers=ice_servers,
            metrics=self.metrics,
            random_bytes=self.random_bytes,
            monotonic=clock.seconds,
            wall=self.wall,
            standing=lambda: Standing("leader", "front-1", 1, [ClusterNode("front-1", "leader", 0.0)]),
            trouble=self.trouble,
            timer=clock.seconds,
        )
        sockets = FastSignalingFactory if settings.fast_path else SignalingFactory
        self.signaling = sockets(
            reactor=clock,
            switchboard=self.switchboard,
            address_of=self.gate.handshake_address,
            origin_permitted=self.gate.handshake_origin_permitted,
            admit=self.gate.admit,
            release=self.gate.release,
            allowance_of=self.gate.allowance,
            write_buffer_bytes=settings.write_buffer_bytes,
            write_buffers_bytes=settings.write_buffers_bytes,
            handshake_timeout_s=settings.header_timeout_s,
            refused=self.counters.refuse,
        )
        self.monitor = HealthMonitor(
            HealthBook(settings.worker_health_timeout_s, settings.worker_health_interval_s),
            clock,
            ping=lambda worker, number: self.pings.append((worker, number)),
            unwell=self.registry.worker_unwell,
            well=self.registry.worker_well,
            phase=lambda: 0.5,
            answered=self.metrics.ponged,
        )
        admission = self.gate.admission(clock.seconds)
        upgrades = {b"signaling": upgrade_to(self.signaling, admission)}
        self.site = FrontSite(
            resource_tree(self.views, ASSETS, upgrades),
            clock,
            header_timeout_s=settings.header_timeout_s,
            responded=self.counters.respond,
        )
        doors = FastDoorFactory if settings.fast_path else DoorFactory
        self.door = doors(
            clock=clock, header_timeout_s=settings.header_timeout_s, refused=self.counters.refuse
        )
        sockets_at: dict[bytes, Any] = {b"/signaling": self.signaling}
        self.door.open(site=self.site, upgrades=sockets_at, admission=admission, places=self.gate.places)

    def wall(self) -> float:
        """Unix seconds."""
        return WALL_S + self.clock.seconds()

    def random_bytes(self, count: int) -> bytes:
        """Never the same twice."""
        self._random += 1
        return self._random.to_bytes(count, "big")

    def trouble(self) -> str | None:
        """As the front's."""
        if self.drain.draining:
            return "draining"
        return "no-database" if self.writer.problem is not None else None

    def connect(self, peer: str = PEER, host: str = "192.0.2.1", factory: Any = None) -> Wire:
        """A new connection, through the door or straight to another factory."""
        wire = Wire(peer, host).open(self.door if factory is None else factory)
        self.wires.append(wire)
        return wire

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"", *, peer: str = PEER
    ) -> Answer:
        """One request on a connection of its own."""
        wire = self.connect(peer).send(request(method, target, headers, body))
        if not wire.value():  # a turn of the reactor has so many answers only
            self.clock.advance(0)
        (answer,) = read_answers(wire.taken(), [method])
        return answer

    def claim(self, name: str = "w1", region: str = "", capacity: int = 100) -> Claim:
        """What a worker says of itself; no two are the same one."""
        return Claim(name, region, capacity, "192.0.2.50", self.random_bytes(16).hex())

    def worker(self, name: str = "w1", region: str = "", capacity: int = 100) -> Claim:
        """Registers a worker, as the switchboard does."""
        claim = self.claim(name, region, capacity)
        outcomes: list[bool] = []
        self.registry.worker_joined(claim, outcomes.append)
        assert outcomes == [True], outcomes
        return claim

    def websocket(self, *messages: dict[str, Any], peer: str = PEER) -> Wire:
        """A WebSocket that has said so much; what it was told is left to be taken."""
        wire = self.connect(peer).send(request("GET", "/signaling", UPGRADE))
        assert wire.taken().startswith(b"HTTP/1.1 101 ")
        for message in messages:
            wire.send(text_frame(json.dumps(message).encode()))
        return wire

    def client(self, peer: str = PEER) -> Wire:
        """A welcomed client."""
        wire = self.websocket({"type": "hello", "role": "client"}, peer=peer)
        assert b'"type":"welcome"' in wire.taken()
        return wire

    def advance(self, seconds: float) -> None:
        """Time passes, in steps, and what the front closes is closed."""
        steps = max(1, round(seconds / 0.5))
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            for wire in self.wires:
                wire.settle()
        self.wires = [wire for wire in self.wires if not wire.lost]

    def close(self) -> None:
        """Every peer hangs up, and the store is closed."""
        for wire in self.wires:
            wire.hang_up()
        self.store.close()


class FrontTestCase(SynchronousTestCase):
    """A test with one front, which must leave no call behind when everybody has hung up."""

    environ: ClassVar[Mapping[str, str]] = {}

    def setUp(self) -> None:
        """Builds the front."""
        self.front = Front(self.environ)
        self.addCleanup(self._close)

    def _close(self) -> None:
        self.front.close()
        self.front.clock.advance(0)
        self.assertEqual(self.front.clock.getDelayedCalls(), [])

    def assert_error(self, answer: Answer, status: int, code: str) -> None:
        """The contract's form of an error."""
        self.assertEqual(
            (answer.status, answer.header("Content-Type"), answer.code),
            (status, JSON, code),
        )
