"""A look at a database file before anything may change it, and the lock that keeps a second front away.

What is not ours, or not in order, is left byte for byte as it was. So the header is read without SQLite, and
the pages through a connection that can neither write nor tidy up.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import NamedTuple
from urllib.parse import quote

import apsw

from kollator.state.errors import (
    CorruptDatabaseError,
    ForeignDatabaseError,
    LockedDatabaseError,
    NewerDatabaseError,
    NotADatabaseError,
    PathError,
    StorageFailedError,
    StoreError,
)

APPLICATION_ID = 0x4B4C5446
"""SQLite's application_id in our files: "KLTF"."""
MAGIC = b"SQLite format 3\x00"
BUSY_TIMEOUT_MS = 250
"""How long a tool that has the database open for a moment is waited for."""

_MOVE = "move the file away or name another one"


class Header(NamedTuple):
    """What a database says of itself (sqlite.org/fileformat.html section 1.3)."""

    application_id: int
    user_version: int


def absolute(path: str) -> str:
    """The path that stays right when a daemon changes its folder, and is one for each file, links or not.

    Raises ``PathError``.
    """
    try:
        return os.path.realpath(path)
    except ValueError:
        raise PathError("SQLITE_PATH: a path has no NUL in it: name another file") from None


def check_path(path: str) -> None:
    """Whether a database can be at the absolute ``path``, or be made there. Raises ``PathError``."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise PathError(f"SQLITE_PATH: there is no folder {folder}: make it, or name a file in another one")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PathError(f"SQLITE_PATH: this user may not write in {folder}: allow it, or name another file")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as problem:
        raise PathError(f"SQLITE_PATH: {path}: {problem.strerror}: name another file") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise PathError(f"SQLITE_PATH: {path} is {kind}: name a file")
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        raise PathError(f"SQLITE_PATH: this user may not read and write {path}: allow it or name another file")


def read_header(path: str) -> Header | None:
    """The header of the file, or None when there is no file or nothing in it.

    Call it under the lock: closing a file drops every POSIX lock that the process has on it, SQLite's too.
    Raises ``NotADatabaseError``, ``PathError``.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise PathError(f"SQLITE_PATH: {path}: {problem.strerror}: name another file") from None
    if not head:
        return None
    if len(head) < 100 or not head.startswith(MAGIC):
        raise NotADatabaseError(f"SQLITE_PATH: {path} is not a database: {_MOVE}")
    return Header(int.from_bytes(head[68:72], "big"), int.from_bytes(head[60:64], "big"))


def inspect(path: str, newest_version: int) -> bool:
    """Check the file at ``path`` without changing it: ours, sound, and of a version up to ``newest_version``.

    Returns whether there is a database: False for no file and for an empty one. Raises ``StoreError``.
    """
    check_path(path)
    header = read_header(path)
    if header is None:
        return False
    if header.application_id != APPLICATION_ID:
        raise ForeignDatabaseError(f"SQLITE_PATH: {path} is a database of another application: {_MOVE}")
    if header.user_version > newest_version:
        raise newer(path, header.user_version, newest_version)
    try:
        connection = _open_untouching(path)
        try:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchall()[0][0])
            version = int(str(connection.execute("PRAGMA user_version").fetchall()[0][0]))
        finally:
            connection.close()
    except apsw.Error as problem:
        raise failure(problem, path) from None
    if found != "ok":
        raise corrupt(path, found)
    if version > newest_version:
        raise newer(path, version, newest_version)
    return True


def _open_untouching(path: str) -> apsw.Connection:
    if not any(has_bytes(path + suffix) for suffix in ("-wal", "-journal")):
        # Nothing but the file itself counts, so SQLite needs no lock and makes no file beside it.
        uri = f"file:{quote(path)}?immutable=1"
        return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    # After a crash the newest pages are in the log. Read it, but leave it for the real opening to fold in;
    # with the lock on the file itself, the log's index is in memory and not in a file.
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    connection.execute("PRAGMA query_only=ON").fetchall()
    return connection


def has_bytes(path: str) -> bool:
    """Whether there is a file with something in it."""
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def corrupt(path: str, found: object) -> CorruptDatabaseError:
    """The error for a damaged file; ``found`` is SQLite's own word for it."""
    return CorruptDatabaseError(
        f"SQLITE_PATH: {path} is damaged ({str(found)[:200]}): "
        "move it away; a new one fills itself from the other fronts"
    )


def newer(path: str, version: int, newest: int) -> NewerDatabaseError:
    """The error for a file of a version that this front does not know."""
    return NewerDatabaseError(
        f"SQLITE_PATH: {path} has schema version {version}, this front knows up to {newest}: "
        f"install the newer front, or name another file"
    )


def failure(problem: apsw.Error, path: str) -> StoreError:
    """SQLite's error as one of ours, for the operator.

    Inside cr-sqlite's triggers and tables any trouble, a full disk too, comes out as "SQL logic error".
    """
    if isinstance(problem, (apsw.BusyError, apsw.LockedError)):
        return LockedDatabaseError(f"SQLITE_PATH: another process locks {path}: stop it, or name another file")
    if isinstance(problem, (apsw.CorruptError, apsw.FormatError)):
        return corrupt(path, problem)
    if isinstance(problem, apsw.NotADBError):
        return NotADatabaseError(f"SQLITE_PATH: {path} is not a database: {_MOVE}")
    if isinstance(problem, apsw.FullError):
        return StorageFailedError(f"SQLITE_PATH: no room left to write {path}: make room on its disk")
    if isinstance(problem, (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError)):
        return PathError(
            f"SQLITE_PATH: this process cannot write {path} ({problem}): check the permissions of it and its folder"
        )
    return StorageFailedError(f"SQLITE_PATH: {path}: {problem}: check that its disk has room and is sound")


class FileLock:
    """Keeps a second front off a database, by a lock on ``<path>.lock`` for as long as this process lives.

    It is not SQLite's own lock, so that tools may read the database, or back it up, while the front runs; and
    it is flock's, which the kernel lets go with the process, however that ends. Raises
    ``LockedDatabaseError``.
    """

    def __init__(self, database: str) -> None:
        self._path = database + ".lock"
        self._fd = -1
        for _ in range(10):
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(fd, 20).decode("ascii", "replace").strip()
                os.close(fd)
                who = f"process {owner}" if owner.isdigit() else "another process"
                raise LockedDatabaseError(
                    f"SQLITE_PATH: {who} has {database} in use: stop it, or give each front its own file"
                ) from None
            except OSError as problem:
                os.close(fd)
                raise PathError(
                    f"SQLITE_PATH: {self._path} cannot be locked ({problem.strerror}): name a local file"
                ) from None
            if self._still_named(fd):
                os.ftruncate(fd, 0)
                os.write(fd, b"%d\n" % os.getpid())
                self._fd = fd
                return
            os.close(fd)  # its owner removed it between our open and our lock: there is a new one
        raise LockedDatabaseError(f"SQLITE_PATH: others contend for {database}: give each front its own file")

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            raise PathError(
                f"SQLITE_PATH: {self._path}: {problem.strerror}: it must be a file this user may write"
            ) from None

    def _still_named(self, fd: int) -> bool:
        try:
            named = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def release(self) -> None:
        """Let the file go and leave nothing behind. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            finally:
                os.close(fd)
