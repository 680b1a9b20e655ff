"""Persist before send: the order of what the election says, with disks that are slow, fail, or never answer."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster import readies
from kollator.cluster.election import Ready
from kollator.cluster.readies import Readies, Standing
from kollator.cluster.wire import Heartbeat, PreVote, VoteReply
from kollator.state.errors import StorageFailedError


class Politics:
    """An election as ``Readies`` sees one: what it stands for now."""

    def __init__(self) -> None:
        self.term, self.role, self.leader, self.voted_for = 0, "follower", None, None

    @property
    def vote(self):
        return self.term, self.voted_for


class Bench:
    """Readies with a disk that answers when it is told to; ``log`` is what happened in order."""

    def __init__(self) -> None:
        self.election = cast("Any", Politics())
        self.log: list[Any] = []
        self.saving: list[tuple[tuple[int, str | None], Deferred[None]]] = []
        self.disk: tuple[int, str | None] = (0, None)
        self.readies = Readies(
            self.election,
            persist=self._persist,
            send=lambda peer, frame: self.log.append((peer, frame)),
            changed=self.log.append,
        )

    def _persist(self, term, vote):
        done: Deferred[None] = Deferred()
        self.saving.append(((term, vote), done))
        return done

    def saved(self):
        vote, done = self.saving.pop(0)
        self.disk = vote
        self.log.append(vote)
        done.callback(None)

    def failed(self):
        self.saving.pop(0)[1].errback(StorageFailedError("no room"))

    def vote(self, term, candidate="b", role="follower"):
        """The election votes, or stands; returns the frame that says so."""
        changed = (term, role) != (self.election.term, self.election.role)
        self.election.term, self.election.voted_for, self.election.role = term, candidate, role
        frame = VoteReply(term, term, True)
        self.readies.carry(Ready((term, candidate), ((candidate, frame),), changed))
        return frame

    def say(self, frame=None):
        frame = frame or PreVote(9)
        self.readies.carry(Ready(send=(("c", frame),)))
        return frame


class OrderTests(SynchronousTestCase):
    """First to disk, then to the peers, and all in order."""

    def setUp(self):
        self.bench = Bench()

    def test_at_once(self):
        """Frames that promise nothing would wait for a disk."""
        frame = self.bench.say()
        self.assertEqual(self.bench.log, [("c", frame)])

    def test_persist_before_send(self):
        """A vote that was sent and then forgotten makes two leaders."""
        frame = self.bench.vote(1)
        self.assertEqual(self.bench.log, [])
        self.bench.saved()
        self.assertEqual(self.bench.log, [(1, "b"), ("b", frame), Standing("follower", 1, None)])

    def test_later_frames_wait(self):
        """A frame would overtake the promise that it rests on."""
        first, second = self.bench.vote(1), self.bench.say()
        self.assertEqual((self.bench.log, len(self.bench.readies)), ([], 1))
        self.bench.saved()
        self.assertEqual(self.bench.log[1:], [("b", first), Standing("follower", 1, None), ("c", second)])

    def test_newest_vote(self):
        """A slow disk would write every vote of the past, one after the other."""
        self.bench.vote(1)
        self.bench.vote(2)
        self.bench.vote(3, "c")
        self.bench.saved()
        self.assertEqual(self.bench.saving[0][0], (3, "c"))

    def test_role_of_its_time(self):
        """A front would act as a leader whose own vote is not on disk yet."""
        self.bench.vote(1)
        self.bench.vote(2, "a", role="leader")
        self.bench.saved()
        self.assertEqual(self.bench.log[-1], Standing("follower", 1, None))
        self.bench.saved()
        self.assertEqual(self.bench.log[-1], Standing("leader", 2, None))

    def test_nothing_to_do(self):
        """Each tick would go through the queue."""
        self.bench.readies.carry(Ready())
        self.assertEqual((self.bench.log, len(self.bench.readies)), ([], 0))


class FailingDiskTests(SynchronousTestCase):
    """What a disk did not take is not promised."""

    def setUp(self):
        self.bench = Bench()

    def test_frames_are_dropped(self):
        """A vote would be sent that the disk does not have."""
        self.bench.vote(1)
        self.bench.failed()
        self.assertEqual(self.bench.log, [])

    def test_next_frame_saves_first(self):
        """The next reply would tell of a term that the disk does not have."""
        self.bench.vote(1)
        self.bench.failed()
        frame = self.bench.say()
        self.assertEqual(self.bench.log, [])
        self.bench.saved()
        self.assertEqual(self.bench.log, [(1, "b"), ("c", frame), Standing("follower", 1, None)])

    def test_again_and_again(self):
        """A disk that comes back after a while would be used no more."""
        for _ in range(5):
            self.bench.say()
            self.bench.vote(1)
            self.bench.failed()
        self.bench.log.clear()
        frame = self.bench.say()
        self.bench.saved()
        self.assertEqual(self.bench.log[:2], [(1, "b"), ("c", frame)])

    def test_change_behind_a_failure(self):
        """A front would never learn that it follows, or leads, when another frame waited behind the failure."""
        self.bench.vote(1)
        self.bench.say()
        self.bench.failed()
        self.bench.saved()
        self.assertIn(Standing("follower", 1, None), self.bench.log)

    def test_raising_callback(self):
        """An error in what follows a role would block the queue for ever."""
        self.bench.readies._changed = lambda standing: 1 / 0
        self.bench.vote(1)
        self.bench.saved()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.bench.readies._changed = self.bench.log.append
        frame = self.bench.say(Heartbeat(1, 1))
        self.assertIn(("c", frame), self.bench.log)


class BoundTests(SynchronousTestCase):
    """A disk that does not answer costs memory for so much and no more."""

    def setUp(self):
        self.bench = Bench()

    def test_bounded(self):
        """A hanging disk would fill the memory."""
        with mock.patch.object(readies, "READIES_MAX", 10):
            for term in range(1, 50):
                self.bench.vote(term)
        self.assertEqual(len(self.bench.readies), 10)

    def test_dropped_vote_is_saved_first(self):
        """What is left of the queue would rest on a vote that was dropped with its frames."""
        with mock.patch.object(readies, "READIES_MAX", 3):
            self.bench.vote(1)
            self.bench.vote(2)
            frames = [self.bench.say(PreVote(number)) for number in range(3)]
        self.assertEqual(len(self.bench.readies), 3)
        self.bench.saved()
        self.assertNotIn(("c", frames[0]), self.bench.log)
        self.bench.saved()
        self.assertEqual(self.bench.disk, (2, "b"))
        sent = [("c", frame) for frame in frames]
        self.assertEqual(self.bench.log[-4:], [sent[0], Standing("follower", 2, None), *sent[1:]])

    @given(st.lists(st.sampled_from(["vote", "say", "saved", "saved", "failed"]), max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_any_order(self, steps):
        """Some order of failures and overflows would send what the disk does not have."""
        bench = Bench()
        term = 0
        with mock.patch.object(readies, "READIES_MAX", 3):
            for step in steps:
                if step == "vote":
                    term += 1
                    bench.vote(term)
                elif step == "say":
                    bench.say(Heartbeat(term, 0))
                elif bench.saving:
                    getattr(bench, step)()
                self.assertLessEqual(len(bench.readies), 3)
        saved = 0
        for event in bench.log:
            if isinstance(event, Standing):
                self.assertLessEqual(event.term, saved)
            elif isinstance(event[1], VoteReply | Heartbeat):
                self.assertLessEqual(event[1].term, saved, "sent, and not on disk")
            else:
                saved = event[0]
