"""What the endpoints are told: the pool behind HTTP."""

from __future__ import annotations

from typing import ClassVar

from tests.fronts import FrontTestCase
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
