"""What can be wrong with the database or the extension: each message is one line for the operator.

A message names the setting and the remedy, because it may be all that is seen of a start-up that failed.
"""

from __future__ import annotations


def one_line(text: object) -> str:
    """Anything as a single line of printable characters, whatever a file name or a library's message
    holds.
    """
    joined = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in joined)


class StoreError(Exception):
    """The database cannot be used, or a write did not reach it. Its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ExtensionError(StoreError):
    """No cr-sqlite extension, or one that does not load."""


class PathError(StoreError):
    """The path cannot hold a database: no folder, no permission, not a file."""


class NotADatabaseError(StoreError):
    """The file is something else."""


class CorruptDatabaseError(StoreError):
    """The file is a database of ours that is damaged."""


class ForeignDatabaseError(StoreError):
    """The file is a database of another application."""


class NewerDatabaseError(StoreError):
    """The file was written by a newer version of the front."""


class LockedDatabaseError(StoreError):
    """Another process has the file."""


class StorageFailedError(StoreError):
    """The disk is full, or reading or writing failed, while the database was in use."""
