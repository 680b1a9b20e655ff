"""Who is let in: addresses behind proxies, origins, counts and rates."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator import gate as gates
from kollator.gate import RATE_BURST_S, Gate
from kollator.settings import SettingError, Settings
from tests.fronts import FrontTestCase
from tests.wires import PEER, UPGRADE, Wire, read_frames, request, text_frame


class GateTestCase(SynchronousTestCase):
    """A gate with settings from an environment, on a clock by hand."""

    def gate(self, **environ: str) -> Gate:
        """Makes one."""
        self.now = 0.0
        self.draining = False
        self.refused: list[str] = []
        self.noted: list[tuple[str, dict[str, object]]] = []
        loaded = Settings.load({}, {"NODE_ID": "front-1", **environ})
        return Gate(loaded, lambda: self.draining, self.refused.append, self.note)

    def note(self, event: str, **fields: object) -> None:
        """As the audit log."""
        self.noted.append((event, fields))

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
        self.patch(gates, "ADDRESSES", 1000)
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

    def test_exact(self) -> None:
        """With a list scheme, host and port are those of the list, however they are written, and nothing else is."""
        gate = self.gate(ALLOWED_ORIGINS="https://app.example,http://[2001:db8::1]:3000")
        for origin, permitted in (
            *(("https://app.example", True), ("https://APP.example:443", True), ("http://[2001:DB8:0::1]:3000", True)),
            *(("http://app.example", False), ("https://app.example:8443", False), ("https://app.example.", False)),
            *(("https://app.example.evil.example", False), ("https://x.app.example", False), ("null", False)),
            *(("http://[2001:db8::1]", False), ("https://app.example/", False), ("http://front.example", False)),
            *(("https://app.example https://app.example", False), ("", False)),
        ):
            fields = {"host": "front.example", "origin": origin}
            self.assertIs(gate.handshake_origin_permitted(PEER, fields, Wire()), permitted, origin)

    def test_list_with_a_path(self) -> None:
        """A list that could never match is refused at the start, not found out in production."""
        for piece in ("https://app.example/path", "https://app.example?x", "app.example", "https://*.app.example"):
            self.assertRaises(SettingError, self.gate, ALLOWED_ORIGINS=piece)


class NewLimitTests(GateTestCase):
    """The limits of connections that are no WebSockets, and of workers' proofs."""

    def test_places(self) -> None:
        """HTTP_CONNECTIONS and HTTP_CONNECTIONS_PER_IP are what the door goes by; proxies are not one client."""
        gate = self.gate(HTTP_CONNECTIONS="4", HTTP_CONNECTIONS_PER_IP="1", TRUSTED_PROXIES="10.0.0.0/8")
        taken = [gate.places.take(address) is not None for address in (PEER, PEER, "10.0.0.1", "10.0.0.1", "::1", "x")]
        self.assertEqual(taken, [True, False, True, True, True, False])
        self.assertEqual(self.refused, ["address", "total"])

    def test_proofs(self) -> None:
        """AUTH_BACKOFF is how long an address is kept out at most, RATE_LIMIT_EXEMPT who never is."""
        for environ, waits in (({"AUTH_BACKOFF": "2"}, (True, True, False)), ({"AUTH_BACKOFF": "0"}, (False,) * 3)):
            backoff = self.gate(**environ).auth_backoff
            for now in (0.0, 1.0, 3.0):
                backoff.failed(PEER, now)
            self.assertEqual(tuple(backoff.keeps_out(PEER, now) for now in (3.0, 4.9, 5.0)), waits)
            backoff.failed("127.0.0.1", 0.0)
            self.assertFalse(backoff.keeps_out("127.0.0.1", 0.0))

    def test_audited(self) -> None:
        """Each limit that an address hits is told, with the address that hit it."""
        gate = self.gate(HTTP_CONNECTIONS_PER_IP="1", CONNECTION_RATE_PER_IP="1", BOOTSTRAP_RATE_PER_IP="1")
        admit = self.admission(gate)
        for _ in range(6):
            admit(PEER, {})
            gate.bootstrap_wait_s(PEER, 0.0)
        for _ in range(2):
            gate.places.take(PEER)
        self.assertEqual(
            self.noted,
            [("limit-hit", {"reason": reason, "address": PEER})
             for reason in ("connection-rate", "bootstrap-rate", "http-connections")],
        )


