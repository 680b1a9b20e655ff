"""A worker's side of registering with a front: who it says it is, and the proofs of both sides. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import structs

from kollator.guard.keys import matching_front_key, worker_mac
from kollator.signaling.messages import Auth, Challenge, Hello, WorkerWelcome

_NONCE = re.compile(r"[0-9A-Fa-f]{64}")


class UntrustedFrontError(Exception):
    """What answered is not a front that knows the worker key. Its text says why, without any secret."""


class Registration:
    """One registration over one connection.

    ``worker`` is the hello without a nonce; ``keys`` is not empty: the first one signs, and each of them may
    be the front's (the contract, section 2, "A worker"); ``nonce`` is fresh, of 32 hex digits or more.
    """

    def __init__(self, worker: Hello, keys: Sequence[bytes], nonce: str) -> None:
        self.hello = structs.replace(worker, nonce=nonce)
        self._keys = keys
        self._nonce = nonce
        self._server_nonce = ""

    def answer(self, challenge: Challenge) -> Auth:
        """The proof for the front. Raises ``UntrustedFrontError`` unless this is the one challenge."""
        if self._server_nonce or not _NONCE.fullmatch(challenge.nonce):
            raise UntrustedFrontError("its challenge is not one nonce of 64 hex digits")
        self._server_nonce = challenge.nonce
        hello = self.hello
        return Auth(
            worker_mac(
                self._keys[0], str(hello.id), hello.region, hello.capacity, self._nonce, self._server_nonce
            )
        )

    def check(self, welcome: WorkerWelcome) -> None:
        """Raises ``UntrustedFrontError`` unless the front has shown that it knows one of the keys."""
        if not self._server_nonce:
            raise UntrustedFrontError("it says welcome without a challenge")
        if welcome.id != self.hello.id:
            raise UntrustedFrontError("it welcomes another worker")
        if not matching_front_key(
            self._keys, welcome.mac, str(self.hello.id), self._nonce, self._server_nonce
        ):
            raise UntrustedFrontError("it does not know the worker key")
