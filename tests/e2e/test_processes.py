"""``--processes``: several fronts behind one port, as one front to everybody outside."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.cluster import until
from tests.e2e.contract_client import LIMIT_S, Client, Worker, ask
from tests.e2e.processes import FOREGROUND, NEVER_S, START_LIMIT_S, STOP_LIMIT_S, WORKER_KEY, Front, new_folder
from tests.e2e.test_start_errors import Case, StartErrorTestCase

TWO = ("--processes", "2")
SDP = "v=0\r\n"
NODES = {"front-e2e", "front-e2e.2"}


def children(front: Front) -> list[int]:
    """The processes that a front's process has started and that live."""
    pid = front.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class ProcessesTestCase(StartErrorTestCase):
    """Fronts of two processes, each gone after its test."""

    def front(self, options: Sequence[str] = TWO, keys: str | None = WORKER_KEY + "\n", endpoints: int = 2,
              twistd_options: Sequence[str] = FOREGROUND, folder: Path | None = None, **settings: str) -> Front:
        front = Front(settings, options, keys, endpoints=endpoints, twistd_options=twistd_options, folder=folder)
        self.addCleanup(front.kill)
        return front

    def clients(self, front: Front) -> dict[str, Client]:
        """A client of each front behind the port, by the front's name."""
        found: dict[str, Client] = {}

        def both() -> bool:
            client = Client(front.port)
            self.addCleanup(client.close)
            found[client.welcome["node"]] = client
            return set(found) == NODES

        until(both, lambda: f"clients of both: {set(found)}\n{front.log}")
        return found

    def worker(self, front: Front, worker: str) -> Worker:
        """A worker that both fronts know."""
        joined = Worker(front.port, worker)
        self.addCleanup(joined.close)
        joined.joined()
        for client in self.clients(front).values():
            until(lambda asking=client: self._reaches(asking, joined),  # type: ignore[misc]
                  lambda: f"{worker} is reached\n{front.log}")
        return joined

    def _reaches(self, client: Client, worker: Worker) -> bool:
        client.send(type="offer", to=worker.id, sdp=SDP)
        client.send(type="no-such-type")
        if client.receive().get("code") != "unknown-type":
            client.expect("error", code="unknown-type")
            return False  # it is not known there yet
        self.assertEqual(worker.receive()["from"], client.id)
        worker.send(type="answer", to=client.id, sdp=SDP)
        client.expect("answer")
        return True


class ServingTests(ProcessesTestCase):
    """Two fronts behind one port."""

    def test_one_front_to_everybody(self) -> None:
        """Without it a client would not reach a worker of the other process, or one death would end the service."""
        front = self.front().ready()
        self.assertEqual(len(set(front.ports)), 1)
        self.assertEqual(len(children(front)), 2)
        worker = self.worker(front, "w1")
        killed = children(front)[0]
        os.kill(killed, signal.SIGKILL)
        front.await_line("it starts again")
        until(lambda: len(children(front)) == 2 and killed not in children(front), "another one")
        until(lambda: front.log.count("listens on") == 3, lambda: front.log)
        worker.close()
        self.worker(front, "w2")
        self.assertEqual(ask(front.port, "GET", "/health").json()["status"], "ok")
        front.stop()

    def test_tickets_outlive_a_restart(self) -> None:
        """Without it every restart would make strangers of all clients; and the key must be nobody else's."""
        folder = new_folder()
        front = self.front(folder=folder).ready()
        client = Client(front.port)
        client.close()
        front.stop()
        self.assertEqual((folder / "s.cluster.key").stat().st_mode & 0o777, 0o600)
        again = self.front(folder=folder).ready()
        back = Client(again.port, client.ticket)
        self.assertEqual(back.id, client.id)
        back.close()
        again.stop()

    def test_demo_worker(self) -> None:
        """Without it no key, two demo workers, or one that a front refuses."""
        front = self.front((*TWO, "--demo-worker"), keys=None).ready()
        front.await_line("registered as demo")
        until(lambda: ask(front.port, "GET", "/health").json()["workers"]["up"] == 1, lambda: front.log)
        self.assertEqual(front.log.count("registered as demo"), 1)
        front.stop()

    def test_other_endpoints(self) -> None:
        """Without it the proxy in front of a UNIX socket would find nobody, or the second of two processes."""
        folder = new_folder()
        path = Path("/tmp") / f"kollator-{os.getpid()}.sock"
        front = self.front((*TWO, "--listen", "haproxy:tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}:mode=600"),
                           folder=folder).listening()
        until(lambda: front.log.count("listens on") == 4, lambda: front.log)
        for _ in range(8):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(LIMIT_S)
                asking.connect(str(path))
                asking.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
                self.assertIn(b"200", asking.recv(4096))
        with socket.create_connection(("127.0.0.1", front.port), LIMIT_S) as asking:
            asking.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\nGET /health/live HTTP/1.0\r\n\r\n")
            self.assertIn(b"200", asking.recv(4096))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        os.kill(children(front)[0], signal.SIGTERM)
        front.await_line("it starts again")
        self.assertTrue(path.exists())
        until(lambda: front.log.count("listens on") == 6, lambda: front.log)
        front.stop()
        self.assertFalse(path.exists())


