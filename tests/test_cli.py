"""The commands of operators: what each asks, what it shows, and where that goes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from twisted.trial.unittest import SkipTest

from kollator.cli import asking, commands, reading
from kollator.cli.main import main
from kollator.cli.text import CELL_CHARS, duration, shown, table
from kollator.pool import assignment
from kollator.state import rows
from kollator.web import admin, answers
from tests.answering import (
    EXPLANATION,
    HEALTH,
    LIMIT_S,
    TOKEN,
    WORKERS,
    Ended,
    Server,
    ServerTestCase,
    http,
    run,
)

PIN = {"cidr": "203.0.113.0/24", "worker": "w1"}
CONNECTIONS = {"node": "a", "total": {"client": 2, "worker": 1}, "truncated": True, "connections": [
    {"id": "c1", "role": "client", "front": "a", "since_s": 61.2, "assigned": "w1", "address": "192.0.2.7"},
    {"id": "w1", "role": "worker", "front": "b", "state": "up"}]}


class CommandTests(ServerTestCase):
    """What each command asks, and what it shows."""

    def check(self, argv: Sequence[str], replies: Sequence[bytes], asked: Sequence[str],
              shows: Sequence[str]) -> Server:
        """Asserts a command's requests, and the lines of its output; returns the server."""
        server = self.serve(*replies)
        ended = self.ctl(server, *argv)
        self.assertEqual((ended.status, ended.err), (0, ""), ended)
        self.assertEqual([request.line for request in server.requests], [f"{line} HTTP/1.1" for line in asked])
        self.assertEqual(ended.out.splitlines(), list(shows))
        return server

    def test_assign(self) -> None:
        """Without it an operator would not read who is assigned, why, and who was passed by for which reason."""
        server = self.serve(http(200, EXPLANATION))
        ended = run("assign", "203.0.113.9", "--url", server.url, "--region", "us west&",
                    environment={"ADMIN_TOKEN_FILE": "/there/is/none"})
        self.assertEqual((ended.status, ended.err), (0, ""))
        self.assertEqual(ended.out.splitlines(), [
            "address     203.0.113.9",
            "range       203.0.113.0/24",
            "worker      w1",
            "region      us-west",
            "reason      pinned: an operator pinned the range",
            "pin         203.0.113.0/24",
            "ring        17 of 2^44; the virtual node at 23 took it",
            "alternates  w2, w3",
            "passed by   4, the nearest first:",
            "  w4        full: it has all the sessions that it can take",
            "  worker-5  of-a-later-version",
            "  w6        down, ping: it left a ping unanswered",
            "  w7        down, later",
        ])
        self.assertEqual(server.requests[0].line,
                         "GET /workers/assign?ip=203.0.113.9&region=us%20west%26 HTTP/1.1")
        self.assertNotIn("authorization", server.requests[0].fields)

    def test_assign_nobody(self) -> None:
        """Without it an answer that names nobody, or an older front's that says less, would not be told."""
        least: dict[str, Any] = {"ip": "::1", "range": "::/64", "worker": None, "alternates": [],
                                 "reason": "no-workers"}
        server = self.serve(http(200, least))
        ended = run("assign", "::1", "--region", "", "--url", server.url)
        self.assertEqual((ended.status, ended.err), (0, ""))
        for line in ("worker      nobody", "reason      no-workers: no worker is connected", "pin         none",
                     "ring        not told", "alternates  none", "passed by   nobody"):
            self.assertIn(line, ended.out.splitlines())
        self.assertEqual(server.requests[0].line, "GET /workers/assign?ip=%3A%3A1&region= HTTP/1.1")

    def test_pins_list(self) -> None:
        """Without it pins to workers and to regions would not be told apart."""
        pins = {"pins": [PIN, {"cidr": "2001:db8::/32", "region": "us-west"}]}
        server = self.check(["pins", "list"], [http(200, pins)], ["GET /admin/pins"], [
            "RANGE           WORKER  REGION",
            "203.0.113.0/24  w1",
            "2001:db8::/32           us-west",
        ])
        self.assertEqual(server.requests[0].fields["authorization"], f"Bearer {TOKEN}")
        self.check(["pins", "list"], [http(200, {"pins": []})], ["GET /admin/pins"], ["no range is pinned"])

    def test_pins_add(self) -> None:
        """Without it a pin would not reach the front as it was meant."""
        server = self.check(["pins", "add", "203.0.113.0/24", "--worker", "w1"], [http(201, PIN)],
                            ["POST /admin/pins"], ["203.0.113.0/24 to worker w1"])
        self.assertEqual(json.loads(server.requests[0].body), PIN)
        self.assertEqual(server.requests[0].fields["content-type"], "application/json")
        to_region = {"cidr": "10.0.0.0/8", "region": "us-west"}
        server = self.check(["pins", "add", "10.0.0.0/8", "--region", "us-west"], [http(200, to_region)],
                            ["POST /admin/pins"], ["10.0.0.0/8 to region us-west, which replaces an older pin"])
        self.assertEqual(json.loads(server.requests[0].body), to_region)

    def test_pins_remove(self) -> None:
        """Without it a pin could not be taken back."""
        self.check(["pins", "remove", "203.0.113.0/24"], [http(200, {"removed": PIN})],
                   ["DELETE /admin/pins?cidr=203.0.113.0%2F24"], ["no longer: 203.0.113.0/24 to worker w1"])

    def test_worker_drain(self) -> None:
        """Without it a worker could not be taken out and in, whatever its id is made of."""
        entry = msgspec.to_builtins(WORKERS.workers[1])
        self.check(["worker", "drain", "worker-2"], [http(200, {"worker": entry})],
                   ["POST /admin/workers/worker-2/drain"],
                   ["worker worker-2 is drained: clients get others; state: draining, sessions: 12"])
        unwell = {**entry, "state": "down", "why": "ping"}
        server = self.check(["worker", "undrain", "a/b:c?"], [http(200, {"worker": unwell})],
                            ["POST /admin/workers/a%2Fb:c%3F/undrain"],
                            ["worker worker-2 is no longer drained; state: down (ping), sessions: 12"])
        self.assertEqual(server.requests[0].fields["content-length"], "0")

    def test_workers(self) -> None:
        """Without it the operator's drains would not be seen beside what the workers are."""
        unwell = msgspec.to_builtins(WORKERS)
        unwell["workers"][0] |= {"state": "down", "why": "hold-down"}
        self.check(["workers"], [http(200, unwell), http(200, {"drained": ["worker-2", "gone"]})],
                   ["GET /workers", "GET /admin/workers"], [
            "ID        REGION   CAPACITY  SESSIONS  STATE     WHY        FRONTS  ADDRESS    DRAINED",
            "w1        us-west       100         7  down      hold-down  a,b     192.0.2.1",
            "worker-2                  5        12  draining                     192.0.2.2  yes",
            "ring: 158 points, 150 for a capacity of 100, digest d1ge57",
        ])

    def test_workers_without_token(self) -> None:
        """Without it the table that everybody may read would need a token."""
        server = self.serve(http(200, WORKERS))
        ended = run("ctl", "workers", "--url", server.url)
        self.assertEqual((ended.status, ended.err), (0, ""))
        self.assertNotIn("DRAINED", ended.out)
        self.assertIn("ADMIN_TOKEN_FILE", ended.out.splitlines()[-1])
        self.assertNotIn("authorization", server.requests[0].fields)

    def test_front_drain(self) -> None:
        """Without it a front could not be taken out and in."""
        for what, draining, said in (("drain", True, "front a drains"), ("undrain", False, "front a takes new")):
            server = self.serve(http(200, {"node": "a", "draining": draining}))
            ended = self.ctl(server, "front", what)
            self.assertEqual((ended.status, ended.err), (0, ""))
            self.assertTrue(ended.out.startswith(said), ended.out)
            self.assertEqual(server.requests[0].line, f"POST /admin/front/{what} HTTP/1.1")

    def test_front_status(self) -> None:
        """Without it a front that drains, which answers 503, would not be shown."""
        server = self.check(["front", "status"], [http(503, HEALTH)], ["GET /health"], [
            "node          a",
            "status        draining",
            "version       0.1.0",
            "uptime        1d 2h",
            "role          follower",
            "leader        b",
            "term          3",
            "synchronised  yes",
            "workers       1 up of 2",
            "connections   clients: 10, workers: 2",
            "ring          d1ge57",
            "",
            "FRONT  STATE     SYNC LAG",
            "a      follower",
            "b      leader    12.5 ms",
        ])
        self.assertNotIn("authorization", server.requests[0].fields)

    def test_connections(self) -> None:
        """Without it a filter would be lost on the way, or an address shown that was not asked for."""
        self.check(["connections"], [http(200, CONNECTIONS)], ["GET /admin/connections"], [
            "ID  ROLE    FRONT  FOR    ASSIGNED  STATE",
            "c1  client  a      1m 1s  w1",
            "w1  worker  b                       up",
            "in all: clients of a: 2, connections of workers to any front: 1",
            "only 2 are shown; --limit shows more",
        ])
        argv = ["connections", "--role", "client", "--front", "a", "--limit", "2", "--addresses"]
        server = self.serve(http(200, CONNECTIONS))
        self.assertIn("c1  client  a      1m 1s  w1               192.0.2.7\n", self.ctl(server, *argv).out)
        self.assertEqual(server.requests[0].line,
                         "GET /admin/connections?role=client&front=a&limit=2&addresses=true HTTP/1.1")

    def test_log(self) -> None:
        """Without it debug events could not be switched on, or off again, while a front runs."""
        self.check(["log", "show"], [http(200, {"debug": ["kollator:*"]})], ["GET /admin/log"],
                   ["debug events of kollator:*"])
        for argv, debug in (
            (["kollator:pool", "kollator:web,kollator:state"], ["kollator:pool", "kollator:web", "kollator:state"]),
            ([","], ["", ""]),  # for the front to refuse: it does not mean nothing
            ([], []),
        ):
            server = self.check(["log", "set", *argv], [http(200, {"debug": debug})], ["PUT /admin/log"],
                                [f"debug events of {name}" for name in debug] or ["no debug events are logged"])
            self.assertEqual(json.loads(server.requests[0].body), {"debug": debug})

    def test_json(self) -> None:
        """Without it a program would get less than the front said, or texts that a terminal obeys."""
        value = {**msgspec.to_builtins(EXPLANATION), "later": [1.5, None, "\x1b[2J\x7f\u202e\n"]}
        server = self.serve(http(200, value))
        ended = run("assign", "::1", "--url", server.url, "--json")
        self.assertEqual((ended.status, json.loads(ended.out)), (0, value))
        self.assertEqual(ended.out, json.dumps(value, indent=2) + "\n")
        self.assertTrue(all(line.isprintable() for line in ended.out.splitlines()))
        server = self.serve(http(200, WORKERS), http(200, {"drained": ["w1"]}))
        ended = self.ctl(server, "workers", "--json")
        self.assertEqual(json.loads(ended.out), {**msgspec.to_builtins(WORKERS), "drained": ["w1"]})

    def test_every_word_is_explained(self) -> None:
        """Without it a reason that a front gives would be shown as a bare word."""
        self.assertLessEqual(set(get_args(assignment.Reason)), set(commands.REASONS))
        self.assertLessEqual(set(get_args(assignment.SkipReason)), set(commands.SKIPPED))
        self.assertLessEqual({*get_args(rows.Unwell), "operator"}, set(commands.WHY))

    def test_reads_what_fronts_define(self) -> None:
        """Without it the front's own definition of an answer and the one here could part."""
        defined = [
            (reading.Health, HEALTH), (reading.Workers, WORKERS), (reading.Explanation, EXPLANATION),
            (reading.ErrorBody, answers.ErrorBody(answers.Failing("internal", "m"))),
            (reading.Pins, admin.Pins([admin.Pin("10.0.0.0/8", "w1"), admin.Pin("::/0", region="eu")])),
            (reading.RemovedPin, admin.Unpinned(admin.Pin("10.0.0.0/8", "w1"))),
            (reading.Drained, admin.Drained(["w1"])), (reading.FrontDrain, admin.FrontDrain("a", True)),
            (reading.OneWorker, admin.DrainedWorker(WORKERS.workers[0])), (reading.Log, admin.Debug(["kollator:*"])),
            (reading.Connections, admin.Connections("a", admin.ConnectionTotals(1, 2), [
                admin.ConnectionEntry("c1", "client", "a", 2.5, "w1", address="192.0.2.7"),
                admin.ConnectionEntry("w1", "worker", "b", state="up")], True)),
        ]
        for kind, answer in defined:
            sent = msgspec.json.encode(answer)
            read = msgspec.to_builtins(msgspec.json.decode(sent, type=kind))
            self.assertEqual(_said(read), _part(msgspec.json.decode(sent), _said(read)), kind)


