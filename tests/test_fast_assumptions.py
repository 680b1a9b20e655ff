"""What the fast path relies on in Twisted and Autobahn. With a new version of either, look here first.

A test that fails here says that the library keeps or does something that ``kollator.signaling.fastpath``,
``kollator.net.fasttransport`` or ``kollator.process`` does not know of. Until they do, FAST_PATH=false is the remedy.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import select
import socket
import struct
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol
from twisted.internet import base, posixbase, tcp
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kollator.net import fasttransport
from kollator.net.fasttransport import FastServer
from kollator.signaling.idle import HANDSHAKE
from tests.signaling_bench import CLOSE, HELLO, PING, TEXT, frame
from tests.twins import Twin, handshake

reactor: Any = global_reactor

OTHER_FORMS = {"is_open", "is_closed", "trafficStats", "utf8validator", "send_queue", "_valid_events", "_results",
               "_transport_details", "factory", "peer", "connected", "transport", "origin_permitted", "address",
               "perMessageCompressionAccept", "current_frame_masker"}
"""Attributes that the fast path has in another form: made when they are needed, or the class's."""


class AutobahnTests(SynchronousTestCase):
    """Autobahn's protocol."""

    def setUp(self) -> None:
        """One connection of each kind."""
        self.plain, self.fast = Twin(False), Twin(True)
        self.sockets = (self.plain.connect(), self.fast.connect())

    def give(self, data: bytes) -> None:
        """To both."""
        for bench, socket_ in zip((self.plain, self.fast), self.sockets, strict=True):
            bench.give(socket_, data)

    def known(self) -> None:
        """Everything that is on the plain connection is known, and has the value that the fast one's class has."""
        plain, fast = (socket_.protocol for socket_ in self.sockets)
        handshake_names = set(HANDSHAKE)
        for name, value in vars(plain).items():
            if name in OTHER_FORMS or name in handshake_names:
                continue
            self.assertTrue(hasattr(fast, name), f"Autobahn keeps {name}, which the fast path does not know of")
            self.assertEqual(getattr(fast, name), value, name)

    def test_open_connection(self) -> None:
        """Without it Autobahn could rely on an attribute that a connection on the fast path does not have."""
        self.give(handshake())
        self.known()
        self.give(frame(TEXT, HELLO))

    def test_what_a_handshake_leaves(self) -> None:
        """Without it the memory of handshakes could grow unseen, one new attribute for each connection."""
        before = set(vars(self.fast.connect(through_the_door=False).protocol))
        socket_ = self.fast.connect(through_the_door=False)
        self.fast.give(socket_, handshake(Connection="Upgrade, x"))
        left = set(vars(socket_.protocol)) - {"origin_permitted"} - before
        self.assertEqual(left, set(), "Autobahn keeps more of a handshake: name it in idle.HANDSHAKE")

    def test_what_the_parser_leaves(self) -> None:
        """Without it a connection that was on the slow path once would keep its state, or take the wrong one up."""
        self.give(handshake())
        fast = self.sockets[1].protocol
        before = set(vars(fast))
        for data in (frame(TEXT, HELLO[:9], fin=False), frame(PING, b"x"), frame(0, HELLO[9:])):
            self.give(data)
        self.assertEqual(set(vars(fast)) - before, set(), "Autobahn's parser keeps more: name it in idle.PARSER")
        kept = set(vars(self.sockets[0].protocol))
        self.give(frame(TEXT, b"", fin=False))
        self.assertLessEqual(set(vars(self.sockets[0].protocol)) - kept, set())
        for name in ("current_frame", "inside_message"):
            self.assertIn(name, kept)

    def test_closing(self) -> None:
        """Without it closing might touch what is not there."""
        self.give(handshake())
        self.give(frame(CLOSE, struct.pack("!H", 1000) + "not plain, \u00fc".encode()))
        self.known()

    def test_ends(self) -> None:
        """Without it a lost connection would be counted for ever, or be told twice."""
        self.give(handshake())
        for bench, socket_ in zip((self.plain, self.fast), self.sockets, strict=True):
            self.assertEqual(bench.factory.countConnections, 1)
            socket_.connectionLost(Failure(ConnectionLost()))
            self.assertEqual(bench.factory.countConnections, 0)
            self.assertEqual(socket_.protocol.state, socket_.protocol.STATE_CLOSED)

    def test_what_the_end_sees_to(self) -> None:
        """Without it a new Autobahn might do more at a connection's end than the fast path does in its place."""
        for call, names in (
            (WebSocketServerProtocol._connectionLost, {"_connectionLost", "factory", "log", "peer"}),
            (WebSocketProtocol._connectionLost, {
                "_onClose", "autoPingPendingCall", "autoPingTimeoutCall", "droppedByMe", "factory", "is_closed", "log",
                "openHandshakeTimeoutCall", "remoteCloseCode", "remoteCloseReason", "serverConnectionDropTimeoutCall",
                "state", "wasClean", "wasNotCleanReason", "wasServingFlashSocketPolicyFile",
                "fire",  # in a comment
            }),
            (WebSocketProtocol.dropConnection, {
                "_closeConnection", "droppedByMe", "is_closed", "log", "peer", "state", "unregisterProducer",
                "wasClean", "wasNotCleanReason",
            }),
            (WebSocketProtocol.sendCloseFrame, {
                "closeHandshakeTimeout", "closeHandshakeTimeoutCall", "closedByMe", "factory", "localCloseCode",
                "localCloseReason", "log", "onCloseHandshakeTimeout", "sendFrame", "state",
            }),
        ):
            self.assertEqual(set(re.findall(r"self\.(\w+)", inspect.getsource(call))), names, call.__qualname__)
        self.assertEqual(self.fast.factory.autoPingInterval, 0)

    def test_futures(self) -> None:
        """Without it Autobahn could wait for one of its own futures, which nobody keeps here."""
        source = inspect.getsource(WebSocketProtocol) + inspect.getsource(WebSocketServerProtocol)
        for line in source.splitlines():
            if "self.is_open" in line or "self.is_closed" in line:
                self.assertRegex(line, r"txaio\.(resolve\(self\.is_|create_future\(\))")
        self.assertIsInstance(self.fast.factory.protocol().is_open, Deferred)

    def test_statistics_are_for_nobody(self) -> None:
        """Without it the one set of counters that all connections share could come to mean something."""
        self.assertEqual(inspect.signature(TrafficStats).parameters, {})
        for kind in WebSocketServerProtocol.__mro__[:-1]:
            self.assertNotIn("if self.trafficStats", inspect.getsource(kind), kind)

    def test_options(self) -> None:
        """Without it an option of Autobahn's could be set for the plain path only."""
        plain, fast = self.sockets[0].protocol, self.fast.factory.protocol()
        self.give(handshake())
        plain = self.sockets[0].protocol
        for name in WebSocketServerProtocol.CONFIG_ATTRS:
            if name != "perMessageCompressionAccept":
                self.assertEqual(getattr(fast, name), getattr(plain, name), name)
        self.assertIsNone(fast.perMessageCompressionAccept([]))
        self.assertEqual(fast.maskServerFrames, False)


