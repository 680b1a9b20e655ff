"""The pool: sends each range where it should go, and says why. Its properties are in ``test_pool_properties``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.assignment import SKIPPED_MAX, Assignment, RingPosition, Skipped, SkipReason
from kollator.pool.pool import Counts, Pool, WorkerView
from kollator.pool.ring import key_hash, position_of
from kollator.state.rows import AttachmentRow, AttachmentState, DrainRow, FrontRow, PinRow, Row, Why, WorkerRow
from tests.pools import ADDRESSES, NaivePool, crew, latest, owners, pool_of


class RowTests(SynchronousTestCase):
    """From rows to the state of workers."""

    def test_rows_before_what_they_refer_to(self) -> None:
        """Without it a changeset that arrives in another order would lose workers for good."""
        applied = crew(3)
        for order in (applied, applied[::-1], applied[1:] + applied[:1]):
            self.assertEqual(pool_of(order).counts().up, 3)
        pool = pool_of([AttachmentRow("w1", "f1", 1, "up"), FrontRow("f1", 1)])
        self.assertEqual((pool.worker("w1"), pool.workers()), (None, []))
        self.assertIsNone(pool.assign("10.0.0.1").worker)
        self.assertEqual(pool.fronts_of("w1"), ("f1",))

    def test_changes(self) -> None:
        """A page of the workers is kept as long as this number is the same: it must follow all that is shown."""
        pool = Pool(replicas=4, panic_threshold=60.0)
        for row in (
            *crew(3),
            AttachmentRow("w1", "f1", 1, "full"),
            AttachmentRow("w1", "f1", 1, "down", "ping"),
            AttachmentRow("w2", "f1", 1, "down", "ping"),
            DrainRow("w3", True),
            WorkerRow("w3", "mars", 7),
            PinRow("10.0.0.0/8", "w3"),
            PinRow("10.0.0.0/8", ""),
            FrontRow("f1", 1, retired=1),
            FrontRow("f1", 2, retired=1),
        ):
            before = (pool.workers(), pool.points, pool.digest, pool.changes)
            pool.apply(row)
            if (pool.workers(), pool.points, pool.digest) != before[:3]:
                self.assertNotEqual(pool.changes, before[3], row)
            after = pool.changes
            if not isinstance(row, PinRow):
                pool.apply(row)
                self.assertEqual(pool.changes, after, row)

    def test_front_dies_and_returns(self) -> None:
        """Without it the workers of a dead front would go on being assigned, or old rows come back to life."""
        applied = [*crew(3), FrontRow("f2", 4), AttachmentRow("w3", "f2", 4, "up")]
        pool = pool_of(applied)
        self.assertEqual(pool.fronts_of("w3"), ("f1", "f2"))
        self.assertEqual(pool.apply(FrontRow("f1", 1, retired=1)), ("w1", "w2"))
        self.assertFalse(pool.is_alive("f1"))
        self.assertEqual([view.state for view in pool.workers()], ["down", "down", "up"])
        self.assertEqual(pool.fronts_of("w3"), ("f2",))
        self.assertEqual(set(owners(pool).values()), {"w3"})
        self.assertEqual(pool.apply(FrontRow("f1", 2, retired=1)), ())
        self.assertTrue(pool.is_alive("f1"))
        self.assertEqual(pool.fronts_of("w1"), ())  # held in its former life only
        self.assertEqual(pool.apply(AttachmentRow("w1", "f1", 2, "up")), ())
        self.assertEqual(pool.fronts_of("w1"), ("f1",))
        self.assertEqual(pool.apply(FrontRow("f1", 3, retired=1)), ("w1",))

    def test_states_of_several_fronts(self) -> None:
        """Without it two fronts that see one worker differently would make its state depend on who asks."""
        cases: list[tuple[tuple[str, str], str]] = [
            (("up", "up"), "up"),
            (("up", "down"), "up"),
            (("up", "full"), "full"),
            (("full", "draining"), "draining"),
            (("down", "down"), "down"),
            (("up", "unwell"), "up"),
            (("unwell", "draining"), "draining"),
            (("unwell", "unwell"), "down"),
        ]
        for seen, expected in cases:
            pool = pool_of([FrontRow("f1", 1), FrontRow("f2", 1), WorkerRow("w1")])
            states: dict[str, AttachmentState] = {"up": "up", "full": "full", "draining": "draining"}
            for front, state in zip(("f1", "f2"), seen, strict=True):
                why: Why = "ping" if state == "unwell" else ""
                pool.apply(AttachmentRow("w1", front, 1, states.get(state, "down"), why))
            self.assertEqual(pool.workers()[0].state, expected, seen)
            well = [front for front, state in zip(("f1", "f2"), seen, strict=True) if state in states]
            self.assertEqual(pool.fronts_of("w1"), tuple(well))
            self.assertEqual(pool.workers()[0].why, "ping" if expected == "down" and "unwell" in seen else "")

    def test_first_reason_of_several_fronts(self) -> None:
        """Without it what an operator reads would depend on the order in which rows came."""
        first = AttachmentRow("w1", "f1", 1, "down", "webrtc")
        second = AttachmentRow("w1", "f2", 1, "down", "hold-down")
        for order in ([first, second], [second, first]):
            pool = pool_of([FrontRow("f1", 1), FrontRow("f2", 1), WorkerRow("w1"), *order])
            self.assertEqual([(view.why, view.fronts) for view in pool.workers()], [("hold-down", ())])
            self.assertEqual((pool.unwell, pool.connected_to("w1")), (1, ("f1", "f2")))
            pool.apply(FrontRow("f2", 1, 1))
            self.assertEqual([(view.state, view.why) for view in pool.workers()], [("down", "webrtc")])
            self.assertEqual(pool.connected_to("w1"), ("f1",))
            pool.apply(AttachmentRow("w1", "f1", 1, "down"))
            self.assertEqual([(view.why, pool.unwell) for view in pool.workers()], [("", 0)])

    def test_draining_front_keeps_its_workers(self) -> None:
        """Without it a front that is being stopped would take its workers away from clients of other fronts."""
        pool = pool_of(crew(2))
        digest = pool.digest
        self.assertEqual(pool.apply(FrontRow("f1", 1, draining=True)), ())
        self.assertEqual((pool.digest, pool.counts().up), (digest, 2))

    def test_views(self) -> None:
        """Without it the status page would show another pool than the one that assigns."""
        applied = [
            *crew(1),
            FrontRow("f0", 2, region="eu", url="http://f0"),
            WorkerRow("w1", "eu", 250, "192.0.2.1"),
            AttachmentRow("w1", "f0", 2, "full"),
            WorkerRow("a"),
        ]
        pool = pool_of(applied)
        view = WorkerView("w1", "eu", 250, "full", ("f0", "f1"), "192.0.2.1")
        self.assertEqual(pool.workers(), [WorkerView("a", "", 100, "down", (), ""), view])
        self.assertEqual(pool.worker("w1"), view)
        self.assertIsNone(pool.worker("w2"))
        self.assertEqual(pool.counts(), Counts(up=0, full=1, draining=0, down=1, total=2))
        self.assertEqual(pool.points, 375)
        self.assertEqual([row.id for row in pool.fronts()], ["f0", "f1"])
        self.assertEqual(pool.front("f0"), FrontRow("f0", 2, region="eu", url="http://f0"))
        self.assertIsNone(pool.front("f9"))
        self.assertFalse(pool.is_alive("f9"))
        pool.workers().clear()
        self.assertEqual(len(pool.workers()), 2)
        pool.apply(AttachmentRow("w1", "f0", 2, "down"))
        self.assertEqual([view.state for view in pool.workers()], ["down", "up"])

    def test_nothing_is_kept_of_what_is_down(self) -> None:
        """Without it every worker that was ever held would stay in the memory of the pool's indexes."""
        pool = pool_of(crew(5))
        for number in range(1, 6):
            pool.apply(AttachmentRow(f"w{number}", "f1", 1, "down", "ping"))
            pool.apply(AttachmentRow(f"w{number}", "f1", 1, "down"))
            pool.apply(AttachmentRow(f"w{number}", "f9", 1, "down"))
            pool.apply_all([DrainRow(f"w{number}", True), DrainRow(f"w{number}")])
        standings = pool._standings
        self.assertEqual((standings._held, standings._holding, standings.drained), ({}, {}, set()))
        self.assertEqual((pool.points, pool.unwell, pool._unwell.placed), (0, 0, {}))
        self.assertFalse(pool.sweep())

    def test_refused(self) -> None:
        """Without it a setting of no points at all would leave every ring empty."""
        self.assertRaises(ValueError, Pool, replicas=0)
        for percent in (-1.0, 100.1, float("nan")):
            self.assertRaises(ValueError, Pool, panic_threshold=percent)
        self.assertRaises(ValueError, pool_of(crew(1)).assign, "localhost")


