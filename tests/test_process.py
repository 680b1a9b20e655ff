"""What a front sets for its process, each in a process of its own, for it cannot be taken back."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from kollator.process import ENDINGS, EVENTS, lean_iteration

LIMIT_S = 120


def run(code: str) -> str:
    """What a new Python process prints that runs ``code``."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TuneTests(SynchronousTestCase):
    """``tune``, and what it calls."""

    def test_garbage_collector(self) -> None:
        """Without it the collector would look at every connection's objects again and again."""
        found = run(
            "import gc\nfrom kollator.process import THRESHOLDS, tune\n"
            "tune(1)\nprint(gc.get_freeze_count() > 10_000, gc.get_threshold() == THRESHOLDS, gc.isenabled())"
        )
        self.assertEqual(found, "True True True")

    def test_open_files(self) -> None:
        """Without it a front would refuse clients at 1024 connections under the usual soft limit."""
        found = run(
            "import resource\nfrom kollator.process import raise_open_files\n"
            "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
            "print(raise_open_files() >= hard, resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard)"
        )
        self.assertEqual(found, "True True")

    def test_too_few_open_files(self) -> None:
        """Without it an operator would learn of the limit when clients are refused."""
        found = run(
            "import resource\nfrom twisted.logger import globalLogPublisher\nfrom kollator.process import tune\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))\n"
            "said = []\nglobalLogPublisher.addObserver(said.append)\n"
            "tune(20)\nprint(len(said))\ntune(20_000)\nprint(said[-1]['connections'], said[-1]['files'])"
        )
        self.assertEqual(found.split(), ["0", "20000", "300"])

    def test_nothing_compiled(self) -> None:
        """Without it nobody would learn why a front is slower than others, or that it works all the same."""
        found = run(
            "import sys\nsys.modules['kollator._speedups'] = None\nfrom twisted.internet import reactor\n"
            "from twisted.logger import globalLogPublisher\nfrom kollator.process import tune\n"
            "from kollator.signaling import frames\nsaid = []\nglobalLogPublisher.addObserver(said.append)\n"
            "tune(20)\nprint(len(said))\ntune(20, reactor)\n"
            "print(sum('compiler' in event['log_format'] for event in said))\n"
            "print(frames.next_text is frames.next_text_in_python)"
        )
        self.assertEqual(found.split(), ["0", "1", "True"])


ECHO = """
import sys
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from kollator.process import dispatch_lean

said = []

class Server(Protocol):
    def dataReceived(self, data):
        if data == b"fail":
            raise ZeroDivisionError
        self.transport.write(data)

    def connectionLost(self, reason):
        said.append("server lost by " + type(reason.value).__name__)

class Client(Protocol):
    def connectionMade(self):
        self.transport.write(FIRST)

    def dataReceived(self, data):
        said.append(data.decode())
        self.transport.loseConnection()

    def connectionLost(self, reason):
        said.append("client lost")
        reactor.callLater(0, reactor.callLater, 0.05, reactor.stop)

def opened(port):
    connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Client())

FIRST = sys.argv[1].encode()
print(dispatch_lean(reactor))
TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Server)).addCallback(opened)
reactor.callLater(60, reactor.stop)
reactor.run()
print(sorted(said))
"""


class Selectable:
    """Something that is read; ``doRead`` does what it was made with."""

    def __init__(self, read: Callable[[], Any], descriptor: int = 0) -> None:
        self.doRead = read
        self.descriptor = descriptor

    def fileno(self) -> int:
        """-1 when it is closed."""
        return self.descriptor


