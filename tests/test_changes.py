"""Changes on their way between fronts: encoding, sizes, and the wall in front of the database."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from kollator.state import changes
from kollator.state.changes import (
    Batch,
    Change,
    Cursor,
    change_bytes,
    pack_key,
    slices,
    unpack_key,
    validate,
)

SITE = b"s" * 16
KNOWN = {SITE}
GOOD = Change("attachments", pack_key(("w1", "a")), "state", "up", 1, 7, SITE, 1, 0)
FRONT = Change("fronts", pack_key(("a",)), "incarnation", 3, 2, 7, SITE, 1, 0)
WORKER = Change("workers", pack_key(("w1",)), "capacity", 100, 1, 7, SITE, 1, 0)
PIN = Change("pins", pack_key(("10.0.0.0/8",)), "worker", "w1", 1, 7, SITE, 1, 0)
ROW = replace(GOOD, cid="-1", val=None)

LONG_LENGTH = b"\x02\x13\x00\x02w1\x0b\x01a"  # the length of w1 in two bytes where one is enough

ACCEPTED = [
    GOOD,
    FRONT,
    WORKER,
    PIN,
    ROW,
    replace(GOOD, seq=2**31),
    replace(GOOD, col_version=2**53),
    replace(GOOD, db_version=0),
    replace(GOOD, db_version=2**63 - 1),
    replace(FRONT, val=0),
    replace(FRONT, val=2**53),
    replace(FRONT, cid="draining", val=1),
    replace(PIN, val=""),
    replace(WORKER, cid="region", val="é" * 64),
    replace(WORKER, val=1_000_000),
]

REFUSED = [
    # table
    (replace(GOOD, table=None), "unknown table"),
    (replace(GOOD, table=""), "unknown table"),
    (replace(GOOD, table="meta"), "unknown table"),
    (replace(GOOD, table="attachments; DROP TABLE votes"), "unknown table"),
    (replace(GOOD, table="crsql_changes"), "unknown table"),
    (replace(GOOD, table=["attachments"]), "unknown table"),
    # pk
    (replace(GOOD, pk=None), "bad key"),
    (replace(GOOD, pk=""), "bad key"),
    (replace(GOOD, pk=b""), "bad key"),
    (replace(GOOD, pk=bytearray(GOOD.pk)), "bad key"),
    (replace(GOOD, pk=b"\x02" * 1025), "bad key"),
    (replace(GOOD, pk=b"\x01" + GOOD.pk[1:]), "bad key"),
    (replace(GOOD, pk=b"\x03" + GOOD.pk[1:]), "bad key"),
    (replace(GOOD, pk=b"\xff" * 100), "bad key"),
    (replace(GOOD, pk=GOOD.pk + b"\0"), "bad key"),
    (replace(GOOD, pk=GOOD.pk[:-1]), "bad key"),
    (replace(GOOD, pk=FRONT.pk), "bad key"),
    (replace(GOOD, pk=LONG_LENGTH), "bad key"),
    (replace(FRONT, pk=b"\x01\x0c\x01a"), "bad key"),  # a blob
    (replace(FRONT, pk=b"\x01\x09\x01"), "bad key"),  # an integer
    (replace(FRONT, pk=b"\x01\x05"), "bad key"),  # NULL
    (replace(FRONT, pk=b"\x01\x0b\x00"), "bad key"),
    (replace(FRONT, pk=b"\x01\x0b\x01\x00"), "bad key"),
    (replace(FRONT, pk=b"\x01\x0b\x01\xff"), "bad key"),
    (replace(FRONT, pk=b"\x01\x0b\x80" + b"a" * 128), "bad key"),
    (replace(FRONT, pk=b"\x01\x13\x00\x80" + b"a" * 128), "bad key"),
    (replace(FRONT, pk=pack_key(("a b",))), "bad key"),
    (replace(FRONT, pk=pack_key(("a" * 65,))), "bad key"),
    (replace(PIN, pk=pack_key(("10.0.0.1/8",))), "bad key"),
    # cid
    (replace(GOOD, cid=None), "unknown column"),
    (replace(GOOD, cid="worker"), "unknown column"),
    (replace(GOOD, cid="region"), "unknown column"),
    (replace(GOOD, cid="__crsql_del"), "unknown column"),
    (replace(GOOD, cid="-2"), "unknown column"),
    (replace(GOOD, cid=-1), "unknown column"),
    (replace(GOOD, cid=["-1"]), "unknown column"),
    # val
    (replace(GOOD, val=None), "bad value"),
    (replace(GOOD, val="gone"), "bad value"),
    (replace(GOOD, val=b"up"), "bad value"),
    (replace(GOOD, val="up\0"), "bad value"),
    (replace(GOOD, val="up\n"), "bad value"),
    (replace(GOOD, val=["up"]), "bad value"),
    (replace(ROW, val=0), "bad value"),
    (replace(FRONT, val=-1), "bad value"),
    (replace(FRONT, val=2**53 + 1), "bad value"),
    (replace(FRONT, val=2**64), "bad value"),
    (replace(FRONT, val=True), "bad value"),
    (replace(FRONT, val=1.0), "bad value"),
    (replace(FRONT, val=float("nan")), "bad value"),
    (replace(FRONT, val="1"), "bad value"),
    (replace(FRONT, cid="draining", val=2), "bad value"),
    (replace(FRONT, cid="url", val="x" * 513), "bad value"),
    (replace(FRONT, cid="url", val="x\0"), "bad value"),
    (replace(WORKER, val=0), "bad value"),
    (replace(WORKER, val=1_000_001), "bad value"),
    (replace(WORKER, cid="region", val="\ud800"), "bad value"),
    (replace(WORKER, cid="address", val="x" * 256), "bad value"),
    (replace(PIN, val="w 1"), "bad value"),
    # cl
    (replace(GOOD, cl=0), "bad cl"),
    (replace(GOOD, cl=-1), "bad cl"),
    (replace(GOOD, cl=None), "bad cl"),
    (replace(GOOD, cl=True), "bad cl"),
    (replace(GOOD, cl=1.0), "bad cl"),
    (replace(GOOD, cl=2), "bad cl"),
    (replace(GOOD, cl=2**53 + 1), "bad cl"),
    (replace(GOOD, cl=3), "delete"),
    (replace(ROW, cl=2, col_version=2), "delete"),
    (replace(ROW, cl=2**53, col_version=2**53), "delete"),
    # col_version
    (replace(GOOD, col_version=0), "bad col_version"),
    (replace(GOOD, col_version=-1), "bad col_version"),
    (replace(GOOD, col_version=None), "bad col_version"),
    (replace(GOOD, col_version="1"), "bad col_version"),
    (replace(GOOD, col_version=2**53 + 1), "bad col_version"),
    (replace(ROW, col_version=2), "bad col_version"),
    # db_version
    (replace(GOOD, db_version=-1), "bad db_version"),
    (replace(GOOD, db_version=2**63), "bad db_version"),
    (replace(GOOD, db_version=None), "bad db_version"),
    # site_id
    (replace(GOOD, site_id=None), "bad site_id"),
    (replace(GOOD, site_id=b""), "bad site_id"),
    (replace(GOOD, site_id=b"s" * 15), "bad site_id"),
    (replace(GOOD, site_id="s" * 16), "bad site_id"),
    (replace(GOOD, site_id=b"t" * 16), "unknown site"),
    # seq
    (replace(GOOD, seq=-1), "bad seq"),
    (replace(GOOD, seq=2**31 + 1), "bad seq"),
    (replace(GOOD, seq=None), "bad seq"),
    (replace(GOOD, seq=0.0), "bad seq"),
]
"""One at least for every line of the table of what cr-sqlite does not refuse itself."""


class ValidateTests(SynchronousTestCase):
    """What may reach the database."""

    def test_accepted(self):
        """A change that every honest front sends would be lost."""
        for change in ACCEPTED:
            self.assertIdentical(validate(change, known_sites=KNOWN), None, change)

    def test_refused(self):
        """One of these crashes the process, others stop the sync or make fronts differ for ever."""
        for change, reason in REFUSED:
            self.assertEqual(validate(change, known_sites=KNOWN), reason, change)

    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=40),
        st.just(SITE),
        st.just(GOOD.pk),
        st.sampled_from(["attachments", "state", "up", "-1"]),
    )

    @given(st.tuples(*[junk] * 9), st.integers(0, 511))
    @settings(max_examples=100, deadline=None)
    def test_anything(self, fields, mask):
        """Some value would raise an exception where a reason is expected."""
        good = [getattr(GOOD, name) for name in Change.__struct_fields__]
        mixed = [fields[i] if mask >> i & 1 else good[i] for i in range(9)]
        reason = validate(Change(*mixed), known_sites=KNOWN)
        self.assertTrue(reason is None or (type(reason) is str and len(reason) < 20))


class KeyTests(SynchronousTestCase):
    """Packed primary keys."""

    key_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
        lambda t: len(t.encode()) <= 127
    )

    @given(st.lists(key_text, min_size=1, max_size=3).map(tuple))
    @settings(max_examples=100, deadline=None)
    def test_round_trip(self, columns):
        """A key would come back as another one."""
        self.assertEqual(unpack_key(pack_key(columns), len(columns)), columns)

    @given(st.binary(max_size=60), st.integers(1, 3))
    @settings(max_examples=100, deadline=None)
    def test_one_encoding(self, packed, count):
        """Two encodings of one key are two rows in one front and one in another."""
        try:
            columns = unpack_key(packed, count)
        except ValueError:
            return
        self.assertEqual(pack_key(columns), packed)

    def test_limits(self):
        """Longer text is packed in another way by other builds of cr-sqlite."""
        pack_key(("x" * 127,))
        for columns in (("x" * 128,), ("é" * 64,), ("",), ("a\0",), ("a", "")):
            self.assertRaises(ValueError, pack_key, columns)


class WireTests(SynchronousTestCase):
    """What is sent."""

    def test_every_struct_round_trips(self):
        """A field would be lost between two fronts."""
        examples: dict[type[msgspec.Struct], list[msgspec.Struct]] = {
            Change: [GOOD, FRONT, ROW],
            Cursor: [Cursor(), Cursor(SITE, 2**63 - 1)],
            Batch: [
                Batch([], Cursor(), Cursor()),
                Batch([GOOD, FRONT], Cursor(), Cursor(SITE, 9), True, [SITE], True),
            ],
        }
        found = {
            kind
            for kind in vars(changes).values()
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == changes.__name__
        }
        self.assertEqual(found, set(examples))
        for kind, values in examples.items():
            for value in values:
                self.assertEqual(msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind), value)

    def test_cursors_are_bounded(self):
        """A peer's cursor could be a number that SQLite cannot bind, or megabytes long."""
        for cursor in ([b"x" * 17, 1], [b"", -1], [b"", 2**63], ["x", 1], [b"", 1.5], [b"", None]):
            self.assertRaises(
                msgspec.ValidationError, msgspec.msgpack.decode, msgspec.msgpack.encode(cursor), type=Cursor
            )

    @given(
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=300), st.binary()),
        st.integers(0, 2**63 - 1),
    )
    @settings(max_examples=100, deadline=None)
    def test_size_is_an_upper_bound(self, value, number):
        """Batches would be larger than the frames that peers accept."""
        change = Change("attachments", b"k" * 131, "incarnation", value, number, number, SITE, number, number)
        self.assertGreaterEqual(change_bytes(change), len(msgspec.msgpack.encode(change)))


class SliceTests(SynchronousTestCase):
    """Batches in pieces."""

    @given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 10))
    @settings(max_examples=100, deadline=None)
    def test_cut_between_rows(self, keys, at_least):
        """A reader between two pieces would see half a row; or a change would be lost."""
        batch = [replace(FRONT, pk=pack_key((str(key),)), seq=i) for i, key in enumerate(keys)]
        pieces = list(slices(batch, at_least))
        self.assertEqual([change for piece in pieces for change in piece], batch)
        for before, after in pairwise(pieces):
            self.assertGreaterEqual(len(before), at_least)
            self.assertNotEqual(before[-1].pk, after[0].pk)
