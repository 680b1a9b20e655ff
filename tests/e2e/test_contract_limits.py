"""Section 4 of the contract: who may come, how often, and how much may wait for one connection."""

from __future__ import annotations

import itertools
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import websockets.exceptions
from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import self_signed_pem
from tests.e2e.contract_client import Client, ContractTestCase, RawWebSocket, Worker, ask, worker_mac
from tests.e2e.processes import WORKER_KEY, Front, elapsed_since, new_folder


class OriginTests(ContractTestCase):
    """The default: pages of the same host."""

    def test_same_host(self) -> None:
        """A page of this front and a program without an origin may connect, another page may not (4403)."""
        self.client(origin=f"http://127.0.0.1:{self.port}")
        self.client(origin=None)
        self.client(origin="http://front.example", host="front.example")
        for origin in ("http://evil.example", "http://127.0.0.1:1", f"http://127.0.0.1.evil.example:{self.port}",
                       "null", "http://evil.example/127.0.0.1"):
            peer = self.peer(origin=origin)
            peer.send(type="hello", role="client")
            self.assertEqual(peer.until_closed(), ([], 4403), origin)

    def test_same_host_behind_a_tls_proxy(self) -> None:
        """The contract says host, not scheme: a TLS proxy that nobody declared must not lock out its own page."""
        self.client(origin="https://front.example:8443", host="front.example:8443")


class AccessTests(ContractTestCase):
    """Lists of origins and of workers' networks."""

    settings: ClassVar = {"ALLOWED_ORIGINS": "https://app.example, https://other.example:8443",
                          "WORKER_ALLOW": "10.0.0.0/8", "TRUSTED_PROXIES": "127.0.0.0/8"}

    def test_allowed_origins(self) -> None:
        """Pages of the listed origins may connect, scheme and port included."""
        for origin in ("https://app.example", "https://other.example:8443"):
            self.client(origin=origin)
        for origin in ("http://app.example", "https://app.example:8443", "https://other.example", "https://x.app.example"):
            self.assertEqual(self.peer(origin=origin).close_code(), 4403, origin)

    def test_workers_network(self) -> None:
        """A worker from elsewhere is closed with 4403, even with the key; clients are not concerned."""
        self.client()
        stranger = self.stranger()
        stranger.send(type="hello", role="worker", id=stranger.id, region="", capacity=1, address="10.0.0.1",
                      nonce=stranger.nonce)
        self.assertEqual(stranger.until_closed(), ([], 4403))
        self.worker(headers={"X-Forwarded-For": "10.1.2.3"})
        self.assertEqual(self.workers()[self.w1]["state"], "up")


class ConnectionCapTests(ContractTestCase):
    """MAX_CONNECTIONS, and the default exemption of the loopback addresses from what is counted by address."""

    settings: ClassVar = {"MAX_CONNECTIONS": "8", "CONNECTIONS_PER_IP": "1", "CONNECTION_RATE_PER_IP": "1",
                          "BOOTSTRAP_RATE_PER_IP": "1"}

    def test_cap(self) -> None:
        """The connection above the cap closes 1013, HTTP goes on, and a place that is given up is free again."""
        first, *_ = [self.client() for _ in range(8)]
        extra = self.peer()
        extra.send(type="hello", role="client")
        self.assertEqual(extra.until_closed(), ([], 1013))
        self.assertEqual(self.ask("GET", "/health").status, 200)
        first.close()
        self.client()

    def test_loopback(self) -> None:
        """A proxy or a test on the same machine is not limited by its address."""
        for _ in range(8):
            self.client()
            self.assertEqual(self.ask("POST", "/bootstrap").status, 503)


