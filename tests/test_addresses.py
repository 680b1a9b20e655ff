"""Addresses: ranges, what limits are kept by, and whom a proxy's headers may name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.addresses import (
    MAX_HOP_BYTES,
    MAX_HOPS,
    MAX_NETWORKS,
    NetworkSet,
    _cached_key,
    _cached_parse,
    _cached_plain,
    client_address,
    client_scheme_host,
    limit_key,
    parse_networks,
)

PROXIES = NetworkSet(parse_networks("10.0.0.0/8 2001:db8:ffff::/48"))
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


class NetworkTests(SynchronousTestCase):
    """CIDR ranges as the settings have them."""

    def test_parse(self) -> None:
        """Without it a setting in a usual form would be refused."""
        table = {
            "": [],
            " , ": [],
            "127.0.0.0/8,::1/128": ["127.0.0.0/8", "::1/128"],
            "10.1.2.3 2001:db8::1": ["10.1.2.3/32", "2001:db8::1/128"],
            "10.0.0.0/255.0.0.0,\t192.168.0.0/16\n": ["10.0.0.0/8", "192.168.0.0/16"],
            "::ffff:10.0.0.0/104 ::ffff:192.0.2.1": ["10.0.0.0/8", "192.0.2.1/32"],
            "0.0.0.0/0 ::/0": ["0.0.0.0/0", "::/0"],
        }
        for text, networks in table.items():
            self.assertEqual([str(network) for network in parse_networks(text)], networks, text)

    def test_refused(self) -> None:
        """Without it a slip in a setting would trust or exempt other addresses than meant."""
        for text, says in [
            ("10.0.0.0/8 nonsense", "'nonsense'"),
            ("10.0.0.0/33", "'10.0.0.0/33'"),
            ("10.0.0.1/8", "did you mean 10.0.0.0/8?"),
            ("2001:db8::1/32", "did you mean 2001:db8::/32?"),
            ("10.0.0", "'10.0.0'"),
            ("010.0.0.1", "'010.0.0.1'"),
            ("localhost", "'localhost'"),
            (" ".join(["10.0.0.0/8"] * (MAX_NETWORKS + 1)), f"{MAX_NETWORKS} at most"),
        ]:
            self.assertIn(says, str(self.assertRaises(ValueError, parse_networks, text)))

    @given(st.text(st.one_of(st.sampled_from("0123456789abcdef.:/%, "), st.characters()), max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str) -> None:
        """Without it some setting would raise something that is not reported as a wrong setting."""
        try:
            networks = NetworkSet(parse_networks(text))
        except ValueError as problem:
            self.assertEqual(len(str(problem).splitlines()), 1)
            return
        networks.contains(text)
        limit_key(text)

    def test_contains(self) -> None:
        """Without it a range would miss an address in it, or take one that is written in another way."""
        networks = NetworkSet(parse_networks("127.0.0.0/8 ::1 192.0.2.7 2001:db8::/32"))
        for address in (
            *("127.0.0.1", "127.255.255.255", "::ffff:127.0.0.1", "::FFFF:7f00:1", "::1", "0:0::1"),
            *("192.0.2.7", "2001:db8:1::", "2001:DB8::5", "2001:db8::5%eth0"),
        ):
            self.assertTrue(networks.contains(address), address)
        for address in (
            *("128.0.0.1", "192.0.2.8", "::2", "2001:db9::", "", "/run/front.sock", "localhost", "127.1"),
            *("::127.0.0.1", "1" * 100_000, "\u0661.1.1.1", "127.0.0.1\n"),
        ):
            self.assertFalse(networks.contains(address), address[:40])

    def test_empty(self) -> None:
        """Without it an empty setting could mean everybody."""
        self.assertFalse(NetworkSet())
        self.assertFalse(NetworkSet().contains("127.0.0.1"))
        self.assertTrue(PROXIES)

    @given(
        st.lists(st.tuples(addresses, st.integers(0, 128)), max_size=8),
        st.lists(addresses, min_size=1, max_size=20),
    )
    @settings(max_examples=60, deadline=None)
    def test_same_as_ipaddress(self, ranges: list[tuple[str, int]], candidates: list[str]) -> None:
        """Without it the quick look-up might differ from the library's own."""
        networks = [ip_network(f"{a}/{min(n, 32 if '.' in a else 128)}", strict=False) for a, n in ranges]
        quick = NetworkSet(networks)
        for address in candidates + [str(network.broadcast_address) for network in networks]:
            parsed = ip_address(address)
            if not (isinstance(parsed, IPv6Address) and parsed.ipv4_mapped):
                self.assertEqual(quick.contains(address), any(parsed in network for network in networks))

    def test_caches_are_bounded(self) -> None:
        """Without it every address that ever asked would stay in memory, and what is none at any length."""
        networks = NetworkSet(parse_networks("10.0.0.0/8"))
        caches = (networks._cached, _cached_parse, _cached_plain, _cached_key)
        for number in range(6_000):
            client_address(str(IPv4Address(number)), (), (), networks)
            self.assertEqual(networks.contains(limit_key(f"2001:db8:{number:x}::1")), False)
        kept = [cache.cache_info() for cache in caches]
        self.assertLess(kept[0].currsize, 5_000)
        self.assertLess(max(cache.currsize for cache in kept[1:]), 500)
        for text in ("1" * 65, f"::{'1' * 63}"):
            self.assertEqual((networks.contains(text), limit_key(text)), (False, text[:64]))
            self.assertEqual(client_address(text, (), (), networks), text)
        self.assertEqual([cache.cache_info() for cache in caches], kept)


