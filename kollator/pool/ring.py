"""A weighted consistent-hash ring that changes in place (Karger et al. 1997; seed, "Consistent Hashing").

A worker owns as many points as its capacity gives it, and a range belongs to the first point clockwise of its
own position. The ring is a function of the *set* of its workers: neither the order in which they came nor
what was there before shows in any answer.

Points are 64-bit integers, the position in the high 44 bits and the worker's index in the low 20, so they fit
``array('Q')`` at 8 bytes each. They lie in buckets cut by the top bits of the position, which is why adding a
worker costs its own points only; a bucket takes new ones unsorted and sorts them in when it is looked at, or when
they are many. Buckets are split and merged one at a time (linear hashing, Litwin 1980), so that no change is much
dearer than any other. With 1.5 million points two workers meet on one of 2^44 positions once in
a dozen rings: points of one position are kept in the order of the workers' ids, never of their indexes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from hashlib import blake2b
from struct import Struct

INDEX_BITS = 20
POSITION_BITS = 64 - INDEX_BITS
RING_SIZE = 1 << POSITION_BITS
"""The number of positions: positions are 0 to RING_SIZE - 1."""
WORKERS_MAX = 1 << INDEX_BITS

_INDEX_MASK = WORKERS_MAX - 1
_POSITION_MASK = ((1 << 64) - 1) ^ _INDEX_MASK

WEIGHT_MAX = 100
"""The most points a worker may own, in multiples of ``replicas``.

Capacity may be a million sessions; in proportion that would be 1.5 million points, 12 MB and two seconds for
one worker's word. A hundred times the normal worker, 15,000 points, takes some 20 ms.
"""

REMOVED_POINTS_MAX = 4096
"""More points are not taken out at once, which would take over 10 ms: their workers are only marked."""

_BUCKET_POINTS_MAX = 256  # mean; a bucket is 2 KB then
_UNSORTED_MAX = 128  # in one bucket: sorting so many in takes some 40 us
_BUCKET_POINTS_MIN = 64  # mean; below it buckets are merged, so that no lookup crosses a row of empty ones
_BARREN_POINTS = 512  # after so many points of workers already seen, a walk looks whether few are left
_FEW_POINTS = 4096  # so few points are faster computed again and sorted than found among all others

_EIGHT = Struct(">8Q")


def weight(capacity: int, replicas: int) -> int:
    """Give a worker's number of points: ``replicas`` for capacity 100, in proportion for others.

    At least 1, so that every worker can be found, and at most ``WEIGHT_MAX`` times ``replicas``.
    """
    return max(1, min((2 * replicas * capacity + 100) // 200, WEIGHT_MAX * replicas))


def key_hash(key: str) -> int:
    """Hash a key (a range) to 64 bits; its position on a ring is the high ``POSITION_BITS`` of them."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8, person=b"kollator range").digest(), "big")


def position_of(hash64: int) -> int:
    """Give the position on the ring of a 64-bit hash."""
    return hash64 >> INDEX_BITS


