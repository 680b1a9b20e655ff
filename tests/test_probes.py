"""Which probe is due when, and what its outcome means."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool import probes
from kollator.pool.probes import Probe, ProbeBook
from kollator.pool.workersfile import HealthTarget

TARGET = HealthTarget("tcp", "192.0.2.1", 9000)
OTHER = HealthTarget("tcp", "192.0.2.2", 9000)


class ProbeTestCase(SynchronousTestCase):
    """A book with an interval of 10 s and a time-out of 2 s."""

    def setUp(self) -> None:
        self.book = ProbeBook(10.0, 2.0)

    def begun(self, now: float) -> Probe:
        """The one probe that is due."""
        (probe,) = self.book.due(now)
        return probe


class ScheduleTests(ProbeTestCase):
    """When probes are due."""

    def test_phase_and_interval(self) -> None:
        """Without it all workers would be probed in one moment, or in an unsteady rhythm."""
        self.assertIsNone(self.book.watch("w1", TARGET, 100.0, 0.25))
        self.assertEqual(self.book.due(102.4), [])
        first = self.begun(102.6)
        self.assertEqual(first[:2], ("w1", TARGET))
        self.book.ended(first.number, True)
        self.assertEqual(self.book.due(112.4), [])
        second = self.begun(112.5)
        self.assertNotEqual(first.number, second.number)

    def test_pause_is_not_made_up_for(self) -> None:
        """Without it a front that was held up would send all the probes it missed at once."""
        self.book.watch("w1", TARGET, 0.0, 0.5)
        self.book.ended(self.begun(1000.0).number, True)
        self.assertEqual(self.book.due(1004.9), [])
        self.begun(1005.0)

    def test_one_at_a_time(self) -> None:
        """Without it a worker that answers slowly would get ever more probes at once."""
        self.book.watch("w1", TARGET, 0.0, 0.0)
        probe = self.begun(0.0)
        self.assertEqual((self.book.due(10.0), self.book.due(20.0)), ([], []))
        self.book.ended(probe.number, True)
        self.assertEqual(self.book.due(21.0), [])
        self.begun(30.0)

    def test_also_after_a_new_connection(self) -> None:
        """Without it a worker that comes and goes would get a probe for each of its connections."""
        self.book.watch("w1", TARGET, 0.0, 0.0)
        probe = self.begun(0.0)
        self.assertEqual(self.book.unwatch("w1", left=True), probe.number)
        self.book.watch("w1", TARGET, 0.0, 0.0)
        self.assertEqual(self.book.due(1.0), [])
        self.assertIsNone(self.book.ended(probe.number, False), "the outcome of a probe that is worth nothing")
        self.assertFalse(self.book.is_out("w1"))
        self.begun(10.0)

    def test_most(self) -> None:
        """Without it a front of many workers would open thousands of sockets; and who waits has its turn in order."""
        book = ProbeBook(10.0, 2.0, most=2)
        for name in "abcde":
            book.watch(name, TARGET, 0.0, 0.0)
        first = book.due(0.0)
        self.assertEqual(([probe.worker for probe in first], book.under_way), (["a", "b"], 2))
        self.assertEqual(book.due(10.0), [])
        book.ended(first[1].number, True)
        self.assertEqual([probe.worker for probe in book.due(10.1)], ["c"])
        book.unwatch("d")
        book.ended(first[0].number, True)
        self.assertEqual([probe.worker for probe in book.due(10.2)], ["e"])

    def test_default_most(self) -> None:
        """Without it the limit would be there and not be used."""
        for number in range(200):
            self.book.watch(f"w{number}", TARGET, 0.0, 0.0)
        self.assertEqual(len(self.book.due(0.0)), 64)

    def test_clock_set_back(self) -> None:
        """Without it no worker would be probed for as long as the clock was set back."""
        self.book.watch("w1", TARGET, 5000.0, 0.5)
        self.book.watch("w2", TARGET, 5000.0, 0.7)
        self.assertEqual(self.book.due(5001.0), [])
        self.book.watch("w3", TARGET, 1001.0, 0.95)
        self.assertEqual(self.book.due(1004.9), [])
        self.assertEqual([self.begun(now).worker for now in (1005.1, 1007.1, 1010.6)], ["w1", "w2", "w3"])

    def test_forgets(self) -> None:
        """Without it workers that come and go would fill the memory in a long interval."""
        for number in range(1000):
            self.book.watch(f"w{number}", TARGET, 0.0, 0.9)
            self.book.unwatch(f"w{number}")
        self.assertLess(len(self.book._heap), 200)
        self.assertEqual(self.book.due(100.0), [])

    def test_wrong_settings(self) -> None:
        """Without it a probe would be due for ever in one turn."""
        for wrong in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
            self.assertRaises(ValueError, ProbeBook, *wrong)


class OutcomeTests(ProbeTestCase):
    """What an outcome means."""

    def setUp(self) -> None:
        super().setUp()
        self.now = 0.0
        self.book.watch("w1", TARGET, 0.0, 0.0)

    def probe(self, healthy: bool) -> str | None:
        """One probe and its outcome."""
        number = self.begun(self.now).number
        self.now += 10.0
        return self.book.ended(number, healthy)

    def test_out_and_back(self) -> None:
        """One failure takes the worker out, once; two successes in a row bring it back, once."""
        outcomes = [True, False, False, True, False, True, True, True]
        turns = [self.probe(healthy) for healthy in outcomes]
        self.assertEqual(turns, [None, "out", None, None, None, None, "back", None])

    def test_comes_back_as_it_was(self) -> None:
        """Without it a worker that is out would be used again by connecting anew."""
        self.probe(False)
        self.assertTrue(self.book.is_out("w1"))
        self.book.unwatch("w1", left=True)
        self.assertFalse(self.book.is_out("w1"))
        self.book.watch("w1", TARGET, self.now, 0.0)
        self.assertTrue(self.book.is_out("w1"))
        self.assertEqual([self.probe(True), self.probe(True)], [None, "back"])

    def test_remembers_not_for_ever(self) -> None:
        """Without it workers that left while they were out would fill the memory."""
        self.patch(probes, "HISTORY_MAX", 1)
        for name in ("w2", "w3"):
            self.book.watch(name, TARGET, 0.0, 0.0)
        for probe in self.book.due(0.0):
            self.book.ended(probe.number, False)
        for name in ("w1", "w2"):
            self.book.unwatch(name, left=True)
        self.book.unwatch("w3")
        for name in ("w1", "w2", "w3"):
            self.book.watch(name, TARGET, 10.0, 0.0)
        self.assertEqual([self.book.is_out(name) for name in ("w1", "w2", "w3")], [False, True, False])

    def test_other_target(self) -> None:
        """Without it the outcome at the old target would count for the new one; a worker that is out stays so."""
        self.probe(False)
        self.probe(True)
        old = self.begun(self.now)
        self.assertIsNone(self.book.watch("w1", TARGET, self.now, 0.9), "nothing has changed")
        self.assertEqual(self.book.watch("w1", OTHER, self.now, 0.9), old.number)
        self.assertIsNone(self.book.ended(old.number, True))
        self.now += 10.0
        new = self.begun(self.now)
        self.assertEqual(new.target, OTHER)
        self.assertIsNone(self.book.ended(new.number, True), "the first success at the new target")
        self.now += 10.0
        self.assertEqual(self.probe(True), "back")

    def test_unknown(self) -> None:
        """Without it a probe that ends twice would end the loop."""
        number = self.begun(0.0).number
        self.assertIsNone(self.book.ended(number, True))
        self.assertIsNone(self.book.ended(number, False))
        self.assertIsNone(self.book.ended(99, False))
        self.assertIsNone(self.book.unwatch("nobody"))


class TimeOutTests(ProbeTestCase):
    """Probes that take too long."""

    def setUp(self) -> None:
        super().setUp()
        self.book.watch("w1", TARGET, 0.0, 0.0)
        self.number = self.begun(0.0).number

    def test_overdue(self) -> None:
        """Without it a server that says nothing would pass for healthy."""
        self.assertEqual(self.book.overdue(1.9), [])
        self.assertEqual(self.book.overdue(2.0), [self.number])
        self.assertEqual([self.book.overdue(now) for now in (3.0, 9.0, 12.0, 20.0)], [[]] * 4, "each once")
        self.assertEqual(self.book.under_way, 1)
        self.assertEqual(self.book.ended(self.number, False), "out")
        self.assertEqual(self.book.under_way, 0)

    def test_held_up(self) -> None:
        """Without it a front that was held up itself would take out every worker that it was just probing."""
        self.assertEqual(self.book.overdue(3.5), [])
        self.assertEqual(self.book.overdue(5.4), [])
        self.assertEqual(self.book.overdue(9.0), [self.number], "one more time-out, and no more than that")

    def test_clock_set_back(self) -> None:
        """Without it a probe would be under way for as long as the clock was set back."""
        self.assertEqual(self.book.overdue(-1000.0), [])
        self.assertEqual(self.book.overdue(-998.0), [self.number])


class AnythingTests(SynchronousTestCase):
    """Any order of events."""

    @given(st.lists(st.tuples(st.sampled_from(["watch", "left", "unwatch", "good", "bad", "turn"]),
                              st.integers(0, 4), st.floats(-30, 30)), max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_limits_hold(self, events: list[tuple[str, int, float]]) -> None:
        """Without it some order would leave a worker with two probes or out for ever, or a slot that is never free."""
        book = ProbeBook(10.0, 2.0, most=3)
        now = 0.0
        running: dict[int, str] = {}
        for what, number, step in events:
            now += step
            worker = f"w{number}"
            if what == "watch":
                book.watch(worker, TARGET if step > 0 else OTHER, now, abs(step) / 30)
            elif what in ("left", "unwatch"):
                book.unwatch(worker, left=what == "left")
            elif what == "turn":
                book.overdue(now)
                running |= {probe.number: probe.worker for probe in book.due(now)}
            elif running:
                book.ended(running.popitem()[0], what == "good")
            self.assertEqual(len(set(running.values())), len(running))
            self.assertLessEqual(book.under_way, 3)
        for one in list(running):
            book.ended(one, True)
        self.assertEqual(book.under_way, 0)
        watched = [f"w{number}" for number in range(5) if f"w{number}" in book]
        for _ in range(8):
            now += 10.0
            while begun := book.due(now):
                for probe in begun:
                    book.ended(probe.number, True)
        self.assertEqual([worker for worker in watched if book.is_out(worker)], [])
