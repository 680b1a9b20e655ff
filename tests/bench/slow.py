"""Slow and silent attackers: they hold connections, and use them hardly or not at all."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import Counter
from collections.abc import Mapping

from kollator.cluster.wire import NONCE_BYTES, PROTOCOL, PROTOCOL_VERSION, Greeting, encode
from tests.bench.sockets import Ended, Socket, Stream, half_client_hello, message, request, upgrade_request
from tests.bench.swarm import Aim, Begin, Did, attack, over, swarm

REFUSED_PAUSE_S = 0.2
"""An attacker who means to hold a connection tries again so long after it has lost one."""


async def _slowly(aim: Aim, stream: Stream, did: Did, first: bytes, rest: bytes) -> None:
    """Sends ``rest`` a byte at a time, for ever, until the front says or does something about it."""
    did["opened"] += 1
    try:
        stream.write(first)
        answered = asyncio.create_task(stream.answer())
        try:
            while not (await asyncio.wait([answered], timeout=aim.byte_every_s))[0]:
                stream.write(rest[:1])
                did["bytes"] += 1
                rest = rest[1:] + rest[:1]
            status, _ = answered.result()
            raise Ended(str(status))
        finally:
            await over(answered)
    finally:
        stream.abort()


async def _slow(aim: Aim, begin: Begin, first: bytes, rest: bytes) -> Did:
    did: Did = Counter()

    async def attacker(source: str, did: Did) -> None:
        await _slowly(aim, await Stream.open(aim.port, source), did, first, rest)

    await begin()
    await swarm(aim, attacker, did, REFUSED_PAUSE_S)
    return did


async def _stopped(aim: Aim, begin: Begin, port: int, said: Mapping[str, bytes]) -> Did:
    """Connections on which one of these is said and no more, each as often as the others, then the first."""
    did: Did = Counter()
    names = iter(list(said) * aim.count)
    first = next(iter(said))

    async def attacker(source: str, did: Did) -> None:
        name = next(names, first)
        stream = await Stream.open(port, source)
        did[f"opened, {name}"] += 1
        try:
            stream.write(said[name])
            while True:
                await stream.take(1)
        finally:
            stream.abort()

    await begin()
    await swarm(aim, attacker, did, REFUSED_PAUSE_S)
    return did


@attack
async def slow_headers(aim: Aim, begin: Begin) -> Did:
    """Slowloris: a request's header that never ends."""
    return await _slow(aim, begin, b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"y")


@attack
async def slow_upgrades(aim: Aim, begin: Begin) -> Did:
    """The same with a request for a WebSocket, which goes another way through the front."""
    return await _slow(aim, begin, upgrade_request()[:-4] + b"\r\nX-Slow: ", b"y")


@attack
async def slow_bodies(aim: Aim, begin: Begin) -> Did:
    """A body that is announced and hardly comes."""
    return await _slow(aim, begin, request("POST", "/bootstrap", body=b" " * 60_000)[:-60_000], b" ")


@attack
async def silent(aim: Aim, begin: Begin) -> Did:
    """Connections that never say a word."""
    return await _stopped(aim, begin, aim.port, {"silent": b""})


@attack
async def no_hello(aim: Aim, begin: Begin) -> Did:
    """WebSockets that send the first bytes of a message, one now and then."""
    did: Did = Counter()

    async def attacker(source: str, did: Did) -> None:
        opened = await Socket.open(aim.port, source)
        did["opened"] += 1
        told = asyncio.create_task(opened.receive())
        rest = message(type="hello", role="client", padding="x" * 1000)
        try:
            while not (await asyncio.wait([told], timeout=aim.byte_every_s))[0]:
                opened.stream.write(rest[:1])
                did["bytes"] += 1
                rest = rest[1:]
            told.result()
        finally:
            opened.abort()
            await over(told)

    await begin()
    await swarm(aim, attacker, did, REFUSED_PAUSE_S)
    return did


@attack
async def tls_halves(aim: Aim, begin: Begin) -> Did:
    """TLS handshakes that stop in the middle of their first message."""
    return await _stopped(aim, begin, aim.tls_port, {"half a hello": half_client_hello()})


@attack
async def half_open_peers(aim: Aim, begin: Begin) -> Did:
    """Connections to the port of the other fronts: silent, stopped in the middle of the handshake, and garbage."""
    greeting = encode(Greeting(PROTOCOL, PROTOCOL_VERSION, "other", os.urandom(NONCE_BYTES)))
    return await _stopped(aim, begin, aim.peer_port, {
        "silent": b"",
        "greeting": struct.pack("!I", len(greeting)) + greeting,
        "half a greeting": struct.pack("!I", len(greeting)) + greeting[:9],
        "garbage": os.urandom(2000),
    })
