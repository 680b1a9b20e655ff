"""What a running front does for its operators: rows that come and go beside theirs, other lives, the log."""

from __future__ import annotations

from io import StringIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from kollator.admin import FREE_FAILURES, TokenGate
from kollator.observe import logs
from kollator.state.rows import DrainRow, FrontRow, PinRow, WorkerRow
from kollator.state.writer import RETRY_S
from kollator.web.refusal import Refusal
from tests.admins import OPERATOR, TOKEN, AdminTestCase, bearer


class TokenGateTests(SynchronousTestCase):
    """The one place that looks at tokens."""

    def refused(self, gate: TokenGate, *credentials: bytes, now: float = 0.0) -> Refusal:
        """The refusal of these values of ``Authorization``."""
        return self.assertRaises(Refusal, gate.admit, OPERATOR, credentials, now)

    def test_no_tokens(self) -> None:
        """Without a token nothing is good, the empty one least of all."""
        gate = TokenGate((), lambda event, **fields: None)
        for value in (b"Bearer", b"Bearer ", b"", b"Bearer x"):
            self.assertEqual(self.refused(gate, value).status, 401)
        empty = TokenGate((b"",), lambda event, **fields: None)
        self.assertEqual(self.refused(empty, b"Bearer ").status, 401)

    def test_nothing_told(self) -> None:
        """Neither the token nor the guess may be in an error or in the audit log, from where it could be read."""
        told: list[str] = []
        gate = TokenGate((b"the secret",), lambda event, **fields: told.append(f"{event} {fields}"))
        for _ in range(FREE_FAILURES + 2):
            told.append(repr(self.refused(gate, b"Bearer a guess").args))
        self.assertEqual(self.refused(gate, b"Bearer the secret").status, 429)
        self.assertEqual([text for text in told if "secret" in text or "guess" in text], [])


class RowsTests(AdminTestCase):
    """What else is written."""

    def order_pin(self, worker: str) -> Deferred[Any]:
        """An operator pins 10.0.0.0/8; the outcome, whatever it is."""
        return self.front.admin.pin(OPERATOR, "10.0.0.0/8", worker, "").addErrback(lambda failure: failure.value)

    def test_rows_of_others(self) -> None:
        """A refused change takes nothing else with it: what workers do is written when the disk is well."""
        self.front.worker("w1")
        self.front.break_disk()
        self.front.disk.held = True
        pinned = self.order_pin("w1")
        self.front.registry.worker_left(self.front.claim("w2"))
        joining = self.front.writer.write([WorkerRow("w3")])
        while len(self.front.disk):
            self.front.disk.turn()
        self.assertEqual(self.successResultOf(pinned).code, "no-database")
        self.assertNoResult(joining)
        self.front.mend_disk()
        self.front.disk.held = False
        self.front.advance(RETRY_S)
        self.successResultOf(joining)
        rows = self.front.store.rows()
        self.assertIn(WorkerRow("w3"), rows)
        self.assertNotIn(PinRow("10.0.0.0/8", "w1"), rows)

    def test_pinned_elsewhere_meanwhile(self) -> None:
        """What is put back is what counts by then, which may be what another front's operator has said."""
        self.front.worker("w1")
        self.front.worker("w2")
        self.successResultOf(self.order_pin("w1"))
        self.front.break_disk()
        self.front.disk.held = True
        pinned = self.order_pin("w2")
        theirs = PinRow("10.0.0.0/8", "", "eu")
        self.front.registry.merged([theirs])
        self.front.disk.turn()
        self.assertEqual(self.successResultOf(pinned).status, 503)
        self.front.mend_disk()
        self.front.disk.held = False
        self.front.advance(RETRY_S)
        self.assertEqual((self.front.pool.pins(), theirs in self.front.store.rows()), ([theirs], True))

    def test_stopping(self) -> None:
        """After the last write of a front that stops, an operator is told that nothing is changed any more."""
        self.front.worker("w1")
        self.successResultOf(self.front.writer.stop())
        self.assertEqual(self.successResultOf(self.order_pin("w1")).code, "no-database")
        self.assertEqual(self.front.pool.pins(), [])

    def test_refused_before_the_stop(self) -> None:
        """The last write of a front must not bring back what was refused a moment before."""
        self.front.worker("w1")
        self.front.break_disk()
        self.assertEqual(self.successResultOf(self.order_pin("w1")).code, "no-database")
        self.front.mend_disk()
        self.successResultOf(self.front.writer.stop())
        self.assertNotIn(PinRow("10.0.0.0/8", "w1"), self.front.store.rows())

    def test_mistake_of_ours(self) -> None:
        """A row that the store does not allow is a mistake of ours: logged, told as one, and not written."""
        self.front.pool.apply(WorkerRow("not allowed \0"))
        answer = self.front.order("POST", "/admin/workers/not%20allowed%20%00/drain")
        self.assert_error(answer, 500, "internal")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual((self.front.pool.drains(), self.front.audited), ([], []))
        self.front.worker("w1")
        self.answered(self.front.order("POST", "/admin/workers/w1/drain"))

    def test_unknown_drain(self) -> None:
        """A worker whose drain was said on another front, before its row came, is listed with the others."""
        self.front.registry.merged([DrainRow("w9", True)])
        self.assertEqual(self.answered(self.front.order("GET", "/admin/workers")), {"drained": ["w9"]})


