"""What is remembered of dropped clients, for how long, and how much of it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling import mailboxes as module
from kollator.signaling.connection import Connection
from kollator.signaling.mailboxes import BYTES, KEEP_S, MESSAGES, Mailboxes


class MailboxesTests(SynchronousTestCase):
    """Clients that left at chosen times."""

    def setUp(self) -> None:
        """Make empty mailboxes."""
        self.boxes = Mailboxes()

    def leave(self, client: str, now: float) -> None:
        """Let a client drop that has no story."""
        self.boxes.left(client, Connection(), now)

    def test_kept_in_order(self) -> None:
        """Without it a client would get its candidates before the answer they belong to."""
        self.leave("c1", 100.0)
        for payload in (b"one", b"two", b"three"):
            self.assertEqual(self.boxes.keep("c1", payload, 101.0), "kept")
        absent = self.boxes.returned("c1", 102.0)
        assert absent is not None
        self.assertEqual(absent.messages, [b"one", b"two", b"three"])
        self.assertEqual((len(self.boxes), self.boxes.bytes), (0, 0))
        self.assertIsNone(self.boxes.returned("c1", 102.0))

    def test_story(self) -> None:
        """Without it a client that comes back would not be told of the loss of a worker it talks to."""
        connection = Connection()
        connection.assigned, connection.talked, connection.region = "w1", ("w2", "w1"), "us-west"
        self.boxes.left("c1", connection, 0.0)
        absent = self.boxes.returned("c1", 1.0)
        assert absent is not None
        self.assertEqual((absent.assigned, absent.talked, absent.region), ("w1", ("w2", "w1"), "us-west"))

    def test_only_for_who_left(self) -> None:
        """Without it messages to ids that never were would be kept."""
        self.assertEqual(self.boxes.keep("c1", b"x", 0.0), "unknown")
        self.assertIsNone(self.boxes.returned("c1", 0.0))
        self.leave("c1", 0.0)
        self.assertIn("c1", self.boxes)
        self.assertNotIn("c2", self.boxes)

    def test_thirty_seconds(self) -> None:
        """Without it a worker would wait for a client that is gone for good, or be told too early that it is."""
        self.leave("c1", 100.0)
        self.leave("c2", 100.0)
        self.assertEqual(self.boxes.keep("c1", b"x", 100.0 + KEEP_S - 0.01), "kept")
        self.assertEqual(self.boxes.keep("c1", b"x", 100.0 + KEEP_S), "unknown")
        self.assertIsNone(self.boxes.returned("c1", 100.0 + KEEP_S))
        self.assertIsNotNone(self.boxes.returned("c2", 100.0 + KEEP_S - 0.01))
        self.assertEqual(self.boxes.bytes, 0)

    def test_expire(self) -> None:
        """Without it clients that never come back would stay in memory."""
        self.leave("c1", 100.0)
        self.leave("c2", 110.0)
        self.boxes.keep("c1", b"xyz", 101.0)
        self.boxes.expire(129.9)
        self.assertEqual(len(self.boxes), 2)
        self.boxes.expire(130.0)
        self.assertEqual((len(self.boxes), "c2" in self.boxes, self.boxes.bytes), (1, True, 0))
        self.boxes.expire(1000.0)
        self.assertEqual(len(self.boxes), 0)

    def test_leaving_again_begins_anew(self) -> None:
        """Without it the second absence would be cut short, or count the messages of the first."""
        self.leave("c1", 100.0)
        self.leave("c2", 110.0)
        self.boxes.keep("c1", b"old", 101.0)
        self.leave("c1", 120.0)
        self.boxes.expire(140.0)
        self.assertEqual((len(self.boxes), self.boxes.bytes), (1, 0))
        absent = self.boxes.returned("c1", 149.9)
        assert absent is not None
        self.assertEqual(absent.messages, [])

    def test_full(self) -> None:
        """Without it one worker could fill the memory with messages to one client."""
        self.leave("c1", 0.0)
        for _ in range(MESSAGES):
            self.assertEqual(self.boxes.keep("c1", b"x", 0.0), "kept")
        self.assertEqual(self.boxes.keep("c1", b"x", 0.0), "full")
        self.leave("c2", 0.0)
        self.assertEqual(self.boxes.keep("c2", bytes(BYTES), 0.0), "kept")
        self.assertEqual(self.boxes.keep("c2", b"x", 0.0), "full")

    def test_bounded_together(self) -> None:
        """Without it many clients that drop at once could fill the memory."""
        self.patch(module, "CLIENTS", 3)
        self.patch(module, "TOTAL_BYTES", 10)
        for number in range(5):
            self.leave(f"c{number}", float(number))
        self.assertEqual([f"c{number}" in self.boxes for number in range(5)], [False, False, True, True, True])
        self.assertEqual(self.boxes.keep("c2", b"12345", 5.0), "kept")
        self.assertEqual(self.boxes.keep("c3", b"12345", 5.0), "kept")
        self.assertEqual(self.boxes.keep("c4", b"1", 5.0), "full")
        self.boxes.returned("c2", 6.0)
        self.assertEqual(self.boxes.keep("c4", b"1", 6.0), "kept")

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_bytes_are_counted_right(self, source: random.Random) -> None:
        """Without it a mistake in the count would close the mailboxes for ever, or open them for any size."""
        boxes, now = Mailboxes(), 0.0
        for _ in range(60):
            now += source.choice([0.0, 0.5, 7.0])
            client = f"c{source.randrange(4)}"
            match source.randrange(5):
                case 0:
                    boxes.left(client, Connection(), now)
                case 1:
                    boxes.returned(client, now)
                case 2:
                    boxes.expire(now)
                case _:
                    boxes.keep(client, bytes(source.randrange(100_000)), now)
            kept = [absent.messages for absent in boxes._absent.values()]
            self.assertEqual(boxes.bytes, sum(len(payload) for messages in kept for payload in messages))
            self.assertTrue(all(len(messages) <= MESSAGES for messages in kept))
            self.assertTrue(all(absent.bytes <= BYTES for absent in boxes._absent.values()))
