"""The election's rules, one by one. Schedules and hostile input have files of their own."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.election import TERM_JUMP_MAX, Election, Ready
from kollator.cluster.wire import (
    TERM_MAX,
    Heartbeat,
    HeartbeatReply,
    Ping,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
)
from tests.election_net import HEARTBEAT_S, TIMEOUT_S

LATER = 1.2 * TIMEOUT_S
"""When a front of these tests, whose time-outs are the shortest ones, has missed its leader."""


def make(node: str = "b", members: str = "abc", **changes: Any) -> Election:
    """An election at time 0 whose time-outs are all the shortest."""
    arguments: dict[str, Any] = {
        "quorum": "majority",
        "stands": True,
        "heartbeat_s": HEARTBEAT_S,
        "timeout_s": TIMEOUT_S,
        "draw": lambda low, high: low,
        "now": 0.0,
    }
    return Election(node, members, **{**arguments, **changes})


def candidate(members: str = "abc", **changes: Any) -> Election:
    """Front b, which asks for votes in term 1, at ``LATER``."""
    election = make("b", members, **changes)
    election.tick(LATER)
    voters = sorted(set(members) - {"b"})
    for voter in voters[: election.quorum - 1] or voters:
        election.receive(voter, PreVoteReply(0, 1, True), LATER)
    return election


def leader(members: str = "abc", **changes: Any) -> Election:
    """Front b, which leads in term 1, at ``LATER``."""
    election = candidate(members, **changes)
    for voter in sorted(set(members) - {"b"})[: election.quorum - 1]:
        election.receive(voter, VoteReply(1, 1, True), LATER)
    assert election.role == "leader"
    return election


def state(election: Election) -> tuple[str, int, str | None]:
    """Role, term and leader."""
    return election.role, election.term, election.leader


class VoteTests(SynchronousTestCase):
    """Votes, and what is on disk before they are sent."""

    def test_one_vote_a_term(self) -> None:
        """Without it two candidates could have the same front's vote, and both lead."""
        voter = make()
        ready = voter.receive("a", Vote(1), 0.0)
        self.assertEqual(ready, Ready((1, "a"), (("a", VoteReply(1, 1, True)),), True))
        self.assertEqual(voter.receive("c", Vote(1), 0.0).send, (("c", VoteReply(1, 1, False)),))
        again = voter.receive("a", Vote(1), 0.0)
        self.assertEqual((again.persist, again.send), (None, (("a", VoteReply(1, 1, True)),)))
        self.assertEqual(voter.receive("c", Vote(2), 0.0).persist, (2, "c"))

    def test_the_vote_outlives_a_restart(self) -> None:
        """Without it a front that restarts would vote again."""
        voter = make(term=3, voted_for="a")
        self.assertEqual(voter.receive("c", Vote(3), 0.0).send, (("c", VoteReply(3, 3, False)),))
        self.assertEqual(voter.receive("a", Vote(3), 0.0).send, (("a", VoteReply(3, 3, True)),))
        self.assertEqual(make(term=3, voted_for="b").role, "follower")

    def test_older_terms(self) -> None:
        """Without it a candidate of the past would win, or never learn that it is late."""
        voter = make(term=5)
        self.assertEqual(voter.receive("a", Vote(4), 0.0).send, (("a", VoteReply(5, 4, False)),))
        self.assertEqual(voter.receive("a", PreVote(5), 0.0).send, (("a", PreVoteReply(5, 5, False)),))

    def test_a_voter_waits(self) -> None:
        """Without it a front would stand against the candidate that it has just voted for."""
        for term in (0, 1):
            voter = make(term=term)
            voter.receive("a", Vote(1), 0.8 * TIMEOUT_S)
            self.assertEqual(voter.tick(1.7 * TIMEOUT_S), Ready())
            self.assertEqual(len(voter.tick(1.9 * TIMEOUT_S).send), 2)

    def test_time_outs_are_drawn(self) -> None:
        """Without it all fronts would stand at the same time, and every vote be split."""
        asked: list[tuple[float, float]] = []
        drawn = iter((0.9, 0.6, 0.7))

        def draw(low: float, high: float) -> float:
            asked.append((low, high))
            return next(drawn)

        election = make(draw=draw)
        self.assertEqual(election.due, 0.9)
        election.receive("a", Heartbeat(1, 1), 0.5)
        self.assertEqual(election.due, 0.5 + 0.6)
        election.tick(1.2)
        self.assertEqual(election.due, 1.2 + 0.7)
        self.assertEqual(set(asked), {(TIMEOUT_S, 2 * TIMEOUT_S)})

    def test_no_vote_against_the_leader_of_the_term(self) -> None:
        """Without it a vote would go to somebody who cannot win any more."""
        voter = make(term=1)
        voter.receive("a", Heartbeat(1, 1), 0.0)
        self.assertEqual(voter.receive("c", Vote(1), LATER).send, (("c", VoteReply(1, 1, False)),))

    def test_a_candidate_votes_for_itself_on_disk(self) -> None:
        """Without it a candidate that restarts would vote for another in its own term."""
        election = make()
        election.tick(LATER)
        ready = election.receive("a", PreVoteReply(0, 1, True), LATER)
        self.assertEqual(ready, Ready((1, "b"), (("a", Vote(1)), ("c", Vote(1))), True))
        self.assertEqual(election.receive("a", Vote(1), LATER).send, (("a", VoteReply(1, 1, False)),))

    def test_quorum(self) -> None:
        """Without it a minority would lead, or a majority could not."""
        for size, needed in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)):
            members = "bacdefg"[:size]
            election = make("b", members)
            self.assertEqual((election.quorum, make("b", members, quorum="available").quorum), (needed, 1))
            election.tick(LATER)
            for votes, kind in ((needed, PreVoteReply), (needed, VoteReply)):
                for voter in list(members[1:votes]):
                    self.assertEqual(election.role, "candidate", size)
                    election.receive(voter, kind(election.term, 1, True), LATER)
            self.assertEqual(state(election), ("leader", 1, "b"))

    def test_votes_that_do_not_count(self) -> None:
        """Without it one front's vote would count twice, for another term, or as another kind of vote."""
        election = candidate("abcde")
        for voter, frame in (
            ("a", VoteReply(1, 1, True)),
            ("a", VoteReply(1, 1, True)),
            ("c", VoteReply(1, 0, True)),
            ("c", PreVoteReply(0, 1, True)),
            ("b", VoteReply(1, 1, True)),
            ("z", VoteReply(1, 1, True)),
            ("d", VoteReply(1, 1, False)),
        ):
            election.receive(voter, frame, LATER)
            self.assertEqual(state(election), ("candidate", 1, None))
        election.receive("e", VoteReply(1, 1, True), LATER)
        self.assertEqual(state(election), ("leader", 1, "b"))

    def test_a_lost_election(self) -> None:
        """Without it a candidate that cannot win would hold on until its time-out."""
        election = candidate()
        election.receive("a", VoteReply(1, 1, False), LATER)
        self.assertEqual(election.role, "candidate")
        election.receive("c", VoteReply(1, 1, False), LATER)
        self.assertEqual(state(election), ("follower", 1, None))

    def test_a_candidate_meets_its_better(self) -> None:
        """Without it a candidate would stand against a leader of its own term, or not see a newer term."""
        election = candidate()
        election.receive("a", Heartbeat(1, 1), LATER)
        self.assertEqual(state(election), ("follower", 1, "a"))
        election = candidate()
        ready = election.receive("a", VoteReply(7, 1, False), LATER)
        self.assertEqual((state(election), ready.persist), (("follower", 7, None), (7, None)))

    def test_it_stands_again(self) -> None:
        """Without it a split vote would leave the cluster without a leader for ever."""
        election = candidate()
        ready = election.tick(LATER + TIMEOUT_S)
        self.assertEqual(ready.send, (("a", PreVote(2)), ("c", PreVote(2))))
        self.assertEqual(election.term, 1)


