"""The links of one front: dials its peers, listens to them, and keeps one link for each pair.

Both fronts of a pair may dial, and both may succeed. Which link stays follows from what both of them know:

* Of two links in different directions, the one that the lower id dialled.
* Of two in the same direction, the newer one: who dials again has lost the older.

So both ends decide alike, in whatever order things reach them. A link that loses is closed with
``duplicate-link``, by the listener before its proof where it can: then the dialler never takes it for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.handshake import Handshake
from kollator.cluster.link import KEEPALIVE_S, End, PeerLink, Reason
from kollator.cluster.outbox import TurnEnd
from kollator.cluster.wire import NONCE_BYTES, Frame, RefusalReason, Summary
from kollator.cluster.worker_sync import client_endpoint
from kollator.guard.addresses import limit_key
from kollator.guard.limits import Allowance, FailureBackoff
from kollator.settings import Peer

log = Logger("kollator:cluster")

TURN_S = 0.05
"""How often the links are looked at."""
SLEPT_S = 1.0
"""A turn that is so much late, or early, says more of this process or its clock than of the peers."""
REDIAL_FIRST_S = 0.1
REDIAL_LAST_S = 5.0
"""The longest pause before a peer is dialled again: each is a random part of a limit that doubles up to here."""
GIVE_WAY_S = 0.1
"""The front with the higher id dials that much later, so that mostly one link is made and not two."""
LIVED_S = 2.0
"""A link that lived so long makes the next pause the shortest again."""
HALF_OPEN_MAX = 64
"""The most accepted links whose peer has not proved who it is. For one more, the oldest goes."""
BACKED_OFF_FIRST_S = 0.1
BACKED_OFF_LAST_S = 1.0
"""How long an address whose link was refused is not listened to. Not for long: others may share the address."""
ADDRESSES_MAX = 1024
LINES_A_SECOND = 0.2
LINES_AT_ONCE = 10
"""How much may be logged about those who are no peers."""
SAY_AGAIN_S = 60.0
"""A peer that cannot be linked is mentioned when the reason changes, and so often."""

_BLAMELESS = ("closed-early", "stopping", "duplicate-link", "half-open", "backed-off", "handshake-timeout")
"""Not held against an address: load balancers look whether a port is open, and fronts may be slow."""
_QUIET = ("closed-early", "duplicate-link", "backed-off")
_ORDINARY = ("lost", "duplicate-link", "stopping", "cut")


class LinkError(Exception):
    """The links cannot be set up: one line that names the setting and the remedy."""


class _Route:
    """The way to one configured peer, and what came of dialling it."""

    def __init__(self, peer: Peer, endpoint: Any) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.link: PeerLink | None = None
        """The link that is being dialled."""
        self.connecting: Deferred[Any] | None = None
        self.attempts = 0
        self.due = 0.0
        self.said = ""
        self.said_at = 0.0


class _Dialled(Factory):
    """Builds the one link that was begun before its connection was."""

    noisy = False

    def __init__(self, link: PeerLink) -> None:
        self._link = link

    def buildProtocol(self, addr: Any) -> PeerLink:
        """The link."""
        self._link.address = _host(addr) or self._link.address
        return self._link


class Acceptor(Factory):
    """Builds links for accepted connections; for the endpoints of PEER_LISTEN, and for ``/worker-sync``."""

    noisy = False

    def __init__(self, links: Links) -> None:
        self._links = links

    def buildProtocol(self, addr: Any) -> PeerLink | None:
        """A link, or None when this address is not to be listened to now."""
        return self._links.accept(_host(addr))

    def moved(self, link: PeerLink, address: str) -> bool:
        """A proxy told the address of a new link. False: that one is not to be listened to now."""
        return self._links.moved(link, address)


class Links(Service):
    """The links of front ``node`` to ``peers``, proved with ``keys`` (the first signs, all are accepted).

    ``privilegedStartService`` binds the endpoint strings of ``listen`` and raises ``LinkError`` where that cannot
    be done, or where a peer's endpoint cannot be used. ``established`` and ``lost`` are called in turns for each
    peer, ``received`` in between, with every frame but refusals. ``summary`` gives what pings carry. ``count``
    takes one of ``link.REASONS`` for each link, or attempt at one, that is over. ``exempt`` tells addresses that
    are always listened to. ``random_bytes`` gives nonces and ``uniform`` a random number between two others.
    """

    def __init__(
        self,
        node: str,
        peers: Sequence[Peer],
        keys: Sequence[bytes],
        *,
        reactor: Clock,
        listen: Sequence[str],
        established: Callable[[str], object],
        lost: Callable[[str], object],
        received: Callable[[str, Frame], object],
        random_bytes: Callable[[int], bytes],
        uniform: Callable[[float, float], float],
        summary: Callable[[str], Summary | None] = lambda peer: None,
        count: Callable[[Reason], object] = lambda reason: None,
        exempt: Callable[[str], bool] = lambda address: False,
        keepalive_s: float = KEEPALIVE_S,
        endpoint_of: Callable[[Any, str], Any] = client_endpoint,
    ) -> None:
        self.node = node
        self.ports: list[Any] = []
        self.acceptor = Acceptor(self)
        self._reactor = reactor
        self._listen = tuple(listen)
        self._peers = tuple(peers)
        self._members = frozenset(peer.node for peer in peers) | {node}
        self._keys = tuple(keys)
        self._on_established = established
        self._on_lost = lost
        self._on_received = received
        self._random_bytes = random_bytes
        self._uniform = uniform
        self._summary = summary
        self._count = count
        self._exempt = exempt
        self._keepalive_s = keepalive_s
        self._endpoint_of = endpoint_of
        self._routes: dict[str, _Route] = {}
        self._up: dict[str, PeerLink] = {}
        self._all: dict[PeerLink, None] = {}
        """Every link that is not gone, in the order of their beginning."""
        self._backoff = FailureBackoff(BACKED_OFF_FIRST_S, BACKED_OFF_LAST_S, ADDRESSES_MAX)
        self._lines = Allowance(LINES_A_SECOND, LINES_AT_ONCE)
        self._lines_full_at = 0.0
        self._unsaid = 0
        self._serial = 0
        self._turn_end = TurnEnd(reactor)
        self._turned_at = 0.0
        self._over: Deferred[None] | None = None
        turns: Any = LoopingCall(self._guarded_turn)
        turns.clock = reactor
        self._turns = turns

    # -- what a front does with them ----------------------------------------------------------------------------------

    def send(self, peer: str, frame: Frame) -> bool:
        """Sends a frame, see ``PeerLink.send``. False: it was not taken, and ``peer`` will not get it."""
        link = self._up.get(peer)
        return link is not None and link.send(frame)

    def is_up(self, peer: str) -> bool:
        """Whether there is a link to ``peer``."""
        return peer in self._up

    def is_busy(self, peer: str) -> bool:
        """Whether so much waits for ``peer`` that nothing more is taken that can wait or be refused."""
        link = self._up.get(peer)
        return link is not None and link.busy

    def up(self) -> set[str]:
        """The peers to which there is a link."""
        return set(self._up)

    def cut(self, peer: str, reason: RefusalReason | None = None) -> None:
        """Closes the link to ``peer``, if there is one; another is made as ever. Without a reason none is told."""
        link = self._up.get(peer)
        if link is None:
            return
        if reason is None:
            link.abort("cut")
        else:
            link.close(reason)

    def cut_all(self, reason: RefusalReason | None = None) -> None:
        """Closes all links, see ``cut``."""
        for peer in list(self._up):
            self.cut(peer, reason)

    # -- start and stop -----------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Binds the endpoints. Raises ``LinkError``."""
        for peer in self._peers:
            try:
                endpoint = self._endpoint_of(self._reactor, peer.endpoint)
            except Exception as problem:  # endpoint parsers raise whatever they like
                raise LinkError(
                    f"PEERS: {peer.endpoint!r} does not reach {peer.node}: {_one_line(problem)}; "
                    "write tcp:host:port, tls:host:port or wss://host/worker-sync"
                ) from None
            self._routes[peer.node] = _Route(peer, endpoint)
        for description in self._listen:
            self._bind(description)
        super().privilegedStartService()

    def _bind(self, description: str) -> None:
        try:
            listening = serverFromString(self._reactor, description).listen(self.acceptor)
        except Exception as problem:
            raise LinkError(
                f"PEER_LISTEN: {description!r} is not an endpoint: {_one_line(problem)}; write one like tcp:9090"
            ) from None
        failures: list[Failure] = []
        listening.addCallbacks(self.ports.append, failures.append)
        if failures:
            raise LinkError(
                f"PEER_LISTEN: {description!r} cannot be listened on: {_one_line(failures[0].value)}; "
                "stop what uses it, or choose another"
            )

    def startService(self) -> None:
        """Begins to dial, and to answer who dials. Raises ``LinkError``."""
        if not self._routes:  # nobody called privilegedStartService
            self.privilegedStartService()
        super().startService()
        now = self._turned_at = self._reactor.seconds()
        for route in self._routes.values():
            route.due = now + self._way_given(route)
        self._turns.start(TURN_S, now=True)

    def stopService(self) -> Deferred[None]:
        """Closes everything; fires when no link and no port is left, after a second or so at most."""
        running = self.running
        super().stopService()
        ports, self.ports = self.ports, []
        closed = DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)
        over = self._over = Deferred()
        for link in list(self._all):
            link.close("stopping")
        self._check_over()

        def stop_turning(_: object) -> None:
            if running:
                self._turns.stop()
            self._turn_end.cancel()

        return closed.addCallback(lambda _: over).addCallback(stop_turning)

    def _check_over(self) -> None:
        if self._over is not None and not self._all and not self._over.called:
            self._over.callback(None)

    # -- what time brings ---------------------------------------------------------------------------------------------

    def _guarded_turn(self) -> None:
        try:
            self._turn()
        except Exception:
            log.failure("a turn of the links failed")
            self._count("internal")

    def _turn(self) -> None:
        now = self._reactor.seconds()
        late_s, self._turned_at = now - self._turned_at - TURN_S, now
        slept = abs(late_s) > SLEPT_S
        for link in list(self._all):
            if slept:
                link.shift(late_s)
            link.look(now, self._keepalive_s)
        for route in self._routes.values():
            if slept:
                route.due = min(route.due, now + REDIAL_LAST_S)
            if self.running and route.link is None and route.peer.node not in self._up and now >= route.due:
                self._dial(route)

    # -- dialling -----------------------------------------------------------------------------------------------------

    def _dial(self, route: _Route) -> None:
        link = self._begin(route.peer.endpoint, dialled=route.peer.node)
        route.link = link

        def connected(_: object) -> None:
            if route.link is link:
                route.connecting = None

        def failed(failure: Failure) -> None:
            connected(None)
            link.fail("not-reached", _one_line(failure.value))

        connecting = maybeDeferred(route.endpoint.connect, _Dialled(link))
        if route.link is link and link.end is None:
            route.connecting = connecting
        connecting.addCallbacks(connected, failed)

    def _pause_s(self, route: _Route) -> float:
        limit_s = min(REDIAL_LAST_S, REDIAL_FIRST_S * 2.0 ** min(route.attempts, 30))
        route.attempts += 1
        return self._uniform(0.0, limit_s) + self._way_given(route)

    def _way_given(self, route: _Route) -> float:
        return GIVE_WAY_S if route.peer.node < self.node else 0.0

    def _not_dialled(self, link: PeerLink, end: End) -> None:
        """A link that this front dialled came to nothing, or is over later."""
        for route in self._routes.values():
            if route.link is link:
                route.link = None
                connecting, route.connecting = route.connecting, None
                if connecting is not None:
                    connecting.cancel()
                route.due = self._reactor.seconds() + self._pause_s(route)
                self._say_not_linked(route, end)

    def _say_not_linked(self, route: _Route, end: End) -> None:
        now = self._reactor.seconds()
        if end.reason in _QUIET or not self.running:
            return
        text = str(end)
        if text == route.said and now - route.said_at < SAY_AGAIN_S:
            return
        route.said, route.said_at = text, now
        log.warn("{peer} cannot be linked at {endpoint}: {why}", peer=route.peer.node, endpoint=route.peer.endpoint,
                 why=text)

    # -- accepting ----------------------------------------------------------------------------------------------------

    def accept(self, address: str) -> PeerLink | None:
        """A link for an accepted connection from ``address``; None: it is not listened to now."""
        if not self.running:
            return None
        if not self._listened_to(address):
            self._count("backed-off")
            return None
        half_open = [link for link in self._all if link.end is None and link.established_at is None
                     and not link.dialled]
        if len(half_open) >= HALF_OPEN_MAX:
            half_open[0].abort("half-open", f"{len(half_open)} are being opened")
        return self._begin(address)

    def moved(self, link: PeerLink, address: str) -> bool:
        """See ``Acceptor.moved``."""
        link.address = address
        if self._listened_to(address):
            return True
        link.fail("backed-off")
        return False

    def _listened_to(self, address: str) -> bool:
        return self._exempt(address) or not self._backoff.wait_s(limit_key(address), self._reactor.seconds())

    def _begin(self, address: str, dialled: str | None = None) -> PeerLink:
        handshake = Handshake(self.node, self._keys, self._members, self._random_bytes(NONCE_BYTES), dialled)
        self._serial += 1
        link = PeerLink(self, handshake, self._reactor, self._turn_end, address=address, serial=self._serial)
        self._all[link] = None
        return link

    # -- what links tell ----------------------------------------------------------------------------------------------

    def admits(self, link: PeerLink) -> RefusalReason | None:
        """Whether ``link`` is better than the one that there is."""
        assert link.peer is not None
        old = self._up.get(link.peer)
        if old is None or self._beats(link, old):
            return None
        # That it was made at all may mean that the old one is dead, and nobody has told us.
        old.doubt()
        return "duplicate-link"

    def _beats(self, link: PeerLink, old: PeerLink) -> bool:
        if link.dialled == old.dialled:
            return link.serial > old.serial
        assert link.peer is not None
        return link.dialled == (self.node < link.peer)

    def established(self, link: PeerLink) -> None:
        """Replaces the link that there was, and dials no more."""
        assert link.peer is not None
        peer = link.peer
        old = self._up.get(peer)
        if old is not None:
            old.close("duplicate-link")
        self._up[peer] = link
        route = self._routes[peer]
        route.said = ""
        if route.link is link:
            route.link = route.connecting = None
        elif route.link is not None and not (self.node < peer and route.link.answered):
            # Otherwise its proof is on the way, and where it arrives it beats this one.
            route.link.close("duplicate-link")
        log.info("linked to {peer} ({direction} {address})", peer=peer, address=link.address,
                 direction="dialled" if link.dialled else "accepted from")
        self._tell(self._on_established, peer)

    def received(self, link: PeerLink, frame: Frame) -> None:
        """Hands a frame on."""
        assert link.peer is not None
        if self._up.get(link.peer) is link:
            self._tell(self._on_received, link.peer, frame)

    def ended(self, link: PeerLink, end: End) -> None:
        """Counts it, says so, and sees to the next one."""
        self._count(end.counted_as)
        if link.peer is not None and self._up.get(link.peer) is link:
            self._lose(link, link.peer, end)
        elif link.dialled:
            self._not_dialled(link, end)
        else:
            self._refused(link, end)

    def _lose(self, link: PeerLink, peer: str, end: End) -> None:
        del self._up[peer]
        now = self._reactor.seconds()
        route = self._routes[peer]
        if link.established_at is not None and now - link.established_at >= LIVED_S:
            route.attempts = 0
        route.due = now + self._pause_s(route)
        if end.reason in ("too-large", "malformed", "unknown-type"):
            self._backoff.failed(limit_key(link.address), now)
        say = log.info if end.reason in _ORDINARY else log.warn
        say("the link to {peer} is over: {why}", peer=peer, why=str(end))
        self._tell(self._on_lost, peer)

    def _refused(self, link: PeerLink, end: End) -> None:
        now = self._reactor.seconds()
        if end.reason not in _BLAMELESS and not end.by_peer:
            self._backoff.failed(limit_key(link.address), now)
        if end.reason in _QUIET or not self.running:
            return
        full_at = self._lines.spend(self._lines_full_at, now)
        if full_at < 0:
            self._unsaid += 1
            return
        self._lines_full_at = full_at
        more, self._unsaid = self._unsaid, 0
        log.warn("a link from {address} was refused: {why}{more}", address=link.address, why=str(end),
                 more=f"; so were {more} that were not mentioned" if more else "")

    def gone(self, link: PeerLink) -> None:
        """Forgets it."""
        self._all.pop(link, None)
        self._check_over()

    def summary(self, peer: str) -> Summary | None:
        """What pings and pongs to ``peer`` carry."""
        return self._summary(peer)

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.failure("{what} could not be handled", what=type(arguments[-1]).__name__)
            self._count("internal")


def _host(address: Any) -> str:
    return getattr(address, "host", "") or ""


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
