"""Small real HTTP servers that answer what a test has laid down, and the command line that asks them."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from kollator.cli.main import main
from kollator.web import answers

LIMIT_S = 20.0
TOKEN = "a-token-of-the-tests"

HEALTH = answers.Health(
    "draining", "a", "0.1.0", "follower", "b", 3, [answers.ClusterNode("a", "follower"),
                                                   answers.ClusterNode("b", "leader", 12.5)],
    answers.WorkerCounts(1, 2), answers.ConnectionCounts(10, 2), answers.RingDigest("d1ge57"), 93784.5, True)
WORKERS = answers.Workers([
    answers.WorkerEntry("w1", "us-west", 100, 7, "up", ["a", "b"], "192.0.2.1"),
    answers.WorkerEntry("worker-2", "", 5, 12, "draining", [], "192.0.2.2"),
], answers.Ring(150, 158, "d1ge57"))
EXPLANATION = answers.Explanation(
    "203.0.113.9", "203.0.113.0/24", "us-west", "w1", ["w2", "w3"], "pinned", 17, 23, "203.0.113.0/24",
    [answers.SkippedWorker("w4", "full"), answers.SkippedWorker("worker-5", "of-a-later-version"),
     answers.SkippedWorker("w6", "down", "ping"), answers.SkippedWorker("w7", "down", "later")])

class Request(NamedTuple):
    """What a server was asked: first line, header fields by names in lower case, body."""

    line: str
    fields: dict[str, str]
    body: bytes


class Server:
    """Answers each connection's one request with the next of ``replies``, and the last one again and again.

    A reply is bytes, or is called with the connection.
    """

    def __init__(self, *replies: bytes | Callable[[socket.socket], None], family: int = socket.AF_INET,
                 tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.replies = list(replies)
        self._tls = tls
        self._listening = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0),
                                               family=family)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            # What a client does not read to its end is not a server's concern.
            with raw, contextlib.suppress(OSError):
                raw.settimeout(LIMIT_S)
                connection = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            if stream.peek(1)[:1] == b"\x16":  # the beginning of TLS, which this server does not speak
                connection.sendall(http(400, b""))
                return
            line = stream.readline().decode("latin-1").strip()
            if not line:
                return
            fields = {}
            while field := stream.readline().decode("latin-1").strip():
                name, _, value = field.partition(":")
                fields[name.lower()] = value.strip()
            self.requests.append(Request(line, fields, stream.read(int(fields.get("content-length", "0")))))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if isinstance(reply, bytes):
                connection.sendall(reply)
            else:
                reply(connection)

    def close(self) -> None:
        """Ends it."""
        # Closing alone would not wake who accepts.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(LIMIT_S)


def http(status: int, body: Any, *fields: str) -> bytes:
    """An HTTP answer; what is not bytes becomes JSON."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", "Connection: close", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def error(status: int, code: str, message: str, *fields: str) -> bytes:
    """An answer that is an error, in the contract's form."""
    return http(status, answers.ErrorBody(answers.Failing(code, message)), *fields)


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def run(*argv: str, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv, environment or {})
    return Ended(status, out.getvalue(), err.getvalue())


class ServerTestCase(SynchronousTestCase):
    """Tests with a server, and a token file."""

    def setUp(self) -> None:
        self.token_file = Path(self.mktemp())
        self.write_token(f"{TOKEN}\nan-older-one\n")

    def write_token(self, text: str, mode: int = 0o600) -> None:
        """Writes the token file."""
        self.token_file.write_text(text, encoding="utf-8")
        self.token_file.chmod(mode)

    def serve(self, *replies: bytes | Callable[[socket.socket], None], **options: Any) -> Server:
        """A server, closed after the test."""
        server = Server(*replies, **options)
        self.addCleanup(server.close)
        return server

    def ctl(self, server: Server, *argv: str) -> Ended:
        """Runs ``kollator ctl`` with the server's URL and the token."""
        return run("ctl", *argv, environment={"KOLLATOR_URL": server.url, "ADMIN_TOKEN_FILE": str(self.token_file)})

    def assert_one_line(self, ended: Ended, status: int, *said: str) -> None:
        """Asserts a failure: its status, no output, and one line that says all of ``said``."""
        self.assertEqual((ended.status, ended.out), (status, ""), ended)
        self.assertEqual((ended.err.count("\n"), ended.err[-1:], ended.err[:10]), (1, "\n", "kollator: "), ended.err)
        self.assertTrue(ended.err[:-1].isprintable(), ended.err)
        for text in said:
            self.assertIn(text, ended.err)
