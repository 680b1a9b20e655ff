"""ICE servers: URLs that every browser takes, and TURN credentials that expire."""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.turn import MAX_ICE_URLS, IceServers, check_ice_url, turn_credentials
from kollator.signaling.messages import IceServer

NOW = 1_760_000_000.9


class CredentialTests(SynchronousTestCase):
    """coturn's REST API."""

    def test_known_answer(self) -> None:
        """Without it a TURN server would not accept the credentials (made with openssl)."""
        self.assertEqual(
            turn_credentials(b"north", "client-1", NOW, 3600),
            ("1760003600:client-1", "4xeVmqx1AFvxCySRMNY4Xh7JDCo="),
        )

    @given(st.binary(min_size=1, max_size=100), st.text(max_size=64), st.floats(0, 4e9), st.floats(1, 1e8))
    @settings(max_examples=60, deadline=None)
    def test_as_the_server_checks(self, secret: bytes, client: str, now: float, ttl_s: float) -> None:
        """Without it some client would get credentials that a TURN server computes in another way."""
        username, credential = turn_credentials(secret, client, now, ttl_s)
        expiry, _, name = username.partition(":")
        self.assertEqual(name, client)
        self.assertEqual(int(expiry), int(now + ttl_s))
        digest = hmac.new(secret, username.encode(), hashlib.sha1).digest()
        self.assertEqual(base64.b64decode(credential), digest)


class IceUrlTests(SynchronousTestCase):
    """RFC 7064 and RFC 7065, as browsers take them."""

    def test_accepted(self) -> None:
        """Without it an operator's server would be refused."""
        for url, plain in {
            "stun:stun.l.google.com:19302": None,
            "stun:192.0.2.1": None,
            "stuns:[2001:db8::1]:5349": None,
            "turn:turn.example": None,
            "turn:turn.example:3478?transport=udp": None,
            "TURN:turn.example:3478?transport=TCP": "turn:turn.example:3478?transport=tcp",
            "turns:turn.example:443?transport=tcp": None,
        }.items():
            self.assertEqual(check_ice_url(url), plain or url)

    def test_refused(self) -> None:
        """Without it one wrong URL would keep every page from connecting, and only browsers would say so."""
        for url in (
            *("", "stun", "stun:", "stun://stun.example", "turn://turn.example:3478", "http://a.example"),
            *("stun:a:b", "stun:a:0", "stun:a:70000", "stun:a?transport=udp", "turn:a?transport=sctp"),
            *("turn:a?x=y", "turn:a?", "turn:user@a", "turn:a/b", "stun:a b", "stun:a\n", "stun:2001:db8::1"),
            *("stun:a,stun:b", "stun:" + "a" * 100_000),
        ):
            message = str(self.assertRaises(ValueError, check_ice_url, url))
            self.assertIn(repr(url[:100]), message)
            self.assertLess(len(message), 300)

    @given(st.text(max_size=60), st.sampled_from(["", "stun:", "turns:"]))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str, scheme: str) -> None:
        """Without it some setting would raise something that is not reported as a wrong setting."""
        try:
            plain = check_ice_url(scheme + text)
        except ValueError as problem:
            self.assertNotIsInstance(problem, UnicodeError)
        else:
            self.assertEqual(check_ice_url(plain), plain)


class IceServersTests(SynchronousTestCase):
    """What a client is told."""

    def test_servers(self) -> None:
        """Without it a client would not get its own credentials, or get them with the wrong secret."""
        servers = IceServers(
            ["stun:a.example", "stun:b.example"], ["turn:c.example", "turns:c.example"], [b"new", b"old"], 600
        )
        username, credential = turn_credentials(b"new", "client-1", NOW, 600)
        self.assertEqual(
            servers.for_client("client-1", NOW),
            [
                IceServer(["stun:a.example", "stun:b.example"]),
                IceServer(["turn:c.example", "turns:c.example"], username, credential),
            ],
        )
        self.assertTrue(servers.turn_is_usable)
        self.assertNotEqual(servers.for_client("client-2", NOW)[1].credential, credential)

    def test_on_the_wire(self) -> None:
        """Without it a STUN server would have an empty credential, at which some browsers stop."""
        servers = IceServers(["stun:a.example"], [], [], 600)
        self.assertEqual(msgspec.json.encode(servers.for_client("c", NOW)), b'[{"urls":["stun:a.example"]}]')

    def test_none(self) -> None:
        """Without it an empty setting would be a server without a URL, which browsers refuse."""
        servers = IceServers([], [], [b"secret"], 600)
        self.assertEqual(servers.for_client("c", NOW), [])
        self.assertTrue(servers.turn_is_usable)

    def test_turn_without_a_secret(self) -> None:
        """Without it a browser would throw at a TURN URL without credentials, and make no connection."""
        servers = IceServers(["stun:a.example"], ["turn:b.example"], [], 600)
        self.assertEqual(servers.for_client("c", NOW), [IceServer(["stun:a.example"])])
        self.assertFalse(servers.turn_is_usable)

    def test_arguments(self) -> None:
        """Without it a wrong setting would be found out by the first browser."""
        stun, turn = "stun:a.example", "turn:a.example"
        self.assertRaises(ValueError, IceServers, [turn], [], [], 600)
        self.assertRaises(ValueError, IceServers, [], [stun], [], 600)
        self.assertRaises(ValueError, IceServers, ["nonsense"], [], [], 600)
        self.assertRaises(ValueError, IceServers, [stun] * (MAX_ICE_URLS + 1), [], [], 600)
        self.assertRaises(ValueError, IceServers, [stun], [], [], 0)

    def test_secrecy(self) -> None:
        """Without it a logged object would show the secret of the TURN server."""
        servers = IceServers([], ["turn:a.example"], [b"tell-nobody"], 600)
        self.assertNotIn("tell", repr(servers) + repr(servers.for_client("c", NOW)))
