"""The links of one front: dials its peers, listens to them, and keeps one link for each pair.

Both fronts of a pair may dial, and both may succeed. Which link stays follows from what both of them know:

* Of two links in different directions, the one that the lower id dialled.
* Of two in the same direction, the newer one: who dials again has lost the older.

So both ends decide alike, in whatever order things reach them. A link that loses is closed with
``duplicate-link``, by the listener before its proof where it can: then the dialler never takes it for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.clock import Clock
from kollator.cluster.accepting import Acceptor
from kollator.cluster.dialling import Dialler, LinkError
from kollator.cluster.handshake import Handshake
from kollator.cluster.link import KEEPALIVE_S, End, PeerLink, Reason
from kollator.cluster.outbox import TurnEnd
from kollator.cluster.wire import NONCE_BYTES, Frame, RefusalReason, Summary
from kollator.cluster.worker_sync import client_endpoint
from kollator.net.endpoints import EndpointError, ListenEndpoint, listen_endpoint
from kollator.settings import Peer
from kollator.text import one_line

if TYPE_CHECKING:
    from kollator.net.tls import Credentials

__all__ = ["LinkError", "Links"]

log = Logger("kollator:cluster")

TURN_S = 0.05
"""How often the links are looked at."""
SLEPT_S = 1.0
"""A turn that is so much late, or early, says more of this process or its clock than of the peers."""

_ORDINARY = ("lost", "duplicate-link", "stopping", "cut")
_NO_FRAME = ("too-large", "malformed", "unknown-type")


class Links(Service):
    """The links of front ``node`` to ``peers``, proved with ``keys`` (the first signs, all are accepted).

    ``privilegedStartService`` binds the endpoint strings of ``listen``, and raises ``LinkError`` where that cannot
    be done, or where a peer's endpoint cannot be used. ``established`` and ``lost`` are called in turns for each
    peer, ``received`` in between, with every frame but refusals. ``summary`` gives what pings carry. ``count``
    takes one of ``link.REASONS`` for each link, or attempt at one, that is over. ``exempt`` tells addresses that
    are always listened to. ``random_bytes`` gives nonces and ``uniform`` a random number between two others.
    ``refused`` takes the address and the reason of each link that was refused to who dialled in.
    ``client_ca`` is a file of authorities: who links in by an ``ssl:`` endpoint must show a certificate of theirs.

    ``acceptor`` is what ``worker_sync.WorkerSyncFactory`` takes.
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
        client_ca: str | None = None,
        refused: Callable[[str, str], object] = lambda address, reason: None,
    ) -> None:
        self.node = node
        self.ports: list[Any] = []
        self.credentials: list[Credentials] = []
        """Of the TLS endpoints that are listened on; to be reloaded when their files change."""
        self.acceptor = Acceptor(self._begin, reactor, count, exempt, refused)
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
        self._keepalive_s = keepalive_s
        self._endpoint_of = endpoint_of
        self._client_ca = client_ca
        self._dialler: Dialler | None = None
        self._up: dict[str, PeerLink] = {}
        self._all: dict[PeerLink, None] = {}
        """Every link that is not gone."""
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
        if self._client_ca is not None:
            from kollator.net.tls import check_authorities

            try:
                check_authorities(self._client_ca)
            except EndpointError as problem:
                raise LinkError(f"PEER_CLIENT_CA: {problem}; name a PEM file of certificates") from None
        self._dialler = Dialler(
            self.node,
            self._peers,
            self._reactor,
            begin=self._begin,
            uniform=self._uniform,
            endpoint_of=self._endpoint_of,
        )
        endpoints = [(description, self._parse(description)) for description in self._listen]
        self.credentials = [endpoint.credentials for _, endpoint in endpoints if endpoint.credentials is not None]
        self._check_client_ca(endpoints)
        for description, endpoint in endpoints:
            self._bind(description, endpoint)
        super().privilegedStartService()

    def _parse(self, description: str) -> ListenEndpoint:
        try:
            return listen_endpoint(self._reactor, description, client_ca=self._client_ca)
        except Exception as problem:  # endpoint parsers raise whatever they like
            raise LinkError(
                f"PEER_LISTEN: {description!r} is not an endpoint: {one_line(problem)}; write one like tcp:9090"
            ) from None

    def _check_client_ca(self, endpoints: Sequence[tuple[str, ListenEndpoint]]) -> None:
        if self._client_ca is None or not self._peers:
            return
        for description, endpoint in endpoints:
            if endpoint.credentials is None:
                log.warn("PEER_CLIENT_CA is nothing to {description}: it is no ssl: endpoint", description=description)
        if not self.credentials:
            raise LinkError(
                "PEER_CLIENT_CA: PEER_LISTEN has no ssl: endpoint, so nobody would be asked for a certificate; "
                "write one like ssl:9443:privateKey=key.pem:certKey=cert.pem, or leave PEER_CLIENT_CA out"
            )

    def _bind(self, description: str, endpoint: ListenEndpoint) -> None:
        listening = maybeDeferred(endpoint.listen, self.acceptor)
        failures: list[Failure] = []
        listening.addCallbacks(self.ports.append, failures.append)
        if failures:
            raise LinkError(
                f"PEER_LISTEN: {description!r} cannot be listened on: {one_line(failures[0].value)}; "
                "stop what uses it, or choose another"
            )

    def reload_routes(self) -> None:
        """Reads the certificates again that peers are dialled with. Links that there are stay."""
        if self._dialler is not None:
            self._dialler.reload()

    def startService(self) -> None:
        """Begins to dial, and to answer who dials. Raises ``LinkError``."""
        if self._dialler is None:  # nobody called privilegedStartService
            self.privilegedStartService()
        assert self._dialler is not None
        super().startService()
        for port in self.ports:
            log.info("links to {node} are accepted on {host}", node=self.node, host=str(port.getHost()))
        self.acceptor.is_open = True
        self._dialler.start()
        self._turned_at = self._reactor.seconds()
        self._turns.start(TURN_S, now=True)

    def stopService(self) -> Deferred[None]:
        """Closes everything; fires when no link and no port is left, after little more than a second at most."""
        super().stopService()
        self.acceptor.is_open = False
        if self._dialler is not None:
            self._dialler.running = False
        ports, self.ports = self.ports, []
        closed = DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)
        over = self._over = Deferred()
        for link in list(self._all):
            link.close("stopping")
        self._check_over()

        def stop_turning(_: object) -> None:
            if self._turns.running:
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
        for link in list(self._all):
            if abs(late_s) > SLEPT_S:
                link.shift(late_s)
            link.look(now, self._keepalive_s)
        if self._dialler is not None:
            self._dialler.turn(now, self._up)

    # -- what links ask and tell --------------------------------------------------------------------------------------

    def _begin(self, address: str, dialled: str | None = None) -> PeerLink:
        handshake = Handshake(self.node, self._keys, self._members, self._random_bytes(NONCE_BYTES), dialled)
        self._serial += 1
        link = PeerLink(self, handshake, self._reactor, self._turn_end, address=address, serial=self._serial)
        self._all[link] = None
        return link

    def admits(self, link: PeerLink, peer: str) -> RefusalReason | None:
        """Whether ``link`` is better than the one that there is to ``peer``."""
        self.acceptor.proved(link)
        old = self._up.get(peer)
        if old is None:
            return None
        if link.dialled == old.dialled:
            better = link.serial > old.serial
        else:
            better = link.dialled == (self.node < peer)
        if better:
            return None
        # That the peer made it at all may mean that the old one is dead, and nobody has told us.
        old.doubt()
        return "duplicate-link"

    def established(self, link: PeerLink, peer: str) -> None:
        """Replaces the link that there was, and dials no more."""
        assert self._dialler is not None
        old = self._up.get(peer)
        if old is not None:
            old.close("duplicate-link")
        self._up[peer] = link
        self._dialler.linked(link, peer)
        how = "dialled" if link.dialled else "accepted from"
        log.info("linked to {peer} ({how} {address})", peer=peer, how=how, address=link.address)
        self._tell(self._on_established, peer)

    def received(self, link: PeerLink, peer: str, frame: Frame) -> None:
        """Hands a frame on."""
        if self._up.get(peer) is link:
            try:  # as ``_tell``, a call less for each relayed message
                self._on_received(peer, frame)
            except Exception:
                self._not_handled(frame)

    def ended(self, link: PeerLink, end: End) -> None:
        """Counts it, says so, and sees to the next one."""
        assert self._dialler is not None
        self._count(end.counted_as)
        peer = link.peer
        if peer is None or self._up.get(peer) is not link:
            if link.dialled:
                self._dialler.failed(link, end)
            else:
                self.acceptor.refused(link, end)
            return
        del self._up[peer]
        self._dialler.lost(peer, self._reactor.seconds() - (link.established_at or 0.0))
        if end.reason in _NO_FRAME:
            self.acceptor.blame(link)
        say = log.info if end.reason in _ORDINARY else log.warn
        say("the link to {peer} is over: {why}", peer=peer, why=str(end))
        self._tell(self._on_lost, peer)

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
            self._not_handled(arguments[-1])

    def _not_handled(self, what: object) -> None:
        log.failure("{what} could not be handled", what=type(what).__name__)
        self._count("internal")
