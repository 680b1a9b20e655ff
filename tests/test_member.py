"""Members with real stores, elections and pools, on the simulator's network in fair weather: one story each."""

from __future__ import annotations

from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.member import PULL_WAIT_S, STRANGER_S
from kollator.cluster.wire import Changes, Heartbeat, HeartbeatReply, Ping, Pull, ToWorker
from kollator.state.changes import START
from kollator.state.rows import AttachmentRow, FrontRow, WorkerRow
from kollator.state.store import Store
from tests.sim.cluster import Cluster
from tests.sim.disk import SLOW_S
from tests.sim.fronts import RETIRE_S


class MemberTestCase(SynchronousTestCase):
    """Starts clusters and watches what they send."""

    def cluster(self, size=3, *, settled=True):
        cluster = Cluster(1, size)
        self.addCleanup(cluster.close)
        self.sent: list[tuple[str, str, object]] = []
        check = cluster.network.sent

        def sent(one, other, frame):
            self.sent.append((one, other, frame))
            check(one, other, frame)

        cluster.network.sent = sent
        if settled:
            cluster.heal()
            cluster.run(1.0)
            self.sent.clear()
        return cluster

    def leader(self, cluster):
        (leader,) = [front for front in cluster.fronts.values() if front.member.standing.role == "leader"]
        return leader

    def followers(self, cluster):
        return [front for front in cluster.fronts.values() if front.member.standing.role != "leader"]

    def state(self, front, worker):
        """What a front's pool says of a worker."""
        view = front.pool.worker(worker)
        return None if view is None else (view.state, view.fronts)

    def changes_sent(self):
        return sum(isinstance(frame, Changes) for _, _, frame in self.sent)


class SyncTests(MemberTestCase):
    """What one front writes, all others have."""

    def test_visible_everywhere(self):
        """A worker could be reached through its own front alone."""
        cluster = self.cluster()
        for front in cluster.fronts.values():
            front.join(WorkerRow(f"w-{front.name}"))
        cluster.run(0.05)
        for front in cluster.fronts.values():
            for holder in cluster.names:
                self.assertEqual(self.state(front, f"w-{holder}"), ("up", (holder,)))

    def test_changes_and_leaving(self):
        """A worker that is full, or gone, would be assigned by the other fronts."""
        cluster = self.cluster()
        one, other, _ = cluster.fronts.values()
        one.join(WorkerRow("w", capacity=10))
        cluster.run(0.05)
        one.registry.worker_status("w", 10, False)
        cluster.run(0.05)
        self.assertEqual(self.state(other, "w"), ("full", (one.name,)))
        one.leave("w")
        cluster.run(0.05)
        self.assertEqual(self.state(other, "w"), ("down", ()))

    def test_pair_without_a_link(self):
        """Two fronts that cannot reach each other would not see each other's workers."""
        cluster = self.cluster()
        leader = self.leader(cluster)
        one, other = self.followers(cluster)
        cluster.network.cut([one.name], [other.name])
        cluster.network.reset(one.name, other.name)
        cluster.run(0.1)
        one.join(WorkerRow("w"))
        cluster.run(0.25)
        for front in (leader, other):
            self.assertEqual(self.state(front, "w"), ("up", (one.name,)))

    def test_frames_of_a_write(self):
        """In a full mesh each change would be passed on by everyone to everyone, n squared frames for each."""
        cluster = self.cluster(7)
        front = cluster.fronts["f1"]
        for number in range(10):
            front.join(WorkerRow(f"w{number}"))
            cluster.run(0.019)
        cluster.run(0.5)
        self.assertLessEqual(self.changes_sent(), 10 * 6 + 6 * 6 + 6)

    def test_one_reading_for_all(self):
        """Each write would be read from the database once for each peer."""
        cluster = self.cluster(7)
        front = cluster.fronts["f1"]
        readings = []
        changes_since = front.store.changes_since

        def read(after):
            readings.append(after)
            return changes_since(after)

        front.store.changes_since = read
        front.join(WorkerRow("w"))
        cluster.run(0.05)
        self.assertEqual(len(readings), 1)

    def test_heartbeats_carry_what_is_missing(self):
        """A follower that has not acknowledged would hear of it only when it is sent again."""
        cluster = self.cluster(2)
        leader, (follower,) = self.leader(cluster), self.followers(cluster)
        follower.disk.delay_s = (0.3, 0.3)
        leader.join(WorkerRow("w"))
        cluster.run(0.25)
        carried = [frame.changes for _, _, frame in self.sent if isinstance(frame, Heartbeat) and frame.changes]
        self.assertTrue(carried)
        self.assertEqual(carried[0].changes[0].table, "workers")

    def test_slow_disk(self):
        """A slow disk would make its front lose changes, or stand still for good."""
        cluster = self.cluster()
        slow = cluster.fronts["f2"]
        slow.disk.delay_s = SLOW_S
        for number in range(30):
            cluster.fronts["f1"].join(WorkerRow(f"w{number}"))
            cluster.run(0.05)
        cluster.run(4.0)
        self.assertEqual(self.state(slow, "w29"), ("up", ("f1",)))
        cluster.heal()

    def test_failing_disk(self):
        """A link that came up while the disk failed would never be synchronised."""
        cluster = self.cluster()
        front = cluster.fronts["f2"]
        front.disk.failing = 1.0
        cluster.network.cut_all("f2")
        cluster.fronts["f1"].join(WorkerRow("w"))
        cluster.run(2.0)
        self.assertIsNone(self.state(front, "w"))
        front.disk.failing = 0.0
        cluster.run(1.5)
        self.assertEqual(self.state(front, "w"), ("up", ("f1",)))

    def test_large_log(self):
        """More than a batch would not arrive, or not in order."""
        cluster = self.cluster(2)
        cluster.crash("f2", silently=False)
        front = cluster.fronts["f1"]
        rows = [WorkerRow(f"w{number}", "r" * 60, 100, "a" * 250) for number in range(3000)]
        front.store.write(rows)
        front.pool.apply_all(rows)
        cluster.start("f2", None)
        cluster.run(4.0)
        self.assertEqual(cluster.fronts["f2"].store.rows(), front.store.rows())
        batches = [frame for one, _, frame in self.sent if one == "f1" and isinstance(frame, Changes)]
        self.assertGreater(len(batches), 4)


