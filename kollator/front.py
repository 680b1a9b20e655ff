"""``twistd kollator-front``: the options, and the service that builds every room and wires them together."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

import kollator
from kollator.demo import DemoWorker
from kollator.drain import Drain, StopSignals
from kollator.guard.keys import weakness
from kollator.guard.tickets import TicketBook
from kollator.guard.turn import IceServers
from kollator.observe import logs
from kollator.observe.loops import Loop
from kollator.observe.metrics import Counters, Gauges, Metrics
from kollator.pool.health import HealthBook
from kollator.pool.monitor import TURN_S as HEALTH_TURN_S
from kollator.pool.monitor import HealthMonitor
from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.pool.workersfile import FILE_BYTES, WorkersFile, WorkersFileError, parse_workers_file
from kollator.registry import Registry
from kollator.settings import FrontOptions, SettingError, Settings
from kollator.signaling.keepalive import TURN_S as KEEPALIVE_TURN_S
from kollator.signaling.keepalive import KeepAlive
from kollator.signaling.protocol import SignalingFactory, SignalingProtocol
from kollator.signaling.switchboard import Switchboard
from kollator.state.errors import StoreError
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
EXPIRE_TURN_S = 5.0

Options = FrontOptions


class StartError(Exception):
    """The front cannot start: one line that names the setting and the remedy."""


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
        self.door = DoorFactory(clock=reactor, header_timeout_s=settings.header_timeout_s)
        self.counters = Counters()
        self.drain = Drain(reactor)
        self.store: Store | None = None
        self._threads = ThreadPool(1, 1, "kollator-store")
        self._listed = read_workers_file(settings.workers_file)
        self._worker_keys = tuple(settings.worker_keys)
        if settings.demo_worker and not self._worker_keys:
            self._worker_keys = (os.urandom(32).hex().encode("ascii"),)  # known to nobody but the demo worker

    # -- start --------------------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Binds every endpoint of LISTEN, while the process may still bind low ports."""
        for description in self.settings.listen:
            self._listen(description)
        super().privilegedStartService()

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
            ticket_keys = settings.cluster_keys or (_own_ticket_key(store),)
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
            left=lambda worker: self.monitor.left(worker),
            listed=self._listed.of,
        )
        self.switchboard = Switchboard(
            node=settings.node_id,
            tickets=tickets,
            worker_keys=self._worker_keys,
            worker_allowed=gate.worker_allowed,
            ice_servers=lambda who: ice_servers.for_client(who, reactor_wall()),
            assign=lambda address, region, exclude: self.views.assign(address, region, exclude),
            usable=lambda worker: bool(pool.fronts_of(worker)),
            registrar=registry,
            tally=self.counters,
            random_bytes=os.urandom,
            wall=reactor_wall,
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
            wall=reactor_wall,
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
        self._add_loops()
        admission = gate.admission(reactor.seconds)
        upgrades = {b"signaling": upgrade_to(self.signaling, admission)}
        site = FrontSite(
            resource_tree(self.views, load_assets(), upgrades), reactor, logs.enabled(settings.debug, "kollator:web")
        )
        self.door.open(site=site, upgrades={b"/signaling": self.signaling}, admission=admission)
        if settings.demo_worker:
            DemoWorker(reactor, self._own_url, self._worker_keys[0], settings.demo_folder).setServiceParent(self)
        self._say_what_is_missing(ice_servers)
        super().startService()
        reactor.callWhenRunning(self._say_where)

    def _listen(self, description: str) -> None:
        try:
            listening = serverFromString(self.reactor, description).listen(self.door)
        except Exception as problem:  # endpoint parsers raise whatever they like
            raise StartError(f"LISTEN: {description!r} is not an endpoint: {_one_line(problem)}") from None
        failures: list[Failure] = []
        listening.addCallbacks(self.ports.append, failures.append)
        if failures:
            raise _cannot_listen(description, failures[0].value)

    def _add_loops(self) -> None:
        settings, reactor = self.settings, self.reactor
        failed = self._loop_failed
        Loop("health", self.monitor.turn, HEALTH_TURN_S, reactor, failed).setServiceParent(self)
        Loop(
            "hello", lambda: self.signaling.expire(settings.hello_timeout_s), HELLO_TURN_S, reactor, failed
        ).setServiceParent(self)
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
        return self._stop()

    def _stop(self) -> Deferred[None]:
        if self.store is None:
            done = maybeDeferred(self._stop_listening)
        else:
            done = self.drain.begin(
                self.signaling, self.settings.drain_timeout_s, lambda: random.randint(*RECONNECT_MS)
            )
            done.addCallback(lambda _: self._stop_listening())
            done.addCallback(lambda _: self._close_connections())
            done.addCallback(lambda _: MultiService.stopService(self))
            done.addCallback(lambda _: self.writer.stop())
            done.addCallback(lambda _: self._close_store())
        done.addErrback(lambda failure: log.failure("the stop was not clean", failure=failure))
        return done

    def _stop_listening(self) -> Deferred[Any]:
        ports, self.ports = self.ports, []
        return DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)

    def _close_connections(self) -> Deferred[None]:
        return self.drain.close(self.signaling)

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
        node = self.settings.node_id
        return Standing("leader", node, 1, [ClusterNode(node, "leader", 0.0)])

    def trouble(self) -> str | None:
        """Why new clients should go elsewhere: ``draining``, ``no-database``, or None."""
        if self.drain.draining:
            return "draining"
        return "no-database" if self.writer.problem is not None else None

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
            leader=lambda: float(self.standing().role == "leader"),
            term=lambda: self.standing().term,
            draining=lambda: float(self.drain.draining),
        )

    def _loop_failed(self, name: str) -> None:
        failures = self.counters.loop_failures
        failures[name if name in failures else "other"] += 1

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


