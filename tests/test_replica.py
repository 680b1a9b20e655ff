"""What a peer lacks: tables for each rule, and any order of reads, losses and acknowledgements ends complete."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.replica import GAP_S, MERGING_MAX, RESEND_S, WINDOW, Incoming, Outgoing
from kollator.cluster.wire import Pull, Summary
from kollator.state.changes import START, Batch, Change, Cursor

E1, E2 = b"1" * 16, b"2" * 16
OWN, PEER, THIRD = b"o" * 16, b"p" * 16, b"t" * 16


def at(version, epoch=E1):
    """A place in the log of the tests."""
    return Cursor(epoch, version)


def change(version, site=OWN):
    """The change that makes a db_version."""
    return Change("workers", b"\x01\x0b\x04%04d" % version, "region", "eu", 1, version, site, 1, 0)


class Log:
    """A sender's log: one change for each db_version, a batch of ``batch`` of them at most."""

    def __init__(self, batch=2, sites=()):
        self.batch = batch
        self.sites = list(sites)

    @property
    def head(self):
        return at(len(self.sites))

    def write(self, site=OWN):
        self.sites.append(site)

    def since(self, after):
        rewound = after != START and after.epoch != E1
        first = 0 if rewound else after.db_version
        last = min(len(self.sites), first + self.batch)
        changes = [change(number + 1, self.sites[number]) for number in range(first, last)]
        more = last < len(self.sites)
        return Batch(changes, after, at(last), more, sorted({one.site_id for one in changes}), rewound)


class Receiver:
    """A receiver as ``Sync`` and the store are one: merges at once, keeps what it has."""

    def __init__(self, applied=START):
        self.incoming = Incoming(applied, 0.0)
        self.has: set[int] = set()

    def take(self, frame, now):
        """Returns the acknowledgement, or None, and a pull, or None."""
        batch = frame.batch()
        fate = self.incoming.arrived(batch, now)
        if fate == "known":
            return self.incoming.applied, None
        if fate == "too-many":
            return None, None
        self.has.update(one.db_version for one in batch.changes)
        applied = batch.cursor if batch.rewound or batch.since == self.incoming.applied else self.incoming.applied
        gap = self.incoming.merged(batch, applied, now)
        return applied, self.incoming.pull(now) if gap else None


def pump(out, log, receiver, now):
    """Everything is sent, merged and acknowledged without a loss; returns the frames."""
    frames = []
    while (after := out.next_read(now)) is not None:
        frame = out.read(log.since(after), now)
        frames.append(frame)
        ack, _ = receiver.take(frame, now)
        out.acknowledged(ack, now)
    return frames


def pulled(log, after=START, now=0.0):
    """What a peer has of the log that has just asked for it."""
    out = Outgoing()
    out.pulled(Pull(after), log.head, now)
    return out