def _said(value: Any) -> Any:
    """A JSON value without the keys of objects that are null."""
    if isinstance(value, dict):
        return {name: _said(below) for name, below in value.items() if below is not None}
    return [_said(below) for below in value] if isinstance(value, list) else value


def _part(value: Any, like: Any) -> Any:
    """A JSON value with those keys of objects only that ``like`` has as well."""
    if isinstance(value, dict):
        return {name: _part(below, like[name]) for name, below in value.items() if name in like}
    return [_part(*each) for each in zip(value, like, strict=True)] if isinstance(value, list) else value


class OutputTests(ServerTestCase):
    """Where the output goes, and that it can be trusted."""

    def test_shown(self) -> None:
        """Without it a worker's region could clear the screen, forge a row, or turn a line around."""
        for text, safe in [
            ("plain \u00e9 \u65e5", "plain \u00e9 \u65e5"), ("\x1b[2J", "\\x1b[2J"),
            ("a\nb\r\t\x00", "a\\nb\\r\\t\\x00"),
            ("\x9b\x7f", "\\x9b\\x7f"), ("\u202e\u2028\u00a0", "\\u202e\\u2028\\xa0"), ("\ud800", "\\ud800"),
            ("\U000e0001", "\\U000e0001"), (7, "7"), ("x" * CELL_CHARS, "x" * CELL_CHARS),
            ("x" * (CELL_CHARS + 1), "x" * (CELL_CHARS - 1) + "\u2026"),
        ]:
            self.assertEqual(shown(text), safe)

    def test_table(self) -> None:
        """Without it columns would not stand below each other."""
        self.assertEqual(list(table(("A", "NUMBER", "LAST"), [("a\n", 1, ""), ("", 12345678, "z")])), [
            "A      NUMBER  LAST", "a\\n         1", "     12345678  z"])
        self.assertEqual(list(table(("A", "B"), [])), ["A  B"])

    def test_duration(self) -> None:
        """Without it how long a connection is there would be told wrongly."""
        for seconds, said in [(0, "0s"), (-5, "0s"), (59.9, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (3600, "1h 0m"),
                              (86_399, "23h 59m"), (90_061, "1d 1h"), (1e300, "11574074d 1h")]:
            self.assertEqual(duration(seconds), said)

    def printing(self, stream: Any, *argv: str) -> tuple[int, str]:
        """Runs a command whose standard output is ``stream``; its status and its standard error."""
        err = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(err):
            status = main(argv, {"KOLLATOR_URL": self.serve(http(200, WORKERS)).url})
        return status, err.getvalue()

    def test_reader_has_gone(self) -> None:
        """Without it ``kollator ctl workers | head -1``, or the help, would end in a traceback."""
        reading_end, writing_end = os.pipe()
        os.close(reading_end)
        with open(writing_end, "w", encoding="utf-8") as stream:
            self.assertEqual(self.printing(stream, "ctl", "workers"), (141, ""))
        reading_end, writing_end = os.pipe()
        os.close(reading_end)
        with open(writing_end, "w", encoding="utf-8") as stream:
            self.assertEqual(self.printing(stream, "--help"), (141, ""))

    def test_output_cannot_be_written(self) -> None:
        """Without it a full disk would end in a traceback, or look like success."""
        if not os.path.exists("/dev/full"):
            raise SkipTest("this system has no /dev/full")
        with open("/dev/full", "w", encoding="utf-8") as stream:
            status, err = self.printing(stream, "ctl", "workers")
        self.assertEqual(status, 3)
        self.assertIn("kollator: the output cannot be written: ", err)
        self.assertEqual(self.printing(None, "ctl", "workers"), (0, ""))

    def test_encoding(self) -> None:
        """Without it a region with an umlaut would be a traceback on a terminal that has none."""
        region = answers.Explanation("::1", "::/64", "k\u00f6ln", "w1", [], "ring")
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding="ascii")
        with contextlib.redirect_stdout(stream):
            self.assertEqual(main(["assign", "::1"], {"KOLLATOR_URL": self.serve(http(200, region)).url}), 0)
        self.assertIn(b"region      k\\xf6ln\n", written.getvalue())

    def test_interrupted(self) -> None:
        """Without it Ctrl-C would end in a traceback."""
        def interrupt(*arguments: Any) -> None:
            raise KeyboardInterrupt

        self.patch(asking.Front, "ask", interrupt)
        self.assertEqual(run("assign", "::1"), Ended(130, "", ""))

    def test_process(self) -> None:
        """Without it ``python -m kollator`` would not be the program, or would load what only fronts need."""
        server = self.serve(http(200, EXPLANATION))
        environment = {"KOLLATOR_URL": server.url, **{name: os.environ[name] for name in ("PATH", "PYTHONPATH")
                                                      if name in os.environ}}
        ended = subprocess.run([sys.executable, "-m", "kollator", "assign", "::1"], env=environment,
                               timeout=LIMIT_S * 3, capture_output=True, text=True)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertIn("worker      w1\n", ended.stdout)
        heavy = "import kollator.cli.main, sys; print({'twisted', 'autobahn', 'apsw', 'aiortc'} & set(sys.modules))"
        ended = subprocess.run([sys.executable, "-c", heavy], timeout=LIMIT_S * 3, capture_output=True, text=True)
        self.assertEqual((ended.stdout, ended.stderr), ("set()\n", ""))
