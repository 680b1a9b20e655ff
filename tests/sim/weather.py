"""What happens to a cluster, drawn from its seed: workers come and go, and everything breaks."""

from __future__ import annotations

from twisted.logger import LogEvent, globalLogPublisher

from kollator.state.rows import PinRow, WorkerRow
from tests.sim.cluster import Cluster
from tests.sim.disk import FAST_S, SLOW_S
from tests.sim.fronts import Front
from tests.sim.network import FAIR_S

STEPS = 30
WORKERS = 8
WORK = ("join", "join", "join", "leave", "status", "status", "pin", "burst")
FAULTS = (
    *("split", "one-way", "partial", "isolate-leader", "heal", "heal", "reset", "reset"),
    *("crash", "crash-leader", "crash-at-disk", "restart", "restart", "power", "restore", "wipe", "copy"),
    *("slow-disk", "failing-disk", "unreliable", "delay", "pause", "clock", "fair", "fair", "check"),
)


def run(seed: int, size: int, steps: int = STEPS, *, verbose: bool = False) -> Cluster:
    """One run from its seed: trouble, then healing, then rest. Raises ``Broken``; returns the cluster, closed."""
    cluster = Cluster(seed, size, verbose=verbose)

    def logged(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            cluster.broken(f"an error nobody expected: {event['log_failure'].getTraceback()[-1500:]}")

    globalLogPublisher.addObserver(logged)  # type: ignore[arg-type]
    try:
        cluster.run(cluster.rng.choice((0.0, 2.0)))
        for _ in range(steps):
            step(cluster)
            cluster.run(cluster.rng.choice((0.0, 0.02, 0.3, 0.3, 1.0)))
        if size >= 3 and cluster.rng.random() < 0.4:
            cluster.star(cluster.rng.choice(cluster.names))
        cluster.heal()
        cluster.rest()
    finally:
        globalLogPublisher.removeObserver(logged)  # type: ignore[arg-type]
        cluster.close()
    return cluster


def step(cluster: Cluster) -> None:
    """One thing happens."""
    rng = cluster.rng
    what = rng.choice(WORK if rng.random() < 0.55 else FAULTS)
    if what in WORK:
        if cluster.fronts:
            _work(cluster, what, cluster.fronts[rng.choice(sorted(cluster.fronts))])
        return
    if cluster.fronts and what in ("slow-disk", "failing-disk", "pause"):
        front = cluster.fronts[rng.choice(sorted(cluster.fronts))]
        cluster.note(front.name, what)
        if what == "slow-disk":
            front.disk.delay_s = SLOW_S
        elif what == "failing-disk":
            front.disk.failing = rng.choice((0.1, 0.5))
        else:
            front.paused_until = cluster.world.now + rng.uniform(0.1, 4.0)
    elif what in ("crash", "crash-leader", "restart", "power", "restore", "wipe", "copy", "crash-at-disk"):
        _life(cluster, what)
    else:
        _network(cluster, what)


def _work(cluster: Cluster, what: str, front: Front) -> None:
    rng = cluster.rng
    worker = f"w{rng.randrange(WORKERS)}"
    cluster.note(front.name, what, worker)
    if what == "join":
        front.join(WorkerRow(worker, rng.choice(("eu", "us")), rng.choice((10, 100))))
    elif what == "leave":
        for held in sorted(front.held)[: rng.randint(0, 2)]:
            front.leave(held)
    elif what == "status":
        for held in sorted(front.held):
            if rng.random() < 0.5:
                front.registry.worker_status(held, rng.choice((0, 1000)), rng.random() < 0.3)
            elif rng.random() < 0.5:
                front.registry.worker_unwell(held, "ping", "no answer")
            else:
                front.registry.worker_well(held, "ping")
    elif what == "pin":
        front.pin(PinRow(f"10.{rng.randrange(3)}.0.0/16", rng.choice(("", worker)), rng.choice(("", "eu"))))
    else:
        for number in range(rng.choice((2, 10))):
            front.join(WorkerRow(f"w{worker}-{number}"))


def _life(cluster: Cluster, what: str) -> None:
    rng = cluster.rng
    if what == "crash-at-disk":
        cluster.crash_at_disk = 0.05
        return
    if what == "restart":
        for name in sorted(cluster.images):
            cluster.start(name, cluster.images[name])
        return
    leading = [front.name for front in cluster.fronts.values() if front.member.standing.role == "leader"]
    name = rng.choice(leading if what == "crash-leader" and leading else cluster.names)
    cluster.crash(name, silently=rng.random() < 0.5)
    if what in ("crash", "crash-leader"):
        return
    cluster.note(name, what)
    if what == "power":
        image: bytes | None = cluster.durable[name]
    else:
        cluster.forget_vote()
        others = sorted(cluster.fronts)
        if what == "restore":
            image = cluster.older.get(name)
        elif what == "copy" and others:
            image = cluster.fronts[rng.choice(others)].store.image()
        else:
            image = None
    cluster.start(name, image)


def _network(cluster: Cluster, what: str) -> None:
    rng, network, names = cluster.rng, cluster.network, cluster.names
    cluster.note("network", what)
    if what in ("split", "one-way", "isolate-leader"):
        some = rng.sample(names, rng.randint(1, max(1, len(names) // 2)))
        if what == "isolate-leader":
            some = [front.name for front in cluster.fronts.values() if front.member.standing.role == "leader"]
        network.cut(some, [name for name in names if name not in some], one_way=what == "one-way")
    elif what == "partial":
        for one in names:
            for other in names:
                if one < other and rng.random() < 0.4:
                    network.cut([one], [other], one_way=rng.random() < 0.3)
    elif what == "heal":
        network.heal()
    elif what == "reset":
        network.reset(*rng.sample(names, 2))
    elif what == "unreliable":
        network.unreliable = True
    elif what == "delay":
        network.delay_s = rng.choice(((0.0, 0.05), (0.0, 0.5)))
    elif what == "clock":
        front = rng.choice(sorted(cluster.fronts)) if cluster.fronts else ""
        if front:
            cluster.fronts[front].clock.offset += rng.uniform(-5.0, 5.0)
    elif what == "check":
        for found in cluster.fronts.values():
            cluster.check_acknowledged(found)
            cluster.older[found.name] = found.store.image()
    else:
        network.unreliable = False
        network.delay_s = FAIR_S
        cluster.crash_at_disk = 0.0
        for found in cluster.fronts.values():
            found.disk.failing, found.disk.delay_s = 0.0, FAST_S
