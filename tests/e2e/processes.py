"""Real fronts as child processes: started in a folder of their own, awaited by their output, always reaped."""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar

from twisted.trial.unittest import SynchronousTestCase

TWISTD = str(Path(sys.executable).with_name("twistd"))
WORKER_KEY = "0123456789abcdef0123456789abcdef"

START_LIMIT_S = 20.0
STOP_LIMIT_S = 20.0
_LISTENS = re.compile(r"front \S+ listens on .*port=(\d+)")
_TROUBLE = re.compile(r"Traceback|Unhandled|CRITICAL|#critical|#error", re.IGNORECASE)

_running: set[subprocess.Popen[str]] = set()


def _reap() -> None:
    for process in list(_running):
        process.kill()
        process.wait()


atexit.register(_reap)


def new_folder() -> Path:
    """An empty folder below the current one, which under trial is the trial's temporary folder."""
    return Path(tempfile.mkdtemp(prefix="front-", dir=os.getcwd()))


def write_key(path: Path, text: str, mode: int = 0o600) -> Path:
    """Writes a key file with exactly these permissions and returns its path."""
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


class Front:
    """One front: a ``twistd`` process and what it printed.

    ``settings`` are environment variables, ``options`` go to the command line after ``--database`` and
    ``--worker-key-file``. ``endpoints`` is the number of listening endpoints to wait for. ``folder`` holds
    the database ``s.db`` and the key file ``worker.key``; a folder that is used again keeps its database.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, options: Sequence[str] = (),
                 keys: str | None = WORKER_KEY + "\n", folder: Path | None = None, endpoints: int = 1,
                 twistd_options: Sequence[str] = ("-n", "--pidfile=")) -> None:
        self.folder = folder or new_folder()
        self.database = self.folder / "s.db"
        self.endpoints = endpoints
        self.ports: list[int] = []
        self.out: list[str] = []
        self.err: list[str] = []
        command = [TWISTD, *twistd_options, "kollator-front", "--database", str(self.database)]
        if keys is not None:
            command += ["--worker-key-file", str(write_key(self.folder / "worker.key", keys))]
        if not any(name.startswith("--listen") for name in options) and "LISTEN" not in (settings or {}):
            command += ["--port", "0"]
        self.command = [*command, *options]
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR") if name in os.environ},
            "NODE_ID": "front-e2e",
            "HOST": "127.0.0.1",
            "STUN_SERVERS": "",
            # Two busy cores must not make a live worker look dead; the tests of health set their own.
            "WORKER_HEALTH_TIMEOUT": "15000",
            **(settings or {}),
        }
        self._news = threading.Condition()
        self._open_streams = 2
        self.process: subprocess.Popen[str] = subprocess.Popen(
            self.command, env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        _running.add(self.process)
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    match = _LISTENS.search(line)
                    if match:
                        self.ports.append(int(match[1]))
                    self._news.notify_all()
        with self._news:
            self._open_streams -= 1
            self._news.notify_all()

    @property
    def port(self) -> int:
        """The first endpoint's TCP port."""
        return self.ports[0]

    @property
    def log(self) -> str:
        """Everything printed so far."""
        return "\n".join([*self.out, *self.err])

    def listening(self) -> Front:
        """Waits until every endpoint is said to listen. Raises ``AssertionError`` when that does not come."""
        with self._news:
            self._news.wait_for(lambda: len(self.ports) >= self.endpoints or not self._open_streams, START_LIMIT_S)
        if len(self.ports) < self.endpoints:
            self.kill()
            raise AssertionError(f"the front did not get ready:\n{self.log}")
        return self

    def ready(self) -> Front:
        """Waits as ``listening`` does, and until the first endpoint answers, if only to say "not like that"."""
        self.listening()
        with socket.create_connection(("127.0.0.1", self.port), START_LIMIT_S) as knock:
            knock.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
            knock.recv(4096)
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the process."""
        self.process.send_signal(number)

    def ended(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Waits for the process's end and returns its exit status. Kills it and raises after ``limit_s``."""
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the front did not end within {limit_s} s:\n{self.log}") from None
        for reader in self._readers:
            reader.join(limit_s)
        _running.discard(self.process)
        return status

    def stop(self) -> None:
        """SIGTERM, then asserts exit status 0 and a log without trouble."""
        self.signal(signal.SIGTERM)
        status = self.ended()
        if status != 0:
            raise AssertionError(f"exit status {status}:\n{self.log}")
        self.assert_log_clean()

    def assert_log_clean(self, since: int = 0) -> int:
        """Asserts that the log from line ``since`` on tells of no trouble; returns the number of its lines."""
        lines = [*self.out, *self.err] if not since else self.out[since:]
        bad = [number for number, line in enumerate(lines) if _TROUBLE.search(line)]
        if bad:
            raise AssertionError("trouble in the front's log:\n" + "\n".join(lines[bad[0]:bad[0] + 60]))
        return len(self.out)

    def kill(self) -> None:
        """SIGKILL and reap, at once."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(STOP_LIMIT_S)
        _running.discard(self.process)


class FrontTestCase(SynchronousTestCase):
    """Tests that share one front a class, started for the first test and stopped after the last one.

    trial has no ``setUpClass``: the tests of a class are counted as they are made, and the one that finishes
    last stops the front and asserts its clean end. Each test also asserts that the log told of no trouble.
    """

    settings: ClassVar[Mapping[str, str]] = {}
    options: ClassVar[Sequence[str]] = ()
    keys: ClassVar[str | None] = WORKER_KEY + "\n"
    endpoints: ClassVar[int] = 1
    _front: ClassVar[Front | None] = None
    _waiting: ClassVar[int] = 0

    def __init__(self, methodName: str = "runTest") -> None:
        super().__init__(methodName)
        type(self)._waiting = type(self).__dict__.get("_waiting", 0) + 1

    @property
    def front(self) -> Front:
        """The front of this class."""
        running = type(self)._front
        assert running is not None
        return running

    @property
    def port(self) -> int:
        """Its first port."""
        return self.front.port

    def setUp(self) -> None:
        self.addCleanup(self._finished)
        if type(self)._front is None:
            type(self)._front = Front(self.settings, self.options, self.keys, endpoints=self.endpoints).ready()
        self._logged = len(self.front.out)

    def _finished(self) -> None:
        cls = type(self)
        cls._waiting -= 1
        running = cls._front
        if running is None:
            return
        if running.process.poll() is not None:
            cls._front = None
            running.kill()
            raise AssertionError(f"the front died with status {running.process.returncode}:\n{running.log}")
        try:
            running.assert_log_clean(self._logged)
        finally:
            if cls._waiting <= 0:
                cls._front = None
                running.signal(signal.SIGTERM)
                status = running.ended()
                if status != 0:
                    raise AssertionError(f"exit status {status}:\n{running.log}")


def elapsed_since(start_s: float) -> float:
    """Seconds since ``start_s``, a value of ``time.monotonic()``."""
    return time.monotonic() - start_s
