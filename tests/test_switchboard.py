"""What clients and workers may say to each other: the contract's section 2, without a network."""

from __future__ import annotations

from typing import Any

from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close
from kollator.signaling.switchboard import BAD_MESSAGES, OVER_RATE, TALKED
from tests.switchboard_bench import MESSAGE_RATE, SDP, BenchTestCase, Front, Wire, kinds


class RelayTests(BenchTestCase):
    """Messages between a client and a worker."""

    def setUp(self) -> None:
        """One of each."""
        super().setUp()
        self.worker = self.bench.worker()
        self.client = self.bench.client()
        self.client.take()

    def test_as_sent_with_from(self) -> None:
        """Without it session descriptions and candidates would not reach the other side, or not as they were."""
        candidate = {"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "u"}
        for message in (
            {"type": "offer", "sdp": SDP, "session": "s1"},
            {"type": "answer", "sdp": "v=0\r\ns=\u00fc \U0001f600\u2028"},
            {"type": "candidate", "candidate": candidate, "session": "s1"},
            {"type": "candidate", "candidate": None, "session": None},
            {"type": "bye", "session": "s1", "reason": "done"},
            {"type": "bye"},
        ):
            forged = {"from": "somebody", "ref": "r", "unknown": 1}
            self.assertEqual(self.client.says(to="w1", **forged, **message), {})
            self.assertEqual(self.worker.take(), [{"from": self.client.id, **message}])
            self.assertEqual(self.worker.says(to=self.client.id, **forged, **message), {})
            self.assertEqual(self.client.take(), [{"from": "w1", **message}])
        self.assertEqual(self.bench.counters.messages_relayed, 12)

    def test_connected_is_counted_and_not_passed_on(self) -> None:
        """Without it nobody would know how many hand-offs succeed, and how long they take."""
        self.assertEqual(self.client.says(type="connected", to="w1", session="s1", ms=312), {})
        self.assertEqual(self.client.says(type="connected", to="w1"), {})
        self.assertEqual((self.bench.counters.handoffs, self.bench.handoffs), (2, [312.0]))
        self.assertEqual(self.worker.take(), [])

    def test_unknown_target(self) -> None:
        """Without it a client would wait for a worker that is not there, until a time-out."""
        error = self.client.says(type="offer", to="w9", sdp=SDP, ref="r")
        self.assertError(error, "unknown-target", ref="r", to="w9")
        self.assertError(self.worker.says(type="bye", to="nobody"), "unknown-target", to="nobody")
        self.assertEqual(self.bench.counters.errors["unknown-target"], 2)
        self.assertEqual(self.client.talked, ())

    def test_only_across_the_roles(self) -> None:
        """Without it clients could reach clients through this front, and workers workers."""
        other, away = self.bench.client(), self.bench.client()
        self.board.closed(away, self.bench.now)
        self.bench.worker("w2")
        self.bench.pool.append("w3")  # on another front
        for target in (other.id, self.client.id, away.id):
            self.assertError(self.client.says(type="bye", to=target), "forbidden", to=target)
        for target in ("w1", "w2", "w3"):
            self.assertError(self.worker.says(type="bye", to=target), "forbidden", to=target)
        self.assertEqual((other.sent[1:], self.board.workers["w2"].sent), ([], []))  # type: ignore[attr-defined]

    def test_messages_of_the_other_role(self) -> None:
        """Without it a client could report a worker's load, or a worker ask for a worker."""
        for message in ({"type": "status", "sessions": 1}, {"type": "auth", "mac": "00"}):
            self.assertError(self.client.says(**message), "forbidden")
        for message in ({"type": "assign"}, {"type": "connected", "to": "w1"}, {"type": "auth", "mac": "00"}):
            self.assertError(self.worker.says(ref="r", **message), "forbidden", ref="r", **_to(message))
        self.assertEqual(self.bench.registrar.loads, [])

    def test_status(self) -> None:
        """Without it a full worker would get more clients."""
        self.assertEqual(self.worker.says(type="status", sessions=12, draining=True), {})
        self.assertEqual(self.worker.says(type="status", sessions=0), {})
        self.assertEqual(self.bench.registrar.loads, [("w1", 12, True), ("w1", 0, False)])

    def test_slow_target(self) -> None:
        """Without it one that does not read would fill the memory, or its partner would learn nothing of it."""
        self.worker.slow = True
        self.client.says(type="bye", to="w1", ref="r")
        self.assertEqual(self.worker.code, Close.SLOW_CONSUMER)
        (error,) = self.client.take()
        self.assertError(error, "target-busy", ref="r", to="w1")
        self.assertError(self.client.says(type="bye", to="w1"), "unknown-target", to="w1")

    def test_slow_client(self) -> None:
        """Without it a worker would take a message for sent that its client was cut off over."""
        self.client.slow = True
        error = self.worker.says(type="bye", to=self.client.id, ref="r")
        self.assertEqual(self.client.code, Close.SLOW_CONSUMER)
        self.assertError(error, "target-busy", ref="r", to=self.client.id)

    def test_slow_worker_that_is_talked_to(self) -> None:
        """Without it the clients of a worker that was cut off would not be told that it is lost."""
        self.client.says(type="bye", to="w1")
        self.worker.slow = True
        self.client.says(type="bye", to="w1")
        lost, error = self.client.take()
        self.assertEqual(lost, {"type": "worker-lost", "worker": "w1", "assigned": None})
        self.assertError(error, "target-busy", to="w1")

    def test_other_fronts(self) -> None:
        """Without it a worker or a client on another front could not be reached."""
        front = self.board.elsewhere = Front()
        self.assertEqual(self.client.says(type="bye", to="w9"), {})
        self.assertEqual(self.worker.says(type="bye", to="c9"), {})
        payload = b'{"type":"bye","from":"%s"}'
        self.assertEqual(
            front.asked,
            [("w9", self.client.id, payload % self.client.id.encode()), ("c9", "w1", payload % b"w1")],
        )
        self.assertIn("w9", self.client.talked)
        for outcome, code in (("busy", "target-busy"), ("unknown", "unknown-target"), ("forbidden", "forbidden")):
            front.outcome = outcome
            self.assertError(self.client.says(type="bye", to="w9"), code, to="w9")
            self.assertError(self.worker.says(type="bye", to="c9"), code, to="c9")
        front.asked.clear()
        self.client.says(type="bye", to="w1")
        self.worker.says(type="bye", to=self.client.id)
        self.assertEqual(front.asked, [])

    def test_better_reached_elsewhere(self) -> None:
        """Without it what clients say would go into the silent connection of a worker that another front reaches."""
        front = self.board.elsewhere = Front()
        self.bench.elsewhere.add("w1")
        self.worker.take()
        self.client.says(type="bye", to="w1")
        self.assertEqual((self.worker.take(), [asked[:2] for asked in front.asked]), ([], [("w1", self.client.id)]))

    def test_talked_is_bounded(self) -> None:
        """Without it a client could make this front remember any number of workers."""
        self.board.elsewhere = Front()
        for number in [*range(TALKED + 5), TALKED + 4]:
            self.client.says(type="bye", to=f"w{number}")
        self.assertEqual(self.client.talked, tuple(f"w{number}" for number in range(5, TALKED + 5)))


def _hit(reason: str, wire: Wire) -> dict[str, Any]:
    return {"reason": reason, "id": wire.id, "address": wire.address}


def _to(message: dict[str, Any]) -> dict[str, Any]:
    return {"to": message["to"]} if "to" in message else {}


class RuleTests(BenchTestCase):
    """Bad messages, rates, and how a front says farewell."""

    def test_ten_bad_messages_in_a_row(self) -> None:
        """Without it a broken client would send rubbish for ever, or a good one be closed for a slip now and then."""
        wire = self.bench.client()
        for count in range(4):
            for number in range(BAD_MESSAGES - 1):
                payload = [b"{", b'{"type":"nope"}', b'{"type":"offer","to":"w1"}', b"\xff"][number % 4]
                self.assertEqual(wire.says(payload)["type"], "error")
            if count % 2:
                self.assertError(wire.says(type="bye", to="w9"), "unknown-target", to="w9")
            else:
                self.assertEqual(wire.says(type="connected", to="w9"), {})
        for _ in range(BAD_MESSAGES - 1):
            wire.says(b"{")
        self.assertIsNone(wire.code)
        wire.says(b"{")
        self.assertError(wire.sent[-1], "bad-message")
        self.assertEqual(wire.code, Close.BAD_MESSAGES)
        self.assertEqual((wire.says(type="assign"), wire.late), ({}, []))
        self.assertEqual(self.bench.counters.closes["4400"], 1)

    def test_bad_messages_before_hello(self) -> None:
        """Without it somebody who never says hello could send rubbish without end."""
        wire = Wire(self.bench)
        for _ in range(BAD_MESSAGES):
            wire.says(b"GET / HTTP/1.1")
        self.assertEqual(wire.code, Close.BAD_MESSAGES)

    def test_too_large(self) -> None:
        """Without it a client would not be told why it is closed."""
        wire = self.bench.client()
        self.board.too_large(wire, self.bench.now)
        self.assertError(wire.sent[-1], "too-large")
        self.assertEqual(wire.code, Close.TOO_LARGE)
        self.board.too_large(wire, self.bench.now)
        self.assertEqual(wire.late, [])

    def test_own_failure(self) -> None:
        """Without it a mistake of this front's would leave a peer without an answer."""
        wire = self.bench.client()
        self.board.failed(wire, self.bench.now)
        self.assertError(wire.sent[-1], "internal")
        self.assertEqual(wire.code, Close.INTERNAL)

    def test_rate(self) -> None:
        """Without it one client could keep the front busy; and it must know which message was dropped."""
        self.bench.worker()
        wire = self.bench.limited(self.bench.client())
        wire.take()
        for _ in range(400):
            self.assertEqual(wire.says(type="connected", to="w1"), {})
        self.assertError(wire.says(type="bye", to="w1", ref="r"), "rate-limited", ref="r", to="w1")
        self.assertError(wire.says(b"\xff"), "rate-limited")
        self.bench.now += 1.0
        for _ in range(int(MESSAGE_RATE)):
            self.assertEqual(wire.says(type="connected", to="w1"), {})
        self.assertError(wire.says(type="connected", to="w1"), "rate-limited", to="w1")
        self.assertIsNone(wire.code)
        for _ in range(OVER_RATE):
            wire.says(type="assign")
        self.assertEqual((wire.code, wire.late), (Close.RATE_LIMITED, []))
        self.assertEqual(self.bench.counters.closes["4429"], 1)

    def test_a_little_over_the_rate(self) -> None:
        """Without it a client that is busy for minutes would be closed, where dropping some of it is enough."""
        wire = self.bench.limited(self.bench.client())
        for _ in range(60):
            self.bench.now += 1.0
            for _ in range(int(MESSAGE_RATE * 1.5)):
                wire.says(type="connected", to="w1")
        self.assertGreater(len(wire.sent), OVER_RATE * 5)
        self.assertIsNone(wire.code)

    def test_exempt_from_the_rate(self) -> None:
        """Without it the processes on the front's own machine would be limited."""
        wire = self.bench.client()
        for _ in range(2000):
            wire.says(type="connected", to="w1")
        self.assertEqual(kinds(wire.sent), ["welcome"])

    def test_drain(self) -> None:
        """Without it clients and workers would be cut off instead of moving to another front."""
        client, worker, silent = self.bench.client(), self.bench.worker(), Wire(self.bench)
        times = iter(range(100, 110))
        self.board.drain(lambda: next(times))
        self.assertEqual(silent.sent, [{"type": "draining", "reconnectInMs": 100}])
        self.assertEqual(client.sent[-1], {"type": "draining", "reconnectInMs": 101})
        self.assertEqual(worker.sent, [{"type": "draining", "reconnectInMs": 102}])
        silent.says(type="hello", role="client")
        self.assertEqual(kinds(silent.sent), ["draining", "welcome", "draining"])
        self.assertEqual(kinds(self.bench.worker("w2").sent), [])
        self.assertEqual(self.board.connections(), [client, silent, worker, self.board.workers["w2"]])

    def test_limits_are_noted(self) -> None:
        """Without it the audit log would not tell whom the front has closed for what."""
        closing = {
            Close.TOO_LARGE: "message-size",
            Close.NO_HELLO: "no-hello",
            Close.SLOW_CONSUMER: "slow-consumer",
            Close.TRY_AGAIN_LATER: "connections",
        }
        for code, reason in closing.items():
            wire = Wire(self.bench, "192.0.2.77")
            self.board.end(wire, code, "test", self.bench.now)
            self.board.end(wire, code, "test", self.bench.now)
            self.assertEqual(self.bench.notes.pop(), ("limit-hit", _hit(reason, wire)))
        talker = self.bench.limited(self.bench.client())
        for _ in range(400 + OVER_RATE):
            talker.says(type="connected", to="w1")
        babbler = Wire(self.bench)
        for _ in range(BAD_MESSAGES):
            babbler.says(b"{")
        hits = [fields for event, fields in self.bench.notes if event == "limit-hit"]
        self.assertEqual(hits, [_hit("message-rate", talker), _hit("bad-messages", babbler)])
        self.bench.notes.clear()
        self.board.end(self.bench.client(), Close.GOING_AWAY, "test", self.bench.now)
        self.assertNotIn("limit-hit", [event for event, _ in self.bench.notes])

    def test_end(self) -> None:
        """Without it a connection that was closed could still speak, or be counted twice."""
        client, worker = self.bench.client(), self.bench.worker()
        for wire in (client, worker):
            for _ in range(2):
                self.board.end(wire, Close.GOING_AWAY, "front going away", self.bench.now)
            self.assertEqual((wire.code, wire.says(type="assign")), (Close.GOING_AWAY, {}))
            self.board.closed(wire, self.bench.now)
        self.assertEqual(self.board.connections(), [])
        self.assertEqual(self.bench.counters.closes["1001"], 2)
        self.assertEqual(self.bench.registrar.held, {})
        events = [event for event, _ in self.bench.notes]
        self.assertEqual(events, ["client-joined", "worker-joined", "client-left", "worker-left"])

    def test_never_opened(self) -> None:
        """Without it a connection that never said anything could not be forgotten."""
        wire = Wire(self.bench)
        self.board.closed(wire, self.bench.now)
        self.assertEqual((wire.stage, wire.says(type="hello", role="client")), (Stage.ENDED, {}))
