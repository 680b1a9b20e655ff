"""Whom nobody hears: a dead front is found, and one that only the leader does not hear is left alone."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.hearing import Hearing
from kollator.cluster.wire import Heartbeat, HeartbeatReply, PreVoteReply, VoteReply
from tests.election_net import TIMEOUT_S, Net
from tests.test_election import LATER, leader, make

AFTER_S = 3.0
LATEST_S = AFTER_S + TIMEOUT_S + 0.3
"""A follower tells for one time-out that it hears a front, and the last frame is a keep-alive old."""


class HearingTests(SynchronousTestCase):
    """The rule."""

    def test_how_many_must_hear_it(self) -> None:
        """Without it a front would die of one broken link, or live on one follower's word."""
        for members, quorum, enough in (
            ("abc", 2, 1),
            ("abc", 1, 1),
            ("abcd", 3, 2),
            ("abcde", 3, 2),
            ("abcdefg", 4, 3),
        ):
            for followers in range(len(members) - 1):
                hearing = Hearing(members[1:], quorum, 0.0)
                for follower in members[1:-1]:
                    hearing.heard(follower, 4.0)
                for follower in members[1:-1][:followers]:
                    hearing.told(follower, [members[-1]], 4.0)
                    hearing.told(follower, [members[-1]], 4.0)
                dead = set() if followers >= enough else {members[-1]}
                self.assertEqual(hearing.unheard(4.0, AFTER_S), dead, (members, followers))

    def test_the_leader_hears_it(self) -> None:
        """Without it a front that the leader talks to could be declared dead."""
        hearing = Hearing("bc", 2, 0.0)
        hearing.heard("c", 1.5)
        self.assertEqual(hearing.unheard(4.4, AFTER_S), {"b"})
        self.assertEqual(hearing.unheard(4.5, AFTER_S), {"b", "c"})

    def test_word_of_mouth(self) -> None:
        """Without it a front could speak for itself, old word would count, or strangers fill the table."""
        hearing = Hearing("bc", 2, 0.0)
        hearing.told("c", ["c", "z", "a"], 4.0)
        self.assertEqual(hearing.unheard(4.0, AFTER_S), {"b", "c"})
        hearing.told("b", ["c"], 4.0)
        self.assertEqual(hearing.unheard(6.9, AFTER_S), {"b"})
        self.assertEqual(hearing.unheard(7.0, AFTER_S), {"b", "c"})

    def test_no_old_evidence(self) -> None:
        """Without it a new leader would retire everybody before they have had the time to reach it."""
        hearing = Hearing("bc", 2, 0.0)
        self.assertEqual(hearing.unheard(2.9, AFTER_S), frozenset())
        hearing.begin(50.0)
        self.assertEqual(hearing.unheard(52.9, AFTER_S), frozenset())
        self.assertEqual(hearing.unheard(53.0, AFTER_S), {"b", "c"})

    def test_silence(self) -> None:
        """Without it /health would tell wrong ages, or a stranger's."""
        hearing = Hearing("bc", 2, 10.0)
        hearing.heard("b", 12.0)
        hearing.heard("z", 12.0)
        self.assertEqual([hearing.silent_s(peer, 13.0) for peer in "bc"], [1.0, 3.0])
        self.assertRaises(KeyError, hearing.silent_s, "z", 13.0)
        self.assertEqual(hearing.audible(12.4, 0.5), ["b"])
        self.assertEqual(hearing.audible(12.4, 0.5, besides=("b",)), [])
        self.assertEqual(hearing.audible(12.5, 0.5), [])


