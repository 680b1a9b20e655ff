"""What is measured: each function starts what it needs, measures, and returns its figures by name.

Rates are a second, times in ms, memory in bytes, unless the name says otherwise; ``report.FIGURES`` has them by name.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from tests.bench.generator import Generator, Told
from tests.bench.machine import CannotRun, pinned, second_core, server_core
from tests.bench.servers import FRONT, FRONT_SETTINGS, NODE_HTTP, PLAIN_WEB, TLS_FRONT, Kind, Server
from tests.e2e.cluster import Cluster
from tests.e2e.contract_client import ask

MIB = 2**20
WARMING = 20
"""Connections that join and leave before memory is looked at: code that the first ones load is nobody's share."""
WORKERS_LIMIT_S = 60.0
RELAXED_PING_S = 30
"""Between two pings of a worker, where there are too many for one a second."""
ACROSS_RATE = 1000
FOLDER_PREFIX = "kollator-bench-"

Figures = dict[str, float]
Step = Callable[[str], None]
"""Told what is done next."""


@attrs.frozen
class Plan:
    """How much is measured. ``pairs`` of a client and a worker relay; ``window`` sessions each saturate a server."""

    rounds: int = 3
    seconds: float = 2.0
    warmup_s: float = 0.5
    idle: int = 10_000
    tls_idle: int = 10_000
    pairs: int = 100
    window: int = 8
    rates: tuple[int, ...] = (1000, 5000)
    connections: tuple[int, ...] = (1000, 5000, 10_000, 15_000)
    workers: tuple[int, ...] = (10, 100, 1000, 10_000)


QUICK = Plan(rounds=1, seconds=1.0, warmup_s=0.3, idle=2000, tls_idle=1000, connections=(500, 1000, 2000, 3000),
             workers=(10, 100, 1000))


