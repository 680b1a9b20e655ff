"""What a worker reads out of an offer before aiortc sees it. Pure.

Candidates are taken out of the description and added one by one, like those that come later: then one that
cannot be used (an mDNS name that nobody here resolves, a host without multicast) costs itself, and not the
session. End-of-candidates stays out: when it comes and no known candidate is of use, aioice gives up at once,
although the browser's own checks may be about to arrive and make a usable one (RFC 8445 section 7.3.1.3). A
session that comes to nothing ends by its time-out.
"""

from __future__ import annotations

import re

from aiortc import RTCIceCandidate
from aiortc.sdp import candidate_from_sdp
from msgspec import Struct

_LINES = re.compile(r"\r\n|\n|\r")
_CANDIDATE = "a=candidate:"


class Offer(Struct, frozen=True):
    """An offer of one data channel section.

    ``sdp`` is without candidates; ``candidates`` are those it had, without the prefix ``candidate:``.
    """

    sdp: str
    candidates: list[str]
    ufrag: str
    fingerprint: str


def read_offer(sdp: str) -> Offer:
    """An offer's parts. Raises ``ValueError`` for one without exactly one section, of data channels."""
    lines = [line for line in _LINES.split(sdp) if line]
    sections = [line for line in lines if line.startswith("m=")]
    if len(sections) != 1 or not sections[0].startswith("m=application "):
        raise ValueError("not exactly one section of data channels")
    kept = [line for line in lines if not line.startswith((_CANDIDATE, "a=end-of-candidates"))]
    return Offer(
        "".join(f"{line}\r\n" for line in kept),
        [line.removeprefix(_CANDIDATE) for line in lines if line.startswith(_CANDIDATE)],
        _attribute(lines, "a=ice-ufrag:"),
        _attribute(lines, "a=fingerprint:"),
    )


def read_candidate(text: str) -> RTCIceCandidate | None:
    """A candidate, with or without the prefix ``candidate:``; None for one that cannot be used here.

    Raises nothing: a candidate is never a reason to end a session.
    """
    try:
        candidate = candidate_from_sdp(text.removeprefix("candidate:"))
    except (AssertionError, ValueError, IndexError):
        return None
    if candidate.protocol.lower() != "udp" or not 0 < candidate.port < 65_536:
        return None
    # There is one section: whatever the browser calls it, this is it.
    candidate.sdpMLineIndex = 0
    return candidate


def _attribute(lines: list[str], name: str) -> str:
    found = [line.removeprefix(name).strip() for line in lines if line.startswith(name)]
    if not found:
        raise ValueError(f"no {name}")
    return found[0]
