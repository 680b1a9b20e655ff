"""Real stores that exchange changes: they converge, whatever happens to their files and whatever a peer sends."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from kollator.state import lineage
from kollator.state.changes import START, Batch, pack_key, slices
from kollator.state.rows import AttachmentRow, FrontRow, PinRow, WorkerRow
from kollator.state.store import Store

NAMES = ("a", "b", "c")
_ids = itertools.count(1)


def new_id() -> bytes:
    """Ids that no two databases of this process share, and that do not come from chance."""
    return next(_ids).to_bytes(16, "big")


def open_store(node: str, image: bytes | None = None) -> Store:
    """A store in memory."""
    return Store.open(":memory:", node_id=node, new_site_id=new_id, image=image)


class Cluster:
    """Fronts with real stores that exchange changes, as the sync drives them."""

    def __init__(self, size: int) -> None:
        self.stores = {name: open_store(name) for name in NAMES[:size]}
        self.images: dict[str, bytes] = {}

    def close(self) -> None:
        for store in self.stores.values():
            store.close()

    def swap(self, name: str, image: bytes | None) -> None:
        """The front stops, its file becomes another one, and it starts again."""
        self.stores[name].close()
        self.stores[name] = open_store(name, image)
        self.stores[name].begin_incarnation("", "")

    def pull(self, receiver: str, sender: str, limit_bytes: int = 262_144, at_least: int = 1000) -> bool:
        """One batch from sender to receiver. Tells if there are more."""
        to, of = self.stores[receiver], self.stores[sender]
        if not of.knows(to.cursor_of(sender)):
            of.renew_site_id()
        batch = of.changes_since(to.cursor_of(sender), limit_bytes=limit_bytes)
        batch = msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)
        pieces = list(slices(batch.changes, at_least)) or [[]]
        for piece in pieces[:-1]:
            assert to.merge(piece, sender=sender, sites=batch.sites).refused == []
        result = to.merge(pieces[-1], sender=sender, since=batch.since, cursor=batch.cursor, sites=batch.sites)
        assert result.refused == [] and result.cursor == batch.cursor
        return batch.more

    def settle(self) -> None:
        """Everyone pulls from everyone until nothing is left to pull."""
        for _ in range(20):
            before = [store.head() for store in self.stores.values()]
            for receiver, sender in itertools.permutations(self.stores, 2):
                while self.pull(receiver, sender):
                    pass
            if before == [store.head() for store in self.stores.values()]:
                return
        raise AssertionError("no end of changes")

    def rows(self) -> list[list[object]]:
        return [list(store.rows()) for store in self.stores.values()]


def schedules(size: int) -> st.SearchStrategy:
    """Lists of things that happen to a cluster: mostly writes and exchanges, between them trouble with files."""
    names, numbers = st.sampled_from(NAMES[:size]), st.integers(0, 5)

    def step(what, *arguments):
        return st.tuples(st.just(what), names, *arguments)

    states = st.sampled_from(["up", "full", "down"])
    usual = st.one_of(step("attach", numbers, states), step("burst", numbers, states), step("pull", names, numbers))
    shared = st.one_of(step("pin", numbers), step("worker", numbers), step("retire", names))
    trouble = st.one_of(
        step("save"), step("restore"), step("relapse", names, numbers, numbers), step("copy", names), step("wipe")
    )
    return st.lists(st.one_of(usual, usual, shared, trouble), min_size=8, max_size=40)


def run(cluster: Cluster, what: str, name: str, *arguments) -> None:
    """One thing that happens to a cluster."""
    store = cluster.stores[name]
    if what == "attach":
        number, state = arguments
        store.write([AttachmentRow(f"w{number}", name, 1, state)])
    elif what == "burst":
        count, state = arguments
        for number in range(count):
            store.write([AttachmentRow(f"w{number}", name, 1, state), WorkerRow(f"w{number}", capacity=count + 1)])
    elif what == "pin":
        store.write([PinRow(f"10.{arguments[0] % 2}.0.0/16", f"w{arguments[0]}")])
    elif what == "worker":
        store.write([WorkerRow(f"w{arguments[0] % 2}", capacity=arguments[0] + 1)])
    elif what == "retire":
        rows = [row for row in store.rows() if isinstance(row, FrontRow) and row.id == arguments[0] != name]
        store.write(replace(row, retired=max(row.retired, row.incarnation)) for row in rows)
    elif what == "pull" and arguments[0] != name:
        cluster.pull(name, arguments[0], (1, 400, 100_000)[arguments[1] % 3], 2)
    elif what == "save":
        cluster.images[name] = store.image()
    elif what == "restore" and name in cluster.images:
        cluster.swap(name, cluster.images[name])
    elif what == "relapse":
        # An older file comes back after others have seen what it lacks, and goes on with other writes.
        other, lost, new = arguments
        image = store.image()
        for number in range(lost):
            store.write([AttachmentRow(f"lost{number}", name, 1, "up")])
        if other != name:
            cluster.pull(other, name)
        cluster.swap(name, image)
        for number in range(new):
            cluster.stores[name].write([AttachmentRow(f"new{number}", name, 1, "up")])
    elif what == "copy" and arguments[0] != name:
        cluster.swap(name, cluster.stores[arguments[0]].image())
    elif what == "wipe":
        cluster.swap(name, None)


class ConvergenceTests(SynchronousTestCase):
    """Fronts that have exchanged everything hold equal rows."""

    def check(self, size, schedule):
        cluster = Cluster(size)
        try:
            for step in schedule:
                run(cluster, *step)
            cluster.settle()
            first, *others = cluster.rows()
            for rows in others:
                self.assertEqual(rows, first)
            # And what is written from now on arrives: nobody hides behind an old cursor, site id or counter.
            written = {name: store.begin_incarnation("x", "y") for name, store in cluster.stores.items()}
            cluster.settle()
            for rows in cluster.rows():
                fronts = {row.id: row for row in rows if isinstance(row, FrontRow)}
                self.assertEqual({name: fronts[name] for name in written}, written)
        finally:
            cluster.close()

    @given(schedules(2))
    @settings(max_examples=25, deadline=None)
    def test_two(self, schedule):
        """Two fronts would give different answers for ever."""
        self.check(2, schedule)

    @given(schedules(3))
    @settings(max_examples=25, deadline=None)
    def test_three(self, schedule):
        """What comes through a third front would be lost."""
        self.check(3, schedule)


class LineageTests(SynchronousTestCase):
    """What happens to a file, one case each."""

    def cluster(self, size=2):
        cluster = Cluster(size)
        self.addCleanup(cluster.close)
        for store in cluster.stores.values():
            store.begin_incarnation("", "")
        cluster.settle()
        return cluster

    def assertConverges(self, cluster):
        cluster.settle()
        first, *others = cluster.rows()
        for rows in others:
            self.assertEqual(rows, first)
        return first

    def test_wiped(self):
        """A wiped front would stay empty, or its peers would never ask for its new rows."""
        cluster = self.cluster()
        a, b = cluster.stores.values()
        for i in range(10):
            a.write([WorkerRow(f"w{i}")])
        cluster.settle()
        cluster.swap("a", None)
        a = cluster.stores["a"]
        self.assertEqual(a.origin, "new")
        cursor = b.cursor_of("a")
        self.assertFalse(a.knows(cursor))
        self.assertTrue(a.changes_since(cursor).rewound)
        a.write([WorkerRow("new")])
        rows = self.assertConverges(cluster)
        self.assertEqual(len([row for row in rows if isinstance(row, WorkerRow)]), 11)

    def test_restored(self):
        """An older file would hide the next writes from the peers, and the lost ones from itself."""
        cluster = self.cluster()
        a, b = cluster.stores.values()
        image = a.image()
        for i in range(10):
            a.write([WorkerRow(f"lost{i}")])
        a.begin_incarnation("", "")
        cluster.settle()
        site, cursor = a.site_id(), b.cursor_of("a")
        cluster.swap("a", image)
        a = cluster.stores["a"]
        self.assertEqual((a.origin, a.site_id()), ("known", site))
        for i in range(30):
            a.write([WorkerRow(f"new{i}")])
        self.assertGreater(a.db_version(), cursor.db_version, "past the old cursor, which a look at numbers misses")
        self.assertFalse(a.knows(cursor))
        rows = self.assertConverges(cluster)
        self.assertNotEqual(a.site_id(), site)
        self.assertEqual(len([row for row in rows if isinstance(row, WorkerRow)]), 40)
        self.assertEqual(a.begin_incarnation("", "").incarnation, 3)
        self.assertConverges(cluster)

    def test_restart_keeps_cursors(self):
        """Every restart of a front would make all others fetch everything again."""
        cluster = self.cluster()
        a, b = cluster.stores.values()
        cursor = b.cursor_of("a")
        for _ in range(lineage.EPOCHS_KEPT - 1):
            cluster.swap("a", cluster.stores["a"].image())
        a = cluster.stores["a"]
        self.assertTrue(a.knows(cursor))
        self.assertFalse(a.changes_since(cursor).rewound)
        cluster.swap("a", a.image())
        self.assertFalse(cluster.stores["a"].knows(cursor), "epochs are bounded; the peer then starts again")
        self.assertConverges(cluster)

    def test_copied(self):
        """Two databases would write under one site id, and a front would know another one's secrets and vote."""
        cluster = self.cluster(3)
        a, b, _ = cluster.stores.values()
        a.put("key", "secret of a")
        a.save_vote(7, "c")
        cluster.swap("b", a.image())
        b = cluster.stores["b"]
        self.assertEqual(b.origin, "copy")
        self.assertNotEqual(a.site_id(), b.site_id())
        self.assertEqual((b.get("key"), b.vote(), b.cursor_of("c")), (None, (7, "b"), START))
        self.assertFalse(b.renew_site_id())
        a.write([AttachmentRow("w", "a", 1, "up")])
        b.write([AttachmentRow("w", "b", 1, "up")])
        rows = self.assertConverges(cluster)
        self.assertEqual(len([row for row in rows if isinstance(row, AttachmentRow)]), 2)

    def test_copied_file(self):
        """The same for files, as an operator copies them."""
        first, second = self.mktemp(), self.mktemp()
        a = Store.open(first, node_id="a")
        self.addCleanup(a.close)
        a.write([WorkerRow("w")])
        with open(second, "wb") as file:
            file.write(a.image())
        b = Store.open(second, node_id="b")
        self.addCleanup(b.close)
        self.assertEqual((b.origin, b.rows()), ("copy", a.rows()))
        self.assertNotEqual(a.site_id(), b.site_id())
        b.close()
        b = Store.open(second, node_id="b")
        self.assertEqual(b.origin, "known")
        b.close()

    def test_renewed_file(self):
        """A new site id would be forgotten at the next start, or rows lost with it."""
        path = self.mktemp()
        a = Store.open(path, node_id="a")
        a.write([WorkerRow("w")])
        a.close()
        a = Store.open(path, node_id="a")
        self.addCleanup(a.close)
        site, head = a.site_id(), a.head()
        self.assertTrue(a.renew_site_id())
        self.assertFalse(a.renew_site_id())
        renewed = a.site_id()
        self.assertNotEqual(renewed, site)
        self.assertEqual((a.head(), a.rows()), (head, [WorkerRow("w")]))
        a.write([WorkerRow("x")])
        a.close()
        a = Store.open(path, node_id="a")
        self.addCleanup(a.close)
        self.assertEqual(a.site_id(), renewed)
        self.assertEqual({change.site_id for change in a.changes_since(START).changes}, {renewed})

    def test_power_lost(self):
        """Transactions that the disk lost, but peers have, would be written again with other contents."""
        cluster = self.cluster()
        a = cluster.stores["a"]
        image = a.image()
        a.write([WorkerRow("lost")])
        cluster.settle()
        cluster.swap("a", image)
        cluster.stores["a"].write([WorkerRow("other")])
        rows = self.assertConverges(cluster)
        self.assertIn(WorkerRow("lost"), rows)
        self.assertIn(WorkerRow("other"), rows)


