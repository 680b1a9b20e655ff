"""Probes of the health addresses that WORKERS_FILE gives: plain TCP connections and HTTP requests."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, ConnectionRefusedError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    HostnameCachingHTTPSPolicy,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from kollator.net.lookups import ReactorWithLookups, SharedLookups
from kollator.observe.loops import Loop
from kollator.pool.probes import Probe, ProbeBook
from kollator.pool.workersfile import HealthTarget
from kollator.text import one_line

log = Logger("kollator:pool")

TURN_S = 0.05
"""How often the book is asked, in seconds: how exact the time-out is."""
BODY_BYTES = 64 * 1024
"""An answer's body is read no further: its status says it all."""
ANSWER_BYTES = 2 * BODY_BYTES
"""All that is taken from one connection."""
FOLLOWED_AT_ONCE = 250
"""After a change of the list so many workers are looked at in one turn of the loop."""
CONNECT_S = 60.0
"""Far above any time-out of a probe, which ends the attempt itself."""

_CONTEXTS = 256
_SAID_CHARS = 160


class ProbeFailed(Exception):
    """The worker's health address did not answer as it should: why, in a few words."""


class _Connection(ProtocolWrapper):
    """A probe's connection: takes so much and no more, and tells when it is gone."""

    def __init__(self, factory: Any, wrapped: Any, opened: list[_Connection]) -> None:
        super().__init__(factory, wrapped)
        self.gone: Deferred[None] = Deferred()
        self._opened = opened
        self._left_bytes = ANSWER_BYTES

    def connectionMade(self) -> None:
        """From now on there is something to be closed."""
        self._opened.append(self)

    def dataReceived(self, data: bytes) -> None:
        """Hands it on, up to the limit."""
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            super().dataReceived(data)
        else:
            self.abortConnection()

    def connectionLost(self, reason: Any = None) -> None:
        """It is gone."""
        super().connectionLost(reason)
        self.gone.callback(None)


class _Connections(WrappingFactory):
    noisy = False

    def __init__(self, wrapped: Any, opened: list[_Connection]) -> None:
        super().__init__(wrapped)
        self._opened = opened

    def buildProtocol(self, addr: Any) -> Any:
        return _Connection(self, self.wrappedFactory.buildProtocol(addr), self._opened)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """An endpoint whose connections are all gone when ``close`` says so."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint
        self._opened: list[_Connection] = []

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """As ``IStreamClientEndpoint`` has it."""
        connected: Deferred[Any] = self._endpoint.connect(_Connections(protocolFactory, self._opened))
        return connected.addCallback(lambda connection: connection.wrappedProtocol)

    def close(self, *, politely: bool) -> Deferred[Any]:
        """Closes whatever is open, without waiting for the other side; fires when it is gone.

        Not ``politely``, the other side sees a reset connection, which some servers complain of in their logs.
        """
        for connection in self._opened:
            if not connection.gone.called:
                connection.loseConnection() if politely else connection.abortConnection()
        return DeferredList([connection.gone for connection in self._opened], consumeErrors=True)


class _Body(Protocol):
    """Reads a body, up to its limit, and throws it away."""

    def __init__(self) -> None:
        self.read: Deferred[None] = Deferred()
        self._left_bytes = BODY_BYTES

    def dataReceived(self, data: bytes) -> None:
        """Counts it."""
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._over(None)

    def connectionLost(self, reason: Any = None) -> None:
        """It is over, in one way or another."""
        self._over(None if reason.check(ResponseDone, PotentialDataLoss) else reason)

    def _over(self, failure: Failure | None) -> None:
        if not self.read.called:
            self.read.callback(None) if failure is None else self.read.errback(failure)


@implementer(IAgentEndpointFactory)
class _OneEndpoint:
    """What ``Agent`` connects by."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: Any) -> _Endpoint:
        """The one."""
        return self._endpoint


