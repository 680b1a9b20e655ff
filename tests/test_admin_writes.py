"""Changes of operators that wait for the disk, and those that it does not take."""

from __future__ import annotations

from typing import Any, ClassVar

from kollator.admin import WAITING_MAX
from kollator.state.rows import DrainRow, PinRow, Row
from kollator.web.site import IDLE_S
from tests.admins import OPERATOR, AdminTestCase, order
from tests.wires import read_answers


class HeldTests(AdminTestCase):
    """Answers that wait for the disk, on real connections."""

    def setUp(self) -> None:
        """A worker is there, and the disk is slow."""
        super().setUp()
        self.front.worker("w1")
        self.front.disk.held = True

    def drain_disk(self) -> None:
        """The disk does all that waits."""
        while len(self.front.disk):
            self.front.disk.turn()

    def test_answer_after_the_disk(self) -> None:
        """An answer before the row is on disk would be a promise that a power cut breaks; the pool waits as well."""
        for target, body in (
            ("/admin/pins", {"cidr": "10.0.0.0/8", "worker": "w1"}), ("/admin/workers/w1/drain", None),
            ("/admin/front/drain", None),
        ):
            wire = self.front.connect(OPERATOR).send(order("POST", target, body))
            self.assertEqual(wire.taken(), b"")
            self.assertEqual(self.front.audited, [])
            self.assertEqual((self.front.drain.draining, self.front.pool.pins()[1:]), (False, []))
            self.drain_disk()
            (answer,) = read_answers(wire.taken())
            self.assertIn(answer.status, (200, 201))
            self.front.audited.clear()

    def test_time(self) -> None:
        """The time-outs of HTTP are for the client's part: they must not cut an answer that the disk holds up."""
        wire = self.front.connect(OPERATOR).send(order("POST", "/admin/workers/w1/drain"))
        self.front.advance(3 * IDLE_S)
        self.assertFalse(wire.lost)
        self.drain_disk()
        self.assertEqual(read_answers(wire.taken())[0].status, 200)
        self.front.advance(IDLE_S)
        self.assertTrue(wire.lost)

    def test_sent_ahead(self) -> None:
        """Requests that were sent ahead wait their turn, their time too, and are answered in order."""
        wire = self.front.connect(OPERATOR)
        wire.send(order("POST", "/admin/workers/w1/drain") + order("POST", "/admin/workers/w1/undrain"))
        wire.send(order("GET", "/admin/log"))
        for _ in range(2):
            self.assertEqual(wire.taken(), b"")
            self.front.advance(2 * IDLE_S)
            self.assertFalse(wire.lost)
            self.front.disk.turn()
            answers = read_answers(wire.taken())
            self.assertEqual({answer.status for answer in answers}, {200})
        self.assertEqual(len(answers), 2)
        self.assertEqual(self.front.pool.drains(), [])

    def test_backed_up(self) -> None:
        """Nor does a client that reads slowly lose the answer that is yet to come."""
        wire = self.front.connect(OPERATOR).send(order("POST", "/admin/workers/w1/drain"))
        wire.protocol.pauseProducing()
        wire.protocol.resumeProducing()
        self.front.advance(3 * IDLE_S)
        self.assertFalse(wire.lost)
        self.drain_disk()
        self.assertEqual(read_answers(wire.taken())[0].status, 200)

    def test_hang_up(self) -> None:
        """Who hangs up meanwhile is not missed: the change is made and audited, and nothing raises."""
        for target, body in (
            ("/admin/pins", {"cidr": "10.0.0.0/8", "worker": "w1"}), ("/admin/workers/w1/drain", None),
            ("/admin/front/drain", None), ("/admin/front/undrain", None),
        ):
            self.front.audited.clear()
            self.front.connect(OPERATOR).send(order("POST", target, body)).hang_up()
            self.drain_disk()
            self.assertEqual(len(self.front.audited), 1)
        self.assertEqual((len(self.front.pool.pins()), self.front.pool.drains()), (1, ["w1"]))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_hang_up_before_a_refusal(self) -> None:
        """A refusal that nobody waits for is no mistake either."""
        self.front.connect(OPERATOR).send(order("POST", "/admin/workers/w1/drain")).hang_up()
        self.front.connect(OPERATOR).send(order("DELETE", "/admin/pins/10.0.0.0/8")).hang_up()
        self.front.break_disk()
        self.drain_disk()
        self.front.mend_disk()
        self.front.advance(1.0)
        self.drain_disk()
        self.assertEqual((self.flushLoggedErrors(), self.front.pool.drains()), ([], []))

    def test_one_after_the_other(self) -> None:
        """Of two operators who pin one range the second one learns that it was pinned."""
        wires = [
            self.front.connect(OPERATOR).send(order("POST", "/admin/pins", {"cidr": "10.0.0.0/8", "worker": "w1"}))
            for _ in range(2)
        ]
        self.drain_disk()
        self.assertEqual([read_answers(wire.taken())[0].status for wire in wires], [201, 200])

    def test_too_many_wait(self) -> None:
        """A disk that hangs must not gather operators' requests without end."""
        for _ in range(WAITING_MAX + 1):
            self.front.connect(OPERATOR).send(order("POST", "/admin/workers/w1/drain"))
        self.assert_error(self.front.order("POST", "/admin/workers/w1/drain"), 503, "busy")
        self.front.advance(6.0)
        self.assert_error(self.front.order("POST", "/admin/workers/w1/drain"), 503, "no-database")
        self.assertEqual(self.answered(self.front.order("GET", "/admin/workers")), {"drained": []})
        self.drain_disk()
        self.assertEqual(len(self.front.audited), WAITING_MAX + 1)


