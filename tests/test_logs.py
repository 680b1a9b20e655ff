"""The log observers: what a line says, that nothing breaks it, and where twistd sends it."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.application import app, service
from twisted.logger import ILogObserver, LogBeginner, Logger, LogLevel, LogPublisher
from twisted.python import log as legacy_log
from twisted.python.failure import Failure
from twisted.scripts._twistd_unix import UnixAppLogger
from twisted.trial.unittest import SynchronousTestCase

from kollator.observe import logs

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=60),
    st.binary(max_size=10),
    st.lists(st.integers(), max_size=2),
)
NAMES = st.sampled_from(
    ["log_time", "log_level", "log_namespace", "log_format", "log_failure", "failure", "message", "why"]
)


class Unspeakable:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __format__(self, spec: str) -> str:
        raise RuntimeError("no")


class OneThread:
    """A reactor as a signal handler needs it, in a test that has only one thread."""

    def callFromThread(self, call: Callable[[], object]) -> None:
        call()


def failure_of(problem: Exception) -> Failure:
    """A failure with a traceback."""
    try:
        raise problem
    except Exception:
        return Failure()


def event(text: str = "{what}", **fields: object) -> dict[str, object]:
    """An event as ``Logger`` makes one, at a known time."""
    return {
        "log_time": 1_700_000_000.25,
        "log_level": LogLevel.info,
        "log_namespace": "kollator:pool",
        "log_format": text,
    } | fields


def written(log_format: str, *events: dict[str, object], debug: tuple[str, ...] = ()) -> str:
    """What an observer writes of these events."""
    stream = StringIO()
    observer = logs.observer(stream, log_format, debug)
    for one in events:
        observer(one)
    return stream.getvalue()


class EnabledTests(SynchronousTestCase):
    """Which namespaces are debugged."""

    def test_patterns(self) -> None:
        """DEBUG names what an operator looks for: too little leaves him blind, too much hides it."""
        for debug, namespace, expected in (
            ((), "kollator:pool", False),
            (("kollator:*",), "kollator:pool", True),
            (("kollator:*",), "twisted.internet", False),
            (("*",), "twisted.internet", True),
            (("kollator:pool",), "kollator:pool", True),
            (("kollator:pool",), "kollator:pooling", False),
            (("kollator:web", "kollator:p*"), "kollator:pool", True),
        ):
            self.assertEqual(logs.enabled(debug, namespace), expected, (debug, namespace))

    def test_debug_events(self) -> None:
        """Debug events are written for the named namespaces only, all other levels always."""
        for level, debug, expected in (
            (LogLevel.debug, (), 0),
            (LogLevel.debug, ("kollator:web",), 0),
            (LogLevel.debug, ("kollator:pool",), 1),
            (LogLevel.info, (), 1),
            (LogLevel.critical, (), 1),
            (None, (), 1),
        ):
            lines = written("text", event("x", log_level=level), debug=debug)
            self.assertEqual(lines.count("\n"), expected, (level, debug))


class DebugNamespacesTests(SynchronousTestCase):
    """Namespaces that an operator changes while the process runs."""

    def test_set(self) -> None:
        """What is set counts at once, in place of what was."""
        debug = logs.DebugNamespaces(["kollator:web"])
        self.assertEqual((debug.patterns, debug.enabled("kollator:web")), (("kollator:web",), True))
        debug.set(["kollator:p*"])
        self.assertEqual(debug.patterns, ("kollator:p*",))
        self.assertEqual((debug.enabled("kollator:web"), debug.enabled("kollator:pool")), (False, True))
        debug.set([])
        self.assertFalse(debug.enabled("kollator:pool"))

    def test_watch(self) -> None:
        """Hot paths keep the answer: one that is not told goes on with the old one."""
        debug = logs.DebugNamespaces()
        web: list[bool] = []
        signaling: list[bool] = []
        debug.watch("kollator:web", web.append)
        debug.watch("kollator:signaling", signaling.append)
        self.assertEqual((web, signaling), ([False], [False]))
        debug.set(["kollator:signaling"])
        self.assertEqual((web, signaling), ([False, False], [False, True]))

    def test_observers(self) -> None:
        """An observer, wherever it writes, asks at each debug event; one with plain patterns keeps them."""
        debug, stream = logs.DebugNamespaces(), StringIO()
        observer = logs.observer(stream, "text", debug)
        for patterns, lines in (((), 0), (("kollator:pool",), 1), (("kollator:web",), 1), (("*",), 2)):
            debug.set(patterns)
            observer(event("x", log_level=LogLevel.debug))
            self.assertEqual(stream.getvalue().count("\n"), lines, patterns)


class TextTests(SynchronousTestCase):
    """Lines for people."""

    def test_line(self) -> None:
        """The shape of a line is what people's eyes and scripts are used to."""
        lines = written("text", event("worker {worker} joined", worker="w1"))
        self.assertEqual(lines, "2023-11-14T22:13:20.250Z [kollator:pool#info] worker w1 joined\n")

    def test_no_forged_lines(self) -> None:
        """A peer that puts line ends or terminal escapes into its id must not write lines of its own."""
        forged = "w1\n2023-11-14T22:13:20.250Z [kollator:guard#info] all is well\x1b[2J\x9b\u2028\u202e\ud800"
        lines = written("text", event(what=forged))
        self.assertEqual(lines.count("\n"), 1)
        self.assertTrue(lines[:-1].isprintable(), lines)
        self.assertIn("w1\\n2023", lines)

    def test_traceback(self) -> None:
        """A traceback follows its line, indented, so that an exception's text forges no line either."""
        failure = failure_of(ValueError("first\nsecond"))
        first, *rest = written("text", event("it failed", log_failure=failure)).splitlines()
        self.assertTrue(first.endswith("it failed"))
        self.assertTrue(all(line.startswith("\t") for line in rest))
        self.assertIn("\tsecond", rest)

    def test_nothing_to_say(self) -> None:
        """An event without a message is no line."""
        self.assertEqual(written("text", event("")), "")
        self.assertEqual(written("json", event("")), "")

    def test_narrow_stream(self) -> None:
        """A terminal that knows ASCII only gets escapes, not an exception."""
        raw = BytesIO()
        stream = TextIOWrapper(raw, encoding="ascii")
        logs.observer(stream, "text", ())(event(what="küche"))
        self.assertIn(b"k\\xfcche\n", raw.getvalue())

    def test_long_message(self) -> None:
        """A long text from outside must not fill the disk with one event."""
        self.assertLess(len(written("text", event(what="x" * 1_000_000))), 10_000)
        self.assertLess(len(written("json", event(what="x" * 1_000_000))), 20_000)


