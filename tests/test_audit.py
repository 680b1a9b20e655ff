"""What an audit line says, and that nothing else gets into it."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.audit import (
    EVENTS,
    REPEAT_KEYS,
    REPEAT_S,
    REPEATED,
    VALUE_CHARS,
    Repetitions,
    entry,
    of_signaling,
)
from tests.switchboard_bench import BenchTestCase

AT_S = 1_700_000_000.25
SDP = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\n"


class Text(str):
    """A string of somebody's own."""


def line(event: str = "limit-hit", time_s: float = AT_S, **fields: object) -> dict[str, Any]:
    """One entry, read back."""
    return json.loads(entry(event, time_s, "front-1", fields))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


class EntryTests(SynchronousTestCase):
    """One line."""

    def test_form(self) -> None:
        """Without it no tool could read the log, or an operator would not know when and where it was."""
        text = entry("worker-registered", AT_S, "front-1", {"id": "w1", "address": "192.0.2.9", "capacity": 100})
        self.assertEqual(
            text,
            '{"time":"2023-11-14T22:13:20.250Z","node":"front-1","event":"worker-registered",'
            '"id":"w1","address":"192.0.2.9","capacity":100}\n',
        )

    def test_table(self) -> None:
        """Without it a field could hide the time, or an event that anybody can bring about have no count."""
        for event, fields in EVENTS.items():
            self.assertRegex(event, r"\A[a-z]+(-[a-z]+)*\Z")
            self.assertEqual(len(set(fields)), len(fields), event)
            self.assertFalse({"time", "node", "event"} & set(fields), event)
            self.assertEqual("count" in fields, event in REPEATED or event == "audit-lost", event)
        self.assertLessEqual(REPEATED, set(EVENTS))

    def test_what_is_not_in_the_table(self) -> None:
        """Without it a session description, a key or a ticket would be written down as soon as somebody passes it."""
        secrets: dict[str, Any] = {"sdp": SDP, "ticket": "t.t", "mac": "00", "key": "k", "token": "t", "nonce": b"k"}
        for event in EVENTS:
            self.assertEqual(set(line(event, **secrets)), {"time", "node", "event"})
        self.assertEqual(entry("no-such-event", AT_S, "front-1", {"id": "w1"}), "")

    def test_what_is_no_value(self) -> None:
        """Without it bytes, lists and objects would write whatever they hold."""
        for value in (b"key", bytearray(b"k"), [SDP], {"a": 1}, ("a",), 1.5, None, object(), Text("key"), 1 << 64):
            self.assertEqual(line(id=value, reason="r").keys(), {"time", "node", "event", "reason"}, value)
        self.assertEqual((line(id=True)["id"], line(id=-(1 << 63))["id"]), (True, -(1 << 63)))

    def test_long_values(self) -> None:
        """Without it somebody could fill the disk with a name."""
        self.assertEqual(line(reason="ü" * 5000)["reason"], "ü" * VALUE_CHARS)
        self.assertLessEqual(len(line(reason="\ud800" * 5000)["reason"]), VALUE_CHARS)
        self.assertEqual(len(line(reason="x" * VALUE_CHARS)["reason"]), VALUE_CHARS)

    def test_line_breaks_and_control_characters(self) -> None:
        """Without it a peer could write lines of its own, or play with the terminal of whoever reads the log."""
        nasty = 'a\r\n{"event":"admin"}\x00\x1b[2J\x7f\x85\u2028\u202e\ud800"\\'
        text = entry("limit-hit", AT_S, "front-1", {"reason": nasty})
        self.assertTrue(re.fullmatch(r"[\x20-\x7e]+\n", text), text)
        self.assertEqual(json.loads(text)["reason"], nasty.replace("\ud800", "\\ud800"))

    def test_times(self) -> None:
        """Without it a clock that is wrong would cost the line."""
        for time_s in (float("nan"), float("inf"), -1e300, 1e300):
            self.assertIsNone(line(time_s=time_s)["time"])
        self.assertEqual(line(time_s=0.0)["time"], "1970-01-01T00:00:00.000Z")
        self.assertEqual(line(time_s=1.9999)["time"][-5:], ".999Z")

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(sorted(EVENTS)) | st.text(),
        st.floats(),
        st.text(),
        st.dictionaries(st.sampled_from(sorted({*itertools.chain(*EVENTS.values())})) | st.text(), anything),
    )
    def test_anything(self, event: str, time_s: float, node: str, fields: dict[str, object]) -> None:
        """Without it some value could raise, break the line, or get in under a name that nobody has allowed."""
        text = entry(event, time_s, node, fields)
        self.assertEqual(bool(text), event in EVENTS)
        if text:
            self.assertTrue(re.fullmatch(r"[\x20-\x7e]+\n", text))
            record = json.loads(text)
            self.assertLessEqual(set(record), {"time", "node", "event", *EVENTS[event]})
            for name in set(record) - {"time", "node", "event"}:
                self.assertIn(type(record[name]), (str, int, bool))
                self.assertIn(type(fields[name]), (str, int, bool))
                self.assertLessEqual(len(str(record[name])), VALUE_CHARS)


