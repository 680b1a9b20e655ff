"""The worker's connection to a front, in memory: a real Autobahn server at the other end, and a clock by hand."""

from __future__ import annotations

from typing import Any

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from msgspec import json
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.test import iosim
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.keys import front_mac, worker_mac
from kollator.signaling.messages import Answer, ByeFrom, Hello, OfferFrom
from kollator.webrtc.backoff import Backoff
from kollator.webrtc.uplink import STABLE_S, Uplink

KEY = b"the first key of the file"
OLD_KEY = b"the key from before the rotation"
SERVER_NONCE = "5e" * 32


class FrontProtocol(WebSocketServerProtocol):
    """A front that notes what it gets and says what the test tells it to."""

    def onConnect(self, request: Any) -> str | None:
        self.factory.offered = request.protocols
        return "kollator.v1"

    def onOpen(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.code: int | None = None

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.got.append(json.decode(payload))

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.code = code

    def say(self, **message: Any) -> None:
        self.sendMessage(json.encode(message))


class Desk:
    """Notes what the uplink passes on."""

    def __init__(self) -> None:
        self.sessions = 0
        self.messages: list[Any] = []
        self.sends: list[Any] = []
        self.lost: list[str] = []
        self.ice: Any = None

    def received(self, message: Any, send: Any) -> None:
        self.messages.append(message)
        self.sends.append(send)

    def unreachable(self, client: str) -> None:
        self.lost.append(client)

    def told_ice_servers(self, servers: Any) -> None:
        self.ice = servers


class Network:
    """Where the uplink connects to: refuses, or makes a connection in memory to a new ``FrontProtocol``."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.refuses = False
        self.attempts: list[float] = []
        self.fronts: list[FrontProtocol] = []
        self.pumps: list[iosim.IOPump] = []
        self.hanging: Deferred[Any] | None = None
        self.hangs = False

    def connect(self, factory: Any) -> Deferred[Any]:
        self.attempts.append(self.clock.seconds())
        done: Deferred[Any] = Deferred()
        if self.hangs:
            self.hanging = done
            return done
        if self.refuses:
            done.errback(ConnectionRefusedError())
            return done
        server = WebSocketServerFactory(reactor=self.clock)
        server.protocol = FrontProtocol
        front: Any = server.buildProtocol(None)
        line = factory.buildProtocol(None)
        done.callback(line)
        pump = iosim.connect(
            front, iosim.FakeTransport(front, True), line, iosim.FakeTransport(line, False), greet=False
        )
        self.fronts.append(front)
        self.pumps.append(pump)
        return done

    def flush(self) -> None:
        for pump in self.pumps:
            pump.flush()


class UplinkCase(SynchronousTestCase):
    """An uplink over ``Network``; chance always gives one half."""

    def setUp(self) -> None:
        self.clock = Clock()
        # Autobahn's timers run on the clock of txaio, not on that of their factory.
        self.patch(txaio.config, "loop", self.clock)  # type: ignore[attr-defined]
        self.network = Network(self.clock)
        self.desk = Desk()
        self.events: list[dict[str, Any]] = []
        note: Any = self.events.append
        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        self.uplink = Uplink(
            "ws://front.example:8080/signaling",
            self.network.connect,
            Hello("worker", id="w1", region="us-west", capacity=7, address="192.168.1.100"),
            (KEY, OLD_KEY),
            self.desk,
            clock=self.clock,
            uniform=lambda: 0.5,
            nonce=lambda: "c1" * 32,
        )

    def start(self) -> FrontProtocol:
        self.uplink.startService()
        self.addCleanup(self.uplink.stopService)
        self.network.flush()
        return self.network.fronts[-1]

    def register(self, key: bytes = KEY) -> FrontProtocol:
        front = self.start()
        self.greet(front, key)
        return front

    def greet(self, front: FrontProtocol, key: bytes = KEY) -> None:
        front.say(type="challenge", nonce=SERVER_NONCE)
        self.network.flush()
        front.say(
            type="welcome", id="w1", node="f1", iceServers=[], mac=front_mac(key, "w1", "c1" * 32, SERVER_NONCE)
        )
        self.network.flush()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.network.flush()

    def said(self, level: Any) -> list[str]:
        wanted = [e for e in self.events if e.get("log_namespace") == "kollator:worker"]
        return [e["log_format"].format(**e) for e in wanted if e["log_level"] is level]


class RegistrationTests(UplinkCase):
    """Who proves what to whom."""

    def test_handshake(self) -> None:
        """A worker that says anything else than the contract's hello and mac is never registered."""
        front = self.start()
        self.assertEqual(
            front.got,
            [{"type": "hello", "role": "worker", "id": "w1", "region": "us-west", "capacity": 7,
              "address": "192.168.1.100", "nonce": "c1" * 32}],
        )  # fmt: skip
        self.assertEqual(front.factory.offered, ["kollator.v1"])
        self.assertFalse(self.uplink.registered)
        self.greet(front)
        mac = worker_mac(KEY, "w1", "us-west", 7, "c1" * 32, SERVER_NONCE)
        self.assertEqual(front.got[1], {"type": "auth", "mac": mac})
        self.assertTrue(self.uplink.registered)
        self.assertEqual(self.desk.ice, [])

    def test_front_with_old_key(self) -> None:
        """While keys are rotated a front may still sign with the old one; refusing it would empty the pool."""
        self.register(OLD_KEY)
        self.assertTrue(self.uplink.registered)

    def test_wrong_front_mac(self) -> None:
        """A server that does not know the key could otherwise hand out offers and learn the worker's addresses."""
        front = self.start()
        front.say(type="challenge", nonce=SERVER_NONCE)
        self.network.flush()
        mac = front_mac(b"another key", "w1", "c1" * 32, SERVER_NONCE)
        front.say(type="welcome", id="w1", node="f1", iceServers=[], mac=mac)
        front.say(type="offer", **{"from": "c1"}, sdp="v=0")
        self.network.flush()
        self.assertEqual(front.code, 4401)
        self.assertEqual(self.desk.messages, [])
        self.pass_time(59)
        self.assertEqual(len(self.network.attempts), 1)
        self.assertIn("is not trusted", self.said(LogLevel.error)[0])

    def test_welcome_without_challenge(self) -> None:
        """A replayed welcome would be accepted if the mac were not bound to a challenge of this connection."""
        front = self.start()
        front.say(type="welcome", id="w1", node="f", iceServers=[], mac=front_mac(KEY, "w1", "c1" * 32, ""))
        self.network.flush()
        self.assertEqual(front.code, 4401)

    def test_bad_challenge(self) -> None:
        """A challenge with line feeds in it could make the worker sign something else."""
        front = self.start()
        front.say(type="challenge", nonce="x\n" * 32)
        self.network.flush()
        self.assertEqual((front.code, len(front.got)), (4401, 1))

    def test_silent_front(self) -> None:
        """A front that never answers the hello would keep the worker out of the pool for ever."""
        self.start()
        self.pass_time(10)
        self.pass_time(0.25)
        self.assertEqual(self.network.attempts, [0, 10.25])

    def test_secrets_stay_out_of_the_log(self) -> None:
        """A key in a log file is a key that everybody has."""
        front = self.register()
        front.sendMessage(b'{"type": broken sdp-of-somebody')
        front.say(type="offer", sdp="sdp-of-somebody")
        self.network.flush()
        text = repr([e for e in self.events if str(e.get("log_namespace")).startswith("kollator")])
        self.assertNotIn("the first key", text)
        self.assertNotIn("sdp-of-somebody", text)


class RelayTests(UplinkCase):
    """What goes through a registered uplink."""

    def test_messages_and_replies(self) -> None:
        """The whole point: offers come in, answers go out over the same front."""
        front = self.register()
        front.say(type="offer", **{"from": "c1"}, sdp="v=0", session="s", newer="key")
        front.say(type="bye", **{"from": "c1"})
        self.network.flush()
        self.assertEqual(self.desk.messages, [OfferFrom("c1", "v=0", "s"), ByeFrom("c1")])
        self.desk.sends[0](Answer("c1", "v=1", "s"))
        self.network.flush()
        self.assertEqual(front.got[-1], {"type": "answer", "to": "c1", "sdp": "v=1", "session": "s"})

    def test_nothing_before_the_welcome(self) -> None:
        """Who has not proven to be a front must not reach the sessions."""
        front = self.start()
        front.say(type="offer", **{"from": "c1"}, sdp="v=0")
        self.network.flush()
        self.assertEqual(self.desk.messages, [])

    def test_nonsense_is_survived(self) -> None:
        """A newer or broken front must not cost the connection, nor an unhandled error."""
        front = self.register()
        for payload in (b"", b"[]", b"{", b'{"type":"news"}', b'{"type":"offer"}', b"[" * 10_000):
            front.sendMessage(payload)
        front.sendMessage(b"\x00", isBinary=True)
        self.network.flush()
        self.assertTrue(self.uplink.registered)

    def test_desk_that_fails(self) -> None:
        """An error in a session must not take the uplink down."""
        self.patch(self.desk, "received", lambda message, send: 1 / 0)
        front = self.register()
        front.say(type="bye", **{"from": "c1"})
        self.network.flush()
        self.assertTrue(self.uplink.registered)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_reply_to_a_front_that_has_just_closed(self) -> None:
        """A session that answers at this moment must not end in an error."""
        front = self.register()
        front.say(type="bye", **{"from": "c1"})
        self.network.flush()
        front.sendCloseFrame(1001, b"")
        self.network.pumps[-1].pump()
        self.assertTrue(self.uplink.registered)
        self.desk.sends[0](Answer("c1", "v=1"))
        self.network.flush()
        self.desk.sends[0](Answer("c1", "v=1"))
        self.assertFalse(self.uplink.registered)

    def test_unknown_target(self) -> None:
        """A session whose client is gone would hold its place until the time-out."""
        front = self.register()
        front.say(type="error", code="unknown-target", message="gone", to="c9")
        front.say(type="error", code="rate-limited", message="slow down")
        self.network.flush()
        self.assertEqual(self.desk.lost, ["c9"])
        self.assertIn("slow down", self.said(LogLevel.warn)[0])

    def test_status_at_most_once_a_second(self) -> None:
        """A front cuts off who sends more, and one that hears nothing overfills the worker."""
        front = self.register()
        self.pass_time(0)
        for sessions in (1, 2, 3):
            self.desk.sessions = sessions
            self.uplink.sessions_changed()
            self.pass_time(0.25)
        told = [m["sessions"] for m in front.got if m["type"] == "status"]
        self.assertEqual(told, [0])
        self.pass_time(0.25)
        self.uplink.sessions_changed()
        self.pass_time(5)
        told = [m["sessions"] for m in front.got if m["type"] == "status"]
        self.assertEqual(told, [0, 3])

    def test_pings_are_answered(self) -> None:
        """A ping unanswered for a second takes the worker out of the ring."""
        front = self.register()
        pongs: list[bytes] = []
        self.patch(front, "onPong", pongs.append)
        front.sendPing(b"12")
        self.network.flush()
        self.assertEqual(pongs, [b"12"])


class ReconnectTests(UplinkCase):
    """When it comes back, and when not."""

    def test_backoff_with_full_jitter(self) -> None:
        """Without growing, spread delays a dead front's workers hammer it when it starts."""
        chances = iter((1.0, 0.0, 0.25, 1.0))
        backoff = Backoff(lambda: next(chances), base_s=0.5, cap_s=3.0)
        self.assertEqual([backoff.next_s() for _ in range(4)], [0.5, 0.0, 0.5, 3.0])
        endless = Backoff(lambda: 1.0, base_s=0.5, cap_s=30.0, floor_s=60.0)
        self.assertEqual([endless.next_s() for _ in range(5000)][-1], 90.0)
        endless.reset()
        self.assertEqual(endless.next_s(), 60.5)

    def test_front_that_cannot_be_reached(self) -> None:
        """The worker must come back by itself, however long its front was away."""
        self.network.refuses = True
        self.uplink.startService()
        self.addCleanup(self.uplink.stopService)
        for _ in range(4):
            self.clock.advance(self.waiting()[0])
        self.assertEqual(self.network.attempts, [0, 0.25, 0.75, 1.75, 3.75])

    def test_backoff_ends_only_after_a_while(self) -> None:
        """A front that welcomes and drops everybody would be called at full speed."""
        for round_, delay_s in enumerate((0.25, 0.5, 1.0)):
            front = self.register() if not round_ else self.network.fronts[-1]
            if round_:
                self.greet(front)
            front.dropConnection(abort=True)
            self.network.flush()
            self.assertEqual(self.waiting(), [delay_s])
            self.pass_time(delay_s)
        self.greet(self.network.fronts[-1])
        self.pass_time(STABLE_S)
        self.network.fronts[-1].dropConnection(abort=True)
        self.network.flush()
        self.assertEqual(self.waiting(), [0.25])

    def waiting(self) -> list[float]:
        waiting: Any = self.clock.getDelayedCalls()
        calls = [c for c in waiting if c.func == self.uplink._connect]
        return [round(c.getTime() - self.clock.seconds(), 3) for c in calls]

    def closed_with(self, code: int) -> list[float]:
        front = self.register()
        front.sendCloseFrame(code, b"")
        self.network.flush()
        return self.waiting()

    def test_wrong_key(self) -> None:
        """A worker with a wrong key that tries every second fills the front's log and is taken for an attack."""
        front = self.start()
        front.say(type="challenge", nonce=SERVER_NONCE)
        self.network.flush()
        front.sendCloseFrame(4401, b"")
        self.network.flush()
        self.assertEqual(self.waiting(), [75.0])
        self.assertIn("compare the worker key", self.said(LogLevel.error)[0])

    def test_replaced(self) -> None:
        """Two workers with one id that both come back at once throw each other out for ever."""
        self.assertEqual(self.closed_with(4409), [330.0])
        self.assertIn("another worker with this id", self.said(LogLevel.error)[0])

    def test_address_not_allowed(self) -> None:
        """The remedy is at the front; until it is taken, trying often helps nobody."""
        self.assertEqual(self.closed_with(4403), [75.0])
        self.assertIn("WORKER_ALLOW", self.said(LogLevel.error)[0])

    def test_draining(self) -> None:
        """A worker that stays makes the front wait for it; one that leaves at once cuts its clients' last words."""
        front = self.register()
        front.say(type="draining", reconnectInMs=2000)
        self.network.flush()
        self.assertTrue(self.uplink.registered)
        self.pass_time(2)
        self.assertEqual(front.code, 1000)
        self.assertEqual(self.waiting(), [0.25])
        self.assertEqual(self.said(LogLevel.error), [])

    def test_draining_front_that_closes_first(self) -> None:
        """All workers of a stopping front would otherwise come back at the same moment."""
        front = self.register()
        front.say(type="draining", reconnectInMs=2000)
        self.network.flush()
        self.pass_time(0.5)
        front.sendCloseFrame(1001, b"")
        self.network.flush()
        self.assertEqual(self.waiting(), [1.75])

    def test_vanished_front(self) -> None:
        """A front that lost its power says nothing; without pings of our own the worker would wait for ever."""
        self.register()
        self.patch(self.network.pumps[-1], "flush", lambda: False)
        for _ in range(70):
            self.clock.advance(0.5)
        self.network.pumps[-1].clientIO.reportDisconnect()
        self.assertFalse(self.uplink.registered)
        self.assertEqual(len(self.waiting()), 1)


class StopTests(UplinkCase):
    """How it ends."""

    def test_stop(self) -> None:
        """A stop that fires before the connection is gone lets the process end in the middle of the goodbye."""
        front = self.register()
        stopped = self.uplink.stopService()
        assert stopped is not None
        self.assertNoResult(stopped)
        self.network.flush()
        self.successResultOf(stopped)
        self.assertEqual(front.code, 1000)
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_connecting(self) -> None:
        """A stop must not wait for a front that is not there."""
        self.network.hangs = True
        self.uplink.startService()
        self.assertIsNone(self.uplink.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_waiting(self) -> None:
        """A delayed call that is left would connect after the end."""
        self.network.refuses = True
        self.uplink.startService()
        self.assertIsNone(self.uplink.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_and_a_front_that_does_not_answer(self) -> None:
        """A front that hangs must not keep the worker from ending."""
        self.register()
        stopped = self.uplink.stopService()
        assert stopped is not None
        pump = self.network.pumps[-1]
        for _ in range(4):
            self.clock.advance(0.5)
        pump.clientIO.reportDisconnect()
        self.successResultOf(stopped)