class LivesTests(AdminTestCase):
    """A front's drain and its incarnations."""

    def own_row(self) -> FrontRow:
        """The front's row in the store."""
        (row,) = (row for row in self.front.store.rows() if isinstance(row, FrontRow))
        return row

    def reincarnate(self) -> FrontRow:
        """As the cluster's member does it when peers had retired this front."""
        row = self.front.store.begin_incarnation("", "")
        self.front.registry.reincarnated(row)
        return row

    def test_reincarnation(self) -> None:
        """A front that comes back to its peers while it is drained is still drained, and tells them so."""
        self.successResultOf(self.front.admin.drain_front(OPERATOR))
        self.assertFalse(self.reincarnate().draining)
        self.front.admin.reincarnated()
        self.assertEqual((self.own_row().incarnation, self.own_row().draining), (2, True))
        self.assertEqual(self.front.pool.front("front-1"), self.own_row())
        self.successResultOf(self.front.admin.undrain_front(OPERATOR))
        self.reincarnate()
        self.front.admin.reincarnated()
        self.assertEqual((self.own_row().incarnation, self.own_row().draining), (3, False))
        self.assertEqual(len(self.front.audited), 2)

    def test_reincarnation_without_a_disk(self) -> None:
        """What a drained front says of itself is tried again until it is stored."""
        self.successResultOf(self.front.admin.drain_front(OPERATOR))
        self.reincarnate()
        self.front.break_disk()
        self.front.admin.reincarnated()
        self.assertFalse(self.own_row().draining)
        self.front.mend_disk()
        self.front.advance(RETRY_S)
        self.assertTrue(self.own_row().draining)

    def test_reincarnation_meanwhile(self) -> None:
        """An order that was on its way to the disk when the other life began is obeyed in that one."""
        self.front.disk.held = True
        drained = self.front.admin.drain_front(OPERATOR)
        row = self.front.store.begin_incarnation("", "")
        self.front.pool.apply(row)
        while len(self.front.disk):
            self.front.disk.turn()
        self.assertTrue(self.successResultOf(drained).draining)
        self.assertEqual((self.own_row().incarnation, self.own_row().draining), (2, True))

    def test_restart(self) -> None:
        """A restart is the end of a drain: whoever starts a front wants it to serve."""
        self.successResultOf(self.front.admin.drain_front(OPERATOR))
        self.assertTrue(self.own_row().draining)
        self.assertFalse(self.front.store.begin_incarnation("", "").draining)


class LoggingTests(AdminTestCase):
    """The debug namespaces of a front that runs."""

    def setUp(self) -> None:
        """A log, with what asks once told of changes, as in ``kollator.assembly``."""
        super().setUp()
        self.lines = StringIO()
        observer: Any = logs.observer(self.lines, "text", self.front.debug)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.front.debug.watch("kollator:web", lambda on: setattr(self.front.site, "debug", on))
        self.front.debug.watch("kollator:signaling", lambda on: setattr(self.front.signaling, "debug", on))

    def logged(self) -> str:
        """What is logged of a request and of a client's hello."""
        self.lines.seek(0)
        self.lines.truncate()
        self.front.ask("GET", "/health/live", bearer(TOKEN))
        self.front.client()
        return self.lines.getvalue()

    def test_changed(self) -> None:
        """What an operator sets is logged from the next event on, and no more when it is taken back."""
        self.assertNotIn("#debug", self.logged())
        self.answered(self.front.order("PUT", "/admin/log", {"debug": ["kollator:web"]}))
        self.assertIn("[kollator:web#debug] GET /health/live 200", self.logged())
        self.assertNotIn("kollator:signaling#debug", self.lines.getvalue())
        self.answered(self.front.order("PUT", "/admin/log", {"debug": ["kollator:sig*"]}))
        self.assertIn("[kollator:signaling#debug] from", self.logged())
        self.assertNotIn("kollator:web#debug", self.lines.getvalue())
        self.answered(self.front.order("PUT", "/admin/log", {"debug": []}))
        self.assertNotIn("#debug", self.logged())

    def test_no_token(self) -> None:
        """However much is logged, the token is not."""
        self.front.debug.set(["*"])
        for token in (TOKEN, TOKEN + "!"):
            for path in ("/admin/log", "/admin/pins/x", "/admin/nothing"):
                self.front.order("DELETE", path, token=token)
        self.assertIn("DELETE /admin/pins/x 400", self.lines.getvalue())
        self.assertNotIn(TOKEN[:12], self.lines.getvalue())
