"""``kollator``: the arguments, the settings, and what the exit status says.

0: done. 1: the front said no. 2: an argument or a setting is wrong. 3: nobody answers, or not as a front does. 130:
interrupted. 141: who read the output has gone. For 1 to 3 there is one line on standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kollator import __version__
from kollator.cli import commands
from kollator.cli.asking import Front, NoFront, Refused, WrongSetting, place_of
from kollator.cli.text import shown, write
from kollator.guard.keys import KeyFileError, read_key_file

DONE, REFUSED, WRONG_SETTING, NO_FRONT, INTERRUPTED, NO_READER = 0, 1, 2, 3, 130, 141

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT_S = 10.0
TIMEOUT_MAX_S = 3600.0

EXIT_STATUS = (
    "exit status: 0 done, 1 the front said no, 2 an argument or a setting is wrong, 3 no front answers at the URL, or"
    " not as a front does. The URL is asked directly: proxies of the environment are not used, redirects not followed."
)


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Runs a command and returns the exit status.

    ``argv`` are the arguments without the program's name, ``environment`` the variables; those of the process unless
    told. Nothing is raised.
    """
    try:
        return _main(argv, os.environ if environment is None else environment)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return NO_READER


def _main(argv: Sequence[str] | None, environment: Mapping[str, str]) -> int:
    try:
        try:
            arguments = parser().parse_args(argv)
        except SystemExit as end:  # the help, or a usage that argparse has told of
            write(sys.stdout, ())
            return end.code if isinstance(end.code, int) else WRONG_SETTING
        front = _front(arguments, environment)
        value, lines = arguments.command(front, arguments)
        if getattr(arguments, "json", False):
            lines = [json.dumps(value, indent=2)]  # in ASCII, every control character escaped
        write(sys.stdout, lines)
        return DONE
    except Refused as no:
        return _end(str(no), REFUSED)
    except WrongSetting as problem:
        return _end(str(problem), WRONG_SETTING)
    except NoFront as problem:
        return _end(str(problem), NO_FRONT)
    except BrokenPipeError:
        raise
    except OSError as problem:
        _forget_output()
        return _end(f"the output cannot be written: {shown(problem.strerror or problem)}", NO_FRONT)


def _end(line: str, status: int) -> int:
    try:
        write(sys.stderr, [f"kollator: {line}"])
    except OSError:
        pass  # the status says it
    return status


def _forget_output() -> None:
    # What is left in the buffer would fail once more when the interpreter ends, with a text of its own.
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass


# -- settings -----------------------------------------------------------------------------------------------


