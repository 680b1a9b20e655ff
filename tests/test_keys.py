"""Keys: what a key file must be like, and the proofs that rest on the keys."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.keys import (
    MAX_FILE_BYTES,
    MAX_KEYS,
    KeyFileError,
    front_mac,
    hkdf,
    matching_front_key,
    matching_key,
    parse_keys,
    read_key_file,
    weakness,
    worker_mac,
)

CLIENT_NONCE = "00112233445566778899aabbccddeeff"
SERVER_NONCE = "ffeeddccbbaa99887766554433221100" * 2
some_keys = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4, unique=True)


class ParseKeysTests(SynchronousTestCase):
    """A key is a line of text without surrounding white space."""

    def test_lines(self) -> None:
        """Without it white space at an end or a Windows line end would make another key of the same line."""
        table: list[tuple[str | bytes, tuple[bytes, ...]]] = [
            ("", ()),
            (" \n\t\r\n\n", ()),
            ("one", (b"one",)),
            (b"  one\t\r\ntwo words \r\n", (b"one", b"two words")),
            ("# a key, not a comment\n", (b"# a key, not a comment",)),
            ("schl\u00fcssel\n", ("schl\u00fcssel".encode(),)),
            ("new\nold\nnew\n", (b"new", b"old")),
            ("one\rtwo", (b"one", b"two")),
        ]
        for text, keys in table:
            self.assertEqual(parse_keys(text), keys, text)

    def test_refused(self) -> None:
        """Without it a wrong file would become keys that no other program reads the same way."""
        too_many = "".join(f"k{number}\n" for number in range(MAX_KEYS + 1))
        for text, says in [
            (b"\xff\xfe", "UTF-8"),
            ("\udcff", "UTF-8"),
            (b"\xef\xbb\xbfkey", "byte order mark"),
            (too_many, f"{MAX_KEYS} at most"),
        ]:
            self.assertIn(says, str(self.assertRaises(ValueError, parse_keys, text)))

    @given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str | bytes) -> None:
        """Without it some text would raise what the settings do not catch, or give a key that is no line."""
        try:
            keys = parse_keys(text)
        except ValueError as problem:
            self.assertNotIsInstance(problem, UnicodeError)
            return
        for key in keys:
            self.assertEqual(key, key.decode().strip().encode())
            self.assertNotIn(b"\n", key)
        self.assertEqual(parse_keys(b"\n".join(keys)), keys)

    def test_secrecy(self) -> None:
        """Without it a key would show in a repr, a formatted log line or the traceback of a bad file."""
        keys = parse_keys("tell-nobody\n")
        self.assertEqual(keys, (b"tell-nobody",))
        for shown in (repr(keys), str(keys[0]), f"{keys[0]!r} {keys[0]!s:>20}", " {!s}".format(*keys)):
            self.assertNotIn("tell", shown)
        content = b"tell-nobody \xff"
        problem = self.assertRaises(ValueError, parse_keys, content)
        self.assertNotIn("nobody", "".join(traceback.format_exception(problem)))
        self.assertIsNone(problem.__context__)

    def test_weakness(self) -> None:
        """Without it nobody would be told that a key can be guessed, or somebody would be told what it is."""
        self.assertIsNone(weakness([b"x" * 16]))
        warning = weakness([b"x" * 16, b"hunter2"]) or ""
        self.assertIn("1 of 2 keys is shorter", warning)
        self.assertNotIn("hunter2", warning)


class KeyFileTests(SynchronousTestCase):
    """A key file is private, and each fault has one line with its remedy."""

    def setUp(self) -> None:
        """Make a folder of its own."""
        self.folder = self.mktemp()
        os.mkdir(self.folder)

    def file(self, content: bytes, mode: int = 0o600) -> str:
        """Write a key file and return its path."""
        path = os.path.join(self.folder, "key")
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def refusal(self, path: str) -> str:
        """Return the one line that says why a file is refused."""
        line = str(self.assertRaises(KeyFileError, read_key_file, path))
        self.assertEqual(len(line.splitlines()), 1, line)
        return line

    def test_good(self) -> None:
        """Without it a private file with keys could not be used."""
        for mode in (0o600, 0o400, 0o700):
            self.assertEqual(read_key_file(self.file(b"new\nold\n", mode)), (b"new", b"old"))
            os.unlink(os.path.join(self.folder, "key"))

    def test_symbolic_link(self) -> None:
        """Without it the mode of a link would be taken for that of the file behind it."""
        link = os.path.join(self.folder, "link")
        os.symlink("key", link)
        self.file(b"one\n")
        self.assertEqual(read_key_file(link), (b"one",))
        os.chmod(os.path.join(self.folder, "key"), 0o644)
        self.assertIn("chmod 600", self.refusal(link))

    def test_open_to_others(self) -> None:
        """Without it a key that every user of the machine can read, or set, would be trusted."""
        for mode in (0o640, 0o620, 0o604, 0o602, 0o644, 0o666):
            path = self.file(b"tell-nobody", mode)
            line = self.refusal(path)
            self.assertIn(f"mode {mode:04o}", line)
            self.assertIn(f"chmod 600 {path}", line)
            self.assertNotIn("tell", line)

    def test_content(self) -> None:
        """Without it a file without a usable key would start a front that no worker can prove itself to."""
        for content, says in [
            (b"", "has no key"),
            (b" \n\n", "has no key"),
            (b"tell \xff", "not UTF-8"),
            (b"x\n" * MAX_FILE_BYTES, f"over {MAX_FILE_BYTES} bytes"),
            (b"".join(b"%d\n" % number for number in range(100)), "at most"),
        ]:
            line = self.refusal(self.file(content))
            self.assertIn(says, line)
            self.assertIn(os.path.join(self.folder, "key"), line)
            self.assertNotIn("tell", line)

    def test_no_file(self) -> None:
        """Without it a wrong path would be a traceback, and a named pipe would stop the start-up for ever."""
        pipe = os.path.join(self.folder, "pipe")
        os.mkfifo(pipe, 0o600)
        loop = os.path.join(self.folder, "loop")
        os.symlink("loop", loop)
        missing = os.path.join(self.folder, "not here")
        for path, says in [
            (missing, f"openssl rand -hex 32 > '{missing}'"),
            (os.path.join(pipe, "key"), "missing"),
            ("", "missing"),
            (self.folder, "is a directory"),
            (pipe, "not a regular file"),
            ("/dev/null", "not a regular file"),
            (loop, "cannot be read"),
            ("nul\0", "is not a path"),
            ("surrogate\ud800", "is not a path"),
            ("two\nlines", "missing"),
            ("x" * 5000, "cannot be read"),
        ]:
            self.assertIn(says, self.refusal(path))

    def test_not_permitted(self) -> None:
        """Without it a file of another user would be a traceback."""
        path = self.file(b"one", 0o200)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)  # root may read every file
        try:
            line = self.refusal(path)
        finally:
            os.seteuid(user)
        self.assertIn("cannot be read", line)
        self.assertIn("chown", line)


class DerivedKeyTests(SynchronousTestCase):
    """Keys that are derived from others."""

    def test_rfc_vector(self) -> None:
        """Without it fronts of other versions would not know each other's tickets (RFC 5869, A.3)."""
        self.assertEqual(
            hkdf(b"\x0b" * 22, b"", 42).hex(),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        )

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=100), st.binary(max_size=40), st.integers(1, 8160))
    def test_beside_a_library(self, key: bytes, info: bytes, size_bytes: int) -> None:
        """Without it a mistake that the vectors do not show would weaken every key."""
        expected = HKDF(algorithm=SHA256(), length=size_bytes, salt=None, info=info).derive(key)
        self.assertEqual(hkdf(key, info, size_bytes), expected)

    def test_too_much(self) -> None:
        """Without it a key would be derived that is none by the standard."""
        with self.assertRaisesRegex(ValueError, "8161 bytes"):
            hkdf(b"key", b"", 8161)


