"""ICE servers for browsers: checked STUN and TURN URLs, and TURN credentials that expire.

The credentials are those of coturn's ``use-auth-secret`` (draft-uberti-behave-turn-rest-00): the TURN server
knows the secret and no user, and checks the time in the user name by itself.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence

from kollator.guard.hosts import parse_host_port
from kollator.signaling.messages import IceServer

MAX_ICE_URLS = 16
"""Of either kind. Browsers warn from five on, since each one slows the gathering of candidates down."""

_ICE_URL = re.compile(r"(stuns?|turns?):([^?]*)(\?transport=(?:udp|tcp))?", re.IGNORECASE)


def check_ice_url(text: str) -> str:
    """Return a ``stun:``, ``stuns:`` (RFC 7064), ``turn:`` or ``turns:`` (RFC 7065) URL in plain form.

    Raises ``ValueError`` that names the text and the remedy. It is strict, since one URL that a browser does
    not take keeps its page from making any connection.
    """
    match = _ICE_URL.fullmatch(text) if len(text) <= 300 else None
    if match is None or parse_host_port(match[2]) is None:
        raise ValueError(
            f"{text[:100]!r} is not an ICE server; write stun:host:port or turn:host:port?transport=udp"
        )
    scheme, where, query = match[1].lower(), match[2], (match[3] or "").lower()
    if query and scheme.startswith("stun"):
        raise ValueError(f"{text[:100]!r}: a STUN URL has no transport; write {scheme}:{where}")
    return f"{scheme}:{where}{query}"


def turn_credentials(secret: bytes, client_id: str, now: float, ttl_s: float) -> tuple[str, str]:
    """Return user name and credential for one client, good for ``ttl_s`` seconds.

    The user name is ``<expiry in seconds since 1970>:<client id>``, the credential HMAC-SHA1 over it in
    base64.
    """
    username = f"{int(now + ttl_s)}:{client_id}"
    digest = hmac.digest(secret, username.encode("utf-8", "surrogatepass"), "sha1")
    return username, base64.b64encode(digest).decode()


class IceServers:
    """What ``iceServers`` says to each client.

    ``stun_urls`` and ``turn_urls`` are checked by ``check_ice_url``; of ``secrets`` the first signs (a TURN
    server takes several, so that they can be changed one after the other); ``ttl_s`` is how long credentials
    are good for, in seconds. Without a secret TURN servers are left out (``turn_is_usable`` is False): a
    browser refuses to make any connection when it is given one without credentials.

    Raises ``ValueError`` for a URL that is none or of the other kind, for over ``MAX_ICE_URLS`` of one kind,
    and for a ``ttl_s`` below one.
    """

    __slots__ = ("_secret", "_stun", "_ttl_s", "_turn_urls", "turn_is_usable")

    def __init__(
        self, stun_urls: Sequence[str], turn_urls: Sequence[str], secrets: Sequence[bytes], ttl_s: float
    ) -> None:
        if not 1 <= ttl_s < 1e9:
            raise ValueError("TURN credentials live for one second at least")
        stun = _checked(stun_urls, "stun")
        self._stun = [IceServer(stun)] if stun else []
        self._turn_urls = _checked(turn_urls, "turn")
        self._secret = secrets[0] if secrets else b""
        self._ttl_s = ttl_s
        self.turn_is_usable = not self._turn_urls or bool(self._secret)

    def for_client(self, client_id: str, now: float) -> list[IceServer]:
        """Return the servers for a client, or a worker, with its own credentials; ``now`` since 1970."""
        if not self._turn_urls or not self._secret:
            return list(self._stun)
        username, credential = turn_credentials(self._secret, client_id, now, self._ttl_s)
        return [*self._stun, IceServer(self._turn_urls, username, credential)]


def _checked(urls: Sequence[str], kind: str) -> list[str]:
    if len(urls) > MAX_ICE_URLS:
        raise ValueError(f"there are {len(urls)} {kind.upper()} servers, {MAX_ICE_URLS} at most")
    checked = [check_ice_url(url) for url in urls]
    for url in checked:
        if not url.startswith(kind):
            raise ValueError(f"{url!r} is not a {kind.upper()} server; write it into the other setting")
    return checked
