"""The handshake: only who knows a key of the cluster gets a link, and nothing heard can be reused."""

from __future__ import annotations

import hashlib
import hmac

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.handshake import Handshake, Rejected
from kollator.cluster.wire import PROTOCOL, Greeting, Opening, Ping, Proof, Refusal, decode_opening, encode

MEMBERS = frozenset("abc")
OLD, NEW, OTHER = b"the old key", b"the new key", b"another cluster's key"


def nonce(number: int) -> bytes:
    """A nonce that tells whose it is."""
    return bytes([number]) * 32


def pair(
    dialler_keys: tuple[bytes, ...] = (OLD,), listener_keys: tuple[bytes, ...] = (OLD,)
) -> tuple[Handshake, Handshake]:
    """The two ends of a link from a to b."""
    return (
        Handshake("a", dialler_keys, MEMBERS, nonce(1), dialled="b"),
        Handshake("b", listener_keys, MEMBERS, nonce(2)),
    )


def converse(dialler: Handshake, listener: Handshake) -> list[Opening]:
    """Let two ends talk until both are silent; returns all that was said."""
    said: list[Opening] = []
    waiting = [(listener, frame) for frame in dialler.start()]
    waiting += [(dialler, frame) for frame in listener.start()]
    while waiting:
        to, frame = waiting.pop(0)
        said.append(frame)
        other = dialler if to is listener else listener
        waiting.extend((other, answer) for answer in to.receive(encode(frame)))
    return said


class HandshakeCase(SynchronousTestCase):
    """What the tests ask."""

    def rejects(self, end: Handshake, *frames: Opening | Ping) -> str:
        """Why an end refuses the last of these frames."""
        for frame in frames[:-1]:
            end.receive(encode(frame))
        rejected = self.assertRaises(Rejected, end.receive, encode(frames[-1]))
        self.assertIsNone(end.peer)
        return str(rejected.reason)