class OutgoingTests(SynchronousTestCase):
    """What is read and sent next."""

    def test_nothing_before_a_pull(self):
        """A peer would be sent what it has, or a log that it does not go on from."""
        log = Log(sites=[OWN] * 3)
        out = Outgoing()
        out.owe(log.head, 0.0)
        self.assertIsNone(out.next_read(0.0))
        self.assertIsNone(out.told)
        self.assertIsNone(out.lag_s(0.0))
        out.acknowledged(log.head, 0.0)
        self.assertIsNone(out.acked)

    def test_whole_log(self):
        """A new peer would lack the beginning."""
        log, receiver = Log(sites=[OWN] * 7), Receiver()
        out = pulled(log)
        frames = pump(out, log, receiver, 0.0)
        self.assertEqual([frame.more for frame in frames], [True, True, True, False])
        self.assertEqual((out.acked, receiver.has), (log.head, set(range(1, 8))))
        self.assertTrue(receiver.incoming.complete)
        self.assertIsNone(out.next_read(0.0))

    def test_an_answer_even_when_nothing_is_missing(self):
        """A new leader would wait for rows that do not exist."""
        log = Log(sites=[OWN] * 2)
        receiver = Receiver(log.head)
        (frame,) = pump(pulled(log, log.head), log, receiver, 0.0)
        self.assertEqual((frame.changes, frame.cursor), ([], log.head))
        self.assertTrue(receiver.incoming.complete)

    def test_older_opening(self):
        """After a restart nobody would get the cursor of the new opening."""
        log = Log(sites=[OWN] * 2)
        out = pulled(log, Cursor(E2, 2))
        self.assertEqual(out.next_read(0.0), Cursor(E2, 2))
        frame = out.read(log.since(Cursor(E2, 2)), 0.0)
        self.assertTrue(frame.rewound)
        self.assertEqual(len(frame.changes), 2)

    def test_only_what_is_owed(self):
        """Merged changes would go on at once, n squared frames for each."""
        log, receiver = Log(sites=[OWN]), Receiver()
        out = pulled(log)
        pump(out, log, receiver, 0.0)
        log.write(THIRD)
        self.assertIsNone(out.next_read(0.0))
        self.assertEqual(out.told, at(1))
        out.owe(log.head, 0.0)
        self.assertEqual(len(pump(out, log, receiver, 0.0)), 1)

    def test_own_writes(self):
        """A database that was put back would never get its lost writes, when they come by way of a third front."""
        log, receiver = Log(sites=[PEER, OWN]), Receiver()
        out = pulled(log)
        log.write(PEER)
        out.owe(log.head, 0.0)
        sent = [one.site_id for frame in pump(out, log, receiver, 0.0) for one in frame.changes]
        self.assertEqual(sent, [PEER, OWN, PEER])

    def test_window(self):
        """A peer that does not acknowledge would fill the memory."""
        log = Log(batch=1, sites=[OWN] * 20)
        out = pulled(log)
        sent = 0
        while (after := out.next_read(0.0)) is not None:
            out.read(log.since(after), 0.0)
            sent += 1
        self.assertEqual((sent, out.in_flight), (WINDOW, WINDOW))
        out.acknowledged(at(2), 0.0)
        self.assertEqual(out.in_flight, WINDOW - 2)
        self.assertEqual(out.next_read(0.0), at(WINDOW))
        self.assertIsNone(out.next_read(0.0), "one reading at a time")

    def test_sent_again(self):
        """A lost frame would be missing until the link breaks."""
        log = Log(sites=[OWN] * 2)
        out = pulled(log)
        out.read(log.since(out.next_read(0.0)), 0.0)
        self.assertIsNone(out.next_read(RESEND_S))
        self.assertEqual(out.next_read(RESEND_S + 0.01), START)

    def test_slow_peer_is_not_flooded(self):
        """A peer whose disk takes three seconds would get everything three times."""
        log = Log(batch=1, sites=[OWN] * 2)
        out = pulled(log)
        out.read(log.since(out.next_read(0.0)), 0.0)
        out.acknowledged(at(1), 3.0)
        out.read(log.since(out.next_read(3.0)), 3.0)
        self.assertIsNone(out.next_read(3.0 + 11))
        self.assertEqual(out.next_read(3.0 + 13), at(1))

    def test_pull_voids(self):
        """A batch that was read before a pull would be taken for its answer."""
        log = Log(sites=[OWN, PEER])
        out = pulled(log)
        after = out.next_read(0.0)
        out.pulled(Pull(at(1)), log.head, 0.0)
        self.assertIsNone(out.next_read(0.0), "one reading at a time")
        self.assertIsNone(out.read(log.since(after), 0.0))
        self.assertEqual(out.next_read(0.0), at(1))

    def test_late_and_foreign_acknowledgements(self):
        """A late frame would move a peer back, a bad one past what exists."""
        log, receiver = Log(sites=[OWN] * 4), Receiver()
        out = pulled(log)
        pump(out, log, receiver, 0.0)
        for cursor in (START, at(1), at(5), Cursor(E2, 4)):
            out.acknowledged(cursor, 1.0)
            self.assertEqual((out.acked, out.next_read(1.0)), (at(4), None))

    def test_acknowledgement_after_sending_again(self):
        """What came late but did come would be sent once more."""
        log = Log(sites=[OWN] * 4)
        out = pulled(log)
        out.read(log.since(out.next_read(0.0)), 0.0)
        self.assertEqual(out.next_read(2.0), START)
        out.acknowledged(at(2), 2.0)
        self.assertIsNone(out.read(log.since(START), 2.0), "void: it is further on")
        self.assertEqual(out.next_read(2.0), at(2))

    def test_asked_twice(self):
        """A slow disk would begin its answer anew each time that it is asked, and never finish it."""
        log = Log(sites=[OWN] * 3)
        out = pulled(log)
        after = out.next_read(0.0)
        log.write()
        out.pulled(Pull(START), log.head, 0.5)
        frame = out.read(log.since(after), 1.0)
        self.assertEqual(len(frame.changes), 2)
        self.assertEqual(out.told, log.head)

    def test_told(self):
        """A peer would ask for what is about to be sent; or take an answer for complete that has only begun."""
        log, receiver = Log(sites=[OWN] * 3), Receiver()
        out = pulled(log)
        self.assertEqual(out.told, at(3))
        out.read(log.since(out.next_read(0.0)), 0.0)
        self.assertEqual(out.told, at(3))
        pump(out, log, receiver, 0.0)
        log.write()
        out.owe(log.head, 0.0)
        self.assertEqual(out.told, at(3))
        out.read(log.since(out.next_read(0.0)), 0.0)
        self.assertEqual(out.told, at(4))

    def test_failed_reading(self):
        """One error of the disk would end the sync."""
        log = Log(sites=[OWN])
        out = pulled(log)
        out.next_read(0.0)
        out.read_failed()
        self.assertEqual(out.next_read(0.0), START)

    def test_lag(self):
        """Nobody would see that a peer falls behind."""
        log, receiver = Log(sites=[OWN]), Receiver()
        out = pulled(log, now=5.0)
        self.assertEqual(out.lag_s(6.0), 1.0)
        frame = out.read(log.since(out.next_read(6.0)), 6.0)
        ack, _ = receiver.take(frame, 6.2)
        out.acknowledged(ack, 6.25)
        self.assertEqual(out.lag_s(9.0), 0.25)
        log.write()
        out.owe(log.head, 10.0)
        self.assertEqual(out.lag_s(12.0), 2.0)

    def test_in_heartbeats(self):
        """A follower that missed a change would wait for the resending; or heartbeats would carry a batch."""
        log = Log(sites=[OWN])
        out = pulled(log)
        self.assertIsNone(out.unacknowledged())
        frame = out.read(log.since(out.next_read(0.0)), 0.0)
        self.assertEqual(out.unacknowledged(), frame)
        out.acknowledged(at(1), 0.0)
        self.assertIsNone(out.unacknowledged())
        large = Log(batch=1000, sites=[OWN] * 1000)
        out = pulled(large)
        out.read(large.since(out.next_read(0.0)), 0.0)
        self.assertIsNone(out.unacknowledged())


