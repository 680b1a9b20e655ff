"""A network in memory for links: every byte waits until the test, or its seed, lets it arrive.

A connection is two transports that behave as Twisted's TCP does: one that is too far behind pauses its producer,
``loseConnection`` writes what waits first, ``abortConnection`` does not, and both report a little later.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import txaio
from autobahn.twisted.websocket import WrappingWebSocketClientFactory
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.handshake import Handshake
from kollator.cluster.link import Reason
from kollator.cluster.links import Links
from kollator.cluster.wire import NONCE_BYTES, BadFrame, Opening, decode, decode_opening, encode
from kollator.cluster.wire import Frame as FrameType
from kollator.cluster.worker_sync import WorkerSyncClientFactory, WorkerSyncFactory
from kollator.settings import Peer

KEY = b"the key of the cluster"
PAUSED_BYTES = 65_536
URL = "ws://front.example:8080/worker-sync"
_FIN = object()
_RST = object()


class MemoryTransport:
    """One end of a connection. ``outgoing`` is what the other end has not received."""

    other: MemoryTransport
    protocol: Any = None

    def __init__(self, clock: Clock, host: str, peer_host: str) -> None:
        self.clock = clock
        self.host = host
        self.peer_host = peer_host
        self.outgoing: deque[Any] = deque()
        self.writes: list[bytes] = []
        self.producer: Any = None
        self.paused = False
        self.connected = True
        self.disconnecting = False
        self.deaf = False
        """Its process reads nothing."""
        self.black_hole = False
        """What it sends is lost."""

    @property
    def waiting_bytes(self) -> int:
        """What was written and has not arrived."""
        return sum(len(item) for item in self.outgoing if isinstance(item, bytes))

    # ITransport, IConsumer

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        if self.connected and not self.disconnecting and data:
            self.outgoing.append(data)
            self.writes.append(data)
            if self.producer is not None and self.waiting_bytes > PAUSED_BYTES:
                self.paused = True
                self.producer.pauseProducing()

    def writeSequence(self, pieces: Sequence[bytes]) -> None:
        self.write(b"".join(pieces))

    def pauseProducing(self) -> None:
        self.deaf = True

    def resumeProducing(self) -> None:
        self.deaf = False

    def loseConnection(self) -> None:
        assert self.producer is None, "a transport with a producer does not close"
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.outgoing.append(_FIN)

    def abortConnection(self) -> None:
        if self.connected:
            self.disconnecting = True
            self.outgoing.clear()
            self.outgoing.append(_RST)
            self.clock.callLater(0, self.lost, ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.peer_host, 40_000)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, 9090)

    # the network

    def deliver(self) -> None:
        """Lets the next piece arrive."""
        item = self.outgoing.popleft()
        if isinstance(item, bytes):
            if not self.black_hole and self.other.connected and not self.other.disconnecting:
                self.other.protocol.dataReceived(item)
        else:
            if item is _FIN:
                self.lost(ConnectionDone())
            if not self.black_hole:
                self.other.lost(ConnectionDone() if item is _FIN else ConnectionLost())
        if self.paused and self.connected and not self.waiting_bytes:
            self.paused = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def lost(self, error: Exception) -> None:
        """Tells the protocol that the connection is no more."""
        if self.connected:
            self.connected = False
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(Failure(error))


class MemoryEndpoint:
    """The way from one host to another."""

    def __init__(self, net: Net, host: str, target: str) -> None:
        self.net = net
        self.host = host
        self.target = target

    def connect(self, factory: Any) -> Deferred[Any]:
        attempt: list[Any] = []
        connected: Deferred[Any] = Deferred(lambda _: self.net.attempts.remove(attempt))
        attempt[:] = [self, factory, connected]
        self.net.attempts.append(attempt)
        self.net.dialled.append((self.net.clock.seconds(), self.host, self.target))
        return connected


class Front:
    """One front: its links, and everything that they told."""

    def __init__(self, net: Net, node: str, peers: Sequence[str], key: bytes = KEY, stray: bool = False) -> None:
        self.net = net
        self.node = node
        self.host = f"10.0.0.{len(net.everyone) + 1}"
        self.events: list[tuple[Any, ...]] = []
        self.counts: dict[Reason, int] = {}
        self.on_frame: Callable[[str, FrameType], object] = lambda peer, frame: None
        self.nonces = random.Random(f"{node} {net.seed} {len(net.everyone)}")
        self.links = Links(
            node,
            [Peer(peer, f"memory:{peer}") for peer in peers],
            [key],
            reactor=any_clock(net.clock),
            listen=(),
            established=lambda peer: self.events.append(("up", peer)),
            lost=lambda peer: self.events.append(("down", peer)),
            received=self._received,
            random_bytes=self.nonces.randbytes,
            uniform=net.chance.uniform,
            count=self._count,
            endpoint_of=lambda reactor, description: MemoryEndpoint(net, self.host, description.partition(":")[2]),
        )
        net.everyone.append(self)
        if not stray:
            net.fronts[node] = self
        self.listener: Any = self.links.acceptor
        if net.websocket:
            self.listener = WorkerSyncFactory(self.links.acceptor, net.clock)

    def _received(self, peer: str, frame: FrameType) -> None:
        self.events.append(("frame", peer, frame))
        self.on_frame(peer, frame)

    def _count(self, reason: Reason) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def start(self) -> Front:
        """Starts its links."""
        self.links.startService()
        return self

    def ups(self) -> list[str]:
        """The order in which links came and went, in short."""
        return [f"{kind} {rest[0]}" for kind, *rest in self.events if kind != "frame"]

    def frames(self) -> list[FrameType]:
        """The frames that came, but for the keep-alive."""
        return [event[2] for event in self.events if event[0] == "frame" and type(event[2]).__name__[1:] != "ing"
                and type(event[2]).__name__ != "Pong"]

    def transport(self, peer: str) -> MemoryTransport:
        """The transport of the link to ``peer``."""
        found: Any = self.links._up[peer].transport
        return found.transport if self.net.websocket else found


class Stranger(Protocol):
    """Whoever dials a front: says what the test wants, and notes what comes."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.is_closed = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.is_closed = True

    def say(self, *frames: Opening | FrameType) -> None:
        """Sends frames."""
        self.transport.write(b"".join(framed(encode(frame)) for frame in frames))

    def heard(self) -> list[Any]:
        """The frames that came."""
        frames: list[Any] = []
        rest = self.received
        while rest:
            size = int.from_bytes(rest[:4])
            payload, rest = rest[4 : 4 + size], rest[4 + size :]
            try:
                frames.append(decode_opening(payload))
            except BadFrame:
                frames.append(decode(payload))
        return frames


