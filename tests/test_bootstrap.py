"""``POST /bootstrap``: how a client begins, from wherever it comes."""

from __future__ import annotations

import json
import math
from typing import ClassVar

from tests.fronts import WALL_S, FrontTestCase
from tests.wires import JSON, PEER, Answer, Wire, read_answers, shape


class BootstrapTests(FrontTestCase):
    """``/bootstrap``."""

    environ: ClassVar = {
        "BOOTSTRAP_RATE_PER_IP": "2",
        "TURN_SERVERS": "turn:turn.example",
        "TURN_SECRET": "the secret of the TURN server",
        "STUN_SERVERS": "stun:stun.example:3478",
        "TRUSTED_PROXIES": "10.0.0.0/8",
    }

    def boot(self, body: bytes = b"", peer: str = PEER, **headers: str) -> Answer:
        """One bootstrap."""
        return self.front.ask("POST", "/bootstrap", {name.replace("_", "-"): text for name, text in headers.items()},
                              body, peer=peer)

    def test_shape(self) -> None:
        """A client needs every one of these fields to go on."""
        self.front.worker("w1", "us-west")
        self.front.worker("w2", "us-west")
        answer = self.boot(b'{"region":"us-west"}')
        self.assertEqual((answer.status, answer.header("Content-Type")), (200, JSON))
        got = answer.json()
        self.assertEqual(
            shape(got),
            {"client": str, "ticket": str, "expires": int, "worker": {"id": str, "region": str},
             "alternates": [{"id": str, "region": str}], "signaling": str, "iceServers": [{"urls": [str]}],
             "node": str},
        )
        self.assertEqual((got["node"], got["signaling"]), ("front-1", "ws://front.example:8080/signaling"))
        self.assertEqual(got["expires"], WALL_S + self.front.settings.ticket_ttl_s)
        self.assertEqual(self.front.tickets.open(got["ticket"], WALL_S), (got["client"], got["worker"]["id"]))
        self.assertEqual(got["iceServers"][0], {"urls": ["stun:stun.example:3478"]})
        self.assertEqual(shape(got["iceServers"][1]), {"urls": [str], "username": str, "credential": str})
        self.assertNotEqual(got["client"], self.boot().json()["client"])

    def test_no_workers(self) -> None:
        """With nobody to assign a client is told when to come back."""
        answer = self.boot()
        self.assert_error(answer, 503, "no-workers")
        self.assertEqual(answer.header("Retry-After"), "3")

    def test_wishes(self) -> None:
        """Workers that a client could not reach are left out, and its region is looked at first."""
        self.front.worker("w1", "us")
        self.front.worker("w2", "eu")
        self.assertEqual(self.boot(b'{"region":"eu"}').json()["worker"], {"id": "w2", "region": "eu"})
        other = self.boot(b'{"exclude":["w2"],"region":"eu"}').json()
        self.assertEqual((other["worker"]["id"], other["alternates"]), ("w1", []))
        self.assert_error(self.boot(b'{"exclude":["w1","w2"]}'), 503, "no-workers")

    def test_bodies(self) -> None:
        """Empty is as good as ``{}`` and unknown keys are ignored; all that is malformed is 400."""
        self.front.worker()
        good = (b"", b" \r\n", b"{}", b'{"region":null,"exclude":null}', b'{"region":"","exclude":[]}',
                b'{"later":[1,{"x":2}]}', '{"region":"süd"}'.encode(),
                b'{"exclude":%s}' % json.dumps(["w"] * 256).encode())
        for number, body in enumerate(good):
            self.assertEqual(self.boot(body, f"198.51.100.{number}").status, 200, body)
        bad = (b"{", b"nonsense", b"[]", b"null", b'"x"', b"5", b"{} {}", b"\xff", b"\xef\xbb\xbf{}", b'{"region":5}',
               b'{"region":"%s"}' % (b"x" * 65), b'{"region":"a\\nb"}', b'{"exclude":"w1"}', b'{"exclude":[1]}',
               b'{"exclude":%s}' % json.dumps(["w"] * 257).encode(), b'{"exclude":["%s"]}' % (b"x" * 65),
               b'{"region":"\\ud800"}', b"[" * 60000, b'{"x":' * 12000, b'{"region":NaN}')
        for number, body in enumerate(bad):
            self.assert_error(self.boot(body, f"198.51.101.{number}"), 400, "bad-request")
        self.assertEqual(self.front.counters.bootstraps["assigned"], len(good))
        self.assertEqual(self.front.counters.bootstraps["bad-request"], len(bad))

    def test_rate(self) -> None:
        """Who asks too often is told when to come back; it is for each address, behind proxies too."""
        self.front.worker()
        for _ in range(10):
            self.assertEqual(self.boot().status, 200)
        answer = self.boot()
        self.assert_error(answer, 429, "rate-limited")
        self.assertEqual(answer.header("Retry-After"), "1")
        self.assertEqual(answer.reason, "Too Many Requests")
        self.assertEqual(self.boot(peer="198.51.100.7").status, 200)
        self.assertEqual(self.boot(peer="10.0.0.1", X_Forwarded_For="198.51.100.8").status, 200)
        self.assertEqual(self.boot(peer="10.0.0.1", X_Forwarded_For=PEER).status, 429)
        self.front.clock.advance(0.5)
        self.assertEqual(self.boot().status, 200)
        self.assertEqual(self.front.ask("GET", "/workers").status, 200)
        self.assertEqual(self.front.counters.bootstraps["rate-limited"], 2)

    def test_retry_after_is_enough(self) -> None:
        """Who waits as long as it was told to is let in."""
        self.front.worker()
        while (answer := self.boot()).status == 200:
            pass
        self.front.clock.advance(float(answer.header("Retry-After") or math.nan))
        self.assertEqual(self.boot().status, 200)

    def test_draining(self) -> None:
        """A front that is about to stop begins nothing: the WebSocket that follows would be refused."""
        self.front.worker()
        self.front.drain.draining = True
        answer = self.boot()
        self.assert_error(answer, 503, "draining")
        self.assertEqual(answer.header("Retry-After"), "1")

    def test_counted(self) -> None:
        """The counters tell what became of clients, and why they got the workers they got."""
        self.boot()
        self.front.worker("w1", "us")
        self.boot()
        self.boot(b'{"region":"eu"}')
        self.boot(b"{")
        self.assertEqual(
            self.front.counters.bootstraps,
            {"assigned": 2, "no-workers": 1, "bad-request": 1, "rate-limited": 0, "other": 0},
        )
        self.assertEqual(
            {reason: count for reason, count in self.front.counters.assignments.items() if count},
            {"no-workers": 1, "ring": 1, "other-region": 1},
        )


