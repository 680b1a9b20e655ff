"""A door that recognises the plain handshake of a WebSocket at once, and leaves every other request to ``Door``."""

from __future__ import annotations

import re
from typing import Any

from kollator.web.door import Door, DoorFactory, is_upgrade, join_fields, pass_on
from kollator.web.refusal import hand_over

is_plain = re.compile(rb"GET (/[a-z-]+) HTTP/1\.1(?:\r\n[A-Za-z0-9_-]+:[ -~]*)+").fullmatch
"""The head of a request that every parser reads in the same way: no query, no odd characters."""
_FIELDS = re.compile(r"\r\n([^:]+): *([^\r]*)").findall
PLAIN_BYTES = 4096
"""The largest such head; larger ones go the usual way."""


def plain_fields(head: bytes) -> dict[str, str]:
    """The header fields of a head that ``is_plain``, as ``parse_head`` has them."""
    found = _FIELDS(head.decode("ascii"))
    fields = {name.lower(): value.rstrip() for name, value in found}
    return fields if len(fields) == len(found) else join_fields(found)


class FastDoor(Door):
    """One accepted connection whose kind is not known yet."""

    def dataReceived(self, data: bytes) -> None:
        """Takes a plain handshake that came in one piece."""
        if self._head or self._nameless or self._place is None or not self._enter(data):
            super().dataReceived(data)

    def _enter(self, data: bytes) -> bool:
        """Whether it was one, and is done with: it entered or was refused."""
        end = data.find(b"\r\n\r\n", 0, PLAIN_BYTES)
        plain = is_plain(data, 0, end) if end > 0 else None
        if plain is None:
            return False
        socket = self.factory.upgrades.get(plain[1])
        begin: Any = getattr(socket, "begin", None)
        if begin is None:
            return False
        fields = plain_fields(data[:end])
        if not is_upgrade(fields):
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
