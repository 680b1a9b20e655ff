"""A door that recognises the plain handshake of a WebSocket at once, and leaves every other request to ``Door``."""

from __future__ import annotations

import re
from typing import Any

from kollator.web.door import Door, DoorFactory, is_upgrade, parse_head, pass_on
from kollator.web.refusal import hand_over

_PLAIN = re.compile(rb"GET (/[a-z-]+) HTTP/1\.1(?:\r\n[A-Za-z0-9_-]+:[ -~]*)+").fullmatch
"""The head of a request that every parser reads in the same way: no query, no odd characters."""
PLAIN_BYTES = 4096
"""The largest such head; larger ones go the usual way."""


class FastDoor(Door):
    """One accepted connection whose kind is not known yet."""

    def dataReceived(self, data: bytes) -> None:
        """Takes a plain handshake that came in one piece."""
        if self._head or self._nameless or self._place is None or not self._enter(data):
            super().dataReceived(data)

    def _enter(self, data: bytes) -> bool:
        """Whether it was one, and is done with: it entered or was refused."""
        end = data.find(b"\r\n\r\n", 0, PLAIN_BYTES)
        plain = _PLAIN(data, 0, end) if end > 0 else None
        if plain is None:
            return False
        socket = self.factory.upgrades.get(plain[1])
        begin: Any = getattr(socket, "begin", None)
        if begin is None:
            return False
        fields = parse_head(data[:end])
        if fields is None or not is_upgrade(fields):
            return False
        peer, transport = self._peer, self.transport
        protocol = begin(peer, fields, transport)
        if protocol is None:
            return False
        refusal = self.factory.admission(peer, fields)
        if refusal is not None:
            self._say(refusal)
            return True
        self._stop_timer()
        place, self._place = self._place, None
        pass_on(place, protocol)
        hand_over(transport, self, protocol)
        protocol.enter(transport, fields["sec-websocket-key"], "sec-websocket-protocol" in fields)
        if len(data) > end + 4:
            protocol.dataReceived(data[end + 4 :])
        return True


class FastDoorFactory(DoorFactory):
    """Doors that recognise the plain handshake of those ``upgrades`` that have a ``begin``."""

    protocol: Any = FastDoor
