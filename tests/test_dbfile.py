"""Opening a database: files that are not ours or not in order are told in one line and left as they were."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import apsw
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kollator.state.database import SCHEMA_VERSION
from kollator.state.dbfile import APPLICATION_ID, FileLock
from kollator.state.errors import (
    CorruptDatabaseError,
    ForeignDatabaseError,
    LockedDatabaseError,
    NewerDatabaseError,
    NotADatabaseError,
    PathError,
    StoreError,
)
from kollator.state.rows import AttachmentRow, WorkerRow
from kollator.state.store import Store

NOBODY = 65534


def contents(folder: Path) -> dict[str, str]:
    """Every file in a folder by the hash of its bytes."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


class FileTestCase(SynchronousTestCase):
    """A folder with a database file in it."""

    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "signaling.db"

    def make(self, workers=3):
        """A sound database of ours."""
        store = Store.open(str(self.path), node_id="a")
        store.write([WorkerRow(f"w{i}") for i in range(workers)])
        store.close()

    def alter(self, sql):
        """Change the file as another program would."""
        connection = apsw.Connection(str(self.path))
        connection.execute(sql).fetchall()
        connection.close()

    def refused(self, kind, path=None):
        """Neither opening nor checking takes the file, and both leave the folder as it was."""
        before = contents(self.folder)
        messages = set()
        for call in (lambda p: Store.open(p, node_id="a"), Store.check):
            error = self.assertRaises(StoreError, call, str(self.path if path is None else path))
            self.assertIsInstance(error, kind)
            messages.add(str(error))
            self.assertEqual(contents(self.folder), before)
        (message,) = messages
        self.assertNotIn("\n", message)
        self.assertTrue(message.startswith("SQLITE_PATH: "), message)
        return message


