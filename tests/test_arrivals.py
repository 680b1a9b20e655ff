"""Merged rows on their way to the pool: in slices, the newest of each, and never lost by an error."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.arrivals import CHUNK, SLICE_S, Arrivals
from kollator.state.rows import WorkerRow


class WorkClock(Clock):
    """Time passes as rows are applied."""

    turns = 0

    def callLater(self, *args, **kwargs):
        self.turns += 1
        return super().callLater(*args, **kwargs)


class ArrivalsTests(SynchronousTestCase):
    """The queue before the pool."""

    def setUp(self):
        self.clock = WorkClock()
        self.applied: list[WorkerRow] = []
        self.cost_s = 0.0
        self.arrivals = Arrivals(self.clock, self.apply)
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def apply(self, rows):
        self.applied += rows
        self.clock.rightNow += self.cost_s

    def test_at_once(self):
        """A single change would wait for the next turn."""
        self.arrivals.take([WorkerRow("w1")])
        self.assertEqual(self.applied, [WorkerRow("w1")])

    def test_slices(self):
        """Ten thousand rows at once would stall the reactor."""
        rows = [WorkerRow(f"w{number}") for number in range(10 * CHUNK)]
        self.cost_s = SLICE_S / 2
        self.arrivals.take(rows)
        self.assertEqual(self.applied, rows[: 2 * CHUNK])
        self.clock.advance(0)
        self.assertEqual((self.applied, self.clock.turns, len(self.arrivals)), (rows, 4, 0))

    def test_newest(self):
        """A row that changes faster than it is applied would fill the memory, or be applied late."""
        self.cost_s = SLICE_S
        self.arrivals.take([WorkerRow(f"w{number}") for number in range(2 * CHUNK)])
        for capacity in range(1, 50):
            self.arrivals.take([WorkerRow("w15", capacity=capacity)])
        self.assertEqual(len(self.arrivals), CHUNK)
        self.clock.advance(0)
        self.assertEqual(self.applied[-1], WorkerRow("w15", capacity=49))

    def test_forgotten(self):
        """A row that waits would overwrite what this front has written after it."""
        self.cost_s = SLICE_S
        self.arrivals.take([WorkerRow(f"w{number}") for number in range(CHUNK + 2)])
        self.arrivals.forget([WorkerRow(f"w{CHUNK}", "eu")])
        self.clock.advance(0)
        self.assertEqual(self.applied[CHUNK:], [WorkerRow(f"w{CHUNK + 1}")])

    def test_error(self):
        """One row that the pool does not take would end the sync."""
        def apply(rows):
            if rows[0].id == "w0":
                raise RuntimeError("no")
            self.applied += rows

        arrivals = Arrivals(self.clock, apply)
        arrivals.take([WorkerRow(f"w{number}") for number in range(2 * CHUNK)])
        self.assertEqual(len(self.applied), CHUNK)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_stopped(self):
        """Rows would be applied to the rooms of a front that has stopped."""
        self.cost_s = SLICE_S
        self.arrivals.take([WorkerRow(f"w{number}") for number in range(2 * CHUNK)])
        self.arrivals.stop()
        self.clock.advance(0)
        self.assertEqual(len(self.applied), CHUNK)
