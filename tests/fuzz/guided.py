"""The codecs under atheris, whose mutations are led by what code they reach. It is no dependency: see ``MISSING``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

MISSING = (
    "atheris is not installed; it is for Linux and for some versions of Python only: in a virtual environment that has"
    " the tests' requirements, python -m pip install atheris"
)


def run(name: str, minutes: float) -> int:
    """Runs one codec for so many minutes (0: for ever); returns an exit status, or ends the process with one."""
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        print(MISSING, file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["kollator"]):
        from tests.fuzz import codecs
    found: dict[str, Any] = {
        kind.name: kind for kind in vars(codecs).values()
        if isinstance(kind, type) and issubclass(kind, codecs.CodecTarget) and kind is not codecs.CodecTarget
    }  # fmt: skip
    if name not in found:
        print(f"--atheris takes one of {', '.join(sorted(found))}", file=sys.stderr)
        return 2
    check = found[name].check
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(found[name].corpus):
            Path(folder, str(number)).write_bytes(data)
        crash = os.path.join(tempfile.gettempdir(), f"fuzz-{name}-")
        limits = [f"-max_total_time={round(minutes * 60)}"] if minutes else []
        limits += ["-timeout=20", "-max_len=8192", "-len_control=0", f"-artifact_prefix={crash}"]
        arguments = [sys.argv[0], *limits, folder]
        atheris.Setup(arguments, lambda data: check(data))
        atheris.Fuzz()  # ends the process
    return 0
