"""A folder that is served read-only: what is in it, and its files in blocks with a running SHA-256.

What may be reached: regular files below the folder. Not reached, and all answered alike with ``NotFound``:
names with a part that begins with a dot (so ``..`` too), absolute names, empty parts, NUL, links that lead
out of the folder or to a hidden name, and whatever is not a regular file. Links inside the folder are
followed; a linked folder is not listed, so that a loop of links is no loop here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType

from .channel import CHUNK_DATA_BYTES, Listed

LISTED_FILES = 10_000
"""How many files a listing names at most: some 1 MB of JSON."""
BLOCK_BYTES = 16 * CHUNK_DATA_BYTES
"""How much is read at once, in bytes: 16 chunks, below 256 KiB, hashed in well under a millisecond."""
_LINK = (errno.ELOOP, errno.EMLINK, errno.ENXIO)
"""What opening a link, or a socket, that was to be a file ends with."""


class NotFound(Exception):
    """There is no file of this name to be served."""


class Changed(Exception):
    """The file's size changed while it was read."""


class OpenFile:
    """A file that is being read: ``size`` bytes were there when it was opened. A context manager."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor
        self._read = 0
        self._sha256 = hashlib.sha256()

    def read(self) -> bytes:
        """The next block, at most ``BLOCK_BYTES``; empty after the last.

        Never more than ``size`` bytes in all. Raises ``Changed`` when the file became shorter, ``OSError``.
        """
        wanted = min(BLOCK_BYTES, self.size - self._read)
        if not wanted:
            return b""
        block = os.read(self._descriptor, wanted)
        if not block:
            raise Changed
        self._read += len(block)
        self._sha256.update(block)
        return block

    def digest(self) -> str:
        """SHA-256, in hex, of what was read. Raises ``Changed`` when the file's size is not what it was."""
        if os.fstat(self._descriptor).st_size != self.size:
            raise Changed
        return self._sha256.hexdigest()

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


class Folder:
    """The served folder. Raises ``NotADirectoryError`` when ``path`` is none."""

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).resolve()
        if not self.root.is_dir():
            raise NotADirectoryError(str(path))

    def listing(self) -> tuple[list[Listed], bool]:
        """The files, sorted by name, and whether there are more than ``LISTED_FILES``.

        A folder that cannot be read counts as empty. Takes as long as the disk does: call it in a thread.
        """
        files: list[Listed] = []
        folders = [""]
        while folders:
            inside: list[str] = []
            for name, is_folder in self._entries(folders.pop()):
                if is_folder:
                    inside.append(f"{name}/")
                elif (size := self._size(name)) is not None:
                    if len(files) == LISTED_FILES:
                        return sorted(files, key=_by_name), True
                    files.append(Listed(name, size))
            folders.extend(reversed(inside))
        return sorted(files, key=_by_name), False

    def open(self, name: str) -> OpenFile:
        """The file of this listed name, opened for reading. Raises ``NotFound``, ``OSError``."""
        descriptor = self._open(self._parts(name))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(name)
            return OpenFile(descriptor, status.st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder ("" or ending in a slash) that may be served, sorted; True: a folder."""
        found: list[tuple[str, bool]] = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if _speakable(entry.name):
                        found.append((folder + entry.name, entry.is_dir(follow_symlinks=False)))
        except OSError:
            return []
        return sorted(found)

    def _size(self, name: str) -> int | None:
        """The size of a file that may be served, None for everything else."""
        try:
            path = self.root / name
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                status = self.root.joinpath(*self._parts(name)).lstat()
        except (NotFound, OSError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _parts(self, name: str) -> tuple[str, ...]:
        """The real path of a name, below the folder and without links. Raises ``NotFound``."""
        if not all(_speakable(part) for part in name.split("/")):
            raise NotFound(name)
        try:
            parts = (self.root / name).resolve(strict=True).relative_to(self.root).parts
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
            raise NotFound(name) from None
        if not parts or any(part.startswith(".") for part in parts):
            raise NotFound(name)
        return parts

    def _open(self, parts: tuple[str, ...]) -> int:
        """Opens part by part and follows no link: what was a folder a moment ago cannot become a way out."""
        at = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            # O_NONBLOCK: a named pipe without a writer would hold the whole process up.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            return os.open(parts[-1], flags, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError) as problem:
            raise NotFound("/".join(parts)) from problem
        except OSError as problem:
            if problem.errno in _LINK:
                raise NotFound("/".join(parts)) from problem
            raise
        finally:
            os.close(at)


def _by_name(file: Listed) -> str:
    return file.name


def _speakable(part: str) -> bool:
    """Whether a part of a name may be served: not empty, not hidden, without NUL, and possible in JSON."""
    if not part or part.startswith(".") or "\0" in part:
        return False
    try:
        part.encode()
    except UnicodeEncodeError:
        return False
    return True
