"""Ranges and pins: an address belongs to one range on every front, and the longest prefix wins."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.ranges import PinTable, canonical_cidr, cidr_order, client_range, parse_address

v4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
v6 = st.one_of(
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**128 - 1).map(lambda value: value & 0xFFFF_0000_FFFF_0000_0000_FFFF_0000_0001),
    st.integers(0, 2**32 - 1).map(lambda value: 0xFFFF_0000_0000 | value),
).map(ipaddress.IPv6Address)
network_texts = st.one_of(
    st.tuples(v4, st.integers(0, 32)), st.tuples(v6, st.integers(0, 128))
).map(lambda pair: f"{pair[0]}/{pair[1]}")


def as_seen(address: ipaddress.IPv4Address | ipaddress.IPv6Address):
    """Give the IPv4 address in an IPv4-mapped one, any other as it is."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class ClientRangeTests(SynchronousTestCase):
    """The key of the ring."""

    def test_examples(self) -> None:
        """Without it two spellings of one client could get two workers."""
        for address, expected in [
            ("203.0.113.9", "203.0.113.0/24"),
            ("0.0.0.0", "0.0.0.0/24"),
            ("255.255.255.255", "255.255.255.0/24"),
            ("::ffff:203.0.113.9", "203.0.113.0/24"),
            ("::FFFF:cb00:7109", "203.0.113.0/24"),
            ("::ffff:203.0.113.9%eth0", "203.0.113.0/24"),
            ("2001:DB8:1:2::3", "2001:db8:1::/48"),
            ("2001:0db8:0001::", "2001:db8:1::/48"),
            ("2001:db8::1", "2001:db8::/48"),
            ("2001:0:1::1", "2001:0:1::/48"),
            ("fe80::1%eth0", "fe80::/48"),
            ("::1", "::/48"),
            ("::203.0.113.9", "::/48"),
            ("0:0:5::", "0:0:5::/48"),
        ]:
            self.assertEqual(client_range(address), expected, address)

    def test_refused(self) -> None:
        """Without it nonsense from a query or a header would be hashed as if it were a client."""
        for address in [
            "", " ", "localhost", "203.0.113", "203.0.113.9.1", "203.0.113.256", "203.0.113.09", "203.0.113.9 ",
            "203.0.113.0/24", "203.0.113.9:80", "[::1]", "::1/48", "1::2::3", "12345::", ":::", "fe80::1%",
            "fe80::1%a%b", "203.0.113.9%eth0", "2001:db8::1\0", "203.0.113.9\0", "٢٠٣.0.113.9", "\ud800",
            "\ud800::1", "1:" * 40_000, "9" * 100_000, "fe80::1%" + "x" * 200,
        ]:  # fmt: skip
            self.assertIn("not an IP address", str(self.assertRaises(ValueError, client_range, address)))

    @given(st.one_of(v4, v6))
    @settings(max_examples=100, deadline=None)
    def test_agrees_with_ipaddress(self, address) -> None:
        """Without it our own fast text could differ from the canonical one of RFC 5952."""
        seen = as_seen(address)
        network = ipaddress.ip_network(f"{seen}/{24 if seen.version == 4 else 48}", strict=False)
        for text in (str(address), address.exploded, address.exploded.upper()):
            self.assertEqual(client_range(text), str(network))
            self.assertEqual(parse_address(text), (seen.version, int(seen)))

    @given(st.one_of(st.text(max_size=50), st.text("0123456789abcdefF:.%/", max_size=50)))
    @settings(max_examples=100, deadline=None)
    def test_accepts_what_ipaddress_accepts(self, text: str) -> None:
        """Without it some text would raise another error, or be an address here and nowhere else."""
        try:
            expected = int(as_seen(ipaddress.ip_address(text)))
        except ValueError:
            self.assertRaises(ValueError, parse_address, text)
        else:
            self.assertEqual(parse_address(text).value, expected)


