"""What a run found: medians, the table with its ratios, JSON, and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from tests.bench.figures import ACROSS_RATE, Figures
from tests.bench.plot import bars, lines, page, short
from tests.bench.servers import ALL, FRONT, NODE_HTTP, PLAIN, PLAIN_WEB, Kind

BUSY = 0.9
"""A generator that works for so much of the time may be what limits a rate."""
UNDISTURBED = 0.85
"""A server that gets less of its core while it has always something to do is disturbed by others."""
# A figure's name in the results, and what it is.
FIGURES: tuple[tuple[str, str], ...] = (
    ("base_mib", "base RSS, MiB"),
    ("bytes", "bytes a connection"),
    ("handshakes", "handshakes/s"),
    ("handshake_p50", "  p50 ms"),
    ("handshake_p99", "  p99 ms"),
    ("handshake_cpu_us", "  CPU us each"),
    ("joins", "connections that join/s"),
    ("messages", "messages/s"),
    ("p99_closed", "  p99 ms"),
    ("cpu_us", "  CPU us each"),
    ("messages_saturated", "messages/s, saturated"),
    ("cpu_us_saturated", "  CPU us each"),
    ("p50_1000", "p50 ms at 1,000/s"),
    ("p99_1000", "p99 ms at 1,000/s"),
    ("p50_5000", "p50 ms at 5,000/s"),
    ("p99_5000", "p99 ms at 5,000/s"),
    ("messages_idle", "messages/s *"),
    ("cpu_us_idle", "  CPU us each *"),
    ("p50_1000_idle", "p50 ms at 1,000/s *"),
    ("p99_1000_idle", "p99 ms at 1,000/s *"),
    ("p50_5000_idle", "p50 ms at 5,000/s *"),
    ("p99_5000_idle", "p99 ms at 5,000/s *"),
)
RATIOS = (
    "base_mib", "bytes", "handshakes", "messages", "messages_saturated", "messages_idle", "cpu_us", "p99_5000_idle"
)


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds that have it."""
    names = {name: None for found in rounds for name in found}
    return {name: statistics.median([found[name] for found in rounds if found.get(name) is not None] or [0.0])
            for name in names}


