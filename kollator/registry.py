"""Where the rooms meet: what a worker does becomes rows; rows go to the pool, to the disk and to the clients.

Serving goes by memory. A registration alone waits for the disk, because its welcome is a promise; what makes a
worker worse counts at once. When a network breaks, a thousand workers go in one turn of the loop: then a few of them
count at once and all others together, from the next turn on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

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

FEW_AT_ONCE = 4
"""So many workers that got worse are taken out of the pool one by one in a turn, at some millisecond each."""
MANY = 32
"""So many together are only marked in the ring and swept later (see ``Ring.remove_all``), at some 10 us each."""
MANY_AT_ONCE = 256
"""Not more of them in one turn."""
GATHERED_TURNS = 8
"""So many turns those wait at most, for more of them, who are lost while others are: each slice is a write, a message
to the other fronts and a line of the log, and a network that breaks is noticed over many turns.
"""
NAMED_MAX = 20
"""The log names so many workers in one line."""


class Registry:
    """The switchboard's registrar.

    ``lost`` is called with the workers that are usable no more, ``joined`` and ``left`` with each worker that this
    front begins or ceases to hold, the latter also with whether it said good-bye. ``listed`` says what the operator's
    file has of a worker, by its id and address. ``counted`` is called with the cause for each worker that is lost:
    ``closed``, ``ping`` (a hold-down too), ``probe``, ``webrtc``, ``replaced`` (by a connection that could not be
    stored) or ``other``. ``soon`` puts a call off to the next turn of the loop: many workers that are lost together
    are then taken out of the pool, stored, logged and told of together, some with each turn.
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
        self._worse: dict[str, str] = {}
        """Workers that left or fell ill, which the pool and the disk are yet to learn, and the cause."""
        self._ill: dict[tuple[Unwell, str], list[str]] = {}
        """Of whom the log is yet to say that they fell ill, by the reason and the sentence."""
        self._taking_out = False
        self._at_once_left = 0
        self._gathering = False
        """They wait for more to come, and nobody is told meanwhile: who is lost next would be told to go there."""
        self._gathered = 0
        self._turns_left = 0
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
            self._ill.setdefault((why, said), []).append(worker)
            self.roster.unwell(worker, why)
            self._worsened(worker, "ping" if why == "hold-down" else why)

    def worker_well(self, worker: str, why: Unwell) -> None:
        """That reason is over; the worker is as good as any again when it was the last one."""
        before = self.roster.whys(worker)
        rows = self.roster.well(worker, why)
        if before == [why]:
            self._say_ill()  # of which it may be one
            self._worse.pop(worker, None)
            self._commit(rows, "other")
            log.info("worker {worker} is well again", worker=worker)
        else:
            self._commit(rows, "other")

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
        if self.roster.left(claim.id, claim):
            self._left(claim.id, politely)
            self._worsened(claim.id, cause)

    # -- who got worse ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Takes out all who got worse, at once: for the end, when the writer is about to stop."""
        self._take_out(len(self._worse))

    def _worsened(self, worker: str, cause: str) -> None:
        self._worse.setdefault(worker, cause)  # one that fell silent and then left was lost by its silence
        if not self._taking_out:
            self._taking_out = True
            self._at_once_left = FEW_AT_ONCE
            self._gathered, self._turns_left = 0, GATHERED_TURNS
            self._soon(self._take_others_out)
        if self._at_once_left:
            self._at_once_left -= 1
            self._take_out(1)

    def _take_others_out(self) -> None:
        self._taking_out = bool(self._worse)
        self._gathering = self._are_more_to_come()
        if self._taking_out:
            try:
                if not self._gathering:
                    self._take_out(MANY_AT_ONCE if self._are_quickly_out() else FEW_AT_ONCE)
                    self._gathered, self._turns_left = len(self._worse), GATHERED_TURNS
            finally:  # or nobody would be taken out any more
                self._soon(self._take_others_out)

    def _are_more_to_come(self) -> bool:
        """Whether more have come since the last turn, and not enough for a slice, nor for too long."""
        before, self._gathered = self._gathered, len(self._worse)
        self._turns_left -= 1
        return max(before, FEW_AT_ONCE) < self._gathered < MANY_AT_ONCE and self._turns_left >= 0

    def _are_quickly_out(self) -> bool:
        if len(self._worse) < MANY:
            return False
        # Where a panic may come, who is ill but connected goes on a ring of its own, which takes its time.
        return not self.pool.panic_threshold or not any(worker in self.roster for worker in self._worse)

    def _take_out(self, number: int) -> None:
        """Applies and stores how so many of those who got worse stand now. Who is back meanwhile is left alone."""
        self._say_ill()
        causes = dict(islice(self._worse.items(), number))
        for worker in causes:
            del self._worse[worker]
        rows = [row for row in map(self.roster.truth, causes) if row.state == "down"]
        gone = [row.worker for row in rows if row.worker not in self.roster]
        if len(gone) == 1:
            log.info("worker {worker} left", worker=gone[0])
        elif gone:
            log.info("{count} workers left: {workers}", count=len(gone), workers=_named(gone))
        self._commit(rows, "other", causes)

    def _say_ill(self) -> None:
        ill, self._ill = self._ill, {}
        for (why, said), workers in ill.items():
            if len(workers) == 1:
                log.info("worker {worker} is not well ({why}): {said}", worker=workers[0], why=why, said=said)
            else:
                log.info(
                    "{count} workers are not well ({why}): {said}: {workers}",
                    count=len(workers), why=why, said=said, workers=_named(workers),
                )

    def _commit(self, rows: Collection[Row], cause: str, causes: Mapping[str, str] | None = None) -> None:
        if rows:
            self._apply(rows, cause, causes)
            self._writer.write(rows).addErrback(lambda _: None)  # the writer logs, keeps the rows and tries again

    def _apply(self, rows: Collection[Row], cause: str, causes: Mapping[str, str] | None = None) -> None:
        """``cause`` is that of a loss, but for workers that got worse before and were not taken out yet."""
        lost = self.pool.apply_all(rows)
        causes = self._worse if causes is None else causes
        for worker in lost:
            self._counted(causes.get(worker, cause))
        if lost:
            told_soon = bool(self._untold)
            self._untold.update(lost)
            if not told_soon:
                self._soon(self._tell)

    def _tell(self) -> None:
        if self._gathering:
            self._soon(self._tell)
            return
        lost, self._untold = sorted(self._untold), set()
        lost = [worker for worker in lost if not self.pool.fronts_of(worker)]  # some may be back already
        if lost:
            log.info("{count} workers are lost: {workers}", count=len(lost), workers=_named(lost))
            self._lost(lost)


def _named(workers: Sequence[str]) -> str:
    return ", ".join(workers[:NAMED_MAX]) + (", …" if len(workers) > NAMED_MAX else "")
