"""What the pool costs and how even it is on this machine: ``python -m tests.bench.pool`` prints its figures.

Lookups and changes are timed one by one, in rounds; of each percentile the best round is shown, for other processes
only ever add time, and the median round beside it. Memory is that of a fresh process. Evenness has nothing to do
with the machine: it follows from the seeds. ``POST /bootstrap`` is that of a real front with its workers on loopback,
by its own histograms and by a client's clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from kollator.pool.pool import Pool
from kollator.pool.ranges import client_range
from kollator.pool.ring import Ring, key_hash
from kollator.state.rows import AttachmentRow, FrontRow, Row, WorkerRow
from tests.bench.cluster import percentile, progress
from tests.e2e.contract_client import Message, ask, worker_mac
from tests.e2e.processes import WORKER_KEY, Front

REPLICAS = 150
REGIONS = ("eu", "us-east", "us-west", "ap")
RANGES_PER_WORKER = 2_000
"""So many ranges are drawn for each worker that their own chance adds little to the ring's."""
JOINING_AT_ONCE = 32


class Table:
    """The figures: printed as they come, and kept for ``--json``."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, Any]] = {}

    def title(self, text: str) -> None:
        """A heading."""
        print(f"\n{text}", flush=True)

    def add(self, what: str, unit: str, **values: float) -> None:
        """One line: what, and its values by name."""
        self.figures[what] = {"unit": unit, **values}
        cells = "  ".join(f"{name.replace('_', ' ')} {value:9.3f}" for name, value in values.items())
        print(f"  {what:62} {cells} {unit}", flush=True)


def crew(count: int, region_of: Callable[[int], str] = lambda number: "") -> list[Row]:
    """The rows of so many equal workers of one front."""
    rows: list[Row] = [FrontRow("f", 1)]
    for number in range(count):
        rows += (WorkerRow(f"worker-{number}", region_of(number)), AttachmentRow(f"worker-{number}", "f", 1, "up"))
    return rows


def pool_of(count: int, region_of: Callable[[int], str] = lambda number: "") -> Pool:
    """A pool of so many workers."""
    pool = Pool(replicas=REPLICAS)
    pool.apply_all(crew(count, region_of))
    return pool


def addresses(source: random.Random, count: int) -> list[str]:
    """Random IPv4 addresses."""
    return [".".join(map(str, source.getrandbits(32).to_bytes(4, "big"))) for _ in range(count)]


# -- time ---------------------------------------------------------------------------------------------------------


def timed_s(calls: Iterable[Callable[[], object]]) -> list[float]:
    """The time of each call, with that of looking at the clock, sorted."""
    clock = time.perf_counter_ns
    taken = []
    for call in calls:
        began = clock()
        call()
        taken.append(clock() - began)
    return sorted(nanoseconds / 1e9 for nanoseconds in taken)


def add_rounds(table: Table, what: str, unit: str, rounds: Sequence[Sequence[float]]) -> None:
    """A line from the sorted seconds of several rounds."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    p50, p99 = ([scale * percentile(one, share) for one in rounds] for share in (0.5, 0.99))
    table.add(what, unit, p50=min(p50), p99=min(p99), p50_median=statistics.median(p50),
              p99_median=statistics.median(p99), worst=scale * max(one[-1] for one in rounds))


def lookups(table: Table, counts: Sequence[int], calls: int, rounds: int) -> None:
    """How long a lookup takes, by the number of workers."""
    table.title(f"Lookup, {calls} addresses each, {rounds} rounds: best round, median round")
    source = random.Random(1)
    asked = addresses(source, calls)
    hashes = [key_hash(client_range(address)) for address in asked]
    for count in counts:
        progress(f"lookup among {count} workers")
        pool = pool_of(count)
        while pool.sweep():
            pass
        ring = Ring()
        for number in range(count):
            ring.add(f"worker-{number}", REPLICAS)
        for hash64 in hashes:  # what is sorted when it is first looked at
            ring.lookup(hash64)
        for address in asked:
            pool.assign(address, explain=False)

        def of_address(address: str, ring: Ring = ring) -> str | None:
            return ring.lookup(key_hash(client_range(address)))

        add_rounds(table, f"Ring.lookup of a hash, {count:,} workers", "us",
                   [timed_s(partial(ring.lookup, hash64) for hash64 in hashes) for _ in range(rounds)])
        add_rounds(table, f"address to worker by the ring, {count:,} workers", "us",
                   [timed_s(partial(of_address, address) for address in asked) for _ in range(rounds)])
        add_rounds(table, f"Pool.assign for a client, {count:,} workers", "us",
                   [timed_s(partial(pool.assign, address, explain=False) for address in asked) for _ in range(rounds)])
    add_rounds(table, "the clock and an empty call, which are in all of these", "us",
               [timed_s([lambda: None] * calls) for _ in range(rounds)])


