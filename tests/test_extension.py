"""Finding and loading cr-sqlite."""

from __future__ import annotations

from pathlib import Path

import apsw
from twisted.trial.unittest import SynchronousTestCase

from kollator.state import extension
from kollator.state.errors import ExtensionError, StoreError, one_line
from kollator.state.store import Store


class FindTests(SynchronousTestCase):
    """Which library is used."""

    def refused(self, *arguments, **keywords):
        message = str(self.assertRaises(ExtensionError, extension.find, *arguments, **keywords))
        self.assertTrue(message.startswith("CRSQLITE_PATH: "), message)
        self.assertNotIn("\n", message)
        return message

    def test_packaged(self):
        """An installed front would not find its own library; run the build step if this fails."""
        path = extension.find()
        self.assertTrue(Path(path).is_absolute())
        extension.verify(path)

    def test_explicit_wins(self):
        """The setting would have no effect where there is a packaged library."""
        named = Path(self.mktemp())
        named.write_bytes(b"")
        self.assertEqual(extension.find(str(named)), str(named.resolve()))

    def test_no_such_file(self):
        """A mistyped setting would silently use another library, or end in a traceback."""
        self.assertIn("nowhere.so", self.refused("/nowhere.so"))
        self.refused(self.mktemp() + "\nx")

    def test_folder_is_no_library(self):
        """A folder would be handed to the loader."""
        self.refused("/")

    def test_platform_without_one(self):
        """A front on another machine would not say what to do."""
        self.assertIn("plan9-mips", self.refused(folder=Path(self.mktemp()), platform="plan9-mips"))


class LoadTests(SynchronousTestCase):
    """What a library must be."""

    def test_rubbish(self):
        """A file that is no library, or another one, would end in a traceback."""
        rubbish = Path(self.mktemp())
        rubbish.write_bytes(b"not a library\n")
        other = apsw.__file__  # a library, but no extension of SQLite
        for path in (str(rubbish), other):
            message = str(self.assertRaises(ExtensionError, extension.verify, path))
            self.assertTrue(message.startswith("CRSQLITE_PATH: "), message)
            self.assertNotIn("\n", message)

    def test_bad_extension_leaves_the_database_alone(self):
        """A mistyped setting would leave a half-made database behind."""
        rubbish = Path(self.mktemp())
        rubbish.write_bytes(b"not a library\n")
        database = Path(self.mktemp())
        self.assertRaises(ExtensionError, Store.open, str(database), node_id="a", extension=str(rubbish))
        self.assertRaises(ExtensionError, Store.check, str(database), extension=str(rubbish))
        self.assertFalse(database.exists())

    def test_nothing_else_can_be_loaded(self):
        """SQL could load any library into the front."""
        connection = apsw.Connection(":memory:")
        extension.load(connection, extension.find())
        statement = "SELECT load_extension('x')"
        self.assertRaises(apsw.SQLError, connection.execute, statement)
        extension.finalize(connection)
        connection.close()


class ErrorTests(SynchronousTestCase):
    """Messages for the operator."""

    def test_always_one_line(self):
        """A file name with a line break could forge a line of the log."""
        self.assertEqual(one_line("a\nb\tc \x1b[31m\u2028d"), "a b c ?[31m d")
        self.assertEqual(str(StoreError("x\r\ny")), "x y")
