"""The store: rows, what a front keeps for itself, and what happens when the disk does not play along."""

from __future__ import annotations

import os
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.state.changes import BATCH_BYTES, START, Cursor
from kollator.state.errors import StorageFailedError, StoreError
from kollator.state.rows import WHYS, AttachmentRow, DrainRow, FrontRow, PinRow, Row, WorkerRow, row_key
from kollator.state.store import Store
from kollator.state.tables import TABLES, from_stored, is_canonical_cidr, table_of, to_stored

EVERY_KIND = [
    FrontRow("a", 3, 0, "eu", "ws://a/signaling", True),
    WorkerRow("w1", "eu", 50, "10.0.0.1"),
    AttachmentRow("w1", "a", 3, "up"),
    PinRow("10.0.0.0/8", "w1", ""),
    DrainRow("w1", True),
]


class StoreTestCase(SynchronousTestCase):
    """Stores that are closed at the end."""

    def open(self, node="a", path=":memory:", **keywords):
        store = Store.open(path, node_id=node, **keywords)
        self.addCleanup(store.close)
        return store


def from_keys(kind: Any, count: int) -> Row:
    """A row of that kind with its defaults."""
    return kind(*["1"] * count)


class RowTests(StoreTestCase):
    """Writing and reading the replicated rows."""

    def test_what_is_written_is_read(self):
        """A front that starts again would serve from other rows than it stored."""
        store = self.open()
        self.assertEqual(store.rows(), [])
        self.assertTrue(store.write(EVERY_KIND).changed)
        self.assertEqual(store.rows(), EVERY_KIND)

    def test_same_write_again_makes_no_change(self):
        """Every repeated status would travel to every front, and cursors could overtake each other."""
        store = self.open()
        first = store.write(EVERY_KIND)
        self.assertEqual(store.write(EVERY_KIND), (False, first.db_version))
        self.assertEqual(store.changes_since(store.head()).changes, [])

    def test_only_columns_that_differ_are_written(self):
        """A column that another front has changed meanwhile would be overwritten with its old value."""
        store = self.open()
        store.write(EVERY_KIND)
        before = store.head()
        store.write([WorkerRow("w1", "us", 50, "10.0.0.1"), AttachmentRow("w1", "a", 3, "full")])
        changes = store.changes_since(before).changes
        self.assertEqual(
            [(c.table, c.cid, c.val) for c in changes], [("workers", "region", "us"), ("attachments", "state", "full")]
        )

    def test_later_row_of_two_counts(self):
        """A worker that leaves within one turn of the writer would stay up."""
        store = self.open()
        store.write([AttachmentRow("w1", "a", 1, "up"), AttachmentRow("w1", "a", 1, "down")])
        self.assertEqual(store.rows(), [AttachmentRow("w1", "a", 1, "down")])

    def test_one_transaction(self):
        """A peer could see a worker without its attachment."""
        store = self.open()
        store.write(EVERY_KIND)
        self.assertEqual({change.db_version for change in store.changes_since(START).changes}, {1})

    def test_large_write_fits_in_batches(self):
        """A db_version larger than a batch would make a frame that every peer refuses."""
        store = self.open()
        rows = [WorkerRow(f"{i:064}", "é" * 64, 1, "ü" * 255) for i in range(400)]
        store.write(rows)
        cursor, seen, batches = START, 0, 0
        while True:
            batch = store.changes_since(cursor)
            self.assertLessEqual(
                sum(len(change.val) * 2 for change in batch.changes if type(change.val) is str), BATCH_BYTES
            )
            seen, cursor, batches = seen + len(batch.changes), batch.cursor, batches + 1
            if not batch.more:
                break
        self.assertEqual((seen, store.rows()), (1200, rows))
        self.assertGreater(batches, 1)

    def test_refuses_what_peers_would_refuse(self):
        """One front would hold a row that no other has, for ever."""
        store = self.open()
        for row in (
            WorkerRow("w 1"),
            WorkerRow("w1\n"),
            WorkerRow(""),
            WorkerRow("w" * 65),
            WorkerRow("é"),
            WorkerRow("w1", capacity=0),
            WorkerRow("w1", capacity=1_000_001),
            WorkerRow("w1", capacity=True),
            WorkerRow("w1", region="a\0b"),
            WorkerRow("w1", region="x" * 65),
            WorkerRow("w1", region="\ud800"),
            WorkerRow("w1", address="x" * 256),
            AttachmentRow("w1", "a", 1, "gone"),  # type: ignore[arg-type]
            AttachmentRow("w1", "a", 1, "down", "bored"),  # type: ignore[arg-type]
            AttachmentRow("w1", "a", 1, "down", "ping\n"),  # type: ignore[arg-type]
            AttachmentRow("w1", "a", 1, "down", None),  # type: ignore[arg-type]
            AttachmentRow("w1", "a", -1),
            AttachmentRow("w1", "a", 2**53 + 1),
            PinRow("10.0.0.1/8"),
            PinRow("10.0.0.0/8", "w 1"),
            FrontRow("a", 1, 0, "", "x" * 513),
            DrainRow("w 1", True),
            DrainRow("", True),
            DrainRow("w1", 2),  # type: ignore[arg-type]
        ):
            self.assertRaises(ValueError, store.write, [EVERY_KIND[1], row])
        self.assertEqual(store.rows(), [])

    def test_tables_agree_with_the_schema(self):
        """A column that is in one and not in the other would be lost, or refused by peers."""
        store = self.open()
        with store._database.use() as connection:
            for name, table in TABLES.items():
                found = connection.execute(f"PRAGMA table_info({name})").fetchall()
                names = [column.name for column in table.keys + table.values]
                self.assertEqual([column[1] for column in found], names)
                self.assertEqual(names, list(table.row.__struct_fields__))
                self.assertTrue(all(column[3] for column in found), "every column is NOT NULL")
                connection.execute("BEGIN")
                keys = [column.name for column in table.keys]
                connection.execute(f"INSERT INTO {name} ({', '.join(keys)}) VALUES ({', '.join('1' for _ in keys)})")
                stored = connection.execute(f"SELECT {', '.join(names)} FROM {name}").fetchall()[0]
                connection.execute("ROLLBACK")
                self.assertEqual(from_stored(table, stored), from_keys(table.row, len(keys)), "defaults")


