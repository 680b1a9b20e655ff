"""How clients and workers come in: the contract's hello and auth, on a switchboard without a network."""

from __future__ import annotations

from functools import partial
from typing import Any

from kollator.guard.keys import matching_front_key, worker_mac
from kollator.guard.limits import AddressBackoff
from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close
from kollator.signaling.switchboard import Switchboard
from tests import switchboard_bench
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

    def test_replacement_is_noted(self) -> None:
        """Without it the audit log would not tell that a ticket was used from another address."""
        older = self.bench.client()
        newer = Wire(self.bench, "192.0.2.55")
        newer.says(type="hello", role="client", ticket=older.sent[0]["ticket"])
        replaced = [fields for event, fields in self.bench.notes if event == "client-replaced"]
        self.assertEqual(replaced, [{"client": newer.id, "address": "192.0.2.55", "replaced": "192.0.2.1"}])
        self.bench.notes.clear()
        self.board.abroad.moved_away(newer.id, newer.since_ms + 1, "signaling-2", self.bench.now)
        moved = {"client": newer.id, "address": "", "replaced": "192.0.2.55"}
        self.assertEqual(self.bench.notes, [("client-replaced", moved)])

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

    def test_not_listed(self) -> None:
        """Without it workers-file-only would take any; and who has no key would learn what the list has."""
        for unlisted in ("w1", "10.0.0.1"):
            self.bench.unlisted = {unlisted}
            wire = self.bench.challenged(address="10.0.0.1")
            wire.take()
            stranger = self.bench.challenged(address="10.0.0.1")
            stranger.says(type="auth", mac="00" * 32)
            self.assertEqual(stranger.code, Close.UNAUTHENTICATED)
            wire.sent.append({"type": "challenge", "nonce": wire.server_nonce})
            self.assertEqual(self.bench.proves(wire), {})
            self.assertEqual((wire.code, self.bench.registrar.held), (Close.NOT_ALLOWED, {}))
            fields = {"worker": "w1", "address": "192.0.2.9", "reason": "not listed"}
            self.assertEqual(self.bench.notes[-1], ("worker-unlisted", fields))
        self.assertEqual(self.bench.counters.workers_refused, 4)
        self.bench.unlisted = {"w2"}
        self.assertIsNone(self.bench.worker("w1").code)

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

    def test_what_the_audit_log_is_told(self) -> None:
        """Without it nobody could tell later who came in as a worker, who tried to, and from where."""
        older = self.bench.worker()
        newer = self.bench.challenged()
        newer.address = "192.0.2.10"
        self.bench.proves(newer)
        self.board.closed(newer, self.bench.now)
        registered = {"worker": "w1", "address": "192.0.2.9", "region": "us-west", "capacity": 100}
        self.assertEqual(
            self.bench.notes,
            [
                ("worker-joined", registered),
                ("worker-replaced", {"worker": "w1", "address": "192.0.2.10", "replaced": older.address}),
                ("worker-joined", registered | {"address": "192.0.2.10"}),
                ("worker-left", {"worker": "w1", "address": "192.0.2.10", "reason": "connection closed"}),
            ],
        )
        self.bench.notes.clear()
        polite = self.bench.worker()
        polite.left_politely = True
        self.board.closed(polite, self.bench.now)
        self.assertEqual(self.bench.notes.pop()[1]["reason"], "said good-bye")
        self.bench.challenged().says(type="auth", mac="00" * 32)
        refused = {"worker": "w1", "address": "192.0.2.9"}
        self.assertEqual(self.bench.notes.pop(), ("auth-failed", refused | {"reason": "wrong mac"}))
        self.bench.registrar.stores = False
        self.bench.proves(self.bench.challenged())
        event, fields = self.bench.notes.pop()
        self.assertEqual((event, fields), ("worker-refused", refused | {"reason": "the registration was not stored"}))
        self.bench.banned.add("192.0.2.9")
        self.bench.challenged()
        self.assertEqual(self.bench.notes.pop(), ("worker-refused", refused | {"reason": "address not allowed"}))

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


class BackoffTests(BenchTestCase):
    """Workers from an address that gave a wrong proof a moment ago."""

    def setUp(self) -> None:
        """A bench that keeps them out."""
        backoff = AddressBackoff(60.0, 100, lambda address: address.startswith("127."))
        self.patch(switchboard_bench, "Switchboard", partial(Switchboard, auth_backoff=backoff))
        super().setUp()

    def fails(self, wire: Wire) -> None:
        """A wrong mac: close 4401, and nothing else."""
        before = len(wire.sent)
        self.assertEqual(wire.says(type="auth", mac="00" * 32), {})
        self.assertEqual((wire.code, len(wire.sent)), (Close.UNAUTHENTICATED, before))

    def test_kept_out(self) -> None:
        """Without it keys could be tried as fast as the network is."""
        self.fails(self.bench.challenged())
        self.bench.now += 0.9
        early = self.bench.challenged("w2")
        self.assertEqual((early.sent, early.code), ([], Close.UNAUTHENTICATED))
        self.bench.now += 0.1
        self.assertEqual(self.bench.challenged("w2").code, None)
        self.assertEqual(self.bench.counters.workers_refused, 2)
        self.assertEqual(self.bench.counters.closes["4401"], 2)

    def test_longer_each_time(self) -> None:
        """Without it a second between two guesses would be all there is, for ever."""
        for _ in range(3):
            self.fails(self.bench.challenged())
            self.bench.now += 4.0
        self.fails(self.bench.challenged())
        self.bench.now += 7.9
        self.assertEqual(self.bench.challenged().code, Close.UNAUTHENTICATED)
        self.bench.now += 0.1
        self.assertIsNone(self.bench.challenged().code)

    def test_good_mac_forgets(self) -> None:
        """Without it one worker with an old key would keep its neighbours waiting longer and longer."""
        waiting = self.bench.challenged("w2")
        self.fails(self.bench.challenged())
        self.bench.proves(waiting)
        self.assertIs(waiting.stage, Stage.WORKER)
        self.assertIsNone(self.bench.challenged("w3").code)

    def test_clients_go_in(self) -> None:
        """Without it a worker with an old key would lock out the clients behind the same address."""
        self.fails(self.bench.challenged())
        client = Wire(self.bench, "192.0.2.9")
        self.assertEqual(client.says(type="hello", role="client")["type"], "welcome")

    def test_told_once(self) -> None:
        """Without it the audit log would say nothing of it, or the same a thousand times."""
        self.fails(self.bench.challenged())
        for _ in range(3):
            self.bench.challenged("w2")
        fields = {"address": "192.0.2.9"}
        self.assertEqual(
            [note for note in self.bench.notes if note[0] == "auth-failed"],
            [
                ("auth-failed", {"worker": "w1", "reason": "wrong mac", **fields}),
                ("auth-failed", {"worker": "w2", "reason": "backing-off", **fields}),
            ],
        )
        self.assertEqual(self.bench.counters.workers_refused, 4)

    def test_exempt(self) -> None:
        """Without it a demo on one machine would lock itself out."""
        for _ in range(5):
            wire = Wire(self.bench, "127.0.0.1")
            wire.says(type="hello", role="worker", id="w1", nonce=NONCE)
            self.fails(wire)
