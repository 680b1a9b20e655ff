"""The transport of accepted TCP connections: small while idle, and what is written is sent at once where it can be.

Twisted keeps some twenty attributes for each connection, among them two texts for its log, and sends what is
written in the next turn of the reactor: two changes of what epoll watches, and a turn, for each message. Here
constants are the class's, texts are made when somebody asks, and a write that finds nothing waiting goes straight
to the socket, by its descriptor. While the lean dispatch hands on what epoll told of, it goes there when that is done:
so several messages to one connection are one piece, and the sending of many is one stretch of work. Everything else is
Twisted's: what the socket does not take, closing, aborting, TLS above it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from twisted.internet import main, tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionAborted
from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.compiled import speedups

log = Logger("kollator:front")

READ_BYTES = 16_384
"""Read at once from one connection. It bounds what one connection may do in a turn of the reactor: with the smallest
messages that mean anything some five hundred, which take a few milliseconds. Larger reads are not faster."""
BACKLOG = socket.SOMAXCONN
"""Connections that wait to be accepted; the kernel has a limit of its own (``net.core.somaxconn``)."""
ACCEPTED = 64
"""Connections accepted in one turn of the reactor: a few milliseconds' worth, however many wait."""
TWISTED_BACKLOG = 50
"""Twisted's, where an endpoint string names none."""
GATHERED_BYTES = 4096
"""So much is gathered for one connection at most. It is what may wait there unseen (``backlogs.UNSEEN_BYTES``)."""
GATHERING = 64
"""Connections for which something is gathered at once: so a message waits for a millisecond or two at most."""

_receive = os.read if speedups is None else speedups.receive
_send = os.write if speedups is None else speedups.send
"""Of the three microseconds that either takes with its system call, a socket's own methods would add 0.15, and what is
compiled saves 0.3 to 0.5."""
_DONE = Failure(main.CONNECTION_DONE)
_BUFFERS = ("dataBuffer", "offset", "_tempDataBuffer", "_tempDataLen", "producerPaused")
"""What Twisted keeps of a connection whose socket did not take everything."""


class Turn:
    """What is written while the reactor hands on events: gathered for each connection, and sent when it has.

    ``running`` is true meanwhile; nothing is gathered at any other time, when nobody would send it. ``closing`` are
    connections to be closed then.
    """

    __slots__ = ("closing", "running", "waiting")

    def __init__(self) -> None:
        self.running = False
        self.waiting: dict[FastServer, bytes] = {}
        self.closing: list[FastServer] = []

    def send(self) -> None:
        """Sends all of it, in the order in which it began to wait."""
        waiting = self.waiting
        while waiting:  # a connection that falls behind may have others written to
            for connection in list(waiting):
                data = waiting.pop(connection, None)
                try:
                    if data is not None:
                        connection.send_now(data)
                except Exception:
                    log.failure("what was written to {connection} could not be sent", connection=repr(connection))

    def end(self) -> None:
        """The events are handed on."""
        if self.waiting:
            self.send()
        self.running = False
        if not self.closing:
            return
        closing, self.closing = self.closing, []
        for connection in closing:
            try:
                connection.connectionLost(_DONE)
            except Exception:
                log.failure("the end of {connection} could not be dealt with", connection=repr(connection))


turn = Turn()
"""The reactor's: a process has one."""
_waiting = turn.waiting


