"""What a front sets for its process, each in a process of its own, for it cannot be taken back."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from kollator.process import lean_iteration

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

    def __init__(self, read: Callable[[], Any]) -> None:
        self.doRead = read


class EventTests(SynchronousTestCase):
    """What is done with the events of one look at epoll."""

    def look(self, selectables: dict[int, Any], events: list[tuple[int, int]]) -> list[tuple[object, ...]]:
        """Hands on ``events``; returns what the reactor was asked for."""
        asked: list[tuple[object, ...]] = []

        class Reactor:
            class _poller:  # noqa: N801
                poll = staticmethod(lambda timeout, count: events)

            _selectables = selectables
            _doReadOrWrite = staticmethod(lambda selectable, fd, event: asked.append((fd, event)))
            _disconnectSelectable = staticmethod(
                lambda selectable, why, read: asked.append((type(why).__name__, read))
            )

        lean_iteration(Reactor())(None)
        return asked

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
        for event in (select.EPOLLOUT, select.EPOLLIN | select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR):
            self.assertEqual(self.look(selectables, [(1, event)]), [(1, event)])

    def test_mistakes(self) -> None:
        """Without it a mistake in one connection would end the loop for all."""
        def fails() -> None:
            raise ZeroDivisionError

        selectables = {1: Selectable(fails), 2: Selectable(lambda: None)}
        asked = self.look(selectables, [(1, select.EPOLLIN), (2, select.EPOLLIN)])
        self.assertEqual(asked, [("ZeroDivisionError", False)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


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
