"""The supervisor of several fronts, without processes: what each is told, its log, its end; sockets and orders."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from kollator.handed import FIRST_SOCKET, ORDER_BYTES, SOCKETS, Handed, HandedEndpoint, Orders
from kollator.net.sockets import Shared, reserved_ports
from kollator.observe import logs
from kollator.processes import (
    STOP_SLACK_S,
    Debug,
    FrontError,
    FrontProcess,
    Processes,
    check,
    cluster_key,
    plans,
    relay,
)
from kollator.settings import FrontOptions, Settings
from kollator.starting import StartError
from tests.children import Processes as Children

KEY = "0123456789abcdef0123456789abcdef"


def options_of(*words: str) -> FrontOptions:
    """The options as the command line has them."""
    options = FrontOptions()
    options.parseOptions(list(words))
    return options


def settings_of(environ: dict[str, str], *words: str) -> Settings:
    """Settings of a front."""
    return Settings.load(options_of(*words), {"NODE_ID": "n", **environ})


def connects(port: int) -> bool:
    """Whether anybody listens."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


class PlanTests(SynchronousTestCase):
    """What each of the fronts is told."""

    def plans(self, *words: str, count: int = 3, key_file: str | None = "k") -> list[Settings]:
        """The settings of each of the fronts, as it reads them from its command line."""
        Path("k").write_text(KEY)
        Path("k").chmod(0o600)
        told = plans(settings_of({}, *words), options_of(*words), range(9001, 9001 + count), key_file)
        return [Settings.load(options_of(*plan.arguments()), {}) for plan in told]

    def test_names(self) -> None:
        """Without it two fronts would share a name or a file, or a single front's pins be lost by having two."""
        found = self.plans("--database", "./a.b/s.db", "--audit-log", "/var/log/a.jsonl")
        self.assertEqual([one.node_id for one in found], ["n", "n.2", "n.3"])
        self.assertEqual([one.database for one in found], ["./a.b/s.db", "./a.b/s.2.db", "./a.b/s.3.db"])
        self.assertEqual(
            [one.audit_log for one in found], ["/var/log/a.jsonl", "/var/log/a.2.jsonl", "/var/log/a.3.jsonl"]
        )
        self.assertEqual([one.processes for one in found], [1, 1, 1])

    def test_in_memory(self) -> None:
        """Without it ``:memory:`` would become the name of a file."""
        for one in self.plans("--database", ":memory:"):
            self.assertEqual((one.database, one.audit_log), (":memory:", None))

    def test_peers(self) -> None:
        """Without it a front would dial itself, or a port that nobody listens on, or listen to the network."""
        found = self.plans()
        for number, one in enumerate(found):
            self.assertEqual(one.peer_listen, (f"tcp:{9001 + number}:interface=127.0.0.1",))
            others = {(peer.node, peer.endpoint) for peer in one.peers}
            expected = {(found[other].node_id, f"tcp:127.0.0.1:{9001 + other}") for other in {0, 1, 2} - {number}}
            self.assertEqual(others, expected)
            self.assertEqual((one.quorum, one.cluster_keys), ("majority", (KEY.encode(),)))
        self.assertEqual([one.quorum for one in self.plans(count=2)], ["available", "available"])

    def test_options_are_passed_on(self) -> None:
        """Without it an option would count for nothing, or a path with a blank in it be cut."""
        words = (
            "--listen", "tcp:1", "--listen", "ssl:2:privateKey=a b", "--no-leader-election", "--region=west",
            "--processes=3", "--demo-worker", "--stun", "", "--trust-proxy=10.0.0.0/8",
        )
        single = settings_of({}, *words)
        for one in self.plans(*words):
            self.assertEqual(one.listen, ("tcp:1", "ssl:2:privateKey=a b"))
            self.assertEqual((one.region, one.leader_election, one.demo_worker), ("west", False, False))
            self.assertEqual((one.stun_servers, one.trusted_proxies), (single.stun_servers, single.trusted_proxies))

    def test_refusals(self) -> None:
        """Without it each of the fronts would find out by itself, again and again."""
        for environ, words, named in (
            ({"CLUSTER_KEY": KEY}, ("--peer", "b=tcp:h:1"), "PEERS"),
            ({}, ("--listen", "systemd:domain=INET:index=0"), "systemd"),
            ({"NODE_ID": "n" * 63}, (), "PROCESSES"),
        ):
            words = (*words, "--processes=2", "--database", ":memory:")
            try:
                check(settings_of(environ, *words), options_of(*words), {"NODE_ID": "n", **environ}, reactor)
            except (StartError, IndexError) as problem:  # Twisted's own, which the front's start has turned into a line
                self.assertIn(named if isinstance(problem, StartError) else "", str(problem))
            else:
                self.fail(f"{words} was taken")

    def test_key(self) -> None:
        """Without it tickets would not outlive a restart, or the key be anybody's to read."""
        settings = settings_of({}, "--database", "s.db")
        path = cluster_key(settings)
        assert path is not None
        first = Path(path).read_text()
        self.assertEqual(Path(path).stat().st_mode & 0o777, 0o600)
        self.assertEqual((cluster_key(settings), Path(path).read_text()), ("s.cluster.key", first))
        self.assertGreaterEqual(len(first.strip()), 64)
        Path(path).chmod(0o644)
        self.assertIn("0644", str(self.assertRaises(StartError, cluster_key, settings)))
        self.assertIsNone(cluster_key(settings_of({"CLUSTER_KEY": KEY})))
        self.assertIsNone(cluster_key(settings_of({}, "--database", ":memory:")))
        nowhere = settings_of({}, "--database", "none/s.db")
        self.assertIn("CLUSTER_KEY_FILE", str(self.assertRaises(StartError, cluster_key, nowhere)))


