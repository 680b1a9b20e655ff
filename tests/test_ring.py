"""The ring: a function of the set of its workers, even, and nearly still when one comes or goes."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool import ring as ring_module
from kollator.pool.ring import (
    INDEX_BITS,
    RING_SIZE,
    WEIGHT_MAX,
    Ring,
    key_hash,
    point_hashes,
    position_of,
    weight,
)

hashes = st.integers(0, 2**64 - 1)
KEY = 0xB53ED958B3EA6DE1
POINTS = [
    0x49B98263C3D0F28A,
    0xC5288F3BE59E85B9,
    0x7BA90415FDCE69AE,
    0x1F1A793BD4E4A488,
    0x7513FF2896F95100,
    0x6AC7CC1B0EF69FC4,
    0xA1E459D568CE3DFD,
    0xE32DC4B5DFC8A969,
    0x0AABF5061AE445A6,
]
names = st.sampled_from([f"w{number}" for number in range(12)])


class NaiveRing:
    """The ring as a text-book has it: one sorted list of positions and ids, made anew for each question."""

    def __init__(self, counts: dict[str, int], points_of=point_hashes) -> None:
        self.points = sorted(
            (position_of(hash64), worker)
            for worker, count in counts.items()
            for hash64 in points_of(worker, count)
        )

    def steps(self, hash64: int, without=frozenset()) -> list[tuple[str, int]]:
        """Walk clockwise once round."""
        start = position_of(hash64)
        met: dict[str, int] = {}
        for position, worker in sorted(self.points, key=lambda point: ((point[0] - start) % RING_SIZE, point[1])):
            if worker not in without:
                met.setdefault(worker, position)
        return list(met.items())


def crowded(worker: str, count: int) -> Sequence[int]:
    """Give points on sixteen positions only, so that nearly all of them are shared."""
    return [(hash64 >> 60) << 60 | hash64 & 0xFFFFF for hash64 in point_hashes(worker, count)]


class RingTests(SynchronousTestCase):
    """One ring, with limits so small that a few points already cross all of them."""

    def setUp(self) -> None:
        """Make buckets split, merge and fill with garbage early, and walks give up soon."""
        for name, value in [
            ("_BUCKET_POINTS_MAX", 6),
            ("_BUCKET_POINTS_MIN", 2),
            ("_BARREN_POINTS", 4),
            ("_FEW_POINTS", 9),
            ("REMOVED_POINTS_MAX", 10),
        ]:
            self.patch(ring_module, name, value)

    def check(self, ring: Ring, counts: dict[str, int], keys: Sequence[int], points_of=point_hashes) -> None:
        """Compare a ring's every answer with the naive one's."""
        naive = NaiveRing(counts, points_of)
        self.assertEqual((len(ring), ring.points), (len(counts), sum(counts.values())))
        for hash64 in keys:
            expected = naive.steps(hash64)
            self.assertEqual(list(ring.steps(hash64)), expected)
            self.assertEqual(list(ring.walk(hash64)), [worker for worker, _ in expected])
            self.assertEqual(ring.lookup(hash64), expected[0][0] if expected else None)
            without = {worker for worker, _ in expected[::2]} | {"stranger"}
            self.assertEqual(list(ring.steps(hash64, without)), naive.steps(hash64, without))

    @given(
        st.lists(st.tuples(st.sampled_from("aaarms"), st.sets(names, max_size=4), st.integers(1, 14)), max_size=25),
        st.lists(hashes, min_size=1, max_size=3),
        st.booleans(),
    )
    @settings(max_examples=100, deadline=None)
    def test_agrees_with_a_sorted_list(self, changes, keys: list[int], shared: bool) -> None:
        """Without it buckets, marks of the dead, reused indexes or shared positions could show in an answer."""
        points_of = crowded if shared else point_hashes
        ring = Ring(points_of)
        counts: dict[str, int] = {}
        for kind, workers, count in changes:
            if kind == "a":
                for worker in sorted(workers - counts.keys()):
                    ring.add(worker, count)
                    counts[worker] = count
            elif kind == "s":
                ring.sweep(count)
            else:
                gone = (workers & counts.keys()) if kind == "r" else set(list(counts)[: len(counts) - 1])
                ring.remove_all(gone)
                for worker in gone:
                    del counts[worker]
            self.check(ring, counts, keys[:1], points_of)
        self.check(ring, counts, [*keys, 0, 2**64 - 1], points_of)

    @given(st.sets(names, min_size=1), st.integers(0, 2**32), st.lists(hashes, min_size=1, max_size=5))
    @settings(max_examples=50, deadline=None)
    def test_order_and_history_do_not_show(self, workers: set[str], seed: int, keys: list[int]) -> None:
        """Without it two fronts that heard of the same workers in another order would disagree."""
        source = random.Random(seed)
        first, second = Ring(crowded), Ring(crowded)
        for worker in sorted(workers):
            first.add(worker, 5)
        for worker in ("x", "y", "z"):
            second.add(worker, 3)
        second.remove_all(["x", "y"])
        for worker in source.sample(sorted(workers), len(workers)):
            second.add(worker, 5)
        second.remove("z")
        for hash64 in keys:
            self.assertEqual(list(first.steps(hash64)), list(second.steps(hash64)))

    @given(st.sets(names, min_size=2), st.integers(1, 30))
    @settings(max_examples=50, deadline=None)
    def test_minimal_movement(self, workers: set[str], count: int) -> None:
        """Without it the coming or going of one worker would move clients between two others."""
        ring = Ring()
        for worker in workers:
            ring.add(worker, count)
        keys = [key_hash(f"10.0.{number}.0/24") for number in range(100)]
        before = [ring.lookup(hash64) for hash64 in keys]
        mover = min(workers)
        ring.remove(mover)
        during = [ring.lookup(hash64) for hash64 in keys]
        for was, now in zip(before, during, strict=True):
            self.assertIn(was, (now, mover))
        ring.add(mover, count)
        self.assertEqual([ring.lookup(hash64) for hash64 in keys], before)

    def test_garbage_goes(self) -> None:
        """Without it the memory of workers that died together would be kept for good."""
        ring = Ring()
        for number in range(50):
            ring.add(f"w{number}", 20)
        buckets = len(ring._buckets)
        ring.remove_all([f"w{number}" for number in range(40)])
        self.assertEqual((ring.points, ring.garbage), (200, 800))
        slices = 1
        while ring.sweep(50):
            slices += 1
        self.assertGreater(slices, 10)
        self.assertEqual(ring.garbage, 0)
        self.assertLess(len(ring._buckets), buckets)
        for number in range(40):
            ring.add(f"v{number}", 20)
        self.assertEqual(len(ring._ids), 50)  # indexes are used again
        ring.remove_all([f"v{number}" for number in range(40)])
        for number in range(5):
            ring.add(f"u{number}", 200)  # each addition sweeps four times its own
        self.assertEqual(ring.garbage, 0)
        ring.remove_all([*[f"w{number}" for number in range(40, 50)], *[f"u{number}" for number in range(5)]])
        self.assertEqual((ring.points, ring.garbage, len(ring._ids), ring.lookup(0)), (0, 0, 0, None))

    def test_refused(self) -> None:
        """Without it a worker could be on the ring twice, or half on it after an error."""
        ring = Ring()
        ring.add("w1", 3)
        self.assertRaises(ValueError, ring.add, "w1", 3)
        self.assertRaises(ValueError, ring.add, "w2", 0)
        self.assertRaises(KeyError, ring.remove, "w2")
        self.assertRaises(KeyError, ring.remove_all, ["w1", "w2"])
        self.patch(ring_module, "WORKERS_MAX", 1)
        self.assertRaises(ValueError, ring.add, "w2", 3)
        self.check(ring, {"w1": 3}, [0, 1 << 63])

    def test_small_share_is_computed(self) -> None:
        """Without it a request that excludes the large workers would walk past all of their points."""
        asked: list[str] = []

        def points_of(worker: str, count: int) -> Sequence[int]:
            asked.append(worker)
            return point_hashes(worker, count)

        ring = Ring(points_of)
        for worker, count in (("large", 2000), ("small", 2), ("tiny", 1)):
            ring.add(worker, count)
        del asked[:]
        self.assertEqual({worker for worker, _ in ring.steps(1 << 50, {"large"})}, {"small", "tiny"})
        self.assertEqual(sorted(asked), ["small", "tiny"])

    def test_full_of_the_dead(self) -> None:
        """Without it a ring whose indexes all belong to dead workers would refuse new ones."""
        self.patch(ring_module, "WORKERS_MAX", 4)
        ring = Ring()
        for worker in "abcd":
            ring.add(worker, 8)
        ring.remove_all(["a", "b", "c"])
        ring.add("e", 8)
        self.check(ring, {"d": 8, "e": 8}, [0, 1 << 63])


class PointTests(SynchronousTestCase):
    """Hashes and weights."""

    def test_known_answers(self) -> None:
        """Without it two versions of the front could map the same rows differently."""
        self.assertEqual(key_hash("203.0.113.0/24"), KEY)
        self.assertEqual(point_hashes("w1", 9), POINTS)
        self.assertEqual(position_of(KEY), KEY >> INDEX_BITS)

    def test_fewer_points_are_the_first_of_more(self) -> None:
        """Without it a worker whose capacity changes would lose the ranges it could keep."""
        self.assertEqual(point_hashes("w1", 150), point_hashes("w1", 300)[:150])
        self.assertEqual(len(set(point_hashes("w1", 300))), 300)

    def test_weight(self) -> None:
        """Without it capacity would not count, or one worker's word could fill the memory of every front."""
        for capacity, replicas, expected in [
            (100, 150, 150),
            (50, 150, 75),
            (1, 150, 2),
            (1, 10, 1),
            (0, 150, 1),
            (-5, 150, 1),
            (1_000_000, 150, 150 * WEIGHT_MAX),
            (100, 1, 1),
        ]:
            self.assertEqual(weight(capacity, replicas), expected, (capacity, replicas))

    def test_even(self) -> None:
        """Without it the busiest of ten equal workers could have a quarter more than its share."""
        source = random.Random(7)
        busiest = []
        for seed in range(12):
            ring = Ring()
            for number in range(10):
                ring.add(f"{seed}-worker-{number}", 150)
            ranges = 15_000
            load = Counter(
                ring.lookup(key_hash(f"{source.getrandbits(32):x}.0/24")) for _ in range(ranges)
            )
            self.assertEqual(len(load), 10)
            busiest.append(max(load.values()) / (ranges / 10))
        self.assertLess(statistics.mean(busiest), 1.25)

    def test_in_proportion(self) -> None:
        """Without it a worker of four times the capacity would not get four times the ranges."""
        ring = Ring()
        for number in range(8):
            ring.add(f"small-{number}", weight(50, 150))
            ring.add(f"large-{number}", weight(200, 150))
        owners = [ring.lookup(key_hash(f"2001:db8:{number:x}::/48")) or "" for number in range(20_000)]
        large = sum(owner.startswith("large") for owner in owners) / len(owners)
        self.assertTrue(0.75 < large < 0.85, large)
