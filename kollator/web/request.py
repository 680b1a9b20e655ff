"""twisted.web's request, bounded, and without what nobody here uses."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.server import Request as ServerRequest

from kollator.web.answers import BODY_BYTES
from kollator.web.refusal import Refusal, too_large

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


class FrontRequest(ServerRequest):
    """One request: its body bounded, its target in any form that a client may use."""

    channel: Any
    content: Any
    # What server.Request has beside these is for encoders and default types, of which there are none here.
    write = Request.write
    finish = Request.finish

    def parseCookies(self) -> None:
        """Nothing here looks at cookies."""

    def handleContentChunk(self, data: bytes) -> None:
        """Part of the body; one that grows too large is not waited for."""
        if self.content.tell() + len(data) > BODY_BYTES:
            self.channel.refuse(too_large())
        else:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Brings the target into origin form (RFC 9112 section 3.2), then answers."""
        absolute = _ABSOLUTE.fullmatch(path)
        if absolute is not None:
            authority, path = absolute.groups()
            path = path if path.startswith(b"/") else b"/" + path
            self.requestHeaders.setRawHeaders(b"host", [authority])
        elif path == b"*" and command == b"OPTIONS":
            path = b"/"  # about the server as a whole, of which this is as good as any
        elif not path.startswith(b"/"):
            self.channel.refuse(Refusal(400, "bad-request", "the request's target is not a path"))
            return
        self.requestHeaders.removeHeader(b"content-type")  # twisted.web would look for forms in what is called one
        super().requestReceived(command, path, version)

    def process(self) -> None:
        """Has a resource answer; twisted.web's own sets headers that all answers have (see ``FrontSite.preamble``)."""
        self.site = self.channel.site
        self.prepath = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        try:
            self.render(self.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())
