"""What passes from one end of a session to the other: whether it is as it should be, and how it goes on. Pure.

Every message comes by here. What is done is found by its class, once: ``isinstance`` takes many times as long for one
of another class.
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


class Malformed(Exception):
    """A message carries no session description, or no candidate, as it should be."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


def _description(form: type[OfferFrom | AnswerFrom]) -> Callable[[Offer | Answer, str, bool], bytes]:
    def passed_on(message: Offer | Answer, sender: str, checked: bool) -> bytes:
        if checked and (problem := check_sdp(message.sdp)) is not None:
            raise Malformed(problem)
        return encode(form(sender, message.sdp, message.session))

    return passed_on


def _candidate(message: Candidate, sender: str, checked: bool) -> bytes:
    candidate = message.candidate
    if checked and candidate is not None:
        text = candidate.candidate
        if text is not UNSET and (problem := check_candidate(text)) is not None:
            raise Malformed(problem)
    return encode(CandidateFrom(sender, candidate, message.session))


def _bye(message: Bye, sender: str, checked: bool) -> bytes:
    return encode(ByeFrom(sender, message.session, message.reason))


PASSED_ON: dict[type[Relayed], Callable[[Any, str, bool], bytes]] = {
    Offer: _description(OfferFrom),
    Answer: _description(AnswerFrom),
    Candidate: _candidate,
    Bye: _bye,
}
"""A message and its sender to the encoded message as its target gets it: ``from`` is what the front authenticated.

The third argument says whether to raise ``Malformed`` for what is no description, or no candidate.
"""