class JsonTests(SynchronousTestCase):
    """Lines for programs."""

    def test_object(self) -> None:
        """Collectors index these keys and the event's own fields."""
        fields = {"worker": "w1", "sessions": 3, "load": 0.5, "draining": False, "note": None, "odd": [1]}
        self.assertEqual(
            json.loads(written("json", event("worker {worker} joined", **fields))),
            {
                "time": "2023-11-14T22:13:20.250Z",
                "level": "info",
                "namespace": "kollator:pool",
                "message": "worker w1 joined",
                "worker": "w1",
                "sessions": 3,
                "load": 0.5,
                "draining": False,
                "note": None,
            },
        )

    def test_failure(self) -> None:
        """A traceback stays in its object, on its line."""
        lines = written("json", event("it failed", log_failure=failure_of(ValueError("why\nnot"))))
        self.assertEqual(lines.count("\n"), 1)
        self.assertIn("ValueError: why\nnot", json.loads(lines)["failure"])

    def test_own_keys_win(self) -> None:
        """A field called like a key of the line must not take its place."""
        fields = {"level": "critical", "time": "now", "message": "y", "namespace": "z"}
        record = json.loads(written("json", event("x", **fields)))
        self.assertEqual((record["level"], record["message"]), ("info", "x"))
        self.assertEqual((record["namespace"], record["time"][:4]), ("kollator:pool", "2023"))

    def test_strict(self) -> None:
        """What JSON cannot hold (lone surrogates, infinity) is written as text that every parser takes."""
        line = written("json", event("x", a="\udcff", b=float("inf"), c=float("nan"), d=10**30))
        self.assertEqual(line.encode("ascii").count(b"\\ud"), 1)
        record = json.loads(line, parse_constant=self.fail)
        self.assertEqual((record["a"], record["b"], record["c"]), ("\\udcff", "inf", "nan"))
        self.assertNotIn("d", record)


