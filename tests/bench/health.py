"""How soon a cluster of three real fronts knows that a worker is gone: ``python -m tests.bench.health``.

A reference worker at one front is stopped with SIGSTOP, at a random moment between two pings, or killed. Measured is
how long it takes until every front shows it as down, and until a client of another front was told.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time

from tests.bench.cluster import progress, show
from tests.e2e.cluster import Cluster, until
from tests.e2e.contract_client import Client
from tests.e2e.reference import ReferenceWorker

HEALTH = {"WORKER_HEALTH_TIMEOUT": "1000", "WORKER_HEALTH_INTERVAL": "1000"}


def losses(
    cluster: Cluster, how: signal.Signals, trials: int, source: random.Random
) -> tuple[list[float], list[float]]:
    """Seconds until all fronts show a worker as down, and until its client at another front is told of it."""
    shown, told = [], []
    pause = threading.Event()
    for trial in range(trials):
        progress(f"{how.name}: {trial} of {trials}")
        # A worker of its own for each trial: one that falls again and again is held down longer and longer.
        worker = ReferenceWorker(f"{how.name}.{trial}".lower(), [cluster.ports["a"]])
        try:
            cluster.until_state(worker.id, "up")
            client = Client(cluster.ports["c"])
            client.ask(type="assign")
            heard: list[float] = []

            def hear(client: Client = client, heard: list[float] = heard) -> None:
                if client.receive()["type"] == "worker-lost":
                    heard.append(time.perf_counter())

            hearing = threading.Thread(target=hear, daemon=True)
            hearing.start()
            pause.wait(1.0 + source.random())
            began = time.perf_counter()
            worker.signal(how)
            cluster.until_state(worker.id, "down")
            shown.append(time.perf_counter() - began)
            hearing.join(30)
            told.append(heard[0] - began)
            client.close()
        finally:
            worker.kill()
        until(lambda: not any(cluster.health(name)["connections"]["worker"] for name in cluster.names), cluster.told)
    return shown, told


def main() -> int:
    """Runs everything and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.health", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="workers stopped, and killed (%(default)s)")
    options = parser.parse_args()
    source = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="kollator-bench-") as folder:
        os.chdir(folder)
        cluster = Cluster("abc", settings=HEALTH)
        try:
            cluster.start()
            cluster.whole()
            for how, what in ((signal.SIGSTOP, "stopped"), (signal.SIGKILL, "killed")):
                shown, told = losses(cluster, how, options.trials, source)
                show(f"a worker is {what}: down at all three fronts", shown)
                show(f"a worker is {what}: its client at another front told", told)
        finally:
            cluster.stop()
            os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
