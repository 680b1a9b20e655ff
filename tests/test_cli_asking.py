"""The command line's settings and requests: who is asked, what is refused, and how every failure is told."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest

from kollator.cli import asking
from kollator.cli.asking import WrongSetting, place_of
from kollator.cli.main import main, parser
from tests.answering import EXPLANATION, HEALTH, LIMIT_S, WORKERS, Ended, ServerTestCase, error, http, run
from tests.certificates import self_signed_pem


class RefusalTests(ServerTestCase):
    """Exit status 1: the front said no."""

    def test_errors(self) -> None:
        """Without it a refusal would look like success, or its reason would be lost."""
        for reply, said in [
            (error(404, "unknown-worker", "no such worker"), "kollator: unknown-worker: no such worker\n"),
            (error(401, "unauthorized", "no", "WWW-Authenticate: Bearer"), "kollator: unauthorized: no\n"),
            (error(429, "rate-limited", "slow", "Retry-After: 30"), "kollator: rate-limited: slow (again in 30 s)\n"),
            (error(429, "rate-limited", "slow", "Retry-After: \x1b[2J"), "kollator: rate-limited: slow\n"),
            (error(429, "rate-limited", "slow", f"Retry-After: {'9' * 10}"), "kollator: rate-limited: slow\n"),
            (error(500, "internal", "a\nb\x1b[2J\u202e"), "kollator: internal: a\\nb\\x1b[2J\\u202e\n"),
            (error(404, "not-found", "nothing"),
             "kollator: not-found: nothing (a front without ADMIN_TOKEN_FILE has no /admin)\n"),
        ]:
            ended = self.ctl(self.serve(reply), "worker", "drain", "w9")
            self.assertEqual(ended, Ended(1, "", said))

    def test_error_where_503_is_an_answer(self) -> None:
        """Without it an error of a proxy in front of the front would be taken for the front's health."""
        ended = self.ctl(self.serve(error(503, "overloaded", "later")), "front", "status")
        self.assertEqual(ended, Ended(1, "", "kollator: overloaded: later\n"))

    def test_second_request(self) -> None:
        """Without it a table without the drains would look like one without any drained worker."""
        server = self.serve(http(200, WORKERS), error(401, "unauthorized", "no"))
        self.assert_one_line(self.ctl(server, "workers"), 1, "unauthorized")


