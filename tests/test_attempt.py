"""One deep check: real aiortc on both sides over UDP on this machine, and a front in memory between the two."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aioice.ice import get_host_addresses
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from kollator.pool.checks import Check, Result
from kollator.signaling.messages import (
    Answer,
    AnswerFrom,
    Bye,
    ByeFrom,
    Candidate,
    CandidateFrom,
    Draining,
    Error,
    Hello,
    IceCandidate,
    Limits,
    Offer,
    OfferFrom,
    Received,
    Welcome,
    WorkerLost,
    decoder,
    encode,
)
from kollator.webrtc import attempt as attempt_module
from kollator.webrtc import libraries
from kollator.webrtc.attempt import Gone, Line, attempt
from kollator.webrtc.files import Folder
from kollator.webrtc.ice import IceServers
from kollator.webrtc.offer import read_candidate
from kollator.webrtc.serving import FileService
from kollator.webrtc.session import Sessions

LIMIT_S = 60.0
URL = "ws://front.example/signaling"
WELCOME = Welcome("c1", "front-1", "ticket", [], Limits(65_536, 100.0))
_received: msgspec.json.Decoder[Any] = decoder(Received)

Said = Callable[["FrontLine", Any], None]


class FrontLine:
    """A front that passes everything to one worker, ``said``; the worker answers with ``tell``."""

    def __init__(self, said: Said, welcome: Any = WELCOME) -> None:
        self._said = said
        self._welcome = welcome
        self.told: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.heard: list[Any] = []
        self.closed = 0
        self.urls: list[str] = []

    async def dial(self, url: str) -> Line:
        self.urls.append(url)
        return self

    def tell(self, message: Any) -> None:
        self.told.put_nowait(message if isinstance(message, bytes) else encode(message))

    def hang_up(self) -> None:
        self.told.put_nowait(None)

    def send(self, payload: bytes) -> None:
        message = _received.decode(payload)
        self.heard.append(message)
        if isinstance(message, Hello):
            if self._welcome is not None:
                self.tell(self._welcome)
        else:
            self._said(self, message)

    async def receive(self) -> bytes:
        message = await self.told.get()
        if message is None:
            raise Gone("the front closed: 1006")
        return message

    async def close(self) -> None:
        self.closed += 1


def in_turn(*messages: Any) -> Said:
    """A worker that answers the offer with these messages."""

    def said(front: FrontLine, message: Any) -> None:
        if isinstance(message, Offer):
            for answer in messages:
                front.tell(answer)

    return said


class AttemptCase(SynchronousTestCase):
    """Checks in a loop of their own, which must leave nothing running."""

    def setUp(self) -> None:
        if not get_host_addresses(use_ipv4=True, use_ipv6=False):
            raise SkipTest("there is no network interface but loopback, which aioice does not use")

    def run_alone(self, body: Callable[[], Awaitable[None]]) -> None:
        problems: list[Any] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            libraries.listen(loop)
            loop.set_exception_handler(lambda _, context: problems.append(context))
            async with asyncio.timeout(LIMIT_S):
                await body()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if left:
                await asyncio.wait(left, timeout=5.0)
            self.assertEqual([task for task in left if not task.done()], [])
            gc.collect()

        asyncio.run(main())
        self.assertEqual(problems, [])

    def check(self, front: FrontLine, limit_s: float = 20.0) -> Result:
        """The result of one check of ``w1``."""
        results: list[Result] = []

        async def body() -> None:
            results.append(await attempt(Check(7, "w1", URL, limit_s), front.dial, IceServers()))

        self.run_alone(body)
        (result,) = results
        self.assertEqual((result.check, result.worker), (7, "w1"))
        self.assertEqual(front.closed, len(front.urls))
        return result

    def fails(self, front: FrontLine, phase: str, error: str, own: bool, limit_s: float = 20.0) -> None:
        result = self.check(front, limit_s)
        self.assertEqual((result.ok, result.phase, result.own), (False, phase, own), result)
        self.assertIn(error, result.error)


class WorkerSide:
    """The reference worker's sessions, behind the front; ``changed`` alters what it says on the way."""

    def __init__(self, folder: Path, changed: Callable[[Any], list[Any]], capacity: int = 4) -> None:
        self._changed = changed
        self.sessions = Sessions(capacity, FileService(Folder(folder)), IceServers([]), lambda: None)
        self.byes: list[Any] = []

    def said(self, front: FrontLine, message: Any) -> None:
        def tell(reply: Answer | Bye) -> None:
            came: Any = (
                AnswerFrom("w1", reply.sdp, reply.session)
                if isinstance(reply, Answer)
                else ByeFrom("w1", reply.session, reply.reason)
            )
            for changed in self._changed(came):
                front.tell(changed)

        if isinstance(message, Offer):
            self.sessions.received(OfferFrom("c1", message.sdp, message.session), tell)
        elif isinstance(message, Bye):
            self.byes.append(message)
            self.sessions.received(ByeFrom("c1", message.session, message.reason), tell)
        elif isinstance(message, Candidate):
            self.sessions.received(CandidateFrom("c1", message.candidate, message.session), tell)


