"""Finding and loading the cr-sqlite extension."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from kollator.state.errors import ExtensionError
from kollator.state.prebuilt import library_name, this_platform

ENTRY_POINT = "sqlite3_crsqlite_init"
LIBRARY_FOLDER = Path(__file__).with_name("lib")


def find(explicit: str | None = None, *, folder: Path = LIBRARY_FOLDER, platform: str | None = None) -> str:
    """Absolute path of the extension: ``explicit`` (the setting CRSQLITE_PATH), else the packaged one.

    ``folder`` and ``platform`` are where the packaged one lies and for which platform; the defaults are right
    for an installed front. Raises ``ExtensionError``.
    """
    if explicit:
        path = os.path.abspath(explicit)
        if not os.path.isfile(path):
            raise ExtensionError(
                f"CRSQLITE_PATH: there is no file {path}: name a cr-sqlite library, or unset it for ours"
            )
        return path
    name = platform or this_platform()
    packaged = folder / library_name(name)
    if not packaged.is_file():
        raise ExtensionError(
            f"CRSQLITE_PATH: this installation has no cr-sqlite extension for {name}: "
            "set it to a library built for this machine, or install again where there is a prebuilt one"
        )
    return str(packaged)


def load(connection: apsw.Connection, path: str) -> None:
    """Load the extension at ``path`` into a connection; nothing else can be loaded into it after.

    Raises ``ExtensionError`` when the file is not cr-sqlite for this platform. Do this first with a scratch
    connection (``verify``): on a database, cr-sqlite makes its own tables as it loads.
    """
    try:
        connection.enable_load_extension(True)
        try:
            connection.load_extension(path, ENTRY_POINT)
        finally:
            connection.enable_load_extension(False)
        connection.execute("SELECT crsql_db_version()").fetchall()
    except apsw.Error as problem:
        raise ExtensionError(
            f"CRSQLITE_PATH: {path} does not load as cr-sqlite ({problem}): name a library built for this machine"
        ) from None


def finalize(connection: apsw.Connection) -> None:
    """Let the extension put its statements away, which must come before the connection is closed."""
    connection.execute("SELECT crsql_finalize()").fetchall()


def verify(path: str) -> None:
    """Try the extension on an empty database in memory. Raises ``ExtensionError``."""
    scratch = apsw.Connection(":memory:")
    try:
        load(scratch, path)
        finalize(scratch)
    finally:
        scratch.close()
