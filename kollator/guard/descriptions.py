"""Checks of what is relayed: session descriptions (SDP, RFC 8866) and ICE candidates (RFC 8839).

The front passes them on as they are and understands neither. The checks keep out what no browser sends and
what costs the receiver more than it cost the sender. They are on the path of every message and take a
microsecond: what is usual is known by a quick look, which is compiled where it can be (``_speedups.c``).
"""

from __future__ import annotations

import re

from kollator.compiled import speedups

MAX_SDP_CHARS = 65_536
"""A whole message; of its own since a description may also come from another front."""
MAX_SDP_LINES = 4096
"""A message of the largest size has 2,000 lines when a browser wrote it."""
MAX_SDP_MEDIA = 64
"""Each ``m=`` line makes the receiver build a transceiver. A data channel takes one, a large call 30."""
MAX_CANDIDATE_CHARS = 1024
"""Browsers' own are under 300."""

# RFC 8839 section 5.1. What repeats is possessive, and starts with a space, which nothing in it can match: no
# backtracking.
_TOKEN_CHAR = r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]"
_TOKEN = _TOKEN_CHAR + r"{1,64}"
_ADDRESS = r"[0-9A-Za-z._:%-]{1,255}"
_CANDIDATE = re.compile(
    r"(?:(?:a=)?candidate:)?"  # aiortc's own candidate_to_sdp leaves it to the caller
    r"[A-Za-z0-9+/]{1,32} [0-9]{1,5} "  # foundation, component (five digits in RFC 5245)
    rf"{_TOKEN} [0-9]{{1,10}} "  # transport, priority
    rf"{_ADDRESS} ([0-9]{{1,5}}) "  # an address, or a name that ends in .local
    rf"typ {_TOKEN}"
    rf"(?: raddr {_ADDRESS})?(?: rport ([0-9]{{1,5}}))?"
    rf"(?: (?!raddr |rport ){_TOKEN}+ [!-~]*+)*+"  # pairs such as tcptype, generation, ufrag, network-cost
    r" ?(?:\r?\n)?"  # left by clients that cut it out of an SDP
)
# What browsers write, in a form that takes half the time: nothing is captured, what repeats is possessive, and a port
# is within its bound by its digits. Whatever it matches, ``_CANDIDATE`` matches as well, with ports that are good.
_PORT = r"(?:[1-5]?[0-9]{1,4}+|6[0-4][0-9]{3})"
_usual_candidate = re.compile(
    rf"candidate:[A-Za-z0-9+/]{{1,32}}+ [0-9]{{1,5}}+ {_TOKEN}+ [0-9]{{1,10}}+ {_ADDRESS}+ {_PORT} typ {_TOKEN}+"
    rf"(?: raddr {_ADDRESS}+ rport {_PORT})?+(?: [a-qs-z]{_TOKEN_CHAR}{{0,63}}+ [!-~]++)*+"
).fullmatch
# Line ends to a parser that splits as Python does: aiortc's.
_ODD_LINE_ENDS = ("\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
_ASCII_ODD_LINE_ENDS = _ODD_LINE_ENDS[:5]


def usual_description_in_python(sdp: str) -> bool:
    """Whether this is a short session description in ASCII, within all bounds; False: a closer look is needed."""
    return (
        len(sdp) <= MAX_SDP_LINES  # characters, and so lines
        and sdp.startswith("v=0")
        and sdp.isascii()
        and "\0" not in sdp
        # Splitting from the right takes half the time of counting, or of splitting from the left.
        and len(sdp.rsplit("m=", MAX_SDP_MEDIA + 1)) <= MAX_SDP_MEDIA + 1
    )


def usual_candidate_in_python(candidate: str) -> bool:
    """Whether this is a candidate as browsers write it; False: a closer look is needed."""
    return len(candidate) <= MAX_CANDIDATE_CHARS and _usual_candidate(candidate) is not None


usual_description = usual_description_in_python if speedups is None else speedups.usual_description
usual_candidate = usual_candidate_in_python if speedups is None else speedups.usual_candidate


def check_sdp(sdp: str) -> str | None:
    """Return why a session description is not passed on, or ``None`` when it is. ``v=0`` alone is one."""
    if usual_description(sdp):
        return None
    if not sdp.startswith("v=0"):
        return "an SDP starts with v=0"
    if len(sdp) > MAX_SDP_CHARS:
        return f"the SDP has over {MAX_SDP_CHARS} characters"
    if "\0" in sdp:
        return "the SDP has a NUL"
    if not sdp.isascii():
        try:
            sdp.encode()
        except UnicodeEncodeError:
            return "the SDP is not UTF-8"
    if len(sdp) > MAX_SDP_LINES and max(sdp.count("\n"), sdp.count("\r"), _odd_line_ends(sdp)) > MAX_SDP_LINES:
        return f"the SDP has over {MAX_SDP_LINES} lines"
    if sdp.count("m=") > MAX_SDP_MEDIA and _media(sdp) > MAX_SDP_MEDIA:
        return f"the SDP has over {MAX_SDP_MEDIA} m= lines"
    return None


def _odd_line_ends(sdp: str) -> int:
    return sum(sdp.count(end) for end in (_ASCII_ODD_LINE_ENDS if sdp.isascii() else _ODD_LINE_ENDS))


def _media(sdp: str) -> int:
    """The m= lines, to whichever parser: none can be hidden behind an odd line end."""
    return sum(sdp.count(end + "m=") for end in ("\n", "\r", *_ODD_LINE_ENDS))


def check_candidate(candidate: str) -> str | None:
    """Return why the text of an ICE candidate is not passed on, or ``None`` when it is.

    Empty text is the end of candidates (RFC 8838 section 8.2). A leading ``a=``, or no ``candidate:`` at all, TCP
    candidates, ``.local`` names, zones (``%eth0``) and extensions are accepted.
    """
    if not candidate or usual_candidate(candidate):
        return None
    if len(candidate) > MAX_CANDIDATE_CHARS:
        return f"the candidate has over {MAX_CANDIDATE_CHARS} characters"
    match = _CANDIDATE.fullmatch(candidate)
    if match is None:
        return "the candidate does not follow RFC 8839"
    port, related_port = match.groups()
    if int(port) > 65_535 or (related_port is not None and int(related_port) > 65_535):
        return "the candidate has a port over 65535"
    return None
