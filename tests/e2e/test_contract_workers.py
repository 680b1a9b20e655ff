"""Section 2 of the contract as a worker meets it, and what clients see of workers that come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tests.e2e.contract_client import Client, ContractTestCase, Worker, front_mac, worker_mac
from tests.e2e.processes import WORKER_KEY, Front, elapsed_since, new_folder

SECOND_KEY = "zweiter Schlüssel mit Leerzeichen und Umlaut"


class RegistrationTests(ContractTestCase):
    """hello, challenge, auth, welcome. The key file has two keys, white space and an empty line."""

    keys = f"  {WORKER_KEY}\t\r\n\n {SECOND_KEY} \n"

    def test_registration(self) -> None:
        """A worker and the front prove to each other that they hold the key."""
        worker = self.stranger(region="us-west", capacity=7, address="192.168.1.100")
        challenge = worker.hello(ref="r1")
        self.assertEqual(challenge["type"], "challenge")
        self.assertRegex(challenge["nonce"], r"\A[0-9a-f]{64}\Z")
        worker.send(type="auth", mac=worker.mac())
        welcome = worker.receive()
        self.assertEqual((welcome["type"], welcome["id"], welcome["node"], welcome["iceServers"]),
                         ("welcome", worker.id, "front-e2e", []))
        self.assertEqual(welcome["mac"], front_mac(WORKER_KEY, worker.id, worker.nonce, worker.server_nonce))
        row = self.workers()[worker.id]
        self.assertEqual({name: row[name] for name in ("region", "capacity", "sessions", "state", "fronts", "address")},
                         {"region": "us-west", "capacity": 7, "sessions": 0, "state": "up",
                          "fronts": ["front-e2e"], "address": "192.168.1.100"})

    def test_nonces_are_fresh(self) -> None:
        """A nonce that repeats would let a recorded registration be played again."""
        nonces = {self.stranger().hello()["nonce"] for _ in range(3)}
        self.assertEqual(len(nonces), 3)

    def test_every_key_is_accepted(self) -> None:
        """Keys are rotated by adding a line: the second is accepted, the first one signs."""
        worker = self.worker(key=SECOND_KEY)
        self.assertEqual(worker.welcome["mac"], front_mac(WORKER_KEY, worker.id, worker.nonce, worker.server_nonce))

    def test_wrong_mac(self) -> None:
        """A wrong mac closes 4401 and says nothing else, whatever it is made of."""
        replayed = self.stranger()
        replayed.hello()
        macs: list[str] = ["00" * 32, "", "zz", "é" * 64, "0" * 10000, "\x00", replayed.mac()]
        for mac in macs:
            worker = self.stranger()
            worker.hello()
            worker.send(type="auth", mac=mac)
            self.assertEqual(worker.until_closed(), ([], 4401), mac[:70])
        self.assertNotIn(self.w1, [worker for worker, row in self.workers().items() if row["state"] == "up"])

    def test_mac_covers_everything(self) -> None:
        """A mac for another id, region, capacity, nonce or key registers nobody."""
        for changed in ({"worker": "other"}, {"region": "other"}, {"capacity": 8}, {"client_nonce": "1" * 32},
                        {"server_nonce": "0" * 64}, {"key": "other key"}):
            worker = self.stranger(region="r", capacity=7)
            worker.hello()
            proper: dict[str, Any] = {"key": WORKER_KEY, "worker": worker.id, "region": "r", "capacity": 7,
                                      "client_nonce": worker.nonce, "server_nonce": worker.server_nonce}
            worker.send(type="auth", mac=worker_mac(**{**proper, **changed}))
            self.assertEqual(worker.until_closed(), ([], 4401), changed)

    def test_bad_hello(self) -> None:
        """What a worker says of itself is checked before it is asked for proof."""
        bad: list[dict[str, Any]] = [
            {"id": ""}, {"id": "a b"}, {"id": "ü"}, {"id": "x" * 65}, {"id": "w1\n"}, {"id": 5}, {"id": None},
            {"capacity": 0}, {"capacity": -1}, {"capacity": 1_000_001}, {"capacity": 1.5}, {"capacity": "100"},
            {"capacity": True}, {"nonce": "0" * 31}, {"nonce": "g" * 32}, {"nonce": None}, {"nonce": 5},
            {"region": 5}, {"address": 5},
        ]
        for changes in bad:
            stranger = self.stranger()
            answer = stranger.hello(**changes)
            self.assertEqual((answer["type"], answer.get("code")), ("error", "bad-message"), changes)
            stranger.close()

    def test_extreme_but_valid(self) -> None:
        """Ids of 1 and 64 characters of every allowed kind, both ends of capacity, long nonces are all right."""
        for worker, capacity in (("x", 1), (("aZ09._:-" * 8), 1_000_000)):
            stranger = self.stranger(worker, capacity=capacity, region="Süd")
            stranger.nonce = "0123456789abcdefABCDEF" * 3
            stranger.joined()
            self.assertEqual(self.workers()[worker]["capacity"], capacity)

    def test_auth_before_hello_and_twice(self) -> None:
        """The steps come in their order, once."""
        peer = self.peer()
        self.assertEqual(peer.ask(type="auth", mac="00" * 32)["code"], "not-allowed-yet")
        worker = self.worker()
        self.assertEqual(worker.ask(type="auth", mac=worker.mac())["type"], "error")
        self.assertEqual(worker.hello()["type"], "error")
        worker.synchronise()

    def test_messages_between_hello_and_auth(self) -> None:
        """Between challenge and proof a worker is nobody yet."""
        stranger = self.stranger()
        stranger.hello()
        self.assertEqual(stranger.ask(type="answer", to="c", sdp="")["code"], "not-allowed-yet")
        self.assertNotIn(stranger.id, self.workers())
        stranger.send(type="auth", mac=stranger.mac())
        stranger.expect("welcome")

    def test_replaced(self) -> None:
        """The same id with a valid mac replaces the older connection; the worker stays up and reachable."""
        old = self.worker()
        client = self.client()
        new = self.worker()
        self.assertEqual(old.close_code(), 4409)
        self.assertEqual(self.workers()[new.id]["state"], "up")
        client.send(type="offer", to=new.id, sdp="v=0")
        self.assertEqual(new.receive()["from"], client.id)
        self.assertEqual(self.bootstrap()["worker"]["id"], new.id)

    def test_not_replaced_by_an_impostor(self) -> None:
        """Knowing a worker's id is not enough to throw it out."""
        worker = self.worker()
        impostor = self.stranger(key="other key")
        impostor.hello()
        impostor.send(type="auth", mac=impostor.mac())
        self.assertEqual(impostor.until_closed(), ([], 4401))
        worker.synchronise()
        self.assertEqual(self.workers()[worker.id]["state"], "up")


