"""What the attacks on a front have in common: whom they are for, how large they are, and that they come to an end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from tests.bench.sockets import Ended, Stream

LOOK_S = 0.05
"""Between two looks at whether an attack is over."""
_BYTE_EVERY_S = 2.0
"""Between two bytes of a slow sender: often enough for any time-out that begins anew with each."""


@attrs.frozen
class Aim:
    """Whom an attack is for, and how large it is.

    ``port`` speaks HTTP, ``tls_port`` the same in TLS, ``peer_port`` is that of PEER_LISTEN. ``sources`` are the
    addresses that attackers come from, in turn; ``count`` is how many there are; ``seconds`` is the time they have.
    ``worker`` is somebody else's, to send things to. ``until``: an attack is over before its time when it has counted
    so much of each of these. ``arrive_per_s``: so many attackers begin in a second; 0: all at once.
    """

    port: int
    sources: tuple[str, ...]
    count: int
    seconds: float
    tls_port: int = 0
    peer_port: int = 0
    worker: str = "bystander"
    byte_every_s: float = _BYTE_EVERY_S
    until: Mapping[str, int] = attrs.field(factory=dict)
    arrive_per_s: float = 0.0


Did = Counter[str]
"""What came of an attack: how often attackers got through, were refused, were closed, and how."""
Begin = Callable[[], Awaitable[None]]
Attack = Callable[[Aim, Begin], Awaitable[Did]]
Attacker = Callable[[str, Did], Awaitable[None]]
"""(address to come from, where to count) one connection of one attacker. Raises ``Ended``."""

ATTACKS: dict[str, Attack] = {}


def attack(run: Attack) -> Attack:
    """Makes a coroutine one of ``ATTACKS``, by its name."""
    ATTACKS[getattr(run, "__name__", "").replace("_", "-")] = run
    return run


async def nothing() -> None:
    """For ``begin``: nobody waits."""


async def over(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks, and waits for their end, whatever it is."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def swarm(aim: Aim, attacker: Attacker, did: Did, pause_s: float = 0.0) -> None:
    """Runs ``count`` attackers, each again and again, until the time is over. What ended each is counted."""

    async def again(number: int) -> None:
        if aim.arrive_per_s:
            await asyncio.sleep(number / aim.arrive_per_s)
        while True:
            try:
                await attacker(aim.sources[number % len(aim.sources)], did)
            except Ended as end:
                did[end.how] += 1
            await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(again(number)) for number in range(aim.count)]
    until_s = time.monotonic() + aim.seconds
    done: set[asyncio.Task[None]] = set()
    while not done and time.monotonic() < until_s:
        if aim.until and all(did[name] >= count for name, count in aim.until.items()):
            break
        done, _ = await asyncio.wait(tasks, timeout=LOOK_S, return_when=asyncio.FIRST_EXCEPTION)
    await over(*tasks)
    for task in done:
        task.result()  # a slip of the attacker itself


async def requests(aim: Aim, begin: Begin, asked: bytes) -> Did:
    """One request after another on connections that are kept as long as the front keeps them."""
    did: Did = Counter()

    async def attacker(source: str, did: Did) -> None:
        stream = await Stream.open(aim.port, source)
        try:
            while True:
                stream.write(asked)
                status, body = await stream.answer()
                did[f"answered {status}"] += 1
                did["bytes"] += len(body)
        finally:
            stream.abort()

    await begin()
    await swarm(aim, attacker, did)
    return did
