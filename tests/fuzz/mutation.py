"""What becomes of good input: bytes, texts, JSON values and their encodings, by a seeded source."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 64, 65, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1,
    2**63, 2**64 - 1, 2**64, 10**30, -(2**31), -(2**63), -(2**63) - 1, 0.0, -0.0, 0.5, 1.0, 1e308, -1e308, 5e-324,
    math.nan, math.inf, -math.inf,
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", "\0", "a\0b", "\n", "a\nb", "\r\n", "\u2028", "\x85", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "é" * 40,
    "\U0001f600", "x" * 63, "x" * 64, "x" * 65, "x" * 256, "x" * 5000, "%s%n{0}", "{x}", "../..", "' OR 1=1 --", "null",
    "-1", "1e9", "0x10", "__proto__", "nan", "\x1b[2J", "\x1b]0;x\x07",
)  # fmt: skip
BYTES: tuple[bytes, ...] = (
    b"", b"\0", b"\xff", b"\r\n", b"\n", b"\r\n\r\n", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
    b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b": ", b",", b'"', b"\\", b"[", b"{",
    b"}", b"]", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"A" * 70,
)  # fmt: skip
DEPTHS = (10, 200, 5_000, 30_000)


class Raw(bytes):
    """JSON text that is written as it is."""


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may come more than once, in any order."""


