"""Targets behind the door of a front in memory: WebSocket, HTTP with ``/admin``, and both in the PROXY protocol."""

from __future__ import annotations

import json
import struct
from typing import Any, ClassVar

from twisted.internet.testing import MemoryReactorClock

from kollator.guard.keys import worker_mac
from kollator.net.endpoints import listen_endpoint
from kollator.signaling.connection import Stage
from tests.admins import OTHER_TOKEN, TOKEN, AdminFront, bearer
from tests.fronts import KEY
from tests.fuzz import requests
from tests.fuzz.frames import HANDSHAKE, control, frame, message
from tests.fuzz.messages import CLIENT, WORKER, Vocabulary
from tests.fuzz.oracle import Broken, grown, tables
from tests.fuzz.reading import Reading
from tests.fuzz.target import Target
from tests.switchboard_bench import NONCE
from tests.wires import Wire, request

ADDRESSES = (
    "203.0.113.9", "203.0.113.10", "203.0.113.11", "203.0.113.12", "192.0.2.77", "127.0.0.1", "2001:db8::1",
    "2001:db8:0:1::1", "2001:db8:0:1::2", "fe80::1%eth0", "::ffff:198.51.100.4", "10.0.0.1",
)  # fmt: skip
"""Few, so that what is remembered of addresses stays small."""
SLACK = 48
"""A table may have so many entries more after a batch: what is remembered of addresses, and names of counters."""
LEGITIMATE = dict.fromkeys(
    ("pool", "roster", "registry", "monitor", "writer", "store", "audited", "pings", "wires", "views._pool"), 1_000_000
)
"""Workers that registered with the key are remembered, their ring points too, and what the test itself notes."""
PATIENCE_S = 75.0
"""After so long whoever has to be gone is."""


class Peer:
    """One connection to the front, and what came on it."""

    def __init__(self, target: DoorTarget, wire: Wire) -> None:
        self.wire = wire
        self.reading = Reading()
        self._target = target

    def send(self, data: bytes) -> Peer:
        """Sends bytes, cut somehow, and reads what comes."""
        self._target.said.append(data)
        for piece in self._target.mutator.cut(data):
            self.wire.send(piece)
        return self.read()

    def says(self, **keys: Any) -> Peer:
        """Sends one message as it should be."""
        self.wire.send(frame(json.dumps(keys).encode()))
        return self.read()

    def read(self) -> Peer:
        """Reads what came."""
        self.reading.feed(self.wire.taken())
        return self


