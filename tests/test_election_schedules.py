"""The election whatever happens: faults from seeds, and what must hold through and after them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.election import Quorum
from tests.election_net import FAULTS, STORM, TIMEOUT_S, Broken, Net

SIZES = (2, 3, 5, 7)
AGREED_S = 10 * TIMEOUT_S
"""In 6,400 schedules a leader was there 6.4 time-outs after the last fault at the latest."""
IN_FLIGHT_S = 2.0
"""The longest delay of a frame: after that none of the bad times is on its way."""


def trouble(net: Net, seconds: float) -> None:
    """Bad times: all kinds of faults, or with an odd seed those under which votes collide."""
    if net.seed % 2:
        net.storm()
    while net.now < seconds:
        net.trouble(STORM if net.seed % 2 else FAULTS)
        net.run(net.rng.uniform(0.05, 0.6))


def stays(net: Net, seconds: float) -> None:
    """Raise ``Broken`` unless nothing of what was agreed changes for so long."""
    agreed = net.agreed()
    end = net.now + seconds
    while net.now < end:
        net.run(0.1)
        if agreed is None or net.agreed() != agreed:
            raise net.broken(f"{agreed} did not last")


class ScheduleTests(SynchronousTestCase):
    """Faults of all kinds, then none. The network itself checks that no term has two leaders."""

    def check(self, size: int, quorum: Quorum, seeds: range) -> None:
        """Run the schedules of these seeds."""
        terms = 0
        for seed in seeds:
            # In every fourth cluster only one front may lead.
            net = Net(seed, size, quorum=quorum, stands="a" if seed % 4 == 0 else None)
            trouble(net, 6.0)
            net.calm()
            net.run_until_agreed(AGREED_S)
            net.run(IN_FLIGHT_S)
            net.run_until_agreed(AGREED_S)
            stays(net, 2 * TIMEOUT_S)
            terms += net.highest_term
        self.assertGreater(terms, 2 * len(seeds))  # or the schedules try nothing

    def test_majority_of_two(self) -> None:
        """Without it two fronts, each needing the other, would lead both or never again."""
        self.check(2, "majority", range(75))

    def test_majority_of_three(self) -> None:
        """Without it three fronts would have two leaders in a term, or none when all is well again."""
        self.check(3, "majority", range(75))

    def test_majority_of_five(self) -> None:
        """Without it five fronts would have two leaders in a term, or none when all is well again."""
        self.check(5, "majority", range(75))

    def test_majority_of_seven(self) -> None:
        """Without it seven fronts would have two leaders in a term, or none when all is well again."""
        self.check(7, "majority", range(75))

    def test_available(self) -> None:
        """Without it fronts that have led apart would not end with one leader."""
        for size in SIZES:
            self.check(size, "available", range(1000, 1015))

    def test_the_net_finds_two_leaders(self) -> None:
        """Without it a net that sees nothing would pass for an election that does nothing wrong."""

        def forgetful() -> None:
            for seed in range(1, 40, 2):
                net = Net(seed, 3)
                for front in net.fronts.values():
                    assert front.election is not None
                    front.election.quorum = 1
                trouble(net, 4.0)

        self.assertIn("lead in term", str(self.assertRaises(Broken, forgetful)))


class StableTests(SynchronousTestCase):
    """A leader that is well stays, whatever happens to a minority of the others."""

    def agreed(self, size: int, seed: int) -> tuple[Net, str]:
        """A cluster with a leader."""
        net = Net(seed, size)
        net.run_until_agreed(AGREED_S)
        net.run(1.0)
        agreed = net.agreed()
        assert agreed is not None
        return net, agreed[1]

    def test_fronts_that_come_back(self) -> None:
        """Without it every front that was cut off, stopped or restarted would cost the cluster its leader."""
        for size in (3, 5, 7):
            for seed in range(8):
                net, leader = self.agreed(size, seed)
                before = net.agreed()
                others = [name for name in net.fronts if name != leader][: (size - 1) // 2]
                if seed % 4 == 0:
                    net.isolate(*others)
                elif seed % 4 == 1:
                    net.cut([leader], others[:1])
                elif seed % 4 == 2:
                    for name in others:
                        net.crash(name)
                else:
                    for name in others:
                        net.pause(name, 5.0)
                net.run(5.0)
                self.assertEqual(net.leading(), [leader])
                net.calm()
                net.run_until_agreed(AGREED_S)
                self.assertEqual(net.agreed(), before, (size, seed))
                stays(net, 4 * TIMEOUT_S)

    def test_one_way(self) -> None:
        """Without it a front that is heard and hears nothing would depose the leader again and again."""
        for size in (3, 5):
            net, leader = self.agreed(size, size)
            before = net.agreed()
            deaf = next(name for name in net.fronts if name != leader)
            net.cut([name for name in net.fronts if name != deaf], [deaf], one_way=True)
            net.run(5.0)
            self.assertEqual(net.leading(), [leader])
            net.calm()
            net.run_until_agreed(AGREED_S)
            self.assertEqual(net.agreed(), before)

    def test_fail_over(self) -> None:
        """Without it the cluster would be without a leader for longer than the time-outs ask for."""
        for seed in range(20):
            net, leader = self.agreed(3, seed)
            net.crash(leader)
            net.run(0.001)
            self.assertLess(net.run_until_agreed(AGREED_S), 5 * TIMEOUT_S)
            self.assertNotIn(leader, net.leading())

    def test_a_leader_without_a_quorum(self) -> None:
        """Without it a leader that is cut off would go on to lead a minority."""
        for seed in range(4):
            net, leader = self.agreed(5, seed)
            other = next(name for name in net.fronts if name != leader)
            net.isolate(leader, other)
            net.run(AGREED_S)
            (new,) = net.leading()
            self.assertNotIn(new, (leader, other))

    def test_both_halves_of_two(self) -> None:
        """Without it two fronts that are cut off would be without a leader, or keep two when they are not."""
        for seed in range(8):
            net = Net(seed, 2, quorum="available")
            net.run_until_agreed(AGREED_S)
            net.isolate("a")
            net.run(AGREED_S)
            terms = {election.node: election.term for election in net.running()}
            self.assertEqual(net.leading(), ["a", "b"])
            net.heal()
            net.run(0.5)
            winner = max(terms, key=lambda node: (terms[node], node == "a"))
            self.assertEqual(net.agreed(), (terms[winner], winner))
            stays(net, 4 * TIMEOUT_S)
