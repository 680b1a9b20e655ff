"""Workers that are lost over many turns of the loop, as when a network breaks: they are dealt with in a few slices."""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.defer import Deferred

from kollator.registry import FEW_AT_ONCE, GATHERED_TURNS, MANY_AT_ONCE
from kollator.signaling.connection import Claim
from kollator.state.rows import Row
from tests.test_registry import RegistryTestCase


class GatheredTests(RegistryTestCase):
    """Some more workers are lost with each turn, for a turn handles so many ends of connections only."""

    def setUp(self) -> None:
        """Takes the turns of the registry in hand, and notes what it writes and of how many it tells."""
        super().setUp()
        self.calls: list[Callable[[], None]] = []
        self.written: list[int] = []
        self.told: list[Collection[str]] = []
        write = self.front.writer.write

        def noted(rows: Collection[Row]) -> Deferred[None]:
            self.written.append(len(rows))
            return write(rows)

        self.patch(self.front.registry, "_soon", self.calls.append)
        self.patch(self.front.registry, "_lost", self.told.append)
        self.patch(self.front.writer, "write", noted)

    def begin(self, number: int) -> None:
        """So many workers have joined; what was written of that is not noted."""
        self.claims = [self.front.worker(f"w{number:03d}") for number in range(number)]
        self.written.clear()

    def turn(self, lost: Collection[Claim] = ()) -> None:
        """One turn of the loop: first what was put off, then the events."""
        calls, self.calls[:] = self.calls[:], []
        for call in calls:
            call()
        for claim in lost:
            self.front.registry.worker_left(claim)

    def settled(self) -> int:
        """Goes on until nothing is put off any more; returns how many turns that takes."""
        turns = 0
        while self.calls:
            self.turn()
            turns += 1
            self.assertLess(turns, 1000)
        return turns

    def test_a_few_slices(self) -> None:
        """Each turn's would be a write, a message to every front and a line of the log, thirty times in a tenth of a
        second.
        """
        self.begin(192)
        for first in range(0, 192, 32):
            self.turn(self.claims[first : first + 32])
        self.assertEqual(self.written, [1] * FEW_AT_ONCE)
        self.settled()
        self.assertEqual(self.written, [1] * FEW_AT_ONCE + [192 - FEW_AT_ONCE])
        self.assertEqual(self.lost(), {"closed": 192})

    def test_told_together(self) -> None:
        """The clients of the first ones would be sent to those that are about to be taken out."""
        self.begin(98)
        for first in range(0, 96, 32):
            self.turn(self.claims[first : first + 32])
        self.assertEqual(self.told, [])
        self.settled()
        self.assertEqual([len(workers) for workers in self.told], [96])
        self.turn(self.claims[96:98])
        self.turn()
        self.assertEqual([len(workers) for workers in self.told], [96, 2])

    def test_not_for_long(self) -> None:
        """While a few are lost with each turn, for minutes, clients would be sent to all that were lost before."""
        self.begin(300)
        left_at: dict[str, int] = {}
        for turn in range(50):
            for worker, at in list(left_at.items()):
                if self.state(worker) == "down":
                    self.assertLessEqual(turn - at, GATHERED_TURNS + 2, worker)
                    del left_at[worker]
            lost = self.claims[6 * turn : 6 * turn + 6]
            left_at |= {claim.id: turn for claim in lost}
            self.assertLessEqual(turn - min(left_at.values()), GATHERED_TURNS + 2)
            self.turn(lost)
        self.assertTrue(4 < len(self.told) < 10, self.told)

    def test_enough_for_a_slice(self) -> None:
        """A full slice has nothing to wait for."""
        self.begin(300)
        self.turn(self.claims[: MANY_AT_ONCE + FEW_AT_ONCE])
        self.turn(self.claims[MANY_AT_ONCE + FEW_AT_ONCE :])
        self.assertEqual(self.written, [1] * FEW_AT_ONCE + [MANY_AT_ONCE])
        self.assertEqual([len(workers) for workers in self.told], [MANY_AT_ONCE + FEW_AT_ONCE])

    def test_few(self) -> None:
        """A handful in one turn would be waited for although nobody else is lost."""
        self.begin(8)
        self.turn(self.claims[: 2 * FEW_AT_ONCE])
        self.turn()
        self.assertEqual((self.written, len(self.told)), ([1] * FEW_AT_ONCE + [FEW_AT_ONCE], 1))

    def test_no_more_come(self) -> None:
        """As soon as a turn brings no more they are taken out, or each loss of ten workers would wait a while."""
        self.begin(20)
        self.turn(self.claims[:20])
        self.turn()
        self.assertEqual(self.written, [1] * FEW_AT_ONCE)
        self.turn()
        self.assertEqual((self.written, len(self.told)), ([1] * FEW_AT_ONCE + [FEW_AT_ONCE], 1))
        self.assertLess(self.settled(), 20)
        self.assertEqual(self.front.pool.counts().up, 0)

    def test_stop_meanwhile(self) -> None:
        """Who waits for others when the front stops must be written before the writer is closed, and told of."""
        self.begin(80)
        self.turn(self.claims[:40])
        self.turn(self.claims[40:80])
        self.front.registry.settle()
        self.assertEqual((sum(self.written), self.front.pool.counts().up), (80, 0))
        self.settled()
        self.assertEqual(sum(len(workers) for workers in self.told), 80)
