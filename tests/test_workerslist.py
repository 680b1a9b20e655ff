"""The operator's list of workers while the front runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.workersfile import Entry
from kollator.starting import StartError
from kollator.workerslist import WorkersList


class WorkersListTests(SynchronousTestCase):
    """One list and its file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text('{"w1": {"capacity": 5}, "192.0.2.1": {"region": "here"}}')
        self.changes = 0
        self.logged: list[dict[str, Any]] = []
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def _observe(self, event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "kollator:pool":
            self.logged.append(event)

    def _changed(self) -> None:
        self.changes += 1

    def listed(self, **options: Any) -> WorkersList:
        """The list of that file."""
        return WorkersList(str(self.path), changed=self._changed, **options)

    def reload(self, workers: WorkersList, text: str | None) -> list[dict[str, Any]]:
        """Has it read again with this text, None for no file; returns what is logged."""
        self.path.unlink(missing_ok=True)
        if text is not None:
            self.path.write_text(text)
        self.logged = []
        self.successResultOf(workers.reload())
        return self.logged

    def test_of(self) -> None:
        """Without it the file would say nothing of its workers."""
        workers = self.listed()
        self.assertEqual((workers.of("w1"), workers.of("w2", "192.0.2.1")), (Entry(capacity=5), Entry("here")))
        self.assertEqual((workers.of("w2", "192.0.2.2"), len(workers)), (None, 2))

    def test_permits(self) -> None:
        """Without it workers-file-only would let everybody in, or nobody; a worker is listed by id or by address."""
        for only in (False, True):
            workers = self.listed(only=only)
            permitted = [workers.permits(*who) for who in (("w1", "x"), ("w2", "192.0.2.1"), ("w2", "192.0.2.2"))]
            self.assertEqual(permitted, [True, True, not only])

    def test_no_file(self) -> None:
        """Without it a front would need a file."""
        workers = WorkersList(None, changed=self._changed)
        self.successResultOf(workers.reload())
        self.assertEqual((workers.of("w1"), workers.permits("w1"), self.changes), (None, True, 0))

    def test_start(self) -> None:
        """Without it a front would start with a list that says something else than the operator means."""
        for text in (None, "{", '{"w1": {"capacity": 0}}'):
            self.path.unlink(missing_ok=True)
            if text is not None:
                self.path.write_text(text)
            problem = str(self.assertRaises(StartError, self.listed))
            self.assertTrue(problem.startswith(f"WORKERS_FILE: {self.path}"), problem)

    def test_changed(self) -> None:
        """Without it a change would not count, or the front would be told of changes that are none."""
        workers = self.listed()
        self.assertEqual(self.reload(workers, '{"192.0.2.1": {"region": "here"}, "w1" : {"capacity":5}}'), [])
        self.assertEqual(self.changes, 0)
        (event,) = self.reload(workers, '{"w1": {"capacity": 6}}')
        self.assertEqual((event["log_level"], event["count"], self.changes), (LogLevel.info, 1, 1))
        self.assertEqual((workers.of("w1"), len(workers)), (Entry(capacity=6), 1))

    def test_broken(self) -> None:
        """Without it a slip would take the list away; one line names the file and what is wrong with it."""
        workers = self.listed()
        for text, said in (("{", "JSON"), ('{"w1": {"capacity": 0}}', "'w1'"), (None, "not there"), ("", "JSON")):
            (event,) = self.reload(workers, text)
            line = event["log_format"].format(**event)
            self.assertEqual(event["log_level"], LogLevel.error)
            self.assertIn(os.path.abspath(self.path), line)
            self.assertIn(said, line)
            self.assertTrue(line.isprintable(), line)
        self.assertEqual((workers.of("w1"), self.changes), (Entry(capacity=5), 0))
        self.reload(workers, "{}")
        self.assertEqual((workers.of("w1"), self.changes), (None, 1))

    def test_unreadable(self) -> None:
        """Without it a folder or a pipe in the file's place would be an unhandled error, or wait for ever."""
        workers = self.listed()
        self.path.unlink()
        os.mkfifo(self.path)
        self.successResultOf(workers.reload())
        self.path.unlink()
        self.path.mkdir()
        self.successResultOf(workers.reload())
        self.assertEqual([event["log_level"] for event in self.logged], [LogLevel.error] * 2)

    def test_other_folder(self) -> None:
        """Without it a daemon that changes its folder would not find its file again."""
        folder = os.getcwd()
        self.addCleanup(os.chdir, folder)
        path = os.path.relpath(self.path)
        workers = WorkersList(path, changed=self._changed)
        self.path.write_text("{}")
        os.chdir("/")
        self.successResultOf(workers.reload())
        os.chdir(folder)
        self.assertEqual(self.changes, 1)

    def test_in_thread(self) -> None:
        """Without it a file of many workers would hold the front up while it is read."""
        calls: list[Any] = []
        done: Deferred[Any] = Deferred()

        def in_thread(function: Any, *args: Any) -> Deferred[Any]:
            calls.append((function, args))
            return done

        workers = self.listed(in_thread=in_thread)
        reloaded = workers.reload()
        self.assertNoResult(reloaded)
        ((function, args),) = calls
        self.path.write_text("{}")
        done.callback(function(*args))
        self.successResultOf(reloaded)
        self.assertEqual((len(workers), self.changes), (0, 1))
