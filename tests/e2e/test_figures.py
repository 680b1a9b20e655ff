"""Figures that the suite holds: the memory of idle connections, and the rate of messages beside plain Autobahn's.

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
CONNECTION_BYTES_MAX = 16_000
MESSAGES_RATIO_MIN = 0.5
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
        self.bench = Bench(Generator(build_generator(folder)), PLAN)

    def test_idle_connections_are_small(self) -> None:
        """Otherwise a front that was said to hold 10,000 clients runs out of memory with them."""
        with running(FRONT) as server, self.bench.idle(server, IDLE) as found:
            print(f"\n  {found['bytes']:,.0f} bytes a connection over {found['base_mib']:.1f} MiB")
            self.assertLess(found["bytes"], CONNECTION_BYTES_MAX)

    def test_messages_are_relayed_as_fast_as_a_bare_relay_does(self) -> None:
        """Otherwise the checks of a message, or the way that it takes through the front, have become slow."""
        ratios = []
        with running(FRONT) as front, running(PLAIN) as plain:
            for _ in range(ROUNDS):
                ours, theirs = (self.bench.relayed(server)["messages"] for server in (front, plain))
                ratios.append(ours / theirs)
        print(f"\n  {max(ratios):.2f} times the messages of plain Autobahn ({', '.join(f'{r:.2f}' for r in ratios)})")
        self.assertGreater(max(ratios), MESSAGES_RATIO_MIN)