class Prober:
    """Carries probes out. ``version`` is this software's, for the servers' logs."""

    def __init__(self, reactor: Any, version: str) -> None:
        self._reactor = reactor
        self._naming: Any = None
        self._headers = Headers({"User-Agent": [f"kollator-front/{version}"], "Accept": ["*/*"]})
        self._policy: Any = None

    def probe(self, target: HealthTarget) -> Deferred[None]:
        """Fires when the target has answered well; fails with ``ProbeFailed`` otherwise, or ``CancelledError``.

        In each case its connection is gone by then.
        """
        return Deferred.fromCoroutine(self._probe(target))

    async def _probe(self, target: HealthTarget) -> None:
        answered = False
        try:
            endpoint = _Endpoint(self._endpoint_of(target))
            try:
                if target.scheme == "tcp":
                    await endpoint.connect(_Silent())
                else:
                    await self._get(target, endpoint)
                answered = True
            finally:
                # The polite end of TLS waits for the other side.
                await endpoint.close(politely=answered and target.scheme != "https")
        except (ProbeFailed, CancelledError):
            raise
        except Exception as problem:
            raise ProbeFailed(_reason(problem)) from None

    async def _get(self, target: HealthTarget, endpoint: _Endpoint) -> None:
        agent = Agent.usingEndpointFactory(self._reactor, _OneEndpoint(endpoint))
        response: Any = await agent.request(b"GET", target.url.encode("ascii"), self._headers.copy())
        if not 200 <= response.code < 300:
            raise ProbeFailed(f"HTTP status {response.code}")
        body = _Body()
        response.deliverBody(body)
        await body.read

    def _endpoint_of(self, target: HealthTarget) -> Any:
        endpoint: Any
        try:
            version = ip_address(target.host).version
        except ValueError:
            if self._naming is None:
                self._naming = ReactorWithLookups(self._reactor, SharedLookups(self._reactor.nameResolver))
            endpoint = HostnameEndpoint(self._naming, target.host, target.port, CONNECT_S)
        else:
            kind = TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint
            endpoint = kind(self._reactor, target.host, target.port, CONNECT_S)
        if target.scheme != "https":
            return endpoint
        if self._policy is None:  # it remembers: to read the system's authorities for each probe would take too long
            default: Any = BrowserLikePolicyForHTTPS()
            self._policy = HostnameCachingHTTPSPolicy(default, _CONTEXTS)
        return wrapClientTLS(self._policy.creatorForNetloc(target.host.encode("ascii"), target.port), endpoint)


class _Silent(Factory):
    """Connections that neither say nor want anything."""

    noisy = False
    protocol = Protocol


