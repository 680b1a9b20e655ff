"""Targets without anything around them: each reader of texts and bytes, and what it may answer."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import msgspec

from kollator.cli import asking, commands, reading
from kollator.cluster import wire
from kollator.cluster.handshake import Handshake, Rejected
from kollator.guard.addresses import NetworkSet, client_address, client_scheme_host, parse_networks
from kollator.guard.descriptions import check_candidate, check_sdp
from kollator.guard.tickets import BadTicket, TicketBook
from kollator.pool import checks
from kollator.pool.workersfile import WorkersFileError, parse_workers_file
from kollator.settings import TABLE, SettingError, Settings
from kollator.signaling import decoding
from kollator.signaling.messages import Received, encode
from kollator.web.door import is_upgrade, parse_head
from tests.answering import EXPLANATION, HEALTH, WORKERS
from tests.fuzz import messages, peerframes
from tests.fuzz.oracle import Broken
from tests.fuzz.target import Target, one_line, told
from tests.wires import UPGRADE, request

WALL_S = 1_800_000_000.0
_BOOK = TicketBook([b"the key of the tickets", b"the key before"], 3600)
_OTHERS = TicketBook([b"the key of another cluster"], 3600)
_TICKETS = {
    text: now
    for now in (WALL_S - 3599, WALL_S - 3600, WALL_S - 10, WALL_S, WALL_S + 59, WALL_S + 3600)
    for text in (_BOOK.issue("client-1", now)[0], _BOOK.issue("c" * 64, now, "w.1:x-y")[0])
}
_TRUSTED = NetworkSet(parse_networks("10.0.0.0/8,::1/128"))

Check = Callable[[bytes], str]
"""Reads bytes and returns, in a word, what came of it. Raises ``Broken``, or whatever the product raises."""


def read_message(data: bytes) -> str:
    """A message of a client or worker."""
    decoding.described(data)
    decoding.addressed(data)
    found = told(decoding.Refused, lambda: decoding.decode(data))
    if isinstance(found, decoding.Refused):
        encode(found.error())
        return found.code
    if type(found) not in Received.__args__:  # type: ignore[attr-defined]
        raise Broken(f"this is no message: {found!r}")
    encode(found)  # what was taken can be sent on
    return type(found).__name__


def read_frame(data: bytes) -> str:
    """A frame of a peer, of either stage."""
    readers: tuple[Callable[[bytes], Any], ...] = (wire.decode, wire.decode_opening)
    for reader in readers:
        found = told(wire.BadFrame, partial(reader, data))
        if not isinstance(found, wire.BadFrame):
            return type(found).__name__
        one_line(str(found), 200)
    handshake = Handshake("a", [b"key"], {"a", "b"}, b"n" * 32)
    if not isinstance(told(Rejected, lambda: handshake.receive(data)), Rejected):
        raise Broken("a handshake took what is no frame")
    return "bad"


def read_ticket(data: bytes) -> str:
    """A ticket: only those that were issued are good, and only in their time."""
    text = data.decode("utf-8", "surrogateescape")
    found = told(BadTicket, lambda: _BOOK.open(text, WALL_S))
    if isinstance(found, BadTicket):
        return found.reason
    if not WALL_S - 3600 < _TICKETS.get(text, 0.0) <= WALL_S + 60:
        raise Broken(f"a ticket that was never issued is good: {text!r}")
    return "good"


def read_workers_file(data: bytes) -> str:
    """WORKERS_FILE."""
    found = told(WorkersFileError, lambda: parse_workers_file(data))
    if isinstance(found, WorkersFileError):
        one_line(str(found), 600)
        return "refused"
    for name, entry in found.entries.items():
        if entry.target is not None:
            one_line(entry.target.shown, 3000)
        if found.of(name) != entry or not 1 <= (entry.capacity or 1) <= 1_000_000:
            raise Broken(f"{name!r} is not what the file says: {entry}")
    return "read" if len(found) else "empty"


def read_description(data: bytes) -> str:
    """A session description, or a candidate."""
    text = data.decode("utf-8", "surrogateescape")
    said = check_sdp(text), check_candidate(text)
    if said[0] is None and ("\0" in text or text.encode().count(b"\nm=") > 64):
        raise Broken(f"this is no session description: {text[:300]!r}")
    return "sdp" if said[0] is None else "candidate" if said[1] is None else "refused"


def read_probe_line(data: bytes) -> str:
    """A line between the front and its probe, either way."""
    readers: tuple[Callable[[bytes], Any], ...] = (checks.decode_result, checks.decode_check)
    for reader in readers:
        found = told(checks.BadLine, partial(reader, data))
        if not isinstance(found, checks.BadLine):
            return type(found).__name__
    return "bad"


class _Answered(asking.Front):
    """A front of the command line whose answers are given."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(asking.place_of("http://127.0.0.1:8080"), b"token", None, 1.0)
        self._given = status, content

    def _exchange(self, method: Any, path: str, body: Any, headers: Any) -> asking.Answer:
        status, content = self._given
        return asking.Answer(status, self._decoded(status, content), "1")


