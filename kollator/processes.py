"""``--processes N``: fronts on the same ports, each a process of its own and a front of one cluster.

The process that ``twistd`` runs is their supervisor and serves nobody. It binds the endpoints of LISTEN, so that low
ports and port 0 work as ever, and hands the sockets down (``sockets``). The fronts are linked over loopback, as fronts
of different machines are.

The first front has the name, the database and the audit log of a single one, so that PROCESSES may be changed at any
time and nothing is lost; the others have ``.2``, ``.3``, … in theirs.

A front is told by lines on its standard input what to do. Signals would not do: a terminal or a service manager sends
them to every process at once, and a front that hears twice that it is to stop takes it for haste. Where the input
ends, the supervisor is dead, and so is the front, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from kollator.children import ChildProcess, Command
from kollator.demo import TWISTD, DemoWorker
from kollator.drain import StopSignals
from kollator.guard.keys import KeyFileError, read_key_file
from kollator.handed import FIRST_SOCKET, SOCKETS
from kollator.net.sockets import Shared, check_shareable, reserved_ports
from kollator.observe import logs
from kollator.reloading import Reloads
from kollator.settings import TABLE, SettingError, Settings
from kollator.starting import StartError
from kollator.state.store import Store

log = Logger("kollator:processes")

LINE_BYTES = 262_144
"""The longest line of a front's log that is understood: a message and a traceback, every character escaped."""
STOP_SLACK_S = 10.0
"""How long a front may take to stop, over DRAIN_TIMEOUT, before it is ended by force."""
LOOK_S = 0.02

_MEMORY = ":memory:"
_DEMO = ("demo-worker", "demo-folder")


# -- what each front is told -------------------------------------------------------------------------------------------


@frozen
class Plan:
    """What one of the fronts differs in: its options by their long names. Everything else is as the operator said."""

    node: str
    database: str
    options: Mapping[str, object]

    def arguments(self) -> list[str]:
        """The options as a command line."""
        words = []
        for row in TABLE:
            value = self.options.get(row.option) if row.option else None
            if row.flag:
                words += [f"--{row.option}"] if value else []
            elif value is not None:
                words += [f"--{row.option}={one}" for one in (value if isinstance(value, list) else [value])]
        return words


def plans(
    settings: Settings, options: Mapping[str, object], peer_ports: Sequence[int], key_file: str | None
) -> list[Plan]:
    """The fronts of ``settings``, linked by these ports of loopback, one for each.

    ``options`` are the operator's own. ``key_file`` has the key of the links, where the operator has given none.
    """
    numbers = range(1, len(peer_ports) + 1)
    nodes = [settings.node_id if number == 1 else f"{settings.node_id}.{number}" for number in numbers]
    everybody = list(zip(nodes, peer_ports, strict=True))
    found = []
    for number, node, port in zip(numbers, nodes, peer_ports, strict=True):
        database = settings.database if settings.database == _MEMORY else _numbered(settings.database, number)
        own: dict[str, object] = {
            "processes": "1",
            "node-id": node,
            "database": database,
            "audit-log": "" if settings.audit_log is None else _numbered(settings.audit_log, number),
            "peer-listen": [f"tcp:{port}:interface=127.0.0.1"],
            "peer": [f"{other}=tcp:127.0.0.1:{at}" for other, at in everybody if other != node],
            "log-format": "json",  # this process writes it as the operator wants it
        }
        if key_file is not None:
            own["cluster-key-file"] = key_file
        others = {name: value for name, value in options.items() if name not in _DEMO}
        found.append(Plan(node, database, others | own))
    return found


def _numbered(path: str, number: int) -> str:
    stem, ending = os.path.splitext(path)
    return path if number == 1 else f"{stem}.{number}{ending}"


def check(settings: Settings, options: Mapping[str, object], environ: Mapping[str, str], reactor: Any) -> None:
    """Whether so many fronts can be started. Raises ``StartError``, ``SettingError`` or ``StoreError``."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise StartError("PROCESSES: this system has no SO_REUSEPORT; leave PROCESSES at 1")
    if settings.peers:
        raise StartError(
            "PROCESSES: fronts of one machine that are started together cannot have PEERS on others; start that many "
            "fronts by hand, each with its own PORT, NODE_ID, PEER_LISTEN and PEERS, or leave PROCESSES at 1"
        )
    for description in settings.listen:
        check_shareable(reactor, description)
    # Any ports and any key will do to see whether the rest is right.
    environ = _environment(settings, environ) | ({} if settings.cluster_keys else {"CLUSTER_KEY": "k" * 32})
    for plan in plans(settings, options, [1] * settings.processes, None):
        try:
            Settings.load(plan.options, environ)
        except SettingError as problem:
            raise StartError(f"PROCESSES: {plan.node}: {problem}") from None
        Store.check(plan.database, extension=settings.crsqlite_path)


def _environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of every front: the operator's, without what is this process's own affair."""
    demo = {row.variable for row in TABLE if row.option in _DEMO}
    return {name: value for name, value in environ.items() if name not in demo} | {"PYTHONUNBUFFERED": "1"}