class BadFileTests(FileTestCase):
    """Files that cannot be used."""

    def test_not_a_database(self):
        """A mistyped path would destroy the file it names."""
        for data in (b"x", b"SQLite format 3\0", b"#!/bin/sh\n" * 100, os.urandom(8192)):
            self.path.write_bytes(data)
            self.refused(NotADatabaseError)

    def test_another_application(self):
        """Another program's database would get our tables."""
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
        connection.close()
        self.refused(ForeignDatabaseError)

    def test_another_application_in_wal_mode(self):
        """Another program's log, after its crash, would be folded in by us."""
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
        crashed = Path(self.mktemp())
        shutil.copytree(self.folder, crashed)
        connection.close()
        self.folder, self.path = crashed, crashed / "signaling.db"
        self.assertGreater((crashed / "signaling.db-wal").stat().st_size, 0)
        self.refused(ForeignDatabaseError)

    def test_newer_version(self):
        """An older front would write rows that a newer one cannot read, or lose columns."""
        self.make()
        self.alter(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        message = self.refused(NewerDatabaseError)
        self.assertIn(str(SCHEMA_VERSION + 1), message)

    def test_newer_version_in_the_log(self):
        """A newer front that crashed has its version in the log, where a look at the header misses it."""
        self.make()
        connection = apsw.Connection(str(self.path))
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}").fetchall()
        crashed = Path(self.mktemp())
        shutil.copytree(self.folder, crashed)
        connection.close()
        self.folder, self.path = crashed, crashed / "signaling.db"
        (crashed / "signaling.db-shm").unlink()
        self.refused(NewerDatabaseError)

    def test_damaged(self):
        """A front would run on half of its rows, and tell the others so."""
        self.make(2000)
        whole = self.path.read_bytes()
        pages = len(whole) // 4096
        for damaged in (
            whole[: 4096 * (pages // 2)],
            whole[:4096] + bytes(4096 * (pages - 1)),
            whole[:100] + os.urandom(100) + whole[200:],
            whole[:4096] + os.urandom(4096 * 8) + whole[4096 * 9 :],
        ):
            self.path.write_bytes(damaged)
            self.refused(CorruptDatabaseError)

    def test_empty_file_is_new(self):
        """A file that was only touched would need to be removed by hand."""
        self.path.touch()
        self.make()
        self.assertEqual(Store.check(str(self.path)), None)


class PathTests(FileTestCase):
    """Paths that cannot hold a database."""

    def test_no_folder(self):
        """A mistyped folder would end in a traceback."""
        self.assertIn("nowhere", self.refused(PathError, self.folder / "nowhere" / "x.db"))

    def test_not_a_file(self):
        """A folder, or a pipe that blocks, would be opened as a database."""
        self.refused(PathError, self.folder)
        os.mkfifo(self.path)
        self.addCleanup(self.path.unlink)
        for call in (lambda p: Store.open(p, node_id="a"), Store.check):
            self.assertRaises(PathError, call, str(self.path))

    def test_odd_names(self):
        """A NUL, or nothing, would end in a traceback; a line break would forge a line of the log."""
        self.refused(PathError, "a\0b")
        self.refused(PathError, "")
        self.refused(PathError, "no\nwhere/x")
        self.refused(PathError, self.folder / ("x" * 300))

    def test_unusual_names_work(self):
        """A path that looks like a URI, or has marks of one, would open another file."""
        for name in ("file:x.db", "a b%20c?mode=ro#d.db", "ä.db"):
            path = self.folder / name
            store = Store.open(str(path), node_id="a")
            store.close()
            self.assertTrue(path.is_file())
            Store.open(str(path), node_id="a").close()

    def test_permissions(self):
        """Without permission to write, the error would come at the first write, hours later."""
        if os.geteuid() != 0:
            raise SkipTest("needs root, to become another user")
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        os.chmod(folder, 0o755)
        self.folder, self.path = folder, folder / "signaling.db"
        self.make()
        os.chmod(self.path, 0o644)
        before = contents(folder)
        for mode in (0o755, 0o777):
            os.chmod(folder, mode)
            os.seteuid(NOBODY)
            try:
                for call in (lambda p: Store.open(p, node_id="a"), Store.check):
                    error = self.assertRaises(PathError, call, str(self.path))
                    self.assertIn("may not", str(error))
            finally:
                os.seteuid(0)
            self.assertEqual(contents(folder), before)

    def test_not_for_others(self):
        """Other users of the machine could read what the front keeps for itself."""
        self.make()
        self.assertEqual(self.path.stat().st_mode & 0o077, 0)


HOLD = """
import sys
from kollator.state.store import Store
from kollator.state.rows import WorkerRow
store = Store.open(sys.argv[1], node_id="a")
store.write([WorkerRow("w%d" % i) for i in range(100)])
print("ready", flush=True)
sys.stdin.read()
"""


class LockTests(FileTestCase):
    """One front for each file."""

    def hold(self):
        """Another process with the database open."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdin is not None and process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def test_another_process_then_its_crash(self):
        """Two fronts would write one file; or a crash would lock the file for ever, or lose what was stored."""
        process = self.hold()
        self.assertIn(str(process.pid), self.refused(LockedDatabaseError))
        linked = Path(self.mktemp())
        linked.symlink_to(self.path.resolve())
        self.refused(LockedDatabaseError, linked)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = contents(self.folder)
        self.assertIn("signaling.db-wal", before)
        Store.check(str(self.path))
        del before["signaling.db.lock"]
        self.assertEqual(contents(self.folder), before)
        store = Store.open(str(self.path), node_id="a")
        self.assertEqual(len(store.rows()), 100)
        store.close()
        self.assertEqual(os.listdir(self.folder), ["signaling.db"])

    def test_same_process(self):
        """Two stores on one file in one process would lose each other's locks."""
        store = Store.open(str(self.path), node_id="a")
        self.refused(LockedDatabaseError)
        store.write([WorkerRow("w")])
        store.close()
        store.close()
        Store.open(str(self.path), node_id="a").close()

    def test_locked_by_a_tool(self):
        """A tool that holds the file would make the front hang, or end in a traceback."""
        self.make()
        tool = apsw.Connection(str(self.path))
        self.addCleanup(tool.close)
        tool.execute("BEGIN EXCLUSIVE").fetchall()
        error = self.assertRaises(LockedDatabaseError, Store.open, str(self.path), node_id="a")
        self.assertTrue(str(error).startswith("SQLITE_PATH: "))
        tool.execute("ROLLBACK").fetchall()
        Store.open(str(self.path), node_id="a").close()

    def test_tools_may_read(self):
        """An operator could not look at the database, or back it up, while the front runs."""
        store = Store.open(str(self.path), node_id="a")
        self.addCleanup(store.close)
        store.write([AttachmentRow("w", "a", 1, "up")])
        tool = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        self.assertEqual(tool.execute("SELECT state FROM attachments").fetchall(), [("up",)])
        tool.close()
        store.write([AttachmentRow("w", "a", 1, "down")])

    def test_lock_file_that_was_removed(self):
        """Two fronts would have one lock each, of the same name."""
        path = str(self.path)
        first = FileLock(path)
        os.unlink(path + ".lock")
        second = FileLock(path)
        first.release()
        second.release()
        second.release()
        FileLock(path).release()
        self.assertEqual(os.listdir(self.folder), [])

    def test_lock_that_is_something_else(self):
        """A link in the lock's place would be written through, to any file."""
        target = self.folder / "precious"
        target.write_text("x")
        Path(f"{self.path}.lock").symlink_to(target)
        self.refused(PathError)
        self.assertEqual(target.read_text(), "x")


class NewFileTests(FileTestCase):
    """A database that is made."""

    def test_ours_from_the_first_page(self):
        """A crash right after the first start would leave a file that the next start calls foreign."""
        self.make()
        header = self.path.read_bytes()[:100]
        self.assertEqual(int.from_bytes(header[68:72], "big"), APPLICATION_ID)
        self.assertEqual(int.from_bytes(header[60:64], "big"), SCHEMA_VERSION)
        self.assertEqual(header[18:20], b"\2\2", "WAL")

    def test_interrupted_at_any_step(self):
        """A start that was cut short by a crash would leave a file that no start can use."""
        whole = []

        def trace(_, sql, __):
            whole.append(sql)
            shutil.copytree(self.folder, self.folder.parent / f"crash{len(whole)}")
            return True

        self.folder = self.folder.resolve()

        class Traced(apsw.Connection):
            def __init__(self, *arguments, **keywords):
                super().__init__(*arguments, **keywords)
                if arguments[0] == path:
                    self.set_exec_trace(trace)

        path = str(self.folder / "signaling.db")
        traced = self.patch(apsw, "Connection", Traced)
        Store.open(path, node_id="a").close()
        traced.restore()
        self.assertGreater(len(whole), 10)
        for number in range(1, len(whole) + 1):
            crashed = self.folder.parent / f"crash{number}"
            for left in crashed.glob("*.lock"):
                left.unlink()
            store = Store.open(str(crashed / "signaling.db"), node_id="a")
            store.begin_incarnation("", "")
            store.close()
            shutil.rmtree(crashed)

    def test_two_cr_sqlite_of_one_site_id_never(self):
        """Two new databases with one site id would hide their writes from each other."""
        stores = [Store.open(":memory:", node_id="a") for _ in range(3)]
        self.assertEqual(len({store.site_id() for store in stores}), 3)
        for store in stores:
            store.close()

    def test_site_id_source(self):
        """A simulation could not be repeated; a broken source would make a site id that nobody accepts."""
        ids = iter(bytes([i]) * 16 for i in range(9))
        store = Store.open(str(self.path), node_id="a", new_site_id=lambda: next(ids))
        self.assertEqual(store.site_id(), bytes(16))
        store.close()
        self.assertRaises(ValueError, Store.open, ":memory:", node_id="a", new_site_id=lambda: b"short")