class EstablishedTests(HandshakeCase):
    """Fronts of one cluster."""

    def test_both_know_each_other(self) -> None:
        """Without it no two fronts would ever link, or only one of them would think so."""
        dialler, listener = pair()
        said = converse(dialler, listener)
        self.assertEqual((dialler.peer, listener.peer), ("b", "a"))
        self.assertEqual([type(frame) for frame in said], [Greeting, Greeting, Proof, Proof])

    def test_the_listener_waits(self) -> None:
        """Without it whoever connects would get a proof to guess the key with."""
        dialler, listener = pair()
        self.assertEqual(listener.start(), ())
        (greeting,) = dialler.start()
        (answer,) = listener.receive(encode(greeting))
        self.assertIsInstance(answer, Greeting)
        self.assertIsNone(listener.peer)

    def test_rotation(self) -> None:
        """Without it some step of a key rotation would part the cluster."""
        steps = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
        for first, second in [(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1]:
            dialler, listener = pair(steps[first], steps[second])
            converse(dialler, listener)
            self.assertEqual((dialler.peer, listener.peer), ("b", "a"), (first, second))
        dialler, listener = pair((OLD,), (NEW, OLD))  # one that has missed the second step can still dial
        converse(dialler, listener)
        self.assertEqual((dialler.peer, listener.peer), ("b", "a"))

    def test_known_answer(self) -> None:
        """Without it two versions of the front might derive other keys or sign another text."""
        extracted = hmac.digest(bytes(32), OLD, "sha256")
        secret = hmac.new(extracted, b"kollator.v1 peer\x01", hashlib.sha256).digest()
        proofs = [frame for frame in converse(*pair()) if isinstance(frame, Proof)]
        for role, proof in zip((b"dialler", b"listener"), proofs, strict=True):
            text = b"kollator.v1 peer " + role + b"\n1\na\nb\n" + nonce(1) + nonce(2)
            self.assertEqual(proof.mac, hmac.digest(secret, text, "sha256"))

    def test_over_when_established(self) -> None:
        """Without it a later frame could change who is at the other end."""
        for number in range(4):
            dialler, listener = pair()
            frame = converse(dialler, listener)[number]
            for end, peer in ((dialler, "b"), (listener, "a")):
                rejected = self.assertRaises(Rejected, end.receive, encode(frame))
                self.assertEqual(rejected.reason, "out-of-order")
                self.assertEqual(end.peer, peer)


class RejectedTests(HandshakeCase):
    """Each reason."""

    def greeting(self, node: str = "a", version: int = 1, protocol: str = PROTOCOL) -> Greeting:
        """The dialler's greeting."""
        return Greeting(protocol, version, node, nonce(1))

    def test_wrong_key(self) -> None:
        """Without it anybody could be a front; each end finds out by itself."""
        for keys in ((OTHER,), (b"",), (OTHER, NEW)):
            dialler, listener = pair(keys)
            self.assertEqual(self.assertRaises(Rejected, converse, dialler, listener).reason, "wrong-key")
            self.assertIsNone(listener.peer)
        dialler, _ = pair()
        self.assertEqual(
            self.rejects(dialler, Greeting(PROTOCOL, 1, "b", nonce(2)), Proof(bytes(32))), "wrong-key"
        )

    def test_greetings(self) -> None:
        """Without it strangers, namesakes and other versions would be talked to."""
        for frame, reason in (
            (self.greeting(version=2), "wrong-version"),
            (self.greeting(protocol="raft"), "wrong-version"),
            (self.greeting(node="z", version=0), "wrong-version"),
            (self.greeting(node="b"), "own-id"),
            (self.greeting(node="z"), "unknown-node"),
        ):
            self.assertEqual(self.rejects(pair()[1], frame), reason)
        self.assertEqual(self.rejects(pair()[0], self.greeting(node="c")), "not-the-node-dialled")

    def test_order(self) -> None:
        """Without it a frame at the wrong moment would skip the proof, or be acted on before it."""
        hello = self.greeting()
        for frames, reason in (
            ((Proof(bytes(32)),), "out-of-order"),
            ((hello, hello), "out-of-order"),
            ((Ping(1),), "bad-frame"),
            ((hello, Ping(1)), "bad-frame"),
        ):
            self.assertEqual(self.rejects(pair()[1], *frames), reason)

    def test_nothing_after_a_rejection(self) -> None:
        """Without it a peer could try one key after the other on one link."""
        dialler, listener = pair()
        (greeting,) = dialler.start()
        (answer,) = listener.receive(encode(greeting))
        (proof,) = dialler.receive(encode(answer))
        self.rejects(listener, Proof(bytes(32)))
        self.assertEqual(self.rejects(listener, proof), "out-of-order")

    def test_refusals(self) -> None:
        """Without it the operator of the refused front would never learn why, or two fronts would argue."""
        listener = pair()[1]
        rejected = self.assertRaises(Rejected, listener.receive, encode(self.greeting(node="z")))
        self.assertEqual(rejected.refusal, Refusal("unknown-node"))
        told = self.assertRaises(Rejected, pair()[0].receive, encode(Refusal("unknown-node")))
        self.assertEqual((told.reason, told.by_peer, told.refusal), ("unknown-node", True, None))

    def test_settings(self) -> None:
        """Without it a defect of the caller would look like a peer's, or leave the door open."""
        for keys, fresh, dialled in (
            ((), nonce(1), None),
            ((OLD,), bytes(31), None),
            ((OLD,), nonce(1), "a"),
            ((OLD,), nonce(1), "z"),
        ):
            self.assertRaises(ValueError, Handshake, "a", keys, MEMBERS, fresh, dialled)


class AttackTests(HandshakeCase):
    """Somebody who knows no key, but heard everything and stands in between."""

    def test_replay(self) -> None:
        """Without it one recorded handshake would open links for ever."""
        dialler, listener = pair()
        said = converse(dialler, listener)
        later = Handshake("b", (OLD,), MEMBERS, nonce(3))
        self.assertEqual(self.rejects(later, said[0], said[2]), "wrong-key")
        dials_again = Handshake("a", (OLD,), MEMBERS, nonce(4), dialled="b")
        self.assertEqual(self.rejects(dials_again, said[1], said[3]), "wrong-key")

    def test_reflection(self) -> None:
        """Without it a front would take its own proof, sent back to it, for another's."""
        dialler, _ = pair()
        (greeting,) = dialler.start()
        self.assertEqual(self.rejects(dialler, greeting), "own-id")
        dialler, _ = pair()
        (proof,) = dialler.receive(encode(Greeting(PROTOCOL, 1, "b", nonce(1))))
        self.assertEqual(self.rejects(dialler, proof), "wrong-key")

    def test_a_dialler_signs_for_no_listener(self) -> None:
        """Without it a front that dials could be made to prove to a third that it is somebody else."""
        dials = Handshake("a", (OLD,), MEMBERS, nonce(1), dialled="b")
        victim = Handshake("c", (OLD,), MEMBERS, nonce(3))
        (own,) = dials.start()
        victim.receive(encode(own))  # the victim now waits for a proof of a's that it listens as c
        (proof,) = dials.receive(encode(Greeting(PROTOCOL, 1, "b", nonce(3))))
        self.assertEqual(self.rejects(victim, proof), "wrong-key")

    def test_a_listener_signs_for_no_dialler(self) -> None:
        """Without it a proof got by dialling one front would pass for another one's answer."""
        dials = Handshake("a", (OLD,), MEMBERS, nonce(1), dialled="b")
        crossing = Handshake("b", (OLD,), MEMBERS, nonce(2), dialled="a")
        (hers,), (his,) = dials.start(), crossing.start()
        (proof_a,) = dials.receive(encode(his))
        (proof_b,) = crossing.receive(encode(hers))
        self.assertEqual(self.rejects(dials, proof_b), "wrong-key")
        self.assertEqual(self.rejects(crossing, proof_a), "wrong-key")

    def test_changed_on_the_way(self) -> None:
        """Without it somebody in between could choose a nonce or a name."""
        for changed in (Greeting(PROTOCOL, 1, "c", nonce(1)), Greeting(PROTOCOL, 1, "a", nonce(9))):
            dialler, listener = pair()
            (answer,) = listener.receive(encode(changed))
            (proof,) = dialler.receive(encode(answer))
            self.assertEqual(self.rejects(listener, proof), "wrong-key")

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=80),
                st.builds(
                    Greeting,
                    st.sampled_from([PROTOCOL, ""]),
                    st.integers(0, 2),
                    st.sampled_from("abcz"),
                    st.binary(min_size=32, max_size=32),
                ).map(encode),
                st.builds(Proof, st.binary(min_size=32, max_size=32)).map(encode),
            ),
            max_size=4,
        ),
        st.sampled_from([None, "b"]),
    )
    def test_anything(self, payloads: list[bytes], dialled: str | None) -> None:
        """Without it some bytes of a stranger would raise what nobody catches, or open a link."""
        end = Handshake("a", (OLD,), MEMBERS, nonce(1), dialled=dialled)
        end.start()
        for payload in payloads:
            try:
                for answer in end.receive(payload):
                    decode_opening(encode(answer))
            except Rejected:
                pass
            self.assertIsNone(end.peer)
