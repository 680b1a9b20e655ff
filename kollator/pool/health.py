"""Health of the workers that this front holds: whom to ping, who is lost, who may come back and when.

Everything here decides from its arguments; the caller owns the clock, the sockets and the pings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

HOLD_MIN_S = 1.0
HOLD_MAX_S = 60.0
QUIET_S = 300.0
"""A worker that was usable, or away, for so long starts again with the shortest hold-down."""

_FALLS_MAX = 16  # counted no further: the hold-down is at its longest by then

HISTORY_MAX = 20_000
"""Workers that left and are remembered for their hold-down: twice the workers a front is made for."""

Standing = Literal["usable", "silent", "held"]


class Ping(NamedTuple):
    """A ping to be sent now; ``number`` travels in its payload, so that a late answer is known for one."""

    worker: str
    number: int


class Answer(NamedTuple):
    """An answer in time: its round trip, and when it ended a silence the hold-down that begins with it."""

    rtt_s: float
    hold_s: float | None = None


class _Schedule:
    """At most one time for each worker, taken out in order; a heap that forgets what was cancelled."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._serial = 0

    def put(self, worker: str, at: float) -> None:
        self._serial += 1
        self._at[worker] = (at, self._serial)
        heappush(self._heap, (at, self._serial, worker))
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = [(*when, worker) for worker, when in self._at.items()]
            heapify(self._heap)

    def cancel(self, worker: str) -> None:
        self._at.pop(worker, None)

    def time_of(self, worker: str, default: float) -> float:
        return self._at[worker][0] if worker in self._at else default

    def first(self) -> float | None:
        heap = self._heap
        while heap and self._at.get(heap[0][2]) != heap[0][:2]:
            heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float) -> Iterator[tuple[str, float]]:
        while (at := self.first()) is not None and at <= now:
            worker = heappop(self._heap)[2]
            del self._at[worker]
            yield worker, at


class _Worker:
    """What is known of a connected worker."""

    __slots__ = ("falls", "forgiven", "number", "rearmed", "sent_at", "standing", "usable_since")

    def __init__(self, now: float, falls: int, forgiven: bool) -> None:
        self.standing: Standing = "usable"
        self.usable_since = now
        self.falls = falls  # since the last quiet time
        self.forgiven = forgiven  # a closed connection, which did not count among them
        self.number: int | None = None  # of the ping that waits for its answer
        self.sent_at = 0.0
        self.rearmed = False


class _Past(NamedTuple):
    left_at: float
    falls: int
    forgiven: bool


