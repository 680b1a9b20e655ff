"""The wire types of ``/signaling``: what comes in, what goes out, and the schema that tells others about both."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Struct
from twisted.trial.unittest import SynchronousTestCase

from kollator.signaling import messages
from kollator.signaling.decoding import TYPES, Refused, addressed, decode
from kollator.signaling.messages import (
    Assign,
    Bye,
    ByeFrom,
    Candidate,
    CandidateFrom,
    Connected,
    Error,
    Hello,
    IceCandidate,
    Offer,
    Received,
    Sent,
    decoder,
    encode,
)

NONCE = "0123456789abcdefABCDEF0123456789"

ROUND_TRIPS: dict[str, dict[str, Any]] = {
    "Hello": {
        "type": "hello",
        "role": "worker",
        "ticket": None,
        "id": "w1",
        "region": "us-west",
        "capacity": 100,
        "address": "192.168.1.100",
        "nonce": NONCE,
        "ref": "r",
    },
    "Auth": {"type": "auth", "mac": "ab" * 32, "ref": "r"},
    "Status": {"type": "status", "sessions": 12, "draining": False, "ref": "r"},
    "Assign": {"type": "assign", "exclude": ["w1"], "region": "us-west", "ref": "r"},
    "Offer": {"type": "offer", "to": "w1", "sdp": "v=0\r\n", "session": "s1", "ref": "r"},
    "Answer": {"type": "answer", "to": "c1", "sdp": "v=0\r\n", "session": None, "ref": "r"},
    "Candidate": {
        "type": "candidate",
        "to": "w1",
        "candidate": {"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "u"},
        "session": "s1",
        "ref": "r",
    },
    "Bye": {"type": "bye", "to": "w1", "session": "s1", "reason": "done", "ref": "r"},
    "Connected": {"type": "connected", "to": "w1", "session": "s1", "ms": 312.0, "ref": "r"},
    "OfferFrom": {"type": "offer", "from": "c1", "sdp": "v=0\r\n", "session": "s1"},
    "AnswerFrom": {"type": "answer", "from": "w1", "sdp": "v=0\r\n", "session": "s1"},
    "CandidateFrom": {"type": "candidate", "from": "c1", "candidate": None, "session": "s1"},
    "ByeFrom": {"type": "bye", "from": "c1", "session": "s1", "reason": None},
    "Welcome": {
        "type": "welcome",
        "id": "c1",
        "node": "signaling-1",
        "ticket": "t",
        "iceServers": [{"urls": ["turn:t.example"], "username": "u", "credential": "c"}, {"urls": ["stun:s.example"]}],
        "limits": {"messageBytes": 65536, "messagesPerSecond": 100.0},
        "ref": "r",
    },
    "Challenge": {"type": "challenge", "nonce": "5e" * 32, "ref": "r"},
    "WorkerWelcome": {
        "type": "welcome",
        "id": "w1",
        "node": "signaling-1",
        "iceServers": [],
        "mac": "ab" * 32,
        "ref": "r",
    },
    "Assigned": {
        "type": "assigned",
        "worker": {"id": "w1", "region": ""},
        "alternates": [{"id": "w2", "region": "us-east"}],
        "ref": "r",
    },
    "WorkerLost": {"type": "worker-lost", "worker": "w1", "assigned": None},
    "Draining": {"type": "draining", "reconnectInMs": 740},
    "Error": {"type": "error", "code": "unknown-target", "message": "nobody", "ref": "r", "to": "w9"},
}


def on_the_wire(kind: Any) -> dict[str, Any]:
    """A message of that class, with all its keys."""
    return ROUND_TRIPS[kind.__name__]


def refusal(test: SynchronousTestCase, message: Any) -> Refused:
    """What a message that must not be accepted is refused with."""
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return test.assertRaises(Refused, decode, payload)  # type: ignore[no-any-return]


class RoundTripTests(SynchronousTestCase):
    """Every message there is, found by its class."""

    def test_every_class(self) -> None:
        """Without it a class could lose a key, or rename one, and every peer would notice before we do."""
        kinds = [
            kind
            for name, kind in vars(messages).items()
            if isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.tag and name[0] != "_"
        ]
        self.assertEqual({kind.__name__ for kind in kinds}, set(ROUND_TRIPS))
        self.assertEqual(set(kinds), {*Received.__args__, *Sent.__args__})  # type: ignore[attr-defined]
        for kind in kinds:
            wire = on_the_wire(kind)
            message: Any = decoder(kind).decode(json.dumps(wire).encode())
            self.assertEqual(json.loads(encode(message)), wire)
            self.assertEqual(set(wire), {"type", *kind.__struct_encode_fields__})

    def test_received_by_type(self) -> None:
        """Without it a message could be taken for one of another type."""
        for kind in Received.__args__:  # type: ignore[attr-defined]
            self.assertIsInstance(decode(json.dumps(on_the_wire(kind)).encode()), kind)
        self.assertEqual(len(TYPES), len(Received.__args__))  # type: ignore[attr-defined]

    def test_absent_stays_absent_and_null_stays_null(self) -> None:
        """Without it a peer would get keys that the sender never wrote, or miss the end-of-candidates."""
        bare = decode(b'{"type":"candidate","to":"w1","candidate":{"candidate":"c","sdpMid":null}}')
        self.assertEqual(bare, Candidate("w1", IceCandidate("c", None)))
        self.assertEqual(
            encode(CandidateFrom("c1", bare.candidate, bare.session)),  # type: ignore[union-attr]
            b'{"type":"candidate","from":"c1","candidate":{"candidate":"c","sdpMid":null}}',
        )
        last = decode(b'{"type":"candidate","to":"w1","candidate":null,"session":null}')
        self.assertEqual(last, Candidate("w1", None, None))
        self.assertEqual(encode(ByeFrom("c1")), b'{"type":"bye","from":"c1"}')
        self.assertEqual(encode(Error("internal", "m")), b'{"type":"error","code":"internal","message":"m"}')

    def test_unknown_keys_are_ignored(self) -> None:
        """Without it a newer client could not talk to this front, or a sender could write its own ``from``."""
        message = decode(b'{"from":"somebody","type":"bye","x":{"y":[1,2]},"to":"w1"}')
        self.assertEqual(message, Bye("w1"))
        self.assertEqual(decode(b'{"type":"assign"}'), Assign())

    def test_a_clients_hello_has_no_worker_keys(self) -> None:
        """Without it a client would be refused for a key that means something in the hello of a worker only."""
        message = {"type": "hello", "role": "client", "id": 7, "capacity": "many", "nonce": [], "ref": "r"}
        self.assertEqual(decode(json.dumps(message).encode()), Hello("client", UNSET, ref="r"))
        self.assertEqual(refusal(self, {**message, "role": "worker"}).code, "bad-message")
        self.assertEqual(refusal(self, {**message, "ticket": 7}).code, "bad-message")


class RefusalTests(SynchronousTestCase):
    """What is no message, and what the answer names."""

    def test_not_json_objects(self) -> None:
        """Without it such bytes would raise something else than the refusal that answers them."""
        for payload in (
            b"",
            b"null",
            b"[]",
            b'"offer"',
            b"{",
            b'{"type":"bye","to":"w1"} x',
            b"\xff\xfe",
            b'{"type":"bye","to":"\xff"}',
            b'{"type":"bye","to":"\\ud800"}',
            b'{"type":"status","sessions":' + b"9" * 5000 + b"}",
            b'{"type":"connected","to":"w1","ms":1e999}',
            b'{"type":"connected","to":"w1","ms":NaN}',
            b'{"type":"bye","to":"w1","x":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
            b'{"a":' * 10_000,
        ):
            refused = refusal(self, payload)
            self.assertEqual(refused.code, "bad-message", payload[:60])
            self.assertLessEqual(len(encode(refused.error())), 1000)

    def test_unknown_type(self) -> None:
        """Without it a client could not tell a type that this front lacks from a mistake of its own."""
        refused = refusal(self, {"type": "subscribe", "ref": "r7", "to": "w1"})
        self.assertEqual((refused.code, refused.ref, refused.to), ("unknown-type", "r7", "w1"))
        for message in ({}, {"type": 7}, {"type": None}):
            self.assertEqual(refusal(self, message).code, "bad-message")

    def test_missing_keys_and_wrong_types(self) -> None:
        """Without it a message would be passed on that its target cannot read."""
        for kind in Received.__args__:  # type: ignore[attr-defined]
            wire = on_the_wire(kind)
            for key in kind.__struct_encode_fields__[: len(kind.__struct_fields__) - len(kind.__struct_defaults__)]:
                refused = refusal(self, {name: value for name, value in wire.items() if name != key})
                self.assertEqual((refused.code, refused.ref), ("bad-message", "r"))
            for key in kind.__struct_encode_fields__:
                refused = refusal(self, {**wire, key: [{}]})
                self.assertEqual(refused.code, "bad-message", (kind, key))

    def test_limits(self) -> None:
        """Without it ids, labels and numbers could be of any size."""
        cases: tuple[tuple[str, str, list[Any], list[Any]], ...] = (
            ("Bye", "to", ["w" * 64], ["", "w" * 65]),
            ("Bye", "session", ["", "s" * 64], ["s" * 65]),
            ("Bye", "ref", ["r" * 64], ["r" * 65, 7]),
            ("Hello", "role", ["client", "worker"], ["front", None]),
            ("Hello", "id", ["w", "A-z.0:9_" * 8], ["", "w" * 65, "w 1", "wö", "w1\n", "w1\n\n"]),
            ("Hello", "capacity", [1, 1_000_000], [0, -1, 1_000_001, 1.5, "100", True]),
            ("Hello", "nonce", ["a" * 32, "F" * 256], ["a" * 31, "g" * 32, "a" * 257, "a" * 32 + "\n"]),
            ("Hello", "region", ["", "us-west", "Zürich"], ["r" * 65, "a\nb", "us-west\n", "\x00"]),
            ("Hello", "address", ["", "::1"], ["a" * 256, "a\n"]),
            ("Status", "sessions", [0], [-1, 1.5, None]),
            ("Assign", "exclude", [[], ["w"] * 256, None], [["w"] * 257, ["w" * 65], [1], "w1"]),
            ("Connected", "ms", [0, 312, 0.5, None], [-1, "312", True]),
        )
        for message, key, good, bad in cases:
            for value in good:
                decode(json.dumps({**ROUND_TRIPS[message], key: value}).encode())
            for value in bad:
                refused = refusal(self, {**ROUND_TRIPS[message], key: value})
                self.assertEqual(refused.code, "bad-message", (message, key, value))

    def test_ref_and_to_of_what_does_not_parse(self) -> None:
        """Without it a client with several requests under way could not tell which one was wrong."""
        refused = refusal(self, {"type": "offer", "to": "w1", "sdp": 7, "ref": "r7"})
        self.assertEqual((refused.ref, refused.to), ("r7", "w1"))
        refused = refusal(self, {"type": "offer", "to": "w" * 65, "ref": ["r7"]})
        self.assertEqual((refused.ref, refused.to), (UNSET, UNSET))
        self.assertEqual(addressed(b'{"type":"bye","to":"w1","ref":"r"}'), ("r", "w1"))
        self.assertEqual(addressed(b'{"to":7,"ref":null}'), (UNSET, UNSET))
        self.assertEqual(addressed(b"{"), (UNSET, UNSET))

    def test_about(self) -> None:
        """Without it a refusal of a good message would not name what it is about."""
        refused = Refused("forbidden", "no")
        self.assertEqual(refused.about(Offer("w1", "v=0", ref="r")).error(), Error("forbidden", "no", "r", "w1"))
        self.assertEqual(refused.about(Assign(ref=None)).error(), Error("forbidden", "no"))

    @settings(max_examples=100, deadline=None)
    @given(st.randoms(use_true_random=False), st.sampled_from(sorted(ROUND_TRIPS)))
    def test_damaged_messages(self, source: random.Random, name: str) -> None:
        """Without it bytes that are nearly a message could raise something else than ``Refused``."""
        payload = bytearray(json.dumps(ROUND_TRIPS[name]).encode())
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(payload))
            match source.randrange(3):
                case 0:
                    payload[at] = source.randrange(256)
                case 1:
                    del payload[at:]
                    payload += b"}"
                case _:
                    payload[at:at] = source.choice([b'"', b"{", b"\\ud800", b"\xc3", b"1e999", b"null", b"\n"])
        try:
            encode(decode(bytes(payload)))
        except Refused as refused:
            encode(refused.error())


class SchemaTests(SynchronousTestCase):
    """``/schema.json``, read by a validator that is not ours."""

    def test_examples_follow_the_schema(self) -> None:
        """Without it a client built from the schema could send what is refused, or refuse what is sent."""
        schema = messages.schema()
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        for name, wire in ROUND_TRIPS.items():
            self.assertTrue(validator.is_valid(wire), name)
        self.assertFalse(validator.is_valid({"type": "offer", "to": "w1"}))
        json.dumps(schema)

    def test_groups(self) -> None:
        """Without it a message could be missing from the side that sends or receives it."""
        schema = messages.schema()
        for group, name, is_there in (
            ("fromClient", "Connected", True),
            ("fromClient", "Auth", False),
            ("fromWorker", "Status", True),
            ("fromWorker", "Assign", False),
            ("toClient", "WorkerLost", True),
            ("toWorker", "Challenge", True),
            ("toWorker", "Assigned", False),
        ):
            validator = jsonschema.Draft202012Validator({**schema, "anyOf": [{"$ref": f"#/$defs/{group}"}]})
            self.assertEqual(validator.is_valid(ROUND_TRIPS[name]), is_there, (group, name))

    def test_hello_follows_the_schema_where_python_is_lenient(self) -> None:
        """Without it an id that ends in a line feed would pass a check by Python's ``$``."""
        validator = jsonschema.Draft202012Validator(messages.schema())
        self.assertFalse(validator.is_valid({**ROUND_TRIPS["Hello"], "id": "w1\n"}))

    def test_connected_without_a_time(self) -> None:
        """Without it a client that measures nothing could not report a hand-off."""
        self.assertEqual(decode(b'{"type":"connected","to":"w1"}'), Connected("w1"))
