"""The endpoints of the contract's section 1, one after the other: shapes, types, methods, headers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.web.http import Request

from kollator.state.rows import AttachmentRow, PinRow
from kollator.web.refusal import LINGER_S, Refusal
from kollator.web.resources import JsonResource
from kollator.web.site import FrontSite
from tests.fronts import ASSETS, FrontTestCase
from tests.wires import JSON, PEER, Wire, read_answers, request, shape

READ_ONLY = ("/", "/status", "/health", "/health/live", "/health/ready", "/workers", "/workers/assign?ip=203.0.113.9",
             "/metrics", "/schema.json", "/favicon.ico", "/static/kollator.js")


class EveryPathTests(FrontTestCase):
    """What holds for each of them."""

    def test_get_and_head(self) -> None:
        """HEAD tells what GET would say, to the byte, without saying it."""
        for path in READ_ONLY:
            get, head = self.front.ask("GET", path), self.front.ask("HEAD", path)
            self.assertEqual((get.status, head.status, head.body), (200, 200, b""), path)
            self.assertEqual(get.header("Content-Length"), str(len(get.body)))
            for name in ("Content-Type", "Cache-Control", "ETag"):
                self.assertEqual(get.header(name), head.header(name), (path, name))
            if path != "/metrics":
                self.assertEqual(get.header("Content-Length"), head.header("Content-Length"), path)

    def test_headers(self) -> None:
        """Nothing but the client application may be kept, types are not guessed, and no version is told."""
        for path in (*READ_ONLY, "/nothing", "/bootstrap", "/signaling"):
            answer = self.front.ask("GET", path)
            self.assertEqual(answer.header("Server"), "kollator-front")
            self.assertEqual(answer.header("X-Content-Type-Options"), "nosniff")
            kept = path in ("/", "/status", "/favicon.ico", "/static/kollator.js")
            self.assertEqual(answer.header("Cache-Control"), "no-cache" if kept else "no-store", path)
            self.assertTrue(answer.header("Date"))

    def test_wrong_method(self) -> None:
        """405 says which methods there are, whatever the method is."""
        for path in (*READ_ONLY, "/signaling"):
            for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW", "get", "render"):
                answer = self.front.ask(method, path)
                self.assert_error(answer, 405, "method-not-allowed")
                self.assertEqual(answer.header("Allow"), "GET, HEAD, OPTIONS", path)
        for method in ("GET", "HEAD", "PUT"):
            answer = self.front.ask(method, "/bootstrap")
            self.assertEqual((answer.status, answer.header("Allow")), (405, "OPTIONS, POST"))

    def test_options(self) -> None:
        """OPTIONS tells the same without an error, and has no body to speak of (RFC 9110 section 8.6)."""
        for path in (*READ_ONLY, "/bootstrap", "/signaling"):
            answer = self.front.ask("OPTIONS", path)
            allow = "OPTIONS, POST" if path == "/bootstrap" else "GET, HEAD, OPTIONS"
            self.assertEqual((answer.status, answer.header("Allow"), answer.body), (204, allow, b""), path)
            self.assertEqual((answer.header("Content-Length"), answer.header("Content-Type")), (None, None))

    def test_not_found(self) -> None:
        """An unknown path is unknown for every method."""
        for path in ("/nothing", "/static", "/static/nothing.js", "/workers/w1", "/health/x", "/bootstrap/x"):
            for method in ("GET", "POST", "OPTIONS", "BREW"):
                self.assert_error(self.front.ask(method, path), 404, "not-found")
            self.assertEqual(self.front.ask("HEAD", path).status, 404)

    def test_upgrade_required(self) -> None:
        """A plain request for the WebSocket learns what is missing, by number and by name."""
        answer = self.front.ask("GET", "/signaling")
        self.assert_error(answer, 426, "upgrade-required")
        self.assertEqual((answer.reason, answer.header("Upgrade")), ("Upgrade Required", "websocket"))
        self.assertEqual(self.front.ask("HEAD", "/signaling").status, 426)

    def test_mistake_of_ours(self) -> None:
        """A mistake in a view is logged, and answered in the contract's form without its text."""

        class Broken(JsonResource):
            def get(self, request: Request) -> Any:
                raise ZeroDivisionError("secret")

        root = Broken(self.front.views)
        root.children[b"x"] = root
        wire = self.front.connect(factory=FrontSite(root, self.front.clock)).send(request("GET", "/x"))
        (answer,) = read_answers(wire.taken())
        self.assert_error(answer, 500, "internal")
        self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_counted(self) -> None:
        """An operator sees which answers go up, by the paths that exist and never by what a client made up."""
        for method, path in (
            ("GET", "/"), ("GET", "/static/kollator.js"), ("GET", "/static/no.js"), ("GET", "/made/up"),
            ("GET", "/health"), ("PUT", "/workers/assign"), ("POST", "/bootstrap"),
        ):
            self.front.ask(method, path)
        self.assertEqual(
            self.front.counters.responses,
            {
                ("/", "200"): 1, ("/static", "200"): 1, ("/static", "404"): 1, ("other", "404"): 1,
                ("/health", "200"): 1, ("/workers/assign", "405"): 1, ("/bootstrap", "503"): 1,
            },
        )