class KeylessTests(ContractTestCase):
    """A front without a worker key."""

    keys = None

    def test_no_key(self) -> None:
        """Without a key no worker registers, not even with an empty key, and the start says so once."""
        for key in ("", WORKER_KEY):
            stranger = self.stranger(key=key)
            if stranger.hello()["type"] == "challenge":
                stranger.send(type="auth", mac=stranger.mac())
                self.assertEqual(stranger.until_closed(), ([], 4401))
        self.assertEqual(self.workers(), {})
        self.assertEqual(len([line for line in self.front.out if "WORKER_KEY" in line]), 1)


class LoadTests(ContractTestCase):
    """What workers report, and who is assigned then."""

    def _state(self, worker: Worker) -> str:
        state = self.workers()[worker.id]["state"]
        assert isinstance(state, str)
        return state

    def _choice(self, **wishes: Any) -> Any:
        return self.client().ask(type="assign", **wishes)["worker"]

    def test_assign(self) -> None:
        """`assign` gives what /bootstrap gives, and heeds exclude and region."""
        self.assertEqual(self.client().ask(type="assign", ref="r"),
                         {"type": "assigned", "worker": None, "alternates": [], "ref": "r"})
        self.worker(region="us-west")
        self.worker(self.w2, region="us-east")
        rows = {self.w1: {"id": self.w1, "region": "us-west"}, self.w2: {"id": self.w2, "region": "us-east"}}
        got = self.client().ask(type="assign")
        self.assertEqual(got["worker"], self.bootstrap()["worker"])
        self.assertEqual(got["worker"], rows[got["worker"]["id"]])
        self.assertEqual(got["alternates"], [row for worker, row in rows.items() if worker != got["worker"]["id"]])
        self.assertEqual(self._choice(exclude=[self.w1]), rows[self.w2])
        self.assertEqual(self._choice(exclude=[self.w2, "unknown"]), rows[self.w1])
        self.assertIsNone(self._choice(exclude=[self.w1, self.w2]))
        self.assertEqual(self._choice(region="us-west"), rows[self.w1])
        self.assertEqual(self._choice(region="us-east"), rows[self.w2])

    def test_full(self) -> None:
        """A full worker gets nobody new until it is well below its capacity again."""
        worker, spare = self.worker(capacity=100), self.worker(self.w2, capacity=1)
        states = []
        for sessions in (99, 100, 95, 91, 89, 95):
            worker.report(sessions)
            states.append(self._state(worker))
            if states[-1] == "full":
                self.assertEqual(self._choice()["id"], spare.id)
        self.assertEqual(states, ["up", "full", "full", "full", "up", "up"])
        worker.report(101)
        self.assertEqual(self._state(worker), "full")

    def test_full_is_explained(self) -> None:
        """An operator who wonders why a client did not get its worker is told what the client is told."""
        first, second = self.worker(), self.worker(self.w2)
        chosen = self.ask("GET", "/workers/assign?ip=127.0.0.1").json()
        full, other = (first, second) if chosen["worker"] == first.id else (second, first)
        self.assertEqual(chosen["reason"], "ring")
        full.report(100)
        why = self.ask("GET", "/workers/assign?ip=127.0.0.1").json()
        self.assertEqual(why["worker"], other.id)
        self.assertEqual(self.bootstrap()["worker"]["id"], other.id)
        other.report(100)
        why = self.ask("GET", "/workers/assign?ip=127.0.0.1").json()
        answer = self.ask("POST", "/bootstrap")
        if why["worker"] is None:
            self.assertEqual((answer.status, why["reason"]), (503, "no-workers"))
        else:
            self.assertEqual((answer.json()["worker"]["id"], why["reason"]), (why["worker"], "overflow"))

    def test_draining(self) -> None:
        """A draining worker gets nobody new, but whoever talks to it goes on."""
        worker, spare, client = self.worker(), self.worker(self.w2), self.client()
        worker.report(3, draining=True)
        self.assertEqual(self._state(worker), "draining")
        self.assertEqual(self._choice()["id"], spare.id)
        client.send(type="offer", to=worker.id, sdp="v=0")
        self.assertEqual(worker.receive()["from"], client.id)
        worker.report(3)
        self.assertEqual(self._state(worker), "up")

    def test_sessions_are_shown(self) -> None:
        """Operators watch the load on /workers and the counts on /health."""
        before = self.ask("GET", "/health").json()
        worker = self.worker()
        worker.report(12)
        self.assertEqual(self.workers()[worker.id]["sessions"], 12)
        after = self.ask("GET", "/health").json()
        self.assertEqual(after["workers"]["up"], before["workers"]["up"] + 1)
        self.assertEqual(after["connections"]["worker"], before["connections"]["worker"] + 1)

    def test_bad_status(self) -> None:
        """A load that is none is refused and changes nothing."""
        worker = self.worker()
        worker.report(12)
        for sessions, draining in ((-1, False), (1.5, False), ("5", False), (None, False), (True, False), (5, "no"),
                                   (5, None), (10**30, False)):
            self.assertEqual(worker.ask(type="status", sessions=sessions, draining=draining)["code"], "bad-message",
                             (sessions, draining))
        self.assertEqual(self.workers()[worker.id]["sessions"], 12)

    def test_ring(self) -> None:
        """Virtual nodes follow the capacity, and the digest follows the set of workers."""
        def ring() -> Any:
            return self.ask("GET", "/workers").json()["ring"]

        empty = ring()
        self.assertEqual((empty["replicas"], empty["points"]), (150, 0))
        self.worker(capacity=100)
        one = ring()
        self.assertEqual(one["points"], 150)
        second = self.worker(self.w2, capacity=200)
        two = ring()
        self.assertEqual(two["points"], 450)
        self.assertEqual(len({empty["digest"], one["digest"], two["digest"]}), 3)
        second.close()
        self.assertEqual(ring(), one)

    def test_a_new_worker_moves_few(self) -> None:
        """A new worker takes over a share of the ranges, and none moves between two others."""
        def choices() -> dict[str, str]:
            return {ip: self.ask("GET", f"/workers/assign?ip={ip}").json()["worker"]
                    for ip in (f"198.51.{number}.1" for number in range(100))}

        self.worker()
        self.worker(self.w2)
        before = choices()
        self.worker(self.w3)
        moved = {ip: worker for ip, worker in choices().items() if worker != before[ip]}
        self.assertEqual(set(moved.values()), {self.w3})
        self.assertTrue(15 <= len(moved) <= 60, len(moved))


