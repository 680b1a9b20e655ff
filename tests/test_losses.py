"""When the clients of a lost worker are told, with as many of them as there may be."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling.connection import Connection
from kollator.signaling.losses import FEW, PER_SECOND, SCAN, SLICE, SPREAD_S, TURN_S, Losses, Search, concerned
from kollator.signaling.messages import Close
from tests.switchboard_bench import BenchTestCase, Wire, kinds


def names(count: int) -> list[str]:
    """So many clients."""
    return [f"c{number}" for number in range(count)]


def told(losses: Losses, start: float = 0.0) -> dict[str, float]:
    """When each client is told, in seconds from ``start``, in turns as a front has them."""
    times: dict[str, float] = {}
    turn = 0
    while losses:
        now = start + turn * TURN_S
        for client in losses.due(now):
            assert client not in times, "told twice"
            times[client] = now - start
        turn += 1
    return times


class LossesTests(SynchronousTestCase):
    """The times that clients are given."""

    def setUp(self) -> None:
        """Nobody waits."""
        self.losses = Losses(random.Random(1).randbytes)

    def test_spread_grows_with_their_number(self) -> None:
        """Without it hundreds would come back as one burst, or a few would wait for long."""
        for count, longest_s in ((1, 0.0), (200, 200 / PER_SECOND), (2_000, SPREAD_S), (8_000, SPREAD_S)):
            clients = names(count)
            self.losses.add(clients, clients)
            times = told(self.losses, 12345.678)
            self.assertEqual(set(times), set(clients))
            self.assertLessEqual(max(times.values()), longest_s + 3 * TURN_S)
            self.assertGreaterEqual(max(times.values()), longest_s * 0.9 - TURN_S)

    def test_evenly(self) -> None:
        """Without it most would be told in the same moment all the same."""
        clients = names(5_000)
        self.losses.add(clients, clients)
        tenths = Counter(int(at_s / SPREAD_S * 10) for at_s in told(self.losses).values())
        for tenth in range(10):
            self.assertIn(tenths[tenth], range(400, 600))

    def test_in_no_order(self) -> None:
        """Without it the clients that have been here longest would always be the first, and of one worker at once."""
        clients = names(2_000)
        self.losses.add(clients, clients)
        times = told(self.losses)
        first, second = ([times[client] for client in half] for half in (clients[:1_000], clients[1_000:]))
        self.assertLess(abs(sum(first) - sum(second)) / 1_000, 0.05)
        self.assertLess(abs(max(first) - max(second)), 0.05)

    def test_slices(self) -> None:
        """Without it a turn that comes late would hold up everybody else."""
        clients = names(SLICE * 3 + 1)
        self.losses.add(clients, clients)
        self.assertLessEqual(len(list(self.losses.due(0.0))), SLICE)
        counts = [len(list(self.losses.due(1000.0))) for _ in range(5)]
        self.assertLessEqual(max(counts), SLICE)
        self.assertEqual(len(self.losses), 0)

    def test_nobody_waits(self) -> None:
        """Without it each turn of an idle front would cost something, or a first turn take what is not there."""
        self.assertEqual(list(self.losses.due(5.0)), [])
        self.losses.add([], names(3))
        self.assertEqual((list(self.losses.due(5.0)), len(self.losses)), ([], 0))

    def test_overlap(self) -> None:
        """Without it a client that is concerned twice would be told twice, or later and later."""
        clients = names(1_000)
        alone = Losses(random.Random(7).randbytes)
        twice = Losses(random.Random(7).randbytes)
        for losses in (alone, twice):
            losses.add(clients, clients)
            gone = set(losses.due(0.0))
        twice.add([client for client in clients if client not in gone], clients)
        self.assertEqual(told(alone, TURN_S), told(twice, TURN_S))

    def test_who_is_not_asked_for_waits(self) -> None:
        """Without it a mistake with one client would keep the news from the rest of its slice."""
        clients = names(50)
        self.losses.add(clients, clients)
        list(self.losses.due(0.0))
        before = len(self.losses)
        first = next(self.losses.due(100.0))
        self.assertEqual(len(self.losses), before - 1)
        self.assertNotIn(first, told(self.losses, 100.0))

    def test_bounded(self) -> None:
        """Without it clients that come and go while workers fail would be kept by the thousand."""
        for generation in range(20):
            present = [f"g{generation}-{number}" for number in range(500)]
            self.losses.add(present, present)
            self.assertLessEqual(len(self.losses), len(present))
            if generation % 3:
                list(self.losses.due(generation * TURN_S))
        times = told(self.losses, 100.0)
        self.assertLessEqual(len(times), 500)
        self.assertTrue(set(times) <= set(present))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 0.3)), max_size=12), st.integers())
    def test_everybody_once(self, steps: list[tuple[int, int, float]], seed: int) -> None:
        """Without it some order of losses and turns could leave a client untold, or keep it for ever."""
        losses = Losses(random.Random(seed).randbytes)
        clients = names(600)
        now, waiting = 0.0, set()
        for first, count, pause_s in steps:
            some = clients[first : first + count]
            losses.add(some, clients)
            waiting |= set(some)
            now += pause_s
            for client in losses.due(now):
                waiting.remove(client)
            self.assertEqual(len(losses), len(waiting))
        self.assertEqual(set(told(losses, now)), waiting)


class SearchTests(SynchronousTestCase):
    """Whom a loss concerns."""

    def setUp(self) -> None:
        """Two and a half slices of clients, each with a worker of two."""
        self.search = Search()
        self.clients: dict[str, Connection] = {}
        for number, name in enumerate(names(SCAN * 5 // 2)):
            client = self.clients[name] = Connection()
            if number % 2:
                client.assigned = f"w{number % 4}"
            else:
                client.talked = ("w9", f"w{number % 4}")

    def steps(self, count: int) -> list[str]:
        """What so many steps find."""
        return [client for _ in range(count) for client in self.search.step(self.clients)]

    def test_concerned(self) -> None:
        """Without it clients would be told of workers they have nothing to do with, or miss their own."""
        client = Connection()
        self.assertFalse(concerned(client, frozenset({"w1", ""}) - {""}))
        client.assigned = "w1"
        self.assertTrue(concerned(client, frozenset({"w1"})))
        self.assertFalse(concerned(client, frozenset({"w2", "w3"})))
        client.talked = ("w3", "w4")
        self.assertTrue(concerned(client, frozenset({"w2", "w4"})))

    def test_all_of_them_in_slices(self) -> None:
        """Without it a front with ten thousand clients would stand still while it looks for those of one worker."""
        self.search.begin(["w1"])
        found = [self.search.step(self.clients) for _ in range(4)]
        self.assertEqual([bool(some) for some in found], [True, True, True, False])
        self.assertLessEqual(max(map(len, found)), SCAN // 4 + 1)
        wanted = {name for name, client in self.clients.items() if client.assigned == "w1"}
        self.assertEqual({client for some in found for client in some}, wanted)

    def test_lost_meanwhile(self) -> None:
        """Without it a worker that is lost during a search would be missed by those who were looked at already."""
        self.search.begin(["w1"])
        first = self.steps(1)
        self.search.begin(["w2"])
        self.search.begin(["w3"])
        found = [*first, *self.steps(2)]
        self.assertEqual({self.clients[client].assigned for client in found}, {"w1"})
        found = self.steps(3)
        self.assertEqual(len(found), len(set(found)))
        lost = {self.clients[name].assigned or self.clients[name].talked[1] for name in found}
        self.assertEqual(lost, {"w2", "w3"})
        self.assertEqual(self.steps(5), [])

    def test_gone_meanwhile(self) -> None:
        """Without it a client that leaves during a search would be an error."""
        self.search.begin(["w1", "w2", "w3", "w0"])
        first = set(self.steps(1))
        self.clients = {name: client for name, client in self.clients.items() if name in first}
        self.assertEqual(self.steps(3), [])


class TellingTests(BenchTestCase):
    """Many clients of a worker that is lost, at a switchboard."""

    def setUp(self) -> None:
        """Two workers."""
        super().setUp()
        self.bench.pool = ["w1", "w2", "w3"]

    def crowd(self, count: int = FEW + 50) -> list[Wire]:
        """So many clients that are assigned to the first worker."""
        clients = [self.bench.client() for _ in range(count)]
        for client in clients:
            client.assigned = "w1"
            client.take()
        return clients

    def turns(self, seconds: float = SPREAD_S + 0.5) -> None:
        """The time passes."""
        for _ in range(round(seconds / TURN_S)):
            self.bench.now += TURN_S
            self.board.turn(self.bench.now)

    def lose(self, *workers: str) -> None:
        """Workers are gone."""
        self.bench.lose(workers)

    def told(self, clients: list[Wire]) -> int:
        """How many of them were told that the first worker is lost, and of the next one; none twice."""
        expected = {"type": "worker-lost", "worker": "w1", "assigned": {"id": "w2", "region": "us-west"}}
        for client in clients:
            self.assertIn(client.sent, ([], [expected]))
        return sum(bool(client.sent) for client in clients)

    def test_a_few_at_once(self) -> None:
        """Without it the clients of a small front would wait for nothing."""
        clients = self.crowd(FEW)
        self.assertEqual(self.board.workers_lost(["w1"]), FEW)
        self.assertEqual(self.told(clients), FEW)

    def test_many_are_spread(self) -> None:
        """Without it the workers that are left would get all the offers in one moment."""
        clients = self.crowd(FEW * 4)
        self.lose("w1")
        self.assertEqual(self.told(clients), 0)
        counts = []
        for _ in range(40):
            self.turns(TURN_S)
            counts.append(self.told(clients))
        self.assertEqual(counts[-1], FEW * 4)
        steps = [after - before for before, after in zip([0, *counts], counts, strict=False)]
        self.assertLess(max(steps), FEW)
        self.assertGreater(sum(step > 0 for step in steps), 10)
        self.assertEqual(self.bench.counters.worker_lost_told, FEW * 4)
        self.assertEqual({client.assigned for client in clients}, {"w2"})

    def test_a_front_full_of_clients(self) -> None:
        """Without it one loss at a large front would be told to nobody, or to all of them in one turn."""
        clients = self.crowd(SCAN + 200)
        for client in clients[10:]:
            client.assigned = "w3"
        self.lose("w1")
        self.assertEqual(self.told(clients), 0)
        self.turns(0.1)
        self.assertEqual((self.told(clients[:10]), self.told(clients[10:])), (10, 0))

    def test_left_meanwhile(self) -> None:
        """Without it a client that is gone would be sent to, or its return go without the news."""
        clients = self.crowd()
        tickets = [self.bench.tickets.issue(client.id, self.bench.wall)[0] for client in clients]
        self.lose("w1")
        for client in clients[:2]:
            self.board.end(client, Close.GOING_AWAY, "test", self.bench.now)
        back = self.bench.client(tickets[0])
        self.assertEqual(kinds(back.take()), ["welcome", "worker-lost"])
        self.turns()
        self.assertEqual((back.sent, clients[0].late, clients[1].late), ([], [], []))
        self.assertEqual(self.told(clients), len(clients) - 2)

    def test_replaced_meanwhile(self) -> None:
        """Without it a client with a newer connection would be told twice."""
        clients = self.crowd()
        self.lose("w1")
        newer = self.bench.client(self.bench.tickets.issue(clients[0].id, self.bench.wall)[0])
        self.assertEqual(kinds(newer.take()), ["welcome", "worker-lost"])
        self.turns()
        self.assertEqual((newer.sent, clients[0].late), ([], []))

    def test_assigned_meanwhile(self) -> None:
        """Without it a client that has asked for itself would be taken away from the worker it got."""
        clients = self.crowd()
        clients[1].talked = ("w1",)
        self.lose("w1")
        for client in clients[:2]:
            client.says(type="assign", exclude=["w2"])
            self.assertEqual(client.take()[0]["worker"]["id"], "w3")
        self.turns()
        self.assertEqual((clients[0].sent, clients[0].assigned), ([], "w3"))
        lost = {"type": "worker-lost", "worker": "w1", "assigned": {"id": "w3", "region": "us-west"}}
        self.assertEqual((clients[1].sent, clients[1].assigned), ([lost], "w3"))
        self.assertEqual(clients[1].talked, ())

    def test_back_meanwhile(self) -> None:
        """Without it every client would leave a worker that was away for a moment."""
        clients = self.crowd()
        self.lose("w1")
        self.bench.pool.insert(0, "w1")
        self.turns()
        self.assertEqual((self.told(clients), {client.assigned for client in clients}), (0, {"w1"}))

    def test_the_next_one_is_lost_too(self) -> None:
        """Without it a client would be sent to a worker that is lost by then, or be told twice."""
        clients = self.crowd()
        for client in clients:
            client.talked = ("w2",)
        self.lose("w1")
        self.lose("w2")
        self.turns()
        for client in clients:
            self.assertEqual([message["worker"] for message in client.sent], ["w1", "w2"])
            self.assertEqual({message["assigned"]["id"] for message in client.sent}, {"w3"})

    def test_a_few_more(self) -> None:
        """Without it the workers that fail one after the other would each make a burst of their own."""
        clients = self.crowd()
        others = clients[:5]
        for client in others:
            client.assigned = "w2"
        self.lose("w1")
        self.lose("w2")
        self.assertEqual([client.sent for client in clients if client.sent], [])
        self.turns()
        self.assertEqual([message["worker"] for client in others for message in client.sent], ["w2"] * 5)

    def test_lost_one_after_the_other(self) -> None:
        """Without it the loss of the worker that clients have just been moved to would not be told."""
        clients = self.crowd()
        self.lose("w1")
        self.turns(0.02)
        self.lose("w2")
        self.turns()
        self.assertEqual({client.assigned for client in clients}, {"w3"})
        self.assertEqual({client.sent[-1]["assigned"]["id"] for client in clients}, {"w3"})

    def test_slow_clients(self) -> None:
        """Without it one client that does not read would keep the news from the others of its turn."""
        clients = self.crowd()
        clients[3].slow = True
        self.lose("w1")
        self.turns()
        self.assertEqual(self.told(clients), len(clients) - 1)
        self.assertEqual(clients[3].code, Close.SLOW_CONSUMER)

    def test_a_mistake_with_one(self) -> None:
        """Without it an error with one client would leave the rest untold for ever."""
        clients = self.crowd()
        broken = clients[3]

        def send(payload: bytes) -> bool:
            raise ValueError("a mistake")

        broken.send = send  # type: ignore[method-assign]
        self.lose("w1")
        failures = 0
        for _ in range(200):
            try:
                self.turns(TURN_S)
            except ValueError:
                failures += 1
        self.assertEqual((failures, self.told(clients)), (1, len(clients) - 1))