class Mutator:
    """Draws from one source; the same source and the same calls give the same input."""

    def __init__(self, source: Random) -> None:
        self.source = source

    def chance(self, share: float) -> bool:
        """True so often."""
        return self.source.random() < share

    # -- bytes --------------------------------------------------------------------------------------------------------

    def changed(self, data: bytes, others: Sequence[bytes] = (), changes: int = 0) -> bytes:
        """``data`` with some changes, one or a few if ``changes`` does not say; ``others`` are for splices."""
        for _ in range(changes or self.source.choice((1, 1, 1, 2, 3, 6))):
            data = self._change(data, others)
        return data

    def _change(self, data: bytes, others: Sequence[bytes]) -> bytes:
        source, size = self.source, len(data)
        at = source.randrange(size + 1)
        end = min(size, at + source.choice((1, 1, 2, 4, 16, 200)))
        match source.randrange(11):
            case 0 if size:
                at %= size
                return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :]
            case 1 if size:
                at %= size
                return data[:at] + source.randbytes(1) + data[at + 1 :]
            case 2:
                return data[:at]
            case 3:
                return data[:at] + data[end:]
            case 4:
                return data[:at] + data[at:end] * source.choice((2, 3, 40)) + data[end:]
            case 5:
                return data[:at] + source.choice(BYTES) + data[at:]
            case 6:
                return data[:at] + source.choice(BYTES) + data[end:]
            case 7 if others:
                other = source.choice(others)
                return data[:at] + other[source.randrange(len(other) + 1) :]
            case 8:
                return data[:at] + source.randbytes(source.choice((1, 4, 30))) + data[end:]
            case 9 if size > 1:
                other_at = source.randrange(size)
                piece = data[at:end]
                rest = data[:at] + data[end:]
                return rest[:other_at] + piece + rest[other_at:]
            case _:
                return data + source.choice(BYTES)

    def cut(self, data: bytes) -> list[bytes]:
        """``data`` as it may arrive: whole, in a few pieces, or byte by byte."""
        match self.source.randrange(8):
            case 0 if len(data) < 400:
                return [data[at : at + 1] for at in range(len(data))]
            case 1 | 2:
                cuts = sorted(self.source.randrange(len(data) + 1) for _ in range(self.source.randrange(1, 5)))
                ends = zip([0, *cuts], [*cuts, len(data)], strict=True)
                return [data[start:end] for start, end in ends if start < end]
            case _:
                return [data]

    # -- text ---------------------------------------------------------------------------------------------------------

    def text(self, text: str, others: Sequence[str] = ()) -> str:
        """``text`` with a change or some."""
        if self.chance(0.15):
            return self.source.choice((*TEXTS, *others))
        data = self.changed(text.encode("utf-8", "surrogatepass"), [other.encode() for other in others])
        return data.decode("utf-8", self.source.choice(("replace", "surrogateescape", "ignore")))

    # -- values -------------------------------------------------------------------------------------------------------

    def scalar(self) -> Any:
        """Some value that is nobody's favourite."""
        some = (*self.source.sample(NUMBERS, 4), *self.source.sample(TEXTS, 4))
        return self.source.choice((None, True, False, [], {}, [[]], {"": None}, *some))

    def value(self, value: Any) -> Any:
        """``value`` with one place in it changed: its type, its size, its keys, or something deeper."""
        source = self.source
        if isinstance(value, dict) and value and not self.chance(0.1):
            return self._object(dict(value))
        if isinstance(value, list | tuple) and value and not self.chance(0.1):
            items = list(value)
            at = source.randrange(len(items))
            match source.randrange(5):
                case 0:
                    del items[at]
                case 1:
                    items.insert(at, items[source.randrange(len(items))])
                case 2:
                    items = items * source.choice((2, 40, 300))
                case _:
                    items[at] = self.value(items[at])
            return items
        if isinstance(value, str) and self.chance(0.6):
            return self.text(value)
        if isinstance(value, bytes) and self.chance(0.6):
            return self.changed(value)
        if isinstance(value, int | float) and self.chance(0.6):
            return source.choice(NUMBERS)
        return self.scalar()

    def _object(self, value: dict[str, Any]) -> Any:
        source = self.source
        key = source.choice(list(value))
        match source.randrange(9):
            case 0:
                del value[key]
            case 1:
                return Pairs([*value.items(), (key, self.value(value[key]))])
            case 2:
                items = list(value.items())
                source.shuffle(items)
                return dict(items)
            case 3:
                value[self.text(key)] = value.pop(key)
            case 4:
                value[source.choice(TEXTS)] = self.scalar()
            case 5:
                other = source.choice(list(value))
                value[key], value[other] = value[other], value[key]
            case _:
                value[key] = self.value(value[key])
        return value

    def json(self, value: Any, changes: int | None = None) -> bytes:
        """JSON of ``value`` with so many changes (drawn when None), some of which no encoder would write."""
        for _ in range(self.source.choice((0, 0, 0, 1, 1, 1, 2, 3)) if changes is None else changes):
            if not isinstance(value, Pairs):
                value = self.value(value)
        if changes is None and self.chance(0.04):
            value = self._unwritable(value)
        return written(value)

    def _unwritable(self, value: Any) -> Any:
        deep = self.source.choice(DEPTHS)
        odd = self.source.choice((
            Raw(b"[" * deep + b"]" * deep), Raw(b'{"a":' * deep + b"1" + b"}" * deep), Raw(b"1e999"), Raw(b"-"),
            Raw(b"9" * 5000), Raw(b"0." + b"0" * 5000 + b"1"), Raw(b'"\xff"'), Raw(b'"\\ud800"'), Raw(b'"\\u00"'),
            Raw(b'"' + b"\\n" * 9000 + b'"'), Raw(b""), Raw(b"nul"), Raw(b'"a\x00b"'), Raw(b'"\xed\xa0\x80"'),
        ))  # fmt: skip
        if isinstance(value, dict) and value and self.chance(0.8):
            return value | {self.source.choice([*value, "other"]): odd}
        return odd


def written(value: Any) -> bytes:
    """JSON of a value that may have ``Raw`` and ``Pairs`` in it. Surrogates are escaped, NaN is written as it is."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, bytes | bytearray):
        return json.dumps(value.hex()).encode()
    if isinstance(value, dict | Pairs):
        items = value.items() if isinstance(value, dict) else value
        return b"{" + b",".join(written(str(key)) + b":" + written(inner) for key, inner in items) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(written, value)) + b"]"
    return json.dumps(value).encode()
