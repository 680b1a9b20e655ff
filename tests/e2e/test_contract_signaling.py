"""Section 2 of the contract after the welcome: what is passed on, what is refused, what is kept."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.contract_client import LIMIT_BYTES, Client, ContractTestCase

CANDIDATE = "candidate:1 1 udp %d 192.0.2.7 50000 typ host"
"""By its priority."""


class MessageTests(ContractTestCase):
    """What is passed on between a client and a worker, and what is refused."""

    def test_relay(self) -> None:
        """Messages arrive as sent, `from` in place of `to`, in order, both ways."""
        worker, client = self.worker(), self.client()
        sdp = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=ünï \\ \"\u2028 \U0001f600\r\n"
        for kind in ("offer", "answer"):
            client.send(type=kind, to=worker.id, sdp=sdp, session="s1")
            self.assertEqual(worker.receive(), {"type": kind, "from": client.id, "sdp": sdp, "session": "s1"})
        worker.send(type="answer", to=client.id, sdp=sdp, session="s" * 64)
        self.assertEqual(client.receive(), {"type": "answer", "from": worker.id, "sdp": sdp, "session": "s" * 64})
        client.send(type="offer", to=worker.id, sdp="v=0")
        self.assertEqual(worker.receive(), {"type": "offer", "from": client.id, "sdp": "v=0"})
        client.send(type="bye", to=worker.id, session="s1", reason="over")
        self.assertEqual(worker.receive(), {"type": "bye", "from": client.id, "session": "s1", "reason": "over"})
        worker.send(type="bye", to=client.id)
        self.assertEqual(client.receive(), {"type": "bye", "from": worker.id})

    def test_candidates(self) -> None:
        """An RTCIceCandidateInit arrives as sent: null is not absent, and null as a whole is end-of-candidates."""
        worker, client = self.worker(), self.client()
        line = "candidate:1 1 udp 2130706431 192.0.2.7 50000 typ host"
        candidates: list[Any] = [
            {"candidate": line, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "abcd"},
            {"candidate": line, "sdpMid": None, "sdpMLineIndex": 1, "usernameFragment": None},
            {"candidate": line, "sdpMid": "audio"}, {"candidate": line, "sdpMLineIndex": 0},
            {"candidate": "", "sdpMid": "0"}, {"candidate": ""}, None,
        ]
        for candidate in candidates:
            client.send(type="candidate", to=worker.id, candidate=candidate, session="s1")
            self.assertEqual(worker.receive(), {"type": "candidate", "from": client.id, "candidate": candidate,
                                                "session": "s1"})
            worker.send(type="candidate", to=client.id, candidate=candidate)
            self.assertEqual(client.receive(), {"type": "candidate", "from": worker.id, "candidate": candidate})

    def test_from_is_not_forgeable(self) -> None:
        """Whatever a sender claims, `from` is who the front knows it to be."""
        worker, client, victim = self.worker(), self.client(), self.client()
        client.send_text(f'{{"type":"offer","from":"{victim.id}","to":"{worker.id}","sdp":"v=0","from":"x"}}')
        self.assertEqual(worker.receive()["from"], client.id)
        worker.send(**{"type": "answer", "from": "w99", "to": client.id, "sdp": "v=0"})
        self.assertEqual(client.receive()["from"], worker.id)

    def test_unknown_keys(self) -> None:
        """Clients of tomorrow send keys that nobody knows today."""
        worker = self.worker()
        peer = self.peer()
        peer.send(type="hello", role="client", future={"a": [1, None]}, id="ignored")
        peer.expect("welcome")
        self.assertEqual(peer.ask(type="assign", future=True)["type"], "assigned")
        peer.send(type="offer", to=worker.id, sdp="v=0", future=1.5)
        self.assertEqual(worker.receive()["sdp"], "v=0")

    def test_full_size_offer(self) -> None:
        """An offer of exactly 64 KiB arrives, though the sender's id is longer than the target's."""
        worker, client = self.worker(), self.client()
        frame = json.dumps({"type": "offer", "to": worker.id, "sdp": ""})
        sdp = "v=0".ljust(LIMIT_BYTES - len(frame))
        client.send(type="offer", to=worker.id, sdp=sdp)
        self.assertEqual(worker.receive()["sdp"], sdp)

    def test_bad_messages(self) -> None:
        """What cannot be understood is told so with the right code, and the connection lives on."""
        worker, client = self.worker(), self.client()
        bad: list[tuple[str, str]] = [
            ("", "bad-message"), ("{", "bad-message"), ("[]", "bad-message"), ("5", "bad-message"),
            ("null", "bad-message"), ('"assign"', "bad-message"), ("{}", "bad-message"),
            ('{"type":5}', "bad-message"), ('{"type":null}', "bad-message"), ('{"type":["assign"]}', "bad-message"),
            ('{"type":"nonsense"}', "unknown-type"),
            ('{"type":""}', "unknown-type"), ('{"type":"Assign"}', "unknown-type"),
            ('{"type":"assign","exclude":"w1"}', "bad-message"), ('{"type":"assign","exclude":[1]}', "bad-message"),
            ('{"type":"assign","region":1}', "bad-message"), ('{"type":"assign"} {}', "bad-message"),
            ('{"type":"assign","x":NaN}', "bad-message"), ('{"type":"connected","to":"w1","ms":"soon"}', "bad-message"),
        ]
        to = json.dumps(worker.id)
        bad += [(text % to, "bad-message") for text in (
            '{"type":"offer","to":%s}', '{"type":"offer","sdp":"","too":%s}', '{"type":"offer","to":%s,"sdp":5}',
            '{"type":"offer","to":%s,"sdp":null}', '{"type":"offer","to":[%s],"sdp":""}',
            '{"type":"offer","to":%s,"sdp":"v=0","session":5}', '{"type":"candidate","to":%s}',
            '{"type":"candidate","to":%s,"candidate":"line"}', '{"type":"candidate","to":%s,"candidate":[]}',
            '{"type":"candidate","to":%s,"candidate":{"candidate":5}}',
            '{"type":"candidate","to":%s,"candidate":{"candidate":"","sdpMLineIndex":"0"}}',
            '{"type":"bye","to":%s,"reason":5}',
        )]
        bad.append((json.dumps({"type": "offer", "to": worker.id, "sdp": "v=0", "session": "s" * 65}), "bad-message"))
        for text, code in bad:
            client.send_text(text)
            answer = client.receive()
            self.assertEqual((answer["type"], answer["code"]), ("error", code), text)
            self.assertIsInstance(answer["message"], str)
            client.ask(type="assign")  # a good one, or the tenth bad one would end it
        worker.synchronise()

    def test_hostile_json(self) -> None:
        """Deep nesting, lone surrogates and giant numbers are answered, not stumbled over."""
        worker, client = self.worker(), self.client()
        texts = ["[" * 60000, '{"x":' * 10000 + "1" + "}" * 10000, '{"type":"\\ud800"}',
                 '{"type":"offer","to":"\\u0000","sdp":""}', '{"type":"offer","to":"","sdp":""}']
        texts += [text.replace("$w", worker.id) for text in (
            '{"type":"bye","to":"$w","x":' + "[" * 20000 + "]" * 20000 + "}",
            '{"type":"offer","to":"$w","sdp":"\\ud800"}', '{"type":"connected","to":"$w","ms":1e999999}',
            '{"type":"connected","to":"$w","ms":' + "9" * 5000 + "}")]
        for text in texts:
            client.send_text(text)
            client.send(type="assign", ref="after")
            while (answer := client.receive()).get("ref") != "after":
                self.assertEqual(answer["type"], "error", text[:40])

    def test_ten_bad_messages(self) -> None:
        """Ten bad messages in a row close 4400; a good one in between starts the count again."""
        client = self.client()
        for _ in range(2):
            for _ in range(9):
                self.assertEqual(client.ask(type="nonsense")["code"], "unknown-type")
            self.assertEqual(client.ask(type="assign")["type"], "assigned")
        for number in range(10):
            client.send_text("{" if number % 2 else '{"type":"nonsense"}')
        messages, code = client.until_closed()
        self.assertEqual(code, 4400)
        self.assertIn(len(messages), (9, 10))
        self.assertTrue(all(message["type"] == "error" for message in messages))

    def test_refusals_are_not_bad_messages(self) -> None:
        """A well-formed message to somebody who is gone is no bad message: candidates often come too late."""
        client = self.client()
        for _ in range(15):
            self.assertEqual(client.ask(type="candidate", to="gone", candidate=None)["code"], "unknown-target")

    def test_bad_messages_before_hello(self) -> None:
        """The count of bad messages runs from the first message on."""
        peer = self.peer()
        for _ in range(10):
            peer.send(type="nonsense")
        self.assertEqual(peer.close_code(), 4400)

    def test_unknown_target(self) -> None:
        """A message to nobody is answered at once, before anything that comes after it, with `to` and `ref`."""
        client, worker = self.client(), self.worker()
        for sender in (client, worker):
            sender.send(type="answer", to="nobody", sdp="v=0", ref="r1")
            sender.send(type="nonsense", ref="r2")
            sender.expect("error", code="unknown-target", to="nobody", ref="r1")
            sender.expect("error", code="unknown-type", ref="r2")

    def test_forbidden(self) -> None:
        """Clients cannot send to clients, workers cannot send to workers, nobody to itself."""
        client, other = self.client(), self.client()
        worker, colleague = self.worker(), self.worker(self.w2)
        for sender, target in ((client, other.id), (client, client.id), (worker, colleague.id), (worker, worker.id)):
            for kind, what in (("answer", {"sdp": "v=0"}), ("candidate", {"candidate": None}), ("bye", {})):
                sender.send(type=kind, to=target, ref="r1", **what)
                sender.expect("error", code="forbidden", to=target, ref="r1")
        other.synchronise()
        colleague.synchronise()

    def test_messages_of_the_other_role(self) -> None:
        """A client cannot report a worker's load, nor a worker ask for a worker."""
        client, worker = self.client(), self.worker()
        self.assertEqual(client.ask(type="status", sessions=1, draining=True)["type"], "error")
        self.assertEqual(client.ask(type="auth", mac="00" * 32)["type"], "error")
        self.assertEqual(worker.ask(type="assign")["type"], "error")

    def test_client_replaced(self) -> None:
        """A client that comes back while its old connection looks open replaces it (4409)."""
        worker, old = self.worker(), self.client()
        new = self.client(old.ticket)
        self.assertEqual(new.id, old.id)
        self.assertEqual(old.close_code(), 4409)
        worker.send(type="answer", to=new.id, sdp="v=0")
        self.assertEqual(new.receive()["from"], worker.id)
        new.send(type="bye", to=worker.id)
        self.assertEqual(worker.receive()["from"], new.id)


