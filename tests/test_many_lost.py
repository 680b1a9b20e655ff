"""Many workers that are lost at once: what that costs a turn of the loop, and that nothing is mistaken in it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from kollator.registry import FEW_AT_ONCE, MANY, MANY_AT_ONCE
from kollator.signaling.connection import Claim
from kollator.state.rows import WHYS, AttachmentRow, FrontRow, Row
from tests.fronts import Front
from tests.test_registry import RegistryTestCase


class ManyTests(RegistryTestCase):
    """A network breaks: many workers are lost in one turn of the loop."""

    def setUp(self) -> None:
        """Notes how many rows the pool and the writer get at a time, and the lines of the log."""
        super().setUp()
        self.applied: list[int] = []
        self.written: list[int] = []
        self.lines: list[str] = []
        self.note()

    def note(self) -> None:
        """Notes what goes into the front's pool and writer."""
        apply, write = self.front.pool.apply_all, self.front.writer.write

        def apply_noted(rows: Collection[Row]) -> Collection[str]:
            if rows:
                self.applied.append(len(rows))
            return apply(rows)

        def write_noted(rows: Collection[Row]) -> Deferred[None]:
            self.written.append(len(rows))
            return write(rows)

        def line_noted(event: LogEvent) -> None:
            if event.get("log_namespace") == "kollator:pool":
                self.lines.append(formatEvent(event))

        self.patch(self.front.pool, "apply_all", apply_noted)
        self.patch(self.front.writer, "write", write_noted)
        globalLogPublisher.addObserver(line_noted)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, line_noted)  # type: ignore[arg-type]

    def workers(self, number: int) -> list[Claim]:
        """So many have joined; what came of that is not noted."""
        claims = [self.front.worker(f"w{number:03d}") for number in range(number)]
        self.applied.clear()
        self.written.clear()
        return claims

    def test_slices(self) -> None:
        """Each worker that is taken out of the pool by itself costs a millisecond, a write and a line some more."""
        claims = self.workers(300)
        for claim in claims:
            self.front.registry.worker_left(claim)
        self.assertEqual((self.applied, len(self.lines)), ([1] * FEW_AT_ONCE, FEW_AT_ONCE))
        self.front.clock.advance(0)
        sizes = [1] * FEW_AT_ONCE + [MANY_AT_ONCE, 300 - FEW_AT_ONCE - MANY_AT_ONCE]
        self.assertEqual((self.applied, self.written, self.lost()), (sizes, sizes, {"closed": 300}))
        left = [line for line in self.lines if "left" in line]
        self.assertEqual((left[0], len(left)), ("worker w000 left", FEW_AT_ONCE + 2))
        self.assertTrue(left[4].startswith("256 workers left: w004, w005, ") and left[4].endswith("w023, …"), left[4])
        self.assertEqual({row.state for row in self.front.store.rows() if isinstance(row, AttachmentRow)}, {"down"})
        self.assertEqual(self.front.pool.counts().up, 0)

    def test_few_more(self) -> None:
        """What is not enough to be marked in the ring would take a turn of thirty milliseconds."""
        for claim in self.workers(FEW_AT_ONCE + MANY - 1):
            self.front.registry.worker_left(claim)
        self.front.clock.advance(0)
        self.assertEqual(max(self.written), FEW_AT_ONCE)
        self.assertEqual((sum(self.written), self.front.pool.counts().up), (FEW_AT_ONCE + MANY - 1, 0))

    def test_next_turn(self) -> None:
        """A few more in the turn after would count at once again, while many wait: a turn would have no bound."""
        claims = self.workers(12)
        for claim in claims[:5]:
            self.front.registry.worker_left(claim)
        calls: list[Callable[[], None]] = []
        self.patch(self.front.registry, "_soon", calls.append)
        self.front.clock.advance(0)
        for claim in claims[5:]:
            self.front.registry.worker_left(claim)
        self.assertEqual(self.applied, [1] * 5)
        while calls:
            calls.pop(0)()
        self.assertEqual(self.applied, [1] * 5 + [4, 3])
        self.front.registry.worker_left(self.front.worker("late"))
        self.assertEqual(self.state("late"), "down")

    def test_silence(self) -> None:
        """A thousand workers behind one cable fall silent in one turn: one line says so, not a thousand."""
        self.workers(50)
        self.front.clock.advance(0.5)
        self.front.monitor.turn()
        self.front.clock.advance(1.1)
        self.lines.clear()
        self.front.monitor.turn()
        self.front.clock.advance(0)
        self.assertEqual(self.written, [1] * FEW_AT_ONCE + [50 - FEW_AT_ONCE])
        self.assertEqual(self.lost(), {"ping": 50})
        said = [line for line in self.lines if "not well" in line]
        self.assertEqual(len(said), FEW_AT_ONCE + 1)
        self.assertTrue(said[-1].startswith("46 workers are not well (ping): it did not answer a ping in time: w"))

    def test_registration_under_way(self) -> None:
        """One that is back before its loss was told is let in by the disk, not by the slice, and is no loss."""
        claims = self.workers(10)
        self.front.disk.held = True
        for claim in claims:
            self.front.registry.worker_unwell(claim.id, "ping", "a test")
        for claim in claims:
            self.front.registry.worker_left(claim)
        outcomes = [self.join(self.front.claim(claim.id)) for claim in claims]
        self.front.clock.advance(0)
        self.assertEqual(({self.state(f"w{number:03d}") for number in range(4)}, outcomes), ({"down"}, [[]] * 10))
        self.assertEqual(self.lost(), {"ping": 4})
        while len(self.front.disk):
            self.front.disk.turn()
            self.front.clock.advance(0)
        self.assertEqual(outcomes, [[True]] * 10)
        held = {row.worker: row for row in self.front.store.rows() if isinstance(row, AttachmentRow)}
        for claim in claims:
            view = self.front.pool.worker(claim.id)
            truth = self.front.roster.truth(claim.id)
            self.assertEqual((held[claim.id], view and view.why), (truth, truth.why))

    def test_causes(self) -> None:
        """What was told first of a worker that waits is why it is lost; one that was well again had no such reason."""
        claims = self.workers(8)
        for claim in claims[:4]:
            self.front.registry.worker_left(claim)
        for claim in claims[4:]:
            self.front.registry.worker_unwell(claim.id, "probe", "a test")
        self.lines.clear()
        self.front.registry.worker_well("w005", "probe")
        self.assertEqual(self.lines[1:], ["worker w005 is well again"])
        self.assertTrue(self.lines[0].startswith("4 workers are not well (probe): a test: w004, w005"))
        for number in (4, 5):
            self.front.registry.worker_left(claims[number])
        self.front.registry.merged([FrontRow("front-1", 1, retired=1)])
        self.front.clock.advance(0)
        self.assertEqual(self.lost(), {"closed": 5, "probe": 3})

    def test_mistake(self) -> None:
        """One failure must not keep all later losses from counting."""
        claims = self.workers(6)
        broken = self.front.pool.apply_all

        def fail(rows: Collection[Row]) -> Collection[str]:
            raise ZeroDivisionError

        for claim in claims[:5]:
            self.front.registry.worker_left(claim)
        self.patch(self.front.pool, "apply_all", fail)
        self.assertRaises(ZeroDivisionError, self.front.clock.advance, 0)
        self.patch(self.front.pool, "apply_all", broken)
        self.front.clock.advance(0)
        self.front.registry.worker_left(claims[5])
        self.assertEqual(self.state("w005"), "down")

    def test_panic(self) -> None:
        """Where a panic may come, who falls ill is put on other rings, which takes its time for each of them."""
        self.front.pool.panic_threshold = 50.0
        claims = self.workers(2 * MANY)
        for claim in claims[:MANY]:
            self.front.registry.worker_unwell(claim.id, "ping", "a test")
        for claim in claims[MANY:]:
            self.front.registry.worker_left(claim)
        self.front.clock.advance(0)
        ill = MANY // FEW_AT_ONCE - 1  # slices of those who are ill; the first of them went at once
        self.assertEqual(self.written, [1] * FEW_AT_ONCE + [FEW_AT_ONCE] * ill + [MANY])

    def test_stop(self) -> None:
        """A front that stops closes its workers in one turn; the rows must be queued before the writer stops."""
        for claim in self.workers(50):
            self.front.registry.worker_left(claim)
        self.front.registry.settle()
        self.assertEqual((self.front.pool.counts().up, sum(self.written)), (0, 50))
        self.front.clock.advance(0)
        self.assertEqual(sum(self.written), 50)

    @given(
        st.lists(
            st.tuples(st.sampled_from(["join", "left", "unwell", "well", "full", "turn", "disk"]), st.integers(0, 7)),
            max_size=60,
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_truth_in_the_end(self, steps: list[tuple[str, int]]) -> None:
        """However things follow each other in a turn, the pool and the disk end with what is true."""
        front = Front()
        try:
            front.disk.held = True
            claims: dict[int, Claim] = {}
            for what, number in steps:
                worker = f"w{number}"
                if what == "join":
                    claims[number] = front.claim(worker)
                    front.registry.worker_joined(claims[number], lambda stored: None)
                elif what == "left" and number in claims:
                    front.registry.worker_left(claims.pop(number))
                elif what == "unwell":
                    front.registry.worker_unwell(worker, WHYS[number % len(WHYS)], "a test")
                elif what == "well":
                    front.registry.worker_well(worker, WHYS[number % len(WHYS)])
                elif what == "full":
                    front.registry.worker_status(worker, 100, False)
                elif what == "turn":
                    front.clock.advance(0)
                elif what == "disk" and len(front.disk):
                    front.disk.turn()
            while len(front.disk) or any(call.getTime() <= 0 for call in front.clock.getDelayedCalls()):
                front.clock.advance(0)
                if len(front.disk):
                    front.disk.turn()
            stored = {row.worker: row for row in front.store.rows() if isinstance(row, AttachmentRow)}
            for view in front.pool.workers():
                truth = front.roster.truth(view.id)
                self.assertEqual((view.state, view.why, stored[view.id]), (truth.state, truth.why, truth))
            self.assertEqual({view.id for view in front.pool.workers()}, set(stored))
        finally:
            front.disk.held = False
            front.close()
