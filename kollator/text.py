"""Text for people."""

from __future__ import annotations


def one_line(problem: object) -> str:
    """What went wrong, without line breaks; the kind of the problem where it says nothing of itself."""
    return " ".join(str(problem).split()) or type(problem).__name__
