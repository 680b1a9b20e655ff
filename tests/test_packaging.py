"""What an installation holds: every package and every data file of the source tree."""

from __future__ import annotations

from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent


class PackagingTests(SynchronousTestCase):
    """setup.cfg against the tree."""

    def setUp(self) -> None:
        self.config = ConfigParser()
        self.config.read(ROOT / "setup.cfg")

    def test_packages(self) -> None:
        """Without it a new room would work in a clone and be missing from every installation."""
        listed = set(self.config["options"]["packages"].split())
        found = {
            ".".join(init.parent.relative_to(ROOT).parts) for init in (ROOT / "kollator").rglob("__init__.py")
        }
        self.assertEqual(listed, found | {"twisted.plugins"})

    def test_data_files(self) -> None:
        """Without it the page, the schema or the demo files would be missing from every installation.

        What is compiled is an extension module of setup.py's, and no data.
        """
        patterns = [
            f"{package.replace('.', '/')}/{pattern.strip()}"
            for package, listed in self.config["options.package_data"].items()
            for pattern in listed.split(",")
        ]
        missing = [
            name
            for path in (ROOT / "kollator").rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith("_speedups.")
            for name in [path.relative_to(ROOT).as_posix()]
            if not any(fnmatch(name, pattern) for pattern in patterns)
        ]
        self.assertEqual(missing, [])
