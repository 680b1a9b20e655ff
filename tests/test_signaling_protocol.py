"""``WS /signaling`` as its clients and workers see it: admission, time-outs, and messages from end to end."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import LogLevel

from kollator.guard.keys import worker_mac
from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close
from kollator.signaling.websocket import CLOSE_TIMEOUT_S
from tests.signaling_bench import HELLO_TIMEOUT_S, TEXT, Peer, SignalingTestCase, frame, text
from tests.switchboard_bench import KEYS, NONCE, SDP


class ProtocolTestCase(SignalingTestCase):
    """With workers that really register."""

    def worker(self, worker: str = "w1", stores: bool | None = True) -> Peer:
        """A worker that has sent its proof; its welcome was taken when there is one."""
        self.bench.registrar.stores = stores
        peer = self.peer().opens()
        peer.gives(text(type="hello", role="worker", id=worker, region="us-west", capacity=100, nonce=NONCE))
        (challenge,) = peer.hears()
        mac = worker_mac(KEYS[0], worker, "us-west", 100, NONCE, challenge["nonce"])
        peer.gives(text(type="auth", mac=mac))
        self.bench.pool.append(worker)
        peer.hears()
        return peer

    def client(self, ticket: str | None = None) -> tuple[Peer, dict[str, Any]]:
        """A client and its welcome."""
        peer = self.peer().joins(ticket)
        return peer, peer.hears()[0]


class AdmissionTests(ProtocolTestCase):
    """Who may stay."""

    def test_in_and_out(self) -> None:
        """Without it the connection limits would count wrong, and some day let nobody in."""
        peers = [self.peer().opens(), self.peer().joins(), self.worker()]
        self.assertEqual(self.bench.inside, ["192.0.2.1"] * 3)
        peers[0].vanishes()
        peers[1].closes()
        self.bench.factory.end(peers[2].protocol, Close.GOING_AWAY, "front going away")
        self.assertEqual(len(self.bench.inside), 1)
        self.clock.advance(CLOSE_TIMEOUT_S)
        self.clock.advance(0)
        self.assertEqual((self.bench.inside, dict(self.bench.factory.waiting)), ([], {}))

    def test_address_behind_a_proxy(self) -> None:
        """Without it all clients of a proxy would share one limit."""
        peer = self.peer()
        peer.asks(X_Forwarded_For="203.0.113.9")
        self.assertEqual(self.bench.inside, ["203.0.113.9"])
        peer.vanishes()
        self.assertEqual(self.bench.inside, [])

    def test_cap(self) -> None:
        """Without it connections over the limit would be taken, or cut without a word."""
        self.bench.full = "address"
        peer = self.peer().joins()
        self.assertClosed(peer, Close.TRY_AGAIN_LATER)
        peer.gives(frame(TEXT, b'{"type":"hello","role":"client"}'))
        peer.closes(1013)
        self.assertEqual((peer.takes(), self.bench.inside, dict(self.bench.board.clients)), ([], [], {}))
        self.assertEqual(self.bench.counters.refused["address"], 1)
        self.assertEqual(self.bench.counters.closes["1013"], 1)

    def test_origin(self) -> None:
        """Without it any web page could use this front, in the name of who looks at it."""
        self.bench.origin_permitted = False
        for origin in ("http://evil.example", "null", "file://", "moz-extension://abc", "capacitor://localhost"):
            peer = self.peer()
            peer.asks(Origin=origin)
            self.assertClosed(peer, Close.NOT_ALLOWED)
        self.assertEqual(self.bench.origins[:2], ["http://evil.example", "null"])
        self.assertEqual(self.bench.counters.refused["origin"], 5)
        self.assertEqual(self.bench.inside, [])
        self.bench.origin_permitted = True
        for origin in ("null", "http://front.example:8080", "moz-extension://abc"):
            peer = self.peer()
            self.assertTrue(peer.asks(Origin=origin).startswith(b"HTTP/1.1 101 "))
            self.assertEqual(peer.takes(), [])

    def test_own_mistake_while_admitting(self) -> None:
        """Without it a mistake of ours would leave a connection open that nobody knows of."""

        def broken(*args: object) -> Any:
            raise ZeroDivisionError

        self.bench.factory.address_of = broken
        self.assertTrue(self.peer().asks().startswith(b"HTTP/1.1 500 "))
        self.bench.factory.address_of = lambda peer, headers: peer
        self.bench.factory._admit = broken
        peer = self.peer()
        peer.asks()
        self.clock.advance(0)
        self.assertIsNotNone(peer.socket.lost)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(len(self.logged), 2)
        self.logged.clear()


class TimeTests(ProtocolTestCase):
    """What does not come in time."""

    def expire(self) -> None:
        """As the front does it four times a second."""
        self.bench.factory.expire(HELLO_TIMEOUT_S)

    def test_no_hello(self) -> None:
        """Without it connections that say nothing would stay for ever."""
        silent = self.peer().opens()
        self.clock.advance(0.5)
        chatty = self.peer().opens()
        chatty.gives(text(type="hello", role="client", ticket="forged"))
        challenged = self.peer().opens()
        challenged.gives(text(type="hello", role="worker", id="w1", nonce=NONCE))
        client, _ = self.client()
        worker = self.worker()
        self.clock.advance(HELLO_TIMEOUT_S - 0.6)
        self.expire()
        self.assertEqual(silent.takes(), [])
        self.clock.advance(0.1)
        self.expire()
        self.assertClosed(silent, Close.NO_HELLO)
        self.assertEqual([kind["type"] for kind in chatty.hears()], ["error"])
        self.clock.advance(0.5)
        self.expire()
        self.assertClosed(chatty, Close.NO_HELLO)
        self.assertClosed(challenged, Close.NO_HELLO, "challenge")
        self.expire()
        self.assertEqual((client.takes(), worker.takes()), ([], []))
        self.assertEqual(dict(self.bench.factory.waiting), {})
        self.assertEqual(self.bench.counters.refused["no-hello"], 3)

    def test_a_slow_disk_is_not_the_workers_fault(self) -> None:
        """Without it workers would be thrown out while the front stores their registration."""
        worker = self.worker(stores=None)
        self.clock.advance(HELLO_TIMEOUT_S + 5)
        self.expire()
        self.assertEqual((worker.takes(), list(self.bench.factory.waiting)), ([], [worker.protocol]))
        self.bench.registrar.finish()
        self.assertEqual([message["type"] for message in worker.hears()], ["welcome"])
        self.expire()
        self.assertEqual((worker.takes(), dict(self.bench.factory.waiting)), ([], {}))


class MessageTests(ProtocolTestCase):
    """Clients and workers over their WebSockets."""

    def test_offer_and_answer(self) -> None:
        """Without it no session would ever begin."""
        worker = self.worker()
        client, welcome = self.client()
        client.gives(text(type="offer", to="w1", sdp=SDP, session="s1"))
        self.assertEqual(worker.hears(), [{"type": "offer", "from": welcome["id"], "sdp": SDP, "session": "s1"}])
        worker.gives(text(type="answer", to=welcome["id"], sdp=SDP) + text(type="bye", to=welcome["id"]))
        self.assertEqual(
            client.hears(), [{"type": "answer", "from": "w1", "sdp": SDP}, {"type": "bye", "from": "w1"}]
        )

    def test_messages_behind_the_hello(self) -> None:
        """Without it a client that does not wait for its welcome would lose its first messages."""
        worker = self.worker()
        peer = self.peer().opens()
        peer.gives(text(type="hello", role="client") + text(type="offer", to="w1", sdp=SDP) + text(type="assign"))
        self.assertEqual([message["type"] for message in peer.hears()], ["welcome", "assigned"])
        self.assertEqual(len(worker.hears()), 1)

    def test_closing_client_is_gone_at_once(self) -> None:
        """Without it a message to a client that has just closed would be lost, or answered target-busy."""
        worker = self.worker()
        client, welcome = self.client()
        client.socket.window = 0  # its TCP connection takes a moment
        client.closes(1001)
        self.assertIsNone(client.socket.lost)
        worker.gives(text(type="answer", to=welcome["id"], sdp=SDP))
        self.assertEqual(worker.takes(), [])
        back, _ = self.client(welcome["ticket"])
        client.vanishes()
        self.assertEqual(list(self.bench.board.clients.values()), [back.protocol])
        self.assertIn(b'"type":"answer"', bytes(back.socket.out))

    def test_replaced(self) -> None:
        """Without it a client could not come back while its old connection looks open."""
        old, welcome = self.client()
        new, _ = self.client(welcome["ticket"])
        self.assertClosed(old, Close.REPLACED)
        old.gives(text(type="assign"))
        old.vanishes()
        self.assertEqual(old.takes(), [])
        self.assertIs(self.bench.board.clients[welcome["id"]], new.protocol)

    def test_wrong_mac(self) -> None:
        """Without it a stranger would learn more than that it is not wanted."""
        peer = self.peer().opens()
        peer.gives(text(type="hello", role="worker", id="w1", nonce=NONCE))
        peer.hears()
        peer.gives(text(type="auth", mac="00" * 32) + text(type="status", sessions=1))
        self.assertClosed(peer, Close.UNAUTHENTICATED)

    def test_left_while_joining(self) -> None:
        """Without it a worker that vanished during its registration would be in the tables."""
        worker = self.worker(stores=None)
        self.assertEqual(worker.protocol.stage, Stage.JOINING)
        worker.vanishes()
        self.bench.registrar.finish()
        self.assertEqual((self.bench.registrar.held, dict(self.bench.board.workers)), ({}, {}))

    def test_worker_lost(self) -> None:
        """Without it clients would hear of the loss of their worker only from time-outs."""
        worker = self.worker()
        client, _ = self.client()
        client.gives(text(type="offer", to="w1", sdp=SDP))
        worker.vanishes()
        self.assertEqual(client.hears(), [{"type": "worker-lost", "worker": "w1", "assigned": None}])

    def test_slow_worker(self) -> None:
        """Without it a client would not be told that its worker does not read."""
        worker = self.worker()
        worker.socket.window = 0
        client, _ = self.client()
        offer = text(type="offer", to="w1", sdp="v=0" + "x" * 60_000)
        for _ in range(30):
            client.gives(offer)
        codes = [message.get("code", message["type"]) for message in client.hears()]
        self.assertEqual(codes[:3], ["worker-lost", "target-busy", "unknown-target"])
        worker.socket.window = 1 << 60
        frames = worker.takes()
        self.assertEqual(frames[-1][1][:2], Close.SLOW_CONSUMER.to_bytes(2, "big"))
        self.assertEqual(len(frames) - 1 + len(codes) - 1, 30)

    def test_ten_bad_messages(self) -> None:
        """Without it a client of another protocol would be answered for ever."""
        client, _ = self.client()
        client.gives(frame(TEXT, b"ping") * 12)
        self.assertClosed(client, Close.BAD_MESSAGES, *["error"] * 10)

    def test_own_mistake(self) -> None:
        """Without it a mistake of ours would be unlogged, or leave the client waiting."""
        client, _ = self.client()
        self.bench.pool = None  # type: ignore[assignment]
        client.gives(text(type="assign") + text(type="assign"))
        frames = client.takes()
        self.assertEqual(json.loads(frames[0][1])["code"], "internal")
        self.assertEqual(frames[1][1][:2], Close.INTERNAL.to_bytes(2, "big"))
        self.assertEqual((len(frames), len(self.flushLoggedErrors(TypeError))), (2, 1))
        self.assertEqual([event["log_level"] for event in self.logged], [LogLevel.critical])
        self.logged.clear()
