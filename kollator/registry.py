"""Where the rooms meet: what a worker does becomes rows; rows go to the pool, to the disk and to the clients.

Serving goes by memory. A registration alone waits for the disk, because its welcome is a promise; what makes a
worker worse counts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from twisted.logger import Logger
from twisted.python.failure import Failure

from kollator.pool.pool import Pool
from kollator.pool.roster import Roster
from kollator.pool.workersfile import Entry
from kollator.signaling.connection import Claim
from kollator.state.rows import AttachmentRow, FrontRow, Row, Unwell, WorkerRow
from kollator.state.writer import Writer

log = Logger("kollator:pool")

RELISTED_AT_ONCE = 16
"""A worker of another capacity takes some two milliseconds in a large pool: not more of them in one turn."""


class Registry:
    """The switchboard's registrar.

    ``lost`` is called with the workers that are usable no more, ``joined`` and ``left`` with each worker that this
    front begins or ceases to hold, the latter also with whether it said good-bye. ``listed`` says what the operator's
    file has of a worker, by its id and address. ``counted`` is called with the cause for each worker that is lost:
    ``closed``, ``ping`` (a hold-down too), ``probe``, ``webrtc``, ``replaced`` (by a connection that could not be
    stored) or ``other``. ``soon`` puts a call off to the next turn of the loop: workers that are lost together, by the
    thousand when a network breaks, are then told of at once.
    """

    def __init__(
        self,
        pool: Pool,
        roster: Roster,
        writer: Writer,
        *,
        lost: Callable[[Collection[str]], object],
        joined: Callable[[str], object],
        left: Callable[[str, bool], object],
        listed: Callable[[str, str], Entry | None] = lambda worker, address: None,
        counted: Callable[[str], object] = lambda cause: None,
        soon: Callable[[Callable[[], None]], object] = lambda call: call(),
    ) -> None:
        self.pool = pool
        self.roster = roster
        self._writer = writer
        self._lost = lost
        self._joined = joined
        self._left = left
        self._listed = listed
        self._counted = counted
        self._soon = soon
        self._untold: set[str] = set()
        self._unlisted: list[str] = []

    def worker_joined(self, claim: Claim, done: Callable[[bool], None]) -> None:
        """Stores a registration, then makes the worker assignable and reports it done."""

        def stored(_: None) -> None:
            self._joined(claim.id)  # which may hold it down: the pool is told how it stands after that
            self._apply(self.roster.rows(claim.id), "replaced")
            done(True)

        def not_stored(_: Failure) -> None:
            self._forget(claim, "replaced")  # an older connection of it was given up for this one
            done(False)

        said = WorkerRow(claim.id, claim.region, claim.capacity, claim.address)
        written = self._writer.write(self.roster.joined(self._as_listed(said), claim, said))
        written.addCallbacks(stored, not_stored).addErrback(
            lambda failure: log.failure("worker {worker!r} could not join", failure=failure, worker=claim.id)
        )

    def _as_listed(self, said: WorkerRow) -> WorkerRow:
        entry = self._listed(said.id, said.address)
        if entry is None:
            return said
        region = said.region if entry.region is None else entry.region
        capacity = said.capacity if entry.capacity is None else entry.capacity
        return WorkerRow(said.id, region, capacity, said.address)

    def relist(self) -> None:
        """The operator's list is another: it is applied to every worker held here, some with each turn of the loop."""
        under_way = bool(self._unlisted)
        self._unlisted = self.roster.workers()
        if not under_way:
            self._relist_some()

    def _relist_some(self) -> None:
        some, self._unlisted = self._unlisted[:RELISTED_AT_ONCE], self._unlisted[RELISTED_AT_ONCE:]
        if self._unlisted:
            self._soon(self._relist_some)
        said = [worker for name in some if (worker := self.roster.said(name)) is not None]
        rows = [row for worker in said for row in self.roster.relisted(self._as_listed(worker))]
        if rows:
            # A worker's own row counts when it is stored, as all that several fronts may write (see ``committed``).
            self._apply([row for row in rows if isinstance(row, AttachmentRow)], "other")
            self._writer.write(rows).addErrback(lambda _: None)

    def worker_left(self, claim: Claim, politely: bool = False) -> None:
        """The worker's connection is gone. Ignored when a newer one of it is there."""
        self._forget(claim, "closed", politely)

    def worker_status(self, worker: str, sessions: int, draining: bool) -> None:
        """The worker told its load."""
        self._commit(self.roster.status(worker, sessions, draining), "other")

    def worker_unwell(self, worker: str, why: Unwell, said: str) -> None:
        """The worker is not to be used, although it is connected. ``said`` tells the log why, in a sentence."""
        if worker in self.roster and why not in self.roster.whys(worker):
            log.info("worker {worker} is not well ({why}): {said}", worker=worker, why=why, said=said)
        self._commit(self.roster.unwell(worker, why), "ping" if why == "hold-down" else why)

    def worker_well(self, worker: str, why: Unwell) -> None:
        """That reason is over; the worker is as good as any again when it was the last one."""
        before = self.roster.whys(worker)
        self._commit(self.roster.well(worker, why), "other")
        if before == [why]:
            log.info("worker {worker} is well again", worker=worker)

    # -- what the cluster tells ---------------------------------------------------------------------------------------

    def merged(self, rows: Collection[Row]) -> None:
        """Rows of others, from the store, which has them already."""
        self._apply(rows, "other")

    def restate(self, row: AttachmentRow) -> None:
        """A merge has put this into the store about a worker of this front: it is written what is true."""
        truth = self.roster.truth(row.worker)
        if truth != row and (row.worker in self.roster or row.state != "down"):
            self._commit([truth], "other")

    def committed(self, rows: Iterable[Row]) -> None:
        """Rows of this front were stored. A worker's own row counts from then on, whoever else holds the worker."""
        self._apply([row for row in rows if not isinstance(row, AttachmentRow)], "other")

    def reincarnated(self, row: FrontRow) -> None:
        """This front has begun a new life, whose row is stored: all that it holds moves over, as one change."""
        rows = self.roster.renewed(row.incarnation)
        self._apply([row, *rows], "other")
        self._writer.write(rows).addErrback(lambda _: None)

    def _forget(self, claim: Claim, cause: str, politely: bool = False) -> None:
        rows = self.roster.left(claim.id, claim)
        if rows:
            self._left(claim.id, politely)
            self._commit(rows, cause)

    def _commit(self, rows: Collection[Row], cause: str) -> None:
        if rows:
            self._apply(rows, cause)
            self._writer.write(rows).addErrback(lambda _: None)  # the writer logs, keeps the rows and tries again

    def _apply(self, rows: Collection[Row], cause: str) -> None:
        lost = self.pool.apply_all(rows)
        for _ in lost:
            self._counted(cause)
        if lost:
            told_soon = bool(self._untold)
            self._untold.update(lost)
            if not told_soon:
                self._soon(self._tell)

    def _tell(self) -> None:
        lost, self._untold = sorted(self._untold), set()
        lost = [worker for worker in lost if not self.pool.fronts_of(worker)]  # some may be back already
        if lost:
            log.info("{count} workers are lost: {workers}", count=len(lost), workers=", ".join(lost[:20]))
            self._lost(lost)
