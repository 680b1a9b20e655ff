"""What an operator says of a worker: it counts on every front, until it is taken back."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.assignment import Skipped
from kollator.state.changes import START
from kollator.state.rows import AttachmentRow, DrainRow, PinRow, Row
from kollator.state.store import Store
from tests.fronts import FrontTestCase
from tests.pools import ADDRESSES, crew, owners, pool_of


class PoolTests(SynchronousTestCase):
    """A pool that is told of drains."""

    def test_passed_by(self) -> None:
        """Without it a worker could not be emptied before it is stopped."""
        pool = pool_of(crew(4))
        before, digest = owners(pool), pool.digest
        self.assertEqual(pool.apply(DrainRow("w1", True)), ())  # who talks with it goes on
        self.assertNotIn("w1", owners(pool).values())
        self.assertEqual((pool.drained("w1"), pool.drained("w2"), pool.drains()), (True, False, ["w1"]))
        view = pool.worker("w1")
        self.assertEqual(view and (view.state, view.why, view.fronts), ("draining", "operator", ("f1",)))
        self.assertNotEqual(pool.digest, digest)
        self.assertEqual(pool.digest, pool_of([*crew(4), AttachmentRow("w1", "f1", 1, "draining")]).digest)
        moved = next(address for address, worker in before.items() if worker == "w1")
        self.assertIn(Skipped("w1", "draining", "operator"), pool.assign(moved).skipped)
        pool.apply(DrainRow("w1", False))
        self.assertEqual((pool.digest, owners(pool), pool.drains()), (digest, before, []))
        view = pool.worker("w1")
        self.assertEqual(view and (view.state, view.why), ("up", ""))

    def test_its_own_word(self) -> None:
        """Without it a worker that drains of its own accord would look as if an operator drained it, or be restored."""
        pool = pool_of([*crew(2), AttachmentRow("w1", "f1", 1, "draining"), DrainRow("w1", False)])
        view = pool.worker("w1")
        self.assertEqual(view and (view.state, view.why), ("draining", ""))
        skipped = {skip for address in ADDRESSES for skip in pool.assign(address).skipped}
        self.assertEqual(skipped, {Skipped("w1", "draining")})
        pool.apply(AttachmentRow("w2", "f1", 1, "full"))
        pool.apply(DrainRow("w2", True))
        self.assertEqual([view.state for view in pool.workers()], ["draining", "draining"])
        self.assertEqual(pool.assign(ADDRESSES[0]).reason, "overflow")

    def test_before_and_after_the_worker(self) -> None:
        """Without it a worker that is restarted while it is drained would get clients again."""
        rows: list[Row] = [DrainRow("w1", True), *crew(1)]
        for order in (rows, rows[::-1]):
            pool = pool_of(order)
            self.assertEqual([(view.state, view.why) for view in pool.workers()], [("draining", "operator")])
            self.assertEqual(pool.apply(AttachmentRow("w1", "f1", 1, "down")), ("w1",))
            self.assertEqual([(view.state, view.why) for view in pool.workers()], [("down", "")])
            pool.apply(AttachmentRow("w1", "f1", 1, "down", "ping"))
            self.assertEqual([(view.state, view.why) for view in pool.workers()], [("down", "ping")])
            pool.apply(AttachmentRow("w1", "f1", 1, "up"))
            self.assertEqual([(view.state, view.why) for view in pool.workers()], [("draining", "operator")])
        self.assertEqual(pool_of([DrainRow("w9", True)]).workers(), [])

    def test_pins(self) -> None:
        """Without it an operator who drains a pinned worker would not be told why the pin does not hold."""
        pool = pool_of([*crew(3), PinRow("10.0.0.0/8", "w1"), DrainRow("w1", True)])
        found = pool.assign("10.0.0.1")
        self.assertEqual((found.reason, found.skipped[0]), ("pin-fallback", Skipped("w1", "draining", "operator")))


class FrontTests(FrontTestCase):
    """From an operator to every front."""

    def state(self) -> tuple[str, str]:
        """How ``/workers`` shows w1."""
        (entry,) = self.front.views.workers().workers
        return entry.state, entry.why

    def test_stored_then_counted(self) -> None:
        """Without it an operator would be told of a drain that a power cut takes back."""
        self.front.worker("w1")
        self.front.disk.held = True
        self.front.writer.write([DrainRow("w1", True)])
        self.assertEqual(self.state(), ("up", ""))
        self.front.disk.turn()
        self.assertEqual(self.state(), ("draining", "operator"))
        self.assertIn(DrainRow("w1", True), self.front.store.rows())

    def test_told_by_a_peer(self) -> None:
        """Without it a worker drained at one front would get its clients from all the others."""
        self.front.worker("w1")
        self.front.registry.merged([DrainRow("w1", True)])
        self.assertEqual(self.state(), ("draining", "operator"))
        explained = self.front.views.explain("192.0.2.1", None)
        self.assertEqual((explained.worker, explained.reason), ("w1", "overflow"))
        self.front.registry.merged([DrainRow("w1", False)])
        self.assertEqual(self.state(), ("up", ""))

    def test_explained(self) -> None:
        """Without it ``/workers/assign`` would not say why a client's usual worker is not its worker now."""
        for name in ("w1", "w2", "w3"):
            self.front.worker(name)
        self.front.registry.merged([DrainRow("w1", True)])
        self.front.registry.worker_unwell("w2", "webrtc", "a test")
        explained = [self.front.views.explain(address, None) for address in ADDRESSES]
        skipped = {(skip.worker, skip.reason, skip.why) for answer in explained for skip in answer.skipped}
        self.assertEqual(skipped, {("w1", "draining", "operator"), ("w2", "down", "webrtc")})

    def test_from_store_to_store(self) -> None:
        """Without it a drain would end at the front that an operator spoke to, or at its next start."""
        other = Store.open(":memory:", node_id="front-2")
        self.addCleanup(other.close)
        for draining in (True, False):
            self.front.store.write([DrainRow("w1", draining)])
            batch = self.front.store.changes_since(START)
            result = other.merge(batch.changes, sender="front-1", sites=batch.sites)
            self.assertIn(DrainRow("w1", draining), result.rows)
            self.assertEqual(result.rows, other.rows() if draining else [DrainRow("w1", False)])
            self.assertEqual(pool_of([*other.rows(), *crew(1)]).drained("w1"), draining)
