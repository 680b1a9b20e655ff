"""Who is let in, and what the endpoints are told: the guard and the pool behind HTTP and the handshake."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator import views
from kollator.settings import Settings
from kollator.views import RATE_BURST_S, Gate
from tests.fronts import FrontTestCase
from tests.wires import PEER, Wire


class GateTestCase(SynchronousTestCase):
    """A gate with settings from an environment, on a clock by hand."""

    def gate(self, **environ: str) -> Gate:
        """Makes one."""
        self.now = 0.0
        self.draining = False
        self.refused: list[str] = []
        loaded = Settings.load({}, {"NODE_ID": "front-1", **environ})
        return Gate(loaded, lambda: self.draining, self.refused.append)

    def admission(self, gate: Gate) -> Any:
        """The door's question."""
        return gate.admission(lambda: self.now)


class CallerTests(GateTestCase):
    """Who asks."""

    def test_direct(self) -> None:
        """A stranger is who its connection says, whatever its headers say."""
        fields = {"x-forwarded-for": "198.51.100.1", "forwarded": "for=198.51.100.1", "x-forwarded-proto": "https",
                  "x-forwarded-host": "evil.example", "host": "front.example"}
        caller = self.gate().caller(PEER, fields, "http", "192.0.2.1:8080")
        self.assertEqual(tuple(caller), (PEER, "http", "front.example"))

    def test_proxied(self) -> None:
        """A client behind a trusted proxy is who the proxy says, the proxy's own scheme notwithstanding."""
        gate = self.gate(TRUSTED_PROXIES="10.0.0.0/8")
        fields = {"x-forwarded-for": "1.1.1.1, 198.51.100.1, 10.0.0.2", "x-forwarded-proto": "https",
                  "x-forwarded-host": "app.example", "host": "inner"}
        self.assertEqual(
            tuple(gate.caller("10.0.0.1", fields, "http", "x")), ("198.51.100.1", "https", "app.example")
        )
        self.assertEqual(gate.handshake_address("10.0.0.1", fields), "198.51.100.1")

    def test_no_host(self) -> None:
        """Without a good Host the connection's own address stands in."""
        for fields in ({}, {"host": ""}, {"host": "a b"}):
            self.assertEqual(self.gate().caller(PEER, fields, "http", "192.0.2.1:8080").host, "192.0.2.1:8080")

    @settings(max_examples=100, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(["host", "x-forwarded-for", "forwarded", "x-forwarded-proto", "x-forwarded-host"]),
            st.text(st.characters(max_codepoint=255), max_size=60),
        ),
        st.sampled_from([PEER, "", "::1", "fe80::1%eth0", "10.0.0.1", "nonsense"]),
    )
    def test_any_headers(self, fields: dict[str, str], peer: str) -> None:
        """Whatever the headers hold, there is an answer, and its host is fit to be put into a URL."""
        gate = self.gate(TRUSTED_PROXIES="10.0.0.0/8")
        caller = gate.caller(peer, fields, "http", "fallback")
        self.assertIn(caller.scheme, ("http", "https"))
        self.assertRegex(caller.host, r"\A[a-z0-9._:\[\]-]+\Z")
        gate.handshake_origin_permitted(peer, fields, None)
        self.admission(gate)(peer, fields)


