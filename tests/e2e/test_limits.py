"""What a hostile or broken peer can take from a real front: connections, memory, tries; and who it says it is."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any, ClassVar

from tests.e2e.cluster import until
from tests.e2e.contract_client import LIMIT_S, Client, ContractTestCase, RawWebSocket, Worker, ask

MINIMAL = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: front.example\r\n\r\n"


class HttpConnectionTests(ContractTestCase):
    """HTTP_CONNECTIONS_PER_IP, with nobody exempt."""

    settings: ClassVar = {"HTTP_CONNECTIONS_PER_IP": "6", "RATE_LIMIT_EXEMPT": "", "CONNECTION_RATE_PER_IP": "1000"}

    def _silent(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.port), LIMIT_S)
        self.addCleanup(opened.close)
        return opened

    def _served(self, opened: socket.socket) -> bool:
        try:
            opened.sendall(LIVE)
            return opened.recv(65536).startswith(b"HTTP/1.1 200 ")
        except (ConnectionResetError, BrokenPipeError):
            return False

    def test_silent_connections(self) -> None:
        """Without it one address could hold every connection that the front can have, at no cost."""
        held = [self._silent() for _ in range(6)]
        self.assertTrue(self._served(held[0]))
        self.assertFalse(self._served(self._silent()))
        self.assertTrue(self._served(held[1]), "those that were there before are served on")
        for one in held:
            one.close()
        self.await_connections("client", 0)  # asks until it is answered

    def test_websockets_are_not_among_them(self) -> None:
        """Without it a few clients behind one address would keep out the page that the next one wants to load."""
        clients = [self.client() for _ in range(12)]
        self.assertEqual(self.ask("GET", "/health/live").status, 200)
        self.assertEqual(len(clients), 12)


class ProxiedWebSocket(RawWebSocket):
    """A WebSocket behind a proxy that tells the client's address ahead (the PROXY protocol)."""

    def __init__(self, port: int, header: bytes, more: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self.socket.sendall(header)
        self._shake_hands("front.example", more)


def proxy_v1(address: str) -> bytes:
    """The header of version 1."""
    family = "TCP6" if ":" in address else "TCP4"
    return f"PROXY {family} {address} {'::1' if ':' in address else '192.0.2.1'} 50000 8080\r\n".encode()


def proxy_v2(address: str) -> bytes:
    """The header of version 2."""
    kind, family = (b"\x21", socket.AF_INET6) if ":" in address else (b"\x11", socket.AF_INET)
    packed = socket.inet_pton(family, address)
    body = packed + packed + struct.pack("!HH", 50000, 8080)
    return b"\r\n\r\n\x00\r\nQUIT\n\x21" + kind + struct.pack("!H", len(body)) + body


class ProxyProtocolTests(ContractTestCase):
    """A ``haproxy:`` endpoint beside a plain one."""

    options: ClassVar = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", "haproxy:tcp:0:interface=127.0.0.1")
    settings: ClassVar = {"CONNECTIONS_PER_IP": "1", "HTTP_CONNECTIONS_PER_IP": "3", "RATE_LIMIT_EXEMPT": "127.0.0.0/8"}
    endpoints: ClassVar = 2

    def _joined(self, header: bytes, more: str = "") -> bool:
        raw = ProxiedWebSocket(self.front.ports[1], header, more)
        self.addCleanup(raw.close)
        raw.send(type="hello", role="client")
        opcode, payload = raw.frame()
        if opcode == 8:
            self.assertEqual(struct.unpack("!H", payload[:2])[0], 1013)
            return False
        self.assertEqual(json.loads(payload)["type"], "welcome")
        return True

    def test_whose_connection(self) -> None:
        """Without it all clients behind the proxy would be one, exempt as the proxy's own address is."""
        for number, header in enumerate((proxy_v1, proxy_v2)):
            address = f"203.0.113.{number}"
            self.assertTrue(self._joined(header(address)))
            self.assertFalse(self._joined(header(address)))
            self.assertFalse(self._joined(header(address), "X-Forwarded-For: 198.51.100.7\r\n"), "a spoofed header")
            self.assertTrue(self._joined(header(f"198.51.100.{number}")))
            network = f"2001:db8:0:{number + 1}"
            self.assertTrue(self._joined(header(f"{network}::1")))
            self.assertFalse(self._joined(header(f"{network}::2")), "the same /64")

    def test_plain_connections(self) -> None:
        """Without it one client behind the proxy could hold the places of all."""
        def served(header: bytes) -> bool:
            opened = socket.create_connection(("127.0.0.1", self.front.ports[1]), LIMIT_S)
            self.addCleanup(opened.close)
            try:
                opened.sendall(header + LIVE)
                return opened.recv(65536).startswith(b"HTTP/1.1 200 ")
            except (ConnectionResetError, BrokenPipeError):
                return False

        for header in (proxy_v1, proxy_v2):
            address = "203.0.113.50" if header is proxy_v1 else "203.0.113.51"
            self.assertEqual([served(header(address)) for _ in range(4)], [True, True, True, False])
            self.assertTrue(served(header(address.replace(".5", ".6"))))

    def test_no_header(self) -> None:
        """Without it who reaches this endpoint past the proxy would be served as the proxy."""
        with socket.create_connection(("127.0.0.1", self.front.ports[1]), LIMIT_S) as opened:
            opened.sendall(LIVE)
            self.assertEqual(opened.recv(4096), b"")

    def test_odd_headers(self) -> None:
        """Without it a proxy's own health check would fail, and a bad header be logged as an error of the front's."""
        odd = b"PROXY TCP4 1.1.1.\xff 1.1.1.1 x 2\r\n"
        for header, answer in ((b"PROXY UNKNOWN\r\n", b"HTTP/1.1 200 "), (odd, b"")):
            with socket.create_connection(("127.0.0.1", self.front.ports[1]), LIMIT_S) as opened:
                opened.sendall(header + LIVE)
                self.assertEqual(opened.recv(4096)[:13], answer)


class BackoffTests(ContractTestCase):
    """AUTH_BACKOFF, with clients' addresses told by a proxy."""

    settings: ClassVar = {"AUTH_BACKOFF": "300", "RATE_LIMIT_EXEMPT": "", "TRUSTED_PROXIES": "127.0.0.0/8"}

    def _tries(self, address: str, mac: str) -> tuple[list[dict[str, Any]], int]:
        worker = Worker(self.port, self.w1, headers={"X-Forwarded-For": address})
        self.addCleanup(worker.close)
        worker.send(type="hello", role="worker", id=worker.id, region="", capacity=100, address="10.0.0.1",
                    nonce=worker.nonce)
        worker.send(type="auth", mac=mac)
        return worker.until_closed()

    def test_wrong_mac(self) -> None:
        """Without it a key could be tried as often as one likes; and nobody would read of it in the audit log."""
        messages, code = self._tries("203.0.113.5", "00" * 32)
        self.assertEqual(([message["type"] for message in messages], code), (["challenge"], 4401))
        tries = [self._tries("203.0.113.5", "00" * 32) for _ in range(10)]
        self.assertIn(([], 4401), tries, "not asked for a proof any more")
        self.assertEqual({code for _, code in tries}, {4401})
        self.client(headers={"X-Forwarded-For": "203.0.113.5"})
        worker = Worker(self.port, self.w2, headers={"X-Forwarded-For": "203.0.113.6"})
        self.addCleanup(worker.close)
        worker.joined()
        audit = self.front.folder / "s.audit.jsonl"
        until(lambda: "backing-off" in audit.read_text(encoding="utf-8"), "an audit line")


class WriteBuffersTests(ContractTestCase):
    """WRITE_BUFFERS_BYTES, far below what the connections together could have."""

    settings: ClassVar = {"WRITE_BUFFER_BYTES": "67108864", "WRITE_BUFFERS_BYTES": "4194304", "MESSAGE_RATE": "100000"}
    stuck = 6

    def test_together(self) -> None:
        """Without it clients that do not read, each within its cap, would take the memory of the front."""
        sender, bystander = self.worker(), self.client()
        names = []
        for _ in range(self.stuck):
            raw = RawWebSocket(self.port, receive_buffer_bytes=4096)
            self.addCleanup(raw.close)
            raw.send(type="hello", role="client")
            names.append(raw.receive()["id"])
        before_bytes = self._memory_bytes()
        for _ in range(150):
            for name in names:
                for _ in range(2):
                    sender.send(type="answer", to=name, sdp="v=0".ljust(60000))
            sender.send(type="bye", to=bystander.id)
            bystander.expect("bye")
            if ask(self.port, "GET", "/health").json()["connections"]["client"] < 1 + self.stuck:
                break
        else:
            self.fail("nobody was cut")
        self.assertLess(self._memory_bytes() - before_bytes, 40_000_000)
        metrics = self.ask("GET", "/metrics").body.decode()
        self.assertRegex(metrics, r'connections_closed_total\{code="4413"[^}]*\} [1-9]')

    def _memory_bytes(self) -> int:
        pages = Path(f"/proc/{self.front.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


class DescriptionTests(ContractTestCase):
    """What is passed on, by default."""

    def test_refused(self) -> None:
        """Without it a worker would have to parse whatever somebody calls an offer."""
        worker, client = self.worker(), self.client()
        bad: list[dict[str, Any]] = [
            {"type": "offer", "sdp": "x"}, {"type": "answer", "sdp": ""}, {"type": "offer", "sdp": "v=0\r\n\0"},
            {"type": "offer", "sdp": "v=0" + "\r\nm=audio" * 65},
            {"type": "candidate", "candidate": {"candidate": "x"}},
        ]
        for message in bad:
            client.send(to=worker.id, ref="r1", **message)
            client.expect("error", code="bad-message", to=worker.id, ref="r1")
        worker.synchronise()

    def test_passed_on(self) -> None:
        """Without it the smallest description there is, or the real one of a browser, would not come through."""
        worker, client = self.worker(), self.client()
        for sdp in ("v=0", "v=0\r\n", MINIMAL):
            client.send(type="offer", to=worker.id, sdp=sdp)
            worker.expect("offer", sdp=sdp)

    def test_target_comes_first(self) -> None:
        """Without it the answer would depend on the content where nobody would get it."""
        client = self.client()
        client.send(type="offer", to="nobody", sdp="x")
        client.expect("error", code="unknown-target", to="nobody")


class UncheckedTests(ContractTestCase):
    """CHECK_DESCRIPTIONS=false."""

    settings: ClassVar = {"CHECK_DESCRIPTIONS": "false"}

    def test_anything(self) -> None:
        """Without it those who pass something of their own through could not turn the check off."""
        worker: Worker = self.worker()
        client: Client = self.client()
        client.send(type="offer", to=worker.id, sdp="x")
        worker.expect("offer", sdp="x")
