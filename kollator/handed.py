"""What a front gets from its supervisor: listening sockets, and orders. See ``processes``."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, MutableMapping
from typing import Any

from twisted.application.service import Service
from twisted.internet import unix
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReadDescriptor, IStreamServerEndpoint
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger
from zope.interface import implementer

from kollator.children import Lines
from kollator.net.endpoints import ListenEndpoint, listen_endpoint
from kollator.net.proxyheader import ProxyHeaderEndpoint

log = Logger("kollator:processes")

SOCKETS = "KOLLATOR_SOCKETS"
"""The variable that tells a front how many sockets it was handed. They begin at ``FIRST_SOCKET``."""
FIRST_SOCKET = 3
ORDER_BYTES = 64
"""The longest order."""


class Handed:
    """The sockets that a front was handed by its supervisor, in the order of LISTEN."""

    def __init__(self, count: int) -> None:
        self._descriptors = iter(range(FIRST_SOCKET, FIRST_SOCKET + count))

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Handed | None:
        """What the environment tells of, once; None for a front without a supervisor."""
        count = environ.pop(SOCKETS, "")
        return cls(int(count)) if count.isdigit() else None

    def endpoint(self, reactor: Any, description: str) -> ListenEndpoint:
        """In place of ``listen_endpoint``: what listens on the next socket. Raises as that does."""
        within = description.removeprefix("haproxy:")
        listens = within.startswith(("unix:", "systemd:"))  # already; and of the latter nothing is left to parse
        plain = None if listens else listen_endpoint(reactor, within)
        backlog = getattr(plain.endpoint, "_backlog", None) if plain is not None else None
        endpoint: Any = HandedEndpoint(reactor, next(self._descriptors), backlog)
        if within != description:
            endpoint = ProxyHeaderEndpoint(endpoint)
        return ListenEndpoint(reactor, endpoint, None if plain is None else plain.credentials)


class _UnixPort(unix.Port):
    """A UNIX socket whose path belongs to somebody else."""

    def startListening(self) -> None:
        self._bindPath = b"\0" + self._bindPath  # as a socket without a path: it is not changed, and not removed
        super().startListening()


@implementer(IStreamServerEndpoint)
class HandedEndpoint:
    """Listens on a socket that was handed down as a file descriptor; with ``backlog`` it does not listen yet."""

    def __init__(self, reactor: Any, descriptor: int, backlog: int | None) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._backlog = backlog

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """Fires with the port."""
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: Any) -> Any:
        with socket.socket(fileno=self._descriptor) as handed:
            handed.setblocking(False)
            if handed.family == socket.AF_UNIX:
                port: Any = _UnixPort._fromListeningDescriptor(self._reactor, handed.fileno(), factory)
                port.startListening()
                port._shouldShutdown = False  # others listen on it
                return port
            if self._backlog is not None:
                handed.listen(self._backlog)
            port = self._reactor.adoptStreamPort(handed.fileno(), handed.family, factory)
            if self._backlog is not None:
                port.backlog = self._backlog
                port._shouldShutdown = True  # it is this process's alone: nobody is to wait in its queue any more
            return port


@implementer(IReadDescriptor)
class Orders(Service):
    """Does what the supervisor says: reads its lines from the file descriptor ``input``."""

    def __init__(
        self, reactor: Any, *, stop: Callable[[], object], hurry: Callable[[], object], input: int = 0
    ) -> None:
        self._reactor = reactor
        self._input = input
        self._lines = Lines(ORDER_BYTES)
        self._acts: dict[bytes, Callable[[], object]] = {
            b"stop": stop,
            b"hurry": hurry,
            b"reload": lambda: os.kill(os.getpid(), signal.SIGHUP),
        }

    def startService(self) -> None:
        """Begins to listen to it."""
        super().startService()
        os.set_blocking(self._input, False)
        self._reactor.addReader(self)

    def stopService(self) -> None:
        """Listens no longer."""
        super().stopService()
        self._reactor.removeReader(self)

    def doRead(self) -> Any:
        """Does what is said."""
        try:
            data = os.read(self._input, 4096)
        except BlockingIOError:
            return None
        for line in self._lines.feed(data):
            act = self._acts.get(line)
            if act is not None:
                act()
        return None if data else CONNECTION_DONE

    def fileno(self) -> int:
        """What the reactor watches."""
        return self._input

    def connectionLost(self, reason: object) -> None:
        """The input has ended."""
        if self.running:
            log.warn("the supervisor is gone, and so is this front")
            self._acts[b"stop"]()
            self._acts[b"hurry"]()

    def logPrefix(self) -> str:
        """For the log."""
        return "orders"