class AdmissionTests(GateTestCase):
    """Whether one more WebSocket may begin."""

    def test_rate(self) -> None:
        """Each address has its own bucket: five seconds' worth at once, then so many a second."""
        gate = self.gate(CONNECTION_RATE_PER_IP="2")
        admit = self.admission(gate)
        burst = int(2 * RATE_BURST_S)
        self.assertEqual([admit(PEER, {}) for _ in range(burst)], [None] * burst)
        refusal = admit(PEER, {})
        self.assertEqual((refusal.status, refusal.code), (429, "rate-limited"))
        self.assertEqual(refusal.headers, {b"retry-after": b"1"})
        self.assertIsNone(admit("198.51.100.1", {}))
        self.now = 0.5
        self.assertIsNone(admit(PEER, {}))
        self.assertEqual(self.refused, ["rate"])

    def test_exempt(self) -> None:
        """The operator's own addresses are spared, until the list is emptied."""
        for exempt, spared in (("127.0.0.0/8,::1/128", True), ("", False)):
            gate = self.gate(CONNECTION_RATE_PER_IP="1", CONNECTIONS_PER_IP="1", BOOTSTRAP_RATE_PER_IP="1",
                             RATE_LIMIT_EXEMPT=exempt)
            admit = self.admission(gate)
            refused = [admit("127.0.0.1", {}) for _ in range(20)][-1]
            waits_s = [gate.bootstrap_wait_s("127.0.0.1", 0.0) for _ in range(20)][-1]
            counted = [gate.admit("127.0.0.1") for _ in range(20)][-1]
            outcome = (refused is None, waits_s == 0.0, counted is None, gate.allowance("127.0.0.1") is None)
            self.assertEqual(outcome, (spared,) * 4)

    def test_draining_comes_first(self) -> None:
        """Also who is spared everything else is sent elsewhere by a front that stops."""
        gate = self.gate()
        self.draining = True
        refusal = self.admission(gate)("127.0.0.1", {})
        self.assertEqual((refusal.status, refusal.code, self.refused), (503, "draining", ["draining"]))

    def test_table_is_bounded(self) -> None:
        """A flood from everywhere fills a table, and the table has an end."""
        self.patch(views, "ADDRESSES", 1000)
        gate = self.gate()
        admit = self.admission(gate)
        for number in range(1200):
            self.assertIsNone(admit(f"2001:db8:0:{number:x}::1", {}))
            self.assertEqual(gate.bootstrap_wait_s(f"2001:db8:0:{number:x}::1", 0.0), 0.0)
        self.assertEqual((len(gate._connecting), len(gate._bootstrapping)), (1000, 1000))

    def test_counts(self) -> None:
        """Open connections are limited for each address and in all; whoever leaves makes room."""
        gate = self.gate(MAX_CONNECTIONS="3", CONNECTIONS_PER_IP="2", RATE_LIMIT_EXEMPT="127.0.0.1/32")
        self.assertEqual([gate.admit(PEER) for _ in range(3)], [None, None, "address"])
        self.assertEqual([gate.admit("127.0.0.1"), gate.admit("127.0.0.1")], [None, "total"])
        gate.release(PEER)
        self.assertIsNone(gate.admit("198.51.100.1"))

    def test_workers(self) -> None:
        """WORKER_ALLOW is where workers come from; without one they come from anywhere."""
        self.assertTrue(self.gate().worker_allowed(PEER))
        gate = self.gate(WORKER_ALLOW="10.0.0.0/8")
        self.assertEqual((gate.worker_allowed("10.1.2.3"), gate.worker_allowed(PEER)), (True, False))


class OriginTests(GateTestCase):
    """Which pages may open a WebSocket."""

    def test_same_host(self) -> None:
        """By default the front's own pages only, and whoever is no page."""
        gate = self.gate()
        for origin, permitted in (
            ("http://front.example", True), ("http://evil.example", False), ("http://front.example.evil", False),
            ("null", False),
        ):
            fields = {"host": "front.example", "origin": origin}
            self.assertIs(gate.handshake_origin_permitted(PEER, fields, Wire()), permitted, origin)
        self.assertTrue(gate.handshake_origin_permitted(PEER, {"host": "front.example"}, Wire()))

    def test_tls(self) -> None:
        """On a TLS endpoint the page came by https."""

        class Tls(Wire):
            def getPeerCertificate(self) -> None:
                """As a TLS transport has it."""

        fields = {"host": "front.example", "origin": "https://front.example"}
        self.assertTrue(self.gate().handshake_origin_permitted(PEER, fields, Tls()))


class AssignTests(FrontTestCase):
    """The worker of a client."""

    environ: ClassVar = {"REGION": "eu"}

    def setUp(self) -> None:
        """Two regions."""
        super().setUp()
        self.front.worker("w1", "us")
        self.front.worker("w2", "eu")

    def test_region(self) -> None:
        """Who names no region gets the front's own, who names an empty one gets any."""
        addresses = [f"198.51.{number}.1" for number in range(40)]

        def workers(region: str | None) -> set[str]:
            found = [self.front.views.assign(address, region, ())[0] for address in addresses]
            return {worker.id for worker in found if worker is not None}

        self.assertEqual((workers(None), workers("eu"), workers("us"), workers("")),
                         ({"w2"}, {"w2"}, {"w1"}, {"w1", "w2"}))
        self.assertEqual(self.front.views.explain(PEER, None).worker, "w2")

    def test_client_without_an_address(self) -> None:
        """A client that came through a UNIX socket has none and gets a worker all the same."""
        worker, _ = self.front.views.assign("", None, ())
        self.assertEqual(worker and worker.id, "w2")

    def test_measured(self) -> None:
        """Each assignment goes into the histogram and is counted by its reason."""
        self.front.views.assign(PEER, "us", ())
        self.front.views.assign(PEER, None, ("w2",))
        counted = {reason: count for reason, count in self.front.counters.assignments.items() if count}
        self.assertEqual(counted, {"ring": 1, "other-region": 1})
        text = self.front.views.metrics("")[1].decode()
        self.assertIn("kollator_assignment_seconds_count 2.0", text)

    def test_excluded(self) -> None:
        """With everybody excluded there is nobody."""
        self.assertEqual(self.front.views.assign(PEER, None, ("w1", "w2")), (None, []))
