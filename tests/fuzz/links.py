"""Targets between fronts: bytes to a link over TCP and ``/worker-sync``, and frames of a peer that knows the key."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import txaio
from twisted.internet.protocol import Factory

from kollator.cluster.accepting import ADDRESSES_MAX
from kollator.cluster.handshake import Handshake, Rejected
from kollator.cluster.wire import NONCE_BYTES, BadFrame, ToClient, decode, decode_opening, encode
from tests.fuzz.frames import control, frame, message
from tests.fuzz.mutation import Mutator
from tests.fuzz.oracle import Broken, grown, tables
from tests.fuzz.peerframes import OPENINGS, hostile_frame, packed
from tests.fuzz.target import Target, told
from tests.link_net import KEY, Net, Stranger
from tests.wires import UPGRADE, request

HOSTS = [f"10.0.9.{number}" for number in range(1, 33)]
SYNC_HANDSHAKE = request("GET", "/worker-sync", UPGRADE)
PATIENCE_S = 20.0


def stream(mutator: Mutator, frames: list[bytes]) -> bytes:
    """Frames with their lengths, some of which lie."""
    data = b""
    for payload in frames:
        length = len(payload)
        if mutator.chance(0.1):
            length = mutator.source.choice((0, 1, length + 1, length - 1, 1024, 1025, 2**20 + 1, 2**31, 2**32 - 1))
        data += (length & 0xFFFFFFFF).to_bytes(4, "big") + payload
    return mutator.changed(data) if mutator.chance(0.3) else data


class LinkTarget(Target):
    """Bytes of strangers, and of one who knows the key, to a front that has a link of its own."""

    name = "peer"
    cases: ClassVar = 1200
    websocket: ClassVar = False

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        config: Any = txaio
        self._loop = config.config.loop
        self.net = net = Net(websocket=self.websocket, seed=seed)
        config.config.loop = net.clock
        self.one = net.front("a", "b", "c").start()
        self.other = net.front("b", "a").start()
        net.run(0.5)
        self.strangers: list[Stranger] = []
        self.relay()
        self.before = tables(self.one.links)

    def case(self) -> None:
        """A stranger says something, or a front of the cluster that has lost its mind does."""
        self.net.run(self.source.choice((0.0, 0.05, 0.3)))
        host = self.source.choice(HOSTS)
        if self.mutator.chance(0.3):
            self._member(host)
        else:
            self._stranger(host)
        for event in self.one.events:
            self.reached[str(event[0])] += 1
        self.reached.update(self.one.counts)
        for front in (self.one, self.other):
            front.events.clear()
            front.counts.clear()

    def _connect(self, host: str) -> Stranger:
        """Somebody connects, without a word."""
        stranger: Stranger = self.net.join(Factory.forProtocol(Stranger), self.one, host)
        self.strangers.append(stranger)
        return stranger

    def _stranger(self, host: str) -> None:
        mutator, source = self.mutator, self.source
        frames = [packed(mutator, source.choice(OPENINGS)) for _ in range(source.randrange(1, 4))]
        if mutator.chance(0.3):
            handshake = Handshake("c", [KEY], {"a", "b", "c"}, source.randbytes(NONCE_BYTES), "a")
            frames = [encode(each) for each in handshake.start()] + frames
        self._say(self._connect(host), stream(mutator, frames))

    def _member(self, host: str) -> None:
        try:
            stranger = self.net.impostor(self.one, "c", host)
        except (AssertionError, AttributeError, Rejected):  # the address is not listened to for a moment
            return
        self.strangers.append(stranger)
        for _ in range(self.source.choice((1, 1, 3, 10))):
            data = stream(self.mutator, [hostile_frame(self.mutator) for _ in range(self.source.choice((1, 1, 4)))])
            self._say(stranger, data)

    def _say(self, stranger: Stranger, data: bytes) -> None:
        self.said.append(data)
        for piece in self.mutator.cut(data):
            if stranger.is_closed:
                return
            stranger.transport.write(piece)
        self.net.settle()
        self._read(stranger)

    def _read(self, stranger: Stranger) -> None:
        """What a front says is whole frames of its own kinds."""
        rest, stranger.received = stranger.received, b""
        while rest:
            size = int.from_bytes(rest[:4], "big")
            payload, rest = rest[4 : 4 + size], rest[4 + size :]
            if isinstance(told(BadFrame, partial(decode, payload)), BadFrame):
                decode_opening(payload)

    def relay(self) -> None:
        """The two fronts talk. Raises ``Broken`` when they cannot."""
        self.net.run(0.1)
        number = self.source.randbytes(8)
        self.other.events.clear()
        self.one.links.send("b", ToClient("client", "worker", number))
        self.net.run(0.1)
        heard = [event[2] for event in self.other.events if event[0] == "frame"]
        if not any(isinstance(each, ToClient) and each.payload == number for each in heard):
            raise Broken(f"the other front hears {heard}; links: {self.one.links.up()}")
        self.other.events.clear()

    def settle(self) -> None:
        """Some leave; after a while none is left, and the fronts are as they were."""
        for stranger in self.strangers:
            if not stranger.is_closed and self.source.random() < 0.5:
                stranger.transport.loseConnection()
        self.net.run(PATIENCE_S, 0.1)
        links = self.one.links
        known = {"b"} | ({"c"} if "c" in links.up() else set())
        half_open = len(links.acceptor._half_open)
        if set(links.up()) != known or len(links._all) > 3 or half_open:
            raise Broken(f"left behind: {links.up()}, {len(links._all)} links, {half_open} half open")
        more = grown(self.before, tables(links), 2 * len(HOSTS), {})
        if more or len(links.acceptor._backoff) > ADDRESSES_MAX:
            raise Broken("; ".join(more))
        self.relay()

    def close(self) -> None:
        """The fronts stop."""
        try:
            for front in (self.one, self.other):
                front.links.stopService()
            self.net.run(2.0, 0.1)
        finally:
            config: Any = txaio
            config.config.loop = self._loop


class WorkerSyncTarget(LinkTarget):
    """The same in WebSocket messages, whose frames are changed as well."""

    name = "worker-sync"
    cases: ClassVar = 800
    websocket: ClassVar = True

    def _stranger(self, host: str) -> None:
        mutator, source = self.mutator, self.source
        stranger = self._connect(host)
        handshake = SYNC_HANDSHAKE
        if mutator.chance(0.2):
            handshake = mutator.changed(handshake)
        data = handshake
        for _ in range(source.choice((1, 1, 2, 5))):
            payload = stream(mutator, [packed(mutator, source.choice(OPENINGS))])
            data += control(mutator) if mutator.chance(0.15) else message(mutator, payload, source.choice((2, 2, 2, 1)))
        self._say(stranger, data + (frame(b"", 8) if mutator.chance(0.2) else b""))

    def _read(self, stranger: Stranger) -> None:
        stranger.received = b""  # it is WebSocket, or what the test's own client makes of it
