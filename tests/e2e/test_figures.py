"""Figures that the suite holds: the memory of idle connections, and what a message costs beside plain Autobahn.

A small form of ``python -m tests.bench.suite``, with a real front and the load generator. The bounds are far from what
is measured: they leave room for a machine that does other things as well, and tell of a loss of some size.
"""

from __future__ import annotations

import resource
import shutil
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.bench.figures import Bench, Plan, running
from tests.bench.generator import Generator
from tests.bench.machine import build_generator, compiler, raise_file_limit
from tests.bench.servers import FRONT, PLAIN
from tests.e2e.processes import new_folder

IDLE = 1000
CONNECTION_BYTES_MAX = 3_000
"""Each has what the process itself grew by meanwhile, shared by 1,000 only."""
MESSAGES_RATIO_MIN = 4.0
"""By CPU time: how many messages go through in a second is, on a machine that does other things, its affair."""
BASE_MB_MAX = 65
"""Of a front that serves nobody yet. With OpenSSL, which it needs not here, it would be more."""
ROUNDS = 3
PLAN = Plan(pairs=40, seconds=0.7, warmup_s=0.3)


class FigureTests(SynchronousTestCase):
    """A front under the load generator. What was measured is printed."""

    def setUp(self) -> None:
        if not sys.platform.startswith("linux"):
            raise SkipTest("the load generator needs Linux (epoll)")
        if compiler() is None:
            raise SkipTest("the load generator needs a C compiler (cc)")
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        if raise_file_limit() < 2 * IDLE:
            raise SkipTest(f"{2 * IDLE} open files are needed (ulimit -Hn)")
        folder = new_folder()
        self.addCleanup(shutil.rmtree, folder)
        self.bench = Bench(Generator(build_generator(folder)), PLAN, note=self.fail)

    def test_idle_connections_are_small(self) -> None:
        """Otherwise a front that was said to hold 10,000 clients runs out of memory with them."""
        with running(FRONT) as server, self.bench.idle(server, IDLE) as found:
            print(f"\n  {found['bytes']:,.0f} bytes a connection over {found['base_mib']:.1f} MiB")
            self.assertLess(found["bytes"], CONNECTION_BYTES_MAX)
            self.assertLess(found["base_mib"] * 2**20, BASE_MB_MAX * 10**6)

    def test_a_message_costs_no_more_than_in_a_bare_relay(self) -> None:
        """Otherwise the checks of a message, or its way through the front, have become slow."""
        rates, costs = [], []
        with running(FRONT) as front, running(PLAIN) as plain:
            for _ in range(ROUNDS):
                ours, theirs = self.bench.relayed(front), self.bench.relayed(plain)
                rates.append(ours["messages"] / theirs["messages"])
                costs.append(theirs["cpu_us"] / ours["cpu_us"])
        print(f"\n  {max(costs):.2f} times the messages of plain Autobahn for the same CPU time"
              f" ({', '.join(f'{cost:.2f}' for cost in costs)}); {max(rates):.2f} times in the same time")
        self.assertGreater(max(costs), MESSAGES_RATIO_MIN)