class SettingTests(ServerTestCase):
    """Exit status 2: an argument or a setting is wrong, and nobody is asked."""

    def test_usage(self) -> None:
        """Without it a slip on the command line would do something."""
        for line in [
            "", "ctl", "ctl pins", "ctl worker", "ctl front", "ctl log", "assign", "nonsense", "ctl nonsense",
            "ctl pins add 10.0.0.0/8", "ctl pins add 10.0.0.0/8 --worker w --region r", "ctl worker drain",
            "ctl connections --role front", "ctl connections --limit 0", "ctl connections --limit -1",
            "ctl connections --limit 1e3", "ctl --time 3 workers", "ctl workers --timeout 0",
            "ctl workers --timeout nan", "ctl workers --timeout 1e9", "ctl workers --timeout x",
            "assign 1.2.3.4 --token-file x",
        ]:
            ended = run(*line.split())
            self.assertEqual((ended.status, ended.out), (2, ""), line)
            self.assertIn("usage: kollator", ended.err)
        for argv in (["ctl", "worker", "drain", ""], ["ctl", "worker", "drain", "\x1b[2J"],
                     ["ctl", "log", "set", "\udcff"], ["ctl", "\x1b[2J"], ["assign", "1.2.3.4", "\x1b[2J"]):
            ended = run(*argv)
            self.assertEqual((ended.status, ended.out), (2, ""), argv)
            self.assertIn("usage: kollator", ended.err)
            self.assertTrue(all(text.isprintable() for text in ended.err.splitlines()), ended.err)

    def test_help(self) -> None:
        """Without it a command would come without a help, or the help without an example."""
        def walk(one: Any, names: tuple[str, ...]) -> int:
            ended = run(*names, "--help")
            self.assertEqual((ended.status, ended.err), (0, ""), names)
            self.assertIn("example: kollator" if names else "exit status:", ended.out)
            below = [action for action in one._actions if hasattr(action.choices, "items")]
            return sum(walk(child, (*names, name)) for action in below for name, child in action.choices.items()) or 1

        self.assertEqual(walk(parser(), ()), 13)
        self.assertIn("kollator 0.", run("--version").out)

    def test_urls(self) -> None:
        """Without it a token could go to another host than the one that was meant."""
        for url, host, port, path, field in [
            ("http://127.0.0.1:8080", "127.0.0.1", 8080, "", "127.0.0.1:8080"),
            ("http://front.example/", "front.example", 80, "", "front.example"),
            ("HTTPS://Front.Example", "front.example", 443, "", "front.example"),
            ("http://front.example:443", "front.example", 443, "", "front.example:443"),
            ("http://[::1]:8080", "::1", 8080, "", "[::1]:8080"),
            ("https://[2001:db8::1]", "2001:db8::1", 443, "", "[2001:db8::1]"),
            ("http://[fe80::1%25eth0]:80", "fe80::1%eth0", 80, "", "[fe80::1]"),
            ("http://b\u00fccher.example", "xn--bcher-kva.example", 80, "", "xn--bcher-kva.example"),
            ("http://h/below/fr%C3%B6nt/", "h", 80, "/below/fr%C3%B6nt", "h"),
        ]:
            place = place_of(url)
            self.assertEqual((place.host, place.port, place.path, place.host_field), (host, port, path, field))
        for url in [
            "127.0.0.1:8080", "front.example", "ws://h", "file:///etc/passwd", "http://", "http://:80", "http://h:0",
            "http://h:99999", "http://h:x", "http://user:secret@h", "http://h/?q", "http://h/#f", "http://[::1",
            "http://[v1.a]", "http://h\r\nX: y", "http://a b", "http://a..b", "http://a%0d%0ab", "\x1b[2J",
            f"http://{'a' * 70}", "http://h\n", "http://h/\x1b[2J",
        ]:
            ended = run("assign", "::1", "--url", url)
            self.assert_one_line(ended, 2, "KOLLATOR_URL")
            self.assertNotIn("secret", ended.err)
            self.assertRaises(WrongSetting, place_of, url)

    def test_where_settings_come_from(self) -> None:
        """Without it an option could not overrule the environment, or only on one side of the command."""
        server = self.serve(http(200, {"debug": []}))
        environment = {"KOLLATOR_URL": "http://127.0.0.1:1", "ADMIN_TOKEN_FILE": "/there/is/none"}
        given = ("--url", server.url, "--token-file", str(self.token_file), "--json")
        for argv in (("ctl", *given, "log", "show"), ("ctl", "log", *given, "show"), ("ctl", "log", "show", *given)):
            ended = run(*argv, environment=environment)
            self.assertEqual((ended.status, ended.out), (0, '{\n  "debug": []\n}\n'), ended)
        environment = {"KOLLATOR_URL": server.url, "ADMIN_TOKEN_FILE": str(self.token_file)}
        with mock.patch.dict(os.environ, environment), contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["ctl", "log", "show"]), 0)

    def test_token_file(self) -> None:
        """Without it a token that others can read would be used as if it were a secret."""
        server = self.serve(http(200, {"debug": []}))
        for text, mode, said in [
            ("t\n", 0o644, "chmod 600"), ("t\n", 0o640, "0640"), ("\n", 0o600, "no key"),
            ("a\x1bb\n", 0o600, "control characters"),
        ]:
            self.write_token(text, mode)
            self.assert_one_line(self.ctl(server, "log", "show"), 2, "ADMIN_TOKEN_FILE", str(self.token_file), said)
        self.token_file.unlink()
        self.assert_one_line(self.ctl(server, "log", "show"), 2, "missing")
        self.assert_one_line(run("ctl", "log", "show", "--url", server.url), 2, "ADMIN_TOKEN_FILE", "token")
        self.assertEqual(server.requests, [])
        self.write_token(" gr\u00fcn \n")
        self.assertEqual(self.ctl(server, "log", "show").status, 0)
        self.assertEqual(server.requests[0].fields["authorization"].encode("latin-1"), "Bearer gr\u00fcn".encode())

    def test_authorities(self) -> None:
        """Without it a slip in the authorities' file would be a traceback, or would trust somebody else."""
        for argv, said in [
            (["--url", "https://127.0.0.1:1", "--ca-file", "/there/is/none"], "No such file"),
            (["--url", "https://127.0.0.1:1", "--ca-file", str(self.token_file)], "PEM"),
            (["--url", "http://127.0.0.1:1", "--ca-file", str(self.token_file)], "not https"),
        ]:
            self.assert_one_line(run("assign", "::1", *argv), 2, "--ca-file", said)


