"""twisted.web's Site with a bounded request body, and the take-over of a connection by a WebSocket."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.server import Site

from kollator.clock import Clock
from kollator.web.answers import BODY_BYTES
from kollator.web.door import Admission, answer, is_upgrade

log = Logger("kollator:web")

IDLE_S = 60
"""How long a connection may be quiet between two requests, or within one."""


class Body(BytesIO):
    """A request body that keeps ``BODY_BYTES`` at most and remembers that there was more."""

    too_large = False

    def write(self, data: Any) -> int:
        """Takes a chunk; what is over the limit is counted and dropped."""
        if self.too_large or self.tell() + len(data) > BODY_BYTES:
            self.too_large = True
            return len(data)
        return super().write(data)


class FrontSite(Site):
    """The HTTP side of a listening endpoint."""

    displayTracebacks = False  # noqa: N815 (Twisted's name)
    noisy = False

    def __init__(self, root: Any, clock: Clock, debug: bool = False) -> None:
        super().__init__(root, timeout=IDLE_S, reactor=clock)
        self._debug = debug

    def getContentFile(self, length: int | None) -> Body:
        """Where a request's body goes."""
        return Body()

    def log(self, request: Request) -> None:
        """One debug event a request; twisted's access log is off."""
        if self._debug:
            log.debug(
                "{method} {path} {code}",
                method=request.method.decode("latin-1"),
                path=request.path.decode("latin-1"),
                code=request.code,
            )


def upgrade_to(factory: Any, admission: Admission) -> Callable[[Request], bool]:
    """What an ``UpgradeResource`` calls for an upgrade on a connection that served requests before.

    Reverse proxies that keep connections open do that. The request is written out again for Autobahn, which
    parses its own handshake.
    """

    def upgrade(request: Request) -> bool:
        fields = {
            name.decode("latin-1").lower(): ", ".join(value.decode("latin-1") for value in values)
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        if not is_upgrade(fields):
            return False
        channel: Any = request.channel
        transport = channel.transport
        peer = transport.getPeer()
        refusal = admission(getattr(peer, "host", "") or "", fields)
        protocol = None if refusal is not None else factory.buildProtocol(peer)
        if refusal is not None or protocol is None:
            if refusal is not None:
                transport.write(answer(refusal))
            transport.loseConnection()
            return True
        channel.setTimeout(None)
        transport.unregisterProducer()
        channel.transport = None
        for holder, slot in ((transport, "wrappedProtocol"), (transport, "protocol")):
            if hasattr(holder, slot):
                setattr(holder, slot, protocol)
                break
        protocol.makeConnection(transport)
        transport.resumeProducing()  # twisted.web pauses reading while a request is answered
        head = [request.method + b" " + request.uri + b" HTTP/1.1"]
        for name, values in request.requestHeaders.getAllRawHeaders():
            head += [name + b": " + value for value in values]
        protocol.dataReceived(b"\r\n".join(head) + b"\r\n\r\n")
        return True

    return upgrade