class IncomingTests(SynchronousTestCase):
    """What is merged, acknowledged and asked for."""

    def setUp(self):
        self.log = Log(sites=[OWN] * 6)

    def test_gap(self):
        """A batch after one that was lost would hide it."""
        receiver = Receiver()
        out = pulled(self.log)
        frames = [out.read(self.log.since(out.next_read(0.0)), 0.0) for _ in range(3)]
        self.assertEqual(receiver.take(frames[1], 1.0), (START, Pull(START)))
        self.assertEqual(receiver.take(frames[2], 1.1), (START, None), "asked once, not for each frame")
        self.assertFalse(receiver.incoming.complete)
        self.assertEqual(receiver.take(frames[0], 1.2), (at(2), None))

    def test_known(self):
        """A batch that comes twice would be merged twice, or left without an acknowledgement."""
        receiver = Receiver(at(6))
        batch = self.log.since(at(4))
        self.assertEqual(receiver.incoming.arrived(batch, 0.0), "known")
        self.assertEqual(receiver.incoming.merging, 0)
        self.assertTrue(receiver.incoming.complete)
        self.assertEqual(receiver.incoming.arrived(Batch([], at(4), Cursor(E2, 5)), 0.0), "new")

    def test_twice(self):
        """Each heartbeat would have the same batch merged again while the disk is slow."""
        incoming = Incoming(START, 0.0)
        batch = self.log.since(START)
        self.assertEqual([incoming.arrived(batch, 0.0) for _ in range(3)], ["new", "waiting", "waiting"])
        incoming.merged(batch, batch.cursor, 0.0)
        self.assertEqual(incoming.arrived(batch, 0.0), "known")

    def test_bounded(self):
        """A peer that sends faster than the disk writes would fill the memory."""
        incoming = Incoming(START, 0.0)
        fates = [incoming.arrived(Batch([], START, at(number)), 0.0) for number in range(1, MERGING_MAX + 6)]
        self.assertEqual(fates, ["new"] * MERGING_MAX + ["too-many"] * 5)
        incoming.merge_failed()
        self.assertEqual(incoming.merging, MERGING_MAX - 1)

    def test_summaries(self):
        """A push that was lost would be missed until the next one; or each heartbeat would make a pull."""
        incoming = Incoming(at(2), 0.0)
        ahead = Summary(at(3))
        self.assertFalse(incoming.summarised(ahead, GAP_S / 2), "it may be on its way")
        self.assertTrue(incoming.summarised(ahead, 1.0))
        incoming.pull(1.0)
        self.assertFalse(incoming.summarised(ahead, 1.0 + GAP_S / 2))
        self.assertFalse(incoming.summarised(ahead, 1.0 + GAP_S * 3 / 2), "patience grows")
        self.assertTrue(incoming.summarised(ahead, 2.0))
        incoming.arrived(self.log.since(at(2)), 2.0)
        self.assertFalse(incoming.summarised(ahead, 3.0), "it is being merged")
        self.assertFalse(incoming.complete)
        self.assertFalse(incoming.summarised(Summary(at(2)), 3.0))
        self.assertTrue(incoming.complete)
        self.assertEqual(incoming.pull(3.0), Pull(at(2)))
        self.assertFalse(incoming.complete)


