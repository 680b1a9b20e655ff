"""How each worker stands: what the rows of fronts, attachments and drains say of it together. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from kollator.state.rows import WHYS, AttachmentRow, DrainRow, FrontRow, Why

UsableState = Literal["up", "full", "draining"]
State = Literal["up", "full", "draining", "down"]

PREFERENCE: tuple[UsableState, ...] = ("up", "full", "draining")
"""States in the order in which workers are taken: full ones when no other is left, draining ones last."""


class Standing(NamedTuple):
    """A worker that is connected to a live front.

    ``why`` is empty for one that is well. For one that is not, ``state`` is what it counts as in a panic: its row
    says no more of it than that it is down.
    """

    state: UsableState
    why: Why = ""


class Standings:
    """What was told of fronts and of workers, and what follows for each worker.

    The ``apply`` methods take the latest version of a row and return the workers that may stand otherwise now.
    """

    def __init__(self) -> None:
        self.fronts: dict[str, FrontRow] = {}
        self.drained: set[str] = set()
        """Whom an operator wants to get no new clients."""
        # Attachments of connected workers, well or not, by worker and front; and which workers a front has there.
        self._held: dict[str, dict[str, AttachmentRow]] = {}
        self._holding: dict[str, set[str]] = {}
        self._well: dict[str, tuple[str, ...]] = {}  # what ``well_at`` has found since the last change

    def apply_front(self, row: FrontRow) -> Collection[str]:
        """A front began a life, was retired, or said something else of itself."""
        before = self.fronts.get(row.id)
        self.fronts[row.id] = row
        if before is not None and (before.incarnation, before.retired) == (row.incarnation, row.retired):
            return ()
        self._well.clear()
        return self._holding.get(row.id, ())

    def apply_attachment(self, row: AttachmentRow) -> Collection[str]:
        """A front tells how it sees a worker."""
        held = self._held.setdefault(row.worker, {})
        if row.state != "down" or row.why:
            if held.get(row.front) == row:
                return ()
            self._well.clear()
            held[row.front] = row
            self._holding.setdefault(row.front, set()).add(row.worker)
            return (row.worker,)
        # One that left is the same as one that never was, and rows are never deleted: nothing is kept of it.
        gone = held.pop(row.front, None)
        if not held:
            del self._held[row.worker]
        if gone is None:
            return ()
        self._well.clear()
        holding = self._holding[row.front]
        holding.discard(row.worker)
        if not holding:
            del self._holding[row.front]
        return (row.worker,)

    def apply_drain(self, row: DrainRow) -> Collection[str]:
        """An operator said whether a worker is to get new clients."""
        if row.draining == (row.worker in self.drained):
            return ()
        if row.draining:
            self.drained.add(row.worker)
        else:
            self.drained.remove(row.worker)
        return (row.worker,)

    def of(self, worker: str) -> Standing | None:
        """How a worker stands; None when no live front is connected with it.

        It is well when one front sees it so. Where fronts differ, the state that gives it the least work counts.
        """
        states: set[str] = set()
        whys: set[str] = set()
        for row in self._in_force(worker):
            if row.state == "down":
                whys.add(row.why)
            else:
                states.add(row.state)
        for state in reversed(PREFERENCE):
            if state in states:
                return Standing("draining" if worker in self.drained else state)
        for why in WHYS:
            if why in whys:
                return Standing("draining" if worker in self.drained else "up", why)
        return None

    def well_at(self, worker: str) -> tuple[str, ...]:
        """The live fronts that see a worker well, sorted."""
        found = self._well.get(worker)
        if found is None:
            found = tuple(sorted([row.front for row in self._in_force(worker) if row.state != "down"]))
            if found:  # names of workers that there are
                self._well[worker] = found
        return found

    def connected_to(self, worker: str) -> tuple[str, ...]:
        """The live fronts that a worker is connected to, well or not, sorted."""
        return tuple(sorted([row.front for row in self._in_force(worker)]))

    def is_alive(self, front: str) -> bool:
        """Whether a front is known and not retired."""
        row = self.fronts.get(front)
        return row is not None and row.incarnation > row.retired

    def _in_force(self, worker: str) -> list[AttachmentRow]:
        fronts = self.fronts
        return [
            row
            for row in self._held.get(worker, {}).values()
            if (front := fronts.get(row.front)) is not None and front.retired < front.incarnation == row.incarnation
        ]
