"""A resource of twisted.web that answers ``ANSWER`` on ``PORT``: ``python -m tests.bench.peers.plain_web``."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Request, Site


class Constant(Resource):
    """The same for everybody."""

    isLeaf = True

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._answer = answer

    def render_POST(self, request: Request) -> bytes:
        """The answer."""
        request.setHeader(b"content-type", b"application/json; charset=utf-8")
        return self._answer


def main() -> None:
    """Serves until it is killed."""
    turning: Any = reactor
    site = Site(Constant(os.environ["ANSWER"].encode()))
    site.noisy = False
    turning.listenTCP(int(os.environ["PORT"]), site, backlog=511, interface="127.0.0.1")
    turning.run()


if __name__ == "__main__":
    main()
