"""The rows that a front writes of its own workers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.roster import Roster
from kollator.state.rows import WHYS, AttachmentRow, AttachmentState, Row, Why, WorkerRow

W1 = WorkerRow("w1", "eu", 10, "192.0.2.1")


class RosterTests(SynchronousTestCase):
    """One front, mostly one worker."""

    def setUp(self) -> None:
        """An empty roster of the front's third life."""
        self.roster = Roster("f1", 3)

    def attached(self, state: AttachmentState, why: Why = "") -> list[Row]:
        """The row that says so."""
        return [AttachmentRow("w1", "f1", 3, state, why)]

    def test_joined_and_left(self) -> None:
        """Both rows come with a registration, one goes with the connection."""
        token = object()
        self.assertEqual(self.roster.joined(W1, token), [W1, *self.attached("up")])
        self.assertEqual(self.roster.rows("w1"), [W1, *self.attached("up")])
        self.assertTrue("w1" in self.roster and len(self.roster) == 1)
        self.assertEqual(self.roster.left("w1", token), self.attached("down"))
        self.assertEqual((self.roster.rows("w1"), len(self.roster), "w1" in self.roster), ([], 0, False))
        self.assertEqual(self.roster.left("w1", token), [])

    def test_replaced(self) -> None:
        """The end of a connection that a newer one replaced is no end of the worker."""
        old, new = object(), object()
        self.roster.joined(W1, old)
        self.roster.status("w1", 10, False)
        moved = WorkerRow("w1", "us", 20, "192.0.2.2")
        self.assertEqual(self.roster.joined(moved, new), [moved, *self.attached("up")])
        self.assertEqual(self.roster.left("w1", old), [])
        self.assertEqual((self.roster.sessions("w1"), self.roster.rows("w1")[0]), (0, moved))
        self.assertEqual(self.roster.left("w1", new), self.attached("down"))

    def test_full_with_hysteresis(self) -> None:
        """A worker at its limit is full until it is clearly under it, or it would flicker with every session."""
        self.roster.joined(W1, None)
        for sessions, rows in (
            (9, []), (10, self.attached("full")), (12, []), (9, []), (10, []), (8, self.attached("up")), (9, []),
        ):
            self.assertEqual(self.roster.status("w1", sessions, False), rows, sessions)
            self.assertEqual(self.roster.sessions("w1"), sessions)

    def test_smallest_worker(self) -> None:
        """A worker for one session is relieved when that one ends."""
        self.roster.joined(WorkerRow("w1", "", 1), None)
        self.assertEqual(self.roster.status("w1", 1, False), self.attached("full"))
        self.assertEqual(self.roster.status("w1", 0, False), self.attached("up"))

    def test_worst_state_counts(self) -> None:
        """Down before draining before full; what was told meanwhile counts when the worse is over."""
        self.roster.joined(W1, None)
        self.assertEqual(self.roster.status("w1", 10, True), self.attached("draining"))
        self.assertEqual(self.roster.unwell("w1", "ping"), self.attached("down", "ping"))
        self.assertEqual(self.roster.unwell("w1", "ping"), [])
        self.assertEqual(self.roster.status("w1", 10, False), [])
        self.assertEqual(self.roster.well("w1", "ping"), self.attached("full"))
        self.assertEqual(self.roster.well("w1", "ping"), [])

    def test_reasons(self) -> None:
        """A worker that answers pings must not come back while its data channels fail, nor the other way round."""
        self.roster.joined(W1, None)
        self.assertEqual(self.roster.unwell("w1", "webrtc"), self.attached("down", "webrtc"))
        self.assertEqual(self.roster.unwell("w1", "probe"), self.attached("down", "probe"))
        self.assertEqual(self.roster.unwell("w1", "hold-down"), self.attached("down", "hold-down"))
        self.assertEqual(self.roster.unwell("w1", "ping"), self.attached("down", "ping"))
        self.assertEqual((self.roster.whys("w1"), self.roster.is_well("w1")), (list(WHYS), False))
        self.assertEqual(self.roster.well("w1", "probe"), [])
        self.assertEqual(self.roster.well("w1", "ping"), self.attached("down", "hold-down"))
        self.assertEqual(self.roster.well("w1", "hold-down"), self.attached("down", "webrtc"))
        self.assertEqual(self.roster.well("w1", "webrtc"), self.attached("up"))
        self.assertEqual((self.roster.whys("w1"), self.roster.is_well("w1")), ([], True))
        self.assertFalse(self.roster.is_well("w2"))

    def test_reasons_go_with_the_connection(self) -> None:
        """A worker that was restarted because it was broken would stay out for what its former life did."""
        self.roster.joined(W1, None)
        self.roster.unwell("w1", "webrtc")
        self.assertEqual(self.roster.joined(W1, None), [W1, *self.attached("up")])
        self.assertEqual(self.roster.whys("w1"), [])
        self.roster.unwell("w1", "ping")
        self.assertEqual(self.roster.left("w1", None), self.attached("down"))

    def test_relisted(self) -> None:
        """An operator who corrects a capacity would wait for the next status before it shows in who is full."""
        said = WorkerRow("w1", "us", 50, "192.0.2.1")
        self.roster.joined(W1, None, said)
        self.assertEqual((self.roster.said("w1"), self.roster.workers()), (said, ["w1"]))
        self.roster.status("w1", 10, False)
        self.assertEqual(self.roster.relisted(W1), [])
        self.assertEqual(self.roster.relisted(said), [said, *self.attached("up")])
        self.assertEqual(self.roster.rows("w1"), [said, *self.attached("up")])
        small = WorkerRow("w1", "us", 5, "192.0.2.1")
        self.assertEqual(self.roster.relisted(small), [small, *self.attached("full")])
        moved = WorkerRow("w1", "eu", 11, "192.0.2.1")
        self.assertEqual(self.roster.relisted(moved), [moved])  # 10 of 11: neither full nor relieved
        self.assertEqual(self.roster.relisted(WorkerRow("w2")), [])
        self.assertEqual((self.roster.said("w1"), self.roster.said("w2")), (said, None))

    def test_truth(self) -> None:
        """What a merge may have put into the store of this front's own attachments is put right by this."""
        self.assertEqual(self.roster.truth("w1"), AttachmentRow("w1", "f1", 3, "down"))
        self.roster.joined(W1, None)
        self.assertEqual([self.roster.truth("w1")], self.attached("up"))

    def test_new_life(self) -> None:
        """A front that begins another life takes its workers along as they are."""
        self.roster.joined(W1, None)
        self.roster.joined(WorkerRow("w2"), None)
        self.roster.unwell("w2", "probe")
        moved = [AttachmentRow("w1", "f1", 4, "up"), AttachmentRow("w2", "f1", 4, "down", "probe")]
        self.assertEqual(self.roster.renewed(4), moved)
        self.assertEqual([self.roster.truth("w1"), self.roster.truth("w2")], moved)
        self.assertEqual(self.roster.status("w1", 10, False), [AttachmentRow("w1", "f1", 4, "full")])
        self.assertEqual(self.roster.left("w1", None), [AttachmentRow("w1", "f1", 4, "down")])

    def test_strangers(self) -> None:
        """Nothing is written of a worker that is not here."""
        for rows in (
            self.roster.status("w2", 1, False), self.roster.unwell("w2", "ping"), self.roster.well("w2", "ping"),
            self.roster.left("w2", None), self.roster.rows("w2"),
        ):
            self.assertEqual(rows, [])
        self.assertEqual((self.roster.sessions("w2"), self.roster.whys("w2")), (0, []))

    steps = st.lists(
        st.one_of(
            st.tuples(st.just("status"), st.integers(0, 12), st.booleans()),
            st.tuples(st.sampled_from(["unwell", "well"]), st.sampled_from(WHYS)),
            st.sampled_from([("joined",), ("left",)]),
        ),
        max_size=30,
    )

    @settings(max_examples=100, deadline=None)
    @given(steps)
    def test_rows_tell_changes_only(self, steps: list[tuple[object, ...]]) -> None:
        """A row in between is a change, or every status of every worker would travel to every front."""
        roster = Roster("f1", 3)
        stored: dict[str, Row] = {}
        for name, *rest in steps:
            arguments = {"joined": (W1, None), "left": ("w1", None)}.get(str(name), ("w1", *rest))
            for row in getattr(roster, str(name))(*arguments):
                table = type(row).__name__
                if name not in ("joined", "left"):
                    self.assertNotEqual(stored.get(table), row)
                stored[table] = row
        held = roster.rows("w1")
        now = stored.get("AttachmentRow", AttachmentRow("w1", "f1", 3, "down"))
        self.assertEqual(held[1] if held else AttachmentRow("w1", "f1", 3, "down"), now)
