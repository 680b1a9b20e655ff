"""The commands: what each asks of a front, and what it shows of the answer.

Each takes the front and its arguments, and returns the front's JSON and the lines for people.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kollator.cli.asking import Front, path_of
from kollator.cli.reading import (
    Connections,
    Drained,
    Explanation,
    FrontDrain,
    Health,
    Log,
    OneWorker,
    Pin,
    Pins,
    RemovedPin,
    Skipped,
    Workers,
)
from kollator.cli.text import duration, pairs, shown, table

RING_BITS = 44

REASONS = {
    "ring": "the place of the range on the hash ring decided",
    "pinned": "an operator pinned the range",
    "pin-fallback": "the range is pinned, but nobody there is up: the ring decided",
    "other-region": "nobody of the region that was asked for is up",
    "overflow": "no worker is up that is neither full nor draining",
    "no-workers": "no worker is connected",
}
"""What ``reason`` says of an assignment (``kollator.pool.assignment``). A word that is not here is shown as it is."""

SKIPPED = {
    "excluded": "the client excluded it",
    "full": "it has all the sessions that it can take",
    "draining": "it takes no new sessions",
    "other-region": "it is in another region",
    "down": "it is not connected",
    "unknown": "no worker of that name was ever seen",
}
"""Why a worker was passed by."""

WHY = {
    "operator": "an operator drained it",
    "ping": "it left a ping unanswered",
    "hold-down": "it failed a short while ago and has to stay well first",
    "probe": "its health probe fails",
    "webrtc": "no data channel to it can be opened",
}
"""What ``why`` says more of it (``kollator.state.rows``)."""


class Shown(NamedTuple):
    """What a command found: the front's JSON, and lines for people, which are made only when they are wanted."""

    value: Any
    lines: Iterable[str]


Command = Callable[[Front, Namespace], Shown]


def assign(front: Front, arguments: Namespace) -> Shown:
    """``kollator assign``."""
    query = {"ip": arguments.ip} | ({} if arguments.region is None else {"region": arguments.region})
    found, answer = front.ask(Explanation, "GET", path_of("workers", "assign", query=query))

    def lines() -> Iterator[str]:
        ring = f"{found.position} of 2^{RING_BITS}"
        if found.point is not None:
            ring += f"; the virtual node at {found.point} took it"
        yield from pairs([
            ("address", found.ip),
            ("range", found.range),
            ("worker", "nobody" if found.worker is None else found.worker),
            ("region", found.region or "none"),
            ("reason", _words(found.reason, REASONS)),
            ("pin", "none" if found.pin is None else found.pin),
            ("ring", "not told" if found.position is None else ring),
            ("alternates", ", ".join(found.alternates) or "none"),
            ("passed by", "nobody" if not found.skipped else f"{len(found.skipped)}, the nearest first:"),
        ])
        told = ((skipped.worker, _passed_by(skipped)) for skipped in found.skipped)
        yield from (f"  {line}" for line in pairs(told))

    return Shown(answer.value, lines())


