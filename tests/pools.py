"""Rows for pools, the pools made of them, and one that says in plain words what a pool must answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from hypothesis import strategies as st

from kollator.pool.pool import Pool
from kollator.pool.ranges import client_range
from kollator.pool.ring import RING_SIZE, key_hash, point_hashes, position_of, weight
from kollator.pool.standing import PREFERENCE
from kollator.state.rows import (
    WHYS,
    AttachmentRow,
    AttachmentState,
    DrainRow,
    FrontRow,
    PinRow,
    Row,
    Why,
    WorkerRow,
    row_key,
)

ADDRESSES = [f"10.0.{number}.7" for number in range(120)]

front_ids = st.sampled_from(["f1", "f2", "f3"])
worker_ids = st.sampled_from([f"w{number}" for number in range(7)])
regions = st.sampled_from(["", "eu", "us"])
numbers = st.integers(0, 2)
thresholds = st.sampled_from([0.0, 0.0, 30.0, 50.0, 75.0, 100.0])
rows = st.one_of(
    st.builds(FrontRow, id=front_ids, incarnation=numbers, retired=numbers, draining=st.booleans()),
    st.builds(WorkerRow, id=worker_ids, region=regions, capacity=st.sampled_from([1, 100, 250])),
    st.builds(
        AttachmentRow,
        worker=worker_ids,
        front=front_ids,
        incarnation=numbers,
        state=st.sampled_from(["up", "up", "full", "draining", "down"]),
    ),
    st.builds(
        AttachmentRow,
        worker=worker_ids,
        front=front_ids,
        incarnation=st.just(1),
        state=st.just("down"),
        why=st.sampled_from(WHYS),
    ),
    st.builds(
        PinRow,
        cidr=st.sampled_from(["10.0.0.0/8", "10.0.0.0/23", "10.0.1.0/24", "10.0.1.5/32", "10.0.0.1/8", "::/0", "x"]),
        worker=st.sampled_from(["", "w0", "w1", "nobody"]),
        region=regions,
    ),
    st.builds(DrainRow, worker=worker_ids, draining=st.booleans()),
)

ESTABLISHED: list[Row] = [
    *(FrontRow(f"f{number}", 1) for number in (1, 2, 3)),
    *(WorkerRow(f"w{number}", ("", "eu", "us")[number % 3]) for number in range(7)),
    *(AttachmentRow(f"w{number}", f"f{number % 3 + 1}", 1, "up") for number in range(7)),
]
histories = st.tuples(st.sampled_from([[], ESTABLISHED]), st.lists(rows, max_size=30)).map(lambda two: two[0] + two[1])
"""Rows in the order in which they were stated, of an empty pool or one of seven workers."""


def latest(history: Iterable[Row]) -> list[Row]:
    """Give the latest version of each row."""
    return list({row_key(row): row for row in history}.values())


def pool_of(applied: Iterable[Row], replicas: int = 150, panic_threshold: float = 0.0) -> Pool:
    """Make a pool and apply rows one after the other."""
    pool = Pool(replicas=replicas, panic_threshold=panic_threshold)
    for row in applied:
        pool.apply(row)
    return pool


def crew(count: int, state: AttachmentState = "up", region: str = "", start: int = 1, why: Why = "") -> list[Row]:
    """Give the rows of workers w1, w2, … held by the front f1."""
    found: list[Row] = [FrontRow("f1", 1)]
    for number in range(start, start + count):
        found += (WorkerRow(f"w{number}", region), AttachmentRow(f"w{number}", "f1", 1, state, why))
    return found


def owners(pool: Pool, addresses: Iterable[str] = ADDRESSES) -> dict[str, str | None]:
    """Give the worker of each address."""
    return {address: pool.assign(address, explain=False).worker for address in addresses}


class NaivePool:
    """The assignment in plain words: no ring, no index, everything looked at for each question."""

    def __init__(self, current: list[Row], replicas: int, panic_threshold: float = 0.0) -> None:
        fronts = {row.id: row for row in current if isinstance(row, FrontRow)}
        drained = {row.worker for row in current if isinstance(row, DrainRow) and row.draining}
        self.workers = {row.id: row for row in current if isinstance(row, WorkerRow)}
        self.pins = {}
        for row in current:
            if isinstance(row, PinRow) and (row.worker or row.region) and row.cidr not in ("x", "10.0.0.1/8"):
                self.pins[ipaddress.ip_network(row.cidr)] = row
        self.states: dict[str, str] = {}
        unwell: set[str] = set()
        for row in current:
            if isinstance(row, AttachmentRow) and row.worker in self.workers:
                front = fronts.get(row.front)
                if front and front.incarnation > front.retired and front.incarnation == row.incarnation:
                    if row.state != "down":
                        known = self.states.get(row.worker, "up")
                        self.states[row.worker] = max(known, row.state, key=PREFERENCE.index)
                    elif row.why:
                        unwell.add(row.worker)
        unwell -= self.states.keys()
        connected = len(self.states) + len(unwell)
        self.panic = connected > 0 and 100 * len(self.states) / connected < panic_threshold
        if self.panic:
            self.states.update(dict.fromkeys(unwell, "up"))
        self.states.update(dict.fromkeys(drained & self.states.keys(), "draining"))
        self.replicas = replicas

    def order(self, address: str, region: str, exclude: set[str]) -> list[str]:
        """Give all workers that may be taken, the best first."""
        start = position_of(key_hash(client_range(address)))

        def distance(worker: str) -> int:
            points = point_hashes(worker, weight(self.workers[worker].capacity, self.replicas))
            return min((position_of(point) - start) % RING_SIZE for point in points)

        def rank(worker: str) -> tuple[int, bool, int]:
            abroad = bool(region) and self.workers[worker].region != region
            return PREFERENCE.index(self.states[worker]), abroad, distance(worker)  # type: ignore[arg-type]

        return sorted(self.states.keys() - exclude, key=rank)

    def assign(self, address: str, region: str, exclude: set[str]) -> tuple[str | None, list[str], str]:
        """Give the worker, the two alternates and the reason."""
        ip = ipaddress.ip_address(address)
        holding = [network for network in self.pins if network.version == ip.version and ip in network]
        pin = self.pins[max(holding, key=lambda network: network.prefixlen)] if holding else None
        wanted = (pin.region if pin else "") or region
        order = self.order(address, wanted, exclude)
        if not order:
            return None, [], "no-workers"
        chosen = order[0]
        if pin and pin.worker and self.states.get(pin.worker) == "up" and pin.worker not in exclude:
            chosen = pin.worker
        alternates = [
            worker for worker in order if worker != chosen and self.states[worker] == self.states[chosen]
        ][:2]
        abroad = bool(wanted) and self.workers[chosen].region != wanted
        if pin and (chosen != pin.worker if pin.worker else abroad):
            return chosen, alternates, "pin-fallback"
        if self.states[chosen] != "up":
            return chosen, alternates, "overflow"
        if pin:
            return chosen, alternates, "pinned"
        return chosen, alternates, "other-region" if abroad else "ring"
