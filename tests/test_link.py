"""One link between two fronts, over a network in memory: the same tests over TCP and over WebSocket."""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from kollator.cluster.accepting import HALF_OPEN_MAX, LINES_AT_ONCE
from kollator.cluster.handshake import Handshake
from kollator.cluster.link import HARD_BYTES, KEEPALIVE_S, REASONS, SOFT_BYTES, STALLED_S
from kollator.cluster.outbox import CHUNK_BYTES, Outbox, TurnEnd
from kollator.cluster.wire import (
    FRAME_BYTES,
    NONCE_BYTES,
    OPENING_BYTES,
    PROTOCOL,
    PROTOCOL_VERSION,
    Ack,
    Arrived,
    Changes,
    Frame,
    Greeting,
    Heartbeat,
    HeartbeatReply,
    Kept,
    Ping,
    Pong,
    PreVote,
    PreVoteReply,
    Proof,
    Pull,
    Refusal,
    Summary,
    ToWorker,
    Vote,
    encode,
)
from kollator.state.changes import Cursor
from tests.link_net import KEY, Front, Mixin, NetCase, any_clock, framed

NOISE = random.Random(3)


def relayed(size_bytes: int = 60_000) -> ToWorker:
    """A frame that can be had again."""
    return ToWorker("w1", "c1", b"x" * size_bytes)


