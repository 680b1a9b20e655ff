"""What a worker does, on its way into the pool, to the disk, and to the clients it concerns."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from kollator.pool.workersfile import Entry
from kollator.registry import Registry
from kollator.signaling.connection import Claim
from kollator.state.rows import WHYS, AttachmentRow, FrontRow, Row, WorkerRow
from tests.fronts import FrontTestCase
from tests.wires import PEER, read_frames, text_frame


class RegistryTestCase(FrontTestCase):
    """With what the registry says noted."""

    def join(self, claim: Claim) -> list[bool]:
        """Begins a registration; the outcome comes into the list."""
        outcomes: list[bool] = []
        self.front.registry.worker_joined(claim, outcomes.append)
        return outcomes

    def state(self, worker: str) -> str | None:
        """How the pool sees a worker."""
        view = self.front.pool.worker(worker)
        return None if view is None else view.state

    def stored(self, worker: str) -> str | None:
        """How the disk has it."""
        for row in self.front.store.rows():
            if isinstance(row, AttachmentRow) and row.worker == worker:
                return row.state
        return None

    def lost(self) -> dict[str, int]:
        """What was counted of losses."""
        return {cause: count for cause, count in self.front.counters.workers_lost.items() if count}


class JoiningTests(RegistryTestCase):
    """Registrations."""

    def test_promise_after_the_disk(self) -> None:
        """A welcome is a promise, so the registration is on disk before it, and before anybody is assigned."""
        self.front.disk.held = True
        outcomes = self.join(self.front.claim("w1", "eu", 10))
        self.assertEqual((outcomes, self.state("w1")), ([], None))
        self.front.disk.turn()
        self.assertEqual((outcomes, self.state("w1"), self.stored("w1")), ([True], "up", "up"))
        self.assertIn(WorkerRow("w1", "eu", 10, "192.0.2.50"), self.front.store.rows())

    def test_disk_that_takes_nothing(self) -> None:
        """A registration that could not be stored is told so, and leaves nothing behind when the disk recovers."""
        connection = self.front.store._database.connection
        connection.execute("PRAGMA query_only=ON").fetchall()
        self.assertEqual(self.join(self.front.claim("w1")), [False])
        self.assertEqual((self.state("w1"), len(self.front.roster)), (None, 0))
        connection.execute("PRAGMA query_only=OFF").fetchall()
        self.front.advance(1.0)
        self.assertEqual((self.state("w1"), self.stored("w1")), ("down", "down"))

    def test_worker_that_the_store_refuses(self) -> None:
        """What can never be stored is refused once, and does not keep others away."""
        self.assertEqual(self.join(self.front.claim("w1", "a\nb")), [False])
        self.assertEqual(self.join(self.front.claim("w2")), [True])
        self.assertIsNone(self.front.writer.problem)

    def test_gone_before_it_was_welcomed(self) -> None:
        """A worker that left while its registration was being written is taken back after it."""
        self.front.disk.held = True
        claim = self.front.claim("w1")
        outcomes = self.join(claim)
        self.front.disk.turn()
        self.front.registry.worker_left(claim)
        self.front.disk.turn()
        self.assertEqual((outcomes, self.state("w1"), self.stored("w1")), ([True], "down", "down"))

    def test_replaced_by_itself(self) -> None:
        """A worker that comes back on a new connection is not lost, whatever becomes of the old one."""
        old, new = self.front.claim("w1", "eu"), self.front.claim("w1", "us")
        self.join(old)
        self.assertEqual(self.join(new), [True])
        self.front.registry.worker_left(old)
        self.front.advance(0.1)
        self.assertEqual((self.state("w1"), self.stored("w1"), self.lost()), ("up", "up", {}))
        view = self.front.pool.worker("w1")
        self.assertEqual(view and view.region, "us")

    def test_replacement_that_cannot_be_stored(self) -> None:
        """The old connection was given up for the new one: without it the worker is gone, and not watched."""
        self.join(self.front.claim("w1"))
        connection = self.front.store._database.connection
        connection.execute("PRAGMA query_only=ON").fetchall()
        self.assertEqual(self.join(self.front.claim("w1", "us")), [False])
        connection.execute("PRAGMA query_only=OFF").fetchall()
        self.front.advance(1.0)
        self.assertEqual((self.state("w1"), self.stored("w1"), self.lost()), ("down", "down", {"replaced": 1}))
        self.front.clock.advance(5.0)
        self.front.monitor.turn()
        self.assertEqual(self.lost(), {"replaced": 1})

    def test_operator_knows_better(self) -> None:
        """What WORKERS_FILE says of a worker counts before what it says of itself."""
        told: list[Any] = []

        def listed(worker: str, address: str) -> Entry | None:
            told.append((worker, address))
            return {"w1": Entry("eu", None), "w2": Entry(None, 7)}.get(worker)

        listing = Registry(
            self.front.pool, self.front.roster, self.front.writer,
            lost=lambda workers: None, joined=lambda worker: None, left=lambda worker, politely: None, listed=listed,
        )
        for name in ("w1", "w2", "w3"):
            listing.worker_joined(self.front.claim(name, "us", 50), lambda stored: None)
        views = {view.id: (view.region, view.capacity) for view in self.front.pool.workers()}
        self.assertEqual(views, {"w1": ("eu", 50), "w2": ("us", 7), "w3": ("us", 50)})
        self.assertEqual(told[0], ("w1", "192.0.2.50"))

    def test_mistake_in_an_answer(self) -> None:
        """A mistake of who is told of a registration is logged and ends nothing else."""

        def broken(stored: bool) -> None:
            raise ZeroDivisionError

        self.front.registry.worker_joined(self.front.claim("w1"), broken)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.join(self.front.claim("w2")), [True])


class LosingTests(RegistryTestCase):
    """Workers that are usable no more."""

    def told(self, wire: Any) -> list[Any]:
        """The messages that a client got, by their types and workers."""
        messages = [json.loads(payload) for opcode, payload in read_frames(wire.taken()) if opcode == 1]
        return [(message["type"], message.get("worker")) for message in messages]

    def test_counts_at_once(self) -> None:
        """What makes a worker worse does not wait for the disk."""
        claim = self.front.worker("w1")
        self.front.disk.held = True
        self.front.registry.worker_status("w1", 100, False)
        self.assertEqual((self.state("w1"), self.stored("w1")), ("full", "up"))
        self.front.registry.worker_unwell("w1", "ping", "a test")
        self.assertEqual((self.state("w1"), self.stored("w1")), ("down", "up"))
        self.front.registry.worker_well("w1", "ping")
        self.assertEqual((self.state("w1"), self.stored("w1")), ("full", "up"))
        self.front.registry.worker_left(claim)
        while len(self.front.disk):
            self.front.disk.turn()
        self.assertEqual((self.state("w1"), self.stored("w1")), ("down", "down"))

    def test_causes(self) -> None:
        """An operator tells workers that went from workers that fell silent."""
        claims = [self.front.worker(f"w{number}") for number in range(6)]
        self.front.registry.worker_left(claims[0])
        self.front.registry.worker_left(claims[0])
        self.front.registry.worker_unwell("w1", "ping", "a test")
        self.front.registry.worker_unwell("w1", "ping", "a test")
        self.front.registry.worker_left(claims[1])
        self.front.registry.worker_left(claims[2])
        self.front.clock.advance(0)
        self.front.registry.worker_unwell("w3", "hold-down", "a test")
        self.front.registry.worker_unwell("w4", "probe", "a test")
        self.front.registry.worker_unwell("w5", "webrtc", "a test")
        self.assertEqual(self.lost(), {"closed": 2, "ping": 2, "probe": 1, "webrtc": 1})

    def test_several_reasons(self) -> None:
        """A worker that answers pings would come back with its probe still failing, to the disk and to the pool."""
        self.front.worker("w1")
        for why in WHYS:
            self.front.registry.worker_unwell("w1", why, "a test")
        said: list[tuple[str | None, str]] = []
        for why in WHYS:
            view = self.front.pool.worker("w1")
            said.append((self.state("w1"), view.why if view is not None else "gone"))
            self.assertIn(AttachmentRow("w1", "front-1", 1, "down", why), self.front.store.rows())
            self.front.registry.worker_well("w1", why)
        self.assertEqual(said, [("down", why) for why in WHYS])
        self.assertEqual((self.state("w1"), self.stored("w1"), self.lost()), ("up", "up", {"ping": 1}))

    def test_one_line_in_the_log_for_each_reason(self) -> None:
        """A check that fails once a second for a day would fill the disk with what is known."""
        self.front.worker("w1")
        lines: list[str] = []

        def noted(event: LogEvent) -> None:
            text = formatEvent(event)
            if "well" in text:
                lines.append(text)

        globalLogPublisher.addObserver(noted)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, noted)  # type: ignore[arg-type]
        for worker in ("w1", "w1", "stranger"):
            self.front.registry.worker_unwell(worker, "probe", "no route")
            self.front.registry.worker_unwell(worker, "ping", "no answer")
        for worker in ("w1", "w1", "stranger"):
            self.front.registry.worker_well(worker, "ping")
            self.front.registry.worker_well(worker, "probe")
        self.assertEqual(
            lines,
            [
                "worker w1 is not well (probe): no route",
                "worker w1 is not well (ping): no answer",
                "worker w1 is well again",
            ],
        )

    def test_clients_are_told_once(self) -> None:
        """Workers that are lost together are told of together: each message to all clients costs the loop its time."""
        wire = self.front.client()
        calls: list[int] = []
        tell = self.front.switchboard.workers_lost

        def noted(workers: Collection[str]) -> int:
            calls.append(len(workers))
            return tell(workers)

        self.patch(self.front.switchboard, "workers_lost", noted)
        claims = [self.front.worker(f"w{number}") for number in range(50)]
        wire.send(text_frame(b'{"type":"assign"}'))
        ((_, assigned),) = self.told(wire)
        for claim in claims:
            self.front.registry.worker_left(claim)
        self.assertEqual(self.told(wire), [])
        self.front.clock.advance(0)
        self.assertEqual(calls, [50])
        self.assertEqual(self.told(wire), [("worker-lost", assigned["id"])])

    def test_back_already(self) -> None:
        """One that is back before anybody was told is no loss to its clients."""
        wire = self.front.client()
        claim = self.front.worker("w1")
        wire.send(text_frame(b'{"type":"assign"}'))
        wire.clear()
        self.front.registry.worker_left(claim)
        self.front.worker("w1")
        self.front.clock.advance(0)
        self.assertEqual(self.told(wire), [])
        self.assertEqual(self.lost(), {"closed": 1})

    def test_flapping_worker_never_comes_up(self) -> None:
        """One that falls out again and again comes back held down: it must not be up for a moment in between."""
        for _ in range(3):
            self.front.registry.worker_left(self.front.worker("w1"))
            self.front.clock.advance(0)
        before = self.lost()
        seen: set[str | None] = set()
        apply = self.front.pool.apply_all

        def noted(rows: Collection[Row]) -> Collection[str]:
            lost = apply(rows)
            seen.add(self.state("w1"))
            return lost

        self.patch(self.front.pool, "apply_all", noted)
        self.front.worker("w1")
        self.assertEqual((seen, self.stored("w1"), self.lost()), ({"down"}, "down", before))
        while self.state("w1") != "up" and self.front.clock.seconds() < 60.0:
            self.front.clock.advance(0.05)
            self.front.monitor.turn()
            while self.front.pings:
                worker, number = self.front.pings.pop()
                self.front.monitor.ponged(worker, b"%d" % number)
        self.assertEqual((self.state("w1"), self.stored("w1")), ("up", "up"))
        self.assertGreater(self.front.clock.seconds(), 1.0)

    def test_good_bye(self) -> None:
        """A worker that leaves in order has not fallen out, however often its operator restarts it."""
        for _ in range(5):
            self.front.registry.worker_left(self.front.worker("w1"), True)
        self.front.worker("w1")
        self.assertEqual((self.state("w1"), self.stored("w1")), ("up", "up"))

    def test_silent_worker(self) -> None:
        """The monitor's word reaches the pool, the disk and the clients, there and back."""
        wire = self.front.client(PEER)
        self.front.worker("w1")
        wire.send(text_frame(b'{"type":"assign"}'))
        wire.clear()
        for _ in range(40):
            self.front.clock.advance(0.05)
            self.front.monitor.turn()
        self.assertEqual((self.state("w1"), self.stored("w1"), self.lost()), ("down", "down", {"ping": 1}))
        self.assertEqual(self.told(wire), [("worker-lost", "w1")])
        seen: list[str] = []
        while self.state("w1") != "up" and self.front.clock.seconds() < 60.0:
            self.front.clock.advance(0.05)
            self.front.pings.clear()
            self.front.monitor.turn()
            for worker, number in self.front.pings:
                self.front.monitor.ponged(worker, b"%d" % number)
            seen += [row.why for row in self.front.store.rows() if isinstance(row, AttachmentRow)]
        self.assertEqual(list(dict.fromkeys(seen)), ["ping", "hold-down", ""])