def changes(table: Table, count: int, calls: int, rounds: int) -> None:
    """How long it takes when one of many workers comes or goes: ``Pool.apply`` of its attachment."""
    table.title(f"One of {count:,} workers comes or goes, {calls} of them one by one, {rounds} rounds")
    for what, region_of in (
        ("no regions", lambda number: ""),
        (f"{len(REGIONS)} regions, all asked for", lambda number: REGIONS[number % len(REGIONS)]),
    ):
        progress(f"changes among {count} workers, {what}")
        pool = pool_of(count, region_of)
        for region in REGIONS:
            pool.assign("192.0.2.1", region=region, explain=False)
        while pool.sweep():
            pass
        source = random.Random(2)
        removed, added = [], []
        for _ in range(rounds):
            some = source.sample(range(count), calls)
            gone = [AttachmentRow(f"worker-{number}", "f", 1, "down") for number in some]
            come = [AttachmentRow(f"worker-{number}", "f", 1, "up") for number in some]
            removed.append(timed_s(partial(pool.apply, row) for row in gone))
            added.append(timed_s(partial(pool.apply, row) for row in come))
        add_rounds(table, f"removed, {what}", "ms", removed)
        add_rounds(table, f"added, {what}", "ms", added)


# -- memory -------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """The memory that this process has of the machine's."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(what: str, count: int, traced: bool) -> int:
    """The bytes that a ring or a pool takes, in a process that has done nothing else.

    ``traced``: those that Python has allocated for it; else those by which the process has grown.
    """
    kept: list[object] = []
    gc.collect()
    if traced:
        tracemalloc.start()
    before = 0 if traced else resident_bytes()
    if what == "ring":
        ring = Ring()
        for number in range(count):
            ring.add(f"worker-{number}", REPLICAS)
        kept.append(ring)
    else:
        pool = pool_of(count, lambda number: REGIONS[number % len(REGIONS)])
        if what == "pool with the rings of all its regions":
            for region in REGIONS:
                pool.assign("192.0.2.1", region=region, explain=False)
        while pool.sweep():
            pass
        pool.workers()
        kept.append(pool)
    gc.collect()
    return tracemalloc.get_traced_memory()[0] if traced else resident_bytes() - before


def memory(table: Table, count: int) -> None:
    """The memory of a ring and of a pool."""
    table.title(f"Memory of {count:,} workers with {REPLICAS} points each, in a process of its own")
    for what in ("ring", "pool", "pool with the rings of all its regions"):
        figures = {}
        for name, traced in (("allocated", True), ("resident", False)):
            if not traced and not os.path.exists("/proc/self/statm"):
                continue
            progress(f"memory of a {what}, {name}")
            child = subprocess.run(
                [sys.executable, "-c",
                 f"from tests.bench.pool import measure_memory; print(measure_memory({what!r}, {count}, {traced}))"],
                capture_output=True, text=True, check=True)
            figures[name] = int(child.stdout) / 2**20
        table.add(what, "MiB", **figures)


# -- evenness -----------------------------------------------------------------------------------------------------


def evenness(table: Table, counts: Sequence[int], seeds: int) -> None:
    """What the busiest of equal workers has, in multiples of the mean; and what moves when one comes or goes."""
    table.title(f"Evenness: the busiest of equal workers over the mean, {RANGES_PER_WORKER} random /24 for each worker")
    source = random.Random(3)
    hashes = [key_hash(f"{bits >> 16}.{bits >> 8 & 255}.{bits & 255}.0/24")
              for bits in source.sample(range(1 << 24), 1_000_000)]
    moves: dict[str, list[float]] = {"removed": [], "added": []}
    strays = 0
    for count in counts:
        busiest = []
        for seed in range(seeds):
            progress(f"evenness of {count} workers: seed {seed} of {seeds}")
            ring = Ring()
            for number in range(count):
                ring.add(f"{seed}-worker-{number}", REPLICAS)
            ranges = random.Random(seed).choices(hashes, k=count * RANGES_PER_WORKER)
            owners = list(map(ring.lookup, ranges))
            busiest.append(max(Counter(owners).values()) / RANGES_PER_WORKER)
            if count != 10:
                continue
            ring.remove(f"{seed}-worker-0")
            fewer = list(map(ring.lookup, ranges))
            ring.add(f"{seed}-worker-0", REPLICAS)
            ring.add(f"{seed}-worker-new", REPLICAS)
            more = list(map(ring.lookup, ranges))
            for what, after, moved_worker in (("removed", fewer, f"{seed}-worker-0"),
                                              ("added", more, f"{seed}-worker-new")):
                pairs = [(one, other) for one, other in zip(owners, after, strict=True) if one != other]
                moves[what].append(len(pairs) / len(ranges))
                strays += sum(moved_worker not in pair for pair in pairs)
        ordered = sorted(busiest)
        table.add(f"{count} workers, {seeds} seeds", "", mean=statistics.mean(busiest), p95=percentile(ordered, 0.95),
                  worst=ordered[-1])
    if moves["removed"]:
        table.title("Movement, ten workers: the share of the ranges that moves")
        for what, expected in (("removed", 1 / 10), ("added", 1 / 11)):
            table.add(f"one is {what}", "", mean=statistics.mean(moves[what]), ideal=expected, worst=max(moves[what]))
        table.add("ranges that moved between two other workers", "", all=float(strays))