@contextlib.contextmanager
def running(kind: Kind, **options: Any) -> Iterator[Server]:
    """A server in a folder of its own, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder, Server(kind, Path(folder), **options) as server:
        yield server


def _cpu_us(told: Told, count: float) -> float:
    return sum(told["cpu_s"]) * 1e6 / max(1.0, count)


class Bench:
    """The measurements of one run: a generator, a plan, who is told of each step, and of what had to be left out."""

    def __init__(self, generator: Generator, plan: Plan, step: Step = lambda what: None,
                 note: Step = lambda what: None) -> None:
        self._generator = generator
        self._plan = plan
        self._step = step
        self._note = note
        self._prefix = 0

    def _relay(self, server: Server, **options: Any) -> Told:
        self._prefix += 1  # no worker comes back as one that is known
        return self._generator.run(
            "relay", server, **{"count": self._plan.pairs, "seconds": self._plan.seconds,
                                "warmup": self._plan.warmup_s, "prefix": f"{self._prefix:x}.", **options})

    def warmed(self, server: Server) -> int:
        """The memory of a server that has had its first connections."""
        with self._generator.holding(server, WARMING, prefix="y."):
            pass
        server.settle()
        return server.rss_bytes()

    @contextlib.contextmanager
    def idle(self, server: Server, count: int) -> Iterator[Figures]:
        """So many connections that have joined and are quiet, while the block runs; yields what they take."""
        base = self.warmed(server)
        with self._generator.holding(server, count, prefix="i.") as opening:
            server.settle()
            yield {"base_mib": base / MIB, "bytes": (server.rss_bytes() - base) / count,
                   "joins": count / opening["seconds"]}
        server.settle()

    def _latencies(self, server: Server, suffix: str = "") -> Figures:
        found: Figures = {}
        for rate in self._plan.rates:
            told = self._tried(server, rate=rate)
            if told is None:
                continue
            found[f"p50_{rate}{suffix}"] = told["p50_ms"]
            found[f"p99_{rate}{suffix}"] = told["p99_ms"]
        return found

    def _tried(self, server: Server, **options: Any) -> Told | None:
        """A measurement that the others can do without: one that fails is told, and left out."""
        try:
            return self._relay(server, **options)
        except CannotRun as problem:
            how = ", ".join(f"{name} {value}" for name, value in options.items())
            self._note(f"{server.kind.name} {how}: {problem}")
            return None

    def relayed(self, server: Server, suffix: str = "") -> Figures:
        """Messages as fast as they go, with one session at a time between the ends of each pair."""
        told = self._tried(server)
        return {} if told is None else {
            f"messages{suffix}": told["rate"], f"p99_closed{suffix}": told["p99_ms"],
            f"cpu_us{suffix}": _cpu_us(told, told["messages"]), f"generator_busy{suffix}": told["generator_busy"],
            f"server_busy{suffix}": sum(told["cpu_s"]) / told["seconds"],
        }

    def server(self, kind: Kind) -> Figures:
        """One round of one server: everything that the table compares."""
        plan = self._plan
        with running(kind) as server:
            self._step("memory")
            with self.idle(server, plan.idle) as found:
                self._step("relay beside idle connections")
                found |= self.relayed(server, "_idle")
                found |= self._latencies(server, "_idle")
            self._step("handshakes")
            found |= self._handshakes(server)
            self._step("relay")
            found |= self.relayed(server)
            found |= self._latencies(server)
            told = self._tried(server, window=plan.window)
            if told is not None:
                found["messages_saturated"] = told["rate"]
                found["cpu_us_saturated"] = _cpu_us(told, told["messages"])
        return found

    def _handshakes(self, server: Server) -> Figures:
        told = self._generator.run("handshakes", server, seconds=self._plan.seconds, warmup=self._plan.warmup_s,
                                   prefix="h.")
        return {"handshakes": told["rate"], "handshake_p50": told["p50_ms"], "handshake_p99": told["p99_ms"],
                "handshake_cpu_us": _cpu_us(told, told["handshakes"])}

    def tls(self) -> Figures:
        """A front's connections over TLS."""
        with running(TLS_FRONT) as server:
            self._step("memory")
            with self.idle(server, self._plan.tls_idle) as found:
                pass
            self._step("handshakes, relay")
            found |= self._handshakes(server)
            found |= self.relayed(server)
        return found

    # -- two fronts ---------------------------------------------------------------------------------------------------

    def across(self) -> Figures:
        """Two linked fronts: the clients at one and the workers at the other, and all at one, in turn."""
        with _cluster() as (server, cluster):
            ports = [cluster.ports["a"], cluster.ports["b"]]
            pids = [cluster.fronts[name].process.pid for name in "ab"]
            everybody = self._plan.pairs

            def known() -> None:
                until_holds(lambda: _up(ports[0]) >= everybody, "the workers are known at the other front")

            found: Figures = {}
            for name, where in (("local", ports[:1]), ("across", ports)):
                self._step(name)
                told = self._relay(server, ports=where, pids=pids, ready=known)
                until_holds(lambda: _up(ports[0]) == 0, "the workers have left")
                found[f"messages_{name}"] = told["rate"]
                found[f"p99_closed_{name}"] = told["p99_ms"]
                found[f"cpu_us_{name}"] = _cpu_us(told, told["messages"])
                busier = max(told["cpu_s"]) / told["seconds"]
                # What it would be with a core for each front, where they have to share one.
                found[f"messages_{name}_own_cores"] = told["rate"] / busier if busier > 0 else told["rate"]
                told = self._relay(server, ports=where, pids=pids, ready=known, rate=ACROSS_RATE)
                until_holds(lambda: _up(ports[0]) == 0, "the workers have left")
                found[f"p50_{ACROSS_RATE}_{name}"] = told["p50_ms"]
                found[f"p99_{ACROSS_RATE}_{name}"] = told["p99_ms"]
        return found

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def bootstrap(self) -> dict[str, Figures]:
        """``POST /bootstrap`` of a front, and constant answers of the same size."""
        found: dict[str, Figures] = {}
        with running(FRONT) as server, self._generator.holding(server, 3, prefix="b.", workers=True):
            self._step("front")
            answer = _bootstrapped(server)
            found["front"] = self._asked(server, "/bootstrap", "POST")
        for kind in (PLAIN_WEB, NODE_HTTP):
            self._step(kind.label)
            with running(kind, environment={"ANSWER": answer}) as server:
                found[kind.name] = self._asked(server, "/bootstrap", "POST")
        return found

    def _asked(self, server: Server, path: str, method: str, parallel: int = 16) -> Figures:
        told = self._generator.run("http", server, seconds=self._plan.seconds, warmup=self._plan.warmup_s, path=path,
                                   method=method, parallel=parallel)
        return {"requests": told["rate"], "p50": told["p50_ms"], "p99": told["p99_ms"],
                "cpu_us": _cpu_us(told, told["requests"])}

    # -- growth -------------------------------------------------------------------------------------------------------

    def connections(self) -> list[Figures]:
        """A front with more and more idle connections."""
        curve: list[Figures] = []
        with running(FRONT) as server, contextlib.ExitStack() as held:
            base = self.warmed(server)
            before = 0
            for count in self._plan.connections:
                self._step(f"{count} connections")
                held.enter_context(self._generator.holding(server, count - before, prefix="g.", start=before))
                before = count
                server.settle()
                point: Figures = {"connections": count, "bytes": (server.rss_bytes() - base) / count}
                point |= self.relayed(server)
                rate = max(self._plan.rates)
                told = self._tried(server, rate=rate)
                if told is not None:
                    point |= {f"p50_{rate}": told["p50_ms"], f"p99_{rate}": told["p99_ms"]}
                curve.append(point)
        return curve

    def workers(self, tell: Callable[[Figures], None]) -> None:
        """A front with more and more workers; each point is told as it is there, so that none is lost with the last.

        Where a front with its defaults cannot ping that many workers every second, one that has more time for it takes
        over.
        """
        counts = list(self._plan.workers)
        for ping_s in (1, RELAXED_PING_S):
            settings = {"WORKER_HEALTH_INTERVAL": f"{ping_s}000", "WORKER_HEALTH_TIMEOUT": f"{ping_s}000"}
            try:
                for point in self._worker_points(counts, settings):
                    tell({**point, "ping_s": ping_s})
            except CannotRun as problem:
                if ping_s == RELAXED_PING_S:
                    raise
                self._note(f"{counts[0]} workers, pinged every second: {problem}")
            if not counts:
                return

    def _worker_points(self, counts: list[int], settings: dict[str, str]) -> Iterator[Figures]:
        """Takes from ``counts`` what was measured."""
        with running(FRONT, environment=settings) as server, contextlib.ExitStack() as held:
            base = self.warmed(server)
            before = 0
            while counts:
                count = counts[0]
                self._step(f"{count} workers")
                begun_s = time.monotonic()
                held.enter_context(self._generator.holding(
                    server, count - before, prefix="g.", start=before, workers=True, limit=WORKERS_LIMIT_S))
                until_holds(functools.partial(_has_up, server.port, count), f"{count} workers are up", WORKERS_LIMIT_S)
                point = {"workers": float(count), "registered": (count - before) / (time.monotonic() - begun_s)}
                server.settle()
                point["worker_bytes"] = (server.rss_bytes() - base) / count
                asked = self._asked(server, "/bootstrap", "POST")
                point |= {"requests": asked["requests"], "bootstrap_p99": asked["p99"]}
                asked = self._asked(server, "/workers/assign?ip=10.#", "GET", parallel=1)
                point |= {"assign_p50": asked["p50"], "assign_p99": asked["p99"]}
                before = counts.pop(0)
                yield point