class MailboxTests(ContractTestCase):
    """Messages to a client whose connection dropped."""

    def _absent(self) -> Client:
        client = self.client()
        self.dropped(client)
        return client

    def test_delivered_on_return(self) -> None:
        """Candidates that came while the client was away are there, in order, when it is back."""
        worker, client = self.worker(), self._absent()
        for number in range(32):
            worker.send(type="candidate", to=client.id, candidate={"candidate": CANDIDATE % number})
        worker.synchronise()
        back = self.client(client.ticket)
        self.assertEqual(back.id, client.id)
        lines = [back.expect("candidate", **{"from": worker.id})["candidate"]["candidate"] for _ in range(32)]
        self.assertEqual(lines, [CANDIDATE % number for number in range(32)])
        worker.send(type="bye", to=client.id)
        back.expect("bye")

    def test_target_busy(self) -> None:
        """The 33rd message is `target-busy`, and the 32 before it are not harmed."""
        worker, client = self.worker(), self._absent()
        for _ in range(32):
            worker.send(type="candidate", to=client.id, candidate=None)
        worker.synchronise()
        worker.send(type="candidate", to=client.id, candidate=None, ref="r33")
        worker.expect("error", code="target-busy", to=client.id, ref="r33")
        back = self.client(client.ticket)
        for _ in range(32):
            back.expect("candidate")
        back.synchronise()

    def test_target_busy_by_size(self) -> None:
        """256 KiB are kept, however few messages they are."""
        worker, client = self.worker(), self._absent()
        for _ in range(4):
            worker.send(type="answer", to=client.id, sdp="v=0".ljust(60000))
        worker.synchronise()
        worker.send(type="answer", to=client.id, sdp="v=0".ljust(60000))
        worker.expect("error", code="target-busy", to=client.id)
        back = self.client(client.ticket)
        for _ in range(4):
            back.expect("answer")

    def test_delivered_once(self) -> None:
        """What was delivered does not come again with the next return."""
        worker, client = self.worker(), self._absent()
        worker.send(type="bye", to=client.id)
        worker.synchronise()
        back = self.client(client.ticket)
        back.expect("bye")
        self.dropped(back)
        self.client(back.ticket).synchronise()

    def test_never_seen(self) -> None:
        """A client that was never here has no mailbox: `unknown-target` at once."""
        worker = self.worker()
        self.assertEqual(worker.ask(type="bye", to="never-seen")["code"], "unknown-target")