class FastServer(tcp.Server):
    """One accepted TCP connection."""

    __slots__ = ("_host", "_port", "bufferSize", "connected", "descriptor", "producer", "protocol", "reactor", "socket")

    direct = True
    """Nothing waits, and nothing ends: what is written may go to the socket."""
    _tempDataBuffer: Any = ()  # noqa: N815 (Twisted's names)
    _tempDataLen = 0  # noqa: N815
    streamingProducer = True  # noqa: N815

    def __init__(
        self,
        sock: socket.socket,
        protocol: Any,
        client: tuple[Any, ...],
        server: Any,
        sessionno: int,
        reactor: Any,
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.descriptor = sock.fileno()
        self.protocol = protocol
        self.reactor = reactor
        self.producer = None
        self.bufferSize = FileDescriptor.bufferSize
        self._host, *rest = client
        self._port: Any = rest[0] if len(rest) == 1 else tuple(rest)
        if len(rest) > 1:
            self._addressType = IPv6Address
        self.connected = 1
        reactor.addReader(self)

    # -- what Twisted keeps, made when it is asked for ----------------------------------------------------------------

    @property
    def client(self) -> tuple[Any, ...]:  # type: ignore[override]
        """The peer's address, as ``accept`` gave it."""
        return (self._host, *self._port) if isinstance(self._port, tuple) else (self._host, self._port)

    @property
    def hostname(self) -> str:  # type: ignore[override]
        """The peer's IP address."""
        host: str = self._host
        return host

    @property
    def logstr(self) -> str:  # type: ignore[override]
        """The prefix of the log."""
        return f"{self._getLogPrefix(getattr(self, 'protocol', None))},{self._host}"

    @property
    def repstr(self) -> str:  # type: ignore[override]
        """The name for people."""
        return f"<{type(getattr(self, 'protocol', None)).__name__} of {self._host}>"

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Small writes go out at once: connections have that from their port (see ``quicken``)."""
        if not enabled:
            super().setTcpNoDelay(False)

    def fileno(self) -> int:  # type: ignore[override]
        """The socket's file descriptor, -1 when it is closed."""
        return self.descriptor

    # -- reading and writing ------------------------------------------------------------------------------------------

    def doRead(self) -> Any:
        """Hands on what has come."""
        try:
            data = _receive(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        protocol: Any = self.protocol
        protocol.dataReceived(data)
        return None

    def write(self, data: bytes) -> None:
        """Sends what the socket takes, now or at the end of this turn; the rest waits as Twisted has it."""
        if self.direct and type(data) is bytes:
            if not data:
                return
            if turn.running:
                earlier = _waiting.get(self)
                if earlier is not None:
                    data = earlier + data
                if len(data) < GATHERED_BYTES:
                    _waiting[self] = data
                    if earlier is None and len(_waiting) >= GATHERING:
                        turn.send()
                    return
                if earlier is not None:
                    del _waiting[self]
            self.send_now(data)
        else:
            self.send_gathered()
            self._keep(data)

    def send_now(self, data: bytes) -> None:
        """Sends what the socket takes now of what is next."""
        try:
            sent = _send(self.descriptor, data)
        except OSError:  # it takes nothing now, or is broken, which the next attempt finds out
            sent = 0
        if sent != len(data):
            self._keep(data[sent:])

    def _keep(self, data: bytes) -> None:
        if data:
            self.direct = False
            if not self._tempDataLen:
                self._tempDataBuffer = []
        super().write(data)

    def send_gathered(self) -> None:
        """Sends what was gathered in this turn, if anything was: before anything else is done with the connection."""
        data = _waiting.pop(self, None)
        if data is not None:
            self.send_now(data)

    def loseConnection(self) -> None:
        """Ends it when everything is sent."""
        self.send_gathered()
        super().loseConnection()

    def loseWriteConnection(self) -> None:
        """Ends this direction when everything is sent."""
        self.send_gathered()
        self.direct = False
        super().loseWriteConnection()

    def abortConnection(self) -> None:
        """Ends it at once."""
        self.send_gathered()
        self.direct = False
        super().abortConnection()

    def close_empty(self) -> bool:
        """Closes the connection at the end of this turn, unless something waits to be written: then False.

        Twisted's ``loseConnection`` would first wait until the socket can be written to.
        """
        self.send_gathered()
        if not self.direct or self.disconnecting or self.producer is not None:
            return False
        self.disconnecting = True
        if turn.running:
            turn.closing.append(self)
        else:
            self.stopReading()
            self.reactor.callLater(0, self.connectionLost, _DONE)
        return True

    def writeSequence(self, iovec: Any) -> None:
        """Sends it as one piece."""
        self.write(b"".join(iovec))

    def doWrite(self) -> Any:
        """Sends what has waited; when all is gone, nothing is kept."""
        result = super().doWrite()
        if not self._tempDataLen and not self.dataBuffer:
            kept = self.__dict__
            for name in _BUFFERS:
                kept.pop(name, None)
            if not self._writeDisconnecting and not self.TLS:
                kept.pop("direct", None)
        return result

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """All that follows is TLS's."""
        self.send_gathered()
        self.direct = False
        super().startTLS(ctx, normal)

    def _closeSocket(self, orderly: bool) -> None:
        if not orderly:
            super()._closeSocket(False)
            return
        # Twisted shuts it down first, for the case that a child process has it too, which none has.
        with contextlib.suppress(OSError):
            self.socket.close()

    def connectionLost(self, reason: Failure) -> None:
        """The end. Twisted's own deletes attributes that are none of an instance here."""
        if not hasattr(self, "socket"):
            return
        self.send_gathered()
        self.direct = False
        FileDescriptor.connectionLost(self, reason)
        self._closeSocket(not isinstance(reason.value, ConnectionAborted))
        self.descriptor = -1
        protocol: Any = self.protocol
        del self.protocol
        del self.socket
        kept = self.__dict__
        for name in _BUFFERS:  # a megabyte that nobody will get would stay until the garbage collector comes by
            kept.pop(name, None)
        protocol.connectionLost(reason)


def quicken(port: Any) -> bool:
    """Has a listening port make ``FastServer``s, and wait for more connections at once than Twisted's default.

    Returns False for a port of another kind, which is left as it is: UNIX sockets, and what plugins listen on.
    """
    if type(port) is not tcp.Port:
        log.debug("{port} keeps its own transports", port=str(port))
        return False
    port.transport = FastServer
    accept = port.doRead

    def accept_some() -> None:
        # Twisted takes twenty more each time that there were more than it took.
        port.numberAccepts = min(port.numberAccepts, ACCEPTED)
        accept()

    port.doRead = accept_some  # type: ignore[method-assign]
    port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if port.backlog == TWISTED_BACKLOG:
        port.socket.listen(BACKLOG)
    return True