class RateTests(ContractTestCase):
    """What is counted and measured by address and by connection, with nobody exempt."""

    settings: ClassVar = {"CONNECTIONS_PER_IP": "2", "CONNECTION_RATE_PER_IP": "1", "BOOTSTRAP_RATE_PER_IP": "1",
                          "MESSAGE_RATE": "5", "RATE_LIMIT_EXEMPT": "", "TRUSTED_PROXIES": "127.0.0.0/8"}

    def test_per_address(self) -> None:
        """One address holds so many connections, an IPv6 /64 counts as one, and others are not concerned."""
        for here, same, other in (("203.0.113.1", "203.0.113.1", "203.0.113.2"),
                                  ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1")):
            self.client(headers={"X-Forwarded-For": here})
            self.client(headers={"X-Forwarded-For": here})
            extra = self.peer(headers={"X-Forwarded-For": same})
            extra.send(type="hello", role="client")
            self.assertEqual(extra.until_closed(), ([], 1013))
            self.client(headers={"X-Forwarded-For": other})

    def test_connection_rate(self) -> None:
        """After a burst of five times the rate a new WebSocket is refused with 429 and Retry-After."""
        headers = {"X-Forwarded-For": "203.0.113.77"}
        for _ in range(5):
            self.client(headers=headers).close()
        with self.assertRaises(websockets.exceptions.InvalidStatus) as caught:
            for _ in range(100):  # a slow machine earns some meanwhile, but not one for each
                self.client(headers=headers).close()
        response = caught.exception.response
        self.assertEqual(response.status_code, 429)
        self.assertGreaterEqual(int(response.headers["Retry-After"]), 1)
        self.assertEqual(json.loads(response.body or b"")["error"]["code"], "rate-limited")
        self.client(headers={"X-Forwarded-For": "203.0.113.78"})

    def test_bootstrap_rate(self) -> None:
        """After a burst of five times the rate /bootstrap is 429; the read-only pages are not limited."""
        headers = {"X-Forwarded-For": "203.0.113.90"}
        for _ in range(5):
            self.assertEqual(self.ask("POST", "/bootstrap", headers=headers).status, 503)
        for _ in range(100):  # a slow machine earns some meanwhile, but not one for each
            answer = self.ask("POST", "/bootstrap", headers=headers)
            if answer.status != 503:
                break
        self.assertEqual((answer.status, answer.error_code), (429, "rate-limited"))
        self.assertGreaterEqual(int(answer.header("Retry-After")), 1)
        for _ in range(30):
            for path in ("/health", "/workers", "/workers/assign?ip=203.0.113.90"):
                self.assertEqual(self.ask("GET", path, headers=headers).status, 200)

    def test_message_rate(self) -> None:
        """A burst of four times the rate passes, then messages are refused, then the connection is closed (4429)."""
        other = self.client()
        start_s = time.monotonic()
        client = self.client()
        self.assertEqual(client.welcome["limits"]["messagesPerSecond"], 5)
        for _ in range(19):  # hello was the first of the twenty
            self.assertEqual(client.ask(type="assign")["type"], "assigned")
        for _ in range(300):
            client.send(type="assign")
        messages, code = client.until_closed()
        self.assertEqual(code, 4429)
        self.assertIn("rate-limited", [message.get("code") for message in messages])
        passed = len([message for message in messages if message["type"] == "assigned"])
        self.assertLessEqual(passed, 1 + 5 * elapsed_since(start_s), "the burst is spent: what passes has been earned")
        self.assertEqual(other.ask(type="assign")["type"], "assigned")


class SlowConsumerTests(ContractTestCase):
    """WRITE_BUFFER_BYTES."""

    settings: ClassVar = {"WRITE_BUFFER_BYTES": "65536", "MESSAGE_RATE": "100000"}

    def test_worker_that_does_not_read(self) -> None:
        """A worker that does not read is closed with 4413, and its clients get another one."""
        spare, client = self.worker(), self.client()
        names = (f"{self.w2}.{number}" for number in itertools.count())

        def join(raw: RawWebSocket) -> str:
            name, nonce = next(names), "0" * 32
            raw.send(type="hello", role="worker", id=name, region="", capacity=100, address="", nonce=nonce)
            raw.send(type="auth", mac=worker_mac(WORKER_KEY, name, "", 100, nonce, raw.receive()["nonce"]))
            self.assertEqual(raw.receive()["type"], "welcome")
            return name

        name, code = self._closed(client, "worker", join)
        self.assertEqual(code, 4413)
        lost: dict[str, Any] = {}
        while (lost.get("type"), lost.get("worker")) != ("worker-lost", name):
            lost = client.receive()
        self.assertEqual(lost["assigned"]["id"], spare.id)

    def _closed(self, sender: Client | Worker, role: str, join: Callable[[RawWebSocket], str]) -> tuple[str, int]:
        """Whom ``join`` made of a connection that does not read, and the code that it was closed with.

        The front gives it a few seconds to read that. A machine that is busy with something else may miss them, and
        finds no code at all (1006): then it is tried again.
        """
        for _ in range(5):
            raw = self.raw(receive_buffer_bytes=4096)
            name = join(raw)
            self._flood(sender, name, role)
            code = raw.close_code()
            if code != 1006:
                break
        return name, code

    def _flood(self, sender: Client | Worker, target: str, role: str) -> None:
        """Sends until the front has given up the connection that does not read; 40 MB are enough for any kernel."""
        before = self.ask("GET", "/health").json()["connections"][role]
        for _ in range(60):
            for _ in range(12):
                sender.send(type="answer", to=target, sdp="v=0".ljust(60000))
            if self.ask("GET", "/health").json()["connections"][role] < before:
                return
        self.fail("the connection that does not read is still there")

    def test_client_that_does_not_read(self) -> None:
        """A client that does not read is closed with 4413 and costs nobody else anything."""
        worker, other = self.worker(), self.client()

        def join(raw: RawWebSocket) -> str:
            raw.send(type="hello", role="client")
            name: str = raw.receive()["id"]
            return name

        _, code = self._closed(worker, "client", join)
        self.assertEqual(code, 4413)
        worker.send(type="bye", to=other.id)
        other.expect("bye")

    def test_pings_that_are_not_read(self) -> None:
        """Answers to pings count too: who sends pings and reads nothing costs the front no memory."""
        raw = self.raw(receive_buffer_bytes=4096)
        raw.send(type="hello", role="client")
        raw.receive()
        raw.socket.settimeout(10.0)
        before_bytes = self._memory_bytes()
        try:
            for _ in range(40):
                raw.socket.sendall((b"\x89\xfd\x00\x00\x00\x00" + b"x" * 125) * 2000)
        except OSError:
            pass
        self.ask("GET", "/health/live")
        self.assertLess(self._memory_bytes() - before_bytes, 4_000_000)

    def _memory_bytes(self) -> int:
        pages = Path(f"/proc/{self.front.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


class RestartTests(SynchronousTestCase):
    """A front that is stopped and started again on the same database."""

    def test_tickets_survive(self) -> None:
        """A restart must not cost clients their ids, nor operators the list of their workers."""
        folder = new_folder()
        front = Front(folder=folder).ready()
        self.addCleanup(front.kill)
        worker, client = Worker(front.port, "w1", region="us-west").joined(), Client(front.port)
        booted = ask(front.port, "POST", "/bootstrap").json()
        worker.close()
        client.close()
        front.stop()
        again = Front(folder=folder).ready()
        self.addCleanup(again.kill)
        for ticket, expected in ((client.ticket, client.id), (booted["ticket"], booted["client"])):
            back = Client(again.port, ticket)
            self.assertEqual(back.id, expected)
            back.close()
        (row,) = ask(again.port, "GET", "/workers").json()["workers"]
        self.assertEqual((row["id"], row["region"], row["state"], row["fronts"]), ("w1", "us-west", "down", []))
        again.stop()

    def test_killed_front(self) -> None:
        """A front that was killed starts again on what it left, and no worker of before seems to be up."""
        folder = new_folder()
        front = Front(folder=folder).ready()
        self.addCleanup(front.kill)
        worker, client = Worker(front.port, "w1").joined(), Client(front.port)
        front.kill()
        worker.abort()
        client.abort()
        again = Front(folder=folder).ready()
        self.addCleanup(again.kill)
        (row,) = ask(again.port, "GET", "/workers").json()["workers"]
        self.assertEqual((row["id"], row["state"], row["fronts"]), ("w1", "down", []))
        back = Client(again.port, client.ticket)
        self.assertEqual(back.id, client.id)
        back.close()
        again.stop()


class TlsTests(SynchronousTestCase):
    """A TLS endpoint."""

    def _certificate(self, folder: Path) -> tuple[Path, Path]:
        key, certificate = self_signed_pem("localhost", "127.0.0.1")
        key_file, certificate_file = folder / "tls.key", folder / "tls.crt"
        key_file.write_text(key)
        certificate_file.write_text(certificate)
        return key_file, certificate_file

    def test_https_and_wss(self) -> None:
        """Without TLS no page from the internet may use a camera, a worker or this front."""
        folder = new_folder()
        key_file, certificate_file = self._certificate(folder)
        front = Front(options=("--listen", f"ssl:0:privateKey={key_file}:certKey={certificate_file}"
                                           ":interface=127.0.0.1"), folder=folder).ready()
        self.addCleanup(front.kill)
        tls = ssl.create_default_context(cafile=str(certificate_file))
        worker = Worker(front.port, "w1", tls=tls).joined()
        answer = ask(front.port, "POST", "/bootstrap", tls=tls)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json()["signaling"], f"wss://localhost:{front.port}/signaling")
        client = Client(front.port, answer.json()["ticket"], tls=tls, origin=f"https://localhost:{front.port}")
        client.send(type="offer", to="w1", sdp="v=0".ljust(60000))
        self.assertEqual(worker.receive()["from"], client.id)
        client.close()
        worker.close()
        front.stop()
