"""Requests on a data channel that is only played: backpressure, turns, floods, changing files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pyee.asyncio import AsyncIOEventEmitter
from twisted.trial.unittest import SynchronousTestCase

from kollator.webrtc import channel as wire
from kollator.webrtc import serving as serving_module
from kollator.webrtc.files import Folder
from kollator.webrtc.serving import FLOOD_BYTES, HIGH_BYTES, LOW_BYTES, FileService, Serving


class PlayedChannel(AsyncIOEventEmitter):
    """A channel whose browser takes what the test says it takes."""

    bufferedAmountLowThreshold = 0

    def __init__(self) -> None:
        super().__init__()
        self.readyState = "open"
        self.bufferedAmount = 0
        self.sent: list[Any] = []

    def send(self, data: bytes | str) -> None:
        assert self.readyState == "open"
        self.bufferedAmount += len(data)
        self.sent.append(data)

    def take(self, size_bytes: int) -> None:
        before = self.bufferedAmount
        self.bufferedAmount -= min(size_bytes, before)
        if before > self.bufferedAmountLowThreshold >= self.bufferedAmount:
            self.emit("bufferedamountlow")

    def close(self) -> None:
        self.readyState = "closed"

    def ask(self, *requests: wire.Request) -> None:
        for request in requests:
            self.emit("message", wire.encode(request))

    def chunks(self) -> list[tuple[int, bytes]]:
        return [wire.split_chunk(data) for data in self.sent if isinstance(data, bytes)]

    def replies(self) -> list[wire.Reply]:
        return [wire.decode_reply(data) for data in self.sent if isinstance(data, str)]


async def settled() -> None:
    """Every task has come to where it waits: no I/O is involved here but reads of local files."""
    for _ in range(300):
        await asyncio.sleep(0)


class ServingTests(SynchronousTestCase):
    """Without a network, so that every byte can be counted."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir()
        (self.root / "big").write_bytes(os.urandom(3_000_000))
        self.service = FileService(Folder(self.root))

    def run_with(self, body: Callable[[PlayedChannel, Serving], Awaitable[None]]) -> None:
        async def main() -> None:
            channel = PlayedChannel()
            serving = Serving(channel, self.service)
            await body(channel, serving)
            await serving.close()
            if self.service._scan is not None:  # the folder's, and in a thread: it may take its time
                await asyncio.wait([self.service._scan])
            self.assertEqual(asyncio.all_tasks() - {asyncio.current_task()}, set())

        asyncio.run(main())

    def test_backpressure(self) -> None:
        """A browser on a slow line would have the worker hold the whole file in memory."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(wire.Fetch(1, "big"))
            await settled()
            self.assertGreater(channel.bufferedAmount, HIGH_BYTES)
            self.assertLessEqual(channel.bufferedAmount, HIGH_BYTES + wire.CHUNK_BYTES)
            waiting = len(channel.sent)
            channel.take(channel.bufferedAmount - LOW_BYTES - 1)
            await settled()
            self.assertEqual(len(channel.sent), waiting)
            channel.take(1)
            await settled()
            self.assertGreater(len(channel.sent), waiting)
            self.assertLessEqual(channel.bufferedAmount, HIGH_BYTES + wire.CHUNK_BYTES)
            while not isinstance(channel.replies()[-1], wire.End):
                channel.take(HIGH_BYTES)
                await settled()
            self.assertEqual(b"".join(data for _, data in channel.chunks()), (self.root / "big").read_bytes())

        self.run_with(body)

    def test_files_take_turns(self) -> None:
        """A large file that was asked for first would hold up all the others."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(*(wire.Fetch(n, "big") for n in range(8)))
            for _ in range(8):
                await settled()
                channel.take(HIGH_BYTES)
            self.assertEqual({request_id for request_id, _ in channel.chunks()}, set(range(8)))

        self.run_with(body)

    def test_who_asks_without_taking(self) -> None:
        """Answers that nobody takes are memory that a stranger fills."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            while channel.readyState == "open":
                channel.ask(wire.List(1), wire.Fetch(2, "nope"))
                channel.ask(wire.Cancel(1))
                channel.emit("message", "nonsense" * 50)
                channel.ask(wire.List(1))
                await asyncio.sleep(0)
                self.assertLess(channel.bufferedAmount, FLOOD_BYTES + 2 * wire.MESSAGE_BYTES)
            await settled()

        self.run_with(body)

    def test_file_that_changes(self) -> None:
        """A file that is half old and half new must not get a hash that looks good."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(wire.Fetch(1, "big"))
            await settled()
            os.truncate(self.root / "big", 10)
            channel.take(HIGH_BYTES)
            await settled()
            last = channel.replies()[-1]
            assert isinstance(last, wire.Error)
            self.assertEqual((last.code, last.id), ("changed", 1))

        self.run_with(body)

    def test_id_in_use(self) -> None:
        """Two files under one id could not be told apart."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(wire.Fetch(1, "big"), wire.Fetch(1, "big"))
            last = channel.replies()[-1]
            assert isinstance(last, wire.Error)
            self.assertEqual((last.code, last.id), ("bad-request", 1))

        self.run_with(body)

    def test_cancel_before_the_first_step(self) -> None:
        """A request and its cancel may come in one packet, before anything of the request has run."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(wire.Fetch(1, "big"), wire.Cancel(1), wire.Fetch(1, "nope"))
            await settled()
            codes = [reply.code for reply in channel.replies() if isinstance(reply, wire.Error)]
            self.assertEqual(codes, ["cancelled", "not-found"])
            self.assertEqual(channel.chunks(), [])

        self.run_with(body)

    def test_closed_channel(self) -> None:
        """A browser that goes in the middle of a file leaves no task behind and no error."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(wire.Fetch(1, "big"), wire.List(2))
            await settled()
            channel.close()
            channel.take(HIGH_BYTES)
            await settled()
            channel.ask(wire.List(3))
            await settled()

        self.run_with(body)

    def test_small_messages_only(self) -> None:
        """A browser that takes no message of this size, by its SDP, is an end and not an error."""

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            self.patch(channel, "send", self._too_large)
            channel.ask(wire.Fetch(1, "big"))
            await settled()
            self.assertEqual(channel.readyState, "closed")

        self.run_with(body)

    def test_one_scan_for_all(self) -> None:
        """A hundred browsers that open the page together would scan the disk a hundred times."""
        self.patch(serving_module, "LISTING_FRESH_S", 3600.0)
        scans = []
        listing = self.service.folder.listing

        def counted() -> Any:
            scans.append(1)
            return listing()

        self.patch(self.service.folder, "listing", counted)

        async def body(channel: PlayedChannel, serving: Serving) -> None:
            channel.ask(*(wire.List(n) for n in range(8)))
            channel.ask(wire.Cancel(0))
            while len(channel.replies()) < 8:
                await asyncio.sleep(0)
            channel.ask(wire.List(9))
            await settled()
            self.assertEqual(len(channel.replies()), 9)

        self.run_with(body)
        self.assertEqual(len(scans), 1)

    def _too_large(self, data: object) -> None:
        raise ValueError("too large for the other side")
