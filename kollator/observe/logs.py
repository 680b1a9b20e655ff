"""Log observers for twistd: lines of text to read, or one JSON object a line, and debug events by namespace.

Events come through ``twisted.logger``, with namespaces like ``kollator:signaling``. All but debug events are
written; debug events are where ``DEBUG`` names their namespace. An event is one line, whatever it holds:
control characters are escaped, so that no peer can write lines of its own, and a traceback follows indented.
Times are UTC.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from zope.interface import implementer

MESSAGE_CHARS = 8_192
"""What is longer, in a message or a field, is cut: a log line is for reading."""
TRACEBACK_CHARS = 32_768

_NOT_FIELDS = frozenset(
    {"time", "level", "namespace", "message", "failure", "system", "isError", "format", "why", "logLevel"}
)
"""A line's own keys, and those that Twisted's older log functions leave in an event."""


class Stream(Protocol):
    """A text stream, or a ``twisted.python.logfile.LogFile``."""

    def write(self, text: str, /) -> object:
        """Take a line."""

    def flush(self) -> object:
        """Send what waits on its way."""


def enabled(debug: Sequence[str], namespace: str) -> bool:
    """Whether debug events of a namespace are written. ``debug`` holds names, and beginnings with a ``*``."""
    return any(
        namespace.startswith(pattern[:-1]) if pattern.endswith("*") else namespace == pattern
        for pattern in debug
    )


class DebugNamespaces:
    """The namespaces whose debug events are written, which an operator may change while the process runs.

    ``patterns`` are as for ``enabled``; the observers ask at each debug event. Code that makes debug events by the
    thousand keeps the answer and is told when it changes (``watch``).
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._watched: list[tuple[str, Callable[[bool], object]]] = []

    def enabled(self, namespace: str) -> bool:
        """Whether debug events of a namespace are written now."""
        return enabled(self.patterns, namespace)

    def set(self, patterns: Sequence[str]) -> None:
        """Takes other patterns in place of all there are."""
        self.patterns = tuple(patterns)
        for namespace, told in self._watched:
            told(self.enabled(namespace))

    def watch(self, namespace: str, told: Callable[[bool], object]) -> None:
        """Calls ``told`` with whether debug events of a namespace are written: now, and whenever patterns are set."""
        self._watched.append((namespace, told))
        told(self.enabled(namespace))


Debug = DebugNamespaces | Sequence[str]
"""What an observer takes: namespaces that may change, or patterns that do not."""


def text_line(event: LogEvent) -> str:
    """The event as text: time, namespace and level, message; "" for an event that says nothing."""
    message, traceback = _said(event)
    if not (message or traceback):
        return ""
    line = f"{_time(event) or '-'} [{_escaped(_namespace(event))}#{_level(event)}] {_escaped(message)}\n"
    return line + "".join(f"\t{_escaped(text)}\n" for text in traceback.splitlines())


def json_line(event: LogEvent) -> str:
    """The event as one JSON object, in ASCII; "" for an event that says nothing.

    Keys: ``time`` (ISO 8601, UTC, milliseconds; null when unknown), ``level``, ``namespace``, ``message``,
    the event's own fields that are strings, numbers, booleans or null, and ``failure``, a traceback.
    """
    message, traceback = _said(event)
    fields = {
        _encodable(key): _simple(value)
        for key, value in event.items()
        if isinstance(key, str)
        and not key.startswith("log_")
        and key not in _NOT_FIELDS
        and _is_simple(value)
    }
    if not (message or traceback or fields):
        return ""
    record: dict[str, object] = {
        "time": _time(event),
        "level": _level(event),
        "namespace": _encodable(_namespace(event)),
        "message": _encodable(message),
        **fields,
    }
    if traceback:
        record["failure"] = _encodable(traceback)
    return json.dumps(record) + "\n"


_LINES: dict[str, Callable[[LogEvent], str]] = {"text": text_line, "json": json_line}


@implementer(ILogObserver)
class LineObserver:
    """Writes the events that are wanted, a line each. Nothing that an event holds makes it raise.

    ``write`` takes a line and its level; what it raises (a full disk) is for the log publisher to deal with.
    """

    def __init__(self, write: Callable[[str, str], object], log_format: str, debug: Debug) -> None:
        self._write = write
        self._line = _LINES[log_format]
        self._debug = debug if isinstance(debug, DebugNamespaces) else DebugNamespaces(debug)

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        try:
            if event.get("log_level") is LogLevel.debug and not self._debug.enabled(_namespace(event)):
                return
            line, level = self._line(event), _level(event)
        except Exception as problem:
            # Its type only: the event's own objects have just shown that they cannot be trusted with more.
            lost = "an event could not be written: {kind}"
            line = self._line(
                {"log_namespace": "kollator:observe", "log_format": lost, "kind": type(problem).__name__}
            )
            level = "error"
        if line:
            self._write(line, level)


