"""What a peer costs that asks over HTTP and does not read, with Twisted's own write buffer."""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from kollator.web.site import IDLE_S
from tests.fronts import FrontTestCase
from tests.wires import PEER, request

LIVE = request("GET", "/health/live")


class Pipe(FileDescriptor):
    """Twisted's own write buffer over a peer that reads only when it is told to."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.connected = 1
        self.protocol: Any = None
        self.reads = True
        self.aborted = False
        self.takes_bytes = 0
        self.got = 0

    def getPeer(self) -> IPv4Address:
        """A client."""
        return IPv4Address("TCP", PEER, 50000)

    def getHost(self) -> IPv4Address:
        """The front."""
        return IPv4Address("TCP", "192.0.2.1", 8080)

    def writeSomeData(self, data: bytes) -> int:
        """As much as the peer takes."""
        size = min(len(data), self.takes_bytes)
        self.takes_bytes -= size
        self.got += size
        return size

    def startReading(self) -> None:
        """Noted."""
        self.reads = True

    def stopReading(self) -> None:
        """Noted."""
        self.reads = False

    def startWriting(self) -> None:
        """The test writes."""

    def stopWriting(self) -> None:
        """The test writes."""

    def abortConnection(self) -> None:
        """Noted."""
        self.aborted = True
        self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def waiting_bytes(self) -> int:
        """What waits to be read by the peer."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def read(self, size: int) -> None:
        """The peer reads so much."""
        self.takes_bytes += size
        while self.takes_bytes and self.waiting_bytes:
            self.doWrite()
        self.takes_bytes = 0


class BackpressureTests(FrontTestCase):
    """A peer that asks and does not read."""

    def setUp(self) -> None:
        """Connects it."""
        super().setUp()
        self.pipe = Pipe(self.front.clock)
        door: Any = self.front.door
        self.pipe.protocol = door.buildProtocol(self.pipe.getPeer())
        self.pipe.protocol.makeConnection(self.pipe)

    def send(self, data: bytes) -> None:
        """The peer sends, if the front listens."""
        if self.pipe.reads:
            self.pipe.protocol.dataReceived(data)
        self._turn()

    def read(self, size: int) -> None:
        """The peer reads so much."""
        self.pipe.read(size)
        self._turn()

    def _turn(self) -> None:
        self.front.clock.advance(0)  # what was sent ahead has its turns

    def test_answers_wait_for_the_peer(self) -> None:
        """A packet of small requests for large answers must not fill the memory with the answers."""
        asked = 500
        self.send(request("GET", "/static/kollator.js") * asked)
        size = len(self.front.ask("GET", "/static/kollator.js").body)
        self.assertLess(self.pipe.waiting_bytes, 65536 + 2 * size)
        self.assertFalse(self.pipe.reads)
        most = 0
        for _ in range(2 * asked):
            self.read(size)
            most = max(most, self.pipe.waiting_bytes)
        self.assertLess(most, 65536 + 2 * size)
        self.assertEqual(self.pipe.waiting_bytes, 0)
        self.assertGreater(self.pipe.got, asked * size)
        self.assertTrue(self.pipe.reads)
        self.send(LIVE)
        self.assertGreater(self.pipe.waiting_bytes, 0)
        self.pipe.protocol.connectionLost(Failure(ConnectionDone()))

    def test_slow_reader_is_not_a_slow_sender(self) -> None:
        """Requests that wait for the peer to read the answers before them must not count as slow to come."""
        self.send(request("GET", "/static/kollator.js") * 100 + b"GET /hea")
        self.front.advance(30.0)
        self.assertFalse(self.pipe.disconnecting)
        for _ in range(200):
            self.read(100_000)
        self.send(b"lth/live HTTP/1.1\r\n\r\n")
        self.read(100_000)
        self.assertEqual((self.pipe.disconnecting, self.pipe.waiting_bytes), (0, 0))
        self.pipe.protocol.connectionLost(Failure(ConnectionDone()))

    def test_peer_that_never_reads(self) -> None:
        """It is given up on, or its answers would wait for ever."""
        self.send(request("GET", "/static/kollator.js") * 100)
        self.front.advance(IDLE_S)
        self.assertTrue(self.pipe.disconnecting)
        self.assertFalse(self.pipe.aborted)
        self.front.advance(IDLE_S)
        self.assertTrue(self.pipe.aborted)

    def test_last_answer_that_is_never_read(self) -> None:
        """The same after ``Connection: close``, where no more requests are waited for."""
        self.send(request("GET", "/static/kollator.js", {"Connection": "close"}))
        self.assertTrue(self.pipe.disconnecting)
        self.front.advance(IDLE_S)
        self.assertTrue(self.pipe.aborted)
