"""``/admin/connections`` and ``/admin/log`` over HTTP."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from kollator.pool.pool import Pool
from kollator.state.rows import AttachmentRow, FrontRow, WorkerRow
from tests.admins import OPERATOR, AdminTestCase
from tests.wires import PEER, read_frames, text_frame


class ConnectionsTests(AdminTestCase):
    """``/admin/connections``"""

    environ: ClassVar = {"CONNECTION_RATE_PER_IP": "1000"}

    def setUp(self) -> None:
        """Three clients, of which one came back; two workers, of which another front holds one too."""
        super().setUp()
        self.front.worker("w2")
        self.front.worker("w1")
        self.front.registry.worker_left(self.front.worker("gone"))
        self.front.pool.apply_all([FrontRow("front-2", 1), AttachmentRow("w1", "front-2", 1, "up")])
        for number in range(2):
            wire = self.front.websocket({"type": "hello", "role": "client"}, peer=f"203.0.113.{number}")
            self.welcome = json.loads(read_frames(wire.taken())[0][1])
            wire.send(text_frame(b'{"type":"assign"}'))
        self.front.websocket({"type": "hello", "role": "client", "ticket": self.welcome["ticket"]}, peer=PEER)
        self.front.client("203.0.113.3")
        self.front.advance(2.5)

    def listed(self, query: str = "") -> Any:
        """What the query lists."""
        return self.answered(self.front.order("GET", f"/admin/connections{query}"))

    def test_all(self) -> None:
        """By role, then by id; no client's address unless asked for."""
        found = self.listed()
        clients = sorted(self.front.switchboard.clients)
        self.assertEqual((found["node"], found["total"]), ("front-1", {"client": 3, "worker": 2}))
        self.assertFalse(found["truncated"])
        self.assertEqual([each["id"] for each in found["connections"]], [*clients, "w1", "w1", "w2"])
        self.assertEqual([each["role"] for each in found["connections"]], ["client"] * 3 + ["worker"] * 3)
        back = next(each for each in found["connections"] if each["id"] == self.welcome["id"])
        assigned = self.front.switchboard.clients[self.welcome["id"]].assigned
        self.assertTrue(assigned)
        self.assertEqual(
            back, {"id": back["id"], "role": "client", "front": "front-1", "since_s": 2.5, "assigned": assigned}
        )
        self.assertEqual(sum("since_s" in each for each in found["connections"]), 1)
        self.assertEqual(
            found["connections"][3:5],
            [{"id": "w1", "role": "worker", "front": front, "state": "up"} for front in ("front-1", "front-2")],
        )
        self.assertNotIn(b"203.0.113", self.front.order("GET", "/admin/connections?addresses=false").body)

    def test_addresses(self) -> None:
        """Whoever asks for addresses gets them, of all."""
        found = {each["id"]: each.get("address") for each in self.listed("?addresses=true")["connections"]}
        self.assertEqual((found[self.welcome["id"]], found["w1"]), (PEER, "192.0.2.50"))
        self.assertNotIn(None, found.values())

    def test_filters(self) -> None:
        """One role, one front, or both; the totals are of all there are."""
        for query, count in (
            ("?role=client", 3), ("?role=worker", 3), ("?front=front-2", 1), ("?front=front-1", 5),
            ("?front=front-2&role=client", 0), ("?front=front-1&role=worker", 2),
        ):
            found = self.listed(query)
            self.assertEqual((len(found["connections"]), found["truncated"]), (count, False), query)
            self.assertEqual(found["total"], {"client": 3, "worker": 2})

    def test_limit(self) -> None:
        """A long list is cut where it was asked to be, and says so; exactly that long it is not cut."""
        everything = self.listed()["connections"]
        for limit in range(1, 8):
            found = self.listed(f"?limit={limit}")
            self.assertEqual((found["connections"], found["truncated"]), (everything[:limit], limit < 6))
        for role in ("client", "worker"):
            cut = [self.listed(f"?role={role}&limit={limit}")["truncated"] for limit in (1, 2, 3)]
            self.assertEqual(cut, [True, True, False], role)

    def test_unwell(self) -> None:
        """A worker that is connected and not well is connected."""
        self.front.pool.apply(AttachmentRow("w2", "front-1", 1, "down", "ping"))
        found = self.listed("?role=worker&front=front-1")
        states = [(each["id"], each["state"]) for each in found["connections"]]
        self.assertEqual((states, found["total"]["worker"]), ([("w1", "up"), ("w2", "down")], 2))

    def test_panic(self) -> None:
        """In a panic a worker that is not well counts as up, and still as one."""
        self.front.pool = Pool(panic_threshold=100.0)
        self.front.admin._pool = self.front.pool
        self.front.pool.apply_all([FrontRow("front-1", 1), WorkerRow("w1"), WorkerRow("w2")])
        self.front.pool.apply(AttachmentRow("w1", "front-1", 1, "up"))
        self.front.pool.apply(AttachmentRow("w2", "front-1", 1, "down", "ping"))
        found = self.listed("?role=worker")
        self.assertEqual(([each["state"] for each in found["connections"]], found["total"]["worker"]), (["up"] * 2, 2))

    def test_wrong_queries(self) -> None:
        """What a filter cannot be is told, not taken for any."""
        for query in ("role=clients", "role=", "role=Client", "addresses=1", "addresses=", "addresses=TRUE", "limit=0",
                      "limit=", "limit=-1", "limit=10001", "limit=1e3", "limit=+1", "limit=%31%30%30%30%31",
                      "limit=%D9%A1", "limit=" + "9" * 5000, "role=client&role=worker"):
            answer = self.front.order("GET", f"/admin/connections?{query}")
            self.assert_error(answer, 400, "bad-request")
        self.assert_error(self.front.order("GET", "/admin/connections?front=front-9"), 404, "unknown-front")


