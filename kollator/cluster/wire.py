"""The peer protocol: every frame that two fronts exchange, as a typed struct. The one definition.

**Stream.** A frame is a 4-byte big-endian length and that many bytes of MessagePack (Twisted's
``Int32StringReceiver``), over TCP, TLS, or binary WebSocket messages of ``/worker-sync``, whose boundaries
mean nothing. A frame is at most ``FRAME_BYTES``, and before the handshake is done ``OPENING_BYTES``.

**Frame.** A MessagePack array: the type's name, then its fields in the order of the class. A version adds
fields at the end, with a default; an older front skips them, a newer one takes the default for what an older
one left out. A new type of frame, or another meaning, is a new ``PROTOCOL_VERSION``. The first three fields
of ``Greeting`` stay what they are for ever. No frame names its sender: that is the front which the handshake
has shown to be at the other end.

**Order.** ::

    dialler                              listener
    Greeting (version, node, nonce)  ->
                                     <-  Greeting
    Proof                            ->
                                     <-  Proof, and from here on anything of ``Frame``

Either may send ``Refusal`` and close instead, at any time. A front that dials proves first, so whoever merely
connects learns a node id. See ``handshake`` for what the proofs are about.

After that each direction is in order, and nothing waits for an answer:

* Keep-alive: ``Ping`` is answered with ``Pong`` of the same number. Every frame shows that its sender lives.
* Election: ``PreVote``, ``Vote``, ``Heartbeat`` and their replies, for which ``election`` has the rules.
* Sync: each front sends ``Pull`` when the link is made and when a ``Summary`` shows that it lacks something;
  ``Changes`` answers it, is pushed at each commit, and travels in heartbeats (``HEARTBEAT_CHANGES_BYTES`` of
  it at most) as long as it is not acknowledged. ``Ack`` says what is on the receiver's disk.
* Signaling: ``ToWorker`` and ``ToClient`` carry a message that is ready to be sent on, ``Undelivered`` takes
  the refusal back, ``Arrived`` and ``Kept`` follow a client from one front to another.

**Caps** are in the types, and checked before anything is allocated. What does not fit its type, and bytes
that are no frame, are a ``BadFrame``: the link is closed, the reason counted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union, cast

import msgspec
from msgspec import Meta, Struct

from kollator.signaling.messages import MESSAGE_BYTES
from kollator.signaling.messages import Id as Known  # a pattern would take longer than all else of a relayed message
from kollator.state.changes import SITE_ID_BYTES, Batch, Change, Cursor
from kollator.state.tables import COUNTER_MAX, ID_PATTERN

PROTOCOL = "kollator.peer"
PROTOCOL_VERSION = 1
FRAME_BYTES = 1_048_576
"""The largest frame: four batches, so that one large db_version fits too."""
OPENING_BYTES = 1024
"""The largest frame of somebody who has proved nothing yet."""
HEARTBEAT_CHANGES_BYTES = 32_768
"""The limit of the batch in a heartbeat: more would delay the heartbeats behind it. The rest is pulled."""
NONCE_BYTES = 32
MAC_BYTES = 32
MEMBERS_MAX = 256
"""The most fronts of a cluster."""
CHANGES_MAX = 16_384
"""The most changes of a frame. A batch has a quarter of that at most, each being counted as over 72 bytes."""
PAYLOAD_BYTES = MESSAGE_BYTES + 1024
"""The largest relayed message. A front writes ``from`` and an id in the place of ``to``, so it may grow."""
HOPS_MAX = 8
KEPT_MAX = 32
"""The most messages kept for one client."""
TALKED_MAX = 8
"""The most workers remembered of one client."""
TERM_MAX = COUNTER_MAX

RefusalReason = Literal[
    "bad-frame",
    "wrong-version",
    "own-id",
    "unknown-node",
    "not-the-node-dialled",
    "wrong-key",
    "out-of-order",
    "duplicate-link",
    "too-slow",
    "stopping",
]
"""Why a link is closed. The last three are for the link itself, see ``Refusal``."""

Id = Annotated[str, Meta(pattern=rf"\A{ID_PATTERN}\Z", max_length=64)]
Node = Id
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Mac = Annotated[bytes, Meta(min_length=MAC_BYTES, max_length=MAC_BYTES)]
Term = Annotated[int, Meta(ge=0, le=TERM_MAX)]
Count = Annotated[int, Meta(ge=0, le=COUNTER_MAX)]
Digest = Annotated[str, Meta(max_length=128)]
SiteId = Annotated[bytes, Meta(min_length=SITE_ID_BYTES, max_length=SITE_ID_BYTES)]
Payload = Annotated[bytes, Meta(min_length=1, max_length=PAYLOAD_BYTES)]
Ref = Annotated[str, Meta(max_length=64)]
Hops = Annotated[int, Meta(ge=0, le=HOPS_MAX)]


class BadFrame(Exception):
    """Bytes that are no frame. ``reason`` is for the log and the counters; the text says what is wrong."""

    def __init__(self, reason: Literal["too-large", "malformed", "unknown-type"], detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


# -- the opening ---------------------------------------------------------------------------------------------


class Greeting(Struct, frozen=True, array_like=True, tag="greeting"):
    """The first frame of either side. ``nonce`` is random, fresh for each link."""

    protocol: Annotated[str, Meta(max_length=64)]
    version: Count
    node: Node
    nonce: Nonce


class Proof(Struct, frozen=True, array_like=True, tag="proof"):
    """HMAC-SHA256 with a key of the cluster over both greetings, see ``handshake``."""

    mac: Mac


class Refusal(Struct, frozen=True, array_like=True, tag="refusal"):
    """The last frame of a link that its sender closes, and why.

    ``duplicate-link``: another link of this pair is kept. ``too-slow``: what waited to be sent went over its
    cap. ``stopping``: the front shuts down.
    """

    reason: RefusalReason


# -- keep-alive, and what every front tells of itself --------------------------------------------------------


class Summary(Struct, frozen=True, array_like=True):
    """What a front has, in a few numbers.

    ``head`` is the end of its own log, ``applied`` the place in the receiver's log that it has on disk,
    ``digest`` that of its ring.
    """

    head: Cursor = Cursor()
    applied: Cursor = Cursor()
    digest: Digest = ""


class Ping(Struct, frozen=True, array_like=True, tag="ping"):
    """Asks for a ``Pong`` of the same number."""

    number: Count
    summary: Summary | None = None


class Pong(Struct, frozen=True, array_like=True, tag="pong"):
    """Answers a ``Ping``."""

    number: Count
    summary: Summary | None = None


# -- sync ----------------------------------------------------------------------------------------------------


class Pull(Struct, frozen=True, array_like=True, tag="pull"):
    """Asks for the receiver's log from a place on; also for what the asking front wrote itself, and may have lost."""

    after: Cursor


