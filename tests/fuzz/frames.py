"""WebSocket bytes (RFC 6455 section 5) as a peer that is no honest one writes them."""

from __future__ import annotations

import struct

from tests.fuzz.mutation import Mutator
from tests.wires import UPGRADE, request

_LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 2**31, 2**63 - 1, 2**63, 2**64 - 1)
_CLOSE_CODES = (0, 1, 999, 1000, 1001, 1003, 1004, 1005, 1006, 1007, 1011, 1015, 2999, 3000, 4400, 4999, 5000, 65_535)
HANDSHAKE = request("GET", "/signaling", UPGRADE | {"Sec-WebSocket-Protocol": "kollator.v1"})


def frame(
    payload: bytes,
    opcode: int = 1,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = bytes(4),
    length: int | None = None,
    width: int = 0,
) -> bytes:
    """One frame. ``length`` is what its header says where that is a lie, ``width`` the bytes that it says it in."""
    size = len(payload) if length is None else length
    width = width or (1 if size < 126 else 3 if size < 65_536 else 9)
    head = bytes([(0x80 if fin else 0) | (rsv & 7) << 4 | opcode & 15])
    masked = 0 if mask is None else 0x80
    if width == 1:
        head += bytes([masked | size & 0x7F])
    elif width == 3:
        head += bytes([masked | 126]) + struct.pack("!H", size & 0xFFFF)
    else:
        head += bytes([masked | 127]) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    if any(mask):
        repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
        payload = (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(len(payload)) if payload else b""
    return head + mask + payload


def control(mutator: Mutator) -> bytes:
    """A control frame, sometimes too large, in pieces, or a close with any code."""
    source = mutator.source
    opcode = source.choice((8, 9, 9, 10, 10, 11, 15))
    payload = source.randbytes(source.choice((0, 1, 2, 4, 125, 126, 300)))
    if opcode == 8 and mutator.chance(0.8):
        payload = struct.pack("!H", source.choice(_CLOSE_CODES)) + source.choice((b"", b"bye", b"\xff\xfe", b"x" * 200))
    return frame(payload, opcode, fin=mutator.chance(0.9), mask=source.randbytes(4))


def message(mutator: Mutator, payload: bytes, opcode: int = 1) -> bytes:
    """A message in one or more frames; with ``payload`` kept whole about two times of three."""
    source = mutator.source
    match source.randrange(24):
        case 0 | 1 | 2:
            return _fragments(mutator, payload, opcode)
        case 3:
            return mutator.changed(frame(payload, opcode, mask=source.randbytes(4)))
        case 4:
            what = source.randrange(5)
            return frame(
                payload,
                source.randrange(16) if what == 0 else opcode,
                rsv=source.randrange(1, 8) if what == 1 else 0,
                mask=None if what == 2 else source.randbytes(4),
                length=source.choice(_LENGTHS) if what == 3 else None,
                width=source.choice((3, 9)) if what == 4 else 0,
            )
        case 5:
            return control(mutator) + frame(payload, opcode)
        case _:
            return frame(payload, opcode, mask=source.choice((bytes(4), source.randbytes(4))))


def _fragments(mutator: Mutator, payload: bytes, opcode: int) -> bytes:
    source = mutator.source
    count = source.choice((2, 3, 5, 40))
    size = max(1, len(payload) // count)
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b"", b""]
    frames = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        frames.append(frame(piece, opcode if number == 0 else 0, fin=last, mask=source.randbytes(4)))
        if not last and mutator.chance(0.2):
            frames.append(control(mutator) if mutator.chance(0.3) else frame(b"p", 9))
    if mutator.chance(0.15):
        at = source.randrange(len(frames))
        match source.randrange(3):
            case 0:
                del frames[at]
            case 1:
                frames.insert(at, frames[source.randrange(len(frames))])
            case _:
                source.shuffle(frames)
    return b"".join(frames)
