"""Origins: which pages may use a front."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.origins import OriginPolicy


class OriginPolicyTests(SynchronousTestCase):
    """The ``Origin`` header against the allow-list."""

    def test_same_host(self) -> None:
        """Without it any page could connect from a visitor's browser, or the front's own page could not."""
        policy = OriginPolicy()
        for origin, host in [
            ("http://front.example", "front.example"),
            ("http://front.example", "front.example:80"),
            ("https://front.example:443", "Front.Example"),
            ("HTTPS://FRONT.example", "front.example:443"),
            ("https://front.example:8443", "front.example:8443"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[0:0::1]:8080"),
        ]:
            self.assertTrue(policy.permits(origin, host), origin)
        for origin, host in [
            ("http://front.example:81", "front.example"),
            ("http://front.example", "front.example:81"),
            ("http://front.example", "front.example:443"),
            ("http://a.front.example", "front.example"),
            ("http://front.example.evil.example", "front.example"),
            ("http://evil.example", "front.example"),
            ("capacitor://front.example", "front.example"),
            ("http://front.example", "not a host"),
            ("http://front.example", ""),
        ]:
            self.assertFalse(policy.permits(origin, host), origin)

    def test_no_origin(self) -> None:
        """Without it workers and command line clients would be refused."""
        for policy in (OriginPolicy(), OriginPolicy(["https://a.example"]), OriginPolicy(["*"])):
            self.assertTrue(policy.permits(None, "front.example"))

    def test_odd_origins(self) -> None:
        """Without it a sandboxed page, a file or a malformed header would pass for the same host."""
        policy = OriginPolicy()
        for origin in (
            *("null", "", "NULL", "*", "file://", "front.example", "//front.example", "http://"),
            *("http:front.example", "http://front.example/", "http://front.example/path"),
            *("http://u@front.example", "http://front.example http://front.example", " http://front.example"),
            *("http://front.example\n", "http://front.example:", "http://front.example:0"),
            *("http://front.example:99999", "http://fr\u00f6nt.example", "http://" + "a" * 100_000),
        ):
            self.assertFalse(policy.permits(origin, "front.example"), origin[:60])
            self.assertTrue(OriginPolicy(["*"]).permits(origin, "front.example"), origin[:60])

    def test_list(self) -> None:
        """Without it an operator could not let another site's page in, or would let in more than that."""
        policy = OriginPolicy(
            ["https://App.example", "http://localhost:3000/", "wss://ws.example:443", "capacitor://localhost"]
        )
        for origin in (
            *("https://app.example", "https://app.example:443", "http://localhost:3000"),
            *("https://ws.example", "capacitor://localhost"),
        ):
            self.assertTrue(policy.permits(origin, "front.example"), origin)
        for origin in (
            *("http://app.example", "https://app.example:444", "https://localhost:3000", "http://localhost"),
            *("https://sub.app.example", "http://front.example", "null"),
        ):
            self.assertFalse(policy.permits(origin, "front.example"), origin)

    def test_settings(self) -> None:
        """Without it a slip in the setting would refuse everybody without a word."""
        for piece in (
            *("", "example.com", "https://", "https://*.example.com", "null", "https://a.example/path"),
            *("a b", "https://a.example:99999", "https://a.example,https://b.example"),
        ):
            message = str(self.assertRaises(ValueError, OriginPolicy, ["https://ok.example", piece]))
            self.assertIn(repr(piece), message)
            self.assertRaises(ValueError, OriginPolicy, ["*", piece])

    @given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, origin: str, scheme: str, host: str) -> None:
        """Without it some header would raise, or two texts that mean nothing would count as the same host."""
        self.assertFalse(OriginPolicy().permits("http//" + origin, host))
        OriginPolicy().permits(origin, host)
        OriginPolicy(["https://a.example"]).permits(f"{scheme}://{host}", host)
