"""Who must not notice an attack: a client and a worker that talk at a steady rate, and a probe of ``/health/live``.

``python -m tests.bench.bystander PORT`` runs one from the first line on its standard input to the end of that, and
prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from attrs import Factory, asdict, define

from tests.bench.sockets import Ended, Socket, Stream, request

RATE = 20.0
"""Messages, and probes, a second."""
SOURCE = "127.0.0.1"
LAST_S = 120.0
"""How long what was sent may take to arrive, before it is given up."""
PROBES_MAX = 1000
"""So many probes may be waiting for their answer."""
SDP = (
    "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
    "c=IN IP4 0.0.0.0\r\na=mid:0\r\n" + "a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host\r\n" * 32
)
"""Some 2 KB, as a browser's offer for a data channel has."""
CANDIDATE = {"candidate": "candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host", "sdpMid": "0", "sdpMLineIndex": 0}
_LIVE = request("GET", "/health/live", {"Connection": "close"})


@define
class Seen:
    """What a bystander saw.

    ``relay_s`` are the seconds that each message took, ``live_s`` those of each probe that was answered with 200, and
    ``live_otherwise`` what became of the others; ``late_s`` are how late the bystander itself was each time, which is
    in all of them and no fault of the front. ``out_of_order`` counts messages that came in another order than
    they were sent, or twice; ``told`` what came and was not expected. ``ended``: how one of the connections was lost.
    """

    sent: int = 0
    received: int = 0
    out_of_order: int = 0
    relay_s: list[float] = Factory(list)
    live_s: list[float] = Factory(list)
    late_s: list[float] = Factory(list)
    live_otherwise: Counter[str] = Factory(Counter)
    told: Counter[str] = Factory(Counter)
    ended: str = ""


class Bystander:
    """One client, one worker called ``worker``, and the probes, all from 127.0.0.1."""

    def __init__(self, port: int, worker: str = "bystander", rate: float = RATE) -> None:
        self.seen = Seen()
        self._port = port
        self._name = worker
        self._rate = rate
        self._sent_at: dict[str, list[float]] = {"client": [], "worker": []}
        self._arrived = {"client": 0, "worker": 0}
        self._sockets: dict[str, Socket] = {}
        self._news = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()

    @property
    def client_id(self) -> str:
        """The client's id."""
        return self._sockets["client"].id

    async def join(self) -> None:
        """Connects the two. Raises ``Ended``."""
        self._sockets["worker"] = await Socket.worker(self._port, SOURCE, self._name)
        self._sockets["client"] = await Socket.client(self._port, SOURCE)

    async def run(self, stop: asyncio.Event) -> Seen:
        """Talks and probes until ``stop``; then waits for what is under way. What failed is in what it returns."""
        listening = [asyncio.create_task(self._listen(*ends)) for ends in (("worker", "client"), ("client", "worker"))]
        probing = asyncio.create_task(self._probe(stop))
        talking = asyncio.create_task(self._talk(stop))
        try:
            await talking
            await probing
            if self._probes:
                await asyncio.wait(self._probes, timeout=LAST_S)
            await asyncio.wait([asyncio.create_task(self._all_arrived())], timeout=LAST_S)
        finally:
            for task in (*listening, *self._probes, probing, talking):
                task.cancel()
            await asyncio.gather(*listening, *self._probes, probing, talking, return_exceptions=True)
            for one in self._sockets.values():
                one.abort()
        return self.seen

    async def _talk(self, stop: asyncio.Event) -> None:
        begun = time.perf_counter()
        for number in range(1_000_000):
            sender, receiver = ("client", "worker") if number % 2 == 0 else ("worker", "client")
            sdp = number % 4 < 2
            fields = {"sdp": SDP} if sdp else {"candidate": CANDIDATE}
            kind = "candidate" if not sdp else "offer" if sender == "client" else "answer"
            sent_at = self._sent_at[sender]
            sent_at.append(time.perf_counter())
            try:
                self._sockets[sender].send(
                    type=kind, to=self._sockets[receiver].id, session=str(len(sent_at) - 1), **fields)
            except Ended as end:
                self.seen.ended = self.seen.ended or f"{sender}: {end.how}"
                return
            self.seen.sent += 1
            if await self._waited(stop, begun + (number + 1) / self._rate):
                return

    async def _listen(self, receiver: str, sender: str) -> None:
        mine = f'"from":"{self._sockets[sender].id}"'.encode()
        try:
            while True:
                text = await self._sockets[receiver].receive()
                now = time.perf_counter()
                if mine not in text[:200]:
                    if b'"from":' not in text[:200]:  # what others send to this worker is no concern of his
                        told = json.loads(text)
                        self.seen.told[f"{told['type']} {told.get('code', '')}".strip()] += 1
                    continue
                told = json.loads(text)
                number = int(told["session"])
                self.seen.relay_s.append(now - self._sent_at[sender][number])
                self.seen.received += 1
                self.seen.out_of_order += number != self._arrived[receiver]
                self._arrived[receiver] = number + 1
                self._news.set()
        except Ended as end:
            self.seen.ended = self.seen.ended or f"{receiver}: {end.how}"
            self._news.set()

    async def _all_arrived(self) -> None:
        while self.seen.received < self.seen.sent and not self.seen.ended:
            self._news.clear()
            await self._news.wait()

    async def _probe(self, stop: asyncio.Event) -> None:
        begun = time.perf_counter()
        for number in range(1_000_000):
            if len(self._probes) < PROBES_MAX:
                task = asyncio.create_task(self._probe_once())
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
            else:
                self.seen.live_otherwise["not asked"] += 1
            if await self._waited(stop, begun + (number + 0.5) / self._rate):
                return

    async def _probe_once(self) -> None:
        begun = time.perf_counter()
        stream = None
        try:
            stream = await Stream.open(self._port, SOURCE)
            stream.write(_LIVE)
            status, _ = await stream.answer()
            if status == 200:
                self.seen.live_s.append(time.perf_counter() - begun)
            else:
                self.seen.live_otherwise[str(status)] += 1
        except Ended as end:
            self.seen.live_otherwise[end.how] += 1
        finally:
            if stream is not None:
                stream.abort()

    async def _waited(self, stop: asyncio.Event, until: float) -> bool:
        """Waits until a time of ``perf_counter``; True: ``stop`` was set meanwhile."""
        try:
            async with asyncio.timeout(max(0.0, until - time.perf_counter())):
                await stop.wait()
        except TimeoutError:
            self.seen.late_s.append(time.perf_counter() - until)
            return False
        return True


async def main(port: int) -> Seen:
    """Says "ready" on standard output, and then is a bystander as long as it is told to."""
    bystander = Bystander(port)
    await bystander.join()
    print("ready", flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    loop.run_in_executor(None, sys.stdin.read).add_done_callback(lambda done: stop.set())
    return await bystander.run(stop)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(main(int(sys.argv[1]))))), flush=True)
