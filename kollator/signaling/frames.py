"""Whole frames of a WebSocket's server end (RFC 6455 section 5): how they are built, and how a client's are unmasked.

Pure. What is rare (fragments, closing, frames that break the rules) is Autobahn's affair.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1

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
_large = struct.Struct("!BBQ").pack

Unmask = Callable[[bytes, bytes], bytes]
"""(payload, the four bytes of its mask) to the payload that was meant."""


def text_frame(payload: bytes) -> bytes:
    """A text message of the server, in one frame."""
    size = len(payload)
    if size < TWO_BYTES:
        return _HEADS[size] + payload
    if size < 65_536:
        return _medium(TEXT, 126, size) + payload
    return _large(TEXT, 127, size) + payload


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


def unmask_with_websockets() -> Unmask | None:
    """Unmasks with the extension of the ``websockets`` library, the fastest; None where that is not installed."""
    try:
        from websockets.speedups import apply_mask
    except ImportError:
        return None
    found: Unmask = apply_mask
    return found


unmask: Unmask = unmask_with_websockets() or unmask_with_nvx() or unmask_with_integers
"""The fastest of what there is. Two kilobytes take 0.3, 1.2 or 10 microseconds."""
