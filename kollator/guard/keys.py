"""Shared keys, and the proofs by which a worker and a front show each other that they know one.

A key is a line of text without surrounding white space, as UTF-8 bytes. Several lines are several keys: the
first signs, all are accepted. To rotate, add the new key as second line everywhere, then make it the first
everywhere, then remove the old one.
"""

from __future__ import annotations

import hmac
import os
import shlex
import stat
from collections.abc import Sequence

MAX_KEYS = 16
"""Every key is tried for every proof, so there are few. A rotation needs two."""
MAX_FILE_BYTES = 65_536
WEAK_KEY_BYTES = 16
"""A shorter key can be guessed at leisure by anyone who has recorded one registration."""

_HASH_BYTES = 32
_MAC_HEX_DIGITS = 2 * _HASH_BYTES


class KeyFileError(Exception):
    """A key file that cannot be used. Its text is one line: the path, what is wrong, and the remedy."""


class Key(bytes):
    """Bytes that do not show in a ``repr``, a formatted string or a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Show that there is a key, not which."""
        return "<key>"

    __str__ = __repr__


def parse_keys(text: str | bytes) -> tuple[bytes, ...]:
    """Return the keys of a text, first one first, each once; empty when there is none.

    Blank lines are skipped; there are no comments, a line that starts with ``#`` is a key. Raises
    ``ValueError``, which never quotes the text, when it is not UTF-8 or has more than ``MAX_KEYS`` keys.
    """
    decoded = _utf8(text)
    if decoded is None:
        raise ValueError("the keys are not UTF-8 text")
    if decoded.startswith("\ufeff"):
        raise ValueError("the keys start with a byte order mark; save them as plain UTF-8")
    lines = (line.strip() for line in decoded.replace("\r", "\n").split("\n"))
    keys = tuple(dict.fromkeys(Key(line.encode()) for line in lines if line))
    if len(keys) > MAX_KEYS:
        raise ValueError(f"there are {len(keys)} keys, {MAX_KEYS} at most; remove the old ones")
    return keys


def read_key_file(path: str | os.PathLike[str]) -> tuple[bytes, ...]:
    """Return the keys of a file, at least one.

    Raises ``KeyFileError`` when the file is missing, not a regular file, unreadable, open to group or others,
    larger than ``MAX_FILE_BYTES``, not UTF-8, or holds no key or too many.
    """
    name = os.fspath(path)
    shown, quoted = _one_line(name), _one_line(shlex.quote(name))
    try:
        # Not blocking, since opening a named pipe would wait for a writer for ever.
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            # Of the open file: a look at the path could see another one.
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_FILE_BYTES + 1) if stat.S_ISREG(mode) else b""
    except (FileNotFoundError, NotADirectoryError):
        remedy = f"create it: (umask 077; openssl rand -hex 32 > {quoted})"
        raise KeyFileError(f"key file {shown} is missing; {remedy}") from None
    except IsADirectoryError:
        raise KeyFileError(f"key file {shown} is a directory; name a file in it") from None
    except PermissionError:
        raise KeyFileError(
            f"key file {shown} cannot be read; make the user that runs this process its owner: "
            f'chown "$USER" {quoted}'
        ) from None
    except OSError as problem:
        reason = f"cannot be read: {problem.strerror}"
        raise KeyFileError(f"key file {shown} {reason}; name a readable file") from None
    except ValueError:
        raise KeyFileError(f"key file {shown} is not a path; name a readable file") from None
    if not stat.S_ISREG(mode):
        raise KeyFileError(f"key file {shown} is not a regular file; name one")
    if mode & 0o066:
        raise KeyFileError(
            f"key file {shown} is open to group or others (mode {stat.S_IMODE(mode):04o}); chmod 600 {quoted}"
        )
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"key file {shown} has over {MAX_FILE_BYTES} bytes; keep only the keys in it")
    try:
        keys = parse_keys(content)
    except ValueError as problem:
        raise KeyFileError(f"key file {shown}: {problem}") from None
    if not keys:
        remedy = f"write a key into it: openssl rand -hex 32 > {quoted}"
        raise KeyFileError(f"key file {shown} has no key; {remedy}")
    return keys