class Frames(Mixin):
    """What travels. A mixin for ``NetCase``."""

    def test_two_fronts_link(self) -> None:
        """Without it there is no cluster."""
        one, other = self.linked()
        self.assertEqual((one.ups(), other.ups()), (["up b"], ["up a"]))
        self.assertTrue(self.net.same_connection(one, other))
        self.assertEqual((one.links.up(), one.links.is_up("b"), one.links.is_up("c")), ({"b"}, True, False))
        self.assertEqual(one.counts | other.counts, {})
        self.assertEqual(len(self.lines()), 2)
        self.stop()
        self.assertEqual((one.ups()[-1], other.ups()[-1]), ("down b", "down a"))

    def test_one_direction_is_enough(self) -> None:
        """Without it a front behind a NAT, that nobody can dial, would have no links."""
        for unreachable in ("a", "b"):
            net = self.net = self.new_net()
            net.unreachable.add(unreachable)
            net.front("a", "b").start()
            net.front("b", "a").start()
            net.run(1)
            self.assertEqual(net.pairs(), {("a", "b"), ("b", "a")})
            self.stop()

    def test_frames_arrive_whole_and_in_order(self) -> None:
        """Without it an acknowledgement could overtake what it acknowledges."""
        one, other = self.linked()
        there: list[Frame] = [Pull(Cursor(b"", number)) for number in range(100)]
        there.append(relayed(65_000))
        back: list[Frame] = [Arrived("client", f"c{number}", number) for number in range(100)]
        for frame in there:
            self.assertTrue(one.links.send("b", frame))
        for frame in back:
            self.assertTrue(other.links.send("a", frame))
        self.net.settle()
        self.assertEqual((other.frames(), one.frames()), (there, back))
        self.assertFalse(one.links.send("nobody", back[0]))
        self.stop()

    def test_the_largest_frame_passes(self) -> None:
        """Without it one large batch could never be synchronised; one byte more is its sender's mistake."""
        one, other = self.linked()
        small = len(encode(Changes([], Cursor(), Cursor(), False, [])))
        sites = [b"s" * 16] * ((FRAME_BYTES - small - 64) // 18)
        huge = Changes([], Cursor(), Cursor(), False, sites[:16_384])
        self.assertTrue(one.links.send("b", huge))
        with self.assertRaises(ValueError):
            one.links.send("b", ToWorker("w", "c", b"x" * FRAME_BYTES))
        self.net.settle()
        self.assertEqual(other.frames(), [huge])
        self.stop()

    def test_a_quiet_link_lives(self) -> None:
        """Without it an idle cluster would take itself apart; pings carry what the summary says."""
        one, other = self.linked()
        one.links._summary = lambda peer: Summary(digest=f"for {peer}")
        self.net.run(30)
        self.assertEqual((one.ups(), other.ups()), (["up b"], ["up a"]))
        pings = [event[2] for event in other.events if isinstance(event[2:] and event[2], Ping)]
        self.assertEqual({ping.summary for ping in pings}, {Summary(digest="for b")})
        self.assertLess(len(pings), 31)
        self.stop()

    def test_pings_are_answered(self) -> None:
        """Without it a peer that measures, or waits for the answer, would think this front dead."""
        self.net.unreachable.add("b")
        front = self.net.front("a", "b").start()
        front.links._summary = lambda peer: Summary(digest=peer)
        peer = self.net.impostor(front, "b")
        peer.say(Ping(77), Ping(78))
        self.net.settle()
        self.assertEqual(peer.heard(), [Pong(77, Summary(digest="b")), Pong(78, Summary(digest="b"))])
        self.stop()

    def test_a_busy_link_does_not_ping(self) -> None:
        """Without it keep-alive would add to the traffic that makes it needless."""
        one, other = self.linked()
        for _ in range(40):
            one.links.send("b", Heartbeat(1, 2, Summary()))
            other.links.send("a", HeartbeatReply(1, 2, [], Summary()))
            self.net.run(0.1)
        pings = [event for event in one.events + other.events if isinstance(event[-1], Ping | Pong)]
        self.assertEqual(pings, [])
        self.stop()

    def test_summaries_are_sent_in_any_case(self) -> None:
        """Without it a front that nobody lets lead, and that asks all the time, would never find out what it lacks."""
        one, other = self.linked()
        one.links._summary = lambda peer: Summary(digest=f"for {peer}")
        for _ in range(40):
            one.links.send("b", PreVoteReply(1, 1, False))
            other.links.send("a", PreVote(1))
            self.net.run(0.1)
        told = [event[2] for event in other.events if isinstance(event[2:] and event[2], Ping | Pong)]
        self.assertGreaterEqual(len(told), 3)
        self.assertEqual({frame.summary for frame in told}, {Summary(digest="for b")})
        self.stop()


class Ends(Mixin):
    """How a link ends. A mixin for ``NetCase``."""

    def test_a_silent_peer_is_cut_and_dialled_again(self) -> None:
        """Without it a front whose cable was pulled would stay in the cluster until TCP gives up."""
        one, other = self.linked()
        one.transport("b").black_hole = other.transport("a").black_hole = True
        self.net.run(KEEPALIVE_S - 0.3)
        self.assertEqual(self.net.pairs(), {("a", "b"), ("b", "a")})
        self.net.run(2)
        self.assertEqual((one.counts["silent"], other.counts["silent"]), (1, 1))
        self.assertEqual(one.ups(), ["up b", "down b", "up b"])
        self.stop()

    def test_one_way_loss_is_noticed_by_both(self) -> None:
        """Without it one front would send for ever to a peer that hears nothing."""
        one, other = self.linked()
        one.transport("b").black_hole = True
        self.net.run(KEEPALIVE_S + 1)
        self.assertEqual(other.ups()[:2], ["up a", "down a"])
        self.assertEqual(one.ups()[:2], ["up b", "down b"])
        self.stop()

    def test_nobody_is_blamed_for_a_nap(self) -> None:
        """Without it a front that was stopped for a while, or whose clock leapt, would cut all its links."""
        one, other = self.linked()
        for leap_s in (60.0, 5.0, 3600.0):
            self.net.clock.rightNow += leap_s
            self.net.run(1)
        self.assertEqual((one.ups(), other.ups()), (["up b"], ["up a"]))
        self.stop()

    def test_a_peer_that_does_not_read_is_cut(self) -> None:
        """Without it what waits for it would fill the memory; it is told why, and linked again."""
        one, other = self.linked()
        way = one.transport("b")
        way.other.deaf = True
        taken = 0
        while one.links.send("b", relayed()):
            taken += 1
        self.assertTrue(one.links.is_busy("b"))
        self.assertLess(abs(taken * 60_000 - SOFT_BYTES), 300_000)
        self.assertTrue(one.links.send("b", Ack(Cursor())), "a busy link takes what keeps the cluster together")
        big = Kept("c1", payloads=[b"x" * 60_000] * 3)
        sent = 0
        while one.links.send("b", big):
            sent += 1
        self.assertEqual(one.counts, {"too-slow": 1})
        self.assertLess(way.waiting_bytes, 300_000, "what could not be sent is let go")
        self.assertLess(abs(sent * len(encode(big)) - (HARD_BYTES - SOFT_BYTES)), 400_000)
        way.other.deaf = False
        self.net.run(2)
        self.assertEqual(other.counts, {"refused-by-peer": 1})
        self.assertEqual((one.ups(), other.ups()), (["up b", "down b", "up b"], ["up a", "down a", "up a"]))
        self.stop()

    def test_a_peer_that_stops_reading_is_cut_in_time(self) -> None:
        """Without it a peer that goes on sending, and reads nothing, would be linked for ever in name only."""
        self.net.unreachable.add("b")
        front = self.net.front("a", "b").start()
        peer = self.net.impostor(front, "b")
        front.counts.clear()
        front.transport("b").other.deaf = True
        while front.links.send("b", relayed()):
            pass
        for _ in range(round(STALLED_S) - 1):
            peer.say(Vote(1))
            self.net.run(1)
        self.assertEqual(front.ups(), ["up b"])
        for _ in range(3):
            if not peer.is_closed:
                peer.say(Vote(1))
            self.net.run(1)
        self.assertEqual((front.ups(), front.counts["too-slow"]), (["up b", "down b"], 1))
        self.stop()

    def test_a_busy_link_recovers(self) -> None:
        """Without it one burst would refuse signaling for good."""
        one, other = self.linked()
        one.transport("b").other.deaf = True
        taken = 0
        while one.links.send("b", relayed()):
            taken += 1
        one.transport("b").other.deaf = False
        self.net.settle()
        self.assertFalse(one.links.is_busy("b"))
        self.assertTrue(one.links.send("b", relayed()))
        self.net.settle()
        self.assertEqual(len(other.frames()), taken + 1)
        self.assertEqual((one.ups(), one.counts), (["up b"], {}))
        self.stop()

    def test_cut(self) -> None:
        """Without it a front whose database was put back could not have its links made anew."""
        one, other = self.linked()
        one.links.cut("b")
        one.links.cut("nobody")
        self.net.run(1)
        self.assertEqual((one.counts.pop("cut"), other.counts.pop("lost")), (1, 1))
        other.links.cut("a", "too-slow")
        self.net.run(1)
        self.assertEqual((one.counts.pop("refused-by-peer"), other.counts.pop("too-slow")), (1, 1))
        one.links.cut_all()
        self.net.run(1)
        self.assertEqual((one.counts.pop("cut"), other.counts.pop("lost")), (1, 1))
        self.assertEqual((self.net.pairs(), one.ups()[-1]), ({("a", "b"), ("b", "a")}, "up b"))
        self.stop()

    def test_stop_sends_what_waits_and_says_so(self) -> None:
        """Without it the last messages of a front that is drained would be lost."""
        one, other = self.linked()
        one.links.send("b", Vote(7))
        end = one.links.stopService()
        self.net.run(0.2)
        self.successResultOf(end)
        self.assertEqual(other.frames(), [Vote(7)])
        self.assertEqual((one.counts["stopping"], other.counts["stopping"]), (1, 1))
        self.stop()

    def test_stop_does_not_wait_for_a_peer_that_does_not_answer(self) -> None:
        """Without it one hanging peer would hold up the stop of a front."""
        one, _ = self.linked()
        one.transport("b").other.deaf = True
        one.links.send("b", relayed())
        end = one.links.stopService()
        self.net.run(0.5)
        self.assertNoResult(end)
        self.net.run(1)
        self.successResultOf(end)
        self.stop()

    def test_a_frame_that_cannot_be_handled_is_this_fronts_mistake(self) -> None:
        """Without it a defect here would be an unhandled error, or end a good link."""
        one, other = self.linked()

        def fail(peer: str, frame: object) -> None:
            raise RuntimeError("a defect")

        other.on_frame = fail
        one.links.send("b", Vote(1))
        self.net.run(0.2)
        self.assertEqual(other.counts, {"internal": 1})
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(other.ups(), ["up a"])
        self.stop()


class Strangers(Mixin):
    """Who is let in, and who is not. A mixin for ``NetCase``."""

    def test_a_wrong_key(self) -> None:
        """Without it anybody could be a front; both operators are to see why there is no link, and not every second."""
        one = self.net.front("a", "b", key=b"another key").start()
        other = self.net.front("b", "a").start()
        self.net.unreachable.add("a")
        self.net.run(20)
        self.assertEqual(self.net.pairs(), set())
        self.assertGreater(other.counts["wrong-key"], 3)
        self.assertEqual(other.counts["wrong-key"], one.counts["refused-by-peer"])
        lines = self.lines()
        self.assertEqual(sum("b cannot be linked at memory:b: the peer says wrong-key" in line for line in lines), 1)
        self.assertLessEqual(sum("cannot be linked" in line for line in lines), 3)
        self.assertLessEqual(len(lines), LINES_AT_ONCE + 8)
        self.stop()

    def test_fronts_that_do_not_know_each_other(self) -> None:
        """Without it a front of another cluster with the same key would be linked."""
        one = self.net.front("a", "b").start()
        other = self.net.front("b", "c").start()
        self.net.run(1)
        self.assertIn("unknown-node", other.counts)
        self.assertIn("refused-by-peer", one.counts)
        self.assertEqual(self.net.pairs(), set())
        self.stop()

    def refused(self, front: Front, reason: str, *more: str) -> None:
        """One line, one counter, the stranger's connection closed."""
        self.net.settle()
        self.assertEqual(front.counts, {reason: 1})
        lines = [line for line in self.lines() if "a link from" in line]
        self.assertEqual(len(lines), 1)
        for text in (reason, *more):
            self.assertIn(text, lines[0])

    def test_strangers_are_refused(self) -> None:
        """Without it what a stranger sends first would be read as something else than an opening."""
        hello = Greeting(PROTOCOL, PROTOCOL_VERSION, "b", b"n" * NONCE_BYTES)
        cases: tuple[tuple[str, bytes], ...] = (
            ("bad-frame", framed(NOISE.randbytes(200))),
            ("bad-frame", framed(b"")),
            ("bad-frame", NOISE.randbytes(4000)),
            ("bad-frame", (OPENING_BYTES + 1).to_bytes(4)),
            ("bad-frame", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("bad-frame", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
            ("bad-frame", framed(encode(Heartbeat(1, 1)))),
            ("bad-frame", framed(encode(ToWorker("w", "c", b"x")))),
            ("out-of-order", framed(encode(Proof(b"m" * 32)))),
            ("wrong-version", framed(encode(Greeting(PROTOCOL, 2, "b", b"n" * NONCE_BYTES)))),
            ("wrong-version", framed(encode(Greeting("http", 1, "b", b"n" * NONCE_BYTES)))),
            ("own-id", framed(encode(Greeting(PROTOCOL, 1, "a", b"n" * NONCE_BYTES)))),
            ("unknown-node", framed(encode(Greeting(PROTOCOL, 1, "x", b"n" * NONCE_BYTES)))),
            ("out-of-order", framed(encode(hello)) * 2),
            ("wrong-key", framed(encode(hello)) + framed(encode(Proof(b"m" * 32)))),
            ("bad-frame", framed(encode(hello)) + framed(encode(Ping(1)))),
        )
        for reason, data in cases:
            with self.subTest(reason=reason, data=data[:40]):
                net = self.net = self.new_net()
                net.unreachable.add("b")
                self.logged.clear()
                front = net.front("a", "b", "c").start()
                third = net.front("c", "a").start()
                net.run(0.5)
                front.counts.clear()
                self.logged.clear()
                stranger = net.stranger(front)
                stranger.transport.write(data)
                self.refused(front, reason, "10.0.9.9")
                net.run(0.3)
                self.assertTrue(stranger.is_closed)
                self.assertEqual((front.ups(), third.ups()), (["up c"], ["up a"]), "nobody else notices")
                self.stop()

    def test_a_replayed_handshake(self) -> None:
        """Without it who has listened to a handshake could be a front without a key."""
        one, other = self.linked()
        writes: list[bytes] = []
        if not self.websocket:
            writes = list(one.transport("b").writes)
        else:  # the same frames, from an equal handshake
            opening = Handshake("a", [KEY], {"a", "b"}, b"n" * NONCE_BYTES, "b")
            theirs = Handshake("b", [KEY], {"a", "b"}, b"m" * NONCE_BYTES)
            greeting = opening.start()[0]
            proof = opening.receive(encode(theirs.receive(encode(greeting))[0]))[0]
            writes = [framed(encode(greeting)), framed(encode(proof))]
        other.counts.clear()
        self.logged.clear()
        stranger = self.net.stranger(other)
        stranger.transport.write(b"".join(writes))
        self.refused(other, "wrong-key")
        self.assertEqual((one.ups(), other.ups()), (["up b"], ["up a"]))
        self.assertEqual([type(frame) for frame in stranger.heard()], [Greeting, Refusal])
        self.stop()

    def test_half_a_handshake_is_cut(self) -> None:
        """Without it who connects and says nothing, or little by little, would hold a place for ever."""
        front = self.net.front("a", "b").start()
        self.net.unreachable.add("b")
        silent, slow = self.net.stranger(front), self.net.stranger(front)
        for byte in b"\x00\x00\x00\x50" + b"x" * 20:
            if not slow.is_closed:
                slow.transport.write(bytes([byte]))
            self.net.run(0.3)
        self.assertEqual((silent.is_closed, slow.is_closed), (True, True))
        self.assertEqual(front.counts["handshake-timeout"], 2)
        self.stop()

    def test_a_port_scan_is_not_worth_a_line(self) -> None:
        """Without it a load balancer's checks would fill the log, and shut the peers out."""
        front = self.net.front("a", "b").start()
        self.net.unreachable.add("b")
        for _ in range(20):
            stranger = self.net.stranger(front)
            stranger.transport.write(b"\0\0")
            stranger.transport.loseConnection()
            self.net.settle()
        self.assertEqual(front.counts["closed-early"], 20)
        self.assertEqual([line for line in self.lines() if "a link from" in line], [])
        self.assertNotIn("backed-off", front.counts)
        self.stop()

    def test_the_log_is_not_filled_from_outside(self) -> None:
        """Without it a hostile dialler could fill a disk with lines, from as many addresses as it likes."""
        front = self.net.front("a", "b").start()
        self.net.unreachable.add("b")
        for number in range(100):
            self.net.stranger(front, f"10.1.{number // 200}.{number % 200}").transport.write(b"\xff" * 8)
            self.net.settle()
        self.assertEqual(front.counts["bad-frame"], 100)
        self.assertEqual(len([line for line in self.lines() if "a link from" in line]), LINES_AT_ONCE)
        self.net.run(20)
        self.net.stranger(front).transport.write(b"\xff" * 8)
        self.net.settle()
        self.assertIn("90 that were not mentioned", self.lines()[-1])
        self.stop()

    def test_an_address_that_failed_is_not_listened_to_for_a_moment(self) -> None:
        """Without it keys could be guessed as fast as the network carries them; others are let in meanwhile."""
        front = self.net.front("a", "b").start()
        self.net.unreachable.add("b")
        for _ in range(10):
            self.net.noise(front, b"\xff" * 8)
        self.assertEqual((front.counts["bad-frame"], front.counts["backed-off"]), (1, 9))
        self.net.impostor(front, "b", "10.0.7.7")
        self.assertEqual(front.ups(), ["up b"])
        self.net.run(3)
        self.net.impostor(front, "b")
        self.assertEqual(front.counts["duplicate-link"], 1)
        front.links.acceptor._exempt = lambda address: address == "10.0.9.9"
        for _ in range(10):
            self.net.noise(front, b"\xff" * 8)
        self.assertEqual(front.counts["bad-frame"], 11)
        self.stop()

    def test_links_that_are_being_opened_are_bounded(self) -> None:
        """Without it memory and descriptors could be had without a key; a peer gets in all the same."""
        front = self.net.front("a", "b").start()
        self.net.unreachable.add("b")
        strangers = [self.net.stranger(front, f"10.1.0.{number}") for number in range(HALF_OPEN_MAX + 10)]
        self.assertEqual(sum(not stranger.is_closed for stranger in strangers), HALF_OPEN_MAX)
        self.net.impostor(front, "b")
        self.assertEqual(front.ups(), ["up b"])
        self.assertEqual(front.counts["half-open"], 11)
        self.stop()


class BadFrames(Mixin):
    """What a peer sends that is no frame. A mixin for ``NetCase``."""

    def test_bad_frames_of_a_peer(self) -> None:
        """Without it one front with a defect, or in the wrong hands, could disturb the others."""
        cases: tuple[tuple[str, bytes], ...] = (
            ("malformed", framed(NOISE.randbytes(500))),
            ("malformed", framed(b"")),
            ("malformed", framed(encode(Vote(1))[:-1])),
            ("too-large", (FRAME_BYTES + 1).to_bytes(4) + b"x" * 10_000),
            ("too-large", b"\xff" * 100_000),
            ("unknown-type", framed(encode(Greeting(PROTOCOL, 1, "b", b"n" * NONCE_BYTES)))),
            ("unknown-type", framed(encode(Proof(b"m" * 32)))),
            ("unknown-type", framed(b"\x92\xa5later\x01")),
        )
        for reason, data in cases:
            with self.subTest(reason=reason, data=data[:40]):
                net = self.net = self.new_net()
                net.unreachable.add("b")
                front, third = net.front("a", "b", "c").start(), net.front("c", "a").start()
                net.run(0.5)
                peer = net.impostor(front, "b")
                front.counts.clear()
                self.logged.clear()
                peer.transport.write(framed(encode(Vote(1))) + data + framed(encode(Vote(2))))
                net.settle()
                self.assertEqual(front.counts, {reason: 1})
                self.assertEqual(len(self.lines()), 1)
                self.assertIn(reason, self.lines()[0])
                self.assertEqual(front.frames(), [Vote(1)], "nothing after it is read")
                self.assertEqual(peer.heard(), [Refusal("bad-frame")])
                net.run(0.3)
                self.assertTrue(peer.is_closed)
                self.assertEqual((front.ups(), third.ups()), (["up c", "up b", "down b"], ["up a"]))
                self.stop()

    def test_an_address_whose_peer_sent_no_frame_is_backed_off(self) -> None:
        """Without it a defect in one front would make and end links as fast as the network allows."""
        self.net.unreachable.add("b")
        front = self.net.front("a", "b").start()
        self.net.impostor(front, "b").transport.write(framed(b""))
        self.net.settle()
        self.net.noise(front, b"\xff" * 8)
        self.assertEqual((front.counts["malformed"], front.counts["backed-off"]), (1, 1))
        self.stop()

    def test_random_bytes_of_a_peer(self) -> None:
        """Without it some bytes could raise what nobody handles; every way to cut the stream is tried too."""
        chance = random.Random(5)
        good = [encode(Vote(3)), encode(Ping(1)), encode(Heartbeat(1, 2)), encode(relayed(100))]
        for round_number in range(25):
            net = self.net = self.new_net(round_number)
            net.unreachable.add("b")
            front = net.front("a", "b").start()
            peer = net.impostor(front, "b")
            for _ in range(30):
                payload = bytearray(chance.choice(good))
                for _ in range(chance.randrange(3)):
                    payload[chance.randrange(len(payload))] = chance.randrange(256)
                data = framed(bytes(payload)) if chance.random() < 0.9 else chance.randbytes(50)
                while data and not peer.is_closed:
                    cut = chance.randrange(1, len(data) + 1)
                    peer.transport.write(data[:cut])
                    data = data[cut:]
                net.settle()
            self.assertLessEqual(set(front.counts), set(REASONS))
            self.stop()


class TcpTests(Frames, Ends, Strangers, BadFrames, NetCase):
    """A link over a stream."""

    def test_frames_of_one_turn_leave_in_one_write(self) -> None:
        """Without it a hundred small frames would be a hundred system calls."""
        one, other = self.linked()
        way = one.transport("b")
        before = len(way.writes)
        for number in range(100):
            one.links.send("b", Vote(number))
        self.assertEqual(len(way.writes), before, "not yet")
        self.net.clock.advance(0)
        self.assertEqual(len(way.writes), before + 1)
        one.links.send("b", relayed(65_000))
        one.links.send("b", relayed(65_000))
        self.assertGreater(len(way.writes), before + 1, "large ones do not wait")
        self.net.settle()
        self.assertEqual(len(other.frames()), 102)
        self.stop()


class OutboxTests(SynchronousTestCase):
    """What waits to be written."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turn_end = TurnEnd(any_clock(self.clock))
        self.transport = StringTransport()
        self.outbox = Outbox(self.transport, any_clock(self.clock), self.turn_end)

    def test_everything_of_a_turn_is_done_by_one_call(self) -> None:
        """Without it every frame would put a timer into the reactor's heap."""
        for byte in b"abc":
            self.outbox.put(bytes([byte]))
        called: list[int] = []
        self.turn_end.call(lambda: called.append(1))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.assertEqual((self.transport.value(), called), (b"abc", [1]))
        self.outbox.put(b"d")
        self.turn_end.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_fails_does_not_hold_up_the_others(self) -> None:
        """Without it a defect on one link would leave the frames of all others unsent."""
        self.turn_end.call(lambda: 1 // 0)
        self.outbox.put(b"x")
        self.clock.advance(0)
        self.assertEqual(self.transport.value(), b"x")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_paused_transport_is_given_nothing(self) -> None:
        """Without it what a slow peer has not read could not be counted, nor thrown away."""
        self.outbox.pauseProducing()
        self.outbox.put(b"x" * (3 * CHUNK_BYTES + 5))
        self.clock.advance(0)
        self.assertEqual((self.transport.value(), self.outbox.waiting_bytes), (b"", 3 * CHUNK_BYTES + 5))
        self.outbox.resumeProducing()
        self.assertEqual((len(self.transport.value()), self.outbox.waiting_bytes), (3 * CHUNK_BYTES + 5, 0))
        self.outbox.pauseProducing()
        self.outbox.put(b"never")
        self.outbox.close(b"last")
        self.outbox.put(b"late")
        self.clock.advance(0)
        self.assertTrue(self.transport.value().endswith(b"xlast"))
        self.assertIsNone(self.transport.producer)


class WebSocketTests(Frames, Ends, Strangers, BadFrames, NetCase):
    """The same over WebSocket."""

    websocket = True
