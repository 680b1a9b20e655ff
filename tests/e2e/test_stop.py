"""How a front stops: told to everybody, in bounded time, with exit status 0 (section 4, DRAIN_TIMEOUT)."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import websockets.exceptions
from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.cluster import free_ports
from tests.e2e.contract_client import LIMIT_S, Client, Peer, RawWebSocket, Worker, ask
from tests.e2e.processes import NEVER_S, START_LIMIT_S, STOP_LIMIT_S, Front, elapsed_since, new_folder

PATIENT = str(NEVER_S)
"""A time-out far longer than the tests wait for an end: a front that ends has not waited for it."""


class StopTests(SynchronousTestCase):
    """SIGTERM and SIGINT."""

    def _front(self, **settings: str) -> Front:
        front = Front(settings).ready()
        self.addCleanup(front.kill)
        return front

    def _peers(self, front: Front) -> tuple[Worker, Client, Client]:
        peers = Worker(front.port).joined(), Client(front.port), Client(front.port)
        for peer in peers:
            self.addCleanup(peer.close)
        return peers

    def _assert_ended(self, front: Front) -> None:
        self.assertEqual(front.ended(), 0, front.log)
        front.assert_log_clean()

    def test_nobody_there(self) -> None:
        """With no connections there is nobody to wait for."""
        fronts = [Front({"DRAIN_TIMEOUT": PATIENT}) for _ in range(2)]  # two start in the time of one
        for number, front in zip((signal.SIGTERM, signal.SIGINT), fronts, strict=True):
            self.addCleanup(front.kill)
            front.ready().signal(number)
            self._assert_ended(front)

    def test_idle_http_connections(self) -> None:
        """A browser's kept-alive HTTP connection is not waited for."""
        front = self._front(DRAIN_TIMEOUT=PATIENT, HEADER_TIMEOUT=PATIENT)
        kept = http.client.HTTPConnection("127.0.0.1", front.port, timeout=LIMIT_S)
        self.addCleanup(kept.close)
        kept.request("GET", "/health")
        kept.getresponse().read()
        opened = socket.create_connection(("127.0.0.1", front.port))
        self.addCleanup(opened.close)
        front.signal()
        self._assert_ended(front)

    def test_drain(self) -> None:
        """Everybody is told, monitors see it, nobody new comes in, and the end comes when all have left."""
        front = self._front(DRAIN_TIMEOUT=PATIENT)
        worker, first, second = peers = self._peers(front)
        front.signal()
        for peer in peers:
            message = peer.expect("draining")
            self.assertIsInstance(message["reconnectInMs"], int)
            self.assertTrue(0 <= message["reconnectInMs"] <= 60_000)
        health = ask(front.port, "GET", "/health")
        self.assertEqual((health.status, health.json()["status"]), (503, "draining"))
        self.assertEqual(ask(front.port, "GET", "/health/ready").status, 503)
        self.assertEqual(ask(front.port, "GET", "/health/live").status, 200)
        self._assert_nobody_new(front)
        first.send(type="offer", to=worker.id, sdp="v=0")
        self.assertEqual(worker.receive()["from"], first.id)
        worker.send(type="answer", to=first.id, sdp="v=0")
        first.expect("answer")
        self.assertIsNone(front.process.poll())
        for peer in (first, worker, second):
            peer.close()
        self._assert_ended(front)

    def _assert_nobody_new(self, front: Front) -> None:
        try:
            late = Peer(front.port)
        except websockets.exceptions.InvalidStatus as refused:
            self.assertEqual(refused.response.status_code, 503)
        else:
            self.addCleanup(late.close)
            late.send(type="hello", role="client")
            messages, code = late.until_closed()
            self.assertEqual(messages, [])
            self.assertIn(code, (1001, 1013))

    def test_stubborn(self) -> None:
        """Those who do not leave are closed with 1001 when DRAIN_TIMEOUT is over."""
        front = self._front(DRAIN_TIMEOUT="1")
        peers = self._peers(front)
        start_s = time.monotonic()
        front.signal()
        for peer in peers:
            messages, code = peer.until_closed()
            self.assertEqual(([message["type"] for message in messages], code), (["draining"], 1001))
        self.assertGreater(elapsed_since(start_s), 0.8)
        self._assert_ended(front)

    def test_before_hello(self) -> None:
        """Every connection is told, also one that has not said hello yet."""
        front = self._front(DRAIN_TIMEOUT="1")
        peer = Peer(front.port)
        self.addCleanup(peer.close)
        front.signal()
        messages, code = peer.until_closed()
        self.assertEqual(([message["type"] for message in messages], code), (["draining"], 1001))
        self._assert_ended(front)

    def test_hello_while_draining(self) -> None:
        """Who was let in and says hello a moment too late is told as well, or sent away at once."""
        front = self._front(DRAIN_TIMEOUT=PATIENT)
        client, late = Client(front.port), Peer(front.port)
        for peer in (client, late):
            self.addCleanup(peer.close)
        front.signal()
        client.expect("draining")
        late.send(type="hello", role="client")
        types = []
        try:
            while "draining" not in types:
                types.append(late.receive()["type"])
        except websockets.exceptions.ConnectionClosed as closed:
            self.assertEqual(closed.rcvd and closed.rcvd.code, 1001)
        for peer in (client, late):
            peer.close()
        self._assert_ended(front)

    def test_signal_right_after_the_start(self) -> None:
        """A supervisor that changes its mind at once finds a front that stops as ordered."""
        front = Front().listening()
        self.addCleanup(front.kill)
        front.signal()
        self._assert_ended(front)

    def test_more_than_stubborn(self) -> None:
        """Connections that read nothing and answer nothing do not hold up the end either."""
        front = self._front(DRAIN_TIMEOUT="0.5")
        worker = Worker(front.port).joined()
        self.addCleanup(worker.close)
        raw = RawWebSocket(front.port, 4096)
        self.addCleanup(raw.close)
        raw.send(type="hello", role="client")
        name = raw.receive()["id"]
        for _ in range(12):
            worker.send(type="answer", to=name, sdp="v=0".ljust(60000))
        worker.synchronise()
        front.signal()
        self._assert_ended(front)

    def test_no_drain(self) -> None:
        """DRAIN_TIMEOUT=0 tells and closes at once."""
        front = self._front(DRAIN_TIMEOUT="0")
        client = Client(front.port)
        self.addCleanup(client.close)
        front.signal()
        messages, code = client.until_closed()
        self.assertEqual(([message["type"] for message in messages], code), (["draining"], 1001))
        self._assert_ended(front)
        self.assertIn("up to 0 s", front.log)

    def test_jitter(self) -> None:
        """Clients that come back all at the same moment would knock the next front over."""
        front = self._front(DRAIN_TIMEOUT=PATIENT)
        clients = [Client(front.port) for _ in range(12)]
        for client in clients:
            self.addCleanup(client.close)
        front.signal()
        self.assertGreater(len({client.expect("draining")["reconnectInMs"] for client in clients}), 4)
        for client in clients:
            client.close()
        self._assert_ended(front)

    def test_second_signal(self) -> None:
        """Who is in a hurry asks twice."""
        fronts = [Front({"DRAIN_TIMEOUT": PATIENT}) for _ in range(2)]
        for second, front in zip((signal.SIGTERM, signal.SIGINT), fronts, strict=True):
            self.addCleanup(front.kill)
            client = Client(front.ready().port)
            self.addCleanup(client.close)
            front.signal()
            client.expect("draining")
            front.signal(second)
            self._assert_ended(front)
            self.assertEqual(client.close_code(), 1001)


