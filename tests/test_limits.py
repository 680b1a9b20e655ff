"""Limits: what a bucket allows, and that no table grows with what comes from outside."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.limits import (
    AddressBackoff,
    Allowance,
    ConnectionCounts,
    FailureBackoff,
    TokenBuckets,
    retry_after_s,
)

NOW = 1_760_000_000.0


class AllowanceTests(SynchronousTestCase):
    """A bucket in one float."""

    def allowed(self, allowance: Allowance, full_at: float, now: float, tries: int) -> tuple[int, float]:
        """Return how many of some messages at one time are allowed, and what is kept after them."""
        count = 0
        for _ in range(tries):
            after = allowance.spend(full_at, now)
            if after >= 0:
                count += 1
                full_at = after
        return count, full_at

    def test_burst_and_rate(self) -> None:
        """Without it a connection could send more than its rate, or less than its burst."""
        for start in (0.0, 0.1, 1000.3, NOW):
            allowance = Allowance(100, 400)
            count, full_at = self.allowed(allowance, 0.0, start, 1000)
            self.assertEqual(count, 400)
            count, full_at = self.allowed(allowance, full_at, start + 0.5, 1000)
            self.assertEqual(count, 50)
            count, full_at = self.allowed(allowance, full_at, start + 60, 1000)
            self.assertEqual(count, 400)

    @given(
        st.integers(1, 50),
        st.integers(1, 50),
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), max_size=40),
    )
    @settings(max_examples=100, deadline=None)
    def test_same_as_a_bucket_of_tokens(self, rate: int, burst: int, events: list[tuple[int, int]]) -> None:
        """Without it the arithmetic on one number might allow what a bucket of tokens does not."""
        allowance, full_at = Allowance(rate, burst), 0.0
        # The bucket it must equal, in exact integers: time in milliseconds, tokens in thousandths.
        tokens, now_ms = burst * 1000, 0
        for passed_ms, cost in events:
            now_ms += passed_ms * 25
            tokens = min(burst * 1000, tokens + passed_ms * 25 * rate)
            price = min(cost, burst) * 1000
            after = allowance.spend(full_at, NOW + now_ms / 1000, cost)
            if abs(tokens - price) * 1e-3 / rate > 1e-5 or tokens == price:
                self.assertEqual(after >= 0, tokens >= price)
            if after >= 0:
                full_at, tokens = after, tokens - price

    def test_wait(self) -> None:
        """Without it ``Retry-After`` would send a client back too early, to be refused again."""
        allowance = Allowance(10, 5)
        _, full_at = self.allowed(allowance, 0.0, NOW, 5)
        self.assertAlmostEqual(allowance.wait_s(full_at, NOW), 0.1, places=5)
        self.assertAlmostEqual(allowance.wait_s(full_at, NOW, 5), 0.5, places=5)
        self.assertEqual(allowance.wait_s(full_at, NOW + 0.1), 0.0)
        self.assertGreater(allowance.spend(full_at, NOW + 0.1), 0)
        self.assertEqual(allowance.wait_s(0.0, NOW), 0.0)

    def test_cost_over_the_burst(self) -> None:
        """Without it something that costs more than a bucket holds would be refused for ever."""
        allowance = Allowance(10, 5)
        full_at = allowance.spend(0.0, NOW, 1000)
        self.assertGreater(full_at, 0)
        self.assertLess(allowance.spend(full_at, NOW + 0.4, 1000), 0)
        self.assertGreater(allowance.spend(full_at, NOW + 0.5, 1000), 0)

    def test_clock_set_back(self) -> None:
        """Without it a clock that is set back an hour would silence every connection for an hour."""
        allowance = Allowance(10, 5)
        _, full_at = self.allowed(allowance, 0.0, NOW, 5)
        self.assertAlmostEqual(allowance.wait_s(full_at, NOW - 3600), 0.1, places=5)
        self.assertLess(allowance.spend(full_at, NOW - 3600), 0)
        self.assertGreater(allowance.spend(NOW + 0.01, NOW - 3600, 0.0), 0)

    def test_arguments(self) -> None:
        """Without it a rate of zero would be a division by zero at the first message."""
        for rate, burst in [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (1, float("inf")), (float("inf"), 1)]:
            self.assertRaises(ValueError, Allowance, rate, burst)


class TokenBucketsTests(SynchronousTestCase):
    """Buckets in a bounded table."""

    def test_keys_are_apart(self) -> None:
        """Without it one address would use up the allowance of another."""
        buckets = TokenBuckets(1, 2, 10)
        self.assertEqual([buckets.take("a", NOW) for _ in range(2)], [0.0, 0.0])
        self.assertAlmostEqual(buckets.take("a", NOW), 1.0, places=5)
        self.assertEqual(buckets.take("b", NOW), 0.0)
        self.assertEqual(buckets.wait_s("b", NOW), 0.0)
        self.assertAlmostEqual(buckets.wait_s("a", NOW), 1.0, places=5)

    def test_refusal_costs_nothing(self) -> None:
        """Without it somebody who asks too often would be put off further with each question."""
        buckets = TokenBuckets(1, 1, 10)
        buckets.take("a", NOW)
        for _ in range(100):
            self.assertGreater(buckets.take("a", NOW + 0.5), 0)
        self.assertEqual(buckets.take("a", NOW + 1), 0.0)

    @given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 60), st.floats(0, 3)), max_size=200))
    @settings(max_examples=50, deadline=None)
    def test_bounded(self, max_entries: int, events: list[tuple[int, float]]) -> None:
        """Without it a flood from many addresses would fill the memory."""
        buckets, now = TokenBuckets(1, 2, max_entries), NOW
        for key, passed_s in events:
            now += passed_s
            self.assertGreaterEqual(buckets.take(str(key), now), 0.0)
            self.assertLessEqual(len(buckets), max_entries)

    def test_full_buckets_are_forgotten(self) -> None:
        """Without it the table would stay as large as the largest flood."""
        buckets = TokenBuckets(1, 2, 10_000)
        for number in range(5_000):
            buckets.take(str(number), NOW)
        self.assertEqual(len(buckets), 5_000)
        for number in range(5_001):
            buckets.take("bystander", NOW + 10 + number)
        self.assertLessEqual(len(buckets), 1)

    def test_the_stalest_goes(self) -> None:
        """Without it a flood of new addresses would give one that is being refused a full bucket again."""
        buckets = TokenBuckets(0.001, 1, 100)
        buckets.take("hammering", NOW)
        for number in range(1_000):
            buckets.take(str(number), NOW)
            self.assertGreater(buckets.take("hammering", NOW), 0)
        self.assertEqual(buckets.take("0", NOW), 0.0)
        self.assertGreater(buckets.take("999", NOW), 0)

    def test_arguments(self) -> None:
        """Without it a table of no size would forget every bucket at once."""
        self.assertRaises(ValueError, TokenBuckets, 1, 1, 0)
        self.assertRaises(ValueError, TokenBuckets, 0, 1, 1)


class FailureBackoffTests(SynchronousTestCase):
    """Who fails must wait."""

    def test_doubles(self) -> None:
        """Without it a key could be guessed at as fast as the network allows."""
        backoff = FailureBackoff(1, 60, 10)
        self.assertEqual(backoff.wait_s("a", NOW), 0.0)
        self.assertEqual([backoff.failed("a", NOW) for _ in range(8)], [1, 2, 4, 8, 16, 32, 60, 60])
        self.assertEqual(backoff.wait_s("a", NOW + 20), 40)
        self.assertEqual(backoff.wait_s("b", NOW), 0.0)
        for _ in range(2_000):
            self.assertEqual(backoff.failed("a", NOW), 60)

    def test_forgets(self) -> None:
        """Without it a worker with a repaired key would pay for its old failures."""
        backoff = FailureBackoff(1, 60, 10)
        for _ in range(3):
            backoff.failed("a", NOW)
        backoff.succeeded("a")
        backoff.succeeded("never failed")
        self.assertEqual(backoff.wait_s("a", NOW), 0.0)
        self.assertEqual(backoff.failed("a", NOW), 1)
        self.assertEqual(backoff.failed("a", NOW + 60.9), 2)
        self.assertEqual(backoff.failed("a", NOW + 200), 1)

    def test_clock_set_back(self) -> None:
        """Without it a clock that is set back would shut a worker out for as long."""
        backoff = FailureBackoff(1, 60, 10)
        backoff.failed("a", NOW)
        self.assertEqual(backoff.wait_s("a", NOW - 86_400), 60)

    def test_bounded(self) -> None:
        """Without it failures from many addresses would fill the memory."""
        backoff = FailureBackoff(1, 60, 100)
        for number in range(1_000):
            backoff.failed(str(number), NOW)
            self.assertLessEqual(len(backoff), 100)
        self.assertEqual(backoff.wait_s("999", NOW), 1)
        for number in range(100):
            backoff.failed("late", NOW + 1_000 + number)
        self.assertEqual(len(backoff), 1)

    def test_arguments(self) -> None:
        """Without it a wrong setting would mean no back-off at all."""
        for arguments in [(0, 1, 1), (2, 1, 1), (1, float("inf"), 1), (1, 1, 0)]:
            self.assertRaises(ValueError, FailureBackoff, *arguments)


class AddressBackoffTests(SynchronousTestCase):
    """Addresses whose workers gave a wrong proof."""

    def test_doubles_to_its_longest(self) -> None:
        """Without it the first slip would lock an operator's other workers out for a minute, or a guesser for none."""
        backoff = AddressBackoff(4.0, 10, lambda address: False)
        now = 100.0
        for wait_s in (1.0, 2.0, 4.0, 4.0):
            self.assertFalse(backoff.keeps_out("192.0.2.1", now))
            backoff.failed("192.0.2.1", now)
            self.assertTrue(backoff.keeps_out("192.0.2.1", now + wait_s - 0.01))
            self.assertFalse(backoff.keeps_out("192.0.2.2", now))
            now += wait_s
        backoff.failed("192.0.2.1", now)
        backoff.succeeded("192.0.2.1")
        self.assertFalse(backoff.keeps_out("192.0.2.1", now))
        backoff.failed("192.0.2.1", now)
        self.assertFalse(backoff.keeps_out("192.0.2.1", now + 1.0))

    def test_together(self) -> None:
        """Without it a hundred workers with an old key, all at once, would be kept out for the longest time."""
        backoff = AddressBackoff(60.0, 10, lambda address: False)
        for _ in range(100):
            backoff.failed("192.0.2.1", 5.0)
        self.assertEqual((backoff.keeps_out("192.0.2.1", 5.9), backoff.keeps_out("192.0.2.1", 6.0)), (True, False))

    def test_mentioned_once(self) -> None:
        """Without it who is kept out could fill the audit log."""
        backoff = AddressBackoff(60.0, 10, lambda address: False)
        self.assertFalse(backoff.mention("192.0.2.1"))
        for now in (0.0, 1.0):
            backoff.failed("192.0.2.1", now)
            self.assertEqual([backoff.mention("192.0.2.1") for _ in range(3)], [True, False, False])
            self.assertTrue(backoff.keeps_out("192.0.2.1", now + 0.5))

    def test_networks(self) -> None:
        """Without it a host would fail from another of its addresses each time."""
        backoff = AddressBackoff(60.0, 10, lambda address: False)
        backoff.failed("2001:db8::1", 0.0)
        self.assertTrue(backoff.keeps_out("2001:db8::2", 0.5))

    def test_spared_or_off(self) -> None:
        """Without it RATE_LIMIT_EXEMPT would not hold, and AUTH_BACKOFF=0 would not turn it off."""
        for backoff in (AddressBackoff(60.0, 10, lambda address: True), AddressBackoff(0.0, 10, lambda address: False)):
            backoff.failed("192.0.2.1", 0.0)
            self.assertEqual((backoff.keeps_out("192.0.2.1", 0.0), backoff.mention("192.0.2.1")), (False, False))
            backoff.succeeded("192.0.2.1")

    def test_less_than_the_first(self) -> None:
        """Without it an AUTH_BACKOFF under a second would stop the front at its start."""
        backoff = AddressBackoff(0.5, 10, lambda address: False)
        backoff.failed("192.0.2.1", 0.0)
        self.assertEqual((backoff.keeps_out("192.0.2.1", 0.4), backoff.keeps_out("192.0.2.1", 0.5)), (True, False))


