"""The rows that this front writes itself: its workers and its attachments to them. Pure.

Each method returns the rows that changed, to be stored and applied; none when nothing did. Load itself is never
a row: ``full`` and ``draining`` are flags, and ``full`` has a hysteresis so that it does not flicker.
"""

from __future__ import annotations

from kollator.state.rows import AttachmentRow, AttachmentState, Row, WorkerRow

RELIEVED = 0.9
"""A full worker is back when its sessions are under this share of its capacity."""


class _Held:
    __slots__ = ("attachment", "draining", "full", "sessions", "token", "well", "worker")

    def __init__(self, worker: WorkerRow, attachment: AttachmentRow, token: object) -> None:
        self.worker = worker
        self.attachment = attachment
        self.token = token
        self.sessions = 0
        self.draining = False
        self.full = False
        self.well = True


class Roster:
    """The workers that the front ``front`` (in its life number ``incarnation``) holds."""

    def __init__(self, front: str, incarnation: int) -> None:
        self._front = front
        self._incarnation = incarnation
        self._held: dict[str, _Held] = {}

    def __contains__(self, worker: str) -> bool:
        return worker in self._held

    def __len__(self) -> int:
        return len(self._held)

    def sessions(self, worker: str) -> int:
        """What the worker said last; 0 for one that is not held."""
        held = self._held.get(worker)
        return held.sessions if held is not None else 0

    def rows(self, worker: str) -> list[Row]:
        """The rows of a worker as it stands; none when it is not held."""
        held = self._held.get(worker)
        return [held.worker, held.attachment] if held is not None else []

    def truth(self, worker: str) -> AttachmentRow:
        """The attachment of any worker to this front, as it is: ``down`` for one that is not held."""
        held = self._held.get(worker)
        return held.attachment if held is not None else AttachmentRow(worker, self._front, self._incarnation, "down")

    def renewed(self, incarnation: int) -> list[Row]:
        """The front has begun another life: what it holds is attached to that one."""
        self._incarnation = incarnation
        for held in self._held.values():
            held.attachment = AttachmentRow(held.worker.id, self._front, incarnation, held.attachment.state)
        return [held.attachment for held in self._held.values()]

    def joined(self, worker: WorkerRow, token: object) -> list[Row]:
        """A worker registered. ``token`` names this connection of it: a newer one takes its place."""
        attachment = AttachmentRow(worker.id, self._front, self._incarnation, "up")
        self._held[worker.id] = _Held(worker, attachment, token)
        return [worker, attachment]

    def left(self, worker: str, token: object) -> list[Row]:
        """The connection named by ``token`` is gone. Nothing changes when it is not the newest."""
        held = self._held.get(worker)
        if held is None or held.token is not token:
            return []
        del self._held[worker]
        return [AttachmentRow(worker, self._front, self._incarnation, "down")]

    def status(self, worker: str, sessions: int, draining: bool) -> list[Row]:
        """The worker told its load."""
        held = self._held.get(worker)
        if held is None:
            return []
        held.sessions = sessions
        held.draining = draining
        if sessions >= held.worker.capacity:
            held.full = True
        elif sessions < RELIEVED * held.worker.capacity:
            held.full = False
        return self._flagged(held)

    def unwell(self, worker: str) -> list[Row]:
        """The worker did not answer in time."""
        return self._turned(worker, False)

    def well(self, worker: str) -> list[Row]:
        """The worker answers again."""
        return self._turned(worker, True)

    def _turned(self, worker: str, well: bool) -> list[Row]:
        held = self._held.get(worker)
        if held is None:
            return []
        held.well = well
        return self._flagged(held)

    def _flagged(self, held: _Held) -> list[Row]:
        state: AttachmentState
        if not held.well:
            state = "down"
        elif held.draining:
            state = "draining"
        elif held.full:
            state = "full"
        else:
            state = "up"
        if state == held.attachment.state:
            return []
        held.attachment = AttachmentRow(held.worker.id, self._front, self._incarnation, state)
        return [held.attachment]
