"""``twistd kollator-front``: the options, the checks before the start, and a front as twistd runs it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from kollator.assembly import Front
from kollator.drain import StopSignals
from kollator.observe import logs
from kollator.process import tune
from kollator.settings import FrontOptions, SettingError, Settings
from kollator.starting import StartError, cannot_listen, one_line
from kollator.state.errors import StoreError
from kollator.state.store import Store
from kollator.tls import listen_endpoint

Options = FrontOptions


class TwistdFront(Front):
    """A front under ``twistd``: its log observer, its signals, and start errors as one line with exit status 1."""

    def __init__(self, settings: Settings, reactor: Any, twistd: Mapping[str, Any]) -> None:
        super().__init__(settings, reactor)
        self._twistd = twistd
        StopSignals(reactor, self.drain).setServiceParent(self)

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
        settings = self.settings
        tune(settings.max_connections, self.reactor if settings.fast_path else None)

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


def makeService(options: FrontOptions, environ: Mapping[str, str] | None = None) -> TwistdFront:
    """What ``twistd kollator-front`` runs. Raises ``SystemExit`` with one line for a setting that cannot be used."""
    from twisted.internet import reactor

    try:
        settings = Settings.load(options, os.environ if environ is None else environ)
        for setting, descriptions in (("LISTEN", settings.listen), ("PEER_LISTEN", settings.peer_listen)):
            for description in descriptions:
                _check_endpoint(reactor, setting, description)
        Store.check(settings.database, extension=settings.crsqlite_path)
        twistd: Mapping[str, Any] = options.parent or {}
        if not twistd.get("nodaemon"):
            for description in (*settings.listen, *settings.peer_listen):
                _check_port(reactor, description)
        return TwistdFront(settings, reactor, twistd)
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