class Reactor:
    """What is asked of an epoll reactor. ``asked`` notes it, ``timeouts`` how long each look at epoll may take."""

    def __init__(self, selectables: dict[int, Any]) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.timeouts: list[float] = []
        self.events: list[tuple[int, int]] = []
        self._poller = self
        self._selectables = selectables
        self._disconnectSelectable: Any = self._disconnect

    def poll(self, timeout: float, count: int) -> list[tuple[int, int]]:
        """The next events."""
        self.timeouts.append(timeout)
        events, self.events = self.events[:count], self.events[count:]
        return events

    def _doReadOrWrite(self, selectable: Any, descriptor: int, event: int) -> None:
        self.asked.append((descriptor, event))
        if event & select.EPOLLHUP:
            self._disconnectSelectable(selectable, ConnectionLost(), False)

    def _disconnect(self, selectable: Any, why: Any, read: bool) -> None:
        self.removeReader(selectable)
        self.asked.append((type(why).__name__, read))
        if selectable.descriptor:
            self.asked.append((selectable.descriptor,))
            selectable.descriptor = -1

    def removeReader(self, selectable: Any) -> None:
        """Its events come no more."""
        for descriptor, found in list(self._selectables.items()):
            if found is selectable:
                del self._selectables[descriptor]

    def removeWriter(self, selectable: Any) -> None:
        """Nor these."""


