"""Whole frames: what the fast path builds and unmasks, against the RFC's examples and against other code."""

from __future__ import annotations

from typing import Any

from autobahn.websocket import xormasker
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling import frames
from kollator.signaling.frames import accept_key, text_frame, unmask_with_integers
from tests.wires import read_frames

SIZES = (0, 1, 3, 4, 5, 125, 126, 127, 128, 129, 1000, 65_535)


class FrameTests(SynchronousTestCase):
    """Frames of the server."""

    def test_example(self) -> None:
        """Without it a frame might be well-formed to us only (RFC 6455 section 5.7)."""
        self.assertEqual(text_frame(b"Hello"), bytes.fromhex("810548656c6c6f"))

    def test_lengths(self) -> None:
        """Without it a message at the border of two forms of the length would break the stream."""
        for size in SIZES:
            payload = b"x" * size
            self.assertEqual(read_frames(text_frame(payload) * 2), [(1, payload)] * 2)
        self.assertEqual(text_frame(b"x" * 65_536)[:10], b"\x81\x7f" + (65_536).to_bytes(8, "big"))

    def test_accept_key(self) -> None:
        """Without it no client would take the handshake for answered (RFC 6455 section 1.3)."""
        self.assertEqual(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")


class UnmaskTests(SynchronousTestCase):
    """Every way to unmask that this machine has."""

    def ways(self) -> list[frames.Unmask]:
        """All of them."""
        found = (frames.unmask_with_nvx(), unmask_with_integers, frames.unmask)
        return [way for way in found if way is not None]

    def test_example(self) -> None:
        """Without it all ways might be wrong together (RFC 6455 section 5.7)."""
        for way in self.ways():
            self.assertEqual(way(bytes.fromhex("7f9f4d5158"), bytes.fromhex("37fa213d")), b"Hello")

    def test_sizes(self) -> None:
        """Without it the last bytes of a message might be left masked."""
        for size in SIZES:
            payload = bytes(at * 7 & 255 for at in range(size))
            masker: Any = vars(xormasker)["create_xor_masker"](b"\x01\x02\x03\xff", size)
            expected = bytes(masker.process(payload)) if size else b""
            for way in self.ways():
                found = way(payload, b"\x01\x02\x03\xff")
                self.assertEqual((found, type(found)), (expected, bytes), (way, size))

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
    def test_any(self, payload: bytes, mask: bytes) -> None:
        """Without it some mask, with zeros or high bits, might be applied wrongly."""
        for way in self.ways():
            self.assertEqual(way(payload, mask), bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))
