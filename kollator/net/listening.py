"""The endpoints of LISTEN: bound at the start, named to people, closed first when the front stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.python.failure import Failure

from kollator.net.endpoints import ListenEndpoint, listen_endpoint
from kollator.starting import StartError, cannot_listen
from kollator.text import one_line

if TYPE_CHECKING:
    from kollator.net.tls import Credentials

_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_URL_SCHEMES = {"tcp": "http", "tcp4": "http", "tcp6": "http", "ssl": "https"}


class Listeners:
    """The open ports of one front, whose connections ``factory`` serves. ``descriptions`` are endpoint strings.

    ``made`` is called with each port once it is open. ``endpoint_of`` makes an endpoint of the reactor and a
    description, in their order.
    """

    def __init__(
        self,
        reactor: Any,
        descriptions: Sequence[str],
        factory: Any,
        made: Callable[[Any], object] | None = None,
        endpoint_of: Callable[[Any, str], ListenEndpoint] = listen_endpoint,
    ) -> None:
        self._endpoint_of = endpoint_of
        self._made = made
        self._reactor = reactor
        self._descriptions = descriptions
        self._factory = factory
        self.ports: list[Any] = []
        self.credentials: list[Credentials] = []
        """Of the TLS endpoints; to be reloaded when their files change."""

    def open(self) -> None:
        """Binds every endpoint; nothing when they are bound already. Raises ``StartError``."""
        if self.ports:
            return
        for description in self._descriptions:
            self._open(description)

    def _open(self, description: str) -> None:
        try:
            endpoint = self._endpoint_of(self._reactor, description)
            listening = endpoint.listen(self._factory)
        except Exception as problem:  # endpoint parsers raise whatever they like
            raise StartError(f"LISTEN: {description!r} is not an endpoint: {one_line(problem)}") from None
        if endpoint.credentials is not None:
            self.credentials.append(endpoint.credentials)
        failures: list[Failure] = []
        listening.addCallbacks(self._opened, failures.append)
        if failures:
            raise cannot_listen(description, failures[0].value)

    def _opened(self, port: Any) -> None:
        self.ports.append(port)
        if self._made is not None:
            self._made(port)

    def close(self) -> Deferred[Any]:
        """Closes the ports; fires when nothing listens any more. Connections stay."""
        ports, self.ports = self.ports, []
        return DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)

    def hosts(self) -> list[str]:
        """The addresses that are listened on, for the log."""
        return [str(port.getHost()) for port in self.ports]

    def urls(self) -> Iterator[str]:
        """Where a browser on this machine finds the page, for each TCP port."""
        for description, port in zip(self._descriptions, self.ports, strict=False):
            scheme = _URL_SCHEMES.get(description.partition(":")[0])
            if scheme is not None:
                host = port.getHost()
                name = _EVERY_INTERFACE.get(host.host, host.host)
                yield f"{scheme}://{f'[{name}]' if ':' in name else name}:{host.port}/"

    def signaling_url(self) -> str | None:
        """The URL of this front's signaling for a process on this machine; None without a plain TCP port."""
        plain = next((url for url in self.urls() if url.startswith("http:")), None)
        return None if plain is None else f"ws{plain.removeprefix('http')}signaling"