SPOOFED = {
    "X-Forwarded-For": "198.51.100.77", "Forwarded": "for=198.51.100.77;proto=https;host=evil.example",
    "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "X-Real-IP": "198.51.100.77",
    "True-Client-IP": "198.51.100.77", "CF-Connecting-IP": "198.51.100.77", "Client-IP": "198.51.100.77",
}


class SpoofTests(FrontTestCase):
    """What headers say of a client whose connection comes from no trusted proxy."""

    environ: ClassVar = {
        "CONNECTIONS_PER_IP": "2", "BOOTSTRAP_RATE_PER_IP": "1", "CONNECTION_RATE_PER_IP": "1",
        "TRUSTED_PROXIES": "10.0.0.0/8",
    }

    def spoofed(self, number: int) -> dict[str, str]:
        """Headers that name another client each time."""
        return {name: value.replace(".77", f".{number}") for name, value in SPOOFED.items()}

    def test_rate_of_connections(self) -> None:
        """Without it a header would be all it takes to have no limits."""
        answers = [self.front.connect().send(request("GET", "/signaling", UPGRADE | self.spoofed(number))).value()
                   for number in range(6)]
        self.assertEqual([answer[9:12] for answer in answers], [b"101"] * 5 + [b"429"])

    def test_counts(self) -> None:
        """Without it one address could hold every connection."""
        for number in range(3):
            self.front.connect().send(request("GET", "/signaling", UPGRADE | self.spoofed(number)))
        self.assertEqual(self.front.gate._counts.of(PEER), 2)

    def test_bootstrap(self) -> None:
        """Without it a client would choose its worker, its limits, and where a page connects to."""
        for number in range(1, 40):
            self.front.worker(f"w{number}")
        plain = self.front.ask("POST", "/bootstrap").json()
        answers = [self.front.ask("POST", "/bootstrap", self.spoofed(number)) for number in range(6)]
        self.assertEqual([answer.status for answer in answers], [200] * 4 + [429] * 2)
        for answer in answers[:4]:
            self.assertEqual(answer.json()["worker"], plain["worker"])
            self.assertEqual(answer.json()["signaling"], "ws://front.example:8080/signaling")

    def test_assign(self) -> None:
        """Without it a client of the WebSocket would choose its worker."""
        for number in range(1, 40):
            self.front.worker(f"w{number}")
        wire = self.front.connect().send(request("GET", "/signaling", UPGRADE | SPOOFED))
        wire.taken()
        wire.send(text_frame(b'{"type":"hello","role":"client"}') + text_frame(b'{"type":"assign"}'))
        (_, welcome), (_, assigned) = read_frames(wire.taken())
        self.assertEqual(json.loads(welcome)["type"], "welcome")
        self.assertEqual(json.loads(assigned)["worker"]["id"], self.front.views.explain(PEER, None).worker)

    def test_origin(self) -> None:
        """Without it a page could pass for the front's own."""
        spoofed = SPOOFED | {"Origin": "https://evil.example"}
        wire = self.front.connect().send(request("GET", "/signaling", UPGRADE | spoofed))
        (frame,) = read_frames(wire.taken().partition(b"\r\n\r\n")[2])
        self.assertEqual((frame[0], int.from_bytes(frame[1][:2], "big")), (8, 4403))
        answer = self.front.ask("POST", "/bootstrap", spoofed)
        self.assertIsNone(answer.header("Access-Control-Allow-Origin"))

    def test_right_most_hop(self) -> None:
        """Without it a client behind a trusted proxy would be whoever it says."""
        for number in range(6):
            said = {"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.77, 10.0.0.2", "Forwarded": "for=198.51.100.1"}
            wire = self.front.connect("10.0.0.1").send(request("GET", "/signaling", UPGRADE | said))
            self.assertEqual(wire.value()[9:12], b"101" if number < 5 else b"429")
        self.assertEqual(self.front.gate._counts.of("192.0.2.77"), 2)
