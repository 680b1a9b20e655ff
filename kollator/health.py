"""What a front does about the health of the workers it holds: pings, probes, deep checks, and the operator's list."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

import kollator
from kollator.deepcheck import DeepCheck
from kollator.observe.loops import Loop
from kollator.observe.metrics import Metrics, add
from kollator.pool.health import HealthBook
from kollator.pool.monitor import TURN_S, HealthMonitor
from kollator.pool.probes import ProbeBook
from kollator.pool.workersfile import HealthTarget
from kollator.probing import Prober, Probing
from kollator.registry import Registry
from kollator.settings import Settings
from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close
from kollator.signaling.protocol import SignalingFactory, SignalingProtocol
from kollator.state.rows import WorkerRow
from kollator.workerslist import WorkersList

log = Logger("kollator:pool")

T = TypeVar("T")


class WorkerHealth(MultiService):
    """Watches the workers that are connected to ``signaling`` and tells ``registry`` who is unwell, and who well again.

    ``own_url`` finds this front's signaling, for the deep check; ``draining`` says whether the front takes no clients
    now; ``loop_failed`` is called with the name of a periodic task whose round failed.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        *,
        registry: Registry,
        signaling: SignalingFactory,
        workers_list: WorkersList,
        metrics: Metrics,
        own_url: Callable[[], str | None],
        draining: Callable[[], bool],
        loop_failed: Callable[[str], object],
    ) -> None:
        super().__init__()
        self._registry = registry
        self._signaling = signaling
        self._switchboard = signaling.switchboard
        self._workers_list = workers_list
        self._draining = draining
        self._counters = counters = metrics.counters
        self._prober = Prober(reactor, kollator.__version__)
        self.monitor = HealthMonitor(
            HealthBook(settings.worker_health_timeout_s, settings.worker_health_interval_s),
            reactor,
            ping=self._ping,
            unwell=registry.worker_unwell,
            well=registry.worker_well,
            phase=random.random,
            answered=metrics.ponged,
        )
        Loop("health", self.monitor.turn, TURN_S, reactor, loop_failed).setServiceParent(self)
        self.probing = Probing(
            reactor,
            ProbeBook(settings.worker_health_interval_s, settings.worker_health_timeout_s),
            self._probe,
            target_of=self._health_target,
            unwell=lambda worker, said: registry.worker_unwell(worker, "probe", said),
            well=lambda worker: registry.worker_well(worker, "probe"),
            phase=random.random,
            failed=loop_failed,
        )
        self.probing.setServiceParent(self)
        self.deep_check = DeepCheck(
            settings.deep_health_interval_s,
            reactor,
            url=lambda: settings.deep_health_url or own_url(),
            workers=self._checkable,
            unwell=registry.worker_unwell,
            well=registry.worker_well,
            measured=metrics.deep_measured,
            checked=lambda outcome: add(counters.deep_checks, outcome),
            loop_failed=loop_failed,
        )
        self.deep_check.setServiceParent(self)
        signaling.pong = self._ponged
        workers_list.changed = self._relist

    def joined(self, worker: str) -> None:
        """The worker is connected to this front now, by its first connection or a newer one."""
        self.monitor.joined(worker)
        self.probing.joined(worker)
        self.deep_check.forget(worker)

    def left(self, worker: str, politely: bool) -> None:
        """The worker's connection is gone; ``politely`` when the worker itself closed it in order."""
        self.monitor.left(worker, politely)
        self.probing.left(worker)
        self.deep_check.forget(worker)

    def _ping(self, worker: str, number: int) -> None:
        connection = self._switchboard.workers.get(worker)
        if isinstance(connection, SignalingProtocol):
            connection.ping(b"%d" % number)

    def _ponged(self, connection: SignalingProtocol, payload: bytes) -> None:
        if connection.claim is not None and self._switchboard.workers.get(connection.id) is connection:
            self.monitor.ponged(connection.id, payload)

    def _probe(self, target: HealthTarget) -> Deferred[None]:
        def counted(result: T, outcome: str) -> T:
            add(self._counters.probes, outcome)
            return result

        return self._prober.probe(target).addCallbacks(counted, counted, ("ok",), errbackArgs=("failed",))

    def _health_target(self, worker: str) -> HealthTarget | None:
        address = next((row.address for row in self._registry.roster.rows(worker) if isinstance(row, WorkerRow)), "")
        entry = self._workers_list.of(worker, address)
        return entry.target if entry is not None else None

    def _checkable(self) -> Iterator[str]:
        """The workers of this front that would take a session now, and those that are out because they did not."""
        if self._draining():
            return
        roster = self._registry.roster
        for worker in roster.workers():
            attachment = roster.truth(worker)
            if attachment.state == "up" or attachment.why == "webrtc":
                yield worker

    def _relist(self) -> None:
        """The operator's list is another."""
        self._registry.relist()
        for connection in self._switchboard.connections():
            claim = connection.claim
            if (
                connection.stage in (Stage.JOINING, Stage.WORKER)
                and claim is not None
                and not self._workers_list.permits(claim.id, claim.address)
            ):
                log.warn("worker {worker} is not in WORKERS_FILE any more", worker=claim.id)
                self._signaling.end(connection, Close.NOT_ALLOWED, "not in the front's list of workers any more")
        self.probing.refresh()