def read_workers_file(path: str | None) -> WorkersFile:
    """The operator's list of workers, empty without a file. Raises ``StartError``."""
    if path is None:
        return WorkersFile({})
    try:
        with open(path, "rb") as file:
            return parse_workers_file(file.read(FILE_BYTES + 1))
    except OSError as problem:
        raise StartError(f"WORKERS_FILE: {path} cannot be read: {problem.strerror}; name a JSON file") from None
    except WorkersFileError as problem:
        raise StartError(f"WORKERS_FILE: {path}: {problem}; mend it, or leave the setting out") from None


def reactor_wall() -> float:
    """Unix seconds: tickets and TURN credentials outlive a process."""
    return time.time()


def _note(event: str, **fields: object) -> None:
    events.info("{event} {fields}", event=event, fields=" ".join(f"{k}={v}" for k, v in fields.items()), **fields)


def _own_ticket_key(store: Store) -> bytes:
    """The key that a front without a cluster signs its tickets with: made once, kept in its database."""
    key = store.get("ticket_key")
    if not isinstance(key, bytes):
        key = os.urandom(32)
        store.put("ticket_key", key)
    return key


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


class TwistdFront(Front):
    """A front under ``twistd``: its log observer, its signals, and start errors as one line with exit status 1."""

    def __init__(self, settings: Settings, reactor: Any, twistd: Mapping[str, Any]) -> None:
        super().__init__(settings, reactor)
        self._twistd = twistd
        StopSignals(reactor, self.drain).setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        """Twistd hands over the application here, before it begins to log."""
        super().setServiceParent(parent)
        logs.install(
            parent, self._twistd, self.settings.log_format, self.settings.debug, reactor=self.reactor
        )

    def privilegedStartService(self) -> None:
        """As any front's; a failure ends the process."""
        try:
            super().privilegedStartService()
        except StartError as error:
            self._abort(error)

    def startService(self) -> None:
        """As any front's; a failure ends the process."""
        try:
            super().startService()
        except StartError as error:
            self._abort(error)

    def _abort(self, error: StartError) -> None:
        if not self._twistd.get("nodaemon"):
            raise error  # twistd hands it to the process that waits for the daemon, which prints it
        pidfile = self._twistd.get("pidfile")
        if pidfile:
            try:
                os.unlink(pidfile)
            except OSError:
                pass
        os.write(2, f"{error}\n".encode())  # sys.stderr is the log by now
        raise SystemExit(1)


def makeService(options: FrontOptions, environ: Mapping[str, str] | None = None) -> TwistdFront:
    """What ``twistd kollator-front`` runs. Raises ``SystemExit`` with one line for a setting that cannot be used."""
    from twisted.internet import reactor

    try:
        settings = Settings.load(options, os.environ if environ is None else environ)
        for description in (*settings.listen, *settings.peer_listen):
            _check_endpoint(reactor, description)
        Store.check(settings.database, extension=settings.crsqlite_path)
        twistd: Mapping[str, Any] = options.parent or {}
        if not twistd.get("nodaemon"):
            for description in (*settings.listen, *settings.peer_listen):
                _check_port(reactor, description)
        return TwistdFront(settings, reactor, twistd)
    except (SettingError, StoreError, StartError) as error:
        raise SystemExit(str(error)) from None


def _check_port(reactor: Any, description: str) -> None:
    """Before the process becomes a daemon: finds out whether a TCP port is in use, while there is a terminal to say so.

    Endpoints of other kinds are left to the daemon, whose errors twistd shows in its own way.
    """
    endpoint = serverFromString(reactor, description)
    port, interface = getattr(endpoint, "_port", None), getattr(endpoint, "_interface", None)
    if not isinstance(port, int) or not isinstance(interface, str) or port == 0:
        return
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((interface, port))
        except OSError as problem:
            raise _cannot_listen(description, problem) from None


def _cannot_listen(description: str, problem: object) -> StartError:
    return StartError(
        f"PORT, LISTEN: {description!r} cannot be listened on: {_one_line(problem)}; stop what uses it, or choose another"
    )


def _check_endpoint(reactor: Any, description: str) -> None:
    try:
        serverFromString(reactor, description)
    except Exception as problem:
        raise StartError(
            f"LISTEN: {description!r} is not an endpoint that can be used: {_one_line(problem)}; "
            "write tcp:8080, or ssl:8443:privateKey=key.pem:certKey=cert.pem"
        ) from None
