"""Starts fronts that are expected to fail, many of them, quickly: a program, run as a child by the tests.

Most of a start's time goes into importing libraries. This process imports the third-party ones once, never
the product, and forks for each start; the child then runs ``twistd`` as its script does. It reads one JSON
object a line, ``{"arguments", "environment", "folder"}``, and answers ``{"status", "out", "err"}``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from typing import Any

CHILD_LIMIT_S = 120
"""Guards against a start that hangs."""
LIBRARIES = ("apsw", "attrs", "autobahn.websocket.protocol", "msgspec", "OpenSSL.SSL", "prometheus_client",
             "twisted.internet.endpoints", "twisted.internet.ssl", "twisted.scripts._twistd_unix",
             "twisted.scripts.twistd", "twisted.web.server")


def _import_libraries() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)


def _child(start: dict[str, Any], out: int, err: int) -> None:
    status = 1
    try:
        signal.alarm(CHILD_LIMIT_S)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(start["folder"])
        os.environ.clear()
        os.environ.update(start["environment"])
        sys.argv = ["twistd", *start["arguments"]]
        from twisted.scripts.twistd import run

        run()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answers every line of standard input; returns at its end."""
    _import_libraries()
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                _child(json.loads(line), out.fileno(), err.fileno())
            _, result = os.waitpid(pid, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        answer = {"status": os.waitstatus_to_exitcode(result), "out": texts[0], "err": texts[1]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
