"""The fast path beside the plain one, in one run: ``python -m tests.bench.relay``.

For each mode a front of its own is started, and asked for: handshakes, bytes an idle connection, and messages from
clients to workers (2 KB offers and 200 B candidates). The load comes from this process, so what counts is the CPU
time of the front; the rates are at most what this generator can do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from kollator.guard.keys import worker_mac

KEY = "0123456789abcdef0123456789abcdef"
MASK = b"\x01\x02\x03\x04"
OFFERS = 1
CANDIDATES = 4
"""In this proportion."""
HELLO = b'{"type":"hello","role":"client"}'
UPGRADE = (
    b"GET /signaling HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: kollator.v1\r\n\r\n"
)
HANDSHAKES = 1000
"""The first ones are measured."""
WINDOW = 32
"""Handshakes, and messages for each worker, that are under way at once."""


class Figures(NamedTuple):
    """What was measured of one front."""

    base_mb: float
    handshakes_s: float
    handshake_cpu_us: float
    bytes_a_connection: float
    messages_s: float
    message_cpu_us: float
    p50_ms: float
    p99_ms: float


def frame(payload: bytes) -> bytes:
    """A client's text frame."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    masks = (MASK * (size // 4 + 1))[:size]
    return head + MASK + (int.from_bytes(payload, "big") ^ int.from_bytes(masks, "big")).to_bytes(size, "big")


