"""The reference worker as a child process that can be stopped, continued and killed, and is always reaped."""

from __future__ import annotations

import atexit
import contextlib
import signal
import subprocess
from collections.abc import Sequence

from tests.e2e.processes import STOP_LIMIT_S, TWISTD, WORKER_KEY, front_environment, new_folder, write_key

_running: set[subprocess.Popen[bytes]] = set()


def _reap() -> None:
    for process in list(_running):
        process.kill()
        process.wait()


atexit.register(_reap)


class ReferenceWorker:
    """``twistd kollator-worker`` as ``worker``, connected to the fronts on these ports."""

    def __init__(self, worker: str, ports: Sequence[int]) -> None:
        self.id = worker
        folder = new_folder()
        self._log = folder / "worker.log"
        fronts = [part for port in ports for part in ("--front", f"ws://127.0.0.1:{port}/signaling")]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [TWISTD, "-n", "--pidfile=", "kollator-worker", "--id", worker, *fronts,
                 "--key-file", str(write_key(folder / "worker.key", WORKER_KEY))],
                env=front_environment({}), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _running.add(self.process)

    @property
    def log(self) -> str:
        """Everything printed so far."""
        return self._log.read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        """Sends a signal: with SIGSTOP the process stands still, its connections open, until SIGCONT."""
        self.process.send_signal(number)

    def end(self) -> None:
        """SIGTERM, also to one that was stopped; SIGKILL when that does not do. Asserts that it had not died before."""
        status = self.process.poll()
        if status is None:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(STOP_LIMIT_S)
        self.kill()
        if status != 0:
            raise AssertionError(f"worker {self.id}: exit status {status}\n{self.log}")

    def kill(self) -> None:
        """SIGKILL and reap, at once: the system closes its sockets."""
        self.process.kill()
        self.process.wait()
        _running.discard(self.process)
