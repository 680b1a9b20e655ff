"""Section 1 of the contract: pages, formats, limits and errors, asked of a running front without workers."""

from __future__ import annotations

import re
import socket

from jsonschema import Draft202012Validator
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from tests.e2e.contract_client import LIMIT_BYTES, LIMIT_S, Answer, ContractTestCase, exchange

JSON_TYPE = "application/json; charset=utf-8"
READ_ONLY = ("/", "/status", "/health", "/health/live", "/health/ready", "/workers",
             "/workers/assign?ip=203.0.113.9", "/metrics", "/schema.json")
JSON_PAGES = ("/health", "/health/live", "/health/ready", "/workers", "/workers/assign?ip=203.0.113.9")


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
