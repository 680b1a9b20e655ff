"""Attacks on a real front, in small: who is refused, closed and counted, and that a bystander loses nothing.

The attacks are those of ``tests.bench.attackers``, which ``python -m tests.bench.attacks`` runs in full and measures.
Here nothing is measured. An attack goes on until the front has done what it has to do, and nobody says how soon.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tests.bench.attackers import ATTACKS
from tests.bench.bystander import Bystander, Seen
from tests.bench.swarm import Aim, Did, nothing
from tests.certificates import self_signed_pem, write_pair
from tests.e2e.cluster import CLUSTER_KEY, free_ports
from tests.e2e.contract_client import ask
from tests.e2e.processes import Front, FrontTestCase, new_folder, write_key

LIMIT_S = 240.0
"""Guards against a front that never does what an attack waits for."""
GROWTH_BYTES = 64_000_000
"""Far more than a front may grow by, and far less than it would by any of what is tried without its limits."""
SETTINGS = {"RATE_LIMIT_EXEMPT": "", "HEADER_TIMEOUT": "1", "HELLO_TIMEOUT": "1"}

_numbers = itertools.count(1)


async def _under_attack(name: str, aim: Aim) -> tuple[Did, Seen]:
    """An attack, beside a bystander that is there before it and after it."""
    bystander = Bystander(aim.port, aim.worker)
    await bystander.join()
    stop = asyncio.Event()
    watching = asyncio.create_task(bystander.run(stop))
    try:
        did = await ATTACKS[name](aim, nothing)
    finally:
        stop.set()
        seen = await watching
    return did, seen


class AttackTestCase(FrontTestCase):
    """Attacks on one front; each comes from addresses of its own, for the front remembers them."""

    settings: ClassVar = SETTINGS

    def attack(self, name: str, count: int, until: Mapping[str, int], *, addresses: int = 10, tls_port: int = 0,
               peer_port: int = 0) -> Did:
        """Runs an attack until so much of it has come to its end; asserts that nobody else was harmed."""
        number = next(_numbers)
        sources = tuple(f"127.0.{number}.{place}" for place in range(1, 1 + addresses))
        aim = Aim(self.port, sources, count, LIMIT_S, tls_port, peer_port, f"bystander.{number}", 0.1, until)
        before_bytes, counted = self.memory_bytes(), self.counted()
        did, seen = asyncio.run(_under_attack(name, aim))
        self.counts = self.counted() - counted
        for what, least in until.items():
            self.assertGreaterEqual(did[what], least, f"{what}: {did} {self.counts}")
        self.assertEqual((seen.ended, seen.out_of_order, dict(seen.told)), ("", 0, {}))
        self.assertEqual(seen.received, seen.sent)
        self.assertGreater(seen.sent, 0)
        self.assertEqual(dict(seen.live_otherwise), {}, "/health/live was not always answered with 200")
        self.assertLess(self.memory_bytes() - before_bytes, GROWTH_BYTES)
        return did

    def counted(self) -> Counter[str]:
        """The front's counters, each by its name and its labels' values."""
        text = ask(self.port, "GET", "/metrics").body.decode()
        return Counter({
            " ".join([name, *re.findall(r'"([^"]*)"', labels)]): int(float(value))
            for name, labels, value in re.findall(r"(?m)^kollator_(\w+)_total(?:\{(.*)\})? (\S+)", text)})

    def memory_bytes(self) -> int:
        """The front's memory."""
        pages = Path(f"/proc/{self.front.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def assert_counted(self, name: str, least: int) -> None:
        """Asserts that the front has counted so many during the last attack."""
        self.assertGreaterEqual(self.counts[name], least, dict(self.counts))


class SlowTests(AttackTestCase):
    """Connections that are held, and hardly used or not at all."""

    def test_headers(self) -> None:
        """Without it slow headers would hold connections for ever: each is answered 408, however often a byte comes."""
        self.attack("slow-headers", 100, {"408": 100})
        self.assert_counted("http_responses other 408", 100)

    def test_one_address(self) -> None:
        """Without it one address could take all the places: beyond HTTP_CONNECTIONS_PER_IP it is turned away."""
        self.attack("slow-headers", 150, {"408": 100}, addresses=1)
        self.assert_counted("connections_refused address", 50)

    def test_upgrades(self) -> None:
        """Without it the way of the WebSockets would have no such limit."""
        self.attack("slow-upgrades", 100, {"408": 100})
        self.assert_counted("connections_refused header", 100)

    def test_silence(self) -> None:
        """Without it who says nothing would be waited for."""
        self.attack("silent", 100, {"reset": 100})

    def test_no_hello(self) -> None:
        """Without it a WebSocket that never says a whole word would keep its place: it is closed with 4408."""
        self.attack("no-hello", 100, {"4408": 100})
        self.assert_counted("connections_closed 4408", 100)
        self.assert_counted("connections_refused no-hello", 100)


class FloodTests(AttackTestCase):
    """As much as an attacker can send, from a few addresses."""

    def test_handshakes(self) -> None:
        """Without it one address could take all the front's time with new WebSockets: most are answered 429."""
        self.attack("handshakes", 20, {"429": 200}, addresses=2)
        self.assert_counted("connections_refused rate", 200)

    def test_bootstraps(self) -> None:
        """Without it the same would be true of /bootstrap."""
        self.attack("bootstraps", 20, {"answered 429": 200}, addresses=2)
        self.assert_counted("http_responses /bootstrap 429", 200)
        self.assert_counted("bootstraps rate-limited", 200)

    def test_one_client(self) -> None:
        """Without it a client that sends as fast as it can would not be closed (4429), each time it comes back."""
        self.attack("messages", 1, {"4429": 3})
        self.assert_counted("connections_closed 4429", 3)
        self.assert_counted("errors rate-limited", 600)

    def test_clients(self) -> None:
        """Without it several of them would do what one cannot."""
        self.attack("candidates", 10, {"4429": 10})
        self.assert_counted("connections_closed 4429", 10)

    def test_bad_messages(self) -> None:
        """Without it a client could have the front refuse its messages for ever: it is closed with 4400."""
        self.attack("bad-messages", 10, {"4400": 20})
        self.assert_counted("connections_closed 4400", 20)

    def test_wrong_macs(self) -> None:
        """Without it workers' keys could be guessed at the speed of the front, unseen."""
        self.attack("wrong-macs", 20, {"4401": 10})
        self.assert_counted("connections_closed 4401", 10)
        self.assert_counted("workers_refused", 10)

    def test_pages_of_workers(self) -> None:
        """Without it the largest page that anybody may ask for could keep the front from everything else."""
        did = self.attack("workers-pages", 100, {"answered 200": 200})
        self.assertEqual((did["workers"], did["workers lost"]), (100, 0))


class StuckReaderTests(AttackTestCase):
    """Connections that do not read."""

    def test_stuck_readers(self) -> None:
        """Without it what nobody reads would fill the front's memory: each is closed (4413), and nothing is kept."""
        did = self.attack("stuck-readers", 20, {})
        self.assertEqual(did["still open"], 0, did)
        self.assert_counted("connections_closed 4413", 20)


class AdminTests(AttackTestCase):
    """A front with ``/admin``."""

    @staticmethod
    def start(settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """A front with a token."""
        folder = new_folder()
        token = write_key(folder / "admin.token", "0123456789abcdef" * 2)
        return Front({**settings, "ADMIN_TOKEN_FILE": str(token)}, options, keys, folder=folder)

    def test_wrong_tokens(self) -> None:
        """Without it tokens could be guessed at the speed of the front: after a few from an address there is 429."""
        self.attack("admin-tokens", 10, {"answered 401": 2, "answered 429": 200}, addresses=2)
        self.assert_counted("http_responses /admin 429", 200)


class TlsTests(AttackTestCase):
    """A front that also listens for TLS."""

    endpoints: ClassVar = 2

    @staticmethod
    def start(settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """A front with two endpoints, the first one without TLS."""
        folder = new_folder()
        key, certificate = write_pair(folder, self_signed_pem("localhost"))
        return Front(settings, (
            "--listen", "tcp:0:interface=127.0.0.1",
            "--listen", f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1",
        ), keys, folder=folder, endpoints=endpoints)

    def test_halves(self) -> None:
        """Without it a handshake that stops in the middle would hold a connection, and what TLS needs for it."""
        self.attack("tls-halves", 50, {"reset": 50}, tls_port=self.front.ports[1])


class PeerTests(AttackTestCase):
    """A front of a cluster, whose other front is not there."""

    peer_port: ClassVar = 0

    @classmethod
    def start(cls, settings: Mapping[str, str], options: Sequence[str], keys: str | None, endpoints: int) -> Front:
        """A front that listens for the other one."""
        cls.peer_port, other_port = free_ports(2)
        return Front({
            **settings, "CLUSTER_KEY": CLUSTER_KEY, "QUORUM": "available",
            "PEERS": f"other=tcp:127.0.0.1:{other_port}",
            "PEER_LISTEN": f"tcp:{cls.peer_port}:interface=127.0.0.1",
        }, options, keys)

    def test_half_open(self) -> None:
        """Without it whoever reaches that port could fill it with links that are never made: the oldest give way."""
        self.attack("half-open-peers", 100, {"opened, silent": 64, "end": 5, "reset": 100}, peer_port=self.peer_port)
        self.assert_counted("links_ended half-open", 36)
        self.assert_counted("links_ended bad-frame", 5)