class StoppingTests(ProcessesTestCase):
    """How the fronts end."""

    def test_signals_to_everybody(self) -> None:
        """A terminal and a service manager signal every process: nobody is to take that for haste."""
        front = self.front(DRAIN_TIMEOUT=str(NEVER_S)).ready()
        clients = self.clients(front)
        for pid in (*children(front), front.process.pid):
            os.kill(pid, signal.SIGTERM)
        for client in clients.values():
            client.expect("draining")
        self.assertIsNone(front.process.poll())
        front.await_line("2 fronts are told to stop")  # two signals that nobody has looked at yet are one
        for client in clients.values():
            client.synchronise()
        front.signal(signal.SIGTERM)
        for client in clients.values():
            self.assertEqual(client.close_code(), 1001)
        self.assertEqual(front.ended(), 0, front.log)
        front.assert_log_clean()
        self.assertNotIn("starts again", front.log)

    def test_supervisor_is_killed(self) -> None:
        """Without it orphans would go on serving, and hold the port and the databases."""
        front = self.front(DRAIN_TIMEOUT=str(NEVER_S)).ready()
        self.clients(front)
        opened = [os.pidfd_open(pid) for pid in children(front)]
        for descriptor in opened:
            self.addCleanup(os.close, descriptor)
        front.kill()
        for descriptor in opened:
            ready, _, _ = select.select([descriptor], [], [], STOP_LIMIT_S)
            self.assertTrue(ready, "a front has outlived its supervisor")
        self.front(folder=front.folder).ready().stop()

    def test_hangup(self) -> None:
        """Without it certificates and lists would be read again by nobody: a signal reaches the supervisor alone."""
        front = self.front().ready()
        front.signal(signal.SIGHUP)
        for node in NODES:
            front.await_line(f"{node}: SIGHUP: files are read again")
        front.stop()

    def test_daemon(self) -> None:
        """Without it only ``twistd -n`` would do, or a daemon's log would lack what its fronts say."""
        folder = new_folder()
        pid_file, log_file = folder / "front.pid", folder / "front.log"
        front = self.front(twistd_options=("--pidfile", str(pid_file), "--logfile", str(log_file)), folder=folder)
        self.assertEqual(front.ended(START_LIMIT_S), 0, front.log)
        daemon = os.pidfd_open(int(pid_file.read_text()))
        self.addCleanup(os.close, daemon)
        until(lambda: log_file.read_text().count("listens on") == 2, lambda: log_file.read_text())
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        ready, _, _ = select.select([daemon], [], [], STOP_LIMIT_S)
        self.assertTrue(ready, "the daemon did not end")
        self.assertNotIn("Traceback", log_file.read_text())
        self.assertFalse(pid_file.exists())


class RefusalTests(ProcessesTestCase):
    """Starts that cannot work end at once, with one line."""

    def test_settings(self) -> None:
        """Without it each of the fronts would fail by itself, again and again."""
        folder = new_folder()
        (folder / "s.2.db").write_bytes(b"something else" * 100)
        (key_folder := new_folder()).joinpath("s.cluster.key").touch(0o644)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            self.assert_refused([
                Case("PROCESSES", {"PROCESSES": "0"}),
                Case("PROCESSES", {"PEERS": "b=tcp:127.0.0.1:1", "CLUSTER_KEY": "k" * 32}, TWO),
                Case("PROCESSES", {"LISTEN": "stdio:x"}, TWO),
                Case("LISTEN", {"LISTEN": f"tcp:{port}:interface=127.0.0.1"}, TWO),
                Case("SQLITE_PATH", {}, TWO, folder=folder),
                Case("CLUSTER_KEY_FILE", {}, TWO, folder=key_folder),
                Case("PROCESSES", {"NODE_ID": "n" * 64}, TWO),
            ])
