"""The served folder: what may be reached in it, and what not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.webrtc import files
from kollator.webrtc.channel import Listed
from kollator.webrtc.files import BLOCK_BYTES, Changed, Folder, NotFound


class FolderCase(SynchronousTestCase):
    """A folder with something to serve, and something beside it that must not be served."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        self.root = self.top / "served"
        self.put("served/b.txt", b"bee")
        self.put("served/docs/a.bin", b"ay")
        self.put("served/docs/.hidden", b"h")
        self.put("served/.git/config", b"c")
        self.put("served/docs/ümläut 1.txt", b"")
        self.put("secret.txt", b"secret")
        self.put("served-too/x.txt", b"x")
        self.folder = Folder(self.root)

    def put(self, name: str, content: bytes) -> None:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def read(self, name: str) -> bytes:
        with self.folder.open(name) as file:
            content = b"".join(iter(file.read, b""))
            self.assertEqual(file.digest(), hashlib.sha256(content).hexdigest())
            return content


class ListingTests(FolderCase):
    """What is there."""

    def test_listing(self) -> None:
        """The page shows what is listed, so that must be all regular files and nothing hidden."""
        expected = [Listed("b.txt", 3), Listed("docs/a.bin", 2), Listed("docs/ümläut 1.txt", 0)]
        self.assertEqual(self.folder.listing(), (expected, False))

    def test_whatever_is_listed_can_be_read(self) -> None:
        """A name that the worker itself has told must be good for a fetch."""
        os.symlink("b.txt", self.root / "link.txt")
        listed, _ = self.folder.listing()
        self.assertIn(Listed("link.txt", 3), listed)
        for file in listed:
            self.assertEqual(len(self.read(file.name)), file.size)

    def test_more_than_is_listed(self) -> None:
        """A folder of a million files must not fill the memory, nor be taken for complete."""
        self.patch(files, "LISTED_FILES", 2)
        self.assertEqual(self.folder.listing(), ([Listed("b.txt", 3), Listed("docs/a.bin", 2)], True))
        self.patch(files, "LISTED_FILES", 3)
        self.assertFalse(self.folder.listing()[1])

    def test_what_is_left_out(self) -> None:
        """A listed pipe would hang its reader, a loop of links the listing, a bad name the whole message."""
        os.mkfifo(self.root / "pipe")
        os.symlink("../secret.txt", self.root / "out")
        os.symlink(".", self.root / "loop")
        os.symlink("nowhere", self.root / "dangling")
        with open(os.fsencode(self.root) + b"/\xff.txt", "wb"):
            pass
        self.assertEqual(len(self.folder.listing()[0]), 3)

    def test_folder_that_went_away(self) -> None:
        """A folder on a disk that is gone is an empty one, not an error in a thread."""
        os.rename(self.root, self.top / "moved")
        self.assertEqual(self.folder.listing(), ([], False))
        self.assertRaises(NotFound, self.folder.open, "b.txt")

    def test_no_folder(self) -> None:
        """A worker that serves nothing because of a typing error should say so."""
        self.assertRaises(NotADirectoryError, Folder, self.top / "nope")
        self.assertRaises(NotADirectoryError, Folder, self.root / "b.txt")


