"""Section 1 of the contract, and what section 4 says about HTTP, asked of a running front."""

from __future__ import annotations

import json
import re
import socket
import time
from ipaddress import ip_address, ip_network
from typing import Any, ClassVar

from jsonschema import Draft202012Validator
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from tests.e2e.contract_client import LIMIT_S, Answer, Client, ContractTestCase, exchange, turn_credential

JSON_TYPE = "application/json; charset=utf-8"
READ_ONLY = ("/", "/status", "/health", "/health/live", "/health/ready", "/workers",
             "/workers/assign?ip=203.0.113.9", "/metrics", "/schema.json")
JSON_PAGES = ("/health", "/health/live", "/health/ready", "/workers", "/workers/assign?ip=203.0.113.9")
LIMIT_BYTES = 65536


def _padded(size_bytes: int) -> bytes:
    """A JSON object of exactly that many bytes."""
    return b'{"pad":"' + b"x" * (size_bytes - 10) + b'"}'


class PageTests(ContractTestCase):
    """A front without workers: pages, formats and errors."""

    def _assert_error(self, answer: Answer, status: int, code: str | None = None) -> None:
        self.assertEqual((answer.status, answer.header("Content-Type")), (status, JSON_TYPE), answer.body)
        error = answer.json()["error"]
        self.assertEqual([type(error["code"]), type(error["message"])], [str, str])
        if code:
            self.assertEqual(error["code"], code)

    def test_client_application(self) -> None:
        """Without the page at / and its assets no browser gets anywhere."""
        page = self.ask("GET", "/")
        self.assertEqual(page.status, 200)
        self.assertTrue(page.header("Content-Type").startswith("text/html"))
        assets = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page.body.decode()))
        self.assertTrue(assets)
        for path in sorted(assets):
            asset = self.ask("GET", path)
            self.assertEqual(asset.status, 200, path)
            self.assertTrue(asset.header("ETag"), path)
            self.assertTrue(asset.header("Cache-Control"), path)
            expected = {"js": "javascript", "css": "text/css", "svg": "image/svg+xml"}.get(path.rsplit(".")[-1], "/")
            self.assertIn(expected, asset.header("Content-Type"), path)

    def test_etag(self) -> None:
        """Without 304 every visit loads the whole application again."""
        page = self.ask("GET", "/").body.decode()
        for path in ("/", re.findall(r'src="(/static/[^"]+)"', page)[0]):
            etag = self.ask("GET", path).header("ETag")
            for sent in (etag, "*", f'"other", {etag}', f"W/{etag}"):
                again = self.ask("GET", path, headers={"If-None-Match": sent})
                self.assertEqual((again.status, again.body, again.header("ETag")), (304, b"", etag), (path, sent))
            self.assertEqual(self.ask("GET", path, headers={"If-None-Match": '"other"'}).status, 200)

    def test_status_page(self) -> None:
        """Operators open /status in a browser."""
        answer = self.ask("GET", "/status")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.header("Content-Type").startswith("text/html"))

    def test_health(self) -> None:
        """Monitors read these keys, of these types."""
        answer = self.ask("GET", "/health")
        self.assertEqual((answer.status, answer.header("Content-Type")), (200, JSON_TYPE))
        health = answer.json()
        self.assertEqual((health["status"], health["node"], health["leader"]), ("ok", "front-e2e", "front-e2e"))
        self.assertEqual(health["role"], "leader")
        self.assertIsInstance(health["term"], int)
        self.assertIsInstance(health["version"], str)
        self.assertEqual([member["node"] for member in health["cluster"]], ["front-e2e"])
        self.assertTrue({"node", "state", "sync_lag_ms"} <= set(health["cluster"][0]))
        self.assertEqual(set(health["workers"]), {"up", "total"})
        self.assertTrue({"client", "worker"} <= set(health["connections"]))
        self.assertEqual(health["ring"]["digest"], self.ask("GET", "/workers").json()["ring"]["digest"])
        self.assertGreaterEqual(self.ask("GET", "/health").json()["uptime_s"], health["uptime_s"])

    def test_live_and_ready(self) -> None:
        """Load balancers and supervisors ask these two."""
        self.assertEqual(self.ask("GET", "/health/live").status, 200)
        self.assertEqual(self.ask("GET", "/health/ready").status, 200)

    def test_json_content_type(self) -> None:
        """A client that checks the content type must find the contract's, letter by letter."""
        for path in JSON_PAGES:
            answer = self.ask("GET", path)
            self.assertEqual((answer.status, answer.header("Content-Type")), (200, JSON_TYPE), path)
            answer.json()

    def test_not_found(self) -> None:
        """An unknown path is 404 with the error shape, below /static/ and beside the pages too."""
        for path in ("/nothing", "/static/nothing.js", "/static/", "/static", "/static/../setup.cfg",
                     "/static/%2e%2e/%2e%2e/setup.cfg", "/static/..%2f..%2fsetup.cfg", "/workers/w1", "/health/other",
                     "/schema", "/%00", "/%ff", "/bootstrap/x", "/signaling/x"):
            self._assert_error(self.ask("GET", path), 404)

    def test_wrong_method(self) -> None:
        """A wrong method is 405, and Allow says which one is right."""
        for path in READ_ONLY:
            for method in ("POST", "PUT", "DELETE", "PATCH", "BREW"):
                answer = self.ask(method, path)
                self._assert_error(answer, 405)
                self.assertIn("GET", answer.header("Allow"), path)
                self.assertNotIn("POST", answer.header("Allow"), path)
        for method in ("GET", "PUT", "DELETE"):
            answer = self.ask(method, "/bootstrap")
            self._assert_error(answer, 405)
            self.assertIn("POST", answer.header("Allow"))
        head = self.ask("HEAD", "/bootstrap")
        self.assertEqual((head.status, head.body), (405, b""))

    def test_head(self) -> None:
        """HEAD answers as GET does, without the body."""
        asset = re.findall(r'src="(/static/[^"]+)"', self.ask("GET", "/").body.decode())[0]
        for path in (*READ_ONLY, asset):
            head, get = self.ask("HEAD", path), self.ask("GET", path)
            self.assertEqual((head.status, head.body), (200, b""), path)
            self.assertEqual(head.header("Content-Type"), get.header("Content-Type"), path)
            if path not in ("/health", "/metrics"):  # their length changes with the time of day
                self.assertEqual(head.header("Content-Length"), str(len(get.body)), path)

    def test_options(self) -> None:
        """OPTIONS tells the methods of every path."""
        for path in (*READ_ONLY, "/bootstrap"):
            answer = self.ask("OPTIONS", path)
            self.assertIn(answer.status, (200, 204), path)
            self.assertIn("POST" if path == "/bootstrap" else "GET", answer.header("Allow"), path)

    def test_signaling_without_upgrade(self) -> None:
        """A plain GET of the WebSocket path is told what is missing, in the error shape."""
        answer = self.ask("GET", "/signaling")
        self.assertIn(answer.status, (400, 426), answer.body)
        self._assert_error(answer, answer.status)

    def test_malformed_body(self) -> None:
        """Malformed JSON and wrong types are 400, whatever they are made of."""
        for body in (b"{", b"nonsense", b"\xff\xfe", b"[]", b'"x"', b"5", b'{"region":5}', b'{"exclude":"w1"}',
                     b'{"exclude":[1]}', b'{"exclude":{"w1":1}}', b'{"region":NaN}', b'{} {}',
                     b"[" * 60000, b'{"x":' * 10000 + b"1" + b"}" * 10000, b'{"region":"\\ud800"}'):
            self._assert_error(self.ask("POST", "/bootstrap", body), 400)

    def test_unusual_but_valid_bodies(self) -> None:
        """Unknown keys, nulls and white space are no error: what is answered is that there is no worker."""
        for body in (b"", b"{}", b" {} \n", b'{"other":[1,{"x":null}]}', b'{"region":"","exclude":[]}'):
            self._assert_error(self.ask("POST", "/bootstrap", body), 503, "no-workers")

    def test_body_limit(self) -> None:
        """A body of 64 KiB is read, one byte more is 413, also in chunks."""
        self._assert_error(self.ask("POST", "/bootstrap", _padded(LIMIT_BYTES)), 503, "no-workers")
        self._assert_error(self.ask("POST", "/bootstrap", _padded(LIMIT_BYTES + 1)), 413)
        head = b"POST /bootstrap HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        body = _padded(LIMIT_BYTES + 1)
        chunked = exchange(self.port, head + b"Transfer-Encoding: chunked\r\n\r\n"
                           + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        self.assertTrue(chunked.startswith(b"HTTP/1.1 413"), chunked[:80])

    def test_body_limit_by_its_announcement(self) -> None:
        """A body that is announced as too large is refused before it is sent, as ``Expect`` of curl relies on."""
        with socket.create_connection(("127.0.0.1", self.port), LIMIT_S) as raw:
            raw.sendall(b"POST /bootstrap HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
            self.assertTrue(raw.recv(4096).startswith(b"HTTP/1.1 413"))

    def test_no_workers(self) -> None:
        """With nobody to assign, /bootstrap says when to come back and /workers/assign says why."""
        answer = self.ask("POST", "/bootstrap")
        self._assert_error(answer, 503, "no-workers")
        self.assertGreaterEqual(int(answer.header("Retry-After")), 1)
        why = self.ask("GET", "/workers/assign?ip=203.0.113.9").json()
        self.assertEqual((why["worker"], why["reason"], why["ip"]), (None, "no-workers", "203.0.113.9"))

    def test_assign_bad_address(self) -> None:
        """An address that is none is the asker's mistake."""
        for text in ("nonsense", "300.1.1.1", "", "203.0.113.9/24", "%00", "::1::2"):
            self._assert_error(self.ask("GET", f"/workers/assign?ip={text}"), 400)

    def test_metrics(self) -> None:
        """Prometheus reads its own text format, and OpenMetrics when it asks for that."""
        plain = self.ask("GET", "/metrics")
        self.assertEqual(plain.status, 200)
        self.assertTrue(plain.header("Content-Type").startswith("text/plain; version="), plain.headers)
        names = {family.name for family in prometheus_families(plain.body.decode())}
        self.assertTrue(any(name.startswith("kollator") for name in names))
        opened = self.ask("GET", "/metrics", headers={
            "Accept": "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"})
        self.assertTrue(opened.header("Content-Type").startswith("application/openmetrics-text"), opened.headers)
        self.assertTrue(opened.body.endswith(b"# EOF\n"))
        self.assertTrue(list(openmetrics_families(opened.body.decode())))

    def test_schema_itself(self) -> None:
        """The schema is valid JSON Schema and says what it is."""
        answer = self.ask("GET", "/schema.json")
        self.assertEqual(answer.status, 200)
        Draft202012Validator.check_schema(answer.json())

    def test_pipelined_requests_and_http_1_0(self) -> None:
        """Old and eager HTTP clients are answered in order."""
        two = exchange(self.port, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
                                  b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(re.findall(rb"HTTP/1\.1 (\d+)", two), [b"200", b"404"])
        self.assertIn(b" 200 ", exchange(self.port, b"GET /health/live HTTP/1.0\r\n\r\n").split(b"\r\n")[0])

    def test_garbage_instead_of_http(self) -> None:
        """What is no HTTP at all ends its own connection and nothing else."""
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                        b"POST /bootstrap HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
                        b"POST /bootstrap HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                        b"GET http://[bad/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n"):
            exchange(self.port, garbage)
        self.assertEqual(self.ask("GET", "/health/live").status, 200)


class BootstrapTests(ContractTestCase):
    """A front with workers: assignment over HTTP."""

    settings: ClassVar = {
        "STUN_SERVERS": "stun:stun.example:3478", "TURN_SERVERS": "turn:turn.example:3478?transport=udp",
        "TURN_SECRET": "turn-secret-of-the-tests", "TURN_TTL": "600", "TICKET_TTL": "3600",
    }

    def test_answer(self) -> None:
        """The page needs every one of these fields to go on."""
        self.worker(region="us-west")
        self.worker(self.w2, region="us-east")
        got = self.bootstrap()
        workers = {self.w1: "us-west", self.w2: "us-east"}
        self.assertEqual(got["worker"]["region"], workers[got["worker"]["id"]])
        for other in got["alternates"]:
            self.assertEqual(other["region"], workers[other["id"]])
            self.assertNotEqual(other["id"], got["worker"]["id"])
        self.assertEqual(got["node"], "front-e2e")
        self.assertTrue(time.time() + 3500 < got["expires"] < time.time() + 3700)
        self.assertEqual(got["signaling"], f"ws://127.0.0.1:{self.port}/signaling")
        self.assertEqual(self.client(got["ticket"]).id, got["client"])

    def test_ice_servers(self) -> None:
        """A browser behind a strict NAT needs TURN credentials that coturn accepts."""
        self.worker()
        for servers in (self.bootstrap()["iceServers"], self.client().welcome["iceServers"],
                        self.worker(self.w2).welcome["iceServers"]):
            urls = {url: server for server in servers for url in server["urls"]}
            self.assertEqual(set(urls), {"stun:stun.example:3478", "turn:turn.example:3478?transport=udp"})
            self.assertNotIn("credential", urls["stun:stun.example:3478"])
            turn = urls["turn:turn.example:3478?transport=udp"]
            self.assertEqual(turn["credential"], turn_credential("turn-secret-of-the-tests", turn["username"]))
            self.assertTrue(time.time() + 550 < int(turn["username"].split(":")[0]) < time.time() + 650)

    def test_signaling_url_follows_host(self) -> None:
        """A browser that came by a name must be sent to that name."""
        self.worker()
        for host in ("front.example", "front.example:8443", "[::1]:8080"):
            self.assertEqual(self.bootstrap({"Host": host})["signaling"], f"ws://{host}/signaling")

    def test_forwarded_headers_from_strangers(self) -> None:
        """Only a trusted proxy may say which host and address the client used."""
        self.worker()
        got = self.bootstrap({"Host": "front.example", "X-Forwarded-Host": "evil.example",
                              "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"})
        self.assertEqual(got["signaling"], "ws://front.example/signaling")

    def test_exclude(self) -> None:
        """A client that could not reach a worker asks for another one."""
        self.worker()
        self.worker(self.w2)
        first = self.bootstrap()["worker"]["id"]
        for _ in range(3):
            other = self.bootstrap(exclude=[first])
            self.assertNotEqual(other["worker"]["id"], first)
            self.assertNotIn(first, [row["id"] for row in other["alternates"]])
        answer = self.ask("POST", "/bootstrap", json.dumps({"exclude": [self.w1, self.w2]}).encode())
        self.assertEqual((answer.status, answer.error_code), (503, "no-workers"))

    def test_region(self) -> None:
        """The wish for a region is granted where a worker is there, and otherwise does not leave one alone."""
        self.worker("west", region="us-west")
        self.worker("east", region="us-east")
        self.assertEqual(self.bootstrap(region="us-west")["worker"], {"id": "west", "region": "us-west"})
        self.assertEqual(self.bootstrap(region="us-east")["worker"], {"id": "east", "region": "us-east"})
        self.assertIn(self.bootstrap(region="mars")["worker"]["id"], ("west", "east"))
        why = self.ask("GET", "/workers/assign?ip=203.0.113.9&region=us-east").json()
        self.assertEqual(why["worker"], "east")

    def test_assign_explains_bootstrap(self) -> None:
        """What an operator is told is what the client got, with the network that decided it."""
        self.worker()
        self.worker(self.w2)
        why = self.ask("GET", "/workers/assign?ip=127.0.0.1").json()
        self.assertEqual((why["worker"], why["ip"], why["range"]),
                         (self.bootstrap()["worker"]["id"], "127.0.0.1", "127.0.0.0/24"))
        self.assertEqual(why["reason"], "ring")
        for ip in ("203.0.113.9", "2001:db8::1"):
            why = self.ask("GET", f"/workers/assign?ip={ip}").json()
            self.assertIn(ip_address(ip), ip_network(why["range"]))
            self.assertIn(why["worker"], (self.w1, self.w2))
        self.assertEqual(self.ask("GET", "/workers/assign?ip=203.0.113.9").json()["range"], "203.0.113.0/24")

    def test_assign_reads_only(self) -> None:
        """Asking why must not change anything, or monitoring would move clients about."""
        self.worker()
        before = self.ask("GET", "/workers").body
        for number in range(20):
            self.ask("GET", f"/workers/assign?ip=198.51.{number}.1")
        self.assertEqual(self.ask("GET", "/workers").body, before)

    def test_same_network_same_worker(self) -> None:
        """Clients of one range meet at one worker, and ranges spread over all of them."""
        for name in (self.w1, self.w2, self.w3):
            self.worker(name)
        seen = set()
        for number in range(30):
            pair = {self.ask("GET", f"/workers/assign?ip=198.51.{number}.{host}").json()["worker"] for host in (1, 250)}
            self.assertEqual(len(pair), 1)
            seen |= pair
        self.assertEqual(seen, {self.w1, self.w2, self.w3})

    def test_schema_validates_real_messages(self) -> None:
        """The published schema describes what is really sent, each way."""
        schema: dict[str, Any] = self.ask("GET", "/schema.json").json()
        validator = Draft202012Validator(schema)
        worker = self.stranger(region="us-west")
        got = [worker.hello()]
        worker.send(type="auth", mac=worker.mac())
        got += [worker.receive()]
        client: Client = self.client()
        got += [client.welcome, client.ask(type="assign", ref="r1"), client.ask(type="nonsense"),
                client.ask(type="offer", to="nobody", sdp="v=0")]
        client.send(type="offer", to=self.w1, sdp="v=0", session="s1")
        client.send(type="candidate", to=self.w1, candidate=None)
        client.send(type="candidate", to=self.w1, candidate={"candidate": "c", "sdpMid": None, "sdpMLineIndex": 0})
        client.send(type="bye", to=self.w1, reason="over")
        got += [worker.receive() for _ in range(4)]
        worker.send(type="answer", to=client.id, sdp="v=0")
        got += [client.receive()]
        worker.abort()
        got += [client.expect("worker-lost")]
        for message in got:
            validator.validate(message)
        bad: tuple[Any, ...] = ({"type": "nonsense"}, {"type": "offer"}, {"type": "offer", "to": 5, "sdp": "v=0"}, [], "x")
        for wrong in bad:
            self.assertFalse(validator.is_valid(wrong), wrong)

    def test_handoff_counted(self) -> None:
        """The hand-offs are the measure of whether all this works, so `connected` must be counted."""
        worker = self.worker()
        client = self.client()

        def handoffs() -> float:
            return sum(sample.value for family in prometheus_families(self.ask("GET", "/metrics").body.decode())
                       for sample in family.samples if re.search(r"hand_?offs?(_total)?$", sample.name))

        before = handoffs()
        client.send(type="connected", to=self.w1, session="s1", ms=312)
        client.synchronise()
        self.assertEqual(handoffs(), before + 1)
        self.assertTrue(worker.quiet(0.05))


class ProxyTests(ContractTestCase):
    """A front behind a trusted proxy."""

    settings: ClassVar = {"TRUSTED_PROXIES": "127.0.0.0/8", "ALLOWED_ORIGINS": "https://app.example"}

    def test_scheme_and_host(self) -> None:
        """Behind a TLS proxy the browser must be sent to wss:// and to the name it knows."""
        self.worker()
        got = self.bootstrap({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example"})
        self.assertEqual(got["signaling"], "wss://app.example/signaling")
        got = self.bootstrap({"Host": "direct.example", "X-Forwarded-Proto": "http"})
        self.assertEqual(got["signaling"], "ws://direct.example/signaling")

    def test_client_address(self) -> None:
        """The worker goes by the client's network, not by the proxy's; what lies before a stranger is ignored."""
        for name in (self.w1, self.w2, self.w3):
            self.worker(name)
        chosen = set()
        for number in range(12):
            ip = f"198.51.{number}.7"
            why = self.ask("GET", f"/workers/assign?ip={ip}").json()["worker"]
            for header in (ip, f"{ip}, 127.0.0.9", f"10.9.9.9, {ip}"):
                self.assertEqual(self.bootstrap({"X-Forwarded-For": header})["worker"]["id"], why, header)
            client = self.client(headers={"X-Forwarded-For": ip})
            self.assertEqual(client.ask(type="assign")["worker"]["id"], why)
            chosen.add(why)
        self.assertGreater(len(chosen), 1)

    def test_malformed_forwarded_headers(self) -> None:
        """A proxy that forwards rubbish must not take the front down."""
        self.worker()
        for headers in ({"X-Forwarded-For": "unknown"}, {"X-Forwarded-For": ", ,"}, {"X-Forwarded-Proto": "gopher"},
                        {"X-Forwarded-Host": 'a"b c'}, {"X-Forwarded-For": "[::1]:80"}):
            self.assertIn(self.ask("POST", "/bootstrap", headers=headers).status, (200, 400), headers)

    def test_cross_origin_bootstrap(self) -> None:
        """A page of an allowed origin may call /bootstrap, one of another origin may not read the answer."""
        self.worker()
        allowed = self.ask("POST", "/bootstrap", headers={"Origin": "https://app.example"})
        self.assertEqual((allowed.status, allowed.header("Access-Control-Allow-Origin")), (200, "https://app.example"))
        other = self.ask("POST", "/bootstrap", headers={"Origin": "https://evil.example"})
        self.assertNotIn(other.header("Access-Control-Allow-Origin"), ("*", "https://evil.example"))
        preflight = self.ask("OPTIONS", "/bootstrap", headers={
            "Origin": "https://app.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type"})
        self.assertEqual(preflight.header("Access-Control-Allow-Origin"), "https://app.example")
        self.assertIn("content-type", preflight.header("Access-Control-Allow-Headers").lower())


class EndpointTests(ContractTestCase):
    """LISTEN with several endpoints, one of them behind the PROXY protocol."""

    options: ClassVar = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", "haproxy:tcp:0:interface=127.0.0.1",
               "--listen", r"tcp:0:interface=\:\:1")
    endpoints = 3

    def test_all_serve(self) -> None:
        """Every endpoint of LISTEN is served, and the address in a PROXY header is the client's."""
        for name in (self.w1, self.w2, self.w3):
            self.worker(name)
        self.assertEqual(len(self.front.ports), 3)
        served = 0
        for port in self.front.ports[1:]:
            for number in range(8):
                ip = f"198.51.{number}.7"
                why = self.ask("GET", f"/workers/assign?ip={ip}").json()["worker"]
                try:
                    answer = exchange(port, f"PROXY TCP4 {ip} 127.0.0.1 4711 80\r\n".encode()
                                      + b"POST /bootstrap HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                except ConnectionRefusedError:  # the IPv6 endpoint
                    break
                self.assertTrue(answer.startswith(b"HTTP/1.1 200"), answer[:200])
                self.assertEqual(json.loads(answer.split(b"\r\n\r\n", 1)[1])["worker"]["id"], why)
                served += 1
        self.assertEqual(served, 8)
