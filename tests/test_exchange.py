"""Signaling across fronts: ways, detours, refusals and clients that move, on a network of pure parts."""

from __future__ import annotations

from collections import deque
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster import exchange
from kollator.cluster.exchange import HOPS, Exchange
from kollator.cluster.wire import Arrived, Kept, Ping, ToClient, ToWorker, Undelivered, decode, encode

NAMES = ("a", "b", "c", "d")


class Connections:
    """What one front has connected, as the switchboard answers."""

    def __init__(self) -> None:
        self.workers: dict[str, str] = {}
        self.clients: dict[str, str] = {}
        self.kept: dict[str, list[bytes]] = {}
        self.here: list[tuple[str, int]] = []
        self.got: list[tuple[str, bytes]] = []
        self.told: list[tuple[str, str, str, str | None]] = []
        self.moved: list[tuple[str, int, str]] = []
        self.inherit: list[tuple[str, str, tuple[str, ...], tuple[bytes, ...]]] = []

    def deliver_to_worker(self, worker, payload):
        return self._deliver(worker, payload, self.workers.get(worker, "unknown"))

    def deliver_to_client(self, client, payload, now):
        if client in self.kept:
            self.kept[client].append(payload)
            return "sent"
        return self._deliver(client, payload, self.clients.get(client, "unknown"))

    def _deliver(self, target, payload, outcome):
        if outcome == "sent":
            self.got.append((target, payload))
        return outcome

    def undelivered(self, sender, target, outcome, ref):
        here = sender in self.clients or sender in self.workers
        if here:
            self.told.append((sender, target, outcome, ref))
        return here

    def moved_away(self, client, at_ms, front, now):
        self.moved.append((client, at_ms, front))
        payloads = self.kept.pop(client, None)
        return None if payloads is None else ("w0", ["w0", "w1"], payloads)

    def arrivals(self, since_ms):
        return [(client, at_ms) for client, at_ms in self.here if at_ms >= since_ms]

    def inherited(self, client, assigned, talked, payloads, now):
        self.inherit.append((client, assigned, tuple(talked), tuple(payloads)))


class Fronts:
    """Fronts whose exchanges are linked in a full mesh, but for the pairs in ``cut``."""

    def __init__(self, names=NAMES, cut=()) -> None:
        self.cut = {frozenset(pair) for pair in cut}
        self.busy: set[tuple[str, str]] = set()
        self.holders: dict[str, tuple[str, ...]] = {}
        self.frames = 0
        self.wire: deque[tuple[str, str, bytes]] = deque()
        self.local = {name: Connections() for name in names}
        self.exchange = {name: self._exchange(name) for name in names}

    def _exchange(self, name):
        return Exchange(
            name,
            self.local[name],
            send=lambda peer, frame: self._send(name, peer, frame),
            up=lambda: [peer for peer in self.local if peer != name and frozenset((name, peer)) not in self.cut],
            fronts_of=lambda worker: self.holders.get(worker, ()),
        )

    def _send(self, name, peer, frame):
        if frozenset((name, peer)) in self.cut or (name, peer) in self.busy:
            return False
        self.frames += 1
        self.wire.append((name, peer, encode(frame)))
        return True

    def settle(self):
        """Everything that is on its way arrives."""
        while self.wire:
            sender, receiver, payload = self.wire.popleft()
            assert self.exchange[receiver].received(sender, decode(payload), 0.0)
            if self.frames > 1000:
                raise AssertionError("a frame goes in circles")

    def worker(self, name, *fronts, outcome="sent"):
        """A worker that those fronts hold."""
        self.holders[name] = fronts
        for front in fronts:
            self.local[front].workers[name] = outcome

    def client(self, name, front, outcome="sent"):
        self.local[front].clients[name] = outcome

    def offer(self, client, front, worker):
        outcome = self.exchange[front].to_worker(worker, client, b"offer", "r1")
        self.settle()
        return outcome

    def answer(self, worker, front, client):
        outcome = self.exchange[front].to_client(client, worker, b"answer", "r2")
        self.settle()
        return outcome


