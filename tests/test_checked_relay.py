"""What is passed on looks like a session description or a candidate; what does not costs its sender only."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from kollator.guard.descriptions import MAX_SDP_MEDIA
from kollator.signaling.switchboard import BAD_MESSAGES, Switchboard
from tests import switchboard_bench
from tests.switchboard_bench import SDP, BenchTestCase
from tests.test_descriptions import CANDIDATES, CHROME_OFFER, LIBDATACHANNEL_OFFER, MINIMAL

CANDIDATE = CANDIDATES.splitlines()[0]
GOOD: tuple[dict[str, Any], ...] = (
    *({"type": kind, "sdp": sdp} for kind in ("offer", "answer") for sdp in (SDP, MINIMAL, CHROME_OFFER)),
    {"type": "offer", "sdp": LIBDATACHANNEL_OFFER},
    {"type": "candidate", "candidate": {"candidate": CANDIDATE, "sdpMid": "0", "sdpMLineIndex": 0}},
    {"type": "candidate", "candidate": {"candidate": CANDIDATE, "sdpMid": None, "usernameFragment": "u" * 256}},
    {"type": "candidate", "candidate": {"candidate": "", "sdpMid": "x" * 256}},
    {"type": "candidate", "candidate": {"sdpMLineIndex": 0}},
    {"type": "candidate", "candidate": None},
    {"type": "bye", "reason": "v=1"},
)
BAD: tuple[dict[str, Any], ...] = (
    *({"type": kind, "sdp": sdp} for kind in ("offer", "answer") for sdp in ("", "x", "v=0\r\n\0")),
    {"type": "offer", "sdp": SDP + "m=audio\r\n" * (MAX_SDP_MEDIA + 1)},
    *({"type": "candidate", "candidate": {"candidate": text}} for text in ("x", CANDIDATE + "\r\na=ice-lite", "\0")),
    {"type": "candidate", "candidate": {"candidate": CANDIDATE, "sdpMid": "x" * 257}},
    {"type": "candidate", "candidate": {"candidate": CANDIDATE, "usernameFragment": "x" * 257}},
)


class CheckedTests(BenchTestCase):
    """With CHECK_DESCRIPTIONS, as is the default."""

    checks: ClassVar = True

    def setUp(self) -> None:
        """A worker and a client."""
        self.patch(switchboard_bench, "Switchboard", partial(Switchboard, check_descriptions=self.checks))
        super().setUp()
        self.worker, self.client = self.bench.worker(), self.bench.client()
        self.name = self.client.take()[0]["id"]

    def test_good(self) -> None:
        """Without it the check could keep out what browsers and libraries send, or change it."""
        for sender, to, target, name in (
            (self.client, "w1", self.worker, self.name), (self.worker, self.name, self.client, "w1"),
        ):
            for message in GOOD:
                self.assertEqual(sender.says(to=to, ref="r", **message), {}, message)
                self.assertEqual(target.take(), [{**message, "from": name}])

    def test_bad(self) -> None:
        """Without it a worker or a client would get what hurts its parser, from either side."""
        for sender, to, target in ((self.client, "w1", self.worker), (self.worker, self.name, self.client)):
            for message in BAD:
                self.assertError(sender.says(to=to, ref="r", **message), "bad-message", ref="r", to=to)
                self.assertEqual((target.take(), sender.code), ([], None), message)
                sender.take()
                sender.bad_in_a_row = 0

    def test_not_among_the_ten(self) -> None:
        """Without it a library with candidates of its own would lose its connection."""
        for _ in range(BAD_MESSAGES):
            self.client.says(type="offer", to="w1", sdp="x")
            self.client.says(type="candidate", to="w1", candidate={"candidate": "x"})
        self.assertEqual((self.client.code, self.client.bad_in_a_row), (None, 0))

    def test_target_comes_first(self) -> None:
        """Without it the answer would depend on the content where nobody would get it."""
        other = self.bench.client().take()[0]["id"]
        for sender, to, code in (
            (self.client, "nobody", "unknown-target"),
            (self.client, other, "forbidden"),
            (self.worker, "nobody", "unknown-target"),
            (self.worker, "w1", "forbidden"),
        ):
            self.assertError(sender.says(type="offer", to=to, sdp="x"), code, to=to)

    def test_costs_nobody_else(self) -> None:
        """Without it what is refused would count as a word with that worker."""
        self.client.says(type="offer", to="w1", sdp="x")
        self.assertEqual((self.client.talked, self.bench.counters.messages_relayed), ((), 0))


class UncheckedTests(BenchTestCase):
    """With CHECK_DESCRIPTIONS=false, for those who pass something else through."""

    def test_anything(self) -> None:
        """Without it the setting would do nothing."""
        worker, client = self.bench.worker(), self.bench.client()
        for message in ({"type": "offer", "sdp": "x"}, {"type": "candidate", "candidate": {"candidate": "x"}}):
            self.assertEqual(client.says(to="w1", **message), {})
            self.assertEqual(len(worker.take()), 1)
        too_long = {"candidate": "x", "sdpMid": "x" * 257}
        self.assertError(client.says(type="candidate", to="w1", candidate=too_long), "bad-message", to="w1")