class _UnderWay:
    """A probe that was begun, and who waits for its end."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.over: Deferred[None] = Deferred()
        self.done: Deferred[None] | None = None
        self.cancelled = False
        self.too_long = False


class Probing(MultiService):
    """Probes the workers that this front holds and whose entries name a health address.

    ``probe`` carries one out, as ``Prober.probe`` does. ``target_of`` says what is probed for a worker, if anything;
    ``unwell`` (with what is said in the log) and ``well`` are called when the probes take a worker out and bring it
    back; ``phase`` draws a number from 0 to 1 that spreads the probes over the interval; ``failed`` is called with
    the name of the loop when a turn of it fails.
    """

    def __init__(
        self,
        clock: Any,
        book: ProbeBook,
        probe: Callable[[HealthTarget], Deferred[None]],
        *,
        target_of: Callable[[str], HealthTarget | None],
        unwell: Callable[[str, str], object],
        well: Callable[[str], object],
        phase: Callable[[], float],
        failed: Callable[[str], object] = lambda name: None,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._book = book
        self._probe = probe
        self._target_of = target_of
        self._unwell = unwell
        self._well = well
        self._phase = phase
        self._held: set[str] = set()
        self._unfollowed: list[str] = []
        self._under_way: dict[int, _UnderWay] = {}
        Loop("probes", self.turn, TURN_S, clock, failed).setServiceParent(self)

    def joined(self, worker: str) -> None:
        """The worker is connected to this front now, by its first connection or a newer one."""
        self._held.add(worker)
        self._follow(worker)
        if self._book.is_out(worker):
            self._unwell(worker, "its last health probe failed")

    def left(self, worker: str) -> None:
        """The worker's connection is gone."""
        self._held.discard(worker)
        self._break_off(self._book.unwatch(worker, left=True))

    def refresh(self) -> None:
        """The operator's list has changed. Many workers are looked at some at a time, by ``turn``."""
        self._unfollowed = sorted(self._held)
        self._follow_some()

    def turn(self) -> None:
        """One round: which probes took too long, which are to be begun."""
        now = self._clock.seconds()
        self._follow_some()
        for number in self._book.overdue(now):
            if number in self._under_way:
                self._under_way[number].too_long = True
            self._break_off(number)
        for probe in self._book.due(now):
            self._begin(probe)

    def stopService(self) -> Deferred[Any]:
        """Breaks all probes off; fires when none is left."""
        stopped = [maybeDeferred(super().stopService)]
        for number, under_way in list(self._under_way.items()):
            stopped.append(under_way.over)
            self._break_off(number)
        return DeferredList(stopped)

    def _follow_some(self) -> None:
        some, self._unfollowed = self._unfollowed[:FOLLOWED_AT_ONCE], self._unfollowed[FOLLOWED_AT_ONCE:]
        for worker in some:
            if worker in self._held:
                self._follow(worker)

    def _follow(self, worker: str) -> None:
        target = self._target_of(worker)
        if target is not None:
            self._break_off(self._book.watch(worker, target, self._clock.seconds(), self._phase()))
            return
        was_out = self._book.is_out(worker)
        self._break_off(self._book.unwatch(worker))
        if was_out:
            self._well(worker)

    def _begin(self, probe: Probe) -> None:
        under_way = self._under_way[probe.number] = _UnderWay(probe)
        done = under_way.done = maybeDeferred(self._probe, probe.target)
        done.addCallbacks(lambda _: self._ended(under_way, ""), lambda failure: self._failed(under_way, failure))
        done.addErrback(lambda failure: log.failure("a probe's outcome could not be taken in", failure=failure))

    def _failed(self, under_way: _UnderWay, failure: Failure) -> None:
        if under_way.too_long:
            said = f"no answer within {self._book.timeout_s:g} s"
        elif failure.check(ProbeFailed, CancelledError):
            said = failure.getErrorMessage() or "it was broken off"
        else:
            said = _reason(failure.value)
        self._ended(under_way, said)

    def _ended(self, under_way: _UnderWay, said: str) -> None:
        probe = under_way.probe
        del self._under_way[probe.number]
        turn = self._book.ended(probe.number, not said)
        try:
            if not self.running:
                return
            if turn == "out":
                self._unwell(probe.worker, f"its health probe {probe.target.shown} failed: {said}")
            elif turn == "back":
                self._well(probe.worker)
        finally:
            under_way.over.callback(None)

    def _break_off(self, number: int | None) -> None:
        under_way = self._under_way.get(number) if number is not None else None
        if under_way is not None and under_way.done is not None and not under_way.cancelled:
            under_way.cancelled = True
            under_way.done.cancel()


def _reason(problem: BaseException | None) -> str:
    if isinstance(problem, ResponseFailed) and problem.reasons:
        problem = problem.reasons[0].value
    if isinstance(problem, ConnectionRefusedError):
        return "connection refused"
    if isinstance(problem, DNSLookupError):
        return "its name cannot be looked up"
    if isinstance(problem, ConnectionClosed):
        return "the connection was closed"
    text = str(problem) if isinstance(problem, ConnectError) else f"{type(problem).__name__} {problem}"
    return "".join(char if char.isprintable() else "?" for char in one_line(text))[:_SAID_CHARS]
