"""The simulator, on enough seeds to find what hides, and the proof that it can fail."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from itertools import pairwise
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from kollator.state.changes import Cursor
from kollator.state.replication import MergeResult
from kollator.state.store import Store
from tests.sim import figures, weather
from tests.sim.cluster import Broken, Cluster

SEEDS = 300
"""Over 2, 3, 5 and 7 fronts in turn."""


class SimulatorTests(SynchronousTestCase):
    """Whatever happens, the invariants hold."""

    def test_seeds(self):
        """Two leaders, lost rows or fronts that differ would be found by an operator, at night."""
        processes = max(1, min(os.cpu_count() or 1, 4))
        bounds = [SEEDS * number // processes for number in range(processes + 1)]
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.sim", "--seeds", f"{first}..{after - 1}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for first, after in pairwise(bounds)
        ]
        for run in runs:
            self.addCleanup(run.kill)
        told = [run.communicate()[0] for run in runs]
        self.assertEqual([run.returncode for run in runs], [0] * len(runs), "\n".join(told))

    def test_replay(self):
        """A seed that failed would not fail again."""
        traces = []
        for _ in range(2):
            cluster = weather.run(11, 7, 15)
            traces.append((list(cluster._trace), cluster.network.frames, cluster.network.bytes))
        self.assertEqual(traces[0], traces[1])


class FigureTests(SynchronousTestCase):
    """What the cluster promises in figures; ``python -m tests.sim --figures`` has the large ones."""

    def test_healed_partition(self):
        """A cluster whose halves were apart would take long to be one."""
        simulated_s, _ = figures.heal_s(12, 80)
        self.assertLess(simulated_s, 5.0)

    def test_large_sync(self):
        """A front that joins empty would miss rows of a large cluster, or stand still while it takes them in.

        Taken in at once, most of the work is one turn; in slices, a small part of it on any machine.
        """
        gc.disable()  # a collection of the whole suite's objects is no part of the turn that it hits
        self.addCleanup(gc.enable)
        spent_s = figures.sync_s(1000)
        self.assertLess(spent_s["longest turn"], spent_s["apply"] / 4)


class CanFailTests(SynchronousTestCase):
    """What is broken on purpose is found."""

    def assertFound(self, pattern, fronts=3):
        """Some seed fails, with its number and what happened."""
        with self.assertRaisesRegex(Broken, rf"(?s)starts.*seed \d+, {fronts} fronts.*{pattern}"):
            for seed in range(10):
                weather.run(seed, fronts, 15)
        self.flushLoggedErrors()

    def test_vote_that_is_not_stored(self):
        """A simulator that lets a front promise what it forgets proves nothing."""
        with mock.patch.object(Store, "save_vote", lambda store, term, vote: None):
            self.assertFound("has stored term")

    def test_merge_that_does_nothing(self):
        """The same for rows that are acknowledged and not there."""

        def merge(store, changes, *, sender, since=None, cursor=None, sites=()):
            return MergeResult([], [], cursor or Cursor())

        with mock.patch.object(Store, "merge", merge):
            self.assertFound("acknowledges .* and has stored")

    def test_rows_that_are_lost(self):
        """The same for a merge that leaves one change out and says nothing."""
        whole = Store.merge

        def merge(store, changes, **rest):
            return whole(store, changes[:-1], **rest)

        with mock.patch.object(Store, "merge", merge):
            self.assertFound("not the same|has not what it has acknowledged")

    def test_two_leaders(self):
        """The same for the first invariant of all."""
        cluster = Cluster(1, 3)
        self.addCleanup(cluster.close)
        cluster.heal()
        one, other, _ = cluster.fronts.values()
        cluster._check_leader(one.name, 99)
        with self.assertRaisesRegex(Broken, "lead in term 99"):
            cluster._check_leader(other.name, 99)
