"""The servers that are measured: how each is started, which dialect it speaks, and that it is gone afterwards."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from kollator import __version__
from tests.bench.machine import (
    ROOT,
    CannotRun,
    bun_path,
    bun_version,
    cpu_ticks,
    install_peers,
    node_path,
    node_version,
    package_version,
    pinned,
    rss_bytes,
    server_core,
)
from tests.certificates import self_signed_pem
from tests.e2e.cluster import free_ports
from tests.e2e.processes import TWISTD, WORKER_KEY, front_arguments, front_environment, write_key

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
SETTLE_LIMIT_S = 10.0
LOOK_S = 0.2
"""Between two looks at a server."""
FRONT_SETTINGS = {"MAX_CONNECTIONS": "100000", "WORKER_HEALTH_TIMEOUT": "1000"}
"""A front with its defaults, but for the number of connections. (Loopback is exempt from rates by default.)"""


@attrs.frozen
class Kind:
    """One kind of server.

    ``command`` and ``environment`` make what is started from a folder and a port; ``dialect`` is how the generator
    speaks to it; ``version`` says what was measured; ``note`` is what a reader of its figures has to know. What
    is missing raises ``CannotRun`` when the command is made.
    """

    name: str
    label: str
    dialect: str
    command: Callable[[Path, int], list[str]]
    version: Callable[[], str]
    environment: Mapping[str, str] = attrs.field(factory=dict)
    note: str = ""
    tls: bool = False


class Server:
    """A server that runs, pinned to a core. Stop it in any case."""

    def __init__(self, kind: Kind, folder: Path, core: int | None = None,
                 environment: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        (self.port,) = free_ports(1)
        command = kind.command(folder, self.port)
        self._log = folder / f"{kind.name}.log"
        kept = ("PATH", "HOME", "LANG", "TMPDIR")
        settings = {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PORT": str(self.port), "NODE_ENV": "production", "PYTHONPATH": str(ROOT),
            **kind.environment, **(environment or {}),
        }
        with pinned(server_core() if core is None else core), self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=settings, cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            self._await_port()
        except BaseException:
            self.stop()
            raise

    @property
    def pids(self) -> list[int]:
        """Whose CPU time is its own."""
        return [self.process.pid]

    def _await_port(self) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline_s:
                    raise CannotRun(f"it did not start: {self.last_words()}") from None
                time.sleep(0.05)

    def last_words(self) -> str:
        """The last lines that it printed, as one."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        return " | ".join(text.split("\n")[-6:]).strip(" |")[-400:] or "it said nothing"

    def rss_bytes(self) -> int:
        """Its memory."""
        return rss_bytes(self.process.pid)

    def settle(self) -> None:
        """Returns when it has nothing to do any more, or after a while."""
        deadline_s = time.monotonic() + SETTLE_LIMIT_S
        before = cpu_ticks(self.process.pid)
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline_s:
            time.sleep(LOOK_S)
            now = cpu_ticks(self.process.pid)
            quiet = quiet + 1 if now - before <= 1 else 0
            before = now

    def stop(self) -> None:
        """Ends it and what it started, at once if it does not end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group, see start_new_session
        except ProcessLookupError:
            pass
        self.process.wait(STOP_LIMIT_S)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()


# -- the kinds --------------------------------------------------------------------------------------------------------


def _front(folder: Path, port: int) -> list[str]:
    options = ["--port", str(port)]
    return [TWISTD, *front_arguments({"PORT": ""}, options, WORKER_KEY + "\n", folder)]


def _tls_front(folder: Path, port: int) -> list[str]:
    key, certificate = self_signed_pem("localhost", "127.0.0.1")
    (folder / "front.pem").write_text(certificate, encoding="ascii")
    write_key(folder / "front.key", key)
    listen = f"ssl:{port}:privateKey={folder / 'front.key'}:certKey={folder / 'front.pem'}:interface=127.0.0.1"
    return [TWISTD, *front_arguments({}, ["--listen", listen], WORKER_KEY + "\n", folder)]


def _python(module: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, port: [sys.executable, "-m", f"tests.bench.peers.{module}"]


def _node(script: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, port: [str(node_path()), str(install_peers() / script)]


def _on_node(package: str) -> Callable[[], str]:
    return lambda: f"{package} {package_version(package)}, Node {node_version()}"


def _libraries() -> str:
    names = ("Twisted", "autobahn")
    return ", ".join(f"{name.capitalize()} {importlib.metadata.version(name)}" for name in names)


def front_version() -> str:
    """What a front is made of."""
    return f"{__version__}, {_libraries()}, Python {sys.version.split()[0]}"


# PORT is the bare number for the peers; a front takes its options, and nothing of whoever runs this.
FRONT_ENVIRONMENT = {**front_environment(FRONT_SETTINGS), "PORT": "", "PYTHONPATH": str(ROOT)}

FRONT = Kind("front", "Kollator", "front", _front, front_version, FRONT_ENVIRONMENT,
             "all checks on: limits, validation, metrics, routing")
TLS_FRONT = Kind("front-tls", "front over TLS", "front", _tls_front, front_version, FRONT_ENVIRONMENT, tls=True)
PLAIN = Kind("plain", "Autobahn", "relay", _python("plain_autobahn"),
             lambda: f"{_libraries()}, Python {sys.version.split()[0]}", note="a bare relay as one writes it")
PEERS = (
    Kind("bun", "Bun", "relay",
         lambda folder, port: [str(bun_path()), str(install_peers() / "bun_relay.js")],
         lambda: f"Bun {bun_version()}", note="a bare relay, on the stack of the original"),
    Kind("ws", "ws", "relay", _node("ws_relay.mjs"), _on_node("ws"), note="a bare relay"),
    Kind("peerjs", "PeerJS", "peerjs", _node("peerjs.mjs"), _on_node("peer")),
    Kind("y-webrtc", "y-webrtc", "topics", _node("node_modules/y-webrtc/bin/server.js"), _on_node("y-webrtc"),
         note="a topic for each end; it sets no sender"),
    Kind("tracker", "bt-tracker", "tracker", _node("tracker.mjs"), _on_node("bittorrent-tracker"),
         note="offers and answers only, each offer's announcement is answered as well"),
)
ALL = (FRONT, *PEERS, PLAIN)
PLAIN_WEB = Kind("plain-web", "plain twisted.web", "", _python("plain_web"),
                 lambda: f"Twisted {importlib.metadata.version('twisted')}")
NODE_HTTP = Kind("node-http", "Node's http", "", _node("http_constant.mjs"), lambda: f"Node {node_version()}")