class RelayTests(SynchronousTestCase):
    """The fronts' logs in the supervisor's."""

    def relayed(self, line: bytes, debug: Debug | None = None) -> str:
        """What the supervisor writes for a line of a front's log."""
        written: list[str] = []
        debug = debug or Debug(())
        observer: Any = logs.LineObserver(lambda text, level: written.append(f"{level} {text}"), "text", debug)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        debug.relay("n.2", line)
        globalLogPublisher.removeObserver(observer)
        return "".join(written)

    def line(self, **event: Any) -> bytes:
        """A line as a front writes it."""
        told = {"log_time": 1.5, "log_level": LogLevel.warn, "log_namespace": "kollator:x", **event}
        return logs.json_line(told).encode()

    def test_event(self) -> None:
        """Without it the log would have two times and two levels a line, or none of the front's."""
        self.assertEqual(
            self.relayed(self.line(log_format="a {b} {{c}}", b="{d}")),
            "warn 1970-01-01T00:00:01.500Z [kollator:x#warn] n.2: a {d} {c}\n",
        )

    def test_fields(self) -> None:
        """Without it a log of JSON would lack what the events know."""
        with capturedLogs() as events:
            relay("n.2", self.line(log_format="x", worker="w1", number=3))
        self.assertEqual([(event["node"], event["worker"], event["number"]) for event in events], [("n.2", "w1", 3)])

    def test_debug(self) -> None:
        """Without it debug events that an operator has asked a front for would be dropped here, or all be written."""
        debug = Debug(())
        self.assertIn("n.2: x", self.relayed(self.line(log_format="x", log_level=LogLevel.debug), debug))
        self.assertFalse(debug.enabled("kollator:x"))

    def test_traceback(self) -> None:
        """Without it an error of a front would be a line that says nothing."""
        line = json.dumps({
            "time": "2020-01-01T00:00:00.000Z", "level": "critical", "namespace": "a", "message": "m",
            "failure": "T\nE",
        })
        expected = "critical 2020-01-01T00:00:00.000Z [a#critical] n.2: m\n\tT\n\tE\n"
        self.assertEqual(self.relayed(line.encode()), expected)
        self.assertEqual([str(failure.value) for failure in self.flushLoggedErrors(FrontError)], ["E"])

    @bounded(max_examples=100, deadline=None)
    @given(st.binary(max_size=80) | st.builds(
        lambda value: json.dumps(value).encode(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                st.sampled_from(["time", "level", "namespace", "message", "failure", "log_level", "x"]), inner,
                max_size=6),
            max_leaves=8)))
    def test_anything(self, line: bytes) -> None:
        """Without it a line that is none would end the supervisor's reading of the others."""
        self.relayed(line)
        self.flushLoggedErrors(FrontError)