_COMMANDS: dict[str, Any] = {
    "assign": (commands.assign, Namespace(ip="203.0.113.9", region=None)),
    "workers": (commands.workers, Namespace()),
    "health": (commands.front_status, Namespace()),
    "pins": (commands.pins_list, Namespace()),
    "log": (commands.log_show, Namespace()),
    "connections": (
        commands.connections, Namespace(role=None, front=None, addresses=True, limit=None)),
}  # fmt: skip


def read_answer(data: bytes) -> str:
    """What a front may answer to the command line, whatever was asked. The first byte is its status."""
    status = (200, 200, 200, 201, 400, 404, 429, 500, 503)[data[0] % 9] if data else 200
    came = ""
    for name, (command, arguments) in _COMMANDS.items():
        try:
            shown = command(_Answered(status, data[1:]), arguments)
            json.dumps(shown.value)
            for line in shown.lines:
                if not line.isprintable():
                    raise Broken(f"this line could command a terminal: {line[:300]!r}")
            came = name
        except (asking.Refused, asking.NoFront) as no:
            one_line(str(no), 3000)
            came = came or type(no).__name__
    return came


def read_head(data: bytes) -> str:
    """The head of an upgrade request, and whose it says that it is."""
    fields = parse_head(data)
    if fields is None:
        return "no fields"
    is_upgrade(fields)
    names = ("x-forwarded-for", "forwarded", "x-forwarded-proto", "x-forwarded-host")
    values = ([fields[name].encode("latin-1")] if name in fields else [] for name in names)
    told_for, told_by, told_scheme, told_host = values
    for peer in ("10.0.0.1", "203.0.113.9", "", "::1", "%"):
        address = client_address(peer, told_for, told_by, _TRUSTED)
        if peer == "203.0.113.9" and address != peer:
            raise Broken(f"a stranger's header counts: {address!r}")
        scheme, host = client_scheme_host(
            peer, "http", fields.get("host"), "own:80", _TRUSTED,
            forwarded_for=told_for, forwarded=told_by, forwarded_proto=told_scheme, forwarded_host=told_host,
        )  # fmt: skip
        if scheme not in ("http", "https") or not host.isprintable():
            raise Broken(f"the client is said to use {scheme!r} and {host!r}")
    return "fields"


class CodecTarget(Target):
    """One reader. ``corpus`` is good input; what is JSON in it may be changed as such."""

    batch: ClassVar = 500
    check: ClassVar[Any]
    """A ``Check``."""
    corpus: ClassVar[Sequence[bytes]]
    values: ClassVar[Sequence[Any]] = ()
    """Good input before it is JSON."""
    start: ClassVar[bytes] = b""
    """What stands before the JSON."""

    def case(self) -> None:
        """One input."""
        source, mutator = self.source, self.mutator
        if self.values and mutator.chance(0.6):
            start = bytes([source.choice(self.start)]) if self.start else b""
            data = start + mutator.json(source.choice(self.values))
        else:
            data = source.choice(self.corpus)
            data = data if mutator.chance(0.1) else mutator.changed(data, self.corpus)
        self.said.append(data)
        self.reached[type(self).check(data)] += 1


