"""``twistd kollator-worker``: one uplink a front, and the sessions and the served folder that they share.

The process needs Twisted's asyncio reactor, for aiortc. ``twistd`` parses the options before it imports the
reactor, so the right one is installed then, also without ``--reactor=asyncio``.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import MultiService
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.asyncioreactor import install as install_asyncio_reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates
from twisted.logger import Logger

from kollator.guard.keys import weakness
from kollator.guard.turn import IceServers as TurnServers
from kollator.observe import logs
from kollator.signaling.messages import Hello, IceServer

from . import libraries
from .files import Folder
from .ice import IceServers
from .options import WorkerOptions, WorkerSettings
from .serving import FileService
from .session import Sessions
from .uplink import Uplink

NONCE_BYTES = 32
BUILT_IN_FOLDER = Path(__file__).with_name("demo")

log = Logger(namespace="kollator:worker")


class Options(WorkerOptions):
    """The options of ``twistd kollator-worker``; parsing them sees to the reactor as well."""

    def postOptions(self) -> None:
        """Checks everything. Raises ``SystemExit`` with one line for what is wrong."""
        super().postOptions()
        use_asyncio_reactor()


def makeService(options: Options) -> Worker:
    """The worker as a service, for ``twistd``."""
    from twisted.internet import reactor

    return Worker(options.settings, reactor, options.parent)


def use_asyncio_reactor() -> None:
    """Installs the asyncio reactor when none is installed yet. Raises ``SystemExit`` when another one is."""
    installed = sys.modules.get("twisted.internet.reactor")
    if installed is None:
        install_asyncio_reactor()  # type: ignore[no-untyped-call]
    elif not isinstance(installed, AsyncioSelectorReactor):
        raise SystemExit(
            "kollator-worker: WebRTC needs the asyncio reactor and another one is in use;"
            " start it as: twistd --reactor=asyncio kollator-worker"
        )


class Worker(MultiService):
    """The whole worker. ``reactor`` is the asyncio reactor, ``twistd`` are the options of twistd itself."""

    def __init__(
        self, settings: WorkerSettings, reactor: Any, twistd: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._settings = settings
        self._reactor = reactor
        self._twistd = twistd
        files = FileService(Folder(settings.folder or BUILT_IN_FOLDER))
        self._sessions = Sessions(settings.capacity, files, _ice_servers(settings), self._changed)
        hello = Hello(
            "worker",
            id=settings.id,
            region=settings.region,
            capacity=settings.capacity,
            address=settings.address,
        )
        self._uplinks = [
            Uplink(
                url,
                connector(url, reactor, settings.ca),
                hello,
                settings.keys,
                self._sessions,
                clock=reactor,
                uniform=random.random,
                nonce=lambda: secrets.token_hex(NONCE_BYTES),
            )
            for url in settings.fronts
        ]
        for uplink in self._uplinks:
            uplink.setServiceParent(self)  # type: ignore[no-untyped-call]

    def setServiceParent(self, parent: Any) -> None:
        """Takes over twistd's log, which twistd opens after this."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        settings = self._settings
        logs.install(parent, self._twistd, settings.log_format, settings.debug, reactor=self._reactor)

    def startService(self) -> None:
        """Connects to the fronts. What needs the running loop is done as soon as it runs."""
        settings = self._settings
        folder = settings.folder or "a small built-in folder (WORKER_FOLDER is not set)"
        log.info("worker {id} serves {folder}", id=settings.id, folder=folder)
        if warning := weakness(settings.keys):
            log.warn("worker key: {warning}", warning=warning)
        if settings.turn and not settings.turn_secrets:
            log.warn("TURN_SERVERS is not used: without TURN_SECRET there are no credentials for them")
        self._reactor.callLater(0, self._adopt_loop)
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None]:
        """Says bye to the clients, then to the fronts; the Deferred fires when nothing runs any more."""
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        await _deferred(self._sessions.close())
        await super().stopService()  # type: ignore[no-untyped-call]
        await _deferred(libraries.end_tasks())

    def _changed(self) -> None:
        for uplink in self._uplinks:
            uplink.sessions_changed()

    def _adopt_loop(self) -> None:
        loop = asyncio.get_running_loop()
        libraries.listen(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_on_signal)
        if self._settings.until_eof:
            try:
                loop.add_reader(0, self._read_until_eof, loop)
            except OSError:
                log.warn("WORKER_UNTIL_EOF: standard input is no pipe that could be watched")

    def _read_until_eof(self, loop: asyncio.AbstractEventLoop) -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            log.info("standard input has ended, and so does this worker")
            self._reactor.stop()

    def _stop_on_signal(self, number: int, frame: FrameType | None) -> None:
        """Stops with exit status 0, where Twisted's own handler has twistd end by the signal."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)  # a second one ends the process at once
        self._reactor.callFromThread(self._reactor.stop)


def connector(
    url: str, reactor: Any, authorities: Sequence[Certificate] = ()
) -> Callable[[Any], Deferred[Any]]:
    """What connects a factory to a front; for ``wss:`` with the host's name checked (RFC 9525)."""
    parts = urlsplit(url)
    host = str(parts.hostname)
    secure = parts.scheme == "wss"
    endpoint: Any = HostnameEndpoint(reactor, host, parts.port or (443 if secure else 80))
    if secure:
        trust: Any = trustRootFromCertificates(authorities) if authorities else platformTrust()  # type: ignore[no-untyped-call]
        endpoint = wrapClientTLS(optionsForClientTLS(host, trustRoot=trust), endpoint)
    connect: Callable[[Any], Deferred[Any]] = endpoint.connect
    return connect


def _ice_servers(settings: WorkerSettings) -> IceServers:
    if not settings.turn or not settings.turn_secrets:
        return IceServers(settings.stun)
    turn = TurnServers((), settings.turn, settings.turn_secrets, settings.turn_ttl_s)

    def fresh() -> list[IceServer]:
        return turn.for_client(settings.id, time.time())

    return IceServers(settings.stun, fresh)


def _deferred(coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
    return Deferred.fromFuture(asyncio.ensure_future(coroutine))
