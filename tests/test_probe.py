"""The probe as a process of its own, without a front: what it makes of its standard input, and how it ends."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.checks import LINE_BYTES, Check, Result, decode_result, encode

LIMIT_S = 60.0


class ProcessTests(SynchronousTestCase):
    """``python -m kollator.webrtc.probe``."""

    def setUp(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kollator.webrtc.probe"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.addCleanup(self.reap)
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        listening.settimeout(LIMIT_S)
        self.listening = listening

    def reap(self) -> None:
        """Ends the process whatever it does."""
        self.process.kill()
        self.process.communicate()

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def check(self, number: int, url: str) -> None:
        self.write(encode(Check(number, "w1", url, 5.0)))

    def result(self) -> Result:
        """The next line of standard output."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], LIMIT_S)
        self.assertTrue(readable, "the probe says nothing")
        return decode_result(self.process.stdout.readline())

    def begin_check(self) -> socket.socket:
        """A check through a front that takes the connection, and is silent then."""
        self.check(7, f"ws://127.0.0.1:{self.listening.getsockname()[1]}/signaling")
        front, _ = self.listening.accept()
        self.addCleanup(front.close)
        front.settimeout(LIMIT_S)
        self.assertTrue(front.recv(4096).startswith(b"GET /signaling HTTP/1.1\r\n"))
        return front

    def assert_over(self) -> str:
        """The process has ended well, without another result; returns its log."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        log = err.decode()
        self.assertEqual((self.process.returncode, out), (0, b""), log)
        self.assertNotIn("Traceback", log)
        return log

    def test_conversation(self) -> None:
        """Without it one line that is no check would end the probe, or a check that fails would."""
        self.write(b"what?\n{}\n" + b"x" * (3 * LINE_BYTES) + b"\n")
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # and nobody listens
            for number in (1, 2):
                self.check(number, f"ws://127.0.0.1:{closed.getsockname()[1]}/signaling")
                result = self.result()
                self.assertEqual((result.check, result.ok, result.phase, result.own), (number, False, "connect", True))
        front = self.begin_check()
        self.check(8, "ws://127.0.0.1:1/")  # out of turn
        front.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        result = self.result()
        self.assertEqual((result.check, result.ok, result.phase, result.own), (7, False, "connect", True))
        self.assertIn("503", result.error)
        log = self.assert_over()
        self.assertIn("too long", log)
        self.assertIn("no check", log)
        self.assertIn("check 8 is ignored", log)

    def test_end_of_input(self) -> None:
        """Without it a front that dies would leave a probe behind that waits for it."""
        front = self.begin_check()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None
        self.assert_over()
        try:
            self.assertEqual(front.recv(4096), b"")
        except ConnectionResetError:
            pass

    def test_signals(self) -> None:
        """Without it a front would have to kill its probe, or Ctrl-C would end the probe before its front."""
        self.begin_check()
        self.process.send_signal(signal.SIGINT)
        self.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.process.wait(LIMIT_S), 0)
        self.assert_over()
