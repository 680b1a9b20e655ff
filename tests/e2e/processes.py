"""Real fronts as child processes: started in a folder of their own, awaited by their output, always reaped."""

from __future__ import annotations

import atexit
import functools
import json
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
PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR", "FAST_PATH")
"""What a front gets of the environment of its tests."""
FOREGROUND = ("-n", "--pidfile=")
WORKER_KEY = "0123456789abcdef0123456789abcdef"

START_LIMIT_S = 120.0
STOP_LIMIT_S = 40.0
"""Guards against fronts that hang: a slow machine that does other things as well is not to reach them."""
NEVER_S = 600
"""For the settings of a front: what takes that long does not happen within any of the tests' limits."""
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


def front_arguments(settings: Mapping[str, str], options: Sequence[str], keys: str | None, folder: Path,
                    twistd_options: Sequence[str] = FOREGROUND) -> list[str]:
    """``twistd``'s arguments for a front whose database and key file are in ``folder``; writes the key file.

    The port is a free one, unless ``options`` or ``settings`` say where to listen.
    """
    arguments = [*twistd_options, "kollator-front", "--database", str(folder / "s.db")]
    if keys is not None:
        arguments += ["--worker-key-file", str(write_key(folder / "worker.key", keys))]
    if not any(name.startswith("--listen") for name in options) and not {"LISTEN", "PORT"} & set(settings):
        arguments += ["--port", "0"]
    return [*arguments, *options]


def front_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a front: what a process needs, no STUN server of somebody else, and ``settings``."""
    return {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "NODE_ID": "front-e2e",
        "HOST": "127.0.0.1",
        "STUN_SERVERS": "",
        # A busy machine must not make a live worker look dead; the tests of health set their own.
        "WORKER_HEALTH_TIMEOUT": str(NEVER_S * 1000),
        **settings,
    }


class Nursery:
    """A process of ``nursery.py``: starts that fail, without the half second that every process costs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))], env=front_environment({}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _running.add(self.process)

    def start(self, settings: Mapping[str, str], options: Sequence[str], keys: str | None,
              folder: Path | None = None) -> tuple[int, str, str]:
        """Runs a front that ends by itself; returns its exit status, its output and its standard error."""
        assert self.process.stdin and self.process.stdout
        folder = folder or new_folder()
        self.process.stdin.write(json.dumps({
            "arguments": front_arguments(settings, options, keys, folder),
            "environment": front_environment(settings), "folder": str(folder)}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["out"], answer["err"]


@functools.cache
def nursery() -> Nursery:
    """The one nursery of this test run; it is reaped at the end."""
    return Nursery()


class Front:
    """One front: a ``twistd`` process and what it printed.

    ``settings`` are environment variables, ``options`` go to the command line after ``--database`` and
    ``--worker-key-file``. ``endpoints`` is the number of listening endpoints to wait for. ``folder`` holds
    the database ``s.db`` and the key file ``worker.key``; a folder that is used again keeps its database.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, options: Sequence[str] = (),
                 keys: str | None = WORKER_KEY + "\n", folder: Path | None = None, endpoints: int = 1,
                 twistd_options: Sequence[str] = FOREGROUND) -> None:
        self.folder = folder or new_folder()
        self.endpoints = endpoints
        self.ports: list[int] = []
        self.out: list[str] = []
        self.err: list[str] = []
        self.arguments = front_arguments(settings or {}, options, keys, self.folder, twistd_options)
        self.environment = front_environment(settings or {})
        self._news = threading.Condition()
        self._open_streams = 2
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [TWISTD, *self.arguments], env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
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

    def await_line(self, text: str) -> None:
        """Waits until a line of the log holds ``text``. Raises ``AssertionError`` otherwise."""
        with self._news:
            found = self._news.wait_for(lambda: any(text in line for line in self.out), START_LIMIT_S)
        if not found:
            raise AssertionError(f"no line with {text!r} came:\n{self.log}")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the process."""
        self.process.send_signal(number)

    def ended(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Waits for the process's end and returns its exit status. Kills it and raises after ``limit_s``.

        A front that ends by itself, for it cannot start, is to be given ``START_LIMIT_S``.
        """
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

    def assert_log_clean(self, since: int = 0) -> None:
        """Asserts that the log from line ``since`` on tells of no trouble."""
        lines = [*self.out[since:], *self.err]
        bad = [number for number, line in enumerate(lines) if _TROUBLE.search(line)]
        if bad:
            raise AssertionError("trouble in the front's log:\n" + "\n".join(lines[bad[0]:bad[0] + 60]))

    def kill(self) -> None:
        """SIGKILL and reap, at once."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(STOP_LIMIT_S)
        _running.discard(self.process)


class _Share:
    """One front for all tests of one configuration, and how many of them are still to come."""

    def __init__(self) -> None:
        self.tests = 0
        self.front: Front | None = None


class FrontTestCase(SynchronousTestCase):
    """Tests that share a front with all others of the same configuration, in whatever class they are.

    trial has no ``setUpClass``: the tests are counted as they are made, the first one starts the front, and the
    one that finishes last stops it and asserts its clean end. Each asserts that the log told of no trouble.
    """

    settings: ClassVar[Mapping[str, str]] = {}
    options: ClassVar[Sequence[str]] = ()
    keys: ClassVar[str | None] = WORKER_KEY + "\n"
    endpoints: ClassVar[int] = 1
    _shares: ClassVar[dict[object, _Share]] = {}

    def __init__(self, methodName: str = "runTest") -> None:
        super().__init__(methodName)
        configuration = (type(self).start, tuple(self.settings.items()), tuple(self.options), self.keys)
        self._share = self._shares.setdefault(configuration, _Share())
        self._share.tests += 1

    @staticmethod
    def start(settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """Starts the front. A class whose front needs files makes them here."""
        return Front(settings, options, keys, endpoints=endpoints)

    @property
    def front(self) -> Front:
        """The front of this configuration."""
        front = self._share.front
        assert front is not None
        return front

    @property
    def port(self) -> int:
        """Its first port."""
        return self.front.port

    def setUp(self) -> None:
        self.addCleanup(self._finished)
        if self._share.front is None:
            self._share.front = self.start(self.settings, self.options, self.keys, self.endpoints).ready()
        self._logged = len(self.front.out)

    def _finished(self) -> None:
        share, front = self._share, self._share.front
        share.tests -= 1
        if front is None:
            return
        if front.process.poll() is not None:
            share.front = None
            front.kill()
            raise AssertionError(f"the front died with status {front.process.returncode}:\n{front.log}")
        if share.tests <= 0:
            share.front = None
            front.signal(signal.SIGTERM)
            status = front.ended()
            self.assertEqual(status, 0, front.log)
        front.assert_log_clean(self._logged)


def elapsed_since(start_s: float) -> float:
    """Seconds since ``start_s``, a value of ``time.monotonic()``."""
    return time.monotonic() - start_s
