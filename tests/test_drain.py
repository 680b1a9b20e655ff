"""How a front stops: who is told, who is waited for, who is closed, and what signals do."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from kollator.drain import CLOSE_S, StopSignals
from kollator.signaling.connection import Stage
from tests.fronts import FrontTestCase
from tests.wires import read_frames, text_frame

GOING_AWAY = (8, b"\x03\xe9front going away")
TIMEOUT_S = 5.0


class DrainTests(FrontTestCase):
    """One front on its way down, with real WebSockets in memory."""

    def begin(self) -> Deferred[None]:
        """The first step; each connection is told a time of its own."""
        times = iter(range(100, 200))
        return self.front.drain.begin(self.front.signaling, TIMEOUT_S, lambda: next(times))

    def test_nobody(self) -> None:
        """A front that nobody is connected to stops at once."""
        begun = self.begin()
        self.assertTrue(self.front.drain.draining)
        self.successResultOf(begun)
        self.successResultOf(self.front.drain.close(self.front.signaling))

    def test_told_and_left(self) -> None:
        """Everybody is told once, with a time of its own, and the front goes on as soon as the last one has left."""
        wires = [self.front.client(f"198.51.100.{number}") for number in range(3)]
        begun = self.begin()
        told = []
        for wire in wires:
            ((_, payload),) = read_frames(wire.taken())
            told.append(json.loads(payload))
        self.assertEqual([message["type"] for message in told], ["draining"] * 3)
        self.assertEqual(len({message["reconnectInMs"] for message in told}), 3)
        for wire in wires:
            self.assertNoResult(begun)
            wire.hang_up()
        self.front.advance(0.05)
        self.successResultOf(begun)

    def test_served_meanwhile(self) -> None:
        """Who stays is served until it leaves: the other side of its session is told of no end."""
        wire = self.front.client()
        self.begin()
        wire.clear()
        wire.send(text_frame(b'{"type":"assign","ref":"r1"}'))
        self.assertIn(b'"ref":"r1"', wire.taken())
        self.front.advance(TIMEOUT_S)

    def test_time_out(self) -> None:
        """Who does not leave is not waited for beyond DRAIN_TIMEOUT."""
        self.front.client()
        begun = self.begin()
        self.front.advance(TIMEOUT_S - 0.1)
        self.assertNoResult(begun)
        self.front.advance(0.2)
        self.successResultOf(begun)

    def test_hurry(self) -> None:
        """A second signal waits for nobody."""
        self.front.client()
        begun = self.begin()
        self.front.drain.hurry()
        self.front.advance(0.05)
        self.successResultOf(begun)
        self.successResultOf(self.front.drain.close(self.front.signaling))

    def test_closed_with_a_reason(self) -> None:
        """Whoever is left is told by 1001 that it is the front that goes, also before its hello."""
        welcomed, waiting = self.front.client(), self.front.websocket()
        closed = self.front.drain.close(self.front.signaling)
        for wire in (welcomed, waiting):
            self.assertEqual(read_frames(wire.taken()), [GOING_AWAY])
            self.assertNoResult(closed)
            wire.send(b"\x88\x82\0\0\0\0\x03\xe9")
            self.assertTrue(wire.lost)
        self.front.advance(0.05)
        self.successResultOf(closed)

    def test_peers_that_do_not_answer(self) -> None:
        """A closing handshake that the peer does not finish holds the stop up for a moment only."""
        self.front.client()
        closed = self.front.drain.close(self.front.signaling)
        self.front.advance(CLOSE_S - 0.1)
        self.assertNoResult(closed)
        self.front.advance(0.2)
        self.successResultOf(closed)


class OrderTests(FrontTestCase):
    """An operator's drain, and the way back."""

    def setUp(self) -> None:
        """A client, one that has yet to say what it is, and workers before and after their welcome."""
        super().setUp()
        self.client, self.unknown = self.front.client(), self.front.websocket()
        hello = {"type": "hello", "role": "worker", "region": "", "capacity": 1, "nonce": "0" * 32}
        self.workers = [self.front.websocket({**hello, "id": f"w{number}"}) for number in range(2)]
        worker = self.workers[0].protocol
        self.front.switchboard._directory.begin_worker(worker, worker.claim)
        self.front.switchboard._directory.enter_worker(worker)
        self.assertEqual([wire.protocol.stage for wire in self.workers], [Stage.WORKER, Stage.AUTH])
        for wire in self.workers:
            wire.clear()

    def order(self) -> None:
        """The operator's word; each connection is told a time of its own."""
        times = iter(range(100, 200))
        self.front.drain.order(self.front.signaling, lambda: next(times))

    def told(self) -> list[object]:
        """What each connection was told: the client, the unknown one, the workers."""
        return [
            [json.loads(payload) for _, payload in read_frames(wire.taken())]
            for wire in (self.client, self.unknown, *self.workers)
        ]

    def test_who_is_told(self) -> None:
        """Clients go, workers stay: without them the clients of other fronts could not reach those workers."""
        self.order()
        self.assertEqual((self.front.drain.draining, self.front.drain.stopping), (True, False))
        draining = [[{"type": "draining", "reconnectInMs": ms}] for ms in (100, 101)]
        self.assertEqual(self.told(), [*draining, [], []])
        self.order()
        self.assertEqual(self.told(), [[], [], [], []])
        self.assertEqual(len(self.front.switchboard.connections()), 4)

    def test_way_back(self) -> None:
        """Nobody is told of the end, and the next drain is like the first."""
        self.order()
        self.told()
        self.front.drain.recall()
        self.assertFalse(self.front.drain.draining)
        self.assertEqual(self.told(), [[], [], [], []])
        self.unknown.send(text_frame(b'{"type":"hello","role":"client"}'))
        self.assertEqual(len(read_frames(self.unknown.taken())), 1)  # the welcome
        self.order()
        self.assertEqual([len(frames) for frames in self.told() if isinstance(frames, list)], [1, 1, 0, 0])

    def test_not_drained(self) -> None:
        """There is nothing to take back before, or twice."""
        for _ in range(2):
            self.front.drain.recall()
        self.assertFalse(self.front.drain.draining)

    def test_stop_while_drained(self) -> None:
        """A stop goes its way, drained or not: everybody is told, workers too, and nothing calls it back."""
        self.order()
        self.told()
        begun = self.front.drain.begin(self.front.signaling, TIMEOUT_S, lambda: 7)
        self.assertEqual(self.told(), [[{"type": "draining", "reconnectInMs": 7}]] * 4)
        self.front.drain.recall()
        self.assertEqual((self.front.drain.draining, self.front.drain.stopping), (True, True))
        self.order()
        self.assertEqual(self.told(), [[], [], [], []])
        self.front.advance(TIMEOUT_S + 0.1)
        self.successResultOf(begun)