def pins_list(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl pins list``."""
    found, answer = front.ask(Pins, "GET", "/admin/pins")
    rows = [(pin.cidr, pin.worker or "", pin.region or "") for pin in found.pins]
    return Shown(answer.value, table(("RANGE", "WORKER", "REGION"), rows) if rows else ["no range is pinned"])


def pins_add(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl pins add``."""
    to = {"region": arguments.region} if arguments.worker is None else {"worker": arguments.worker}
    pin, answer = front.ask(Pin, "POST", "/admin/pins", {"cidr": arguments.cidr, **to})
    replaced = "" if answer.status == 201 else ", which replaces an older pin"
    return Shown(answer.value, [f"{_pinned(pin)}{replaced}"])


def pins_remove(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl pins remove``."""
    found, answer = front.ask(RemovedPin, "DELETE", path_of("admin", "pins", query={"cidr": arguments.cidr}))
    return Shown(answer.value, [f"no longer: {_pinned(found.removed)}"])


def worker_drain(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl worker drain`` and ``undrain``."""
    found, answer = front.ask(OneWorker, "POST", path_of("admin", "workers", arguments.id, arguments.what))
    worker = found.worker
    said = "is drained: clients get others" if arguments.what == "drain" else "is no longer drained"
    state = f"{worker.state} ({worker.why})" if worker.why else worker.state
    return Shown(answer.value, [shown(f"worker {worker.id} {said}; state: {state}, sessions: {worker.sessions}")])


def workers(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl workers``: the table that anybody may read and, with a token, whom operators drained."""
    found, answer = front.ask(Workers, "GET", "/workers")
    value = answer.value
    drained: set[str] | None = None
    if front.has_token:
        flags, flagged = front.ask(Drained, "GET", "/admin/workers")
        drained = set(flags.drained)
        value = {**value, "drained": flagged.value["drained"]}

    def lines() -> Iterator[str]:
        head = ["ID", "REGION", "CAPACITY", "SESSIONS", "STATE", "WHY", "FRONTS", "ADDRESS"]
        rows: list[list[object]] = [
            [each.id, each.region, each.capacity, each.sessions, each.state, each.why, ",".join(each.fronts),
             each.address]
            for each in found.workers
        ]
        if drained is not None:
            head.append("DRAINED")
            for row in rows:
                row.append("yes" if row[0] in drained else "")
        yield from table(head, rows)
        ring = found.ring
        yield shown(f"ring: {ring.points} points, {ring.replicas} for a capacity of 100, digest {ring.digest}")
        if drained is None:
            yield "whom operators drained is told to those with a token: --token-file or ADMIN_TOKEN_FILE"

    return Shown(value, lines())


def front_drain(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl front drain`` and ``undrain``."""
    found, answer = front.ask(FrontDrain, "POST", path_of("admin", "front", arguments.what))
    said = "drains: it takes no new clients, and has told those it has to go" if found.draining else "takes new clients"
    return Shown(answer.value, [f"front {shown(found.node)} {said}"])


def front_status(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl front status``: ``/health``, which answers 503 when new clients should not come."""
    found, answer = front.ask(Health, "GET", "/health", also=503)

    def lines() -> Iterator[str]:
        synchronised = {None: "not told", True: "yes", False: "no"}[found.synchronised]
        yield from pairs([
            ("node", found.node),
            ("status", found.status),
            ("version", found.version),
            ("uptime", duration(found.uptime_s)),
            ("role", found.role),
            ("leader", "nobody" if found.leader is None else found.leader),
            ("term", found.term),
            ("synchronised", synchronised),
            ("workers", f"{found.workers.up} up of {found.workers.total}"),
            ("connections", f"clients: {found.connections.client}, workers: {found.connections.worker}"),
            ("ring", found.ring.digest),
        ])
        if found.cluster:
            yield ""
            rows = [(node.node, node.state, _lag(node.sync_lag_ms)) for node in found.cluster]
            yield from table(("FRONT", "STATE", "SYNC LAG"), rows)

    return Shown(answer.value, lines())


def connections(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl connections``."""
    query = {"role": arguments.role, "front": arguments.front, "limit": arguments.limit}
    asked = {name: str(value) for name, value in query.items() if value is not None}
    if arguments.addresses:
        asked["addresses"] = "true"
    found, answer = front.ask(Connections, "GET", path_of("admin", "connections", query=asked))

    def lines() -> Iterator[str]:
        head = ["ID", "ROLE", "FRONT", "FOR", "ASSIGNED", "STATE"]
        rows: list[list[object]] = [
            [each.id, each.role, each.front, "" if each.since_s is None else duration(each.since_s),
             each.assigned or "", each.state or ""]
            for each in found.connections
        ]
        if arguments.addresses:
            head.append("ADDRESS")
            for row, each in zip(rows, found.connections, strict=True):
                row.append(each.address or "")
        yield from table(head, rows)
        clients, workers = found.total.client, found.total.worker
        yield shown(f"in all: clients of {found.node}: {clients}, connections of workers to any front: {workers}")
        if found.truncated:
            yield f"only {len(rows)} are shown; --limit shows more"

    return Shown(answer.value, lines())


def log_show(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl log show``."""
    found, answer = front.ask(Log, "GET", "/admin/log")
    return Shown(answer.value, _debugged(found))


def log_set(front: Front, arguments: Namespace) -> Shown:
    """``kollator ctl log set``; namespaces may also be separated by commas, as in ``DEBUG``."""
    wanted = [name for text in arguments.namespaces for name in text.split(",")]
    found, answer = front.ask(Log, "PUT", "/admin/log", {"debug": wanted})
    return Shown(answer.value, _debugged(found))


def _words(word: str, known: dict[str, str]) -> str:
    return f"{word}: {known[word]}" if word in known else word


def _passed_by(skipped: Skipped) -> str:
    if not skipped.why:
        return _words(skipped.reason, SKIPPED)
    return f"{skipped.reason}, {_words(skipped.why, WHY)}"


def _pinned(pin: Pin) -> str:
    to = f"region {pin.region}" if pin.worker is None else f"worker {pin.worker}"
    return shown(f"{pin.cidr} to {to}")


def _lag(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:g} ms"


def _debugged(log: Log) -> list[str]:
    return [f"debug events of {shown(name)}" for name in log.debug] or ["no debug events are logged"]
