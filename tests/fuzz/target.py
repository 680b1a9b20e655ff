"""What a target is, and how batches of its cases are run."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, ClassVar, NamedTuple

from tests.fuzz.mutation import Mutator
from tests.fuzz.oracle import Broken, Hang, Watch, bounded

SHOWN_CHARS = 2000


class Target:
    """One door of the product. An instance is one batch: built anew from its seed, told cases, then put to the test."""

    name: ClassVar[str]
    cases: ClassVar[int]
    """So many of them are run by the test suite."""
    batch: ClassVar[int] = 50
    """So many cases are told to one instance."""

    def __init__(self, seed: int) -> None:
        self.source = Random(f"{self.name}/{seed}")
        self.mutator = Mutator(self.source)
        self.said: list[Any] = []
        """What the present case has said, for the report."""
        self.reached: Counter[str] = Counter()
        """What came of it, in the target's own words: a fuzzer that is turned away at the door finds nothing."""

    def case(self) -> None:
        """One input. Raises ``Broken``, or whatever the product raises."""
        raise NotImplementedError

    def settle(self) -> None:
        """The end of the batch: everybody leaves, time passes, and all must be as it was."""

    def close(self) -> None:
        """Lets go of what the batch has opened, also after a failure."""


class Found(AssertionError):
    """A case that fails. The text says which, what was said, and how it is run again."""


class Ran(NamedTuple):
    """What was run."""

    batches: int
    cases: int
    cpu_s: float
    reached: Counter[str]


def run(
    target: type[Target],
    seed: int = 1,
    cases: int | None = None,
    minutes: float = 0.0,
    told: Callable[[int], object] = lambda seed: None,
) -> Ran:
    """Runs ``cases`` of a target in batches of the seeds from ``seed`` on, or batches for so many minutes.

    ``told`` is called with the seed of each batch. Raises ``Found``.
    """
    left = target.cases if cases is None else cases
    began, began_cpu = time.monotonic(), time.process_time()
    ran = batches = 0
    reached: Counter[str] = Counter()
    gc.collect()
    gc.freeze()  # what there was before is not looked through after each batch
    try:
        while (time.monotonic() - began < minutes * 60) if minutes else left > 0:
            number = target.batch if minutes else min(target.batch, left)
            told(seed)
            reached += _run_batch(target, seed, number)
            seed, left, ran, batches = seed + 1, left - number, ran + number, batches + 1
    finally:
        gc.unfreeze()
    return Ran(batches, ran, time.process_time() - began_cpu, reached)


def _run_batch(target: type[Target], seed: int, cases: int) -> Counter[str]:
    number = 0
    batch: Target | None = None
    with Watch() as watch:
        try:
            with bounded():
                try:
                    batch = target(seed)
                    while number < cases:
                        number += 1
                        batch.said.clear()
                        batch.case()
                        watch.check()
                    batch.said.clear()
                    batch.settle()
                finally:
                    if batch is not None:
                        batch.close()
                reached, batch = batch.reached, None
                gc.collect()  # Deferreds that nobody looked after tell so when they go
                watch.check()
                return reached
        except (Exception, Hang) as problem:
            raise Found(_report(target, seed, number, batch, problem)) from problem


def _report(target: type[Target], seed: int, cases: int, batch: Target | None, problem: BaseException) -> str:
    said: Sequence[Any] = () if batch is None else batch.said
    what = f"{type(problem).__name__}: {problem}"[: 2 * SHOWN_CHARS]
    lines = [f"target {target.name}, seed {seed}, case {cases}: {what}"]
    lines += [f"  said: {repr(one)[:SHOWN_CHARS]}" for one in said]
    lines.append(f"again: python -m tests.fuzz --target {target.name} --seed {seed} --cases {max(1, cases)}")
    return "\n".join(lines)


def told(problem: type[BaseException], function: Callable[[], Any]) -> Any:
    """What a codec returns, or the one exception that it may raise, in place of it."""
    try:
        return function()
    except problem as refusal:
        return refusal


def one_line(text: str, most: int) -> None:
    """Raises ``Broken`` for an error message that could fill a terminal or command it."""
    if not text or len(text) > most or not text.isprintable():
        raise Broken(f"this is no line of {most} characters for people: {text[:300]!r}")
