"""The election and what it cannot rely on: its peers' frames, and its clock."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.election import TERM_JUMP_MAX, Quorum, Ready
from kollator.cluster.wire import (
    TERM_MAX,
    Heartbeat,
    HeartbeatReply,
    Ping,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
    encode,
)
from tests.election_net import HEARTBEAT_S, TIMEOUT_S
from tests.test_election import LATER, leader, make, state

TERMS = st.integers(0, 4) | st.sampled_from([TERM_JUMP_MAX, TERM_JUMP_MAX + 4, TERM_MAX])
FRAMES = st.one_of(
    st.builds(PreVote, TERMS),
    st.builds(PreVoteReply, TERMS, TERMS, st.booleans()),
    st.builds(Vote, TERMS),
    st.builds(VoteReply, TERMS, TERMS, st.booleans()),
    st.builds(Heartbeat, TERMS, st.integers(0, 9)),
    st.builds(HeartbeatReply, TERMS, st.integers(0, 9), st.lists(st.sampled_from("abcz"), max_size=4)),
    st.just(Ping(1)),
)
TICK = st.just(("", None))
STEPS = st.lists(
    st.tuples(st.one_of(st.tuples(st.sampled_from("abcz"), FRAMES), TICK), st.floats(-1.0, 3.0)), max_size=40
)


class HostileTests(SynchronousTestCase):
    """Frames that no sane peer sends."""

    def test_ignored(self) -> None:
        """Without it a front with a broken disk, or of another cluster, could end all elections here."""
        for sender, frame, reason in (
            ("z", Heartbeat(5, 1), "not-a-member"),
            ("b", Heartbeat(5, 1), "not-a-member"),
            ("", Vote(1), "not-a-member"),
            ("a", Heartbeat(TERM_JUMP_MAX + 1, 1), "absurd-term"),
            ("a", Vote(TERM_MAX), "absurd-term"),
            ("a", PreVoteReply(TERM_MAX, 1, False), "absurd-term"),
            ("a", Heartbeat(-1, 1), "absurd-term"),
            ("a", Ping(1), "not-an-election-frame"),
            ("a", None, "not-an-election-frame"),
        ):
            election = make()
            self.assertEqual(election.receive(sender, frame, 0.0), Ready(), frame)
            self.assertEqual(state(election), ("follower", 0, None))
            self.assertEqual({key for key, count in election.ignored.items() if count}, {reason})

    def test_a_front_with_an_absurd_term(self) -> None:
        """Without it one corrupted term on one disk would depose every leader there will be."""
        election, broken = leader(), make("c", term=2**50)
        for turn in range(1, 60):
            now = LATER + turn * HEARTBEAT_S
            for peer, frame in election.tick(now).send:
                if peer == "a":
                    election.receive("a", HeartbeatReply(1, getattr(frame, "sequence", 0)), now)
                else:
                    for _, answer in broken.receive("b", frame, now).send:
                        election.receive("c", answer, now)
            for peer, frame in broken.tick(now).send:
                if peer == "b":
                    election.receive("c", frame, now)
        self.assertEqual(state(election), ("leader", 1, "b"))
        self.assertGreater(election.ignored["absurd-term"], 50)

    @settings(max_examples=100, deadline=None)
    @given(STEPS, st.sampled_from(["majority", "available"]), st.booleans())
    def test_anything(self, steps: list[Any], quorum: Quorum, stands: bool) -> None:
        """Without it some frames would raise, take a vote or a term back, or make an unelected leader."""
        election = make("b", "abc", quorum=quorum, stands=stands)
        disk: tuple[int, str | None] = (0, None)
        voters: set[str] = set()
        now = 0.0
        for (sender, frame), passed_s in steps:
            now += passed_s  # also backwards
            was_leader, term = election.role == "leader", election.term
            ready = election.receive(sender, frame, now) if sender else election.tick(now)
            if ready.persist is not None:
                self.assertGreaterEqual(ready.persist[0], disk[0])
                if ready.persist[0] == disk[0]:
                    self.assertIsNone(disk[1])
                else:
                    voters = set()
                disk = ready.persist
            self.assertEqual(election.vote, disk)
            if isinstance(frame, VoteReply) and frame.granted and frame.asked == term and sender in "ac":
                voters.add(sender)
            if election.role == "leader" and not was_leader:
                self.assertTrue(stands)
                self.assertGreaterEqual(1 + len(voters), election.quorum)
                self.assertEqual(disk, (election.term, "b"))
            for peer, sent in ready.send:
                self.assertIn(peer, ("a", "c"))
                encode(sent)
            election.unheard(now, 1.0)
            self.assertLessEqual(len(ready.send), 3)


class ClockTests(SynchronousTestCase):
    """Clocks that are set, and processes that are stopped."""

    def test_set_back(self) -> None:
        """Without it a leader whose clock is set back an hour would send no heartbeat for an hour."""
        election = leader()
        election.tick(LATER - 3600.0)
        due = election.due
        self.assertAlmostEqual(due, LATER - 3600.0 + HEARTBEAT_S, 6)
        self.assertEqual(len(election.tick(due + 1e-6).send), 2)
        follower = make()
        follower.heard("a", -3600.0)
        self.assertLess(follower.silent_s("a", -3600.0), 1e-6)
        self.assertEqual(len(follower.tick(-3600.0 + LATER).send), 2)

    def test_a_follower_that_slept(self) -> None:
        """Without it a front that was stopped would stand before it has read what it was sent."""
        election = make()
        election.receive("a", Heartbeat(1, 1), 0.0)
        self.assertEqual(election.tick(60.0).send, ())
        self.assertEqual(state(election), ("follower", 1, None))
        election.receive("a", Heartbeat(1, 600), 60.0)
        self.assertEqual(state(election), ("follower", 1, "a"))
        self.assertEqual(len(election.tick(60.0 + LATER).send), 2)

    def test_a_leader_that_slept(self) -> None:
        """Without it a leader that was stopped would act, although another one leads by now."""
        election = leader()
        self.assertEqual(election.tick(60.0), Ready(None, (), True))
        self.assertEqual(state(election), ("follower", 1, None))

    def test_any_beginning(self) -> None:
        """Without it the election would work with one kind of clock only."""
        for start in (-1e9, 0.0, 1.76e9):
            election = make(now=start)
            self.assertEqual(election.due, start + TIMEOUT_S)
            self.assertEqual(election.tick(start), Ready())
            self.assertEqual(len(election.tick(start + LATER).send), 2)