class LimitKeyTests(SynchronousTestCase):
    """What limits are kept by."""

    def test_keys(self) -> None:
        """Without it one host with a /64 would have as many allowances as it likes."""
        for address, key in {
            "203.0.113.9": "203.0.113.9",
            "::ffff:203.0.113.9": "203.0.113.9",
            "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
            "2001:DB8:1:2::": "2001:db8:1:2::/64",
            "fe80::1%eth0": "fe80::/64",
            "::1": "::/64",
            "": "",
            "/run/front.sock": "/run/front.sock",
            "not:an:address": "not:an:address",
        }.items():
            self.assertEqual(limit_key(address), key)
        self.assertLessEqual(len(limit_key("x" * 10_000)), 64)
        self.assertLessEqual(len(limit_key("x:" * 10_000)), 64)

    @given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
    @settings(max_examples=50, deadline=None)
    def test_one_key_for_a_64(self, address: IPv6Address, host: int) -> None:
        """Without it two addresses of one /64 could have two keys."""
        if int(address) >> 64:
            neighbour = IPv6Address(int(address) >> 64 << 64 | host)
            self.assertEqual(limit_key(str(neighbour)), limit_key(str(address)))


class ClientAddressTests(SynchronousTestCase):
    """Who is behind a proxy."""

    def client(self, peer: str, *forwarded_for: bytes) -> str:
        """Return the client by ``X-Forwarded-For``."""
        return client_address(peer, forwarded_for, (), PROXIES)

    def by_forwarded(self, *forwarded: bytes) -> str:
        """Return the client by ``Forwarded``, sent by a trusted proxy."""
        return client_address("10.0.0.1", (), forwarded, PROXIES)

    def test_untrusted_peer(self) -> None:
        """Without it anyone could take any address by writing it into a header."""
        self.assertEqual(self.client("203.0.113.9", b"192.0.2.1"), "203.0.113.9")
        self.assertEqual(client_address("203.0.113.9", (), (b"for=192.0.2.1",), PROXIES), "203.0.113.9")
        self.assertEqual(client_address("10.0.0.1", (b"192.0.2.1",), (), NetworkSet()), "10.0.0.1")
        self.assertEqual(client_address("", (b"192.0.2.1",), (), PROXIES), "")
        self.assertEqual(client_address("::ffff:203.0.113.9", (), (), PROXIES), "203.0.113.9")

    def test_forwarded_for(self) -> None:
        """Without it the clients of a proxy would share one allowance, or choose their address."""
        for lines, address in [
            ((), "10.0.0.1"),
            ((b"",), "10.0.0.1"),
            ((b"192.0.2.1",), "192.0.2.1"),
            ((b"  192.0.2.1\t",), "192.0.2.1"),
            ((b"198.51.100.1, 192.0.2.1",), "192.0.2.1"),
            ((b"198.51.100.1", b"192.0.2.1"), "192.0.2.1"),
            ((b"198.51.100.1, 192.0.2.1, 10.9.9.9",), "192.0.2.1"),
            ((b"192.0.2.1, 10.9.9.9", b"10.8.8.8,2001:db8:ffff::1"), "192.0.2.1"),
            ((b"10.7.7.7, 10.8.8.8",), "10.7.7.7"),
            ((b"192.0.2.1,, ,",), "192.0.2.1"),
            ((b"192.0.2.1:55555",), "192.0.2.1"),
            ((b"2001:DB8:0::1",), "2001:db8::1"),
            ((b"[2001:db8::1]:443",), "2001:db8::1"),
            ((b"[2001:db8::1]",), "2001:db8::1"),
            ((b"::ffff:192.0.2.1",), "192.0.2.1"),
            ((b"fe80::1%eth0",), "fe80::1"),
        ]:
            self.assertEqual(self.client("10.0.0.1", *lines), address, lines)
        self.assertEqual(self.client("::ffff:10.0.0.1", b"192.0.2.1"), "192.0.2.1")

    def test_malformed_stops_the_walk(self) -> None:
        """Without it what a client wrote would be believed behind something that nobody can read."""
        for entry in (
            *(b"unknown", b"_secret", b"-", b"nonsense", b"1.2.3", b"192.0.2.256", b"\xff\xfe", b"::1::"),
            *(b"[192.0.2.1", b"192.0.2.1:port", b'"192.0.2.1"', b"192.0.2.1 192.0.2.2", b"x" * 2000),
        ):
            self.assertEqual(self.client("10.0.0.1", b"192.0.2.1, " + entry), "10.0.0.1", entry)
            inner = self.client("10.0.0.1", b"192.0.2.1, " + entry + b", 10.5.5.5")
            self.assertEqual(inner, "10.5.5.5", entry)
            self.assertEqual(self.client("10.0.0.1", entry + b", 192.0.2.1"), "192.0.2.1", entry)

    def test_forwarded(self) -> None:
        """Without it a proxy that speaks RFC 7239 would not be understood (the examples of its section 4)."""
        for lines, address in [
            ((b"for=192.0.2.43",), "192.0.2.43"),
            ((b'For="[2001:db8:cafe::17]:4711"',), "2001:db8:cafe::17"),
            ((b"for=192.0.2.60;proto=http;by=203.0.113.43",), "192.0.2.60"),
            ((b"for=192.0.2.43, for=198.51.100.17",), "198.51.100.17"),
            ((b'for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com',), "198.51.100.17"),
            ((b'for=192.0.2.43,for="[2001:db8:cafe::17]";proto=https',), "2001:db8:cafe::17"),
            ((b"for=192.0.2.43", b"for=10.2.2.2"), "192.0.2.43"),
            ((b'for="192.0.2.43:47011"',), "192.0.2.43"),
            ((b'for="192.0.2.43:_port"',), "192.0.2.43"),
            ((b"for=192.0.2.43:47011",), "192.0.2.43"),
            ((b"for=[2001:db8::1]:80",), "2001:db8::1"),
            ((b'proto=https ; FOR="\\192.0.2.43" ; ext="a,b;c\\"d"',), "192.0.2.43"),
            ((b'for=192.0.2.43, for=10.1.1.1;ext="x, for=1.1.1.1"',), "192.0.2.43"),
            ((b"for=unknown",), "10.0.0.1"),
            ((b'for="_gazonk"',), "10.0.0.1"),
            ((b"for=192.0.2.1, for=_hidden, for=10.3.3.3",), "10.3.3.3"),
            ((b"proto=https",), "10.0.0.1"),
        ]:
            self.assertEqual(self.by_forwarded(*lines), address, lines)

    def test_malformed_forwarded(self) -> None:
        """Without it a broken element would be read as something that nobody meant."""
        for element in (
            *(b"for", b"for=", b"=1", b"for=192.0.2.1;for=192.0.2.2", b'for="192.0.2.1', b"for=192.0.2.1 x"),
            *(b"192.0.2.1", b"for=192.0.2.1;;;=", b'for="a"b', b"for=nonsense", b"\xff=\xff"),
        ):
            self.assertEqual(self.by_forwarded(b"for=198.51.100.1, " + element), "10.0.0.1", element)

    def test_open_quote(self) -> None:
        """Without it a client could hide from its limits: an open quote would swallow the proxy's part."""
        for told in (b'for="', b'for="a\\', b'"""', b'for="x, for="'):
            self.assertEqual(self.by_forwarded(told + b", for=192.0.2.1"), "192.0.2.1", told)
            self.assertEqual(self.client("10.0.0.1", told + b", 192.0.2.1"), "192.0.2.1", told)

    def test_which_header(self) -> None:
        """Without it a client could add the header that its proxy hands on as it came, and be believed."""
        both = client_address("10.0.0.1", (b"192.0.2.1",), (b"for=198.51.100.1",), PROXIES)
        self.assertEqual(both, "192.0.2.1")
        self.assertEqual(client_address("10.0.0.1", (b" ",), (b"for=198.51.100.1",), PROXIES), "198.51.100.1")

    def test_bounded(self) -> None:
        """Without it a header of many hops would cost the front time."""
        line = b"192.0.2.1" + b", 10.1.1.1" * (MAX_HOPS - 1)
        self.assertEqual(self.client("10.0.0.1", line), "192.0.2.1")
        self.assertEqual(self.client("10.0.0.1", line + b", 10.1.1.2"), "10.1.1.1")
        element = b'for=192.0.2.1;ext="%s"'
        self.assertEqual(self.by_forwarded(element % (b"x" * (MAX_HOP_BYTES - 30))), "192.0.2.1")
        self.assertEqual(self.by_forwarded(element % (b"x" * MAX_HOP_BYTES)), "10.0.0.1")

    @given(
        st.lists(st.binary(max_size=100), max_size=3),
        st.lists(st.binary(max_size=100), max_size=3),
        st.sampled_from(["10.0.0.1", "192.0.2.1", "", "x"]),
    )
    @settings(max_examples=100, deadline=None)
    def test_any_bytes(self, forwarded_for: list[bytes], forwarded: list[bytes], peer: str) -> None:
        """Without it some header would raise, or make an address that is none."""
        address = client_address(peer, forwarded_for, forwarded, PROXIES)
        if address != peer:
            self.assertEqual(str(ip_address(address)), address)

    @given(
        st.text('for=";,\\ 192.0[]:_x', max_size=80).map(str.encode),
        addresses.filter(lambda address: not PROXIES.contains(address)),
    )
    @settings(max_examples=100, deadline=None)
    def test_spoofed_header_changes_nothing(self, told: bytes, address: str) -> None:
        """Without it something a client sends could change the address that its proxy appends."""
        plain = client_address(address, (), (), PROXIES)
        self.assertEqual(self.client("10.0.0.1", told + b", " + address.encode()), plain)
        self.assertEqual(self.client("10.0.0.1", told, address.encode()), plain)
        node = b'for="[%s]"' % address.encode() if ":" in address else b"for=" + address.encode()
        self.assertEqual(self.by_forwarded(told + b", " + node), plain)
        self.assertEqual(self.by_forwarded(told, node), plain)


