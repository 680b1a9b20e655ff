"""The checks of what is relayed are made for speed; here they are compared with plain ones that say the same."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.descriptions import MAX_CANDIDATE_CHARS, MAX_SDP_MEDIA, check_candidate, check_sdp
from tests.test_descriptions import CANDIDATES, ODD_LINE_ENDS

# RFC 8839 section 5.1.
REFERENCE_TOKEN = r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]{1,64}"
REFERENCE_ADDRESS = r"[0-9A-Za-z._:%-]{1,255}"
REFERENCE = re.compile(
    r"(?:(?:a=)?candidate:)?[A-Za-z0-9+/]{1,32} [0-9]{1,5} "
    rf"{REFERENCE_TOKEN} [0-9]{{1,10}} {REFERENCE_ADDRESS} ([0-9]{{1,5}}) typ {REFERENCE_TOKEN}"
    rf"(?: raddr {REFERENCE_ADDRESS})?(?: rport ([0-9]{{1,5}}))?"
    rf"(?: (?!raddr |rport ){REFERENCE_TOKEN} [!-~]*)* ?(?:\r?\n)?"
)
PIECES = (
    *("", " ", "  ", "\n", "\r\n", "a=", "candidate:", " typ ", " host", " raddr ", " rport ", " raddr 1.1.1.1 rport "),
    *(" ufrag", " r x", " radd x", " raddress x", " x", " x ", " X y", " ~ ~", "%", "_", ".", "\x7f", "\u00e9", "\0"),
    *("9", "0", "65535", "65536", "60000", "64999", "65000", "59999", "99999", "00000", "000001", "7" * 5, "7" * 6),
    *("1" * 9, "1" * 10, "1" * 11, "f" * 31, "f" * 32, "f" * 33, "k" * 62, "k" * 63, "k" * 64, "k" * 65),
    *("a" * 254, "a" * 255, "a" * 256, " k v" * 200),
)
"""What candidates are put together from, and spoiled with: each limit from both sides."""


def reference_check(candidate: str) -> str | None:
    """As ``check_candidate``, in one step."""
    if not candidate:
        return None
    if len(candidate) > MAX_CANDIDATE_CHARS:
        return f"the candidate has over {MAX_CANDIDATE_CHARS} characters"
    match = REFERENCE.fullmatch(candidate)
    if match is None:
        return "the candidate does not follow RFC 8839"
    if any(port is not None and int(port) > 65_535 for port in match.groups()):
        return "the candidate has a port over 65535"
    return None


class ReferenceTests(SynchronousTestCase):
    """Nothing else is accepted or refused, or for another reason."""

    @given(st.lists(st.sampled_from(["\n", "\r", "\x1c", "m=", "m=", "mm==", "m", "="]), min_size=64, max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_same_media(self, pieces: list[str]) -> None:
        """Without it the quick look at the m= lines could pass or refuse others than counting them does."""
        sdp = "v=0" + "".join(pieces)
        media = sum(sdp.count(end + "m=") for end in ("\n", "\r", *ODD_LINE_ENDS))
        self.assertEqual(check_sdp(sdp) is None, media <= MAX_SDP_MEDIA)
        for count in (MAX_SDP_MEDIA - 1, MAX_SDP_MEDIA, MAX_SDP_MEDIA + 1, MAX_SDP_MEDIA + 2):
            self.assertEqual(check_sdp("v=0" + "\nm=" * count) is None, count <= MAX_SDP_MEDIA)

    def test_limits_of_each_field(self) -> None:
        """Without it a field could be longer or shorter, or a port larger, than before the check was made faster."""
        form = "candidate:{} {} {} {} {} {} typ {} raddr {} rport {} {} {}"
        good = ("1", "1", "udp", "1", "192.0.2.1", "5000", "srflx", "10.0.0.1", "5000", "ufrag", "x")
        texts = [form.format(*good)]
        for place in range(len(good)):
            for piece in (*PIECES, *(str(port) for port in range(59_990, 65_600, 50))):
                texts.append(form.format(*good[:place], piece, *good[place + 1 :]))
                texts.append(form.format(*good[:place], good[place] + piece, *good[place + 1 :]))
        accepted = 0
        for text in texts:
            self.assertEqual(check_candidate(text), reference_check(text), text)
            accepted += check_candidate(text) is None
        self.assertGreater(accepted, len(texts) // 4)

    @given(
        st.sampled_from(CANDIDATES.splitlines()),
        st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 12), st.sampled_from(PIECES)), max_size=40),
    )
    @settings(max_examples=100, deadline=None)
    def test_same_as_the_reference(self, candidate: str, changes: list[tuple[int, int, str]]) -> None:
        """Without it a spoiled candidate could pass, or a good one be refused, since the check was made faster."""
        mixed = candidate
        for place, removed, piece in changes:
            for text in (candidate, mixed):
                words = text.split(" ")
                at, word = place % (len(text) + 1), place % len(words)
                for spoiled in (
                    text[:at] + piece + text[at + removed :],
                    " ".join([*words[:word], piece, *words[word + 1 :]]),
                    " ".join([*words[:word], *words[word + 1 :]]),
                    text + piece,
                ):
                    self.assertEqual(check_candidate(spoiled), reference_check(spoiled), spoiled)
            mixed = mixed[:at][:MAX_CANDIDATE_CHARS] + piece + mixed[at + removed :]