@attrs.define
class Results:
    """All that was measured: rounds by server, curves, and why something did not run."""

    machine: dict[str, str]
    date: str
    plan: dict[str, Any]
    versions: dict[str, str] = attrs.field(factory=dict)
    rounds: dict[str, list[Figures]] = attrs.field(factory=dict)
    tls: list[Figures] = attrs.field(factory=list)
    across: list[Figures] = attrs.field(factory=list)
    bootstrap: dict[str, list[Figures]] = attrs.field(factory=dict)
    connections: list[list[Figures]] = attrs.field(factory=list)
    workers: list[Figures] = attrs.field(factory=list)
    failed: dict[str, str] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    seconds: float = 0.0

    def median(self, name: str) -> Figures:
        """A server's medians; empty when it did not run."""
        return medians(self.rounds.get(name, []))

    def growth(self) -> list[Figures]:
        """The curve of connections, the medians of its rounds."""
        longest = max((len(curve) for curve in self.connections), default=0)
        return [medians([curve[place] for curve in self.connections if len(curve) > place]) for place in range(longest)]

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians beside the rounds."""
        return {
            **attrs.asdict(self),
            "medians": {name: self.median(name) for name in self.rounds},
            "tls_median": medians(self.tls),
            "across_median": medians(self.across),
            "bootstrap_medians": {name: medians(found) for name, found in self.bootstrap.items()},
            "connections_median": self.growth(),
        }


# -- the text ---------------------------------------------------------------------------------------------------------


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:26}" + "".join(f"{cell:>11}" for cell in cells)


def _cell(found: Figures, name: str, number: Callable[[float], str] = short) -> str:
    return number(found[name]) if name in found else "-"


def _servers(results: Results, kinds: Sequence[Kind]) -> list[str]:
    idle = results.plan["idle"]
    found = {kind.name: results.median(kind.name) for kind in kinds}
    ran = [kind for kind in kinds if found[kind.name]]
    if not ran:
        return []
    out = [_row("", [kind.label for kind in ran])]
    out += [_row(label, [_cell(found[kind.name], name) for kind in ran])
            for name, label in FIGURES if any(name in found[kind.name] for kind in ran)]
    out.append(f"  * beside {idle:,} idle connections; handshakes and messages without a star beside none")
    base = found.get(FRONT.name)
    if base and len(ran) > 1:
        out += ["", "The others as a multiple of the front", _row("", [kind.label for kind in ran])]
        labels = dict(FIGURES)
        for name in RATIOS:
            if base.get(name):
                cells = [_cell({name: found[kind.name][name] / base[name]} if name in found[kind.name] else {}, name,
                               lambda value: f"{value:.2f} x") for kind in ran]
                out.append(_row(labels[name].strip() + (" of messages" if name == "cpu_us" else ""), cells))
    for kind in ran:
        busy = found[kind.name].get("generator_busy", 0), found[kind.name].get("server_busy", 1)
        if busy[0] > BUSY:
            out.append(f"  {kind.label}: the generator was busy all the time, the server may do more")
        elif busy[1] < UNDISTURBED:
            out.append(f"  {kind.label}: got {busy[1]:.0%} of its core under full load, something else was running:"
                       " its rates and latencies are not its own, CPU us are")
    return out


def _table(title: str, rows: Sequence[Figures], columns: Sequence[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    head = "".join(f"{label:>19}" for _, label in columns)
    return ["", title, head, *("".join(f"{_cell(row, name):>19}" for name, _ in columns) for row in rows)]


def _verdicts(results: Results) -> list[str]:
    """The figures that were asked for, and what came out."""
    front = results.median(FRONT.name)
    tls, across, growth = medians(results.tls), medians(results.across), results.growth()
    out: list[str] = []

    def tell(what: str, found: float | None, bound: float, *, most: bool) -> None:
        if found is not None:
            good = found <= bound if most else found >= bound
            out.append(f"  {'yes' if good else 'NO '}  {what}: {short(found)} ({'at most' if most else 'at least'}"
                       f" {short(bound)})")

    def ratio(name: str, other: str) -> float | None:
        """The median of the rounds' own ratios: what disturbs the machine for a while disturbs both."""
        rounds = zip(results.rounds.get(FRONT.name, []), results.rounds.get(other, []), strict=False)
        found = [ours[name] / theirs[name] for ours, theirs in rounds if name in ours and theirs.get(name)]
        return statistics.median(found) if found else None

    tell("bytes a connection", front.get("bytes"), 1500, most=True)
    tell("bytes a connection over TLS", tls.get("bytes"), 28_000, most=True)
    tell("base RSS, MB", front["base_mib"] * 2**20 / 1e6 if "base_mib" in front else None, 60, most=True)
    for name, load in (("messages", "one message under way for each pair"), ("messages_saturated", "saturated"),
                       ("messages_idle", "the first, beside idle connections")):
        for other, label, bound in (("peerjs", "PeerJS server", 2), ("ws", "ws", 2), ("bun", "Bun", 0.8)):
            tell(f"messages/s as a multiple of {label}, {load}", ratio(name, other), bound, most=False)
    tell("handshakes/s as a multiple of ws", ratio("handshakes", "ws"), 2, most=False)
    tell("p99 ms at 5,000/s beside idle connections", front.get("p99_5000_idle"), 10, most=True)
    if across:
        for suffix, where in (("_own_cores", "with a core for each"), ("", "both on one core")):
            tell(f"messages/s across two fronts as a share of the local rate, {where}",
                 across[f"messages_across{suffix}"] / across[f"messages_local{suffix}"], 0.5, most=False)
    if len(growth) >= 2 and all("messages" in point for point in growth[-2:]):
        last, before = growth[-1], growth[-2]
        tell(f"messages/s with {last['connections']:,.0f} connections as a share of those with"
             f" {before['connections']:,.0f}", last["messages"] / before["messages"], 0.9, most=False)
        tell("  bytes a connection, the same", last["bytes"] / before["bytes"], 1.1, most=True)
        if "p99_5000" in last and "p99_5000" in before:
            tell("  p99 ms at 5,000/s, the same", last["p99_5000"] / before["p99_5000"], 1.1, most=True)
    return ["", "What was asked for", *out] if out else []


