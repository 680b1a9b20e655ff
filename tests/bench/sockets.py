"""A WebSocket and an HTTP request for the load generators: asyncio, cheap, from any address of loopback, by hand."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from tests.e2e.contract_client import SUBPROTOCOL, Message, worker_mac
from tests.e2e.processes import WORKER_KEY

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
LIMIT_S = 120.0
"""Guards against an answer that never comes."""


class Ended(Exception):
    """A connection is over, or there was none: a close code, an HTTP status, "reset", "end" or "no connection"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Stream:
    """One TCP connection, whose loss is always told by ``Ended``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int, source: str, receive_buffer_bytes: int = 0) -> Stream:
        """Connects to a port of 127.0.0.1 from another address of loopback. Raises ``Ended``."""
        connecting = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer_bytes:
                connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            connecting.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            connecting.bind((source, 0))
            async with asyncio.timeout(LIMIT_S):
                await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=connecting))
        except (OSError, TimeoutError):
            connecting.close()
            raise Ended("no connection") from None
        except BaseException:
            connecting.close()
            raise

    def write(self, data: bytes) -> None:
        """Sends bytes. Raises ``Ended`` when it is known that nobody gets them."""
        if self._writer.transport.is_closing():
            raise Ended("reset")
        self._writer.write(data)

    async def drained(self) -> None:
        """Returns when there is room for more. Raises ``Ended``."""
        try:
            await self._writer.drain()
        except OSError:
            raise Ended("reset") from None

    async def take(self, count: int) -> bytes:
        """So many bytes. Raises ``Ended``."""
        try:
            return await self._reader.readexactly(count)
        except asyncio.IncompleteReadError:
            raise Ended("end") from None
        except OSError:
            raise Ended("reset") from None

    async def take_line(self) -> bytes:
        """The bytes up to a line end, which is among them. Raises ``Ended``."""
        try:
            return await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise Ended("end") from None
        except OSError:
            raise Ended("reset") from None

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of an HTTP answer, by its ``Content-Length``. Raises ``Ended``."""
        status = int((await self.take_line()).split(b" ")[1])
        size_bytes = 0
        while line := (await self.take_line()).strip().lower():
            if line.startswith(b"content-length:"):
                size_bytes = int(line.split(b":")[1])
        return status, await self.take(size_bytes)

    def stop_reading(self) -> None:
        """From here on nothing is read."""
        transport: Any = self._writer.transport
        transport.pause_reading()

    def read_again(self) -> None:
        """What has come in the meantime is read after all."""
        transport: Any = self._writer.transport
        transport.resume_reading()

    def abort(self) -> None:
        """Ends the connection at once; harmless when it is over."""
        self._writer.transport.abort()


_IP_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)
"""Linux: the port is chosen at ``connect``, so that ports are not used up by address."""


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A client's frame (RFC 6455 section 5.2). Its mask is zero, which costs the front as much as any other."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


def message(**fields: Any) -> bytes:
    """A signaling message as a frame."""
    return frame(json.dumps(fields).encode())


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """An HTTP request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def upgrade_request(path: str = "/signaling") -> bytes:
    """The request that opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    ).encode()


class Socket:
    """A WebSocket. It answers pings while somebody reads."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.id = ""

    @classmethod
    async def open(cls, port: int, source: str, receive_buffer_bytes: int = 0) -> Socket:
        """Opens one. Raises ``Ended``, with the HTTP status where there is another than 101."""
        stream = await Stream.open(port, source, receive_buffer_bytes)
        try:
            stream.write(upgrade_request())
            status, _ = await stream.answer()
            if status != 101:
                raise Ended(str(status))
        except BaseException:
            stream.abort()
            raise
        return cls(stream)

    @classmethod
    async def client(cls, port: int, source: str, receive_buffer_bytes: int = 0) -> Socket:
        """A client that has its welcome. Raises ``Ended``."""
        opened = await cls.open(port, source, receive_buffer_bytes)
        try:
            opened.send(type="hello", role="client")
            opened.id = (await opened.expect("welcome"))["id"]
        except BaseException:
            opened.abort()
            raise
        return opened

    @classmethod
    async def worker(
        cls, port: int, source: str, worker: str, *, capacity: int = 100, key: str = WORKER_KEY, region: str = ""
    ) -> Socket:
        """A worker that has its welcome. Raises ``Ended``; with a wrong key that is the answer to it."""
        opened = await cls.open(port, source)
        try:
            nonce = os.urandom(16).hex()
            opened.send(type="hello", role="worker", id=worker, region=region, capacity=capacity, address="192.0.2.1",
                        nonce=nonce)
            challenge = await opened.expect("challenge")
            opened.send(type="auth", mac=worker_mac(key, worker, region, capacity, nonce, challenge["nonce"]))
            await opened.expect("welcome")
            opened.id = worker
        except BaseException:
            opened.abort()
            raise
        return opened

    def send(self, **fields: Any) -> None:
        """Sends one message. Raises ``Ended``."""
        self.stream.write(message(**fields))

    async def receive(self) -> bytes:
        """The next text message. Raises ``Ended``."""
        while True:
            first, second = await self.stream.take(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.stream.take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.stream.take(8))
            payload = await self.stream.take(size)
            opcode = first & 0x0F
            if opcode == TEXT:
                return payload
            if opcode == PING:
                self.stream.write(frame(payload, PONG))
            elif opcode == CLOSE:
                raise Ended(str(struct.unpack("!H", payload[:2])[0]) if payload else "1005")

    async def expect(self, kind: str) -> Message:
        """The next message, which must be of this type. Raises ``Ended``."""
        async with asyncio.timeout(LIMIT_S):
            told = json.loads(await self.receive())
        if told["type"] != kind:
            raise Ended(f"{told['type']} {told.get('code', '')}".strip())
        assert isinstance(told, dict)
        return told

    def abort(self) -> None:
        """Ends the connection at once."""
        self.stream.abort()


def half_client_hello() -> bytes:
    """The first half of what a TLS client begins with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        hello.do_handshake()
    except ssl.SSLWantReadError:
        pass
    whole = outgoing.read()
    return whole[: len(whole) // 2]