class LossTests(ContractTestCase):
    """Workers that go."""

    def _lost(self, client: Client, worker: Worker, assigned: str | None) -> None:
        lost = client.expect("worker-lost", worker=worker.id)
        self.assertIn("assigned", lost)
        self.assertEqual(lost["assigned"]["id"] if lost["assigned"] else None, assigned)

    def test_killed(self) -> None:
        """A worker that is killed is replaced for those assigned to it and those who talked to it, and nobody else.

        At once: the time-out of its pings is far longer than anybody waits here.
        """
        worker = self.worker()
        assigned, booted, talking, bystander = self.client(), self.client(self.bootstrap()["ticket"]), \
            self.client(), self.client()
        self.assertEqual(assigned.ask(type="assign")["worker"]["id"], worker.id)
        talking.send(type="offer", to=worker.id, sdp="v=0")
        worker.expect("offer")
        spare = self.worker(self.w2)
        worker.abort()
        for client in (assigned, talking, booted):
            self._lost(client, worker, spare.id)
        bystander.synchronise()
        self.assertEqual(self.workers()[worker.id]["state"], "down")
        self.assertEqual(self.bootstrap()["worker"]["id"], spare.id)
        self.assertEqual(assigned.ask(type="bye", to=worker.id)["code"], "unknown-target")

    def test_spoken_to_by_the_worker(self) -> None:
        """A worker's own message makes a client one that talks to it."""
        worker, client = self.worker(), self.client()
        worker.send(type="bye", to=client.id)
        client.expect("bye")
        client.send(type="answer", to=worker.id, sdp="v=0")
        worker.expect("answer")
        worker.abort()
        self._lost(client, worker, None)

    def test_lost_while_the_client_was_away(self) -> None:
        """A client that comes back after its worker went is told so, and not left to call the dead."""
        worker, client = self.worker(), self.client()
        client.ask(type="assign")
        self.dropped(client)
        spare = self.worker(self.w2)
        worker.close()
        self._lost(self.client(client.ticket), worker, spare.id)

    def test_left_politely(self) -> None:
        """A worker that closes with 1000 is gone as well; with nobody left the assignment is null."""
        worker, client = self.worker(), self.client()
        client.ask(type="assign")
        worker.close()
        self._lost(client, worker, None)
        self.assertIsNone(client.ask(type="assign")["worker"])

    def test_assignment_moves_on(self) -> None:
        """The assignment that came with `worker-lost` counts like any other."""
        first, client = self.worker(), self.client()
        client.ask(type="assign")
        second, third = self.worker(self.w2), self.worker(self.w3)
        first.abort()
        next_id = client.expect("worker-lost", worker=first.id)["assigned"]["id"]
        lost, left = (second, third) if next_id == second.id else (third, second)
        lost.abort()
        self._lost(client, lost, left.id)

    def test_back_again(self) -> None:
        """A worker that comes back is up again, and is told nothing of what was."""
        self.worker().abort()
        worker, client = self.worker(), self.client()
        self.assertEqual(self.workers()[worker.id]["state"], "up")
        client.send(type="offer", to=worker.id, sdp="v=0")
        self.assertEqual(worker.receive()["from"], client.id)