class PreVoteTests(SynchronousTestCase):
    """Asking first."""

    def test_it_promises_nothing(self) -> None:
        """Without it a front that is cut off would raise its term with every time-out and depose a leader."""
        election = make()
        ready = election.tick(LATER)
        self.assertEqual(ready, Ready(None, (("a", PreVote(1)), ("c", PreVote(1))), True))
        self.assertEqual(state(election), ("candidate", 0, None))
        for turn in range(2, 9):
            self.assertIsNone(election.tick(turn * TIMEOUT_S + LATER).persist)
        voter = make()
        ready = voter.receive("a", PreVote(1), 0.0)
        self.assertEqual(ready, Ready(None, (("a", PreVoteReply(0, 1, True)),), False))
        self.assertEqual(voter.receive("c", PreVote(1), 0.0).send, (("c", PreVoteReply(0, 1, True)),))

    def test_lease(self) -> None:
        """Without it a front whose own link to the leader is broken would depose it for all others."""
        for frame, refusal in ((PreVote(2), PreVoteReply(1, 2, False)), (Vote(2), VoteReply(1, 2, False))):
            voter = make(term=1)
            voter.receive("a", Heartbeat(1, 1), 1.0)
            before = voter.receive("c", frame, 1.0 + 0.9 * TIMEOUT_S)
            self.assertEqual((before.persist, before.send), (None, (("c", refusal),)))
            after = voter.receive("c", frame, 1.0 + 1.1 * TIMEOUT_S).send[0][1]
            assert isinstance(after, PreVoteReply | VoteReply)
            self.assertTrue(after.granted)
            leads = leader()
            ready = leads.receive("c", frame, LATER)
            self.assertEqual((leads.role, ready.persist, ready.send), ("leader", None, (("c", refusal),)))

    def test_it_learns_the_term(self) -> None:
        """Without it a front that was away would ask for a term of the past, again and again."""
        election = make()
        election.tick(LATER)
        ready = election.receive("a", PreVoteReply(9, 1, False), LATER)
        self.assertEqual((ready.persist, state(election)), ((9, None), ("follower", 9, None)))

    def test_a_late_refusal(self) -> None:
        """Without it an answer from the past would depose a leader that was found meanwhile."""
        election = make()
        election.tick(LATER)
        election.receive("c", Heartbeat(3, 1), LATER)
        election.receive("a", PreVoteReply(9, 1, False), LATER)
        self.assertEqual(state(election), ("follower", 3, "c"))