class FrontProcessTests(SynchronousTestCase):
    """One of the fronts, on a reactor by hand."""

    def setUp(self) -> None:
        self.children = Children()
        self.spawned: list[Any] = []
        spawn = self.children.spawnProcess

        def spawning(*args: Any, childFDs: Any = None, **kwargs: Any) -> Any:
            self.spawned.append(childFDs)
            return spawn(*args, **kwargs)

        self.children.spawnProcess = spawning  # type: ignore[method-assign]
        self.settings = settings_of(
            {"WORKER_KEY": KEY, "DRAIN_TIMEOUT": "5"}, "--database", ":memory:", "--port=0", "--host=127.0.0.1",
            "--processes=2",
        )
        self.processes = Processes(self.settings, self.children, {}, {"NODE_ID": "n", "DEMO_WORKER": "1", "X": "y"})
        self.addCleanup(lambda: self.processes._close())

    def start(self) -> None:
        """Both fronts."""
        self.processes.privilegedStartService()
        self.processes.startService()

    def test_start(self) -> None:
        """Without it the fronts would lack sockets or the key, or each would start a demo worker."""
        self.start()
        self.assertEqual(len(self.children.children), 2)
        keys = {child.environment["CLUSTER_KEY"] for child in self.children.children}
        self.assertEqual(len(keys), 1)
        for child, handed in zip(self.children.children, self.spawned, strict=True):
            self.assertEqual((child.environment["X"], child.environment[SOCKETS]), ("y", "1"))
            self.assertNotIn("DEMO_WORKER", child.environment)
            self.assertEqual({0: handed[0], 1: handed[1], 2: handed[2]}, {0: "w", 1: "r", 2: "r"})
            self.assertEqual(set(handed) - {0, 1, 2}, {FIRST_SOCKET})
        self.assertNotEqual(self.spawned[0][FIRST_SOCKET], self.spawned[1][FIRST_SOCKET])
        for child in self.children.children:
            child.end()
        self.stop()

    def stop(self) -> list[Any]:
        """Has everything stop; what it came to."""
        done: list[Any] = []
        self.processes.stopService().addBoth(done.append)
        self.children.advance(0.05)
        return done

    def test_a_dead_one_is_started_again(self) -> None:
        """Without it the service would shrink with every death."""
        self.start()
        self.children.children[0].end(signal=9)
        self.children.advance(1.0)
        self.assertEqual(len(self.children.children), 3)
        self.assertEqual(self.children.child.arguments, self.children.children[0].arguments)
        for child in self.children.children[1:]:
            child.end()
        self.stop()

    def test_stop(self) -> None:
        """Without it fronts would be killed while they drain, or started again, or not be waited for."""
        self.start()
        first, second = self.children.children
        done = self.stop()
        self.assertEqual((first.written, second.written, first.signals), (b"stop\n", b"stop\n", []))
        first.end()
        self.children.advance(1.0)
        self.processes.hurry()
        self.assertEqual((second.written, done), (b"stop\nhurry\n", []))
        second.end()
        self.children.advance(0.05)
        self.assertEqual((len(done), len(self.children.children)), (1, 2))

    def test_stop_of_a_stubborn_one(self) -> None:
        """Without it a front that hangs would keep the service from stopping."""
        self.start()
        first, second = self.children.children
        second.stubborn = True
        done = self.stop()
        first.end()
        for _ in range(int((5 + STOP_SLACK_S + 4) * 10)):
            self.children.advance(0.1)
        self.assertEqual((second.signals, len(done)), (["TERM", "KILL"], 1))

    def test_stop_while_another_drains(self) -> None:
        """Without it a dead front would come back in the middle of the stop, and take connections."""
        self.start()
        first, second = self.children.children
        first.end(signal=9)
        done = self.stop()
        self.children.advance(2.0)
        self.assertEqual((len(self.children.children), done), (2, []))
        second.end()
        self.children.advance(0.05)
        self.assertEqual(len(done), 1)

    def test_stop_between_two_lives(self) -> None:
        """Without it a front that is just waiting to be started again would be started after the end."""
        self.start()
        first, second = self.children.children
        first.end(signal=9)
        second.end(signal=9)
        self.assertEqual(len(self.stop()), 1)
        self.children.advance(60.0)
        self.assertEqual(len(self.children.children), 2)
        self.assertTrue(all(isinstance(front, FrontProcess) for front in self.processes.fronts))


