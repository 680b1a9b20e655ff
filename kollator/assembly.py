"""A front, put together: builds every room, wires them with callables, and takes them down in order."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

import kollator
from kollator.cluster.link import REASONS
from kollator.cluster.links import LinkError, Links
from kollator.cluster.service import Cluster
from kollator.cluster.worker_sync import WorkerSyncFactory
from kollator.demo import DemoWorker
from kollator.drain import Drain
from kollator.guard.addresses import NetworkSet
from kollator.guard.keys import weakness
from kollator.guard.tickets import TicketBook
from kollator.guard.turn import IceServers
from kollator.observe import logs
from kollator.observe.loops import Loop
from kollator.observe.metrics import Counters, Gauges, Metrics, add
from kollator.pool.health import HealthBook
from kollator.pool.monitor import TURN_S as HEALTH_TURN_S
from kollator.pool.monitor import HealthMonitor
from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.registry import Registry
from kollator.settings import Settings
from kollator.signaling.keepalive import TURN_S as KEEPALIVE_TURN_S
from kollator.signaling.keepalive import KeepAlive
from kollator.signaling.protocol import SignalingFactory, SignalingProtocol
from kollator.signaling.switchboard import Switchboard
from kollator.starting import StartError, cannot_listen, one_line, own_ticket_key, read_workers_file
from kollator.state.errors import StoreError
from kollator.state.rows import Row
from kollator.state.store import Store
from kollator.state.writer import Writer
from kollator.views import FrontViews, Gate, Standing
from kollator.web.answers import ClusterNode
from kollator.web.door import DoorFactory
from kollator.web.pages import load_assets
from kollator.web.resources import resource_tree
from kollator.web.site import FrontSite, upgrade_to

log = Logger("kollator:front")
events = Logger("kollator:signaling")

RECONNECT_MS = (100, 2000)
"""When connections that are told ``draining`` are to come back: spread, so that other fronts see no burst."""
HELLO_TURN_S = 0.25
SWEEP_TURN_S = 0.25
EXPIRE_TURN_S = 5.0
SETTLE_S = 0.5
"""How long a stopping front waits at most until its peers have its last rows."""


class Front(MultiService):
    """One front server: everything that ``settings`` ask for, on ``reactor``.

    ``privilegedStartService`` binds the listening endpoints, ``startService`` opens the database and the doors.
    Both raise ``StartError``.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self.settings = settings
        self.reactor = reactor
        self.ports: list[Any] = []
        self.counters = Counters()
        self.counters.links_ended.update(dict.fromkeys(REASONS, 0))
        self.door = DoorFactory(
            clock=reactor, header_timeout_s=settings.header_timeout_s, refused=self.counters.refuse
        )
        self.drain = Drain(reactor)
        self.store: Store | None = None
        self._threads = ThreadPool(1, 1, "kollator-store")
        self._listed = read_workers_file(settings.workers_file)
        self._worker_keys = tuple(settings.worker_keys)
        if settings.demo_worker and not self._worker_keys:
            self._worker_keys = (os.urandom(32).hex().encode("ascii"),)  # known to nobody but the demo worker
        self.links = Links(
            settings.node_id,
            settings.peers,
            settings.cluster_keys,
            reactor=reactor,
            listen=settings.peer_listen,
            established=lambda peer: self.cluster.established(peer),
            lost=lambda peer: self.cluster.lost(peer),
            received=lambda peer, frame: self.cluster.received(peer, frame),
            random_bytes=os.urandom,
            uniform=random.uniform,
            summary=lambda peer: self.cluster.member.summary(peer),
            count=lambda reason: add(self.counters.links_ended, reason),
            exempt=NetworkSet(settings.rate_limit_exempt).contains,
        )
        self.links.setServiceParent(self)

    # -- start --------------------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Binds every endpoint of LISTEN, while the process may still bind low ports."""
        for description in self.settings.listen:
            self._listen(description)
        try:
            super().privilegedStartService()
        except LinkError as error:
            raise StartError(str(error)) from None

    def startService(self) -> None:
        """Opens the database, builds the rooms and opens the doors."""
        settings, reactor = self.settings, self.reactor
        if not self.ports:  # nobody called privilegedStartService
            self.privilegedStartService()
        try:
            store = self.store = Store.open(
                settings.database, node_id=settings.node_id, extension=settings.crsqlite_path
            )
            own = store.begin_incarnation(settings.region, "")
            rows = store.rows()
            ticket_keys = settings.cluster_keys or (own_ticket_key(store),)
        except StoreError as error:
            raise StartError(str(error)) from None
        self._threads.start()
        self.writer = writer = Writer(store, self._in_thread, reactor)
        self.pool = pool = Pool(replicas=settings.hash_replicas)
        pool.apply_all(rows)
        self.roster = roster = Roster(settings.node_id, own.incarnation)
        tickets = TicketBook(ticket_keys, settings.ticket_ttl_s)
        ice_servers = IceServers(
            settings.stun_servers, settings.turn_servers, settings.turn_secrets, settings.turn_ttl_s
        )
        self.gate = gate = Gate(settings, lambda: self.drain.draining, self.counters.refuse)
        self.metrics = Metrics(self.counters, self._gauges(), node=settings.node_id, version=kollator.__version__)
        self.registry = registry = Registry(
            pool,
            roster,
            writer,
            lost=lambda workers: self.switchboard.workers_lost(workers),
            joined=lambda worker: self.monitor.joined(worker),
            left=lambda worker, politely: self.monitor.left(worker, politely),
            listed=self._listed.of,
            counted=lambda cause: add(self.counters.workers_lost, cause),
            soon=lambda call: reactor.callLater(0, call),
        )
        self.switchboard = Switchboard(
            node=settings.node_id,
            tickets=tickets,
            worker_keys=self._worker_keys,
            worker_allowed=gate.worker_allowed,
            ice_servers=lambda who: ice_servers.for_client(who, time.time()),
            assign=lambda address, region, exclude: self.views.assign(address, region, exclude),
            usable=lambda worker: bool(pool.fronts_of(worker)),
            registrar=registry,
            tally=self.counters,
            random_bytes=os.urandom,
            wall=time.time,
            message_rate=settings.message_rate,
            handed_off=self.metrics.handed_off,
            note=_note,
        )
        self.views = FrontViews(
            settings=settings,
            gate=gate,
            pool=pool,
            roster=roster,
            switchboard=self.switchboard,
            tickets=tickets,
            ice_servers=ice_servers,
            metrics=self.metrics,
            random_bytes=os.urandom,
            monotonic=reactor.seconds,
            wall=time.time,
            standing=self.standing,
            trouble=self.trouble,
        )
        self.signaling = SignalingFactory(
            reactor=reactor,
            switchboard=self.switchboard,
            address_of=gate.handshake_address,
            origin_permitted=gate.handshake_origin_permitted,
            admit=gate.admit,
            release=gate.release,
            allowance_of=gate.allowance,
            write_buffer_bytes=settings.write_buffer_bytes,
            handshake_timeout_s=settings.header_timeout_s,
            refused=self.counters.refuse,
            debug=logs.enabled(settings.debug, "kollator:signaling"),
        )
        self.monitor = HealthMonitor(
            HealthBook(settings.worker_health_timeout_s, settings.worker_health_interval_s),
            reactor,
            ping=self._ping,
            unwell=registry.worker_unwell,
            well=registry.worker_well,
            phase=random.random,
            answered=self.metrics.ponged,
        )
        self.signaling.pong = self._ponged
        self.cluster = Cluster(
            settings,
            self.links,
            store,
            pool,
            self.switchboard.abroad,
            reactor,
            own=own,
            in_store=self._in_thread,
            apply=registry.merged,
            restate=registry.restate,
            reincarnated=registry.reincarnated,
            uniform=random.uniform,
            wall=time.time,
            loop_failed=self._loop_failed,
            rows_refused=lambda reason, number: add(self.counters.rows_refused, reason, number),
        )
        self.cluster.setServiceParent(self)
        self.switchboard.elsewhere = self.cluster.exchange
        writer.committed = self._committed
        try:
            self.cluster.member.lead_alone()
        except StoreError as error:
            raise StartError(str(error)) from None
        self._add_loops()
        self._open_doors()
        if settings.demo_worker:
            DemoWorker(reactor, self._own_url, self._worker_keys[0], settings.demo_folder).setServiceParent(self)
        self._say_what_is_missing(ice_servers)
        super().startService()
        reactor.callWhenRunning(self._say_where)

    def _open_doors(self) -> None:
        admission = self.gate.admission(self.reactor.seconds)
        sockets: dict[bytes, Any] = {b"signaling": self.signaling}
        if self.settings.peers:
            sockets[b"worker-sync"] = WorkerSyncFactory(self.links.acceptor, self.reactor, self.gate.handshake_address)
        taking_over = {name: upgrade_to(factory, admission) for name, factory in sockets.items()}
        site = FrontSite(
            resource_tree(self.views, load_assets(), taking_over),
            self.reactor,
            logs.enabled(self.settings.debug, "kollator:web"),
            header_timeout_s=self.settings.header_timeout_s,
            responded=self.counters.respond,
        )
        upgrades = {b"/" + name: factory for name, factory in sockets.items()}
        self.door.open(site=site, upgrades=upgrades, admission=admission)

    def _listen(self, description: str) -> None:
        try:
            listening = serverFromString(self.reactor, description).listen(self.door)
        except Exception as problem:  # endpoint parsers raise whatever they like
            raise StartError(f"LISTEN: {description!r} is not an endpoint: {one_line(problem)}") from None
        failures: list[Failure] = []
        listening.addCallbacks(self.ports.append, failures.append)
        if failures:
            raise cannot_listen(description, failures[0].value)

    def _add_loops(self) -> None:
        settings, reactor = self.settings, self.reactor
        failed = self._loop_failed
        Loop("health", self.monitor.turn, HEALTH_TURN_S, reactor, failed).setServiceParent(self)
        Loop(
            "hello", lambda: self.signaling.expire(settings.hello_timeout_s), HELLO_TURN_S, reactor, failed
        ).setServiceParent(self)
        Loop("database", self.writer.probe, EXPIRE_TURN_S, reactor, failed).setServiceParent(self)
        Loop("pool", self.pool.sweep, SWEEP_TURN_S, reactor, failed).setServiceParent(self)
        Loop(
            "mailboxes", lambda: self.switchboard.mailboxes.expire(reactor.seconds()), EXPIRE_TURN_S, reactor, failed
        ).setServiceParent(self)
        if settings.keepalive_interval_s:
            keepalive = KeepAlive(settings.keepalive_interval_s, self._clients)
            Loop("keepalive", keepalive.turn, KEEPALIVE_TURN_S, reactor, failed).setServiceParent(self)

    def _say_what_is_missing(self, ice_servers: IceServers) -> None:
        settings = self.settings
        if not self._worker_keys:
            log.warn("WORKER_KEY_FILE is not set: no worker can register")
        for name, keys in (("CLUSTER_KEY", settings.cluster_keys), ("WORKER_KEY", settings.worker_keys)):
            weak = weakness(keys)
            if weak:
                log.warn("{setting}: {weak}", setting=name, weak=weak)
        if not ice_servers.turn_is_usable:
            log.warn("TURN_SERVERS is set without TURN_SECRET: clients are not told of them")

    def _say_where(self) -> None:
        for port in self.ports:
            log.info("front {node} listens on {host}", node=self.settings.node_id, host=str(port.getHost()))
        for url in self._urls():
            log.info("open {url}", url=url)

    # -- stop ---------------------------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """Drains, then stops everything; fires when the database is closed."""
        if self.store is None:
            done = maybeDeferred(self._stop_listening)
        else:
            done = self.drain.begin(
                self.signaling, self.settings.drain_timeout_s, lambda: random.randint(*RECONNECT_MS)
            )
            steps: tuple[Callable[[], Any], ...] = (
                self._stop_listening,
                lambda: self.drain.close(self.signaling),
                self.writer.stop,
                lambda: self.drain.wait(self.cluster.member.settled, SETTLE_S),
                lambda: MultiService.stopService(self),
                self._close_store,
            )
            for step in steps:
                done.addErrback(self._not_clean)  # and on with the next step
                done.addCallback(self._take, step)
        done.addErrback(self._not_clean)
        return done

    @staticmethod
    def _take(_: Any, step: Callable[[], Any]) -> Any:
        return step()

    @staticmethod
    def _not_clean(failure: Failure) -> None:
        log.failure("the stop was not clean", failure=failure)

    def _stop_listening(self) -> Deferred[Any]:
        ports, self.ports = self.ports, []
        return DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)

    def _close_store(self) -> Deferred[None]:
        store, self.store = self.store, None
        assert store is not None
        closed = self._in_thread(store.close)

        def stop_threads(result: Any) -> Any:
            self._threads.stop()
            return result

        return closed.addBoth(stop_threads)

    # -- what the rooms ask -------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """The place in the cluster: alone, it leads."""
        node, member = self.settings.node_id, self.cluster.member
        role, term, leader = member.standing
        nodes = [ClusterNode(node, role, 0.0)]
        nodes += [ClusterNode(peer.node, peer.state, peer.sync_lag_ms) for peer in member.peers()]
        return Standing(role, leader, term, sorted(nodes, key=lambda shown: shown.node), member.synchronised)

    def trouble(self) -> str | None:
        """Why new clients should go elsewhere: ``draining``, ``no-database``, or None."""
        if self.drain.draining:
            return "draining"
        return "no-database" if self.writer.problem is not None else None

    def _committed(self, rows: Collection[Row]) -> None:
        self.registry.committed(rows)
        self.cluster.member.committed(rows)

    def _ping(self, worker: str, number: int) -> None:
        connection = self.switchboard.workers.get(worker)
        if isinstance(connection, SignalingProtocol):
            connection.ping(b"%d" % number)

    def _ponged(self, connection: SignalingProtocol, payload: bytes) -> None:
        if connection.claim is not None and self.switchboard.workers.get(connection.id) is connection:
            self.monitor.ponged(connection.id, payload)

    def _clients(self) -> list[SignalingProtocol]:
        return [client for client in self.switchboard.clients.values() if isinstance(client, SignalingProtocol)]

    def _gauges(self) -> Gauges:
        def workers() -> Mapping[str, float]:
            counts = self.pool.counts()
            return {"up": counts.up, "full": counts.full, "draining": counts.draining, "down": counts.down}

        started = self.reactor.seconds()
        return Gauges(
            connections=lambda: {"client": len(self.switchboard.clients), "worker": len(self.switchboard.workers)},
            workers=workers,
            absent_clients=lambda: len(self.switchboard.mailboxes),
            ring_points=lambda: self.pool.points,
            uptime_s=lambda: self.reactor.seconds() - started,
            leader=lambda: float(self.cluster.member.standing.role == "leader"),
            term=lambda: self.cluster.member.standing.term,
            draining=lambda: float(self.drain.draining),
            sync_lag_s=lambda: {
                peer.node: peer.sync_lag_ms / 1000
                for peer in self.cluster.member.peers()
                if peer.sync_lag_ms is not None
            },
            peer_up=lambda: {peer.node: float(self.links.is_up(peer.node)) for peer in self.settings.peers},
        )

    def _loop_failed(self, name: str) -> None:
        add(self.counters.loop_failures, name)

    def _urls(self) -> list[str]:
        """Where a browser on this machine finds the page, for each TCP port."""
        urls = []
        for description, port in zip(self.settings.listen, self.ports, strict=False):
            kind = description.partition(":")[0]
            host = port.getHost()
            if kind in ("tcp", "tcp4", "tcp6", "ssl"):
                name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.host, host.host)
                scheme = "https" if kind == "ssl" else "http"
                urls.append(f"{scheme}://{f'[{name}]' if ':' in name else name}:{host.port}/")
        return urls

    def _own_url(self) -> str | None:
        """The URL of this front's signaling for a process on this machine; None without a plain TCP port."""
        plain = [url for url in self._urls() if url.startswith("http:")]
        return f"ws{plain[0].removeprefix('http')}signaling" if plain else None

    def _in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self.reactor, self._threads, function, *args)


def _note(event: str, **fields: object) -> None:
    events.info("{event} {fields}", event=event, fields=" ".join(f"{k}={v}" for k, v in fields.items()), **fields)
