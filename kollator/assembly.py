"""A front, put together: builds every room, wires them with callables, and takes them down in order."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Collection
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

import kollator
from kollator.admin import FrontAdmin
from kollator.cluster.link import REASONS
from kollator.cluster.links import LinkError, Links
from kollator.cluster.service import Cluster
from kollator.demo import DemoWorker
from kollator.doors import open_doors
from kollator.drain import Drain, reconnect_in_ms
from kollator.gate import Gate
from kollator.gauges import front_gauges
from kollator.guard.addresses import NetworkSet
from kollator.guard.audit import of_signaling
from kollator.guard.tickets import TicketBook
from kollator.guard.turn import IceServers
from kollator.health import WorkerHealth
from kollator.net.endpoints import ListenEndpoint, client_files, listen_endpoint
from kollator.net.fasttransport import quicken
from kollator.net.listening import Listeners
from kollator.observe import logs
from kollator.observe.auditlog import AuditError, AuditLog
from kollator.observe.metrics import Counters, Metrics, add
from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.registry import Registry
from kollator.reloading import Reloads
from kollator.routine import add_loops
from kollator.settings import Settings
from kollator.signaling.fastpath import FastSignalingFactory
from kollator.signaling.protocol import SignalingFactory
from kollator.signaling.switchboard import Switchboard
from kollator.starting import StartError, own_ticket_key, warn_of
from kollator.state.errors import StoreError
from kollator.state.rows import FrontRow, Row
from kollator.state.store import Store
from kollator.state.writer import Writer
from kollator.views import FrontViews, Standing
from kollator.web.answers import ClusterNode
from kollator.web.door import DoorFactory
from kollator.web.fastdoor import FastDoorFactory
from kollator.workerslist import WorkersList

log = Logger("kollator:front")
events = Logger("kollator:signaling")

QUIET_EVENTS = frozenset({"client-joined", "client-left", "worker-left"})
"""Debug events: there may be thousands a second, and the registry tells of workers that left, many in one line."""
SETTLE_S = 0.5
"""How long a stopping front waits at most until its peers have its last rows."""


class Front(MultiService):
    """One front server: everything that ``settings`` ask for, on ``reactor``.

    ``endpoint_of`` makes what is listened on of the reactor and each endpoint string of LISTEN, in their order.

    ``privilegedStartService`` binds the listening endpoints, ``startService`` opens the database and the doors.
    Both raise ``StartError``.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        endpoint_of: Callable[[Any, str], ListenEndpoint] = listen_endpoint,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.reactor = reactor
        self.counters = Counters()
        self.counters.links_ended.update(dict.fromkeys(REASONS, 0))
        doors = FastDoorFactory if settings.fast_path else DoorFactory
        self.door = doors(
            clock=reactor, header_timeout_s=settings.header_timeout_s, refused=self.counters.refuse
        )
        made = quicken if settings.fast_path else None
        self.listeners = Listeners(reactor, settings.listen, self.door, made, endpoint_of)
        self.drain = Drain(reactor)
        self.store: Store | None = None
        self.admin: FrontAdmin | None = None
        self._threads = ThreadPool(1, 1, "kollator-store")
        self.debug = logs.DebugNamespaces(settings.debug)
        self.audit = AuditLog(
            settings.audit_log,
            node=settings.node_id,
            max_bytes=settings.audit_log_bytes,
            files=settings.audit_log_files,
            in_thread=self._in_any_thread,
            clock=reactor,
            wall=time.time,
            counted=lambda outcome, number: add(self.counters.audit_lines, outcome, number),
            loop_failed=self.loop_failed,
        )
        self.reloads = Reloads(reactor, failed=self.loop_failed)
        self.reloads.setServiceParent(self)
        self.reloads.on_hangup(self.audit.reopen)
        if settings.workers_file is not None:
            self.reloads.watch(settings.workers_file, lambda: self.workers_list.reload())
        self.workers_list = WorkersList(
            settings.workers_file, only=settings.workers_file_only, in_thread=self._in_any_thread
        )
        self._worker_keys = tuple(settings.worker_keys)
        if settings.demo_worker and not self._worker_keys:
            self._worker_keys = (os.urandom(32).hex().encode("ascii"),)  # known to nobody but the demo worker
        self.links = Links(
            settings.node_id,
            settings.peers,
            settings.cluster_keys,
            reactor=reactor,
            listen=settings.peer_listen,
            established=self._linked,
            lost=lambda peer: self.cluster.lost(peer),
            received=lambda peer, frame: self.cluster.received(peer, frame),
            random_bytes=os.urandom,
            uniform=random.uniform,
            summary=lambda peer: self.cluster.member.summary(peer),
            count=lambda reason: add(self.counters.links_ended, reason),
            exempt=NetworkSet(settings.rate_limit_exempt).contains,
            client_ca=settings.peer_client_ca,
            refused=lambda address, reason: self.audit.note("peer-refused", address=address, reason=reason),
        )
        self.links.setServiceParent(self)

    # -- start --------------------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Binds every endpoint of LISTEN, while the process may still bind low ports."""
        self.listeners.open()
        try:
            super().privilegedStartService()
        except LinkError as error:
            raise StartError(str(error)) from None
        for credentials in (*self.listeners.credentials, *self.links.credentials):
            for path in credentials.files:
                self.reloads.watch(path, credentials.reload)
        for peer in self.settings.peers:
            for path in client_files(peer.endpoint):
                self.reloads.watch(path, self.links.reload_routes)

    def startService(self) -> None:
        """Opens the database, builds the rooms and opens the doors."""
        if not self.listeners.ports:  # nobody called privilegedStartService
            self.privilegedStartService()
        try:
            self._start()
        except BaseException as problem:
            self._threads.stop()  # or the process would wait for it, and not end
            if self.store is not None:
                self.store.close()
                self.store = None
            if isinstance(problem, StoreError | AuditError):
                raise StartError(str(problem)) from None
            raise

    def _start(self) -> None:
        settings, reactor = self.settings, self.reactor
        store = self.store = Store.open(settings.database, node_id=settings.node_id, extension=settings.crsqlite_path)
        own = store.begin_incarnation(settings.region, "")
        rows = store.rows()
        ticket_keys = settings.cluster_keys or (own_ticket_key(store),)
        self.audit.startService()
        self.audit.note("front-started", version=kollator.__version__, incarnation=own.incarnation)
        self._threads.start()
        self.writer = writer = Writer(store, self._in_thread, reactor)
        self.pool = pool = Pool(replicas=settings.hash_replicas, panic_threshold=settings.panic_threshold)
        pool.apply_all(rows)
        self.roster = roster = Roster(settings.node_id, own.incarnation)
        tickets = TicketBook(ticket_keys, settings.ticket_ttl_s)
        ice_servers = IceServers(
            settings.stun_servers, settings.turn_servers, settings.turn_secrets, settings.turn_ttl_s
        )
        self.gate = gate = Gate(
            settings, lambda: self.drain.draining, self.counters.refuse, note=self.audit.note
        )
        self.metrics = Metrics(self.counters, front_gauges(self), node=settings.node_id, version=kollator.__version__)
        self.registry = registry = Registry(
            pool,
            roster,
            writer,
            lost=lambda workers: self.switchboard.workers_lost(workers),
            joined=lambda worker: self.health.joined(worker),
            left=lambda worker, politely: self.health.left(worker, politely),
            listed=self.workers_list.of,
            counted=lambda cause: add(self.counters.workers_lost, cause),
            soon=lambda call: reactor.callLater(0, call),
        )
        self.switchboard = Switchboard(
            node=settings.node_id,
            tickets=tickets,
            worker_keys=self._worker_keys,
            worker_allowed=gate.worker_allowed,
            worker_listed=self.workers_list.permits,
            auth_backoff=gate.auth_backoff,
            check_descriptions=settings.check_descriptions,
            ice_servers=lambda who: ice_servers.for_client(who, time.time()),
            assign=lambda address, region, exclude: self.views.assign(address, region, exclude),
            usable=lambda worker: bool(pool.fronts_of(worker)),
            here=lambda worker: roster.is_well(worker) or not pool.fronts_of(worker),
            registrar=registry,
            tally=self.counters,
            random_bytes=os.urandom,
            wall=time.time,
            message_rate=settings.message_rate,
            handed_off=self.metrics.handed_off,
            note=self._note,
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
        sockets = FastSignalingFactory if settings.fast_path else SignalingFactory
        self.signaling = sockets(
            reactor=reactor,
            switchboard=self.switchboard,
            address_of=gate.handshake_address,
            origin_permitted=gate.handshake_origin_permitted,
            admit=gate.admit,
            release=gate.release,
            allowance_of=gate.allowance,
            write_buffer_bytes=settings.write_buffer_bytes,
            write_buffers_bytes=settings.write_buffers_bytes,
            handshake_timeout_s=settings.header_timeout_s,
            refused=self.counters.refuse,
        )
        self.debug.watch("kollator:signaling", lambda wanted: setattr(self.signaling, "debug", wanted))
        self.health = WorkerHealth(
            settings,
            reactor,
            registry=registry,
            signaling=self.signaling,
            workers_list=self.workers_list,
            metrics=self.metrics,
            own_url=self.listeners.signaling_url,
            draining=lambda: self.drain.draining,
            loop_failed=self.loop_failed,
        )
        self.health.setServiceParent(self)
        self.cluster = Cluster(
            settings,
            self.links,
            store,
            pool,
            self.switchboard.abroad,
            reactor,
            own=own,
            in_store=self._in_thread,
            apply=self._merged,
            restate=registry.restate,
            reincarnated=self._reincarnated,
            uniform=random.uniform,
            wall=time.time,
            loop_failed=self.loop_failed,
            rows_refused=lambda reason, number: add(self.counters.rows_refused, reason, number),
        )
        self.cluster.setServiceParent(self)
        self.switchboard.elsewhere = self.cluster.exchange
        writer.committed = self._committed
        self.cluster.member.lead_alone()
        add_loops(self)
        open_doors(self)
        if settings.demo_worker:
            url, key = self.listeners.signaling_url, self._worker_keys[0]
            DemoWorker(reactor, url, key, settings.demo_folder).setServiceParent(self)
        warn_of(settings, workers=bool(self._worker_keys), turn=ice_servers.turn_is_usable)
        super().startService()
        reactor.callWhenRunning(self._say_where)

    def _say_where(self) -> None:
        for host in self.listeners.hosts():
            log.info("front {node} listens on {host}", node=self.settings.node_id, host=host)
        for url in self.listeners.urls():
            log.info("open {url}", url=url)

    # -- stop ---------------------------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """Drains, then stops everything; fires when the database is closed."""
        if self.store is None:
            done = maybeDeferred(self.listeners.close)
        else:
            done = self.drain.begin(self.signaling, self.settings.drain_timeout_s, reconnect_in_ms)
            steps: tuple[Callable[[], Any], ...] = (
                self.listeners.close,
                lambda: self.drain.close(self.signaling),
                lambda: self.registry.settle(),
                self.writer.stop,
                lambda: self.drain.wait(self.cluster.member.settled, SETTLE_S),
                lambda: MultiService.stopService(self),
                self._close_store,
                self._stop_audit,
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

    def _stop_audit(self) -> Deferred[None]:
        self.audit.note("front-stopped")
        return self.audit.stopService()

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

    def _linked(self, peer: str) -> None:
        self.audit.note("peer-linked", id=peer)
        self.cluster.established(peer)

    def _merged(self, rows: Collection[Row]) -> None:
        for row in rows:
            if isinstance(row, FrontRow) and row.retired >= row.incarnation and self.pool.is_alive(row.id):
                self.audit.note("front-retired", id=row.id, term=self.cluster.member.standing.term)
        self.registry.merged(rows)

    def _reincarnated(self, row: FrontRow) -> None:
        self.registry.reincarnated(row)
        if self.admin is not None:
            self.admin.reincarnated()

    def _committed(self, rows: Collection[Row]) -> None:
        for row in rows:
            if isinstance(row, FrontRow) and row.id == self.settings.node_id:
                self.cluster.member.own = row  # with what an operator said of it
        self.registry.committed(rows)
        self.cluster.member.committed(rows)

    def loop_failed(self, name: str) -> None:
        """A loop has raised, and goes on."""
        add(self.counters.loop_failures, name)

    def _in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self.reactor, self._threads, function, *args)

    def _in_any_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *args)

    def _note(self, event: str, **fields: object) -> None:
        """What signaling has to say, for the log and the audit log."""
        quiet = event in QUIET_EVENTS
        if not quiet or self.signaling.debug:  # or each client would pay for a line that nobody sees
            say = events.debug if quiet else events.info
            say("{event} {fields}", event=event, fields=" ".join(f"{k}={v}" for k, v in fields.items()), **fields)
        audited = of_signaling(event, fields)
        if audited is not None:
            name, known = audited
            self.audit.note(name, **known)