class HealthTests(ContractTestCase):
    """Workers that hang."""

    # In four seconds a worker answers however busy the machine is.
    settings: ClassVar = {"WORKER_HEALTH_TIMEOUT": "4000", "WORKER_HEALTH_INTERVAL": "100"}

    def test_silent_worker(self) -> None:
        """A worker that leaves a ping unanswered is out of the ring, not before its time; one that answers stays."""
        lively, client = self.worker(), self.client()
        raw = self.raw()
        nonce = "0" * 32
        start_s = time.monotonic()
        raw.send(type="hello", role="worker", id=self.w2, region="", capacity=100, address="", nonce=nonce)
        raw.send(type="auth", mac=worker_mac(WORKER_KEY, self.w2, "", 100, nonce, raw.receive()["nonce"]))
        self.assertEqual(raw.receive()["type"], "welcome")
        client.send(type="offer", to=self.w2, sdp="v=0")
        lost = client.expect("worker-lost", worker=self.w2)
        self.assertGreater(elapsed_since(start_s), 3.8)
        self.assertEqual(lost["assigned"]["id"], lively.id)
        self.assertEqual({worker: row["state"] for worker, row in self.workers().items()},
                         {lively.id: "up", self.w2: "down"})
        self.assertEqual(self.bootstrap()["worker"]["id"], lively.id)