class AnythingTests(SynchronousTestCase):
    """Whatever an event holds."""

    @settings(max_examples=100, deadline=None)
    @given(st.dictionaries(st.one_of(NAMES, st.text(max_size=8)), ANYTHING, max_size=8))
    def test_any_event(self, fields) -> None:
        """An event that cannot be written must not break the code that logged it."""
        for text in written("json", fields).splitlines():
            self.assertEqual(len({"time", "level", "namespace", "message"} & json.loads(text).keys()), 4)
        for text in written("text", fields).splitlines():
            self.assertTrue(text.lstrip("\t").isprintable(), text)

    def test_unspeakable(self) -> None:
        """An object whose own methods raise costs its event, with a line that says so."""
        for log_format in ("text", "json"):
            for bad in (
                event(what=Unspeakable()),
                event(log_namespace=Unspeakable(), what=1),
                event(log_failure=Unspeakable(), what=1),
                event(log_level=Unspeakable(), log_time=Unspeakable(), what=1),
                event(log_format=Unspeakable()),
            ):
                self.assertGreater(len(written(log_format, bad)), 0)

    def test_broken_event(self) -> None:
        """Even an event that is no dictionary any more leaves a line."""

        class Broken(dict[str, object]):
            def items(self):
                raise KeyError("gone")

        lines = written("json", Broken(event(what=1)))
        self.assertEqual(json.loads(lines)["message"], "an event could not be written: KeyError")

    def test_legacy_events(self) -> None:
        """Libraries that log with ``twisted.python.log`` are heard, and their failures keep a traceback."""
        stream = StringIO()
        publisher = LogPublisher(logs.observer(stream, "json", ()))  # type: ignore[arg-type]
        old = legacy_log.LogPublisher(observerPublisher=publisher, publishPublisher=publisher)
        old.msg("old style")
        old.msg(failure=failure_of(ValueError("no")), why="it broke", isError=1)
        said, failed = (json.loads(line) for line in stream.getvalue().splitlines())
        self.assertEqual((said["message"], said["level"]), ("old style", "info"))
        self.assertEqual((failed["message"], failed["level"]), ("it broke", "critical"))
        self.assertIn("ValueError: no", failed["failure"])