def cluster_key(settings: Settings) -> str | None:
    """The file with the key of the links, beside the database; made when there is none. None: it needs no file.

    It outlives restarts, since clients' tickets are signed with it. Raises ``StartError``.
    """
    if settings.cluster_keys or settings.database == _MEMORY:
        return None
    path = os.path.splitext(settings.database)[0] + ".cluster.key"
    try:
        with contextlib.suppress(FileExistsError), open(
            path, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)
        ) as file:
            file.write(os.urandom(32).hex() + "\n")
        read_key_file(path)
    except (OSError, KeyFileError) as problem:
        raise StartError(f"CLUSTER_KEY_FILE: {problem}; mend it, or name another file") from None
    return path


# -- the supervisor ----------------------------------------------------------------------------------------------------


class _Spawning:
    """The reactor for one child, which gets these file descriptors from ``FIRST_SOCKET`` on."""

    def __init__(self, reactor: Any, descriptors: Callable[[], Sequence[int]]) -> None:
        self._reactor = reactor
        self._descriptors = descriptors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def spawnProcess(self, protocol: Any, executable: str, args: Sequence[str], env: Mapping[str, str]) -> Any:
        """As the reactor's."""
        pipes: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        handed = dict(enumerate(self._descriptors(), FIRST_SOCKET))
        return self._reactor.spawnProcess(protocol, executable, args, env, childFDs=pipes | handed)


class FrontProcess(ChildProcess):
    """One of the fronts. Unless it was told to stop, it starts again when it ends.

    ``descriptors`` tells what to hand down to it, ``said`` takes the lines of its log, ``ended`` is called whenever it
    has ended.
    """

    def __init__(
        self,
        node: str,
        reactor: Any,
        command: Callable[[], Command],
        descriptors: Callable[[], Sequence[int]],
        said: Callable[[bytes], object],
        ended: Callable[[], object],
    ) -> None:
        super().__init__(
            f"front {node}", _Spawning(reactor, descriptors), lambda: None if self._told_to_stop else command(), log,
            said=said, line_bytes=LINE_BYTES, ended=ended,
        )
        self._told_to_stop = False

    def order(self, what: str) -> None:
        """Tells the front to ``stop``, to ``hurry`` with that, or to ``reload`` its files."""
        self._told_to_stop = self._told_to_stop or what == "stop"
        self.write(what.encode("ascii") + b"\n")

    def _again(self, reason: str) -> None:
        if not self._told_to_stop:
            super()._again(reason)


def relay(node: str, line: bytes) -> None:
    """Logs what a line of a front's log tells: the same event, with the front's name before it."""
    try:
        told = json.loads(line)
        level = LogLevel.lookupByName(told.pop("level"))
        event = {
            "log_time": datetime.fromisoformat(told.pop("time")).timestamp(),
            "log_level": level,
            "log_namespace": told.pop("namespace"),
            "log_format": f"{node}: {told.pop('message')}".replace("{", "{{").replace("}", "}}"),
        }
        failure = told.pop("failure", None)
    except (ValueError, KeyError, TypeError, AttributeError):  # it is no line of the log
        log.info("{node}: {line}", node=node, line=line.decode("utf-8", "replace"))
        return
    if failure is not None:
        event["log_failure"] = _Told(str(failure))
    globalLogPublisher({"node": node} | told | event)


class FrontError(Exception):
    """What went wrong in another process."""


class _Told(Failure):
    """The same as its log has it: a traceback that was text already."""

    def __init__(self, traceback: str) -> None:
        super().__init__(FrontError(traceback.rstrip().rpartition("\n")[2]))
        self._text = traceback

    def getTraceback(self, *args: Any, **kwargs: Any) -> str:
        """The text."""
        return self._text


