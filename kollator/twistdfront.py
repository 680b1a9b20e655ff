"""A front as ``twistd`` runs it, and the checks before its start."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Any

from twisted.application.service import MultiService

from kollator.assembly import Front
from kollator.drain import StopSignals
from kollator.handed import Handed, Orders
from kollator.net.endpoints import listen_endpoint
from kollator.observe import logs
from kollator.process import tune
from kollator.processes import Processes, check
from kollator.settings import FrontOptions, SettingError, Settings
from kollator.starting import StartError, cannot_listen
from kollator.state.errors import StoreError
from kollator.state.store import Store
from kollator.text import one_line


class UnderTwistd(MultiService):
    """What runs under ``twistd``, mixed in: its log observer, and start errors as one line with exit status 1."""

    settings: Settings
    reactor: Any
    debug: logs.DebugNamespaces
    _twistd: Mapping[str, Any]

    def setServiceParent(self, parent: Any) -> None:
        """Twistd hands over the application here, before it begins to log."""
        super().setServiceParent(parent)
        logs.install(
            parent, self._twistd, self.settings.log_format, self.debug, reactor=self.reactor
        )

    def privilegedStartService(self) -> None:
        """As any front's; a failure ends the process."""
        try:
            super().privilegedStartService()
        except StartError as error:
            self._abort(error)

    def startService(self) -> None:
        """As any front's; a failure ends the process."""
        try:
            super().startService()
        except StartError as error:
            self._abort(error)

    def _abort(self, error: StartError) -> None:
        if not self._twistd.get("nodaemon"):
            raise error  # twistd hands it to the process that waits for the daemon, which prints it
        pidfile = self._twistd.get("pidfile")
        if pidfile:
            try:
                os.unlink(pidfile)
            except OSError:
                pass
        os.write(2, f"{error}\n".encode())  # sys.stderr is the log by now
        raise SystemExit(1)


class TwistdFront(UnderTwistd, Front):
    """A front under ``twistd``. One that was ``handed`` its sockets by a supervisor does what that says."""

    def __init__(
        self, settings: Settings, reactor: Any, twistd: Mapping[str, Any], handed: Handed | None = None
    ) -> None:
        super().__init__(settings, reactor, listen_endpoint if handed is None else handed.endpoint)
        self._twistd = twistd
        signals = StopSignals(reactor, self.drain)
        signals.setServiceParent(self)
        if handed is not None:
            Orders(reactor, stop=signals.stop, hurry=signals.hurry).setServiceParent(self)

    def startService(self) -> None:
        """As any front's; then the process is set for many connections."""
        super().startService()
        settings = self.settings
        tune(settings.max_connections, self.reactor if settings.fast_path else None)


class TwistdProcesses(UnderTwistd, Processes):
    """The supervisor of several fronts under ``twistd``."""

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        twistd: Mapping[str, Any],
        options: Mapping[str, object],
        environ: Mapping[str, str],
    ) -> None:
        chosen = twistd.get("reactor")
        super().__init__(settings, reactor, options, environ, [f"--reactor={chosen}"] if chosen else [])
        self._twistd = twistd


def build(
    settings: Settings, reactor: Any, options: FrontOptions, environ: MutableMapping[str, str]
) -> UnderTwistd:
    """What ``twistd kollator-front`` runs. Raises ``SystemExit`` with one line for a setting that cannot be used."""
    try:
        handed = Handed.of(environ)
        listen = settings.listen if handed is None else ()  # the supervisor has bound those
        for setting, descriptions in (("LISTEN", listen), ("PEER_LISTEN", settings.peer_listen)):
            for description in descriptions:
                _check_endpoint(reactor, setting, description)
        if settings.processes > 1:
            check(settings, options, environ, reactor)
        else:
            Store.check(settings.database, extension=settings.crsqlite_path)
        twistd: Mapping[str, Any] = options.parent or {}
        if not twistd.get("nodaemon"):
            for description in (*settings.listen, *settings.peer_listen):
                _check_port(reactor, description)
        if settings.processes > 1:
            return TwistdProcesses(settings, reactor, twistd, options, environ)
        return TwistdFront(settings, reactor, twistd, handed)
    except (SettingError, StoreError, StartError) as error:
        raise SystemExit(str(error)) from None


def _check_port(reactor: Any, description: str) -> None:
    """Before the process becomes a daemon: finds out whether a TCP port is in use, while there is a terminal to say so.

    Endpoints of other kinds are left to the daemon, whose errors twistd shows in its own way.
    """
    endpoint = listen_endpoint(reactor, description).endpoint
    port, interface = getattr(endpoint, "_port", None), getattr(endpoint, "_interface", None)
    if not isinstance(port, int) or not isinstance(interface, str) or port == 0:
        return
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((interface, port))
        except OSError as problem:
            raise cannot_listen(description, problem) from None


def _check_endpoint(reactor: Any, setting: str, description: str) -> None:
    try:
        listen_endpoint(reactor, description)
    except Exception as problem:
        raise StartError(
            f"{setting}: {description!r} is not an endpoint that can be used: {one_line(problem)}; "
            "write tcp:8080, or ssl:8443:privateKey=key.pem:certKey=cert.pem"
        ) from None