def observer(stream: Stream, log_format: str, debug: Debug) -> LineObserver:
    """An observer that writes to a text stream, or to Twisted's rotated file, and flushes after each event.

    ``log_format`` is "text" or "json".
    """

    def write(line: str, level: str) -> None:
        try:
            stream.write(line)
        except UnicodeEncodeError:
            stream.write(line.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()

    return LineObserver(write, log_format, debug)


def syslog_observer(prefix: str, log_format: str, debug: Debug) -> LineObserver:
    """An observer that writes to syslog with the priority of the event's level, a call for each line."""
    import syslog

    priorities = {
        "debug": syslog.LOG_DEBUG,
        "info": syslog.LOG_INFO,
        "warn": syslog.LOG_WARNING,
        "error": syslog.LOG_ERR,
        "critical": syslog.LOG_CRIT,
    }
    syslog.openlog(prefix)

    def write(text: str, level: str) -> None:
        for line in text.splitlines():
            syslog.syslog(priorities.get(level, syslog.LOG_INFO), line)

    return LineObserver(write, log_format, debug)


def install(
    application: Componentized,
    parent_options: Mapping[str, Any] | None,
    log_format: str,
    debug: Debug,
    *,
    reactor: IReactorFromThreads,
) -> None:
    """Make twistd log through an observer of this module, to where its own options say.

    To be called from ``setServiceParent`` of the service that a plugin returns: twistd calls that with the
    application after ``makeService`` and before it starts to log, and then takes the ``ILogObserver`` of the
    application in place of its own. ``parent_options`` are twistd's (``options.parent`` in ``makeService``).
    As with twistd itself: ``--logger`` goes first, then ``--syslog``; without ``--logfile`` a daemon writes
    to twistd.log, otherwise to standard output; SIGUSR1 rotates the file. Raises ``SystemExit`` with one
    line when the file cannot be opened.
    """
    if not parent_options or parent_options.get("logger"):  # without twistd there are no options
        return
    path = parent_options.get("logfile") or ""
    foreground = bool(parent_options.get("nodaemon"))
    if parent_options.get("syslog"):
        chosen = syslog_observer(parent_options.get("prefix") or "kollator", log_format, debug)
    elif path == "-" and not foreground:
        return  # twistd says that a daemon cannot, and stops
    elif path == "-" or (foreground and not path):
        chosen = observer(sys.stdout, log_format, debug)
    else:
        chosen = observer(_rotated_file(path or "twistd.log", reactor), log_format, debug)
    application.setComponent(ILogObserver, chosen)  # type: ignore[no-untyped-call]


def _rotated_file(path: str, reactor: IReactorFromThreads) -> LogFile:
    try:
        file: LogFile = LogFile.fromFullPath(path)  # type: ignore[no-untyped-call]
    except OSError as problem:
        raise SystemExit(
            f"--logfile: {path!r} cannot be opened: {problem.strerror}; name a file that this user may write"
        ) from None
    # As twistd does: whoever has set a handler before keeps it. Without one the signal would end the process.
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda number, frame: reactor.callFromThread(file.rotate))
    return file


# -- parts of a line ----------------------------------------------------------------------------------------


def _said(event: LogEvent) -> tuple[str, str]:
    """The message and the traceback of an event; "" for what it does not have."""
    failure = event.get("log_failure")
    message = None
    if failure is None and isinstance(event.get("failure"), Failure):  # from twisted.python.log.err
        failure = event["failure"]
        message = event.get("why") or "Unhandled Error"
    if not isinstance(message, str):
        message = formatEvent(event)
    if failure is None:
        return _cut(message, MESSAGE_CHARS), ""
    try:
        traceback = failure.getTraceback()
    except Exception as problem:
        traceback = f"the traceback could not be written: {type(problem).__name__}"
    return _cut(message, MESSAGE_CHARS), _cut(traceback, TRACEBACK_CHARS)


def _time(event: LogEvent) -> str | None:
    try:
        when = datetime.fromtimestamp(event["log_time"], UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return next((name for constant, name in _LEVELS if level is constant), "info")


_LEVELS = tuple((constant, str(constant.name)) for constant in LogLevel.iterconstants())


def _namespace(event: LogEvent) -> str:
    namespace = event.get("log_namespace")
    return namespace if isinstance(namespace, str) else "-"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON in UTF-8 cannot hold (RFC 8259 section 8.2)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_simple(value: object) -> bool:
    # The exact types: a subclass may do anything when it is written.
    return (
        value is None
        or type(value) in (str, bool, float)
        or (type(value) is int and value.bit_length() <= 64)
    )


def _simple(value: Any) -> object:
    if type(value) is str:
        return _encodable(_cut(value, MESSAGE_CHARS))
    if type(value) is float and not math.isfinite(value):
        return str(value)
    return value
