"""What the fast transport gathers while the reactor hands on events: nothing is late, lost or out of order."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from kollator.net import fasttransport
from kollator.net.fasttransport import GATHERED_BYTES, GATHERING, FastServer, turn
from kollator.process import lean_iteration
from kollator.signaling.backlogs import UNSEEN_BYTES


class OtherBytes(bytes):
    """Bytes that the fast transport leaves to Twisted."""


class Socket:
    """A socket that takes ``room`` bytes; ``sent`` has what was sent, a piece for each call."""

    def __init__(self, sent: list[tuple[int, bytes]], number: int) -> None:
        self._sent = sent
        self._number = number
        self.room = 1 << 30

    def setblocking(self, blocking: bool) -> None: ...

    def fileno(self) -> int:
        return self._number

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self._sent.append((self._number, taken))
        return len(taken)


class Reactor:
    """Notes who wants to write."""

    def __init__(self) -> None:
        self.writers: list[Any] = []
        self.calls: list[Any] = []

    def addReader(self, reader: object) -> None: ...

    removeReader = removeWriter = addReader

    def addWriter(self, writer: object) -> None:
        self.writers.append(writer)

    def callLater(self, delay: float, call: Any, *args: Any) -> None:
        self.calls.append((call, args))


class GatheringTests(SynchronousTestCase):
    """Connections on sockets in memory."""

    def setUp(self) -> None:
        """No turn runs."""
        self.assertFalse(turn.running or turn.waiting)
        self.addCleanup(self.assertEqual, turn.waiting, {})
        self.addCleanup(setattr, turn, "running", False)
        self.sent: list[tuple[int, bytes]] = []
        self.reactor = Reactor()
        self.sockets: dict[int, Socket] = {}
        send = fasttransport._send
        self.patch(
            fasttransport, "_send",
            lambda number, data: self.sockets[number].send(data) if self.sockets else send(number, data),
        )

    def make(self, number: int = 1) -> Any:
        """A connection."""
        self.sockets[number] = Socket(self.sent, number)
        made: Any = FastServer(
            self.sockets[number], Protocol(), ("192.0.2.1", 5), None, 7, self.reactor  # type: ignore[arg-type]
        )
        return made

    def test_one_piece(self) -> None:
        """Without it each of many messages to one worker would cost a system call."""
        connection = self.make()
        connection.write(b"before")
        turn.running = True
        for word in (b"a", b"", b"b"):
            connection.write(word)
        connection.writeSequence([b"c", b"d"])
        self.assertEqual(self.sent, [(1, b"before")])
        turn.end()
        connection.write(b"after")
        self.assertEqual(self.sent, [(1, b"before"), (1, b"abcd"), (1, b"after")])

    def test_bounds(self) -> None:
        """Without it a turn could gather any amount, more than may wait unseen, and hold up the first for long."""
        self.assertLessEqual(GATHERED_BYTES, UNSEEN_BYTES)
        turn.running = True
        one = self.make(0)
        one.write(b"x")
        one.write(b"y" * (GATHERED_BYTES - 2))
        self.assertEqual(self.sent, [])
        one.write(b"z")
        whole = b"x" + b"y" * (GATHERED_BYTES - 2) + b"z"
        self.assertEqual(self.sent, [(0, whole)])
        one.write(whole * 2)
        self.assertEqual(self.sent, [(0, whole), (0, whole * 2)])
        self.sent.clear()
        connections = [self.make(number) for number in range(GATHERING)]
        for connection in connections[:-1]:
            connection.write(b"a")
            connection.write(b"b")
        self.assertEqual(self.sent, [])
        connections[-1].write(b"a")
        last = GATHERING - 1
        self.assertEqual(self.sent, [*((number, b"ab") for number in range(last)), (last, b"a")])
        connections[0].write(b"c")
        turn.end()
        self.assertEqual(self.sent[GATHERING:], [(0, b"c")])

    def test_ends(self) -> None:
        """Without it the last message before the end of a connection would be lost, or come after it."""
        ends: list[Callable[[Any], object]] = [
            lambda connection: connection.loseConnection(),
            lambda connection: connection.loseWriteConnection(),
            lambda connection: connection.abortConnection(),
            lambda connection: connection.connectionLost(Failure(ConnectionDone())),
            lambda connection: connection.connectionLost(Failure(ConnectionLost())),
        ]
        for number, end in enumerate(ends):
            turn.running = True
            connection = self.make(number)
            connection.write(b"last")
            end(connection)
            self.assertEqual(self.sent, [(number, b"last")])
            self.sent.clear()
            turn.end()
            self.assertEqual(self.sent, [])

    def test_closed_at_the_end_of_the_turn(self) -> None:
        """Without it a closed connection would wait for a timer, or go before its last words."""
        first, second, broken = self.make(1), self.make(2), self.make(3)
        broken.protocol.connectionLost = lambda reason: 1 // 0
        turn.running = True
        for connection in (broken, first, second):
            connection.write(b"last")
            self.assertTrue(connection.close_empty())
            self.assertFalse(connection.close_empty(), "it closes already")
        self.assertTrue(first.connected and second.connected)
        second.abortConnection()
        turn.end()
        self.assertEqual(self.sent, [(3, b"last"), (1, b"last"), (2, b"last")])
        self.assertEqual([one.connected or one.fileno() for one in (first, second, broken)], [-1, -1, -1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(turn.closing, [])
        turn.end()

    def test_closed_at_any_other_time(self) -> None:
        """Without it a connection would be lost while its protocol is at work."""
        connection = self.make()
        self.assertTrue(connection.close_empty())
        self.assertTrue(connection.connected)
        ((call, arguments),) = self.reactor.calls
        call(*arguments)
        self.assertFalse(connection.connected)

    def test_after_the_end(self) -> None:
        """Without it what is written to a connection that is gone would stay there, or raise."""
        turn.running = True
        for end in ("connectionLost", "abortConnection"):
            connection = self.make()
            getattr(connection, end)(*([Failure(ConnectionDone())] if end == "connectionLost" else []))
            connection.write(b"late")
            self.assertEqual(turn.waiting, {})
        turn.end()
        self.assertEqual(self.sent, [])

    def test_full_socket(self) -> None:
        """Without it what the socket does not take at the end of a turn would be lost, or overtaken."""
        connection = self.make()
        turn.running = True
        connection.write(b"abc")
        connection.socket.room = 2
        turn.end()
        self.assertEqual(self.sent, [(1, b"ab")])
        self.assertEqual(self.reactor.writers, [connection])
        connection.socket.room = 100
        turn.running = True
        connection.write(b"de")
        turn.end()
        connection.doWrite()
        self.assertEqual(self.sent, [(1, b"ab"), (1, b"cde")])

    def test_other_bytes(self) -> None:
        """Without it what Twisted's own write takes would overtake what was gathered."""
        connection = self.make()
        turn.running = True
        connection.write(b"first")
        connection.write(OtherBytes(b"second"))
        turn.end()
        self.assertEqual(self.sent, [(1, b"first")])
        connection.doWrite()
        self.assertEqual(self.sent, [(1, b"first"), (1, b"second")])

    def test_one_that_fails(self) -> None:
        """Without it a mistake in one connection would keep what is for the others, for ever."""
        class Producer:
            def __init__(self, others: list[Any]) -> None:
                self.others = others

            def pauseProducing(self) -> None:
                for other in self.others:
                    other.write(b"!")
                raise ZeroDivisionError

        connections = [self.make(number) for number in range(3)]
        connections[1].bufferSize = 0
        connections[1].socket.room = 0
        connections[1].registerProducer(Producer(connections[::2]), True)
        turn.running = True
        for connection in connections:
            connection.write(b"a")
        turn.end()
        self.assertEqual(self.sent, [(0, b"a"), (2, b"a!"), (0, b"!")])
        self.assertFalse(turn.running)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def iterate(self, read: Callable[[], object]) -> None:
        """One look at epoll, with one event: ``read`` is what is done with it."""
        class Selectable:
            doRead = staticmethod(read)

        class Epoll(Reactor):
            class _poller:  # noqa: N801
                poll = staticmethod(lambda timeout, count: [(5, select.EPOLLIN)])

            _selectables = {5: Selectable()}  # noqa: RUF012
            _doReadOrWrite = None

            def _disconnectSelectable(self, *args: object) -> None:
                raise ZeroDivisionError

        lean_iteration(Epoll())(0)

    def test_dispatch(self) -> None:
        """Without it nothing would be gathered, or what was written at other times would wait for the next event."""
        connection = self.make()

        def read() -> None:
            connection.write(b"a")
            connection.write(b"b")
            self.assertEqual(self.sent, [])

        self.iterate(read)
        self.assertEqual(self.sent, [(1, b"ab")])
        connection.write(b"c")
        self.assertEqual(self.sent, [(1, b"ab"), (1, b"c")])

    def test_dispatch_that_fails(self) -> None:
        """Without it a mistake in the end of a connection would leave what others are sent where it is."""
        connection = self.make()

        def read() -> Any:
            connection.write(b"a")
            return ConnectionDone()

        with self.assertRaises(ZeroDivisionError):
            self.iterate(read)
        self.assertEqual(self.sent, [(1, b"a")])
        self.assertFalse(turn.running)

    @given(st.lists(st.tuples(st.sampled_from("wwwwbtreds"), st.integers(0, 6000)), max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_order(self, steps: list[tuple[str, int]]) -> None:
        """Without it a message could overtake another, be cut, or be sent twice."""
        turn.running = False
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            theirs.setblocking(False)
            connection: Any = FastServer(
                ours, Protocol(), ("192.0.2.1", 5), None, 7, self.reactor  # type: ignore[arg-type]
            )
            wanted, got = b"", b""
            for number, (step, size) in enumerate(steps):
                block = bytes([number]) * size
                if step in "wb":
                    connection.write(block if step == "w" else OtherBytes(block))
                    wanted += block
                elif step == "t":
                    turn.running = True
                elif step == "e":
                    turn.end()
                elif step == "d" and (connection.dataBuffer or connection._tempDataLen):
                    connection.doWrite()
                elif step == "r":
                    with contextlib.suppress(BlockingIOError):
                        got += theirs.recv(5000)
            turn.end()
            while True:
                if connection.dataBuffer or connection._tempDataLen:
                    connection.doWrite()
                try:
                    got += theirs.recv(1 << 20)
                except BlockingIOError:
                    break
            self.assertEqual(got, wanted)
            self.assertEqual(vars(connection), {})
