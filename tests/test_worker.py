"""The worker as a real process, against a front that another WebSocket library plays from the contract alone."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import hmac
import json
import os
import signal
import sys
from typing import Any

import websockets
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from websockets.asyncio.server import ServerConnection, serve

from kollator.webrtc import libraries

KEY = "0123456789abcdef0123456789abcdef"
NONCE = "5e" * 32
TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
LIMIT_S = 120.0
"""Guards against what never comes."""


def mac(*lines: str) -> str:
    """As written in the contract, section 2, "A worker"."""
    return hmac.new(KEY.encode(), "\n".join(lines).encode(), hashlib.sha256).hexdigest()


class Front:
    """Registers the worker, plays one client, and notes how the worker leaves."""

    def __init__(self) -> None:
        self.hello: dict[str, Any] = {}
        self.got: list[dict[str, Any]] = []
        self.listed: list[str] = []
        self.worker: Any = None

    async def connection(self, socket: ServerConnection) -> None:
        hello = self.hello = json.loads(await socket.recv())
        proof = (hello["id"], hello["region"], str(hello["capacity"]), hello["nonce"], NONCE)
        await socket.send(json.dumps({"type": "challenge", "nonce": NONCE}))
        assert json.loads(await socket.recv()) == {"type": "auth", "mac": mac("kollator.v1 worker", *proof)}
        welcome = {"type": "welcome", "id": hello["id"], "node": "f1", "iceServers": []}
        await socket.send(json.dumps(welcome | {"mac": mac("kollator.v1 front", hello["id"], hello["nonce"], NONCE)}))
        self.got.append(json.loads(await socket.recv()))  # before the offer, so that it is the load of a fresh worker
        browser = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        channel = browser.createDataChannel("kollator", protocol="kollator.files.v1")
        channel.on("open", lambda: channel.send('{"type":"list","id":1}'))
        channel.on("message", self._listed)
        await browser.setLocalDescription(await browser.createOffer())
        offer = {"type": "offer", "from": "c1", "sdp": browser.localDescription.sdp, "session": "s"}
        await socket.send(json.dumps(offer))
        try:
            async for text in socket:
                self.got.append(json.loads(text))
                if self.got[-1]["type"] == "answer":
                    answer = RTCSessionDescription(self.got[-1]["sdp"], "answer")
                    await browser.setRemoteDescription(answer)
        except websockets.ConnectionClosed:
            pass
        self.code = socket.close_code
        await browser.close()

    def _listed(self, message: str) -> None:
        self.listed = [file["name"] for file in json.loads(message)["files"]]
        self.worker.send_signal(signal.SIGTERM)


class ProcessTests(SynchronousTestCase):
    """What an operator starts and stops."""

    def test_from_start_to_stop(self) -> None:
        """Plain ``twistd kollator-worker``: registers, serves, and on SIGTERM says goodbye and exits with 0."""
        front = Front()
        output = asyncio.run(asyncio.wait_for(self.life(front), LIMIT_S))
        self.assertEqual(front.hello["id"], "w1")
        self.assertEqual(front.hello["capacity"], 7)
        self.assertEqual(front.listed, ["primes.txt", "welcome.txt"])
        self.assertIn({"type": "bye", "to": "c1", "session": "s", "reason": "going-away"}, front.got)
        self.assertEqual({"type": "status", "sessions": 0, "draining": False}, front.got[0])
        self.assertEqual(front.code, 1000)
        self.assertEqual(front.worker.returncode, 0, output)
        self.assertIn("[kollator:worker#info] registered as w1", output)
        for noise in ("Traceback", "Error", "pending", "Unhandled", KEY, "candidate:"):
            self.assertNotIn(noise, output)

    async def life(self, front: Front) -> str:
        async with serve(
            front.connection, "127.0.0.1", 0, subprotocols=[websockets.Subprotocol("kollator.v1")],
            open_timeout=LIMIT_S, close_timeout=LIMIT_S, ping_interval=None,
        ) as at:  # fmt: skip
            port = next(iter(at.sockets)).getsockname()[1]
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKER_", "STUN_", "TURN_"))}
            front.worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", TWISTD, "-n", "--pidfile=", "kollator-worker"),
                *("--front", f"ws://127.0.0.1:{port}", "--id", "w1", "--capacity", "7"),
                env=kept | {"WORKER_KEY": KEY, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                output, _ = await front.worker.communicate()
            finally:
                if front.worker.returncode is None:
                    front.worker.kill()
            return str(output.decode())


class LibraryTests(SynchronousTestCase):
    """Tasks that nobody waits for."""

    def run_task(self, coroutine: Any) -> None:
        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(libraries.task_failed)
            task = asyncio.ensure_future(coroutine)
            await asyncio.wait([task])

        asyncio.run(main())
        gc.collect()

    def test_our_own_error(self) -> None:
        """An error of ours that looks like a peer's would never be found."""

        async def fails() -> None:
            raise LookupError("ours")

        self.run_task(fails())
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_error_of_a_library(self) -> None:
        """A peer that breaks off would otherwise fill the log with tracebacks."""
        said: list[Any] = []
        globalLogPublisher.addObserver(said.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, said.append)  # type: ignore[arg-type]
        self.run_task(RTCPeerConnection().createAnswer())
        kinds = [event["kind"] for event in said if event.get("log_namespace") == "kollator:webrtc"]
        self.assertEqual(kinds, ["InvalidStateError"])
        self.assertEqual(self.flushLoggedErrors(), [])
