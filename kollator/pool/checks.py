"""The deep check's pure part: what a front and its probe say to each other, and what follows from the results.

The probe (``kollator.webrtc.probe``) is a child process of the front. Both sides write a JSON object a line, of
``LINE_BYTES`` at most with its line feed, and ignore a line that is none of these:

* the front: ``{"check":7,"worker":"w1","url":"ws://127.0.0.1:8080/signaling","limit_s":10.0}``
* the probe, once for each:
  ``{"check":7,"worker":"w1","ok":true,"phases":{"connect_ms":2.1,"welcome_ms":1.0,"answer_ms":30.2,"ice_ms":40.0,"open_ms":35.1}}``
  or ``{"check":7,"worker":"w1","ok":false,"phase":"answer","error":"no answer within 10 s"}``, with ``"own":true``
  when the check could not be made for a reason that is not the worker's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

LINE_BYTES = 65_536
ERROR_CHARS = 300
PREPARE_S = 10.0
"""How long the probe gives itself, from the beginning of a check to its offer."""
CHECK_S = 10.0
"""How long a worker has from the offer to the open channel. It may wait 5 s for a STUN server that is silent, and a
slow network needs a second or two for the rest.
"""
FAILURES = 2
"""So many in a row take a worker out: one alone may be a lost packet, or the moment of a worker's restart."""

Phase = Literal["connect", "welcome", "answer", "ice", "open"]
"""How far a check came: the WebSocket is open, the front has welcomed, the worker has answered the offer, packets go
both ways (ICE), the data channel is open (DTLS, SCTP).
"""
PHASES: tuple[Phase, ...] = get_args(Phase)

Serial = Annotated[int, Meta(ge=0, le=2**53)]
Worker = Annotated[str, Meta(min_length=1, max_length=64)]
Milliseconds = Annotated[float, Meta(ge=0)]
T = TypeVar("T")


class Check(Struct, frozen=True):
    """The front asks for one check. ``limit_s`` is how long the worker has from the offer to the open channel."""

    check: Serial
    worker: Worker
    url: Annotated[str, Meta(max_length=4096)]
    limit_s: Annotated[float, Meta(gt=0, le=600)]


class Phases(Struct, frozen=True):
    """How long each phase took. Gathering candidates for the offer, the probe's own affair, is in none of them."""

    connect_ms: Milliseconds
    welcome_ms: Milliseconds
    answer_ms: Milliseconds
    ice_ms: Milliseconds
    open_ms: Milliseconds

    def seconds(self) -> Iterator[tuple[Phase, float]]:
        """Each phase with its seconds."""
        for phase in PHASES:
            yield phase, getattr(self, f"{phase}_ms") / 1000


class Result(Struct, frozen=True, omit_defaults=True):
    """What became of one check: ``phases`` when it is ``ok``; otherwise the ``phase`` it ended in and the ``error``.

    ``own``: the fault is not the worker's. Raises ``ValueError`` for one that is neither the one nor the other.
    """

    check: Serial
    worker: Worker
    ok: bool
    phases: Phases | None = None
    phase: Phase | None = None
    error: Annotated[str, Meta(max_length=ERROR_CHARS)] = ""
    own: bool = False

    def __post_init__(self) -> None:
        if self.ok != (self.phases is not None) or self.ok == (self.phase is not None) or (self.ok and self.own):
            raise ValueError("a result has either phases, when it is ok, or the phase that failed")


class BadLine(Exception):
    """A line that is none of the other side's. Its text says why."""


_encoder = msgspec.json.Encoder()
_check = msgspec.json.Decoder(Check)
_result = msgspec.json.Decoder(Result)


def encode(message: Check | Result) -> bytes:
    """A message as its line, line feed included."""
    return _encoder.encode(message) + b"\n"


def decode_check(line: bytes) -> Check:
    """What the front said. Raises ``BadLine``, and nothing else."""
    return _decode(_check, line)


def decode_result(line: bytes) -> Result:
    """What the probe said. Raises ``BadLine``, and nothing else."""
    return _decode(_result, line)


def _decode(decoder: msgspec.json.Decoder[T], line: bytes) -> T:
    if len(line) > LINE_BYTES:
        raise BadLine(f"a line has {LINE_BYTES} bytes at most")
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as problem:
        raise BadLine(str(problem)[:ERROR_CHARS]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadLine("it is no JSON") from None


class CheckBook:
    """Whose turn it is, and who has failed. The caller owns the clock and the probe.

    Only workers that have failed are remembered; who leaves is to be forgotten.
    """

    def __init__(self) -> None:
        self._last = ""
        self._failures: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def next(self, workers: Iterable[str]) -> str | None:
        """The one that follows the last one in the order of ids, from the start after the end; None of none.

        So each of those that stay has its turn once a round, whoever joins and leaves meanwhile.
        """
        first = following = None
        for worker in workers:
            if first is None or worker < first:
                first = worker
            if worker > self._last and (following is None or worker < following):
                following = worker
        chosen = first if following is None else following
        if chosen is not None:
            self._last = chosen
        return chosen

    def passed(self, worker: str) -> bool:
        """A check succeeded. Returns whether the worker was out, and is well again."""
        return self._failures.pop(worker, 0) >= FAILURES

    def failed(self, worker: str) -> bool:
        """A check failed. Returns whether that takes the worker out."""
        failures = self._failures[worker] = min(self._failures.get(worker, 0) + 1, FAILURES + 1)
        return failures == FAILURES

    def forget(self, worker: str) -> None:
        """The worker left, or came anew: what was known of it counts no more."""
        self._failures.pop(worker, None)
