"""Section 2 of the contract up to the welcome: the WebSocket, hello, tickets, time-outs."""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import websockets.exceptions
from websockets.frames import Opcode
from websockets.sync.client import connect

from tests.e2e.contract_client import LIMIT_BYTES, SUBPROTOCOL, ContractTestCase, Message
from tests.e2e.processes import elapsed_since


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

    def test_welcome(self) -> None:
        """A client builds on every one of these fields."""
        welcome = self.client().welcome
        self.assertEqual(set(welcome), {"type", "id", "node", "ticket", "iceServers", "limits"})
        self.assertEqual((welcome["node"], welcome["iceServers"]), ("front-e2e", []))
        self.assertEqual(welcome["limits"], {"messageBytes": LIMIT_BYTES, "messagesPerSecond": 100})
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
        self.assertEqual(peer.ask(type="offer", to="nobody", sdp="v=0", ref="r4")["ref"], "r4")
        self.assertNotIn("ref", peer.ask(type="nonsense"))
        not_refs: tuple[Any, ...] = ("r" * 65, 5, {}, ["r"])
        for wrong in not_refs:
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
        messages: tuple[Any, ...] = (
            {"type": "assign"}, {"type": "offer", "to": "w", "sdp": ""}, {"type": "bye", "to": "w"},
            {"type": "candidate", "to": "w", "candidate": None}, {"type": "auth", "mac": "00" * 32},
            {"type": "status", "sessions": 1, "draining": False},
        )
        for message in messages:
            answer = peer.ask(**message, ref="r")
            self.assertEqual(answer["type"], "error", message)
            self.assertEqual((answer["code"], answer["ref"]), ("not-allowed-yet", "r"), message)
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


class HelloTimeoutTests(ContractTestCase):
    """Who does not say hello in time is shown the door."""

    settings: ClassVar = {"HELLO_TIMEOUT": "4"}  # those who do say hello have that long, on any machine

    def test_silence(self) -> None:
        """Silence, rubbish and a registration that is never finished close 4408; who said hello may be silent."""
        start_s = time.monotonic()
        client, worker, unfinished = self.client(), self.worker(), self.stranger(self.w2)
        self.assertEqual(unfinished.hello()["type"], "challenge")
        talking, forging, silent = self.peer(), self.peer(), self.peer()
        talking.send(type="nonsense")
        forging.send(type="hello", role="client", ticket="forged")
        for peer in (silent, talking, forging):
            self.assertEqual(peer.close_code(), 4408)
        self.assertGreater(elapsed_since(start_s), 3.8)
        self.assertIn(unfinished.close_code(), (4401, 4408))
        for peer in (client, worker):  # they said hello before those who were closed had even come
            peer.synchronise()


class TicketLifetimeTests(ContractTestCase):
    """Tickets end."""

    settings: ClassVar = {"TICKET_TTL": "2"}

    def _comes_in_time(self, ticket: str, expires: float) -> Message | None:
        """What a client with the ticket is answered; None where nobody knows whether it came in time."""
        answer = self.peer().ask(type="hello", role="client", ticket=ticket)
        return answer if time.time() < expires else None

    def test_in_time(self) -> None:
        """A ticket is good until it expires, and so is the one that a welcome renews it with."""
        self.worker()
        for _ in range(20):
            granted = self.bootstrap()
            welcome = self._comes_in_time(granted["ticket"], granted["expires"])
            if welcome is None:
                continue  # this machine was busy with something else
            self.assertEqual((welcome["type"], welcome["id"]), ("welcome", granted["client"]))
            again = self._comes_in_time(welcome["ticket"], granted["expires"])
            if again is not None:
                self.assertEqual((again["type"], again["id"]), ("welcome", granted["client"]))
                return
        self.fail("this machine is too slow for tickets of two seconds")

    def test_expired(self) -> None:
        """An expired ticket is `bad-ticket`, whether its client ever came or not."""
        self.worker()
        client, granted = self.client(), self.bootstrap()  # in this order: hers does not expire later
        self.assertTrue(client.quiet(max(0.0, granted["expires"] - time.time()) + 0.1))
        for ticket in (granted["ticket"], client.ticket):
            peer = self.peer()
            self.assertEqual(peer.ask(type="hello", role="client", ticket=ticket)["code"], "bad-ticket")
            peer.send(type="hello", role="client")
            self.assertNotIn(peer.expect("welcome")["id"], (granted["client"], client.id))
