"""Requests have their turns: what many of them at once, or one too many, may take from everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.web.resources import JsonResource
from kollator.web.site import IDLE_S, FrontSite
from kollator.web.turns import AT_ONCE, HOLD_S, RELEASE_EVERY_S, RELEASED_AT_ONCE, Turns
from tests.fronts import FrontTestCase
from tests.wires import PEER, Wire, read_answers, request

LIVE = request("GET", "/health/live")
BOOT = request("POST", "/bootstrap", body=b"{}")
PROXY = "10.0.0.1"


def turn(clock: Any) -> None:
    """One turn of a reactor: what is due by now, and nothing that comes up meanwhile. (``Clock.advance`` goes on.)"""
    for call in [call for call in clock.calls if call.getTime() <= clock.seconds()]:
        if call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Waiter:
    """What waits: it notes when it went on, and does what it is told to then."""

    def __init__(self, name: int, went: list[int], then: Callable[[Waiter], None] = lambda waiter: None) -> None:
        self.name = name
        self._went = went
        self._then = then

    def go_on(self) -> None:
        """Noted."""
        self._went.append(self.name)
        self._then(self)


class TurnsTestCase(SynchronousTestCase):
    """With queues of their own."""

    def setUp(self) -> None:
        """Nobody waits."""
        clock: Any = Clock()
        self.clock = clock
        self.turns = Turns(clock)
        self.went: list[int] = []

    def waiters(self, count: int, first: int = 0) -> list[Waiter]:
        """Some that do nothing in their turn."""
        return [Waiter(first + number, self.went) for number in range(count)]

    def taken(self) -> list[int]:
        """Who went on since the last call."""
        went = self.went[:]
        self.went.clear()
        return went


class QueueTests(TurnsTestCase):
    """Whoever waits for the next turn of the reactor."""

    def test_so_many_at_once(self) -> None:
        """Without a limit a thousand ready connections hold everybody else up for the time of a thousand answers."""
        self.assertEqual([self.turns.take() for _ in range(AT_ONCE + 1)], [True] * AT_ONCE + [False])
        waiters = self.waiters(2 * AT_ONCE + 1)
        for waiter in waiters:
            self.turns.queue(waiter)
            self.assertFalse(self.turns.take())
        self.assertEqual(self.taken(), [])
        for start in (0, AT_ONCE):
            turn(self.clock)
            self.assertEqual(self.taken(), list(range(start, start + AT_ONCE)))
            self.assertFalse(self.turns.take())
        turn(self.clock)
        self.assertEqual(self.taken(), [2 * AT_ONCE])
        self.assertEqual([self.turns.take() for _ in range(AT_ONCE)], [True] * (AT_ONCE - 1) + [False])

    def test_once_a_turn(self) -> None:
        """One that has more to be answered goes to the end, and not on at once, even when it is alone."""
        again = [Waiter(number, self.went, self.turns.queue) for number in range(3)]
        for waiter in again:
            self.turns.queue(waiter)
        for _ in range(3):
            turn(self.clock)
            self.assertEqual(self.taken(), [0, 1, 2])

    def test_new_ones_in_between(self) -> None:
        """A new connection need not wait for a hundred old ones, nor an old one until no new ones come."""
        for waiter in self.waiters(100):
            self.turns.queue(waiter)
        for waiter in self.waiters(AT_ONCE, 1000):
            self.turns.queue(waiter, new=True)
        turn(self.clock)
        half = AT_ONCE // 2
        self.assertEqual(self.taken(), [n for number in range(half) for n in (1000 + number, number)])

    def test_one_that_ends_another(self) -> None:
        """What goes on may end others that wait, all of them included."""
        waiters = self.waiters(3)

        def end(_: Waiter) -> None:
            for waiter in waiters:
                self.turns.forget(waiter)

        for waiter in (Waiter(9, self.went, end), *waiters):
            self.turns.queue(waiter)
        turn(self.clock)
        self.assertEqual(self.taken(), [9])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(self.turns.take())


class HoldTests(TurnsTestCase):
    """Whoever was refused."""

    def test_released_slowly(self) -> None:
        """If all were let go together, they would be back together."""
        for waiter in self.waiters(2 * RELEASED_AT_ONCE + 1):
            self.turns.hold(waiter)
        self.clock.advance(HOLD_S * 0.99)
        self.assertEqual(self.taken(), [])
        self.clock.advance(HOLD_S * 0.01)
        self.assertEqual(self.taken(), list(range(RELEASED_AT_ONCE)))
        self.clock.advance(RELEASE_EVERY_S * 0.99)
        self.assertEqual(self.taken(), [])
        self.clock.advance(RELEASE_EVERY_S * 0.01)
        self.assertEqual(self.taken(), list(range(RELEASED_AT_ONCE, 2 * RELEASED_AT_ONCE)))
        self.clock.advance(RELEASE_EVERY_S)
        self.assertEqual(self.taken(), [2 * RELEASED_AT_ONCE])
        self.assertEqual((len(self.turns), self.clock.getDelayedCalls()), (0, []))

    def test_each_its_time(self) -> None:
        """One that was held later waits as long as any other."""
        early, late = self.waiters(2)
        self.turns.hold(early)
        self.clock.advance(HOLD_S / 2)
        self.turns.hold(late)
        self.clock.advance(HOLD_S / 2)
        self.assertEqual(self.taken(), [0])
        self.clock.advance(HOLD_S / 4)
        self.assertEqual(self.taken(), [])
        self.clock.advance(HOLD_S / 4)
        self.assertEqual(self.taken(), [1])


class AnySequenceTests(TurnsTestCase):
    """Whatever happens."""

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["queue", "new", "hold", "forget", "wait"]), st.integers(0, 9)), max_size=60
        )
    )
    def test_everyone_once(self, steps: list[tuple[str, int]]) -> None:
        """Whoever waits goes on exactly once, whoever is gone does not, and in the end no timer is left."""
        self.setUp()
        waiters = self.waiters(10)
        waiting: set[int] = set()
        for what, number in steps:
            if what == "wait":
                self.clock.advance(number * 0.05)
            elif what == "forget":
                self.turns.forget(waiters[number])
                waiting.discard(number)
            elif number not in waiting:
                if what == "hold":
                    self.turns.hold(waiters[number])
                else:
                    self.turns.queue(waiters[number], new=what == "new")
                waiting.add(number)
            for went in self.taken():
                waiting.remove(went)
            self.assertEqual(len(self.turns), len(waiting))
        self.clock.pump([HOLD_S, *[RELEASE_EVERY_S] * 10])
        self.assertEqual(sorted(self.taken()), sorted(waiting))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ConnectionTests(FrontTestCase):
    """Connections have their turns."""

    environ: ClassVar = {"TRUSTED_PROXIES": PROXY, "BOOTSTRAP_RATE_PER_IP": "1"}

    def answered(self, *wires: Wire) -> list[int]:
        """How many answers each has got since the last call."""
        return [len(read_answers(wire.taken())) for wire in wires]

    def refused(self, **headers: str) -> Wire:
        """A connection that has had one bootstrap too many."""
        peer = PROXY if headers else PEER
        sent = request("POST", "/bootstrap", {name.replace("_", "-"): text for name, text in headers.items()})
        wire = self.front.connect(peer)
        for _ in range(6):
            wire.send(sent)
            self.front.clock.advance(0)
        self.assert_error(read_answers(wire.taken())[-1], 429, "rate-limited")
        return wire

    def test_one_answer_a_turn(self) -> None:
        """A packet of small requests must not hold up everybody else until the last is answered."""
        wire, other = self.front.connect().send(LIVE * 50), self.front.connect()
        for _ in range(40):
            self.assertEqual(self.answered(wire), [1])
            turn(self.front.clock)
        self.assertEqual(self.answered(other.send(LIVE)), [0])
        turn(self.front.clock)
        self.assertEqual(self.answered(wire, other), [2, 1])

    def test_so_many_answers_a_turn(self) -> None:
        """Nor must a thousand connections with a request each."""
        wires = [self.front.connect() for _ in range(2 * AT_ONCE + 3)]
        for wire in wires:
            wire.send(LIVE)
        for expected in (AT_ONCE, AT_ONCE, 3):
            self.assertEqual(sum(self.answered(*wires)), expected)
            turn(self.front.clock)
        self.assertEqual(sum(self.answered(*wires)), 0)

    def test_new_connections_first(self) -> None:
        """A health check that comes on a connection of its own does not wait for all who ask on theirs."""
        kept = [self.front.connect().send(LIVE) for _ in range(5 * AT_ONCE)]
        self.front.clock.advance(0)
        self.answered(*kept)
        for wire in kept:
            wire.send(LIVE)
        new = self.front.connect().send(LIVE)
        self.answered(*kept)
        turn(self.front.clock)
        self.assertEqual(self.answered(new), [1])
        self.assertEqual(sum(self.answered(*kept)), AT_ONCE - 1)

    def test_in_pieces(self) -> None:
        """What waits for its turn may come in any pieces, and goes on as if it had come in one."""
        busy = [self.front.connect().send(LIVE) for _ in range(AT_ONCE)]
        wire = self.front.connect()
        for start in range(len(BOOT)):
            wire.send(BOOT[start : start + 1])
        self.assertEqual(self.answered(wire), [0])
        turn(self.front.clock)
        self.assertEqual(self.answered(wire, *busy), [1] * (AT_ONCE + 1))

    def test_refused_and_held(self) -> None:
        """Who goes on asking in spite of a refusal is not even listened to: it would be refused as fast as it asks."""
        wire, other = self.refused(), self.front.connect()
        wire.send(BOOT[:20]).send(BOOT[20:])
        self.assertEqual(self.answered(wire, other.send(LIVE)), [0, 1])
        self.front.advance(HOLD_S / 2)
        self.assertEqual(self.answered(wire), [0])
        self.front.advance(HOLD_S / 2)
        self.assertEqual(self.answered(wire), [1])
        self.front.advance(HOLD_S)  # it was refused once more
        self.assertEqual(self.answered(wire.send(LIVE)), [1])

    def test_proxies_are_not_held(self) -> None:
        """The connection of a proxy has others' requests on it too."""
        wire = self.refused(X_Forwarded_For=PEER)
        self.assertEqual(self.answered(wire.send(LIVE)), [1])
        stranger = self.refused()
        forged = request("GET", "/health/live", {"X-Forwarded-For": "198.51.100.9"})
        self.assertEqual(self.answered(stranger.send(forged)), [0])

    def test_forged_proxies_are_held(self) -> None:
        """Who only claims to be a proxy is none."""
        wire = self.front.connect()
        for _ in range(6):
            wire.send(request("POST", "/bootstrap", {"X-Forwarded-For": "198.51.100.9"}))
        self.assertEqual(read_answers(wire.taken())[-1].status, 429)
        self.assertEqual(self.answered(wire.send(LIVE)), [0])

    def test_held_and_gone(self) -> None:
        """One that leaves meanwhile leaves its place, and nothing else behind."""
        for _ in range(3):
            self.refused().hang_up()
            self.front.advance(5.0)
        waiting = self.front.connect().send(LIVE * 3)
        waiting.hang_up()
        self.assertEqual((self.front.gate.places.taken, self.front.clock.getDelayedCalls()), (0, []))
        self.assertEqual(len(self.front.site.turns), 0)

    def test_held_and_loud(self) -> None:
        """What it sends meanwhile is kept within bounds, and answered in the end."""
        wire = self.refused()
        wire.send(LIVE * (16_000 // len(LIVE)))
        self.assertEqual(wire.producerState, "producing")
        wire.send(LIVE * 20)
        self.assertEqual(wire.producerState, "paused")
        self.front.advance(HOLD_S)
        self.assertEqual(self.answered(wire), [16_000 // len(LIVE) + 20])
        self.assertEqual(wire.producerState, "producing")


    def test_held_in_a_body(self) -> None:
        """The rest of a large body, whose beginning filled what is kept, is read when the time has come."""
        wire = self.refused()
        sent = request("POST", "/bootstrap", body=b"{}" + b" " * 60_000)
        wire.send(sent[:40_000])
        self.assertEqual(wire.producerState, "paused")
        self.front.advance(HOLD_S)
        self.assertEqual((self.answered(wire), wire.producerState), ([0], "producing"))
        self.assertEqual(self.answered(wire.send(sent[40_000:])), [1])


class CountingWire(Wire):
    """Counts what is written."""

    writes = 0

    def write(self, data: bytes) -> None:
        """One system call, in a front."""
        self.writes += 1
        super().write(data)


class CostTests(FrontTestCase):
    """What an answer may cost."""

    def test_one_write(self) -> None:
        """The head and the body of an answer go out together; apart they are two system calls, and two packets."""
        asked = [LIVE, BOOT, request("HEAD", "/"), request("OPTIONS", "/bootstrap"), request("GET", "/nothing"),
                 request("GET", "/", {"If-None-Match": "*"}), request("GET", "/metrics")]
        wire = CountingWire()
        self.front.wires.append(wire.open(self.front.door))
        for number, sent in enumerate(asked, 1):
            wire.send(sent)
            self.assertEqual(wire.writes, number)
        answers = read_answers(wire.taken(), ["GET", "POST", "HEAD", "OPTIONS"])
        self.assertEqual([answer.status for answer in answers], [200, 503, 200, 204, 404, 304, 200])

    def test_one_timer(self) -> None:
        """A request that comes in one piece makes no timer: the one of the idle connection is put off."""
        wire = self.front.connect().send(LIVE)
        (before,) = self.front.clock.getDelayedCalls()
        for _ in range(3):
            self.front.clock.advance(1.0)
            wire.send(LIVE).send(BOOT)
            (after,) = self.front.clock.getDelayedCalls()
            self.assertIs(after, before)
        self.assertEqual(after.getTime(), self.front.clock.seconds() + IDLE_S)

    def test_late_answer(self) -> None:
        """The timer of the idle connection does not end one whose answer takes its time, and runs again after that."""
        answer: Deferred[bytes] = Deferred()

        class Slow(JsonResource):
            def get(self, request: object) -> Deferred[bytes]:
                """In a while."""
                return answer

        root: Any = Slow(self.front.views)
        root.putChild(b"", root)
        wire = self.front.connect(factory=FrontSite(root, self.front.clock))
        wire.send(request("GET", "/"))
        self.front.advance(2 * IDLE_S)
        self.assertEqual((wire.lost, wire.taken()), (False, b""))
        answer.callback(b"{}")
        self.assertEqual(read_answers(wire.taken())[0].status, 200)
        self.front.advance(IDLE_S)
        self.assertTrue(wire.lost)

    def test_what_all_have(self) -> None:
        """Every answer has its date (RFC 9110 section 6.6.1), and says once whose it is."""
        for method, path in (("GET", "/"), ("HEAD", "/status"), ("GET", "/nothing"), ("POST", "/bootstrap")):
            headers = self.front.ask(method, path).headers
            for name, value in (("Server", "kollator-front"), ("X-Content-Type-Options", "nosniff")):
                self.assertEqual(headers.get_all(name), [value])
            self.assertRegex(" ".join(headers.get_all("Date", [])), r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")
