"""The health book: who is pinged when, who is lost in time, and who may come back."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool import health as health_module
from kollator.pool.health import HOLD_MAX_S, QUIET_S, Answer, HealthBook, Ping


class HealthBookTests(SynchronousTestCase):
    """A book with a time-out and an interval of one second."""

    def setUp(self) -> None:
        """Make an empty book."""
        self.book = HealthBook(timeout_s=1.0, interval_s=1.0)

    def number(self, now: float, worker: str = "w1") -> int:
        """Take the one ping that is due and return its number."""
        pings = self.book.due(now)
        self.assertEqual([ping.worker for ping in pings], [worker])
        return pings[0].number

    def silence(self, now: float) -> float:
        """Let a ping go unanswered from ``now`` on; return the time at which the worker is silent."""
        self.number(now)
        self.assertEqual(self.book.overdue(now + 0.99), [])
        self.assertEqual(self.book.overdue(now + 1.0), ["w1"])
        return now + 1.0

    def test_good_bye_while_held(self) -> None:
        """Without it the round that ends the hold-down would fail, and others that it lets back stay out for good."""
        self.book.joined("w1", 0.0, 0.0)
        now = self.silence(0.0)
        answer = self.book.answered("w1", now + 0.1, self.number(now))
        self.assertEqual(answer, Answer(answer.rtt_s, 1.0) if answer else None)
        self.book.left("w1", now + 0.5, politely=True)
        self.assertEqual((self.book.recovered(now + 2.0), self.book.next_wake(now + 2.0)), ([], None))

    def test_answers_in_time(self) -> None:
        """Without it a healthy worker would be lost, or the gauge would show another round trip."""
        self.assertEqual(self.book.joined("w1", 100.0, 0.25), 0.0)
        self.assertEqual(self.book.standing("w1"), "usable")
        self.assertEqual(self.book.due(100.2), [])
        for turn in range(5):
            now = 100.25 + turn
            self.assertAlmostEqual(self.book.next_wake(now - 0.05) or 0, 0.05)
            number = self.number(now)
            answer = self.book.answered("w1", now + 0.5, number)
            self.assertEqual(answer, Answer(0.5, None))
            self.assertIsNone(self.book.answered("w1", now + 0.6, number))
            self.assertEqual((self.book.overdue(now + 0.9), self.book.recovered(now + 0.9)), ([], []))

    def test_silent_worker_is_named_once(self) -> None:
        """Without it a worker that hangs would stay in the ring, or be reported again with each ping."""
        self.book.joined("w1", 0.0, 0.0)
        now = self.silence(0.0)
        self.assertEqual(self.book.standing("w1"), "silent")
        for _ in range(4):
            self.assertEqual(self.book.overdue(now), [])
            self.number(now)
            now += 1.0
            self.assertEqual(self.book.recovered(now), [])
        self.assertEqual(self.book.overdue(now), [])

    def test_due_does_not_swallow_a_loss(self) -> None:
        """Without it a loss that is found while pings are sent would never be told."""
        self.book.joined("w1", 0.0, 0.0)
        self.number(0.0)
        self.number(1.0)
        self.assertEqual(self.book.next_wake(1.0), 0.0)
        self.assertEqual(self.book.overdue(1.0), ["w1"])
        self.assertEqual(self.book.next_wake(1.0), 1.0)

    def test_wrong_answers(self) -> None:
        """Without it a late answer to an old ping would pass for a quick one to the newest."""
        self.book.joined("w1", 0.0, 0.0)
        late = self.number(0.0)
        self.assertEqual(self.book.overdue(1.0), ["w1"])
        number = self.number(1.0)
        self.assertIsNone(self.book.answered("w1", 1.1, late))
        self.assertIsNone(self.book.answered("w1", 1.1, number + 1))
        self.assertIsNone(self.book.answered("w2", 1.1, number))
        self.assertEqual(self.book.answered("w1", 1.25, number), Answer(0.25, 1.0))

    def test_hold_down_doubles(self) -> None:
        """Without it a worker that flaps would tear its ranges to and fro every other second."""
        self.book.joined("w1", 0.0, 0.0)
        now, holds = 0.0, []
        for _ in range(9):
            now = self.silence(now)
            answer = self.book.answered("w1", now, self.number(now))
            assert answer is not None and answer.hold_s is not None
            holds.append(answer.hold_s)
            self.assertEqual(self.book.standing("w1"), "held")
            end = now + answer.hold_s
            while now + 1.0 < end:
                now += 1.0
                self.assertEqual(self.book.recovered(now), [])
                self.book.answered("w1", now, self.number(now))
            self.assertEqual(self.book.recovered(end), ["w1"])
            self.assertEqual((self.book.recovered(end), self.book.standing("w1")), ([], "usable"))
            now = end
        self.assertEqual(holds, [1, 2, 4, 8, 16, 32, HOLD_MAX_S, HOLD_MAX_S, HOLD_MAX_S])

    def test_quiet_time_clears(self) -> None:
        """Without it a worker would pay for ever for a bad day."""
        for quiet_s, expected in ((QUIET_S, 1.0), (QUIET_S - 2.0, 2.0)):
            book = self.book = HealthBook(1.0, 1.0)
            book.joined("w1", 0.0, 0.0)
            now = self.silence(0.0)
            book.answered("w1", now, self.number(now))
            now += 1.0
            self.assertEqual(book.recovered(now), ["w1"])
            for _ in range(int(quiet_s)):
                book.answered("w1", now, self.number(now))
                now += 1.0
            now = self.silence(now)
            answer = book.answered("w1", now, self.number(now))
            self.assertEqual(answer, Answer(0.0, expected))

    def test_silence_during_the_hold_down(self) -> None:
        """Without it a worker could come back at the very moment it is silent again."""
        self.book.joined("w1", 0.0, 0.0)
        now = self.silence(0.0)
        self.book.answered("w1", now + 0.5, self.number(now))  # held until 2.5
        self.number(2.0)
        self.assertEqual(self.book.recovered(2.5), ["w1"])
        self.assertEqual(self.book.overdue(3.0), ["w1"])
        number = self.number(3.0)
        self.assertEqual(self.book.answered("w1", 3.0, number), Answer(0.0, 2.0))  # until 5.0
        self.number(4.0)
        self.assertEqual(self.book.recovered(5.0), [])
        self.assertEqual(self.book.overdue(5.0), ["w1"])  # it was not usable, but neither was it silent
        self.assertEqual(self.book.overdue(5.0), [])
        self.assertEqual(self.book.answered("w1", 5.0, self.number(5.0)), Answer(0.0, 4.0))

    def test_silence_is_not_quiet(self) -> None:
        """Without it a worker that was well for long would flap for ever with the shortest hold-down."""
        self.book.joined("w1", 0.0, 0.0)
        now = self.silence(QUIET_S * 2)
        self.assertEqual(self.book.answered("w1", now + 0.5, self.number(now)), Answer(0.5, 1.0))
        self.number(now + 1.0)
        self.book.overdue(now + 2.0)
        self.assertEqual(self.book.answered("w1", now + 2.0, self.number(now + 2.0)), Answer(0.0, 2.0))

    def test_closed_connections(self) -> None:
        """Without it a worker that was restarted would be punished, or one that reconnects all the time not."""
        holds = []
        for turn in range(5):
            holds.append(self.book.joined("w1", turn * 10.0, 0.5))
            self.assertEqual(self.book.recovered(turn * 10.0 + 4.0), ["w1"] if holds[-1] else [])
            self.book.left("w1", turn * 10.0 + 5.0)
            self.assertIsNone(self.book.standing("w1"))
            self.assertEqual(self.book.due(turn * 10.0 + 9.0), [])
        self.assertEqual(holds, [0.0, 0.0, 1.0, 2.0, 4.0])
        self.assertEqual(self.book.joined("w1", 45.0 + QUIET_S, 0.5), 0.0)

    def test_one_outage_counts_once(self) -> None:
        """Without it a silent worker whose socket then closes would be held down twice as long."""
        self.book.joined("w1", 0.0, 0.0)
        now = self.silence(0.0)
        self.number(now)
        self.book.left("w1", now + 0.5)
        self.book.left("w1", now + 0.6)
        self.assertEqual(self.book.overdue(now + 1.0), [])
        self.assertEqual(self.book.joined("w1", now + 1.5, 0.0), 1.0)

    def test_replaced_connection(self) -> None:
        """Without it an answer owed by the old connection would be held against the new one."""
        self.book.joined("w1", 0.0, 0.0)
        number = self.number(0.0)
        self.assertEqual(self.book.joined("w1", 0.5, 0.25), 0.0)
        self.assertIsNone(self.book.answered("w1", 0.6, number))
        self.assertEqual(self.book.overdue(1.4), [])
        self.assertEqual(self.silence(0.75), 1.75)
        self.assertEqual(self.book.joined("w1", 2.0, 0.0), 1.0)  # it speaks again
        self.assertEqual(self.book.joined("w1", 2.5, 0.0), 0.5)  # the same hold-down
        self.assertEqual(self.book.recovered(3.0), ["w1"])

    def test_pause_of_the_front(self) -> None:
        """Without it a front whose own process slept would take all its workers out of every ring."""
        self.book.joined("w1", 0.0, 0.0)
        number = self.number(0.0)
        self.assertEqual(self.book.overdue(60.0), [])
        self.assertEqual(self.book.due(60.0), [])
        self.assertEqual(self.book.answered("w1", 60.1, number), Answer(60.1, None))
        self.assertEqual(self.book.due(60.2), [])  # no making up for sixty pings
        self.number(61.0)
        self.assertEqual(self.book.overdue(63.0), [])
        self.assertEqual(self.book.overdue(66.0), ["w1"])  # once for each ping

    def test_short_interval(self) -> None:
        """Without it pings to a slow worker would pile up, or each push the time-out further away."""
        self.book = HealthBook(timeout_s=1.0, interval_s=0.25)
        self.book.joined("w1", 0.0, 0.0)
        number = self.number(0.0)
        for now in (0.25, 0.5, 0.75):
            self.assertEqual((self.book.due(now), self.book.overdue(now)), ([], []))
        self.assertEqual(self.book.answered("w1", 0.8, number), Answer(0.8, None))
        self.number(1.0)
        self.assertEqual(self.book.overdue(2.0), ["w1"])

    def test_no_burst(self) -> None:
        """Without it ten thousand workers would be pinged in one turn of the loop."""
        source = random.Random(5)
        for number in range(10_000):
            self.book.joined(f"w{number}", 0.0, source.random())
        seen: dict[str, int] = {}
        largest, now = 0, 0.0
        for turn in range(1, 151):
            now = turn * 0.02
            pings = self.book.due(now)
            largest = max(largest, len(pings))
            for worker, number in pings:
                seen[worker] = seen.get(worker, 0) + 1
                self.book.answered(worker, now, number)
        self.assertLess(largest, 300)  # the mean is 200
        self.assertEqual(len(seen), 10_000)
        self.assertEqual(set(seen.values()), {3})

    def test_tables_do_not_grow(self) -> None:
        """Without it workers that come and go would fill the memory of a front."""
        self.patch(health_module, "HISTORY_MAX", 10)
        self.assertIsNone(self.book.next_wake(0.0))
        for number in range(500):
            self.book.joined(f"w{number}", 0.001 * number, 0.9)
            self.book.left(f"w{number}", 0.001 * number)
        self.assertEqual((len(self.book), len(self.book._past)), (0, 10))
        for schedule in (self.book._due, self.book._deadlines, self.book._holds):
            self.assertEqual(len(schedule._at), 0)
            self.assertLess(len(schedule._heap), 100)
        self.assertIsNone(self.book.next_wake(1.0))
        self.book.joined("w1", 1000.0, 0.5)
        self.book.left("w1", 1000.0)
        self.assertEqual(list(self.book._past), ["w1"])

    def test_refused(self) -> None:
        """Without it a setting of zero would ping in an endless loop."""
        self.assertRaises(ValueError, HealthBook, 0.0, 1.0)
        self.assertRaises(ValueError, HealthBook, 1.0, 0.0)

    @given(
        st.lists(
            st.tuples(st.sampled_from("jlaattt"), st.integers(0, 2), st.floats(0.01, 0.6)), min_size=20, max_size=120
        ),
        st.sampled_from([0.3, 1.0, 2.5]),
    )
    @settings(max_examples=100, deadline=None)
    def test_never_contradicts_itself(self, events, interval_s: float) -> None:
        """Without it some course of events could tell a silence twice, or bring back one that is silent."""
        book = HealthBook(1.0, interval_s)
        now = 5.0
        usable: set[str] = set()
        silent: set[str] = set()
        pending: dict[str, tuple[int, float]] = {}
        for kind, which, step in events:
            now += step
            worker = f"w{which}"
            if kind == "j":
                hold_s = book.joined(worker, now, step)
                pending.pop(worker, None)
                silent.discard(worker)
                if hold_s == 0.0 and book.standing(worker) == "usable":
                    usable.add(worker)
            elif kind == "l":
                book.left(worker, now)
                usable.discard(worker)
                silent.discard(worker)
                pending.pop(worker, None)
            elif kind == "a" and worker in pending:
                number, sent = pending.pop(worker)
                was_silent = book.standing(worker) == "silent"
                answer = book.answered(worker, now, number)
                if answer is not None:
                    silent.discard(worker)
                    self.assertAlmostEqual(answer.rtt_s, now - sent)
                    self.assertEqual(answer.hold_s is not None, was_silent)
                    self.assertNotEqual(book.standing(worker), "silent")
            else:
                for lost in book.overdue(now):
                    self.assertNotIn(lost, silent)
                    silent.add(lost)
                    usable.discard(lost)
                for back in book.recovered(now):
                    self.assertNotIn(back, usable | silent)
                    usable.add(back)
                for ping in book.due(now):
                    self.assertIsInstance(ping, Ping)
                    pending[ping.worker] = (ping.number, now)
                self.assertEqual({name for name in ("w0", "w1", "w2") if book.standing(name) == "usable"}, usable)
                wake = book.next_wake(now)
                self.assertEqual(wake is None, len(book) == 0)
