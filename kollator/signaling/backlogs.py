"""What waits to be written to the WebSockets of a front that are behind, bounded in sum."""

from __future__ import annotations

from typing import Any, Protocol

UNSEEN_BYTES = 4096
"""So much may wait to be written to a connection before it counts as behind. Twisted's own mark is 64 KiB, which in
twenty thousand connections that nobody counts would be more than a gigabyte.
"""
RELIEF = 1 / 16
"""What is made room for when the sum is over the bound, as a part of it: so the whole is looked through seldom."""


class Behind(Protocol):
    """A connection to which more waits to be written than ``UNSEEN_BYTES``."""

    transport: Any
    held_back: int
    """Bytes written since then, as an upper bound; -1 while the connection is not behind."""

    def cut(self) -> None:
        """Ends it at once."""


class Backlogs:
    """The connections that are behind. At most ``max_bytes`` wait for them together, each at its upper bound.

    Who is not behind costs nothing here, who is costs an addition for each write. Over the bound all are measured,
    and those with the most are cut until ``RELIEF`` of the bound is free.
    """

    def __init__(self, max_bytes: int) -> None:
        self.total_bytes = 0
        """What waits, as an upper bound."""
        self._max_bytes = max_bytes
        self._behind: dict[Behind, None] = {}
        self._relieving = False

    def __len__(self) -> int:
        """How many connections are behind."""
        return len(self._behind)

    def enter(self, connection: Behind) -> None:
        """A connection has fallen behind."""
        connection.held_back = 0
        self._behind[connection] = None
        self.total_bytes += UNSEEN_BYTES

    def grew(self, size_bytes: int) -> None:
        """So much was written to one that is behind, and is in its ``held_back``."""
        self.total_bytes += size_bytes
        if self.total_bytes > self._max_bytes and not self._relieving:
            self._relieving = True
            try:
                self._relieve()
            finally:
                self._relieving = False

    def corrected(self, connection: Behind, waiting: int) -> None:
        """It was measured how much waits for one that is behind."""
        held_back = max(0, waiting - UNSEEN_BYTES)
        self.total_bytes += held_back - connection.held_back
        connection.held_back = held_back

    def leave(self, connection: Behind) -> None:
        """A connection has caught up, or is over. Harmless for one that is not behind."""
        if self._behind.pop(connection, self) is None:
            self.total_bytes -= UNSEEN_BYTES + connection.held_back
        connection.held_back = -1

    def _relieve(self) -> None:
        for connection in self._behind:
            waiting = waiting_bytes(connection.transport)
            if waiting is not None:
                self.corrected(connection, waiting)
        enough = self._max_bytes - self._max_bytes * RELIEF
        if self.total_bytes <= enough:
            return
        for connection in sorted(self._behind, key=lambda behind: behind.held_back, reverse=True):
            if self.total_bytes <= enough:
                break
            try:
                connection.cut()
            finally:
                self.leave(connection)  # what waits is freed as the reactor turns


def waiting_bytes(transport: Any) -> int | None:
    """What waits in the socket's own buffer below ``transport``, in bytes; None where that cannot be seen."""
    socket = _socket(transport)
    try:
        return len(socket.dataBuffer) - socket.offset + socket._tempDataLen
    except AttributeError:
        return None


def watch(transport: Any) -> None:
    """Has the producer of ``transport`` told as soon as over ``UNSEEN_BYTES`` wait, if the socket below can do that."""
    socket = _socket(transport)
    if hasattr(socket, "bufferSize"):
        socket.bufferSize = UNSEEN_BYTES


def _socket(transport: Any) -> Any:
    """TLS and the PROXY protocol wrap the socket."""
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    return transport