class BatchTests(SynchronousTestCase):
    """Cuts, cursors and gaps."""

    def setUp(self):
        self.a, self.b = open_store("a"), open_store("b")
        self.addCleanup(self.a.close)
        self.addCleanup(self.b.close)

    def fill(self):
        for i in range(20):
            self.a.write([WorkerRow(f"w{i}"), AttachmentRow(f"w{i}", "a", 1, "up")])

    @given(st.integers(1, 5000))
    @settings(max_examples=20, deadline=None)
    def test_whole_versions(self, limit_bytes):
        """A cursor inside a db_version would skip the rest of it."""
        if not self.a.db_version():
            self.fill()
        cursor, versions = START, []
        while True:
            batch = self.a.changes_since(cursor, limit_bytes=limit_bytes)
            here = [change.db_version for change in batch.changes]
            self.assertEqual({version: here.count(version) for version in here}, dict.fromkeys(here, 6))
            versions += sorted(set(here))
            self.assertEqual(batch.since, cursor)
            cursor = batch.cursor
            if not batch.more:
                break
            self.assertEqual(cursor.db_version, here[-1])
        self.assertEqual(versions, list(range(1, 21)))
        self.assertEqual(cursor, self.a.head())

    def test_own_writes(self):
        """A database that was put back would never get back what it lost; or it would be sent on and on."""
        self.fill()
        batch = self.a.changes_since(START)
        self.b.merge(batch.changes, sender="a", since=batch.since, cursor=batch.cursor, sites=batch.sites)
        back = self.b.changes_since(START)
        self.assertEqual({change.site_id for change in back.changes}, {self.a.site_id()})
        self.assertEqual(len(back.changes), len(batch.changes))
        head = self.a.db_version()
        result = self.a.merge(back.changes, sender="b", since=back.since, cursor=back.cursor, sites=back.sites)
        self.assertEqual((result.rows, result.cursor, self.a.db_version()), ([], self.b.head(), head))

    def test_gap(self):
        """A batch after one that was lost would move the cursor past the lost one."""
        self.fill()
        one = self.a.changes_since(START, limit_bytes=100)
        two = self.a.changes_since(one.cursor, limit_bytes=100)
        result = self.b.merge(two.changes, sender="a", since=two.since, cursor=two.cursor, sites=two.sites)
        self.assertEqual((result.cursor, self.b.cursor_of("a")), (START, START))
        self.assertTrue(result.rows)
        for batch in (one, two, one):
            self.b.merge(batch.changes, sender="a", since=batch.since, cursor=batch.cursor, sites=batch.sites)
        self.assertEqual(self.b.cursor_of("a"), two.cursor)

    def test_rows_that_changed(self):
        """The pool would miss a change, or be told of rows that are as they were."""
        self.fill()
        self.b.merge(self.a.changes_since(START).changes, sender="a", sites=[self.a.site_id()])
        head = self.a.head()
        self.a.write([AttachmentRow("w3", "a", 1, "down"), WorkerRow("w4", "eu")])
        changes = self.a.changes_since(head).changes
        self.assertEqual(
            self.b.merge(changes, sender="a").rows, [WorkerRow("w4", "eu"), AttachmentRow("w3", "a", 1, "down")]
        )
        version = self.b.db_version()
        self.assertEqual(self.b.merge(self.a.changes_since(START).changes, sender="a").rows, [])
        self.assertEqual(self.b.db_version(), version, "a merge that changes nothing is not sent on")

    def test_keys_are_packed_as_cr_sqlite_does(self):
        """Every row of every peer would be refused."""
        self.a.write([WorkerRow("w" * 64), AttachmentRow("w", "a"), PinRow("2001:db8::/32"), FrontRow("a")])
        self.assertEqual(
            {change.pk for change in self.a.changes_since(START).changes},
            {pack_key(key) for key in (("w" * 64,), ("w", "a"), ("2001:db8::/32",), ("a",))},
        )
