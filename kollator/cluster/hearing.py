"""Which fronts are heard, and which the leader may declare dead. Pure; times are seconds of one steady clock.

One broken link must not take a front and all its workers out, so a leader that does not hear a front asks
further: the followers' heartbeat replies tell whom they hear. A front is *unheard* when the leader has not
heard it and fewer followers have than, together with it, would make a quorum (one at least). With three
fronts one follower that hears it is enough; with five it takes two, so a single follower that is wrong keeps
no dead front alive.

Nobody is declared dead on old evidence: silence counts from when this front began to lead, or woke up after
the process (or the machine) was stopped, because what was sent meanwhile has not been read yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


class Hearing:
    """Who was heard when, by this front and by those that tell it.

    ``peers`` are the other fronts, ``quorum`` how many fronts make one, ``now`` when the watch began.
    """

    def __init__(self, peers: Collection[str], quorum: int, now: float) -> None:
        self._enough = max(1, quorum - 1)
        self._started = self._since = now
        self._heard: dict[str, float] = {}
        self._told: dict[str, dict[str, float]] = {peer: {} for peer in sorted(peers)}

    def heard(self, peer: str, now: float) -> None:
        """A frame came from ``peer``."""
        if peer in self._told:
            self._heard[peer] = now

    def told(self, follower: str, hears: Iterable[str], now: float) -> None:
        """``follower`` says whom it hears. What it says of itself and of strangers is ignored."""
        for peer in hears:
            if peer in self._told and peer != follower:
                self._told[peer][follower] = now

    def begin(self, now: float) -> None:
        """Count silence from here: what came before is no evidence against anybody."""
        self._since = now
        for told in self._told.values():
            told.clear()

    def silent_s(self, peer: str, now: float) -> float:
        """Seconds since ``peer`` was heard; since the watch began, if never. ``KeyError``: a stranger."""
        if peer not in self._told:
            raise KeyError(peer)
        return now - self._heard.get(peer, self._started)

    def audible(self, now: float, within_s: float, besides: Collection[str] = ()) -> list[str]:
        """The fronts heard within that time, without ``besides``."""
        return [
            peer for peer, heard in self._heard.items() if now - heard < within_s and peer not in besides
        ]

    def unheard(self, now: float, after_s: float) -> frozenset[str]:
        """The fronts that have not been heard for ``after_s``."""
        if now - self._since < after_s:
            return frozenset()
        return frozenset(
            peer
            for peer, told in self._told.items()
            if now - self._heard.get(peer, self._started) >= after_s
            and sum(now - told_at < after_s for told_at in told.values()) < self._enough
        )
