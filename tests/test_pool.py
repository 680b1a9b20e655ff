"""The pool: a pure function of the set of rows that sends each range where it should go, and says why."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.assignment import PREFERENCE, SKIPPED_MAX, Assignment, RingPosition, Skipped, SkipReason
from kollator.pool.pool import Counts, Pool, WorkerView
from kollator.pool.ranges import client_range
from kollator.pool.ring import RING_SIZE, key_hash, point_hashes, position_of, weight
from kollator.state.rows import AttachmentRow, AttachmentState, FrontRow, PinRow, Row, WorkerRow

ADDRESSES = [f"10.0.{number}.7" for number in range(120)]

front_ids = st.sampled_from(["f1", "f2", "f3"])
worker_ids = st.sampled_from([f"w{number}" for number in range(7)])
regions = st.sampled_from(["", "eu", "us"])
numbers = st.integers(0, 2)
rows = st.one_of(
    st.builds(FrontRow, id=front_ids, incarnation=numbers, retired=numbers, draining=st.booleans()),
    st.builds(WorkerRow, id=worker_ids, region=regions, capacity=st.sampled_from([1, 100, 250])),
    st.builds(
        AttachmentRow,
        worker=worker_ids,
        front=front_ids,
        incarnation=numbers,
        state=st.sampled_from(["up", "up", "full", "draining", "down"]),
    ),
    st.builds(
        PinRow,
        cidr=st.sampled_from(["10.0.0.0/8", "10.0.0.0/23", "10.0.1.0/24", "10.0.1.5/32", "10.0.0.1/8", "::/0", "x"]),
        worker=st.sampled_from(["", "w0", "w1", "nobody"]),
        region=regions,
    ),
)


ESTABLISHED: list[Row] = [
    *(FrontRow(f"f{number}", 1) for number in (1, 2, 3)),
    *(WorkerRow(f"w{number}", ("", "eu", "us")[number % 3]) for number in range(7)),
    *(AttachmentRow(f"w{number}", f"f{number % 3 + 1}", 1, "up") for number in range(7)),
]
histories = st.tuples(st.sampled_from([[], ESTABLISHED]), st.lists(rows, max_size=30)).map(lambda two: two[0] + two[1])


def key_of(row: Row) -> tuple[str, ...]:
    """Give what a row is the latest version of."""
    match row:
        case FrontRow() | WorkerRow():
            return type(row).__name__, row.id
        case AttachmentRow():
            return "attachment", row.worker, row.front
        case PinRow():
            return "pin", row.cidr


def latest(history: Iterable[Row]) -> list[Row]:
    """Give the latest version of each row."""
    return list({key_of(row): row for row in history}.values())


def pool_of(applied: Iterable[Row], replicas: int = 150) -> Pool:
    """Make a pool and apply rows one after the other."""
    pool = Pool(replicas=replicas)
    for row in applied:
        pool.apply(row)
    return pool


def crew(count: int, state: AttachmentState = "up", region: str = "", start: int = 1) -> list[Row]:
    """Give the rows of workers w1, w2, … held by the front f1."""
    found: list[Row] = [FrontRow("f1", 1)]
    for number in range(start, start + count):
        found += (WorkerRow(f"w{number}", region), AttachmentRow(f"w{number}", "f1", 1, state))
    return found


def owners(pool: Pool) -> dict[str, str | None]:
    """Give the worker of each of ADDRESSES."""
    return {address: pool.assign(address).worker for address in ADDRESSES}


class NaivePool:
    """The assignment in plain words: no ring, no index, everything looked at for each question."""

    def __init__(self, current: list[Row], replicas: int) -> None:
        fronts = {row.id: row for row in current if isinstance(row, FrontRow)}
        self.workers = {row.id: row for row in current if isinstance(row, WorkerRow)}
        self.pins = {}
        for row in current:
            if isinstance(row, PinRow) and (row.worker or row.region) and row.cidr not in ("x", "10.0.0.1/8"):
                self.pins[ipaddress.ip_network(row.cidr)] = row
        self.states: dict[str, str] = {}
        for row in current:
            if isinstance(row, AttachmentRow) and row.state != "down" and row.worker in self.workers:
                front = fronts.get(row.front)
                if front and front.incarnation > front.retired and front.incarnation == row.incarnation:
                    known = self.states.get(row.worker, "up")
                    self.states[row.worker] = max(known, row.state, key=PREFERENCE.index)
        self.replicas = replicas

    def order(self, address: str, region: str, exclude: set[str]) -> list[str]:
        """Give all workers that may be taken, the best first."""
        start = position_of(key_hash(client_range(address)))

        def distance(worker: str) -> int:
            points = point_hashes(worker, weight(self.workers[worker].capacity, self.replicas))
            return min((position_of(point) - start) % RING_SIZE for point in points)

        def rank(worker: str) -> tuple[int, bool, int]:
            abroad = bool(region) and self.workers[worker].region != region
            return PREFERENCE.index(self.states[worker]), abroad, distance(worker)

        return sorted(self.states.keys() - exclude, key=rank)

    def assign(self, address: str, region: str, exclude: set[str]) -> tuple[str | None, list[str], str]:
        """Give the worker, the two alternates and the reason."""
        ip = ipaddress.ip_address(address)
        holding = [network for network in self.pins if network.version == ip.version and ip in network]
        pin = self.pins[max(holding, key=lambda network: network.prefixlen)] if holding else None
        wanted = (pin.region if pin else "") or region
        order = self.order(address, wanted, exclude)
        if not order:
            return None, [], "no-workers"
        chosen = order[0]
        if pin and pin.worker and self.states.get(pin.worker) == "up" and pin.worker not in exclude:
            chosen = pin.worker
        alternates = [
            worker for worker in order if worker != chosen and self.states[worker] == self.states[chosen]
        ][:2]
        abroad = bool(wanted) and self.workers[chosen].region != wanted
        if pin and (chosen != pin.worker if pin.worker else abroad):
            return chosen, alternates, "pin-fallback"
        if self.states[chosen] != "up":
            return chosen, alternates, "overflow"
        if pin:
            return chosen, alternates, "pinned"
        return chosen, alternates, "other-region" if abroad else "ring"


class RowTests(SynchronousTestCase):
    """From rows to the state of workers."""

    @given(histories, st.randoms(use_true_random=False), st.sets(worker_ids, max_size=3), regions)
    @settings(max_examples=100, deadline=None)
    def test_function_of_the_latest_rows(
        self, history: list[Row], source: random.Random, exclude: set[str], region: str
    ) -> None:
        """Without it fronts with equal rows could answer differently, or otherwise than the rules say."""
        first = pool_of(history, replicas=4)
        current = latest(history)
        source.shuffle(current)
        second = Pool(replicas=4)
        second.apply_all(current)
        naive = NaivePool(current, 4)
        self.assertEqual(first.digest, second.digest)
        self.assertEqual(first.workers(), second.workers())
        self.assertEqual(first.counts(), second.counts())
        self.assertEqual(first.pins(), second.pins())
        self.assertEqual(first.points, second.points)
        self.assertEqual(
            {view.id: view.state for view in first.workers() if view.state != "down"}, naive.states
        )
        for address in ["10.0.0.1", "10.0.1.5", "10.0.1.6", "10.200.0.1", "192.0.2.1", "2001:db8::1"]:
            found = first.assign(address, region=region, exclude=exclude)
            self.assertEqual(second.assign(address, region=region, exclude=exclude), found)
            self.check_assignment(first, found, exclude)
            worker, alternates, reason = naive.assign(address, region, exclude)
            self.assertEqual(
                (found.worker, [ref.id for ref in found.alternates], found.reason), (worker, alternates, reason)
            )

    def check_assignment(self, pool: Pool, found: Assignment, exclude: set[str]) -> None:
        """Check what must hold of every assignment."""
        named = [skip.worker for skip in found.skipped]
        self.assertEqual(len(named), len(set(named)))
        self.assertNotIn(found.worker, [*named, *exclude])
        self.assertFalse((exclude | {found.worker}) & {ref.id for ref in found.alternates})
        self.assertEqual(found.position.range, position_of(key_hash(found.range)))
        for skip in found.skipped:
            view = pool.worker(skip.worker)
            if view is None:
                self.assertEqual(skip.reason, "excluded" if skip.worker in exclude else "unknown")
            elif skip.reason == "excluded":
                self.assertIn(skip.worker, exclude)
            elif skip.reason != "other-region":
                self.assertEqual(skip.reason, view.state)
        view = pool.worker(found.worker) if found.worker is not None else None
        if view is not None:
            self.assertEqual((found.region, found.state), (view.region, view.state))
            if found.position.point is not None:
                points = point_hashes(view.id, weight(view.capacity, 4))
                self.assertIn(found.position.point, [position_of(point) for point in points])

    @given(histories, rows)
    @settings(max_examples=100, deadline=None)
    def test_lost(self, history: list[Row], row: Row) -> None:
        """Without it the clients of a lost worker would not be told, or those of a living one moved."""
        pool = pool_of(history, replicas=2)
        before = {view.id for view in pool.workers() if view.state != "down"}
        lost = pool.apply(row)
        after = {view.id for view in pool.workers() if view.state != "down"}
        self.assertEqual(lost, tuple(sorted(before - after)))

    def test_rows_before_what_they_refer_to(self) -> None:
        """Without it a changeset that arrives in another order would lose workers for good."""
        applied = crew(3)
        for order in (applied, applied[::-1], applied[1:] + applied[:1]):
            self.assertEqual(pool_of(order).counts().up, 3)
        pool = pool_of([AttachmentRow("w1", "f1", 1, "up"), FrontRow("f1", 1)])
        self.assertEqual((pool.worker("w1"), pool.workers()), (None, []))
        self.assertIsNone(pool.assign("10.0.0.1").worker)
        self.assertEqual(pool.fronts_of("w1"), ("f1",))

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
        cases: list[tuple[tuple[AttachmentState, AttachmentState], str]] = [
            (("up", "up"), "up"),
            (("up", "down"), "up"),
            (("up", "full"), "full"),
            (("full", "draining"), "draining"),
            (("down", "down"), "down"),
        ]
        for seen, expected in cases:
            pool = pool_of([FrontRow("f1", 1), FrontRow("f2", 1), WorkerRow("w1")])
            for front, state in zip(("f1", "f2"), seen, strict=True):
                pool.apply(AttachmentRow("w1", front, 1, state))
            self.assertEqual(pool.workers()[0].state, expected, seen)

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
            pool.apply(AttachmentRow(f"w{number}", "f1", 1, "down"))
            pool.apply(AttachmentRow(f"w{number}", "f9", 1, "down"))
        self.assertEqual((pool._held, pool._holding, pool.points), ({}, {}, 0))
        self.assertFalse(pool.sweep())

    def test_refused(self) -> None:
        """Without it a setting of no points at all would leave every ring empty."""
        self.assertRaises(ValueError, Pool, replicas=0)
        self.assertRaises(ValueError, pool_of(crew(1)).assign, "localhost")


class MovementTests(SynchronousTestCase):
    """Who moves when something changes."""

    @given(st.integers(2, 8), st.sampled_from(["down", "full", "draining"]), st.integers(1, 8))
    @settings(max_examples=40, deadline=None)
    def test_only_the_changed_worker_moves(self, count: int, state: AttachmentState, which: int) -> None:
        """Without it losing or filling up one worker would tear clients from the others."""
        pool = pool_of(crew(count))
        before, digest = owners(pool), pool.digest
        changed = f"w{which % count + 1}"
        pool.apply(AttachmentRow(changed, "f1", 1, state))
        for address, worker in owners(pool).items():
            self.assertNotEqual(worker, changed)
            if before[address] != changed:
                self.assertEqual(worker, before[address])
        self.assertNotEqual(pool.digest, digest)
        pool.apply(AttachmentRow(changed, "f1", 1, "up"))
        self.assertEqual((owners(pool), pool.digest), (before, digest))

    def test_alternates_are_who_would_follow(self) -> None:
        """Without it a client that loses its worker would try another one than the pool then assigns."""
        pool = pool_of(crew(6))
        for address in ADDRESSES[:30]:
            found = pool.assign(address, alternates=3)
            self.assertEqual(len(found.alternates), 3)
            tried = [found.worker or ""]
            for ref in found.alternates:
                self.assertEqual(pool.assign(address, exclude=tried).worker, ref.id)
                tried.append(ref.id)
        self.assertEqual(len(pool.assign("10.0.0.1", alternates=99).alternates), 5)
        self.assertEqual(pool.assign("10.0.0.1", alternates=0).alternates, ())


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

    @given(histories, histories)
    @settings(max_examples=60, deadline=None)
    def test_equal_digests_mean_equal_answers(self, first: list[Row], second: list[Row]) -> None:
        """Without it the digest on ``/workers`` would prove nothing."""
        one, two = pool_of(first, 2), pool_of(second, 2)

        def mapping(pool: Pool) -> object:
            placed = {view.id: (view.region, view.state) for view in pool.workers() if view.state != "down"}
            weights = [weight(view.capacity, 2) for view in pool.workers() if view.state != "down"]
            return placed, weights, pool.pins()

        self.assertEqual(one.digest == two.digest, mapping(one) == mapping(two))
        merged = [*first, *second]
        self.assertEqual(pool_of(merged, 2).digest, pool_of(latest(merged), 2).digest)
