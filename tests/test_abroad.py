"""This front's connections as other fronts use them."""

from __future__ import annotations

from kollator.signaling.messages import ByeFrom, Close, encode
from tests.switchboard_bench import BenchTestCase, Front, kinds

PAYLOAD = encode(ByeFrom("w1", "s1"))


class AbroadTests(BenchTestCase):
    """What the exchange does with clients and workers that are connected here."""

    def setUp(self) -> None:
        """Make a bench with another front."""
        super().setUp()
        self.other = self.board.elsewhere = Front()
        self.abroad = self.board.abroad

    def test_deliver_to_worker(self) -> None:
        """Without it a client of another front could not reach a worker that is here."""
        worker = self.bench.worker("w1")
        self.assertEqual(self.abroad.deliver_to_worker("w1", PAYLOAD), "sent")
        self.assertEqual(kinds(worker.take()), ["bye"])
        self.assertEqual(self.abroad.deliver_to_worker("w2", PAYLOAD), "unknown")
        worker.slow = True
        self.assertEqual(self.abroad.deliver_to_worker("w1", PAYLOAD), "busy")

    def test_no_text(self) -> None:
        """Without it a broken front could bring a bystander to close its connection (1007)."""
        worker, client = self.bench.worker("w1"), self.bench.client()
        worker.take(), client.take()
        self.assertEqual(self.abroad.deliver_to_worker("w1", b"\xff"), "unknown")
        self.assertEqual(self.abroad.deliver_to_client(client.id, b"\xff", 0.0), "unknown")
        self.assertEqual((worker.take(), client.take()), ([], []))

    def test_undelivered(self) -> None:
        """Without it the sender would wait for an answer that cannot come."""
        client = self.bench.client()
        client.take()
        self.assertTrue(self.abroad.undelivered(client.id, "w9", "unknown", "r1"))
        self.assertError(client.take()[0], "unknown-target", ref="r1", to="w9")
        self.assertTrue(self.abroad.undelivered(client.id, "w9", "busy", None))
        self.assertError(client.take()[0], "target-busy", to="w9")
        self.assertFalse(self.abroad.undelivered("nobody", "w9", "unknown", None))

    def test_ref_goes_along(self) -> None:
        """Without it a refusal from another front could not be matched with its message."""
        asked: list[str | None] = []

        def to_worker(worker: str, client: str, payload: bytes, ref: str | None) -> str:
            asked.append(ref)
            return "sent"

        self.other.to_worker = to_worker  # type: ignore[method-assign]
        client = self.bench.client()
        client.says(type="bye", to="w9", ref="r1")
        client.says(type="bye", to="w9")
        self.assertEqual(asked, ["r1", None])

    def test_arrival_is_told(self) -> None:
        """Without it another front would keep an older connection and the messages that wait there."""
        fresh = self.bench.client()
        self.assertEqual(self.other.arrivals, [])
        ticket = fresh.sent[0]["ticket"]
        self.bench.client(ticket)
        self.assertEqual(self.other.arrivals, [(fresh.id, int(self.bench.wall * 1000))])

    def test_moved_away(self) -> None:
        """Without it two connections of one client would live on at two fronts."""
        client = self.bench.client()
        client.assigned = "w1"
        at_ms = int(self.bench.wall * 1000)
        self.assertEqual(self.abroad.moved_away(client.id, at_ms, "signaling-2", self.bench.now), ("w1", (), []))
        self.assertEqual(client.code, Close.REPLACED)
        self.assertNotIn(client.id, self.board.clients)
        self.assertIsNone(self.abroad.moved_away(client.id, at_ms, "signaling-2", self.bench.now))

    def test_newer_connection_stays(self) -> None:
        """Without it a late notice would close the connection that the client has now."""
        client = self.bench.client(self.bench.client().sent[0]["ticket"])
        for at_ms, front in ((client.since_ms - 1, "signaling-2"), (client.since_ms, "signaling-0")):
            self.assertIsNone(self.abroad.moved_away(client.id, at_ms, front, self.bench.now))
        self.assertIsNone(client.code)
        self.assertIsNotNone(
            self.abroad.moved_away(client.id, client.since_ms, "signaling-2", self.bench.now),
            "at the same time the higher id has the newer one",
        )

    def test_kept_messages_move(self) -> None:
        """Without it what came while the client changed fronts would be lost."""
        client = self.bench.client()
        self.board.closed(client, self.bench.now)
        self.assertEqual(self.abroad.deliver_to_client(client.id, PAYLOAD, self.bench.now), "sent")
        at_ms = int(self.bench.wall * 1000)
        remembered = self.abroad.moved_away(client.id, at_ms, "signaling-2", self.bench.now + 1)
        self.assertEqual(remembered, ("", (), [PAYLOAD]))
        self.assertNotIn(client.id, self.board.mailboxes)

    def test_inherited(self) -> None:
        """Without it a client would arrive here without its messages, and miss that its worker is gone."""
        client = self.bench.client()
        client.take()
        self.abroad.inherited(client.id, "w1", ["w1"], [PAYLOAD], self.bench.now)
        self.assertEqual(kinds(client.take()), ["bye", "worker-lost"])
        self.board.closed(client, self.bench.now)
        self.abroad.inherited(client.id, "w1", [], [PAYLOAD], self.bench.now)
        again = self.bench.client(self.bench.tickets.issue(client.id, self.bench.wall)[0])
        self.assertEqual(kinds(again.sent), ["welcome", "bye"])
        self.abroad.inherited("nobody", "w1", [], [PAYLOAD], self.bench.now)
