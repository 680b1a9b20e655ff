"""What is compiled does what its twin in Python does.

What the front's other tests say of it is held for the twins by ``make unit-uncompiled`` (``tests.uncompiled``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kollator.compiled import speedups
from kollator.guard import descriptions
from kollator.signaling.frames import next_text_in_python, text_frame_in_python
from tests import test_descriptions, test_descriptions_reference
from tests.fuzz.frames import frame

SIZES = (0, 1, 2, 7, 8, 9, 125, 126, 127, 255, 256, 65_535, 65_536)
ROOT = Path(__file__).parent.parent
SANITIZED = """
import importlib.util, sys
from twisted.scripts.trial import run
assert "libasan" in open("/proc/self/maps").read()
spec = importlib.util.spec_from_file_location("kollator._speedups", sys.argv.pop(1))
sys.modules["kollator._speedups"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
run()
"""
TEXTS = ("", "a", "é", "\U0001f600", "x" * 119 + "é", "x" * 124 + "é", "x" * 4000, "\0\x7f", "日本" * 50)


class BuiltTests(SynchronousTestCase):
    """The installation."""

    def test_built(self) -> None:
        """Without it nobody would notice that the front is slower than it was measured."""
        headers = Path(sysconfig.get_paths()["include"], "Python.h")
        if speedups is None and not (shutil.which("cc") and headers.exists()):
            raise SkipTest(f"nothing could be compiled: that takes cc, and {headers}")
        self.assertIsNotNone(speedups, "kollator/_speedups.c could have been compiled and was not")


class CompiledTests(SynchronousTestCase):
    """Each compiled function beside its twin."""

    def setUp(self) -> None:
        """They are there, or there is nothing to compare."""
        if speedups is None:
            raise SkipTest("nothing is compiled here; BuiltTests says whether that is right")
        self.compiled: Any = speedups

    def same_text(self, data: bytes, at: int = 0) -> None:
        """Both read the same message, or none."""
        found = self.compiled.next_text(data, at)
        self.assertEqual(found, next_text_in_python(data, at), (data[:40], at))

    def test_frames(self) -> None:
        """Without it a message could be cut, left masked, or read though it is not whole."""
        for text in TEXTS:
            payload = text.encode()
            for mask in (b"\0\0\0\0", b"\x01\x02\x03\x04", b"\xff\x80\x7f\x00"):
                data = frame(payload, mask=mask)
                self.assertEqual(self.compiled.next_text(data, 0), payload)
                self.assertEqual(self.compiled.next_text(b"ab" + data + b"c", 2), payload)
                for cut in {*range(12), len(data) // 2, len(data) - 1}:
                    self.same_text(data[:cut])
                    self.same_text(b"\x81" + data[:cut], 1)
                for length, width in ((0, 1), (1, 1), (125, 1), (None, 3), (None, 9)):
                    self.same_text(frame(payload, mask=mask, length=length, width=width))
                for first in (0x01, 0x80, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0xF1):
                    self.same_text(bytes((first,)) + data[1:])
                self.same_text(data[:1] + bytes((data[1] & 0x7F,)) + data[2:])

    def test_sizes(self) -> None:
        """Without it the border of two forms of the length would be another one for what is compiled."""
        for size in SIZES:
            payload = bytes(at % 127 for at in range(size))
            self.same_text(frame(payload, mask=b"abcd"))
            self.assertEqual(self.compiled.text_frame(payload), text_frame_in_python(payload))

    def test_not_utf8(self) -> None:
        """Without it bytes that are no text would be relayed; Autobahn closes for them (1007)."""
        for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80"):
            for before in range(10):
                payload = b"x" * before + bad
                self.assertIsNone(self.compiled.next_text(frame(payload, mask=b"\x11\x22\x33\x44"), 0))
                self.same_text(frame(payload, mask=b"\x11\x22\x33\x44"))

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=300), st.integers(0, 310), st.binary(min_size=4, max_size=4), st.booleans())
    def test_any_bytes(self, data: bytes, at: int, mask: bytes, framed: bool) -> None:
        """Without it some bytes of a client could be read in two ways."""
        self.same_text(frame(data, mask=mask) if framed else b"\x81" + data, at % 4 if framed else at)
        if framed:
            self.same_text(frame(data, mask=mask))
        self.assertEqual(self.compiled.text_frame(data), text_frame_in_python(data))

    @settings(max_examples=300, deadline=None)
    @given(
        st.sampled_from(test_descriptions.CANDIDATES.splitlines()),
        st.lists(
            st.tuples(st.integers(0, 400), st.integers(0, 6), st.sampled_from(test_descriptions_reference.PIECES)),
            max_size=3,
        ),
    )
    def test_candidates(self, candidate: str, changes: list[tuple[int, int, str]]) -> None:
        """Without it what is compiled could pass what no candidate is, or leave what browsers send to the slow way."""
        for at, removed, piece in changes:
            candidate = candidate[:at] + piece + candidate[at + removed :]
        quick = self.compiled.usual_candidate(candidate)
        if quick:
            self.assertIsNone(test_descriptions_reference.reference_check(candidate), candidate)
        if descriptions.usual_candidate_in_python(candidate):
            self.assertTrue(quick, candidate)

    def test_usual(self) -> None:
        """Without it the quick look could know nothing at all, and every message take the slow way."""
        candidates = test_descriptions.CANDIDATES.splitlines()
        known = [candidate for candidate in candidates if self.compiled.usual_candidate(candidate)]
        self.assertGreater(len(known), len(candidates) // 2)
        self.assertTrue(self.compiled.usual_description(test_descriptions.CHROME_OFFER))

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from(["v=0", "v=1", "", "V=0", "m=", "\0"]),
        st.lists(st.tuples(st.sampled_from(["\n", "m=", "m", "=", "\0", "x" * 1000, "é", "\ud800", "\u2028m="]),
                           st.integers(1, 70)), max_size=8),
    )
    def test_descriptions(self, start: str, parts: list[tuple[str, int]]) -> None:
        """Without it a description over a bound could pass."""
        sdp = start + "".join(text * count for text, count in parts)
        self.assertEqual(self.compiled.usual_description(sdp), descriptions.usual_description_in_python(sdp))
        if self.compiled.usual_description(sdp):
            self.patch(descriptions, "usual_description", lambda sdp: False)
            self.assertIsNone(descriptions.check_sdp(sdp))

    def test_bounds(self) -> None:
        """Without it a bound could be changed in one of the two languages."""
        for lines in (descriptions.MAX_SDP_LINES - 3, descriptions.MAX_SDP_LINES - 2):
            sdp = "v=0" + "\n" * lines
            self.assertEqual(self.compiled.usual_description(sdp), descriptions.usual_description_in_python(sdp))
        for media in (descriptions.MAX_SDP_MEDIA, descriptions.MAX_SDP_MEDIA + 1):
            self.assertEqual(
                self.compiled.usual_description("v=0" + "m=" * media), media == descriptions.MAX_SDP_MEDIA
            )
        start = "candidate:1 1 udp 1 192.0.2.1 5000 typ host "
        for size in (descriptions.MAX_CANDIDATE_CHARS, descriptions.MAX_CANDIDATE_CHARS + 1):
            pairs = ("k v " * size)[: size - len(start) - 4]
            self.assertEqual(
                self.compiled.usual_candidate(start + pairs + "k " + "v" * (size - len(start) - len(pairs) - 2)),
                size == descriptions.MAX_CANDIDATE_CHARS,
            )

    def test_wrong_arguments(self) -> None:
        """Without it a mistake in the front would end the process, and not in a traceback."""
        wrong: list[tuple[Any, tuple[Any, ...]]] = [
            (self.compiled.next_text, ()), (self.compiled.next_text, (b"", 0, 0)), (self.compiled.next_text, ("", 0)),
            (self.compiled.next_text, (b"", "0")), (self.compiled.next_text, (bytearray(8), 0)),
            (self.compiled.text_frame, ("text",)), (self.compiled.text_frame, (None,)),
            (self.compiled.usual_candidate, (b"candidate:",)), (self.compiled.usual_description, (None,)),
            (self.compiled.receive, (0,)), (self.compiled.receive, ("0", 1)), (self.compiled.receive, (0, "1")),
            (self.compiled.send, (0,)), (self.compiled.send, (0, "text")), (self.compiled.send, (None, b"")),
        ]
        for function, arguments in wrong:
            with self.assertRaises(TypeError):
                function(*arguments)
        for at in (-1, -(1 << 40), 1 << 40):
            self.assertIsNone(self.compiled.next_text(frame(b"x", mask=b"abcd"), at))
        with self.assertRaises(OverflowError):
            self.compiled.next_text(b"", 1 << 70)
        for text in ("\ud800", "candidate:\ud800", "v=0\udfff"):
            self.assertFalse(self.compiled.usual_candidate(text) or self.compiled.usual_description(text))

    def test_sockets(self) -> None:
        """Without it a connection would not end when its peer is gone, or an error pass for an end."""
        for receive, send in ((os.read, os.write), (self.compiled.receive, self.compiled.send)):
            ours, theirs = socket.socketpair()
            with contextlib.ExitStack() as stack:
                stack.enter_context(ours)
                stack.enter_context(theirs)
                ours.setblocking(False)
                number = ours.fileno()
                with self.assertRaises(BlockingIOError):
                    receive(number, 10)
                theirs.sendall(b"abcdef")
                self.assertEqual([receive(number, 4), receive(number, 16_384)], [b"abcd", b"ef"])
                self.assertEqual([send(number, b""), send(number, b"answer")], [0, 6])
                self.assertEqual(theirs.recv(100), b"answer")
                sent = 0
                with self.assertRaises(BlockingIOError):
                    while True:
                        sent += send(number, b"x" * 100_000)
                theirs.shutdown(socket.SHUT_WR)
                self.assertEqual(receive(number, 10), b"")
                got = 0
                while got < sent:
                    got += len(theirs.recv(1 << 20))
                theirs.close()
                with self.assertRaises(BrokenPipeError):
                    send(number, b"to nobody")
            calls: list[tuple[Any, Any]] = [(receive, 1), (send, b"x")]
            for closed in (number, -1):
                for call, what in calls:
                    with self.assertRaises(OSError) as caught:
                        call(closed, what)
                    self.assertEqual(caught.exception.errno, errno.EBADF)

    def test_most(self) -> None:
        """Without it a connection could have more of a turn than the transport means to give it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.sendall(b"x" * 40_000)
            self.assertEqual(len(self.compiled.receive(ours.fileno(), 1 << 40)), 16_384)
            with self.assertRaises(OSError):
                self.compiled.receive(ours.fileno(), -1)


class SanitizedTests(SynchronousTestCase):
    """The same with the sanitizers of the compiler: what C does not notice by itself."""

    def test_sanitized(self) -> None:
        """Without it a byte too many that is read or written would show when it is somebody else's."""
        if speedups is None:
            raise SkipTest("nothing is compiled here; BuiltTests says whether that is right")
        cc = shutil.which("cc")
        runtime = cc and subprocess.run([cc, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout
        if not runtime or "/" not in runtime:
            raise SkipTest("there is no libasan (it comes with gcc), or no cc")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        library = folder / "_speedups.so"
        subprocess.run([
            str(cc), "-g", "-O1", "-Wall", "-Wextra", "-Werror",
            "-fsanitize=address,undefined", "-fno-sanitize-recover", "-shared", "-fPIC",
            "-I", sysconfig.get_paths()["include"], "kollator/_speedups.c", "-o", str(library),
        ], cwd=ROOT, check=True, timeout=120)
        strict = {"LD_PRELOAD": runtime.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
        done = subprocess.run(
            [sys.executable, "-c", SANITIZED, str(library), "--temp-directory", str(folder / "trial"),
             "tests.test_speedups.CompiledTests"],
            cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, **strict},
        )
        self.assertEqual(done.returncode, 0, done.stdout[-3000:] + done.stderr[-3000:])
        self.assertIn("PASSED", done.stdout)
