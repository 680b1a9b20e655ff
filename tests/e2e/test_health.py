"""Workers that fall silent, break off and come back, seen by every front of a cluster and told to every client.

How long it takes is logged and left to ``tests.bench.health``: a slow machine is not to fail these.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.cluster import Cluster, ClusterTestCase, Scheme, until
from tests.e2e.contract_client import Client, Message, RawWebSocket, ask, worker_mac
from tests.e2e.processes import WORKER_KEY, Front
from tests.e2e.reference import ReferenceWorker

HEALTH = {"WORKER_HEALTH_TIMEOUT": "1000", "WORKER_HEALTH_INTERVAL": "1000"}
NOTICE_LIMIT_S = 30.0
"""Some ten times what fronts take to notice, on a machine that does nothing else."""
MANY = 150
"""More clients than are told at once, and fewer than need a second for it."""

log = Logger("tests:health")


def metric(port: int, name: str) -> float:
    """A number of a front's metrics."""
    match = re.search(rf"^{re.escape(name)} (\S+)$", ask(port, "GET", "/metrics").body.decode(), re.MULTILINE)
    assert match is not None, name
    return float(match[1])


def next_lost(client: Client) -> Message:
    """The next ``worker-lost`` of a client; what workers say to it before is passed by."""
    while (message := client.receive())["type"] != "worker-lost":
        assert message["type"] in ("answer", "candidate", "bye"), message
    return message


class HealthTests(ClusterTestCase):
    """A cluster of three with the usual time-outs; the workers that fail are connected to front ``a``."""

    names: ClassVar[Sequence[str]] = ("a", "b", "c")
    scheme: ClassVar[Scheme] = "tcp"

    def setUp(self) -> None:
        if self._share.cluster is None:
            self._share.cluster = Cluster(self.names, self.scheme, HEALTH)
            self._share.cluster.start()
        super().setUp()

    def reference(self, worker: str, *fronts: str) -> ReferenceWorker:
        """A reference worker at these fronts, known to all."""
        reference = ReferenceWorker(worker, [self.cluster.ports[name] for name in fronts])
        self.addCleanup(reference.kill)
        until(lambda: all(sorted(self.cluster.worker(name, worker).get("fronts", ())) == sorted(fronts)
                          for name in self.names), lambda: f"{reference.log}\n{self.cluster.told()}")
        return reference

    def until_seen(self, worker: str, state: str, why: str, fronts: Sequence[str] = ()) -> float:
        """Waits until every front shows a worker like that; the seconds that took."""
        wanted = {"state": state, "why": why, "fronts": list(fronts)}

        def seen() -> bool:
            rows = [self.cluster.worker(name, worker) for name in self.names]
            return all({key: row[key] for key in wanted} == wanted for row in rows)

        return until(seen, lambda: f"{worker} {wanted} everywhere\n{self.cluster.told()}", NOTICE_LIMIT_S)

    def assigned_client(self, front: str, worker: str) -> Client:
        """A client that was assigned to a worker."""
        client = self.client(front)
        self.assertEqual(client.ask(type="assign")["worker"]["id"], worker)
        return client

    def lost_to(self, cause: str) -> float:
        """How many workers front ``a`` has lost for that reason."""
        return metric(self.cluster.ports["a"], f'kollator_workers_lost_total{{cause="{cause}"}}')

    def test_silent(self) -> None:
        """A worker that hangs with its connection open would go on being given clients, who would wait for nothing."""
        victim = self.reference(self.w1, "a")
        assigned = [self.assigned_client(name, self.w1) for name in self.names]
        other = self.reference(self.w2, "b")
        talking = [self.client(name) for name in self.names]
        for client in talking:
            client.send(type="bye", to=self.w1, session="s1")
            client.synchronise()
        before = self.lost_to("ping"), self.lost_to("closed")
        victim.signal(signal.SIGSTOP)
        took_s = self.until_seen(self.w1, "down", "ping")
        log.info("stopped, and seen by all fronts after {took_s:.2f} s", took_s=took_s)
        self.assertEqual(self.cluster.health("a")["connections"]["worker"], 1, "its connection is open")
        self.assertEqual((self.lost_to("ping"), self.lost_to("closed")), (before[0] + 1, before[1]))
        self.assertEqual({self.cluster.assigned(name) for name in self.names}, {self.w2})
        for client in (*assigned, *talking):
            self.assertEqual(
                next_lost(client),
                {"type": "worker-lost", "worker": self.w1, "assigned": {"id": self.w2, "region": ""}})
        began_s = time.monotonic()
        victim.signal(signal.SIGCONT)
        self.until_seen(self.w1, "up", "", ["a"])
        took_s = time.monotonic() - began_s
        log.info("continued, and used by all fronts after {took_s:.2f} s", took_s=took_s)
        self.assertGreater(took_s, 0.9, "it is held down for a second")
        self.assertIn(f"worker {self.w1} is not well (hold-down)", self.cluster.fronts["a"].log)
        self.assertEqual(len({self.cluster.health(name)["ring"]["digest"] for name in self.names}), 1)
        for client in (*assigned, *talking):
            client.synchronise()  # nothing more was told
        victim.end()
        other.end()

    def test_many_clients(self) -> None:
        """Clients of a lost worker would be forgotten when they are many, or fall upon the next one all at once."""
        victim = self.reference(self.w1, "a")
        clients = [self.assigned_client("b", self.w1) for _ in range(MANY)]
        clients += [self.assigned_client(name, self.w1) for name in ("a", "c")]
        other = self.reference(self.w2, "c")
        told_before = metric(self.cluster.ports["b"], "kollator_worker_lost_told_total")
        victim.signal(signal.SIGSTOP)
        with ThreadPoolExecutor(len(clients)) as reading:
            lost = list(reading.map(lambda client: (next_lost(client), time.monotonic()), clients))
        told_at = sorted(at for _, at in lost[:MANY])
        log.info("{count} clients read it within {took_s:.3f} s", count=MANY, took_s=told_at[-1] - told_at[0])
        for message, _ in lost:
            self.assertEqual(
                message, {"type": "worker-lost", "worker": self.w1, "assigned": {"id": self.w2, "region": ""}})
        told = metric(self.cluster.ports["b"], "kollator_worker_lost_told_total")
        self.assertEqual(told - told_before, MANY)
        victim.end()
        other.end()

    def test_killed(self) -> None:
        """The system says at once that a process has died: to wait for a ping would lose clients for a second more."""
        victim = self.reference(self.w1, "a")
        client = self.assigned_client("c", self.w1)
        before = self.lost_to("ping"), self.lost_to("closed")
        victim.kill()
        took_s = self.until_seen(self.w1, "down", "")
        log.info("killed, and seen by all fronts after {took_s:.2f} s", took_s=took_s)
        self.assertEqual((self.lost_to("ping"), self.lost_to("closed")), (before[0], before[1] + 1))
        self.assertEqual(next_lost(client), {"type": "worker-lost", "worker": self.w1, "assigned": None})

    def test_held_by_two(self) -> None:
        """A worker with a dead connection to one front would be out everywhere, though another front reaches it."""
        mute = self.mute(self.w1)
        worker = self.worker("b", self.w1)
        client = self.assigned_client("c", self.w1)
        until(lambda: f"worker {self.w1} is not well (ping)" in self.cluster.fronts["a"].log, self.cluster.told)
        self.until_seen(self.w1, "up", "", ["b"])
        self.assertEqual(self.cluster.health("a")["connections"]["worker"], 1)
        for one in (client, self.client("a")):
            self.assert_signaling(one, worker)
        worker.close()
        self.until_seen(self.w1, "down", "ping")
        self.assertEqual(next_lost(client), {"type": "worker-lost", "worker": self.w1, "assigned": None})
        mute.close()
        self.until_seen(self.w1, "down", "")

    def mute(self, worker: str) -> RawWebSocket:
        """A worker at front ``a`` that answers no ping."""
        mute = RawWebSocket(self.cluster.ports["a"])
        self.addCleanup(mute.close)
        nonce = "0" * 32
        mute.send(type="hello", role="worker", id=worker, region="", capacity=100, address="", nonce=nonce)
        mac = worker_mac(WORKER_KEY, worker, "", 100, nonce, mute.receive()["nonce"])
        mute.send(type="auth", mac=mac)
        self.assertEqual(mute.receive()["type"], "welcome")
        return mute


