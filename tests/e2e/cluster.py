"""A cluster of real fronts on loopback: child processes that are linked directly, or through proxies of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import self_signed_pem
from tests.e2e.contract_client import Client, Message, Worker, ask
from tests.e2e.processes import Front, new_folder, write_key

CANDIDATE = "candidate:1 1 udp 2130706431 192.0.2.7 50000 typ host"
OFFER, ANSWER = "v=0\r\ns=offer\r\n", "v=0\r\ns=answer\r\n"
CLUSTER_KEY = "fedcba9876543210" * 4
LIMIT_S = 60.0
"""What a cluster may take for anything: far more than it needs, on a machine that does other things as well."""
PAUSE_S = 0.03
"""Between two looks at a front."""
# A front that a busy machine holds up for a few seconds is not to be retired: its clients would be told of it.
SETTINGS = {"HEARTBEAT_INTERVAL": "100", "ELECTION_TIMEOUT": "500", "FRONT_RETIRE_AFTER": "6000", "DRAIN_TIMEOUT": "1"}
# Below what systems give to outgoing connections, which could otherwise take a port while its front is dead.
_PORTS = range(20_000, 32_000)

Scheme = Literal["tcp", "proxied", "worker-sync", "tls"]


def free_ports(count: int) -> list[int]:
    """So many different ports of loopback that nobody listens on."""
    ports: list[int] = []
    with contextlib.ExitStack() as taken:
        while len(ports) < count:
            tried = taken.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                tried.bind(("127.0.0.1", random.choice(_PORTS)))
                ports.append(tried.getsockname()[1])
    return ports


def until(condition: Callable[[], object], what: Callable[[], object] | str, limit_s: float = LIMIT_S) -> float:
    """Looks again and again until ``condition`` holds; returns the seconds that took.

    A front that does not answer is one of which it does not hold. Raises ``AssertionError`` with ``what``.
    """
    begun_s = time.monotonic()
    never = threading.Event()
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return time.monotonic() - begun_s
        if time.monotonic() - begun_s > limit_s:
            raise AssertionError(f"not within {limit_s} s: {what if isinstance(what, str) else what()}")
        never.wait(PAUSE_S)


def write_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """A self-signed certificate for ``localhost`` and ``127.0.0.1``: its key, itself, and a folder of trusted roots."""
    key, encoded = self_signed_pem("localhost", "127.0.0.1")
    roots = folder / "roots"
    roots.mkdir()
    (roots / "root.pem").write_text(encoded, encoding="ascii")
    (folder / "front.pem").write_text(encoded, encoding="ascii")
    return write_key(folder / "front.key", key), folder / "front.pem", roots


class Proxies:
    """TCP proxies in a thread of their own, one for each way between two fronts, that can be cut.

    A silent cut is what a network does that drops packets: connections stay, nothing arrives before it is healed.
    The other one breaks connections and takes no new ones.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open: dict[tuple[str, str], asyncio.Event] = {}
        self._broken: set[tuple[str, str]] = set()
        self._writers: dict[tuple[str, str], set[asyncio.StreamWriter]] = {}
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[None]] = set()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def add(self, way: tuple[str, str], port: int, target_port: int) -> None:
        """A proxy for ``way``, which are two fronts: who dials, and who is dialled."""
        self._run(self._add(way, port, target_port))

    async def _add(self, way: tuple[str, str], port: int, target_port: int) -> None:
        self._open[way] = asyncio.Event()
        self._open[way].set()
        self._writers[way] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            try:
                await self._serve(way, target_port, reader, writer)
            finally:
                self._serving.discard(task)

        self._servers.append(await asyncio.start_server(serve, "127.0.0.1", port))

    async def _serve(self, way: tuple[str, str], target_port: int, reader: asyncio.StreamReader,
                     writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        self._writers[way].add(writer)
        try:
            await self._open[way].wait()
            if way in self._broken:
                return
            from_target, to_target = await asyncio.open_connection("127.0.0.1", target_port)
            writers.add(to_target)
            self._writers[way].add(to_target)
            await asyncio.gather(self._pump(way, reader, to_target), self._pump(way, from_target, writer))
        except OSError:
            pass  # one end is gone, and so is the other
        finally:
            for one in writers:
                self._writers[way].discard(one)
                one.transport.abort()

    async def _pump(self, way: tuple[str, str], source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._open[way].wait()
            target.write(data)
            await target.drain()
        raise ConnectionResetError

    def _ways(self, one: str, other: str | None) -> list[tuple[str, str]]:
        return [way for way in self._open if one in way and (other is None or other in way)]

    def silence(self, one: str, other: str | None = None) -> None:
        """Nothing gets from ``one`` to ``other`` (or to anybody) any more, or back, and nobody is told."""
        self._run(self._cut(self._ways(one, other), broken=False))

    def cut(self, one: str, other: str | None = None) -> None:
        """Breaks all connections between ``one`` and ``other`` (or everybody), and every new one."""
        self._run(self._cut(self._ways(one, other), broken=True))

    async def _cut(self, ways: Iterable[tuple[str, str]], broken: bool) -> None:
        for way in ways:
            if not broken:
                self._open[way].clear()
                continue
            self._broken.add(way)
            for writer in self._writers[way]:
                writer.transport.abort()

    def heal(self) -> None:
        """Everything flows again; what a silent cut held back arrives late."""
        self._run(self._heal())

    async def _heal(self) -> None:
        self._broken.clear()
        for flowing in self._open.values():
            flowing.set()

    def close(self) -> None:
        """Closes everything and ends the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


class Cluster:
    """Fronts ``names`` that are linked by ``scheme``: their ports and folders stay the same when one is restarted."""

    def __init__(self, names: Sequence[str] = "abc", scheme: Scheme = "tcp",
                 settings: Mapping[str, str] | None = None) -> None:
        self.names = tuple(names)
        self.scheme = scheme
        self._settings = {**SETTINGS, **(settings or {})}
        ports = iter(free_ports(2 * len(names) + len(names) ** 2))
        self.ports = {name: next(ports) for name in names}
        self._peer_ports = {name: next(ports) for name in names}
        self._folders = {name: new_folder() for name in names}
        self.fronts: dict[str, Front] = {}
        self.ended: list[Front] = []
        self.proxies: Proxies | None = None
        self._way_ports: dict[tuple[str, str], int] = {}
        self.certificate: tuple[Path, Path, Path] | None = None
        """Key, certificate and trusted roots of the fronts that are started from now on."""
        if scheme == "tls":
            self.certificate = write_certificate(new_folder())
        if scheme == "proxied":
            self.proxies = Proxies()
            for way in itertools.permutations(names, 2):
                self._way_ports[way] = next(ports)
                self.proxies.add(way, self._way_ports[way], self._peer_ports[way[1]])

    def _endpoint(self, dialler: str, dialled: str) -> str:
        port = self._peer_ports[dialled]
        if self.scheme == "worker-sync":
            return f"ws://127.0.0.1:{self.ports[dialled]}/worker-sync"
        if self.certificate:
            host = "localhost" if dialled == self.names[0] else "127.0.0.1"
            return f"tls:{host}:{port}:trustRoots={self.certificate[2]}"
        return f"tcp:127.0.0.1:{self._way_ports.get((dialler, dialled), port)}"

    def start(self, *names: str) -> None:
        """Starts fronts, or starts them again; all of them unless told. Returns when they answer."""
        for name in names or self.names:
            listen = f"tcp:{self._peer_ports[name]}:interface=127.0.0.1"
            if self.certificate:
                key, certificate, _ = self.certificate
                listen = f"ssl{listen.removeprefix('tcp')}:privateKey={key}:certKey={certificate}"
            self.fronts[name] = Front({
                **self._settings, "NODE_ID": name, "PORT": str(self.ports[name]), "CLUSTER_KEY": CLUSTER_KEY,
                "PEER_LISTEN": listen, "PEERS": " ".join(
                    f"{other}={self._endpoint(name, other)}" for other in self.names if other != name),
            }, folder=self._folders[name])
        for name in names or self.names:
            self.fronts[name].ready()

    def kill(self, name: str) -> None:
        """SIGKILL: as a machine dies, without a word to anybody."""
        front = self.fronts.pop(name)
        self.ended.append(front)
        front.kill()

    def wipe(self, name: str) -> None:
        """Takes the database of a front that does not run."""
        for file in self._folders[name].glob("s.db*"):
            file.unlink()

    def stop(self) -> None:
        """SIGTERM to all; asserts that each ends with status 0, and that no log told of trouble."""
        fronts = [*self.fronts.values()]
        try:
            for front in fronts:
                front.signal(signal.SIGCONT)
                front.signal(signal.SIGTERM)
            statuses = [front.ended() for front in fronts]
        finally:
            for front in fronts:
                front.kill()
            self.fronts.clear()
            if self.proxies is not None:
                self.proxies.close()
        assert not any(statuses), (statuses, "\n\n".join(front.log for front in fronts))
        for front in (*self.ended, *fronts):
            front.assert_log_clean()

    def until_logged(self, name: str, text: str) -> None:
        """Waits until a front's log has ``text``."""
        until(lambda: text in self.fronts[name].log, lambda: f"{text!r} in the log of {name}\n{self.told()}")

    # -- what the fronts tell -----------------------------------------------------------------------------------------

    def health(self, name: str) -> Message:
        """``GET /health`` of a front."""
        answer = ask(self.ports[name], "GET", "/health").json()
        assert isinstance(answer, dict)
        return answer

    def worker(self, name: str, worker: str) -> Message:
        """A worker's row in ``GET /workers`` of a front; empty where it is not known."""
        rows = ask(self.ports[name], "GET", "/workers").json()["workers"]
        return next((row for row in rows if row["id"] == worker), {})

    def assigned(self, name: str) -> str | None:
        """Whom a front assigns to a client that comes from here."""
        worker: str | None = ask(self.ports[name], "GET", "/workers/assign?ip=127.0.0.1").json()["worker"]
        return worker

    def told(self) -> str:
        """What every front says of itself, and the end of its log: why a test failed."""
        lines = []
        for name, front in self.fronts.items():
            try:
                lines.append(f"{name}: {json.dumps(self.health(name))}")
            except (OSError, http.client.HTTPException) as problem:
                lines.append(f"{name}: {problem!r}")
            lines += [f"  {line}" for line in [*front.out, *front.err][-25:]]
        return "\n".join(lines)

    def leader(self, *among: str) -> str:
        """Who leads, once all fronts that run (or those of ``among``) agree on one of them."""
        agreed: set[str] = set()

        def agree() -> bool:
            agreed.clear()
            told = {name: self.health(name) for name in among or self.fronts}
            leads = [name for name, health in told.items() if health["role"] == "leader"]
            agreed.update(leads)
            return len(leads) == 1 and {health["leader"] for health in told.values()} == set(leads)

        until(agree, lambda: f"one leader\n{self.told()}")
        return agreed.pop()

    def whole(self) -> str:
        """Waits until every front is linked to every other, and all agree on leader, ring and term. The leader."""
        def is_whole() -> bool:
            told = [self.health(name) for name in self.names]
            states = {entry["state"] for health in told for entry in health["cluster"]}
            return (
                {health["status"] for health in told} == {"ok"} and states <= {"leader", "follower"}
                and all(len(health["cluster"]) == len(self.names) for health in told)
                and len({(health["leader"], health["term"], health["ring"]["digest"]) for health in told}) == 1
                and told[0]["leader"] in self.names
            )

        until(is_whole, lambda: f"a whole cluster\n{self.told()}")
        return self.leader()

    def until_state(self, worker: str, state: str, *names: str) -> float:
        """Waits until the fronts (all that run, unless told) show ``worker`` in ``state``; the seconds that took."""
        return until(
            lambda: all(self.worker(name, worker).get("state") == state for name in names or self.fronts),
            lambda: f"{worker} {state} at {names or 'all fronts'}\n{self.told()}")


class _Share:
    """One cluster for all tests of a scheme, and how many of them are still to come."""

    def __init__(self) -> None:
        self.tests = 0
        self.cluster: Cluster | None = None


class ClusterTestCase(SynchronousTestCase):
    """Tests that share a cluster with all others of their scheme; each finds it whole, and without workers.

    trial has no ``setUpClass``: the tests are counted as they are made, the first one starts the cluster, and the
    one that finishes last stops it and asserts its clean end.
    """

    names: ClassVar[Sequence[str]] = "abc"
    scheme: ClassVar[Scheme] = "proxied"
    _shares: ClassVar[dict[object, _Share]] = {}
    _numbers: ClassVar = itertools.count(1)

    def __init__(self, methodName: str = "runTest") -> None:
        super().__init__(methodName)
        self._share = self._shares.setdefault((self.names, self.scheme), _Share())
        self._share.tests += 1

    def setUp(self) -> None:
        self.addCleanup(self._finished)
        if self._share.cluster is None:
            self._share.cluster = Cluster(self.names, self.scheme)
            self._share.cluster.start()
        self.cluster = cluster = self._share.cluster
        self.leader = cluster.whole()
        until(lambda: not any(cluster.health(name)["workers"]["up"] for name in self.names), cluster.told)
        number = next(self._numbers)
        self.w1, self.w2 = f"w1.{number}", f"w2.{number}"

    def _finished(self) -> None:
        share, cluster = self._share, self._share.cluster
        share.tests -= 1
        if cluster is not None and share.tests <= 0:
            share.cluster = None
            cluster.stop()

    def others(self, name: str) -> list[str]:
        """All fronts but that one."""
        return [other for other in self.names if other != name]

    def client(self, name: str, ticket: str | None = None) -> Client:
        """A client at a front, closed after the test."""
        client = Client(self.cluster.ports[name], ticket)
        self.addCleanup(client.close)
        return client

    def worker(self, name: str, worker: str) -> Worker:
        """A worker that is registered at a front, closed after the test."""
        joined = Worker(self.cluster.ports[name], worker)
        self.addCleanup(joined.close)
        return joined.joined()

    def assert_linked_both_ways(self) -> None:
        """Asserts that a worker of either of two fronts is served to a client of the other one."""
        worker, other = self.worker("b", self.w1), self.worker("a", self.w2)
        self.cluster.until_state(self.w1, "up")
        self.cluster.until_state(self.w2, "up")
        self.assert_signaling(self.client("a"), worker)
        self.assert_signaling(self.client("b"), other)

    def assert_signaling(self, client: Client, worker: Worker) -> None:
        """Asserts that offer, answer and candidates get through, each with the right sender."""
        client.send(**{"type": "offer", "to": worker.id, "sdp": OFFER, "session": "s1", "from": "somebody-else"})
        self.assertEqual(worker.receive(), {"type": "offer", "from": client.id, "sdp": OFFER, "session": "s1"})
        worker.send(**{"type": "answer", "to": client.id, "sdp": ANSWER, "session": "s1", "from": "somebody-else"})
        self.assertEqual(client.receive(), {"type": "answer", "from": worker.id, "sdp": ANSWER, "session": "s1"})
        for sender, receiver in ((client, worker), (worker, client)):
            for candidate in ({"candidate": CANDIDATE, "sdpMid": "0", "sdpMLineIndex": 0}, None):
                sender.send(type="candidate", to=receiver.id, candidate=candidate, session="s1")
                self.assertEqual(receiver.receive(), {
                    "type": "candidate", "from": sender.id, "candidate": candidate, "session": "s1"})
