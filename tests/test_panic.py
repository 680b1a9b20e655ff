"""A panic: when few of the connected workers are well, the others are used too."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.assignment import Placed, Skipped
from kollator.pool.pool import Counts, Pool
from kollator.state.rows import AttachmentRow, DrainRow, FrontRow, PinRow, Row, WorkerRow
from tests.fronts import FrontTestCase
from tests.pools import ADDRESSES, crew, owners, pool_of
from tests.wires import PEER, read_frames, text_frame


def silent(*numbers: int) -> list[Row]:
    """The rows of workers that do not answer."""
    return [AttachmentRow(f"w{number}", "f1", 1, "down", "ping") for number in numbers]


class ThresholdTests(SynchronousTestCase):
    """When a panic begins and ends."""

    def test_share_of_the_connected(self) -> None:
        """Without it a panic would come too early, too late, or for workers that nobody can reach."""
        pool = pool_of(crew(4), panic_threshold=50.0)
        self.assertEqual((pool.apply_all(silent(1, 2)), pool.panic), (("w1", "w2"), False))  # half is not too few
        self.assertEqual((pool.apply_all(silent(3)), pool.panic), ((), True))
        self.assertEqual((pool.apply(AttachmentRow("w3", "f1", 1, "down")), pool.panic), (("w3",), True))
        self.assertEqual((pool.apply(AttachmentRow("w2", "f1", 1, "down")), pool.panic), (("w1", "w2"), False))

    def test_states_that_are_well(self) -> None:
        """Without it a pool that is merely busy, or about to be replaced, would be thought broken."""
        for state in ("up", "full", "draining"):
            pool = pool_of(crew(3, state), panic_threshold=60.0)  # type: ignore[arg-type]
            pool.apply_all(silent(1))
            self.assertFalse(pool.panic, state)
        pool.apply_all([DrainRow("w2", True), DrainRow("w3", True)])
        self.assertFalse(pool.panic)

    def test_off(self) -> None:
        """Without it a panic that nobody asked for would send clients to workers that are broken."""
        pool = pool_of(crew(4))
        self.assertEqual(pool.apply_all(silent(1, 2, 3, 4)), ("w1", "w2", "w3", "w4"))
        self.assertEqual((pool.panic, pool.unwell, pool.assign(ADDRESSES[0]).worker), (False, 4, None))

    def test_every_one(self) -> None:
        """Without it a threshold of 100 would not begin with the first, or one of 1 not with the last."""
        pool = pool_of(crew(3), panic_threshold=100.0)
        self.assertEqual((pool.panic, pool.apply_all(silent(1)), pool.panic), (False, (), True))
        pool = pool_of(crew(3), panic_threshold=1.0)
        self.assertEqual((pool.apply_all(silent(1, 2)), pool.panic), (("w1", "w2"), False))
        self.assertEqual((pool.apply_all(silent(3)), pool.panic), ((), True))
        self.assertEqual(Pool(panic_threshold=100.0).panic, False)

    def test_who_is_gone_is_gone(self) -> None:
        """Without it the workers of a dead front, or unknown ones, would be counted or even used."""
        rows: list[Row] = [FrontRow("f2", 1), *(AttachmentRow(f"w{number}", "f2", 1, "up") for number in (1, 2))]
        pool = pool_of([*crew(4), *rows, *silent(3, 4)], panic_threshold=60.0)
        self.assertTrue(pool.panic)
        self.assertEqual(pool.apply(FrontRow("f1", 1, 1)), ("w3", "w4"))
        self.assertEqual((pool.panic, pool.counts().up, pool.unwell), (False, 2, 0))
        pool = pool_of([AttachmentRow("w9", "f1", 1, "down", "ping"), *crew(1)], panic_threshold=60.0)
        self.assertEqual((pool.panic, pool.unwell), (False, 0))
        self.assertEqual((pool.apply(WorkerRow("w9")), pool.panic, pool.unwell), ((), True, 1))


class AnswerTests(SynchronousTestCase):
    """What a pool in panic answers."""

    def test_as_if_all_were_up(self) -> None:
        """Without it the few that are left would get the load of all and fail too."""
        before = pool_of(crew(5))
        pool = pool_of([*crew(5), *silent(1, 2, 3)], panic_threshold=50.0)
        self.assertEqual(owners(pool), owners(before))
        self.assertEqual({pool.assign(address).reason for address in ADDRESSES}, {"ring"})
        self.assertEqual((pool.digest, pool.points), (before.digest, before.points))
        self.assertEqual(pool.counts(), Counts(up=5, full=0, draining=0, down=0, total=5))
        views = [(view.state, view.why, view.fronts) for view in pool.workers()]
        self.assertEqual(views, [("up", "ping", ("f1",))] * 3 + [("up", "", ("f1",))] * 2)

    def test_order_of_all(self) -> None:
        """Without it alternates, and whoever takes the last ranges of the ring, would be others than before."""
        rows = crew(9)
        before = pool_of(rows, replicas=4)
        pool = pool_of([*rows, *silent(1, 3, 5, 7, 9)], 4, 50.0)
        self.assertTrue(pool.panic)
        for address in ADDRESSES:
            self.assertEqual(pool.assign(address, alternates=9), before.assign(address, alternates=9))

    def test_swept(self) -> None:
        """Without it what unwell workers leave behind when a front dies would stay in memory until the next panic."""
        pool = pool_of([*crew(60), *silent(*range(1, 60))], panic_threshold=1.0)
        pool.apply(FrontRow("f2", 1))
        pool.apply_all(AttachmentRow(f"w{number}", "f1", 1, "down") for number in range(1, 59))
        self.assertGreater(pool._unwell._rings[("up", "")].garbage, 0)
        while pool.sweep():
            pass
        self.assertEqual((pool._unwell._rings[("up", "")].garbage, pool.unwell), (0, 1))

    def test_the_end(self) -> None:
        """Without it a client would stay with a worker that is as broken as before, when others can take it."""
        pool = pool_of([*crew(5), *silent(1, 2, 3)], panic_threshold=50.0)
        pool.workers()
        calm = pool_of([*crew(5), *silent(1, 2)])
        self.assertEqual(pool.apply(AttachmentRow("w3", "f1", 1, "up")), ("w1", "w2"))
        self.assertEqual((pool.panic, pool.digest, owners(pool)), (False, calm.digest, owners(calm)))
        self.assertEqual(pool.workers(), calm.workers())
        self.assertEqual((pool.fronts_of("w1"), pool.connected_to("w1")), ((), ("f1",)))

    def test_regions(self) -> None:
        """Without it a panic would send everybody who asks for a region to another one."""
        pool = pool_of(
            [*crew(3, region="eu"), *crew(3, region="us", start=4), *silent(1, 2, 3, 4)], panic_threshold=50.0
        )
        for address in ADDRESSES:
            for region in ("eu", "us"):
                found = pool.assign(address, region=region)
                self.assertEqual((found.region, found.reason), (region, "ring"))
                self.assertLessEqual({(skip.reason, skip.why) for skip in found.skipped}, {("other-region", "")})
        while pool.sweep():
            pass

    def test_drained(self) -> None:
        """Without it a worker that an operator has taken out would be back with the first panic."""
        pool = pool_of([*crew(4), *silent(1, 2, 3), DrainRow("w1", True)], panic_threshold=50.0)
        view = pool.worker("w1")
        self.assertEqual(view and (view.state, view.why), ("draining", "operator"))
        self.assertNotIn("w1", owners(pool).values())
        self.assertIn(Skipped("w1", "draining", "operator"), [s for a in ADDRESSES for s in pool.assign(a).skipped])

    def test_pins(self) -> None:
        """Without it a pin to an unwell worker would be passed by when everything else counts as well."""
        pool = pool_of([*crew(3), PinRow("10.0.0.0/8", "w1"), *silent(1)], panic_threshold=70.0)
        found = pool.assign("10.0.0.1")
        self.assertEqual((found.worker, found.reason, found.skipped), ("w1", "pinned", ()))
        pool = pool_of([*crew(3), PinRow("10.0.0.0/8", "w1"), *silent(1)], panic_threshold=50.0)
        self.assertEqual(pool.assign("10.0.0.1").skipped[0], Skipped("w1", "down", "ping"))

    def test_ways_to_a_worker(self) -> None:
        """Without it a message would go through the front whose link to the worker is the broken one."""
        rows: list[Row] = [FrontRow("f0", 1), AttachmentRow("w1", "f0", 1, "down", "ping")]
        pool = pool_of([*crew(4), *rows, *silent(2, 3, 4)], panic_threshold=50.0)
        self.assertEqual((pool.panic, pool.fronts_of("w1"), pool.fronts_of("w2")), (True, ("f1",), ("f1",)))
        self.assertEqual(pool.connected_to("w1"), ("f0", "f1"))

    def noted(self, moved: list[str], add: Callable[[str, Placed], None], worker: str, placed: Placed) -> None:
        """Puts a worker on its rings, and notes it."""
        moved.append(worker)
        add(worker, placed)

    def test_nothing_moves_but_the_rings_are_joined(self) -> None:
        """Without it a panic among ten thousand workers would hold the front up for seconds, at the worst time."""
        pool = pool_of(crew(9), panic_threshold=50.0)
        pool.apply_all(silent(1, 2, 3, 4))
        moved: list[str] = []
        for rings in (pool._rings, pool._unwell):
            self.patch(rings, "add", partial(self.noted, moved, rings.add))
        pool.apply_all(silent(5))
        self.assertEqual((pool.panic, moved), (True, ["w5"]))
        pool.apply(AttachmentRow("w5", "f1", 1, "up"))
        self.assertEqual((pool.panic, moved), (False, ["w5", "w5"]))


class FrontPanicTests(FrontTestCase):
    """The setting, and what clients notice."""

    environ: ClassVar = {"PANIC_THRESHOLD": "60"}

    def told(self, wire: Any) -> list[Any]:
        """The types of the messages that a client got."""
        return [json.loads(payload)["type"] for opcode, payload in read_frames(wire.taken()) if opcode == 1]

    def test_clients_stay(self) -> None:
        """Without it every client would be sent about when a switch breaks, and back when it works again."""
        for number in range(3):
            self.front.worker(f"w{number}")
        wire = self.front.client(PEER)
        wire.send(text_frame(b'{"type":"assign"}'))
        wire.clear()
        assigned = self.front.pool.assign(PEER).worker
        for number in range(3):
            if f"w{number}" != assigned:
                self.front.registry.worker_unwell(f"w{number}", "ping", "a test")
        self.assertEqual((self.front.pool.panic, self.front.pool.counts().up), (True, 3))
        self.front.registry.worker_unwell(str(assigned), "webrtc", "a test")
        self.front.advance(1.0)
        self.assertEqual((self.told(wire), self.front.pool.panic), ([], True))
        for number in range(3):
            if f"w{number}" != assigned:
                self.front.registry.worker_well(f"w{number}", "ping")
        self.front.advance(1.0)
        self.assertEqual((self.told(wire), self.front.pool.panic), (["worker-lost"], False))
