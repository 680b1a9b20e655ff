"""The bare relay as one writes it on Autobahn and Twisted: ``python -m tests.bench.peers.plain_autobahn``.

``PORT`` is the port on loopback. An id from the URL, look up the target, set the sender, pass on; the standard
library's JSON. The base of the ratios.
"""

from __future__ import annotations

import json
import os
import resource
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet import reactor

BACKLOG = 511
"""As Node's."""


class Relay(WebSocketServerProtocol):  # type: ignore[misc]
    """One end."""

    factory: Any
    id = ""

    def onConnect(self, request: ConnectionRequest) -> None:
        """Takes the id."""
        self.id = request.params["id"][0]

    def onOpen(self) -> None:
        """Can be reached."""
        self.factory.ends[self.id] = self

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Passes a message on."""
        message = json.loads(payload)
        target = self.factory.ends.get(message.pop("to", None))
        if target is None:
            self.sendMessage(b'{"type":"error","code":"unknown-target"}')
            return
        message["from"] = self.id
        target.sendMessage(json.dumps(message, separators=(",", ":")).encode())

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Cannot be reached any more."""
        if self.factory.ends.get(self.id) is self:
            del self.factory.ends[self.id]


def main() -> None:
    """Serves until it is killed."""
    turning: Any = reactor
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    factory: Any = WebSocketServerFactory()
    factory.protocol = Relay
    factory.ends = {}
    turning.listenTCP(int(os.environ["PORT"]), factory, backlog=BACKLOG, interface="127.0.0.1")
    turning.run()


if __name__ == "__main__":
    main()
