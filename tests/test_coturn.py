"""The front's TURN credentials, tried on coturn itself on this machine: over UDP and TCP, and while secrets change."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from aioice import stun
from aioice.turn import create_turn_endpoint
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kollator.guard.turn import IceServers, turn_credentials
from kollator.signaling.messages import IceServer

TURNSERVER = shutil.which("turnserver")
START_LIMIT_S = 60.0
ALLOCATE_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
TTL_S = 3600
REFUSED = 401
"""RFC 8656, section 5: the credentials are not good."""


def free_port() -> int:
    """A port of this machine that is free for UDP and for TCP."""
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("127.0.0.1", 0))
            port: int = udp.getsockname()[1]
            try:
                tcp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free for both")


class Coturn:
    """A ``turnserver`` process with these secrets, all of its files in ``folder``."""

    def __init__(self, folder: Path, secrets: tuple[str, ...]) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        self.log = folder / "log"
        config = folder / "turnserver.conf"
        config.write_text("\n".join([
            f"listening-port={self.port}", "listening-ip=127.0.0.1", "relay-ip=127.0.0.1",
            "min-port=50000", "max-port=50199", "realm=front.example",
            "lt-cred-mech", "use-auth-secret", *(f"static-auth-secret={secret}" for secret in secrets),
            "no-tls", "no-dtls", "no-cli", "log-file=stdout", "simple-log",
            f"userdb={folder / 'turndb'}", f"pidfile={folder / 'pid'}", "",
        ]))
        assert TURNSERVER is not None
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [TURNSERVER, "-c", str(config)], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready(self) -> None:
        """Waits until it answers a STUN binding request. Raises ``AssertionError`` when that does not come."""
        request = bytes(stun.Message(stun.Method.BINDING, stun.Class.REQUEST))
        deadline_s = time.monotonic() + START_LIMIT_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(0.1)
                asking.connect(("127.0.0.1", self.port))
                try:
                    asking.send(request)
                    asking.recv(2000)
                except TimeoutError:
                    continue
                except OSError:  # nobody listens yet
                    self._wait(0.1)
                    continue
            return
        raise AssertionError(f"turnserver did not get ready:\n{self.log.read_text(errors='replace')}")

    def stop(self) -> None:
        """Ends and reaps it."""
        self.process.terminate()
        if not self._wait(STOP_LIMIT_S):
            self.process.kill()
            self.process.wait()

    def _wait(self, limit_s: float) -> bool:
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def allocate(self, username: str, credential: str, transport: str) -> int:
        """Asks for an allocation (RFC 8656, section 7): the port of the relay, or the error's number below 1000."""
        return asyncio.run(asyncio.wait_for(self._allocate(username, credential, transport), ALLOCATE_LIMIT_S))

    async def _allocate(self, username: str, credential: str, transport: str) -> int:
        try:
            relayed, _ = await create_turn_endpoint(
                asyncio.DatagramProtocol, ("127.0.0.1", self.port), username, credential, transport=transport)
        except stun.TransactionFailed as failure:
            assert failure.response.error_code is not None
            return failure.response.error_code
        host, port = relayed.get_extra_info("sockname")
        assert host == "127.0.0.1", host
        await relayed._close()
        assert isinstance(port, int)
        return port


def granted(secrets: tuple[str, ...], now: float, client: str = "client-1") -> tuple[str, str]:
    """The user name and credential that a front with these secrets gives a client."""
    servers = IceServers(["stun:127.0.0.1"], ["turn:127.0.0.1"], [secret.encode() for secret in secrets], TTL_S)
    server: IceServer = servers.for_client(client, now)[-1]
    assert isinstance(server.username, str) and isinstance(server.credential, str)
    return server.username, server.credential


class CoturnTestCase(SynchronousTestCase):
    """Tests against a server with ``secrets``."""

    secrets: ClassVar[tuple[str, ...]] = ("south",)

    def setUp(self) -> None:
        if TURNSERVER is None:
            raise SkipTest("turnserver is not installed; it is in Debian's package coturn")
        self.coturn = Coturn(Path(self.mktemp()).absolute(), self.secrets)
        self.addCleanup(self.coturn.stop)
        self.coturn.ready()
        self.now = time.time()

    def assert_allowed(self, pair: tuple[str, str], transport: str = "udp") -> None:
        """That these credentials get a port of the relay."""
        port = self.coturn.allocate(*pair, transport)
        self.assertGreaterEqual(port, 50000)
        self.assertLess(port, 50200)

    def assert_refused(self, pair: tuple[str, str], transport: str = "udp") -> None:
        """That they do not."""
        self.assertEqual(self.coturn.allocate(*pair, transport), REFUSED)


class OneSecretTests(CoturnTestCase):
    """A server that shares one secret with the front."""

    def test_fresh_ones(self) -> None:
        """Without it clients behind strict firewalls would have a TURN server that lets nobody in."""
        for transport in ("udp", "tcp"):
            self.assert_allowed(granted(self.secrets, self.now), transport)
        self.assert_allowed(granted(self.secrets, self.now, "w.1:b_2-c"))  # a worker's id may have a colon
        self.assert_allowed(granted(self.secrets, self.now - TTL_S + 600))

    def test_others(self) -> None:
        """Without it credentials that leak would open the relay to anyone, for good."""
        expired = granted(self.secrets, self.now - TTL_S - 600)
        username, credential = granted(self.secrets, self.now)
        expiry, _, client = username.partition(":")
        for transport in ("udp", "tcp"):
            self.assert_refused(expired, transport)
            self.assert_refused(granted(("north",), self.now), transport)
            self.assert_refused((f"{int(expiry) + 600}:{client}", credential), transport)
            self.assert_refused((f"{expiry}:client-2", credential), transport)
        self.assert_refused((username, expired[1]))
        self.assert_refused((username, ""))
        self.assert_allowed((username, credential))


class RotationTests(CoturnTestCase):
    """A server that takes the old secret and the new one."""

    secrets: ClassVar = ("old", "new")

    def test_both(self) -> None:
        """Without it a secret could not be changed without a moment in which some clients have no relay."""
        self.assert_allowed(granted(("old",), self.now))
        self.assert_allowed(granted(("new",), self.now))
        self.assert_refused(granted(("older",), self.now))

    def test_the_front_signs_with_the_first(self) -> None:
        """Without it a front would sign with a secret that the server does not know yet."""
        self.assertEqual(granted(("new", "unknown"), self.now), turn_credentials(b"new", "client-1", self.now, TTL_S))
        self.assert_allowed(granted(("new", "unknown"), self.now))
        self.assert_refused(granted(("unknown", "new"), self.now))
