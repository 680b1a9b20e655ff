"""Signaling messages to begin with, and a target that tells them to the switchboard itself."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import msgspec

from kollator.signaling.connection import Stage
from tests.fuzz.mutation import Mutator
from tests.fuzz.oracle import Broken, grown, tables
from tests.fuzz.target import Target
from tests.switchboard_bench import KEYS, NONCE, Bench, Wire

SDP = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
CANDIDATE = "candidate:842163049 1 udp 1677729535 203.0.113.9 46154 typ srflx raddr 0.0.0.0 rport 0 generation 0"
CLIENT: tuple[dict[str, Any], ...] = (
    {"type": "hello", "role": "client"},
    {"type": "hello", "role": "client", "ticket": "TICKET", "ref": "r"},
    {"type": "assign", "exclude": ["w1", "w2"], "region": "us-west", "ref": "r1"},
    {"type": "offer", "to": "bystander", "sdp": SDP, "session": "s1"},
    {"type": "offer", "to": "w1", "sdp": SDP, "session": None, "ref": "r"},
    {"type": "answer", "to": "w2", "sdp": SDP},
    {"type": "candidate", "to": "w1", "session": "s1", "candidate": {
        "candidate": CANDIDATE, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "ufrag"}},
    {"type": "candidate", "to": "w1", "candidate": None},
    {"type": "bye", "to": "w1", "session": "s1", "reason": "done"},
    {"type": "connected", "to": "w1", "session": "s1", "ms": 312},
)  # fmt: skip
WORKER: tuple[dict[str, Any], ...] = (
    {"type": "hello", "role": "worker", "id": "w1", "region": "us-west", "capacity": 100, "address": "192.0.2.1",
     "nonce": NONCE, "ref": "r"},
    {"type": "auth", "mac": "00" * 32},
    {"type": "status", "sessions": 12, "draining": False},
    {"type": "status", "sessions": 0, "draining": True, "ref": None},
    {"type": "answer", "to": "CLIENT", "sdp": SDP, "session": "s1"},
    {"type": "candidate", "to": "CLIENT", "candidate": {"candidate": CANDIDATE, "sdpMid": None}},
    {"type": "bye", "to": "CLIENT", "reason": "full"},
    {"type": "nonsense"},
)  # fmt: skip
REMEMBERED = 16


class Vocabulary:
    """Messages, with the ids and tickets that there are by now."""

    def __init__(self, mutator: Mutator) -> None:
        self.clients: list[str] = []
        self.tickets: list[str] = []
        self._mutator = mutator

    def worker(self) -> str:
        """An id for a worker."""
        return self._mutator.source.choice(("w1", "w2", "w3", "w:4", "w.5-x"))

    def remember(self, welcome: dict[str, Any]) -> None:
        """The welcome of a client."""
        self.clients.append(welcome["id"])
        self.tickets.append(welcome["ticket"])
        del self.clients[1:-REMEMBERED], self.tickets[:-REMEMBERED]

    def message(self, kinds: tuple[dict[str, Any], ...] = CLIENT + WORKER) -> bytes:
        """One message, changed or not."""
        source, mutator = self._mutator.source, self._mutator
        chosen = dict(source.choice(kinds if mutator.chance(0.9) else CLIENT + WORKER))
        if chosen.get("to") == "CLIENT" and self.clients:
            chosen["to"] = source.choice(self.clients)
        if "ticket" in chosen and self.tickets:
            chosen["ticket"] = source.choice(self.tickets)
        if mutator.chance(0.1):
            return mutator.changed(json.dumps(chosen).encode())
        return mutator.json(chosen)


class SwitchboardTarget(Target):
    """Messages from every stage to the switchboard, with everything around it in memory."""

    name = "messages"
    cases: ClassVar = 6000
    batch: ClassVar = 200

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.bench = Bench(seed)
        self.vocabulary = Vocabulary(self.mutator)
        self.client, self.worker = self.bench.client(), self.bench.worker("bystander")
        self.vocabulary.clients.append(self.client.id)
        self.ids = {"", self.client.id, self.worker.id}
        self.wires: list[Wire] = []
        self.before = tables(self.bench)

    def case(self) -> None:
        """One message from a connection that has got as far as the dice say."""
        source, bench = self.source, self.bench
        bench.now += source.choice((0.0, 0.0, 0.01, 1.0))
        self.wires = [wire for wire in self.wires if wire.stage is not Stage.ENDED]
        wire = self._somebody() if len(self.wires) < 3 or self.mutator.chance(0.15) else source.choice(self.wires)
        payload = self.vocabulary.message(WORKER if wire.stage in (Stage.AUTH, Stage.WORKER) else CLIENT)
        self.said.append(payload)
        bench.board.receive(wire, payload, bench.now)
        if wire.stage is Stage.CLIENT and wire.sent and wire.sent[-1]["type"] == "welcome":
            self.vocabulary.remember(wire.sent[-1])
        if (wire.code is None) == (wire.stage is Stage.ENDED):
            raise Broken(f"a connection of stage {wire.stage!r} was closed with {wire.code}")
        if wire.stage in (Stage.CLIENT, Stage.WORKER):
            self.ids.add(wire.id)
        if wire.code is not None:
            self.reached[str(wire.code)] += 1
        self._check_sent(wire)
        self._forget()

    def _forget(self) -> None:
        """The bench keeps what it was told; a front would not."""
        bench = self.bench
        bench.notes.clear()
        bench.assigned.clear()
        bench.handoffs.clear()
        bench.registrar.loads.clear()

    def _somebody(self) -> Wire:
        bench = self.bench
        match self.source.randrange(5):
            case 0:
                wire = Wire(bench)
            case 1:
                wire = bench.challenged(self.vocabulary.worker())
            case 2:
                wire = bench.challenged(self.vocabulary.worker())
                bench.proves(wire, self.source.choice(KEYS))
            case _:
                wire = bench.client()
                self.vocabulary.remember(wire.sent[0])
        if self.mutator.chance(0.2):
            bench.limited(wire)
        self.ids.add(wire.id)
        self.wires.append(wire)
        return wire

    def _check_sent(self, sender: Wire) -> None:
        for wire in (*self.wires, self.client, self.worker):
            for message in wire.take():
                self.reached[message.get("code", message["type"])] += 1
                origin = message.get("from", sender.id)  # or what was kept for the sender
                if origin not in self.ids:
                    raise Broken(f"{sender.id!r} has sent what comes from {origin!r}")

    def settle(self) -> None:
        """The bystanders talk; everybody else leaves, and is forgotten after a while."""
        bench = self.bench
        self.client.says(type="offer", to="bystander", sdp=SDP)
        self.worker.says(type="answer", to=self.client.id, sdp=SDP)
        if [m["type"] for m in (*self.worker.take(), *self.client.take())] != ["offer", "answer"]:
            raise Broken("the bystanders do not hear each other")
        for wire in self.wires:
            bench.board.closed(wire, bench.now)
        bench.now += 60.0
        bench.board.turn(bench.now)
        bench.board.mailboxes.expire(bench.now)
        if bench.board.connections() != [self.client, self.worker] or bench.board.mailboxes.bytes:
            raise Broken(f"left behind: {bench.board.connections()}, {bench.board.mailboxes.bytes} bytes")
        self._forget()
        more = grown(self.before, tables(bench), 32, {"counters": 200})
        if more:
            raise Broken("; ".join(more))


ENCODED = [msgspec.json.encode(message) for message in CLIENT + WORKER]
"""The messages as bytes, for the codecs."""
