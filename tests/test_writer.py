"""The queue of writes: nothing waits for the disk but who asked to, and nothing is lost that was not refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.state.errors import StoreError
from kollator.state.rows import AttachmentRow, Row, WorkerRow
from kollator.state.writer import HANG_S, RETRY_S, Writer
from tests.fronts import Disk, open_store


class WriterTestCase(SynchronousTestCase):
    """A writer over a real store in memory, whose thread the test turns."""

    def setUp(self) -> None:
        """Makes them, with the thread held up."""
        clock: Any = Clock()
        self.clock = clock
        self.disk = Disk()
        self.disk.held = True
        self.store = open_store()
        self.addCleanup(self.store.close)
        self.writer = Writer(self.store, self.disk, clock)

    def stored(self) -> list[Row]:
        """What is on disk."""
        return self.store.rows()

    def turn_all(self) -> None:
        """The thread works until it has nothing to do."""
        while len(self.disk):
            self.disk.turn()

    def fill(self) -> None:
        """The disk is full."""
        database = self.store._database.connection
        pages = database.execute("PRAGMA page_count").fetchall()[0][0]
        database.execute(f"PRAGMA max_page_count={pages}").fetchall()

    def make_room(self) -> None:
        """It is not any more."""
        self.store._database.connection.execute("PRAGMA max_page_count=1000000").fetchall()


def rows(count: int = 1, size: int = 0) -> list[Row]:
    """So many workers; ``size`` makes them so large that some do not fit on a full disk."""
    return [WorkerRow(f"w{number}", "x" * min(size, 64), 100, "a" * min(size, 255)) for number in range(count)]


class WritingTests(WriterTestCase):
    """As long as the disk is well."""

    def test_acknowledged_when_stored(self) -> None:
        """A promise that leaves before its row is on disk is none."""
        done = self.writer.write(rows())
        self.assertNoResult(done)
        self.assertEqual(self.stored(), [])
        self.disk.turn()
        self.successResultOf(done)
        self.assertEqual(self.stored(), rows())

    def test_one_transaction_for_what_came_meanwhile(self) -> None:
        """A slow disk must not fall behind: all that waits is one transaction, of the newest of each row."""
        first = self.writer.write(rows(1))
        later = [self.writer.write([WorkerRow("w1", "eu", capacity)]) for capacity in range(1, 50)]
        self.disk.turn()
        self.successResultOf(first)
        self.assertEqual(len(self.disk), 1)
        self.assertNoResult(later[0])
        self.disk.turn()
        for done in later:
            self.successResultOf(done)
        self.assertEqual(self.stored(), [*rows(1), WorkerRow("w1", "eu", 49)])
        self.assertEqual((len(self.disk), self.clock.getDelayedCalls()), (0, []))

    def test_nothing_to_write(self) -> None:
        """Waiting without rows is waiting for what was queued before."""
        self.writer.write(rows())
        done = self.writer.write([])
        self.disk.turn()
        self.assertNoResult(done)
        self.disk.turn()
        self.successResultOf(done)

    def test_write_from_an_acknowledgement(self) -> None:
        """What follows from a stored row may be written at once."""
        seconds: list[Deferred[None]] = []
        self.writer.write(rows(1)).addCallback(lambda _: seconds.append(self.writer.write(rows(2))))
        self.turn_all()
        self.successResultOf(seconds[0])
        self.assertEqual(self.stored(), rows(2))

    def test_mistake_in_an_acknowledgement(self) -> None:
        """Whoever makes a mistake with an answer keeps nobody else from theirs."""
        wrong = self.writer.write(rows(1)).addCallback(lambda _: 1 / 0)
        right = self.writer.write(rows(1))
        self.turn_all()
        self.failureResultOf(wrong, ZeroDivisionError)
        self.successResultOf(right)


class CommittedTests(WriterTestCase):
    """What is passed on to the other fronts."""

    def test_told_first_of_what_is_stored(self) -> None:
        """The other fronts get what is on disk, before a worker is told that it is welcome."""
        told: list[Any] = []
        self.writer.committed = lambda rows: told.append(list(rows))
        self.writer.write(rows(2)).addCallback(lambda _: told.append("acknowledged"))
        self.writer.probe()
        self.turn_all()
        self.assertEqual(told, [rows(2), "acknowledged"])

    def test_not_told_of_what_is_not(self) -> None:
        """Nothing is passed on that the store refused or did not take."""
        told: list[Any] = []
        self.writer.committed = told.extend
        self.failureResultOf(self._turned([WorkerRow("w9", "a\nb")]), ValueError)
        self.fill()
        self.failureResultOf(self._turned(rows(400, 500)), StoreError)
        self.assertEqual(told, [])
        self.make_room()
        self.clock.advance(RETRY_S)
        self.turn_all()
        self.assertEqual(len(told), 400)

    def test_mistake_of_who_is_told(self) -> None:
        """A mistake there keeps no worker from its welcome."""

        def broken(rows: object) -> None:
            raise ZeroDivisionError

        self.writer.committed = broken
        self.successResultOf(self._turned(rows()))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def _turned(self, some: list[Row]) -> Deferred[None]:
        done = self.writer.write(some)
        self.turn_all()
        return done


class RefusedTests(WriterTestCase):
    """Rows that the store does not allow."""

    def test_one_bad_row(self) -> None:
        """A row that can never be written must not keep the others from the disk, nor be tried for ever."""
        waiting = self.writer.write(rows(1))
        good = self.writer.write(rows(2))
        bad = self.writer.write([WorkerRow("w9", "a\nb"), AttachmentRow("w9", "front-1", 1, "up")])
        other = self.writer.write([AttachmentRow("w1", "another front", 1, "up")])
        self.turn_all()
        self.successResultOf(waiting)
        self.successResultOf(good)
        self.failureResultOf(bad, ValueError)
        self.failureResultOf(other, ValueError)
        self.assertEqual(self.stored(), [*rows(2), AttachmentRow("w9", "front-1", 1, "up")])
        self.assertEqual((self.writer.problem, self.clock.getDelayedCalls()), (None, []))
        again = self.writer.write(rows(3))
        self.turn_all()
        self.successResultOf(again)

    def test_put_right(self) -> None:
        """A later version of the row that is allowed is written."""
        bad = self.writer.write([WorkerRow("w0", "a\nb")])
        good = self.writer.write(rows(1))
        self.turn_all()
        self.failureResultOf(bad, ValueError)
        self.successResultOf(good)
        self.assertEqual(self.stored(), rows(1))


class FailingTests(WriterTestCase):
    """A disk that takes nothing for a while: full, in the way that SQLite finds it."""

    def test_told_kept_and_tried_again(self) -> None:
        """Whoever waits is told at once; the rows are written when there is room again, the newest of each."""
        self.fill()
        done = self.writer.write(rows(400, 500))
        self.disk.turn()
        self.failureResultOf(done, StoreError)
        self.assertIn("no room left", self.writer.problem or "")
        self.assertEqual(self.stored(), [])
        meanwhile = self.writer.write([WorkerRow("w0", "newer")])
        self.assertEqual(len(self.disk), 0)
        self.clock.advance(RETRY_S)
        self.disk.turn()
        self.failureResultOf(meanwhile, StoreError)
        self.make_room()
        self.clock.advance(RETRY_S)
        self.turn_all()
        self.assertIsNone(self.writer.problem)
        self.assertEqual(len(self.stored()), 400)
        self.assertIn(WorkerRow("w0", "newer"), self.stored())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_newer_row_behind_a_failing_one(self) -> None:
        """What was said while the older version was on its way to the disk counts, although that one failed."""
        connection = self.store._database.connection
        connection.execute("PRAGMA query_only=ON").fetchall()
        older = self.writer.write([WorkerRow("w0", "older")])
        newer = self.writer.write([WorkerRow("w0", "newer")])
        self.disk.turn()
        self.failureResultOf(older, StoreError)
        connection.execute("PRAGMA query_only=OFF").fetchall()
        self.clock.advance(RETRY_S)
        self.turn_all()
        self.successResultOf(newer)
        self.assertEqual(self.stored(), [WorkerRow("w0", "newer")])

    def test_thread_that_cannot_be_started(self) -> None:
        """A machine out of threads is as good as out of disk: nothing is lost, nobody waits for ever."""

        def no_thread(*args: Any) -> Any:
            raise RuntimeError("can't start new thread")

        self.patch(self.writer, "_in_thread", no_thread)
        done = self.writer.write(rows())
        self.failureResultOf(done, RuntimeError)
        self.assertIn("thread", self.writer.problem or "")
        self.patch(self.writer, "_in_thread", self.disk)
        self.clock.advance(RETRY_S)
        self.turn_all()
        self.assertEqual((self.stored(), self.writer.problem), (rows(), None))

    def test_probe(self) -> None:
        """A front that has nothing to write finds out all the same that it could not, and that it can again."""
        self.writer.probe()
        self.turn_all()
        self.assertIsNone(self.writer.problem)
        connection = self.store._database.connection
        connection.execute("PRAGMA query_only=ON").fetchall()
        self.writer.probe()
        self.turn_all()
        self.assertIn("cannot write", self.writer.problem or "")
        self.clock.advance(RETRY_S)
        self.turn_all()
        self.assertIsNotNone(self.writer.problem)
        connection.execute("PRAGMA query_only=OFF").fetchall()
        self.clock.advance(RETRY_S)
        self.turn_all()
        self.assertEqual((self.writer.problem, self.clock.getDelayedCalls()), (None, []))

    def test_hanging_write(self) -> None:
        """A disk that neither takes nor refuses a write (a dead network mount) is a problem while it lasts."""
        self.writer.probe()
        self.clock.advance(HANG_S)
        self.assertIsNone(self.writer.problem)
        self.clock.advance(0.1)
        self.assertIn("does not come", self.writer.problem or "")
        self.disk.turn()
        self.assertIsNone(self.writer.problem)

    def test_probe_is_no_queue(self) -> None:
        """Probes of a disk that hangs do not pile up."""
        for _ in range(5):
            self.writer.probe()
        self.assertEqual(len(self.disk), 1)
        self.disk.turn()
        self.assertEqual(len(self.disk), 0)


class StopTests(WriterTestCase):
    """The end."""

    def test_idle(self) -> None:
        """Nothing waits: it is over."""
        self.successResultOf(self.writer.stop())

    def test_writes_what_waits(self) -> None:
        """What was queued before the stop is on disk before the store is closed."""
        self.writer.write(rows(1))
        self.writer.write(rows(3))
        stopped = self.writer.stop()
        self.disk.turn()
        self.assertNoResult(stopped)
        self.disk.turn()
        self.successResultOf(stopped)
        self.assertEqual(self.stored(), rows(3))

    def test_nothing_after(self) -> None:
        """What comes later is refused, in place of being forgotten; a probe is nothing."""
        stopped = self.writer.stop()
        self.failureResultOf(self.writer.write(rows()), StoreError)
        self.writer.probe()
        self.successResultOf(stopped)
        self.assertEqual((len(self.disk), self.clock.getDelayedCalls()), (0, []))

    def test_stop_in_trouble(self) -> None:
        """A disk that does not recover holds the stop up for one more attempt and no longer."""
        self.fill()
        self.failureResultOf(self._written(rows(400, 500)), StoreError)
        late = self.writer.write(rows(1))
        stopped = self.writer.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNoResult(stopped)
        self.disk.turn()
        self.failureResultOf(late, StoreError)
        self.successResultOf(stopped)
        self.assertEqual((len(self.disk), self.clock.getDelayedCalls()), (0, []))

    def test_stop_between_two_batches(self) -> None:
        """Whoever waits behind a batch that fails is told too."""
        self.fill()
        first = self.writer.write(rows(400, 500))
        second = self.writer.write(rows(400, 400))
        stopped = self.writer.stop()
        self.disk.turn()
        for done in (first, second):
            self.failureResultOf(done, StoreError)
        self.successResultOf(stopped)

    def _written(self, some: list[Row]) -> Deferred[None]:
        done = self.writer.write(some)
        self.disk.turn()
        return done


class ScheduleTests(SynchronousTestCase):
    """Any order of events."""

    steps = st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3), st.integers(1, 5)),
            st.sampled_from(["turn", "break", "mend", "wait", "probe"]),
        ),
        max_size=40,
    )

    @settings(max_examples=60, deadline=None)
    @given(steps)
    def test_the_newest_is_stored_in_the_end(self, steps: list[Any]) -> None:
        """Whatever fails in between, the disk ends with what was said last, and what was acknowledged is there."""
        clock: Any = Clock()
        disk = Disk()
        disk.held = True
        store = open_store()
        connection = store._database.connection
        writer = Writer(store, disk, clock)
        newest: dict[str, Row] = {}
        lies: list[Row] = []

        def acknowledged(_: None, row: WorkerRow) -> None:
            kept = {stored.id: stored.capacity for stored in store.rows() if isinstance(stored, WorkerRow)}
            if kept.get(row.id, 0) < row.capacity:
                lies.append(row)

        for count, step in enumerate(steps, 1):
            if step == "turn" and len(disk):
                disk.turn()
            elif step in ("break", "mend"):
                connection.execute(f"PRAGMA query_only={'ON' if step == 'break' else 'OFF'}").fetchall()
            elif step == "wait":
                clock.advance(RETRY_S)
            elif step == "probe":
                writer.probe()
            elif isinstance(step, tuple):
                row = WorkerRow(f"w{step[0]}", "", count)
                newest[row.id] = row
                writer.write([row]).addCallback(acknowledged, row).addErrback(lambda f: f.trap(StoreError) and None)
        connection.execute("PRAGMA query_only=OFF").fetchall()
        while len(disk) or clock.getDelayedCalls():
            clock.advance(RETRY_S)
            while len(disk):
                disk.turn()
        self.assertEqual(sorted(store.rows(), key=repr), sorted(newest.values(), key=repr))
        self.assertEqual((writer.problem, lies), (None, []))
        store.close()
