"""The usual end of a connection on the fast path: the peer's close frame, and the loss of its TCP connection.

Of the CPU time of a short connection Autobahn's way takes more than a third, most of it for log lines that nobody
reads. What is odd about a close frame is left to Autobahn.
"""

from __future__ import annotations

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.python.failure import Failure

from kollator.signaling.messages import Close
from kollator.signaling.protocol import SignalingProtocol

CLOSED = b"\x88\x02\x03\xe8"
"""The answer to every close frame: 1000 (RFC 6455 section 7.4.1)."""
CODES = frozenset({*WebSocketProtocol.CLOSE_STATUS_CODES_ALLOWED, *range(3000, 5000)})
"""The codes that a peer may give (RFC 6455 section 7.4)."""
_POLITE = frozenset(code.to_bytes(2, "big") for code in (Close.DONE, Close.GOING_AWAY))


def is_plain_close(payload: bytes) -> bool:
    """Whether a close frame is one about which there is nothing to say (RFC 6455 section 5.5.1)."""
    return not payload or (
        len(payload) > 1 and int.from_bytes(payload[:2], "big") in CODES and payload[2:].isascii()
    )


class FastClosing(SignalingProtocol):
    """A connection that closes without Autobahn, where that does the same."""

    __slots__ = ()

    def closing(self, payload: bytes) -> None:
        """The peer closes, with a plain close frame: as ``onCloseFrame`` has it."""
        self.wasClean = self.droppedByMe = True
        self.sendData(CLOSED)
        self.state = self.STATE_CLOSED
        self.transport.unregisterProducer()
        self._closeConnection()
        self.left_politely = payload[:2] in _POLITE
        self.gone()

    def _closeConnection(self, abort: bool = False) -> None:
        # Where nothing waits to be written it is over with this turn, and needs no timer.
        if self.wasClean and getattr(self.transport, "close_empty", bool)():
            self.data = b""
        else:
            super()._closeConnection(abort)

    def _connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        call = self.openHandshakeTimeoutCall
        if call is not None:
            self.openHandshakeTimeoutCall = None
            call.cancel()
        self.state = self.STATE_CLOSED
        self.factory.countConnections -= 1
        self.onClose(self.wasClean, None, None)