def weakness(keys: Sequence[bytes]) -> str | None:
    """Return one line of warning when a key is short enough to guess, else ``None``.

    The contract sets no length, so a short key is taken.
    """
    short = sum(len(key) < WEAK_KEY_BYTES for key in keys)
    if not short:
        return None
    return (
        f"{short} of {len(keys)} keys {'is' if short == 1 else 'are'} shorter than {WEAK_KEY_BYTES} bytes "
        "and can be guessed; make new ones with: openssl rand -hex 32"
    )


def hkdf(key: bytes, info: bytes, size_bytes: int) -> bytes:
    """Return a key of its own for one purpose, derived from ``key``: HKDF-SHA256 without salt (RFC 5869).

    ``info`` names the purpose. Written out here since the library that has it, ``cryptography``, takes 8 MB, which a
    front without TLS need not have (see ``kollator.lean``). Raises ``ValueError`` for more than 8,160 bytes.
    """
    if size_bytes > 255 * _HASH_BYTES:
        raise ValueError(f"{size_bytes} bytes cannot be derived from one key")
    secret, block, derived = hmac.digest(bytes(_HASH_BYTES), key, "sha256"), b"", b""
    for number in range(1, -(-size_bytes // _HASH_BYTES) + 1):
        block = hmac.digest(secret, block + info + bytes([number]), "sha256")
        derived += block
    return derived[:size_bytes]


def worker_mac(
    key: bytes, worker_id: str, region: str, capacity: int, client_nonce: str, server_nonce: str
) -> str:
    """Return a worker's proof, in hex (the contract, section 2, "A worker", step 3).

    No field may hold a line feed, which the message types see to, or two workers could share one proof.
    """
    return _mac(key, _worker_text(worker_id, region, capacity, client_nonce, server_nonce)).hex()


def front_mac(key: bytes, worker_id: str, client_nonce: str, server_nonce: str) -> str:
    """Return a front's proof to a worker, in hex (the contract, section 2, "A worker", step 4).

    ``key`` is the front's first one, with which it signs; a worker accepts each of its own.
    """
    return _mac(key, _front_text(worker_id, client_nonce, server_nonce)).hex()


def matching_key(
    keys: Sequence[bytes],
    mac_hex: str,
    worker_id: str,
    region: str,
    capacity: int,
    client_nonce: str,
    server_nonce: str,
) -> bytes | None:
    """Return the key with which a worker made its proof, or ``None`` when it is none of ``keys``.

    All keys are tried, each compared in constant time, so that the time tells nothing of them.
    """
    return _matching(keys, mac_hex, _worker_text(worker_id, region, capacity, client_nonce, server_nonce))


def matching_front_key(
    keys: Sequence[bytes], mac_hex: str, worker_id: str, client_nonce: str, server_nonce: str
) -> bytes | None:
    """Return the key with which a front made its proof, or ``None``: the worker's side of ``front_mac``."""
    return _matching(keys, mac_hex, _front_text(worker_id, client_nonce, server_nonce))


def _worker_text(worker_id: str, region: str, capacity: int, client_nonce: str, server_nonce: str) -> bytes:
    return _text("kollator.v1 worker", worker_id, region, str(capacity), client_nonce, server_nonce)


def _front_text(worker_id: str, client_nonce: str, server_nonce: str) -> bytes:
    return _text("kollator.v1 front", worker_id, client_nonce, server_nonce)


def _text(*lines: str) -> bytes:
    # A lone surrogate cannot come out of JSON in UTF-8, and if one did, it should not raise here.
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _matching(keys: Sequence[bytes], mac_hex: str, text: bytes) -> bytes | None:
    try:
        given = bytes.fromhex(mac_hex) if len(mac_hex) == _MAC_HEX_DIGITS else b""
    except ValueError:
        given = b""
    found = None
    for key in keys:
        if hmac.compare_digest(_mac(key, text), given) and found is None:
            found = key
    return found


def _utf8(text: str | bytes) -> str | None:
    # The error of the codec holds the whole text, so it ends here and is not chained to another.
    try:
        return text.decode() if isinstance(text, bytes) else text.encode().decode()
    except UnicodeError:
        return None


def _one_line(path: str) -> str:
    return path if path.isprintable() and path else ascii(path)
