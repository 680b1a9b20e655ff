"""How one setting's text becomes a checked value: the parsers that the table names.

Every parser raises ``ValueError`` with "what is wrong; what to do" for a text that it does not take. None
reads the clock, the environment or the network; ``keys_from_file`` and ``folder`` look at the path they are
given.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit, urlunsplit

from attrs import frozen

from kollator.guard.addresses import Network, parse_networks
from kollator.guard.keys import KeyFileError, parse_keys, read_key_file
from kollator.guard.origins import OriginPolicy
from kollator.guard.turn import MAX_ICE_URLS, check_ice_url

NODE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
SYNC_PATH = "/worker-sync"
SIGNALING_PATH = "/signaling"
SHOWN_CHARS = 60

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ENDPOINT = re.compile(r"[A-Za-z][A-Za-z0-9_-]*:(?!//).+", re.DOTALL)
_DEBUG = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:-]*\*?|\*")


@frozen
class Peer:
    """Another front of the cluster: its node id, and the endpoint string or WebSocket URL that reaches it."""

    node: str
    endpoint: str


def quoted(text: str) -> str:
    """The text as an error message may repeat it: quoted, on one line, no longer than a screen line."""
    return repr(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…")


def one_line(message: str) -> str:
    """The message with every run of white space made one blank and everything unprintable escaped."""
    words = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words)


# -- numbers and words --------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``."""
    remedy = f"use a whole number from {low} to {high}"

    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text):
            raise ValueError(f"{quoted(text)} is not a whole number; {remedy}")
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"{text} is out of range; {remedy}")
        return value

    return parse


def decimal(low: float, high: float, scale: float = 1.0) -> Callable[[str], float]:
    """A parser of numbers from ``low`` to ``high``; it returns them divided by ``scale`` (1000: ms to s)."""
    remedy = f"use a number from {low:.12g} to {high:.12g}"

    def parse(text: str) -> float:
        if not _DECIMAL.fullmatch(text):
            raise ValueError(f"{quoted(text)} is not a number; {remedy}")
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{quoted(text)} is out of range; {remedy}")
        return value / scale

    return parse


seconds = decimal
"""A parser of times given, and returned, in seconds."""


def milliseconds(low: float, high: float = 3_600_000) -> Callable[[str], float]:
    """A parser of times given in milliseconds and returned in seconds."""
    return decimal(low, high, 1000.0)


def boolean(text: str) -> bool:
    """True for true, 1, yes and on, false for false, 0, no and off, in any case."""
    word = text.lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{quoted(text)} is neither true nor false; use true or false")


def choice(*words: str) -> Callable[[str], str]:
    """A parser of one of these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{quoted(text)} is not known here; use {' or '.join(words)}")
        return text

    return parse


# -- names, paths, addresses --------------------------------------------------------------------------------


def node_id(text: str) -> str:
    """A front's id, of the same shape as a worker's."""
    if not NODE_ID.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a node id; use 1 to 64 of A-Z a-z 0-9 . _ : -")
    return text


def node_id_of_host(name: str) -> str:
    """The host name made to fit the shape of a node id."""
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", name)[:64].strip("-") or "front"


def region(text: str) -> str:
    """A region's name: at most 64 printable characters, as in the messages that carry it."""
    if len(text) > 64 or not text.isprintable():
        raise ValueError(f"{quoted(text)} is not a region; use at most 64 printable characters")
    return text


def host(text: str) -> str:
    """The address or name of an interface to listen on; the brackets of an IPv6 address may stay on."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare or len(bare) > 255 or re.search(r"[^!-~]|[/\[\]=\\]", bare):
        raise ValueError(f"{quoted(text)} is not an address; use one like 0.0.0.0, :: or a host name")
    return bare


def path(text: str) -> str:
    """A file's path. Whether there is such a file is for those to say who open it."""
    if not text or "\0" in text:
        raise ValueError(f"{quoted(text)} is not a path; name a file")
    return text


def path_or_none(text: str) -> str | None:
    """The path of a file; None for an empty text, which says that there is to be none."""
    return path(text) if text else None


def folder(text: str) -> str:
    """The absolute path of a folder that is there now."""
    if "\0" in text or not os.path.isdir(text):
        raise ValueError(f"there is no folder {quoted(text)}; name one that exists and may be read")
    return os.path.abspath(text)


def networks(items: Sequence[str]) -> tuple[Network, ...]:
    """IP networks in CIDR notation."""
    try:
        return parse_networks(",".join(items))
    except ValueError as problem:
        raise _with_remedy(problem, "write ranges like 10.0.0.0/8, separated by commas") from None


