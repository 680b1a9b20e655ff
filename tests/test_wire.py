"""The peer protocol's frames: what is sent is received, and what is no frame is a BadFrame."""

from __future__ import annotations

import inspect
import random
from typing import Any, get_args

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import inspect as types
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster import wire
from kollator.cluster.wire import (
    BadFrame,
    Changes,
    Greeting,
    Heartbeat,
    Ping,
    Pong,
    decode,
    decode_opening,
    encode,
)
from kollator.signaling import mailboxes
from kollator.signaling.interfaces import Outcome
from kollator.signaling.switchboard import TALKED
from kollator.state.changes import BATCH_BYTES, Batch, Change, Cursor, change_bytes

KINDS = sorted(
    (
        kind
        for kind in vars(wire).values()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag
    ),
    key=lambda kind: kind.__name__,
)
VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()

TO_VALUE = b"\x94\xa7changes\x91\x99\xa1t\xc4\x01p\xa1c"
"""A frame up to where the value of its first change begins."""


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Everything that a type of the wire may hold, from the type itself."""
    if isinstance(kind, types.IntType):
        low, high = -(2**63) if kind.ge is None else kind.ge, 2**63 - 1 if kind.le is None else kind.le
        return st.integers(low, high)
    if isinstance(kind, types.StrType):
        if kind.pattern:
            return st.sampled_from(["a", "front-1.example:9090", "Z" * 64] + [""] * ("?" in kind.pattern))
        return st.text(min_size=kind.min_length or 0, max_size=kind.max_length)
    if isinstance(kind, types.BytesType):
        longest = min(kind.max_length or 100, 100)
        return st.binary(min_size=kind.min_length or 0, max_size=longest)
    if isinstance(kind, types.ListType):
        return st.lists(values(kind.item_type), max_size=3)
    if isinstance(kind, types.LiteralType):
        return st.sampled_from(kind.values)
    if isinstance(kind, types.UnionType):
        return st.one_of(*map(values, kind.types))
    if isinstance(kind, types.StructType):
        return st.builds(kind.cls, **{field.name: values(field.type) for field in kind.fields})
    simple = {types.BoolType: st.booleans(), types.NoneType: st.none(), types.AnyType: VALUES}
    return simple[type(kind)]


def plain(frame: Any) -> Any:
    """A frame as lists, to compare what is equal on the wire."""
    return msgspec.to_builtins(frame, builtin_types=(bytes,))


BY_KIND = {kind: values(types.type_info(kind)) for kind in KINDS}


class RoundTripTests(SynchronousTestCase):
    """Every class of the module, found by itself."""

    def test_every_frame_is_listed(self) -> None:
        """Without it a new frame would be sent and never understood."""
        self.assertEqual(set(KINDS), set(get_args(wire.Opening)) | set(get_args(wire.Frame)))
        tags = [kind.__struct_config__.tag for kind in KINDS]
        self.assertEqual(len(set(tags)), len(tags))

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_round_trip(self, data: st.DataObject) -> None:
        """Without it some frame would arrive as another one, or not at all."""
        kind = data.draw(st.sampled_from(KINDS))
        frame = data.draw(BY_KIND[kind])
        for union, decoder in ((wire.Opening, decode_opening), (wire.Frame, decode)):
            if kind in get_args(union):
                received = decoder(encode(frame))
                self.assertIs(type(received), kind)
                self.assertEqual(plain(received), plain(frame))
            else:
                self.assertEqual(self.assertRaises(BadFrame, decoder, encode(frame)).reason, "unknown-type")

    def test_known_bytes(self) -> None:
        """Without it a changed field order would part new fronts from old ones, and only in production."""
        greeting = Greeting(wire.PROTOCOL, 1, "a", bytes(32))
        self.assertEqual(encode(greeting), b"\x95\xa8greeting\xadkollator.peer\x01\xa1a\xc4\x20" + bytes(32))
        self.assertEqual(encode(Heartbeat(7, 9)), b"\x95\xa9heartbeat\x07\x09\xc0\xc0")

    def test_added_fields(self) -> None:
        """Without it no version could add a field: each would close the links to the other."""
        newer = msgspec.msgpack.encode(["ping", 3, None, {"new": [1, 2]}, "more"])
        self.assertEqual(decode(newer), Ping(3))
        older = msgspec.msgpack.encode(["heartbeat", 1, 2])
        self.assertEqual(decode(older), Heartbeat(1, 2))
        future = msgspec.msgpack.encode(["greeting", wire.PROTOCOL, 2, "a", bytes(32), {"also": 1}])
        self.assertEqual(decode_opening(future), Greeting(wire.PROTOCOL, 2, "a", bytes(32)))


class BatchTests(SynchronousTestCase):
    """The frame of a batch."""

    change = Change("fronts", b"\x01\x0b\x01a", "region", "west", 1, 2, b"s" * 16, 1, 0)

    def test_same_fields(self) -> None:
        """Without it a field added to the state's batch would be left behind on the way."""
        self.assertEqual(Changes.__struct_fields__, Batch.__struct_fields__)
        self.assertEqual(wire.ReceivedChange.__struct_fields__, Change.__struct_fields__)

    def test_there_and_back(self) -> None:
        """Without it a merge would get other changes or other cursors than the log has."""
        start, end = Cursor(b"e" * 16, 4), Cursor(b"e" * 16, 9)
        batch = Batch([self.change], start, end, True, [b"s" * 16], True)
        frame = decode(encode(Changes.of(batch)))
        assert isinstance(frame, Changes)
        received = frame.batch()
        self.assertEqual(plain(received), plain(batch))
        self.assertIsInstance(received.changes[0], Change)

    def test_a_full_batch_fits(self) -> None:
        """Without it a front with much to tell could not tell it."""
        count = BATCH_BYTES // (change_bytes(self.change) - 20)
        self.assertLess(count, wire.CHANGES_MAX)
        frame = Changes.of(Batch([self.change] * count, Cursor(), Cursor()))
        self.assertLess(len(encode(frame)), BATCH_BYTES)

    def test_hostile_value(self) -> None:
        """Without it one value of a type that no column has would cut the link, again and again."""
        row = [*msgspec.to_builtins(self.change, builtin_types=(bytes,))]
        row[3] = {"a": [1]}
        payload = msgspec.msgpack.encode(["changes", [row], [b"", 0], [b"", 0]])
        frame = decode(payload)
        assert isinstance(frame, Changes)
        self.assertEqual(frame.changes[0].val, {"a": [1]})


