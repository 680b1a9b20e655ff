"""What a front's other users notice of an attack: ``python -m tests.bench.attacks`` prints a table.

Each attack runs against a front of its own, with nobody exempt from the limits. Beside it a bystander's client and
worker exchange 20 messages a second, and ``/health/live`` is asked 20 times a second, each time on a new connection;
the front's memory (VmRSS) is read every 20 ms. The front has a core to itself where there are two; attackers,
bystander and this program share the other one.

``many``: the attackers come from many addresses of loopback, and the bystander from one that they do not use. ``same``:
they come from the bystander's. The figure in brackets is the ratio to the first line, without an attack; "late" is how
late the bystander's process itself was woken (p99, ms), which is in all its figures and says how busy the machine was;
"runs" and "waits" are the shares of the time that the front ran, and was ready to run and had no core: others had it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import attrs

from tests.bench.attackers import ATTACKS
from tests.bench.bystander import Seen
from tests.bench.cluster import percentile, progress
from tests.bench.swarm import Aim
from tests.certificates import self_signed_pem, write_pair
from tests.e2e.cluster import CLUSTER_KEY, free_ports
from tests.e2e.contract_client import ask
from tests.e2e.processes import Front, new_folder, write_key

FRONT_CORE, OTHER_CORE = 0, 1
SETTLED_S = 5.0
"""How long after the attack the front's memory is read once more: over ``CLOSE_TIMEOUT_S``."""
LIVE_GOAL_S, RELAY_GOAL_S, MEMORY_GOAL_BYTES = 0.05, 0.1, 50_000_000
STUCK_GOAL_BYTES = 1_048_576
"""For each connection that does not read."""
_LOOKED_EVERY_S = 0.02


@attrs.frozen
class Plan:
    """How large an attack is: ``count`` attackers from ``addresses`` addresses, for ``least_s`` seconds at least.

    ``arrive_per_s`` of them begin in a second; 0: all at once.
    """

    count: int
    least_s: float = 0.0
    addresses: int = 50
    only_many: bool = False
    arrive_per_s: float = 0.0


PLANS: dict[str, Plan] = {
    "slow-headers": Plan(1000, 15, arrive_per_s=500),
    "slow-upgrades": Plan(1000, 15, arrive_per_s=500),
    "slow-bodies": Plan(1000, 35, arrive_per_s=500),
    "silent": Plan(1000, 15, arrive_per_s=500),
    "no-hello": Plan(1000, 15, arrive_per_s=500),
    "tls-halves": Plan(500, 15, arrive_per_s=250),
    "half-open-peers": Plan(300),
    "handshakes": Plan(100),
    "clients": Plan(100),
    "bootstraps": Plan(100),
    "messages": Plan(1),
    "messages-20": Plan(20),
    "candidates": Plan(1),
    "candidates-20": Plan(20),
    "bad-messages": Plan(20),
    "wrong-macs": Plan(100),
    "admin-tokens": Plan(20),
    "stuck-readers": Plan(200, 90, only_many=True),
    "many-workers": Plan(1000, only_many=True),
    "workers-pages": Plan(1000, only_many=True),
    "workers-vanish": Plan(1000, only_many=True),
}


@attrs.define
class Figures:
    """What came of one attack. Times in seconds, memory in bytes.

    ``front_cpu`` is the share of the time that the front ran, ``front_waited`` that it was ready to and had no core.
    """

    attack: str
    form: str
    seen: Seen
    did: Mapping[str, int]
    counted: Mapping[str, int]
    rss_before: int
    rss_peak: int
    rss_after: int
    front_cpu: float
    front_waited: float
    trouble: str

    def relay_s(self, share: float) -> float:
        """A percentile of the bystander's messages."""
        return percentile(sorted(self.seen.relay_s), share) if self.seen.relay_s else float("inf")

    def live_s(self, share: float) -> float:
        """A percentile of the probes that were answered with 200."""
        return percentile(sorted(self.seen.live_s), share) if self.seen.live_s else float("inf")

    @property
    def late_s(self) -> float:
        """How late the bystander itself was, at most in 99 of 100 cases."""
        return percentile(sorted(self.seen.late_s), 0.99) if self.seen.late_s else 0.0

    def failures(self) -> list[str]:
        """Which goals were missed."""
        seen = self.seen
        missed = []
        if self.live_s(0.99) >= LIVE_GOAL_S:
            missed.append("live")
        if self.relay_s(0.99) >= RELAY_GOAL_S:
            missed.append("relay")
        if self.rss_peak - self.rss_before >= MEMORY_GOAL_BYTES:
            missed.append("memory")
        if seen.ended or seen.out_of_order or seen.received < seen.sent:
            missed.append(f"bystander {seen.received}/{seen.sent} {seen.ended}".strip())
        if seen.live_otherwise and self.form != "same":
            missed.append(f"probes {dict(seen.live_otherwise)}")
        if self.attack == "stuck-readers":
            if self.did["still open"]:
                missed.append("not all closed")
            if (self.rss_peak - self.rss_before) / PLANS[self.attack].count > STUCK_GOAL_BYTES:
                missed.append("over 1 MiB each")
        if self.trouble:
            missed.append("log")
        return missed