class SocketTests(SynchronousTestCase):
    """Sockets that are bound once and listened on by others."""

    def test_tcp(self) -> None:
        """Without it a dead front's share of the connections would wait for its next life, or its port be lost."""
        shared = Shared(reactor, "tcp:0:interface=127.0.0.1", 2)
        self.addCleanup(shared.close)
        one, other = shared._sockets
        port = one.getsockname()[1]
        self.assertEqual(other.getsockname()[1], port)
        self.assertEqual(shared.url(), f"ws://127.0.0.1:{port}/signaling")
        shared.renew(0)  # it never listened: harmless
        self.assertFalse(connects(port))
        self.assertEqual(one.fileno(), -1)
        for _ in range(2):
            with socket.socket(fileno=os.dup(shared.fileno(0))) as front:
                front.listen(5)
                self.assertTrue(connects(port))
            self.assertTrue(connects(port))
            shared.renew(0)
            self.assertFalse(connects(port))
        with socket.socket(fileno=os.dup(shared.fileno(0))) as front:
            front.listen(5)
            again = self.assertRaises(StartError, Shared, reactor, f"tcp:{port}:interface=127.0.0.1", 2)
            self.assertIn("LISTEN", str(again))

    def test_reserved(self) -> None:
        """Without it another process could be given the port of a front that is between two lives."""
        found = reserved_ports(2)
        for one in found:
            self.addCleanup(one.close)
        port = found[0].getsockname()[1]
        with socket.socket() as taker:
            self.assertRaises(OSError, taker.bind, ("127.0.0.1", port))
        with socket.socket() as front:
            front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            front.bind(("127.0.0.1", port))
            front.listen()
            self.assertTrue(connects(port))


class HandedTests(TestCase):
    """Listening on what was handed down."""

    def adopted(self, endpoint: HandedEndpoint) -> Any:
        """The port."""
        port: Any = self.successResultOf(endpoint.listen(Factory.forProtocol(Protocol)))
        return port

    async def test_tcp(self) -> None:
        """Without it a port would stay open after its front has closed it, and clients would wait in its queue."""
        shared = Shared(reactor, "tcp:0:interface=127.0.0.1", 1)
        self.addCleanup(shared.close)
        handed = os.dup(shared.fileno(0))
        port = self.adopted(HandedEndpoint(reactor, handed, 7))
        number = port.getHost().port
        self.assertTrue(connects(number))
        self.assertEqual((port.backlog, port.socket.get_inheritable()), (7, False))
        self.assertRaises(OSError, os.fstat, handed)
        await port.stopListening()
        self.assertFalse(connects(number))

    async def test_unix(self) -> None:
        """Without it the first front to stop would take the path away from the others."""
        path = os.path.join("/tmp", f"kollator-{os.getpid()}.unit")
        shared = Shared(reactor, f"unix:{path}:mode=600", 2)
        self.assertEqual(shared.fileno(0), shared.fileno(1))
        self.assertIsNone(shared.url())
        port = self.adopted(HandedEndpoint(reactor, os.dup(shared.fileno(0)), None))
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        await port.stopListening()
        with socket.socket(socket.AF_UNIX) as trial:
            trial.connect(path)
        await shared.close()
        self.assertFalse(os.path.exists(path))

    def test_environment(self) -> None:
        """Without it a process that a front starts would think that it has sockets."""
        environ = {SOCKETS: "2", "X": "y"}
        self.assertIsNotNone(Handed.of(environ))
        self.assertEqual(environ, {"X": "y"})
        self.assertIsNone(Handed.of(environ))


class Reading(Clock):
    """A reactor that notes who reads."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)


class OrdersTests(SynchronousTestCase):
    """What a front does when its supervisor says so, or is gone."""

    def setUp(self) -> None:
        self.said: list[str] = []
        self.reading, self.writing = os.pipe()
        self.addCleanup(os.close, self.reading)
        self.reactor = Reading()
        self.orders = Orders(
            self.reactor, stop=lambda: self.said.append("stop"), hurry=lambda: self.said.append("hurry"),
            input=self.reading,
        )
        self.orders.startService()

    def test_orders(self) -> None:
        """Without it no front would stop, or one would take a stranger's word for an order."""
        self.assertIsNone(self.orders.doRead())
        os.write(self.writing, b"sto")
        self.orders.doRead()
        self.assertEqual(self.said, [])
        os.write(self.writing, b"p\nnothing\n" + b"x" * 2 * ORDER_BYTES + b"\nhurry\n")
        self.orders.doRead()
        self.assertEqual(self.said, ["stop", "hurry"])
        os.close(self.writing)

    def test_end(self) -> None:
        """Without it a front would outlive its supervisor."""
        os.close(self.writing)
        reason = self.orders.doRead()
        self.assertIsNotNone(reason)
        self.orders.connectionLost(reason)
        self.assertEqual(self.said, ["stop", "hurry"])

    def test_own_end(self) -> None:
        """Without it the reactor's end would look like the supervisor's."""
        self.orders.stopService()
        self.orders.connectionLost(None)
        self.assertEqual((self.said, self.reactor.readers), ([], []))
        os.close(self.writing)
