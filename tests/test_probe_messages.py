"""Deep checks, the pure part: the lines between a front and its probe, whose turn it is, two failures in a row."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool import checks
from kollator.pool.checks import (
    ERROR_CHARS,
    LINE_BYTES,
    PHASES,
    BadLine,
    Check,
    CheckBook,
    Phases,
    Result,
    decode_check,
    decode_result,
    encode,
)

TIMES = Phases(2.0, 1.0, 30.5, 40.0, 35.0)
EXAMPLES: tuple[Check | Result, ...] = (
    Check(7, "w1", "ws://127.0.0.1:8080/signaling", 10.0),
    Result(7, "w1", True, phases=TIMES),
    Result(7, "w1", False, phase="answer", error="not done within 10 s"),
    Result(7, "w1", False, phase="connect", error="refused", own=True),
)

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=4)


class LineTests(SynchronousTestCase):
    """What travels on the probe's pipes."""

    def test_every_line(self) -> None:
        """Without it a line might not be understood by the other side, or a new kind of line go untested."""
        kinds = {
            kind
            for kind in vars(checks).values()
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == checks.__name__
        }
        self.assertEqual(kinds, {type(example) for example in EXAMPLES} | {Phases})
        for example in EXAMPLES:
            line = encode(example)
            self.assertEqual((line.count(b"\n"), line[-1:]), (1, b"\n"))
            decode: Any = decode_check if isinstance(example, Check) else decode_result
            self.assertEqual(decode(line), example)

    def test_form(self) -> None:
        """Without it the lines might be others than those that are written down."""
        self.assertEqual(
            [json.loads(encode(example)) for example in EXAMPLES[1:3]],
            [
                {
                    "check": 7,
                    "worker": "w1",
                    "ok": True,
                    "phases": {
                        "connect_ms": 2.0, "welcome_ms": 1.0, "answer_ms": 30.5, "ice_ms": 40.0, "open_ms": 35.0,
                    },
                },
                {"check": 7, "worker": "w1", "ok": False, "phase": "answer", "error": "not done within 10 s"},
            ],
        )

    def test_seconds(self) -> None:
        """Without it a metric might be off by a factor of a thousand, or miss a phase."""
        self.assertEqual(
            list(TIMES.seconds()),
            [("connect", 0.002), ("welcome", 0.001), ("answer", 0.0305), ("ice", 0.04), ("open", 0.035)],
        )
        self.assertEqual(PHASES, tuple(phase for phase, _ in TIMES.seconds()))

    def test_contradictions(self) -> None:
        """Without it a result that says both, or neither, would be taken for a verdict on a worker."""
        good = {"check": 1, "worker": "w1"}
        phases = {f"{phase}_ms": 1.0 for phase in PHASES}
        wrong: list[dict[str, Any]] = [
            {**good, "ok": True},
            {**good, "ok": False},
            {**good, "ok": False, "phases": phases},
            {**good, "ok": True, "phases": phases, "phase": "ice"},
            {**good, "ok": True, "phases": phases, "own": True},
            {**good, "ok": True, "phases": {**phases, "ice_ms": -1.0}},
            {**good, "ok": False, "phase": "luck"},
            {**good, "ok": False, "phase": "ice", "error": "x" * (ERROR_CHARS + 1)},
            {**good, "check": -1, "ok": True, "phases": phases},
            {**good, "worker": "", "ok": True, "phases": phases},
        ]
        for message in wrong:
            self.assertRaises(BadLine, decode_result, json.dumps(message).encode())

    def test_orders(self) -> None:
        """Without it a probe might wait for ever, or not at all."""
        good = {"check": 1, "worker": "w1", "url": "ws://h/", "limit_s": 1}
        self.assertEqual(decode_check(json.dumps(good).encode()), Check(1, "w1", "ws://h/", 1.0))
        for change in ({"limit_s": 0}, {"limit_s": 601}, {"limit_s": "1"}, {"url": None}, {"worker": "w" * 65}):
            self.assertRaises(BadLine, decode_check, json.dumps({**good, **change}).encode())

    def test_size(self) -> None:
        """Without it a line without an end would be read into memory."""
        line = encode(EXAMPLES[0]).rstrip()
        self.assertEqual(decode_check(line + b" " * (LINE_BYTES - len(line))), EXAMPLES[0])
        self.assertRaises(BadLine, decode_check, line + b" " * (LINE_BYTES - len(line) + 1))

    @settings(max_examples=100, deadline=None)
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode),
                     st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)
                     .map(str.encode)))
    def test_anything(self, line: bytes) -> None:
        """Without it a library that prints something would end the reading of results."""
        for decode in (decode_check, decode_result):
            self.assertRaises(BadLine, decode, line)

    def test_worst(self) -> None:
        """Without it a line of brackets would end the reading with a RecursionError, or one that is no UTF-8."""
        for line in (b"[" * 60_000, b'{"news":' + b"[" * 60_000, b'{"worker":"\xff\xfe"}'):
            self.assertRaises(BadLine, decode_result, line)


