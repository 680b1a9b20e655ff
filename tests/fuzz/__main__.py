"""``python -m tests.fuzz``: runs the fuzzer's targets, or one of them, and a batch that failed once more."""

from __future__ import annotations

import argparse
import sys

from twisted.logger import globalLogBeginner


def main() -> int:
    """Runs; the exit status is 1 when a case fails, which is told with the command that runs it again."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        epilog="A batch of cases follows from its seed: a longer run is batches of the seeds that follow the first.",
    )
    parser.add_argument("--target", action="append", metavar="NAME", help="run this one (repeatable); default: all")
    parser.add_argument("--list", action="store_true", help="list the targets and how many cases the tests run")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the first batch's seed (%(default)s)")
    parser.add_argument("--cases", type=int, metavar="M", help="so many cases of each target (as in the tests)")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="T", help="each target for so long instead")
    parser.add_argument(
        "--atheris", metavar="NAME", help="run a codec under atheris instead, for --minutes (0: until it finds)"
    )
    options = parser.parse_args()
    if options.atheris is not None:
        from tests.fuzz import guided

        return guided.run(options.atheris, options.minutes)
    from tests.fuzz.target import Found, run
    from tests.fuzz.targets import TARGETS

    if options.list:
        for name, target in TARGETS.items():
            print(f"{name:14}{target.cases:6}  {(target.__doc__ or '').strip().splitlines()[0]}")
        return 0
    unknown = set(options.target or ()) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    failed = False
    for name in options.target or TARGETS:
        try:
            ran = run(TARGETS[name], options.seed, options.cases, options.minutes)
        except Found as found:
            failed = True
            print(found, flush=True)
            continue
        reached = ", ".join(f"{what} {count}" for what, count in ran.reached.most_common(12))
        print(f"{name}: {ran.cases} cases in {ran.batches} batches, {ran.cpu_s:.1f} s; {reached}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
