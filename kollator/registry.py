"""Where the rooms meet: what a worker does becomes rows; rows go to the pool, to the disk and to the clients.

Serving goes by memory. A registration alone waits for the disk, because its welcome is a promise; what makes a
worker worse counts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from twisted.logger import Logger

from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.pool.workersfile import Entry
from kollator.signaling.connection import Claim
from kollator.state.rows import Row, WorkerRow
from kollator.state.writer import Writer

log = Logger("kollator:pool")


class Registry:
    """The switchboard's registrar.

    ``lost`` is called with the workers that are usable no more, ``joined`` and ``left`` with each worker that
    this front begins or ceases to hold.
    """

    def __init__(
        self,
        pool: Pool,
        roster: Roster,
        writer: Writer,
        *,
        lost: Callable[[Collection[str]], object],
        joined: Callable[[str], object],
        left: Callable[[str], object],
        listed: Callable[[str, str], Entry | None] = lambda worker, address: None,
    ) -> None:
        self.pool = pool
        self.roster = roster
        self._writer = writer
        self._lost = lost
        self._joined = joined
        self._left = left
        self._listed = listed

    def worker_joined(self, claim: Claim, done: Callable[[bool], None]) -> None:
        """Stores a registration, then makes the worker assignable and reports it done."""
        rows = self.roster.joined(self._row(claim), claim)

        def stored(_: None) -> None:
            self._apply(rows)
            self._joined(claim.id)
            done(True)

        def not_stored(_: object) -> None:
            self._commit(self.roster.left(claim.id, claim))
            done(False)

        self._writer.write(rows).addCallbacks(stored, not_stored).addErrback(
            lambda failure: log.failure("worker {worker!r} could not join", failure=failure, worker=claim.id)
        )

    def _row(self, claim: Claim) -> WorkerRow:
        entry = self._listed(claim.id, claim.address)
        region, capacity = claim.region, claim.capacity
        if entry is not None:
            region = region if entry.region is None else entry.region
            capacity = capacity if entry.capacity is None else entry.capacity
        return WorkerRow(claim.id, region, capacity, claim.address)

    def worker_left(self, claim: Claim) -> None:
        """The worker's connection is gone."""
        rows = self.roster.left(claim.id, claim)
        if rows:
            self._left(claim.id)
            self._commit(rows)

    def worker_status(self, worker: str, sessions: int, draining: bool) -> None:
        """The worker told its load."""
        self._commit(self.roster.status(worker, sessions, draining))

    def worker_unwell(self, worker: str) -> None:
        """The worker did not answer a ping in time."""
        self._commit(self.roster.unwell(worker))

    def worker_well(self, worker: str) -> None:
        """The worker answers again."""
        self._commit(self.roster.well(worker))

    def _commit(self, rows: list[Row]) -> None:
        if rows:
            self._apply(rows)
            self._writer.write(rows).addErrback(lambda _: None)  # the writer logs, keeps the rows and tries again

    def _apply(self, rows: Iterable[Row]) -> None:
        lost: list[str] = []
        for row in rows:
            lost.extend(self.pool.apply(row))
        if lost:
            log.info("{count} workers are lost: {workers}", count=len(lost), workers=", ".join(lost[:20]))
            self._lost(lost)
