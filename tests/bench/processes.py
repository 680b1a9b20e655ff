"""One front and several processes of it, in one run: ``python -m tests.bench.processes``.

Prints the memory of each process, idle and under load, and the relay rate of all together (closed loop: 2 KB offers and
answers, 200 B candidates), with 1, 2, … processes behind one port. The kernel spreads clients and workers over the
processes, so of *n* all but one in *n* messages go across a link. The generator takes a core of its own where there is
one to spare: with two cores, two processes and it share them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import attrs

from tests.bench.generator import Generator
from tests.bench.machine import CannotRun, build_generator, cores, rss_bytes
from tests.bench.servers import FRONT, Server
from tests.e2e.cluster import until
from tests.e2e.contract_client import ask

MIB = 2**20


class Fronts(Server):
    """``twistd kollator-front --processes``: the supervisor, whose children do the work, on all cores but the last."""

    def __init__(self, folder: Path, count: int) -> None:
        self._count = count
        environment = {**FRONT.environment, "PROCESSES": str(count)}
        kind = attrs.evolve(FRONT, environment=environment)
        super().__init__(kind, folder)
        # The server's core is for a front alone.
        spread = set(cores()[:count]) if len(cores()) > count else set(cores())
        for pid in (self.process.pid, *self.children()):
            pinned_to(pid, spread)

    def children(self) -> list[int]:
        """The fronts' processes; none when there is one front."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def pids(self) -> list[int]:
        """Whose CPU time is measured: four at most."""
        return (self.children() or [self.process.pid])[:4]

    def linked(self) -> bool:
        """Whether all fronts have found each other."""
        told = ask(self.port, "GET", "/health").json()
        states = {entry["state"] for entry in told["cluster"]}
        return len(told["cluster"]) == self._count and states <= {"leader", "follower"}


def pinned_to(pid: int, on: set[int]) -> None:
    """Has all threads of a process run on these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), on)


class Measured(NamedTuple):
    """What was measured of one number of processes.

    MiB of the supervisor and of each front, messages a second, their p99, CPU microseconds a message of all fronts
    together, and the rate at which the busiest of them would be at its end with a core to itself.
    """

    supervisor: float
    fronts: Sequence[float]
    rate: float
    p99_ms: float
    cpu_us: float
    own_cores: float


def measure(generator: Generator, count: int, pairs: int, seconds: float) -> Measured:
    """One round. Raises ``CannotRun``."""
    with tempfile.TemporaryDirectory(prefix="kollator-bench-") as folder, (server := Fronts(Path(folder), count)):
        until(server.linked, "all fronts are linked")
        server.settle()
        idle = [rss_bytes(pid) / MIB for pid in server.children()]
        told = generator.run(
            "relay", server, count=pairs, window=2, seconds=seconds, prefix="p.",
            ready=lambda: until(lambda: all_up(server.port, pairs, count), "all workers are known everywhere"))
        return Measured(
            rss_bytes(server.process.pid) / MIB, idle, told["rate"], told["p99_ms"],
            sum(told["cpu_s"]) * 1e6 / told["messages"], told["messages"] / max(told["cpu_s"]))


def all_up(port: int, workers: int, count: int) -> bool:
    """Whether whichever front answers knows so many workers, many times in a row."""
    return all(ask(port, "GET", "/health").json()["workers"]["up"] >= workers for _ in range(6 * count))


def main() -> int:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.processes", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="how many (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement (%(default)s)")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of a client and a worker (%(default)s)")
    options = parser.parse_args()
    print(f"{len(cores())} cores, the generator on one of them")
    print(f"{'processes':>9} {'supervisor MiB':>14} {'MiB each':>9} {'messages/s':>10} {'p99 ms':>7} {'us each':>8} "
          f"{'own cores/s':>11}")
    try:
        generator = Generator(build_generator())
        rounds: dict[int, list[Measured]] = {count: [] for count in options.processes}
        for _ in range(options.rounds):
            for count in options.processes:
                rounds[count].append(measure(generator, count, options.pairs, options.seconds))
    except (CannotRun, AssertionError, OSError) as problem:
        print(f"it did not work: {' '.join(str(problem).split())[:400]}", file=sys.stderr)
        return 1
    for count, found in rounds.items():
        each = [mib for one in found for mib in one.fronts or [one.supervisor]]
        print(f"{count:9} {statistics.median(one.supervisor for one in found) if count > 1 else 0:14.1f} "
              f"{statistics.median(each):9.1f} {statistics.median(one.rate for one in found):10.0f} "
              f"{statistics.median(one.p99_ms for one in found):7.1f} "
              f"{statistics.median(one.cpu_us for one in found):8.1f} "
              f"{statistics.median(one.own_cores for one in found):11.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