def _built(*things: Any) -> list[Any]:
    return [msgspec.to_builtins(thing) for thing in things]


class MessageTarget(CodecTarget):
    """Signaling messages."""

    name, cases, check = "decode", 1000, staticmethod(read_message)
    corpus, values = messages.ENCODED, messages.CLIENT + messages.WORKER


class FrameTarget(CodecTarget):
    """Peer frames."""

    name, cases, check, corpus = "wire", 800, staticmethod(read_frame), peerframes.ENCODED


class TicketTarget(CodecTarget):
    """Tickets."""

    name, cases, check = "tickets", 1500, staticmethod(read_ticket)
    corpus = tuple(text.encode() for text in (*_TICKETS, _OTHERS.issue("client-1", WALL_S)[0]))


class WorkersFileTarget(CodecTarget):
    """WORKERS_FILE."""

    name, cases, check = "workers-file", 1000, staticmethod(read_workers_file)
    values = (
        {"192.168.1.100": {"region": "us-west", "capacity": 100, "health": "tcp:192.168.1.100:9000"},
         "w7": {"capacity": 400, "health": "http://10.0.0.7:8080/healthz?key=secret"}},
        {"2001:db8::1": {"health": "https://[2001:db8::1]:8443"}, "2001:DB8:0::1": {}, "w": {"region": None}},
    )  # fmt: skip
    corpus = tuple(json.dumps(value).encode() for value in values)


class DescriptionTarget(CodecTarget):
    """Session descriptions and candidates."""

    name, cases, check = "descriptions", 1000, staticmethod(read_description)
    corpus = (
        messages.SDP.encode(), messages.CANDIDATE.encode(), b"v=0", b"v=0\r\n" + b"m=audio 9 RTP/AVP 0\r\n" * 63,
        b"candidate:1 1 tcp 1518280447 a-b.local 9 typ host tcptype active generation 0 network-cost 999\r\n",
        b"a=candidate:" + b"9" * 32 + b" 1 udp 1 2001:db8::1 65535 typ relay raddr :: rport 65535" + b" x y" * 200,
        b"candidate:1 1 udp 1 1.1.1.1 1 typ host" + b" ufrag" * 150,
    )  # fmt: skip


class ProbeTarget(CodecTarget):
    """The lines of the deep check."""

    name, cases, check = "probe-lines", 500, staticmethod(read_probe_line)
    values = (
        {"check": 7, "worker": "w1", "ok": True, "phases": dict.fromkeys(
            ("connect_ms", "welcome_ms", "answer_ms", "ice_ms", "open_ms"), 1.5)},
        {"check": 7, "worker": "w1", "ok": False, "phase": "answer", "error": "no answer within 10 s", "own": True},
        {"check": 7, "worker": "w1", "url": "ws://127.0.0.1:8080/signaling", "limit_s": 10.0},
    )  # fmt: skip
    corpus = tuple(json.dumps(value).encode() + b"\n" for value in values)


ESCAPE = "\x1b[2J"
"""Clears a terminal."""


class AnswerTarget(CodecTarget):
    """Answers of a front, or of whatever else is at its address, to the command line."""

    name, cases, check, start = "answers", 1000, staticmethod(read_answer), bytes(range(9))
    values = (
        *_built(HEALTH, WORKERS, EXPLANATION, reading.Pins([reading.Pin("203.0.113.0/24", "w1")]), reading.Log(["k:*"]),
                reading.Connections("a", reading.ConnectionCounts(1, 1), [
                    reading.Connection("c", "client", "a", 1.0, "w1", None, "192.0.2.1"),
                    reading.Connection("w1", "worker", "a", None, None, "up")], False),
                reading.ErrorBody(reading.Failing("not-found", "nothing here"))),
        {"drained": ["w1"]},
        _built(EXPLANATION)[0] | {"worker": ESCAPE, "skipped": [{"worker": ESCAPE, "reason": ESCAPE, "why": ESCAPE}]},
    )  # fmt: skip
    corpus = tuple(b"\0" + msgspec.json.encode(value) for value in values)


