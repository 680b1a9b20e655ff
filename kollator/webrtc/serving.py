"""One data channel's requests, answered from the served folder with backpressure.

A browser that reads slowly slows its own files down and nothing else: a file is not read on while over 1 MiB
waits to be sent on the channel. Several files on one channel take turns, a block of 256 KiB each.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from msgspec import UNSET
from twisted.logger import Logger

from . import channel as wire
from .files import Changed, Folder, NotFound

log = Logger(namespace="kollator:webrtc")

HIGH_BYTES = 1_048_576
"""Above this nothing more is read for the channel."""
LOW_BYTES = 262_144
"""At this reading goes on."""
FLOOD_BYTES = 2 * HIGH_BYTES
"""Who asks on while this much waits for it is cut off: answers alone must not fill the memory."""
OPEN_REQUESTS = 8
"""Open requests of one kind on a channel."""
BAD_IN_A_ROW = 10
LISTING_FRESH_S = 1.0
"""How long a listing is handed out again, so that asking for it all the time does not keep the disk busy."""

Scan = tuple[list[wire.Listed], bool]


class DataChannel(Protocol):
    """What is used of an RTCDataChannel."""

    bufferedAmountLowThreshold: int  # noqa: N815

    @property
    def readyState(self) -> str: ...  # noqa: D102

    @property
    def bufferedAmount(self) -> int: ...  # noqa: D102

    def send(self, data: bytes | str) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102

    def on(self, event: str, f: Any) -> Any: ...  # noqa: D102


class FileService:
    """The served folder, shared by all sessions: one scan at a time, whoever asks."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._scan: asyncio.Future[Scan] | None = None
        self._fresh_until_s = 0.0

    async def listing(self) -> Scan:
        """The folder's files, at most ``LISTING_FRESH_S`` old."""
        loop = asyncio.get_running_loop()
        if self._scan is None or (self._scan.done() and loop.time() >= self._fresh_until_s):
            self._scan = asyncio.ensure_future(asyncio.to_thread(self.folder.listing))
            self._scan.add_done_callback(self._scanned)
        # Shielded: the others that wait for the same scan do not lose it when one of them cancels.
        return await asyncio.shield(self._scan)

    def _scanned(self, scan: asyncio.Future[Scan]) -> None:
        if not scan.cancelled() and scan.exception() is None:
            self._fresh_until_s = scan.get_loop().time() + LISTING_FRESH_S


class _Gone(Exception):
    """The channel takes nothing more."""


class Serving:
    """Answers the requests of one open data channel until it closes."""

    def __init__(self, channel: DataChannel, service: FileService) -> None:
        self._channel = channel
        self._service = service
        self._open: dict[int, tuple[type, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room_again = asyncio.Event()
        self._bad_in_a_row = 0
        self._over = False
        channel.bufferedAmountLowThreshold = LOW_BYTES
        channel.on("bufferedamountlow", self._room_again.set)
        channel.on("message", self.received)

    def received(self, message: str | bytes) -> None:
        """A message from the browser. Raises nothing, whatever it is."""
        try:
            self._received(message)
        except _Gone:
            self._cut_off("it takes no answers")
        except Exception:
            log.failure("a request on a data channel could not be handled")
            self._cut_off("of an error of ours")

    async def close(self) -> None:
        """Drops all requests and closes the channel; done when nothing of it runs any more."""
        self._over = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._channel.readyState == "open":
            self._channel.close()

    def _received(self, message: str | bytes) -> None:
        if self._over:
            return
        if self._channel.bufferedAmount > FLOOD_BYTES:
            self._cut_off("it asks on without taking the answers")
            return
        try:
            request = self._request(message)
        except wire.BadRequest as refused:
            self._bad_in_a_row += 1
            self._send(refused.error())
            if self._bad_in_a_row >= BAD_IN_A_ROW:
                self._cut_off(f"of {BAD_IN_A_ROW} messages in a row that are no requests")
            return
        self._bad_in_a_row = 0
        if isinstance(request, wire.Cancel):
            self._cancel(request.id)
        elif sum(kind is type(request) for kind, _ in self._open.values()) >= OPEN_REQUESTS:
            self._send(wire.Error("busy", f"{OPEN_REQUESTS} requests of this kind are open", request.id))
        else:
            task = asyncio.ensure_future(self._answer(request))
            self._open[request.id] = (type(request), task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _request(self, message: str | bytes) -> wire.Request:
        if isinstance(message, bytes):
            raise wire.BadRequest("requests are text messages", UNSET)
        request = wire.decode_request(message)
        if request.id in self._open and not isinstance(request, wire.Cancel):
            raise wire.BadRequest("a request with this id is open already", request.id)
        return request

    def _cancel(self, request_id: int) -> None:
        if request_id in self._open:
            _, task = self._open.pop(request_id)
            task.cancel()
            self._send(wire.Error("cancelled", "cancelled as you asked", request_id))

    async def _answer(self, request: wire.List | wire.Fetch) -> None:
        """One request from its start to its end. Raises nothing but the cancellation."""
        failed: wire.Error | None = None
        try:
            if isinstance(request, wire.List):
                await self._list(request)
            else:
                await self._fetch(request)
        except NotFound:
            failed = wire.Error("not-found", "there is no file of this name", request.id)
        except Changed:
            failed = wire.Error("changed", "the file's size changed while it was read", request.id)
        except OSError:
            failed = wire.Error("io", "the file could not be read", request.id)
        except _Gone:
            self._cut_off("it takes no answers")
        except Exception:
            log.failure("a request on a data channel ended in an error")
            failed = wire.Error("io", "the request could not be answered", request.id)
        # Before the error goes out: the browser may use the id again as soon as it has it.
        self._open.pop(request.id, None)
        if failed is not None:
            try:
                self._send(failed)
            except _Gone:
                self._cut_off("it takes no answers")

    async def _list(self, request: wire.List) -> None:
        files, truncated = await self._service.listing()
        for message in wire.listing_messages(request.id, files, truncated):
            await self._room()
            self._send(message)

    async def _fetch(self, request: wire.Fetch) -> None:
        head = wire.chunk_head(request.id)
        with self._service.folder.open(request.name) as file:
            await self._room()
            self._send(wire.File(request.id, request.name, file.size))
            while block := file.read():
                for at in range(0, len(block), wire.CHUNK_DATA_BYTES):
                    await self._room()
                    self._send_bytes(head + block[at : at + wire.CHUNK_DATA_BYTES])
                # The others' turn.
                await asyncio.sleep(0)
            await self._room()
            self._send(wire.End(request.id, file.digest()))

    async def _room(self) -> None:
        """Waits while more is to be sent than the limit allows."""
        while self._channel.bufferedAmount > HIGH_BYTES:
            self._room_again.clear()
            await self._room_again.wait()

    def _send(self, message: wire.Reply) -> None:
        self._send_bytes(wire.encode(message))

    def _send_bytes(self, payload: bytes | str) -> None:
        """Raises ``_Gone`` when the channel is not open or the browser takes no message of this size."""
        if self._over or self._channel.readyState != "open":
            raise _Gone
        try:
            self._channel.send(payload)
        except ValueError:
            raise _Gone from None

    def _cut_off(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        log.debug("a data channel is closed because {reason}", reason=why)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._channel.close()