class DoorTarget(Target):
    """A front, a client and a worker that talk over it, and whoever else comes."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.honest = seed % 2 == 0
        """Nobody has the key of workers or the token of operators, so that nobody may change anything."""
        environ = {
            "CHECK_DESCRIPTIONS": self.source.choice(("true", "false")),
            "WRITE_BUFFER_BYTES": self.source.choice(("1048576", "1024")),
            "MESSAGE_RATE": self.source.choice(("100", "5")),
            "TRUSTED_PROXIES": self.source.choice(("", "10.0.0.0/8,127.0.0.1")),
            "ALLOWED_ORIGINS": self.source.choice(("", "https://front.example:8080")),
            "RATE_LIMIT_EXEMPT": "127.0.0.0/8,198.51.100.0/24",
        }
        self.front = front = AdminFront({name: text for name, text in environ.items() if text})
        front.signaling.pong = self._pong
        self.proven = {"bystander"}
        self.vocabulary = Vocabulary(self.mutator)
        self.peers: list[Peer] = []
        self.worker = self.connect("198.51.100.1").open()
        self.prove(self.worker, "bystander")
        self.client = self.connect("198.51.100.2").open().says(type="hello", role="client")
        self.peers.clear()
        self.client_id = self.client.reading.last("welcome")["id"]
        self.vocabulary.clients.append(self.client_id)
        self.digest = front.pool.digest
        self.calls = len(front.clock.getDelayedCalls())
        self.before = tables(front)
        self.relay()

    def _pong(self, connection: Any, payload: bytes) -> None:
        if connection.stage is Stage.WORKER:
            self.front.monitor.ponged(connection.id, payload)

    def connect(self, address: str = "", factory: Any = None) -> WebPeer:
        """Somebody connects."""
        wire = self.front.connect(address or self.source.choice(ADDRESSES), factory=factory)
        peer = WebPeer(self, wire)
        self.peers.append(peer)
        return peer

    def prove(self, peer: Peer, worker: str, **keys: Any) -> None:
        """Goes through the registration of a worker that has the key."""
        hello = {"type": "hello", "role": "worker", "id": worker, "nonce": NONCE, "region": "us-west"} | keys
        nonce = peer.says(**hello).reading.last("challenge").get("nonce", "")
        self.proven.add(worker)
        mac = worker_mac(KEY, worker, hello["region"], keys.get("capacity", 100), NONCE, nonce)
        peer.says(type="auth", mac=mac)

    def case(self) -> None:
        """One connection; then some time passes, or none."""
        self.attack()
        for peer in self.peers:
            peer.read()
            self.reached.update(peer.reading.new)
            peer.reading.new.clear()
            if peer.wire.lost:
                peer.reading.end()
        self.peers = [peer for peer in self.peers if not peer.wire.lost]
        if self.source.random() < 0.1:
            self.front.disk.held = not self.front.disk.held
            self._turn_disk()
        self.front.advance(self.source.choice((0.0, 0.0, 0.01, 0.3, 0.3, 2.0)))
        self.look()

    def attack(self) -> None:
        """What is special to a target."""
        raise NotImplementedError

    def _turn_disk(self) -> None:
        while len(self.front.disk):
            self.front.disk.turn()

    def look(self) -> None:
        """What the loops of a front do now and then."""
        self.front.signaling.expire(self.front.settings.hello_timeout_s)
        self.front.switchboard.turn(self.front.clock.seconds())
        self.front.switchboard.mailboxes.expire(self.front.clock.seconds())

    def relay(self) -> None:
        """The bystanders talk. Raises ``Broken`` when a message does not arrive."""
        client = self.client_id
        number = str(self.source.random())
        self.client.read().says(type="offer", to="bystander", sdp="v=0\r\n", session=number)
        offer = self.worker.read().reading.last("offer")
        self.worker.says(type="answer", to=client, sdp="v=0\r\n", session=number)
        answer = self.client.read().reading.last("answer")
        if (offer.get("session"), offer.get("from"), answer.get("session")) != (number, client, number):
            raise Broken(f"the bystanders hear {offer} and {answer}, errors {self.client.reading.last('error')}")

    def settle(self) -> None:
        """Some leave and others fall silent; after a while nothing of them is left."""
        self.front.disk.held = False
        self._turn_disk()
        self.front.drain.recall()
        for peer in self.peers:
            if self.source.random() < 0.5:
                peer.wire.hang_up()
        for _ in range(5):
            self.front.advance(PATIENCE_S / 5)
            self.look()
        for peer in self.peers:
            peer.read()
            may_stay = peer.reading.welcomed and peer.reading.close_code is None
            if not peer.wire.lost and not may_stay:
                raise Broken(f"after {PATIENCE_S} s a connection is open still, closed with {peer.reading.close_code}")
            peer.wire.hang_up()
        self.front.advance(PATIENCE_S)
        self.look()
        self.relay()
        self._check_tables()

    def _check_tables(self) -> None:
        front, board = self.front, self.front.switchboard
        found = {
            "waiting": list(board.waiting), "clients": sorted(set(board.clients) - {self.client_id}),
            "workers": sorted(set(board.workers) - {"bystander"}), "joining": list(board._directory.joining),
            "mailboxes": [len(board.mailboxes)] * bool(board.mailboxes), "kept": [1] * bool(board.mailboxes.bytes),
            "counted in": [1] * (front.gate._counts.total != 2), "disk": [1] * (not front.writer.idle),
            "strangers in the pool": sorted({view.id for view in front.pool.workers()} - self.proven),
            "calls": front.clock.getDelayedCalls()[self.calls :],
        }  # fmt: skip
        left = {name: what for name, what in found.items() if what}
        if left:
            raise Broken(f"left behind: {left}")
        changed = [entry for entry in front.audited if entry["event"] == "admin"]
        if self.honest and (front.pool.digest != self.digest or changed):
            raise Broken(f"somebody without a key has changed the pool, or something by /admin: {changed[:3]}")
        more = grown(self.before, tables(front), SLACK, LEGITIMATE)
        if more:
            raise Broken("; ".join(more))

    def close(self) -> None:
        """Everybody hangs up."""
        self.front.disk.held = False
        self.front.close()


class WebPeer(Peer):
    """A peer that may open a WebSocket."""

    def open(self, handshake: bytes = HANDSHAKE) -> WebPeer:
        """Sends the handshake."""
        self.wire.send(handshake)
        self.read()
        return self


class WebSocketTarget(DoorTarget):
    """Bytes of WebSocket, from whoever has got how far ever."""

    name = "websocket"
    cases: ClassVar = 3000

    def attack(self) -> None:
        """A handshake, then as far as the dice say, then anything."""
        source, mutator = self.source, self.mutator
        if self.peers and mutator.chance(0.25):
            peer: Any = source.choice(self.peers)
        else:
            peer = self.connect()
            if mutator.chance(0.15):
                peer.send(mutator.changed(HANDSHAKE, [request("GET", "/", {})]))
            else:
                peer.open()
            self._begin(peer)
        if mutator.chance(0.06) and peer.wire.producer is not None:
            peer.wire.producer.pauseProducing()  # it reads nothing any more
            peer.send(frame(b'{"type":"assign","ref":"r"}') * source.choice((1, 20)))
        for _ in range(source.choice((1, 1, 2, 4, 12))):
            peer.send(self._bytes(peer))
        if mutator.chance(0.3):
            peer.wire.hang_up()

    def _begin(self, peer: Peer) -> None:
        match self.source.randrange(10):
            case 0:
                pass
            case 1:
                peer.says(type="hello", role="worker", id=self.vocabulary.worker(), nonce=NONCE)
            case 2 | 3 | 4 if not self.honest:
                self.prove(peer, self.vocabulary.worker(), capacity=self.source.choice((1, 100, 1_000_000)))
            case _:
                tickets = self.vocabulary.tickets[-3:] if self.mutator.chance(0.3) else []
                peer.says(type="hello", role="client", **({"ticket": tickets[0]} if tickets else {}))
                welcome = peer.reading.last("welcome")
                if "ticket" in welcome:
                    self.vocabulary.remember(welcome)

    def _bytes(self, peer: Peer) -> bytes:
        mutator = self.mutator
        match self.source.randrange(34):
            case 0:
                return control(mutator)
            case 1:
                return self.source.randbytes(self.source.choice((1, 20, 300)))
            case 2:
                return message(mutator, b"x" * self.source.choice((65_535, 65_536, 65_537, 140_000)))
            case 3:
                return message(mutator, self.source.randbytes(40), opcode=2)
            case 4:
                return frame(b"", 9) * self.source.choice((3, 300))
            case _:
                kinds = WORKER if peer.reading.last("challenge") else CLIENT
                return message(mutator, self.vocabulary.message(kinds))


class HttpTarget(DoorTarget):
    """Bytes of HTTP, on connections that are used again too."""

    name = "http"
    cases: ClassVar = 4000

    def attack(self) -> None:
        """A request or some, on a new connection mostly."""
        peer = self.source.choice(self.peers) if self.peers and self.mutator.chance(0.2) else self.connect()
        data = requests.stream(self.mutator)
        if self.honest:
            for token in (TOKEN, OTHER_TOKEN):
                data = data.replace(token.encode(), b"a token that is not the right one, of 44 bytes")
        peer.send(data)
        if self.mutator.chance(0.5):
            peer.wire.hang_up()

    def settle(self) -> None:
        """An operator puts right what others may have changed, so that the bystanders can be told apart."""
        if not self.honest:
            for path in ("/admin/workers/bystander/undrain", "/admin/front/undrain"):
                self.connect("198.51.100.3").send(request("POST", path, bearer(TOKEN)))
        super().settle()


class ProxyTarget(DoorTarget):
    """The same behind ``haproxy:``, with the PROXY header (versions 1 and 2) in front."""

    name = "proxy"
    cases: ClassVar = 1000

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        reactor: Any = MemoryReactorClock()
        listen_endpoint(reactor, "haproxy:tcp:8080").listen(self.front.door)
        self.factory = reactor.tcpServers[0][1]

    def attack(self) -> None:
        """A header, and what a client sends after it."""
        peer = self.connect("10.0.0.1", factory=self.factory)
        header = self._header()
        if self.mutator.chance(0.6):
            header = self.mutator.changed(header)
        if self.mutator.chance(0.5):
            rest = HANDSHAKE + message(self.mutator, self.vocabulary.message(CLIENT))
        else:
            rest = request(self.source.choice(("GET", "POST")), self.source.choice(requests.PUBLIC))
        peer.send(header + rest)
        if self.mutator.chance(0.5):
            peer.wire.hang_up()

    def _header(self) -> bytes:
        source = self.source
        address = source.choice(ADDRESSES).encode()
        match source.randrange(6):
            case 0 | 1:
                kind = b"TCP6" if b":" in address else b"TCP4"
                port = source.choice((b"1", b"50000", b"65536", b"-1", b"x", b"", b"9" * 40))
                return b"PROXY %s %s 192.0.2.1 %s 80\r\n" % (kind, address, port)
            case 2:
                return b"PROXY UNKNOWN" + source.choice((b"\r\n", b" x y\r\n"))
            case _:
                family, size = source.choice(((0x11, 12), (0x21, 36), (0x31, 216), (0x12, 12), (0x00, 0), (0xFF, 4)))
                body = source.randbytes(size) + source.choice((b"", b"\x04\x00\x01x"))
                length = source.choice((len(body), len(body), len(body), 0, 1, 65_535))
                command = source.choice((0x21, 0x21, 0x20, 0x2F))
                return b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, family]) + struct.pack("!H", length) + body
