"""What a host and a port look like."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.hosts import host_port, parse_host_port


class HostTests(SynchronousTestCase):
    """The grammar of a host and a port."""

    def test_accepted(self) -> None:
        """Without it a name that a front really has would be refused."""
        for text, parsed in {
            "localhost": ("localhost", None),
            "A.Example.:80": ("a.example.", 80),
            "xn--bcher-kva.example": ("xn--bcher-kva.example", None),
            "1-2.3a": ("1-2.3a", None),
            "192.0.2.1:65535": ("192.0.2.1", 65_535),
            "[2001:DB8:0:0::1]:1": ("[2001:db8::1]", 1),
            "a" * 63 + ".b": ("a" * 63 + ".b", None),
        }.items():
            self.assertEqual(parse_host_port(text), parsed, text)

    def test_refused(self) -> None:
        """Without it a header could put a path, a user, a line or another port into a URL."""
        for text in (
            *("", ":80", "a:", "a:0", "a:65536", "a:-1", "a:8\u0660", "a:80:80", "a..b", ".a", "-a", "a-.b"),
            *("a" * 64, "a." * 130 + "a", "a" * 100_000, "b\u00fccher", "a b", "a/b", "a?b", "a#b", "u@a"),
            *("a\n", "a%41", "a\\b", "*", "::1", "[::1", "[]", "[:::]", "[192.0.2.1]", "[fe80::1%25eth0]"),
            *("[v1.a]", "1", "a.1", "1.2.3", "1.2.3.256", "01.2.3.4"),
        ):
            self.assertIsNone(parse_host_port(text), text[:40])
            self.assertIsNone(host_port(text))

    @given(st.text(st.one_of(st.sampled_from("ab1-_.:[]@/"), st.characters()), max_size=40))
    @settings(max_examples=100, deadline=None)
    def test_stable(self, text: str) -> None:
        """Without it the plain form of a host might not be one itself."""
        plain = host_port(text)
        if plain is not None:
            self.assertEqual(host_port(plain), plain)