class NoFrontTests(ServerTestCase):
    """Exit status 3: nobody answers, or not as a front does."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve(b"")

    def test_nobody(self) -> None:
        """Without it a front that does not run would be a traceback without a remedy."""
        server = self.server
        server.close()
        self.assert_one_line(run("assign", "::1", "--url", server.url), 3, server.url, "refused", "is it running?",
                             "KOLLATOR_URL names another")

    def test_not_a_front(self) -> None:
        """Without it what something else answers would be shown as a front's, or end in a traceback."""
        for reply, said in [
            (b"", "RemoteDisconnected"),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", "BadStatusLine"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "LineTooLong"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "HTTPException"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP"),
            (b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"debug": [', "JSON"),
            (http(200, b"<html>"), "JSON"),
            (http(502, b"<html>"), "status 502"),
            (http(200, b""), "JSON"),
            (http(200, b"\xff"), "JSON"),
            (http(200, b"[" * 200_000), "JSON"),
            (http(200, b'{"debug": NaN}'), "JSON"),
            (http(200, []), "array"),
            (http(200, {}), "debug"),
            (http(200, {"debug": ["a", 7]}), "$.debug[1]"),
            (http(500, {"error": "a string"}), "$.error"),
            (http(302, b"", "Location: http://192.0.2.1/"), "redirect"),
            (http(304, b""), "redirect"),
        ]:
            ended = self.ctl(self.serve(reply), "log", "show")
            self.assert_one_line(ended, 3, said, "http://127.0.0.1", "KOLLATOR_URL names another")

    def test_too_deep(self) -> None:
        """Without it some thousand brackets would be indented to gigabytes, or end in a traceback."""
        for depth, status in ((15, 0), (16, 3), (900, 3), (100_000, 3)):
            reply = http(200, b'{"debug": [], "x": ' + b"[" * depth + b"]" * depth + b"}")
            ended = self.ctl(self.serve(reply), "log", "show", "--json")
            self.assertEqual((ended.status, bool(ended.out)), (status, status == 0), ended.err)

    def test_redirects_are_not_followed(self) -> None:
        """Without it a front's answer could send the token to another host."""
        other = self.serve(http(200, {"debug": []}))
        server = self.serve(http(307, b"", f"Location: {other.url}/admin/log"))
        self.assertEqual(self.ctl(server, "log", "show").status, 3)
        self.assertEqual((len(server.requests), other.requests), (1, []))

    def test_proxies_are_not_used(self) -> None:
        """Without it the environment could send the token to another host."""
        server, proxy = self.serve(http(200, {"debug": []})), self.serve(http(200, {"debug": []}))
        with mock.patch.dict(os.environ, http_proxy=proxy.url, HTTP_PROXY=proxy.url, all_proxy=proxy.url, no_proxy=""):
            self.assertEqual(self.ctl(server, "log", "show").status, 0)
        self.assertEqual((len(server.requests), proxy.requests), (1, []))

    def test_too_much(self) -> None:
        """Without it an endless answer would fill the memory."""
        self.patch(asking, "ANSWER_BYTES", 100)

        def endless(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b" " * 65536)

        self.assert_one_line(self.ctl(self.serve(endless), "log", "show"), 3, "over 100 bytes")
        longest = json.dumps({"debug": []}).ljust(100).encode()
        self.assertEqual(self.ctl(self.serve(http(200, longest)), "log", "show").status, 0)
        self.assert_one_line(self.ctl(self.serve(http(200, longest + b" ")), "log", "show"), 3, "over 100 bytes")

    def test_silence(self) -> None:
        """Without it a front that hangs, or a word at a time, would hold the program for ever."""
        done = threading.Event()

        def silent(connection: socket.socket) -> None:
            done.wait(LIMIT_S)

        def dripping(connection: socket.socket) -> None:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
                connection.sendall(bytes([byte]))
                if done.wait(0.02):
                    return

        for reply in (silent, dripping):
            server = self.serve(reply)
            self.addCleanup(done.set)  # before the server is closed
            ended = self.ctl(server, "log", "show", "--timeout", "0.3")
            self.assert_one_line(ended, 3, "within 0.3 s", "--timeout", "http://127.0.0.1")

    @given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode),
                     st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
                                  lambda below: st.lists(below, max_size=3) | st.dictionaries(
                                      st.sampled_from(["error", "code", "message", "ip", "range", "worker", "reason",
                                                       "alternates", "region"]), below, max_size=7), max_leaves=9)
                     .map(lambda value: json.dumps(value).encode())),
           st.sampled_from([200, 201, 400, 503]))
    @settings(max_examples=60, deadline=None)
    def test_any_answer(self, body: bytes, status: int) -> None:
        """Without it some answer would end in a traceback, or command the terminal."""
        self.server.replies = [http(status, body)]
        ended = run("assign", "::1", "--url", self.server.url)
        self.assertIn(ended.status, (0, 1, 3))
        self.assertTrue(all(line.isprintable() for line in (ended.out + ended.err).split("\n")), ended)

    @given(st.binary(max_size=300))
    @settings(max_examples=30, deadline=None)
    def test_any_bytes(self, reply: bytes) -> None:
        """Without it a stranger's answer would end in a traceback."""
        self.server.replies = [reply]
        self.assert_one_line(run("assign", "::1", "--url", self.server.url), 3, self.server.url)


