"""Many workers leave many rings at once: they are only marked, which nothing shows but the time that it takes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool import assignment
from kollator.pool import ring as ring_module
from kollator.pool.assignment import Candidate, Placed, Rings
from kollator.pool.ring import REMOVED_POINTS_MAX, Ring, key_hash, point_hashes
from kollator.pool.standing import PREFERENCE
from tests.test_ring import crowded

REGIONS = ["", "eu", "us", "asia"]
KEYS = [key_hash("192.0.2.0/24"), 0, 2**64 - 1]
POINTS = 150
"""Of a worker of the usual capacity."""
workers = st.sets(st.sampled_from([f"w{number}" for number in range(16)]), max_size=16)
places = st.builds(Placed, st.sampled_from(REGIONS), st.integers(1, 12), st.sampled_from(PREFERENCE))


def answers(rings: Rings) -> list[list[Candidate]]:
    """Everybody, as some ranges prefer them, anywhere and in each region."""
    return [list(rings.candidates(key, region, {"w0"})) for key in KEYS for region in REGIONS]


class Counted(Ring):
    """A ring that counts the points it takes out one by one, and those that it looks at to sweep."""

    taken = 0
    swept = 0

    def _delete_points(self, worker: str, index: int) -> None:
        Counted.taken += self._counts[index]
        super()._delete_points(worker, index)

    def sweep(self, points_max: int) -> bool:
        """Counts what it may look at."""
        Counted.swept += min(points_max, self.points + self.garbage)
        return super().sweep(points_max)


class SameAnswerTests(SynchronousTestCase):
    """A mark is a way to do it later, nothing else."""

    def setUp(self) -> None:
        """Makes buckets split and merge early, and walks give up soon."""
        for name, value in [
            ("_BUCKET_POINTS_MAX", 6), ("_BUCKET_POINTS_MIN", 2), ("_BARREN_POINTS", 4), ("_FEW_POINTS", 9),
        ]:
            self.patch(ring_module, name, value)

    @given(
        st.lists(st.tuples(st.sampled_from("pprrms"), workers, places), max_size=20),
        st.sampled_from([0, 10, 60, 10_000]),
        st.sampled_from([0, 1000]),
        st.booleans(),
    )
    @settings(max_examples=100, deadline=None)
    def test_history_does_not_show(
        self, changes: list[tuple[str, set[str], Placed]], removed_max: int, placed_at_once: int, shared: bool
    ) -> None:
        """A front that lost half its workers in one moment would assign other workers than its peers."""
        self.patch(ring_module, "REMOVED_POINTS_MAX", removed_max)
        self.patch(assignment, "REMOVED_POINTS_MAX", removed_max)
        self.patch(assignment, "PLACED_AT_ONCE", placed_at_once)
        self.patch(assignment, "point_hashes", crowded if shared else point_hashes)
        rings = Rings()
        for what, named, place in changes:
            if what == "p":  # some come; who was there may be another now
                rings.update(sorted(named), dict.fromkeys(named, place))
            elif what == "r":
                rings.update(sorted(named), {})
            elif what == "m":  # all others go
                rings.update(sorted(rings.placed.keys() - named), {})
            else:
                rings.sweep(10 * len(named))
            fresh = Rings()
            fresh.update(sorted(rings.placed, reverse=True), dict(rings.placed))
            self.assertEqual(answers(rings), answers(fresh))
            self.assertEqual((rings.points, rings.digest), (fresh.points, fresh.digest))
            self.assertEqual([rings.count(state) for state in PREFERENCE], [fresh.count(state) for state in PREFERENCE])
        while rings.sweep(100):
            pass
        kept = {key: (len(ring), ring.points, ring.garbage) for key, ring in rings._rings.items()}
        expected = {}
        for state in PREFERENCE:
            for region in ["", *rings._unplaced]:
                points = [place.points for place in rings.placed.values()
                          if place.state == state and region in ("", place.region)]
                if points:
                    expected[state, region] = (len(points), sum(points), 0)
        self.assertEqual(kept, expected)

    @given(st.lists(st.tuples(workers, st.booleans(), st.integers(0, 60)), max_size=12), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_marked_however_few(self, changes: list[tuple[set[str], bool, int]], shared: bool) -> None:
        """A worker that was marked and came back could be met where its old points were, or not at all."""
        points_of = crowded if shared else point_hashes
        ring = Ring(points_of)
        there: dict[str, int] = {}
        for named, marked, swept in changes:
            gone = named & there.keys()
            ring.remove_all(gone, marked=marked)
            for worker in gone:
                del there[worker]
            for worker in sorted(named - gone):
                there[worker] = 1 + swept % 7
                ring.add(worker, there[worker])
            ring.sweep(swept)
            fresh = Ring(points_of)
            for worker in sorted(there, reverse=True):
                fresh.add(worker, there[worker])
            for key in KEYS:
                self.assertEqual(list(ring.steps(key)), list(fresh.steps(key)))

    def test_unknown(self) -> None:
        """Marking half of them before the error would leave a ring that is neither the old nor the new one."""
        ring = Ring()
        for worker in ("w1", "w2", "w3"):
            ring.add(worker, 3)
        self.assertRaises(KeyError, ring.remove_all, ["w1", "stranger"], marked=True)
        self.assertEqual((len(ring), ring.points, ring.garbage), (3, 9, 0))


class WorkTests(SynchronousTestCase):
    """What a mass loss costs the turn in which it is applied, counted in points."""

    def lose(self, number: int, of: int, regions: int) -> Rings:
        """So many workers leave rings of so many regions, which all are there. Returns the rings."""
        self.patch(assignment, "Ring", Counted)
        rings = Rings()
        for worker in range(of):
            rings.add(f"w{worker}", Placed(f"region-{worker % regions}" if regions else "", POINTS, "up"))
        for region in range(regions):
            list(rings.candidates(0, f"region-{region}", frozenset()))
        while rings.sweep(1_000_000):
            pass
        self.assertEqual(len(rings._rings), 1 + regions)
        Counted.taken = Counted.swept = 0
        rings.update([f"w{worker}" for worker in range(number)], {})
        self.assertEqual(len(rings.placed), of - number)
        return rings

    def test_many_regions(self) -> None:
        """Two hundred and fifty six workers of twenty regions would be twelve of each, no ring would mark them, and
        their forty thousand points would be looked for one by one, in the time of fifty answers.
        """
        rings = self.lose(256, 300, 20)
        self.assertEqual((Counted.taken, Counted.swept), (0, 0))
        garbage = {region: ring.garbage for (_, region), ring in rings._rings.items()}
        self.assertEqual(garbage.pop(""), 256 * POINTS)
        self.assertEqual(sum(garbage.values()), 256 * POINTS)

    def test_bound(self) -> None:
        """Just under the bound of one ring, in two rings or two states, would be several times as much."""
        for number, regions in ((13, 1), (13, 13), (14, 1), (14, 14), (27, 0), (28, 0), (40, 3)):
            self.lose(number, 45, regions)
            self.assertLessEqual(Counted.taken, REMOVED_POINTS_MAX, (number, regions))
            self.assertLessEqual(Counted.swept, 4 * REMOVED_POINTS_MAX, (number, regions))

    def test_few(self) -> None:
        """Marks for each single worker would have every ring carry garbage, and every walk pass by it, all the time."""
        for number, regions in ((1, 20), (13, 13), (27, 0)):
            rings = self.lose(number, 45, regions)
            self.assertEqual(Counted.taken, (2 if regions else 1) * number * POINTS)
            self.assertEqual([ring.garbage for ring in rings._rings.values() if ring.garbage], [])

    def test_swept_together(self) -> None:
        """Twenty rings with a little garbage each would take twenty rounds of the front's tidying, as many seconds'
        worth of walks past it.
        """
        rings = self.lose(280, 300, 20)
        stored = sum(ring.points + ring.garbage for ring in rings._rings.values())
        slices = 1
        while rings.sweep(20_000):
            slices += 1
        self.assertEqual([ring.garbage for ring in rings._rings.values() if ring.garbage], [])
        self.assertLessEqual(slices, stored // 20_000 + 2)

    def test_slice_of_a_sweep(self) -> None:
        """A slice that goes on from ring to ring must stay one slice: it is taken between two looks at the sockets."""
        rings = self.lose(280, 300, 20)
        sizes: Sequence[int] = [ring.points + ring.garbage for ring in rings._rings.values()]
        Counted.swept = 0
        rings.sweep(20_000)
        self.assertLessEqual(Counted.swept, 20_000 + max(sizes[1:]))