class FileTests(MemberTestCase):
    """What happens to a database file."""

    def test_wiped_restored_copied(self):
        """A front whose file was lost, put back or copied would hide rows from the others, or others' from itself."""
        for what in ("wiped", "restored", "copied"):
            cluster = self.cluster()
            front = cluster.fronts["f2"]
            front.join(WorkerRow("early"))
            cluster.run(0.1)
            image = {"wiped": None, "restored": front.store.image(), "copied": cluster.fronts["f3"].store.image()}[what]
            front.join(WorkerRow("late"))
            front.leave("early")
            cluster.run(0.1)
            cluster.crash("f2", silently=False)
            cluster.forget_vote()
            cluster.start("f2", image)
            front = cluster.fronts["f2"]
            front.join(WorkerRow("early"))
            front.join(WorkerRow("new"))
            cluster.heal()
            for other in cluster.fronts.values():
                self.assertEqual(self.state(other, "new"), ("up", ("f2",)), what)
                self.assertEqual(self.state(other, "early"), ("up", ("f2",)), what)
                self.assertEqual(self.state(other, "late"), ("down", ()), what)
            cluster.rest()

    def test_new_site_id(self):
        """A database that was put back would write other values under an id and counters that were used already."""
        cluster = self.cluster()
        image = cluster.fronts["f2"].store.image()
        cluster.fronts["f2"].join(WorkerRow("late"))
        cluster.run(0.1)
        site = cluster.fronts["f2"].store.site_id()
        cluster.crash("f2", silently=False)
        cluster.forget_vote()
        cluster.start("f2", image)
        self.assertEqual(cluster.fronts["f2"].store.site_id(), site)
        cluster.heal()
        self.assertNotEqual(cluster.fronts["f2"].store.site_id(), site)