def any_clock(clock: Clock) -> Any:
    """The same: mypy finds that it is no ``kollator.clock.Clock`` for the name of an argument."""
    return clock


def framed(payload: bytes) -> bytes:
    """A frame as it travels."""
    return len(payload).to_bytes(4) + payload


def _life(link: Any) -> tuple[Any, ...]:
    return link.dialled, link.serial, link.end, link.established_at, link.answered


class Net:
    """Fronts, the connections between them, and the clock of all."""

    def __init__(self, *, websocket: bool = False, seed: int = 0) -> None:
        self.clock = Clock()
        self.websocket = websocket
        self.seed = seed
        self.chance = random.Random(seed)
        self.fronts: dict[str, Front] = {}
        self.everyone: list[Front] = []
        self.attempts: list[Any] = []
        self.dialled: list[tuple[float, str, str]] = []
        self.transports: list[MemoryTransport] = []
        self.unreachable: set[str] = set()
        self.held: set[str] = set()
        """Connecting to these takes for ever."""
        self.faults: list[Callable[[Net], list[Callable[[], object]]]] = []
        """Misfortunes that may still happen, each once: functions that give the forms that it may take now."""

    def front(self, node: str, *peers: str, **how: Any) -> Front:
        """A new front, not started. A second one of the same name takes the first one's place."""
        return Front(self, node, peers, **how)

    # what may happen next

    def choices(self) -> list[Callable[[], object]]:
        """Everything that may happen now."""
        connects = [
            (lambda attempt=attempt: self._connect(attempt))
            for attempt in self.attempts
            if attempt[0].target not in self.held
        ]
        self.transports = [end for end in self.transports if end.connected or end.outgoing]
        arrivals = [
            end.deliver
            for end in self.transports
            if end.outgoing and (not end.other.deaf or end.outgoing[0] is _RST)
        ]
        misfortunes = [
            (lambda fault=fault, form=form: self._go_wrong(fault, form))
            for fault in self.faults
            for form in fault(self)
        ]
        return [*connects, *arrivals, *misfortunes]

    def _go_wrong(self, fault: Any, form: Callable[[], object]) -> None:
        self.faults.remove(fault)
        form()

    def step(self, choice: int) -> None:
        """Lets one of them happen, and what it brings about at once."""
        self.choices()[choice]()
        self.clock.advance(0)

    def settle(self) -> None:
        """Lets everything happen that may, in the order of the seed; no time passes."""
        self.clock.advance(0)
        for _ in range(100_000):
            count = len(self.choices())
            if not count:
                return
            self.step(self.chance.randrange(count))
        raise AssertionError("the network does not come to rest")

    def run(self, seconds: float, step_s: float = 0.05) -> None:
        """Lets time pass, and everything happen in it."""
        self.settle()
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            self.settle()

    def state(self) -> Any:
        """All that decides about what can follow, and what was told so far."""
        ends = sorted(
            (end.host, end.peer_host, end.connected, end.disconnecting, end.black_hole, *map(str, _life(end.protocol)),
             *(len(item) if isinstance(item, bytes) else str(item) for item in end.outgoing))
            for end in self.transports
        )  # fmt: skip
        attempts = sorted((attempt[0].host, attempt[0].target) for attempt in self.attempts)
        told = [(front.node, *front.ups()) for front in self.everyone]
        return repr((ends, attempts, told, len(self.faults)))

    # connections

    def _connect(self, attempt: list[Any]) -> None:
        endpoint, factory, connected = attempt
        self.attempts.remove(attempt)
        front = self.fronts.get(endpoint.target)
        if front is None or endpoint.target in self.unreachable or not front.links.running:
            connected.errback(ConnectionRefusedError())
            return
        if self.websocket:
            factory = WorkerSyncClientFactory(factory, URL, self.clock)
        protocol = self.join(factory, front, endpoint.host)
        connected.callback(protocol)

    def join(self, factory: Any, front: Front, host: str = "10.0.9.9") -> Any:
        """Connects a client to a front; returns the client's protocol."""
        ends = [MemoryTransport(self.clock, host, front.host), MemoryTransport(self.clock, front.host, host)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        protocol = factory.buildProtocol(ends[0].getPeer())
        served = front.listener.buildProtocol(ends[1].getPeer())
        ends[0].protocol, ends[1].protocol = protocol, served
        self.transports += ends
        protocol.makeConnection(ends[0])
        served.makeConnection(ends[1])
        return protocol

    def stranger(self, front: Front, host: str = "10.0.9.9") -> Stranger:
        """Somebody connects to a front: over a WebSocket by Autobahn's own wrapping."""
        factory: Any = Factory.forProtocol(Stranger)
        if self.websocket:
            factory = WrappingWebSocketClientFactory(factory, URL, reactor=self.clock, enableCompression=False)
            factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0, serverConnectionDropTimeout=0)
        protocol = self.join(factory, front, host)
        self.settle()
        stranger: Stranger = protocol._proto if self.websocket else protocol
        return stranger

    def noise(self, front: Front, data: bytes) -> None:
        """Somebody connects and says something."""
        stranger = self.stranger(front)
        if not stranger.is_closed:
            stranger.transport.write(data)
        self.settle()

    def impostor(self, front: Front, node: str, host: str = "10.0.9.9") -> Stranger:
        """A stranger that knows the key: the link is established when this returns."""
        stranger = self.stranger(front, host)
        opening = Handshake(node, [KEY], {node, front.node}, self.chance.randbytes(NONCE_BYTES), front.node)
        stranger.say(*opening.start())
        self.settle()
        stranger.say(*opening.receive(stranger.received[4:]))
        stranger.received = b""
        self.settle()
        opening.receive(stranger.received[4:])
        assert opening.peer == front.node
        stranger.received = b""
        return stranger

    def pairs(self) -> set[tuple[str, str]]:
        """Every (front, peer) that is up."""
        return {(front.node, peer) for front in self.fronts.values() for peer in front.links.up()}

    def same_connection(self, one: Front, other: Front) -> bool:
        """Whether both ends of the pair's link are of one connection."""
        return one.transport(other.node).other is other.transport(one.node)


