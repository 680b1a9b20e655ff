"""A seeded network of elections alone, in no time: loss, delay, duplication, partitions, crashes, slow disks.

Every front has a clock of its own (offset, drift, jumps) and a disk that takes its time. What a front was to
persist and send waits in its queue, in order, as ``Ready`` demands; a crash loses the queue and keeps the
disk. After every event the first invariant is checked: in majority mode, no two leaders in one term, ever.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from kollator.cluster.election import Election, Quorum, Ready
from kollator.cluster.wire import Ping, decode, encode

HEARTBEAT_S = 0.1
TIMEOUT_S = 0.5
FAULTS = (
    *("split", "one-way", "partial", "crash", "pause", "clock", "weather", "disk"),
    *("heal", "heal", "heal", "restart", "restart", "reboot", "reboot", "leaderless", "leaderless"),
)
STORM = ("reboot", "reboot", "leaderless", "leaderless", "one-way", "heal", "heal")


class Broken(AssertionError):
    """An invariant does not hold. The text has the seed and the last events."""


class Front:
    """One front: its election while it runs, and what outlives a crash."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.election: Election | None = None
        self.disk: tuple[int, str | None] = (0, None)
        self.queue: deque[Ready] = deque()
        self.storing = False
        self.life = 0
        self.paused_until = 0.0
        self.tick_at = float("inf")
        self.offset = rng.uniform(-1e6, 1e6)
        self.rate = rng.uniform(0.97, 1.03)
        self.stands = True