class SignalingTests(BenchTestCase):
    """What signaling notes, as the audit log has it."""

    def test_names(self) -> None:
        """Without it a worker's registration would be missing, or its id."""
        fields = {"worker": "w1", "address": "192.0.2.9"}
        expected = {"id": "w1", "address": "192.0.2.9"}
        self.assertEqual(of_signaling("worker-joined", fields), ("worker-registered", expected))
        self.assertEqual(of_signaling("client-replaced", {"client": "c1"}), ("client-replaced", {"id": "c1"}))
        self.assertIsNone(of_signaling("client-joined", {"client": "c1"}))
        self.assertIsNone(of_signaling("client-left", {}))

    def test_every_note_fits(self) -> None:
        """Without it a note could lose a field on its way to the log, because the table has another name for it."""
        worker = self.bench.worker()
        self.bench.worker()
        self.bench.challenged("w2").says(type="auth", mac="00")
        client = self.bench.client()
        back = self.bench.client(client.sent[0]["ticket"])
        self.board.abroad.moved_away(back.id, back.since_ms + 1, "front-2", self.bench.now)
        self.bench.client().says(b"{")
        for _ in range(20):
            back = self.bench.client()
            for _ in range(20):
                back.says(b"{")
        self.board.closed(self.board.workers["w1"], self.bench.now)
        self.bench.banned.add(worker.address)
        self.bench.challenged("w3")
        self.bench.banned.clear()
        self.bench.unlisted.add("w4")
        self.bench.proves(self.bench.challenged("w4"))
        seen = set()
        for event, fields in self.bench.notes:
            found = of_signaling(event, fields)
            if found is not None:
                seen.add(found[0])
                record = json.loads(entry(found[0], AT_S, "front-1", found[1]))
                self.assertEqual({name: record.get(name) for name in found[1]}, found[1], event)
        self.assertEqual(
            seen,
            {
                *("worker-registered", "worker-replaced", "worker-left", "worker-refused", "worker-unlisted"),
                *("auth-failed", "client-replaced", "limit-hit"),
            },
        )


class RepetitionsTests(SynchronousTestCase):
    """What anybody can bring about as often as they like."""

    def setUp(self) -> None:
        """Nothing was seen."""
        self.seen = Repetitions()
        self.now = 1000.0

    def hit(self, reason: str = "message-rate", address: object = "192.0.2.1", **fields: object) -> bool:
        """A limit is hit; whether that is told at once."""
        return self.seen.take("limit-hit", {"reason": reason, "address": address, **fields}, self.now)

    def due(self) -> list[dict[str, object]]:
        """What is to be told now."""
        return [fields for _, fields in self.seen.due(self.now)]

    def test_first_at_once(self) -> None:
        """Without it a single event would come late, or with a count that says nothing."""
        self.assertTrue(self.hit())
        self.now += REPEAT_S
        self.assertEqual((self.due(), len(self.seen)), ([], 0))

    def test_repetitions_together(self) -> None:
        """Without it somebody who hits a limit all the time would write the disk full."""
        self.assertEqual([self.hit(id=f"c{number}") for number in range(5)], [True, False, False, False, False])
        self.assertEqual(self.due(), [])
        self.now += REPEAT_S
        told = {"reason": "message-rate", "address": "192.0.2.1", "id": "c4", "count": 4}
        self.assertEqual(self.due(), [told])
        self.assertFalse(self.hit())
        self.assertEqual(self.due(), [])
        self.now += REPEAT_S
        self.assertEqual([fields["count"] for fields in self.due()], [1])
        self.now += REPEAT_S
        self.assertEqual((self.due(), len(self.seen)), ([], 0))
        self.assertTrue(self.hit())

    def test_each_reason_and_address(self) -> None:
        """Without it one offender would hide another."""
        self.assertTrue(self.hit())
        self.assertTrue(self.hit(address="192.0.2.2"))
        self.assertTrue(self.hit(reason="bad-messages"))
        self.assertTrue(self.seen.take("auth-failed", {"reason": "message-rate", "address": "192.0.2.1"}, self.now))
        self.assertFalse(self.hit())

    def test_what_needs_a_key_is_told_each_time(self) -> None:
        """Without it one of two acts of an administrator would be missing."""
        for event in sorted(set(EVENTS) - REPEATED):
            for _ in range(3):
                self.assertTrue(self.seen.take(event, {"reason": "r", "address": "192.0.2.1"}, self.now))
        self.assertEqual(len(self.seen), 0)

    def test_from_very_many_addresses(self) -> None:
        """Without it an attack from everywhere would push older lines out of the log, or fill the memory."""
        at_once = sum(self.hit(address=f"192.0.2.{number}") for number in range(REPEAT_KEYS + 1000))
        self.assertEqual(at_once, REPEAT_KEYS)
        for number in range(5 * REPEAT_KEYS):
            self.hit(reason=f"reason {number}", address=f"198.51.100.{number}")
        self.assertLessEqual(len(self.seen), 2 * REPEAT_KEYS + len(REPEATED))
        self.now += REPEAT_S
        told = self.due()
        self.assertIn({"reason": "message-rate", "count": 1000}, told)
        self.assertEqual(sum(Counter(fields)["count"] for fields in told), 1000 + 5 * REPEAT_KEYS)
        self.now += REPEAT_S
        self.assertEqual((self.due(), len(self.seen)), ([], 0))

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*sorted(REPEATED), "admin"]),
                anything,
                anything,
                st.sampled_from([0.0, 0.3, 1.0, 5.0]),
            ),
            max_size=40,
        )
    )
    def test_nothing_is_left_out(self, events: list[tuple[str, object, object, float]]) -> None:
        """Without it the counts of the lines would not add up to what happened, or some value would raise."""
        seen, now, told = Repetitions(), 0.0, 0
        for event, reason, address, pause_s in events:
            told += seen.take(event, {"reason": reason, "address": address}, now)
            now += pause_s
            told += sum(Counter(fields)["count"] for _, fields in seen.due(now))
        told += sum(Counter(fields)["count"] for _, fields in seen.due(now + REPEAT_S))
        self.assertEqual(told, len(events))
