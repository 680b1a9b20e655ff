"""The wire format on the data channel, as typed structs: the one place that defines it.

The browser creates one RTCDataChannel with the label ``kollator`` and the protocol ``kollator.files.v1``,
ordered and reliable. Text messages are JSON objects with a ``type``; binary messages are chunks of files.

From the browser:

=================================================  =======================================================
``{"type":"list","id":1}``                         what is there? Answered by ``listing``
``{"type":"fetch","id":2,"name":"docs/a.bin"}``    answered by ``file``, chunks, ``end``; or by ``error``
``{"type":"cancel","id":2}``                       ends that request with ``error`` ``cancelled``; nothing
                                                   happens when it is over already
=================================================  =======================================================

``id`` is an integer from 0 to 2^32-1, chosen by the browser, unique among its open requests. ``name`` is
relative, with ``/`` between the parts, as listed.

From the worker:

* ``{"type":"listing","id":1,"files":[{"name":"a.bin","size":123}],"truncated":false}``: sorted by name,
  sizes in bytes. A long listing comes in several messages of at most 64 KiB, with ``"more":true`` on all
  but the last. ``truncated`` is true when there are more than 10,000 files, of which only that many are
  listed.
* ``{"type":"file","id":2,"name":"a.bin","size":123}``: the chunks of this file follow, ``size`` bytes in all.
* a chunk (binary): 4 bytes ``id``, big-endian, then 1 to 16,380 bytes of the file. Chunks of one id come in
  order; those of several requests may be interleaved.
* ``{"type":"end","id":2,"sha256":"<64 hex digits>"}``: after the last chunk; SHA-256 of what was read and
  sent.
* ``{"type":"error","code":"…","message":"…","id":2}``: the request is over. ``id`` is missing when it could
  not be read from the message. Codes: ``not-found`` (also for hidden names and for names that lead out of
  the folder), ``bad-request``, ``busy`` (8 requests of that kind are open), ``changed`` (the size changed
  while the file was read), ``cancelled``, ``io``.

Unknown keys are ignored. After 10 messages in a row that are no requests the worker closes the channel, and
also when a browser goes on asking without taking the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

LABEL = "kollator"
PROTOCOL = "kollator.files.v1"

MESSAGE_BYTES = 65_536
"""The largest text message of either direction, in bytes of UTF-8."""
CHUNK_BYTES = 16_384
"""The largest binary message: what every browser takes in one SCTP message (RFC 8831 section 6.6)."""
CHUNK_HEAD_BYTES = 4
CHUNK_DATA_BYTES = CHUNK_BYTES - CHUNK_HEAD_BYTES

ErrorCode = Literal["not-found", "bad-request", "busy", "changed", "cancelled", "io"]
RequestId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]


class _Message(Struct, frozen=True, tag_field="type"):
    """A JSON message of either direction."""


class List(_Message, frozen=True, tag="list"):
    """Asks for the files of the folder."""

    id: RequestId


class Fetch(_Message, frozen=True, tag="fetch"):
    """Asks for one file by its listed name."""

    id: RequestId
    name: Name


class Cancel(_Message, frozen=True, tag="cancel"):
    """Ends an open request."""

    id: RequestId


class Listed(Struct, frozen=True):
    """One file of a listing; ``size`` in bytes."""

    name: str
    size: int


class Listing(_Message, frozen=True, tag="listing"):
    """One message of a listing; ``more`` is true on all but the last and left out there."""

    id: RequestId
    files: list[Listed]
    truncated: bool
    more: bool | UnsetType = UNSET


class File(_Message, frozen=True, tag="file"):
    """The chunks of a file follow, ``size`` bytes in all."""

    id: RequestId
    name: str
    size: int


class End(_Message, frozen=True, tag="end"):
    """All chunks are sent; ``sha256`` in hex, of what was sent."""

    id: RequestId
    sha256: str


class Error(_Message, frozen=True, tag="error"):
    """The request is over without its answer."""

    code: ErrorCode
    message: str
    id: RequestId | UnsetType = UNSET


Request = Union[List, Fetch, Cancel]
Reply = Union[Listing, File, End, Error]

_request: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_reply: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
_encoder = msgspec.json.Encoder()


class BadRequest(Exception):
    """A message that is no request. ``id`` is its own where it could be read."""

    def __init__(self, message: str, request_id: int | UnsetType = UNSET) -> None:
        super().__init__(message)
        self.message = message
        self.id = request_id

    def error(self) -> Error:
        """The message that answers it."""
        return Error("bad-request", self.message, self.id)


class _Envelope(Struct, frozen=True):
    id: Any = None


_envelope = msgspec.json.Decoder(_Envelope)


def encode(message: Request | Reply) -> str:
    """A message as the text that travels."""
    return _encoder.encode(message).decode()


def decode_request(text: str) -> Request:
    """What a browser sent. Raises ``BadRequest`` for anything that is no request, and nothing else."""
    try:
        payload = text.encode()
        if len(payload) > MESSAGE_BYTES:
            raise BadRequest(f"a message has {MESSAGE_BYTES} bytes at most")
        return _request.decode(payload)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        known = isinstance(problem, msgspec.MsgspecError)
        raise BadRequest(str(problem)[:200] if known else "this is no JSON in UTF-8", _id_of(text)) from None


def _id_of(text: str) -> int | UnsetType:
    try:
        found = _envelope.decode(text).id
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return UNSET
    return found if type(found) is int and 0 <= found < 2**32 else UNSET


def decode_reply(text: str) -> Reply:
    """What a worker sent, for the other side. Raises ``msgspec.MsgspecError``."""
    return _reply.decode(text)


def chunk_head(request_id: int) -> bytes:
    """What every chunk of a request begins with."""
    return request_id.to_bytes(CHUNK_HEAD_BYTES, "big")


def split_chunk(payload: bytes) -> tuple[int, bytes]:
    """A binary message as its request's id and the file's bytes. Raises ``ValueError`` without a head."""
    if len(payload) < CHUNK_HEAD_BYTES:
        raise ValueError("a chunk begins with the 4 bytes of its request's id")
    return int.from_bytes(payload[:CHUNK_HEAD_BYTES], "big"), payload[CHUNK_HEAD_BYTES:]


def listing_messages(request_id: int, files: Sequence[Listed], truncated: bool) -> Iterator[Listing]:
    """A listing cut into messages of at most 64 KiB, one at least."""
    # The keys around the list, with the longest id and both flags, need less than this.
    room = MESSAGE_BYTES - 128
    part: list[Listed] = []
    taken = 0
    for file in files:
        size = len(_encoder.encode(file)) + 1
        if part and taken + size > room:
            yield Listing(request_id, part, truncated, more=True)
            part, taken = [], 0
        part.append(file)
        taken += size
    yield Listing(request_id, part, truncated)