class RoundTests(SynchronousTestCase):
    """Whose turn it is."""

    def test_in_order(self) -> None:
        """Without it some workers would be checked more often than others."""
        book = CheckBook()
        workers = ["w3", "w1", "w10", "w2"]
        turns = [book.next(workers) for _ in range(6)]
        self.assertEqual(turns, ["w1", "w10", "w2", "w3", "w1", "w10"])

    def test_nobody(self) -> None:
        """Without it a front without workers would ask for a check of nobody, or lose its place in the round."""
        book = CheckBook()
        self.assertIsNone(book.next([]))
        book.next(["w1", "w2"])
        self.assertIsNone(book.next(iter(())))
        self.assertEqual(book.next(iter(["w1", "w2"])), "w2")

    @settings(max_examples=100, deadline=None)
    @given(st.sets(names, min_size=1, max_size=6), st.data())
    def test_nobody_starves(self, staying: set[str], data: st.DataObject) -> None:
        """Without it workers that come and go would keep others from ever being checked."""
        book = CheckBook()
        pool = data.draw(st.sets(names, max_size=6))
        for _ in range(data.draw(st.integers(0, 5))):
            book.next(staying | pool)
        # A round over all who are ever there has each of those that stay.
        seen = set()
        for _ in range(len(staying | pool)):
            present = staying | data.draw(st.sets(st.sampled_from(sorted(pool)))) if pool else staying
            seen.add(book.next(present))
        self.assertLessEqual(staying, seen)


class VerdictTests(SynchronousTestCase):
    """What follows from the results."""

    def results(self, book: CheckBook, results: str) -> str:
        """Each result's consequence: ``-`` for none, ``D`` for out, ``U`` for back again; ``f`` is a forgetting."""
        told = ""
        for result in results:
            if result == "f":
                book.forget("w1")
                told += "-"
            elif result == "+":
                told += "U" if book.passed("w1") else "-"
            else:
                told += "D" if book.failed("w1") else "-"
        return told

    def test_two_in_a_row(self) -> None:
        """Without it one lost packet would take a worker out, or a dead one would never go, or never come back."""
        for results, told in (
            ("+++", "---"),
            ("-+-+-+", "------"),
            ("--", "-D"),
            ("-----", "-D---"),
            ("--+", "-DU"),
            ("----+--", "-D--U-D"),
            ("--++-", "-DU--"),
            ("--f+", "-D--"),
            ("-f-", "---"),
            ("--f--", "-D--D"),
        ):
            self.assertEqual(self.results(CheckBook(), results), told, results)

    def test_each_for_itself(self) -> None:
        """Without it two workers with one failure each would cost the second its place."""
        book = CheckBook()
        self.assertFalse(book.failed("w1"))
        self.assertFalse(book.failed("w2"))
        self.assertTrue(book.failed("w1"))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(names, st.sampled_from("+-f"))))
    def test_bounded(self, events: list[tuple[str, str]]) -> None:
        """Without it the table would grow with every worker that was ever here."""
        book = CheckBook()
        failing = set()
        for worker, event in events:
            if event == "-":
                book.failed(worker)
                failing.add(worker)
            else:
                (book.passed if event == "+" else book.forget)(worker)
                failing.discard(worker)
        self.assertEqual(len(book), len(failing))