class ReceivedChange(Change, frozen=True, array_like=True, gc=False):
    """A ``Change`` as received: with any value, so that ``validate`` refuses one and not the whole frame."""

    val: Any


class Changes(Struct, frozen=True, array_like=True, tag="changes"):
    """A ``Batch``: a stretch of the sender's log, with the same fields."""

    changes: Annotated[list[ReceivedChange], Meta(max_length=CHANGES_MAX)]
    since: Cursor
    cursor: Cursor
    more: bool = False
    sites: Annotated[list[SiteId], Meta(max_length=CHANGES_MAX)] = []
    rewound: bool = False

    @classmethod
    def of(cls, batch: Batch) -> Changes:
        """The frame that carries a batch."""
        changes = cast("list[ReceivedChange]", batch.changes)  # sent as it is, a change is a row
        return cls(changes, batch.since, batch.cursor, batch.more, batch.sites, batch.rewound)

    def batch(self) -> Batch:
        """The batch that was carried, none of its changes validated yet."""
        return Batch(list(self.changes), self.since, self.cursor, self.more, self.sites, self.rewound)


class Ack(Struct, frozen=True, array_like=True, tag="ack"):
    """The receiver's log is on the sender's disk up to ``cursor``; ``refused`` changes were left out."""

    cursor: Cursor
    refused: Count = 0


# -- election ------------------------------------------------------------------------------------------------


class PreVote(Struct, frozen=True, array_like=True, tag="pre-vote"):
    """Asks whether a candidate of ``term``, the sender's next one, would have this vote. Promises nothing."""

    term: Term


class PreVoteReply(Struct, frozen=True, array_like=True, tag="pre-vote-reply"):
    """Answers a ``PreVote`` for the term ``asked``; ``term`` is the voter's own, which is not raised."""

    term: Term
    asked: Term
    granted: bool


class Vote(Struct, frozen=True, array_like=True, tag="vote"):
    """Asks for the vote of ``term``. The sender is the candidate."""

    term: Term


class VoteReply(Struct, frozen=True, array_like=True, tag="vote-reply"):
    """Answers a ``Vote`` for the term ``asked``. When granted, the vote is on the voter's disk."""

    term: Term
    asked: Term
    granted: bool


class Heartbeat(Struct, frozen=True, array_like=True, tag="heartbeat"):
    """The sender leads in ``term``. ``changes`` are those that the receiver has not acknowledged."""

    term: Term
    sequence: Count
    summary: Summary | None = None
    changes: Changes | None = None


class HeartbeatReply(Struct, frozen=True, array_like=True, tag="heartbeat-reply"):
    """Answers a ``Heartbeat``; a higher ``term`` than the heartbeat's refuses it.

    ``hears`` are the fronts, but for these two, that the sender has heard within the election time-out.
    """

    term: Term
    sequence: Count
    hears: Annotated[list[Node], Meta(max_length=MEMBERS_MAX)] = []
    summary: Summary | None = None
    changes: Changes | None = None