class AnyOrderTests(SynchronousTestCase):
    """A sender and a receiver on a wire that loses, doubles and reorders."""

    @given(
        st.lists(
            st.tuples(st.sampled_from(["write", "foreign", "peers", "read", "deliver", "lose", "double", "time"]),
                      st.integers(0, 7)),
            max_size=60,
        )
    )
    @settings(max_examples=100, deadline=None)
    def test_ends_complete(self, steps):
        """Some order of losses would leave a peer behind for ever, or ahead of what it has."""
        log, receiver, out = Log(), Receiver(), Outgoing()
        now = 0.0
        wire: list[object] = [receiver.incoming.pull(now)]

        def take(item):
            if isinstance(item, Pull):
                out.pulled(item, log.head, now)
            elif isinstance(item, Cursor):
                out.acknowledged(item, now)
            else:
                wire.extend(answer for answer in receiver.take(item, now) if answer is not None)

        def read():
            after = out.next_read(now)
            if after is not None:
                frame = out.read(log.since(after), now)
                if frame is not None:
                    wire.append(frame)

        def check():
            self.assertLessEqual(out.in_flight, WINDOW)
            applied = receiver.incoming.applied.db_version
            self.assertLessEqual({number + 1 for number in range(applied)}, receiver.has, "the cursor passed a change")

        for what, number in steps:
            if what in ("write", "foreign", "peers"):
                log.write({"write": OWN, "foreign": THIRD, "peers": PEER}[what])
                if what == "write":
                    out.owe(log.head, now)
            elif what == "time":
                now += number / 4
                out.owe(log.head, now)
            elif what == "read":
                read()
            elif wire:
                item = wire[number % len(wire)]
                if what == "double":
                    wire.append(item)
                else:
                    wire.remove(item)
                    if what == "deliver":
                        take(item)
            check()
        for _ in range(150):  # from here on nothing is lost
            now += 0.3
            out.owe(log.head, now)
            summary = Summary(out.told or log.head)
            if receiver.incoming.summarised(summary, now):
                wire.append(receiver.incoming.pull(now))
            read()
            while wire:
                take(wire.pop(0))
            check()
        self.assertEqual(receiver.incoming.applied, log.head if log.sites else at(0))
        self.assertEqual(out.acked, receiver.incoming.applied)
        self.assertTrue(receiver.incoming.complete)