def _front(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Front:
    """The front that the options and the environment name. Raises ``WrongSetting``."""
    place = place_of(getattr(arguments, "url", None) or environment.get("KOLLATOR_URL") or DEFAULT_URL)
    ca_file = getattr(arguments, "ca_file", None)
    if ca_file is not None and not place.secure:
        raise WrongSetting(f"--ca-file: {shown(place.url)} is not https, so there is no certificate to check")
    token = None
    if arguments.uses_token:
        token_file = getattr(arguments, "token_file", None) or environment.get("ADMIN_TOKEN_FILE")
        token = _token(token_file) if token_file else None
    return Front(place, token, _tls(ca_file) if place.secure else None, getattr(arguments, "timeout", TIMEOUT_S))


def _token(path: str) -> bytes:
    try:
        token = read_key_file(path)[0]
    except KeyFileError as problem:
        raise WrongSetting(f"--token-file (ADMIN_TOKEN_FILE): {problem}") from None
    if not token.decode().isprintable():
        raise WrongSetting(f"--token-file (ADMIN_TOKEN_FILE): the first line of {shown(path)} has control characters")
    return token


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as problem:  # an SSLError is an OSError
        reason = shown(getattr(problem, "strerror", None) or problem)
        raise WrongSetting(f"--ca-file: {shown(ca_file)}: {reason}; name a file with certificates in PEM") from None


# -- arguments ----------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """An argument that can be sent: not empty, and characters that can be printed."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError("is empty, or has characters that cannot be printed")
    return text


def _text_or_empty(text: str) -> str:
    return _text(text) if text else text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= TIMEOUT_MAX_S:
        raise argparse.ArgumentTypeError(f"is not a number of seconds above 0, {TIMEOUT_MAX_S:g} at most")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError("is not a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The arguments of ``kollator``; every command's ``command`` is what runs it."""
    top = _Parser(prog="kollator", description="Asks and administers Kollator fronts.", epilog=EXIT_STATUS)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    below = top.add_subparsers(metavar="COMMAND", required=True)
    common, with_token = _common(token=False), _common(token=True)

    assign = _command(below, "assign", commands.assign, common, "explains which worker an address gets, and why",
                      "kollator assign 203.0.113.9 --region us-west")
    assign.add_argument("ip", metavar="IP", type=_text, help="an IPv4 or IPv6 address")
    assign.add_argument("--region", metavar="R", type=_text_or_empty, default=None,
                        help="as a client asks for it; '' for any (default: the front's)")

    ctl = _group(below, "ctl", "administers fronts: pins, drains, connections, debug events",
                 "kollator ctl --url http://10.0.0.2:8080 workers", [with_token])
    groups = ctl.add_subparsers(metavar="COMMAND", required=True)

    pins = _group(groups, "pins", "ranges that are tied to a worker or a region", "kollator ctl pins list",
                  [with_token]).add_subparsers(metavar="COMMAND", required=True)
    _command(pins, "list", commands.pins_list, with_token, "lists all pins", "kollator ctl pins list --json")
    add = _command(pins, "add", commands.pins_add, with_token, "ties a range to a worker or a region, on every front",
                   "kollator ctl pins add 203.0.113.0/24 --worker w1")
    add.add_argument("cidr", metavar="CIDR", type=_text, help="the range; the longest that covers an address counts")
    to = add.add_mutually_exclusive_group(required=True)
    to.add_argument("--worker", metavar="W", type=_text, default=None, help="the worker that its clients get")
    to.add_argument("--region", metavar="R", type=_text, default=None, help="the region whose workers its clients get")
    remove = _command(pins, "remove", commands.pins_remove, with_token, "takes a pin back, on every front",
                      "kollator ctl pins remove 203.0.113.0/24")
    remove.add_argument("cidr", metavar="CIDR", type=_text, help="the range, as it is listed")

    worker = _group(groups, "worker", "takes a worker out, or in again", "kollator ctl worker drain w1",
                    [with_token]).add_subparsers(metavar="COMMAND", required=True)
    for what, said in (
        ("drain", "passes a worker by, on every front, until it is undrained; its sessions go on"),
        ("undrain", "gives clients to a worker again"),
    ):
        one = _command(worker, what, commands.worker_drain, with_token, said, f"kollator ctl worker {what} w1")
        one.add_argument("id", metavar="ID", type=_text, help="the worker's id")
        one.set_defaults(what=what)
    _command(groups, "workers", commands.workers, with_token, "lists all workers; with a token, whom operators drained",
             "kollator ctl workers --token-file admin.token")

    front = _group(groups, "front", "takes a front out, or in again, and shows how it is", "kollator ctl front status",
                   [with_token]).add_subparsers(metavar="COMMAND", required=True)
    for what, said in (
        ("drain", "sends clients to other fronts: /health/ready answers 503, and those that are here are told to go"),
        ("undrain", "takes clients again"),
    ):
        one = _command(front, what, commands.front_drain, with_token, said,
                       f"kollator ctl --url http://10.0.0.2:8080 front {what}")
        one.set_defaults(what=what)
    _command(front, "status", commands.front_status, common,
             "shows a front's health and its cluster, also of one that drains",
             "kollator ctl front status --url http://10.0.0.2:8080")

    connections = _command(groups, "connections", commands.connections, with_token,
                           "lists the clients of this front, and the workers of all",
                           "kollator ctl connections --role client --limit 20")
    connections.add_argument("--role", choices=("client", "worker"), default=None, help="only those (default: both)")
    connections.add_argument("--front", metavar="NODE", type=_text, default=None, help="only those of that front")
    connections.add_argument("--addresses", action="store_true", help="with their IP addresses")
    connections.add_argument("--limit", metavar="N", type=_count, default=None,
                             help="so many at most (default: the front's)")

    log = _group(groups, "log", "debug events of a running front", "kollator ctl log set kollator:signaling",
                 [with_token]).add_subparsers(metavar="COMMAND", required=True)
    _command(log, "show", commands.log_show, with_token, "shows whose debug events are logged", "kollator ctl log show")
    set_ = _command(log, "set", commands.log_set, with_token, "logs the debug events of namespaces, and of no others",
                    "kollator ctl log set kollator:signaling kollator:pool")
    set_.add_argument("namespaces", metavar="NAMESPACE", nargs="*", type=_text,
                      help="kollator:* for all; none at all: debug off")
    return top


class _Parser(argparse.ArgumentParser):
    """Options are written out: an abbreviation could mean another one in the next version."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> Any:
        """Ends with the usage and one line, in which nothing can command the terminal."""
        super().error(shown(message, 1000))


def _common(*, token: bool) -> argparse.ArgumentParser:
    """The options that every command takes, before or after its name, so that none may have a default."""
    options = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = options.add_argument_group("which front, and how")
    group.add_argument("--url", metavar="URL", help=f"the front [KOLLATOR_URL; default: {DEFAULT_URL}]")
    if token:
        group.add_argument(
            "--token-file", metavar="FILE",
            help="file (mode 0600) whose first line is the front's admin token [ADMIN_TOKEN_FILE]; over http it"
            " travels as it is, so use https beyond your own machine and network")
    group.add_argument("--ca-file", metavar="FILE",
                       help="authorities' certificates (PEM) that are trusted for https, in place of the system's")
    group.add_argument("--timeout", metavar="SECONDS", type=_seconds,
                       help=f"for the connection, and then again for the answer [default: {TIMEOUT_S:g}]")
    group.add_argument("--json", action="store_true", help="the front's JSON in place of a text for people")
    return options


def _group(to: Any, name: str, said: str, example: str,
           parents: Sequence[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = to.add_parser(
        name, help=said, description=_sentence(said), parents=parents, epilog=f"example: {example}")
    return made


def _command(to: Any, name: str, command: commands.Command, options: argparse.ArgumentParser, said: str,
             example: str) -> argparse.ArgumentParser:
    made = _group(to, name, said, example, [options])
    made.set_defaults(command=command, uses_token=command not in (commands.assign, commands.front_status))
    return made


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:]}."
