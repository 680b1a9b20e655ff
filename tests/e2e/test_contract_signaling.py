"""Section 2 of the contract as a client meets it: hello, tickets, messages, errors, close codes."""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import websockets.exceptions
from websockets.frames import Opcode
from websockets.sync.client import connect

from tests.e2e.contract_client import SUBPROTOCOL, Client, ContractTestCase
from tests.e2e.processes import elapsed_since

LIMIT_BYTES = 65536


def _sized(size_bytes: int, **message: Any) -> str:
    """The message as JSON of exactly that many bytes, filled up with a key that nobody knows."""
    text = json.dumps({**message, "pad": ""})
    return json.dumps({**message, "pad": "x" * (size_bytes - len(text))})


class HandshakeTests(ContractTestCase):
    """The WebSocket itself, by RFC 6455 and the contract's rules."""

    def test_subprotocol(self) -> None:
        """The subprotocol is selected when offered; a client that offers none gets none and speaks v1."""
        self.assertEqual(self.peer().socket.subprotocol, SUBPROTOCOL)
        self.assertEqual(self.peer(subprotocols=("other", SUBPROTOCOL)).socket.subprotocol, SUBPROTOCOL)
        none = self.peer(subprotocols=None)
        self.assertIsNone(none.socket.subprotocol)
        none.send(type="hello", role="client")
        none.expect("welcome")

    def test_no_compression(self) -> None:
        """permessage-deflate is offered by every browser and must not be taken."""
        peer = self.peer(compression="deflate")
        response = peer.socket.response
        assert response is not None
        self.assertNotIn("Sec-WebSocket-Extensions", response.headers)
        peer.send(type="hello", role="client")
        peer.expect("welcome")

    def test_other_paths(self) -> None:
        """There is no WebSocket on another path."""
        for path in ("/nothing", "/signaling/x"):
            with self.assertRaises(websockets.exceptions.InvalidStatus) as caught:
                connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None).__enter__()
            self.assertEqual(caught.exception.response.status_code, 404, path)

    def test_query_is_ignored(self) -> None:
        """A query behind the path, as load balancers and browsers' caches add them, changes nothing."""
        peer = self.peer(path="/signaling?x=1")
        peer.send(type="hello", role="client")
        peer.expect("welcome")

    def test_binary(self) -> None:
        """A binary frame closes 1003, before and after hello."""
        before = self.peer()
        before.socket.send(b"{}")
        self.assertEqual(before.close_code(), 1003)
        after = self.client()
        after.socket.send(b"{}")
        self.assertEqual(after.close_code(), 1003)

    def test_ping_is_answered(self) -> None:
        """A client measures the line with pings; a pong carries the ping's payload."""
        raw = self.raw()
        raw.send_frame(Opcode.PONG, b"unasked")
        for payload in (b"", b"payload", b"x" * 125):
            raw.send_frame(Opcode.PING, payload)
            self.assertEqual(raw.frame(), (Opcode.PONG, payload))

    def test_close_is_answered(self) -> None:
        """A clean close is answered with the same code."""
        client = self.client()
        client.close()
        self.assertEqual(client.socket.close_code, 1000)
        raw = self.raw()
        raw.send_frame(Opcode.CLOSE, (4000).to_bytes(2, "big") + b"my own reason")
        self.assertIn(raw.close_code(), (4000, 1000))

    def test_broken_frames(self) -> None:
        """What breaks RFC 6455 closes its own connection with the RFC's code."""
        unmasked = self.raw()
        unmasked.send_frame(Opcode.TEXT, b"{}", mask=False)
        self.assertEqual(unmasked.close_code(), 1002)
        undecodable = self.raw()
        undecodable.send_frame(Opcode.TEXT, b'{"type":"\xff\xfe"}')
        self.assertEqual(undecodable.close_code(), 1007)
        reserved = self.raw()
        reserved.socket.sendall(b"\x83\x80\x00\x00\x00\x00")
        self.assertEqual(reserved.close_code(), 1002)
        long_ping = self.raw()
        long_ping.socket.sendall(b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + b"x" * 126)
        self.assertEqual(long_ping.close_code(), 1002)

    def test_size_limit(self) -> None:
        """A message of 64 KiB is taken, one byte more is `too-large` and closes 1009."""
        client = self.client()
        client.send_text(_sized(LIMIT_BYTES, type="assign"))
        client.expect("assigned")
        client.send_text(_sized(LIMIT_BYTES + 1, type="assign"))
        messages, code = client.until_closed()
        self.assertEqual(([message.get("code") for message in messages], code), (["too-large"], 1009))

    def test_size_limit_in_fragments(self) -> None:
        """Fragments count together, bytes and not characters count, and a huge announced frame is not awaited."""
        client = self.client()
        whole = _sized(LIMIT_BYTES, type="assign")
        client.socket.send(iter([whole[:40000], whole[40000:]]))
        client.expect("assigned")
        client.socket.send(iter([whole[:40000], whole[40000:], " "]))
        self.assertEqual(client.close_code(), 1009)
        umlauts = self.client()
        umlauts.send_text('{"type":"assign","pad":"' + "ü" * 32760 + '"}')
        self.assertEqual(umlauts.close_code(), 1009)
        raw = self.raw()
        raw.socket.sendall(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\x00\x00\x00\x00")
        self.assertEqual(raw.close_code(), 1009)


class HelloTests(ContractTestCase):
    """hello, welcome and tickets."""

    settings: ClassVar = {"MESSAGE_RATE": "77"}

    def test_welcome(self) -> None:
        """A client builds on every one of these fields."""
        welcome = self.client().welcome
        self.assertEqual(set(welcome), {"type", "id", "node", "ticket", "iceServers", "limits"})
        self.assertEqual((welcome["node"], welcome["iceServers"]), ("front-e2e", []))
        self.assertEqual(welcome["limits"], {"messageBytes": LIMIT_BYTES, "messagesPerSecond": 77})
        self.assertNotEqual(welcome["id"], self.client().id)

    def test_ref(self) -> None:
        """A `ref` comes back with the answer or the error, and with nothing else."""
        peer = self.peer()
        peer.send(type="hello", role="client", ref="r" * 64)
        peer.expect("welcome", ref="r" * 64)
        self.assertEqual(peer.ask(type="assign", ref="ä\n")["ref"], "ä\n")
        self.assertEqual(peer.ask(type="assign", ref="")["ref"], "")
        self.assertNotIn("ref", peer.ask(type="assign"))
        self.assertEqual(peer.ask(type="nonsense", ref="r2")["ref"], "r2")
        self.assertEqual(peer.ask(type="offer", ref="r3")["ref"], "r3")
        self.assertEqual(peer.ask(type="offer", to="nobody", sdp="", ref="r4")["ref"], "r4")
        self.assertNotIn("ref", peer.ask(type="nonsense"))
        for wrong in ("r" * 65, 5, {}, ["r"]):
            self.assertEqual(peer.ask(type="assign", ref=wrong)["code"], "bad-message", wrong)

    def test_tickets_keep_the_id(self) -> None:
        """The ticket of /bootstrap and that of a welcome both give a client its id again."""
        self.worker()
        bootstrap = self.bootstrap()
        first = self.client(bootstrap["ticket"])
        self.assertEqual(first.id, bootstrap["client"])
        first.close()
        second = self.client(first.ticket)
        self.assertEqual(second.id, first.id)
        second.close()
        self.assertEqual(self.client(bootstrap["ticket"]).id, first.id)

    def test_forged_ticket(self) -> None:
        """A forged ticket is `bad-ticket`, and the front waits for another hello."""
        ticket = self.client().ticket
        middle = len(ticket) // 2
        peer = self.peer()
        changed = [ticket[:at] + ("A" if ticket[at] != "A" else "B") + ticket[at + 1:] for at in (0, middle)]
        for forged in (*changed, "x", ticket[:-4], ticket + "AAAA", "ü" * 40, "." * 5):
            answer = peer.ask(type="hello", role="client", ticket=forged, ref="r")
            self.assertEqual((answer.get("code"), answer.get("ref")), ("bad-ticket", "r"), (forged, answer))
        self.assertEqual(peer.ask(type="assign")["code"], "not-allowed-yet")
        peer.send(type="hello", role="client")
        peer.expect("welcome")

    def test_not_allowed_yet(self) -> None:
        """Nothing but hello is allowed first, and the connection lives on."""
        peer = self.peer()
        for message in ({"type": "assign"}, {"type": "offer", "to": "w", "sdp": ""}, {"type": "bye", "to": "w"},
                        {"type": "candidate", "to": "w", "candidate": None}, {"type": "auth", "mac": "00" * 32},
                        {"type": "status", "sessions": 1, "draining": False}):
            answer = peer.ask(**message, ref="r")
            self.assertEqual((answer["type"], answer["code"], answer["ref"]), ("error", "not-allowed-yet", "r"), message)
        peer.send(type="hello", role="client")
        peer.expect("welcome")

    def test_bad_hello(self) -> None:
        """A hello that cannot be understood is told so, and another one may follow."""
        peer = self.peer()
        for message in ({"type": "hello"}, {"type": "hello", "role": "front"}, {"type": "hello", "role": 5},
                        {"type": "hello", "role": "client", "ticket": 5},
                        {"type": "hello", "role": "worker"}, {"type": "hello", "role": "worker", "id": "w1"}):
            self.assertEqual(peer.ask(**message)["code"], "bad-message", message)
        peer.send(type="hello", role="client")
        peer.expect("welcome")

    def test_second_hello(self) -> None:
        """Who has said hello cannot become somebody else."""
        client, other = self.client(), self.client()
        self.assertEqual(client.ask(type="hello", role="client", ticket=other.ticket)["type"], "error")
        self.assertEqual(client.ask(type="hello", role="worker", id="w", region="", capacity=1, address="",
                                    nonce="0" * 32)["type"], "error")
        client.synchronise()
        other.synchronise()


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
        client.send(type="offer", to=worker.id, sdp="")
        self.assertEqual(worker.receive(), {"type": "offer", "from": client.id, "sdp": ""})
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
        client.send_text('{"type":"offer","from":"%s","to":"%s","sdp":"","from":"x"}' % (victim.id, worker.id))
        self.assertEqual(worker.receive()["from"], client.id)
        worker.send(**{"type": "answer", "from": "w99", "to": client.id, "sdp": ""})
        self.assertEqual(client.receive()["from"], worker.id)

    def test_unknown_keys(self) -> None:
        """Clients of tomorrow send keys that nobody knows today."""
        worker = self.worker()
        peer = self.peer()
        peer.send(type="hello", role="client", future={"a": [1, None]}, id="ignored")
        peer.expect("welcome")
        self.assertEqual(peer.ask(type="assign", future=True)["type"], "assigned")
        peer.send(type="offer", to=worker.id, sdp="s", future=1.5)
        self.assertEqual(worker.receive()["sdp"], "s")

    def test_full_size_offer(self) -> None:
        """An offer of exactly 64 KiB arrives, though the sender's id is longer than the target's."""
        worker, client = self.worker(), self.client()
        frame = json.dumps({"type": "offer", "to": worker.id, "sdp": ""})
        sdp = "x" * (LIMIT_BYTES - len(frame))
        client.send(type="offer", to=worker.id, sdp=sdp)
        self.assertEqual(worker.receive()["sdp"], sdp)

    def test_bad_messages(self) -> None:
        """What cannot be understood is told so with the right code, and the connection lives on."""
        worker, client = self.worker(), self.client()
        bad: list[tuple[str, str]] = [
            ("", "bad-message"), ("{", "bad-message"), ("[]", "bad-message"), ("5", "bad-message"),
            ("null", "bad-message"), ('"assign"', "bad-message"), ("{}", "bad-message"), ('{"type":5}', "bad-message"),
            ('{"type":null}', "bad-message"), ('{"type":["assign"]}', "bad-message"), ('{"type":"nonsense"}', "unknown-type"),
            ('{"type":""}', "unknown-type"), ('{"type":"Assign"}', "unknown-type"),
            ('{"type":"assign","exclude":"w1"}', "bad-message"), ('{"type":"assign","exclude":[1]}', "bad-message"),
            ('{"type":"assign","region":1}', "bad-message"), ('{"type":"assign"} {}', "bad-message"),
            ('{"type":"assign","x":NaN}', "bad-message"), ('{"type":"connected","to":"w1","ms":"soon"}', "bad-message"),
        ]
        to = json.dumps(worker.id)
        bad += [(text % to, "bad-message") for text in (
            '{"type":"offer","to":%s}', '{"type":"offer","sdp":"","too":%s}', '{"type":"offer","to":%s,"sdp":5}',
            '{"type":"offer","to":%s,"sdp":null}', '{"type":"offer","to":[%s],"sdp":""}',
            '{"type":"offer","to":%s,"sdp":"","session":5}', '{"type":"candidate","to":%s}',
            '{"type":"candidate","to":%s,"candidate":"line"}', '{"type":"candidate","to":%s,"candidate":[]}',
            '{"type":"candidate","to":%s,"candidate":{"candidate":5}}',
            '{"type":"candidate","to":%s,"candidate":{"candidate":"c","sdpMLineIndex":"0"}}',
            '{"type":"bye","to":%s,"reason":5}',
        )]
        bad.append((json.dumps({"type": "offer", "to": worker.id, "sdp": "", "session": "s" * 65}), "bad-message"))
        for text, code in bad:
            client.send_text(text)
            answer = client.receive()
            self.assertEqual((answer["type"], answer["code"]), ("error", code), text)
            self.assertIsInstance(answer["message"], str)
            client.ask(type="assign")  # a good one, or the tenth bad one would end it
        self.assertTrue(worker.quiet(0.05))

    def test_hostile_json(self) -> None:
        """Deep nesting, lone surrogates and giant numbers are answered, not stumbled over."""
        worker, client = self.worker(), self.client()
        to = json.dumps(worker.id)
        for text in ("[" * 60000, '{"type":"bye","to":%s,"x":%s}' % (to, "[" * 20000 + "]" * 20000),
                     '{"x":' * 10000 + "1" + "}" * 10000, '{"type":"offer","to":%s,"sdp":"\\ud800"}' % to,
                     '{"type":"\\ud800"}', '{"type":"connected","to":%s,"ms":1e999999}' % to,
                     '{"type":"connected","to":%s,"ms":%s}' % (to, "9" * 5000),
                     '{"type":"offer","to":"\\u0000","sdp":""}', '{"type":"offer","to":"","sdp":""}'):
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
        """A message to nobody is answered at once, with `to` and `ref`."""
        client, worker = self.client(), self.worker()
        for sender in (client, worker):
            start_s = time.monotonic()
            sender.send(type="answer", to="nobody", sdp="", ref="r1")
            sender.expect("error", code="unknown-target", to="nobody", ref="r1")
            self.assertLess(elapsed_since(start_s), 1.0)

    def test_forbidden(self) -> None:
        """Clients cannot send to clients, workers cannot send to workers, nobody to itself."""
        client, other = self.client(), self.client()
        worker, colleague = self.worker(), self.worker(self.w2)
        for sender, target in ((client, other.id), (client, client.id), (worker, colleague.id), (worker, worker.id)):
            for kind, what in (("answer", {"sdp": ""}), ("candidate", {"candidate": None}), ("bye", {})):
                sender.send(type=kind, to=target, ref="r1", **what)
                sender.expect("error", code="forbidden", to=target, ref="r1")
        self.assertTrue(other.quiet(0.05))
        self.assertTrue(colleague.quiet(0.05))

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
        worker.send(type="answer", to=new.id, sdp="s")
        self.assertEqual(new.receive()["from"], worker.id)
        new.send(type="bye", to=worker.id)
        self.assertEqual(worker.receive()["from"], new.id)


class MailboxTests(ContractTestCase):
    """Messages to a client whose connection dropped."""

    settings: ClassVar = {"MESSAGE_RATE": "1000"}

    def _absent(self) -> Client:
        client = self.client()
        self.dropped(client)
        return client

    def test_delivered_on_return(self) -> None:
        """Candidates that came while the client was away are there, in order, when it is back."""
        worker, client = self.worker(), self._absent()
        for number in range(32):
            worker.send(type="candidate", to=client.id, candidate={"candidate": str(number)})
        worker.synchronise()
        back = self.client(client.ticket)
        self.assertEqual(back.id, client.id)
        lines = [back.expect("candidate", **{"from": worker.id})["candidate"]["candidate"] for _ in range(32)]
        self.assertEqual(lines, [str(number) for number in range(32)])
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
        self.assertTrue(back.quiet(0.05))

    def test_target_busy_by_size(self) -> None:
        """256 KiB are kept, however few messages they are."""
        worker, client = self.worker(), self._absent()
        for _ in range(4):
            worker.send(type="answer", to=client.id, sdp="x" * 60000)
        worker.synchronise()
        worker.send(type="answer", to=client.id, sdp="x" * 60000)
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
        self.assertTrue(self.client(back.ticket).quiet(0.05))

    def test_never_seen(self) -> None:
        """A client that was never here has no mailbox: `unknown-target` at once."""
        worker = self.worker()
        self.assertEqual(worker.ask(type="bye", to="never-seen")["code"], "unknown-target")


class HelloTimeoutTests(ContractTestCase):
    """Who does not say hello in time is shown the door."""

    settings: ClassVar = {"HELLO_TIMEOUT": "0.5"}

    def test_silence(self) -> None:
        """A silent connection closes 4408 in time, one that only talks rubbish as well."""
        start_s = time.monotonic()
        silent, talking, forging = self.peer(), self.peer(), self.peer()
        talking.send(type="nonsense")
        forging.send(type="hello", role="client", ticket="forged")
        for peer in (silent, talking, forging):
            self.assertEqual(peer.close_code(), 4408)
        self.assertGreater(elapsed_since(start_s), 0.4)
        self.assertLess(elapsed_since(start_s), 3.0)

    def test_unfinished_worker(self) -> None:
        """A worker that never answers the challenge does not hold a place for ever."""
        stranger = self.stranger()
        stranger.hello()
        self.assertIn(stranger.close_code(), (4401, 4408))

    def test_after_hello(self) -> None:
        """Who said hello may be silent for longer than that."""
        client, worker = self.client(), self.worker()
        self.assertTrue(client.quiet(0.8))
        client.synchronise()
        worker.synchronise()


class TicketLifetimeTests(ContractTestCase):
    """Tickets end."""

    settings: ClassVar = {"TICKET_TTL": "1"}

    def test_expired(self) -> None:
        """An expired ticket is `bad-ticket`; one that was renewed in time is good for as long again."""
        self.worker()
        granted = self.bootstrap()
        client = self.client(granted["ticket"])
        self.assertTrue(client.quiet(max(0.0, granted["expires"] - time.time()) + 1.05))
        peer = self.peer()
        self.assertEqual(peer.ask(type="hello", role="client", ticket=granted["ticket"])["code"], "bad-ticket")
        peer.send(type="hello", role="client")
        fresh = peer.expect("welcome")
        self.assertNotEqual(fresh["id"], granted["client"])
        again = self.client(fresh["ticket"])
        self.assertEqual(again.id, fresh["id"])
