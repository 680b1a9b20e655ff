"""Every message of ``WS /signaling`` (subprotocol ``kollator.v1``) as a typed struct: the one definition.

The decoder, the encoder and ``/schema.json`` all come from these classes. Keys that a struct does not name are
ignored on the way in and so never travel on. An optional key that was absent stays absent on the way out
(``UNSET``), one that was ``null`` stays ``null``: what is passed on is what was sent.

What is relayed is not told to the garbage collector (``gc=False``), which takes time: it holds texts and numbers, so
it is part of no cycle.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

SUBPROTOCOL = "kollator.v1"
MESSAGE_BYTES = 65_536
"""The largest message of either direction, in bytes of UTF-8."""

ErrorCode = Literal[
    "bad-message",
    "unknown-type",
    "too-large",
    "not-allowed-yet",
    "forbidden",
    "unknown-target",
    "target-busy",
    "rate-limited",
    "no-workers",
    "bad-ticket",
    "internal",
]

ID_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$(?!\n)"
"""Python's ``$`` also matches before a last line feed, which would split the text that a worker's proof covers."""
LINE_PATTERN = r"^[^\x00-\x1f\x7f]*$(?!\n)"

Id = Annotated[str, Meta(min_length=1, max_length=64)]
"""An id that is only looked up: what is not in a table is an unknown target, whatever it looks like."""
WorkerId = Annotated[str, Meta(pattern=ID_PATTERN)]
Label = Annotated[str, Meta(max_length=64)]
Region = Annotated[str, Meta(max_length=64, pattern=LINE_PATTERN)]
Capacity = Annotated[int, Meta(ge=1, le=1_000_000)]
Nonce = Annotated[str, Meta(min_length=32, max_length=256, pattern=r"^[0-9A-Fa-f]*$(?!\n)")]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Exclude = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=256)]
IceLabel = Annotated[str, Meta(max_length=256)]
"""Of an ICE user name fragment (RFC 8839 section 5.4 has this limit) and of the name of an m= section."""
Optional = Union[Label, None, UnsetType]


class Close:
    """WebSocket close codes of the contract (4xxx are the application's own, RFC 6455 section 7.4.2)."""

    DONE = 1000
    GOING_AWAY = 1001
    BINARY = 1003
    TOO_LARGE = 1009
    INTERNAL = 1011
    TRY_AGAIN_LATER = 1013
    BAD_MESSAGES = 4400
    UNAUTHENTICATED = 4401
    NOT_ALLOWED = 4403
    NO_HELLO = 4408
    REPLACED = 4409
    SLOW_CONSUMER = 4413
    RATE_LIMITED = 4429


class IceServer(Struct, frozen=True):
    """An RTCIceServer as the browser takes it."""

    urls: list[str]
    username: str | UnsetType = UNSET
    credential: str | UnsetType = UNSET


class IceCandidate(Struct, frozen=True, gc=False):
    """An RTCIceCandidateInit (W3C WebRTC section 4.8.1.1)."""

    candidate: str | UnsetType = UNSET
    sdpMid: IceLabel | UnsetType | None = UNSET  # noqa: N815 (the name on the wire)
    sdpMLineIndex: Annotated[int, Meta(ge=0, le=65535)] | UnsetType | None = UNSET  # noqa: N815
    usernameFragment: IceLabel | UnsetType | None = UNSET  # noqa: N815


class WorkerRef(Struct, frozen=True):
    """A worker as a client sees it."""

    id: str
    region: str


class Limits(Struct, frozen=True):
    """What the front allows a connection, told in ``welcome``."""

    messageBytes: int  # noqa: N815
    messagesPerSecond: float  # noqa: N815


class _In(Struct, frozen=True, tag_field="type"):
    """What a front receives. ``ref`` comes back with the error or the answer."""


# -- received ---------------------------------------------------------------------------------------------------


class Hello(_In, frozen=True, tag="hello"):
    """Opens a connection. ``ticket`` gives a client its id back; all that follows it is a worker's."""

    role: Literal["client", "worker"]
    ticket: str | UnsetType | None = UNSET
    id: WorkerId | UnsetType | None = UNSET
    region: Region = ""
    capacity: Capacity = 100
    address: Annotated[str, Meta(max_length=255, pattern=LINE_PATTERN)] = ""
    nonce: Nonce | UnsetType | None = UNSET
    ref: Optional = UNSET


class Auth(_In, frozen=True, tag="auth"):
    """A worker's answer to the challenge: HMAC-SHA256 in hex."""

    mac: str
    ref: Optional = UNSET


class Status(_In, frozen=True, tag="status"):
    """A worker's load."""

    sessions: Count
    draining: bool = False
    ref: Optional = UNSET


class Assign(_In, frozen=True, tag="assign"):
    """A client asks for a worker."""

    exclude: Exclude | None = None
    region: Region | None = None
    ref: Optional = UNSET


class Offer(_In, frozen=True, tag="offer", gc=False):
    """A session description, to be passed on."""

    to: Id
    sdp: str
    session: Optional = UNSET
    ref: Optional = UNSET


class Answer(_In, frozen=True, tag="answer", gc=False):
    """A session description, to be passed on."""

    to: Id
    sdp: str
    session: Optional = UNSET
    ref: Optional = UNSET


class Candidate(_In, frozen=True, tag="candidate", gc=False):
    """A trickled ICE candidate; ``None`` is end-of-candidates (RFC 8838)."""

    to: Id
    candidate: IceCandidate | None
    session: Optional = UNSET
    ref: Optional = UNSET


class Bye(_In, frozen=True, tag="bye", gc=False):
    """The end of a session, to be passed on."""

    to: Id
    session: Optional = UNSET
    reason: str | UnsetType | None = UNSET
    ref: Optional = UNSET


class Connected(_In, frozen=True, tag="connected"):
    """The data channel is open, ``ms`` after the offer: a hand-off, counted and not passed on."""

    to: Id
    session: Optional = UNSET
    ms: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET
    ref: Optional = UNSET


# -- sent -------------------------------------------------------------------------------------------------------


class OfferFrom(Struct, frozen=True, tag_field="type", tag="offer", gc=False):
    """``Offer`` on its way to the target; ``from`` is what the front authenticated."""

    from_: str = field(name="from")
    sdp: str
    session: Optional = UNSET


class AnswerFrom(Struct, frozen=True, tag_field="type", tag="answer", gc=False):
    """``Answer`` on its way to the target."""

    from_: str = field(name="from")
    sdp: str
    session: Optional = UNSET


class CandidateFrom(Struct, frozen=True, tag_field="type", tag="candidate", gc=False):
    """``Candidate`` on its way to the target."""

    from_: str = field(name="from")
    candidate: IceCandidate | None
    session: Optional = UNSET


class ByeFrom(Struct, frozen=True, tag_field="type", tag="bye", gc=False):
    """``Bye`` on its way to the target."""

    from_: str = field(name="from")
    session: Optional = UNSET
    reason: str | UnsetType | None = UNSET


class Welcome(Struct, frozen=True, tag_field="type", tag="welcome"):
    """Answers a client's ``hello``; ``ticket`` renews the old one."""

    id: str
    node: str
    ticket: str
    iceServers: list[IceServer]  # noqa: N815
    limits: Limits
    ref: Optional = UNSET


class Challenge(Struct, frozen=True, tag_field="type", tag="challenge"):
    """Answers a worker's ``hello``: 64 hex digits, fresh for each connection."""

    nonce: str
    ref: Optional = UNSET


class WorkerWelcome(Struct, frozen=True, tag_field="type", tag="welcome"):
    """Answers a worker's ``auth``; ``mac`` shows that the front knows the key too."""

    id: str
    node: str
    iceServers: list[IceServer]  # noqa: N815
    mac: str
    ref: Optional = UNSET


class Assigned(Struct, frozen=True, tag_field="type", tag="assigned"):
    """Answers ``assign``."""

    worker: WorkerRef | None
    alternates: list[WorkerRef]
    ref: Optional = UNSET


class WorkerLost(Struct, frozen=True, tag_field="type", tag="worker-lost"):
    """The worker this client was assigned to or talked to is gone; ``assigned`` takes its place."""

    worker: str
    assigned: WorkerRef | None


class Draining(Struct, frozen=True, tag_field="type", tag="draining"):
    """The front is about to stop: come back, with the ticket, after that time."""

    reconnectInMs: int  # noqa: N815


class Error(Struct, frozen=True, tag_field="type", tag="error"):
    """A message was refused; ``to`` is the target it named."""

    code: ErrorCode
    message: str
    ref: str | UnsetType = UNSET
    to: str | UnsetType = UNSET


Relayed = Union[Offer, Answer, Candidate, Bye]
Received = Union[Hello, Auth, Status, Assign, Offer, Answer, Candidate, Bye, Connected]
ToClient = Union[OfferFrom, AnswerFrom, CandidateFrom, ByeFrom, Welcome, Assigned, WorkerLost, Draining, Error]
ToWorker = Union[Challenge, WorkerWelcome, OfferFrom, AnswerFrom, CandidateFrom, ByeFrom, Draining, Error]
Sent = Union[ToClient, Challenge, WorkerWelcome]

encode = msgspec.json.Encoder().encode
"""Any of the structs above to its JSON, as UTF-8 bytes."""


T = TypeVar("T")


def decoder(kind: type[T] | Any) -> msgspec.json.Decoder[T]:
    """A decoder for another side's view of the wire: ``ToClient`` in a client, ``ToWorker`` in a worker."""
    return msgspec.json.Decoder(kind)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of every message: ``fromClient``, ``fromWorker``, ``toClient``, ``toWorker``."""
    groups: dict[str, tuple[Any, ...]] = {
        "fromClient": (Hello, Assign, Offer, Answer, Candidate, Bye, Connected),
        "fromWorker": (Hello, Auth, Status, Offer, Answer, Candidate, Bye),
        "toClient": ToClient.__args__,  # type: ignore[attr-defined]
        "toWorker": ToWorker.__args__,  # type: ignore[attr-defined]
    }
    kinds = tuple(dict.fromkeys(kind for group in groups.values() for kind in group))
    references, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    by_kind = dict(zip(kinds, references, strict=True))
    for name, group in groups.items():
        definitions[name] = {"anyOf": [by_kind[kind] for kind in group]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Kollator signaling, WebSocket subprotocol {SUBPROTOCOL}",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in groups],
        "$defs": definitions,
    }
