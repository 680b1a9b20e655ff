"""A client and a worker in plain Python, written from the contract alone, over the library ``websockets``."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import itertools
import json
import os
import secrets
import socket
import ssl
import struct
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import websockets.exceptions
from attrs import frozen
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from tests.e2e.client_connection import PatientConnection
from tests.e2e.processes import WORKER_KEY, FrontTestCase

LIMIT_S = 30.0
"""Guards against an answer that never comes; nothing is as quick as that on a machine that does other things."""
LIMIT_BYTES = 65536
SUBPROTOCOL = "kollator.v1"
Message = dict[str, Any]


# -- HTTP ---------------------------------------------------------------------------------------------------


@frozen
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error_code(self) -> str:
        """The code of an error answer."""
        code = self.json()["error"]["code"]
        assert isinstance(code, str)
        return code

    def header(self, name: str) -> str:
        """A header's value, or the empty string."""
        value: str = self.headers.get(name, "")
        return value


def ask(port: int, method: str, path: str, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None) -> Answer:
    """One HTTP request on a connection of its own."""
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    else:
        connection = http.client.HTTPSConnection("localhost", port, timeout=LIMIT_S, context=tls)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, answer.msg, answer.read())
    finally:
        connection.close()


def exchange(port: int, request: bytes) -> bytes:
    """Sends raw bytes and returns all that comes back until the front closes the connection."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as raw:
        raw.sendall(request)
        received = b""
        while chunk := raw.recv(65536):
            received += chunk
        return received


# -- signatures ---------------------------------------------------------------------------------------------


def _mac(key: str, *parts: str) -> str:
    return hmac.new(key.encode(), "\n".join(parts).encode(), hashlib.sha256).hexdigest()


def worker_mac(key: str, worker: str, region: str, capacity: int, client_nonce: str, server_nonce: str) -> str:
    """What a worker proves itself with (section 2, "A worker", step 3)."""
    return _mac(key, "kollator.v1 worker", worker, region, str(capacity), client_nonce, server_nonce)


def front_mac(key: str, worker: str, client_nonce: str, server_nonce: str) -> str:
    """What the front proves itself with (step 4)."""
    return _mac(key, "kollator.v1 front", worker, client_nonce, server_nonce)


def turn_credential(secret: str, username: str) -> str:
    """The password that coturn computes for a user name with ``use-auth-secret``."""
    return b64encode(hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()).decode()


# -- WebSocket ----------------------------------------------------------------------------------------------


class Peer:
    """One WebSocket connection to ``/signaling``; pings are answered by a thread of the library.

    ``host`` is what the ``Host`` header says, where it is not the address that is connected to.
    """

    def __init__(self, port: int, *, subprotocols: Sequence[str] | None = (SUBPROTOCOL,),
                 headers: Mapping[str, str] | None = None, origin: str | None = None,
                 path: str = "/signaling", host: str | None = None, tls: ssl.SSLContext | None = None,
                 compression: str | None = None) -> None:
        scheme, name = ("wss", "localhost") if tls else ("ws", "127.0.0.1")
        url = f"{scheme}://{host or f'{name}:{port}'}{path}"
        opened = connect(
            url, sock=socket.create_connection(("127.0.0.1", port), LIMIT_S), ssl=tls,
            subprotocols=list(subprotocols) if subprotocols else None,  # type: ignore[arg-type]
            additional_headers=dict(headers or {}), origin=origin,  # type: ignore[arg-type]
            compression=compression, proxy=None, open_timeout=LIMIT_S, close_timeout=LIMIT_S,
            ping_interval=None, max_size=None, max_queue=None, create_connection=PatientConnection)
        self.socket: ClientConnection = opened.__enter__()
        self.port = port

    def send(self, **message: Any) -> None:
        """Sends one message."""
        self.send_text(json.dumps(message))

    def send_text(self, text: str) -> None:
        """Sends one text frame; a front that has closed meanwhile is for the next reading to find out."""
        try:
            self.socket.send(text)
        except websockets.exceptions.ConnectionClosed:
            pass

    def receive(self, limit_s: float = LIMIT_S) -> Message:
        """The next message. Raises ``TimeoutError``, or ``ConnectionClosed`` of the library."""
        message = json.loads(self.socket.recv(timeout=limit_s))
        assert isinstance(message, dict), message
        return message

    def expect(self, kind: str, **fields: Any) -> Message:
        """The next message, which must have this ``type`` and these fields."""
        message = self.receive()
        wrong = {name: message.get(name) for name, value in fields.items() if message.get(name) != value}
        assert message.get("type") == kind and not wrong, f"expected {kind} {fields}, got {message}"
        return message

    def ask(self, **message: Any) -> Message:
        """Sends a message and returns the next one."""
        self.send(**message)
        return self.receive()

    def quiet(self, seconds: float) -> bool:
        """Whether nothing comes for that long."""
        try:
            self.socket.recv(timeout=seconds)
        except TimeoutError:
            return True
        return False

    def until_closed(self, limit_s: float = LIMIT_S) -> tuple[list[Message], int]:
        """The messages up to the close, and its code; 1006 where there was no close frame."""
        messages: list[Message] = []
        while True:
            try:
                messages.append(self.receive(limit_s))
            except websockets.exceptions.ConnectionClosed as closed:
                return messages, 1006 if closed.rcvd is None else closed.rcvd.code

    def close_code(self, limit_s: float = LIMIT_S) -> int:
        """The code that the front closes with."""
        return self.until_closed(limit_s)[1]

    def synchronise(self) -> None:
        """Returns when the front has dealt with everything sent so far: a marked bad message comes back.

        What comes before it is an error, so this also asserts that the front has nothing else to tell.
        """
        mark = secrets.token_hex(8)
        self.send(type="no-such-type", ref=mark)
        self.expect("error", code="unknown-type", ref=mark)

    def close(self) -> None:
        """Closes politely, with 1000."""
        self.socket.close()

    def abort(self) -> None:
        """Breaks the TCP connection without a close frame, as a killed process does."""
        try:
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Client(Peer):
    """A client that has said hello."""

    def __init__(self, port: int, ticket: str | None = None, **options: Any) -> None:
        super().__init__(port, **options)
        self.send(type="hello", role="client", **({} if ticket is None else {"ticket": ticket}))
        self.welcome = self.expect("welcome")
        self.id: str = self.welcome["id"]
        self.ticket: str = self.welcome["ticket"]


class Worker(Peer):
    """A worker; ``joined`` registers it, and the single steps are there for what can go wrong in them."""

    def __init__(self, port: int, worker: str = "w1", *, region: str = "", capacity: int = 100,
                 address: str = "192.0.2.1", key: str = WORKER_KEY, **options: Any) -> None:
        super().__init__(port, **options)
        self.id, self.region, self.capacity, self.address, self.key = worker, region, capacity, address, key
        self.nonce = os.urandom(16).hex()
        self.server_nonce = ""
        self.welcome: Message = {}

    def hello(self, **changes: Any) -> Message:
        """Says hello, with ``changes``, and returns the front's answer; ``None`` leaves a key out."""
        message = {"type": "hello", "role": "worker", "id": self.id, "region": self.region,
                   "capacity": self.capacity, "address": self.address, "nonce": self.nonce, **changes}
        answer = self.ask(**{name: value for name, value in message.items() if value is not None})
        if answer["type"] == "challenge":
            self.server_nonce = answer["nonce"]
        return answer

    def mac(self) -> str:
        """The right answer to the challenge."""
        return worker_mac(self.key, self.id, self.region, self.capacity, self.nonce, self.server_nonce)

    def joined(self) -> Worker:
        """Goes through all four steps and returns the worker."""
        challenge = self.hello()
        assert challenge["type"] == "challenge", challenge
        self.send(type="auth", mac=self.mac())
        self.welcome = self.expect("welcome", id=self.id)
        return self

    def report(self, sessions: int, draining: bool = False) -> None:
        """Tells its load, and returns when the front has taken it in."""
        self.send(type="status", sessions=sessions, draining=draining)
        self.synchronise()