class LaterTests(FrontTestCase):
    """Resources that answer with a Deferred."""

    def ask_later(self, method: str, found: Deferred[Any]) -> Wire:
        """A request to a resource whose every method returns ``found``."""

        class Later(JsonResource):
            def get(self, request: Request) -> Deferred[Any]:
                return found

            post = put = delete = get

        root = Later(self.front.views)
        root.children[b"x"] = root
        return self.front.connect(factory=FrontSite(root, self.front.clock)).send(request(method, "/x"))

    def test_value(self) -> None:
        """The answer is what the Deferred fires with, sooner or later, whatever the method."""
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
            now = self.ask_later(method, succeed({"a": 1}))
            found: Deferred[Any] = Deferred()
            later = self.ask_later(method, found)
            self.assertEqual(later.value(), b"")
            found.callback({"a": 1})
            for wire in (now, later):
                (answer,) = read_answers(wire.taken(), [method])
                self.assertEqual((answer.status, answer.header("Content-Type")), (200, JSON))
                self.assertEqual(answer.body, b"" if method == "HEAD" else b'{"a":1}')
                self.assertEqual(answer.header("Cache-Control"), "no-store")

    def test_refusal(self) -> None:
        """A refusal is an answer, raised at once or later, and none of our mistakes."""
        (answer,) = read_answers(self.ask_later("POST", fail(Refusal(503, "no-database", "full", 7))).taken())
        self.assert_error(answer, 503, "no-database")
        self.assertEqual((answer.reason, answer.header("Retry-After")), ("Service Unavailable", "7"))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_mistake(self) -> None:
        """Anything else is logged, and told without its text; an answer that is none is a mistake too."""
        mistakes: tuple[Deferred[Any], ...] = (fail(ZeroDivisionError("secret")), succeed(object()))
        for found in mistakes:
            (answer,) = read_answers(self.ask_later("GET", found).taken())
            self.assert_error(answer, 500, "internal")
            self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, TypeError)), 2)

    def test_nobody_waits(self) -> None:
        """Whoever hung up is not answered, which raises nothing; a mistake is logged all the same."""
        outcomes: list[Any] = [{"a": 1}, Refusal(503, "no-database", "full"), ZeroDivisionError()]
        for outcome in outcomes:
            found: Deferred[Any] = Deferred()
            wire = self.ask_later("GET", found)
            wire.hang_up()
            if isinstance(outcome, Exception):
                found.errback(outcome)
            else:
                found.callback(outcome)
            self.assertEqual(wire.value(), b"")
            self.successResultOf(found)
        self.assertEqual(len(self.flushLoggedErrors()), 1)


