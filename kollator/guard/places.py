"""Places for connections that speak HTTP, or have yet to say what they speak: counted in all and for each address."""

from __future__ import annotations

from collections.abc import Callable

from kollator.guard.addresses import limit_key
from kollator.guard.limits import ConnectionCounts


class Places:
    """How many such connections there may be. Raises ``ValueError`` when a limit is below one.

    ``spared`` tells the addresses that have no limit of their own: they count among all. ``refused`` takes the limit
    that was reached, "total" or "address", and the address.
    """

    __slots__ = ("_counts", "_refused", "_spared")

    def __init__(
        self,
        max_total: int,
        max_per_address: int,
        spared: Callable[[str], bool] = lambda address: False,
        refused: Callable[[str, str], object] = lambda limit, address: None,
    ) -> None:
        self._counts = ConnectionCounts(max_total, max_per_address)
        self._spared = spared
        self._refused = refused

    @property
    def taken(self) -> int:
        """How many connections have one."""
        return self._counts.total

    def take(self, address: str | None) -> Place | None:
        """A place for a connection from that address, or None when there is none left.

        None for an address that is not known yet: such a connection counts among all, and is to be ``named``.
        """
        place = Place(self)
        return place if self._admit(place, address) else None

    def _admit(self, place: Place, address: str | None) -> bool:
        key = None if address is None or self._spared(address) else limit_key(address)
        limit = self._counts.admit(key)
        if limit is not None:
            self._refused(limit, address or "")
            return False
        place.key = key
        place.taken = True
        return True

    def _release(self, place: Place) -> None:
        place.taken = False
        self._counts.release(place.key)


class Place:
    """One connection's. ``leave`` gives it back; after that, and without one, nothing does anything."""

    __slots__ = ("_places", "key", "taken")

    def __init__(self, places: Places) -> None:
        self._places = places
        self.key: str | None = None
        self.taken = False

    def named(self, address: str) -> bool:
        """The address became known, by what a proxy wrote ahead. False: that one has no place left, nor has this."""
        if not self.taken:
            return True
        self._places._release(self)
        return self._places._admit(self, address)

    def leave(self) -> None:
        """The connection is over, or is counted elsewhere."""
        if self.taken:
            self._places._release(self)
