"""Clusters of real fronts: signaling across them, and what becomes of it when fronts and links die and come back."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.cluster import LIMIT_S, Cluster, ClusterTestCase, Scheme, until, write_certificate
from tests.e2e.contract_client import Client, ask
from tests.e2e.processes import new_folder


class AcrossFrontsTests(ClusterTestCase):
    """A cluster in which nothing fails."""

    def test_worker_elsewhere(self) -> None:
        """A browser must be able to use a worker that is connected to another front than its own."""
        worker = self.worker("b", self.w1)
        self.cluster.until_state(self.w1, "up")
        for name in self.names:
            self.assertEqual(self.cluster.worker(name, self.w1)["fronts"], ["b"])
            self.assertEqual(self.cluster.assigned(name), self.w1)
        self.assertEqual(len({self.cluster.health(name)["ring"]["digest"] for name in self.names}), 1)
        granted = json.loads(ask(self.cluster.ports["a"], "POST", "/bootstrap").body)
        self.assertEqual(granted["worker"]["id"], self.w1)
        client = self.client("a", granted["ticket"])
        self.assertEqual(client.id, granted["client"])
        self.assert_signaling(client, worker)
        client.send(type="bye", to=self.w1, session="s1", reason="done")
        worker.expect("bye", **{"from": client.id, "session": "s1", "reason": "done"})

    def test_unknown_target(self) -> None:
        """Who talks to nobody must hear of it at once, before anything else, or a browser waits for a time-out."""
        worker, client = self.worker("b", self.w1), self.client("a")
        for sender, message in ((client, "offer"), (worker, "answer")):
            sender.send(type=message, to="nobody", sdp="v=0", ref="r1")
            sender.send(type="nonsense", ref="r2")
            sender.expect("error", code="unknown-target", ref="r1", to="nobody")
            sender.expect("error", code="unknown-type", ref="r2")

    def test_worker_lost(self) -> None:
        """A client at one front must hear that its worker has left another one, and whom to take instead."""
        worker = self.worker("b", self.w1)
        self.worker("c", self.w2)
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        client = self.client("a")
        self.assert_signaling(client, worker)
        worker.abort()
        client.expect("worker-lost", worker=self.w1, assigned={"id": self.w2, "region": ""})
        self.cluster.until_state(self.w1, "down")

    def test_client_moves(self) -> None:
        """A browser that comes back to another front must not lose its id, nor what was sent to it meanwhile."""
        worker = self.worker("c", self.w1)
        self.cluster.until_state(self.w1, "up")
        first = self.client("a")
        self.assert_signaling(first, worker)
        second = self.client("b", first.ticket)
        self.assertEqual(second.id, first.id)
        self.assertEqual(first.close_code(), 4409)
        self.assert_signaling(second, worker)
        self._dropped("b", second)
        kept = self._kept("b")
        worker.send(type="answer", to=second.id, sdp="v=0\r\ns=kept")
        until(lambda: self._kept("b") == kept + 1, self.cluster.told)
        third = self.client("a", second.ticket)
        self.assertEqual(third.id, first.id)
        third.expect("answer", **{"from": self.w1, "sdp": "v=0\r\ns=kept"})
        self.assert_signaling(third, worker)

    def _kept(self, name: str) -> float:
        lines = ask(self.cluster.ports[name], "GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("kollator_messages_kept_total"))

    def _dropped(self, name: str, client: Client) -> None:
        client.abort()
        until(lambda: self.cluster.health(name)["connections"]["client"] == 0, self.cluster.told)


class FailureTests(ClusterTestCase):
    """A cluster that loses fronts and links."""

    def test_leader_killed(self) -> None:
        """The death of a front, the leader included, must be survived without a human, and its return as well."""
        dead, (heir, third) = self.leader, self.others(self.leader)
        worker, other = self.worker(dead, self.w1), self.worker(heir, self.w2)
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        clients = [self.client(heir), self.client(third)]
        for client in clients:
            self.assert_signaling(client, worker)
        self.cluster.kill(dead)
        self.assertIn(self.cluster.leader(), (heir, third))
        self.cluster.until_state(self.w1, "down")
        for client in clients:
            lost = client.receive(LIMIT_S)
            self.assertEqual(
                lost, {"type": "worker-lost", "worker": self.w1, "assigned": {"id": self.w2, "region": ""}})
            client.send(type="offer", to=self.w1, sdp="v=0", ref="r1")
            client.expect("error", code="unknown-target", ref="r1", to=self.w1)
            self.assert_signaling(client, other)
        self.cluster.start(dead)
        self.cluster.whole()
        worker = self.worker(dead, self.w1)
        self.cluster.until_state(self.w1, "up")
        for client in (*clients, self.client(dead)):
            self.assert_signaling(client, worker)
            self.assert_signaling(client, other)

    def test_worker_at_two_fronts(self) -> None:
        """A worker with two connections must outlive either front, untold to clients, and a front its lost disk."""
        first, second, clients_front = self.leader, *self.others(self.leader)
        self.worker(first, self.w1)
        worker = self.worker(second, self.w1)
        until(lambda: all(len(self.cluster.worker(name, self.w1).get("fronts", ())) == 2 for name in self.names),
              self.cluster.told)
        client = self.client(clients_front)
        self.cluster.kill(first)
        until(lambda: all(self.cluster.worker(name, self.w1)["fronts"] == [second] for name in self.cluster.fronts),
              self.cluster.told)
        self.assert_signaling(client, worker)
        self.cluster.wipe(first)
        self.cluster.start(first)
        self.cluster.whole()
        self.cluster.until_state(self.w1, "up")
        self.assertEqual(self.cluster.worker(first, self.w1)["fronts"], [second])
        self.assert_signaling(self.client(first), worker)
        self.assert_signaling(client, worker)

    def test_leader_stopped(self) -> None:
        """A front that stands still and goes on must neither lead a second time nor lose its workers for good."""
        frozen, (heir, third) = self.leader, self.others(self.leader)
        worker, other = self.worker(frozen, self.w1), self.worker(heir, self.w2)
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        client = self.client(third)
        self.assert_signaling(client, worker)
        self.cluster.fronts[frozen].signal(signal.SIGSTOP)
        self.addCleanup(lambda: self.cluster.fronts[frozen].signal(signal.SIGCONT))
        self.assertIn(self.cluster.leader(heir, third), (heir, third))
        self.cluster.until_state(self.w1, "down", heir, third)
        lost = client.receive(LIMIT_S)
        self.assertEqual(lost, {"type": "worker-lost", "worker": self.w1, "assigned": {"id": self.w2, "region": ""}})
        self.assert_signaling(client, other)
        self.cluster.fronts[frozen].signal(signal.SIGCONT)
        self.cluster.whole()
        self.cluster.until_state(self.w1, "up")
        self.assert_signaling(client, worker)
        self.assert_signaling(self.client(frozen), other)

    def test_front_cut_off(self) -> None:
        """A front that a network hides must go on serving what it has, and be taken back with what it did."""
        proxies = self.cluster.proxies
        assert proxies is not None
        alone, (near, far) = self.leader, self.others(self.leader)
        worker, client = self.worker(alone, self.w1), self.client(alone)
        self.cluster.until_state(self.w1, "up")
        proxies.silence(alone)
        self.addCleanup(proxies.heal)
        self.assertIn(self.cluster.leader(near, far), (near, far))
        self.cluster.until_state(self.w1, "down", near, far)
        until(lambda: self.cluster.health(alone)["role"] != "leader", self.cluster.told)
        self.assert_signaling(client, worker)
        other = self.worker(near, self.w2)
        self.cluster.until_state(self.w2, "up", near, far)
        self.assertEqual(self.cluster.worker(alone, self.w2), {})
        proxies.heal()
        self.cluster.whole()
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        self.assert_signaling(client, worker)
        self.assert_signaling(client, other)
        self.assert_signaling(self.client(far), worker)

    def test_one_link_cut(self) -> None:
        """Two fronts that cannot reach each other must still serve each other's workers by way of the third."""
        proxies = self.cluster.proxies
        assert proxies is not None
        one, (other, _) = self.leader, self.others(self.leader)
        worker = self.worker(one, self.w1)
        self.cluster.until_state(self.w1, "up")
        proxies.cut(one, other)
        self.addCleanup(proxies.heal)
        until(lambda: {"node": one, "state": "unreachable"}.items() <= self._seen(other, one).items()
              and {"node": other, "state": "unreachable"}.items() <= self._seen(one, other).items(), self.cluster.told)
        client = self.client(other)
        self.assert_signaling(client, worker)
        second = self.worker(other, self.w2)
        self.cluster.until_state(self.w2, "up")
        self.assert_signaling(self.client(one), second)
        proxies.heal()
        self.cluster.whole()
        self.assert_signaling(client, worker)

    def test_worker_speaks_first_after_a_cut(self) -> None:
        """A link that was away for a moment must not leave workers unable to reach clients that never went away."""
        proxies = self.cluster.proxies
        assert proxies is not None
        worker, client = self.worker("c", self.w1), self.client("a")
        self.cluster.until_state(self.w1, "up")
        self.assert_signaling(client, worker)
        proxies.cut("a", "c")
        self.addCleanup(proxies.heal)
        until(lambda: self._seen("c", "a")["state"] == "unreachable", self.cluster.told)
        proxies.heal()
        self.cluster.whole()
        worker.send(type="answer", to=client.id, sdp="v=0\r\ns=again")
        client.expect("answer", **{"from": self.w1, "sdp": "v=0\r\ns=again"})

    def test_client_leaves_a_hidden_front(self) -> None:
        """A client that flees a front which nobody reaches must be replaced there later, or it loses its messages."""
        proxies = self.cluster.proxies
        assert proxies is not None
        hidden, refuge = "a", "b"
        worker, client = self.worker(hidden, self.w1), self.client(hidden)
        self.cluster.until_state(self.w1, "up")
        self.assert_signaling(client, worker)
        proxies.silence(hidden)
        self.addCleanup(proxies.heal)
        until(lambda: self._seen(refuge, hidden)["state"] in ("unreachable", "retired"), self.cluster.told)
        moved = self.client(refuge, client.ticket)
        self.assertEqual(moved.id, client.id)
        proxies.heal()
        self.cluster.whole()
        self.cluster.until_state(self.w1, "up")
        self.assertEqual(client.close_code(), 4409)
        worker.send(type="answer", to=client.id, sdp="v=0\r\ns=after all")
        got = moved.receive()
        if got["type"] == "worker-lost":  # to its new front the worker may have been gone until now
            got = moved.receive()
        self.assertEqual(got, {"type": "answer", "from": self.w1, "sdp": "v=0\r\ns=after all"})

    def _seen(self, by: str, name: str) -> dict[str, object]:
        return next(entry for entry in self.cluster.health(by)["cluster"] if entry["node"] == name)


