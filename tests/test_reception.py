"""How clients and workers come in: the contract's hello and auth, on a switchboard without a network."""

from __future__ import annotations

from typing import Any

from kollator.guard.keys import matching_front_key, worker_mac
from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close
from tests.switchboard_bench import KEYS, MESSAGE_RATE, NONCE, SDP, Bench, BenchTestCase, Wire, kinds


class ClientHelloTests(BenchTestCase):
    """How a client comes in."""

    def test_welcome(self) -> None:
        """Without it a client would not know its id, its ticket, its limits or its ICE servers."""
        wire = Wire(self.bench)
        welcome = wire.says(type="hello", role="client", ref="r1")
        self.assertEqual(
            {key: welcome[key] for key in welcome if key not in ("id", "ticket")},
            {
                "type": "welcome",
                "node": "signaling-1",
                "iceServers": [{"urls": ["stun:stun.example"]}],
                "limits": {"messageBytes": 65536, "messagesPerSecond": MESSAGE_RATE},
                "ref": "r1",
            },
        )
        self.assertEqual(self.bench.tickets.open(welcome["ticket"], self.bench.wall), (welcome["id"], ""))
        self.assertIs(self.board.clients[welcome["id"]], wire)
        self.assertEqual(self.bench.counters.clients_joined, 1)
        self.assertEqual(self.bench.counters.clients_returned, 0)
        self.assertNotEqual(self.bench.client().id, welcome["id"])

    def test_ticket_keeps_the_id(self) -> None:
        """Without it a client that comes back, or lands on another front, would be somebody else."""
        self.bench.pool = ["w1"]
        ticket, _ = self.bench.tickets.issue("client-of-another-front", self.bench.wall, "w1")
        wire = self.bench.client(ticket)
        self.assertEqual((wire.id, wire.assigned), ("client-of-another-front", "w1"))
        self.bench.wall += 10
        renewed = wire.sent[0]["ticket"]
        self.assertEqual(self.bench.tickets.open(renewed, self.bench.wall), ("client-of-another-front", "w1"))

    def test_bad_ticket(self) -> None:
        """Without it a forged id would pass, or a client with an old ticket would be locked out."""
        wire = Wire(self.bench)
        good, expires = self.bench.tickets.issue("c1", self.bench.wall)
        for bad in ("x", good[:-1], good.replace("c1", "c2"), "v1." + "x" * 5000):
            self.assertError(wire.says(type="hello", role="client", ticket=bad, ref="r"), "bad-ticket", ref="r")
        self.bench.wall = float(expires)
        self.assertError(wire.says(type="hello", role="client", ticket=good), "bad-ticket")
        self.assertEqual((wire.stage, wire.code, wire.bad_in_a_row), (Stage.HELLO, None, 0))
        self.assertEqual(wire.says(type="hello", role="client")["type"], "welcome")

    def test_empty_ticket_is_none(self) -> None:
        """Without it a client that stores no ticket and sends what it has would be refused."""
        for ticket in ("", None):
            self.assertEqual(Wire(self.bench).says(type="hello", role="client", ticket=ticket)["type"], "welcome")

    def test_nothing_before_hello(self) -> None:
        """Without it someone without an id could send to workers."""
        self.bench.worker()
        wire = Wire(self.bench)
        self.assertError(
            wire.says(type="offer", to="w1", sdp=SDP, ref="r"), "not-allowed-yet", ref="r", to="w1"
        )
        for message in ({"type": "assign"}, {"type": "auth", "mac": "00"}, {"type": "status", "sessions": 1}):
            self.assertError(wire.says(**message), "not-allowed-yet")
        self.assertIsNone(wire.code)

    def test_one_hello_only(self) -> None:
        """Without it a client could take a second id and leave the first in the tables."""
        wire = self.bench.client()
        self.assertError(wire.says(type="hello", role="client", ref="r"), "forbidden", ref="r")
        self.assertEqual(len(self.board.clients), 1)


