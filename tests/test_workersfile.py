"""WORKERS_FILE: what an operator says of workers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.workersfile import Entry, HealthTarget, WorkersFileError, parse_health, parse_workers_file


class WorkersFileTests(SynchronousTestCase):
    """The file's content."""

    def test_seed_example(self) -> None:
        """Without it the example of the seed document would not be read as it is written there."""
        found = parse_workers_file(b'{"192.168.1.100": {"region": "us-west", "capacity": 100}, "w7": {"capacity": 4}}')
        self.assertEqual(found.of("anything", "192.168.1.100"), Entry("us-west", 100))
        self.assertEqual(found.of("w7", "192.168.1.100"), Entry(None, 4))
        self.assertIsNone(found.of("w8", "192.168.1.101"))
        self.assertEqual(len(found), 2)

    def test_refused(self) -> None:
        """Without it a slip in the file would be taken for something else than it says."""
        for content, said in [
            (b"", "not JSON"),
            (b"[]", "object"),
            (b'{"w": {"capacity": 0}}', "capacity"),
            (b'{"w": {"capacity": "9"}}', "capacity"),
            (b'{"w": {"region": "a\\nb"}}', "region"),
            (b'{"w": {"capaciti": 9}}', "capaciti"),
            (b'{"w": {"region": "us\\n"}}', "region"),
            (b'{"w": {"region": "\\ud800"}}', "region"),
            (b'{"w": {}, "w": {}}', "twice"),
            (b"[" * 100_000, "not JSON"),
            (b'{"w": "\xff"}', "not JSON"),
            (b'{"w": 5}', "an entry is an object"),
            (b'{"w": {"health": "nowhere"}}', "'nowhere' is not a probe"),
            (b'{"w": {"health": 80}}', "health must be"),
            (b'{"w": {"a\\nb\\u001b": 9}}', "a b?"),
            (b'{"::1": {}, "0:0::1": {}}', "twice"),
        ]:
            problem = str(self.assertRaises(WorkersFileError, parse_workers_file, content))
            self.assertIn(said, problem)
            self.assertTrue(problem.isprintable(), problem)

    def test_names_the_entry(self) -> None:
        """Without it an operator would look for one slip among thousands of entries."""
        for slip in ('{"capacity": 0}', '{"capacity": true}', '{"region": 7}', '{"health": "tcp:w"}', '{"x": 1}', "[]"):
            content = f'{{"w1": {{"capacity": 5}}, "w2": {slip}, "w3": {{}}}}'.encode()
            problem = str(self.assertRaises(WorkersFileError, parse_workers_file, content))
            self.assertTrue(problem.startswith("'w2': "), problem)

    def test_long_names(self) -> None:
        """Without it a name of odd characters, each of which is shown as six, would fill the terminal."""
        for name in ("w" * 500, "\\ud800" * 500, "\\u001b" * 500):
            problem = str(self.assertRaises(WorkersFileError, parse_workers_file, f'{{"{name}": 5}}'.encode()))
            self.assertLess(len(problem), 400)
            self.assertIn("an entry is an object", problem)

    def test_spellings_of_addresses(self) -> None:
        """Without it an IPv6 address in the file would not be found when the worker spells it otherwise."""
        found = parse_workers_file(b'{"2001:DB8:0::1": {"capacity": 3}, "a:b": {"capacity": 4}}')
        self.assertEqual(found.of("w", "2001:db8::1"), Entry(None, 3))
        self.assertEqual(found.of("a:b"), Entry(None, 4))

    @given(st.binary(max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_any_bytes(self, content: bytes) -> None:
        """Without it some file would end the front instead of giving its error."""
        try:
            parse_workers_file(content)
        except WorkersFileError:
            pass


class HealthTests(SynchronousTestCase):
    """What a probe is to ask."""

    def test_targets(self) -> None:
        """Without it a probe would go elsewhere than the operator says."""
        for text, target in {
            "tcp:192.0.2.1:9000": HealthTarget("tcp", "192.0.2.1", 9000),
            "tcp:[2001:DB8::1]:9000": HealthTarget("tcp", "2001:db8::1", 9000),
            "tcp:worker-1.example:1": HealthTarget("tcp", "worker-1.example", 1),
            "http://192.0.2.1:9000/a/b?c=d": HealthTarget("http", "192.0.2.1", 9000, "/a/b?c=d"),
            "http://w": HealthTarget("http", "w", 80, "/"),
            "https://[::1]?x": HealthTarget("https", "::1", 443, "/?x"),
        }.items():
            self.assertEqual(parse_health(text), target)
            self.assertEqual(Entry(health=text).target, target)
        self.assertIsNone(Entry().target)

    def test_written_again(self) -> None:
        """Without it the request would name another host, and a secret in a query would stand in the log."""
        target = parse_health("https://[::1]:8443/h?token=secret")
        self.assertEqual((target.url, target.shown), ("https://[::1]:8443/h?token=secret", "https://[::1]:8443/h"))
        self.assertEqual(parse_health("tcp:[::1]:9").shown, "tcp:[::1]:9")

    def test_refused(self) -> None:
        """Without it a slip would be a probe that fails for ever, or a request that is no request."""
        for text in [
            "", "tcp:", "tcp:host", "tcp:host:", "tcp:host:0", "tcp:host:65536", "tcp:::1:80", "tcp:[::1]",
            "tcp:1.2.3:9", "tcp:a b:9", "tcp://host:9", "udp:host:9", "http:host", "http://", "http://host:0/", "http://u:p@host/",
            "http://host/a b", "http://host/\r\nX: y", "http://host/#part", "http://host/\u00e9", "ftp://host/",
            "http://h\u00f6st/", "http://host/" + "a" * 2048, "HTTP://host/", "http://[fe80::1%25eth0]/",
        ]:
            problem = str(self.assertRaises(ValueError, parse_health, text))
            self.assertIn("is not a probe", problem)
            self.assertTrue(problem.isprintable() and len(problem) < 300, problem)

    @given(st.text(max_size=30) | st.from_regex(r"(tcp:|https?://)[!-~]{0,20}", fullmatch=True))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str) -> None:
        """Without it some text would be taken for a probe whose URL is not one."""
        try:
            target = parse_health(text)
        except ValueError:
            return
        self.assertEqual(parse_health(target.shown if target.scheme == "tcp" else target.url), target)
        self.assertTrue(target.url.isascii() and target.url.isprintable() and 0 < target.port < 65536)