class TraversalTests(FolderCase):
    """The folder is all that a stranger may read."""

    NAMES = (
        "", ".", "..", "/", "//", "../secret.txt", "docs/../../secret.txt", "./b.txt", "docs/../b.txt",
        "/etc/passwd", "docs//a.bin", "docs/", "docs", "b.txt/", "b.txt/x", "..\\secret.txt", "docs/.hidden",
        ".git/config", "b.txt\0", "\0", "docs/\0/a.bin", "../served-too/x.txt", "nope", "a" * 300, "a/" * 2000,
        "\ud800", "\udcff.txt", "~", "%2e%2e/secret.txt", "...", "docs/a.bin ",
    )  # fmt: skip

    def test_names(self) -> None:
        """Each of these has been a hole in somebody's server."""
        for name in self.NAMES:
            self.assertRaises(NotFound, self.folder.open, name)

    def test_links_that_lead_out(self) -> None:
        """A link in the folder would otherwise serve the whole disk."""
        os.symlink("../secret.txt", self.root / "one")
        os.symlink(self.top.resolve() / "secret.txt", self.root / "two")
        os.symlink("..", self.root / "up")
        os.symlink("one", self.root / "chain")
        os.symlink("self", self.root / "self")
        for name in ("one", "two", "up/secret.txt", "up/served/b.txt/../../secret.txt", "chain", "self", "up"):
            self.assertRaises(NotFound, self.folder.open, name)

    def test_links_inside(self) -> None:
        """An operator may arrange a folder with links, but not uncover what is hidden."""
        os.symlink("docs", self.root / "papers")
        os.symlink(".git/config", self.root / "conf")
        self.assertEqual(self.read("papers/a.bin"), b"ay")
        self.assertRaises(NotFound, self.folder.open, "conf")

    def test_what_is_no_file(self) -> None:
        """Opening a pipe blocks for ever, and a folder cannot be read."""
        os.mkfifo(self.root / "pipe")
        self.assertRaises(NotFound, self.folder.open, "pipe")

    def test_folder_swapped_for_a_link(self) -> None:
        """Between the look and the opening somebody may put a link in the place of a folder."""
        resolved = self.folder._parts("docs/a.bin")
        os.rename(self.root / "docs", self.root / "docs2")
        os.symlink(self.top.resolve(), self.root / "docs")
        self.put("a.bin", b"not yours")
        self.assertRaises(NotFound, self.folder._open, resolved)
        os.unlink(self.root / "docs")
        os.rename(self.root / "docs2", self.root / "docs")
        os.unlink(self.root / "docs/a.bin")
        os.symlink("../../secret.txt", self.root / "docs/a.bin")
        self.assertRaises(NotFound, self.folder._open, resolved)

    @settings(max_examples=100, deadline=None)
    @given(st.text("./\\ab\0docs\u00e4~", max_size=12) | st.text(max_size=12))
    def test_any_name(self, name: str) -> None:
        """Nothing but ``NotFound`` may come of a name, and nothing from outside the folder."""
        try:
            with self.folder.open(name) as file:
                self.assertIn(file.read(), (b"bee", b"ay", b""))
        except NotFound:
            pass

    def test_descriptors_are_closed(self) -> None:
        """A worker that leaks one with every refused name ends after a thousand of them."""
        before = len(os.listdir("/dev/fd"))
        for name in (*self.NAMES, "b.txt", "docs/a.bin"):
            try:
                with self.folder.open(name):
                    pass
            except NotFound:
                pass
        self.assertEqual(len(os.listdir("/dev/fd")), before)


class ReadingTests(FolderCase):
    """A file in blocks, with its hash."""

    def test_blocks(self) -> None:
        """The last, short block is where off-by-ones cut files."""
        for size in (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES):
            content = os.urandom(size)
            self.put("served/big", content)
            self.assertEqual(self.read("big"), content)
            with self.folder.open("big") as file:
                self.assertEqual((file.size, len(file.read())), (size, min(size, BLOCK_BYTES)))
        self.assertLess(BLOCK_BYTES, 256 * 1024)

    def test_file_that_grows(self) -> None:
        """More than the announced size would run into the next file's place in the browser."""
        with self.folder.open("b.txt") as file:
            self.put("served/b.txt", b"bees and more")
            self.assertEqual(file.read() + file.read(), b"bee")
            self.assertRaises(Changed, file.digest)

    def test_file_that_shrinks(self) -> None:
        """A browser would wait for the missing bytes for ever."""
        self.put("served/big", bytes(BLOCK_BYTES + 100))
        with self.folder.open("big") as file:
            file.read()
            os.truncate(self.root / "big", 5)
            self.assertRaises(Changed, file.read)