class WorkerSyncLinkTests(ClusterTestCase):
    """Two fronts that are linked over their public port."""

    names: ClassVar[Sequence[str]] = "ab"
    scheme: ClassVar[Scheme] = "worker-sync"

    def test_links(self) -> None:
        """Where only HTTP gets through, fronts must be linked by ``/worker-sync``, in both directions."""
        self.assert_linked_both_ways()

    def test_return(self) -> None:
        """A front that was killed must be linked again, and of two fronts the other one must lead meanwhile."""
        dead, (heir,) = self.leader, self.others(self.leader)
        self.cluster.kill(dead)
        self.assertEqual(self.cluster.leader(), heir)
        worker = self.worker(heir, self.w1)
        self.cluster.start(dead)
        self.cluster.whole()
        self.cluster.until_state(self.w1, "up")
        self.assert_signaling(self.client(dead), worker)


class TLSLinkTests(ClusterTestCase):
    """Two fronts that are linked by TLS, each of which checks the other's certificate."""

    names: ClassVar[Sequence[str]] = "ab"
    scheme: ClassVar[Scheme] = "tls"

    def test_links(self) -> None:
        """Between data centres links must be encrypted: ``ssl:`` to listen, ``tls:`` to dial."""
        self.assert_linked_both_ways()


class TLSStrangerTests(SynchronousTestCase):
    """Two fronts that do not trust each other's certificates."""

    def test_foreign_certificate(self) -> None:
        """A front must not take for its peer who cannot show a certificate that it trusts, and must say so."""
        cluster = Cluster("ab", "tls")
        self.addCleanup(cluster.stop)
        cluster.start("a")
        cluster.certificate = write_certificate(new_folder())
        cluster.start("b")
        for name, other in ("ab", "ba"):
            cluster.until_logged(name, f"{other} cannot be linked at tls:")
            cluster.until_logged(name, "certificate verify failed")
            states = {entry["node"]: entry["state"] for entry in cluster.health(name)["cluster"]}
            self.assertEqual(states[other], "unreachable")
            self.assertNotIn(f"linked to {other}", cluster.fronts[name].log)