class Debug(logs.DebugNamespaces):
    """The debug events that are written: the supervisor's own as ever, and every one that a front has told.

    Which those are, each front decides; an operator may change it while it runs.
    """

    relaying = False

    def enabled(self, namespace: str) -> bool:
        """Whether debug events of a namespace are written now."""
        return self.relaying or super().enabled(namespace)

    def relay(self, node: str, line: bytes) -> None:
        """Takes a line of a front's log into the log of this process."""
        self.relaying = True
        try:
            relay(node, line)
        finally:
            self.relaying = False


class Processes(MultiService):
    """The supervisor of ``settings.processes`` fronts. ``options`` and ``environ`` are what it was started with.

    ``privilegedStartService`` binds the endpoints. It and ``startService`` raise ``StartError``.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        options: Mapping[str, object],
        environ: Mapping[str, str],
        twistd_options: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.reactor = reactor
        self._debug = Debug(settings.debug)
        self.debug: logs.DebugNamespaces = self._debug
        self.fronts: list[FrontProcess] = []
        self.shared: list[Shared] = []
        self._options = dict(options)
        self._environ = dict(environ)
        self._twistd_options = twistd_options
        self._peers: list[socket.socket] = []
        reloads = Reloads(reactor)
        reloads.on_hangup(lambda: self._order("reload"))
        reloads.setServiceParent(self)
        StopSignals(reactor, self).setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Binds the endpoints of LISTEN, and the ports of the links."""
        count = self.settings.processes
        try:
            for description in self.settings.listen:
                self.shared.append(Shared(self.reactor, description, count))
            self._peers = reserved_ports(count)
        except BaseException:
            self._close()
            raise
        super().privilegedStartService()

    def startService(self) -> None:
        """Starts the fronts."""
        if not self.shared:  # nobody called privilegedStartService
            self.privilegedStartService()
        settings = self.settings
        try:
            key_file = cluster_key(settings)
        except StartError:
            self._close()
            raise
        environment = _environment(settings, self._environ) | {SOCKETS: str(len(self.shared))}
        if key_file is None and not settings.cluster_keys:
            environment["CLUSTER_KEY"] = os.urandom(32).hex()
        if settings.demo_worker:
            key = next(iter(settings.worker_keys), os.urandom(32).hex().encode("ascii"))
            if not settings.worker_keys:
                environment["WORKER_KEY"] = key.decode("ascii")  # known to nobody but the demo worker
            url = next((url for url in (shared.url() for shared in self.shared) if url), None)
            DemoWorker(self.reactor, lambda: url, key, settings.demo_folder).setServiceParent(self)
        ports = [one.getsockname()[1] for one in self._peers]
        for index, plan in enumerate(plans(settings, self._options, ports, key_file)):
            self._add(index, plan, environment)
        log.info("{count} fronts on {listen}", count=len(self.fronts), listen=" ".join(settings.listen))
        super().startService()

    def _add(self, index: int, plan: Plan, environment: Mapping[str, str]) -> None:
        arguments = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", *self._twistd_options, "kollator-front"]
        command = Command([*arguments, *plan.arguments()], environment)

        def ended() -> None:
            for shared in self.shared:
                shared.renew(index)

        def descriptors() -> list[int]:
            return [shared.fileno(index) for shared in self.shared]

        def said(line: bytes) -> None:
            self._debug.relay(plan.node, line)

        front = FrontProcess(plan.node, self.reactor, lambda: command, descriptors, said, ended)
        front.setServiceParent(self)
        self.fronts.append(front)

    def _order(self, what: str) -> None:
        for front in self.fronts:
            front.order(what)

    def hurry(self) -> None:
        """Has the fronts wait for nobody any more."""
        self._order("hurry")

    def stopService(self) -> Deferred[Any]:
        """Has the fronts stop, as each does; fires when they are gone."""
        log.info("{count} fronts are told to stop", count=len(self.fronts))
        self._order("stop")
        until = self.reactor.seconds() + self.settings.drain_timeout_s + STOP_SLACK_S

        def look() -> None:
            if not any(front.alive for front in self.fronts) or self.reactor.seconds() >= until:
                looking.stop()

        looking: Any = LoopingCall(look)
        looking.clock = self.reactor
        stopped: Deferred[Any] = looking.start(LOOK_S)
        stopped.addBoth(lambda _: maybeDeferred(MultiService.stopService, self))
        return stopped.addBoth(lambda _: self._close())

    def _close(self) -> Deferred[Any]:
        shared, self.shared = self.shared, []
        peers, self._peers = self._peers, []
        for one in peers:
            one.close()
        return DeferredList([maybeDeferred(one.close) for one in shared], consumeErrors=True)
