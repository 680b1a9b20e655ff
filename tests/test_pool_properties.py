"""What must hold of every pool: it is a function of the latest rows, and moves no more than it must."""

from __future__ import annotations

import random

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.assignment import Assignment
from kollator.pool.pool import Pool
from kollator.pool.ring import key_hash, point_hashes, position_of, weight
from kollator.state.rows import (
    WHYS,
    AttachmentRow,
    AttachmentState,
    DrainRow,
    FrontRow,
    PinRow,
    Row,
    WorkerRow,
)
from tests.pools import (
    ADDRESSES,
    NaivePool,
    crew,
    histories,
    latest,
    owners,
    pool_of,
    regions,
    rows,
    thresholds,
    worker_ids,
)

SAMPLED = ["10.0.0.1", "10.0.1.5", "10.0.1.6", "10.200.0.1", "192.0.2.1", "2001:db8::1"]
MANY = [f"{number % 200 + 1}.{number // 200}.7.9" for number in range(400)]


class AgreementTests(SynchronousTestCase):
    """Fronts that hold the same rows answer alike, whatever the way there."""

    @given(histories, st.randoms(use_true_random=False), st.sets(worker_ids, max_size=3), regions, thresholds)
    @settings(max_examples=100, deadline=None)
    def test_function_of_the_latest_rows(
        self, history: list[Row], source: random.Random, exclude: set[str], region: str, threshold: float
    ) -> None:
        """Without it fronts with equal rows could answer differently, or otherwise than the rules say."""
        first = pool_of(history, 4, threshold)
        current = latest(history)
        source.shuffle(current)
        second = Pool(replicas=4, panic_threshold=threshold)
        while current:  # as a sync brings them: some at a time
            size = source.randint(1, len(current))
            second.apply_all(current[:size])
            del current[:size]
        naive = NaivePool(latest(history), 4, threshold)
        self.assertEqual(first.digest, second.digest)
        self.assertEqual(first.workers(), second.workers())
        self.assertEqual(first.counts(), second.counts())
        self.assertEqual(first.pins(), second.pins())
        self.assertEqual(first.drains(), second.drains())
        self.assertEqual((first.points, first.unwell), (second.points, second.unwell))
        self.assertEqual((first.panic, second.panic), (naive.panic, naive.panic))
        self.assertEqual(
            {view.id: view.state for view in first.workers() if view.state != "down"}, naive.states
        )
        for address in SAMPLED:
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
                self.assertEqual((skip.reason, skip.why), (view.state, view.why))
        view = pool.worker(found.worker) if found.worker is not None else None
        if view is not None:
            self.assertEqual((found.region, found.state), (view.region, view.state))
            self.assertTrue(view.fronts)
            if found.position.point is not None:
                points = point_hashes(view.id, weight(view.capacity, 4))
                self.assertIn(found.position.point, [position_of(point) for point in points])

    @given(histories, st.lists(rows, min_size=1, max_size=4), thresholds)
    @settings(max_examples=100, deadline=None)
    def test_lost(self, history: list[Row], together: list[Row], threshold: float) -> None:
        """Without it the clients of a lost worker would not be told, or those of a living one moved."""
        pool = pool_of(history, 2, threshold)
        before = {view.id for view in pool.workers() if view.state != "down"}
        lost = pool.apply_all(together)
        after = {view.id for view in pool.workers() if view.state != "down"}
        self.assertEqual(lost, tuple(sorted(before - after)))

    @given(histories, st.sets(worker_ids, max_size=2), regions)
    @settings(max_examples=100, deadline=None)
    def test_unwell_are_named_exactly_when_they_would_serve(
        self, history: list[Row], exclude: set[str], region: str
    ) -> None:
        """Without it an operator could not see whom an outage moves, or would suspect those it does not concern."""
        pool = pool_of(history, 4)
        well: list[Row] = []
        for row in latest(history):
            if isinstance(row, AttachmentRow) and row.state == "down" and row.why:
                row = AttachmentRow(row.worker, row.front, row.incarnation, "up")
            well.append(row)
        views = {view.id: view for view in pool.workers()}
        for address in SAMPLED:
            found = pool.assign(address, region=region, exclude=exclude)
            if found.pin is not None:
                continue
            told = {skip.worker for skip in found.skipped if skip.reason == "down"}
            self.assertTrue(all(views[worker].why for worker in told))
            for worker in views.keys() - exclude:
                if views[worker].state == "down" and views[worker].why:
                    # Were this one alone well again, it would be taken in place of the one that was.
                    others = {id for id, view in views.items() if view.why in WHYS} - {worker}
                    taken = pool_of(well, 4).assign(address, region=region, exclude=exclude | others).worker
                    self.assertEqual(worker in told, taken == worker, (address, worker))