class LeaderTests(SynchronousTestCase):
    """Heartbeats, and when to stop."""

    def test_heartbeats(self) -> None:
        """Without it followers would stand against a leader that is well."""
        election = make()
        election.tick(LATER)
        election.receive("a", PreVoteReply(0, 1, True), LATER)
        ready = election.receive("a", VoteReply(1, 1, True), LATER)
        self.assertEqual(ready, Ready(None, (("a", Heartbeat(1, 1)), ("c", Heartbeat(1, 1))), True))
        self.assertEqual(election.tick(LATER + 0.9 * HEARTBEAT_S), Ready())
        self.assertEqual(election.due, LATER + HEARTBEAT_S)
        beat = election.tick(LATER + HEARTBEAT_S)
        self.assertEqual(beat, Ready(None, (("a", Heartbeat(1, 2)), ("c", Heartbeat(1, 2))), False))

    def lead_on(self, election: Election, answer: Any, rounds: int = 20) -> float:
        """Seconds until the leader steps down while ``answer`` is given to each heartbeat for a."""
        for turn in range(1, rounds):
            now = LATER + turn * HEARTBEAT_S
            for peer, frame in election.tick(now).send:
                if peer == "a":
                    election.receive("a", answer(frame), now)
            if election.role != "leader":
                return turn * HEARTBEAT_S
        return float("inf")

    def test_check_quorum(self) -> None:
        """Without it a leader that nobody hears would go on to act for the cluster."""
        fresh = self.lead_on(leader(), lambda beat: HeartbeatReply(1, beat.sequence))
        self.assertEqual(fresh, float("inf"))
        for answer in (
            lambda beat: Ping(1),
            lambda beat: HeartbeatReply(1, 1),  # an answer to the first one, again and again
            lambda beat: HeartbeatReply(1, beat.sequence + 50),
            lambda beat: HeartbeatReply(0, beat.sequence),
        ):
            election = leader()
            self.assertLessEqual(self.lead_on(election, answer), TIMEOUT_S + 2.1 * HEARTBEAT_S)
            self.assertEqual(state(election), ("follower", 1, None))

    def test_a_newer_term(self) -> None:
        """Without it an old leader would go on beside a new one."""
        for frame in (HeartbeatReply(5, 1), Heartbeat(5, 1)):
            election = leader()
            ready = election.receive("a", frame, LATER)
            self.assertEqual((election.role, ready.persist), ("follower", (5, None)))

    def test_an_older_leader_is_told(self) -> None:
        """Without it a front with a higher term would stay without a leader for ever."""
        election = make(term=5)
        ready = election.receive("a", Heartbeat(4, 8), 0.0)
        self.assertEqual(ready.send, (("a", HeartbeatReply(5, 8, [])),))
        self.assertEqual(state(election), ("follower", 5, None))

    def test_a_follower_waits(self) -> None:
        """Without it a follower would stand although it hears its leader."""
        election = make()
        for turn in range(20):
            now = turn * 0.9 * TIMEOUT_S
            ready = election.receive("a", Heartbeat(1, turn), now)
            self.assertEqual(ready.send, (("a", HeartbeatReply(1, turn, [])),))
            self.assertEqual(ready.changed, turn == 0)
            self.assertEqual(election.tick(now + 0.85 * TIMEOUT_S), Ready())

    def test_acts_of_an_older_leader(self) -> None:
        """Without it what a deposed leader still wants would be done."""
        election = make(term=5)
        for term, accepted in ((4, False), (5, True), (6, True), (5 + TERM_JUMP_MAX + 1, False)):
            self.assertIs(election.accepts(term, "c"), accepted)
        election.receive("c", Heartbeat(5, 1), 0.0)
        for node, accepted in ((None, True), ("a", True), ("c", True), ("d", False)):
            self.assertIs(election.accepts(5, node), accepted)

    def test_connected(self) -> None:
        """Without it a front that comes back would wait for the next heartbeat, and might stand meanwhile."""
        self.assertEqual(leader().connected("c", LATER).send, (("c", Heartbeat(1, 1)),))
        self.assertEqual(candidate().connected("c", LATER).send, (("c", Vote(1)),))
        self.assertEqual(make().connected("c", 0.0), Ready())
        self.assertEqual(leader().connected("z", LATER), Ready())


