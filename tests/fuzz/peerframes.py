"""Frames of the peer protocol and rows of the sync to begin with, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from kollator.cluster.wire import (
    Ack,
    Arrived,
    Changes,
    Greeting,
    Heartbeat,
    HeartbeatReply,
    Kept,
    Ping,
    Pong,
    PreVote,
    PreVoteReply,
    Proof,
    Pull,
    Refusal,
    Summary,
    ToClient,
    ToWorker,
    Undelivered,
    Vote,
    VoteReply,
    encode,
)
from kollator.state.changes import Batch, Change, Cursor
from tests.fuzz.mutation import Mutator
from tests.test_changes import ACCEPTED, REFUSED, SITE

EPOCH = b"e" * 16
MESSAGE = b'{"type":"bye","from":"w1"}'
_BATCH = Batch(list(ACCEPTED), Cursor(), Cursor(EPOCH, 7), sites=[SITE])
_MORE = Batch(list(ACCEPTED[:3]), Cursor(EPOCH, 7), Cursor(EPOCH, 9), more=True, sites=[SITE])

OPENINGS: tuple[Any, ...] = (
    Greeting("kollator.peer", 1, "c", b"n" * 32),
    Greeting("kollator.peer", 1, "stranger", b"n" * 32),
    Greeting("kollator.peer", 2, "c", b"n" * 32),
    Proof(b"m" * 32),
    Refusal("stopping"),
    Ping(1),
)
FRAMES: tuple[Any, ...] = (
    Refusal("duplicate-link"),
    Ping(1, Summary(Cursor(EPOCH, 9), Cursor(EPOCH, 3), "digest")),
    Pong(2, Summary()),
    Pull(Cursor()),
    Pull(Cursor(EPOCH, 5)),
    Changes.of(_BATCH),
    Changes.of(_MORE),
    Changes([], Cursor(EPOCH, 9), Cursor(EPOCH, 2**62), rewound=True),
    Ack(Cursor(EPOCH, 7), 2),
    PreVote(3),
    PreVoteReply(2, 3, True),
    Vote(3),
    VoteReply(3, 3, True),
    Heartbeat(2, 1, Summary(Cursor(EPOCH, 9)), Changes.of(_MORE)),
    Heartbeat(2**53, 1),
    HeartbeatReply(2, 1, ["b", "c"], Summary(), None),
    ToWorker("bystander", "stranger", MESSAGE, "ref"),
    ToWorker("w1", "stranger", MESSAGE, None, 1),
    ToClient("CLIENT", "w1", MESSAGE),
    Undelivered("worker", "w1", "CLIENT", "unknown", "r"),
    Undelivered("client", "bystander", "stranger", "busy"),
    Arrived("client", "stranger", 1_700_000_000_000),
    Arrived("worker", "w1", 5),
    Kept("stranger", "w1", ["w1", "w2"], [MESSAGE, MESSAGE]),
)


def packed(mutator: Mutator, frame: Any, names: Sequence[str] = ()) -> bytes:
    """A frame as bytes: as it is, with a value changed, or with the bytes changed."""
    values = msgspec.to_builtins(frame, builtin_types=(bytes,))
    if names:
        values = [mutator.source.choice(names) if value == "CLIENT" else value for value in values]
    match mutator.source.randrange(8):
        case 0:
            return mutator.changed(pack(values))
        case 1 | 2 | 3:
            return pack(mutator.value(values))
        case _:
            return pack(values)


def hostile_frame(mutator: Mutator, names: Sequence[str] = ()) -> bytes:
    """One frame of an established link."""
    if mutator.chance(0.25):
        changes: Any = [hostile_row(mutator) for _ in range(mutator.source.choice((1, 3, 20)))]
        since, cursor = mutator.source.choice(((Cursor(), Cursor(EPOCH, 7)), (Cursor(EPOCH, 7), Cursor(EPOCH, 9))))
        return pack(["changes", [list(astuple(change)) for change in changes], since, cursor, False, [SITE], False])
    return packed(mutator, mutator.source.choice(FRAMES), names)


def hostile_row(mutator: Mutator, good: Sequence[Change] = ()) -> Change:
    """One change: good, known to be bad, or with a field changed or two."""
    source = mutator.source
    match source.randrange(8):
        case 0:
            return source.choice(REFUSED)[0]
        case 1 | 2:
            return source.choice((*good, *ACCEPTED))
        case _:
            values = list(astuple(source.choice((*good, *ACCEPTED))))
            for _ in range(source.choice((1, 1, 2))):
                at = source.randrange(len(values))
                values[at] = mutator.value(values[at]) if mutator.chance(0.8) else source.choice(values)
            return Change(*values)


def pack(values: Any) -> bytes:
    """MessagePack of some values, with what it cannot hold in other words."""
    try:
        return msgspec.msgpack.encode(values)
    except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError, ValueError):  # no MessagePack can hold it
        return msgspec.msgpack.encode(_tamed(values))


def _tamed(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    if isinstance(value, list | tuple):
        return [_tamed(each) for each in value]
    if isinstance(value, dict):
        return {_tamed(key): _tamed(each) for key, each in value.items()}
    if isinstance(value, msgspec.Struct):
        return [_tamed(each) for each in astuple(value)]
    return value


ENCODED = [encode(frame) for frame in (*FRAMES, *OPENINGS)]
"""The frames as bytes, for the codecs."""