class HealthTests(FrontTestCase):
    """``/health`` and what is below it."""

    def test_shape(self) -> None:
        """Monitors read these keys, of these types."""
        self.front.worker("w1")
        left = self.front.worker("w2")
        self.front.registry.worker_left(left)
        self.front.advance(2.5)
        health = self.front.ask("GET", "/health")
        self.assertEqual((health.status, health.header("Content-Type")), (200, JSON))
        self.assertEqual(
            health.json(),
            {
                "status": "ok",
                "node": "front-1",
                "version": health.json()["version"],
                "role": "leader",
                "leader": "front-1",
                "term": 1,
                "cluster": [{"node": "front-1", "state": "leader", "sync_lag_ms": 0.0}],
                "workers": {"up": 1, "total": 2},
                "connections": {"client": 0, "worker": 0},
                "ring": {"digest": self.front.pool.digest},
                "uptime_s": 2.5,
                "synchronised": True,
            },
        )

    def test_draining(self) -> None:
        """A front that is about to stop says so, so that nobody is sent to it; it is alive all the same."""
        self.front.drain.draining = True
        health = self.front.ask("GET", "/health")
        self.assertEqual((health.status, health.json()["status"]), (503, "draining"))
        self.assert_error(self.front.ask("GET", "/health/ready"), 503, "draining")
        self.assertEqual(self.front.ask("GET", "/health/live").status, 200)

    def test_degraded(self) -> None:
        """A full disk: no worker can register, the front says so everywhere, serves on, and recovers by itself."""
        self.front.worker("w1")
        database = self.front.store._database.connection
        pages = database.execute("PRAGMA page_count").fetchall()[0][0]
        database.execute(f"PRAGMA max_page_count={pages}").fetchall()
        for number in range(2000):  # what is free in the pages there are must be used up first
            self.front.registry.worker_joined(
                self.front.claim(f"worker-{number}-{'x' * 40}"), lambda stored: None
            )
            if self.front.writer.problem:
                break
        self.assertIn("no room left", self.front.writer.problem or "")
        outcomes: list[bool] = []
        self.front.registry.worker_joined(self.front.claim("w2"), outcomes.append)
        self.front.advance(1.0)
        self.assertEqual(outcomes, [False])
        health = self.front.ask("GET", "/health")
        self.assertEqual((health.status, health.json()["status"]), (503, "degraded"))
        self.assert_error(self.front.ask("GET", "/health/ready"), 503, "no-database")
        self.assertEqual(self.front.ask("GET", "/health/live").status, 200)
        self.assertEqual(self.front.ask("POST", "/bootstrap").json()["worker"]["id"][:1], "w")
        database.execute("PRAGMA max_page_count=1000000").fetchall()
        self.front.advance(1.0)
        self.assertEqual(self.front.ask("GET", "/health").json()["status"], "ok")
        self.assertEqual(self.front.ask("GET", "/health/ready").json(), {"status": "ready"})
        stored = {row.worker: row.state for row in self.front.store.rows() if isinstance(row, AttachmentRow)}
        self.assertEqual((stored["w1"], stored["w2"]), ("up", "down"))


