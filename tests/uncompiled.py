"""Trial, as on a machine without a C compiler: ``python -m tests.uncompiled tests.test_fastpath``."""

from __future__ import annotations

import sys

from twisted.scripts.trial import run

if __name__ == "__main__":
    sys.modules["kollator._speedups"] = None  # type: ignore[assignment]  # what importing it finds: an ImportError
    sys.exit(run())