# -- of a front -------------------------------------------------------------------------------------------------------


def until_holds(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    """Looks until something holds. Raises ``CannotRun``."""
    deadline_s = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        if time.monotonic() > deadline_s:
            raise CannotRun(f"not within {limit_s:g} s: {what}")
        time.sleep(0.05)


def _up(port: int) -> int:
    """How many workers a front takes for usable."""
    up = ask(port, "GET", "/health").json()["workers"]["up"]
    assert isinstance(up, int)
    return up


def _has_up(port: int, count: int) -> bool:
    return _up(port) >= count


def _bootstrapped(server: Server) -> str:
    answers: list[str] = []

    def good() -> bool:
        answer = ask(server.port, "POST", "/bootstrap")
        answers.append(answer.body.decode())
        return answer.status == 200

    until_holds(good, "a front has workers")
    json.loads(answers[-1])
    return answers[-1]


class _Linked(Server):
    """One of two linked fronts, as the generator wants it; the cluster starts and ends it."""

    def __init__(self, port: int, pids: list[int]) -> None:
        self.kind = FRONT
        self.port = port
        self._pids = pids

    @property
    def pids(self) -> list[int]:
        return self._pids

    def last_words(self) -> str:
        return "one of two linked fronts"


@contextlib.contextmanager
def _cluster() -> Iterator[tuple[Server, Cluster]]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        os.chdir(folder)  # where it makes its own folders
        try:
            cluster = Cluster("ab", settings=FRONT_SETTINGS)
            try:
                for name, core in (("a", server_core()), ("b", second_core())):
                    with pinned(core):
                        cluster.start(name)
                cluster.whole()
                yield _Linked(cluster.ports["a"], [front.process.pid for front in cluster.fronts.values()]), cluster
            except AssertionError as problem:
                raise CannotRun(" ".join(str(problem).split())[:300]) from None
            finally:
                for front in cluster.fronts.values():
                    front.kill()
        finally:
            os.chdir(before)
