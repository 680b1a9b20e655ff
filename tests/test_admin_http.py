"""``/admin`` over HTTP: each endpoint and each of its errors."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st

from kollator.admin import PINS_MAX
from kollator.state.rows import DrainRow, FrontRow, PinRow
from kollator.web.answers import BODY_BYTES
from tests.admins import METHODS, NOWHERE, OPERATOR, PATHS, TOKEN, AdminTestCase, bearer, order
from tests.fronts import FrontTestCase
from tests.wires import PEER, read_answers, read_frames, text_frame


class OffTests(FrontTestCase):
    """A front without ADMIN_TOKEN_FILE."""

    def test_nothing_there(self) -> None:
        """An interface that nobody asked for must not even be noticed."""
        for path in (*PATHS, *NOWHERE):
            for method in ("GET", "POST", "OPTIONS"):
                answer = self.front.ask(method, path, bearer(TOKEN))
                self.assert_error(answer, 404, "not-found")
                self.assertIsNone(answer.header("WWW-Authenticate"))


class EveryPathTests(AdminTestCase):
    """What holds for each endpoint."""

    def test_methods(self) -> None:
        """A wrong method is told the right ones, as everywhere."""
        for path, allow in PATHS.items():
            for method in METHODS:
                if method in allow:
                    continue
                answer = self.front.order(method, path)
                self.assertEqual((answer.status, answer.header("Allow")), (405, allow), path)
                if method != "HEAD":
                    self.assert_error(answer, 405, "method-not-allowed")
            answer = self.front.order("OPTIONS", path)
            self.assertEqual((answer.status, answer.header("Allow")), (204, allow))

    def test_nowhere(self) -> None:
        """An unknown path is unknown to operators too."""
        for path in NOWHERE:
            for method in ("GET", "POST", "OPTIONS"):
                self.assert_error(self.front.order(method, path), 404, "not-found")

    def test_headers(self) -> None:
        """Answers with tokens behind them are kept nowhere, and no page of another origin may read them."""
        for path in (*PATHS, *NOWHERE):
            answer = self.front.ask("GET", path, {**bearer(TOKEN), "Origin": "http://front.example:8080"})
            self.assertEqual(answer.header("Cache-Control"), "no-store")
            self.assertIsNone(answer.header("Access-Control-Allow-Origin"))
            self.assertEqual(answer.header("Server"), "kollator-front")

    def test_head(self) -> None:
        """HEAD tells what GET would, without saying it."""
        for path in ("/admin/pins", "/admin/workers", "/admin/connections", "/admin/log"):
            get, head = self.front.order("GET", path), self.front.order("HEAD", path)
            self.assertEqual((head.status, head.body), (200, b""))
            self.assertEqual(head.header("Content-Length"), str(len(get.body)))

    def test_unknown_arguments(self) -> None:
        """A slip in the query is told: ``?rol=client`` must not list everybody."""
        for method, path in (
            ("GET", "/admin/pins?cidr=1.2.3.0/24"), ("GET", "/admin/connections?rol=client"), ("GET", "/admin/log?x="),
            ("POST", "/admin/front/drain?dry-run=true"), ("GET", "/admin/workers?state=up"),
            ("DELETE", "/admin/pins?worker=w1"), ("DELETE", "/admin/pins/1.2.3.0/24?cidr=1.2.3.0/24"),
            ("PUT", "/admin/log?debug=x"), ("POST", "/admin/pins?cidr=1.2.3.0/24"), ("GET", "/admin/pins?%ff=1"),
        ):
            self.assert_error(self.front.order(method, path, {"debug": []} if "log" in path else None), 400,
                              "bad-request")
        self.assertFalse(self.front.drain.draining)

    def test_counted_as_one(self) -> None:
        """What is below /admin is one path in the metrics, whatever ranges and ids it names."""
        counted: list[tuple[str, int]] = []
        self.front.site.responded = lambda path, status: counted.append((path, status))
        for path in ("/admin/log", "/admin/pins/1.2.3.0/24", "/admin/workers/w1/x", "/admin"):
            self.front.order("GET", path)
        self.assertEqual(counted, [("/admin", 200), ("/admin", 405), ("/admin", 404), ("/admin", 404)])


class PinsTests(AdminTestCase):
    """``/admin/pins``"""

    def setUp(self) -> None:
        """Two workers of two regions."""
        super().setUp()
        self.front.worker("w1", "eu")
        self.front.worker("w2", "us west")

    def pins(self) -> Any:
        """The list."""
        return self.answered(self.front.order("GET", "/admin/pins"))["pins"]

    def test_life(self) -> None:
        """A pin is made, replaced, shown, obeyed and removed, each of it in the audit log."""
        range_ = "203.0.113.0/24"
        to_w1, to_west = {"cidr": range_, "worker": "w1"}, {"cidr": range_, "region": "us west"}
        self.assertEqual(self.answered(self.front.order("POST", "/admin/pins", to_w1), 201), to_w1)
        why = self.front.ask("GET", f"/workers/assign?ip={PEER}").json()
        self.assertEqual((why["worker"], why["reason"], why["pin"]), ("w1", "pinned", range_))
        self.assertEqual(self.answered(self.front.order("POST", "/admin/pins", to_west)), to_west)
        self.assertEqual(self.pins(), [to_west])
        why = self.front.ask("GET", f"/workers/assign?ip={PEER}").json()
        self.assertEqual((why["worker"], why["reason"]), ("w2", "pinned"))
        self.assertEqual(self.answered(self.front.order("POST", "/admin/pins", to_west)), to_west)
        self.assertIn(PinRow(range_, "", "us west"), self.front.store.rows())
        removed = self.answered(self.front.order("DELETE", f"/admin/pins?cidr={range_}"))
        self.assertEqual((removed, self.pins()), ({"removed": to_west}, []))
        self.assertIn(PinRow(range_), self.front.store.rows())
        self.assertEqual(self.front.ask("GET", f"/workers/assign?ip={PEER}").json()["reason"], "ring")
        self.answered(self.front.order("POST", "/admin/pins", to_w1), 201)
        told = {"event": "admin", "action": "pin", "address": OPERATOR, "cidr": range_}
        self.assertEqual(
            self.front.audited,
            [
                {**told, "worker": "w1"}, {**told, "region": "us west"}, {**told, "region": "us west"},
                {**told, "action": "unpin"}, {**told, "worker": "w1"},
            ],
        )

    def test_order(self) -> None:
        """The list is in the order of the networks, both families."""
        ranges = ["9.0.0.0/8", "10.0.0.0/8", "10.0.0.0/9", "10.0.0.1/32", "::/0", "2001:db8::/32", "2001:db8::1/128"]
        for cidr in reversed(ranges):
            self.answered(self.front.order("POST", "/admin/pins", {"cidr": cidr, "worker": "w1"}), 201)
        self.assertEqual([pin["cidr"] for pin in self.pins()], ranges)

    def test_ways_to_name_it(self) -> None:
        """A pin is removed by query, by path and by body, its slash encoded or not."""
        for cidr in ("203.0.113.0/24", "2001:db8::/32"):
            for target, body in (
                (f"/admin/pins?cidr={cidr}", None),
                (f"/admin/pins?cidr={cidr.replace('/', '%2F').replace(':', '%3a')}", b" "),
                (f"/admin/pins/{cidr}", None),
                (f"/admin/pins/{cidr.replace('/', '%2f')}", {}),
                ("/admin/pins", {"cidr": cidr}),
            ):
                self.front.order("POST", "/admin/pins", {"cidr": cidr, "worker": "w1"})
                removed = self.answered(self.front.order("DELETE", target, body))
                self.assertEqual((removed["removed"]["cidr"], self.pins()), (cidr, []), target)

    def test_wrong_ranges(self) -> None:
        """A range that is none is told so, one that is not written as it counts is told how."""
        self.front.order("POST", "/admin/pins", {"cidr": "10.0.0.0/8", "worker": "w1"})
        before = self.front.store.rows()
        for cidr, hint in (
            ("nonsense", "203.0.113.0/24"), ("1.2.3.4/33", "203.0.113.0/24"), ("/24", "CIDR"), ("10.0.0.0/8 ", "CIDR"),
            ("10.0.0.0/", "CIDR"), ("1.2.3/24", "CIDR"), ("2001:db8::/129", "CIDR"), ("x" * 200, "CIDR"),
            ("10.0.0.0/8\0", "CIDR"), ("\u0661.2.3.0/24", "CIDR"), ("w1", "CIDR"),
            ("203.0.113.9/24", "203.0.113.0/24"), ("203.0.113.9", "203.0.113.9/32"), ("10.0.0.0/08", "10.0.0.0/8"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32"), ("2001:DB8::/32", "2001:db8::/"),
            ("::ffff:203.0.113.0/120", "203.0.113.0/24"), ("::ffff:0:0/96", "0.0.0.0/0"), ("fe80::%e/64", "fe80::/64"),
        ):
            for method in ("POST", "DELETE"):
                body = {"cidr": cidr, **({"worker": "w1"} if method == "POST" else {})}
                answer = self.front.order(method, "/admin/pins", body)
                self.assert_error(answer, 400, "bad-request")
                self.assertIn(hint, answer.json()["error"]["message"], cidr)
        self.assertEqual((self.front.store.rows(), len(self.pins())), (before, 1))

    def test_unknown_targets(self) -> None:
        """A pin to nobody is a slip: no such worker or region, no such pin."""
        before = self.front.store.rows()
        for worker in ("w3", "W1", "w1 ", "\u00e9", "x" * 256, "eu"):
            answer = self.front.order("POST", "/admin/pins", {"cidr": "10.0.0.0/8", "worker": worker})
            self.assert_error(answer, 404, "unknown-worker")
        for region in ("EU", "us", "w1", "\U0001f600"):
            answer = self.front.order("POST", "/admin/pins", {"cidr": "10.0.0.0/8", "region": region})
            self.assert_error(answer, 404, "unknown-region")
        for target in ("/admin/pins?cidr=10.0.0.0/8", "/admin/pins/10.0.0.0/8"):
            self.assert_error(self.front.order("DELETE", target), 404, "unknown-pin")
        self.assertEqual((self.front.store.rows(), self.pins()), (before, []))

    def test_down_worker(self) -> None:
        """A worker that is known and not there may be pinned: it comes back."""
        self.front.registry.worker_left(self.front.worker("w3"))
        self.answered(self.front.order("POST", "/admin/pins", {"cidr": "10.0.0.0/8", "worker": "w3"}), 201)

    def test_wrong_bodies(self) -> None:
        """What is not asked for is told, a slip in a key among it."""
        cidr = "10.0.0.0/8"
        for body in (
            None, b"{", b"[]", b"null", b"\xff", b'{"cidr":"\xed\xa0\x80","worker":"w1"}', b'"x"', b"{}" * 2,
            {"cidr": cidr}, {"worker": "w1"}, {"cidr": cidr, "worker": "w1", "region": "eu"},
            {"cidr": cidr, "worker": None}, {"cidr": cidr, "worker": ""}, {"cidr": cidr, "region": ""},
            {"cidr": "", "worker": "w1"}, {"cidr": 10, "worker": "w1"}, {"cidr": cidr, "worker": ["w1"]},
            {"cidr": cidr, "worker": "w1", "workers": "w2"}, {"CIDR": cidr, "worker": "w1"},
            {"cidr": cidr, "worker": "x" * 257}, b"[" * 60000,
        ):
            self.assert_error(self.front.order("POST", "/admin/pins", body), 400, "bad-request")
        for removal in ({"cidr": cidr, "worker": "w1"}, {"range": cidr}, b"{", {"cidr": None}, None):
            self.assert_error(self.front.order("DELETE", "/admin/pins", removal), 400, "bad-request")
        for target in (f"/admin/pins?cidr={cidr}", f"/admin/pins/{cidr}"):
            self.assert_error(self.front.order("DELETE", target, {"cidr": cidr}), 400, "bad-request")
        self.assert_error(self.front.order("DELETE", f"/admin/pins?cidr={cidr}&cidr={cidr}"), 400, "bad-request")
        wire = self.front.connect(OPERATOR).send(order("POST", "/admin/pins", b" " * (BODY_BYTES + 1)))
        self.assert_error(read_answers(wire.taken())[0], 413, "too-large")
        wire.hang_up()
        self.assertEqual(self.pins(), [])

    def test_too_many(self) -> None:
        """A script that runs wild must not make every list slow; what is there can still be changed."""
        self.front.pool.apply_all([PinRow(f"10.{n >> 8}.{n & 255}.0/24", "w1") for n in range(PINS_MAX)])
        one_more = {"cidr": "192.0.2.0/24", "worker": "w2"}
        self.assert_error(self.front.order("POST", "/admin/pins", one_more), 409, "too-many-pins")
        self.answered(self.front.order("POST", "/admin/pins", {"cidr": "10.0.0.0/24", "worker": "w2"}))
        self.answered(self.front.order("DELETE", "/admin/pins/10.0.0.0/24"))
        self.answered(self.front.order("POST", "/admin/pins", one_more), 201)


class WorkersTests(AdminTestCase):
    """``/admin/workers``"""

    def test_drain(self) -> None:
        """Clients get others, until they get it again; saying it twice is no mistake."""
        self.front.worker("w1")
        self.front.worker("w2")
        for _ in range(2):
            entry = self.answered(self.front.order("POST", "/admin/workers/w1/drain"))["worker"]
            listed = self.front.ask("GET", "/workers").json()["workers"][0]
            self.assertEqual((entry, entry["state"]), (listed, "draining"))
        self.assertEqual(self.answered(self.front.order("GET", "/admin/workers")), {"drained": ["w1"]})
        self.assertIn(DrainRow("w1", True), self.front.store.rows())
        self.assertEqual(self.front.ask("POST", "/bootstrap").json()["worker"]["id"], "w2")
        for _ in range(2):
            entry = self.answered(self.front.order("POST", "/admin/workers/w1/undrain", {}))["worker"]
            self.assertEqual(entry["state"], "up")
        self.assertEqual(self.answered(self.front.order("GET", "/admin/workers")), {"drained": []})
        told = {"event": "admin", "address": OPERATOR, "worker": "w1"}
        self.assertEqual(
            self.front.audited,
            [{**told, "action": "drain-worker"}] * 2 + [{**told, "action": "undrain-worker"}] * 2,
        )

    def test_odd_names(self) -> None:
        """An id may have any of its letters, encoded or not."""
        self.front.worker("a:b.c_D-1")
        for segment in ("a:b.c_D-1", "a%3ab%2ec%5FD%2d1"):
            self.answered(self.front.order("POST", f"/admin/workers/{segment}/drain"))

    def test_unknown(self) -> None:
        """Who drains a worker that there is not has the wrong name, and must know it."""
        before = self.front.store.rows()
        for segment in ("w1", "w1%2f", "%ff", "x" * 500, "%00", "drain"):
            for act in ("drain", "undrain"):
                answer = self.front.order("POST", f"/admin/workers/{segment}/{act}")
                self.assert_error(answer, 404, "unknown-worker")
        self.assertEqual((self.front.store.rows(), self.front.audited), (before, []))

    def test_wrong_body(self) -> None:
        """An order has no more to say: a body that wants more is not half obeyed."""
        self.front.worker("w1")
        for body in (b"{", {"draining": False}, b"[]", b"drain"):
            for path in ("/admin/workers/w1/drain", "/admin/front/drain"):
                self.assert_error(self.front.order("POST", path, body), 400, "bad-request")
        self.assertEqual((self.front.pool.drains(), self.front.drain.draining), ([], False))


class FrontDrainTests(AdminTestCase):
    """``/admin/front``, with clients and workers connected."""

    def test_drain_and_back(self) -> None:
        """A drained front turns every newcomer away and its clients out, keeps its workers, and takes it all back."""
        self.front.worker("w1")
        wires = [self.front.client(f"203.0.113.{number}") for number in range(3)]
        unknown = self.front.websocket()
        for _ in range(2):
            answer = self.answered(self.front.order("POST", "/admin/front/drain"))
            self.assertEqual(answer, {"node": "front-1", "draining": True})
        told = [[json.loads(payload) for _, payload in read_frames(wire.taken())] for wire in (*wires, unknown)]
        self.assertEqual([[each["type"] for each in one] for one in told], [["draining"]] * 4)  # once each
        self.assertEqual(len({one[0]["reconnectInMs"] for one in told}), 4)
        self.assertEqual(self.front.ask("GET", "/health").json()["status"], "draining")
        for method, path in (("GET", "/health/ready"), ("POST", "/bootstrap"), ("GET", "/signaling")):
            headers = {"Connection": "Upgrade", "Upgrade": "websocket"} if path == "/signaling" else None
            self.assert_error(self.front.ask(method, path, headers), 503, "draining")
        self.assertEqual(self.front.ask("GET", "/health/live").status, 200)
        self.assertEqual(self.front.pool.fronts_of("w1"), ("front-1",))
        self.assertIn(FrontRow("front-1", 1, 0, "", "", True), self.front.store.rows())
        wires[0].send(text_frame(b'{"type":"assign","ref":"r1"}'))
        self.assertIn(b'"ref":"r1"', wires[0].taken())  # who stays is served
        for _ in range(2):
            answer = self.answered(self.front.order("POST", "/admin/front/undrain"))
            self.assertEqual(answer, {"node": "front-1", "draining": False})
        self.assertEqual([wire.taken() for wire in wires], [b""] * 3)
        self.assertEqual(self.front.ask("GET", "/health").status, 200)
        self.assertEqual(self.front.ask("POST", "/bootstrap").status, 200)
        self.assertEqual(read_frames(self.front.client().taken()), [])
        self.assertIn(FrontRow("front-1", 1), self.front.store.rows())
        actions = [(each["event"], each["action"], each["front"]) for each in self.front.audited]
        self.assertEqual(
            actions, [("admin", act, "front-1") for act in ["drain-front"] * 2 + ["undrain-front"] * 2]
        )

    def test_while_stopping(self) -> None:
        """A front on its way down cannot be called back, and one that was drained stops as any other."""
        wire = self.front.client()
        self.answered(self.front.order("POST", "/admin/front/drain"))
        wire.clear()
        begun = self.front.drain.begin(self.front.signaling, 5.0, lambda: 100)
        self.assertEqual(json.loads(read_frames(wire.taken())[0][1]), {"type": "draining", "reconnectInMs": 100})
        self.assert_error(self.front.order("POST", "/admin/front/undrain"), 503, "draining")
        self.assertTrue(self.front.drain.draining)
        self.assertEqual(self.answered(self.front.order("POST", "/admin/front/drain"))["draining"], True)
        self.front.advance(5.5)
        self.successResultOf(begun)


class AdversaryTests(AdminTestCase):
    """Requests that are nearly right."""

    environ: ClassVar = {"CONNECTION_RATE_PER_IP": "1000"}
    bodies = st.one_of(
        st.none(),
        st.binary(max_size=40),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8),
                      st.sampled_from(["10.0.0.0/8", "::/0", "w1", "eu", "kollator:*"])),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["cidr", "worker", "region", "debug", "x"]), inner, max_size=3
                ),
            ),
            max_leaves=5,
        ),
    )

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(METHODS),
        st.sampled_from([*PATHS, *NOWHERE]),
        st.one_of(st.just(""), st.text("abcdelmrnost=&%2f019.:/", max_size=20).map(lambda text: "?" + text)),
        bodies,
    )
    def test_anything(self, method: str, path: str, query: str, body: Any) -> None:
        """Whatever an operator's script sends, it is answered, never by an internal error."""
        wire = self.front.connect(OPERATOR).send(order(method, path + query, body))
        self.front.clock.advance(0)
        (answer,) = read_answers(wire.taken(), [method])
        wire.hang_up()
        self.assertIn(answer.status, (200, 201, 204, 400, 404, 405))
        if answer.status >= 400 and method != "HEAD":
            self.assertTrue(answer.code)
        self.assertEqual(self.flushLoggedErrors(), [])
