"""WORKERS_FILE: what an operator says of workers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.pool.workersfile import Entry, WorkersFileError, parse_workers_file


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
        ]:
            problem = str(self.assertRaises(WorkersFileError, parse_workers_file, content))
            self.assertIn(said, problem)
            self.assertNotIn("\n", problem)

    @given(st.binary(max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_any_bytes(self, content: bytes) -> None:
        """Without it some file would end the front instead of giving its error."""
        try:
            parse_workers_file(content)
        except WorkersFileError:
            pass
