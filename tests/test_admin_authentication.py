"""``/admin`` over HTTP: who is let in, and what becomes of those who guess."""

from __future__ import annotations

from kollator.admin import ADDRESSES, BACKOFF_MAX_S, FREE_FAILURES
from tests.admins import METHODS, NOWHERE, OPERATOR, OTHER_TOKEN, PATHS, TOKEN, AdminTestCase, bearer
from tests.wires import read_answers, request


class AuthenticationTests(AdminTestCase):
    """Who is let in."""

    def refuse(self, headers: dict[str, str], peer: str = OPERATOR) -> None:
        """These headers do not open the door."""
        answer = self.front.ask("GET", "/admin/pins", headers, peer=peer)
        self.assert_error(answer, 401, "unauthorized")
        self.assertEqual(answer.header("WWW-Authenticate"), "Bearer")

    def test_wrong_tokens(self) -> None:
        """Whoever has not the whole token, as it is, gets in nowhere."""
        for number, value in enumerate(
            ("", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x",
             f"Bearer {TOKEN.upper()}", f"Bearer x{TOKEN}", f"Bearer {TOKEN} {OTHER_TOKEN}", "Bearer \xff", "Bearer *",
             "Token " + TOKEN, f"Bearer{TOKEN}", f"Bearer {TOKEN}, Bearer {TOKEN}", "x" * 8000)
        ):
            self.refuse({"Authorization": value}, f"198.51.100.{number}")

    def test_no_token(self) -> None:
        """Nothing is told without one, whatever the path and the method: not even what there is."""
        for number, path in enumerate((*PATHS, *NOWHERE)):
            for place, method in enumerate(METHODS):
                answer = self.front.ask(method, path, peer=f"198.51.{place}.{number}")
                self.assertEqual((answer.status, answer.header("Allow")), (401, None), (method, path))

    def test_twice(self) -> None:
        """Two values are ambiguous, which proxies have been exploited for."""
        head = request("GET", "/admin/pins", bearer(TOKEN))[:-2] + b"Authorization: Bearer x\r\n\r\n"
        (answer,) = read_answers(self.front.connect(OPERATOR).send(head).taken())
        self.assert_error(answer, 401, "unauthorized")

    def test_good_tokens(self) -> None:
        """Each line of the file is good, so that a token can be changed without a gap; the scheme has no case."""
        for value in (f"Bearer {TOKEN}", f"Bearer {OTHER_TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}"):
            answer = self.front.ask("GET", "/admin/pins", {"Authorization": value})
            self.assertEqual(self.answered(answer), {"pins": []}, value)
        self.assertEqual(self.front.audited, [])

    def test_free_failures(self) -> None:
        """A slip or two of an operator must not lock him out, loopback or not."""
        for peer in (OPERATOR, "127.0.0.1", "2001:db8::7"):
            for _ in range(FREE_FAILURES):
                self.refuse(bearer("wrong"), peer)
            self.answered(self.front.order("GET", "/admin/pins", peer=peer))

    def test_back_off(self) -> None:
        """Who guesses on is refused unread, longer and longer, even with the right token; nobody else is."""
        for peer in (OPERATOR, "127.0.0.1"):
            for _ in range(FREE_FAILURES + 1):
                self.refuse(bearer("wrong"), peer)
            for token in ("wrong", TOKEN):
                answer = self.front.order("GET", "/admin/pins", token=token, peer=peer)
                self.assert_error(answer, 429, "rate-limited")
                self.assertEqual(answer.header("Retry-After"), "1")
        self.answered(self.front.order("GET", "/admin/pins", peer="198.51.100.8"))
        self.front.advance(1.0)
        self.refuse(bearer("wrong"))
        self.assertEqual(self.front.order("GET", "/admin/pins").header("Retry-After"), "2")
        self.front.advance(2.0)
        self.answered(self.front.order("GET", "/admin/pins"))
        self.refuse(bearer("wrong"))  # forgiven: it begins anew
        self.assertEqual(self.front.order("GET", "/admin/pins").header("Retry-After"), "1")

    def test_longest_back_off(self) -> None:
        """However often: a minute at most, or an operator behind the same address could never get in again."""
        waits = []
        for _ in range(30):
            answer = self.front.order("GET", "/admin/pins", token="wrong")
            if answer.status == 429:
                waits.append(int(answer.header("Retry-After") or 0))
                self.front.advance(waits[-1])
        self.assertEqual((waits[:6], max(waits)), ([1, 2, 4, 8, 16, 32], BACKOFF_MAX_S))
        self.answered(self.front.order("GET", "/admin/pins"))

    def test_one_network(self) -> None:
        """The 2^64 addresses of one host are one."""
        for number in range(FREE_FAILURES + 1):
            self.refuse(bearer("wrong"), f"2001:db8::{number + 1}")
        self.assertEqual(self.front.order("GET", "/admin/pins", peer="2001:db8::ffff").status, 429)
        self.answered(self.front.order("GET", "/admin/pins", peer="2001:db8:0:1::1"))

    def test_audited(self) -> None:
        """Each failure that was looked at is in the audit log once, without the token; those in a back-off are not."""
        for _ in range(FREE_FAILURES + 20):
            self.front.order("POST", "/admin/front/drain", token="a guess")
        self.front.ask("GET", "/admin/pins", peer="198.51.100.8")
        failed = {"event": "auth-failed", "target": "admin", "address": OPERATOR, "reason": "token"}
        self.assertEqual(
            self.front.audited,
            [failed] * (FREE_FAILURES + 1) + [{**failed, "address": "198.51.100.8", "reason": "no-token"}],
        )
        self.assertFalse(self.front.drain.draining)

    def test_bounded(self) -> None:
        """An attack from everywhere fills no memory."""
        gate = self.front.admin._gate
        for number in range(3 * ADDRESSES):
            gate._free.take(str(number), 0.0)
            gate._backoff.failed(str(number), 0.0)
        self.assertLessEqual(max(len(gate._free), len(gate._backoff)), ADDRESSES)