# -- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile runs on one core, where there are several."""
    cores = os.sched_getaffinity(0)
    try:
        if len(cores) > 1:
            os.sched_setaffinity(0, {sorted(cores)[core]})
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Child:
    """A process of this package that says "ready", waits for its standard input, and prints JSON at its end."""

    def __init__(self, module: str, *arguments: str) -> None:
        with on_core(OTHER_CORE):
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"tests.bench.{module}", *arguments], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    def ready(self) -> None:
        """Waits for it. Raises ``RuntimeError`` when it ends instead; it has said why on standard error."""
        assert self._process.stdout
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("a load generator did not get ready")

    def go(self) -> None:
        """Lets it begin."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self, limit_s: float) -> Any:
        """Ends its standard input, waits for its end, and returns what it printed."""
        out, _ = self._process.communicate(timeout=limit_s)
        return json.loads(out)

    def kill(self) -> None:
        """Ends and reaps it, if it is not over."""
        self._process.kill()
        self._process.wait()


class Memory(threading.Thread):
    """Watches a process's memory, and knows the most there was."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self.peak = 0

    def now(self) -> int:
        """VmRSS in bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", self._status.read_text())
        return int(found[1]) * 1024 if found else 0

    def run(self) -> None:
        """Looks until ``stop``."""
        while not self._over.wait(_LOOKED_EVERY_S):
            self.peak = max(self.peak, self.now())

    def stop(self) -> None:
        """Ends it."""
        self._over.set()
        self.join()


def cpu_s(pid: int) -> float:
    """The processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    """How long the main thread of a process was ready to run and had no processor; 0 where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def counters(port: int) -> Counter[str]:
    """What a front has counted that may tell of an attack."""
    names = {"connections_refused": "refused", "connections_closed": "closed", "links_ended": "link",
             "http_responses": "http", "errors": "error", "workers_refused": "workers refused"}
    found: Counter[str] = Counter()
    pattern = re.compile(rf"(?m)^kollator_({'|'.join(names)})_total(?:\{{(.*)\}})? (\S+)")
    for name, labels, value in pattern.findall(ask(port, "GET", "/metrics").body.decode()):
        told = " ".join(re.findall(r'"([^"]*)"', labels))
        if told not in ("/health/live 200", "/metrics 200"):
            found[f"{names[name]} {told}".strip()] = int(float(value))
    return found


def start(attack: str, options: Sequence[str] = ()) -> tuple[Front, dict[str, int]]:
    """A front for an attack, on a core of its own, and the ports that are to be attacked."""
    folder = new_folder()
    settings = {"RATE_LIMIT_EXEMPT": "", "WORKER_HEALTH_TIMEOUT": "1000"}
    arguments = ["--listen", "tcp:0:interface=127.0.0.1"]
    ports: dict[str, int] = {}
    if attack == "tls-halves":
        key, certificate = write_pair(folder, self_signed_pem("localhost"))
        arguments += ["--listen", f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"]
    if attack == "half-open-peers":
        ports["peer"], elsewhere = free_ports(2)
        settings |= {"CLUSTER_KEY": CLUSTER_KEY, "PEERS": f"other=tcp:127.0.0.1:{elsewhere}", "QUORUM": "available",
                     "PEER_LISTEN": f"tcp:{ports['peer']}:interface=127.0.0.1"}
    if attack == "admin-tokens":
        settings["ADMIN_TOKEN_FILE"] = str(write_key(folder / "admin.token", "0123456789abcdef" * 2))
    with on_core(FRONT_CORE):
        front = Front(settings, [*arguments, *options], folder=folder,
                      endpoints=2 if attack == "tls-halves" else 1).ready()
    if attack == "tls-halves":
        ports["tls"] = front.ports[1]
    return front, ports


def measure(name: str, form: str, seconds: float) -> Figures:
    """One attack, or none: its figures."""
    attack = re.sub(r"-\d+$", "", name)
    plan = PLANS.get(name)
    front, ports = start(attack)
    children: list[Child] = []
    memory = Memory(front.process.pid)
    try:
        bystander = Child("bystander", str(front.port))
        children.append(bystander)
        bystander.ready()
        ask(front.port, "GET", "/metrics")  # what that needs for good is not the attack's
        did: Mapping[str, int] = {}
        limit_s = seconds
        attacker = None
        if plan is not None:
            sources = [f"127.0.0.{2 + number}" for number in range(plan.addresses)] if form == "many" else ["127.0.0.1"]
            limit_s = max(seconds, plan.least_s)
            tls_port, peer_port = ports.get("tls", 0), ports.get("peer", 0)
            aim = Aim(front.port, tuple(sources), plan.count, limit_s, tls_port, peer_port,
                      arrive_per_s=plan.arrive_per_s)
            attacker = Child("attackers", attack, json.dumps(attrs.asdict(aim)))
            children.append(attacker)
            attacker.ready()
        counted, before = counters(front.port), memory.now()
        used_s, idle_s, begun_s = cpu_s(front.process.pid), waited_s(front.process.pid), time.monotonic()
        memory.start()
        bystander.go()
        if attacker is None:
            time.sleep(limit_s)
        else:
            attacker.go()
            did = Counter(attacker.result(limit_s + 240))
        lasted_s = time.monotonic() - begun_s
        front_cpu = (cpu_s(front.process.pid) - used_s) / lasted_s
        front_waited = (waited_s(front.process.pid) - idle_s) / lasted_s
        seen = Seen(**bystander.result(300))
        counted = counters(front.port) - counted
        time.sleep(SETTLED_S if attacker else 0)
        memory.stop()
        figures = Figures(name, form, seen, did, counted, before, memory.peak, memory.now(), front_cpu,
                          front_waited, "")
        try:
            front.stop()
        except AssertionError as problem:
            figures.trouble = str(problem)
        return figures
    finally:
        for child in children:
            child.kill()
        front.kill()


# -- the table --------------------------------------------------------------------------------------------------------


def row(figures: Figures, base: Figures) -> str:
    """One line of the table."""

    def cell(of: float, to: float) -> str:
        return f"{of * 1000:7.1f} ({of / to:4.1f})" if to else f"{of * 1000:7.1f}"

    times = [cell(figures.relay_s(share), base.relay_s(share)) for share in (0.5, 0.99)]
    times.append(cell(figures.live_s(0.99), base.live_s(0.99)))
    memory = [f"{size / 1e6:6.1f}" for size in (figures.rss_before, figures.rss_peak, figures.rss_after)]
    verdict = ", ".join(figures.failures()) or "ok"
    cells = ["  ".join(times), f"{figures.late_s * 1000:5.1f}", " ".join(memory), f"{figures.front_cpu:4.2f}",
             f"{figures.front_waited:4.2f}", verdict]
    return f"{figures.attack:15} {figures.form:5} {'  '.join(cells)}"


def shown(counts: Mapping[str, int]) -> str:
    """Counts, the largest first."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(counts).most_common(12) if count) or "nothing"


