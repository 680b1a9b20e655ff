"""What the cluster costs and how fast it heals, in figures: ``python -m tests.sim --figures`` prints them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kollator.cluster.arrivals import Arrivals
from kollator.pool.pool import Pool
from kollator.state.changes import Batch
from kollator.state.rows import AttachmentRow, Row, WorkerRow
from kollator.state.store import Store
from tests.sim.cluster import Cluster


def heal_s(size: int = 30, writes: int = 200) -> tuple[float, float]:
    """Two halves of a cluster write apart, then are healed: simulated seconds, and the processor's, until all fronts
    are the same.
    """
    cluster = Cluster(1, size)
    try:
        cluster.heal(30.0)
        cluster.network.cut(cluster.names[: size // 2], cluster.names[size // 2 :])
        cluster.run(5.0)
        fronts = list(cluster.fronts.values())
        for number in range(writes):
            fronts[number % size].join(WorkerRow(f"w{number}"))
            cluster.run(0.01)
        cluster.run(1.0)
        began = _cpu_s()
        return cluster.heal(60.0), _cpu_s() - began
    finally:
        cluster.close()


def frames_per_write(size: int, writes: int, apart_s: float) -> dict[str, float]:
    """Frames of the sync in a full mesh for each write, with so much time between two, by their kind."""
    cluster = Cluster(1, size)
    try:
        cluster.heal(30.0)
        cluster.run(2.0)
        seen: Counter[str] = Counter()
        check = cluster.network.sent

        def sent(one: str, other: str, frame: object) -> None:
            seen[type(frame).__name__] += 1
            check(one, other, frame)  # type: ignore[arg-type]

        cluster.network.sent = sent
        front = cluster.fronts["f1"]
        for number in range(writes):
            front.join(WorkerRow(f"w{number}"))
            cluster.run(apart_s)
        cluster.run(3.0)
        return {kind: seen[kind] / writes for kind in ("Changes", "Ack", "Pull")}
    finally:
        cluster.close()


def sync_s(workers: int = 10_000) -> dict[str, float]:
    """Seconds of the processor to bring so many workers to an empty front, by what they are spent on.

    Reading and merging are done in the store's thread, so the longest turn of the reactor is one of the pool's.
    """
    full, empty = Store.open(":memory:", node_id="a"), Store.open(":memory:", node_id="b")
    try:
        full.begin_incarnation("", "")
        numbers = range(workers)
        full.write([WorkerRow(f"worker-{number}", "eu", 100, f"10.0.0.{number & 255}") for number in numbers])
        full.write([AttachmentRow(f"worker-{number}", "a", 1, "up") for number in numbers])
        pool = Pool()
        turns: list[float] = []
        spent = {"read": 0.0, "merge": 0.0, "apply": 0.0}
        clock = _CpuClock()

        def apply(rows: Sequence[Row]) -> None:
            pool.apply_all(rows)

        arrivals = Arrivals(clock, apply)
        batch = Batch([], empty.cursor_of("a"), empty.cursor_of("a"), more=True)
        while batch.more:
            began = _cpu_s()
            batch = full.changes_since(batch.cursor)
            read = _cpu_s()
            result = empty.merge(batch.changes, sender="a", since=batch.since, cursor=batch.cursor, sites=batch.sites)
            merged = _cpu_s()
            arrivals.take(result.rows)
            turns.append(_cpu_s() - merged)
            while clock.later:
                turn = _cpu_s()
                clock.later.pop(0)()
                turns.append(_cpu_s() - turn)
            spent["read"] += read - began
            spent["merge"] += merged - read
            spent["apply"] += _cpu_s() - merged
        assert pool.counts().up == workers
        return {**spent, "longest turn": max(turns)}
    finally:
        full.close()
        empty.close()


def _cpu_s() -> float:
    """What this process has used: the machine's other work does not count."""
    return time.process_time()


class _CpuClock:
    """The processor's time, and calls that wait for the next turn."""

    def __init__(self) -> None:
        self.later: list[Callable[[], object]] = []

    def seconds(self) -> float:
        """What was used so far."""
        return _cpu_s()

    def callLater(self, delay: float, call: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """In the next turn."""
        self.later.append(lambda: call(*args, **kwargs))


def report() -> None:
    """Print all of them."""
    for size in (5, 30):
        for apart_s in (1.0, 0.01):
            figures = frames_per_write(size, 10 if apart_s == 1.0 else 100, apart_s)
            told = ", ".join(f"{count:.1f} {kind}" for kind, count in figures.items())
            print(f"{size} fronts, a write each {apart_s:g} s: {told} a write", flush=True)
    told = ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in sync_s().items())
    print(f"10,000 workers to an empty front: {told}", flush=True)
    simulated_s, cpu_s = heal_s()
    print(f"30 fronts, 200 writes in two halves: the same {simulated_s:.2f} simulated s after healing ({cpu_s:.0f} s)")