class WayTests(SynchronousTestCase):
    """Messages find their way there and back."""

    def test_there_and_back(self):
        """A client could not talk to a worker of another front."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        self.assertEqual(fronts.offer("c1", "a", "w1"), "sent")
        self.assertEqual(fronts.local["b"].got, [("w1", b"offer")])
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")
        self.assertEqual(fronts.local["a"].got, [("c1", b"answer")])
        self.assertEqual(fronts.frames, 2)

    def test_detour_there_and_back(self):
        """A pair of fronts that cannot reach each other would split clients from workers."""
        fronts = Fronts(("a", "b", "c"), cut=[("a", "b")])
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        self.assertEqual(fronts.offer("c1", "a", "w1"), "sent")
        self.assertEqual(fronts.local["b"].got, [("w1", b"offer")])
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")
        self.assertEqual(fronts.local["a"].got, [("c1", b"answer")])

    def test_second_holder(self):
        """A worker that two fronts hold would be lost with the link to one of them."""
        fronts = Fronts(cut=[("a", "b")])
        fronts.client("c1", "a")
        fronts.worker("w1", "b", "c")
        fronts.offer("c1", "a", "w1")
        self.assertEqual(fronts.local["c"].got, [("w1", b"offer")])

    def test_holder_whose_link_is_busy(self):
        """A full link would refuse what another front could deliver."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "b", "c")
        fronts.busy.add(("a", "b"))
        self.assertEqual(fronts.offer("c1", "a", "w1"), "sent")
        fronts.busy.add(("a", "c"))
        self.assertEqual(fronts.offer("c1", "a", "w1"), "busy")

    def test_worker_that_has_just_moved(self):
        """The front that a worker has just left would refuse what it could pass on."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "c")
        fronts.holders["w1"] = ("b",)  # what a believes
        fronts.exchange["a"].to_worker("w1", "c1", b"offer", None)
        fronts.holders["w1"] = ("c",)
        fronts.settle()
        self.assertEqual(fronts.local["c"].got, [("w1", b"offer")])

    def test_other_frames_are_left_to_others(self):
        """Frames of the sync would vanish here."""
        self.assertFalse(Fronts().exchange["a"].received("b", Ping(1), 0.0))


class RefusalTests(SynchronousTestCase):
    """What cannot be delivered is refused at once, and the sender is told."""

    def test_nobody(self):
        """A sender would wait for a time-out."""
        fronts = Fronts()
        self.assertEqual(fronts.offer("c1", "a", "w1"), "unknown")
        self.assertEqual(fronts.answer("w1", "a", "c1"), "unknown")
        self.assertEqual(fronts.frames, 0)

    def test_outcomes_go_back(self):
        """A client would not learn why its offer did not arrive."""
        for outcome in ("busy", "unknown", "forbidden"):
            fronts = Fronts()
            fronts.client("c1", "a")
            fronts.worker("w1", "b", outcome=outcome)
            self.assertEqual(fronts.offer("c1", "a", "w1"), "sent")
            self.assertEqual(fronts.local["a"].told, [("c1", "w1", outcome, "r1")])

    def test_outcomes_go_back_over_a_detour(self):
        """A refusal would end at the front in between."""
        fronts = Fronts(("a", "b", "c"), cut=[("a", "b")])
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        fronts.offer("c1", "a", "w1")
        fronts.local["b"].workers["w1"] = "busy"
        fronts.offer("c1", "a", "w1")
        self.assertEqual(fronts.local["a"].told, [("c1", "w1", "busy", "r1")])

    def test_refused_answer_over_a_detour(self):
        """A worker would go on talking to a client that is gone."""
        fronts = Fronts(("a", "b", "c"), cut=[("a", "b")])
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        fronts.offer("c1", "a", "w1")
        del fronts.local["a"].clients["c1"]
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")
        self.assertEqual(fronts.local["b"].told, [("w1", "c1", "unknown", "r2")])
        self.assertEqual(fronts.answer("w1", "b", "c1"), "unknown", "and from then on at once")

    def test_sender_that_is_here_is_told_here(self):
        """A stale way would carry a client's refusal to the front that it has left."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "b", outcome="busy")
        fronts.exchange["a"].received("d", ToWorker("w9", "c1", b"late", None), 0.0)  # from before it came here
        fronts.wire.clear()
        fronts.offer("c1", "a", "w1")
        self.assertEqual(fronts.local["a"].told, [("c1", "w1", "busy", "r1")])

    def test_link_down(self):
        """Messages would be sent into a link that is gone, or the way be lost with every break of the link."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        fronts.offer("c1", "a", "w1")
        fronts.exchange["b"].link_down("a", 20_000)
        fronts.cut.add(frozenset("ab"))
        fronts.answer("w1", "b", "c1")  # by way of a third, which does not know the client either
        self.assertEqual([told[:3] for told in fronts.local["b"].told], [("w1", "c1", "unknown")])
        fronts.cut.clear()
        fronts.exchange["b"].link_up("a")
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")

    def test_detour_to_a_client(self):
        """A worker that speaks first while a link is cut would not reach a client that a third front can reach."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        fronts.worker("w3", "c")
        fronts.offer("c1", "a", "w1")
        fronts.offer("c1", "a", "w3")
        fronts.cut.add(frozenset("ab"))
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")
        self.assertEqual([target for target, _ in fronts.local["a"].got], ["c1"])

    def test_arrivals_while_cut_off(self):
        """A client that changed fronts while there was no link would have two connections for good."""
        fronts = Fronts()
        fronts.exchange["b"].link_down("a", 20_000)
        fronts.local["b"].here = [("old", 9_999), ("new", 10_000)]
        fronts.exchange["b"].link_up("a")
        self.assertEqual([decode(payload) for _, _, payload in fronts.wire], [Arrived("client", "new", 10_000)])


