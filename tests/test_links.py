"""The links of several fronts: one for each pair, in whatever order things happen, and dialled again for ever."""

from __future__ import annotations

import itertools
import random
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, RaisingMemoryReactor, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory

from kollator.cluster.dialling import GIVE_WAY_S, LIVED_S, REDIAL_LAST_S
from kollator.cluster.handshake import Handshake
from kollator.cluster.link import HANDSHAKE_S, KEEPALIVE_S, REASONS
from kollator.cluster.links import TURN_S, LinkError, Links
from kollator.cluster.wire import NONCE_BYTES, Refusal
from kollator.settings import Peer
from tests.link_net import KEY, Mixin, Net, NetCase, explore


class Pairs(Mixin):
    """One link for each pair. A mixin for ``NetCase``."""

    def both_dial(self, seed: int = 0) -> Net:
        """Two fronts, each of which is about to connect to the other."""
        net: Net = self.new_net(seed)
        net.held.update("ab")
        net.front("a", "b").start()
        net.front("b", "a").start()
        while len(net.attempts) < 2:
            net.clock.advance(TURN_S)
        net.held.clear()
        return net

    def test_both_dial_in_any_order(self) -> None:
        """Without it two fronts that start together could end with no link, with two, or each with another one."""
        for seed in range(60):
            net = self.net = self.both_dial(seed)
            net.settle()
            one, other = net.fronts["a"], net.fronts["b"]
            self.assertEqual(net.pairs(), {("a", "b"), ("b", "a")}, seed)
            self.assertTrue(net.same_connection(one, other), seed)
            self.assertLessEqual(max(len(one.ups()), len(other.ups())), 3, seed)
            before = one.ups(), other.ups(), len(net.dialled)
            if seed % 10 == 0:
                net.run(5)
                self.assertEqual((one.ups(), other.ups(), len(net.dialled)), before, "and it stays so")
                self.stop()

    def test_a_peer_that_has_restarted_replaces_its_link(self) -> None:
        """Without it a front would keep the link to a process that is no more, until it has been silent long enough."""
        for died in ("a", "b"):
            net = self.net = self.new_net()
            one, other = self.linked()
            dead, living = (one, other) if died == "a" else (other, one)
            for end in net.transports:
                end.black_hole = True  # the machine was switched off: it says nothing
            for end in [end for end in net.transports if end.host == dead.host]:
                end.deaf = True
            del net.fronts[died]
            dead.links._turns.stop()
            again = net.front(died, living.node).start()
            net.run(1.6)
            self.assertEqual(net.pairs(), {("a", "b"), ("b", "a")}, died)
            self.assertTrue(net.same_connection(living, again), died)
            self.assertEqual(living.ups(), [f"up {died}", f"down {died}", f"up {died}"])
            self.assertEqual(again.ups(), [f"up {living.node}"])
            net.run(5)
            self.assertEqual(again.ups(), [f"up {living.node}"], "and it stays so")

    def test_many_fronts_and_misfortunes(self) -> None:
        """Without it a mesh could be left with a hole, or go on changing links for ever."""
        for seed in range(6):
            net = self.net = self.new_net(seed)
            names = "abcde"[: 3 + seed % 3]
            for name in names:
                net.front(name, *(set(names) - {name})).start()
                net.run(net.chance.choice([0.0, 0.1, 0.5]))
            for _ in range(10):
                ends = [end for end in net.transports if end.connected]
                if ends:
                    end = net.chance.choice(ends)
                    misfortune = net.chance.choice(["reset", "hole", "cut"])
                    if misfortune == "reset":
                        end.abortConnection()
                    elif misfortune == "hole":
                        end.black_hole = True
                    else:
                        front = net.chance.choice(list(net.fronts.values()))
                        front.links.cut(net.chance.choice(names))
                net.run(net.chance.choice([0.1, 0.5, 4.0]))
            net.run(KEEPALIVE_S + REDIAL_LAST_S + 2)
            self.assertEqual(net.pairs(), {(one, two) for one in names for two in names if one != two}, seed)
            fronts = list(net.fronts.values())
            for one in fronts:
                for two in fronts:
                    self.assertTrue(one is two or net.same_connection(one, two), (seed, one.node, two.node))
                kinds = [[kind for kind, peer, *_ in one.events if peer == two.node and kind != "frame"]
                         for two in fronts]
                for kind in kinds:
                    self.assertEqual(kind, ["up", "down"] * (len(kind) // 2) + ["up"] * (len(kind) % 2), "in turns")
            self.assertEqual(sum(end.connected for end in net.transports), len(names) * (len(names) - 1), seed)
            self.stop()

    def test_stop_while_dialling(self) -> None:
        """Without it a delayed call or a connection would outlive the front."""
        self.net.held.add("b")
        one = self.net.front("a", "b").start()
        self.net.settle()
        self.assertEqual(len(self.net.attempts), 1)
        self.successResultOf(one.links.stopService())
        self.assertEqual(self.net.attempts, [])
        self.stop()


class TcpTests(Pairs, NetCase):
    """The links over streams."""

    def test_both_dial_in_every_order(self) -> None:
        """Without it there might be one order in a thousand in which two fronts do not find together."""
        outcomes = set()
        for net in explore(self.both_dial, 2000):
            one, other = net.fronts["a"], net.fronts["b"]
            self.assertEqual(net.pairs(), {("a", "b"), ("b", "a")})
            self.assertTrue(net.same_connection(one, other))
            self.assertLessEqual(max(len(one.ups()), len(other.ups())), 3)
            outcomes.add((tuple(one.ups()), tuple(other.ups())))
        self.assertEqual(len(outcomes), 3)

    def test_both_dial_in_every_order_and_a_connection_breaks(self) -> None:
        """Without it a connection that breaks in the wrong moment could leave a pair without a link for good."""

        def reset(net: Net) -> list[Any]:
            return [end.abortConnection for end in net.transports if end.connected and end.host == "10.0.0.1"]

        def swallow(net: Net) -> list[Any]:
            return [
                lambda end=end: setattr(end, "black_hole", True)
                for end in net.transports
                if end.connected and end.host == "10.0.0.2"
            ]

        for fault in (reset, swallow):

            def build(fault: Any = fault) -> Net:
                net = self.both_dial()
                net.faults.append(fault)
                return net

            for count, net in enumerate(explore(build, 4000)):
                one, other = net.fronts["a"], net.fronts["b"]
                if count % 6 == 0:
                    net.faults.clear()
                    net.run(12, step_s=0.1)
                    self.assertEqual(net.pairs(), {("a", "b"), ("b", "a")})
                    self.assertTrue(net.same_connection(one, other))

    def test_a_newer_link_of_the_same_direction_wins(self) -> None:
        """Without it a handshake that was long on its way could end the link that was made after it."""
        net = self.net
        net.unreachable.update("ab")
        front = net.front("b", "a").start()
        late = net.stranger(front, "10.0.8.8")
        opening = Handshake("a", [KEY], {"a", "b"}, b"n" * NONCE_BYTES, "b")
        late.say(*opening.start())
        net.settle()
        net.impostor(front, "a")
        self.assertEqual(front.ups(), ["up a"])
        late.say(*opening.receive(late.received[4:]))
        net.settle()
        self.assertEqual(front.ups(), ["up a"])
        self.assertEqual(late.heard()[1:], [Refusal("duplicate-link")], "and no proof")
        net.impostor(front, "a")
        self.assertEqual(front.ups(), ["up a", "down a", "up a"])

    def test_a_link_in_doubt_that_answers_stays(self) -> None:
        """Without it a peer that dials once too often would lose the link that it has."""
        net = self.net
        one, _ = self.linked()
        again = net.stranger(one, "10.0.8.8")
        opening = Handshake("b", [KEY], {"a", "b"}, b"n" * NONCE_BYTES, "a")
        again.say(*opening.start())
        net.settle()
        again.say(*opening.receive(again.received[4:]))
        net.run(5)
        self.assertEqual(again.heard()[1:], [Refusal("duplicate-link")])
        self.assertEqual(one.ups(), ["up b"])
        self.stop()

    def test_pauses_between_attempts(self) -> None:
        """Without it fronts would hammer a peer that is down, or all come back to it in one moment."""
        net = self.net
        front = net.front("a", "b")
        front.links._uniform = lambda low, high: high
        front.start()
        net.run(40)
        times = [time for time, _, _ in net.dialled]
        pauses = [after - before for before, after in itertools.pairwise(times)]
        expected = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        for pause, limit in zip(pauses, expected, strict=False):
            self.assertLess(abs(pause - limit), TURN_S + 0.01)
        net.front("b", "a").start()
        net.run(LIVED_S + 6)
        self.assertEqual(front.links.up(), {"b"})
        net.dialled.clear()
        net.unreachable.add("b")
        net.fronts["b"].links.cut("a")
        net.unreachable.add("a")
        started = net.clock.seconds()
        net.run(1)
        again = next(time for time, _, target in net.dialled if target == "b")
        self.assertLess(again - started, 0.1 + 2 * TURN_S, "a link that lived resets it")
        self.stop()

    def test_the_higher_id_gives_way(self) -> None:
        """Without it two fronts that lose their link would both dial at once, each time."""
        net = self.net
        net.held.update("ab")
        net.front("b", "a").start()
        net.run(GIVE_WAY_S - TURN_S)
        self.assertEqual(net.attempts, [])
        net.run(2 * TURN_S)
        self.assertEqual(len(net.attempts), 1)
        self.stop()

    def test_a_link_that_comes_first_ends_the_dialling(self) -> None:
        """Without it the slower of two attempts would replace a good link, or hang until it is given up."""
        net = self.net
        net.held.add("b")
        front = net.front("a", "b").start()
        net.settle()
        self.assertEqual(len(net.attempts), 1)
        net.impostor(front, "b")
        self.assertEqual((net.attempts, front.ups()), ([], ["up b"]))
        self.assertEqual(front.counts, {"duplicate-link": 1})
        self.stop()

    def test_connecting_that_hangs_is_given_up(self) -> None:
        """Without it a peer whose machine swallows packets would be tried once in half a minute."""
        net = self.net
        net.held.add("b")
        front = net.front("a", "b").start()
        net.run(HANDSHAKE_S + 1)
        self.assertEqual(front.counts, {"handshake-timeout": 1})
        self.assertGreaterEqual(len(net.dialled), 2)
        self.stop()


class WebSocketTests(Pairs, NetCase):
    """The same over WebSocket."""

    websocket = True


class StartTests(NetCase):
    """What can be wrong at the start."""

    def links(self, reactor: Any, listen: tuple[str, ...] = (), endpoint: str = "tcp:127.0.0.1:1") -> Links:
        """Links that are wired to nothing."""
        nothing: Any = lambda *arguments: None  # noqa: E731
        return Links(
            "a",
            [Peer("b", endpoint)],
            [KEY],
            reactor=reactor,
            listen=listen,
            established=nothing,
            lost=nothing,
            received=nothing,
            random_bytes=random.Random(1).randbytes,
            uniform=random.uniform,
        )

    def test_it_listens(self) -> None:
        """Without it nobody could dial this front."""
        reactor = MemoryReactorClock()
        links = self.links(reactor, ("tcp:9090", "tcp:9091:interface=127.0.0.1"))
        links.privilegedStartService()
        self.assertEqual([server[0] for server in reactor.tcpServers], [9090, 9091])
        listener: Any = reactor.tcpServers[0][1]
        options: Any = CertificateOptions()
        for factory in (listener, TLSMemoryBIOFactory(options, False, listener, real_reactor)):
            transport = StringTransport()
            factory.buildProtocol(None).makeConnection(transport)
            self.assertTrue(transport.disconnected, "not before it runs")
        self.successResultOf(links.stopService())

    def test_a_port_in_use_stops_the_start(self) -> None:
        """Without it a front would run that no peer can reach, and say nothing."""
        error = OSError(98, "Address already in use")
        links = self.links(RaisingMemoryReactor(listenException=error), ("tcp:9090",))
        with self.assertRaises(LinkError) as raised:
            links.startService()
        text = str(raised.exception)
        self.assertRegex(text, "^PEER_LISTEN: 'tcp:9090' cannot be listened on: .*in use; stop what uses it")
        self.assertNotIn("\n", text)

    def test_endpoints_that_are_none(self) -> None:
        """Without it a slip in PEERS or PEER_LISTEN would be a traceback, or a peer that is never dialled."""
        for listen in ("nonsense:1", "tcp:port", "ssl:1:privateKey=/nowhere"):
            with self.assertRaises(LinkError) as raised:
                self.links(Clock(), (listen,)).privilegedStartService()
            self.assertRegex(str(raised.exception), r"^PEER_LISTEN: .* is not an endpoint: .*; write one like")
        for endpoint in ("nonsense:1", "tcp:host:port", "http://h/worker-sync", "ws://h/other",
                         "tls:h:1:trustRoots=/nowhere/at/all"):
            with self.assertRaises(LinkError, msg=endpoint) as raised:
                self.links(real_reactor, (), endpoint).privilegedStartService()
            self.assertRegex(str(raised.exception), r"^PEERS: .* does not reach b: .*; write tcp:host:port")

    def test_reasons_have_one_name(self) -> None:
        """Without it a counter could be missing where it is scraped."""
        self.assertEqual(len(REASONS), len(set(REASONS)))

