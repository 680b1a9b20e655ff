"""The PROXY protocol (HAProxy's, versions 1 and 2) before what an endpoint serves: Twisted's, without its surprises.

Twisted's parser raises whatever comes to its mind for a header that is almost right, which ends in the log as an error
of this front's own. Here such a connection is closed like one without a header. And it does not know the short form of
a header without addresses, which HAProxy's own health checks send.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from zope.interface import implementer

log = Logger("kollator:web")


_SHORT, _LONG = b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN \r\n"


class ProxyHeader(HAProxyProtocolWrapper):
    """One connection: the header first, then all goes to the protocol behind it."""

    def dataReceived(self, data: bytes) -> None:
        """Part of the header, or of what follows."""
        if self._parser is None and data.startswith(_SHORT):
            data = _LONG + data.removeprefix(_SHORT)
        try:
            super().dataReceived(data)
        except Exception as problem:
            if self._proxyInfo is not None:  # the header was good: what follows it was not
                raise
            log.debug("a header of the PROXY protocol cannot be read: {problem!r}", problem=problem)
            self.loseConnection()


class ProxyHeaderFactory(HAProxyWrappingFactory):
    """Wraps what an endpoint serves."""

    protocol: Any = ProxyHeader
    noisy = False


@implementer(IStreamServerEndpoint)
class ProxyHeaderEndpoint:
    """An endpoint to listen on behind a proxy that tells its clients' addresses."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """Binds it; fires with the port."""
        listening: Deferred[Any] = self._endpoint.listen(ProxyHeaderFactory(protocolFactory))
        return listening