class InstallTests(SynchronousTestCase):
    """Where twistd's options send the lines."""

    def setUp(self) -> None:
        """An application; the handler of SIGUSR1 and the folder are put back afterwards."""
        self.application = service.Application("front")
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        self.addCleanup(os.chdir, os.getcwd())
        folder = self.mktemp()
        os.mkdir(folder)
        os.chdir(folder)

    def install(self, **options: object):
        """The observer that the application has then."""
        reactor: Any = OneThread()
        self.namespaces = logs.DebugNamespaces(["kollator:pool"])
        logs.install(self.application, options, "json", self.namespaces, reactor=reactor)
        return self.application.getComponent(ILogObserver, None)

    def test_file(self) -> None:
        """With --logfile the lines are in that file, in the chosen format, and nowhere else."""
        self.install(logfile="front.log", nodaemon=True)(event("x", log_level=LogLevel.debug))
        with open("front.log") as file:
            self.assertEqual(json.loads(file.read())["message"], "x")

    def test_daemon(self) -> None:
        """A daemon without --logfile writes twistd.log, as twistd's manual says."""
        self.install(logfile=None, nodaemon=False)(event("x"))
        self.assertEqual(os.path.getsize("twistd.log") > 0, True)

    def test_foreground(self) -> None:
        """With -n the lines go to standard output, as it was before twistd takes it over."""
        stream = StringIO()
        self.patch(sys, "stdout", stream)
        for logfile in (None, "-"):
            self.install(logfile=logfile, nodaemon=True)(event("x"))
        self.assertEqual(stream.getvalue().count("\n"), 2)

    def test_left_to_twistd(self) -> None:
        """--logger goes first, a daemon on standard output is twistd's to refuse, else nothing is set."""
        self.assertIsNone(self.install(logger=lambda: None, logfile="front.log"))
        self.assertIsNone(self.install(logfile="-", nodaemon=False))
        self.assertIsNone(self.install())

    def test_unwritable(self) -> None:
        """A log file that cannot be opened stops the start with one line that names the option."""
        problem = self.assertRaises(SystemExit, self.install, logfile="no/such/folder/front.log")
        self.assertRegex(str(problem), r"^--logfile: .+; .+$")

    def test_changed_namespaces(self) -> None:
        """What twistd logs follows the namespaces that are set while it runs."""
        observer = self.install(logfile="front.log")
        for patterns in ((), ("kollator:pool",), ()):
            self.namespaces.set(patterns)
            observer(event("x", log_level=LogLevel.debug))
        with open("front.log") as file:
            self.assertEqual(len(file.readlines()), 1)

    def test_rotation(self) -> None:
        """SIGUSR1 starts a new file; without a handler it would end the front."""
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        observer = self.install(logfile="front.log")
        observer(event("old"))
        os.kill(os.getpid(), signal.SIGUSR1)
        observer(event("new"))
        for name, message in (("front.log.1", "old"), ("front.log", "new")):
            with open(name) as file:
                self.assertEqual(json.loads(file.read())["message"], message)

    def test_rotation_of_others(self) -> None:
        """A handler that somebody else has set stays."""

        def handler(number: int, frame: object) -> None:
            """Somebody else's."""

        signal.signal(signal.SIGUSR1, handler)
        self.install(logfile="front.log")
        self.assertIs(signal.getsignal(signal.SIGUSR1), handler)

    def test_syslog(self) -> None:
        """With --syslog each line is a call, with the priority that the operator's rules filter by."""
        import syslog

        calls: list[tuple[object, ...]] = []
        self.patch(syslog, "openlog", lambda *arguments: calls.append(arguments))
        self.patch(syslog, "syslog", lambda *arguments: calls.append(arguments))
        observer = self.install(syslog=True, prefix="kollator")
        observer(event("x", log_level=LogLevel.error))
        self.assertEqual(calls[0], ("kollator",))
        self.assertEqual(calls[1][0], syslog.LOG_ERR)
        self.assertEqual(json.loads(str(calls[1][1]))["message"], "x")

    def test_twistd_takes_it(self) -> None:
        """At its start twistd hands the observer what was logged before, and later what is printed."""
        publisher = LogPublisher()
        stdio = SimpleNamespace(stdout=StringIO(), stderr=StringIO())
        quiet = SimpleNamespace(showwarning=warnings.showwarning)
        self.patch(vars(app)["logger"], "globalLogBeginner", LogBeginner(publisher, StringIO(), stdio, quiet))
        Logger("kollator:front", observer=publisher).info("before")  # type: ignore[arg-type]
        options = {"logfile": "front.log", "nodaemon": True}
        self.install(**options)
        UnixAppLogger(options).start(self.application)
        print("printed", file=stdio.stdout)
        with open("front.log") as file:
            messages = [json.loads(line)["message"] for line in file]
        self.assertEqual(messages, ["before", "printed"])
