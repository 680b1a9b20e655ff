"""WORKERS_FILE of a running front: changes, SIGHUP, slips, unlisted workers, health addresses."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.e2e.contract_client import LIMIT_S, ContractTestCase
from tests.e2e.processes import Front, new_folder

Entries = dict[str, dict[str, Any]]


class WorkersFileTestCase(ContractTestCase):
    """A front with a file that is empty at first."""

    @staticmethod
    def start(settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """With the file."""
        folder = new_folder()
        path = folder / "workers.json"
        path.write_text("{}")
        return Front(settings, (*options, "--workers", str(path)), keys, folder=folder)

    @property
    def path(self) -> Path:
        """The file."""
        return self.front.folder / "workers.json"

    def put(self, entries: Entries) -> None:
        """Puts another file in its place, as it ought to be done."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(entries))
        new.rename(self.path)

    def await_row(self, worker: str, **fields: Any) -> None:
        """Asks ``/workers`` until the worker's row has these fields; each answer is a turn of the front's loop."""
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            row = self.workers().get(worker, {})
            if fields == {name: row.get(name) for name in fields}:
                return
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{worker} is {row}, not {fields}:\n{self.front.log}")


class ReloadTests(WorkersFileTestCase):
    """What an operator changes while the front runs."""

    def test_change(self) -> None:
        """A change counts by itself, for workers that are connected; what is taken out goes back to their own word."""
        self.worker(region="own", capacity=7)
        self.assertEqual(self.workers()[self.w1]["region"], "own")
        self.put({self.w1: {"region": "us-west", "capacity": 50}})
        self.await_row(self.w1, region="us-west", capacity=50, state="up")
        self.put({})
        self.await_row(self.w1, region="own", capacity=7, state="up")

    def test_hangup(self) -> None:
        """SIGHUP has the file read also where nothing shows that it is another; the front goes on."""
        self.put({self.w1: {"region": "aa"}})
        self.worker()
        self.await_row(self.w1, region="aa")
        found = self.path.stat()
        self.path.write_text(json.dumps({self.w1: {"region": "bb"}}))
        os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns))
        self.front.signal(signal.SIGHUP)
        self.await_row(self.w1, region="bb")

    def test_broken(self) -> None:
        """A slip changes nothing but the log, in one line, and a mended file counts."""
        self.put({self.w1: {"region": "kept"}})
        self.worker()
        self.await_row(self.w1, region="kept")
        self.put({self.w1: {"region": "lost", "capacity": 0}})
        self.front.await_line(f"{self.path} cannot be used: '{self.w1}': capacity must be")
        self.path.unlink()
        self.front.await_line(f"{self.path} is not there")
        self.assertEqual(self.workers()[self.w1]["region"], "kept")
        self.put({self.w1: {"region": "mended"}})
        self.await_row(self.w1, region="mended")
        said = [line for line in self.front.out[self._logged :] if "WORKERS_FILE" in line and "cannot be used" in line]
        self.assertEqual(len(said), 1, said)
        self.assertNotIn("Traceback", self.front.log)
        self._logged = len(self.front.out)  # those lines are errors, as they ought to be


class OnlyTests(WorkersFileTestCase):
    """Workers that the file does not list."""

    settings: ClassVar = {"WORKERS_FILE_ONLY": "true"}

    def test_unlisted(self) -> None:
        """An unlisted worker is closed with 4403, one that lacks the key with 4401, whatever it calls itself."""
        self.put({self.w1: {"region": "listed"}, "192.0.2.77": {}})
        self.front.await_line("workers.json was read again, 2 workers")
        self.worker()
        self.worker(self.w3, address="192.0.2.77")
        unlisted = self.stranger(self.w2)
        unlisted.hello()
        unlisted.send(type="auth", mac=unlisted.mac())
        self.assertEqual(unlisted.until_closed(), ([], 4403))
        for worker in (self.w1, self.w2):
            outsider = self.stranger(worker, key="another key")
            self.assertEqual(outsider.hello()["type"], "challenge")
            outsider.send(type="auth", mac=outsider.mac())
            self.assertEqual(outsider.until_closed(), ([], 4401))
        self.assertNotIn(self.w2, self.workers())
        self.assertEqual(self.workers()[self.w1]["region"], "listed")

    def test_struck_off(self) -> None:
        """A connected worker that is taken out of the file is closed with 4403, and no other."""
        self.put({self.w1: {}, self.w2: {}, "w": {}})
        self.front.await_line("workers.json was read again, 3 workers")
        struck, kept = self.worker(), self.worker(self.w2)
        self.put({self.w2: {}})
        self.assertEqual(struck.until_closed(), ([], 4403))
        self.await_row(self.w1, state="down")
        kept.synchronise()
        self.assertEqual(self.workers()[self.w2]["state"], "up")


class HealthAddressTests(WorkersFileTestCase):
    """Entries with a health address."""

    settings: ClassVar = {"WORKER_HEALTH_INTERVAL": "100"}

    def listen(self, port: int = 0) -> socket.socket:
        """Listens; nobody needs to accept, the queue is long enough for a test."""
        listening = socket.socket()
        self.addCleanup(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(4096)
        return listening

    def test_port(self) -> None:
        """A worker whose port closes is used no more, though it is connected, and comes back when the port does."""
        listening = self.listen()
        port = listening.getsockname()[1]
        self.worker()
        self.put({self.w1: {"region": "probed", "health": f"tcp:127.0.0.1:{port}"}})
        self.await_row(self.w1, region="probed", state="up")
        listening.settimeout(LIMIT_S)
        for _ in range(3):
            listening.accept()[0].close()
        self.assertEqual(self.workers()[self.w1]["state"], "up")
        listening.close()
        self.await_row(self.w1, state="down")
        self.assertEqual(self.ask("POST", "/bootstrap").error_code, "no-workers")
        self.listen(port)
        self.await_row(self.w1, state="up")
        self.assertEqual(self.bootstrap()["worker"]["id"], self.w1)

    def test_address_taken_out(self) -> None:
        """A worker that is out for its health address is back when the operator takes that out of the file."""
        closed = socket.socket()
        self.addCleanup(closed.close)
        closed.bind(("127.0.0.1", 0))
        self.put({self.w1: {"health": f"http://127.0.0.1:{closed.getsockname()[1]}/health"}})
        self.front.await_line("workers.json was read again")
        self.worker()
        self.await_row(self.w1, state="down")
        self.put({})
        self.await_row(self.w1, state="up")
