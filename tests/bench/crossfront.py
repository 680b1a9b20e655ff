"""Relay across two linked fronts beside relay within one, in one run: ``python -m tests.bench.crossfront``.

In each round the same two fronts are saturated twice by the same pairs of a client and a worker (closed loop: 2 KB
offers and answers, 200 B candidates): with both ends at one front, and with the clients at the other one. The rate is
of the two fronts as they share the machine. The CPU time says what limits it: where each front has a core of its own,
the busier one's time for a message is the bound, and its share of the local one's is shown as ``own cores``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.generator import Generator
from tests.bench.machine import CannotRun, build_generator, pinned, second_core, server_core
from tests.bench.servers import FRONT, FRONT_SETTINGS, Server
from tests.e2e.cluster import Cluster, until
from tests.e2e.contract_client import ask


class Round(NamedTuple):
    """What was measured of one round: messages a second, and CPU microseconds a message of the two fronts."""

    local: float
    local_us: float
    across: float
    clients_us: float
    workers_us: float

    @property
    def ratio(self) -> float:
        """The rate across to the local one, the cores being shared."""
        return self.across / self.local

    @property
    def own_cores(self) -> float:
        """The same where each front would have a core to itself."""
        return self.local_us / max(self.clients_us, self.workers_us)


class Linked(Server):
    """Two linked fronts as the generator wants a server; the cluster starts and ends them."""

    def __init__(self, cluster: Cluster) -> None:
        self.kind = FRONT
        self.port = cluster.ports["a"]
        self._cluster = cluster

    @property
    def pids(self) -> list[int]:
        """Both, ``a`` first."""
        return [self._cluster.fronts[name].process.pid for name in "ab"]

    def last_words(self) -> str:
        """What both said last."""
        return self._cluster.told()[-400:]


def _up(port: int) -> int:
    up: int = ask(port, "GET", "/health").json()["workers"]["up"]
    return up


class Measurement:
    """The rounds of one run. ``pairs`` have ``window`` sessions each under way, for ``seconds``."""

    def __init__(self, generator: Generator, cluster: Cluster, pairs: int, window: int, seconds: float) -> None:
        self._generator = generator
        self._server = Linked(cluster)
        self._ports = [cluster.ports[name] for name in "ab"]
        self._pairs = pairs
        self._window = window
        self._seconds = seconds
        self._runs = 0

    def _relay(self, ports: Sequence[int]) -> tuple[float, float, float]:
        """Messages a second, and CPU microseconds a message at ``a`` (clients) and ``b`` (workers)."""
        self._runs += 1  # no worker comes back as one that is known
        told = self._generator.run(
            "relay", self._server, ports=ports, count=self._pairs, window=self._window, seconds=self._seconds,
            prefix=f"{self._runs:x}.",
            ready=lambda: until(lambda: _up(self._ports[0]) >= self._pairs, "all workers are known at a"),
        )
        until(lambda: _up(self._ports[0]) == 0, "all workers have left")
        a_s, b_s = told["cpu_s"]
        return told["rate"], a_s * 1e6 / told["messages"], b_s * 1e6 / told["messages"]

    def round(self) -> Round:
        """Both, one after the other."""
        local, local_us, _ = self._relay(self._ports[:1])
        across, clients_us, workers_us = self._relay(self._ports)
        return Round(local, local_us, across, clients_us, workers_us)


@contextlib.contextmanager
def linked(settings: Mapping[str, str]) -> Iterator[Cluster]:
    """Two linked fronts, pinned, in a folder of their own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="kollator-bench-") as folder:
        os.chdir(folder)  # where the cluster makes its own folders
        cluster = Cluster("ab", settings=settings)
        try:
            for name, core in (("a", server_core()), ("b", second_core())):
                with pinned(core):
                    cluster.start(name)
            cluster.whole()
            yield cluster
        finally:
            for front in cluster.fronts.values():
                front.kill()
            os.chdir(before)


def main() -> int:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.crossfront", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement (%(default)s)")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of a client and a worker (%(default)s)")
    parser.add_argument("--window", type=int, default=4, help="sessions of a pair under way (%(default)s)")
    options = parser.parse_args()
    print(f"{'round':>6} {'local/s':>9} {'us':>6} {'across/s':>9} {'us clients':>10} {'us workers':>10} "
          f"{'ratio':>6} {'own cores':>9}", flush=True)
    rounds: list[Round] = []
    began = time.monotonic()
    try:
        generator = Generator(build_generator())
        with linked(FRONT_SETTINGS) as cluster:
            measurement = Measurement(generator, cluster, options.pairs, options.window, options.seconds)
            for number in range(options.rounds):
                one = measurement.round()
                rounds.append(one)
                print(f"{number + 1:6} {one.local:9.0f} {one.local_us:6.1f} {one.across:9.0f} {one.clients_us:10.1f} "
                      f"{one.workers_us:10.1f} {one.ratio:6.2f} {one.own_cores:9.2f}", flush=True)
    except (CannotRun, AssertionError, OSError, http.client.HTTPException) as problem:
        print(f"it did not work: {' '.join(str(problem).split())[:400]}", file=sys.stderr)
        return 1
    print(f"median {statistics.median(one.local for one in rounds):9.0f} "
          f"{statistics.median(one.local_us for one in rounds):6.1f} "
          f"{statistics.median(one.across for one in rounds):9.0f} "
          f"{statistics.median(one.clients_us for one in rounds):10.1f} "
          f"{statistics.median(one.workers_us for one in rounds):10.1f} "
          f"{statistics.median(one.ratio for one in rounds):6.2f} "
          f"{statistics.median(one.own_cores for one in rounds):9.2f}   ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