class ReferenceTests(AttemptCase):
    """Against the reference worker."""

    def check_reference(
        self, changed: Callable[[Any], list[Any]] = lambda message: [message], capacity: int = 4
    ) -> list[Result]:
        """The result, and the worker's side of it."""
        folder = Path(self.mktemp())
        folder.mkdir()
        results: list[Result] = []

        async def body() -> None:
            worker = WorkerSide(folder, changed, capacity)
            front = FrontLine(worker.said)
            for number in (7, 8):
                results.append(await attempt(Check(number, "w1", URL, 20.0), front.dial, IceServers()))
                self.assertEqual(worker.sessions.sessions, 0, "the worker was not told that it is over")
            self.assertEqual(front.closed, 2)
            await worker.sessions.close()

        self.run_alone(body)
        return results

    def test_success(self) -> None:
        """Without it no worker would ever pass, or each check would leave a session behind."""
        for result in self.check_reference():
            self.assertTrue(result.ok, result)
            assert result.phases is not None
            self.assertGreater(min(seconds for _, seconds in result.phases.seconds()), 0)

    def test_candidates_apart(self) -> None:
        """Without it a worker that trickles its candidates, as browsers do, would fail every check."""
        tried: list[str] = []
        sent: list[str] = []

        def read(text: str) -> Any:
            tried.append(text.removeprefix("candidate:"))
            return read_candidate(text)

        self.patch(attempt_module, "read_candidate", read)

        def trickled(message: Any) -> list[Any]:
            if not isinstance(message, AnswerFrom):
                return [message]
            lines = message.sdp.splitlines(keepends=True)
            found = [line.strip().removeprefix("a=") for line in lines if line.startswith("a=candidate:")]
            kept = "".join(line for line in lines if not line.startswith(("a=candidate:", "a=end-of")))
            sent.extend(text.removeprefix("candidate:") for text in found)
            candidates = [CandidateFrom("w1", IceCandidate(text, "0", 0)) for text in found]
            useless = [CandidateFrom("w1", IceCandidate(text)) for text in ("", "nonsense", "candidate:1 1 udp x")]
            end = [CandidateFrom("w1", None)]
            before, within, after = candidates[::3], found[1::3], candidates[2::3]
            kept += "".join(f"a={line}\r\n" for line in within)
            return [*useless, *before, AnswerFrom("w1", kept), *after, *useless, *end]

        for result in self.check_reference(trickled):
            self.assertTrue(result.ok, result)
        # Those that come after the answer may be too late, when the connection is made without them.
        self.assertLessEqual(set(sent[::3]) | set(sent[1::3]), set(tried))

    def test_full(self) -> None:
        """Without it a worker that is full would be taken out as broken."""
        for result in self.check_reference(capacity=0):
            self.assertEqual((result.phase, result.own), ("answer", True), result)

    def test_no_packets(self) -> None:
        """Without it a worker that answers, and is not reachable, would pass."""

        def unreachable(message: Any) -> list[Any]:
            if not isinstance(message, AnswerFrom):
                return [message]
            # With another password no check of connectivity is ever accepted.
            return [AnswerFrom("w1", message.sdp.replace("a=ice-pwd:", "a=ice-pwd:x")), ByeFrom("w1", None, "timeout")]

        for result in self.check_reference(unreachable):
            self.assertEqual((result.ok, result.phase, result.own), (False, "ice", False), result)

    def test_wrong_key(self) -> None:
        """Without it a worker with which no encryption comes about would pass, or be waited for to the end."""

        def disguised(message: Any) -> list[Any]:
            if not isinstance(message, AnswerFrom):
                return []
            lines = message.sdp.splitlines(keepends=True)
            others = ":".join(["00"] * 32)
            changed = (f"a=fingerprint:sha-256 {others}\r\n" if "a=fingerprint:" in line else line for line in lines)
            return [AnswerFrom("w1", "".join(changed))]

        for result in self.check_reference(disguised):
            self.assertEqual((result.ok, result.phase, result.own), (False, "open", False), result)
            self.assertIn("the connection ", result.error)


