"""Signaling across fronts: where a message goes whose target is connected elsewhere. Pure.

Workers are found through the replicated attachments. Clients are in no table: a front learns the way back from the
message itself, as a switch learns ports. A message is passed on over ``HOPS`` links at most and never back over the
one it came by, so nothing circles; it is delivered, or refused at once, and the refusal goes back the same way.
A front that is only on the way forgets its way back as a refusal takes it, so refusals cannot circle either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from msgspec.structs import replace

from kollator.cluster.wire import Arrived, Frame, Kept, ToClient, ToWorker, Undelivered

ROUTES = 100_000
"""The most clients of other fronts that the way to is remembered of; who was heard longest ago is forgotten first."""
UNNOTICED_MS = 10_000
"""A link may have been dead for so long, in milliseconds, when it is found to be."""
HOPS = 2
"""A message may take a detour over one front, where two cannot reach each other."""

Outcome = Literal["sent", "busy", "unknown", "forbidden"]


class Local(Protocol):
    """The connections of this front (the switchboard)."""

    def deliver_to_worker(self, worker: str, payload: bytes) -> Outcome:
        """Sends an encoded message to a worker of this front."""

    def deliver_to_client(self, client: str, payload: bytes, now: float) -> Outcome:
        """Sends an encoded message to a client of this front, or keeps it for one that dropped just now."""

    def undelivered(self, sender: str, target: str, outcome: Outcome, ref: str | None) -> bool:
        """Tells a client or worker that its message did not arrive. False: the sender is not connected here."""

    def moved_away(
        self, client: str, at_ms: int, front: str, now: float
    ) -> tuple[str, Sequence[str], Sequence[bytes]] | None:
        """A client has connected to ``front`` at that time: closes an older connection of it here (at equal times
        the front with the higher id has the newer one), and gives out what was remembered: assigned worker, workers
        talked to, kept messages. None when nothing was, or the connection here is the newer one.
        """

    def arrivals(self, since_ms: int) -> Iterable[tuple[str, int]]:
        """The clients that are connected here and came with a ticket at that time or later, each with its time."""

    def inherited(
        self, client: str, assigned: str, talked: Sequence[str], payloads: Sequence[bytes], now: float
    ) -> None:
        """What another front remembered of a client that is here now."""


class Exchange:
    """The ways between this front's connections and those of others.

    ``send`` gives a frame to a peer's link and returns whether it took it, ``up`` tells which peers have a link
    (for a detour the first is tried first), ``fronts_of`` the live fronts that hold a worker.
    """

    def __init__(
        self,
        node: str,
        local: Local,
        *,
        send: Callable[[str, Frame], bool],
        up: Callable[[], Sequence[str]],
        fronts_of: Callable[[str], Sequence[str]],
    ) -> None:
        self._node = node
        self._local = local
        self._send = send
        self._up = up
        self._fronts_of = fronts_of
        self._routes: OrderedDict[str, str] = OrderedDict()  # the way to a client
        self._down_at_ms: dict[str, int] = {}
        self._returns: OrderedDict[str, str] = OrderedDict()  # the way to a worker whose message was passed on

    def __len__(self) -> int:
        """How many ways are remembered."""
        return len(self._routes) + len(self._returns)

    # -- from this front's own connections --------------------------------------------------------------------------

    def to_worker(self, worker: str, client: str, payload: bytes, ref: str | None) -> Outcome:
        """A client's message for a worker that is not connected here."""
        return self._towards_worker(ToWorker(worker, client, payload, ref), came_by=None)

    @property
    def is_alone(self) -> bool:
        """No other front is linked."""
        return not self._up()

    def to_client(self, client: str, worker: str, payload: bytes, ref: str | None) -> Outcome:
        """A worker's message for a client that is not connected here."""
        return self._towards_client(ToClient(client, worker, payload, ref), came_by=None)

    def arrived(self, client: str, at_ms: int) -> None:
        """A client has come here with a ticket: another front may have an older connection of it, or messages."""
        self._routes.pop(client, None)
        for peer in self._up():
            self._send(peer, Arrived("client", client, at_ms))

    # -- from other fronts --------------------------------------------------------------------------------------------

    def received(self, peer: str, frame: Frame, now: float) -> bool:
        """Takes a frame of ``peer``; False when it is none of the exchange's."""
        if isinstance(frame, ToWorker):
            _learn(self._routes, frame.client, peer)
            outcome = self._local.deliver_to_worker(frame.worker, frame.payload)
            if outcome == "unknown":
                outcome = self._towards_worker(frame, came_by=peer)
            if outcome != "sent":
                self._send(peer, Undelivered("worker", frame.worker, frame.client, outcome, frame.ref))
        elif isinstance(frame, ToClient):
            outcome = self._local.deliver_to_client(frame.client, frame.payload, now)
            if outcome == "unknown":
                outcome = self._towards_client(frame, came_by=peer)
                if outcome == "sent":
                    _learn(self._returns, frame.worker, peer)
            if outcome != "sent":
                self._send(peer, Undelivered("client", frame.worker, frame.client, outcome, frame.ref))
        elif isinstance(frame, Undelivered):
            self._take_undelivered(peer, frame)
        elif isinstance(frame, Arrived):
            self._take_arrived(peer, frame, now)
        elif isinstance(frame, Kept):
            self._local.inherited(frame.client, frame.assigned, frame.talked, frame.payloads, now)
        else:
            return False
        return True

    def link_up(self, peer: str) -> None:
        """There is a link: the front at its other end has not heard who came here while there was none."""
        since_ms = self._down_at_ms.pop(peer, 0)
        for client, at_ms in self._local.arrivals(since_ms):
            self._send(peer, Arrived("client", client, at_ms))

    def link_down(self, peer: str, now_ms: int) -> None:
        """The link is gone, now (Unix milliseconds). The ways over it are remembered: most clients stay where they
        are when a link breaks, and a worker that speaks first after it is made anew must find them.
        """
        self._down_at_ms[peer] = now_ms - UNNOTICED_MS

    # -- the ways -----------------------------------------------------------------------------------------------------

    def _towards_worker(self, frame: ToWorker, came_by: str | None) -> Outcome:
        holders = self._fronts_of(frame.worker)
        if self._node in holders or came_by in holders:
            holders = [front for front in holders if front not in (self._node, came_by)]
        return self._pass_on(frame, holders, came_by)

    def _towards_client(self, frame: ToClient, came_by: str | None) -> Outcome:
        way = self._routes.get(frame.client)
        return self._pass_on(frame, [way], came_by) if way is not None and way != came_by else "unknown"

    def _pass_on(
        self, frame: ToWorker | ToClient, fronts: Sequence[str], came_by: str | None
    ) -> Outcome:
        if not fronts:
            return "unknown"
        if came_by is not None:
            frame = replace(frame, hops=frame.hops + 1)
        if frame.hops >= HOPS:
            return "unknown"
        for front in fronts:
            if self._send(front, frame):
                return "sent"
        up = self._up()
        if any(front in up for front in fronts):
            return "busy"
        detours = [peer for peer in up if peer != came_by] if frame.hops + 1 < HOPS else []
        for peer in detours:
            if self._send(peer, frame):
                return "sent"
        return "busy" if detours else "unknown"

    def _take_undelivered(self, peer: str, frame: Undelivered) -> None:
        sender, target, back = frame.client, frame.worker, self._routes
        if frame.towards == "client":
            if self._routes.get(frame.client) == peer:
                del self._routes[frame.client]
            sender, target, back = frame.worker, frame.client, self._returns
        if not self._local.undelivered(sender, target, frame.outcome, frame.ref):
            way = back.pop(sender, None)
            if way is not None and way != peer:
                self._send(way, frame)

    def _take_arrived(self, peer: str, frame: Arrived, now: float) -> None:
        if frame.kind != "client":
            return  # a worker may be connected to several fronts
        remembered = self._local.moved_away(frame.id, frame.at_ms, peer, now)
        _learn(self._routes, frame.id, peer)
        if remembered is not None:
            assigned, talked, payloads = remembered
            self._send(peer, Kept(frame.id, assigned, list(talked), list(payloads)))


def _learn(table: OrderedDict[str, str], name: str, peer: str) -> None:
    if table.get(name) != peer:
        table[name] = peer
        if len(table) > ROUTES:
            table.popitem(last=False)
    table.move_to_end(name)