class TransportTests(ServerTestCase):
    """IPv6 and TLS."""

    def test_ipv6(self) -> None:
        """Without it a front on an IPv6 address could not be asked."""
        try:
            server = self.serve(http(200, EXPLANATION), family=socket.AF_INET6)
        except OSError as problem:
            raise SkipTest(f"no IPv6 loopback: {problem}") from None
        url = f"http://[::1]:{server.port}"
        self.assertEqual(run("assign", "::1", "--url", url).status, 0)
        self.assertEqual(server.requests[0].fields["host"], f"[::1]:{server.port}")

    def test_path_before_the_front(self) -> None:
        """Without it a front below a path of a proxy could not be asked."""
        server = self.serve(http(200, HEALTH))
        self.assertEqual(run("ctl", "front", "status", "--url", f"{server.url}/kollator/").status, 0)
        self.assertEqual(server.requests[0].line, "GET /kollator/health HTTP/1.1")
        self.assertEqual(server.requests[0].fields["connection"], "close")  # or the front would keep it open

    def test_tls(self) -> None:
        """Without it an own authority could not be trusted, or any certificate would be."""
        key, certificate = self_signed_pem("localhost", "127.0.0.1")
        other = self_signed_pem("localhost", "127.0.0.1")[1]
        folder = Path(self.mktemp())
        folder.mkdir()
        for name, text in (("key.pem", key), ("certificate.pem", certificate), ("other.pem", other)):
            (folder / name).write_text(text, encoding="ascii")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        server = self.serve(http(200, EXPLANATION), tls=context)

        def ask(url: str, *argv: str) -> Ended:
            return run("assign", "::1", "--url", url, *argv)

        self.assertEqual(ask(server.url, "--ca-file", str(folder / "certificate.pem")).status, 0)
        for argv in ((), ("--ca-file", str(folder / "other.pem"))):
            self.assert_one_line(ask(server.url, *argv), 3, "not trusted", "--ca-file", server.url)
        plain = self.serve(http(200, EXPLANATION))
        self.assert_one_line(ask(plain.url.replace("http:", "https:")), 3, "TLS failed", "--url")
        self.assertEqual(len(server.requests), 1)