class OneWriterTests(StoreTestCase):
    """Who may write what: two writers of one column lose each other's writes."""

    def setUp(self):
        self.store = self.open("a")
        other = self.open("b")
        other.begin_incarnation("us", "ws://b")
        batch = other.changes_since(START)
        self.store.merge(batch.changes, sender="b", sites=batch.sites, cursor=batch.cursor)
        self.b = FrontRow("b", 1, 0, "us", "ws://b")
        self.assertEqual(self.store.rows(), [self.b])

    def test_another_front_can_only_be_retired(self):
        """A leader with an old view would take back what a front says of itself."""
        for row in (
            FrontRow("b", 2, 1, "us", "ws://b"),
            FrontRow("b", 1, 1, "eu", "ws://b"),
            FrontRow("b", 1, 1, "us", "ws://c"),
            FrontRow("b", 1, 1, "us", "ws://b", True),
            FrontRow("c", 0, 0),
        ):
            self.assertRaises(ValueError, self.store.write, [row])
        self.store.write([FrontRow("b", 1, 1, "us", "ws://b")])
        self.assertEqual(self.store.rows(), [FrontRow("b", 1, 1, "us", "ws://b")])
        self.assertRaises(ValueError, self.store.write, [self.b])  # nobody is brought back to life

    def test_attachments_of_others(self):
        """A front would say what another one holds."""
        self.assertRaises(ValueError, self.store.write, [AttachmentRow("w1", "b", 1, "up")])

    def test_own_retired_is_left_alone(self):
        """A front would undo its retirement with a row from before it, and two fronts would hold one worker."""
        leader = self.open("b")
        mine = self.store.begin_incarnation("eu", "")
        batch = self.store.changes_since(START)
        leader.merge(batch.changes, sender="a", sites=batch.sites)
        leader.write([FrontRow("a", 1, 1, "eu")])
        batch = leader.changes_since(START)
        self.store.merge(batch.changes, sender="b", sites=batch.sites)
        self.store.write([mine])
        self.assertIn(FrontRow("a", 1, 1, "eu"), self.store.rows())

    def test_own_incarnation_only_grows(self):
        """Workers of a former life would count again."""
        self.store.begin_incarnation("", "")
        now = self.store.begin_incarnation("", "")
        self.assertRaises(ValueError, self.store.write, [FrontRow("a", now.incarnation - 1)])