class Reactor:
    """What ``StopSignals`` needs of one."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []
        self.stops = 0

    def callWhenRunning(self, call: Callable[[], Any]) -> None:
        """It runs."""
        call()

    def callFromThread(self, call: Callable[[], Any]) -> None:
        """In its next turn."""
        self.calls.append(call)

    def stop(self) -> None:
        """Noted."""
        self.stops += 1


class StopSignalsTests(FrontTestCase):
    """Real signals to this process."""

    def setUp(self) -> None:
        """Keeps the handlers that trial has."""
        super().setUp()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.reactor = Reactor()
        self.signals = StopSignals(self.reactor, self.front.drain)
        self.signals.startService()

    def turn(self) -> None:
        """The reactor's next turn."""
        calls, self.reactor.calls = self.reactor.calls, []
        for call in calls:
            call()

    def test_signals(self) -> None:
        """The first of either kind stops in order, the next one ends the draining, and none acts by itself."""
        self.front.client()
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(self.reactor.stops, 0)
        self.turn()
        self.assertEqual(self.reactor.stops, 1)
        begun = self.front.drain.begin(self.front.signaling, TIMEOUT_S, lambda: 100)
        self.front.advance(1.0)
        self.assertNoResult(begun)
        signal.raise_signal(signal.SIGINT)
        self.turn()
        self.front.advance(0.05)
        self.successResultOf(begun)
        self.assertEqual(self.reactor.stops, 1)

    def test_order_and_signal(self) -> None:
        """Without it a front that a terminal and its supervisor tell to stop would take that for haste."""
        self.front.client()
        self.signals.stop()
        begun = self.front.drain.begin(self.front.signaling, TIMEOUT_S, lambda: 100)
        signal.raise_signal(signal.SIGTERM)
        self.turn()
        self.front.advance(1.0)
        self.assertNoResult(begun)
        signal.raise_signal(signal.SIGTERM)
        self.turn()
        self.front.advance(0.05)
        self.successResultOf(begun)
        self.assertEqual(self.reactor.stops, 1)