class StandingTests(SynchronousTestCase):
    """Who may lead, and alone."""

    def test_one_that_never_stands(self) -> None:
        """Without it LEADER_ELECTION=false would mean nothing, or cost the cluster a vote."""
        election = make(stands=False)
        for turn in range(1, 20):
            self.assertEqual(election.tick(turn * LATER), Ready())
        self.assertEqual(election.receive("a", Vote(1), 20 * LATER).persist, (1, "a"))
        self.assertEqual(make("b", "b", stands=False).tick(9.0), Ready())

    def test_a_cluster_of_one(self) -> None:
        """Without it a single front would wait for nobody."""
        for quorum in ("majority", "available"):
            election = make("b", "b", quorum=quorum)
            self.assertEqual(election.tick(0.0), Ready((1, "b"), (), True))
            self.assertEqual(state(election), ("leader", 1, "b"))
            self.assertEqual(election.tick(99.0), Ready())
            self.assertEqual(election.role, "leader")

    def test_the_last_term(self) -> None:
        """Without it terms would grow past what every front can hold."""
        election = make(term=TERM_MAX)
        self.assertEqual(election.tick(LATER).send, ())
        self.assertEqual(election.receive("a", Heartbeat(TERM_MAX, 1), LATER).persist, None)
        self.assertEqual(election.leader, "a")

    def test_settings(self) -> None:
        """Without it settings that cannot work would show as a cluster without a leader."""
        for changes in (
            {"heartbeat_s": 0.0},
            {"heartbeat_s": TIMEOUT_S},
            {"term": -1},
            {"term": TERM_MAX + 1},
            {"members": [f"front-{number}" for number in range(256)]},
        ):
            self.assertRaises(ValueError, make, **changes)


class AvailableTests(SynchronousTestCase):
    """One front is enough for a quorum."""

    def test_it_asks_first(self) -> None:
        """Without it a front would lead beside a leader that the others hear well."""
        election = make("b", "ab", quorum="available")
        self.assertEqual(election.tick(LATER).send, (("a", PreVote(1)),))
        self.assertEqual(election.tick(LATER + 0.9 * HEARTBEAT_S), Ready())
        ready = election.tick(LATER + HEARTBEAT_S)
        self.assertEqual(ready, Ready((1, "b"), (("a", Heartbeat(1, 1)),), True))
        for turn in range(1, 99):
            election.tick(LATER + (turn + 1) * HEARTBEAT_S)
        self.assertEqual(state(election), ("leader", 1, "b"))

    def test_answers(self) -> None:
        """Without it a refusal would not be heard, or agreement would be waited out."""
        election = make("b", "abc", quorum="available")
        election.tick(LATER)
        election.receive("a", PreVoteReply(0, 1, True), LATER)
        self.assertEqual(election.role, "candidate")
        election.receive("c", PreVoteReply(0, 1, True), LATER)
        self.assertEqual(state(election), ("leader", 1, "b"))
        election = make("b", "abc", quorum="available")
        election.tick(LATER)
        election.receive("a", PreVoteReply(0, 1, False), LATER)
        self.assertEqual(election.tick(LATER + HEARTBEAT_S), Ready())
        self.assertEqual(state(election), ("follower", 0, None))

    def test_two_leaders_meet(self) -> None:
        """Without it two leaders that hear each other again would both go on."""
        for other, term, role in (
            ("a", 1, "follower"),
            ("c", 1, "leader"),
            ("c", 2, "follower"),
            ("a", 0, "leader"),
        ):
            election = leader("abc", quorum="available")
            ready = election.receive(other, Heartbeat(term, 1), LATER)
            self.assertEqual(election.role, role, (other, term))
            self.assertEqual(election.leader, other if role == "follower" else "b")
            if role == "leader":  # the other one is told at once
                answer = Heartbeat(1, 1) if term == 1 else HeartbeatReply(1, 1, ["c"])
                self.assertEqual(ready.send, ((other, answer),))

    def test_a_follower_of_two(self) -> None:
        """Without it a front between two leaders of one term would follow now one, now the other."""
        election = make("d", "abcd", quorum="available")
        for sender, follows in (("b", "b"), ("c", "b"), ("a", "a"), ("b", "a")):
            election.receive(sender, Heartbeat(1, 1), 0.0)
            self.assertEqual(election.leader, follows)
        self.assertEqual(election.ignored["second-leader"], 3)
