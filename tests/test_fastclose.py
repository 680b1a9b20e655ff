"""The usual end of a connection on the fast path; that it is told as Autobahn would is held by the twins."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling.fastclose import CLOSED, is_plain_close
from tests.signaling_bench import CLOSE, HELLO, TEXT, frame
from tests.test_fasttransport import TransportTestCase
from tests.twins import TwinTests, handshake

reactor: Any = global_reactor


class CloseFrameTests(SynchronousTestCase):
    """Payloads of close frames."""

    def test_which_are_plain(self) -> None:
        """Without it a broken close frame would be answered as a good one."""
        for code in (1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4000, 4999):
            self.assertTrue(is_plain_close(struct.pack("!H", code) + b"bye"), code)
        self.assertTrue(is_plain_close(b""))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535):
            self.assertFalse(is_plain_close(struct.pack("!H", code)), code)
        for odd in (b"\x03", b"\x03\xe8\xff", "\x03\u00e8".encode("latin-1") + "\u00fc".encode()):
            self.assertFalse(is_plain_close(odd), odd)


class ClosingTests(TwinTests):
    """Connections that end."""

    def test_every_code(self) -> None:
        """Without it a client could be told, counted or forgotten in another way than on the plain path."""
        payloads = [b"", b"\x03", b"\x03\xe8\xff", *(struct.pack("!H", code) for code in range(990, 1020))]
        payloads += [struct.pack("!H", code) + b"bye" for code in (1000, 1001, 2999, 3000, 4000, 4999, 5000)]
        for payload in payloads:
            for exempt in (True, False):
                plain, fast = self.twins(exempt)
                for bench in (plain, fast):
                    connection = bench.connect()
                    bench.give(connection, handshake() + frame(TEXT, HELLO))
                    bench.give(connection, frame(CLOSE, payload) + frame(TEXT, b"too late"))
                self.assert_same(plain, fast, payload)
                self.finish(plain, fast)

    def test_leaves_as_it_says(self) -> None:
        """Without it a worker that stops would be taken for one that was lost, or the other way round."""
        for payload, politely in ((b"", False), (b"\x03\xe8", True), (b"\x03\xe9bye", True), (b"\x0f\xa0", False)):
            _, fast = self.twins()
            connection = fast.connect()
            fast.give(connection, handshake())
            protocol = connection.protocol
            fast.give(connection, frame(CLOSE, payload))
            self.assertEqual(protocol.left_politely, politely, payload)
            self.assertTrue(bytes(connection.out).endswith(CLOSED))
            self.assertFalse(protocol.parsing, "Autobahn was asked")


class TransportClosingTests(TransportTestCase):
    """``close_empty`` on a real socket."""

    @inlineCallbacks
    def test_nothing_waits(self) -> Any:
        """Without it a closed connection would stay open, or its last words be lost."""
        self.transport.write(b"last words")
        self.assertTrue(self.transport.close_empty())
        self.assertFalse(self.transport.close_empty(), "it closes already")
        reason = yield self.protocol.lost
        self.assertEqual(reason, "ConnectionDone")
        self.assertEqual(self.transport.fileno(), -1)
        self.peer.settimeout(10)
        self.assertEqual(self.peer.recv(100) + self.peer.recv(100), b"last words")

    @inlineCallbacks
    def test_something_waits(self) -> Any:
        """Without it what the peer has yet to read would be thrown away."""
        self.transport.write(b"x" * 20_000_000)
        self.assertFalse(self.transport.close_empty())
        self.transport.abortConnection()
        self.assertFalse(self.transport.close_empty(), "it is aborted")
        yield self.protocol.lost

    @inlineCallbacks
    def test_aborted_meanwhile(self) -> Any:
        """Without it a connection would be lost twice."""
        self.assertTrue(self.transport.close_empty())
        self.transport.abortConnection()
        self.transport.loseConnection()
        yield self.protocol.lost

    @inlineCallbacks
    def test_the_peer_is_gone(self) -> Any:
        """Without it a reset between the two turns would raise in the reactor."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        self.assertTrue(self.transport.close_empty())
        yield self.protocol.lost
