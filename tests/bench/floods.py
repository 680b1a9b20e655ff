"""Floods: as much as an attacker can send, of all that a front takes from strangers."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.bench.bystander import CANDIDATE, SDP
from tests.bench.sockets import Ended, Socket, message, request
from tests.bench.swarm import Aim, Begin, Did, attack, over, requests, swarm


@attack
async def handshakes(aim: Aim, begin: Begin) -> Did:
    """New WebSockets as fast as possible, each given up as soon as it is open."""
    did: Did = Counter()

    async def attacker(source: str, did: Did) -> None:
        (await Socket.open(aim.port, source)).abort()
        did["opened"] += 1

    await begin()
    await swarm(aim, attacker, did)
    return did


@attack
async def clients(aim: Aim, begin: Begin) -> Did:
    """New clients as fast as possible, each given up as soon as it has its welcome."""
    did: Did = Counter()

    async def attacker(source: str, did: Did) -> None:
        (await Socket.client(aim.port, source)).abort()
        did["welcomed"] += 1

    await begin()
    await swarm(aim, attacker, did)
    return did


@attack
async def bootstraps(aim: Aim, begin: Begin) -> Did:
    """``POST /bootstrap`` as fast as possible."""
    return await requests(aim, begin, request("POST", "/bootstrap"))


@attack
async def admin_tokens(aim: Aim, begin: Begin) -> Did:
    """``/admin`` with wrong tokens as fast as possible."""
    return await requests(aim, begin, request("GET", "/admin/pins", {"Authorization": "Bearer " + "0" * 32}))


async def _messages(aim: Aim, begin: Begin, sent: bytes, each: int = 50) -> Did:
    """Clients that send as fast as they can, and come back when they are closed."""
    did: Did = Counter()

    async def attacker(source: str, did: Did) -> None:
        client = await Socket.client(aim.port, source)
        did["welcomed"] += 1

        async def listen() -> None:
            while True:
                text = await client.receive()
                did["errors" if b'"error"' in text[:40] else "answers"] += 1

        listening = asyncio.create_task(listen())
        try:
            while not listening.done():
                client.stream.write(sent * each)
                did["sent"] += each
                await client.stream.drained()
                await asyncio.sleep(0)
            await listening
        except Ended as end:
            # The close frame tells more than the broken connection, if it came before.
            if end.how == "reset" and listening.done() and isinstance(told := listening.exception(), Ended):
                raise told from None
            raise
        finally:
            client.abort()
            await over(listening)

    await begin()
    await swarm(aim, attacker, did)
    return did


@attack
async def messages(aim: Aim, begin: Begin) -> Did:
    """Offers to somebody else's worker, as fast as possible."""
    return await _messages(aim, begin, message(type="offer", to=aim.worker, sdp=SDP, session="flood"))


@attack
async def candidates(aim: Aim, begin: Begin) -> Did:
    """The same with candidates, which are small: more of them in the same time."""
    return await _messages(aim, begin, message(type="candidate", to=aim.worker, candidate=CANDIDATE), 200)


@attack
async def bad_messages(aim: Aim, begin: Begin) -> Did:
    """Messages that are none."""
    return await _messages(aim, begin, message(type="no-such-type", padding="x" * 200))


@attack
async def wrong_macs(aim: Aim, begin: Begin) -> Did:
    """Workers with a wrong key, as fast as possible."""
    did: Did = Counter()
    ids = iter(range(10**9))

    async def attacker(source: str, did: Did) -> None:
        (await Socket.worker(aim.port, source, f"forged.{next(ids)}", key="f" * 32)).abort()
        did["welcomed"] += 1

    await begin()
    await swarm(aim, attacker, did)
    return did