class IncarnationTests(StoreTestCase):
    """Each start is a new life."""

    def test_grows_over_restarts(self):
        """What was attached to a former life would count in the next one."""
        path = self.mktemp()
        for expected in (1, 2, 3):
            store = self.open(path=path)
            front = store.begin_incarnation("eu", "ws://x")
            self.assertEqual(front, FrontRow("a", expected, 0, "eu", "ws://x"))
            self.assertEqual(store.rows(), [front])
            store.close()

    def test_above_its_retirement(self):
        """A front that was declared dead would stay dead after its restart, if its file was wiped meanwhile."""
        leader, wiped = self.open("b"), self.open("a")
        former = self.open("a")
        for _ in range(5):
            former.begin_incarnation("", "")
        leader.merge(former.changes_since(START).changes, sender="a", sites=[former.site_id()])
        leader.write([FrontRow("a", 5, 5)])
        self.assertEqual(wiped.begin_incarnation("", "").incarnation, 1)
        wiped.merge(leader.changes_since(START).changes, sender="b", sites=[leader.site_id(), former.site_id()])
        self.assertEqual(wiped.begin_incarnation("", ""), FrontRow("a", 6, 5))

    def test_used_up(self):
        """A hostile peer that sets the counter to its end would make the front fail with a traceback."""
        store = self.open()
        store.write([FrontRow("a", 2**53)])
        error = self.assertRaises(StoreError, store.begin_incarnation, "", "")
        self.assertNotIn("\n", str(error))


class OwnStateTests(StoreTestCase):
    """What is not replicated: meta and votes."""

    def test_meta(self):
        """A front would not find after a restart what it kept."""
        path = self.mktemp()
        store = self.open(path=path)
        self.assertIdentical(store.get("key"), None)
        for value in (b"\0\xff", "text", 7, "newer"):
            store.put("key", value)
            self.assertEqual(store.get("key"), value)
        store.close()
        self.assertEqual(self.open(path=path).get("key"), "newer")

    def test_vote_survives(self):
        """A front that starts again would vote twice in one term: two leaders."""
        path = self.mktemp()
        store = self.open(path=path)
        self.assertEqual(store.vote(), (0, None))
        store.save_vote(4, None)
        store.save_vote(4, "b")
        store.close()
        self.assertEqual(self.open(path=path).vote(), (4, "b"))

    def test_vote_is_not_taken_back(self):
        """A mistake in the election would become two leaders."""
        store = self.open()
        store.save_vote(4, "b")
        store.save_vote(4, "b")
        for term, vote in ((4, "c"), (4, None), (3, "b"), (3, None)):
            self.assertRaises(ValueError, store.save_vote, term, vote)
        store.save_vote(5, "c")
        self.assertEqual(store.vote(), (5, "c"))

    def test_vote_is_past_a_loss_of_power(self):
        """A vote in SQLite's NORMAL mode can be lost with the power, and is then given again."""
        store = self.open(path=self.mktemp())
        with store._database.use() as connection:
            levels: list[str] = []

            def trace(_, sql, __):
                levels.append(sql)
                return True

            connection.set_exec_trace(trace)
            store.save_vote(1, "a")
            connection.set_exec_trace(None)
        self.assertLess(levels.index("PRAGMA synchronous=FULL"), levels.index("BEGIN IMMEDIATE"))
        self.assertLess(levels.index("COMMIT"), levels.index("PRAGMA synchronous=NORMAL"))


