"""What came in over a WebSocket, as one of the messages it may be, or as the refusal that answers it. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from kollator.signaling.messages import Error, ErrorCode, Hello, Optional, Received


class _ClientHello(Struct, frozen=True, tag_field="type", tag="hello"):
    """The keys of ``Hello`` that mean something from a client."""

    role: Literal["client"]
    ticket: str | UnsetType | None = UNSET
    ref: Optional = UNSET


class _Envelope(Struct, frozen=True):
    """What an error about a message that did not parse may still name."""

    type: Any = None
    ref: Any = None
    to: Any = None


parse = msgspec.json.Decoder(Received).decode
"""As ``decode`` for most messages, and faster; raises one of ``PROBLEMS`` for those at which it looks closer."""
_client_hello = msgspec.json.Decoder(_ClientHello)
_envelope = msgspec.json.Decoder(_Envelope)
PROBLEMS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
TYPES: frozenset[str] = frozenset(cls.__struct_config__.tag for cls in Received.__args__)  # type: ignore[misc,attr-defined]


class Refused(Exception):
    """A message that was not accepted: what the ``error`` that answers it says.

    ``code`` is the contract's, ``ref`` and ``to`` are the message's own where they could be read. ``is_bad``: it
    counts among the ten in a row that close a connection.
    """

    def __init__(
        self, code: ErrorCode, message: str, ref: str | UnsetType = UNSET, to: str | UnsetType = UNSET
    ) -> None:
        super().__init__(message)
        self.is_bad = code in ("bad-message", "unknown-type")
        self.code = code
        self.message = message
        self.ref = ref
        self.to = to

    def about(self, message: Received) -> Refused:
        """The same refusal, with what ``message`` names."""
        self.ref = ref_of(message)
        self.to = getattr(message, "to", UNSET)
        return self

    def error(self) -> Error:
        """The message to send back."""
        return Error(self.code, self.message, self.ref, self.to)


def ref_of(message: Received) -> str | UnsetType:
    """The ``ref`` that an answer to ``message`` carries."""
    return message.ref if isinstance(message.ref, str) else UNSET


def addressed(payload: bytes) -> tuple[str | UnsetType, str | UnsetType]:
    """The ``ref`` and the ``to`` of a message that is not looked at otherwise, as far as it has them."""
    try:
        envelope = _envelope.decode(payload)
    except PROBLEMS:
        return UNSET, UNSET
    return _short(envelope.ref), _short(envelope.to)


def described(payload: bytes) -> str:
    """A message for the debug log: its type, its target and its size, nothing of what it says."""
    try:
        envelope = _envelope.decode(payload)
    except PROBLEMS:
        return f"{len(payload)} bytes that are no message"
    kind = envelope.type if isinstance(envelope.type, str) and envelope.type in TYPES else "unknown"
    to = _short(envelope.to)
    return f"{kind} to {to!r}, {len(payload)} bytes" if isinstance(to, str) else f"{kind}, {len(payload)} bytes"


def decode(payload: bytes) -> Received:
    """One received message from its JSON.

    Raises ``Refused`` with ``bad-message`` or ``unknown-type`` for anything that is not one. Never anything
    else, whatever the bytes are: nesting too deep for the parser is a bad message too.
    """
    try:
        return parse(payload)
    except PROBLEMS as problem:
        return _second_look(payload, problem)


def _second_look(payload: bytes, problem: Exception) -> Hello:
    """A client's hello whose other keys, unknown for its role, are no worker's; raises ``Refused`` for the rest."""
    try:
        hello = _client_hello.decode(payload)
    except PROBLEMS:
        raise _refusal(payload, problem) from None
    return Hello("client", hello.ticket, ref=hello.ref)


def _refusal(payload: bytes, problem: Exception) -> Refused:
    if isinstance(problem, msgspec.MsgspecError):
        reason = str(problem)[:200]
    else:
        reason = "the message is not JSON of a sensible depth in UTF-8"
    try:
        envelope = _envelope.decode(payload)
    except PROBLEMS:
        return Refused("bad-message", reason)
    ref, to = _short(envelope.ref), _short(envelope.to)
    if isinstance(envelope.type, str) and envelope.type not in TYPES:
        return Refused("unknown-type", "there is no message of this type", ref, to)
    return Refused("bad-message", reason, ref, to)


def _short(value: object) -> str | UnsetType:
    return value if isinstance(value, str) and len(value) <= 64 else UNSET
