"""The front's probe: a process that makes the deep checks it is asked for on its standard input.

``python -m kollator.webrtc.probe``; what travels on its pipes is in ``kollator.pool.checks``. Standard error is its
log. It ends when its standard input does, or on SIGTERM, with a check under way broken off in order.

``wss:`` fronts are verified against the system's authorities. A front on the loopback interface is not: it is this
machine, whose certificate is for the name that the world knows it by.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import sys
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import txaio
from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.exception import Disconnected
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    eventAsText,
    globalLogBeginner,
)

from kollator import __version__
from kollator.pool.checks import LINE_BYTES, PREPARE_S, BadLine, Check, Result, decode_check, encode
from kollator.signaling.messages import MESSAGE_BYTES, SUBPROTOCOL, Close

from . import libraries
from .attempt import Gone, Line, attempt
from .ice import IceServers

WAITING_MESSAGES = 256
"""Messages of the front that wait to be read; more than a check has, so that more is an attack or an error."""
CLOSE_HANDSHAKE_S = 1.0
ENDING_S = 5
"""Whatever it does, the process is gone that long after its standard input has ended."""

log = Logger(namespace="kollator:webrtc")


class _Socket(WebSocketClientProtocol):
    """One WebSocket to a front."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[str] = loop.create_future()
        self._messages: asyncio.Queue[bytes] = asyncio.Queue(WAITING_MESSAGES)

    def onOpen(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if isBinary or self._messages.full():
            self.dropConnection(abort=True)
        else:
            self._messages.put_nowait(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        if not self._closed.done():
            self._closed.set_result(f"the front closed: {code or ''} {reason or ''}".rstrip())

    async def until_open(self) -> None:
        """Raises ``Gone``."""
        await asyncio.wait((self.opened, self._closed), return_when=asyncio.FIRST_COMPLETED)
        if not self.opened.done():
            raise Gone(self._closed.result())

    def send(self, payload: bytes) -> None:
        with suppress(Disconnected):
            self.sendMessage(payload)

    async def receive(self) -> bytes:
        if self._messages.empty() and not self._closed.done():
            getting = asyncio.ensure_future(self._messages.get())
            try:
                await asyncio.wait((getting, self._closed), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
            finally:
                getting.cancel()
        if self._messages.empty():
            raise Gone(self._closed.result())
        return self._messages.get_nowait()

    async def close(self) -> None:
        if not self._closed.done():
            with suppress(Disconnected):
                self.sendClose(Close.DONE)
            await asyncio.wait((self._closed,), timeout=CLOSE_HANDSHAKE_S)
        if not self._closed.done():
            self.dropConnection(abort=True)


async def dial(url: str) -> Line:
    """Opens a WebSocket to a front. Raises ``OSError`` or ``Gone``."""
    parts = urlsplit(url)
    host = str(parts.hostname)
    secure = parts.scheme == "wss"
    loop = asyncio.get_running_loop()
    factory: Any = WebSocketClientFactory(
        url, protocols=[SUBPROTOCOL], useragent=f"kollator-probe/{__version__}", loop=loop
    )
    factory.protocol = _Socket
    factory.setProtocolOptions(
        # A relayed message has ``from`` where the client had ``to``, and may be a little larger for it.
        maxMessagePayloadSize=2 * MESSAGE_BYTES,
        maxFramePayloadSize=2 * MESSAGE_BYTES,
        openHandshakeTimeout=PREPARE_S,
        closeHandshakeTimeout=CLOSE_HANDSHAKE_S,
    )
    port = parts.port or (443 if secure else 80)
    _, socket = await loop.create_connection(factory, host, port, ssl=tls_context(host) if secure else None)
    try:
        await socket.until_open()
    except BaseException:
        socket.dropConnection(abort=True)
        raise
    return socket


def tls_context(host: str) -> ssl.SSLContext:
    """How a front on this host is verified: as anybody's, but not on the loopback interface."""
    context = ssl.create_default_context()
    if is_loopback(host):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def serve(reader: asyncio.StreamReader, results: int) -> None:
    """Makes the checks that are asked for on ``reader``, one at a time, until it ends.

    ``results`` is the file descriptor for the results.
    """
    ice = IceServers()
    checking: asyncio.Task[None] | None = None
    try:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                log.warn("a line that is too long is ignored")
                continue
            if not line.endswith(b"\n"):
                return
            try:
                order = decode_check(line)
            except BadLine as problem:
                log.warn("a line that is no check is ignored: {reason}", reason=str(problem))
                continue
            if checking is not None and not checking.done():
                log.warn("check {check} is ignored: another one is under way", check=order.check)
                continue
            checking = asyncio.ensure_future(_check(order, ice, results))
    finally:
        signal.alarm(ENDING_S)
        if checking is not None:
            checking.cancel()
            await asyncio.wait((checking,))
        await libraries.end_tasks()


async def _check(order: Check, ice: IceServers, results: int) -> None:
    try:
        result = await attempt(order, dial, ice)
    except Exception:
        log.failure("a check failed for a reason of the probe's own")
        result = Result(order.check, order.worker, False, phase="connect", error="an error of the probe's", own=True)
    with suppress(OSError):  # the front is gone, and standard input ends as well
        os.write(results, encode(result))


async def _run(results: int) -> None:
    loop = asyncio.get_running_loop()
    txaio.config.loop = loop  # type: ignore[attr-defined]
    libraries.listen(loop)
    logging.getLogger("autobahn").setLevel(logging.ERROR)  # a connection that failed is told in the result
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    serving = asyncio.ensure_future(serve(reader, results))
    loop.add_signal_handler(signal.SIGTERM, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    """Runs until standard input ends."""
    # Ctrl-C in a terminal reaches this process too, whose end is the front's affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not come between the results.
    results = os.dup(1)
    os.dup2(2, 1)
    written: Any = FileLogObserver(sys.stderr, lambda event: eventAsText(event, includeTimestamp=False) + "\n")
    from_info_on: Any = LogLevelFilterPredicate(LogLevel.info)
    observer: Any = FilteringLogObserver(written, [from_info_on])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    asyncio.run(_run(results))


if __name__ == "__main__":
    main()