class ServerTests(SynchronousTestCase):
    """Twisted's transport."""

    def make(self, kind: Any) -> Any:
        """A connection of that kind, that is never turned."""
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        self.addCleanup(theirs.close)

        class Nothing:
            def addReader(self, reader: object) -> None: ...
            removeReader = addWriter = removeWriter = addReader

            def callLater(self, delay: float, call: Any, *args: Any) -> None: ...

        class Port:
            _realPortNumber = 1

        made = kind(ours, Protocol(), ("192.0.2.1", 5), Port(), 7, Nothing())
        self.addCleanup(ours.close)
        return made, theirs

    def test_attributes(self) -> None:
        """Without it Twisted could rely on an attribute that the fast transport does not have."""
        plain, _ = self.make(tcp.Server)
        fast, _ = self.make(FastServer)
        for name, value in vars(plain).items():
            if name in ("server", "sessionno"):  # for the texts, which are made when they are asked for
                continue
            self.assertTrue(hasattr(fast, name), f"Twisted keeps {name}, which the fast transport does not know of")
            if isinstance(value, int | str | tuple) and name not in ("logstr", "repstr"):
                self.assertEqual(getattr(fast, name), value, name)
        self.assertEqual(vars(fast), {}, "an idle connection keeps more")

    def test_buffers(self) -> None:
        """Without it what waits could be kept elsewhere by a new Twisted, and be overtaken by what is sent at once."""
        plain, _ = self.make(tcp.Server)
        plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        before = {name: value for name, value in vars(plain).items() if name not in fasttransport._BUFFERS}
        for _ in range(3):
            plain.write(b"x" * 300_000)
            plain.doWrite()
        after = {name: value for name, value in vars(plain).items() if name not in fasttransport._BUFFERS}
        self.assertEqual(after, before)
        self.assertGreater(len(plain.dataBuffer) - plain.offset + plain._tempDataLen, 0)

    def test_order(self) -> None:
        """Without it a message could overtake one that waits."""
        fast, theirs = self.make(FastServer)
        fast.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        theirs.setblocking(False)
        blocks = [bytes([number]) * 7001 for number in range(60)]
        got = b""
        for number, block in enumerate(blocks):
            fast.write(block)
            if number % 7 == 3 and (fast.dataBuffer or fast._tempDataLen):
                fast.doWrite()
            with contextlib.suppress(BlockingIOError):
                got += theirs.recv(9000) if number % 3 == 2 else b""
        for _ in range(1000):
            if fast.dataBuffer or fast._tempDataLen:
                fast.doWrite()
            try:
                got += theirs.recv(1 << 20)
            except BlockingIOError:
                break
        self.assertEqual(got, b"".join(blocks))
        self.assertEqual(vars(fast), {})

    def test_tls_begins(self) -> None:
        """Without it what is written after ``startTLS`` could go out as it is, by the short way to the socket."""
        began: list[object] = []
        self.patch(tcp.Server, "startTLS", lambda self, context, normal: began.append((context, normal)))
        fast, theirs = self.make(FastServer)
        theirs.setblocking(False)
        fast.write(b"before")
        fast.startTLS("context")
        fast.write(b"secret")
        self.assertEqual((began, theirs.recv(100)), ([("context", True)], b"before"))
        with self.assertRaises(BlockingIOError):
            theirs.recv(100)

    def test_how_it_is_made_and_ends(self) -> None:
        """Without it a new Twisted could make or end its transports in another way."""
        self.assertEqual(
            list(inspect.signature(tcp.Server.__init__).parameters),
            ["self", "sock", "protocol", "client", "server", "sessionno", "reactor"],
        )
        self.assertIs(tcp.Port.transport, tcp.Server)
        self.assertEqual(tcp.Port.backlog, fasttransport.TWISTED_BACKLOG)
        names = set(tcp.Connection.connectionLost.__code__.co_names)
        self.assertEqual(names, {
            "hasattr", "abstract", "FileDescriptor", "connectionLost", "_closeSocket", "check", "error",
            "ConnectionAborted", "protocol", "socket", "fileno",
        }, "FastServer.connectionLost repeats this method")


class ReactorTests(SynchronousTestCase):
    """Twisted's epoll reactor."""

    def test_parts(self) -> None:
        """Without it the lean dispatch could miss events of a new Twisted."""
        made: Any = EPollReactor()
        self.addCleanup(made._poller.close)
        self.assertIsInstance(made._selectables, dict)
        self.assertEqual((made._POLL_IN, EPollReactor.doIteration), (select.EPOLLIN, EPollReactor.doPoll))
        self.assertEqual(set(EPollReactor.doPoll.__code__.co_names), {
            "_poller", "poll", "len", "_selectables", "OSError", "errno", "EINTR", "_doReadOrWrite", "KeyError",
            "log", "callWithLogger",
        }, "kollator.process.lean_iteration repeats this method")
        self.assertIn("doIteration", base.ReactorBase.mainLoop.__code__.co_names)
        self.assertEqual(
            list(inspect.signature(posixbase._DisconnectSelectableMixin._disconnectSelectable).parameters)[:4],
            ["self", "selectable", "why", "isRead"],
        )