class EventTests(SynchronousTestCase):
    """What is done with the events of one look at epoll."""

    def look(self, selectables: dict[int, Any], events: list[tuple[int, int]]) -> list[tuple[object, ...]]:
        """Hands on ``events``; returns what the reactor was asked for."""
        reactor = Reactor(selectables)
        reactor.events = events
        lean_iteration(reactor)(None)
        return reactor.asked

    def test_closed_by_an_earlier_event(self) -> None:
        """Without it an event of a connection that was just closed would raise, and those behind it be lost."""
        selectables: dict[int, Any] = {}
        selectables[1] = Selectable(lambda: selectables.pop(2) and None)
        selectables[2] = Selectable(lambda: self.fail("it is closed"))
        selectables[3] = Selectable(lambda: ConnectionDone())
        events = [(1, select.EPOLLIN), (2, select.EPOLLIN), (3, select.EPOLLIN)]
        self.assertEqual(self.look(selectables, events), [("ConnectionDone", True)])

    def test_other_events(self) -> None:
        """Without it writing, and ends without anything to read, would be taken for something to read."""
        selectables = {1: Selectable(lambda: self.fail("nothing to read"))}
        for event in (select.EPOLLOUT, select.EPOLLIN | select.EPOLLOUT, select.EPOLLPRI, select.EPOLLERR):
            self.assertEqual(self.look(selectables, [(1, event)]), [(1, event)])

    def test_mistakes(self) -> None:
        """Without it a mistake in one connection would end the loop for all."""
        def fails() -> None:
            raise ZeroDivisionError

        selectables = {1: Selectable(fails), 2: Selectable(lambda: None)}
        asked = self.look(selectables, [(1, select.EPOLLIN), (2, select.EPOLLIN)])
        self.assertEqual(asked, [("ZeroDivisionError", False)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class EndingTests(SynchronousTestCase):
    """Many connections end in one moment."""

    def setUp(self) -> None:
        """A thousand of them, and one that has something to say all the time."""
        self.heard = 0
        self.selectables: dict[int, Any] = {
            number: Selectable(ConnectionDone, number) for number in range(1, 1001)
        }
        self.selectables[2000] = Selectable(self.hear)
        self.reactor = Reactor(self.selectables)
        self.iterate = lean_iteration(self.reactor)

    def hear(self) -> None:
        """It has said something."""
        self.heard += 1

    def turn(self, timeout: float | None = 5.0) -> list[int]:
        """One turn; returns who was told of the end."""
        self.reactor.asked.clear()
        self.iterate(timeout)
        return [asked[0] for asked in self.reactor.asked if len(asked) == 1 and isinstance(asked[0], int)]

    def test_some_a_turn(self) -> None:
        """When a network breaks all others would wait until a thousand connections are cleared away."""
        self.reactor.events = [(number, select.EPOLLIN) for number in range(1, 1001)]
        told = [self.turn()]
        self.assertEqual(len(self.selectables), 1 + 1000 - EVENTS)  # nobody listens to them any more
        self.reactor.events.append((2000, select.EPOLLIN))
        while self.reactor.events:
            told.append(self.turn())
        self.assertEqual((self.heard, len(told)), (1, 1000 // EVENTS + 1))
        while sum(map(len, told)) < 1000:
            told.append(self.turn())
        self.assertEqual([number for some in told for number in some], list(range(1, 1001)))
        self.assertEqual({len(some) for some in told[:-1]}, {ENDINGS})
        self.assertEqual(self.reactor.timeouts, [5.0] + [0.0] * (len(told) - 2) + [5.0])
        self.assertEqual((self.turn(None), self.reactor.timeouts[-1]), ([], -1.0))

    def test_found_in_any_way(self) -> None:
        """Connections that were reset end by another event than those that were closed."""
        kinds = (select.EPOLLIN, select.EPOLLHUP)
        self.reactor.events = [(number, kinds[number % 2]) for number in range(1, 201)]
        told = self.turn()
        self.assertEqual(len(told), ENDINGS)
        while len(told) < 200:
            some = self.turn()
            self.assertEqual(len(some), min(ENDINGS, 200 - len(told)))
            told += some
        self.assertEqual(told, list(range(1, 201)))

    def test_closed_meanwhile(self) -> None:
        """One that a time-out has closed before its turn came would be closed twice."""
        self.reactor.events = [(number, select.EPOLLIN) for number in range(1, 101)]
        waiting = [self.selectables[number] for number in range(40, 60)]
        told = self.turn()
        for selectable in waiting:
            selectable.descriptor = -1
        while some := self.turn():
            told += some
        self.assertEqual(told, [*range(1, 40), *range(60, 101)])

    def test_told_once(self) -> None:
        """One that is listened to again while it waits, for its buffer has room, is found to have ended again."""
        self.reactor.events = [(number, select.EPOLLIN) for number in range(1, 101)]
        again = self.selectables[90]
        told = self.turn()
        self.selectables[90] = again
        self.reactor.events = [(90, select.EPOLLIN)]
        while some := self.turn():
            told += some
        self.assertEqual(told, list(range(1, 101)))

    def test_mistake(self) -> None:
        """A mistake in one that has waited would end the loop for all, or keep the others waiting."""
        self.reactor.events = [(number, select.EPOLLIN) for number in range(1, 101)]
        broken = self.selectables[50]
        broken.fileno = lambda: 1 // 0
        told = self.turn()
        while some := self.turn():
            told += some
        self.assertEqual((len(told), 50 in told), (99, False))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_come_and_go(self) -> None:
        """Where connections come and go in great number, more would end with each turn than are told, and pile up."""
        told = 0
        half = EVENTS // 2
        for number in range(1, 10 * half, half):
            said = [(2000, select.EPOLLIN)] * half
            self.reactor.events = [*said, *((ended, select.EPOLLIN) for ended in range(number, number + half))]
            told += len(self.turn())
        self.assertGreaterEqual(told, 9 * half)


class DispatchTests(SynchronousTestCase):
    """The lean dispatch under a real reactor."""

    def dispatch(self, first: str) -> list[str]:
        """What is said when a client begins with that."""
        done = subprocess.run(
            [sys.executable, "-c", ECHO, first], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip().splitlines()

    def test_reads_and_closes(self) -> None:
        """Without it what comes, and the end of a connection, would not be told."""
        self.assertEqual(
            self.dispatch("hello"), ["True", "['client lost', 'hello', 'server lost by ConnectionDone']"]
        )

    def test_protocol_that_fails(self) -> None:
        """Without it a mistake in one protocol would end the loop, or leave its connection open for ever."""
        self.assertEqual(
            self.dispatch("fail"), ["True", "['client lost', 'server lost by ZeroDivisionError']"]
        )

    def test_other_reactors(self) -> None:
        """Without it a front under another reactor would not start."""
        found = run(
            "from twisted.internet import selectreactor\nfrom kollator.process import dispatch_lean\n"
            "print(dispatch_lean(selectreactor.SelectReactor()))"
        )
        self.assertEqual(found, "False")
