"""What the endpoints are told: the pool behind HTTP."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kollator.pool.pool import WorkerView
from kollator.state.rows import AttachmentRow, FrontRow, Row
from kollator.web.answers import WorkerEntry
from tests.fronts import Front, FrontTestCase
from tests.pools import ESTABLISHED, rows
from tests.wires import PEER


class AssignTests(FrontTestCase):
    """The worker of a client."""

    environ: ClassVar = {"REGION": "eu"}

    def setUp(self) -> None:
        """Two regions."""
        super().setUp()
        self.front.worker("w1", "us")
        self.front.worker("w2", "eu")

    def test_region(self) -> None:
        """Who names no region gets the front's own, who names an empty one gets any."""
        addresses = [f"198.51.{number}.1" for number in range(40)]

        def workers(region: str | None) -> set[str]:
            found = [self.front.views.assign(address, region, ())[0] for address in addresses]
            return {worker.id for worker in found if worker is not None}

        self.assertEqual((workers(None), workers("eu"), workers("us"), workers("")),
                         ({"w2"}, {"w2"}, {"w1"}, {"w1", "w2"}))
        self.assertEqual(self.front.views.explain(PEER, None).worker, "w2")

    def test_client_without_an_address(self) -> None:
        """A client that came through a UNIX socket has none and gets a worker all the same."""
        worker, _ = self.front.views.assign("", None, ())
        self.assertEqual(worker and worker.id, "w2")

    def test_measured(self) -> None:
        """Each assignment goes into the histogram and is counted by its reason."""
        self.front.views.assign(PEER, "us", ())
        self.front.views.assign(PEER, None, ("w2",))
        counted = {reason: count for reason, count in self.front.counters.assignments.items() if count}
        self.assertEqual(counted, {"ring": 1, "other-region": 1})
        text = self.front.views.metrics("")[1].decode()
        self.assertIn("kollator_assignment_seconds_count 2.0", text)

    def test_excluded(self) -> None:
        """With everybody excluded there is nobody."""
        self.assertEqual(self.front.views.assign(PEER, None, ("w1", "w2")), (None, []))


class WorkersPageTests(FrontTestCase):
    """The page of all workers, which is kept until it shows something else."""

    def test_kept(self) -> None:
        """Ten scripts that ask in a loop would hold the front up, with thousands of workers."""
        self.front.registry.merged(ESTABLISHED)
        self.front.worker("w9")
        page = self.front.views.workers_page()
        self.front.registry.merged(ESTABLISHED)
        self.front.registry.worker_status("w9", 0, False)
        self.front.registry.merged([FrontRow("f9", 1, region="eu")])
        self.assertIs(self.front.views.workers_page(), page)
        self.front.registry.worker_status("w9", 1, False)
        self.assertIsNot(self.front.views.workers_page(), page)

    def test_sessions(self) -> None:
        """What a worker said is shown until it is gone or comes anew, although the pool may see no difference."""
        self.front.worker("w9")
        self.front.registry.worker_status("w9", 3, False)
        self.assertIn(b'"sessions":3', self.front.views.workers_page())
        claim = self.front.worker("w9")
        self.assertNotIn(b'"sessions":3', self.front.views.workers_page())
        self.front.registry.worker_status("w9", 3, False)
        self.assertIn(b'"sessions":3', self.front.views.workers_page())
        self.front.roster.left("w9", claim)
        self.assertNotIn(b'"sessions":3', self.front.views.workers_page())

    def test_only_what_changed(self) -> None:
        """With a status every millisecond each request would encode ten thousand workers."""
        self.front.registry.merged(ESTABLISHED)
        self.front.views.workers_page()
        made: list[str] = []
        entry = self.front.views._entry

        def noted(view: WorkerView) -> WorkerEntry:
            made.append(view.id)
            return entry(view)

        self.patch(self.front.views, "_entry", noted)
        self.front.registry.merged([AttachmentRow("w3", "f1", 1, "full")])
        self.front.views.workers_page()
        self.assertEqual(made, ["w3"])

    @given(
        st.lists(
            st.one_of(rows, st.tuples(st.sampled_from(["join", "left", "status"]), st.integers(0, 3))), max_size=30
        ),
        st.sampled_from(["0", "60"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_as_made_anew(self, steps: list[Row | tuple[str, int]], threshold: str) -> None:
        """Whoever asks after a change must see it, whatever it was."""
        front = Front({"PANIC_THRESHOLD": threshold})
        try:
            front.registry.merged(ESTABLISHED)
            claims = [front.claim(f"w{number}", capacity=3) for number in range(4)]
            for step in steps:
                if not isinstance(step, tuple):
                    front.registry.merged([step])
                elif step[0] == "join":
                    front.registry.worker_joined(claims[step[1]], lambda stored: None)
                elif step[0] == "left":
                    front.registry.worker_left(claims[step[1]])
                else:
                    front.registry.worker_status(f"w{step[1]}", len(steps) % 5, False)
                self.assertEqual(front.views.workers_page(), msgspec.json.encode(front.views.workers()))
        finally:
            front.close()