class ReasonTests(SynchronousTestCase):
    """Why a worker serves a range."""

    def test_nobody(self) -> None:
        """Without it an empty pool would be an exception in place of an answer."""
        found = Pool().assign("203.0.113.9")
        self.assertEqual(
            found,
            Assignment(
                address="203.0.113.9",
                range="203.0.113.0/24",
                worker=None,
                region="",
                state=None,
                alternates=(),
                reason="no-workers",
                position=RingPosition(position_of(key_hash("203.0.113.0/24"))),
            ),
        )
        pool = pool_of(crew(2))
        found = pool.assign("203.0.113.9", exclude=["w1", "w2", "stranger"])
        self.assertEqual((found.worker, found.reason), (None, "no-workers"))
        self.assertEqual({skip.worker: skip.reason for skip in found.skipped}, {"w1": "excluded", "w2": "excluded"})

    def test_region(self) -> None:
        """Without it a client would be sent round the world while its own region has room, or get nobody."""
        pool = pool_of([*crew(3, region="eu"), *crew(3, region="us", start=4), *crew(3, start=7)])
        for address in ADDRESSES:
            found = pool.assign(address, region="us", alternates=4)
            self.assertEqual((found.region, found.reason), ("us", "ring"))
            self.assertEqual([ref.region for ref in found.alternates][:2], ["us", "us"])
            self.assertNotIn("us", [ref.region for ref in found.alternates][2:])
            self.assertLessEqual({skip.reason for skip in found.skipped}, {"other-region"})
        seen = {pool.assign(address).region for address in ADDRESSES}
        self.assertEqual(seen, {"", "eu", "us"})
        for row in (
            AttachmentRow("w4", "f1", 1, "full"),
            AttachmentRow("w5", "f1", 1, "draining"),
            AttachmentRow("w6", "f1", 1, "down"),
        ):
            pool.apply(row)
        for address in ADDRESSES[:30]:
            found = pool.assign(address, region="us")
            self.assertEqual(found.reason, "other-region")
            self.assertNotEqual(found.region, "us")
            self.assertEqual(set(found.skipped), {Skipped("w4", "full"), Skipped("w5", "draining")})
        self.assertEqual(pool.assign("10.0.0.1", region="mars").worker, pool.assign("10.0.0.1").worker)
        self.assertEqual(pool.assign("10.0.0.1", region="mars").reason, "other-region")

    def test_overflow(self) -> None:
        """Without it a pool that is full would turn clients away, or send them to a worker that is leaving."""
        ring = owners(pool_of(crew(4)))
        pool = pool_of([*crew(4, "full"), *crew(2, "draining", start=5)])
        for address in ADDRESSES:
            found = pool.assign(address, alternates=5)
            self.assertEqual((found.worker, found.reason, found.state), (ring[address], "overflow", "full"))
            self.assertEqual(len(found.alternates), 3)
            self.assertLessEqual({skip.reason for skip in found.skipped}, {"draining"})
        pool.apply(WorkerRow("w1", "eu"))
        skipped = [skip for address in ADDRESSES for skip in pool.assign(address, region="eu").skipped]
        self.assertEqual({skip.reason for skip in skipped if skip.worker in ("w2", "w3", "w4")}, {"other-region"})
        found = pool.assign("10.0.0.1", exclude=["w1", "w2", "w3", "w4"])
        self.assertEqual((found.reason, found.state), ("overflow", "draining"))
        self.assertLessEqual({f"w{number}" for number in range(1, 5)}, {skip.worker for skip in found.skipped})

    def test_nearest_skipped_first(self) -> None:
        """Without it the explanation could leave out the very worker that an operator asks about."""
        small = WorkerRow("w61", capacity=1)  # two points, and far away
        pool = pool_of([*crew(60, "full"), *crew(1, start=61), small])
        found = pool.assign("10.0.0.1")
        self.assertEqual((found.worker, found.reason), ("w61", "ring"))
        self.assertEqual(len(found.skipped), SKIPPED_MAX)
        expected = NaivePool(latest(crew(60)), 150).order("10.0.0.1", "", set())
        self.assertEqual([skip.worker for skip in found.skipped], expected[:SKIPPED_MAX])
        self.assertEqual(pool.assign("10.0.0.1", explain=False).skipped, ())

    def test_unwell(self) -> None:
        """Without it an operator would look for a client's usual worker and not learn that it does not answer."""
        well = pool_of(crew(4, region="eu"))
        pool = pool_of([*crew(4, region="eu"), AttachmentRow("w1", "f1", 1, "down", "webrtc")])
        for address in ADDRESSES:
            expected = {Skipped("w1", "down", "webrtc")} if well.assign(address).worker == "w1" else set()
            self.assertEqual(set(pool.assign(address).skipped), expected)
            self.assertEqual(set(pool.assign(address, exclude=["w1"]).skipped), set())
            # In another region it would not have been taken either, if the one asked for has somebody.
            self.assertEqual(len(pool.assign(address, region="us").skipped), len(expected))
            self.assertEqual(pool.assign(address, explain=False).skipped, ())
        pool.apply_all([*crew(1, region="us", start=5)])
        skips = [skip for address in ADDRESSES for skip in pool.assign(address, region="us").skipped]
        self.assertNotIn("w1", {skip.worker for skip in skips})

    def test_all_unwell(self) -> None:
        """Without it the reason for having nobody would be told of nobody, or of so many that it takes long."""
        pool = pool_of([*crew(50, "down", why="ping"), WorkerRow("w99")])
        found = pool.assign("10.0.0.1")
        self.assertEqual((found.worker, found.reason, len(found.skipped)), (None, "no-workers", SKIPPED_MAX))
        self.assertEqual({(skip.reason, skip.why) for skip in found.skipped}, {("down", "ping")})
        order = NaivePool(latest(crew(50)), 150).order("10.0.0.1", "", set())
        named = [skip.worker for skip in found.skipped]
        self.assertEqual(named, [worker for worker in order if worker in named])

    def test_large_unwell_workers(self) -> None:
        """Without it one question about a pool of huge workers would hold the front up for a tenth of a second."""
        rows: list[Row] = [*crew(32, "down", why="ping")]
        rows += [WorkerRow(f"w{number}", capacity=1_000_000) for number in range(1, 33)]
        pool = pool_of(rows)
        computed: list[int] = []
        points_of = pool._rings._points_of

        def noted(worker: str, count: int) -> list[int]:
            computed.append(count)
            return points_of(worker, count)

        self.patch(pool._rings, "_points_of", noted)
        self.assertEqual(len(pool.assign("10.0.0.1").skipped), 2)
        self.assertEqual(sum(computed), 30_000)

    def test_pins(self) -> None:
        """Without it an operator's word would not count, or a pin to a dead worker would cut its clients off."""
        pool = pool_of([*crew(4, region="eu"), *crew(4, region="us", start=5)])
        ring = pool.assign("10.1.2.3")
        other = "w1" if ring.worker != "w1" else "w2"
        pool.apply(PinRow("10.0.0.0/8", region="us"))
        pool.apply(PinRow("10.1.0.0/16", worker="nobody"))
        pool.apply(PinRow("10.1.2.0/25", worker=other))
        found = pool.assign("10.1.2.3", region="us")
        self.assertEqual((found.worker, found.reason, found.pin), (other, "pinned", "10.1.2.0/25"))
        self.assertIsNone(found.position.point)
        self.assertEqual([ref.region for ref in found.alternates], ["us", "us"])
        self.assertEqual(pool.assign("::ffff:10.1.2.3").worker, other)
        unfit: list[SkipReason] = ["full", "draining", "down"]
        states: list[AttachmentState] = ["full", "draining", "down"]
        for state, reason in zip(states, unfit, strict=True):
            pool.apply(AttachmentRow(other, "f1", 1, state))
            found = pool.assign("10.1.2.3")
            self.assertEqual((found.worker, found.reason, found.pin), (ring.worker, "pin-fallback", "10.1.2.0/25"))
            self.assertEqual(found.skipped[0], Skipped(other, reason))
            self.assertEqual([skip.worker for skip in found.skipped].count(other), 1)
            self.assertEqual(pool.assign("10.1.2.3", explain=False).skipped, ())
        pool.apply(AttachmentRow(other, "f1", 1, "down", "probe"))
        found = pool.assign("10.1.2.3")
        self.assertEqual((found.reason, found.skipped[0]), ("pin-fallback", Skipped(other, "down", "probe")))
        self.assertEqual([skip.worker for skip in found.skipped].count(other), 1)
        pool.apply(AttachmentRow(other, "f1", 1, "up"))
        found = pool.assign("10.1.2.3", exclude=[other])
        self.assertEqual((found.reason, found.skipped[0]), ("pin-fallback", Skipped(other, "excluded")))
        found = pool.assign("10.1.2.200")  # the same range, but another pin
        self.assertEqual((found.range, found.pin), ("10.1.2.0/24", "10.1.0.0/16"))
        self.assertEqual((found.reason, found.skipped[0]), ("pin-fallback", Skipped("nobody", "unknown")))
        found = pool.assign("10.2.0.1", region="eu")
        self.assertEqual((found.region, found.reason, found.pin), ("us", "pinned", "10.0.0.0/8"))
        self.assertIsNotNone(found.position.point)
        pool.apply(PinRow("10.0.0.0/8", region="mars"))
        self.assertEqual(pool.assign("10.2.0.1").reason, "pin-fallback")
        self.assertEqual([pin.cidr for pin in pool.pins()], ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/25"])
        for cidr in ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/25"):
            pool.apply(PinRow(cidr))
        self.assertEqual((pool.pins(), pool.assign("10.1.2.3")), ([], ring))

    def test_pinned_worker_that_the_ring_takes_too(self) -> None:
        """Without it an explanation would name one worker as the chosen one and as passed by."""
        for state in ("full", "draining"):
            pool = pool_of([*crew(1, state), PinRow("10.0.0.0/8", "w1")])  # type: ignore[arg-type]
            found = pool.assign("10.0.0.1")
            self.assertEqual((found.worker, found.reason, found.state), ("w1", "overflow", state))
            self.assertEqual((found.pin, found.skipped), ("10.0.0.0/8", ()))

    def test_pin_falls_back_to_its_region(self) -> None:
        """Without it a pin that names both would forget the region as soon as its worker is gone."""
        pool = pool_of([*crew(4, region="eu"), *crew(1, region="us", start=5), PinRow("::/0", "w9", "us")])
        found = pool.assign("2001:db8::1", region="eu")
        self.assertEqual((found.worker, found.reason), ("w5", "pin-fallback"))
        pool.apply(AttachmentRow("w5", "f1", 1, "full"))
        self.assertEqual(pool.assign("2001:db8::1").region, "eu")


class DigestTests(SynchronousTestCase):
    """Equal exactly when the mapping is."""

    def test_everything_that_counts(self) -> None:
        """Without it two fronts could map differently and still look as if they agreed."""
        base = [*crew(3), PinRow("10.0.0.0/8", "w1")]
        changes: list[Row] = [
            WorkerRow("w1", region="eu"),
            WorkerRow("w1", capacity=200),
            AttachmentRow("w1", "f1", 1, "full"),
            AttachmentRow("w1", "f1", 1, "draining"),
            AttachmentRow("w1", "f1", 1, "down"),
            AttachmentRow("w1", "f1", 2, "up"),
            FrontRow("f1", 1, 1),
            PinRow("10.0.0.0/8", "w2"),
            PinRow("10.0.0.0/8", "", "w1"),
            PinRow("10.0.0.0/8"),
            PinRow("10.0.0.0/9", "w1"),
        ]
        pools = [pool_of(base), *(pool_of([*base, change]) for change in changes), pool_of(base, replicas=151)]
        digests = [pool.digest for pool in pools]
        self.assertEqual(digests[5], digests[6])  # the worker is gone in two ways
        del digests[6]
        self.assertEqual(len(set(digests)), len(digests))
        for digest in digests:
            self.assertRegex(digest, "^[0-9a-f]{64}$")

    def test_nothing_that_does_not_count(self) -> None:
        """Without it fronts that map every range alike would look as if they did not."""
        base = [*crew(3), PinRow("10.0.0.0/8", "w1")]
        digest = pool_of(base).digest
        changes: list[Row] = [
            FrontRow("f1", 1, region="eu", url="http://f1", draining=True),
            FrontRow("f2", 1),
            WorkerRow("w1", address="192.0.2.1"),
            WorkerRow("w9"),
            AttachmentRow("w1", "f2", 1, "up"),
            AttachmentRow("w1", "f2", 1, "full"),
            PinRow("10.0.0.1/8", "w2"),
            PinRow("nonsense", "w2"),
        ]
        for row in changes:
            self.assertEqual(pool_of([*base, row]).digest, digest, row)
