"""The wire format on the data channel."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, json
from twisted.trial.unittest import SynchronousTestCase

from kollator.webrtc import channel as wire

ids = st.integers(0, 2**32 - 1)
# Surrogates cannot be in JSON; a listing never has them.
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=300)
sizes = st.integers(0, 2**53)
listed = st.builds(wire.Listed, names, sizes)

REQUESTS = st.one_of(st.builds(wire.List, ids), st.builds(wire.Fetch, ids, names), st.builds(wire.Cancel, ids))
REPLIES = st.one_of(
    st.builds(wire.Listing, ids, st.lists(listed, max_size=5), st.booleans(), st.just(True) | st.just(UNSET)),
    st.builds(wire.File, ids, names, sizes),
    st.builds(wire.End, ids, st.text(string.hexdigits.lower(), min_size=64, max_size=64)),
    st.builds(wire.Error, st.sampled_from(["busy", "io", "changed"]), names, ids | st.just(UNSET)),
)


class ChannelTests(SynchronousTestCase):
    """What both sides write and read."""

    def test_every_message_is_covered(self) -> None:
        """A message type without a round trip below can be broken without anyone noticing."""
        kinds: set[Any] = {kind for kind in vars(wire).values() if _is_message(kind)}
        self.assertEqual(kinds, {*wire.Request.__args__, *wire.Reply.__args__})  # type: ignore[attr-defined]

    @settings(max_examples=100, deadline=None)
    @given(REQUESTS)
    def test_requests_round_trip(self, message: wire.Request) -> None:
        """A request that arrives changed fetches another file."""
        self.assertEqual(wire.decode_request(wire.encode(message)), message)

    @settings(max_examples=100, deadline=None)
    @given(REPLIES)
    def test_replies_round_trip(self, message: wire.Reply) -> None:
        """A reply that arrives changed is taken for another request's, or for another hash."""
        self.assertEqual(wire.decode_reply(wire.encode(message)), message)

    def test_as_written_down(self) -> None:
        """The page is written against these very texts."""
        requests: list[tuple[str, wire.Request]] = [
            ('{"type":"list","id":1}', wire.List(1)),
            ('{"type":"fetch","id":2,"name":"docs/a.bin"}', wire.Fetch(2, "docs/a.bin")),
            ('{"type":"cancel","id":2}', wire.Cancel(2)),
        ]
        for text, message in requests:
            self.assertEqual(wire.encode(message), text)
            self.assertEqual(wire.decode_request(text), message)
        replies: list[tuple[str, wire.Reply]] = [
            (
                '{"type":"listing","id":1,"files":[{"name":"a.bin","size":123}],"truncated":false}',
                wire.Listing(1, [wire.Listed("a.bin", 123)], False),
            ),
            ('{"type":"listing","id":1,"files":[],"truncated":true,"more":true}', wire.Listing(1, [], True, True)),
            ('{"type":"file","id":2,"name":"a.bin","size":123}', wire.File(2, "a.bin", 123)),
            ('{"type":"end","id":2,"sha256":"00"}', wire.End(2, "00")),
            ('{"type":"error","code":"busy","message":"m","id":2}', wire.Error("busy", "m", 2)),
            ('{"type":"error","code":"bad-request","message":"m"}', wire.Error("bad-request", "m")),
        ]
        for text, reply in replies:
            self.assertEqual(wire.encode(reply), text)

    def test_bad_requests(self) -> None:
        """Anything may come from a browser; what raises something else than ``BadRequest`` ends the channel."""
        cases: list[tuple[str, Any]] = [
            ("", UNSET),
            ("{", UNSET),
            ("[" * 50_000, UNSET),
            ("[1]", UNSET),
            ("\ud800", UNSET),
            ('{"type":"list"}', UNSET),
            ('{"type":"list","id":-1}', UNSET),
            ('{"type":"list","id":4294967296}', UNSET),
            ('{"type":"list","id":true}', UNSET),
            ('{"type":"list","id":"1"}', UNSET),
            ('{"type":"dance","id":7}', 7),
            ('{"id":7}', 7),
            ('{"type":"fetch","id":7}', 7),
            ('{"type":"fetch","id":7,"name":""}', 7),
            ('{"type":"fetch","id":7,"name":3}', 7),
            ('{"type":"fetch","id":7,"name":"' + "a" * 5000 + '"}', 7),
            ('{"type":"list","id":7,"pad":"' + "a" * 65_536 + '"}', UNSET),
        ]
        for text, request_id in cases:
            refused = self.assertRaises(wire.BadRequest, wire.decode_request, text)
            self.assertEqual(refused.error().id, request_id, text[:60])
            self.assertLess(len(wire.encode(refused.error())), 400)

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=200) | st.builds(lambda x: json.encode(x).decode(), st.dictionaries(st.just("id"), ids)))
    def test_nothing_else_is_raised(self, text: str) -> None:
        """The same for texts that nobody thought of."""
        try:
            wire.decode_request(text)
        except wire.BadRequest:
            pass

    @settings(max_examples=100, deadline=None)
    @given(ids, st.binary(min_size=1, max_size=64))
    def test_chunks(self, request_id: int, data: bytes) -> None:
        """A chunk that is given to another request spoils two files."""
        self.assertEqual(wire.split_chunk(wire.chunk_head(request_id) + data), (request_id, data))

    def test_chunk_without_a_head(self) -> None:
        """A short message must not be taken for a chunk of request 0."""
        self.assertRaises(ValueError, wire.split_chunk, b"abc")

    def test_sizes(self) -> None:
        """A message over 16 KiB is cut by some browsers' SCTP."""
        self.assertEqual(len(wire.chunk_head(7)) + wire.CHUNK_DATA_BYTES, 16_384)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.builds(wire.Listed, st.text(max_size=4096), sizes), max_size=60), st.booleans())
    def test_long_listings(self, files: list[wire.Listed], truncated: bool) -> None:
        """A listing over 64 KiB, or one without its last message, never shows in the page."""
        files = [wire.Listed(file.name.encode("ascii", "replace").decode() * 40, file.size) for file in files]
        files = [wire.Listed(file.name[:4096], file.size) for file in files]
        messages = list(wire.listing_messages(2**32 - 1, files, truncated))
        self.assertEqual([file for message in messages for file in message.files], files)
        self.assertEqual([m.more for m in messages], [True] * (len(messages) - 1) + [UNSET])
        for message in messages:
            self.assertEqual(message.truncated, truncated)
            self.assertLessEqual(len(wire.encode(message).encode()), wire.MESSAGE_BYTES)

    def test_empty_listing(self) -> None:
        """An empty folder needs an answer too, or the page waits for ever."""
        self.assertEqual(list(wire.listing_messages(1, [], False)), [wire.Listing(1, [], False)])


def _is_message(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, wire._Message) and kind is not wire._Message