class WorkersTests(FrontTestCase):
    """``/workers`` and ``/workers/assign``."""

    def test_workers(self) -> None:
        """The operators' page and scripts read these keys, of these types."""
        empty = self.front.ask("GET", "/workers").json()
        self.assertEqual(empty["workers"], [])
        self.assertEqual(shape(empty["ring"]), {"replicas": int, "points": int, "digest": str})
        self.front.worker("w2", "eu", 10)
        self.front.worker("w1", "us")
        self.front.registry.worker_status("w2", 10, False)
        listed = self.front.ask("GET", "/workers").json()
        self.assertEqual(
            listed["workers"],
            [
                {"id": "w1", "region": "us", "capacity": 100, "sessions": 0, "state": "up", "fronts": ["front-1"],
                 "address": "192.0.2.50", "why": ""},
                {"id": "w2", "region": "eu", "capacity": 10, "sessions": 10, "state": "full", "fronts": ["front-1"],
                 "address": "192.0.2.50", "why": ""},
            ],
        )
        self.assertEqual(listed["ring"]["replicas"], 150)
        self.assertEqual(listed["ring"]["digest"], self.front.pool.digest)
        self.front.registry.worker_status("w1", 5, False)
        again = self.front.ask("GET", "/workers")
        self.assertEqual((again.header("Content-Type"), again.json()["workers"][0]["sessions"]), (JSON, 5))

    def test_assign_shape(self) -> None:
        """What explains an assignment has these keys, of these types, and is what /bootstrap does."""
        self.front.worker("w1", "eu")
        self.front.worker("w2", "eu")
        why = self.front.ask("GET", f"/workers/assign?ip={PEER}").json()
        self.assertEqual(
            shape(why),
            {"ip": str, "range": str, "region": str, "worker": str, "alternates": [str], "reason": str,
             "position": int, "point": int, "pin": type(None), "skipped": []},
        )
        self.assertEqual((why["ip"], why["range"], why["reason"]), (PEER, "203.0.113.0/24", "ring"))
        got = self.front.ask("POST", "/bootstrap").json()
        self.assertEqual((got["worker"]["id"], got["alternates"][0]["id"]), (why["worker"], why["alternates"][0]))

    def test_assign_reasons(self) -> None:
        """The reason is the one that decided: nobody, a region, a pin, a state."""

        def why(query: str = "") -> Any:
            return self.front.ask("GET", f"/workers/assign?ip={PEER}{query}").json()

        nobody = why()
        self.assertEqual((nobody["worker"], nobody["alternates"], nobody["reason"]), (None, [], "no-workers"))
        self.front.worker("w1", "us-west")
        self.front.worker("w2", "us-east")
        self.assertEqual(why("&region=us-west")["worker"], "w1")
        self.assertEqual(why("&region=us-east")["worker"], "w2")
        self.assertEqual(why("&region=mars")["reason"], "other-region")
        self.front.pool.apply(PinRow("203.0.113.0/24", "w2"))
        self.assertEqual((why()["worker"], why()["reason"], why()["pin"]), ("w2", "pinned", "203.0.113.0/24"))
        self.front.registry.worker_status("w2", 0, True)
        fallen = why()
        self.assertEqual((fallen["worker"], fallen["reason"]), ("w1", "pin-fallback"))
        self.assertEqual(fallen["skipped"], [{"worker": "w2", "reason": "draining", "why": ""}])

    def test_assign_addresses(self) -> None:
        """Addresses may be of both families and percent-encoded; what is none is the asker's mistake."""
        self.front.worker()
        for text, found in (
            ("203.0.113.9", "203.0.113.0/24"),
            ("2001:db8::1", "2001:db8::/48"),
            ("2001%3adb8%3A%3A1", "2001:db8::/48"),
            ("::ffff:203.0.113.9", "203.0.113.0/24"),
            ("203%2E0.113.9&region=", "203.0.113.0/24"),
        ):
            answer = self.front.ask("GET", f"/workers/assign?ip={text}")
            self.assertEqual((answer.status, answer.json().get("range")), (200, found), text)
        for query in ("", "?", "?ip", "?ip=", "?region=eu", "?ip=nonsense", "?ip=300.1.1.1", "?ip=1.2.3", "?ip=%ff",
                      "?ip=%00", "?ip=203.0.113.9%20", "?ip=+203.0.113.9", "?ip=203.0.113.9/24", "?IP=203.0.113.9",
                      "?ip=203.0.113.9&ip=203.0.113.9", "?ip=203.0.113.9&region=a&region=b",
                      f"?ip=203.0.113.9&region={'x' * 65}", "?ip=203.0.113.9&region=a%0a", f"?ip={'1' * 9000}"):
            self.assert_error(self.front.ask("GET", f"/workers/assign{query}"), 400, "bad-request")

    def test_assign_reads_only(self) -> None:
        """Asking why must neither move clients about nor count as an assignment."""
        self.front.worker()
        before = self.front.ask("GET", "/workers").body
        self.front.ask("GET", f"/workers/assign?ip={PEER}")
        self.assertEqual(self.front.ask("GET", "/workers").body, before)
        self.assertEqual(sum(self.front.counters.assignments.values()), 0)