class HealthBook:
    """The health of the workers connected to one front.

    ``timeout_s`` is how long a ping may go unanswered, ``interval_s`` how often each worker is pinged; a
    worker has at most one ping under way. All times are seconds of one monotonic clock.

    A worker is *usable*, *silent* (a ping went unanswered) or *held*: it answers again, or has come back, and
    waits for its hold-down. That is one second after the first fall and doubles with each further one up to a
    minute; five quiet minutes clear the count. A closed connection is a fall as a silence is, but the first
    one in quiet times is forgiven (a worker that was restarted does not flap), and one outage counts once.

    The caller asks at least every half time-out, or when ``next_wake`` says. When it comes more than that too
    late, its own process was held up and answers may lie unread in its sockets: pings that ran out meanwhile
    get one more time-out before their workers are called silent.
    """

    def __init__(self, timeout_s: float, interval_s: float) -> None:
        if timeout_s <= 0 or interval_s <= 0:
            raise ValueError("the time-out and the interval of pings must be positive")
        self.timeout_s = timeout_s
        self.interval_s = interval_s
        self._workers: dict[str, _Worker] = {}
        self._past: OrderedDict[str, _Past] = OrderedDict()  # the one that left first comes first
        self._due = _Schedule()
        self._deadlines = _Schedule()
        self._holds = _Schedule()
        self._overdue: list[str] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: str) -> bool:
        return worker in self._workers

    def standing(self, worker: str) -> Standing | None:
        """Say how a worker stands, None when it is not connected."""
        entry = self._workers.get(worker)
        return entry.standing if entry is not None else None

    def joined(self, worker: str, now: float, phase: float) -> float:
        """Note a worker's connection; its first ping is due after ``phase`` (0 to 1) of an interval.

        With phases drawn evenly the pings of many workers are spread evenly. A connection that replaces an
        older one leaves the standing as it is, but ends a silence. Returns the hold-down that is left, in
        seconds: 0 when the worker is usable at once, else ``recovered`` names it when the time has come.
        """
        entry = self._workers.get(worker)
        if entry is None:
            past = self._past.pop(worker, None)
            if past is None or now - past.left_at >= QUIET_S:
                past = _Past(now, 0, False)
            entry = self._workers[worker] = _Worker(now, past.falls, past.forgiven)
            if past.falls:
                self._hold(worker, entry, now)
        else:
            self._forget_ping(worker, entry)
            if entry.standing == "silent":
                self._hold(worker, entry, now)
        self._due.put(worker, now + phase % 1.0 * self.interval_s)
        return max(0.0, self._holds.time_of(worker, now) - now)

    def left(self, worker: str, now: float, *, politely: bool = False) -> None:
        """Note that a worker's connection is closed: it is gone, and only its falls are remembered.

        One that said good-bye has not fallen.
        """
        entry = self._workers.get(worker)
        if entry is None:
            return
        if not politely:
            self._fall(worker, entry, now, closed=True)
        self._forget_ping(worker, entry)
        self._due.cancel(worker)
        self._holds.cancel(worker)
        del self._workers[worker]
        self._past[worker] = _Past(now, entry.falls, entry.forgiven)
        while len(self._past) > HISTORY_MAX or now - next(iter(self._past.values())).left_at >= QUIET_S:
            self._past.popitem(last=False)

    def due(self, now: float) -> list[Ping]:
        """Name the pings to be sent now; their time-out runs from now on."""
        self._expire(now)
        pings: list[Ping] = []
        for worker, at in list(self._due.take(now)):
            # The phase is kept, and what was missed in a pause is not made up for.
            turns = int((now - at) / self.interval_s) + 1
            self._due.put(worker, at + turns * self.interval_s)
            entry = self._workers[worker]
            if entry.number is None:
                self._number += 1
                entry.number, entry.sent_at, entry.rearmed = self._number, now, False
                self._deadlines.put(worker, now + self.timeout_s)
                pings.append(Ping(worker, self._number))
        return pings

    def answered(self, worker: str, now: float, number: int) -> Answer | None:
        """Note the answer to a ping; None when it is not the one under way (too late, or never sent)."""
        entry = self._workers.get(worker)
        if entry is None or entry.number != number:
            return None
        self._forget_ping(worker, entry)
        hold_s = self._hold(worker, entry, now) if entry.standing == "silent" else None
        return Answer(now - entry.sent_at, hold_s)

    def overdue(self, now: float) -> list[str]:
        """Name the workers that have fallen silent, for a ping went unanswered: usable and held ones; each once."""
        self._expire(now)
        overdue, self._overdue = self._overdue, []
        return [worker for worker in overdue if worker in self._workers]

    def recovered(self, now: float) -> list[str]:
        """Name the workers whose hold-down is over: they are usable again."""
        self._expire(now)
        recovered = [worker for worker, _ in self._holds.take(now)]
        for worker in recovered:
            entry = self._workers[worker]
            entry.standing, entry.usable_since = "usable", now
        return recovered

    def next_wake(self, now: float) -> float | None:
        """Say in how many seconds the book has something to tell, None when it has nobody to watch."""
        if self._overdue:
            return 0.0
        tables = (self._due, self._deadlines, self._holds)
        times = [at for table in tables if (at := table.first()) is not None]
        return max(0.0, min(times) - now) if times else None

    def _expire(self, now: float) -> None:
        for worker, at in list(self._deadlines.take(now)):
            entry = self._workers[worker]
            if now - at > self.timeout_s / 2 and not entry.rearmed:
                entry.rearmed = True
                self._deadlines.put(worker, now + self.timeout_s)
                continue
            entry.number = None
            if entry.standing != "silent":
                self._overdue.append(worker)
            self._fall(worker, entry, now, closed=False)

    def _fall(self, worker: str, entry: _Worker, now: float, *, closed: bool) -> None:
        if entry.standing == "silent":
            return
        if entry.standing == "usable" and now - entry.usable_since >= QUIET_S:
            entry.falls, entry.forgiven = 0, False
        if closed and not entry.falls and not entry.forgiven:
            entry.forgiven = True
        else:
            entry.falls = min(entry.falls + 1, _FALLS_MAX)
        entry.standing = "silent"
        self._holds.cancel(worker)

    def _hold(self, worker: str, entry: _Worker, now: float) -> float:
        hold_s = min(HOLD_MIN_S * 2.0 ** (entry.falls - 1), HOLD_MAX_S)
        entry.standing = "held"
        self._holds.put(worker, now + hold_s)
        return hold_s

    def _forget_ping(self, worker: str, entry: _Worker) -> None:
        entry.number = None
        self._deadlines.cancel(worker)
