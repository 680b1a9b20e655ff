"""The peer's reading of what a front writes on one connection: every answer and frame is checked as it comes."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import MsgspecError

from kollator.signaling.messages import Close, ToClient, ToWorker, decoder
from tests.fuzz.oracle import Broken

CLOSE_CODES = frozenset(
    {value for name, value in vars(Close).items() if name.isupper()} | {1002, 1007}  # RFC 6455 section 7.4.1
)
STATUSES = frozenset({
    100, 101, 200, 201, 204, 304, 400, 401, 403, 404, 405, 408, 409, 413, 414, 417, 422, 426, 429, 431, 501, 503, 505,
})  # fmt: skip
FIELDS = frozenset({
    "access-control-allow-headers", "access-control-allow-methods", "access-control-allow-origin",
    "access-control-expose-headers", "access-control-max-age", "allow", "cache-control", "connection",
    "content-length", "content-security-policy", "content-type", "cross-origin-opener-policy",
    "cross-origin-resource-policy", "date", "etag", "permissions-policy", "referrer-policy", "retry-after",
    "sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-version", "server", "upgrade", "vary",
    "www-authenticate", "x-content-type-options", "x-frame-options",
})  # fmt: skip
"""The names of all header fields that a front writes: another one was put there by its peer."""
KEPT = 64
"""So many of the last messages are kept."""

_HEAD = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) [ -~]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff]*)")
_to_client: Any = decoder(ToClient)
_to_worker: Any = decoder(ToWorker)


class Reading:
    """What has come on one connection."""

    def __init__(self) -> None:
        self.is_websocket = False
        self.welcomed = False
        self.close_code: int | None = None
        self.new: list[str] = []
        """What has come since this was emptied, in a word each."""
        self.messages: list[dict[str, Any]] = []
        self._data = b""

    def feed(self, data: bytes) -> Reading:
        """Takes what came. Raises ``Broken`` for what no front writes."""
        self._data += data
        while self._data and (self._frame() if self.is_websocket else self._answer()):
            pass
        return self

    def end(self) -> None:
        """Nothing more comes. Raises ``Broken`` when something was begun."""
        if self._data:
            raise Broken(f"the front stopped in the middle of {self._data[:200]!r}")

    def last(self, kind: str) -> dict[str, Any]:
        """The newest message of a type, {} when there was none."""
        return next((message for message in reversed(self.messages) if message["type"] == kind), {})

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    def _answer(self) -> bool:
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = head.split(b"\r\n")
        match = _HEAD.fullmatch(first)
        if match is None:
            raise Broken(f"no status line: {first[:200]!r}")
        status = int(match[1])
        fields = self._fields(lines)
        if status not in STATUSES:
            raise Broken(f"an answer of status {status}: {self._data[:300]!r}")
        size = int(fields.get("content-length", 0))
        if status < 200 or status in (204, 304) or rest.startswith(b"HTTP/1.") or not rest:
            size = 0  # also after HEAD, which has a length and no body
        elif "content-length" not in fields:
            raise Broken(f"an answer without its length: {head!r}")
        if len(rest) < size:
            return False
        body, self._data = rest[:size], rest[size:]
        if status >= 400 and body and not (status == 503 and body.startswith(b'{"status":')):  # but for /health
            _check_error(body, fields)
        elif body and "json" in fields.get("content-type", ""):
            json.loads(body)
        self.new.append(str(status))
        self.is_websocket = status == 101
        return True

    def _fields(self, lines: list[bytes]) -> dict[str, str]:
        fields: dict[str, str] = {}
        for line in lines:
            match = _FIELD.fullmatch(line)
            name = "" if match is None else match[1].decode().lower()
            if match is None or name not in FIELDS or name in fields:
                raise Broken(f"a header field that no front writes: {line[:200]!r}")
            fields[name] = match[2].decode("latin-1")
        return fields

    # -- WebSocket ----------------------------------------------------------------------------------------------------

    def _frame(self) -> bool:
        data = self._data
        if len(data) < 2:
            return False
        if self.close_code is not None:
            raise Broken(f"something was sent after the close frame: {data[:200]!r}")
        first, length, start = data[0], data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return False
        payload, self._data = data[start : start + length], data[start + length :]
        if first == 0x81:
            self._message(payload)
        elif first == 0x88:
            self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.new.append(str(self.close_code))
            payload[2:].decode()
            if payload and self.close_code not in CLOSE_CODES and not 3000 <= self.close_code < 5000:
                raise Broken(f"closed with {self.close_code}, {payload[2:]!r}")
        elif first not in (0x89, 0x8A) or length > 125:
            raise Broken(f"a frame that no front sends: {data[:200]!r}")
        return True

    def _message(self, payload: bytes) -> None:
        try:
            _to_client.decode(payload)
        except MsgspecError:
            try:
                _to_worker.decode(payload)
            except MsgspecError as problem:
                raise Broken(f"a message that no front sends ({problem}): {payload[:300]!r}") from None
        self.messages.append(json.loads(payload))
        self.new.append(self.messages[-1].get("code", self.messages[-1]["type"]))
        self.welcomed = self.welcomed or self.new[-1] == "welcome"
        del self.messages[:-KEPT]


def _check_error(body: bytes, fields: dict[str, str]) -> None:
    try:
        error = json.loads(body)["error"]
        good = set(error) == {"code", "message"} and all(type(text) is str and text for text in error.values())
    except (ValueError, TypeError, KeyError):
        good = False
    if not good or fields.get("content-type") != "application/json; charset=utf-8":
        raise Broken(f"an error in another form: {body[:300]!r}, {fields}")
