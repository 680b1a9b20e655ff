"""The probes of one front: who is probed when, and who is told of the outcome."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.probes import ProbeBook
from kollator.pool.workersfile import HealthTarget, parse_health
from kollator.probing import FOLLOWED_AT_ONCE, ProbeFailed, Probing

TARGET = parse_health("tcp:192.0.2.1:9000")
OTHER = parse_health("tcp:192.0.2.2:9000")


class ProbingTestCase(SynchronousTestCase):
    """The probes of one front, on a clock by hand: interval 10 s, time-out 2 s."""

    def setUp(self) -> None:
        clock: Any = Clock()
        self.clock = clock
        self.targets: dict[str, HealthTarget] = {"w1": TARGET}
        self.begun: list[tuple[HealthTarget, Deferred[None]]] = []
        self.cancelled: list[HealthTarget] = []
        self.said: list[tuple[str, str]] = []
        self.failed: list[str] = []
        self.probing = Probing(
            clock,
            ProbeBook(10.0, 2.0),
            self.probe,
            target_of=self.targets.get,
            unwell=lambda worker, said: self.said.append((worker, said)),
            well=lambda worker: self.said.append((worker, "")),
            phase=lambda: 0.5,
            failed=self.failed.append,
        )
        self.probing.startService()
        self.addCleanup(self.stop)

    def probe(self, target: HealthTarget) -> Deferred[None]:
        """Begins one."""
        done: Deferred[None] = Deferred(lambda _: self.cancelled.append(target))
        self.begun.append((target, done))
        return done

    def stop(self) -> None:
        """Stops, after which nothing may be left."""
        self.successResultOf(self.probing.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.failed, [])

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.pump([0.05] * round(seconds / 0.05))

    def end(self, problem: Exception | None = None) -> None:
        """The probe that began first ends."""
        _, done = self.begun.pop(0)
        done.callback(None) if problem is None else done.errback(problem)

    def taken(self) -> list[tuple[str, str]]:
        """What was said so far."""
        said, self.said = self.said, []
        return said


class ProbingTests(ProbingTestCase):
    """Who is probed, and what comes of it."""

    def test_out_and_back(self) -> None:
        """Without it a worker whose port is closed would stay in the ring, or never come back."""
        self.probing.joined("w1")
        self.assertEqual(self.taken(), [])
        self.advance(5.1)
        self.end(ProbeFailed("connection refused"))
        self.assertEqual(self.taken(), [("w1", "its health probe tcp:192.0.2.1:9000 failed: connection refused")])
        for _ in range(2):
            self.assertEqual(self.taken(), [])
            self.advance(10)
            self.end()
        self.assertEqual(self.taken(), [("w1", "")])

    def test_unlisted(self) -> None:
        """Without it a worker without a health address would be probed somewhere."""
        self.probing.joined("w2")
        self.advance(30)
        self.assertEqual(self.begun, [])

    def test_time_out(self) -> None:
        """Without it a server that says nothing would pass for healthy."""
        self.probing.joined("w1")
        self.advance(7)
        self.assertEqual(self.cancelled, [])
        self.advance(0.2)
        self.assertEqual(self.cancelled, [TARGET])
        self.advance(5)
        self.assertEqual(self.cancelled, [TARGET])
        self.assertEqual(self.taken(), [("w1", "its health probe tcp:192.0.2.1:9000 failed: no answer within 2 s")])

    def test_left(self) -> None:
        """Without it a worker that is gone would be probed, and be taken out again."""
        self.probing.joined("w1")
        self.advance(5.1)
        self.probing.left("w1")
        self.assertEqual(self.cancelled, [TARGET])
        self.advance(30)
        self.assertEqual((len(self.begun), self.taken()), (1, []))
        self.probing.left("w1")

    def test_new_connection(self) -> None:
        """Without it a worker that is out would be used again by connecting anew."""
        self.probing.joined("w1")
        self.advance(5.1)
        self.end(ProbeFailed("no"))
        self.taken()
        self.probing.joined("w1")  # in place of the older one
        self.assertEqual(self.taken(), [("w1", "its last health probe failed")])
        self.probing.left("w1")
        self.probing.joined("w1")
        self.assertEqual(self.taken(), [("w1", "its last health probe failed")])

    def test_refresh(self) -> None:
        """Without it a change of the list would count for new connections only."""
        for worker in ("w1", "w2"):
            self.probing.joined(worker)
        self.advance(5.1)
        self.end(ProbeFailed("no"))
        self.taken()
        self.targets |= {"w1": OTHER, "w2": TARGET, "w3": TARGET}
        self.probing.refresh()
        self.advance(5.2)
        self.assertEqual([target for target, _ in self.begun], [TARGET])
        self.end()
        self.advance(5)
        self.assertEqual([target for target, _ in self.begun], [OTHER])
        self.assertEqual(self.taken(), [], "w1 is out until it is found well")
        del self.targets["w1"], self.targets["w2"]
        self.probing.refresh()
        self.assertEqual((self.cancelled, self.taken()), ([OTHER], [("w1", "")]))
        self.begun.clear()
        self.advance(20)
        self.assertEqual(self.begun, [])

    def test_refresh_of_many(self) -> None:
        """Without it a change of the list would hold a front of many workers up, or reach some of them only."""
        names = [f"w{number:04}" for number in range(FOLLOWED_AT_ONCE + 2)]
        for worker in names:
            self.probing.joined(worker)
        asked: list[str] = []
        self.probing._target_of = lambda worker: asked.append(worker)  # type: ignore[func-returns-value]
        self.probing.refresh()
        self.assertEqual(asked, names[:FOLLOWED_AT_ONCE])
        self.probing.left(names[-1])
        self.advance(0.1)
        self.assertEqual(asked, names[:-1])

    def test_errors(self) -> None:
        """Without it what a probe raises would be lost, be logged as a mistake, or be many lines in the log."""
        self.probing.joined("w1")
        self.advance(5.1)
        self.end(ValueError("some\nlines\x1b[2J " + "x" * 1000))
        ((_, said),) = self.taken()
        self.assertTrue(said.isprintable() and len(said) < 300, said)

    def test_callers_mistake(self) -> None:
        """Without it a mistake in what is called would end the probes of that worker."""

        def mistaken(worker: str) -> HealthTarget | None:
            raise KeyError(worker)

        self.probing.joined("w1")
        self.advance(5.1)
        self.probing._unwell = mistaken  # type: ignore[assignment]
        self.end(ProbeFailed("no"))
        self.advance(10)
        self.assertEqual(len(self.begun), 1)
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_at_once(self) -> None:
        """Without it a probe that is over before it is noted would be under way for ever."""
        outcomes: list[Deferred[None]] = [fail(ProbeFailed("no")), succeed(None), succeed(None)]
        self.probing._probe = lambda target: outcomes.pop(0) if outcomes else succeed(None)
        self.probing.joined("w1")
        self.advance(40)
        self.assertEqual([said for _, said in self.taken()], ["its health probe tcp:192.0.2.1:9000 failed: no", ""])


class StopTests(ProbingTestCase):
    """The end."""

    def test_cancels(self) -> None:
        """Without it the stop would leave connections behind, or take workers out."""
        self.targets["w2"] = OTHER
        for worker in ("w1", "w2"):
            self.probing.joined(worker)
        self.advance(5.1)
        self.assertEqual(len(self.begun), 2)
        self.successResultOf(self.probing.stopService())
        self.assertEqual((self.cancelled, self.taken()), ([TARGET, OTHER], []))
        self.probing.left("w1")

    def test_waits(self) -> None:
        """Without it the process would go on while a connection is still being closed."""
        over: Deferred[None] = Deferred(lambda _: self.cancelled.append(TARGET))
        self.probing._probe = lambda target: Deferred(lambda done: done.errback(ProbeFailed("x"))).addErrback(
            lambda _: over
        )
        self.probing.joined("w1")
        self.advance(7.2)  # it took too long and is being broken off
        stopped = self.probing.stopService()
        self.assertEqual(self.cancelled, [], "broken off once: the second time would end the wait for its connection")
        self.assertNoResult(stopped)
        over.errback(ProbeFailed("broken off"))
        self.successResultOf(stopped)
        self.assertEqual(self.taken(), [])