class DutyTests(MemberTestCase):
    """What the leader does, and what nobody but the leader does."""

    def test_pulls_before_it_acts(self):
        """A new leader would judge by rows that are behind those of its followers."""
        cluster = self.cluster(settled=False)
        while not any(front.member.standing.role == "leader" for front in cluster.fronts.values()):
            cluster.run(0.001)
        leader = self.leader(cluster)
        self.assertFalse(leader.member.synchronised)
        pulls = {other for one, other, frame in self.sent[-12:] if one == leader.name and isinstance(frame, Pull)}
        self.assertEqual(pulls, set(cluster.names) - {leader.name})
        cluster.run(0.5)
        self.assertTrue(leader.member.synchronised)

    def test_does_not_wait_for_ever(self):
        """A follower that hangs would keep the leader from its duties."""
        cluster = self.cluster(5)
        self.leader(cluster).paused_until = cluster.world.now + 20
        hanging = self.followers(cluster)[0]
        hanging.disk.delay_s = (30.0, 30.0)
        cluster.run(0.2)
        hanging.disk.in_store(int)
        cluster.run(PULL_WAIT_S + 2.5)
        leaders = [front for front in cluster.fronts.values() if front.member.synchronised and not front.paused_until]
        self.assertEqual(len(leaders), 1)

    def test_retires_in_one_write(self):
        """The workers of a dead front would stay in the rings, or leave them one by one."""
        cluster = self.cluster(5)
        dead = self.followers(cluster)[:2]
        for number, front in enumerate(dead):
            for worker in range(3):
                front.join(WorkerRow(f"w{number}-{worker}"))
        cluster.run(0.3)
        leader = self.leader(cluster)
        head = leader.store.db_version()
        for front in dead:
            cluster.crash(front.name, silently=True)
        cluster.run(RETIRE_S - 0.2)
        self.assertEqual(self.state(leader, "w0-0")[0], "up")
        cluster.run(1.5)
        self.assertLessEqual(leader.store.db_version(), head + 2, "one for each, or one for both")
        for front in cluster.fronts.values():
            for number in range(2):
                self.assertEqual(self.state(front, f"w{number}-2"), ("down", ()))
        states = {peer.node: peer.state for peer in leader.member.peers()}
        self.assertEqual([states[front.name] for front in dead], ["retired", "retired"])

    def test_front_that_is_cut_off_comes_back(self):
        """A front that was retired would stay dead, or lose its own workers' clients meanwhile."""
        cluster = self.cluster()
        front = self.followers(cluster)[0]
        front.join(WorkerRow("w"))
        front.join(WorkerRow("full", capacity=5))
        front.registry.worker_status("full", 5, False)
        cluster.run(0.2)
        lost: list[str] = []
        apply_all = front.pool.apply_all

        def apply(rows):
            gone = apply_all(rows)
            lost.extend(gone)
            return gone

        front.pool.apply_all = apply
        cluster.network.cut([front.name], cluster.names)
        cluster.run(RETIRE_S + 2)
        leader = self.leader(cluster)
        self.assertEqual(self.state(leader, "w"), ("down", ()))
        self.assertEqual(self.state(front, "w"), ("up", (front.name,)), "it serves from what it knows")
        cluster.heal()
        self.assertEqual(front.member.own.incarnation, 2)
        for other in cluster.fronts.values():
            self.assertEqual(self.state(other, "w"), ("up", (front.name,)))
            self.assertEqual(self.state(other, "full"), ("full", (front.name,)))
        self.assertEqual(lost, [], "its own clients noticed nothing")
        cluster.rest()

    def test_late_retirement(self):
        """A leader of the past whose write comes late would take a live front out for good."""
        cluster = self.cluster()
        one, other, late = cluster.fronts.values()
        other.join(WorkerRow("w"))
        cluster.run(0.1)
        late.store.write([replace(other.member.own, retired=1)])
        late.member.committed()
        cluster.heal()
        self.assertEqual(other.member.own.incarnation, 2)
        self.assertEqual(self.state(one, "w"), ("up", ("f2",)))
        cluster.rest()

    def test_term_is_over(self):
        """A retirement that waited for a slow disk would be written by who no longer leads."""
        cluster = self.cluster()
        leader, (other, _) = self.leader(cluster), self.followers(cluster)
        dead = [replace(other.member.own, retired=1)]
        leader.store.save_vote(leader.member.standing.term + 1, None)
        self.assertEqual(leader.member._write_retirement(leader.member.standing.term, dead), [])
        self.assertIn(other.member.own, leader.store.rows())

    def test_row_changed_meanwhile(self):
        """A retirement of a front that has just come back would be written over its new row, or tried for ever."""
        cluster = self.cluster()
        leader, (other, _) = self.leader(cluster), self.followers(cluster)
        dead = [replace(other.member.own, incarnation=9, retired=9)]
        with self.assertRaises(ValueError):
            leader.member._write_retirement(leader.member.standing.term, dead)

    def stranger(self, cluster, incarnations):
        """A front that PEERS does not name, heard of through somebody's rows."""
        store = Store.open(":memory:", node_id="stranger")
        self.addCleanup(store.close)
        for _ in range(incarnations):
            store.begin_incarnation("", "")
        front = cluster.fronts["f1"]
        batch = store.changes_since(START)
        front.member._took(front.store.merge(batch.changes, sender="f1", sites=batch.sites).rows)
        front.member.committed()
        cluster.run(0.3)

    def test_stranger(self):
        """The workers of a front that was taken out of the cluster would stay in the rings."""
        cluster = self.cluster()
        self.stranger(cluster, 1)
        cluster.run(RETIRE_S + 1)
        for front in cluster.fronts.values():
            self.assertEqual(front.pool.front("stranger"), FrontRow("stranger", 1, 1))

    def test_stranger_that_lives(self):
        """A front that is not in everyone's PEERS yet would be retired and come back in an endless row."""
        cluster = self.cluster()
        cluster.run(RETIRE_S)
        self.stranger(cluster, 1)
        cluster.run(1)
        self.stranger(cluster, 2)
        cluster.run(RETIRE_S + 1)
        self.assertTrue(self.leader(cluster).pool.is_alive("stranger"))
        cluster.run(STRANGER_S)
        self.assertFalse(self.leader(cluster).pool.is_alive("stranger"))


