"""One HTTP request to the front of a URL: bounded in time and size, without redirects and without proxies.

A redirect is an answer that is not a front's, since following one could carry the token elsewhere. Proxies that the
environment names are not used, for loopback or anything else: the token goes to the host of the URL alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from io import BufferedReader, RawIOBase
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec

from kollator import __version__
from kollator.cli.reading import ErrorBody
from kollator.cli.text import shown

ANSWER_BYTES = 16 * 1024 * 1024
"""The largest answer that is read: all workers of a very large cluster are some megabytes."""
DEPTH = 16
"""An answer that is nested deeper is not a front's, and indenting it would make much more of it."""
OTHER_URL = "--url or KOLLATOR_URL names another"

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "DELETE"]


class WrongSetting(Exception):
    """An argument or a setting that cannot be used; one line."""


class Refused(Exception):
    """The front said no; its code and message, in one line."""


class NoFront(Exception):
    """Nobody answers at the URL, or not as a front does; one line that names the URL and the remedy."""


class Place(NamedTuple):
    """Where a front is: a URL that was checked."""

    url: str
    """As it is shown."""
    secure: bool
    host: str
    """To connect to: a name, or an address without brackets."""
    port: int
    path: str
    """What the paths of the front are put after; empty, or begins with a slash and ends without."""

    @property
    def host_field(self) -> str:
        """The value of ``Host`` (RFC 9110 section 7.2): without a zone, which means something only here."""
        bare = self.host.partition("%")[0]
        name = f"[{bare}]" if ":" in bare else bare
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


def place_of(url: str) -> Place:
    """Reads the URL of a front. Raises ``WrongSetting`` with what is wrong with it."""
    example = "write one like http://127.0.0.1:8080 or https://front.example"
    wrong = WrongSetting(f"--url (KOLLATOR_URL): {shown(url)!r} is not the URL of a front; {example}")
    if not url.isprintable() or " " in url:
        raise wrong
    try:
        parts = urlsplit(url)
        host, port = unquote(parts.hostname or ""), parts.port
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host)
        else:
            host = host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError):
        raise wrong from None
    if parts.scheme not in ("http", "https") or not host or port == 0 or not host.isprintable() or " " in host:
        raise wrong
    if "@" in parts.netloc:
        raise WrongSetting("--url (KOLLATOR_URL): a front takes no user name in its URL; --token-file has the token")
    if parts.query or parts.fragment:
        raise wrong
    secure = parts.scheme == "https"
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return Place(url, secure, host, port or (443 if secure else 80), path)


def path_of(*segments: str, query: Mapping[str, str] | None = None) -> str:
    """Makes the path of a request, every segment and value quoted."""
    path = "".join("/" + quote(segment, safe=":") for segment in segments)
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path


class Answer(NamedTuple):
    """What a front answered: the status, the value of its JSON, and the text of ``Retry-After``."""

    status: int
    value: Any
    retry_after: str = ""


