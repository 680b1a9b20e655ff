"""Whole frames of a WebSocket's server end (RFC 6455 section 5): how they are built, and how a client's are unmasked.

Pure. What is rare (fragments, closing, frames that break the rules) is Autobahn's affair. What is done to the bytes of
every message is compiled (``_speedups.c``); where there was no C compiler, the same is done in Python.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1

from kollator.compiled import speedups

TEXT = 0x81
"""The first byte of a text message in one frame."""
PING = 0x89
PONG = 0x8A
CLOSE = 0x88
MASKED = 0x80
"""The bit of the second byte that every frame of a client has."""
TWO_BYTES = 126
"""The length that says: the next two bytes are the length."""

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SMALL_BYTES = 128
"""Below this, big integers are faster than a call into another library."""
_HEADS = tuple(bytes((TEXT, size)) for size in range(TWO_BYTES))
_medium = struct.Struct("!BBH").pack
_medium_start = struct.Struct("!HH4s").unpack_from
"""The two bytes that each frame starts with, and the length and the mask where the length has two bytes more."""
_MEDIUM_HEAD_BYTES = 8
_MEDIUM_TEXT = TEXT << 8 | MASKED | TWO_BYTES
_large = struct.Struct("!BBQ").pack

Unmask = Callable[[bytes, bytes], bytes]
"""(payload, the four bytes of its mask) to the payload that was meant."""


def next_text_in_python(data: bytes, at: int) -> bytes | None:
    """The payload of the text message that starts at ``data[at]``: whole, masked, valid UTF-8, under 64 KiB; else None.

    It takes 6 bytes more than the payload, 8 from ``TWO_BYTES`` on: a length in more bytes than it needs is an error.
    """
    left = len(data) - at
    if left >= _MEDIUM_HEAD_BYTES:  # as mostly
        head, size, mask = _medium_start(data, at)
        start = at + _MEDIUM_HEAD_BYTES
    else:
        head, size, mask, start = 0, 0, b"", at
    if head != _MEDIUM_TEXT:
        start = at + 6
        if left < 6 or data[at] != TEXT:
            return None
        size, mask = data[at + 1] - MASKED, data[at + 2 : start]
        if not 0 <= size < TWO_BYTES:
            return None
    elif size < TWO_BYTES:
        return None
    if start + size > len(data):
        return None
    payload = unmask(data[start : start + size], mask) if size else b""
    return payload if is_utf8(payload) else None


def is_utf8(payload: bytes) -> bool:
    """Whether a text message may have this payload: a connection that is sent anything else closes (1007)."""
    if payload.isascii():
        return True
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def text_frame_in_python(payload: bytes) -> bytes:
    """A text message of the server, in one frame."""
    size = len(payload)
    if size < TWO_BYTES:
        return _HEADS[size] + payload
    if size < 65_536:
        return _medium(TEXT, 126, size) + payload
    return _large(TEXT, 127, size) + payload


next_text = next_text_in_python if speedups is None else speedups.next_text
text_frame = text_frame_in_python if speedups is None else speedups.text_frame


def accept_key(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` that answers a ``Sec-WebSocket-Key`` (RFC 6455 section 4.2.2)."""
    return b64encode(sha1(key + _MAGIC, usedforsecurity=False).digest())


def unmask_with_integers(payload: bytes, mask: bytes) -> bytes:
    """Unmasks with the integers of Python: there is always that."""
    size = len(payload)
    masks = (mask * ((size + 3) // 4))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(masks, "big")).to_bytes(size, "big")


def unmask_with_nvx() -> Unmask | None:
    """Unmasks with the vector instructions that come with Autobahn; None where it was built without."""
    try:
        from _nvx_xormasker import ffi, lib  # type: ignore[import-not-found]
    except ImportError:
        return None
    new, process, free, view = lib.nvx_xormask_new, lib.nvx_xormask_process, lib.nvx_xormask_free, ffi.from_buffer

    def unmask(payload: bytes, mask: bytes) -> bytes:
        size = len(payload)
        if size < _SMALL_BYTES:
            return unmask_with_integers(payload, mask)
        masker = new(mask)
        try:
            buffer = bytearray(payload)
            process(masker, view(buffer), size)
        finally:
            free(masker)
        return bytes(buffer)

    return unmask


unmask: Unmask = unmask_with_nvx() or unmask_with_integers
"""The faster of what there is. Two kilobytes take 1.2 or 10 microseconds, and 0.3 where ``next_text`` is compiled."""