class PanicTests(SynchronousTestCase):
    """A front that is told to mistrust its own judgement when it finds most of its workers ill."""

    def test_most_of_them_silent(self) -> None:
        """The few workers that answer would get all clients, and fall silent too."""
        front = Front({**HEALTH, "PANIC_THRESHOLD": "50"}).ready()
        self.addCleanup(front.kill)
        workers = [ReferenceWorker(f"w{number}", [front.port]) for number in (1, 2, 3)]
        for worker in workers:
            self.addCleanup(worker.kill)

        def states() -> list[tuple[str, str]]:
            return [(row["state"], row["why"]) for row in ask(front.port, "GET", "/workers").json()["workers"]]

        def until_states(wanted: list[tuple[str, str]]) -> None:
            until(lambda: states() == wanted, lambda: f"{wanted}, not {states()}\n{front.log}")

        until_states([("up", "")] * 3)
        workers[0].signal(signal.SIGSTOP)
        until_states([("down", "ping"), ("up", ""), ("up", "")])
        self.assertEqual(metric(front.port, "kollator_panic"), 0)
        workers[1].signal(signal.SIGSTOP)
        until_states([("up", "ping"), ("up", "ping"), ("up", "")])
        self.assertEqual(metric(front.port, "kollator_panic"), 1)
        used = {ask(front.port, "GET", f"/workers/assign?ip=203.0.{number}.1").json()["worker"]
                for number in range(100)}
        self.assertEqual(used, {"w1", "w2", "w3"})
        for worker in workers[:2]:
            worker.signal(signal.SIGCONT)
        until_states([("up", "")] * 3)
        self.assertEqual(metric(front.port, "kollator_panic"), 0)
        for worker in workers:
            worker.end()
        front.stop()