def explore(build: Callable[[], Net], limit: int) -> Iterator[Net]:
    """Every way in which a network can come to rest. What leads to a state that was met already is not followed.

    Raises ``AssertionError`` when there are more than ``limit``.
    """
    met: set[Any] = set()
    prefix: list[int] = []
    for _ in range(limit):
        net = build()
        trace: list[tuple[int, int]] = []
        net.clock.advance(0)
        new = True
        while new and (count := len(net.choices())):
            choice = prefix[len(trace)] if len(trace) < len(prefix) else 0
            trace.append((choice, count))
            net.step(choice)
            if len(trace) >= len(prefix):
                state = net.state()
                new = state not in met
                met.add(state)
        if new:
            yield net
        while trace and trace[-1][0] == trace[-1][1] - 1:
            trace.pop()
        if not trace:
            return
        prefix = [choice for choice, _ in trace]
        prefix[-1] += 1
    raise AssertionError(f"more than {limit} orders")


class NetCase(SynchronousTestCase):
    """Tests over a ``Net``: what is logged, and that nothing is left behind."""

    websocket = False

    def setUp(self) -> None:
        self.net = self.new_net()
        self.logged: list[dict[str, Any]] = []
        note: Any = self.logged.append
        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)

    def new_net(self, seed: int = 0) -> Net:
        """A network whose clock is Autobahn's too."""
        net = Net(websocket=self.websocket, seed=seed)
        config: Any = txaio
        self.patch(config.config, "loop", net.clock)
        return net

    def lines(self) -> list[str]:
        """What was logged by the cluster, but for debug events."""
        return [
            event["log_format"].format(**event)
            for event in self.logged
            if event["log_namespace"] == "kollator:cluster" and event["log_level"].name != "debug"
        ]

    def linked(self) -> tuple[Front, Front]:
        """Two fronts with a link between them, which the first one dialled."""
        one, other = self.net.front("a", "b").start(), self.net.front("b", "a").start()
        self.net.run(0.2)
        self.assertEqual(self.net.pairs(), {("a", "b"), ("b", "a")})
        return one, other

    def stop(self, net: Net | None = None) -> None:
        """Stops all fronts; nothing may be left then, and nothing may have gone unhandled."""
        net = net or self.net
        ends = [front.links.stopService() for front in net.everyone if front.links.running]
        net.held.clear()
        net.run(1.5)
        for end in ends:
            self.successResultOf(end)
        self.assertEqual(net.clock.getDelayedCalls(), [])
        self.assertEqual([end for end in net.transports if end.connected], [])
        self.assertEqual([dict(front.links._all) for front in net.everyone], [{}] * len(net.everyone))
        self.assertEqual(self.flushLoggedErrors(), [])


if TYPE_CHECKING:
    Mixin = NetCase
else:
    Mixin = object
"""What the parts of a ``NetCase`` are that several of them have."""