class ElectionTests(SynchronousTestCase):
    """What the election makes of it."""

    def test_only_the_leader(self) -> None:
        """Without it a follower would retire fronts."""
        self.assertEqual(make().unheard(99.0, AFTER_S), frozenset())

    def test_before_the_first_tick_after_a_sleep(self) -> None:
        """Without it a leader that was stopped would wake up and retire all others at once."""
        election = leader("ab", quorum="available")
        self.assertEqual(election.unheard(60.0, AFTER_S), frozenset())
        election.tick(60.0)
        self.assertEqual((election.role, election.unheard(60.0, AFTER_S)), ("leader", frozenset()))
        for turn in range(1, 31):
            election.tick(60.0 + turn * 0.1)
        self.assertEqual(election.unheard(63.01, AFTER_S), {"a"})

    def test_its_first_seconds(self) -> None:
        """Without it the first act of a new leader could be to retire a front it had no need to hear."""
        election = make()
        election.receive("a", Heartbeat(1, 1), 0.0)
        for turn in range(1, 200):
            election.receive("a", Heartbeat(1, turn), turn * 0.25)
        now = 50.5
        election.tick(now)
        election.receive("a", PreVoteReply(1, 2, True), now)
        election.receive("a", VoteReply(2, 2, True), now)
        self.assertEqual((election.role, election.silent_s("c", now)), ("leader", 50.5))
        for turn in range(1, 32):
            self.assertEqual(election.unheard(now, AFTER_S), {"c"} if now >= 53.5 else frozenset())
            now = 50.5 + turn * 0.1
            for peer, frame in election.tick(now).send:
                if peer == "a" and isinstance(frame, Heartbeat):
                    election.receive("a", HeartbeatReply(2, frame.sequence), now)

    def test_a_follower_tells(self) -> None:
        """Without it the leader would know of its own links only."""
        election = make("b", "abcd")
        election.heard("c", 1.0)
        election.heard("a", 1.0)
        ready = election.receive("a", Heartbeat(1, 1), 1.0 + 0.9 * TIMEOUT_S)
        self.assertEqual(ready.send, (("a", HeartbeatReply(1, 1, ["c"])),))
        ready = election.receive("a", Heartbeat(1, 2), 1.0 + 1.1 * TIMEOUT_S)
        self.assertEqual(ready.send, (("a", HeartbeatReply(1, 2, [])),))

    def test_a_sign_of_life(self) -> None:
        """Without it a front that was retired and came back by a detour would be retired again at once."""
        election = leader()
        for turn in range(1, 40):
            now = LATER + turn * 0.1
            for peer, frame in election.tick(now).send:
                if peer == "a" and isinstance(frame, Heartbeat):
                    election.receive("a", HeartbeatReply(1, frame.sequence), now)
        self.assertEqual(election.unheard(now, AFTER_S), {"c"})
        election.heard("c", now)
        self.assertEqual(election.unheard(now, AFTER_S), frozenset())


class NetTests(SynchronousTestCase):
    """In a cluster that exchanges keep-alives."""

    def lead(self, size: int, seed: int = 1, **settings: object) -> tuple[Net, str, list[str]]:
        """A calm cluster, its leader, and the others."""
        net = Net(seed, size, keepalive_s=0.2, **settings)  # type: ignore[arg-type]
        net.run_until_agreed(5.0)
        net.run(5.0)
        agreed = net.agreed()
        assert agreed is not None
        return net, agreed[1], [name for name in net.fronts if name != agreed[1]]

    def unheard(self, net: Net, name: str) -> frozenset[str]:
        """What a front would retire now."""
        front = net.fronts[name]
        assert front.election is not None
        return front.election.unheard(net.local(front), AFTER_S)

    def test_a_dead_front(self) -> None:
        """Without it the workers of a dead front would be assigned for ever, or those of a live one never."""
        for size in (2, 3, 5, 7):
            net, leads, others = self.lead(size, quorum="available" if size == 2 else "majority")
            self.assertEqual(self.unheard(net, leads), frozenset())
            net.crash(others[0])
            net.run(AFTER_S - 0.4)
            self.assertEqual(self.unheard(net, leads), frozenset())
            net.run(LATEST_S - AFTER_S + 0.6)
            self.assertEqual(self.unheard(net, leads), {others[0]})
            net.restart(others[0])
            net.run(1.0)
            self.assertEqual(self.unheard(net, leads), frozenset())

    def test_a_broken_link(self) -> None:
        """Without it one broken link would take a front out that all others hear."""
        for size in (3, 5, 7):
            net, leads, others = self.lead(size)
            net.cut([leads], others[:1])
            for _ in range(20):
                net.run(0.5)
                self.assertEqual(self.unheard(net, leads), frozenset())
            self.assertEqual(net.leading(), [leads])

    def test_a_cut_off_minority(self) -> None:
        """Without it the workers of two fronts would stay assigned because these two hear each other."""
        net, leads, others = self.lead(5)
        net.isolate(*others[:2])
        net.run(LATEST_S + 0.5)
        self.assertEqual(self.unheard(net, leads), set(others[:2]))
        for name in others[:2]:
            self.assertEqual(self.unheard(net, name), frozenset())

    def test_a_new_leader(self) -> None:
        """Without it the first act after a fail-over could be to retire a front that is well."""
        net, leads, others = self.lead(5)
        net.crash(leads)
        for _ in range(12):
            net.run(0.25)
            self.assertEqual({name for one in others for name in self.unheard(net, one)}, set())
        net.run(LATEST_S)
        (new,) = net.leading()
        self.assertEqual(self.unheard(net, new), {leads})

    def test_a_leader_that_was_stopped(self) -> None:
        """Without it the others would be retired for what was the leader's own absence."""
        for size in (2, 5):
            net, leads, _ = self.lead(size, quorum="available")
            net.pause(leads, 20.0)
            for _ in range(120):
                net.run(0.2)
                self.assertEqual(self.unheard(net, leads) if net.now < 45 else frozenset(), frozenset())
                for name in net.leading():
                    self.assertLessEqual(self.unheard(net, name), {leads})
            self.assertEqual(len(net.leading()), 1)