class OwnRowTests(MemberTestCase):
    """What a front says of itself is never taken from others."""

    def merge(self, cluster, rows):
        """A row of f1's from a life that it has forgotten comes from a peer."""
        store = Store.open(":memory:", node_id="f1")
        self.addCleanup(store.close)
        for number in range(10):
            store.write([replace(row, state="up" if number % 2 else "down") for row in rows])
        store.write(rows)
        front = cluster.fronts["f1"]
        batch = store.changes_since(START)
        result = front.store.merge(batch.changes, sender="f2", sites=batch.sites)
        front.member._took(result.rows)
        return front

    def test_held(self):
        """A worker that is connected would be lost by what a former life said of it."""
        cluster = self.cluster()
        cluster.fronts["f1"].join(WorkerRow("w"))
        cluster.run(0.1)
        front = self.merge(cluster, [AttachmentRow("w", "f1", 1, "down")])
        self.assertEqual(self.state(front, "w"), ("up", ("f1",)))
        cluster.heal()
        self.assertEqual(self.state(cluster.fronts["f2"], "w"), ("up", ("f1",)))

    def test_not_held(self):
        """A worker that is not there would be assigned, because a former life held it."""
        cluster = self.cluster()
        cluster.fronts["f1"].store.write([WorkerRow("w")])
        self.merge(cluster, [AttachmentRow("w", "f1", 1, "up")])
        cluster.heal()
        self.assertEqual(self.state(cluster.fronts["f2"], "w"), ("down", ()))


class FrameTests(MemberTestCase):
    """Frames that are not for it, and what it tells."""

    def test_whose_frame(self):
        """Signaling would end in the sync, or the sync in signaling."""
        cluster = self.cluster()
        member = cluster.fronts["f1"].member
        self.assertFalse(member.received("f2", ToWorker("w", "c", b"x")))
        for frame in (Ping(1), HeartbeatReply(0, 0), Pull(START)):
            self.assertTrue(member.received("f2", frame))
        self.assertTrue(member.received("nobody", Pull(START)), "a link that is gone")

    def test_peers(self):
        """/health would not show who is behind or gone."""
        cluster = self.cluster()
        leader, (one, other) = self.leader(cluster), self.followers(cluster)
        self.assertEqual([peer.state for peer in leader.member.peers()], ["follower", "follower"])
        self.assertEqual({peer.node: peer.state for peer in one.member.peers()}[leader.name], "leader")
        self.assertTrue(all(peer.sync_lag_ms < 100 for peer in one.member.peers()))
        other.paused_until = cluster.world.now + 2
        leader.join(WorkerRow("w"))
        cluster.run(1.0)
        lag_ms = {peer.node: peer.sync_lag_ms for peer in leader.member.peers()}[other.name]
        self.assertGreater(lag_ms, 900)
        cluster.crash(other.name, silently=False)
        cluster.run(0.1)
        self.assertIn((other.name, "unreachable", None), leader.member.peers())

    def test_stopped(self):
        """A front that stops would go on sending after its store is closed."""
        cluster = self.cluster()
        member = cluster.fronts["f1"].member
        member.stop()
        self.sent.clear()
        member.tick()
        member.committed()
        member.link_up("f2")
        self.assertTrue(member.received("f2", Heartbeat(99, 1)))
        self.assertEqual([frame for one, _, frame in self.sent if one == "f1"], [])

    def test_link_that_is_made_anew(self):
        """Answers to what an older link asked would go over the new one."""
        cluster = self.cluster(2)
        front = cluster.fronts["f1"]
        front.disk.delay_s = (0.1, 0.1)
        front.member.link_down("f2")
        front.member.link_up("f2")
        front.member.link_down("f2")
        front.member.link_up("f2")
        cluster.run(1.0)
        pulls = [frame for one, _, frame in self.sent if one == "f1" and isinstance(frame, Pull)]
        self.assertEqual(len(pulls), 1)
