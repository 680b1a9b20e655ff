"""Tickets: a client keeps its id on every front, and nobody else gets it."""

from __future__ import annotations

import string

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.tickets import CLOCK_SKEW_S, MAX_TICKET_CHARS, BadTicket, TicketBook, client_id

NOW = 1_760_000_000.5
URL_SAFE = string.ascii_letters + string.digits + "_-"
clients = st.text(URL_SAFE, min_size=1, max_size=64)
workers = st.text(URL_SAFE + ".:", max_size=64)


class TicketBookTests(SynchronousTestCase):
    """Issue and read."""

    def setUp(self) -> None:
        """Make a book with one key."""
        self.book = TicketBook([b"the cluster key"], 3600)

    def reason(self, ticket: str, now: float = NOW, book: TicketBook | None = None) -> str:
        """Return why a ticket is refused."""
        return str(self.assertRaises(BadTicket, (book or self.book).open, ticket, now).reason)

    def test_known_answer(self) -> None:
        """Without it two versions of the front might not read each other's tickets (made with openssl)."""
        client = client_id(bytes(range(12)))
        self.assertEqual(client, "AAECAwQFBgcICQoL")
        ticket, expires = self.book.issue(client, NOW, "eu.w:1")
        text, _, mac = ticket.rpartition(".")
        self.assertEqual(text, "v1.NUCvvK50.AAECAwQFBgcICQoL.eu.w:1.1760000000.1760003600")
        self.assertEqual(mac, "sN4Ju-h951TvyakPRJRfNE1eyCX5NdLJm3xJ-2g54BY")
        self.assertEqual(expires, 1_760_003_600)

    @given(clients, workers, st.floats(0, 4e9), st.integers(1, 10**8), st.data())
    @settings(max_examples=100, deadline=None)
    def test_round_trip(
        self, client: str, worker: str, now: float, ttl_s: int, data: st.DataObject
    ) -> None:
        """Without it some ids or time would make a ticket that its own front refuses, or reads otherwise."""
        book = TicketBook([b"key"], ttl_s)
        ticket, expires = book.issue(client, now, worker)
        self.assertEqual(expires, int(now) + ttl_s)
        self.assertLess(len(ticket), MAX_TICKET_CHARS)
        self.assertLessEqual(set(ticket), set(URL_SAFE + ".:"))
        later = data.draw(st.floats(int(now), expires, exclude_max=True))
        self.assertEqual(book.open(ticket, later), (client, worker))

    @given(st.from_regex(r"[A-Za-z0-9._:-]{0,64}", fullmatch=True))
    @settings(max_examples=100, deadline=None)
    def test_worker_round_trip(self, worker: str) -> None:
        """Without it a worker's name could be read as another field, or make a ticket too long."""
        ticket, _ = self.book.issue("c" * 64, NOW, worker)
        self.assertLess(len(ticket), MAX_TICKET_CHARS)
        self.assertEqual(self.book.open(ticket, NOW), ("c" * 64, worker))

    def test_no_worker_id(self) -> None:
        """Without it a name with odd characters would make a ticket that no front reads."""
        for odd in ("a b", "a" * 65, "\u00e9", "a\n"):
            self.assertRaises(ValueError, self.book.issue, "c", NOW, odd)

    def test_times(self) -> None:
        """Without it a ticket would be good for ever, or refused by a front whose clock is a bit behind."""
        ticket, expires = self.book.issue("c", NOW)
        issued = int(NOW)
        self.assertEqual(self.book.open(ticket, expires - 0.001)[0], "c")
        self.assertEqual(self.reason(ticket, expires), "expired")
        self.assertEqual(self.book.open(ticket, issued - CLOCK_SKEW_S)[0], "c")
        self.assertEqual(self.reason(ticket, issued - CLOCK_SKEW_S - 1), "from-the-future")

    def test_rotation(self) -> None:
        """Without it a change of the cluster key would cost every client its id."""
        old, both = TicketBook([b"old"], 60), TicketBook([b"new", b"old"], 60)
        new = TicketBook([b"new"], 60)
        from_old, _ = old.issue("c", NOW)
        from_both, _ = both.issue("c", NOW)
        self.assertEqual(both.open(from_old, NOW)[0], "c")
        self.assertEqual(new.open(from_both, NOW)[0], "c")
        self.assertEqual(self.reason(from_old, NOW, new), "unknown-key")

    def test_forged(self) -> None:
        """Without it a client could write itself another id or more time."""
        ticket, _ = self.book.issue("client", NOW, "w1")
        parts = ticket.split(".")
        for position, forged in [
            (2, "other"),
            (3, "w2"),
            (3, ""),
            (3, "w1.w1"),
            (4, "1760000001"),
            (5, "1760009999"),
            (5, "01760003600"),
            (6, "A" * 43),
        ]:
            changed = [*parts]
            changed[position] = forged
            self.assertEqual(self.reason(".".join(changed)), "forged")
        stolen, _ = TicketBook([b"another key"], 60).issue("client", NOW, "w1")
        mixed = ".".join([parts[0], parts[1], *stolen.split(".")[2:]])
        self.assertEqual(self.reason(mixed), "forged")

    def test_one_text_for_a_mac(self) -> None:
        """Without it the unused bits of the last character would give one ticket several texts."""
        ticket, _ = self.book.issue("client", NOW)
        accepted = []
        for last in URL_SAFE:
            try:
                self.book.open(ticket[:-1] + last, NOW)
                accepted.append(last)
            except BadTicket:
                pass
        self.assertEqual(accepted, [ticket[-1]])

    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_mutated(self, data: st.DataObject) -> None:
        """Without it some change to a ticket would pass, or raise something else than ``BadTicket``."""
        ticket, _ = self.book.issue("client", NOW)
        position = data.draw(st.integers(0, len(ticket)))
        removed = data.draw(st.integers(0, 3))
        character = st.one_of(st.sampled_from(URL_SAFE + ".=\n "), st.characters())
        inserted = data.draw(st.text(character, max_size=3))
        mutated = ticket[:position] + inserted + ticket[position + removed :]
        if mutated != ticket:
            self.reason(mutated)

    @given(st.text(max_size=400))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str) -> None:
        """Without it a ticket that is none would raise something else, which the protocol does not answer."""
        self.assertEqual(self.reason(text), "malformed")

    def test_malformed(self) -> None:
        """Without it a ticket of another version, length or line would reach the arithmetic."""
        ticket, _ = self.book.issue("client", NOW)
        arabic = ticket.replace("1", "\u0661")
        for text in ("", ".", "v2" + ticket[2:], ticket + "\n", ticket + "=", " " + ticket, arabic, "x" * 99):
            self.assertEqual(self.reason(text), "malformed")

    def test_secrecy(self) -> None:
        """Without it a logged book would show what tickets are signed with."""
        self.assertNotIn("cluster", repr(self.book))
        self.assertEqual(set(map(repr, self.book._secrets.values())), {"<key>"})
        self.assertNotIn("cluster", self.book.issue("c", NOW)[0])

    def test_arguments(self) -> None:
        """Without it a wrong setting or id would make tickets that nobody can use."""
        self.assertRaises(ValueError, TicketBook, [], 60)
        for ttl_s in (0, 0.5, -1, float("nan"), float("inf")):
            self.assertRaises(ValueError, TicketBook, [b"k"], ttl_s)
        for client in ("", "a.b", "a b", "x" * 65, "a\n", "\u00e9"):
            self.assertRaises(ValueError, self.book.issue, client, NOW)
        for worker in ("a b", "x" * 65, "w1\n", "\u00e9"):
            self.assertRaises(ValueError, self.book.issue, "c", NOW, worker)


class ClientIdTests(SynchronousTestCase):
    """New ids."""

    @given(st.binary(min_size=12, max_size=12), st.binary(min_size=12, max_size=12))
    @settings(max_examples=50, deadline=None)
    def test_form(self, one: bytes, other: bytes) -> None:
        """Without it an id might not fit into a URL, a ticket or the contract's pattern, or not be unique."""
        self.assertEqual(len(client_id(one)), 16)
        self.assertLessEqual(set(client_id(one)), set(URL_SAFE))
        self.assertEqual(client_id(one) == client_id(other), one == other)

    def test_length(self) -> None:
        """Without it too few random bytes would pass for an id that cannot be guessed."""
        for size in (0, 11, 13):
            self.assertRaises(ValueError, client_id, bytes(size))