def text(results: Results) -> str:
    """The whole report for a terminal."""
    machine = results.machine
    rates = (("local", "both ends at one front"), ("across", "an end at each front"))
    rounds = max([len(found) for found in results.rounds.values()] or [results.plan["rounds"]])
    out = [
        f"Kollator Front beside its peers, {results.date}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, Linux {machine['kernel']}; load at the start"
        f" {machine['load_average']}; the server on one core, the generator on another",
        f"medians of {rounds} rounds of {results.plan['seconds']:g} s; {results.plan['pairs']} pairs; a session is an"
        " offer and an answer of 2 KB and six candidates of 200 bytes",
        "",
        *_servers(results, ALL),
    ]
    tls = medians(results.tls)
    if tls:
        out += _table(f"TLS, {results.plan['tls_idle']:,} connections", [tls], (
            ("bytes", "bytes a connection"), ("handshakes", "handshakes/s"), ("messages", "messages/s"),
            ("p99_closed", "p99 ms"), ("cpu_us", "CPU us a message")))
    across = medians(results.across)
    if across:
        out += ["", "Two linked fronts"]
        for key, what in rates:
            out.append(
                f"  {what:24} {short(across[f'messages_{key}']):>8} messages/s,"
                f" p99 {short(across[f'p99_closed_{key}'])} ms, {short(across[f'cpu_us_{key}'])} CPU us each;"
                f" with a core for each front {short(across[f'messages_{key}_own_cores'])}; at {ACROSS_RATE:,}/s p50"
                f" {short(across[f'p50_{ACROSS_RATE}_{key}'])}, p99 {short(across[f'p99_{ACROSS_RATE}_{key}'])} ms")
    if results.bootstrap:
        out += ["", "POST /bootstrap"]
        for kind in (FRONT, PLAIN_WEB, NODE_HTTP):
            asked = medians(results.bootstrap.get(kind.name, []))
            if asked:
                out.append(f"  {kind.label:24} {short(asked['requests']):>8} requests/s, p50 {short(asked['p50'])}, p99"
                           f" {short(asked['p99'])} ms, {short(asked['cpu_us'])} CPU us each")
    out += _table("More connections", results.growth(), (
        ("connections", "connections"), ("bytes", "bytes each"), ("messages", "messages/s"), ("p99_closed", "p99 ms"),
        ("p99_5000", "p99 ms at 5,000/s")))
    out += _table("More workers", results.workers, (
        ("workers", "workers"), ("ping_s", "pinged every s"), ("registered", "registered/s"),
        ("worker_bytes", "bytes each"), ("requests", "bootstrap/s"), ("bootstrap_p99", "p99 ms"),
        ("assign_p50", "assign p50 ms"), ("assign_p99", "assign p99 ms")))
    out += _verdicts(results)
    out += ["", "Versions", *(f"  {name}: {version}" for name, version in results.versions.items())]
    out += [f"  ({kind.label}: {kind.note})" for kind in ALL if kind.note and results.rounds.get(kind.name)]
    if results.failed:
        out += ["", "Did not run", *(f"  {name}: {why}" for name, why in results.failed.items())]
    if results.notes:
        out += ["", "Left out", *(f"  {note}" for note in results.notes)]
    return "\n".join([*out, "", f"{results.seconds / 60:.1f} minutes"])


def svg(results: Results) -> str:
    """The plot."""
    found = {kind.label: results.median(kind.name) for kind in ALL}

    def of(name: str, servers: Mapping[str, Figures] = found) -> dict[str, float]:
        return {label: values[name] for label, values in servers.items() if name in values}

    own = FRONT.label
    panels = [
        bars("messages relayed a second", of("messages"), own),
        bars("bytes of memory a connection", of("bytes"), own),
        bars("handshakes a second", of("handshakes"), own),
        bars("CPU microseconds a message", of("cpu_us"), own),
        bars("p99 ms at 5,000 messages/s beside idle connections", of("p99_5000_idle"), own),
        bars("POST /bootstrap a second", of("requests", {
            kind.label: medians(results.bootstrap.get(kind.name, [])) for kind in (FRONT, PLAIN_WEB, NODE_HTTP)}), own),
    ]
    growth, workers = results.growth(), results.workers

    def curve(title: str, points: Sequence[Figures], over: str, names: Mapping[str, str]) -> str:
        points = [point for point in points if {over, *names} <= point.keys()]
        return lines(title, [point[over] for point in points],
                     {label: [point[name] for point in points] for name, label in names.items()}, over)

    panels += [
        curve("messages/s over idle connections", growth, "connections", {"messages": "messages/s"}),
        curve("p99 ms at 5,000/s over idle connections", growth, "connections", {"p99_5000": "p99 ms"}),
        curve("POST /bootstrap a second over workers", workers, "workers", {"requests": "bootstrap/s"}),
        curve("an assignment over workers, ms", workers, "workers", {"assign_p50": "p50", "assign_p99": "p99"}),
    ]
    machine = results.machine
    return page(panels, "Kollator Front beside its peers",
                f"{machine['cpu']}, {machine['cores']} cores, {results.date};"
                f" Bun, ws and {PLAIN.label} are bare relays")
