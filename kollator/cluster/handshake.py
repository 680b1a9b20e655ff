"""Who is at the other end of a link: a mutual challenge with the cluster's keys, before all else.

Either side greets with its node id and a fresh nonce; then the dialler proves that it knows a key of the
cluster, and only then the listener does. A proof is HMAC-SHA256 over five lines, each but the last ended by a
line feed::

    kollator.v1 peer <the role of the one who proves>
    <version>
    <dialler's id>
    <listener's id>
    <dialler's nonce, listener's nonce: 64 bytes>

So it is good for one link (both nonces), in one direction (the role, a mirrored proof fails), between these
two fronts. Its key is derived from the cluster key with HKDF-SHA256 (RFC 5869, no salt, info ``kollator.v1
peer``): no ticket and no worker's mac can pass for it. Whoever knows the cluster key can be any front.

The proofs show who opened the link, and protect nothing after that: who can change the packets between two
fronts can change frames. Over a network that others share, links are to be ``tls:`` or ``wss:``.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from typing import Literal

from kollator.cluster.wire import (
    NONCE_BYTES,
    PROTOCOL,
    PROTOCOL_VERSION,
    BadFrame,
    Greeting,
    Opening,
    Proof,
    Refusal,
    RefusalReason,
    decode_opening,
)
from kollator.guard.keys import Key, hkdf

Role = Literal["dialler", "listener"]


class Rejected(Exception):
    """The link is not to be: close it. ``reason`` is for the log and the counters.

    ``by_peer``: the other end said so, in a ``Refusal`` that proves nothing.
    """

    def __init__(self, reason: RefusalReason, *, by_peer: bool = False) -> None:
        super().__init__(f"refused by the peer: {reason}" if by_peer else reason)
        self.reason: RefusalReason = reason
        self.by_peer = by_peer

    @property
    def refusal(self) -> Refusal | None:
        """What to send before closing; nothing in answer to a refusal."""
        return None if self.by_peer else Refusal(self.reason)


class Handshake:
    """One end of one link that is being opened.

    ``node`` is this front's id, ``members`` the ids of the cluster's fronts, ``keys`` the cluster keys (the
    first signs, all are accepted), ``nonce`` 32 random bytes for this link alone. ``dialled`` is the front
    that was dialled, ``None`` when this end listened. Raises ``ValueError`` for what cannot be.

    A listener proves itself with the key that the dialler has shown to know, which is the first of its own or
    not: so links are made at every step of a rotation.
    """

    def __init__(
        self,
        node: str,
        keys: Sequence[bytes],
        members: Collection[str],
        nonce: bytes,
        dialled: str | None = None,
    ) -> None:
        if not keys:
            raise ValueError("a handshake needs a key")
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce is {NONCE_BYTES} random bytes")
        if dialled is not None and (dialled == node or dialled not in members):
            raise ValueError("only another front of the cluster is dialled")
        self.node = node
        self.peer: str | None = None
        """The front at the other end, once the link is established."""
        self._keys = tuple(keys)
        self._members = members
        self._dialled = dialled
        self._own = Greeting(PROTOCOL, PROTOCOL_VERSION, node, nonce)
        self._other: Greeting | None = None
        self._over = False

    @property
    def role(self) -> Role:
        """Which end this is."""
        return "listener" if self._dialled is None else "dialler"

    def start(self) -> tuple[Opening, ...]:
        """What to send when the transport is connected. A listener waits: strangers learn nothing of it."""
        return () if self._dialled is None else (self._own,)

    def receive(self, payload: bytes) -> tuple[Opening, ...]:
        """Take one frame, as received, and return those to send.

        After it ``peer`` is set if the link is established: what comes next is for ``wire.decode``, not for
        here. Raises ``Rejected``, and nothing else, for every frame that does not lead there; the handshake
        is over then.
        """
        if self._over:
            raise Rejected("out-of-order")
        try:
            return self._take(payload)
        except Rejected:
            self._over = True
            raise

    def _take(self, payload: bytes) -> tuple[Opening, ...]:
        try:
            frame = decode_opening(payload)
        except BadFrame:
            raise Rejected("bad-frame") from None
        if isinstance(frame, Refusal):
            raise Rejected(frame.reason, by_peer=True)
        if self._other is None:
            if not isinstance(frame, Greeting):
                raise Rejected("out-of-order")
            return self._greeted(frame)
        if not isinstance(frame, Proof):
            raise Rejected("out-of-order")
        return self._proved(frame, self._other)

    def _greeted(self, other: Greeting) -> tuple[Opening, ...]:
        if (other.protocol, other.version) != (PROTOCOL, PROTOCOL_VERSION):
            raise Rejected("wrong-version")
        if other.node == self.node:
            raise Rejected("own-id")
        if other.node not in self._members:
            raise Rejected("unknown-node")
        if self._dialled not in (None, other.node):
            raise Rejected("not-the-node-dialled")
        self._other = other
        if self._dialled is None:
            return (self._own,)
        return (Proof(_mac(self._keys[0], "dialler", self._own, other)),)

    def _proved(self, proof: Proof, other: Greeting) -> tuple[Opening, ...]:
        listening = self._dialled is None
        role: Role = "dialler" if listening else "listener"
        greetings = (other, self._own) if listening else (self._own, other)
        matching = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(_mac(key, role, *greetings), proof.mac) and matching is None:
                matching = key
        if matching is None:
            raise Rejected("wrong-key")
        self._over = True
        self.peer = other.node
        return (Proof(_mac(matching, "listener", *greetings)),) if listening else ()


def _mac(key: bytes, role: Role, dialler: Greeting, listener: Greeting) -> bytes:
    # Ids have no line feed and nonces one length, so no two links have the same text.
    lines = (f"kollator.v1 peer {role}", str(PROTOCOL_VERSION), dialler.node, listener.node, "")
    text = "\n".join(lines).encode() + dialler.nonce + listener.nonce
    return hmac.digest(_secret(key), text, "sha256")


def _secret(key: bytes) -> bytes:
    return Key(hkdf(key, b"kollator.v1 peer", 32))