def point_hashes(worker: str, count: int) -> list[int]:
    """Hash a worker's points to 64 bits each, eight from every 64-byte digest.

    The first n are the same whatever the count, so a worker whose capacity changes keeps what it had.
    """
    stem = worker.encode()
    hashes: list[int] = []
    for block in range((count + 7) // 8):
        digest = blake2b(stem + block.to_bytes(4, "big"), person=b"kollator point").digest()
        hashes += _EIGHT.unpack(digest)
    del hashes[count:]
    return hashes


class Ring:
    """The points of a set of workers.

    ``points_of(worker, count)`` gives the 64-bit hashes of a worker's points, always the same ones.

    Many workers that leave at once, as when a front dies, are only marked: their points count no more and are
    passed by until ``sweep`` has taken them out, a slice with each later change or on demand. Taking out a
    million points at once would hold the caller up for half a second.
    """

    def __init__(self, points_of: Callable[[str, int], Sequence[int]] = point_hashes) -> None:
        self._points_of = points_of
        self._clear()

    def _clear(self) -> None:
        self.points = 0
        self._index: dict[str, int] = {}
        self._ids: list[str | None] = []  # by index; None: free, or dead with points still to be swept
        self._counts: list[int] = []
        self._free: list[int] = []
        self._dead: list[int] = []  # died since the present pass of the sweep began
        self._dying: list[int] = []  # will be free when the present pass is over
        self._cursor = 0  # the hash up to which the present pass has come
        self._stored = 0  # points in the buckets, those of the dead included
        self._buckets: list[array[int]] = [array("Q")]  # in the order of the ring, each sorted
        self._unsorted: list[list[int]] = [[]]  # what each bucket has got since
        # A hash shifted by this is the number of its bucket, if all were as wide as the last one. Of these wide
        # ones the first ``_halved`` are halved.
        self._shift = 64
        self._halved = 0

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, worker: str) -> bool:
        return worker in self._index

    @property
    def garbage(self) -> int:
        """The number of points that wait to be swept."""
        return self._stored - self.points

    def add(self, worker: str, count: int) -> None:
        """Put a worker in with ``count`` points.

        Raises ``ValueError``, and changes nothing, when it is there already, when count is not positive, or
        when ``WORKERS_MAX`` are there.
        """
        if worker in self._index:
            raise ValueError(f"worker {worker!r} is on the ring already")
        if count < 1:
            raise ValueError(f"a worker has at least one point, not {count}")
        if len(self._index) >= WORKERS_MAX:
            raise ValueError(f"a ring holds at most {WORKERS_MAX} workers")
        hashes = self._points_of(worker, count)
        index = self._index[worker] = self._new_index(worker, count)
        self.points += count
        self._stored += count
        while self._stored > len(self._buckets) * _BUCKET_POINTS_MAX:
            self._split_bucket()
        unsorted, shift, halved = self._unsorted, self._shift, self._halved
        for hash64 in hashes:
            number = hash64 >> shift
            number = number + halved if number >= halved else hash64 >> shift - 1
            fresh = unsorted[number]
            fresh.append(hash64 & _POSITION_MASK | index)
            if len(fresh) > _UNSORTED_MAX:
                self._sorted(number)
        self.sweep(4 * count)

    def _number_of(self, hash64: int) -> int:
        """The number of the bucket that a hash lies in."""
        number = hash64 >> self._shift
        return number + self._halved if number >= self._halved else hash64 >> self._shift - 1

    def _start_of(self, number: int) -> int:
        """The lowest hash of a bucket; of one past the last, the ring's end."""
        halves = 2 * self._halved
        return number << self._shift - 1 if number < halves else number - self._halved << self._shift

    def _sorted(self, number: int) -> array[int]:
        """A bucket with all its points in the order of their positions."""
        fresh = self._unsorted[number]
        if fresh:
            self._unsorted[number] = []
            self._buckets[number] = array("Q", sorted(self._buckets[number].tolist() + fresh))
        return self._buckets[number]

    def _point_at(self, bucket: array[int], at: int) -> int:
        """A point of a sorted bucket, after those that meet on its position, if any, were put in order."""
        point = bucket[at]
        end = at + 1
        while end < len(bucket) and bucket[end] >> INDEX_BITS == point >> INDEX_BITS:
            end += 1
        if end > at + 1:
            ids = self._ids
            bucket[at:end] = array("Q", sorted(bucket[at:end], key=lambda met: ids[met & _INDEX_MASK] or ""))
        return bucket[at]

    def remove(self, worker: str) -> None:
        """Take a worker out. Raises ``KeyError`` when it is not there."""
        self.remove_all((worker,))

    def remove_all(self, workers: Collection[str], *, marked: bool = False) -> None:
        """Take workers out. Raises ``KeyError``, and changes nothing, when one is not there.

        They are only ``marked``, however few their points, where they are a part of many that leave several rings.
        """
        indexes = {worker: self._index[worker] for worker in workers}
        if len(indexes) == len(self._index):
            self._clear()
            return
        points = sum(self._counts[index] for index in indexes.values())
        mark = marked or points > REMOVED_POINTS_MAX
        for worker, index in indexes.items():
            if not mark:
                self._delete_points(worker, index)
            (self._dead if mark else self._free).append(index)
            del self._index[worker]
            self._ids[index] = None
        self.points -= points
        if not mark:
            self._stored -= points
            self.sweep(4 * points)

    def sweep(self, points_max: int) -> bool:
        """Take points of the dead out, looking at about ``points_max`` points; say whether more are left."""
        ids = self._ids
        while points_max > 0 and (self._dying or self._dead):
            if not self._dying:
                self._dying, self._dead, self._cursor = self._dead, [], 0
            number = self._number_of(self._cursor)
            bucket = self._sorted(number)
            alive = array("Q", [point for point in bucket if ids[point & _INDEX_MASK] is not None])
            self._buckets[number] = alive
            self._stored -= len(bucket) - len(alive)
            points_max -= len(bucket) + 1
            self._cursor = self._start_of(number + 1)
            if self._cursor >> 64:
                self._free += self._dying
                self._dying = []
        while len(self._buckets) > 1 and self._stored < len(self._buckets) * _BUCKET_POINTS_MIN:
            self._merge_bucket()
        return bool(self._dying or self._dead)

    def _new_index(self, worker: str, count: int) -> int:
        if not self._free and len(self._ids) == WORKERS_MAX:
            while self.sweep(WORKERS_MAX):
                pass
        if self._free:
            index = self._free.pop()
            self._ids[index], self._counts[index] = worker, count
        else:
            index = len(self._ids)
            self._ids.append(worker)
            self._counts.append(count)
        return index

    def _delete_points(self, worker: str, index: int) -> None:
        for hash64 in self._points_of(worker, self._counts[index]):
            number = self._number_of(hash64)
            point = hash64 & _POSITION_MASK | index
            fresh = self._unsorted[number]
            if point in fresh:
                fresh.remove(point)
                continue
            bucket = self._buckets[number]
            at = bisect_left(bucket, hash64 & _POSITION_MASK)
            while bucket[at] != point:
                at += 1
            del bucket[at]

    def _split_bucket(self) -> None:
        """Halve the next wide bucket."""
        number = 2 * self._halved
        middle = self._start_of(number) + (1 << self._shift - 1)
        bucket, fresh = self._buckets[number], self._unsorted[number]
        cut = bisect_left(bucket, middle)
        self._buckets[number : number + 1] = (bucket[:cut], bucket[cut:])
        self._unsorted[number : number + 1] = (
            [point for point in fresh if point < middle],
            [point for point in fresh if point >= middle],
        )
        self._halved += 1
        if 2 * self._halved == len(self._buckets):
            self._shift -= 1
            self._halved = 0

    def _merge_bucket(self) -> None:
        """Make one bucket of the last two halves."""
        if not self._halved:
            self._shift += 1
            self._halved = len(self._buckets) // 2
        self._halved -= 1
        at = 2 * self._halved
        self._buckets[at : at + 2] = [self._buckets[at] + self._buckets[at + 1]]
        self._unsorted[at : at + 2] = [self._unsorted[at] + self._unsorted[at + 1]]

    def lookup(self, hash64: int) -> str | None:
        """Find the worker that owns a key's hash, None on an empty ring."""
        if not self._index:
            return None
        number = self._number_of(hash64)
        bucket = self._sorted(number)
        at = bisect_left(bucket, hash64 & _POSITION_MASK)
        while at == len(bucket):
            number = (number + 1) % len(self._buckets)
            bucket = self._sorted(number)
            at = 0
        owner = self._ids[self._point_at(bucket, at) & _INDEX_MASK]
        return owner if owner is not None else next(self.walk(hash64))

    def walk(self, hash64: int) -> Iterator[str]:
        """Name every worker once, clockwise from a key's hash, the owner first."""
        for worker, _ in self.steps(hash64):
            yield worker

    def steps(self, hash64: int, without: Set[str] = frozenset()) -> Iterator[tuple[str, int]]:
        """Walk as ``walk`` does, passing by the workers in ``without``; each comes with its point's position.

        The ring must not change during the walk. The work is bounded also when those left own a tiny share:
        what cannot be met soon is computed, with the same result.
        """
        index_of, counts, ids = self._index, self._counts, self._ids
        seen = {index_of[worker] for worker in without if worker in index_of}
        left = self.points - sum(counts[index] for index in seen)
        if not left:
            return
        number = self._number_of(hash64)
        bucket = self._sorted(number)
        at = bisect_left(bucket, hash64 & _POSITION_MASK)
        barren = 0
        while True:
            while at == len(bucket):
                number = (number + 1) % len(self._buckets)
                bucket = self._sorted(number)
                at = 0
            point = bucket[at]
            if at + 1 < len(bucket) and bucket[at + 1] >> INDEX_BITS == point >> INDEX_BITS:
                point = self._point_at(bucket, at)
            at += 1
            index = point & _INDEX_MASK
            worker = ids[index]
            if worker is not None and index not in seen:
                yield worker, point >> INDEX_BITS
                left -= counts[index]
                if not left:
                    return
                seen.add(index)
                barren = 0
                continue
            barren += 1
            if barren == _BARREN_POINTS:
                if left <= _FEW_POINTS:
                    yield from self._nearest(hash64, seen)
                    return
                barren = 0

    def _nearest(self, hash64: int, seen: set[int]) -> Iterator[tuple[str, int]]:
        """Give what a walk would still meet, from the points of the remaining workers alone."""
        start = position_of(hash64)
        rest = []
        for worker, index in self._index.items():
            if index not in seen:
                hashes = self._points_of(worker, self._counts[index])
                distance = min((position_of(point) - start) % RING_SIZE for point in hashes)
                rest.append((distance, worker))
        for distance, worker in sorted(rest):
            yield worker, (start + distance) % RING_SIZE