class ClusterTests(RegistryTestCase):
    """What other fronts tell."""

    def test_merged(self) -> None:
        """Workers of other fronts come and go with the rows of those, which the store has already."""
        self.front.registry.merged([FrontRow("front-2", 1), WorkerRow("w9"), AttachmentRow("w9", "front-2", 1, "up")])
        self.assertEqual((self.state("w9"), self.stored("w9")), ("up", None))
        self.front.registry.merged([FrontRow("front-2", 1, retired=1)])
        self.assertEqual((self.state("w9"), self.lost()), ("down", {"other": 1}))

    def test_restated(self) -> None:
        """What another front's store had of this one's workers is put right, and left alone where it is right."""
        self.front.worker("w1")
        writes = self.front.store.db_version()
        self.front.registry.restate(AttachmentRow("w1", "front-1", 1, "up"))
        self.assertEqual(self.front.store.db_version(), writes)
        for merged in (AttachmentRow("w1", "front-1", 1, "down"), AttachmentRow("w1", "front-1", 0, "up")):
            self.front.store.write([merged])
            self.front.registry.restate(merged)
            self.assertEqual((self.state("w1"), self.stored("w1"), self.lost()), ("up", "up", {}))
        gone = AttachmentRow("w2", "front-1", 1, "up")
        self.front.store.write([gone])
        self.front.registry.restate(gone)
        self.assertEqual((self.state("w2"), self.stored("w2")), (None, "down"))

    def test_new_life(self) -> None:
        """A front that was declared dead lives on under a new number, and its workers with it, none of them lost."""
        self.front.worker("w1")
        self.front.registry.reincarnated(self.front.store.begin_incarnation("", ""))
        self.front.advance(0.1)
        self.assertEqual((self.state("w1"), self.stored("w1"), self.lost()), ("up", "up", {}))
        self.assertIn(AttachmentRow("w1", "front-1", 2, "up"), self.front.store.rows())
        self.front.worker("w2")
        self.assertEqual(self.state("w2"), "up")
