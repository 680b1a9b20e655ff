"""Rings of regions: made when they are asked for, and no answer depends on how far they have come."""

from __future__ import annotations

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool import assignment
from kollator.pool.assignment import Candidate, Placed, Rings
from kollator.pool.ring import key_hash
from kollator.pool.standing import PREFERENCE

workers = st.dictionaries(
    st.sampled_from([f"w{number}" for number in range(30)]),
    st.builds(Placed, st.sampled_from(["", "eu", "us"]), st.integers(1, 40), st.sampled_from(PREFERENCE)),
    max_size=30,
)
changes = st.lists(st.tuples(st.integers(0, 29), st.sampled_from(["", "eu", "us"]), st.sampled_from(PREFERENCE)))


def order(rings: Rings, region: str, without: frozenset[str] = frozenset()) -> list[Candidate]:
    """Everybody, as one range prefers them."""
    return list(rings.candidates(key_hash("192.0.2.0/24"), region, without))


class RegionRingTests(SynchronousTestCase):
    """A region's ring is an index, nothing else."""

    @given(workers, changes, st.frozensets(st.sampled_from([f"w{number}" for number in range(30)]), max_size=5))
    @settings(max_examples=100, deadline=None)
    def test_same_answers_while_it_is_made(self, placed, changed, without):
        """Without it a front that has just been asked for a region would assign other workers than its peers."""
        walked, partial = Rings(), Rings()  # the one is never swept: the common ring is walked all the time
        for worker, place in placed.items():
            walked.add(worker, place)
            partial.add(worker, place)
        with mock.patch.object(assignment, "PLACED_AT_ONCE", 0):
            self.assertEqual(order(partial, "eu", without), order(walked, "eu", without))
            for number, region, state in changed:
                partial.sweep(4 * 30)
                worker = f"w{number}"
                for rings in (walked, partial):
                    if worker in rings.placed:
                        rings.remove_all([worker])
                    rings.add(worker, Placed(region, 10, state))
                self.assertEqual(order(partial, "eu", without), order(walked, "eu", without))
            while partial.sweep(1000):
                pass
            self.assertEqual(order(partial, "eu", without), order(walked, "eu", without))
            self.assertEqual(partial.points, sum(place.points for place in partial.placed.values()))

    def test_made_in_slices(self) -> None:
        """Without it the first client that asks for a large region would hold the front up for seconds."""
        rings = Rings()
        for number in range(60):
            rings.add(f"w{number}", Placed("eu", 150, "up"))
        list(rings.candidates(0, "eu", frozenset()))
        self.assertLess(len(rings._rings["up", "eu"]), 60)
        slices = 1
        while rings.sweep(4_000):
            slices += 1
        self.assertEqual(len(rings._rings["up", "eu"]), 60)
        self.assertGreater(slices, 3)

    def test_forgotten(self) -> None:
        """Without it regions whose workers are gone would pile up."""
        rings = Rings()
        rings.add("w1", Placed("eu", 10, "up"))
        list(rings.candidates(0, "eu", frozenset()))
        list(rings.candidates(0, "nowhere", frozenset()))
        self.assertEqual(set(rings._unplaced), {"eu"})
        rings.remove_all(["w1"])
        self.assertEqual((rings._unplaced, rings._members, rings._rings), ({}, {}, {}))