# -- signaling -----------------------------------------------------------------------------------------------


class ToWorker(Struct, frozen=True, array_like=True, gc=False, tag="to-worker"):
    """A client's message, encoded as its worker gets it. ``ref`` is the client's own, for ``Undelivered``.

    ``hops`` is how many links it has been passed on over before this one.
    """

    worker: Known
    client: Known
    payload: Payload
    ref: Ref | None = None
    hops: Hops = 0


class ToClient(Struct, frozen=True, array_like=True, gc=False, tag="to-client"):
    """A worker's message, encoded as the client gets it. The fields are those of ``ToWorker``."""

    client: Known
    worker: Known
    payload: Payload
    ref: Ref | None = None
    hops: Hops = 0


class Undelivered(Struct, frozen=True, array_like=True, gc=False, tag="undelivered"):
    """A ``ToWorker`` (``towards`` a worker) or ``ToClient`` did not arrive; it goes back the way it came.

    ``outcome`` is the switchboard's, ``ref`` what the message had.
    """

    towards: Literal["worker", "client"]
    worker: Known
    client: Known
    outcome: Literal["unknown", "busy", "forbidden"]
    ref: Ref | None = None


class Arrived(Struct, frozen=True, array_like=True, tag="arrived"):
    """A client or worker has connected to the sender, at ``at_ms`` (Unix milliseconds).

    Whoever holds an older connection of it closes that one (4409), and the messages that were kept for it go
    to the sender. At equal times the front with the higher id has the newer one.
    """

    kind: Literal["client", "worker"]
    id: Id
    at_ms: Count


class Kept(Struct, frozen=True, array_like=True, tag="kept"):
    """What the sender remembered of a client that has arrived at the receiver, and remembers no longer."""

    client: Id
    assigned: Annotated[str, Meta(pattern=rf"\A(?:{ID_PATTERN})?\Z", max_length=64)] = ""
    talked: Annotated[list[Id], Meta(max_length=TALKED_MAX)] = []
    payloads: Annotated[list[Payload], Meta(max_length=KEPT_MAX)] = []


# -- bytes ---------------------------------------------------------------------------------------------------

Opening = Union[Greeting, Proof, Refusal]
"""What travels before a link is established."""
Frame = Union[
    Refusal,
    Ping,
    Pong,
    Pull,
    Changes,
    Ack,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
    Heartbeat,
    HeartbeatReply,
    ToWorker,
    ToClient,
    Undelivered,
    Arrived,
    Kept,
]
"""What travels once it is."""


class _Envelope(Struct, array_like=True):
    type: str


_encoder = msgspec.msgpack.Encoder()
_opening: msgspec.msgpack.Decoder[Opening] = msgspec.msgpack.Decoder(Opening)
_frame: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
_envelope = msgspec.msgpack.Decoder(_Envelope)
_NOT_A_FRAME = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_TYPES: dict[object, set[Any]] = {
    decoder: {kind.__struct_config__.tag for kind in union.__args__}  # type: ignore[attr-defined]
    for decoder, union in ((_opening, Opening), (_frame, Frame))
}


def encode(frame: Opening | Frame) -> bytes:
    """The bytes of a frame, without the length before it.

    Raises ``ValueError`` when they are more than ``FRAME_BYTES``: its sender has to cut it smaller. The caps
    of single fields are the receiver's to check.
    """
    payload = _encoder.encode(frame)
    if len(payload) > FRAME_BYTES:
        raise ValueError(f"a frame has {FRAME_BYTES} bytes at most, this one {len(payload)}")
    return payload


def decode(payload: bytes) -> Frame:
    """The frame of an established link. Raises ``BadFrame``, and nothing else whatever the bytes are."""
    if len(payload) > FRAME_BYTES:
        raise BadFrame("too-large", f"{len(payload)} bytes")
    try:
        return _frame.decode(payload)
    except _NOT_A_FRAME as problem:
        raise _bad(_frame, payload, problem) from None


def decode_opening(payload: bytes) -> Opening:
    """The frame of a link that is being opened. Raises ``BadFrame``, also for any frame of a later stage."""
    if len(payload) > OPENING_BYTES:
        raise BadFrame("too-large", f"{len(payload)} bytes")
    try:
        return _opening.decode(payload)
    except _NOT_A_FRAME as problem:
        raise _bad(_opening, payload, problem) from None


def _bad(decoder: object, payload: bytes, problem: Exception) -> BadFrame:
    try:
        unknown = _envelope.decode(payload).type not in _TYPES[decoder]
    except _NOT_A_FRAME:
        unknown = False
    # The text may quote what the peer sent, whatever that is and however long.
    detail = ascii(str(problem))[1:-1][:120]
    return BadFrame("unknown-type" if unknown else "malformed", detail)