class WorkerHelloTests(BenchTestCase):
    """How a worker comes in."""

    def test_registration(self) -> None:
        """Without it no worker could prove itself, or none could tell that the front is one."""
        wire = self.bench.challenged(ref="r1")
        challenge = wire.sent[0]
        self.assertRegex(challenge["nonce"], r"\A[0-9a-f]{64}\Z")
        self.assertEqual((challenge["type"], challenge["ref"]), ("challenge", "r1"))
        welcome = self.bench.proves(wire, ref="r2")
        self.assertEqual(set(welcome), {"type", "id", "node", "iceServers", "mac", "ref"})
        self.assertEqual((welcome["type"], welcome["id"], welcome["ref"]), ("welcome", "w1", "r2"))
        self.assertEqual(matching_front_key(KEYS, welcome["mac"], "w1", NONCE, challenge["nonce"]), KEYS[0])
        self.assertIs(self.board.workers["w1"], wire)
        self.assertEqual(self.bench.counters.workers_joined, 1)
        self.assertNotEqual(self.bench.challenged("w2").sent[0]["nonce"], challenge["nonce"])

    def test_any_key_of_the_file(self) -> None:
        """Without it keys could not be rotated."""
        wire = self.bench.challenged()
        welcome = self.bench.proves(wire, KEYS[1])
        nonce = wire.sent[0]["nonce"]
        self.assertEqual(matching_front_key(KEYS, welcome["mac"], "w1", NONCE, nonce), KEYS[0])

    def test_wrong_mac(self) -> None:
        """Without it anybody could be a worker; more than the close code would tell an attacker something."""
        for mac in ("", "00" * 32, "zz" * 32, "0" * 5000):
            wire = self.bench.challenged()
            wire.take()
            self.assertEqual(wire.says(type="auth", mac=mac), {})
            self.assertEqual((wire.code, wire.sent, wire.late), (Close.UNAUTHENTICATED, [], []))
        self.assertEqual(self.bench.registrar.held, {})
        self.assertEqual(self.bench.counters.workers_refused, 4)
        self.assertEqual(self.bench.counters.closes["4401"], 4)

    def test_mac_covers_what_was_said(self) -> None:
        """Without it a worker could register with another capacity than the one it has a proof for."""
        for changed in ({"worker_id": "w2"}, {"region": "us-east"}, {"capacity": 101}, {"client_nonce": "f" * 32}):
            wire = self.bench.challenged()
            said: dict[str, Any] = {"worker_id": "w1", "region": "us-west", "capacity": 100, "client_nonce": NONCE}
            mac = worker_mac(KEYS[0], **(said | changed), server_nonce=wire.sent[0]["nonce"])
            wire.says(type="auth", mac=mac)
            self.assertEqual(wire.code, Close.UNAUTHENTICATED, changed)
        replayed = self.bench.challenged()
        mac = worker_mac(KEYS[0], "w1", "us-west", 100, NONCE, wire.sent[0]["nonce"])
        replayed.says(type="auth", mac=mac)
        self.assertEqual(replayed.code, Close.UNAUTHENTICATED)

    def test_missing_keys(self) -> None:
        """Without it a worker without an id could register, or its mistakes would not be counted."""
        wire = Wire(self.bench)
        for keys in ({}, {"id": "w1"}, {"nonce": NONCE}, {"id": None, "nonce": NONCE}):
            self.assertError(wire.says(type="hello", role="worker", ref="r", **keys), "bad-message", ref="r")
        self.assertEqual((wire.stage, wire.bad_in_a_row), (Stage.HELLO, 4))

    def test_address_not_allowed(self) -> None:
        """Without it WORKER_ALLOW would allow any."""
        self.bench.banned.add("192.0.2.9")
        wire = self.bench.challenged(address="10.0.0.1")
        self.assertEqual((wire.code, wire.sent), (Close.NOT_ALLOWED, []))
        self.assertEqual(self.bench.counters.workers_refused, 1)
        self.assertEqual(self.bench.client().code, None)

    def test_address_as_told_or_as_seen(self) -> None:
        """Without it the workers' list would show nothing for a worker that does not tell its address."""
        self.bench.worker("w1", address="10.0.0.1")
        self.bench.worker("w2")
        held = self.bench.registrar.held
        self.assertEqual((held["w1"].address, held["w2"].address), ("10.0.0.1", "192.0.2.9"))

    def test_nothing_else_before_the_welcome(self) -> None:
        """Without it a worker could speak before its proof, or change what the proof is about."""
        wire = self.bench.challenged()
        self.assertError(wire.says(type="status", sessions=1), "not-allowed-yet")
        self.assertError(wire.says(type="hello", role="worker", id="w2", nonce=NONCE), "not-allowed-yet")
        self.assertError(wire.says(type="hello", role="client"), "not-allowed-yet")
        assert wire.claim is not None
        self.assertEqual(wire.claim.id, "w1")
        self.bench.registrar.stores = None
        self.assertEqual(self.bench.proves(wire), {})
        self.assertEqual(wire.stage, Stage.JOINING)
        self.assertError(wire.says(type="answer", to="c1", sdp=SDP), "not-allowed-yet", to="c1")
        self.assertError(wire.says(type="hello", role="client"), "not-allowed-yet")
        self.assertError(wire.says(type="auth", mac="00"), "not-allowed-yet")
        self.bench.registrar.finish()
        self.assertEqual(wire.sent[-1]["type"], "welcome")

    def test_welcome_waits_for_the_disk(self) -> None:
        """Without it a registration could be promised that a crash undoes."""
        self.bench.registrar.stores = None
        wire = self.bench.challenged()
        self.bench.proves(wire)
        self.assertEqual((kinds(wire.sent), dict(self.board.workers)), (["challenge"], {}))
        self.bench.registrar.finish()
        self.assertEqual(kinds(wire.sent), ["challenge", "welcome"])

    def test_not_stored(self) -> None:
        """Without it a worker would wait for ever for a registration that failed."""
        self.bench.registrar.stores = None
        wire = self.bench.challenged()
        self.bench.proves(wire, ref="r")
        self.bench.registrar.finish(stored=False)
        self.assertError(wire.sent[-1], "internal", ref="r")
        self.assertEqual((wire.code, dict(self.board.workers)), (Close.TRY_AGAIN_LATER, {}))
        self.assertEqual(self.bench.counters.closes["1013"], 1)

    def test_left_while_joining(self) -> None:
        """Without it a worker that went away during its registration would be held for ever."""
        for stored in (True, False):
            self.bench.registrar.stores = None
            wire = self.bench.challenged()
            self.bench.proves(wire)
            self.board.closed(wire, self.bench.now)
            self.bench.registrar.finish(stored=stored)
            self.assertEqual((self.bench.registrar.held, dict(self.board.workers)), ({}, {}))
            self.assertEqual(kinds(wire.sent), ["challenge"])

    def test_same_id_replaces(self) -> None:
        """Without it a worker that lost its connection could not come back before the old one times out."""
        older = self.bench.worker()
        newer = self.bench.worker()
        self.assertEqual((older.code, newer.code), (Close.REPLACED, None))
        self.assertIs(self.board.workers["w1"], newer)
        self.board.closed(older, self.bench.now)
        self.assertIs(self.board.workers["w1"], newer)
        self.assertIs(self.bench.registrar.held["w1"], newer.claim)
        self.assertEqual(older.says(type="status", sessions=1), {})
        self.assertEqual(self.bench.counters.closes["4409"], 1)

    def test_a_claim_alone_replaces_nobody(self) -> None:
        """Without it anybody could throw a worker out by saying its name."""
        worker = self.bench.worker()
        impostor = self.bench.challenged()
        impostor.says(type="auth", mac="00" * 32)
        self.assertIsNone(worker.code)
        self.assertIs(self.board.workers["w1"], worker)

    def test_two_that_join_at_once(self) -> None:
        """Without it the older of two registrations could win, because its write was the slower one."""
        for order in ((0, 0), (1, 0)):
            bench = Bench()
            bench.registrar.stores = None
            first, second = bench.challenged(), bench.challenged()
            bench.proves(first)
            bench.proves(second)
            for index in order:
                bench.registrar.finish(index)
            self.assertEqual((first.code, second.code), (Close.REPLACED, None))
            self.assertIs(bench.board.workers["w1"], second)
            self.assertIs(bench.registrar.held["w1"], second.claim)
            self.assertEqual((kinds(first.sent), kinds(second.sent)), (["challenge"], ["challenge", "welcome"]))
            self.assertEqual(bench.board.connections(), [second])
            bench.board.closed(first, bench.now)
            bench.board.closed(second, bench.now)
            self.assertEqual((bench.registrar.held, dict(bench.board.workers)), ({}, {}))

    def test_a_large_worker_may_say_more(self) -> None:
        """Without it a worker with thousands of clients would be held to the rate of one."""
        for capacity, count in ((100, 400), (1000, 4000)):
            bench = Bench()
            wire = bench.limited(bench.challenged(capacity=capacity))
            bench.proves(wire)
            wire.take()
            for _ in range(5000):
                if wire.says(type="status", sessions=1):
                    break
            self.assertIn(len(bench.registrar.loads), range(count - 20, count + 1))
