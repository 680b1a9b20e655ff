"""The peer's end of a connection in memory: what it sends over HTTP and WebSocket, and how it reads the answers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

JSON = "application/json; charset=utf-8"
PEER = "203.0.113.9"
"""A client's address, which no limit spares."""


class Wire(StringTransport):
    """The front's end of one accepted connection: what it writes is kept, what it closes is closed afterwards."""

    protocol: Any = None
    half_closed = False
    lost = False

    def __init__(self, peer: str = PEER, host: str = "192.0.2.1") -> None:
        kind = IPv6Address if ":" in peer else IPv4Address
        own = IPv6Address if ":" in host else IPv4Address
        super().__init__(own("TCP", host, 8080), kind("TCP", peer, 50000))

    def open(self, factory: Any) -> Wire:
        """Connects to what a factory makes."""
        self.protocol = factory.buildProtocol(self.getPeer())
        if self.protocol is None:
            self.lost = True
        else:
            self.protocol.makeConnection(self)
            self.settle()
        return self

    def loseWriteConnection(self) -> None:
        """As a TCP transport does it: the peer is told that nothing more comes."""
        self.half_closed = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Of no consequence here."""

    def unregisterProducer(self) -> None:
        """As a TCP transport does it: harmless without one."""
        self.producer = None

    def send(self, data: bytes) -> Wire:
        """The peer sends; what comes after the end goes nowhere."""
        if not self.lost and not self.disconnecting:
            self.protocol.dataReceived(data)
        return self.settle()

    def settle(self) -> Wire:
        """What the front closed is closed now."""
        if self.disconnecting:
            self.hang_up()
        return self

    def hang_up(self) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def taken(self) -> bytes:
        """What was written since the last call."""
        written = self.value()
        self.clear()
        return written


@frozen
class Answer:
    """One HTTP answer, read by a parser that is not ours."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """A header's value."""
        return self.headers.get(name)

    @property
    def code(self) -> str:
        """The code of an error."""
        error = self.json()["error"]
        assert set(error) == {"code", "message"} and isinstance(error["message"], str), error
        code: str = error["code"]
        return code


class _Socket(NamedTuple):
    stream: Any

    def makefile(self, mode: str) -> Any:
        return self.stream


class _Stream(BytesIO):
    def close(self) -> None:
        """Whoever reads one answer must not close the next."""


def read_answers(written: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """All answers in what a front wrote. ``methods`` are those of the requests, GET for the rest."""
    stream = _Stream(written)
    asked = iter(methods)
    answers = []
    while stream.tell() < len(written):
        response = http.client.HTTPResponse(_Socket(stream), method=next(asked, "GET"))  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        answers.append(Answer(response.status, response.reason, response.msg, body))
    return answers


def request(
    method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"", version: str = "HTTP/1.1"
) -> bytes:
    """A request as a client writes it."""
    fields = {"Host": "front.example:8080"} | dict(headers or {})
    if body:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def shape(value: Any) -> Any:
    """The types in a JSON value; a list has the shape of its first member."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value)


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def text_frame(text: bytes) -> bytes:
    """A client's text message (RFC 6455 section 5.2), masked with zeros."""
    length = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + text


def read_frames(written: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame that a front wrote."""
    frames = []
    while written:
        length, start = written[1], 2
        if length == 126:
            length, start = int.from_bytes(written[2:4], "big"), 4
        frames.append((written[0] & 15, written[start : start + length]))
        written = written[start + length :]
    return frames
