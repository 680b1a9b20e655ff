"""Who leads: terms, votes and heartbeats as a pure state machine, in the shape of etcd's raft, but no log.

``tick`` and ``receive`` return a ``Ready``: what to persist, then what to send. **Carry them out in order,
each whole before the next, and persist before you send**: a vote that was sent and then forgotten makes two
leaders. As long as a ``Ready`` is not persisted, its role is not to be acted on either. When persisting
fails, drop its frames, and persist ``vote`` before anything of a later one is sent; a lost frame does no
harm.

The rules (Ongaro's thesis, chapters 3 and 6.4 and section 9.6, and etcd's ``raft.go``):

* A front votes once a term. A candidate that a quorum votes for leads in that term and says so in heartbeats.
* *Pre-vote*: before a front stands, it asks whether a quorum would vote for it. So one that is cut off, or
  comes back, does not raise the term of a cluster that is well.
* *Lease*: who has heard a leader within the shortest election time-out, or leads, refuses (pre-)votes.
* *Check-quorum*: a leader to whose heartbeats of that last time-out no quorum has replied steps down.
* Whoever has a higher term answers the heartbeat of an older one with it, and that leader steps down.
  Otherwise a front that has stood once too often would be left out for ever.

``available`` is for clusters where one front is enough for a quorum. A front that misses the leader asks all
the same, and stands after one heartbeat's time unless somebody refuses. Fronts that are cut off from each
other may both lead, and even in one term; when they hear each other the higher term wins, then the lower id,
and the other follows at once.

Fronts that are not members, and terms that no cluster reaches, are ignored and counted in ``ignored``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Union

from kollator.cluster.hearing import Hearing
from kollator.cluster.wire import (
    MEMBERS_MAX,
    TERM_MAX,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
)

Role = Literal["leader", "follower", "candidate"]
Quorum = Literal["majority", "available"]
Draw = Callable[[float, float], float]
"""A random number between two others, as ``random.uniform``."""
ElectionFrame = Union[PreVote, PreVoteReply, Vote, VoteReply, Heartbeat, HeartbeatReply]

TERM_JUMP_MAX = 2**32
"""A term so far ahead is a defect, not history: at one election a second it would take 136 years."""


class Ready(NamedTuple):
    """What is to be done now, in this order.

    ``persist``: the term and the vote to have on disk, past a loss of power, before anything else is done.
    ``send``: frames, each with the front it is for; drop those for a front without a link. ``changed``: role,
    leader or term are not what they were.
    """

    persist: tuple[int, str | None] | None = None
    send: tuple[tuple[str, ElectionFrame], ...] = ()
    changed: bool = False


class Election:
    """One front's part in the election.

    ``members`` is the electorate, with or without ``node`` itself; ``stands`` whether this front may lead;
    ``heartbeat_s`` the time between two heartbeats of the leader, ``timeout_s`` the shortest election
    time-out: each is drawn, with ``draw``, from one to two times that. ``term`` and ``voted_for`` are what is
    on disk, ``now`` seconds of the caller's clock, wherever it begins. A clock that is set back is taken to
    stand still, one that leaps ahead to have slept.

    Raises ``ValueError`` for settings that cannot work.
    """

    def __init__(
        self,
        node: str,
        members: Iterable[str],
        *,
        quorum: Quorum,
        stands: bool,
        heartbeat_s: float,
        timeout_s: float,
        draw: Draw,
        now: float,
        term: int = 0,
        voted_for: str | None = None,
    ) -> None:
        self.node = node
        self.members = frozenset(members) | {node}
        if len(self.members) > MEMBERS_MAX:
            raise ValueError(f"a cluster has {MEMBERS_MAX} fronts at most")
        if not 0 < heartbeat_s < timeout_s:
            raise ValueError("the election time-out is longer than a heartbeat")
        if not 0 <= term <= TERM_MAX:
            raise ValueError(f"a term is 0 to {TERM_MAX}")
        self.term = term
        self.voted_for = voted_for
        self.role: Role = "follower"
        self.leader: str | None = None
        """Who leads, as far as this front knows."""
        self.ignored = {"not-a-member": 0, "absurd-term": 0, "second-leader": 0, "not-an-election-frame": 0}
        self.quorum = len(self.members) // 2 + 1 if quorum == "majority" else 1
        """How many fronts, this one with them, make a quorum."""
        self._available = quorum == "available"
        self._peers = tuple(sorted(self.members - {node}))
        self._stands = stands
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._draw = draw
        self._offset = 0.0
        self._now = now
        self._due = now
        self._hearing = Hearing(self._peers, self.quorum, now)
        self._standing = False  # a candidate that asks for votes, no longer for pre-votes
        self._granted: set[str] = set()
        self._refused: set[str] = set()
        self._leader_heard_at = now
        self._sequence = 0
        self._sent_at: dict[int, float] = {}
        self._followed_at: dict[str, float] = {}
        self._out: list[tuple[str, ElectionFrame]] = []
        self._handed_out = (self.term, self.voted_for)
        self._shown: tuple[int, Role, str | None] = (self.term, self.role, self.leader)
        if self._peers:  # alone, the first tick makes it the leader
            self._wait(now)

    # -- what the caller asks --------------------------------------------------------------------------------

    @property
    def vote(self) -> tuple[int, str | None]:
        """The term and the vote, the newest there are to persist."""
        return self.term, self.voted_for

    @property
    def due(self) -> float:
        """The time, of the caller's clock, at which ``tick`` will act next."""
        return self._due - self._offset

    def accepts(self, term: int, leader: str | None = None) -> bool:
        """Whether an act of a leader of that term counts: it does unless a newer leader is known."""
        if term != self.term:
            return self.term < term and self._plausible(term)
        return leader is None or self.leader is None or leader <= self.leader

    def silent_s(self, peer: str, now: float) -> float:
        """Seconds since the peer was heard; since the start, if never. Raises ``KeyError`` for a stranger."""
        return self._hearing.silent_s(peer, self._seen(now))

    def unheard(self, now: float, after_s: float) -> frozenset[str]:
        """The fronts that the leader may retire: see ``hearing``. For anyone but the leader there are none.

        A front that falls silent is in it between ``after_s`` and one election time-out later.
        """
        t = self._seen(now)
        if self.role != "leader" or self._overslept(t):
            return frozenset()
        return self._hearing.unheard(t, after_s)

    # -- what happens to it ----------------------------------------------------------------------------------

    def tick(self, now: float) -> Ready:
        """Time has passed. To be called every few milliseconds, also before ``due``.

        Before it nothing is done, but a clock that was set back is noticed: that makes ``due`` earlier.
        """
        t = self._at(now)
        if t < self._due:
            return self._ready()
        if self._overslept(t):
            self._hearing.begin(t)
            if self.role != "leader" and self._peers:
                self._follow(self.term, None, t)  # what a leader sent meanwhile has not been read yet
                return self._ready()
        if self.role == "leader":
            if self._has_quorum(t):
                self._beat(t)
            else:
                self._follow(self.term, None, t)
        elif self.role == "candidate" and self._available and not self._standing:
            self._stand(t)
        else:
            self._ask(t)
        return self._ready()

    def receive(self, sender: str, frame: object, now: float) -> Ready:
        """A frame came from ``sender``, which the link has authenticated."""
        t = self._at(now)
        if sender not in self._peers:
            self.ignored["not-a-member"] += 1
        elif not isinstance(frame, PreVote | PreVoteReply | Vote | VoteReply | Heartbeat | HeartbeatReply):
            self.ignored["not-an-election-frame"] += 1
        else:
            self._hearing.heard(sender, t)
            if not self._plausible(frame.term):
                self.ignored["absurd-term"] += 1
            elif isinstance(frame, Heartbeat):
                self._receive_heartbeat(sender, frame, t)
            elif isinstance(frame, HeartbeatReply):
                self._receive_heartbeat_reply(sender, frame, t)
            elif isinstance(frame, PreVote | Vote):
                self._receive_request(sender, frame, t)
            else:
                self._receive_answer(sender, frame, t)
        return self._ready()

    def heard(self, peer: str, now: float) -> None:
        """Any other frame came from ``peer``: to be called for each, keep-alive too.

        Also when a row shows that it has come back with a new incarnation, by whatever way the row came: or
        the leader would retire it again at once.
        """
        self._hearing.heard(peer, self._at(now))

    def connected(self, peer: str, now: float) -> Ready:
        """A link to ``peer`` is established: it is told at once what it may have missed."""
        t = self._at(now)
        if peer in self._peers:
            self._hearing.heard(peer, t)
            if self.role == "leader":
                self._send(peer, Heartbeat(self.term, self._sequence))
            elif self.role == "candidate":
                self._send(peer, Vote(self.term) if self._standing else PreVote(self.term + 1))
        return self._ready()

    # -- requests and answers --------------------------------------------------------------------------------

    def _receive_request(self, sender: str, frame: PreVote | Vote, t: float) -> None:
        granted = False
        if isinstance(frame, PreVote):
            granted = frame.term > self.term and not self._in_lease(t)
            self._send(sender, PreVoteReply(self.term, frame.term, granted))
            return
        if frame.term > self.term and not self._in_lease(t):
            self._follow(frame.term, None, t)
        if frame.term == self.term:
            granted = self.voted_for == sender or (self.voted_for is None and self.leader is None)
        if granted:
            self.voted_for = sender
            if self.role == "follower":
                self._wait(t)
        self._send(sender, VoteReply(self.term, frame.term, granted))

    def _receive_answer(self, sender: str, frame: PreVoteReply | VoteReply, t: float) -> None:
        if self.role != "candidate":
            return  # too late to matter; a higher term in it must not disturb a leader found meanwhile
        if frame.term > self.term:
            self._follow(frame.term, None, t)
            return
        asked = self.term if self._standing else self.term + 1
        if isinstance(frame, VoteReply) is not self._standing or frame.asked != asked:
            return
        (self._granted if frame.granted else self._refused).add(sender)
        if self._refused and (self._available or len(self.members) - len(self._refused) < self.quorum):
            self._follow(self.term, None, t)
        elif self._standing:
            if len(self._granted) >= self.quorum:
                self._lead(t)
        elif len(self._granted) >= (len(self.members) if self._available else self.quorum):
            self._stand(t)

    def _receive_heartbeat(self, sender: str, frame: Heartbeat, t: float) -> None:
        if frame.term == self.term and self.leader not in (None, sender):
            # Of two leaders in one term (available, or fronts with different PEERS) the lower id is it.
            self.ignored["second-leader"] += 1
            if self.leader is not None and self.leader < sender:
                if self.role == "leader":
                    self._send(sender, Heartbeat(self.term, self._sequence))
                return
        if frame.term >= self.term:
            self._follow(frame.term, sender, t)
        hears = self._hearing.audible(t, self._timeout_s, besides=(sender,))
        self._send(sender, HeartbeatReply(self.term, frame.sequence, hears))

    def _receive_heartbeat_reply(self, sender: str, frame: HeartbeatReply, t: float) -> None:
        if frame.term > self.term:
            self._follow(frame.term, None, t)
        elif self.role == "leader" and frame.term == self.term:
            sent_at = self._sent_at.get(frame.sequence)
            if sent_at is not None:
                # As of when the heartbeat was sent: a reply that was long on its way is no news.
                self._followed_at[sender] = max(self._followed_at[sender], sent_at)
                self._hearing.told(sender, frame.hears, t)

    # -- roles -----------------------------------------------------------------------------------------------

    def _follow(self, term: int, leader: str | None, t: float) -> None:
        if term > self.term:
            self.term, self.voted_for = term, None
        self.role, self.leader = "follower", leader
        if leader is not None:
            self._leader_heard_at = t
        self._wait(t)

    def _wait(self, t: float) -> None:
        self._due = t + self._draw(self._timeout_s, 2 * self._timeout_s)

    def _ask(self, t: float) -> None:
        if not self._stands or self.term >= TERM_MAX:
            self._follow(self.term, None, t)
            return
        self.role, self.leader, self._standing = "candidate", None, False
        self._granted, self._refused = {self.node}, set()
        if not self._peers:
            self._stand(t)
            return
        self._wait(t)
        if self._available:
            self._due = t + self._heartbeat_s
        self._send_all(PreVote(self.term + 1))

    def _stand(self, t: float) -> None:
        self.term, self.voted_for, self._standing = self.term + 1, self.node, True
        self._granted, self._refused = {self.node}, set()
        if self.quorum == 1:
            self._lead(t)
            return
        self._wait(t)
        self._send_all(Vote(self.term))

    def _lead(self, t: float) -> None:
        self.role, self.leader = "leader", self.node
        self._followed_at = dict.fromkeys(self._peers, t)  # everybody gets one time-out to reply
        self._hearing.begin(t)
        self._beat(t)

    def _beat(self, t: float) -> None:
        self._sequence += 1
        self._sent_at[self._sequence] = t
        while t - self._sent_at[oldest := next(iter(self._sent_at))] > self._timeout_s:
            del self._sent_at[oldest]
        self._due = t + self._heartbeat_s
        self._send_all(Heartbeat(self.term, self._sequence))

    # -- small questions -------------------------------------------------------------------------------------

    def _has_quorum(self, t: float) -> bool:
        followers = sum(t - followed_at <= self._timeout_s for followed_at in self._followed_at.values())
        return 1 + followers >= self.quorum

    def _in_lease(self, t: float) -> bool:
        return self.leader == self.node or (
            self.leader is not None and t - self._leader_heard_at < self._timeout_s
        )

    def _plausible(self, term: int) -> bool:
        return 0 <= term <= min(TERM_MAX, self.term + TERM_JUMP_MAX)

    def _overslept(self, t: float) -> bool:
        return t > self._due + self._timeout_s

    def _at(self, now: float) -> float:
        """The steady time of the caller's ``now``."""
        steady = now + self._offset
        if steady < self._now:
            self._offset = self._now - now
        else:
            self._now = steady
        return self._now

    def _seen(self, now: float) -> float:
        return max(self._now, now + self._offset)

    # -- the way out -----------------------------------------------------------------------------------------

    def _send(self, peer: str, frame: ElectionFrame) -> None:
        self._out.append((peer, frame))

    def _send_all(self, frame: ElectionFrame) -> None:
        self._out.extend((peer, frame) for peer in self._peers)

    def _ready(self) -> Ready:
        persist = None if self.vote == self._handed_out else self.vote
        shown = (self.term, self.role, self.leader)
        ready = Ready(persist, tuple(self._out), shown != self._shown)
        self._handed_out, self._shown = self.vote, shown
        self._out.clear()
        return ready