class NoDatabaseTests(AdminTestCase):
    """The disk is full, or worse."""

    ORDERS: ClassVar[tuple[tuple[str, str, Any], ...]] = (
        ("POST", "/admin/pins", {"cidr": "10.0.0.0/8", "worker": "w1"}),
        ("POST", "/admin/pins", {"cidr": "192.0.2.0/24", "region": "eu"}),
        ("DELETE", "/admin/pins/192.0.2.0/24", None),
        ("POST", "/admin/workers/w1/drain", None),
        ("POST", "/admin/workers/w2/undrain", None),
        ("POST", "/admin/front/drain", None),
    )

    def setUp(self) -> None:
        """Something is pinned and somebody drained."""
        super().setUp()
        self.front.worker("w1", "eu")
        self.front.worker("w2")
        self.front.order("POST", "/admin/pins", {"cidr": "192.0.2.0/24", "worker": "w2"})
        self.front.order("POST", "/admin/workers/w2/drain")
        self.front.audited.clear()

    def state(self) -> tuple[object, ...]:
        """What counts."""
        front = self.front
        return front.pool.pins(), front.pool.drains(), front.pool.front("front-1"), front.drain.draining

    @staticmethod
    def counting(rows: list[Row]) -> list[Row]:
        """Rows that say something: a pin without a target is none, nor is a drain that is over."""
        nothing = (PinRow("10.0.0.0/8"), DrainRow("w1"))
        return [row for row in rows if row not in nothing]

    def test_refused_and_never_made(self) -> None:
        """What was refused must not happen later, when nobody expects it: not when the disk is well again either."""
        before, rows = self.state(), self.front.store.rows()
        for method, target, body in self.ORDERS:
            self.front.break_disk()
            answer = self.front.order(method, target, body)
            self.assert_error(answer, 503, "no-database")
            self.assertEqual(self.state(), before)
            self.assert_error(self.front.order(method, target, body), 503, "no-database")
            self.front.advance(3.0)
            self.front.mend_disk()
            self.front.advance(1.0)
            self.assertIsNone(self.front.writer.problem)
            self.assertTrue(self.front.writer.idle)
            self.assertEqual(self.state(), before, target)
            self.assertEqual(self.counting(self.front.store.rows()), rows, target)
        self.assertEqual(self.front.audited, [])

    def test_made_when_it_is_well(self) -> None:
        """The same order goes through afterwards."""
        for method, target, body in self.ORDERS:
            self.front.break_disk()
            self.front.order(method, target, body)
            self.front.mend_disk()
            self.front.advance(1.0)
            self.assertIn(self.front.order(method, target, body).status, (200, 201))
        self.assertEqual(len(self.front.audited), len(self.ORDERS))

    def test_known_to_be_down(self) -> None:
        """Nothing is queued for a database that is known to be down, and reading goes on."""
        self.front.break_disk()
        self.front.writer.probe()
        for method, target, body in self.ORDERS:
            self.assert_error(self.front.order(method, target, body), 503, "no-database")
        self.assertEqual(len(self.answered(self.front.order("GET", "/admin/pins"))["pins"]), 1)
        self.front.mend_disk()
        self.front.advance(1.0)