class CanonicalCidrTests(SynchronousTestCase):
    """The one spelling of a network."""

    def test_examples(self) -> None:
        """Without it one network could be pinned twice under two names."""
        for text, expected in [
            ("203.0.113.9", "203.0.113.9/32"),
            ("203.0.113.9/24", "203.0.113.0/24"),
            ("203.0.113.9/255.255.255.0", "203.0.113.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8:0:0:1::/48", "2001:db8::/48"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:203.0.113.9/120", "203.0.113.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("fe80::1%eth0/64", "fe80::/64"),
            ("fe80::1%eth0", "fe80::1/128"),
        ]:
            self.assertEqual(canonical_cidr(text), expected, text)

    def test_refused(self) -> None:
        """Without it a typing error of an operator would become a pin."""
        for text in ["", "203.0.113.0/33", "203.0.113/24", "::/129", "w1", "203.0.113.0/", "/24", "1/1/1", "1" * 500]:
            self.assertIn("not a CIDR", str(self.assertRaises(ValueError, canonical_cidr, text)))
        self.assertRaises(ValueError, canonical_cidr, 5)

    def test_order(self) -> None:
        """Without it a list of pins would put 10.0.0.0/8 before 9.0.0.0/8."""
        cidrs = ["2001:db8::/32", "::/0", "10.0.0.0/16", "10.1.0.0/16", "10.0.0.0/8", "9.0.0.0/8"]
        self.assertEqual(
            sorted(cidrs, key=cidr_order),
            ["9.0.0.0/8", "10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "::/0", "2001:db8::/32"],
        )


class PinTableTests(SynchronousTestCase):
    """The longest prefix."""

    def test_values(self) -> None:
        """Without it a pin could not be changed, or its removal would leave it in force."""
        table: PinTable[str] = PinTable()
        self.assertIsNone(table.lookup(parse_address("10.1.2.3")))
        table.insert("10.0.0.0/8", "wide")
        table.insert("10.1.2.3/24", "old")
        table.insert("10.1.2.0/24", "narrow")
        self.assertEqual(len(table), 2)
        self.assertEqual(table.lookup(parse_address("10.1.2.3")), ("10.1.2.0/24", "narrow"))
        self.assertEqual(table.lookup(parse_address("::ffff:10.1.3.3")), ("10.0.0.0/8", "wide"))
        self.assertIsNone(table.lookup(parse_address("11.0.0.1")))
        self.assertIsNone(table.lookup(parse_address("a01:203::")))  # the same bits at the front, but IPv6
        self.assertTrue(table.remove("10.1.2.99/24"))
        self.assertFalse(table.remove("10.1.2.0/24"))
        self.assertFalse(table.remove("10.0.0.0/9"))
        self.assertEqual(table.lookup(parse_address("10.1.2.3")), ("10.0.0.0/8", "wide"))
        self.assertRaises(ValueError, table.insert, "10.0.0.0/99", "x")
        self.assertRaises(ValueError, table.remove, "nowhere")

    @given(
        st.lists(st.tuples(st.booleans(), network_texts), max_size=25),
        st.lists(st.one_of(v4, v6), max_size=5),
        st.data(),
    )
    @settings(max_examples=100, deadline=None)
    def test_longest_prefix_wins(self, changes, addresses, data: st.DataObject) -> None:
        """Without it a client could be sent to the worker of a wider pin, or of a neighbour's."""
        table: PinTable[int] = PinTable()
        model: dict[str, int] = {}
        for number, (present, text) in enumerate(changes):
            if present or not model:
                table.insert(text, number)
                model[canonical_cidr(text)] = number
            else:
                victim = data.draw(st.sampled_from(sorted(model)))
                self.assertTrue(table.remove(victim))
                del model[victim]
        self.assertEqual(len(table), len(model))
        networks = [ipaddress.ip_network(cidr) for cidr in model]
        for address in [*addresses, *(network[-1] for network in networks)]:
            seen = as_seen(address)
            holding = [network for network in networks if network.version == seen.version and seen in network]
            best = max(holding, key=lambda network: network.prefixlen, default=None)
            expected = (str(best), model[str(best)]) if best is not None else None
            self.assertEqual(table.lookup(parse_address(str(address))), expected)