class ConnectionCountsTests(SynchronousTestCase):
    """Connections in all and for each address."""

    def test_limits(self) -> None:
        """Without it one address could take every connection, or all of them together more than there are."""
        counts = ConnectionCounts(5, 2)
        self.assertEqual([counts.admit("a") for _ in range(3)], [None, None, "address"])
        self.assertEqual([counts.admit("b") for _ in range(3)], [None, None, "address"])
        self.assertEqual([counts.admit("c") for _ in range(2)], [None, "total"])
        self.assertEqual((counts.total, counts.of("a"), counts.of("z")), (5, 2, 0))
        counts.release("a")
        self.assertIsNone(counts.admit("a"))

    def test_exempt(self) -> None:
        """Without it an exempt range would have no limit at all, or the limit of one address."""
        counts = ConnectionCounts(3, 1)
        self.assertEqual([counts.admit(None) for _ in range(4)], [None, None, None, "total"])
        counts.release(None)
        self.assertEqual(counts.total, 2)

    def test_release_without_admit(self) -> None:
        """Without it a connection that is counted out twice would let one more in for ever."""
        counts = ConnectionCounts(3, 2)
        counts.admit("a")
        self.assertRaises(ValueError, counts.release, "b")
        self.assertRaises(ValueError, counts.release, None)
        counts.release("a")
        self.assertRaises(ValueError, counts.release, "a")
        self.assertEqual(counts.total, 0)

    def test_counts_agree(self) -> None:
        """Without it a long run of comings and goings would leave entries behind."""
        counts, source = ConnectionCounts(40, 5), random.Random(7)
        held: list[str | None] = []
        for _ in range(5_000):
            key = source.choice(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", None])
            if source.random() < 0.6:
                expected = None
                if len(held) == 40:
                    expected = "total"
                elif key is not None and held.count(key) == 5:
                    expected = "address"
                self.assertEqual(counts.admit(key), expected)
                if expected is None:
                    held.append(key)
            elif held:
                counts.release(held.pop(source.randrange(len(held))))
            self.assertEqual(counts.total, len(held))
        for key in held:
            counts.release(key)
        self.assertEqual((counts.total, counts._by_key), (0, {}))

    def test_arguments(self) -> None:
        """Without it a limit of zero would be a front that serves nobody and does not say so."""
        self.assertRaises(ValueError, ConnectionCounts, 0, 1)
        self.assertRaises(ValueError, ConnectionCounts, 1, 0)


class RetryAfterTests(SynchronousTestCase):
    """The header."""

    def test_whole_seconds(self) -> None:
        """Without it the header would have a fraction, which RFC 9110 does not allow, or be too short."""
        for wait_s, seconds in [(0.0, 1), (0.05, 1), (1.0, 1), (1.0000001, 1), (1.1, 2), (59.5, 60)]:
            self.assertEqual(retry_after_s(wait_s), seconds)