class FailureTests(StoreTestCase):
    """Disk trouble and misuse: typed errors, and a store that goes on when it can."""

    def test_disk_full(self):
        """A full disk would end the front, or leave half a write behind."""
        path = self.mktemp()
        store = self.open(path=path)
        store.write(EVERY_KIND)
        before, head = store.rows(), store.head()
        with store._database.use() as connection:
            pages = connection.execute("PRAGMA page_count").fetchall()[0][0]
            connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
        rows = [WorkerRow(f"w{i}", address="x" * 255) for i in range(1000)]
        error = self.assertRaises(StorageFailedError, store.write, rows)
        self.assertIn("SQLITE_PATH", str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual((store.rows(), store.head()), (before, head))
        with store._database.use() as connection:
            connection.execute("PRAGMA max_page_count=100000").fetchall()
        self.assertTrue(store.write(rows).changed)
        self.assertEqual(len(store.rows()), len(before) - 1 + 1000)

    def test_closed(self):
        """A late write would be an exception that nobody expects."""
        store = self.open(path=self.mktemp())
        store.close()
        store.close()
        for call in (store.rows, lambda: store.write([EVERY_KIND[1]]), store.vote, lambda: store.changes_since(START)):
            self.assertIn("closed", str(self.assertRaises(StoreError, call)))

    def test_node_id(self):
        """A node id that no peer accepts would make all its rows refused."""
        self.assertRaises(ValueError, Store.open, ":memory:", node_id="a b")

    def test_threads_take_turns(self):
        """A read during another thread's transaction would see half of it, or end it."""
        store = self.open(path=self.mktemp())
        store.write([PinRow("10.0.0.0/8", "x")])
        problems: list[object] = []

        def work(name):
            try:
                for i in range(50):
                    store.write([WorkerRow(f"{name}{i}"), AttachmentRow(f"{name}{i}", "a", 1, "up")])
                    rows = store.rows()
                    if len([r for r in rows if type(r) is WorkerRow]) != len(
                        [r for r in rows if type(r) is AttachmentRow]
                    ):
                        problems.append("half a write")
            except Exception as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(problems, [])
        self.assertEqual(len(store.rows()), 301)

    def test_durable_write_and_image(self):
        """A backup would not hold what was written, or could not be opened."""
        store = self.open(path=self.mktemp())
        store.write(EVERY_KIND, durable=True)
        copy = self.mktemp()
        with open(copy, "wb") as file:
            file.write(store.image())
        os.sync()
        self.assertEqual(self.open(path=copy).rows(), EVERY_KIND)
        self.assertEqual(self.open(image=store.image()).rows(), EVERY_KIND)


text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=64)
ids = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)
counters = st.integers(0, 2**53)
cidrs = st.one_of(
    st.ip_addresses(v=4).map(lambda a: f"{a}/32"),
    st.ip_addresses(v=6).map(lambda a: f"{a}/128").filter(is_canonical_cidr),
)
rows = st.one_of(
    st.builds(FrontRow, ids, counters, counters, text, text, st.booleans()),
    st.builds(WorkerRow, ids, text, st.integers(1, 1_000_000), text),
    st.builds(AttachmentRow, ids, ids, counters, st.sampled_from(["up", "full", "draining"])),
    st.builds(AttachmentRow, ids, ids, counters, st.just("down"), st.sampled_from(["", *WHYS])),
    st.builds(DrainRow, ids, st.booleans()),
    st.builds(PinRow, cidrs, st.one_of(st.just(""), ids), text),
)


class CodecTests(SynchronousTestCase):
    """Rows as the database has them."""

    @given(rows)
    @settings(max_examples=100, deadline=None)
    def test_round_trip(self, row):
        """A row would come back as another one."""
        self.assertEqual(from_stored(table_of(row), to_stored(row)), row)
        self.assertEqual(row_key(row), (table_of(row).name, *to_stored(row)[: len(table_of(row).keys)]))

    def test_canonical_cidrs(self):
        """One network would have two rows, and fronts would disagree on which counts."""
        for text, canonical in (
            ("10.0.0.0/8", True),
            ("0.0.0.0/0", True),
            ("2001:db8::/32", True),
            ("::/0", True),
            ("10.0.0.1/8", False),
            ("10.0.0.0", False),
            ("10.0.0.0/255.0.0.0", False),
            ("2001:DB8::/32", False),
            ("2001:db8:0::/48", False),
            ("fe80::%eth0/64", False),
            ("::ffff:10.0.0.0/104", False),
            ("::ffff:a00:0/104", False),
            (" 10.0.0.0/8", False),
            ("10.0.0.0/8\n", False),
            ("", False),
            ("x" * 1000, False),
        ):
            self.assertEqual(is_canonical_cidr(text), canonical, text)

    def test_cursor_default_is_the_start(self):
        """A new peer would be sent less than everything."""
        self.assertEqual(Cursor(), START)
