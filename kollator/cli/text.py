"""Texts for a terminal: escaped, clipped, aligned. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

CELL_CHARS = 200
"""The longest cell of a table, and the longest line of an error: what a front sends does not fill a screen."""


def shown(text: object, chars: int = CELL_CHARS) -> str:
    r"""Returns a text as it may be printed: what is not printable escaped as in Python (``\x1b``), clipped.

    That covers control characters, which could command the terminal, line feeds, which could forge a row, and the
    formatting characters of Unicode, which could turn a line around.
    """
    whole = str(text)
    clipped = whole if len(whole) <= chars else whole[: chars - 1] + "…"
    return "".join(each if each.isprintable() else _escaped(each) for each in clipped)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yields the lines of a table, columns aligned. Numbers are flush right, in the head as well."""
    kept = list(rows)
    lines = [list(head), *([shown(cell) for cell in row] for row in kept)]
    columns = range(len(head))
    right = [bool(kept) and all(isinstance(row[column], int) for row in kept) for column in columns]
    widths = [max(len(line[column]) for line in lines) for column in columns]
    for line in lines:
        aligned = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        )
        yield "  ".join(aligned).rstrip()


def pairs(fields: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yields a line for each name and value, the values below each other."""
    kept = [(shown(name), shown(value)) for name, value in fields]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        yield f"{name.ljust(width)}  {value}".rstrip()


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: ``2d 3h``, ``4m 5s``, ``7s``. A negative one counts as none."""
    left = int(min(max(seconds, 0), 1e12))
    days, left = divmod(left, 86_400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [f"{count}{unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (left, "s"))]
    first = next((place for place, count in enumerate((days, hours, minutes)) if count), 3)
    return " ".join(parts[first : first + 2])


def write(stream: TextIO | None, lines: Iterable[str]) -> None:
    """Writes lines to a stream and flushes it; what its encoding does not have is escaped.

    None, a standard stream that was closed before the start, takes nothing. Raises ``OSError`` of the stream.
    """
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    for line in lines:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