class ProofTests(SynchronousTestCase):
    """HMACs by which worker and front know each other."""

    def test_known_answers(self) -> None:
        """Without it another program that follows the contract would not be understood (from openssl)."""
        key = b"correct horse"
        self.assertEqual(
            worker_mac(key, "w1", "us-west", 100, CLIENT_NONCE, SERVER_NONCE),
            "88b650b6c622343510ea63f03bfd982773e4f2896cdd005ca97de55f81165d09",
        )
        self.assertEqual(
            front_mac(key, "w1", CLIENT_NONCE, SERVER_NONCE),
            "53a305047be643b510fe093e76351715930573cca605ea16b0824e97ec04e988",
        )

    @given(some_keys, st.data(), st.text(max_size=20), st.text(max_size=20), st.integers(1, 10**6))
    @settings(max_examples=60, deadline=None)
    def test_each_key_is_found(
        self, keys: list[bytes], data: st.DataObject, worker: str, region: str, capacity: int
    ) -> None:
        """Without it a rotation would lock out the workers that still sign with another line."""
        key = data.draw(st.sampled_from(keys))
        mac = worker_mac(key, worker, region, capacity, CLIENT_NONCE, SERVER_NONCE)
        for given_mac in (mac, mac.upper()):
            found = matching_key(keys, given_mac, worker, region, capacity, CLIENT_NONCE, SERVER_NONCE)
            self.assertIs(found, key)
        mac = front_mac(key, worker, CLIENT_NONCE, SERVER_NONCE)
        self.assertIs(matching_front_key(keys, mac, worker, CLIENT_NONCE, SERVER_NONCE), key)

    def test_every_field_counts(self) -> None:
        """Without it a recorded proof would do for another worker, capacity or connection."""
        told = ("w1", "us-west", 100, CLIENT_NONCE, SERVER_NONCE)
        keys = (b"one", b"two")
        mac = worker_mac(keys[1], *told)
        self.assertEqual(matching_key(keys, mac, *told), b"two")
        for other in [
            ("w2", "us-west", 100, CLIENT_NONCE, SERVER_NONCE),
            ("w1", "us-east", 100, CLIENT_NONCE, SERVER_NONCE),
            ("w1", "us-west", 101, CLIENT_NONCE, SERVER_NONCE),
            ("w1", "us-west", 100, SERVER_NONCE, SERVER_NONCE),
            ("w1", "us-west", 100, CLIENT_NONCE, CLIENT_NONCE),
        ]:
            self.assertIsNone(matching_key(keys, mac, *other))
        self.assertIsNone(matching_key((b"three",), mac, *told))
        self.assertIsNone(matching_key(keys, f"{mac[:2]} {mac[2:]}", *told))
        self.assertIsNone(matching_key((), mac, *told))
        self.assertIsNone(matching_front_key(keys, mac, "w1", CLIENT_NONCE, SERVER_NONCE))

    @given(st.one_of(st.text(max_size=80), st.text("0123456789abcdefABCDEF \u0660", min_size=64)))
    @settings(max_examples=100, deadline=None)
    def test_any_mac(self, mac: str) -> None:
        """Without it a proof that is not hex, or not ASCII, would raise instead of being wrong."""
        self.assertIsNone(matching_key((b"key",), mac, "w1", "\ud800", 1, CLIENT_NONCE, SERVER_NONCE))

    def test_all_keys_are_tried(self) -> None:
        """Without it the time of an answer would tell which of the keys was the right one."""
        tried: list[int] = []

        class Noted(list[bytes]):
            """A list that notes which of its keys were asked for."""

            def __iter__(self) -> Iterator[bytes]:
                for number, key in enumerate(super().__iter__()):
                    tried.append(number)
                    yield key

        keys = Noted([b"0", b"1", b"2", b"3"])
        mac = worker_mac(b"0", "w1", "", 1, CLIENT_NONCE, SERVER_NONCE)
        self.assertEqual(matching_key(keys, mac, "w1", "", 1, CLIENT_NONCE, SERVER_NONCE), b"0")
        self.assertEqual(tried, [0, 1, 2, 3])