class CapTests(SynchronousTestCase):
    """What is too large, too deep, or not a frame at all."""

    def reason(self, payload: bytes, decoder: Any = decode) -> str:
        """Why the bytes are refused."""
        bad = self.assertRaises(BadFrame, decoder, payload)
        self.assertLess(len(str(bad)), 200)
        self.assertTrue(str(bad).isprintable())
        return str(bad.reason)

    def test_frame_size(self) -> None:
        """Without it one frame could take any amount of memory, at either end."""
        pong = encode(Pong(1))
        self.assertEqual(self.reason(pong + bytes(wire.FRAME_BYTES)), "too-large")
        greeting = encode(Greeting(wire.PROTOCOL, 1, "a", bytes(32)))
        self.assertEqual(self.reason(greeting + bytes(wire.OPENING_BYTES), decode_opening), "too-large")
        kept = wire.Kept("c", payloads=[bytes(wire.PAYLOAD_BYTES)] * 32)
        self.assertRaises(ValueError, encode, kept)

    def test_mailbox_fits(self) -> None:
        """Without it a mailbox that is full, as is allowed, could not follow its client."""
        self.assertEqual((wire.KEPT_MAX, wire.TALKED_MAX), (mailboxes.MESSAGES, TALKED))
        payloads = [bytes(mailboxes.BYTES // mailboxes.MESSAGES)] * mailboxes.MESSAGES
        encode(wire.Kept("c" * 64, "w" * 64, ["w" * 64] * TALKED, payloads))

    def test_outcomes(self) -> None:
        """Without it a front could have an outcome that the other front's client is never told."""
        told = get_args(inspect.get_annotations(wire.Undelivered, eval_str=True)["outcome"])
        self.assertEqual({*told, "sent"}, set(get_args(Outcome)))

    def test_fields(self) -> None:
        """Without it a peer could name nodes, terms and lists that no table here has room for."""
        node = b"n" * 32
        frame: Any
        for frame in (
            ["greeting", "kollator.peer", 1, "a\n", node],
            ["greeting", "kollator.peer", 1, "", node],
            ["greeting", "kollator.peer", 1, "a" * 65, node],
            ["greeting", "kollator.peer", 1, "a", node[:31]],
            ["greeting", "kollator.peer", True, "a", node],
            ["proof", "m" * 32],
            ["refusal", "because"],
        ):
            self.assertEqual(self.reason(msgspec.msgpack.encode(frame), decode_opening), "malformed", frame)
        for frame in (
            ["ping"],
            ["ping", -1],
            ["vote", 2**53 + 1],
            ["vote", 1.0],
            ["vote", None],
            ["vote-reply", 1, 1, 1],
            ["heartbeat-reply", 1, 1, ["a"] * 257],
            ["pull", [b"", 2**63]],
            ["pull", [b"e" * 17, 0]],
            ["pull"],
            ["changes", [], [b"", 0], [b"", 0], False, [b"s" * 15]],
            ["to-worker", "w", "c", b""],
            ["to-worker", "w", "c", bytes(wire.PAYLOAD_BYTES + 1)],
            ["to-worker", "w", "c", b"x", "r" * 65],
            ["to-worker", "w", "c", b"x", None, 9],
            ["to-worker", "", "c", b"x"],
            ["to-client", "c", "w" * 65, b"x"],
            ["arrived", "client", "c c", 1],
            ["kept", "c", "", [], [b"x"] * 33],
            ["changes", [[]] * (wire.CHANGES_MAX + 1), [b"", 0], [b"", 0]],
            {"type": "ping", "number": 1},
            "ping",
            None,
        ):
            self.assertEqual(self.reason(msgspec.msgpack.encode(frame)), "malformed", frame)

    def test_unknown_type(self) -> None:
        """Without it a newer front's frame would look like noise in the log."""
        self.assertEqual(self.reason(msgspec.msgpack.encode(["elect", 1])), "unknown-type")
        self.assertEqual(self.reason(msgspec.msgpack.encode(["\n\u202e" * 999, 1])), "unknown-type")

    def test_lengths_that_lie(self) -> None:
        """Without it a few bytes that announce four billion would be believed, and room be made for them."""
        for head in (b"\xdd\xff\xff\xff\xff", b"\x94\xa7changes\xdd\xff\xff\xff\xff"):
            self.assertEqual(self.reason(head), "malformed")
        for code in (b"\xdd", b"\xdf", b"\xc6", b"\xdb"):
            self.assertEqual(self.reason(TO_VALUE + code + b"\xff\xff\xff\xff"), "malformed")
        self.assertEqual(self.reason(b"\x93\xa4ping\x01\xc0\x00"), "malformed")

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200), st.sampled_from(KINDS), st.sampled_from([b"", TO_VALUE]))
    @example(b"\x91" * 100_000, Ping, b"")
    @example(b"\x81" * 100_000, Ping, b"")
    @example(b"\x93\xa4ping\x01\xc0" + b"\x91" * 100_000, Ping, b"")
    @example(b"\xdd\x00\x0f\xff\xff" * 100_000, Changes, TO_VALUE)
    @example(b"\x81\x91\x81\x01\x01\x01", Changes, TO_VALUE)
    @example(b"\x81\xc7\x01\x05\x01\x01", Changes, TO_VALUE)
    @example(b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff", Changes, TO_VALUE)
    def test_any_bytes(self, tail: bytes, kind: Any, head: bytes) -> None:
        """Without it some bytes of a peer would raise what nobody catches."""
        tag = kind.__struct_config__.tag
        for payload in (tail, bytes((0x90 | 5,)) + msgspec.msgpack.encode(tag) + tail, head + tail):
            for decoder in (decode, decode_opening):
                try:
                    decoder(payload)
                except BadFrame as bad:
                    self.assertLess(len(str(bad)), 200)

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(KINDS).flatmap(BY_KIND.__getitem__), st.integers(0, 2**32))
    def test_bytes_changed_on_the_way(self, frame: Any, seed: int) -> None:
        """Without it a frame that is nearly right would raise what nobody catches."""
        rng = random.Random(seed)
        sent = encode(frame)
        for _ in range(50):
            payload = bytearray(sent)
            for _ in range(rng.randint(1, 4)):
                payload[rng.randrange(len(payload))] = rng.randrange(256)
            attempt = bytes(payload[: rng.choice((len(payload), rng.randrange(len(payload))))])
            for decoder in (decode, decode_opening):
                try:
                    received: Any = decoder(attempt)
                    encode(received)
                except BadFrame:
                    pass
