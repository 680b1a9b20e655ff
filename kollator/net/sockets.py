"""Sockets that several fronts share, as their supervisor binds and keeps them.

Of a TCP port each front gets a socket of its own (``SO_REUSEPORT``), between which the kernel spreads the connections.
They are bound here, and listen as long as their front does: so a port stays taken while fronts come and go, and a dead
front is given no connections. Of a UNIX socket, or one of systemd's, all share the one.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.protocol import Factory

from kollator.net.endpoints import listen_endpoint
from kollator.starting import StartError, cannot_listen


def check_shareable(reactor: Any, description: str) -> Any:
    """Twisted's own endpoint in a description, without what is wrapped around it. Raises ``StartError``."""
    endpoint = listen_endpoint(reactor, description.removeprefix("haproxy:")).endpoint
    kinds = (TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint, AdoptedStreamServerEndpoint)
    if not isinstance(endpoint, kinds):
        raise StartError(
            f"PROCESSES: LISTEN: {description!r} is of a kind that processes cannot share; "
            "use tcp:, ssl:, unix:, systemd: or haproxy: endpoints, or leave PROCESSES at 1"
        )
    return endpoint


class _Nobody(Factory):
    noisy = False


class Shared:
    """One bound endpoint, of which each of ``count`` processes gets a socket. Raises ``StartError``."""

    def __init__(self, reactor: Any, description: str, count: int) -> None:
        self.description = description
        self._port: Any = None
        endpoint = check_shareable(reactor, description)
        if isinstance(endpoint, TCP4ServerEndpoint | TCP6ServerEndpoint):
            try:
                self._sockets = _of_one_port(endpoint._interface, endpoint._port, count)
            except OSError as problem:
                raise cannot_listen(description, problem) from None
            return
        failures: list[Any] = []

        def bound(port: Any) -> None:
            port.stopReading()  # that is for others
            self._port = port

        endpoint.listen(_Nobody()).addCallbacks(bound, failures.append)
        if failures:
            raise cannot_listen(description, failures[0].value)
        port: Any = self._port
        self._sockets = [port.socket] * count

    def fileno(self, index: int) -> int:
        """The file descriptor for one of the processes."""
        return self._sockets[index].fileno()

    def renew(self, index: int) -> None:
        """The process is gone: a fresh socket for its next life, so that until then the kernel gives it no connections.

        Where that cannot be had (this process has given up the user who may bind the port), they wait for it.
        """
        if self._port is not None:
            return
        dead = self._sockets[index]
        try:
            self._sockets[index] = _bound(dead.family, dead.getsockname())
        except OSError:
            return
        dead.close()

    def url(self) -> str | None:
        """The WebSocket URL of it for a process of this machine, where it is plain TCP."""
        if self._port is not None or not self.description.startswith("tcp"):
            return None
        host, port = self._sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"ws://{f'[{host}]' if ':' in host else host}:{port}/signaling"

    def close(self) -> Any:
        """Gives it up."""
        if self._port is not None:
            return self._port.stopListening()
        for one in self._sockets:
            one.close()
        return None


def _of_one_port(interface: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that are bound to the same port and do not listen yet. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    address: Any = (interface, port)
    if family == socket.AF_INET6:
        address = socket.getaddrinfo(interface, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4]
    with _socket(family, socket.SO_REUSEADDR) as trial:
        trial.bind(address)  # SO_REUSEPORT alone would share a port with another supervisor of the same user
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            found.append(_bound(family, found[0].getsockname() if found else address))
    except OSError:
        for one in found:
            one.close()
        raise
    return found


def _bound(family: int, address: Any) -> socket.socket:
    made = _socket(family, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    try:
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _socket(family: int, *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.setblocking(False)
    return made


def reserved_ports(count: int) -> list[socket.socket]:
    """Free ports of loopback that nobody else is given while these sockets are open. A front can listen on them."""
    found = []
    for _ in range(count):
        found.append(_socket(socket.AF_INET, socket.SO_REUSEADDR))
        found[-1].bind(("127.0.0.1", 0))
    return found
