"""A network and the links on it.

By default a link is an ordered stream that can break: what is sent into a cut waits, as TCP does, and arrives when
the cut is healed, unless the link was given up meanwhile; then everything on its way is lost. In ``unreliable``
weather single frames are lost, doubled and overtaken, which no TCP does, and a member must survive as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Protocol

from kollator.cluster.wire import Frame, Ping, Pong, Summary, decode, encode
from tests.sim.world import World

PING_S = 1.0
KEEPALIVE_S = 3.0
LOOK_S = 0.25
REDIAL_S = (0.02, 0.6)
FAIR_S = (0.0005, 0.004)


class End(Protocol):
    """What the network knows of a front."""

    name: str

    def link_up(self, peer: str) -> None:
        """A link was made."""

    def link_down(self, peer: str) -> None:
        """It is gone."""

    def received(self, peer: str, frame: Frame) -> None:
        """A frame came."""

    def summary(self, peer: str) -> Summary:
        """For pings."""

    def later(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Calls, after so long on the true clock, if this life of the front still goes on then."""


class _Side:
    """One end of a link: what it sends goes to the other one."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.up = False
        self.over = False
        self.told_at = self.heard_at = now
        self.arrives_at = now
        self.held: deque[bytes] = deque()


class _Link:
    def __init__(self, one: str, other: str, now: float) -> None:
        self.sides = {one: _Side(one, now), other: _Side(other, now)}

    def other(self, name: str) -> _Side:
        return next(side for side in self.sides.values() if side.name != name)


class Network:
    """Links between all pairs of fronts that run and reach each other."""

    def __init__(self, world: World, rng: Random) -> None:
        self.delay_s = FAIR_S
        self.unreliable = False
        self.frames = 0
        self.bytes = 0
        self.sent: Callable[[str, str, Frame], None] = lambda one, other, frame: None
        self._world = world
        self._rng = rng
        self._ends: dict[str, End] = {}
        self._links: dict[frozenset[str], _Link] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._dialling: set[frozenset[str]] = set()

    # -- fronts -------------------------------------------------------------------------------------------------------

    def join(self, end: End) -> None:
        """A front runs."""
        self._ends[end.name] = end
        for other in self._ends:
            if other != end.name:
                self._dial(frozenset((end.name, other)))
        end.later(self._rng.uniform(0, LOOK_S), self._look, end.name)

    def leave(self, name: str, *, silently: bool) -> None:
        """A front is gone: its kernel closes its links, or (``silently``) nothing does."""
        self._ends.pop(name, None)
        for pair in [pair for pair in self._links if name in pair]:
            side = self._links[pair].sides[name]
            side.up, side.over = False, True
            if not silently:
                self._hang_up(pair, name)

    # -- weather ------------------------------------------------------------------------------------------------------

    def cut(self, ones: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """Nothing travels from the ones to the others, nor back unless ``one_way``."""
        others = list(others)
        for one in ones:
            for other in others:
                if one != other:
                    self._cuts.add((one, other))
                    if not one_way:
                        self._cuts.add((other, one))

    def heal(self) -> None:
        """Everything travels again, what waited first."""
        self._cuts.clear()
        for pair, link in list(self._links.items()):
            for side in link.sides.values():
                while side.held:
                    self._fly(pair, link, side, side.held.popleft())

    def reset(self, one: str, other: str) -> None:
        """The link of a pair breaks."""
        pair = frozenset((one, other))
        if pair in self._links:
            self._close(pair, one)

    def cut_all(self, name: str) -> None:
        """The front wants all its links to be made anew."""
        for pair in [pair for pair in self._links if name in pair]:
            self._close(pair, name)

    def linked(self) -> int:
        """How many links are up at both ends."""
        return sum(all(side.up for side in link.sides.values()) for link in self._links.values())

    # -- frames -------------------------------------------------------------------------------------------------------

    def send(self, one: str, other: str, frame: Frame) -> bool:
        """A front gives a frame to its link; False: it has none."""
        pair = frozenset((one, other))
        link = self._links.get(pair)
        if link is None or not link.sides[one].up:
            return False
        self.sent(one, other, frame)
        payload = encode(frame)
        self.frames += 1
        self.bytes += len(payload)
        side = link.sides[one]
        if getattr(frame, "summary", None) is not None:
            side.told_at = self._world.now
        if (one, other) in self._cuts or side.held:
            side.held.append(payload)
        elif not self.unreliable:
            self._fly(pair, link, side, payload)
        elif self._rng.random() > 0.1:
            for _ in range(1 + (self._rng.random() < 0.2)):
                when = self._world.now + self._rng.choice((0.0, 0.0, 0.05, 0.5)) + self._rng.uniform(*self.delay_s)
                self._world.at(when, self._arrive, pair, link, one, payload)
        return True

    def _fly(self, pair: frozenset[str], link: _Link, side: _Side, payload: bytes) -> None:
        side.arrives_at = max(side.arrives_at, self._world.now + self._rng.uniform(*self.delay_s))
        self._world.at(side.arrives_at, self._arrive, pair, link, side.name, payload)

    def _arrive(self, pair: frozenset[str], link: _Link, sender: str, payload: bytes) -> None:
        receiver = link.other(sender)
        if self._links.get(pair) is link and not receiver.over and receiver.name in self._ends:
            self._ends[receiver.name].later(0.0, self._receive, link, sender, receiver, payload)

    def _receive(self, link: _Link, sender: str, receiver: _Side, payload: bytes) -> None:
        if not receiver.up:
            return
        receiver.heard_at = self._world.now
        end, frame = self._ends[receiver.name], decode(payload)
        end.received(sender, frame)
        if isinstance(frame, Ping) and receiver.up:
            self.send(receiver.name, sender, Pong(frame.number, end.summary(sender)))

    # -- links --------------------------------------------------------------------------------------------------------

    def _dial(self, pair: frozenset[str]) -> None:
        if pair not in self._dialling:
            self._dialling.add(pair)
            self._world.at(self._world.now + self._rng.uniform(*REDIAL_S), self._dialled, pair)

    def _dialled(self, pair: frozenset[str]) -> None:
        self._dialling.discard(pair)
        one, other = sorted(pair)
        if pair in self._links:
            return
        if one not in self._ends or other not in self._ends:
            return  # whoever starts dials
        if (one, other) in self._cuts or (other, one) in self._cuts:
            self._dial(pair)
            return
        if self._rng.random() < 0.5:
            one, other = other, one
        link = self._links[pair] = _Link(one, other, self._world.now)
        delay_s = self._rng.uniform(*self.delay_s)
        for side, when in ((link.sides[one], 0.0), (link.sides[other], delay_s)):
            self._ends[side.name].later(when, self._up, pair, link, side)
            side.arrives_at = self._world.now + delay_s

    def _up(self, pair: frozenset[str], link: _Link, side: _Side) -> None:
        if self._links.get(pair) is link and not side.over:
            side.up = True
            side.heard_at = side.told_at = self._world.now
            self._ends[side.name].link_up(link.other(side.name).name)

    def _close(self, pair: frozenset[str], name: str) -> None:
        link = self._links[pair]
        side = link.sides[name]
        if not side.over:
            was, side.up, side.over = side.up, False, True
            if was and name in self._ends:
                self._ends[name].link_down(link.other(name).name)
        self._hang_up(pair, name)

    def _hang_up(self, pair: frozenset[str], name: str) -> None:
        """The other end is told, if that gets through; else it finds out itself."""
        link = self._links[pair]
        other = link.other(name)
        if other.over or other.name not in self._ends:
            self._remove(pair, link)
        elif (name, other.name) not in self._cuts:
            when = max(link.sides[name].arrives_at, self._world.now + self._rng.uniform(*self.delay_s))
            self._world.at(when, self._hung_up, pair, link, other)

    def _hung_up(self, pair: frozenset[str], link: _Link, side: _Side) -> None:
        if self._links.get(pair) is link and side.name in self._ends and not side.over:
            self._ends[side.name].later(0.0, self._down, pair, link, side)
        elif self._links.get(pair) is link:
            self._remove(pair, link)

    def _down(self, pair: frozenset[str], link: _Link, side: _Side) -> None:
        if self._links.get(pair) is link:
            was, side.up, side.over = side.up, False, True
            self._remove(pair, link)
            if was:
                self._ends[side.name].link_down(link.other(side.name).name)

    def _remove(self, pair: frozenset[str], link: _Link) -> None:
        if self._links.get(pair) is link:
            del self._links[pair]
            self._dial(pair)

    def _look(self, name: str) -> None:
        now = self._world.now
        for pair in [pair for pair in self._links if name in pair]:
            link = self._links[pair]
            side, other = link.sides[name], link.other(name)
            if side.over:
                if other.over or other.name not in self._ends:
                    self._remove(pair, link)
                elif (name, other.name) not in self._cuts:
                    self._hang_up(pair, name)
            elif side.up and now - side.heard_at >= KEEPALIVE_S:
                self._close(pair, name)
            elif side.up and now - side.told_at >= PING_S:
                self.send(name, other.name, Ping(0, self._ends[name].summary(other.name)))
        self._ends[name].later(LOOK_S, self._look, name)
