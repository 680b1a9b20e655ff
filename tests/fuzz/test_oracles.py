"""The fuzzer finds what is planted for it, tells how to run it again, and bytes mean the same however they are cut."""

from __future__ import annotations

import hmac
import subprocess
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.admin import TokenGate
from kollator.cluster.accepting import Acceptor
from kollator.signaling import switchboard
from kollator.signaling.directory import Directory
from kollator.signaling.protocol import SignalingFactory, SignalingProtocol
from kollator.state.store import Store
from kollator.web.resources import LiveResource
from tests.admins import AdminFront
from tests.fuzz import codecs, oracle, requests, rows
from tests.fuzz.frames import HANDSHAKE, frame, message
from tests.fuzz.mutation import Mutator
from tests.fuzz.oracle import Broken, grown, tables
from tests.fuzz.reading import Reading
from tests.fuzz.target import Found, run
from tests.fuzz.targets import TARGETS


class PlantedTests(SynchronousTestCase):
    """A fault that is planted is found, by the oracle that is there for it."""

    def found(self, name: str, *said: str, cases: int = 1000) -> str:
        """Runs a target, which must fail; returns the report."""
        found = self.assertRaises(Found, run, TARGETS[name], 1, cases)
        self.flushLoggedErrors()
        for text in said:
            self.assertIn(text, str(found))
        return str(found)

    def test_raises(self) -> None:
        """An exception that leaves a connection's ``dataReceived`` would not be noticed."""
        on_ping = SignalingProtocol.onPing

        def planted(protocol: Any, payload: bytes) -> None:
            if payload[:1] > b"\xe0":
                raise KeyError("planted")
            on_ping(protocol, payload)

        self.patch(SignalingProtocol, "onPing", planted)
        self.found("websocket", "planted", "said:", "--target websocket --seed ")

    def test_logs_a_failure(self) -> None:
        """An exception that is caught and logged would not be noticed: whoever brings it about fills the log."""
        module: Any = switchboard
        decode = module.decode

        def planted(payload: bytes) -> Any:
            if b"\\u2028" in payload:
                raise KeyError("planted")
            return decode(payload)

        self.patch(switchboard, "decode", planted)
        self.found("websocket", "could not be handled", "planted")
        self.found("messages", "planted")

    def test_fails_in_the_store(self) -> None:
        """A failure that only the log tells of would not be noticed."""
        merge = Store.merge

        def planted(store: Store, changes: Any, **how: Any) -> Any:
            if len(changes) > 3:
                raise KeyError("planted")
            return merge(store, changes, **how)

        self.patch(Store, "merge", planted)
        self.found("member", "planted")

    def test_answers_500(self) -> None:
        """An answer that tells of a fault of the front's own would pass for one like any other."""

        def planted(resource: Any, request: Any) -> Any:
            if request.args:
                raise KeyError("planted")
            return {"status": "live"}

        self.patch(LiveResource, "get", planted)
        self.found("http", "500")

    def test_a_table_that_grows(self) -> None:
        """What is kept of each connection for ever would take all memory in the end."""
        opened = Directory.opened

        def planted(directory: Any, connection: Any, now: float) -> None:
            directory.__dict__.setdefault("history", []).append(now)
            opened(directory, connection, now)

        self.patch(Directory, "opened", planted)
        self.found("messages", "history has")
        self.patch(Directory, "opened", opened)
        refused = Acceptor.refused

        def remembers(acceptor: Any, link: Any, end: Any) -> None:
            acceptor.__dict__.setdefault("history", {})[object()] = end
            refused(acceptor, link, end)

        self.patch(Acceptor, "refused", remembers)
        self.patch(TARGETS["peer"], "batch", 200)
        self.found("peer", "history has")

    def test_nobody_is_closed(self) -> None:
        """Connections that say nothing would stay."""
        self.patch(SignalingFactory, "expire", lambda factory, timeout_s: None)
        self.found("websocket", "is open still")

    def test_a_change_without_a_key(self) -> None:
        """Operators' orders of strangers would be obeyed."""
        self.patch(TokenGate, "admit", lambda gate, address, credentials, now: None)
        self.found("http", "without a key")

    def test_a_forged_ticket(self) -> None:
        """A ticket that nobody has issued would be good."""
        self.patch(hmac, "compare_digest", lambda one, other: True)
        self.found("tickets", "never issued")

    def test_a_poisoned_row(self) -> None:
        """A row that crashes the process would reach the database: the oracle must stop it before."""
        self.patch(rows, "validate", lambda change, known_sites: None)
        self.found("changes", "would reach the database")

    def test_a_hang(self) -> None:
        """A batch that does not end would hold up the suite, and nobody would know which."""
        self.patch(oracle, "BATCH_CPU_S", 0.3)

        def planted(data: bytes) -> str:
            while data[:1] == b"\xff":
                pass
            return ""

        self.patch(codecs.MessageTarget, "check", staticmethod(planted))
        self.patch(codecs.MessageTarget, "corpus", (b"\xff",))
        self.found("decode", "Hang")

    def test_an_answer_of_a_strangers(self) -> None:
        """A header field or a frame that a peer has put into an answer would be taken for the front's."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
        for answer in (
            head + b"X-Mine: 1\r\n\r\n", head + b"Content-Length: 0\r\n\r\n", b"HTTP/1.1 500 Oh\r\n\r\n", b"oh\r\n\r\n",
            b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 200 OK\r\n\r\nbody",
        ):  # fmt: skip
            self.assertRaises(Broken, Reading().feed, answer)
        upgraded = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
        for frames in (b"\x81\x02{}", b"\x82\x00", b"\x88\x02\x03\xec", b"\x88\x02\x03\xe8\x89\x00"):
            self.assertRaises(Broken, Reading().feed, upgraded + frames)
        self.assertRaises(Broken, Reading().feed(head).end)


class ReplayTests(SynchronousTestCase):
    """A failure is found again."""

    def test_again(self) -> None:
        """A seed that does not lead to the same case is of no use."""
        reports = set()

        def planted(data: bytes) -> str:
            if b"\0" in data:
                raise KeyError("planted")
            return ""

        self.patch(codecs.MessageTarget, "check", staticmethod(planted))
        found = str(self.assertRaises(Found, run, TARGETS["decode"], 1, 2000))
        reports.add(found)
        seed, cases = (int(found.rpartition(f"--{name} ")[2].split()[0]) for name in ("seed", "cases"))
        reports.add(str(self.assertRaises(Found, run, TARGETS["decode"], seed, cases)))
        self.assertEqual(len(reports), 1, reports)
        self.assertEqual(run(TARGETS["decode"], seed, cases - 1).cases, cases - 1)

    def test_command(self) -> None:
        """The command that a report names would not run."""
        command = [sys.executable, "-m", "tests.fuzz", "--target", "decode", "--seed", "3", "--cases", "20"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertTrue(ran.stdout.startswith("decode: 20 cases in 1 batches, "), ran.stdout)


class TablesTests(SynchronousTestCase):
    """The sizes of what the product keeps."""

    def test_found(self) -> None:
        """A table behind slots, or within another one, would not be looked at."""
        front = AdminFront()
        self.addCleanup(front.close)
        found = tables(front)
        ends = {path.rpartition(".")[2] for path in found}
        self.assertEqual({"clients", "waiting", "_absent", "_full_at", "_by_key", "_untold", "_at"} - ends, set())
        self.assertEqual(grown({"a": 1}, {"a": 3, "b": 2, "c.d": 9}, 2, {"c": 9}), [])
        self.assertEqual(len(grown({"a": 1}, {"a": 4, "b": 3, "c.d": 10}, 2, {"c": 9})), 3)


class CutTests(SynchronousTestCase):
    """TCP cuts a stream where it likes."""

    def said(self, data: bytes, cuts: list[int]) -> list[str]:
        """What a new front answers to ``data``, in words."""
        front = AdminFront()
        wire = front.connect("127.0.0.1")
        reading = Reading()
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            wire.send(data[start:end])
            reading.feed(wire.taken())
        front.close()
        return reading.new

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False), st.lists(st.floats(0, 1), max_size=6))
    def test_http(self, source: Any, shares: list[float]) -> None:
        """A request that is read another way when it comes in pieces is what request smuggling is made of."""
        data = requests.one(Mutator(source))
        cuts = sorted(int(share * len(data)) for share in shares)
        self.assertEqual(self.said(data, cuts), self.said(data, []), data)

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False), st.lists(st.floats(0, 1), max_size=6))
    def test_websocket(self, source: Any, shares: list[float]) -> None:
        """A message that arrives in pieces would be another one."""
        hello = frame(b'{"type":"hello","role":"client"}')
        data = HANDSHAKE + hello + b"".join(
            message(Mutator(source), b'{"type":"offer","to":"w%d","sdp":"v=0"}' % number) for number in range(3)
        )
        cuts = sorted(int(share * len(data)) for share in shares)
        self.assertEqual(self.said(data, cuts), self.said(data, []), data)
