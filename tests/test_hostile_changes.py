"""Real stores and a peer that sends what no honest front would: the row is refused, and nothing else notices."""

from __future__ import annotations

from typing import Any

import apsw
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from kollator.state import replication
from kollator.state.changes import START, Change, Cursor, pack_key
from kollator.state.errors import StorageFailedError
from kollator.state.replication import SITES_MAX
from kollator.state.rows import WorkerRow
from kollator.state.store import Store
from tests.test_changes import ACCEPTED, REFUSED, SITE


class HostileTests(SynchronousTestCase):
    """What a peer with the cluster's key may send: the row is refused, and nothing else notices."""

    def setUp(self):
        self.store = Store.open(":memory:", node_id="b")
        self.addCleanup(self.store.close)
        self.store.write([WorkerRow("mine")])

    def test_every_hostile_row(self):
        """One row would crash the process, stop the sync, or take its neighbours with it."""
        for number, (change, reason) in enumerate(REFUSED):
            good = Change("workers", pack_key((f"w{number}",)), "capacity", 7, 1, 1, SITE, 1, 0)
            before = self.store.rows()
            cursor = Cursor(b"e" * 16, number)
            result = self.store.merge([change, good, change], sender="x", cursor=cursor, sites=[SITE])
            self.assertEqual(result.refused, [(reason, 2)], change)
            self.assertEqual(result.rows, [WorkerRow(f"w{number}", capacity=7)])
            self.assertEqual(self.store.cursor_of("x"), cursor)
            self.assertEqual(sorted([*before, *result.rows], key=repr), sorted(self.store.rows(), key=repr))
        self.assertTrue(self.store.write([WorkerRow("mine", "eu")]).changed)
        self.assertLess(self.store.db_version(), 10_000)

    def test_extremes_that_are_allowed(self):
        """The largest numbers would stop the local log or make the extension fail."""
        result = self.store.merge(ACCEPTED, sender="x", sites=[SITE])
        self.assertEqual(result.refused, [])
        version = self.store.db_version()
        self.assertEqual(self.store.write([WorkerRow("mine", "eu")]).db_version, version + 1)
        other = Store.open(":memory:", node_id="c")
        self.addCleanup(other.close)
        batch = self.store.changes_since(START)
        self.assertEqual(other.merge(batch.changes, sender="b", sites=batch.sites).refused, [])
        self.assertEqual(other.rows(), self.store.rows())

    def test_site_must_be_vouched_for(self):
        """Any 16 bytes would be stored for ever as a database that never was."""
        change = Change("workers", pack_key(("w",)), "capacity", 7, 1, 1, b"t" * 16, 1, 0)
        self.assertEqual(self.store.merge([change], sender="x").refused, [("unknown site", 1)])
        junk: Any = [b"short", "x" * 16, None]
        self.assertEqual(self.store.merge([change], sender="x", sites=junk).rows, [])
        self.assertEqual(self.store.merge([change], sender="x", sites=[b"t" * 16]).refused, [])

    def test_sites_are_bounded(self):
        """A peer could fill the memory with databases that never were."""
        self.patch(replication, "SITES_MAX", 3)
        self.store.merge([], sender="x", sites=[bytes([i]) * 16 for i in range(9)])
        self.assertEqual(len(self.store._replication._sites), 3)
        self.assertEqual(SITES_MAX, 65_536)

    def test_refused_by_the_extension(self):
        """A change that gets past the wall and fails inside would take the whole batch with it."""
        self.patch(replication, "validate", lambda change, known_sites: None)
        good = Change("workers", pack_key(("w",)), "capacity", 7, 1, 1, SITE, 1, 0)
        bad = [replace(good, table="nowhere"), replace(good, cid="nothing"), replace(good, val="text", col_version=2)]
        result = self.store.merge([good, *bad], sender="x", cursor=Cursor(b"e" * 16, 1))
        self.assertEqual(result.refused, [("refused by cr-sqlite", 3)])
        self.assertEqual(result.rows, [WorkerRow("w", capacity=7)])
        self.assertEqual(self.store.cursor_of("x").db_version, 1)
        self.assertTrue(self.store.write([WorkerRow("w", capacity=8)]).changed)

    def test_disk_full_is_no_fault_of_the_rows(self):
        """Good rows would be counted as hostile, skipped and lost when the disk is full."""
        good = Change("workers", pack_key(("w",)), "capacity", 7, 1, 1, SITE, 1, 0)
        many = [replace(good, pk=pack_key((f"w{i}",))) for i in range(2000)]
        before = self.store.rows()
        with self.store._database.use() as connection:
            pages = connection.execute("PRAGMA page_count").fetchall()[0][0]
            connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
        merge = self.store.merge
        self.assertRaises(StorageFailedError, merge, many, sender="x", cursor=Cursor(b"e" * 16, 1), sites=[SITE])
        self.assertEqual((self.store.rows(), self.store.cursor_of("x")), (before, START))
        with self.store._database.use() as connection:
            connection.execute("PRAGMA max_page_count=1000000").fetchall()
        self.assertEqual(len(self.store.merge(many, sender="x", sites=[SITE]).rows), 2000)

    def test_hostile_cursors(self):
        """A peer's cursor would raise, or make the front look for changes that are not there."""
        for cursor in (
            Cursor(b"", 5),
            Cursor(b"x", 0),
            Cursor(b"e" * 16, 2**63 - 1),
            Cursor(self.store.head().epoch, 99),
        ):
            self.assertFalse(self.store.knows(cursor))
            batch = self.store.changes_since(cursor)
            self.assertTrue(batch.rewound)
            self.assertEqual(batch.cursor, self.store.head())
            self.assertEqual(len(batch.changes), 3)

    def test_late_failures_leave_no_transaction_open(self):
        """One error would make every later write fail."""
        with self.assertRaises(RuntimeError), self.store._database.transaction() as connection:
            connection.execute("INSERT INTO workers (id) VALUES ('half')")
            raise RuntimeError
        self.assertEqual(self.store.rows(), [WorkerRow("mine")])
        self.assertTrue(self.store.write([WorkerRow("x")]).changed)
        with self.store._database.use() as connection:
            self.assertFalse(connection.in_transaction)
            self.assertRaises(
                apsw.ConstraintError, connection.execute, "INSERT INTO workers (id, capacity) VALUES ('y', 'z')"
            )
