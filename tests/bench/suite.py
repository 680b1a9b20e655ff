"""Kollator Front beside its peers: ``python -m tests.bench.suite`` measures them in turn and prints a table.

Each server runs on one core and the load generator on another, at least three rounds that go through all servers, so
that what disturbs the machine disturbs all of them; the table has the medians. The first run brings the peers by npm
into ``.bench`` and compiles the generator there. A peer that does not run is left out, and the report says why.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from tests.bench import machine
from tests.bench.figures import QUICK, Bench, Figures, Plan
from tests.bench.generator import Generator
from tests.bench.machine import CannotRun
from tests.bench.report import Results, svg, text
from tests.bench.servers import ALL, FRONT, NODE_HTTP, PEERS, PLAIN_WEB, Kind

EXTRAS = ("tls", "across", "bootstrap", "connections", "workers")
GUESS_S = {"tls": 25.0, "across": 25.0, "bootstrap": 15.0, "connections": 40.0, "workers": 90.0}
SERVER_GUESS_S = 32.0
"""What a part takes, until it is known better."""
ADDED_ROUNDS = 2
"""Of the growth of connections, which takes long."""


class Progress:
    """What is being done and for how long still, on standard error: one line that changes, or one for each part."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._planned: list[float] = []
        self._done = 0
        self._part = ""
        self._live = sys.stderr.isatty()

    def plan(self, guesses_s: Sequence[float]) -> None:
        """All parts, by what they may take."""
        self._planned = list(guesses_s)

    def part(self, name: str) -> None:
        """A part begins."""
        self._part = name
        self._show("" if self._live else name)

    def step(self, what: str) -> None:
        """A step of it begins."""
        if self._live:
            self._show(what)

    def done(self) -> None:
        """The part is over."""
        self._done += 1

    def _left_s(self) -> float:
        past, coming = sum(self._planned[: self._done]), sum(self._planned[self._done :])
        pace = (time.monotonic() - self._begun_s) / past if self._done > 2 else 1.0
        return coming * pace

    def _show(self, what: str) -> None:
        minutes = f"{self._left_s() / 60:4.1f} min left"
        line = f"[{self._done + 1:2}/{len(self._planned)}, {minutes}] {self._part}: {what}" if self._live else (
            f"[{self._done + 1:2}/{len(self._planned)}, {minutes}] {self._part}")
        print(f"\r{line:78.78}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Nothing more."""
        if self._live:
            print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)


class Suite:
    """One run: its parts in their order, and what they found."""

    def __init__(self, generator: Generator, plan: Plan, only: Sequence[str], progress: Progress) -> None:
        self._only = only
        self._progress = progress
        self.results = Results(
            machine=machine.described(), date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            plan=attrs.asdict(plan))
        self._bench = Bench(generator, plan, progress.step, self.results.notes.append)
        self._plan = plan

    def _parts(self) -> list[tuple[str, float, Callable[[], None]]]:
        found = self.results
        scale = (self._plan.seconds + 1) / (Plan().seconds + 1)
        parts: list[tuple[str, float, Callable[[], None]]] = []
        for number in range(self._plan.rounds):
            for kind in ALL:
                if self._wanted(kind.name):
                    parts.append((kind.name, SERVER_GUESS_S * scale, functools.partial(self._server, kind)))
            extras: dict[str, Callable[[], None]] = {
                "tls": lambda: found.tls.append(self._bench.tls()),
                "across": lambda: found.across.append(self._bench.across()),
                "bootstrap": self._bootstrap,
            }
            if number < ADDED_ROUNDS:
                extras["connections"] = lambda: found.connections.append(self._bench.connections())
            if number == 0:
                extras["workers"] = lambda: self._bench.workers(found.workers.append)
            parts += [(name, GUESS_S[name] * scale, work) for name, work in extras.items() if self._wanted(name)]
        return parts

    def _wanted(self, name: str) -> bool:
        return not self._only or name in self._only

    def _server(self, kind: Kind) -> None:
        self.results.rounds.setdefault(kind.name, []).append(self._bench.server(kind))

    def _bootstrap(self) -> None:
        measured: dict[str, Figures] = self._bench.bootstrap()
        for name, asked in measured.items():
            self.results.bootstrap.setdefault(name, []).append(asked)

    def run(self) -> Results:
        """Measures everything that is wanted; what fails is noted, and not tried again. Ctrl-C ends it early."""
        begun_s = time.monotonic()
        parts = self._parts()
        self._progress.plan([guess_s for _, guess_s, _ in parts])
        failed = self.results.failed
        try:
            for name, _, work in parts:
                if name not in failed:
                    self._progress.part(name)
                    try:
                        work()
                    except (CannotRun, OSError) as problem:
                        failed[name] = str(problem)
                self._progress.done()
            self._versions()
        except KeyboardInterrupt:
            failed["the rest"] = "interrupted"
        self._progress.end()
        self.results.seconds = time.monotonic() - begun_s
        return self.results

    def _versions(self) -> None:
        wanted = [*ALL, *((PLAIN_WEB, NODE_HTTP) if self._wanted("bootstrap") else ())]
        for kind in wanted:
            if kind.name in self.results.rounds or kind.name in self.results.bootstrap or kind is FRONT:
                try:
                    self.results.versions[kind.label] = kind.version()
                except CannotRun as problem:
                    self.results.versions[kind.label] = str(problem)


def bring_peers() -> None:
    """Installs the peers; without them the run goes on, and says why for each."""
    print("bringing the peers by npm, where they are not there yet", file=sys.stderr, flush=True)
    try:
        machine.install_peers()
    except CannotRun as problem:
        print(problem, file=sys.stderr, flush=True)


def main() -> int:
    """Runs what the command line asks for. 0 when the front itself could be measured."""
    names = [*(kind.name for kind in ALL), *EXTRAS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round with fewer connections: some minutes")
    parser.add_argument("--rounds", type=int, metavar="N",
                        help=f"rounds ({Plan().rounds}; with --quick {QUICK.rounds})")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help=f"of each measurement ({Plan().seconds:g}; with --quick {QUICK.seconds:g})")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=names,
                        help=f"these servers and parts alone: {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="writes the plot, an SVG")
    options = parser.parse_args()
    changes = {name: value for name, value in (("rounds", options.rounds), ("seconds", options.seconds)) if value}
    if any(value <= 0 for value in changes.values()):
        parser.error("rounds and seconds are positive")
    plan = attrs.evolve(QUICK if options.quick else Plan(), **changes)
    needed = max(plan.connections) + 1000
    if machine.raise_file_limit() < needed:
        print(f"open files are limited to less than {needed}: raise it (ulimit -Hn)", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended, as with Ctrl-C
    progress = Progress()
    try:
        generator = Generator(machine.build_generator())
        if not options.only or {"bootstrap", *(kind.name for kind in PEERS)} & {*options.only}:
            bring_peers()
    except CannotRun as problem:
        print(problem, file=sys.stderr)
        return 1
    results = Suite(generator, plan, options.only, progress).run()
    print(text(results))
    if options.json:
        options.json.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.write_text(svg(results), encoding="utf-8")
    return 1 if FRONT.name in results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