def endpoints(items: Sequence[str]) -> tuple[str, ...]:
    """Server endpoint strings, of which only the outer shape is checked: Twisted parses them at the start."""
    if not items:
        raise ValueError("there is no endpoint string in it; write one like tcp:8080")
    for item in items:
        if not _ENDPOINT.fullmatch(item):
            raise ValueError(f"{quoted(item)} is not an endpoint string; write one like tcp:8080")
    return tuple(items)


def peers(items: Sequence[str]) -> tuple[Peer, ...]:
    """The other fronts, each as ``node=endpoint``."""
    found: dict[str, Peer] = {}
    for item in items:
        node, equals, endpoint = item.partition("=")
        if not equals or not endpoint or not NODE_ID.fullmatch(node):
            raise ValueError(
                f"{quoted(item)} is not a peer; write node=endpoint, as in front-2=tcp:10.0.0.2:9090"
            )
        if node in found:
            raise ValueError(f"{quoted(node)} is named twice; name each front once")
        if not (_ENDPOINT.fullmatch(endpoint) or _is_sync_url(endpoint)):
            raise ValueError(
                f"{quoted(endpoint)} does not reach a front; write tcp:host:port, tls:host:port"
                f" or wss://host{SYNC_PATH}"
            )
        found[node] = Peer(node, endpoint)
    return tuple(found.values())


def _is_sync_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        port_is_one = url.port is None or url.port > 0
    except ValueError:
        return False
    plain = text.isprintable() and not (url.query or url.fragment or "@" in url.netloc)
    return (
        url.scheme in ("ws", "wss")
        and bool(url.hostname)
        and port_is_one
        and plain
        and url.path.endswith(SYNC_PATH)
    )


# -- WebRTC, origins, keys, logs ----------------------------------------------------------------------------


def signaling_url(text: str) -> str:
    """The WebSocket URL of a front's signaling; one without a path gets ``/signaling``."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("ws", "wss") and bool(url.hostname) and url.port != 0 and text.isprintable()
    except ValueError:
        usable = False
    if not usable or "@" in url.netloc or url.fragment or " " in text:
        remedy = "write one like ws://front.example:8080/signaling or wss://front.example/signaling"
        raise ValueError(f"{quoted(text)} is not a front's WebSocket URL; {remedy}")
    return urlunsplit(url._replace(path=url.path if url.path.strip("/") else SIGNALING_PATH))


def ice_urls(*schemes: str) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """A parser of ICE server URLs (RFC 7064, RFC 7065) of these schemes."""

    def parse(items: Sequence[str]) -> tuple[str, ...]:
        for item in items:
            if item.partition(":")[0].lower() not in schemes:
                remedy = f"write one like {schemes[0]}:ice.example:3478"
                raise ValueError(f"{quoted(item)} is not a {' or '.join(schemes)} URL; {remedy}")
        if len(items) > MAX_ICE_URLS:
            raise ValueError(f"there are {len(items)} servers in it; leave {MAX_ICE_URLS} at most")
        return tuple(dict.fromkeys(check_ice_url(item) for item in items))

    return parse


def origins(items: Sequence[str]) -> tuple[str, ...]:
    """The origins (RFC 6454) that pages may come from; none: the front's own host."""
    OriginPolicy(list(items))
    return tuple(items)


def keys(text: str) -> tuple[bytes, ...]:
    """Keys, one a line: the first signs, every one is accepted. No error repeats the text."""
    return _keys(parse_keys, text)


def keys_from_file(text: str) -> tuple[bytes, ...]:
    """The keys in the file of that path, which others may not read."""
    return _keys(read_key_file, path(text))


def _keys(read: Callable[[str], tuple[bytes, ...]], text: str) -> tuple[bytes, ...]:
    try:
        found = read(text)
    except KeyFileError as problem:
        raise ValueError(str(problem)) from None
    except ValueError as problem:
        raise _with_remedy(problem, "write one key a line, in UTF-8") from None
    if not found:
        raise ValueError("there is no key in it; write one key a line")
    return found


def _with_remedy(problem: ValueError, remedy: str) -> ValueError:
    """The same error with what to do, where its own text does not say so."""
    return problem if ";" in str(problem) else ValueError(f"{problem}; {remedy}")


def debug_namespaces(items: Sequence[str]) -> tuple[str, ...]:
    """Namespaces to log debug events of: a name, or its beginning and a ``*``."""
    for item in items:
        if not _DEBUG.fullmatch(item):
            remedy = "write kollator:* or kollator:signaling,kollator:cluster"
            raise ValueError(f"{quoted(item)} is not a namespace; {remedy}")
    return tuple(items)
