"""What a front tells a client of its worker, and what it remembers while the client is away."""

from __future__ import annotations

from typing import Any

from kollator.signaling.mailboxes import KEEP_S, MESSAGES
from kollator.signaling.messages import Close
from tests.switchboard_bench import BenchTestCase, Front, Wire, kinds


class AssignTests(BenchTestCase):
    """Which worker a client is told."""

    def test_assign(self) -> None:
        """Without it a client could not ask for another worker than its first."""
        self.bench.pool = ["w1", "w2"]
        client = self.bench.client()
        self.assertEqual(
            client.says(type="assign", exclude=["w1"], region="us-east", ref="r"),
            {"type": "assigned", "worker": {"id": "w2", "region": "us-west"}, "alternates": [], "ref": "r"},
        )
        self.assertEqual(client.assigned, "w2")
        client.says(type="assign", exclude=None, region=None, ref=None)
        self.assertEqual(
            client.sent[-1],
            {
                "type": "assigned",
                "worker": {"id": "w1", "region": "us-west"},
                "alternates": [{"id": "w2", "region": "us-west"}],
            },
        )
        self.assertEqual(
            self.bench.assigned, [("192.0.2.1", "us-east", ("w1",)), ("192.0.2.1", "us-east", ())]
        )

    def test_nobody_to_assign(self) -> None:
        """Without it a client would get an error where the answer is that there is none."""
        client = self.bench.client()
        self.assertEqual(client.says(type="assign"), {"type": "assigned", "worker": None, "alternates": []})
        self.assertEqual(client.assigned, "")

    def test_worker_lost(self) -> None:
        """Without it clients would go on offering to a worker that is gone."""
        worker = self.bench.worker("w1")
        self.bench.worker("w2")
        assigned, talked, neither = self.bench.client(), self.bench.client(), self.bench.client()
        assigned.says(type="assign", region="us-west")
        talked.says(type="bye", to="w1")
        neither.says(type="bye", to="w2")
        for client in (assigned, talked, neither):
            client.take()
        self.board.closed(worker, self.bench.now)
        told = {"type": "worker-lost", "worker": "w1", "assigned": {"id": "w2", "region": "us-west"}}
        self.assertEqual((assigned.take(), talked.take(), neither.take()), ([told], [told], []))
        self.assertEqual((assigned.assigned, talked.assigned, talked.talked), ("w2", "w2", ()))
        self.assertEqual(self.bench.assigned[-2:], [("192.0.2.1", "us-west", ("w1",)), ("192.0.2.1", None, ("w1",))])
        self.assertEqual(self.board.workers_lost(["w1"]), 0)

    def test_several_lost_at_once(self) -> None:
        """Without it a client could be sent from one lost worker to the next."""
        self.bench.pool = ["w1", "w2", "w3"]
        self.board.elsewhere = Front()
        client = self.bench.client()
        client.says(type="assign")
        for worker in ("w2", "w3"):
            client.says(type="bye", to=worker)
        client.take()
        self.assertEqual(self.board.workers_lost(["w1", "w2"]), 2)
        sent = client.take()
        self.assertEqual([message["worker"] for message in sent], ["w1", "w2"])
        self.assertEqual([message["assigned"]["id"] for message in sent], ["w3", "w3"])
        self.assertEqual((client.assigned, client.talked), ("w3", ("w3",)))

    def test_lost_without_a_replacement(self) -> None:
        """Without it the loss of the last worker would not be told, or its return not be noticed."""
        worker = self.bench.worker()
        client = self.bench.client()
        client.says(type="assign")
        client.take()
        self.board.closed(worker, self.bench.now)
        self.assertEqual(client.take(), [{"type": "worker-lost", "worker": "w1", "assigned": None}])
        self.assertEqual(client.assigned, "")

    def test_slow_clients_do_not_stop_the_others(self) -> None:
        """Without it one client that does not read would keep the news from the rest."""
        worker = self.bench.worker()
        clients = [self.bench.client() for _ in range(3)]
        for client in clients:
            client.says(type="assign")
            client.take()
        clients[0].slow = True
        self.board.closed(worker, self.bench.now)
        self.assertEqual([len(client.sent) for client in clients], [0, 1, 1])
        self.assertEqual(clients[0].code, Close.SLOW_CONSUMER)

    def test_told_on_return(self) -> None:
        """Without it a client whose worker went while it was away would not learn of it."""
        worker = self.bench.worker("w1")
        self.bench.worker("w2")
        client = self.bench.client()
        client.says(type="bye", to="w2")
        client.says(type="bye", to="w1")
        client.says(type="assign")
        ticket = client.sent[0]["ticket"]
        self.board.closed(client, self.bench.now)
        self.board.closed(worker, self.bench.now)
        back = self.bench.client(ticket)
        self.assertEqual(
            back.sent[1:],
            [{"type": "worker-lost", "worker": "w1", "assigned": {"id": "w2", "region": "us-west"}}],
        )
        self.assertEqual((back.assigned, back.talked), ("w2", ("w2",)))

    def test_ticket_of_a_lost_worker(self) -> None:
        """Without it a client with a bootstrap's ticket could wait for a worker that is gone by now."""
        self.bench.pool = ["w2"]
        ticket, _ = self.bench.tickets.issue("c1", self.bench.wall, "w1")
        self.assertEqual(kinds(self.bench.client(ticket).sent), ["welcome", "worker-lost"])


