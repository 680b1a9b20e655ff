"""The targets of the fuzzer with the seeds of the suite. ``python -m tests.fuzz`` runs others, and more."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.target import Found, run
from tests.fuzz.targets import TARGETS


class FuzzTestCase(SynchronousTestCase):
    """Runs targets."""

    def fuzz(self, name: str, *reached: str) -> None:
        """Runs a target; ``reached`` is what its cases must have come to, or it has become blind."""
        try:
            ran = run(TARGETS[name])
        except Found as found:
            self.flushLoggedErrors()
            self.fail(str(found))
        self.assertEqual(ran.cases, TARGETS[name].cases)
        self.assertEqual([what for what in reached if not ran.reached[what]], [], ran.reached)


class DoorTests(FuzzTestCase):
    """Bytes of anybody."""

    def test_websocket(self) -> None:
        """Without it some frame, message or order of them could raise, hang a connection, or stay in a table."""
        self.fuzz("websocket", "101", "400", "426", "431", "1002", "1003", "1007", "1009", "4401", "4408", "4409",
                  "4413", "bad-message", "unknown-type", "not-allowed-yet", "forbidden", "unknown-target", "bad-ticket",
                  "assigned", "challenge", "too-large")  # fmt: skip

    def test_http(self) -> None:
        """Without it some request could raise, be answered in another form, or change something without the token."""
        self.fuzz("http", "101", "200", "204", "400", "401", "404", "405", "408", "413", "426", "431", "505")

    def test_proxy(self) -> None:
        """Without it a PROXY header that is none could raise, or leave a connection open for ever."""
        self.fuzz("proxy", "101", "200", "404", "405")

    def test_messages(self) -> None:
        """Without it some message could raise in the switchboard, or come from whom its sender is not."""
        self.fuzz("messages", "bad-message", "unknown-type", "not-allowed-yet", "forbidden", "unknown-target",
                  "bad-ticket", "offer", "answer", "candidate", "bye", "assigned", "worker-lost", "4400",
                  "4401")  # fmt: skip


class PeerTests(FuzzTestCase):
    """Bytes and frames between fronts."""

    def test_peer(self) -> None:
        """Without it a stranger's bytes could break a front's links, or be remembered for ever."""
        self.fuzz("peer", "up", "down", "frame", "bad-frame", "malformed", "too-large", "out-of-order", "wrong-key",
                  "unknown-node", "wrong-version", "backed-off")  # fmt: skip

    def test_worker_sync(self) -> None:
        """Without it the same could come in WebSocket messages, whole or in pieces."""
        self.fuzz("worker-sync", "up", "down", "frame", "websocket", "bad-frame", "malformed", "unknown-node")

    def test_member(self) -> None:
        """Without it a front of the cluster that has lost its mind could take the others with it."""
        self.fuzz("member", "changes", "heartbeat", "vote", "pull", "to-worker", "to-client", "undelivered", "kept",
                  "arrived", "sent ack", "sent changes", "sent vote-reply", "sent heartbeat", "bad frame")  # fmt: skip

    def test_changes(self) -> None:
        """Without it a row that crashes cr-sqlite, or poisons it, could get into the database."""
        self.fuzz("changes", "None", "bad key", "bad value", "unknown table", "unknown column", "bad cl", "bad site_id",
                  "bad col_version", "bad db_version", "bad seq", "delete", "unknown site")  # fmt: skip


class CodecTests(FuzzTestCase):
    """Readers of texts and bytes."""

    def test_decode(self) -> None:
        """Without it a message that is none could raise something else than a refusal."""
        self.fuzz("decode", "bad-message", "unknown-type", "Hello", "Auth", "Status", "Assign", "Offer", "Candidate")

    def test_wire(self) -> None:
        """Without it a frame that is none could raise something else than ``BadFrame``."""
        self.fuzz("wire", "bad", "Greeting", "Changes", "ToWorker")

    def test_tickets(self) -> None:
        """Without it a changed ticket could be good, or raise."""
        self.fuzz("tickets", "malformed", "forged", "good", "expired", "from-the-future", "unknown-key")

    def test_settings(self) -> None:
        """Without it a setting's text could end the start with a traceback, or its error could tell a key."""
        self.fuzz("settings", "loaded", "PORT (--port)", "CLUSTER_KEY", "TURN_SECRET", "PEERS (--peer)")

    def test_workers_file(self) -> None:
        """Without it a slip in WORKERS_FILE could end in a traceback, or stop its being read again."""
        self.fuzz("workers-file", "refused", "read", "empty")

    def test_descriptions(self) -> None:
        """Without it a session description or a candidate could raise, or take long."""
        self.fuzz("descriptions", "sdp", "candidate", "refused")

    def test_probe_lines(self) -> None:
        """Without it what a probe prints could end the deep checks."""
        self.fuzz("probe-lines", "bad", "Result", "Check")

    def test_answers(self) -> None:
        """Without it whoever answers in a front's place could bring the command line down, or command the terminal."""
        self.fuzz("answers", "NoFront", "Refused", "assign", "health", "pins", "connections", "log")

    def test_heads(self) -> None:
        """Without it what a proxy or a stranger writes could raise, or a stranger's word count for a proxy's."""
        self.fuzz("heads", "fields", "no fields")


class AllTests(SynchronousTestCase):
    """What the suite runs of the fuzzer."""

    def test_nothing_is_left_out(self) -> None:
        """A target that nobody runs finds nothing; the suite runs 20,000 cases at least."""
        methods = {name for kind in (DoorTests, PeerTests, CodecTests) for name in vars(kind) if name[:5] == "test_"}
        self.assertEqual(methods, {f"test_{name.replace('-', '_')}" for name in TARGETS})
        self.assertGreaterEqual(sum(target.cases for target in TARGETS.values()), 20_000)
