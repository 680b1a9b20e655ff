"""What waits to be written on a link: one write a turn, in chunks, and counted."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.outbox import CHUNK_BYTES, Outbox, TurnEnd


class Taking:
    """A transport that notes each write, and asks for a pause after one that fills it."""

    def __init__(self, fills_bytes: int) -> None:
        self.writes: list[bytes] = []
        self.producer: Any = None
        self._fills_bytes = fills_bytes

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        if len(data) >= self._fills_bytes:
            self.producer.pauseProducing()


class OutboxTests(SynchronousTestCase):
    """Messages for another front."""

    def make(self, fills_bytes: int) -> tuple[Outbox, Taking, Clock]:
        """An outbox on a clock by hand."""
        clock: Any = Clock()
        transport = Taking(fills_bytes)
        return Outbox(transport, clock, TurnEnd(clock)), transport, clock

    def test_one_write_a_turn(self) -> None:
        """Without it each message would cost a write, or be counted for ever as one that waits."""
        outbox, transport, clock = self.make(CHUNK_BYTES)
        for turn in range(3):
            for number in range(10):
                outbox.put(b"%d" % number)
            self.assertEqual((len(transport.writes), outbox.waiting_bytes), (turn, 10))
            clock.advance(0)
            self.assertEqual((transport.writes[turn:], outbox.waiting_bytes), ([b"0123456789"], 0))

    def test_chunks(self) -> None:
        """Without it a slow link would have megabytes in a buffer where they can be neither counted nor thrown away."""
        outbox, transport, clock = self.make(CHUNK_BYTES // 2)
        messages = [bytes([number]) * 20_000 for number in range(20)]
        for message in messages:
            outbox.put(message)
        for _ in range(20):
            clock.advance(0)
            self.assertEqual(outbox.waiting_bytes, 400_000 - sum(map(len, transport.writes)))
            transport.producer.resumeProducing()
        self.assertEqual(b"".join(transport.writes), b"".join(messages))
        self.assertLessEqual(max(map(len, transport.writes)), CHUNK_BYTES)