class CircleTests(SynchronousTestCase):
    """Nothing circles, whatever the fronts believe."""

    def test_hops(self):
        """Two fronts that each believe the other holds a worker would pass a message on for ever."""
        fronts = Fronts()
        fronts.holders["w1"] = ("a", "b", "c", "d")
        self.assertEqual(fronts.exchange["a"].to_worker("w1", "c1", b"offer", None), "sent")
        fronts.settle()
        self.assertLessEqual(fronts.frames, 2 * HOPS)

    @given(
        st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=6),
        st.lists(st.sampled_from(NAMES), max_size=4),
        st.lists(
            st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from("tcuam"), st.integers(0, 8)),
            max_size=12,
        ),
    )
    @settings(max_examples=100, deadline=None)
    def test_any_frames(self, cut, holders, frames):
        """Frames of any kind, with ways learned in any order, must come to an end."""
        fronts = Fronts(cut=[pair for pair in cut if pair[0] != pair[1]])
        fronts.holders["w1"] = tuple(holders)
        for receiver, sender, kind, hops in frames:
            frame = {
                "t": ToWorker("w1", "c1", b"x", None, hops),
                "c": ToClient("c1", "w1", b"x", None, hops),
                "u": Undelivered("worker", "w1", "c1", "unknown"),
                "a": Undelivered("client", "w1", "c1", "unknown"),
                "m": Arrived("client", "c1", hops),
            }[kind]
            if receiver != sender:
                fronts.exchange[receiver].received(sender, frame, 0.0)
        fronts.settle()

    def test_bounded(self):
        """Clients that come and go would fill the memory."""
        fronts = Fronts()
        with mock.patch.object(exchange, "ROUTES", 10):
            for number in range(50):
                fronts.exchange["a"].received("b", ToWorker("w1", f"c{number}", b"x", None), 0.0)
                fronts.exchange["a"].received("c", Arrived("client", f"d{number}", 0), 0.0)
        self.assertEqual(len(fronts.exchange["a"]), 10)


class MoveTests(SynchronousTestCase):
    """A client comes back on another front."""

    def test_the_way_follows(self):
        """Answers would go to the front that a client has left."""
        fronts = Fronts()
        fronts.client("c1", "a")
        fronts.worker("w1", "b")
        fronts.offer("c1", "a", "w1")
        del fronts.local["a"].clients["c1"]
        fronts.client("c1", "d")
        fronts.exchange["d"].arrived("c1", 5)
        fronts.settle()
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")
        self.assertEqual(fronts.local["d"].got, [("c1", b"answer")])
        self.assertEqual(fronts.local["a"].moved, [("c1", 5, "d")])

    def test_kept_messages_follow(self):
        """What was kept for a client would wait where it does not come back to."""
        fronts = Fronts()
        fronts.worker("w1", "b")
        fronts.local["a"].kept["c1"] = []
        fronts.exchange["b"].received("a", ToWorker("w1", "c1", b"offer", None), 0.0)
        self.assertEqual(fronts.answer("w1", "b", "c1"), "sent")
        fronts.client("c1", "d")
        fronts.exchange["d"].arrived("c1", 5)
        fronts.settle()
        self.assertEqual(fronts.local["d"].inherit, [("c1", "w0", ("w0", "w1"), (b"answer",))])

    def test_a_worker_may_be_everywhere(self):
        """A worker's second connection would close its first one."""
        fronts = Fronts()
        fronts.exchange["a"].received("b", Arrived("worker", "w1", 1), 0.0)
        self.assertEqual((fronts.local["a"].moved, len(fronts.exchange["a"])), ([], 0))

    def test_kept_is_the_locals_affair(self):
        """Kept messages would be dropped on the way."""
        fronts = Fronts()
        fronts.exchange["a"].received("b", Kept("c1", "", [], [b"x"]), 0.0)
        self.assertEqual(fronts.local["a"].inherit, [("c1", "", (), (b"x",))])