class DaemonTests(SynchronousTestCase):
    """The ways in which twistd runs a front."""

    def _opened(self, pid: int) -> int:
        """A descriptor for a process that is no child of this one; whatever happens, it does not outlive the test."""
        descriptor = os.pidfd_open(pid)
        self.addCleanup(os.close, descriptor)
        self.addCleanup(self._kill, descriptor)
        return descriptor

    def _kill(self, descriptor: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    def _await_end(self, descriptor: int) -> None:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        ready, _, _ = select.select([descriptor], [], [], STOP_LIMIT_S)
        self.assertTrue(ready, "the daemon did not end")

    def _twistd(self, twistd_options: Sequence[str], port: int, folder: Path) -> Front:
        front = Front({"LISTEN": f"tcp:{port}:interface=127.0.0.1"}, folder=folder, twistd_options=twistd_options)
        self.addCleanup(front.kill)
        return front

    def test_daemon(self) -> None:
        """Without -n the front goes to the background, serves, writes its log and takes its pid file along."""
        folder, (port,) = new_folder(), free_ports(1)
        pid_file, log_file = folder / "front.pid", folder / "front.log"
        front = self._twistd(("--pidfile", str(pid_file), "--logfile", str(log_file)), port, folder)
        self.assertEqual(front.ended(START_LIMIT_S), 0, front.log)
        daemon = self._opened(int(pid_file.read_text()))
        self.assertEqual(ask(port, "GET", "/health").json()["status"], "ok")
        client = Client(port)
        self.assertTrue(client.id)
        client.close()
        self._await_end(daemon)
        log = log_file.read_text()
        self.assertNotIn("Traceback", log)
        self.assertRegex(log, rf"front front-e2e listens on .*port={port}")
        self.assertFalse(pid_file.exists())
        Front(folder=folder).ready().stop()

    def test_daemon_that_cannot_start(self) -> None:
        """A daemon that cannot listen says so where it was started, with an exit status other than 0."""
        folder = new_folder()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            front = self._twistd(("--pidfile", str(folder / "front.pid"), "--logfile", str(folder / "front.log")),
                              taken.getsockname()[1], folder)
            status = front.ended(START_LIMIT_S)
        lines = [line for line in front.err if line.strip()]
        self.assertEqual((status != 0, len(lines)), (True, 1), front.log)
        self.assertIn("LISTEN", lines[0])

    def test_pid_file_in_the_foreground(self) -> None:
        """With -n and a pid file the file names the process and goes with it."""
        folder = new_folder()
        pid_file = folder / "front.pid"
        front = Front(folder=folder, twistd_options=("-n", "--pidfile", str(pid_file))).ready()
        self.addCleanup(front.kill)
        self.assertEqual(int(pid_file.read_text()), front.process.pid)
        front.stop()
        self.assertFalse(pid_file.exists())
