"""Endpoint strings as a front understands them: those that it listens on, and the files that clients' name.

Of those that are listened on, ``ssl:`` is understood here and not by Twisted's own parser, which loads a certificate
once and for all, takes older protocols when told to, and leaves out the rest of a chain that is in the same file. The
parameters are the same, the TLS is that of ``kollator.net.tls``. In ``haproxy:ssl:`` the PROXY header comes in clear,
before the handshake, as every proxy sends it (PROXY protocol, section 2). Twisted itself looks for it inside TLS.

What needs OpenSSL is imported where an endpoint uses it: see ``kollator.lean``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from kollator.net.proxyheader import ProxyHeaderEndpoint

if TYPE_CHECKING:
    from kollator.net.tls import Credentials

log = Logger("kollator:tls")

SSL_PARAMETERS = (
    "port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters",
)
"""What an ``ssl:`` endpoint string takes, in the order of those that are given without a name."""


class EndpointError(ValueError):
    """An endpoint string or one of its files cannot be used: one line that names which, and why."""


@implementer(IStreamServerEndpoint)
class ListenEndpoint:
    """An endpoint to listen on. ``credentials`` are what its TLS uses; None where it has none that are known here."""

    def __init__(self, reactor: Any, endpoint: Any, credentials: Credentials | None = None) -> None:
        self.credentials = credentials
        self._reactor = reactor
        self.endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """Binds it; fires with the port."""
        factory, credentials = protocolFactory, self.credentials
        if credentials is not None:
            from twisted.protocols.tls import TLSMemoryBIOFactory

            creator: Any = credentials  # zope's interfaces are not known to mypy
            factory = TLSMemoryBIOFactory(creator, False, protocolFactory, self._reactor)
        listening: Deferred[Any] = self.endpoint.listen(factory)
        return listening


def listen_endpoint(reactor: Any, description: str, *, client_ca: str | None = None) -> ListenEndpoint:
    """The endpoint of an endpoint string; ``ssl:`` and ``haproxy:ssl:`` get the TLS of ``kollator.net.tls``.

    ``client_ca`` is a file of authorities for client certificates; kinds other than ``ssl:`` leave it aside. Raises
    ``EndpointError``, and whatever Twisted's parsers raise.
    """
    within = description.removeprefix("haproxy:")
    if not within.startswith("ssl:"):
        log.debug("{description}: certificates, if it has any, are the endpoint's own matter", description=description)
        endpoint: Any = serverFromString(reactor, within)
        return ListenEndpoint(reactor, endpoint if within == description else ProxyHeaderEndpoint(endpoint))
    from kollator.net.tls import Credentials

    values = _named_values(within, SSL_PARAMETERS)
    private_key = values.get("privateKey", "server.pem")
    credentials = Credentials(
        private_key,
        values.get("certKey", private_key),
        chain=values.get("extraCertChain"),
        dh_parameters=values.get("dhParameters"),
        client_ca=client_ca,
        method=values.get("sslmethod"),
    )
    endpoint = TCP4ServerEndpoint(
        reactor, _whole(values, "port"), _whole(values, "backlog", "50"), values.get("interface", "")
    )
    if within != description:
        endpoint = ProxyHeaderEndpoint(endpoint)
    return ListenEndpoint(reactor, endpoint, credentials)


def client_files(description: str) -> tuple[str, ...]:
    """The files and folders that a ``tls:`` client endpoint string names, to be watched; none for other kinds."""
    if not description.startswith("tls:"):
        return ()
    _, named = _split(description)
    names = ("certificate", "privateKey", "trustRoots")
    return tuple(dict.fromkeys(named[name] for name in names if named.get(name)))


def _split(description: str) -> tuple[list[str], dict[str, str]]:
    """The unnamed and the named parameters, as Twisted's documentation of endpoint strings has it."""
    parameters: list[list[str]] = [[""]]
    characters = iter(description)
    for character in characters:
        if character == ":":
            parameters.append([""])
        elif character == "=" and len(parameters[-1]) == 1:
            parameters[-1].append("")
        else:
            parameters[-1][-1] += next(characters, "") if character == "\\" else character
    named = {name: value[0] for name, *value in parameters if value}
    return [name for name, *value in parameters if not value], named


def _named_values(description: str, names: tuple[str, ...]) -> dict[str, str]:
    (kind, *unnamed), named = _split(description)
    if len(unnamed) > len(names):
        raise EndpointError(f"{kind}: takes {len(names)} parameters at most")
    values = dict(zip(names, unnamed, strict=False))
    for name, value in named.items():
        if name not in names or name in values:
            raise EndpointError(f"{kind}: {name} is {'there twice' if name in names else 'not known'}")
        values[name] = value
    return values


def _whole(values: dict[str, str], name: str, default: str = "") -> int:
    text = values.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise EndpointError(f"{name}: {text!r} is not a number") from None