# -- a front ------------------------------------------------------------------------------------------------------


class Workers:
    """Registered workers of a front, in a thread of their own, where the library answers their pings."""

    def __init__(self, port: int, count: int) -> None:
        self._url = f"ws://127.0.0.1:{port}/signaling"
        self._open: list[ClientConnection] = []
        self._joined = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._join_all(count), self._loop).result()

    async def _join_all(self, count: int) -> None:
        numbers = iter(range(count))

        async def join() -> None:
            for number in numbers:
                await self._join(f"worker-{number}")
                self._joined += 1
                progress(f"workers: {self._joined} of {count} are registered")

        await asyncio.gather(*(join() for _ in range(JOINING_AT_ONCE)))

    async def _join(self, worker: str) -> None:
        peer = await websockets.connect(self._url, ping_interval=None, open_timeout=60, compression=None, proxy=None)
        self._open.append(peer)
        nonce = os.urandom(16).hex()
        await peer.send(json.dumps({"type": "hello", "role": "worker", "id": worker, "region": "", "capacity": 100,
                                    "address": "", "nonce": nonce}))
        challenge: Message = json.loads(await peer.recv())
        mac = worker_mac(WORKER_KEY, worker, "", 100, nonce, challenge["nonce"])
        await peer.send(json.dumps({"type": "auth", "mac": mac}))
        welcome: Message = json.loads(await peer.recv())
        if welcome["type"] != "welcome":
            raise AssertionError(welcome)

    def close(self) -> None:
        """Closes all of them."""
        async def close_all() -> None:
            await asyncio.gather(*(peer.close() for peer in self._open))

        asyncio.run_coroutine_threadsafe(close_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def histogram(port: int, name: str) -> dict[float, float]:
    """How many observations a histogram of the front has up to each of its bounds, in seconds."""
    found = {}
    for line in ask(port, "GET", "/metrics").body.decode().splitlines():
        if line.startswith(f'{name}_bucket{{le="'):
            found[float(line.split('"')[1])] = float(line.rsplit(" ", 1)[1])
    return found


def bound(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """The least bound that so large a share of the observations lies within, in seconds."""
    counts = {le: after[le] - before.get(le, 0.0) for le in after}
    total = max(counts.values())
    return min(le for le, count in counts.items() if count >= share * total)


def bootstraps(table: Table, count: int, calls: int) -> None:
    """``POST /bootstrap`` of a front that holds so many workers, from as many address ranges as there are calls."""
    table.title(f"POST /bootstrap of a real front with {count:,} workers, {calls} requests from as many addresses")
    with tempfile.TemporaryDirectory(prefix="kollator-bench-") as folder:
        front = Front({"TRUSTED_PROXIES": "127.0.0.1"}, folder=Path(folder)).ready()
        try:
            workers = Workers(front.port, count)
            names = ("kollator_assignment_seconds", "kollator_bootstrap_seconds")
            before = {name: histogram(front.port, name) for name in names}
            connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
            taken = []
            for number, address in enumerate(addresses(random.Random(4), calls)):
                if not number % 100:
                    progress(f"bootstrap: {number} of {calls}")
                began = time.perf_counter()
                connection.request("POST", "/bootstrap", headers={"X-Forwarded-For": address})
                answer = connection.getresponse()
                body = answer.read()
                taken.append(time.perf_counter() - began)
                if answer.status != 200:
                    raise AssertionError(body)
            connection.close()
            for name, what in zip(names, ("the assignment", "the whole answer"), strict=True):
                after = histogram(front.port, name)
                shares = {f"p{share * 100:g}_within": 1000 * bound(before[name], after, share) for share in (0.5, 0.99)}
                table.add(f"{what}, by {name}", "ms", **shares)
            ordered = sorted(taken)
            table.add("request and response, by a client on loopback, one at a time", "ms",
                      p50=1000 * percentile(ordered, 0.5), p99=1000 * percentile(ordered, 0.99),
                      worst=1000 * ordered[-1])
            workers.close()
            front.stop()
        finally:
            front.kill()


PARTS = ("lookup", "change", "memory", "evenness", "bootstrap")


def main() -> int:
    """Runs what is asked for and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pool", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--calls", type=int, default=20_000, help="lookups a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of lookups and of changes (%(default)s)")
    parser.add_argument("--seeds", type=int, default=200, help="seeds of the evenness (%(default)s)")
    parser.add_argument("--bootstraps", type=int, default=5_000, help="requests (%(default)s)")
    parser.add_argument("--front-workers", type=int, default=1_000, help="workers of the real front (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := set(parts).difference(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    table = Table()
    if "lookup" in parts:
        lookups(table, (10, 100, 1_000, 10_000), options.calls, options.rounds)
    if "change" in parts:
        changes(table, 10_000, 300, options.rounds)
    if "memory" in parts:
        memory(table, 10_000)
    if "evenness" in parts:
        evenness(table, (3, 10, 100), options.seeds)
    if "bootstrap" in parts:
        bootstraps(table, options.front_workers, options.bootstraps)
    if options.json:
        Path(options.json).write_text(json.dumps(table.figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