class MovementTests(SynchronousTestCase):
    """Who moves when something changes."""

    @given(st.integers(2, 8), st.sampled_from(["down", "unwell", "full", "draining", "drained"]), st.integers(1, 8))
    @settings(max_examples=60, deadline=None)
    def test_only_the_changed_worker_moves(self, count: int, what: str, which: int) -> None:
        """Without it losing, draining or filling up one worker would tear clients from the others."""
        pool = pool_of(crew(count))
        before, digest = owners(pool), pool.digest
        changed = f"w{which % count + 1}"
        state: dict[str, AttachmentState] = {"full": "full", "draining": "draining"}
        row: Row = AttachmentRow(changed, "f1", 1, state.get(what, "down"), "ping" if what == "unwell" else "")
        pool.apply(DrainRow(changed, True) if what == "drained" else row)
        for address, worker in owners(pool).items():
            self.assertNotEqual(worker, changed)
            if before[address] != changed:
                self.assertEqual(worker, before[address])
        self.assertNotEqual(pool.digest, digest)
        pool.apply_all([AttachmentRow(changed, "f1", 1, "up"), DrainRow(changed, False)])
        self.assertEqual((owners(pool), pool.digest), (before, digest))

    @given(
        st.integers(1, 9), st.text("abcdefghij", min_size=1, max_size=8), st.sampled_from([50, 100, 200])
    )
    @settings(max_examples=40, deadline=None)
    def test_a_new_worker_takes_its_share_only(self, count: int, name: str, capacity: int) -> None:
        """Without it every worker that is added would move clients between the others, or get too few or too many."""
        pool = pool_of(crew(count))
        before = owners(pool, MANY)
        pool.apply_all([WorkerRow(name, capacity=capacity), AttachmentRow(name, "f1", 1, "up")])
        after = owners(pool, MANY)
        moved = [address for address in MANY if after[address] != before[address]]
        self.assertEqual({after[address] for address in moved} - {name}, set())
        share = capacity / (100 * count + capacity)
        self.assertGreater(len(moved), 0.2 * share * len(MANY))
        self.assertLess(len(moved), 2.0 * share * len(MANY))
        pool.apply(AttachmentRow(name, "f1", 1, "down"))
        self.assertEqual(owners(pool, MANY), before)

    @given(st.sets(st.integers(1, 8), min_size=1, max_size=7), st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_a_panic_puts_everybody_back(self, unwell: set[int], at_once: bool) -> None:
        """Without it clients of workers that are well would be moved by a panic, which only adds workers."""
        before = owners(pool_of(crew(8)))
        pool = pool_of(crew(8), panic_threshold=50.0)
        changes: list[Row] = [AttachmentRow(f"w{number}", "f1", 1, "down", "ping") for number in sorted(unwell)]
        lost: set[str] = set()
        for some in [changes] if at_once else [[row] for row in changes]:
            lost |= set(pool.apply_all(some))
        if len(unwell) > 4:
            self.assertEqual((pool.panic, owners(pool)), (True, before))
        else:
            self.assertEqual((pool.panic, lost), (False, {f"w{number}" for number in unwell}))

    def test_alternates_are_who_would_follow(self) -> None:
        """Without it a client that loses its worker would try another one than the pool then assigns."""
        for unwell in (0, 4):
            pool = pool_of([*crew(6 - unwell), *crew(unwell, "down", start=7 - unwell, why="ping")], 150, 100.0)
            for address in ADDRESSES[:30]:
                found = pool.assign(address, alternates=3)
                self.assertEqual(len(found.alternates), 3)
                tried = [found.worker or ""]
                for ref in found.alternates:
                    self.assertEqual(pool.assign(address, exclude=tried).worker, ref.id)
                    tried.append(ref.id)
            self.assertEqual(len(pool.assign("10.0.0.1", alternates=99).alternates), 5)
            self.assertEqual(pool.assign("10.0.0.1", alternates=0).alternates, ())


class DigestTests(SynchronousTestCase):
    """Equal exactly when the mappings are."""

    @given(histories, histories, thresholds, thresholds)
    @settings(max_examples=100, deadline=None)
    def test_equal_digests_mean_equal_answers(
        self, first: list[Row], second: list[Row], one_threshold: float, other_threshold: float
    ) -> None:
        """Without it the digest on ``/workers`` would prove nothing."""
        one, two = pool_of(first, 2, one_threshold), pool_of(second, 2, other_threshold)

        def mapping(pool: Pool) -> object:
            placed = {view.id: (view.region, view.state) for view in pool.workers() if view.state != "down"}
            weights = [weight(view.capacity, 2) for view in pool.workers() if view.state != "down"]
            return placed, weights, pool.pins()

        self.assertEqual(one.digest == two.digest, mapping(one) == mapping(two))
        if one.digest == two.digest:
            self.same_answers(one, two)
        merged = [*first, *second]
        self.assertEqual(pool_of(merged, 2).digest, pool_of(latest(merged), 2).digest)

    def same_answers(self, one: Pool, two: Pool) -> None:
        """Two pools assign alike, whatever is asked."""
        for address in SAMPLED:
            for region in ("", "eu"):
                for exclude in ((), ("w1", "w4")):
                    found = one.assign(address, region=region, exclude=exclude, explain=False)
                    self.assertEqual(two.assign(address, region=region, exclude=exclude, explain=False), found)

    @given(histories, st.data(), thresholds)
    @settings(max_examples=100, deadline=None)
    def test_one_change_shows(self, history: list[Row], data: st.DataObject, threshold: float) -> None:
        """Without it one worker of another state or region, or one pin, could hide between all the others."""
        before = pool_of([*history, FrontRow("f1", 1), *crew(1, start=8)], 2, threshold)
        changes: list[Row] = [
            WorkerRow("w8", "mars"),
            WorkerRow("w8", capacity=300),
            AttachmentRow("w8", "f1", 1, "full"),
            AttachmentRow("w8", "f1", 1, "draining"),
            AttachmentRow("w8", "f1", 1, "down"),
            DrainRow("w8", True),
            PinRow("192.0.2.0/24", "w8"),
            PinRow("192.0.2.0/24", "", "mars"),
        ]
        change = data.draw(st.sampled_from(changes))
        after = pool_of([*history, FrontRow("f1", 1), *crew(1, start=8), change], 2, threshold)
        assume(before.panic == after.panic)
        self.assertNotEqual(before.digest, after.digest)

    @given(histories)
    @settings(max_examples=60, deadline=None)
    def test_unwell_workers_are_the_same_as_none(self, history: list[Row]) -> None:
        """Without a panic a front that knows why a worker is down would look as if it disagreed with who does not."""
        forgotten: list[Row] = []
        for row in latest(history):
            if isinstance(row, AttachmentRow):
                row = AttachmentRow(row.worker, row.front, row.incarnation, row.state)
            forgotten.append(row)
        one, two = pool_of(history, 4), pool_of(forgotten, 4)
        self.assertEqual(one.digest, two.digest)
        self.same_answers(one, two)
