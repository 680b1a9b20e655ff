"""``kollator`` and ``/admin`` against real fronts: every command over real HTTP, alone and in a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.answering import Ended, run
from tests.e2e.cluster import Cluster, ClusterTestCase, Scheme, until
from tests.e2e.contract_client import LIMIT_S, ContractTestCase
from tests.e2e.processes import Front, new_folder, write_key

TOKEN, OLDER_TOKEN = "0123456789abcdef-of-the-operators", "fedcba9876543210-that-is-on-its-way-out"
RANGE, ADDRESS = "203.0.113.0/24", "203.0.113.9"


def token_file(folder: Path, text: str = f"{TOKEN}\n{OLDER_TOKEN}\n") -> Path:
    """A file of tokens in a folder."""
    return write_key(folder / "admin.token", text)


def environment_of(port: int, file: Path) -> dict[str, str]:
    """The variables with which ``kollator`` asks a front."""
    return {"KOLLATOR_URL": f"http://127.0.0.1:{port}", "ADMIN_TOKEN_FILE": str(file)}


class AdminTestCase(ContractTestCase):
    """Tests against a front that has ``/admin``."""

    @staticmethod
    def start(settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """A front with a token file in its folder."""
        folder = new_folder()
        return Front({**settings, "ADMIN_TOKEN_FILE": str(token_file(folder))}, options, keys, folder=folder,
                     endpoints=endpoints)

    def run_kollator(self, *argv: str) -> Ended:
        """Runs a command against this front."""
        return run(*argv, environment=environment_of(self.port, self.front.folder / "admin.token"))

    def ctl(self, *argv: str) -> str:
        """The output of a ``kollator ctl`` that succeeds."""
        ended = self.run_kollator("ctl", *argv)
        self.assertEqual((ended.status, ended.err), (0, ""), ended)
        return ended.out

    def ctl_json(self, *argv: str) -> Any:
        """The JSON of a ``kollator ctl`` that succeeds."""
        return json.loads(self.ctl(*argv, "--json"))

    def refused(self, code: str, *argv: str) -> str:
        """Asserts that the front says no with this code, and returns the line that says so."""
        ended = self.run_kollator("ctl", *argv)
        self.assertEqual((ended.status, ended.out, ended.err.count("\n")), (1, "", 1), ended)
        self.assertTrue(ended.err.startswith(f"kollator: {code}: "), ended.err)
        return ended.err

    def explain(self, address: str = ADDRESS) -> Any:
        """The JSON of ``kollator assign``."""
        ended = self.run_kollator("assign", address, "--json")
        self.assertEqual((ended.status, ended.err), (0, ""))
        return json.loads(ended.out)


class AdminTests(AdminTestCase):
    """Every command at one front, which is left as it was found."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self._undo)

    def _undo(self) -> None:
        self.ctl("front", "undrain")
        self.ctl("log", "set")
        for pin in self.ctl_json("pins", "list")["pins"]:
            self.ctl("pins", "remove", pin["cidr"])

    def test_pins(self) -> None:
        """A pin decides until it is replaced or removed."""
        self.worker(self.w1)
        self.worker(self.w2, region=f"region-{self.w2}")
        self.assertEqual(self.ctl("pins", "list"), "no range is pinned\n")
        self.assertEqual(self.explain()["reason"], "ring")
        for worker, said in ((self.w1, ""), (self.w2, ", which replaces an older pin")):
            self.assertEqual(self.ctl("pins", "add", RANGE, "--worker", worker), f"{RANGE} to worker {worker}{said}\n")
            found = self.explain()
            self.assertEqual((found["worker"], found["reason"], found["pin"]), (worker, "pinned", RANGE))
            self.assertEqual(self.ctl_json("pins", "list"), {"pins": [{"cidr": RANGE, "worker": worker}]})
        self.ctl("pins", "add", "2001:db8::/32", "--region", f"region-{self.w2}")
        self.assertEqual(self.explain("2001:db8::1")["worker"], self.w2)
        self.assertIn(["2001:db8::/32", f"region-{self.w2}"],
                      [line.split() for line in self.ctl("pins", "list").splitlines()])
        for cidr in (RANGE, "2001:db8::/32"):
            self.assertTrue(self.ctl("pins", "remove", cidr).startswith(f"no longer: {cidr} to "))
            self.refused("unknown-pin", "pins", "remove", cidr)
        self.assertEqual(self.explain()["reason"], "ring")

    def test_wrong_pins(self) -> None:
        """A pin that could mean something else than it says is refused, and changes nothing."""
        self.worker(self.w1)
        for cidr, remedy in ((ADDRESS + "/24", RANGE), ("203.0.113.0/33", ""), ("nonsense", ""),
                             ("::ffff:203.0.113.0/120", RANGE)):
            self.assertIn(remedy, self.refused("bad-request", "pins", "add", cidr, "--worker", self.w1))
        self.refused("unknown-worker", "pins", "add", RANGE, "--worker", "nobody")
        self.refused("unknown-region", "pins", "add", RANGE, "--region", "nowhere")
        self.assertEqual(self.ctl_json("pins", "list"), {"pins": []})

    def test_worker_drain(self) -> None:
        """A worker that an operator drains is passed by, whatever it says itself, until it is undrained."""
        self.worker(self.w1)
        other = self.worker(self.w2)
        self.ctl("pins", "add", RANGE, "--worker", self.w1)
        for _ in range(2):
            said = self.ctl("worker", "drain", self.w1)
            self.assertEqual(said,
                             f"worker {self.w1} is drained: clients get others; state: draining (operator),"
                             " sessions: 0\n")
            self.assertEqual(self.explain()["worker"], self.w2)
        told = self.run_kollator("assign", ADDRESS).out
        self.assertIn("draining, operator: an operator drained it\n", told)
        self.assertEqual(self.ctl_json("workers")["drained"], [self.w1])
        row = next(line for line in self.ctl("workers").splitlines() if line.startswith(self.w1))
        self.assertTrue(row.endswith("  yes"), row)
        for _ in range(2):
            self.assertIn(f"worker {self.w1} is no longer drained; state: up,", self.ctl("worker", "undrain", self.w1))
        self.assertEqual(self.explain()["worker"], self.w1)
        self.assertEqual(self.ctl_json("workers")["drained"], [])
        for what in ("drain", "undrain"):
            self.refused("unknown-worker", "worker", what, "nobody")
        other.synchronise()  # no connection was touched

    def test_front_drain(self) -> None:
        """A front that is drained sends clients away and keeps its workers, until it is undrained."""
        worker, client = self.worker(self.w1), self.client()
        self.assertEqual(self.ctl_json("front", "drain"), {"node": "front-e2e", "draining": True})
        self.assertIn("reconnectInMs", client.expect("draining"))
        self.assertEqual([self.ask(method, path).status for method, path in (
            ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/health"), ("POST", "/bootstrap"))],
            [200, 503, 503, 503])
        self.assertIn("\nstatus        draining\n", self.ctl("front", "status"))
        self.assertIn("front front-e2e drains", self.ctl("front", "drain"))
        worker.synchronise()
        self.assertEqual(self.ctl("front", "undrain"), "front front-e2e takes new clients\n")
        self.assertEqual(self.ask("GET", "/health/ready").status, 200)
        self.assertEqual(self.bootstrap()["worker"]["id"], self.w1)
        self.assertIn("\nstatus        ok\n", self.ctl("front", "status"))

    def test_connections(self) -> None:
        """Who is connected is told; addresses only when they are asked for."""
        self.worker(self.w1, address="192.0.2.77")
        clients = sorted(self.client().id for _ in range(2))
        found = self.ctl_json("connections")
        self.assertEqual((found["node"], found["total"], found["truncated"]),
                         ("front-e2e", {"client": 2, "worker": 1}, False))
        self.assertEqual({(each["id"], each["role"], each["front"]) for each in found["connections"]},
                         {(self.w1, "worker", "front-e2e"), *((client, "client", "front-e2e") for client in clients)})
        self.assertNotIn("127.0.0.1", json.dumps(found))
        found = self.ctl_json("connections", "--role", "client", "--addresses", "--front", "front-e2e")
        self.assertEqual({(each["id"], each["address"]) for each in found["connections"]},
                         {(client, "127.0.0.1") for client in clients})
        self.assertIn("192.0.2.77\n", self.ctl("connections", "--role", "worker", "--addresses"))
        self.assertIn("only 1 are shown", self.ctl("connections", "--limit", "1"))
        self.refused("unknown-front", "connections", "--front", "nobody")

    def test_log(self) -> None:
        """Debug events are switched on and off while the front runs."""
        self.assertEqual(self.ctl("log", "show"), "no debug events are logged\n")
        wanted = ["kollator:signaling", "kollator:pool"]
        self.assertEqual(self.ctl_json("log", "set", *wanted), {"debug": wanted})
        self.assertEqual(self.ctl_json("log", "show"), {"debug": wanted})
        self.refused("bad-request", "log", "set", "no such namespace")
        self.assertEqual(self.ctl_json("log", "show"), {"debug": wanted})
        self.assertEqual(self.ctl("log", "set"), "no debug events are logged\n")

    def test_process(self) -> None:
        """The program itself works as it does within the tests, and with the older token too."""
        environment = environment_of(self.port, token_file(new_folder(), OLDER_TOKEN))
        environment |= {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        ended = subprocess.run([sys.executable, "-m", "kollator", "ctl", "log", "show"], env=environment,
                               capture_output=True, text=True, timeout=LIMIT_S * 2)
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, "no debug events are logged\n", ""))

    def test_audit_log(self) -> None:
        """Every change is in the audit log with who made it, and the token is nowhere."""
        self.worker(self.w1)
        self.ctl("pins", "add", "198.51.100.0/24", "--worker", self.w1)
        self.ctl("pins", "remove", "198.51.100.0/24")
        self.ctl("worker", "drain", self.w1)
        self.ctl("worker", "undrain", self.w1)
        self.ctl("log", "set", "kollator:web")
        self.ctl("log", "set")
        wanted = [
            {"action": "pin", "cidr": "198.51.100.0/24", "worker": self.w1},
            {"action": "unpin", "cidr": "198.51.100.0/24"},
            {"action": "drain-worker", "worker": self.w1},
            {"action": "undrain-worker", "worker": self.w1},
            {"action": "log", "debug": "kollator:web"},
            {"action": "log", "debug": ""},
        ]
        file = self.front.folder / "s.audit.jsonl"

        def told() -> list[Any]:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            return [line for line in lines if line["event"] == "admin"]

        until(lambda: all(any(each.items() <= line.items() for line in told()) for each in wanted),
              lambda: f"{wanted} in {told()}")
        self.assertEqual({line["address"] for line in told()}, {"127.0.0.1"})
        for text in (file.read_text(encoding="utf-8"), self.front.log):
            self.assertNotIn(TOKEN, text)


class TokenTests(AdminTestCase):
    """Who has not the token. A front of its own, since failures of an address have consequences for it."""

    settings: ClassVar[Mapping[str, str]] = {"RATE_LIMIT_EXEMPT": ""}

    def test_wrong_token(self) -> None:
        """Without a good token nothing is told and nothing done, and guessing is slowed down."""
        wrong = environment_of(self.port, token_file(new_folder(), "a-wrong-one"))
        change = ("ctl", "front", "drain")
        ended = run(*change, environment=wrong)
        self.assertEqual((ended.status, ended.out), (1, ""))
        self.assertTrue(ended.err.startswith("kollator: unauthorized: "), ended.err)
        answer = self.ask("GET", "/admin/pins")
        self.assertEqual((answer.status, answer.error_code, answer.header("WWW-Authenticate")),
                         (401, "unauthorized", "Bearer"))
        for _ in range(50):
            ended = run(*change, environment=wrong)
            if "rate-limited" in ended.err:
                break
        self.assertRegex(ended.err, r"\Akollator: rate-limited: .* \(again in [0-9]+ s\)\n\Z")
        self.assertEqual(self.ask("GET", "/health/ready").status, 200)
        self.assertNotIn("a-wrong-one", self.front.log)


class NoAdminTests(ContractTestCase):
    """A front without ADMIN_TOKEN_FILE."""

    def test_no_admin(self) -> None:
        """Without tokens there is no ``/admin``, and what needs none still works."""
        environment = environment_of(self.port, token_file(new_folder()))
        ended = run("ctl", "pins", "list", environment=environment)
        self.assertEqual((ended.status, ended.out), (1, ""))
        self.assertIn("not-found", ended.err)
        self.assertIn("ADMIN_TOKEN_FILE", ended.err)
        del environment["ADMIN_TOKEN_FILE"]
        self.worker()
        self.assertIn(f"\nworker      {self.w1}\n", run("assign", ADDRESS, environment=environment).out)
        self.assertIn(f"\n{self.w1}  ", run("ctl", "workers", environment=environment).out)
        self.assertIn("\nrole          leader\n", run("ctl", "front", "status", environment=environment).out)


class ClusterAdminTests(ClusterTestCase):
    """What is told to one front, at the others."""

    names: ClassVar[Sequence[str]] = "abc"
    scheme: ClassVar[Scheme] = "tcp"

    def setUp(self) -> None:
        if self._share.cluster is None:
            file = token_file(new_folder())
            self._share.cluster = Cluster(self.names, self.scheme, {"ADMIN_TOKEN_FILE": str(file)})
            self._share.cluster.start()
        super().setUp()

    def kollator(self, name: str, *argv: str) -> Any:
        """The JSON of a command that succeeds at a front."""
        front = self.cluster.fronts[name]
        ended = run(*argv, "--json", environment=environment_of(
            self.cluster.ports[name], Path(front.environment["ADMIN_TOKEN_FILE"])))
        self.assertEqual((ended.status, ended.err), (0, ""), ended)
        return json.loads(ended.out)

    def assigned_everywhere(self, worker: str) -> None:
        """Waits until every front assigns a worker to the address."""
        until(lambda: {self.kollator(name, "assign", ADDRESS)["worker"] for name in self.names} == {worker},
              lambda: f"{worker} at all fronts\n{self.cluster.told()}")

    def test_pin_is_everywhere(self) -> None:
        """A pin made at one front decides at the others, and is removed at any of them."""
        self.worker("a", self.w1)
        self.worker("b", self.w2)
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        for worker in (self.w1, self.w2):
            self.kollator("a", "ctl", "pins", "add", RANGE, "--worker", worker)
            self.assigned_everywhere(worker)
        self.assertEqual(self.kollator("c", "ctl", "pins", "list"), {"pins": [{"cidr": RANGE, "worker": self.w2}]})
        self.kollator("b", "ctl", "pins", "remove", RANGE)
        until(lambda: not any(self.kollator(name, "ctl", "pins", "list")["pins"] for name in self.names),
              self.cluster.told)

    def test_drained_worker_is_passed_by_everywhere(self) -> None:
        """A worker that is drained at one front is passed by at all, also when it comes back elsewhere."""
        worker, other = self.worker("b", self.w1), self.worker("a", self.w2)
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        self.kollator("a", "ctl", "pins", "add", RANGE, "--worker", self.w1)
        self.assigned_everywhere(self.w1)
        self.kollator("c", "ctl", "worker", "drain", self.w1)
        self.assigned_everywhere(self.w2)
        worker.close()
        self.cluster.until_state(self.w1, "down")
        self.worker("a", self.w1)
        self.cluster.until_state(self.w1, "draining")
        self.assigned_everywhere(self.w2)
        self.assertEqual([self.kollator(name, "ctl", "workers")["drained"] for name in self.names], [[self.w1]] * 3)
        self.kollator("b", "ctl", "worker", "undrain", self.w1)
        self.assigned_everywhere(self.w1)
        self.kollator("a", "ctl", "pins", "remove", RANGE)
        other.synchronise()

    def test_connections_of_workers_are_told_everywhere(self) -> None:
        """Workers are listed by every front, clients by their own, and a filter names one front."""
        self.worker("b", self.w1)
        client = self.client("a")
        self.cluster.until_state(self.w1, "up")
        for name, clients in (("a", [client.id]), ("b", [])):
            found = self.kollator(name, "ctl", "connections")["connections"]
            self.assertEqual([each["id"] for each in found if each["role"] == "client"], clients)
            self.assertEqual([(each["id"], each["front"]) for each in found if each["role"] == "worker"],
                             [(self.w1, "b")])
        self.assertEqual(self.kollator("a", "ctl", "connections", "--front", "b", "--role", "worker")["connections"],
                         [{"id": self.w1, "role": "worker", "front": "b", "state": "up"}])

    def test_front_drain_is_one_front_alone(self) -> None:
        """One front is drained; the others take clients, and its workers are still assigned."""
        self.worker("a", self.w1)
        self.cluster.until_state(self.w1, "up")
        self.addCleanup(self.kollator, "a", "ctl", "front", "undrain")
        self.kollator("a", "ctl", "front", "drain")
        self.assertEqual({name: self.kollator(name, "ctl", "front", "status")["status"] for name in self.names},
                         {"a": "draining", "b": "ok", "c": "ok"})
        self.assigned_everywhere(self.w1)
        self.kollator("a", "ctl", "front", "undrain")
        self.cluster.whole()