class Server:
    """One front as a process."""

    def __init__(self, fast: bool, cpu: int | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="relay-")
        folder = Path(self._folder.name)
        key = folder / "worker.key"
        key.write_text(KEY)
        key.chmod(0o600)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        environ = os.environ | {
            "NODE_ID": "front-bench", "HOST": "127.0.0.1", "PORT": str(self.port), "STUN_SERVERS": "",
            "FAST_PATH": "true" if fast else "false", "MESSAGE_RATE": "100000", "KEEPALIVE_INTERVAL": "0",
            "WORKER_HEALTH_TIMEOUT": "600000",
        }
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "kollator-front",
                   "--database", str(folder / "s.db"), "--worker-key-file", str(key)]
        with open(folder / "log", "wb") as out:
            self.process = subprocess.Popen(command, env=environ, cwd=folder, stdout=out, stderr=out)
        if cpu is not None:
            os.sched_setaffinity(self.process.pid, {cpu})
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((folder / "log").read_text()) from None
                time.sleep(0.05)
        time.sleep(0.5)

    def rss(self) -> int:
        """Bytes of resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()


def receive(sock: socket.socket) -> dict[str, Any]:
    """One text frame of the server."""
    head = _exactly(sock, 2)
    size = head[1]
    if size == 126:
        size = int.from_bytes(_exactly(sock, 2), "big")
    found: dict[str, Any] = json.loads(_exactly(sock, size))
    return found


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise RuntimeError("the front hung up")
        data += more
    return data


def connect(port: int, count: int) -> list[socket.socket]:
    """So many open WebSockets that have said nothing."""
    request = UPGRADE % port
    found: list[socket.socket] = []
    while len(found) < count:
        some = []
        for _ in range(min(WINDOW, count - len(found))):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request)
            some.append(sock)
        for sock in some:
            head = sock.recv(4096)
            if not head.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(head.decode("latin-1"))
        found += some
    return found


def welcome(socks: list[socket.socket]) -> None:
    """Every one of them says hello."""
    hello = frame(HELLO)
    for at in range(0, len(socks), WINDOW):
        for sock in socks[at : at + WINDOW]:
            sock.sendall(hello)
        for sock in socks[at : at + WINDOW]:
            assert receive(sock)["type"] == "welcome"


def worker(port: int, name: str) -> socket.socket:
    """A registered worker."""
    (sock,) = connect(port, 1)
    nonce = os.urandom(16).hex()
    sock.sendall(frame(json.dumps({
        "type": "hello", "role": "worker", "id": name, "region": "", "capacity": 1000, "nonce": nonce,
    }).encode()))
    challenge = receive(sock)
    mac = worker_mac(KEY.encode(), name, "", 1000, nonce, challenge["nonce"])
    sock.sendall(frame(json.dumps({"type": "auth", "mac": mac}).encode()))
    assert receive(sock)["type"] == "welcome"
    return sock


def messages(target: str) -> list[bytes]:
    """What a client sends in turn."""
    sdp = "v=0\r\n" + "a=x-line:0123456789\r\n" * 93
    offer = json.dumps({"type": "offer", "to": target, "session": "s1", "sdp": sdp})
    candidate = json.dumps({"type": "candidate", "to": target, "session": "s1", "candidate": {
        "candidate": "candidate:1 1 UDP 2122252543 192.0.2.1 50000 typ host", "sdpMid": "0", "sdpMLineIndex": 0,
        "usernameFragment": "abcd"}})
    return [frame(offer.encode())] * OFFERS + [frame(candidate.encode())] * CANDIDATES


class Load:
    """Clients that send to workers, each worker with a window of messages under way."""

    def __init__(self, port: int, workers: int, clients: int) -> None:
        self.workers = [worker(port, f"w{number}") for number in range(workers)]
        self.clients = connect(port, clients)
        welcome(self.clients)
        self._plans = [messages(f"w{number}") for number in range(workers)]
        self._sizes: list[int] = []
        for message in self._plans[0]:
            self.clients[0].sendall(message)
            head = _exactly(self.workers[0], 4)
            size = int.from_bytes(head[2:4], "big") if head[1] == 126 else head[1] - 2
            _exactly(self.workers[0], size)
            self._sizes.append(size + (4 if head[1] == 126 else 2))
        self._sent = 0

    def run(self, seconds: float, rate: float | None = None) -> tuple[int, list[float]]:
        """Sends for so long, as much as goes or at a rate; returns how many came and how long some took."""
        poller = select.epoll()
        state: dict[int, list[Any]] = {}
        for number, sock in enumerate(self.workers):
            sock.setblocking(False)
            poller.register(sock.fileno(), select.EPOLLIN)
            state[sock.fileno()] = [sock, number, 0, 0]  # with the bytes that came, and the messages sent
        pending: dict[int, list[tuple[int, float]]] = {fileno: [] for fileno in state}
        taken: list[float] = []
        total, sent_total = 0, 0
        started = now = time.perf_counter()
        plan_length = len(self._sizes)
        clients = self.clients
        while now - started < seconds or any(pending.values()):
            sending = now - started < seconds
            for fileno, entry in state.items():
                queue = pending[fileno]
                room = WINDOW - len(queue)
                if rate is not None:
                    room = min(room, int((now - started) * rate) - sent_total)
                if not sending:
                    room = 0
                plan = self._plans[entry[1]]
                for _ in range(room):
                    which = entry[3] % plan_length
                    clients[self._sent % len(clients)].sendall(plan[which])
                    self._sent += 1
                    entry[3] += 1
                    sent_total += 1
                    queue.append((self._sizes[which], time.perf_counter()))
            for fileno, _ in poller.poll(0.002):
                entry = state[fileno]
                try:
                    entry[2] += len(entry[0].recv(262_144))
                except BlockingIOError:
                    continue
                queue = pending[fileno]
                came = time.perf_counter()
                done = 0
                for size, at in queue:
                    if entry[2] < size:
                        break
                    entry[2] -= size
                    taken.append(came - at)
                    done += 1
                del queue[:done]
                total += done
            now = time.perf_counter()
            if now - started > seconds + 30:
                raise RuntimeError(f"messages are missing: {[len(queue) for queue in pending.values()]}")
        return total, taken


def measure(fast: bool, connections: int, seconds: float, cpu: int | None) -> Figures:
    """The figures of one front."""
    server = Server(fast, cpu)
    try:
        base = server.rss()
        idle = connect(server.port, 200)
        welcome(idle)
        cpu_s, started, before = server.cpu_s(), time.perf_counter(), server.rss()
        idle += connect(server.port, HANDSHAKES)
        took, cpu_s = time.perf_counter() - started, server.cpu_s() - cpu_s
        welcome(idle[200:])
        while len(idle) < connections + 200:
            some = connect(server.port, WINDOW)
            welcome(some)
            idle += some
        time.sleep(1.0)
        grown = (server.rss() - before) / (len(idle) - 200)
        load = Load(server.port, 4, 200)
        load.run(0.5)
        before_cpu, before_at = server.cpu_s(), time.perf_counter()
        count, _ = load.run(seconds)
        rate = count / (time.perf_counter() - before_at)
        message_cpu = (server.cpu_s() - before_cpu) / count
        _, taken = load.run(seconds, rate=5000)
        cuts = statistics.quantiles(taken, n=100)
        return Figures(base / 1e6, HANDSHAKES / took, cpu_s / HANDSHAKES * 1e6, grown, rate,
                       message_cpu * 1e6, cuts[49] * 1e3, cuts[98] * 1e3)
    finally:
        server.stop()


def main() -> None:
    """Prints a line for each round and mode, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--cpu", type=int, help="pins the front to this core")
    parser.add_argument("--modes", default="plain,fast")
    options = parser.parse_args()
    print(f"{'':12}" + "".join(f"{name:>20}" for name in Figures._fields))
    rows: dict[str, list[Figures]] = {mode: [] for mode in options.modes.split(",")}
    for _ in range(options.rounds):
        for mode, found in rows.items():
            found.append(measure(mode == "fast", options.connections, options.seconds, options.cpu))
            print(f"{mode:12}" + "".join(f"{value:20.1f}" for value in found[-1]), flush=True)
    if options.rounds > 1:
        for mode, found in rows.items():
            print(f"{mode + ' median':12}" + "".join(
                f"{statistics.median(column):20.1f}" for column in zip(*found, strict=True)))


if __name__ == "__main__":
    main()
