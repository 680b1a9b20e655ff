"""What is compiled for this machine (``_speedups.c``), or None: everything works without, and a message takes longer.

The installation compiles it where there are a C compiler and Python's headers.
"""

from __future__ import annotations

try:
    from kollator import _speedups as speedups
except ImportError:
    speedups = None  # type: ignore[assignment]

__all__ = ("speedups",)