class LogTests(AdminTestCase):
    """``/admin/log``"""

    environ: ClassVar = {"DEBUG": "kollator:web"}

    def test_set(self) -> None:
        """Namespaces are changed while the front runs, by PUT and POST, and the audit log knows."""
        self.assertEqual(self.answered(self.front.order("GET", "/admin/log")), {"debug": ["kollator:web"]})
        told: list[bool] = []
        self.front.debug.watch("kollator:signaling", told.append)
        for method, wanted in (("PUT", ["kollator:*"]), ("POST", ["a", "b"]), ("PUT", []), ("PUT", ["x", "*"])):
            answer = self.front.order(method, "/admin/log", {"debug": wanted})
            self.assertEqual(self.answered(answer), {"debug": wanted})
            self.assertEqual(self.answered(self.front.order("GET", "/admin/log")), {"debug": wanted})
        self.assertEqual(told, [False, True, False, False, True])
        self.assertEqual(
            self.front.audited[0],
            {"event": "admin", "action": "log", "address": OPERATOR, "debug": "kollator:*"},
        )
        repeated = self.front.order("PUT", "/admin/log", {"debug": ["a", "b", "a"]})
        self.assertEqual(self.answered(repeated), {"debug": ["a", "b"]})

    def test_wrong(self) -> None:
        """A namespace that is none is told, and nothing changes."""
        for body in (
            {"debug": ["no spaces"]}, {"debug": ["kollator:*:x"]}, {"debug": [""]}, {"debug": "kollator:*"}, {},
            {"debug": [1]}, {"debug": None}, {"level": "debug"}, {"debug": [], "level": "x"}, None, b"x",
            {"debug": ["a"] * 65}, {"debug": ["a" * 129]}, {"debug": ["a\nb"]},
        ):
            for method in ("PUT", "POST"):
                self.assert_error(self.front.order(method, "/admin/log", body), 400, "bad-request")
        self.assertEqual((self.front.debug.patterns, self.front.audited), (("kollator:web",), []))
