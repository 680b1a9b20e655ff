"""What a cluster of three real fronts does on this machine: ``python -m tests.bench.cluster`` prints its figures.

How long until a worker that registered at one front is reachable through another; offer and answer across two
fronts at a steady rate; how long until there is a new leader when the leader is killed. Then the simulator's:
healing of 30 fronts, and 10,000 workers synchronised to an empty front.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from tests.e2e.cluster import Cluster, until
from tests.e2e.contract_client import Client, Worker

SDP = "v=0\r\n" + "a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host\r\n" * 32
"""Some 2 KB, as a browser's offer for a data channel has."""


def percentile(sorted_s: Sequence[float], share: float) -> float:
    """A percentile of sorted values, by the nearest rank."""
    return sorted_s[min(len(sorted_s) - 1, int(share * len(sorted_s)))]


def show(what: str, seconds: Sequence[float]) -> None:
    """One line of the table, in milliseconds."""
    ordered = sorted(seconds)
    cells = [percentile(ordered, share) * 1000 for share in (0.5, 0.99)] + [ordered[-1] * 1000]
    print(f"{what:58} p50 {cells[0]:8.1f}  p99 {cells[1]:8.1f}  max {cells[2]:8.1f} ms  (n={len(ordered)})", flush=True)


def progress(text: str) -> None:
    """What is being done, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{text:70}", end="", file=sys.stderr, flush=True)


def answering(worker: Worker) -> threading.Thread:
    """A thread that answers every offer to ``worker`` until its connection ends."""

    def answer() -> None:
        try:
            while True:
                message = worker.receive(3600)
                if message["type"] == "offer":
                    worker.send(type="answer", to=message["from"], sdp=message["sdp"], session=message.get("session"))
        except Exception:  # the connection was closed
            return

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return thread


def visible(cluster: Cluster, trials: int) -> list[float]:
    """Seconds from a worker's welcome at one front until a client at another one has its answer."""
    client = Client(cluster.ports["b"])
    taken = []
    for trial in range(trials):
        progress(f"visible: {trial} of {trials}")
        worker = Worker(cluster.ports["a"], f"v{trial}").joined()
        began = time.perf_counter()
        answering(worker)
        client.send(type="offer", to=worker.id, sdp="v=0")
        while client.receive()["type"] != "answer":
            client.send(type="offer", to=worker.id, sdp="v=0")
        taken.append(time.perf_counter() - began)
        worker.close()
    client.close()
    return taken


def relayed(cluster: Cluster, rate: float, seconds: float) -> list[float]:
    """Seconds from an offer at one front to its answer from a worker at another, at a steady rate."""
    worker = Worker(cluster.ports["a"], "relay", capacity=100_000).joined()
    answering(worker)
    client = Client(cluster.ports["b"])
    until(lambda: cluster.worker("b", "relay").get("state") == "up", "the worker is known at the other front")
    sent_at: dict[str, float] = {}
    taken: list[float] = []
    count = int(rate * seconds)

    def receive() -> None:
        while len(taken) < count:
            message = client.receive(30)
            taken.append(time.perf_counter() - sent_at[message["session"]])

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    begun = time.perf_counter()
    pause = threading.Event()
    for number in range(count):
        pause.wait(max(0.0, begun + number / rate - time.perf_counter()))
        sent_at[str(number)] = time.perf_counter()
        client.send(type="offer", to="relay", sdp=SDP, session=str(number))
    receiver.join(60)
    client.close()
    worker.close()
    return taken


def failovers(cluster: Cluster, kills: int) -> list[float]:
    """Seconds from the kill of a leader until the others agree on a new one."""
    taken = []
    for kill in range(kills):
        progress(f"kill {kill} of {kills}")
        leader = cluster.leader()
        others = [name for name in cluster.names if name != leader]
        began = time.perf_counter()
        cluster.kill(leader)
        cluster.leader(*others)
        taken.append(time.perf_counter() - began)
        cluster.start(leader)
        cluster.whole()
    return taken


def main() -> int:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster", description=__doc__)
    parser.add_argument("--trials", type=int, default=300, help="workers registered one after another (%(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="offers a second across two fronts (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long they are sent (%(default)s)")
    parser.add_argument("--kills", type=int, default=30, help="leaders killed (%(default)s)")
    parser.add_argument("--no-simulator", action="store_true", help="leave the simulator's figures out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kollator-bench-") as folder:
        os.chdir(folder)
        cluster = Cluster("abc")
        try:
            cluster.start()
            cluster.whole()
            show("worker at one front, answer through another", visible(cluster, options.trials))
            across = relayed(cluster, options.rate, options.seconds)
            show(f"offer and answer across two fronts, {options.rate:g}/s", across)
            show("leader killed, until the others agree on a new one", failovers(cluster, options.kills))
        finally:
            cluster.stop()
            os.chdir("/")
    if not options.no_simulator:
        from tests.sim import figures

        figures.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
