"""``--demo-worker``: a reference worker as a child process of the front."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from kollator.children import ChildProcess, Command

log = Logger("kollator:demo")

TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


class DemoWorker(ChildProcess):
    """Runs ``twistd kollator-worker`` against this front. ``url`` tells the front's signaling URL once it listens."""

    def __init__(self, reactor: Any, url: Callable[[], str | None], key: bytes, folder: str | None) -> None:
        super().__init__("the demo worker", reactor, self._demo, log)
        self._url = url
        self._key = bytes(key)
        self._folder = folder

    def _demo(self) -> Command | None:
        url = self._url()
        if url is None:
            log.error("--demo-worker needs a plain tcp: endpoint in LISTEN")
            return None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
        environment |= {
            "WORKER_KEY": self._key.decode("utf-8"),
            "WORKER_FRONTS": url,
            "WORKER_ID": "demo",
            "WORKER_UNTIL_EOF": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if self._folder:
            environment["WORKER_FOLDER"] = self._folder
        arguments = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "--reactor=asyncio", "kollator-worker"]
        return Command(arguments, environment)
