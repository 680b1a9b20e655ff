"""Equal workers get about equal shares of the ranges, and keep them when others come and go."""

from __future__ import annotations

import random
import statistics
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.pool import Pool
from kollator.state.rows import AttachmentRow, FrontRow, Row, WorkerRow

SEEDS = 12
RANGES = 6_000
"""For ten workers: the busiest one's share is known to some 4 %."""


def joined(worker: str, up: bool = True) -> list[Row]:
    """The rows of a worker that is connected, or was."""
    return [WorkerRow(worker), AttachmentRow(worker, "f", 1, "up" if up else "down")]


def owners(pool: Pool, addresses: list[str]) -> list[str | None]:
    """Whom clients from these addresses get."""
    return [pool.assign(address, alternates=0, explain=False).worker for address in addresses]


class EvennessTests(SynchronousTestCase):
    """Ten workers with 150 virtual nodes each, of other names for each seed."""

    def setUp(self) -> None:
        self.pools: list[tuple[Pool, list[str]]] = []
        self.workers = [f"worker-{number}" for number in range(10)]
        for seed in range(SEEDS):
            pool = Pool(replicas=150)
            pool.apply_all([FrontRow("f", 1), *(row for worker in self.workers for row in joined(f"{seed}.{worker}"))])
            bits = random.Random(seed).sample(range(1 << 24), RANGES)
            self.pools.append((pool, [f"{one >> 16}.{one >> 8 & 255}.{one & 255}.7" for one in bits]))

    def test_busiest(self) -> None:
        """One worker of ten could get a quarter more clients than its share, and be full long before the others."""
        busiest = []
        for pool, addresses in self.pools:
            load = Counter(owners(pool, addresses))
            self.assertEqual(len(load), 10)
            busiest.append(10 * max(load.values()) / RANGES)
        self.assertLess(statistics.mean(busiest), 1.25)

    def test_movement(self) -> None:
        """A worker that comes or goes would take clients away from workers that have nothing to do with it."""
        gone, come = [], []
        for seed, (pool, addresses) in enumerate(self.pools[: SEEDS // 3]):
            before = owners(pool, addresses)
            pool.apply_all(joined(f"{seed}.worker-3", up=False))
            without = owners(pool, addresses)
            moved = [one for one, other in zip(before, without, strict=True) if one != other]
            self.assertEqual(set(moved), {f"{seed}.worker-3"}, "nobody moved who had another worker")
            gone.append(len(moved) / RANGES)
            pool.apply_all(joined(f"{seed}.worker-3"))
            self.assertEqual(owners(pool, addresses), before)
            pool.apply_all(joined(f"{seed}.another"))
            after = owners(pool, addresses)
            moved = [other for one, other in zip(before, after, strict=True) if one != other]
            self.assertEqual(set(moved), {f"{seed}.another"}, "nobody moved to another worker than the new one")
            come.append(len(moved) / RANGES)
        self.assertApproximates(statistics.mean(gone), 1 / 10, 0.03)
        self.assertApproximates(statistics.mean(come), 1 / 11, 0.03)
