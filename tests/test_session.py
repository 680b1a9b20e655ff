"""The worker's sessions: real aiortc on both sides, over UDP on this machine.

Each test runs its own asyncio loop inside a synchronous test, so trial's reactor is not concerned.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aioice.ice import get_host_addresses
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kollator.signaling.messages import Answer, Bye, ByeFrom, CandidateFrom, IceCandidate, OfferFrom
from kollator.webrtc import channel as wire
from kollator.webrtc import libraries
from kollator.webrtc import session as session_module
from kollator.webrtc.files import Folder
from kollator.webrtc.ice import IceServers
from kollator.webrtc.offer import read_offer
from kollator.webrtc.serving import OPEN_REQUESTS, FileService
from kollator.webrtc.session import Sessions

BIG_BYTES = 3_000_000
LIMIT_S = 120.0
"""Guards against what never comes."""


class Browser:
    """The other side: an RTCPeerConnection with the data channel, and the front between the two."""

    def __init__(self, sessions: Sessions, client: str = "c1", session: str = "s1", **channel: Any) -> None:
        self.sessions = sessions
        self.client = client
        self.session = session
        self.told: asyncio.Queue[Answer | Bye] = asyncio.Queue()
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        parameters = {"label": wire.LABEL, "protocol": wire.PROTOCOL} | channel
        self.channel = self.connection.createDataChannel(**parameters)
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()
        self.channel.on("open", self.opened.set)
        self.channel.on("close", self.closed.set)
        self.channel.on("message", self.messages.put_nowait)

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    def send(self, sdp: str) -> None:
        self.sessions.received(OfferFrom(self.client, sdp, self.session), self.told.put_nowait)

    def trickle(self, candidate: IceCandidate | None) -> None:
        self.sessions.received(CandidateFrom(self.client, candidate, self.session), self.told.put_nowait)

    async def accept(self) -> None:
        answer = await self.told.get()
        assert isinstance(answer, Answer), answer
        await self.connection.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))

    async def open(self) -> Browser:
        self.send(await self.offer())
        await self.accept()
        await self.opened.wait()
        return self

    def ask(self, *requests: wire.Request) -> None:
        for request in requests:
            self.channel.send(wire.encode(request))

    async def reply(self) -> Any:
        """The next message: a struct, or ``(id, data)`` of a chunk."""
        message = await self.messages.get()
        return wire.decode_reply(message) if isinstance(message, str) else wire.split_chunk(message)

    async def fetch(self, name: str, request_id: int = 5) -> tuple[Any, bytes]:
        """A whole file: what it ended with, and the bytes."""
        self.ask(wire.Fetch(request_id, name))
        content = b""
        while True:
            reply = await self.reply()
            if isinstance(reply, tuple):
                assert reply[0] == request_id and len(reply[1]) <= wire.CHUNK_DATA_BYTES
                content += reply[1]
            elif isinstance(reply, wire.End | wire.Error):
                return reply, content


class SessionCase(SynchronousTestCase):
    """A folder, and ``Sessions`` over it for the length of one coroutine."""

    def setUp(self) -> None:
        if not get_host_addresses(use_ipv4=True, use_ipv6=False):
            raise SkipTest("there is no network interface but loopback, which aioice does not use")
        self.root = Path(self.mktemp())
        self.big = os.urandom(BIG_BYTES)
        (self.root / "docs").mkdir(parents=True)
        (self.root / "docs" / "big.bin").write_bytes(self.big)
        (self.root / "empty").write_bytes(b"")
        (self.root / ".hidden").write_bytes(b"hidden")
        (self.root.parent / "secret.txt").write_bytes(b"secret")

    def run_with(
        self,
        body: Callable[[Sessions], Awaitable[None]],
        capacity: int = 4,
        changed: Any = lambda: None,
        failed: Any = None,
    ) -> None:
        """Runs ``body``; fails for anything that it leaves running or unhandled."""
        problems: list[Any] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            libraries.listen(loop)
            loop.set_exception_handler(failed or (lambda loop, context: problems.append(context)))
            sessions = Sessions(capacity, FileService(Folder(self.root)), IceServers(), changed)
            try:
                await asyncio.wait_for(body(sessions), LIMIT_S)
            finally:
                await sessions.close()
            self.assertEqual(sessions.sessions, 0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if left:
                await asyncio.wait(left, timeout=LIMIT_S)
            self.assertEqual([task for task in left if not task.done()], [])

        asyncio.run(main())
        self.assertEqual(problems, [])

    async def browsers_closed(self, *browsers: Browser) -> None:
        for browser in browsers:
            await browser.connection.close()


class FileTests(SessionCase):
    """What a browser does with an open channel."""

    def test_list_and_fetch(self) -> None:
        """The product: a browser lists the folder and gets a file whole."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            self.assertEqual(sessions.sessions, 1)
            browser.ask(wire.List(1))
            files = [wire.Listed("docs/big.bin", BIG_BYTES), wire.Listed("empty", 0)]
            self.assertEqual(await browser.reply(), wire.Listing(1, files, False))
            end, content = await browser.fetch("docs/big.bin")
            self.assertEqual(end, wire.End(5, hashlib.sha256(self.big).hexdigest()))
            self.assertTrue(content == self.big)
            end, content = await browser.fetch("empty")
            self.assertEqual((end, content), (wire.End(5, hashlib.sha256(b"").hexdigest()), b""))
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_traversal(self) -> None:
        """Whoever may open a channel must not read the worker's disk with it."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            for name in ("../secret.txt", "/etc/passwd", ".hidden", "docs/../../secret.txt", "a\0", "docs"):
                end, content = await browser.fetch(name)
                self.assertEqual((end.code, end.id, content), ("not-found", 5, b""))
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_cancel(self) -> None:
        """A user who leaves a large file must not have to download the rest of it."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            browser.ask(wire.Fetch(8, "docs/big.bin"))
            self.assertEqual(await browser.reply(), wire.File(8, "docs/big.bin", BIG_BYTES))
            browser.ask(wire.Cancel(8), wire.Cancel(9))
            received = 0
            while isinstance(reply := await browser.reply(), tuple):
                received += len(reply[1])
            self.assertEqual((reply.code, reply.id), ("cancelled", 8))
            self.assertLess(received, BIG_BYTES)
            # The id is free again, and nothing of the old request comes any more.
            end, content = await browser.fetch("docs/big.bin", 8)
            self.assertEqual(end.sha256, hashlib.sha256(content).hexdigest())
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_busy(self) -> None:
        """One channel must not open any number of files."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            browser.ask(*(wire.Fetch(n, "docs/big.bin") for n in range(OPEN_REQUESTS + 1)))
            received: dict[int, int] = dict.fromkeys(range(OPEN_REQUESTS), 0)
            ends: list[Any] = []
            while len(ends) <= OPEN_REQUESTS:
                reply = await browser.reply()
                if isinstance(reply, tuple):
                    received[reply[0]] += len(reply[1])
                elif isinstance(reply, wire.Error):
                    ends.append((reply.code, reply.id))
                    browser.ask(*(wire.Cancel(n) for n in range(OPEN_REQUESTS)))
            self.assertEqual(ends[0], ("busy", OPEN_REQUESTS))
            self.assertEqual(sorted(ends[1:]), [("cancelled", n) for n in range(OPEN_REQUESTS)])
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_messages_that_are_no_requests(self) -> None:
        """A broken page gets told so, and one that does not stop loses its channel."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            for nonsense in ("", "{", b"\x00\x00\x00\x01", '{"type":"dance","id":3}'):
                browser.channel.send(nonsense)
                self.assertEqual((await browser.reply()).code, "bad-request")
            browser.ask(wire.List(1))
            self.assertIsInstance(await browser.reply(), wire.Listing)
            for _ in range(10):
                browser.channel.send("nonsense")
            await browser.closed.wait()
            await self.browsers_closed(browser)

        self.run_with(body)


class NegotiationTests(SessionCase):
    """How a session comes to be, and how it ends."""

    def test_trickle(self) -> None:
        """Browsers send their candidates after the offer, before the answer is there, and null at the end."""

        async def body(sessions: Sessions) -> None:
            browser = Browser(sessions)
            sdp = await browser.offer()
            offer = read_offer(sdp)
            browser.trickle(None)
            browser.send(offer.sdp)
            browser.trickle(None)
            browser.trickle(IceCandidate("", "0"))
            browser.trickle(IceCandidate("candidate:nonsense", "0", 0))
            browser.trickle(IceCandidate("candidate:1 1 udp 1 nobody-here.local 9 typ host", "0", 0))
            browser.trickle(IceCandidate("candidate:1 1 tcp 1 10.0.0.1 9 typ host tcptype active", "0", 0))
            for text in offer.candidates:
                browser.trickle(IceCandidate("candidate:" + text, "0", 0, "anotherGeneration"))
                browser.trickle(IceCandidate("candidate:" + text, "0", 0, offer.ufrag))
            browser.trickle(None)
            await browser.accept()
            await browser.opened.wait()
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_no_candidates_at_all(self) -> None:
        """A browser that hides its addresses can still be reached: its own checks show where it is."""

        async def body(sessions: Sessions) -> None:
            browser = Browser(sessions)
            sdp = await browser.offer()
            browser.send(read_offer(sdp).sdp + "a=end-of-candidates\r\n")
            browser.trickle(None)
            await browser.accept()
            await browser.opened.wait()
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_bad_offers(self) -> None:
        """SDP is whatever a stranger sends, and aiortc raises anything for it."""

        async def body(sessions: Sessions) -> None:
            good = await (browser := Browser(sessions, "good")).offer()
            fingerprint = next(line for line in good.splitlines() if line.startswith("a=fingerprint:"))
            for n, sdp in enumerate(
                (
                    "",
                    "v=0",
                    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
                    "\0" * 1000,
                    good + "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 VP8/90000\r\n",
                    good.replace("m=application", "m=audio"),
                    good.replace("v=0", "v=x"),
                    good.replace("webrtc-datachannel", ""),
                    good.replace("a=setup:actpass", "a=setup:holdconn"),
                    good.replace("a=ice-pwd:", "a=ice-pwx:"),
                    good.replace(fingerprint, "a=fingerprint:"),
                    good.replace("a=sctp-port:5000", "a=sctp-port:x"),
                    good.replace("c=IN IP4", "c=IN"),
                )
            ):
                bad = Browser(sessions, f"c{n}")
                bad.send(sdp)
                bye = await bad.told.get()
                self.assertEqual(bye, Bye(f"c{n}", "s1", "bad-offer"), sdp[:80])
                await self.browsers_closed(bad)
            self.assertEqual(sessions.sessions, 0)
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_full(self) -> None:
        """A worker that takes more than its capacity serves all of them badly."""
        counts: list[int] = []

        async def body(sessions: Sessions) -> None:
            first = await Browser(sessions, "c1").open()
            second = Browser(sessions, "c2")
            second.send(await second.offer())
            self.assertEqual(await second.told.get(), Bye("c2", "s1", "full"))
            # The place is free as soon as the first has gone, and the same client may use it at once.
            sessions.received(ByeFrom("c1", "s1"), first.told.put_nowait)
            await (third := Browser(sessions, "c2")).open()
            counts.append(sessions.sessions)
            await self.browsers_closed(first, second, third)

        self.run_with(body, capacity=1)
        self.assertEqual(counts, [1])

    def test_sessions_of_one_client(self) -> None:
        """One client could otherwise keep everybody else out."""
        self.patch(session_module, "SESSIONS_PER_CLIENT", 2)

        async def body(sessions: Sessions) -> None:
            browsers = [Browser(sessions, "c1", label) for label in ("a", "b", "c")]
            for browser in browsers:
                browser.send(await browser.offer())
            self.assertEqual(await browsers[2].told.get(), Bye("c1", "c", "full"))
            self.assertIsInstance(await browsers[0].told.get(), Answer)
            sessions.received(ByeFrom("c1"), lambda reply: None)
            self.assertEqual(sessions.sessions, 0)
            await self.browsers_closed(*browsers)

        self.run_with(body)

    def test_session_that_never_opens(self) -> None:
        """Who offers and does not come would hold a place for ever."""
        self.patch(session_module, "OPEN_TIMEOUT_S", 0.1)

        async def body(sessions: Sessions) -> None:
            browser = Browser(sessions)
            browser.send(await browser.offer())
            told = await browser.told.get()
            if isinstance(told, Answer):  # else this machine took all the time for it
                told = await browser.told.get()
            self.assertEqual(told, Bye("c1", "s1", "timeout"))
            self.assertEqual(sessions.sessions, 0)
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_client_that_cannot_be_reached(self) -> None:
        """A session whose answer went nowhere need not wait for its time-out; an open one is not concerned."""

        async def body(sessions: Sessions) -> None:
            opened = await Browser(sessions, "c1", "a").open()
            waiting = Browser(sessions, "c1", "b")
            waiting.send(await waiting.offer())
            await waiting.told.get()
            sessions.unreachable("c1")
            self.assertEqual(sessions.sessions, 1)
            await self.browsers_closed(opened, waiting)

        self.run_with(body)

    def test_browser_that_goes_away(self) -> None:
        """A closed tab must free its place, without a bye to nobody."""
        gone = []

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            await browser.connection.close()
            while sessions.sessions:
                await asyncio.sleep(0)
            self.assertTrue(browser.told.empty())

        self.run_with(body, changed=lambda: gone.append(1))
        self.assertEqual(len(gone), 2)

    def test_nonsense_below_the_channel(self) -> None:
        """A text message that is no UTF-8 makes aiortc's own task fail: it may cost that session and no more."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            sctp: Any = browser.connection.sctp
            sctp._data_channel_queue.append((browser.channel, 51, b"\xff"))
            await sctp._data_channel_flush()
            while sessions.sessions:
                await asyncio.sleep(0.01)
            await self.browsers_closed(browser)
            gc.collect()

        self.run_with(body, failed=libraries.task_failed)

    def test_same_offer_again(self) -> None:
        """An answer that got lost with its front is asked for again by sending the offer again."""

        async def body(sessions: Sessions) -> None:
            browser = Browser(sessions)
            sdp = await browser.offer()
            browser.send(sdp)
            first = await browser.told.get()
            browser.send(sdp)
            self.assertEqual(await browser.told.get(), first)
            self.assertEqual(sessions.sessions, 1)
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_offer_of_another_connection(self) -> None:
        """A page that was loaded anew and uses its old label must not wait for the old session's end."""

        async def body(sessions: Sessions) -> None:
            old = await Browser(sessions).open()
            new = await Browser(sessions).open()
            self.assertEqual(sessions.sessions, 1)
            await old.closed.wait()
            self.assertTrue(old.told.empty())
            end, _ = await new.fetch("empty")
            self.assertIsInstance(end, wire.End)
            await self.browsers_closed(old, new)

        self.run_with(body)

    def test_ice_restart(self) -> None:
        """What cannot be done must be said, or the browser waits for it."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            sdp = str(browser.connection.localDescription.sdp)
            browser.send(sdp.replace(f"a=ice-ufrag:{read_offer(sdp).ufrag}", "a=ice-ufrag:again"))
            self.assertEqual(await browser.told.get(), Bye("c1", "s1", "restart"))
            await self.browsers_closed(browser)

        self.run_with(body)

    def test_other_channels(self) -> None:
        """Only the contract's channel is served: its order and its reliability are what the hashes rest on."""

        async def body(sessions: Sessions) -> None:
            others: tuple[dict[str, Any], ...] = (
                {"label": "chat"}, {"protocol": ""}, {"ordered": False}, {"maxRetransmits": 0},
            )  # fmt: skip
            for n, channel in enumerate(others):
                browser = Browser(sessions, f"c{n}", **channel)
                browser.send(await browser.offer())
                await browser.accept()
                await browser.closed.wait()
                await self.browsers_closed(browser)

        self.run_with(body)

    def test_stopping_worker(self) -> None:
        """A browser that is told can go to another worker at once."""

        async def body(sessions: Sessions) -> None:
            browser = await Browser(sessions).open()
            browser.ask(wire.Fetch(1, "docs/big.bin"))
            await browser.reply()
            await sessions.close()
            self.assertEqual(await browser.told.get(), Bye("c1", "s1", "going-away"))
            late = Browser(sessions, "c2")
            late.send(await late.offer())
            self.assertEqual(await late.told.get(), Bye("c2", "s1", "going-away"))
            await browser.closed.wait()
            await self.browsers_closed(browser, late)

        self.run_with(body)