class RawWebSocket:
    """A WebSocket by hand: reads only when told to, answers no ping, and may break RFC 6455 on purpose."""

    def __init__(self, port: int, receive_buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(LIMIT_S)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.connect(("127.0.0.1", port))
        self._shake_hands(f"127.0.0.1:{port}")

    def _shake_hands(self, host: str, more: str = "") -> None:
        """Asks for the WebSocket, with ``more`` lines in the header."""
        self.socket.sendall((
            f"GET /signaling HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{more}"
            f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n").encode())
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            chunk = self.socket.recv(4096)
            assert chunk, self._received
            self._received += chunk
        head, self._received = self._received.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 101"), head

    def send_frame(self, opcode: int, payload: bytes, *, mask: bool = True, final: bool = True) -> None:
        """Sends one frame."""
        self.socket.sendall(Frame(Opcode(opcode), payload, final).serialize(mask=mask))

    def send(self, **message: Any) -> None:
        """Sends one message."""
        self.send_frame(Opcode.TEXT, json.dumps(message).encode())

    def _bytes(self, count: int) -> bytes:
        while len(self._received) < count:
            chunk = self.socket.recv(65536)
            if not chunk:
                raise EOFError
            self._received += chunk
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload. Raises ``EOFError`` at the end of the stream."""
        first, second = self._bytes(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._bytes(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._bytes(8))
        return first & 0x0F, self._bytes(length)

    def receive(self) -> Message:
        """The next text message; control frames before it are dropped, pings stay unanswered."""
        while True:
            opcode, payload = self.frame()
            if opcode == Opcode.TEXT:
                message = json.loads(payload)
                assert isinstance(message, dict), message
                return message
            assert opcode != Opcode.CLOSE, payload

    def close_code(self) -> int:
        """Reads to the end and returns the close code; 1006 where there was none."""
        while True:
            try:
                opcode, payload = self.frame()
            except (EOFError, ConnectionResetError):
                return 1006
            if opcode == Opcode.CLOSE:
                return int(struct.unpack("!H", payload[:2])[0]) if payload else 1005

    def close(self) -> None:
        """Closes the TCP connection."""
        self.socket.close()


# -- trial --------------------------------------------------------------------------------------------------


class ContractTestCase(FrontTestCase):
    """Tests against the front of the class; every connection that they open is closed after them.

    ``w1``, ``w2`` and ``w3`` are worker ids that no other test uses: a front may remember how a worker behaved.
    """

    _numbers = itertools.count(1)

    def setUp(self) -> None:
        super().setUp()
        for role in ("client", "worker"):  # who was cut off in the test before may still be counted
            self.await_connections(role, 0)
        number = next(self._numbers)
        self.w1, self.w2, self.w3 = (f"w{place}.{number}" for place in (1, 2, 3))

    def ask(self, method: str, path: str, body: bytes | None = None,
            headers: Mapping[str, str] | None = None) -> Answer:
        """One HTTP request."""
        return ask(self.port, method, path, body, headers)

    def bootstrap(self, headers: Mapping[str, str] | None = None, **wishes: Any) -> Message:
        """A successful ``POST /bootstrap``."""
        answer = self.ask("POST", "/bootstrap", json.dumps(wishes).encode() if wishes else None, headers)
        self.assertEqual(answer.status, 200, answer.body)
        granted = answer.json()
        assert isinstance(granted, dict)
        return granted

    def peer(self, **options: Any) -> Peer:
        """A connection that has not said anything."""
        peer = Peer(self.port, **options)
        self.addCleanup(peer.close)
        return peer

    def client(self, ticket: str | None = None, **options: Any) -> Client:
        """A client that has its welcome."""
        client = Client(self.port, ticket, **options)
        self.addCleanup(client.close)
        return client

    def stranger(self, worker: str | None = None, **options: Any) -> Worker:
        """A worker, ``w1`` unless told, that has not said anything."""
        stranger = Worker(self.port, worker or self.w1, **options)
        self.addCleanup(stranger.close)
        return stranger

    def worker(self, worker: str | None = None, **options: Any) -> Worker:
        """A registered worker."""
        return self.stranger(worker, **options).joined()

    def raw(self, receive_buffer_bytes: int | None = None) -> RawWebSocket:
        """A WebSocket by hand."""
        raw = RawWebSocket(self.port, receive_buffer_bytes)
        self.addCleanup(raw.close)
        return raw

    def workers(self) -> dict[str, Message]:
        """The rows of ``GET /workers`` by id."""
        return {row["id"]: row for row in self.ask("GET", "/workers").json()["workers"]}

    def await_connections(self, role: str, count: int) -> None:
        """Asks ``/health`` until it tells of that many connections; each answer is a turn of the front's loop."""
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            seen = self.ask("GET", "/health").json()["connections"][role]
            if seen == count:
                return
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{seen} {role} connections, not {count}")

    def dropped(self, client: Client) -> None:
        """Breaks a client's connection and returns when the front has noticed."""
        before = self.ask("GET", "/health").json()["connections"]["client"]
        client.abort()
        self.await_connections("client", before - 1)
