"""``python -m tests.sim``: runs the simulator for a seed or many, and replays a run that failed."""

from __future__ import annotations

import argparse
import sys
import time

from twisted.logger import globalLogBeginner

from tests.sim import figures, weather
from tests.sim.cluster import Broken

SIZES = (2, 3, 5, 7)


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    if not dots or not (first + last).isdigit():
        raise argparse.ArgumentTypeError("write it as 0..9999, both included")
    return range(int(first), int(last) + 1)


def main() -> int:
    """Runs; the exit status is 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=_seeds, default=range(300), metavar="A..B", help="run these (0..299)")
    parser.add_argument("--fronts", type=int, choices=range(1, 65), metavar="N", help="so many (2, 3, 5, 7 in turn)")
    parser.add_argument("--steps", type=int, default=weather.STEPS, metavar="M", help="how much happens (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print everything that happens and every frame")
    parser.add_argument("--figures", action="store_true", help="measure instead: frames, healing, a large sync")
    options = parser.parse_args()
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    if options.figures:
        figures.report()
        return 0
    seeds = range(options.seed, options.seed + 1) if options.seed is not None else options.seeds
    failures, slowest_s, began = [], 0.0, time.monotonic()
    for number, seed in enumerate(seeds, 1):
        size = options.fronts or SIZES[seed % len(SIZES)]
        try:
            cluster = weather.run(seed, size, options.steps, verbose=options.verbose)
            slowest_s = max(slowest_s, cluster.converged_after_s)
        except Broken as problem:
            failures.append(seed)
            print(f"\n{problem}\npython -m tests.sim --seed {seed} --fronts {size} --steps {options.steps}", flush=True)
        if sys.stderr.isatty() or number % 50 == 0 or number == len(seeds):
            print(
                f"\r{number} of {len(seeds)} runs, {len(failures)} failed, the same {slowest_s:.1f} s after healing "
                f"at the latest, {time.monotonic() - began:.0f} s",
                end="" if sys.stderr.isatty() and number < len(seeds) else "\n",
                file=sys.stderr,
                flush=True,
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