class HeadTarget(CodecTarget):
    """Heads of requests, with what proxies write."""

    name, cases, check = "heads", 800, staticmethod(read_head)
    corpus = tuple(
        request("GET", "/signaling", UPGRADE | fields).removesuffix(b"\r\n\r\n")
        for fields in (
            {}, {"X-Forwarded-For": "198.51.100.1, 10.0.0.1"}, {"Host": "[2001:db8::1]:8080"},
            {"Forwarded": 'for="[2001:db8::1]:80";proto=https;host="a.example:1", for=10.0.0.2;by=_x'},
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "front.example", "X-Forwarded-For": "unknown, 10.0.0.3"},
        )
    )  # fmt: skip


KEY = "a key that nobody is to see"
_TEXTS = (
    "", "0", "1", "-1", "100", "1e3", "1e400", "nan", "0x10", "1_000", "\u0661", "true", "no", "majority", "json",
    "tcp:8080", "ssl:443:privateKey=k.pem", "b=tcp:10.0.0.2:9090 c=wss://c.example/worker-sync", "b=tcp:b b=tcp:b",
    "10.0.0.0/8,::1/128", "10.0.0.1/8", "stun:stun.example:3478,stuns:[::1]:5349?transport=udp", "turn:t?transport=tcp",
    "https://front.example:8080,http://[::1]", "ws://front.example/signaling", "kollator:*,kollator:pool", "0.0.0.0",
    "::", f"{KEY}\nand another one", KEY, "/nowhere/key", ":memory:", "front-1", "us-west", "a b",
)  # fmt: skip


_KEYS = ("CLUSTER_KEY", "WORKER_KEY", "TURN_SECRET")


class SettingsTarget(Target):
    """Every variable and every option with any text."""

    name, cases, batch = "settings", 1500, 250

    def case(self) -> None:
        """A few variables, one of them at least odd."""
        source, mutator = self.source, self.mutator
        environ: dict[str, str] = {"NODE_ID": "front-1"} if mutator.chance(0.8) else {}
        for row in source.sample(TABLE, source.choice((1, 1, 2, 4))):
            text = source.choice(_TEXTS) if mutator.chance(0.5) else str(row.default or "")
            if mutator.chance(0.6):
                text = mutator.text(text, _TEXTS)
            if not row.variable.endswith("_FILE") or "/dev" not in text:
                environ[row.variable] = text
        self.said.append(environ)
        host_name = mutator.text("host.example")
        found = told(SettingError, lambda: Settings.load({}, environ, lambda: host_name))
        if isinstance(found, SettingError):
            self._check_error(str(found), environ)
            return
        self.reached["loaded"] += 1
        repr(found)
        keys = (*found.cluster_keys, *found.worker_keys, *found.turn_secrets)
        open_to_all = any(KEY in text for name, text in environ.items() if name not in _KEYS)
        if any(key == KEY.encode() for key in keys) and KEY in repr(found) and not open_to_all:
            raise Broken("a key is shown")

    def _check_error(self, said: str, environ: dict[str, str]) -> None:
        one_line(said, 100_000)  # a path is told twice, as long as it is
        named = [row.name for row in TABLE if said.startswith(row.name)]
        if not named:
            raise Broken(f"no setting is named: {said}")
        self.reached[named[0]] += 1
        for variable in _KEYS:
            text = environ.get(variable, "")
            if len(text) > 12 and text.isprintable() and said.startswith(variable) and text in said:
                raise Broken(f"a key is told: {said}")
