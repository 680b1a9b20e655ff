"""What passes from one end of a session to the other: whether it is as it should be, and how it goes on. Pure.

Every message comes by here. What is done is found by its class: ``isinstance`` takes many times as long for one of
another class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from kollator.guard.descriptions import check_candidate, check_sdp
from kollator.signaling.messages import (
    Answer,
    AnswerFrom,
    Bye,
    ByeFrom,
    Candidate,
    CandidateFrom,
    Offer,
    OfferFrom,
    Relayed,
    encode,
)


def _description(message: Offer | Answer) -> str | None:
    return check_sdp(message.sdp)


def _candidate(message: Candidate) -> str | None:
    candidate = message.candidate
    if candidate is None or candidate.candidate is UNSET:
        return None
    return check_candidate(candidate.candidate)


MALFORMED: dict[type[Relayed], Callable[[Any], str | None]] = {
    Offer: _description,
    Answer: _description,
    Candidate: _candidate,
    Bye: lambda message: None,
}
"""Why a message carries no session description, or no candidate, as it should be; None when it does."""
PASSED_ON: dict[type[Relayed], Callable[[Any, str], bytes]] = {
    Offer: lambda message, sender: encode(OfferFrom(sender, message.sdp, message.session)),
    Answer: lambda message, sender: encode(AnswerFrom(sender, message.sdp, message.session)),
    Candidate: lambda message, sender: encode(CandidateFrom(sender, message.candidate, message.session)),
    Bye: lambda message, sender: encode(ByeFrom(sender, message.session, message.reason)),
}
"""A message and its sender to the encoded message as its target gets it: ``from`` is what the front authenticated."""