class FailureTests(AttemptCase):
    """How a check fails, and whose fault that is."""

    def test_no_front(self) -> None:
        """Without it a front that is away would count against its workers."""
        for problem, said in (
            (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
            (OSError("no such name"), "no such name"),
            (Gone("503"), "503"),
        ):
            front = FrontLine(in_turn())

            async def refuse(url: str, problem: Exception = problem) -> Line:
                raise problem

            front.dial = refuse  # type: ignore[method-assign]
            self.fails(front, "connect", said, own=True)

    def test_front_is_silent(self) -> None:
        """Without it a front that hangs would count against its workers, or hang the probe."""
        self.patch(attempt_module, "PREPARE_S", 0.2)
        front = FrontLine(in_turn(), welcome=None)
        self.fails(front, "welcome", "not done within 0.2 s", own=True)

    def test_not_welcome(self) -> None:
        """Without it a front that refuses its probe would count against its workers."""
        self.fails(FrontLine(in_turn(), Error("rate-limited", "too many")), "welcome", "too many", own=True)
        front = FrontLine(in_turn(), welcome=None)
        front.hang_up()
        self.fails(front, "welcome", "1006", own=True)

    def test_no_answer(self) -> None:
        """Without it a worker whose WebRTC is dead would never be found."""
        front = FrontLine(in_turn())
        self.fails(front, "answer", "not done within 0.3 s", own=False, limit_s=0.3)
        self.assertEqual([type(message) for message in front.heard], [Hello, Offer, Bye])
        self.assertEqual(front.urls, [URL])

    def test_told_no(self) -> None:
        """Without it a worker would be blamed for what the front says, or excused for what it says itself."""
        for message, said, own in (
            (ByeFrom("w1", "check-7", "failed"), "bye: failed", False),
            (ByeFrom("w1", "check-7"), "bye: no reason", False),
            (ByeFrom("w1", "check-7", "a\nb" + "x" * 1000), "bye: a?b", False),
            (ByeFrom("w1", "check-7", "full"), "bye: full", True),
            (ByeFrom("w1", "check-7", "going-away"), "bye: going-away", True),
            (Error("target-busy", "its queue is full", to="w1"), "its queue is full", False),
            (Error("unknown-target", "nobody", to="w1"), "nobody", True),
            (Error("rate-limited", "too many"), "too many", True),
            (Draining(100), "about to stop", True),
            (WorkerLost("w1", None), "gone", True),
        ):
            self.fails(FrontLine(in_turn(message)), "answer", said, own)

    def test_front_goes(self) -> None:
        """Without it a front that breaks off would count against the worker."""

        def said(front: FrontLine, message: Any) -> None:
            front.hang_up()

        self.fails(FrontLine(said), "answer", "1006", own=True)

    def test_others_say(self) -> None:
        """Without it another worker, or a newer front, could end a check that is not theirs."""
        noise = (
            ByeFrom("w2", "check-7"),
            AnswerFrom("w2", "v=0"),
            WorkerLost("w2", None),
            b'{"type":"news"}',
            b"\xff",
            b"[" * 5000,
        )
        front = FrontLine(in_turn(*noise, ByeFrom("w1", "check-7", "the one that counts")))
        self.fails(front, "answer", "the one that counts", own=False)

    def test_bad_answer(self) -> None:
        """Without it nonsense from a worker would end the probe, or be nobody's fault."""
        head = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
        section = f"{head}m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
        for sdp in ("", "v=0", section, section + "a=ice-ufrag:x\r\na=fingerprint:sha-256 00\r\n"):
            self.fails(FrontLine(in_turn(AnswerFrom("w1", sdp))), "answer", "cannot be used", own=False)

    def test_broken_off(self) -> None:
        """Without it a probe that is stopped in the middle of a check would leave it running."""
        front = FrontLine(in_turn())

        async def body() -> None:
            checking = asyncio.ensure_future(attempt(Check(7, "w1", URL, 20.0), front.dial, IceServers()))
            while not any(isinstance(message, Offer) for message in front.heard):
                await asyncio.sleep(0.01)
            checking.cancel()
            await asyncio.wait([checking])
            self.assertTrue(checking.cancelled())

        self.run_alone(body)
        self.assertIsInstance(front.heard[-1], Bye)
        self.assertEqual(front.closed, 1)