class Front:
    """The front at a place.

    ``token`` goes with requests that ask for it; ``tls`` is for ``https``; ``timeout_s`` bounds the connecting, and
    then again the whole of the answer.
    """

    def __init__(self, place: Place, token: bytes | None, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        self._place = place
        self._token = token
        self._tls = tls
        self._timeout_s = timeout_s

    @property
    def has_token(self) -> bool:
        """Whether requests below ``/admin`` can be made."""
        return self._token is not None

    def ask(self, kind: type[T], method: Method, path: str, body: Any = None, *, also: int = 200) -> tuple[T, Answer]:
        """Makes a request and returns its answer, as ``kind`` and as it came.

        The token goes with paths below ``/admin``. A status that is not a success is a ``Refused`` with the front's
        words, but for ``also`` with a body that is no error. Raises ``NoFront`` and ``WrongSetting`` as well.
        """
        answer = self._exchange(method, path, body, self._headers(path, body))
        is_error = isinstance(answer.value, dict) and "error" in answer.value
        if not 200 <= answer.status < 300 and (answer.status != also or is_error):
            raise self._refusal(answer, path)
        return self._read(answer.value, kind), answer

    def _headers(self, path: str, body: Any) -> dict[str, str | bytes]:
        headers: dict[str, str | bytes] = {
            "Host": self._place.host_field, "Accept": "application/json", "Accept-Encoding": "identity",
            "User-Agent": f"kollator/{__version__}", "Connection": "close",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        if path.startswith("/admin/"):
            if self._token is None:
                remedy = "--token-file or ADMIN_TOKEN_FILE names the file with the front's admin token"
                raise WrongSetting(f"this needs a token; {remedy}")
            headers["Authorization"] = b"Bearer " + self._token
        return headers

    def _exchange(self, method: Method, path: str, body: Any, headers: Mapping[str, str | bytes]) -> Answer:
        place = self._place
        connection = (
            http.client.HTTPSConnection(place.host, place.port, timeout=self._timeout_s, context=self._tls)
            if place.secure
            else http.client.HTTPConnection(place.host, place.port, timeout=self._timeout_s)
        )
        connected: socket.socket | None = None
        try:
            connection.connect()
            connected = connection.sock
            connection.sock = cast(Any, _Bounded(connected, time.monotonic() + self._timeout_s))
            encoded = None if body is None else msgspec.json.encode(body)
            connection.request(method, place.path + path, encoded, headers)
            response = connection.getresponse()
            content = response.read(ANSWER_BYTES + 1)
        except TimeoutError:
            raise NoFront(
                f"{shown(place.url)}: no answer within {self._timeout_s:g} s; is the front busy or the network cut?"
                f" --timeout waits longer, {OTHER_URL}"
            ) from None
        except ssl.SSLError as problem:
            raise NoFront(self._tls_failed(problem)) from None
        except http.client.HTTPException as problem:
            raise self._foreign(f"not HTTP as it should be: {type(problem).__name__}") from None
        except OSError as problem:
            reason = shown(problem.strerror or problem)
            raise NoFront(f"no front answers at {shown(place.url)} ({reason}); is it running? {OTHER_URL}") from None
        except ValueError:  # ssl takes the host for no name, or http.client a number for none
            raise self._foreign("not HTTP as it should be") from None
        finally:
            connection.close()
            if connected is not None:
                connected.close()
        if len(content) > ANSWER_BYTES:
            raise self._foreign(f"an answer of over {ANSWER_BYTES} bytes")
        if 300 <= response.status < 400:
            raise self._foreign(f"a redirect, status {response.status}, which is not followed")
        return Answer(response.status, self._decoded(response.status, content), response.getheader("retry-after", ""))

    def _tls_failed(self, problem: ssl.SSLError) -> str:
        url = shown(self._place.url)
        if isinstance(problem, ssl.SSLCertVerificationError):
            remedy = "--ca-file names the authority's certificate when it is your own"
            return f"{url}: the certificate is not trusted ({shown(problem.verify_message)}); {remedy}"
        reason = shown(problem.reason or "no reason given")
        return f"{url}: TLS failed ({reason}); does the front speak https there? {OTHER_URL}"

    def _decoded(self, status: int, content: bytes) -> Any:
        try:
            value = msgspec.json.decode(content)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise self._foreign(f"status {status} without JSON that can be read") from None
        if _is_deeper(value, DEPTH):
            raise self._foreign(f"status {status} with JSON that is nested over {DEPTH} deep")
        return value

    def _read(self, value: Any, kind: type[T]) -> T:
        try:
            return msgspec.convert(value, kind)
        except (msgspec.MsgspecError, ValueError) as problem:
            raise self._foreign(shown(problem)) from None

    def _refusal(self, answer: Answer, path: str) -> Refused:
        error = self._read(answer.value, ErrorBody).error
        later, more = answer.retry_after, ""
        if later.isdecimal() and later.isascii() and len(later) < 10:
            more = f" (again in {later} s)"
        elif error.code == "not-found" and path.startswith("/admin/"):
            more = " (a front without ADMIN_TOKEN_FILE has no /admin)"
        return Refused(f"{shown(error.code)}: {shown(error.message, 1000)}{more}")

    def _foreign(self, what: str) -> NoFront:
        return NoFront(f"{shown(self._place.url)}: this is not what a front answers: {what}; {OTHER_URL}")


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether arrays and objects are nested deeper than that."""
    if not isinstance(value, dict | list):
        return False
    below = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in below)


class _Bounded:
    """A socket, as ``http.client`` uses one, all of whose work ends by a time.

    The time-out of a socket starts again with every byte, so that a slow sender could go on for ever.
    """

    def __init__(self, connected: socket.socket, end_s: float) -> None:
        self._socket = connected
        self._end_s = end_s

    def _in_time(self) -> socket.socket:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)
        return self._socket

    def sendall(self, data: bytes) -> None:
        self._in_time().sendall(data)

    def recv_into(self, buffer: Any) -> int:
        return self._in_time().recv_into(buffer)

    def makefile(self, mode: str) -> BufferedReader:
        return BufferedReader(_Reading(self))

    def close(self) -> None:
        """Nothing: ``http.client`` closes before it reads, and leaves it to a socket to count who still reads."""


class _Reading(RawIOBase):
    """What comes out of the socket, as a stream."""

    def __init__(self, source: _Bounded) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.recv_into(buffer)
