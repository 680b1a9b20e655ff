"""What the worker reads out of offers, and which ICE servers it uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling.messages import IceServer
from kollator.webrtc import ice
from kollator.webrtc.ice import IceServers
from kollator.webrtc.offer import read_candidate, read_offer

OFFER = (
    "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n"
    "a=candidate:1 1 udp 2113937151 192.0.2.7 50000 typ host\r\n"
    "a=candidate:2 1 udp 2113937151 6e2a.local 50001 typ host\r\n"
    "a=end-of-candidates\r\na=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n"
    "a=fingerprint:sha-256 AA:BB\r\na=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\n"
)


class OfferTests(SynchronousTestCase):
    """An offer before aiortc sees it."""

    def test_candidates_are_taken_out(self) -> None:
        """One mDNS name that nobody resolves, within the description, would refuse the whole offer."""
        offer = read_offer(OFFER)
        self.assertEqual(
            offer.candidates,
            [
                "1 1 udp 2113937151 192.0.2.7 50000 typ host",
                "2 1 udp 2113937151 6e2a.local 50001 typ host",
            ],
        )
        self.assertEqual((offer.ufrag, offer.fingerprint), ("EsAw", "sha-256 AA:BB"))
        kept = [line for line in OFFER.splitlines() if "candidate" not in line]
        self.assertEqual(offer.sdp.splitlines(), kept)
        self.assertEqual(read_offer(OFFER.replace("\r\n", "\n")), offer)

    def test_what_is_no_offer_of_a_channel(self) -> None:
        """Sections of sound and video would start decoders for a stranger."""
        for sdp in (
            "",
            OFFER.replace("m=application", "m=video"),
            OFFER + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n",
            OFFER.replace("a=ice-ufrag", "a=ice-nothing"),
            OFFER.replace("a=fingerprint", "a=nothing"),
        ):
            self.assertRaises(ValueError, read_offer, sdp)

    def test_candidates(self) -> None:
        """Chrome writes the prefix, others do not; TCP and ports of no use are passed over."""
        line = "1 1 UDP 2113937151 192.0.2.7 50000 typ host generation 0 ufrag EsAw network-cost 999"
        for text in (line, f"candidate:{line}"):
            candidate = read_candidate(text)
            assert candidate is not None
            self.assertEqual((candidate.ip, candidate.port, candidate.sdpMLineIndex), ("192.0.2.7", 50000, 0))
        for text in ("", "candidate:", "1 1 tcp 1 10.0.0.1 9 typ host tcptype active", "1 1 udp 1 10.0.0.1 0 typ host",
                     "1 1 udp 1 10.0.0.1 x typ host", "1 1 udp 1 10.0.0.1 70000 typ host"):  # fmt: skip
            self.assertIsNone(read_candidate(text))

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=80) | st.lists(st.sampled_from(["1", "udp", "typ", "host", "x", "\0"])).map(" ".join))
    def test_any_candidate(self, text: str) -> None:
        """A candidate is never a reason for an error."""
        read_candidate(text)


class IceServerTests(SynchronousTestCase):
    """STUN and TURN: what the fronts say, what the settings say, and what answers."""

    TOLD = (
        IceServer(["stun:a.example:3478", "stun:b.example"]),
        IceServer(["turn:t.example:3478?transport=udp", "turns:t.example"], "user", "secret"),
        IceServer(["turn:without.example"]),
        IceServer(["http://nonsense", "stun:[2001:db8::1]:3478", "stun:"]),
    )

    def run_with(self, body: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await body()

        asyncio.run(main())

    async def urls(self, servers: IceServers) -> list[Any]:
        return [server.urls for server in await servers.current()]

    async def answers(self, servers: Any) -> bool:
        self.tried.append([server.urls for server in servers])
        return True

    async def silent(self, servers: Any) -> bool:
        self.tried.append([server.urls for server in servers])
        return False

    def setUp(self) -> None:
        self.tried: list[Any] = []

    def test_fronts_servers(self) -> None:
        """A URL that aiortc does not take would make every session fail."""

        async def body() -> None:
            servers = IceServers(gather=self.answers)
            self.assertEqual(await servers.current(), [])
            servers.told(self.TOLD)
            expected = ["stun:a.example:3478", "stun:b.example", "turn:t.example:3478?transport=udp", "turns:t.example"]
            self.assertEqual(await self.urls(servers), expected)
            self.assertEqual([s.username for s in await servers.current()], [None, None, "user", "user"])
            await asyncio.sleep(0)
            self.assertEqual(self.tried, [expected])

        self.run_with(body)

    def test_own_servers(self) -> None:
        """An operator who says "none" means none, and one who names a server means that one."""

        async def body() -> None:
            none = IceServers((), gather=self.answers)
            none.told(self.TOLD[:1])
            self.assertEqual(await none.current(), [])
            made = iter(("one", "two"))
            own = IceServers(
                ("stun:own.example",), lambda: [IceServer(["turn:own.example"], "u", next(made))], self.answers
            )
            own.told(self.TOLD)
            self.assertEqual([(s.urls, s.credential) for s in await own.current()],
                             [("stun:own.example", None), ("turn:own.example", "two")])  # fmt: skip

        self.run_with(body)

    def test_silent_servers(self) -> None:
        """Each answer would wait 5 s for a server that does not answer."""
        self.patch(ice, "STALL_S", 0.0)

        async def body() -> None:
            servers = IceServers(gather=self.silent)
            servers.told(self.TOLD[:1])
            self.assertEqual(await servers.current(), [])
            self.assertEqual(await servers.current(), [])
            # Tried again after a while, and used when they are back.
            self.patch(ice, "RETRY_S", -1.0)
            servers.gathered(1.0, False)
            self.patch(servers, "_gather", self.answers)
            self.assertEqual(await servers.current(), [])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.assertEqual(len(await servers.current()), 2)
            self.assertEqual(len(self.tried), 2)

        self.run_with(body)

    def test_answer_does_not_wait_for_a_trial(self) -> None:
        """A client that comes while the servers are tried has an answer soon, in any case."""
        self.patch(ice, "TRIAL_WAIT_S", 0.01)

        async def body() -> None:
            over = asyncio.Event()

            async def slow(servers: Any) -> bool:
                await over.wait()
                return True

            servers = IceServers(gather=slow)
            servers.told(self.TOLD[:1])
            self.assertEqual(await servers.current(), [])
            over.set()
            self.assertEqual(len(await servers.current()), 2)

        self.run_with(body)

    def test_server_that_goes_silent_later(self) -> None:
        """The first session that had to wait is enough to know."""

        async def body() -> None:
            servers = IceServers(gather=self.answers)
            servers.told(self.TOLD[:1])
            servers.gathered(0.05, True)
            self.assertEqual(len(await servers.current()), 2)
            servers.gathered(5.0, False)
            self.assertEqual(await servers.current(), [])
            # Other servers are another matter.
            servers.told([IceServer(["stun:new.example"])])
            self.assertEqual(await self.urls(servers), ["stun:new.example"])
            await asyncio.sleep(0)

        self.run_with(body)

    def test_trial_that_fails(self) -> None:
        """An error while trying must not be one that nobody catches."""

        async def body() -> None:
            async def fails(servers: Any) -> bool:
                raise OSError("no network")

            servers = IceServers(gather=fails)
            servers.told(self.TOLD)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.assertEqual(len(await servers.current()), 4)

        self.run_with(body)

    def test_gathering(self) -> None:
        """The trial itself, with no server: it must end at once and say that none answered."""

        async def body() -> None:
            self.assertFalse(await ice.gather_once([]))

        self.run_with(body)