class SignalingUrlTests(FrontTestCase):
    """The scheme and host in ``signaling``."""

    environ: ClassVar = {"TRUSTED_PROXIES": "10.0.0.0/8", "BOOTSTRAP_RATE_PER_IP": "1000"}

    def setUp(self) -> None:
        """With a worker to assign."""
        super().setUp()
        self.front.worker()

    def url(self, peer: str = PEER, **headers: str) -> str:
        """The URL that a client is given."""
        fields = {name.replace("_", "-"): text for name, text in headers.items()}
        url: str = self.front.ask("POST", "/bootstrap", fields, peer=peer).json()["signaling"]
        return url

    def test_host(self) -> None:
        """A browser that came by a name is sent to that name, in the form that URLs have."""
        for host, found in (
            ("front.example", "front.example"),
            ("Front.Example:80", "front.example:80"),
            ("[2001:DB8:0::1]:8080", "[2001:db8::1]:8080"),
            ("192.0.2.9:8080", "192.0.2.9:8080"),
        ):
            self.assertEqual(self.url(Host=host), f"ws://{found}/signaling")

    def test_odd_hosts(self) -> None:
        """What is no host never gets into a URL: the address that the client did reach stands in."""
        for host in ("", "a b", 'a"b', "a/b", "a@b", "x:99999", "[::1", "<script>", "a, b", "\xe4", "::1", "1.2.3.4.5"):
            self.assertEqual(self.url(Host=host), "ws://192.0.2.1:8080/signaling", host)

    def test_no_host(self) -> None:
        """The same for HTTP/1.0 without one, also over IPv6."""
        for own, found in (("192.0.2.1", "192.0.2.1"), ("2001:db8::5", "[2001:db8::5]"), ("fe80::1%eth0", "[fe80::1]")):
            wire = Wire(PEER, own).open(self.front.door).send(b"POST /bootstrap HTTP/1.0\r\n\r\n")
            (answer,) = read_answers(wire.taken())
            self.assertEqual(answer.json()["signaling"], f"ws://{found}:8080/signaling")

    def test_two_hosts(self) -> None:
        """Two Host lines are no host."""
        wire = self.front.connect().send(b"POST /bootstrap HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        (answer,) = read_answers(wire.taken())
        self.assertEqual(answer.json()["signaling"], "ws://192.0.2.1:8080/signaling")

    def test_trusted_proxy(self) -> None:
        """Behind a proxy that ends TLS the browser must be sent to wss:// and to the name that it knows."""
        proxy = "10.0.0.1"
        self.assertEqual(self.url(proxy, X_Forwarded_Proto="https"), "wss://front.example:8080/signaling")
        self.assertEqual(
            self.url(proxy, X_Forwarded_Proto="https", X_Forwarded_Host="app.example"), "wss://app.example/signaling"
        )
        self.assertEqual(self.url(proxy, Forwarded='for="[2001:db8::7]";proto=https;host=app.example'),
                         "wss://app.example/signaling")
        self.assertEqual(self.url(proxy, X_Forwarded_Proto="gopher", X_Forwarded_Host="a b"),
                         "ws://front.example:8080/signaling")

    def test_strangers(self) -> None:
        """Anybody else who says such things is not believed."""
        self.assertEqual(
            self.url(X_Forwarded_Proto="https", X_Forwarded_Host="evil.example", Forwarded="host=evil.example"),
            "ws://front.example:8080/signaling",
        )


class CrossOriginTests(FrontTestCase):
    """Pages of other origins (Fetch standard, CORS protocol)."""

    environ: ClassVar = {"ALLOWED_ORIGINS": "https://app.example"}

    def test_permitted(self) -> None:
        """A page of an allowed origin reads the answer, errors and when to retry included."""
        headers = {"Origin": "https://app.example"}
        for body, status in ((b"", 503), (b"{", 400)):
            answer = self.front.ask("POST", "/bootstrap", headers, body)
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), "https://app.example")
            self.assertEqual(answer.header("Access-Control-Expose-Headers"), "Retry-After")
            self.assertEqual(answer.header("Vary"), "Origin")

    def test_preflight(self) -> None:
        """The browser asks first whether JSON may be posted."""
        answer = self.front.ask("OPTIONS", "/bootstrap", {
            "Origin": "https://app.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type"})
        self.assertEqual(answer.status, 204)
        self.assertEqual(answer.header("Access-Control-Allow-Origin"), "https://app.example")
        self.assertEqual(answer.header("Access-Control-Allow-Methods"), "POST")
        self.assertEqual(answer.header("Access-Control-Allow-Headers"), "content-type")

    def test_not_permitted(self) -> None:
        """Other origins are told nothing, whatever they call themselves."""
        for origin in ("https://evil.example", "null", "*", "", "https://app.example.evil", "\xe4",
                       "https://app.example, x"):
            for method in ("POST", "OPTIONS"):
                answer = self.front.ask(method, "/bootstrap", {"Origin": origin})
                self.assertIsNone(answer.header("Access-Control-Allow-Origin"), origin)
                self.assertEqual(answer.header("Vary"), "Origin")

    def test_library(self) -> None:
        """A page of another origin may import the client library from here, and nothing else may be read."""
        for path, allowed in (("/static/kollator.js", "*"), ("/", None), ("/health", None), ("/workers", None)):
            answer = self.front.ask("GET", path, {"Origin": "https://other.example"})
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), allowed, path)