def main() -> int:
    """Runs the attacks that are asked for, and prints their figures. 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attacks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", action="append", choices=list(PLANS), help="only this one; may be repeated")
    parser.add_argument("--form", action="append", choices=["many", "same"], help="only this one (both)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each lasts at least (%(default)s)")
    parser.add_argument("--json", type=Path, help="writes every figure to this file")
    options = parser.parse_args()
    json_file: IO[str] | None = options.json.open("w") if options.json else None
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert {re.sub(r"-\d+$", "", name) for name in PLANS} == set(ATTACKS), "every attack has a plan"
    done: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="kollator-bench-") as folder:
        os.chdir(folder)
        try:
            print(f"{'attack':15} {'from':5} {'relay p50 ms':>14}  {'relay p99 ms':>14}  {'live p99 ms':>14}  "
                  f"{'late':>5}  {'memory before peak after MB':>20}  runs  waits  goals", flush=True)
            todo = [(name, form) for name in options.attack or PLANS for form in options.form or ("many", "same")
                    if form == "many" or not PLANS[name].only_many]
            for name, form in [("none", "-"), *todo]:
                progress(f"{name} from {form}")
                done.append(measure(name, form, options.seconds))
                progress("")
                print(row(done[-1], done[0]))
                if done[-1].did:
                    print(f"    attackers: {shown(done[-1].did)}\n    front: {shown(done[-1].counted)}")
                if done[-1].seen.live_otherwise:
                    print(f"    probes not answered with 200: {shown(done[-1].seen.live_otherwise)}")
                if done[-1].trouble:
                    print(done[-1].trouble[:3000])
                sys.stdout.flush()
        finally:
            os.chdir("/")
    if json_file:
        with json_file:
            json.dump([attrs.asdict(figures) for figures in done], json_file, indent=1)
    return 1 if any(figures.failures() for figures in done) else 0


if __name__ == "__main__":
    sys.exit(main())