class SchemeAndHostTests(SynchronousTestCase):
    """What the client called this front."""

    def view(
        self, peer: str = "10.0.0.1", *, host: str | None = "front.example", **headers: bytes
    ) -> tuple[str, str]:
        """Return scheme and host for a plain HTTP request."""
        lines = {name: (value,) for name, value in headers.items()}
        return client_scheme_host(peer, "http", host, "fallback:1", PROXIES, **lines)

    def test_host(self) -> None:
        """Without it a client would be sent to a name it did not use, or to something that is no name."""
        for host, says in [
            ("front.example", "front.example"),
            ("Front.Example:8080", "front.example:8080"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:8080", "[::1]:8080"),
            ("signaling_1", "signaling_1"),
            (None, "fallback:1"),
            ("", "fallback:1"),
            ("evil.example/path", "fallback:1"),
            ("user@evil.example", "fallback:1"),
            ("a b", "fallback:1"),
            ("x\r\nSet-Cookie: a", "fallback:1"),
            ('"><script>', "fallback:1"),
        ]:
            self.assertEqual(self.view("192.0.2.1", host=host), ("http", says))

    def test_scheme(self) -> None:
        """Without it a page on HTTPS would be told to open a WebSocket that its browser forbids."""
        for scheme, says in [("http", "http"), ("HTTPS", "https"), ("ws", "http"), ("wss", "https")]:
            self.assertEqual(client_scheme_host("192.0.2.1", scheme, "h", "f", PROXIES), (says, "h"))

    def test_trusted_proxy(self) -> None:
        """Without it the URL behind a proxy would be the proxy's own, which the client cannot reach."""
        for peer, view in [
            ("10.0.0.1", ("https", "public.example:8443")),
            ("192.0.2.9", ("http", "front.example")),
        ]:
            told = self.view(
                peer,
                forwarded_for=b"192.0.2.1",
                forwarded_proto=b"https",
                forwarded_host=b"public.example:8443",
            )
            self.assertEqual(told, view)
        self.assertEqual(self.view(forwarded_proto=b"WSS"), ("https", "front.example"))
        odd = self.view(forwarded_proto=b"javascript", forwarded_host=b"a/b")
        self.assertEqual(odd, ("http", "front.example"))
        self.assertEqual(self.view(host=None, forwarded_host=b"a@b"), ("http", "fallback:1"))

    def test_forwarded(self) -> None:
        """Without it a proxy that speaks RFC 7239 would have its scheme and host ignored."""
        self.assertEqual(
            self.view(forwarded=b'for=192.0.2.1;proto=https;host="public.example:8443"'),
            ("https", "public.example:8443"),
        )
        self.assertEqual(self.view(forwarded=b"proto=https;for=unknown"), ("https", "front.example"))
        self.assertEqual(self.view(forwarded=b'proto=https;for="'), ("http", "front.example"))
        spoofed = b"for=1.1.1.1;proto=http;host=evil.example, for=192.0.2.1;proto=https"
        self.assertEqual(self.view(forwarded=spoofed), ("https", "front.example"))
        self.assertEqual(
            self.view(forwarded_for=b"192.0.2.1", forwarded=b"for=1.1.1.1;proto=https;host=evil.example"),
            ("http", "front.example"),
        )

    def test_chain_of_proxies(self) -> None:
        """Without it the scheme between two proxies would be taken for the client's."""
        self.assertEqual(
            self.view(forwarded_for=b"192.0.2.1, 10.2.2.2", forwarded_proto=b"https, http"),
            ("https", "front.example"),
        )
        self.assertEqual(
            self.view(forwarded_for=b"1.1.1.1, 192.0.2.1", forwarded_proto=b"http, https"),
            ("https", "front.example"),
        )
        self.assertEqual(
            self.view(forwarded=b"for=192.0.2.1;proto=https;host=public.example, for=10.2.2.2;proto=http"),
            ("https", "public.example"),
        )

    @given(st.text(max_size=80), st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, host: str, proto: bytes, named: bytes, forwarded: bytes) -> None:
        """Without it some header would put something odd into the URL that ``/bootstrap`` gives out."""
        scheme, where = self.view(
            host=host, forwarded_proto=proto, forwarded_host=named, forwarded=b"for=1.1.1.1;" + forwarded
        )
        self.assertIn(scheme, ("http", "https"))
        self.assertRegex(where, r"\A[a-z0-9._\[\]:-]+\Z")