class ReturnTests(BenchTestCase):
    """A client whose connection dropped."""

    def setUp(self) -> None:
        """A client that talked to a worker."""
        super().setUp()
        self.worker = self.bench.worker()
        self.client = self.bench.client()
        self.ticket = self.client.sent[0]["ticket"]
        self.client.says(type="assign", region="us-west")
        self.client.says(type="bye", to="w1")
        self.worker.take()

    def answers(self, sdp: str) -> dict[str, Any]:
        """What the worker gets for sending an answer to the client."""
        return self.worker.says(type="answer", to=self.client.id, sdp=sdp)

    def test_messages_wait(self) -> None:
        """Without it an answer would be lost to a client that changes networks."""
        self.board.closed(self.client, self.bench.now)
        self.bench.now += KEEP_S - 1
        for sdp in ("v=0 a", "v=0 b", "v=0 c"):
            self.assertEqual(self.answers(sdp), {})
        back = self.bench.client(self.ticket)
        self.assertEqual(back.sent[0]["type"], "welcome")
        self.assertEqual([message["sdp"] for message in back.sent[1:]], ["v=0 a", "v=0 b", "v=0 c"])
        self.assertEqual(self.bench.counters.messages_kept, 3)
        self.assertEqual(self.bench.counters.clients_returned, 1)
        self.assertEqual((back.assigned, back.talked, back.region), ("w1", ("w1",), "us-west"))
        self.assertEqual(len(self.board.mailboxes), 0)

    def test_for_thirty_seconds(self) -> None:
        """Without it a worker would not learn that a client is gone."""
        self.board.closed(self.client, self.bench.now)
        self.bench.now += KEEP_S
        self.assertError(self.answers("v=0"), "unknown-target", to=self.client.id)
        self.assertEqual(kinds(self.bench.client(self.ticket).sent), ["welcome"])

    def test_so_many(self) -> None:
        """Without it the worker would think that all its candidates were delivered."""
        self.board.closed(self.client, self.bench.now)
        for _ in range(MESSAGES):
            self.assertEqual(self.answers("v=0"), {})
        self.assertError(self.answers("v=0"), "target-busy", to=self.client.id)

    def test_only_with_the_ticket(self) -> None:
        """Without it somebody else would get the messages."""
        self.board.closed(self.client, self.bench.now)
        self.answers("v=0")
        stranger = self.bench.client()
        self.assertEqual(kinds(stranger.sent), ["welcome"])
        self.assertNotEqual(stranger.id, self.client.id)

    def test_older_connection_is_replaced(self) -> None:
        """Without it a client whose old connection looks open could not come back, or would lose its story."""
        back = self.bench.client(self.ticket)
        self.assertEqual((self.client.code, back.code, back.id), (Close.REPLACED, None, self.client.id))
        self.assertEqual((back.assigned, back.talked, back.region), ("w1", ("w1",), "us-west"))
        self.board.closed(self.client, self.bench.now)
        self.assertIs(self.board.clients[back.id], back)
        self.assertEqual(len(self.board.mailboxes), 0)
        self.answers("v=0")
        self.assertEqual((back.sent[-1]["type"], self.client.late), ("answer", []))
        self.assertEqual(self.client.says(type="bye", to="w1"), {})
        self.assertEqual(self.worker.take(), [])

    def test_cut_off_while_it_is_told(self) -> None:
        """Without it messages would be lost for a client that is slow to read them."""
        self.board.closed(self.client, self.bench.now)
        for number in range(4):
            self.answers(f"v=0 {number}")
        slow = Wire(self.bench)
        send = slow.send

        def send_two(payload: bytes) -> bool:
            slow.slow = len(slow.sent) == 2
            return send(payload)

        slow.send = send_two  # type: ignore[method-assign]
        slow.says(type="hello", role="client", ticket=self.ticket)
        self.assertEqual((kinds(slow.sent), slow.code), (["welcome", "answer"], Close.SLOW_CONSUMER))
        back = self.bench.client(self.ticket)
        self.assertEqual([message["sdp"] for message in back.sent[1:]], ["v=0 1", "v=0 2", "v=0 3"])
