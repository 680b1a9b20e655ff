"""Random messages of every kind, from every stage, with everything else that may happen in between."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling import switchboard
from kollator.signaling.connection import Stage
from kollator.signaling.messages import Close
from kollator.signaling.switchboard import TALKED
from tests.switchboard_bench import KEYS, NONCE, Bench, Wire, kinds


class AnythingTests(SynchronousTestCase):
    """Random messages of every kind, from every stage, with everything else that may happen in between."""

    def message(self, source: random.Random, wires: list[Wire]) -> bytes:
        """Something like a message."""
        ids = ["w1", "w2", "w3", "nobody", "", *[wire.id for wire in wires]]
        tickets = [m["ticket"] for wire in wires for m in wire.sent if "ticket" in m]
        values: dict[str, list[Any]] = {
            "role": ["client", "client", "worker", "front"],
            "ticket": [*tickets, *tickets, "forged", None],
            "id": ["w1", "w2", "w3", "w 4", None],
            "nonce": [NONCE, NONCE, "short"],
            "capacity": [1, 100, 5000, 0],
            "region": ["us-west", "", None],
            "to": ids,
            "sdp": ["v=0\r\n", "v=0" + "x" * 3000, 7],
            "candidate": [None, {"candidate": "c"}, {"sdpMLineIndex": -1}, []],
            "session": ["s1", None, "s" * 65],
            "exclude": [[], ["w1"], "w1", None],
            "sessions": [0, 12, -1],
            "draining": [True, False, 1],
            "ms": [1, 2.5, -1],
            "mac": ["00" * 32, ""],
            "ref": ["r", None, 7],
        }
        needed: dict[str, tuple[str, ...]] = {
            "hello": ("role",),
            "auth": ("mac",),
            "status": ("sessions",),
            "assign": (),
            "offer": ("to", "sdp"),
            "answer": ("to", "sdp"),
            "candidate": ("to", "candidate"),
            "bye": ("to",),
            "connected": ("to",),
            "nonsense": (),
        }
        kind = source.choice([*needed, "hello", "offer", "bye"])
        keys = {*needed[kind], *source.sample(sorted(values), source.randrange(4))}
        if kind == "hello" and source.random() < 0.5:
            keys |= {"id", "nonce"}
        message = {"type": kind} | {key: source.choice(values[key]) for key in keys}
        if source.random() < 0.05:
            message.pop(source.choice(sorted(message)))
        return json.dumps(message).encode()

    def check(self, bench: Bench, wires: list[Wire]) -> None:
        """What must hold at all times."""
        board = bench.board
        for wire in wires:
            self.assertEqual(board.clients.get(wire.id) is wire, wire.stage is Stage.CLIENT)
            self.assertEqual(board.workers.get(wire.id) is wire, wire.stage is Stage.WORKER)
            self.assertEqual(wire.code is not None and wire.stage is not Stage.ENDED, False)
            self.assertLessEqual(len(wire.talked), TALKED)
            if wire.stage in (Stage.CLIENT, Stage.WORKER):
                self.assertIn("welcome", kinds(wire.sent))
        here = [wire for wire in wires if wire.stage is not Stage.ENDED]
        self.assertEqual(sorted(map(id, board.connections())), sorted(map(id, here)))
        self.assertEqual(set(board.waiting), {wire for wire in here if wire.stage <= Stage.JOINING})
        for client in board.clients:
            self.assertNotIn(client, board.mailboxes)
        for worker, connection in board.workers.items():
            self.assertIs(bench.registrar.held[worker], connection.claim)
        written = [claim for claim, _ in bench.registrar.waiting]
        for worker, claim in bench.registrar.held.items():
            self.assertTrue(worker in board.workers or any(claim is waiting for waiting in written), worker)

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False))
    def test_anything(self, source: random.Random) -> None:
        """Without it some order of messages could raise, or leave a connection in a table that is gone."""
        self.patch(switchboard, "FEW", source.choice([0, 1, 100]))
        self.patch(switchboard, "SCAN", source.choice([0, 2, 1000]))
        bench = Bench(source.randrange(1000))
        wires: list[Wire] = []
        for _ in range(100):
            bench.now += source.choice([0.0, 0.01, 1.0])
            open_wires = [wire for wire in wires if wire.stage is not Stage.ENDED]
            if not open_wires:
                open_wires = [Wire(bench)]
                wires += open_wires
            wire = source.choice(open_wires)
            match source.randrange(19):
                case 0 | 1:
                    wire = Wire(bench)
                    if source.random() < 0.3:
                        bench.limited(wire)
                    wires.append(wire)
                case 2:
                    bench.board.closed(wire, bench.now)
                case 3:
                    bench.board.end(wire, Close.GOING_AWAY, "test", bench.now)
                case 4:
                    wire.slow = source.random() < 0.3
                case 5:
                    bench.registrar.stores = source.choice([True, True, None, None, False])
                case 6 | 7:
                    if bench.registrar.waiting:
                        index = source.randrange(len(bench.registrar.waiting))
                        bench.registrar.finish(index, source.random() < 0.8)
                case 8 | 9:
                    if wire.stage is Stage.AUTH:
                        bench.proves(wire, source.choice(KEYS))
                case 10:
                    bench.lose(source.sample(["w1", "w2", "w3"], 1))
                case 11:
                    bench.pool = source.sample(["w1", "w2", "w3"], source.randrange(4))
                    bench.board.mailboxes.expire(bench.now)
                case 12:
                    bench.board.turn(bench.now)
                case 13:
                    bench.board.drain(lambda: 100)
                case 14:
                    bench.board.receive(wire, source.randbytes(source.randrange(40)), bench.now)
                case _:
                    bench.board.receive(wire, self.message(source, wires), bench.now)
            self.check(bench, wires)
        for wire in wires:
            if not wire.slow:
                self.assertEqual(wire.late, [])
            bench.board.closed(wire, bench.now)
        while bench.registrar.waiting:
            bench.registrar.finish(0)
        self.assertEqual((bench.registrar.held, bench.board.connections()), ({}, []))