class WorkersFileTests(ContractTestCase):
    """WORKERS_FILE and REGION."""

    settings: ClassVar = {"REGION": "us-east"}

    @staticmethod
    def start(settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """With the file."""
        folder = new_folder()
        (folder / "workers.json").write_text(json.dumps({
            "192.168.1.100": {"region": "us-west", "capacity": 100},
            "192.168.1.102": {"region": "us-east", "capacity": 50}}))
        return Front(settings, (*options, "--workers", str(folder / "workers.json")), keys, folder=folder)

    def test_file_gives_region_and_capacity(self) -> None:
        """The operator's file has the last word on the region and the capacity of the worker at an address."""
        self.worker(region="mars", capacity=7, address="192.168.1.100")
        self.worker(self.w2, region="mars", capacity=7, address="192.168.1.102")
        rows = self.workers()
        self.assertEqual([(rows[worker]["region"], rows[worker]["capacity"], rows[worker]["state"])
                          for worker in (self.w1, self.w2)], [("us-west", 100, "up"), ("us-east", 50, "up")])

    def test_own_region_first(self) -> None:
        """A front's clients get the workers of its region first, unless they ask for another one."""
        self.worker(region="us-west")
        self.worker(self.w2, region="us-east")
        for number in range(10):
            why = self.ask("GET", f"/workers/assign?ip=198.51.{number}.1").json()
            self.assertEqual(why["worker"], self.w2)
        self.assertEqual(self.bootstrap(region="us-west")["worker"]["id"], self.w1)
