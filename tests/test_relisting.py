"""The operator's list of workers changes: what is connected already goes by the new one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from kollator import registry
from kollator.pool.workersfile import Entry
from kollator.state.rows import Row, WorkerRow
from tests.test_registry import RegistryTestCase


class RelistTests(RegistryTestCase):
    """Region and capacity, there and back."""

    def setUp(self) -> None:
        """A registry that asks ``entries``, which are empty at first."""
        super().setUp()
        self.entries: dict[str, Entry] = {}
        self.front.registry._listed = lambda worker, address: self.entries.get(worker) or self.entries.get(address)

    def relist(self, **entries: Entry) -> None:
        """The list is this one now."""
        self.entries = entries
        self.front.registry.relist()
        self.front.advance(0.1)

    def views(self) -> list[tuple[str, int, str]]:
        """Region, capacity and state of each worker; the disk has the same."""
        views = self.front.pool.workers()
        stored = {row.id: (row.region, row.capacity) for row in self.front.store.rows() if isinstance(row, WorkerRow)}
        self.assertEqual(stored, {view.id: (view.region, view.capacity) for view in views})
        return [(view.region, view.capacity, view.state) for view in views]

    def test_there_and_back(self) -> None:
        """A new list would count for workers that come after it only, and one that was mended would never count."""
        self.front.worker("w1", "eu", 100)
        self.front.worker("w2", "eu", 100)
        self.relist(w1=Entry("us", None), w2=Entry(None, 300))
        self.assertEqual(self.views(), [("us", 100, "up"), ("eu", 300, "up")])
        self.relist(w1=Entry("us", 50))
        self.assertEqual(self.views(), [("us", 50, "up"), ("eu", 100, "up")])
        self.relist()
        self.assertEqual(self.views(), [("eu", 100, "up"), ("eu", 100, "up")])
        version = self.front.store.db_version()
        self.relist()
        self.assertEqual((self.front.store.db_version(), self.lost()), (version, {}))

    def test_full_by_the_new_capacity(self) -> None:
        """A worker of half the capacity would take clients until its next word of its load."""
        self.front.worker("w1", "", 100)
        self.front.registry.worker_status("w1", 60, False)
        self.relist(w1=Entry(None, 60))
        self.assertEqual((self.views(), self.stored("w1")), ([("", 60, "full")], "full"))
        self.relist(w1=Entry(None, 65))
        self.assertEqual(self.views(), [("", 65, "full")])
        self.relist()
        self.assertEqual((self.views(), self.stored("w1")), ([("", 100, "up")], "up"))

    def test_worker_that_registered_meanwhile(self) -> None:
        """One that came back while the list was worked off would be put where its former connection said."""
        self.patch(registry, "RELISTED_AT_ONCE", 2)
        claims = [self.front.worker(f"w{number}", "eu", 100) for number in range(7)]
        self.entries = {f"w{number}": Entry(None, 50) for number in range(7)}
        self.front.registry.relist()
        self.front.registry.worker_left(claims[5])
        self.front.worker("w6", "us", 10)
        self.entries = {f"w{number}": Entry(None, 40) for number in range(6)}
        self.front.registry.relist()
        self.front.advance(0.5)
        expected = [("eu", 40, "up")] * 5 + [("eu", 100, "down"), ("us", 10, "up")]
        self.assertEqual(self.views(), expected)

    def test_in_slices(self) -> None:
        """Ten thousand workers of another capacity would hold the front up for seconds."""
        for number in range(50):
            self.front.worker(f"w{number}")
        written: list[int] = []
        write = self.front.writer.write

        def noted(rows: Collection[Row]) -> Any:
            written.append(len(rows))
            return write(rows)

        turns: list[Callable[[], None]] = []
        self.patch(self.front.writer, "write", noted)
        self.front.registry._soon = turns.append
        self.entries = {"192.0.2.50": Entry("us", 50)}
        self.front.registry.relist()
        self.assertEqual(written, [registry.RELISTED_AT_ONCE])
        self.front.registry.relist()  # from the beginning again, and still so many with each turn
        self.assertEqual(len(turns), 1)
        while turns:
            turns.pop()()
        self.assertEqual((sum(written), max(written)), (50, registry.RELISTED_AT_ONCE))
        self.assertEqual({view.region for view in self.front.pool.workers()}, {"us"})