class AssetTests(FrontTestCase):
    """The client application's files."""

    def test_files(self) -> None:
        """Each is served as what it is."""
        for name, asset in ASSETS.items():
            answer = self.front.ask("GET", f"/static/{name.decode()}")
            self.assertEqual((answer.status, answer.body), (200, asset.body))
            self.assertEqual(answer.header("Content-Type"), asset.content_type.decode())
            self.assertEqual(answer.header("ETag"), asset.etag.decode())
        for path, name in (("/", b"index.html"), ("/status", b"status.html"), ("/favicon.ico", b"favicon.svg")):
            self.assertEqual(self.front.ask("GET", path).body, ASSETS[name].body)

    def test_known_copies(self) -> None:
        """A copy that is the same is not sent again, in whatever list and strength a browser or proxy names it."""
        etag = ASSETS[b"kollator.js"].etag.decode()
        for known in (etag, f"W/{etag}", "*", f'"other", {etag}', f'{etag},"other"', f'"a","b",W/{etag}', f' {etag} '):
            for method in ("GET", "HEAD"):
                answer = self.front.ask(method, "/static/kollator.js", {"If-None-Match": known})
                self.assertEqual((answer.status, answer.body), (304, b""), known)
                self.assertEqual((answer.header("ETag"), answer.header("Cache-Control")), (etag, "no-cache"))
                self.assertIsNone(answer.header("Content-Length"))
                self.assertIsNone(answer.header("Content-Type"))

    def test_other_copies(self) -> None:
        """Anything else is answered with the file."""
        etag = ASSETS[b"kollator.js"].etag.decode()
        for known in ('"other"', "", etag.strip('"'), f'"x{etag[1:]}', '"', '"*"', "W/"):
            answer = self.front.ask("GET", "/static/kollator.js", {"If-None-Match": known})
            self.assertEqual(answer.status, 200, known)

    def test_kept_connection_after_304(self) -> None:
        """An answer without a body leaves the connection where the next answer begins."""
        known = {"If-None-Match": "*"}
        wire = self.front.connect().send(request("GET", "/", known) + request("GET", "/health/live"))
        self.front.clock.advance(0)
        self.assertEqual([answer.status for answer in read_answers(wire.taken())], [304, 200])


class MetricsTests(FrontTestCase):
    """``/metrics`` and ``/schema.json``."""

    def test_formats(self) -> None:
        """Prometheus gets its own text format, OpenMetrics when it asks for it, in any number of lines."""
        plain = self.front.ask("GET", "/metrics")
        self.assertEqual(plain.header("Content-Type"), "text/plain; version=0.0.4; charset=utf-8")
        self.assertIn(b"kollator_bootstraps_total", plain.body)
        asked = self.front.ask("GET", "/metrics", {"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
        self.assertEqual((asked.header("Content-Type") or "").split(";")[0], "application/openmetrics-text")
        self.assertTrue(asked.body.endswith(b"# EOF\n"))

    def test_schema(self) -> None:
        """The schema is JSON and names the groups of messages."""
        answer = self.front.ask("GET", "/schema.json")
        self.assertEqual(answer.header("Content-Type"), JSON)
        self.assertLessEqual({"fromClient", "fromWorker", "toClient", "toWorker"}, set(answer.json()["$defs"]))


class LastWordTests(FrontTestCase):
    """Answers that end a connection, on one that has trouble of its own."""

    def test_peer_gone(self) -> None:
        """A peer that leaves at once leaves nothing behind."""
        wire = self.front.connect().send(b"nonsense\r\n\r\n")
        self.assertTrue(wire.half_closed)
        wire.hang_up()
        self.assertEqual(self.front.clock.getDelayedCalls(), [])

    def test_time(self) -> None:
        """One that stays is cut."""
        wire = self.front.connect().send(b"nonsense\r\n\r\n")
        self.front.advance(LINGER_S)
        self.assertTrue(wire.lost)
