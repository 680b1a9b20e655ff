"""Crowds: clients that do not read, and registered workers in great number."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import attrs

from tests.bench.sockets import Ended, Socket, request
from tests.bench.swarm import Aim, Begin, Did, attack, nothing, over, requests

GOODBYE_S = 0.004
"""Between two workers that leave, where their leaving is not what it is about."""
AFTERWARDS_S = 6.0
"""Twice what a front gives to those that it closes (``CLOSE_TIMEOUT_S``)."""
LARGE_SDP = "v=0\r\n" + "a=fmtp:0 " + "x" * 60_000
"""What fills a write buffer."""


@attack
async def stuck_readers(aim: Aim, begin: Begin) -> Did:
    """Clients that stop reading after their welcome, and a worker that sends answers until they are closed.

    They read again ``AFTERWARDS_S`` later, to learn how their connections have ended.
    """
    did: Did = Counter()
    worker = await Socket.worker(aim.port, aim.sources[0], "talker", capacity=1_000_000)
    stuck: list[Socket] = []
    try:
        for number in range(aim.count):
            source = aim.sources[number % len(aim.sources)]
            stuck.append(await Socket.client(aim.port, source, receive_buffer_bytes=4096))
            stuck[-1].stream.stop_reading()
        alive = {client.id for client in stuck}

        async def listen() -> None:
            while True:
                told = json.loads(await worker.receive())
                did[told.get("code", told["type"])] += 1
                alive.discard(told.get("to", ""))

        await begin()
        listening = asyncio.create_task(listen())
        until = time.monotonic() + aim.seconds
        while alive and time.monotonic() < until:
            for client_id in list(alive):
                worker.send(type="answer", to=client_id, sdp=LARGE_SDP)
                did["sent"] += 1
                await worker.stream.drained()
            await asyncio.sleep(0)
        await asyncio.sleep(AFTERWARDS_S)
        await over(listening)
        did["still open"] = 0
        await asyncio.gather(*(_read_to_the_end(client, did) for client in stuck))
    finally:
        for one in (worker, *stuck):
            one.abort()
    return did


async def _read_to_the_end(client: Socket, did: Did) -> None:
    client.stream.read_again()
    try:
        async with asyncio.timeout(AFTERWARDS_S):
            while True:
                await client.receive()
    except Ended as end:
        did[end.how] += 1
    except TimeoutError:
        did["still open"] += 1


async def _registered(aim: Aim, begin: Begin, fetchers: int, *, vanish: bool = False) -> Did:
    did: Did = Counter()
    workers: list[Socket] = []

    async def register(number: int) -> None:
        workers.append(await Socket.worker(aim.port, aim.sources[number % len(aim.sources)], f"many.{number}"))

    async def listen(worker: Socket) -> None:
        while True:
            await worker.receive()
            did["messages to workers"] += 1

    listening: list[asyncio.Task[None]] = []
    try:
        for first in range(0, aim.count, 20):
            numbers = range(first, min(first + 20, aim.count))
            await asyncio.gather(*(register(number) for number in numbers))
            listening += [asyncio.create_task(listen(workers[number])) for number in numbers]
        await begin()
        if vanish:
            for worker in workers:
                worker.abort()
            await asyncio.sleep(aim.seconds)
        elif fetchers:
            fetching = attrs.evolve(aim, count=fetchers)
            did += await requests(fetching, nothing, request("GET", "/workers"))
        else:
            await asyncio.sleep(aim.seconds)
        did["workers"] = aim.count
        did["workers lost"] = sum(task.done() for task in listening)
        for worker in workers:
            worker.abort()
            await asyncio.sleep(GOODBYE_S)
    finally:
        for worker in workers:
            worker.abort()
        await over(*listening)
    return did


@attack
async def many_workers(aim: Aim, begin: Begin) -> Did:
    """Registered workers that do nothing: what the next one is to be compared with."""
    return await _registered(aim, begin, 0)


@attack
async def workers_pages(aim: Aim, begin: Begin) -> Did:
    """The page of all workers, fetched again and again, while there are many of them."""
    return await _registered(aim, begin, 20)


@attack
async def workers_vanish(aim: Aim, begin: Begin) -> Did:
    """Registered workers whose connections all break in the same moment."""
    return await _registered(aim, begin, 0, vanish=True)
