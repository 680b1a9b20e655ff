"""Dials the peers that there is no link to: for ever, ever more seldom, never all in one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.accepting import host_of
from kollator.cluster.link import End, PeerLink
from kollator.settings import Peer
from kollator.text import one_line

log = Logger("kollator:cluster")

REDIAL_FIRST_S = 0.1
REDIAL_LAST_S = 5.0
"""The longest pause before a peer is dialled again: each is a random part of a limit that doubles up to here."""
GIVE_WAY_S = 0.1
"""The front with the higher id dials that much later, so that mostly one link is made and not two."""
LIVED_S = 2.0
"""After a link that lived so long the next pause is the shortest again."""
SAY_AGAIN_S = 60.0
"""Each reason why a peer cannot be linked is mentioned so often."""

SAID_MAX = 8
"""So many different reasons of one peer are mentioned in that time."""

_NOT_SAID = ("stopping", "duplicate-link")


class LinkError(Exception):
    """The links cannot be set up: one line that names the setting and the remedy."""


class Route:
    """The way to one peer, and what came of dialling it."""

    def __init__(self, peer: Peer, endpoint: Any) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.link: PeerLink | None = None
        """The link that is being dialled."""
        self.connecting: Deferred[Any] | None = None
        self.attempts = 0
        self.due = 0.0
        self.said: dict[str, float] = {}


class _Dialled(Factory):
    """Hands out the one link that was begun before its connection was."""

    noisy = False

    def __init__(self, link: PeerLink) -> None:
        self._link = link

    def buildProtocol(self, addr: Any) -> PeerLink:
        """The link."""
        self._link.address = host_of(addr) or self._link.address
        return self._link


class Dialler:
    """Front ``node`` dials ``peers``.

    ``begin`` makes a link to an address that is to be that of a node. ``uniform`` gives a random number between
    two others. ``endpoint_of`` parses a peer's endpoint; ``LinkError`` is raised for what it does not take.
    """

    def __init__(
        self,
        node: str,
        peers: Iterable[Peer],
        clock: Clock,
        *,
        begin: Callable[[str, str], PeerLink],
        uniform: Callable[[float, float], float],
        endpoint_of: Callable[[Any, str], Any],
    ) -> None:
        self.running = False
        self._node = node
        self._clock = clock
        self._begin = begin
        self._uniform = uniform
        self._endpoint_of = endpoint_of
        self._routes: dict[str, Route] = {}
        for peer in peers:
            try:
                endpoint = endpoint_of(clock, peer.endpoint)
            except Exception as problem:  # endpoint parsers raise whatever they like
                raise LinkError(
                    f"PEERS: {peer.endpoint!r} does not reach {peer.node}: {one_line(problem)}; "
                    "write tcp:host:port, tls:host:port or wss://host/worker-sync"
                ) from None
            self._routes[peer.node] = Route(peer, endpoint)

    def reload(self) -> None:
        """Parses the endpoints again, which reads their certificates again; what cannot be used stays as it was."""
        for route in self._routes.values():
            try:
                route.endpoint = self._endpoint_of(self._clock, route.peer.endpoint)
            except Exception as problem:  # endpoint parsers raise whatever they like
                log.warn(
                    "{endpoint} stays as it was: {why}", endpoint=route.peer.endpoint, why=one_line(problem)
                )

    def start(self) -> None:
        """From now on."""
        self.running = True
        now = self._clock.seconds()
        for route in self._routes.values():
            route.due = now + self._way_given(route)

    def turn(self, now: float, linked: Iterable[str]) -> None:
        """Dials whoever is due, but for those that are ``linked``."""
        for node, route in self._routes.items():
            route.due = min(route.due, now + REDIAL_LAST_S + GIVE_WAY_S)  # a clock may be set back
            if self.running and route.link is None and now >= route.due and node not in linked:
                self._dial(route)

    def linked(self, link: PeerLink, peer: str) -> None:
        """There is a link to ``peer``, by whomever: another one is not needed."""
        route = self._routes[peer]
        route.said.clear()
        if route.link is link:
            route.link = route.connecting = None
        elif route.link is not None and not (self._node < peer and route.link.answered):
            # Otherwise its proof is on the way, and where it arrives that link beats this one.
            route.link.close("duplicate-link")

    def lost(self, peer: str, lived_s: float) -> None:
        """The link to ``peer`` is over, after so many seconds."""
        route = self._routes[peer]
        if lived_s >= LIVED_S:
            route.attempts = 0
        self._wait(route)

    def failed(self, link: PeerLink, end: End) -> None:
        """A link is over that was not established, or is not the peer's any more."""
        for route in self._routes.values():
            if route.link is link:
                route.link = None
                connecting, route.connecting = route.connecting, None
                if connecting is not None:
                    connecting.cancel()
                self._wait(route)
                self._say(route, end)

    def _dial(self, route: Route) -> None:
        link = self._begin(route.peer.endpoint, route.peer.node)
        route.link = link

        def connected(_: object) -> None:
            if route.link is link:
                route.connecting = None

        def failed(failure: Failure) -> None:
            connected(None)
            link.fail("not-reached", one_line(failure.value))

        connecting = maybeDeferred(route.endpoint.connect, _Dialled(link))
        if route.link is link:
            route.connecting = connecting
        connecting.addCallbacks(connected, failed)

    def _wait(self, route: Route) -> None:
        limit_s = min(REDIAL_LAST_S, REDIAL_FIRST_S * 2.0 ** min(route.attempts, 30))
        route.attempts += 1
        route.due = self._clock.seconds() + self._uniform(0.0, limit_s) + self._way_given(route)

    def _way_given(self, route: Route) -> float:
        return GIVE_WAY_S if route.peer.node < self._node else 0.0

    def _say(self, route: Route, end: End) -> None:
        text, now = str(end), self._clock.seconds()
        route.said = {said: at for said, at in route.said.items() if now - at < SAY_AGAIN_S}
        if end.reason in _NOT_SAID or not self.running or text in route.said or len(route.said) >= SAID_MAX:
            return
        route.said[text] = now
        log.warn(
            "{peer} cannot be linked at {endpoint}: {why}",
            peer=route.peer.node,
            endpoint=route.peer.endpoint,
            why=text,
        )