class Net:
    """``size`` fronts named a, b, c ... that all run; ``stands`` are those that may lead (all).

    ``keepalive_s`` is how often each sends a ``Ping`` to the others; 0: never.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        *,
        quorum: Quorum = "majority",
        stands: Iterable[str] | None = None,
        keepalive_s: float = 0.0,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.quorum = quorum
        self.now = 0.0
        self.fronts = {name: Front(name, self.rng) for name in "abcdefghijklmnop"[:size]}
        self.cuts: set[tuple[str, str]] = set()
        self.draws = self.rng.choice((1000, 3, 2))  # few different time-outs: fronts stand at the same time
        self.loss = 0.0
        self.duplication = 0.0
        self.delay_s = (0.001, 0.01)
        self.disk_s = (0.0, 0.005)
        self.crash_at_disk = 0.0
        self.leaders: dict[int, str] = {}
        self.highest_term = 0
        self.keepalive_s = keepalive_s
        self.trace: deque[str] = deque(maxlen=60)
        self._events: list[tuple[float, int, tuple[Any, ...]]] = []
        self._number = 0
        may_stand = set(self.fronts if stands is None else stands)
        for front in self.fronts.values():
            front.stands = front.name in may_stand
            self.restart(front.name)

    # -- what a test does ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._step()
        self.now = end

    def run_until_agreed(self, limit_s: float) -> float:
        """Let time pass until all that run agree on one leader; returns how much. Raises ``Broken``."""
        start = self.now
        while self.agreed() is None:
            if not self._events or self._events[0][0] > start + limit_s:
                raise self.broken(f"no leader {limit_s} s after all was well")
            self._step()
        return self.now - start

    def running(self) -> list[Election]:
        """The elections of the fronts that run."""
        return [front.election for front in self.fronts.values() if front.election is not None]

    def leading(self) -> list[str]:
        """Those that lead, in whatever term."""
        return [election.node for election in self.running() if election.role == "leader"]

    def agreed(self) -> tuple[int, str] | None:
        """Term and leader, if there is one leader and all that run follow it."""
        views = {(election.term, election.leader) for election in self.running()}
        leading = self.leading()
        if len(views) != 1 or len(leading) != 1:
            return None
        ((term, leader),) = views
        return (term, leader) if leader == leading[0] else None

    def cut(self, ones: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """Nothing travels from the ones to the others, nor back unless ``one_way``."""
        others = list(others)
        for one in ones:
            for other in others:
                self.cuts.add((one, other))
                if not one_way:
                    self.cuts.add((other, one))

    def isolate(self, *names: str) -> None:
        """Cut these fronts off from the rest."""
        self.cut(names, [name for name in self.fronts if name not in names])

    def heal(self) -> None:
        """Every link works; the fronts on it are told, as they are when a link is made."""
        healed, self.cuts = self.cuts, set()
        for one, other in sorted(healed):
            self._do(self.fronts[one], lambda election, now, other=other: election.connected(other, now))

    def crash(self, name: str) -> None:
        """Stop a front as kill -9 does."""
        front = self.fronts[name]
        front.election = None
        front.queue.clear()
        front.storing = False
        front.life += 1

    def restart(self, name: str) -> None:
        """Start a front from its disk."""
        front = self.fronts[name]
        if front.election is not None:
            return
        front.life += 1
        front.paused_until = 0.0
        front.tick_at = float("inf")
        front.election = Election(
            name,
            self.fronts,
            quorum=self.quorum,
            stands=front.stands,
            heartbeat_s=HEARTBEAT_S,
            timeout_s=TIMEOUT_S,
            draw=self._draw,
            now=self.local(front),
            term=front.disk[0],
            voted_for=front.disk[1],
        )
        self._wake(front)
        if self.keepalive_s:
            self._push(self.rng.uniform(0, self.keepalive_s), "ping", name, front.life)

    def pause(self, name: str, seconds: float) -> None:
        """Stop a front as SIGSTOP does: what it is sent waits."""
        self.fronts[name].paused_until = self.now + seconds

    def calm(self) -> None:
        """End all trouble: links, disks and weather are well, every front runs."""
        self.loss = self.duplication = self.crash_at_disk = 0.0
        self.delay_s, self.disk_s = (0.001, 0.01), (0.0, 0.005)
        for front in self.fronts.values():
            front.paused_until = 0.0
            self.restart(front.name)
        self.heal()

    def storm(self) -> None:
        """The weather in which votes collide, come late and are forgotten, if anything forgets them."""
        self.draws, self.loss, self.duplication, self.crash_at_disk = 2, 0.02, 0.3, 0.4
        self.delay_s, self.disk_s = (0.0, self.rng.choice((0.3, 0.6, 1.5))), (0.0, 0.1)

    def trouble(self, faults: Sequence[str] = FAULTS) -> None:
        """One fault, or the end of one."""
        rng, names = self.rng, list(self.fronts)
        fault = rng.choice(faults)
        self.trace.append(f"{self.now:.3f} {fault}")
        name = rng.choice(names)
        if fault in ("split", "one-way"):
            some = rng.sample(names, rng.randint(1, max(1, len(names) - 1)))
            self.cut(some, [other for other in names if other not in some], one_way=fault == "one-way")
        elif fault == "partial":
            self.cuts.update((one, other) for one in names for other in names if rng.random() < 0.3)
        elif fault == "heal":
            self.heal()
        elif fault == "crash":
            self.crash(name)
        elif fault == "restart":
            for one in names:
                self.restart(one)
        elif fault == "reboot":
            for one in names:
                if rng.random() < 0.5:
                    self.crash(one)
                    self.restart(one)
        elif fault == "leaderless":
            for one in self.leading():
                self.pause(one, 1.0)
        elif fault == "pause":
            self.pause(name, rng.uniform(0.1, 3.0))
        elif fault == "clock":
            self.fronts[name].offset += rng.uniform(-3.0, 3.0)
        elif fault == "weather":
            self.loss, self.duplication = rng.choice((0.0, 0.1, 0.5)), rng.choice((0.0, 0.3))
            self.delay_s = rng.choice(((0.001, 0.01), (0.0, 0.3), (0.0, 2.0)))
        else:
            self.disk_s = rng.choice(((0.0, 0.005), (0.0, 0.4)))
            self.crash_at_disk = rng.choice((0.0, 0.5))

    def local(self, front: Front) -> float:
        """The time on a front's own clock."""
        return front.offset + front.rate * self.now

    def broken(self, what: str) -> Broken:
        """What to raise when something does not hold."""
        return Broken(f"seed {self.seed}, {len(self.fronts)} fronts: {what}\n" + "\n".join(self.trace))

    def _draw(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.randrange(self.draws) / self.draws

    # -- events ----------------------------------------------------------------------------------------------

    def _push(self, in_s: float, *event: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + in_s, self._number, event))

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        kind, name, *rest = event
        front = self.fronts[name]
        if front.paused_until > self.now:
            self._push(front.paused_until - self.now, *event)
        elif kind == "frame":
            sender, payload = rest
            frame = decode(payload)
            if front.election is not None and isinstance(frame, Ping):
                front.election.heard(sender, self.local(front))
            else:
                self._do(front, lambda election, now: election.receive(sender, frame, now))
        elif rest[0] != front.life:
            pass
        elif kind == "tick":
            if rest[1] == front.tick_at:  # not one that an earlier one has replaced
                front.tick_at = float("inf")
                self._do(front, lambda election, now: election.tick(now))
        elif kind == "ping":
            for other in self.fronts:
                self._transmit(name, other, encode(Ping(0)))
            self._push(self.keepalive_s, *event)
        else:
            self._stored(front)

    def _do(self, front: Front, act: Any) -> None:
        if front.election is None:
            return
        ready = act(front.election, self.local(front))
        if ready.changed:
            election = front.election
            self.trace.append(
                f"{self.now:.3f} {front.name} {election.role} term {election.term} leader {election.leader}"
            )
        self._check(front.election)
        if ready.persist is not None or ready.send:
            front.queue.append(ready)
            self._drain(front)
        self._wake(front)

    def _wake(self, front: Front) -> None:
        if front.election is not None:
            in_s = max((front.election.due - self.local(front)) / front.rate, 0.0) + 1e-6
            if self.now + in_s < front.tick_at:  # a tick that comes too early does nothing but ask again
                front.tick_at = self.now + in_s
                self._push(in_s, "tick", front.name, front.life, front.tick_at)

    def _drain(self, front: Front) -> None:
        while front.queue and not front.storing:
            if front.queue[0].persist is not None:
                front.storing = True
                self._push(self.rng.uniform(*self.disk_s), "stored", front.name, front.life)
                return
            self._send(front, front.queue.popleft())

    def _stored(self, front: Front) -> None:
        ready = front.queue.popleft()
        assert ready.persist is not None
        (old_term, old_vote), (term, vote) = front.disk, ready.persist
        if term < old_term or (term == old_term and old_vote not in (None, vote)):
            raise self.broken(f"{front.name} takes a promise back: {front.disk} to {ready.persist}")
        front.disk = ready.persist
        front.storing = False
        if self.rng.random() < self.crash_at_disk:
            # Persisted, and only some of it sent.
            self._send(front, ready._replace(send=ready.send[: self.rng.randint(0, len(ready.send))]))
            self.crash(front.name)
            if self.rng.random() < 0.9:
                self.restart(front.name)
            return
        self._send(front, ready)
        self._drain(front)

    def _send(self, front: Front, ready: Ready) -> None:
        for other, frame in ready.send:
            self._transmit(front.name, other, encode(frame))

    def _transmit(self, one: str, other: str, payload: bytes) -> None:
        if one == other or (one, other) in self.cuts or self.rng.random() < self.loss:
            return
        for _ in range(1 + (self.rng.random() < self.duplication)):
            self._push(self.rng.uniform(*self.delay_s), "frame", other, one, payload)

    def _check(self, election: Election) -> None:
        self.highest_term = max(self.highest_term, election.term)
        if election.role == "leader" and self.quorum == "majority":
            known = self.leaders.setdefault(election.term, election.node)
            if known != election.node:
                raise self.broken(f"{known} and {election.node} lead in term {election.term}")
