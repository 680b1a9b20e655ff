"""The rows that this front writes itself: its workers and its attachments to them. Pure.

Each method returns the rows that changed, to be stored and applied; none when nothing did. Load itself is never
a row: ``full`` and ``draining`` are flags, and ``full`` has a hysteresis so that it does not flicker.
"""

from __future__ import annotations

from msgspec import structs

from kollator.state.rows import WHYS, AttachmentRow, AttachmentState, Row, Unwell, Why, WorkerRow

RELIEVED = 0.9
"""A full worker is back when its sessions are under this share of its capacity."""


class _Held:
    __slots__ = ("attachment", "draining", "full", "said", "sessions", "token", "whys", "worker")

    def __init__(self, worker: WorkerRow, said: WorkerRow, attachment: AttachmentRow, token: object) -> None:
        self.worker = worker
        self.said = said
        self.attachment = attachment
        self.token = token
        self.sessions = 0
        self.draining = False
        self.full = False
        self.whys: set[Unwell] = set()


class Roster:
    """The workers that the front ``front`` (in its life number ``incarnation``) holds."""

    def __init__(self, front: str, incarnation: int) -> None:
        self._front = front
        self._incarnation = incarnation
        self._held: dict[str, _Held] = {}
        self.changes = 0
        """A number that is another one after each change of what ``sessions`` gives."""

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
            held.attachment = structs.replace(held.attachment, incarnation=incarnation)
        return [held.attachment for held in self._held.values()]

    def workers(self) -> list[str]:
        """Who is held."""
        return list(self._held)

    def said(self, worker: str) -> WorkerRow | None:
        """What a worker says of itself; None when it is not held."""
        held = self._held.get(worker)
        return held.said if held is not None else None

    def is_well(self, worker: str) -> bool:
        """Whether nothing is wrong with a worker that is held."""
        held = self._held.get(worker)
        return held is not None and not held.whys

    def whys(self, worker: str) -> list[Unwell]:
        """Why a worker is not to be used, first the reason that its row tells; empty for one that is well."""
        held = self._held.get(worker)
        return [why for why in WHYS if why in held.whys] if held is not None else []

    def joined(self, worker: WorkerRow, token: object, said: WorkerRow | None = None) -> list[Row]:
        """A worker registered. ``token`` names this connection of it: a newer one takes its place.

        ``said`` is what it says of itself, where that is not what counts. A new connection is well until the
        opposite is told of it.
        """
        attachment = AttachmentRow(worker.id, self._front, self._incarnation, "up")
        self.changes += 1
        self._held[worker.id] = _Held(worker, worker if said is None else said, attachment, token)
        return [worker, attachment]

    def relisted(self, worker: WorkerRow) -> list[Row]:
        """What counts of a worker's region and capacity is another now."""
        held = self._held.get(worker.id)
        if held is None or held.worker == worker:
            return []
        held.worker = worker
        return [worker, *self._loaded(held)]

    def left(self, worker: str, token: object) -> list[Row]:
        """The connection named by ``token`` is gone. Nothing changes when it is not the newest."""
        held = self._held.get(worker)
        if held is None or held.token is not token:
            return []
        self.changes += 1
        del self._held[worker]
        return [AttachmentRow(worker, self._front, self._incarnation, "down")]

    def status(self, worker: str, sessions: int, draining: bool) -> list[Row]:
        """The worker told its load."""
        held = self._held.get(worker)
        if held is None:
            return []
        if held.sessions != sessions:
            self.changes += 1
        held.sessions = sessions
        held.draining = draining
        return self._loaded(held)

    def unwell(self, worker: str, why: Unwell) -> list[Row]:
        """There is one reason more not to use the worker; one that was known changes nothing."""
        held = self._held.get(worker)
        if held is None:
            return []
        held.whys.add(why)
        return self._flagged(held)

    def well(self, worker: str, why: Unwell) -> list[Row]:
        """That reason is over; the worker is well when it was the last one."""
        held = self._held.get(worker)
        if held is None:
            return []
        held.whys.discard(why)
        return self._flagged(held)

    def _loaded(self, held: _Held) -> list[Row]:
        if held.sessions >= held.worker.capacity:
            held.full = True
        elif held.sessions < RELIEVED * held.worker.capacity:
            held.full = False
        return self._flagged(held)

    def _flagged(self, held: _Held) -> list[Row]:
        state: AttachmentState
        why: Why = next((why for why in WHYS if why in held.whys), "")
        if why:
            state = "down"
        elif held.draining:
            state = "draining"
        elif held.full:
            state = "full"
        else:
            state = "up"
        attachment = AttachmentRow(held.worker.id, self._front, self._incarnation, state, why)
        if attachment == held.attachment:
            return []
        held.attachment = attachment
        return [held.attachment]
