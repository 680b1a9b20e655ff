"""What a front does again and again while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kollator.observe.loops import Loop
from kollator.signaling import keepalive, losses
from kollator.signaling.keepalive import KeepAlive
from kollator.signaling.protocol import SignalingProtocol

if TYPE_CHECKING:
    from kollator.assembly import Front

HELLO_TURN_S = 0.25
SWEEP_TURN_S = 0.25
EXPIRE_TURN_S = 5.0


def add_loops(front: Front) -> None:
    """Adds the loops of a front whose rooms are all there. They begin when it starts."""
    settings, now, switchboard = front.settings, front.reactor.seconds, front.switchboard

    def add(name: str, turn: Callable[[], object], turn_s: float) -> None:
        Loop(name, turn, turn_s, front.reactor, front.loop_failed).setServiceParent(front)

    def clients() -> list[SignalingProtocol]:
        return [client for client in switchboard.clients.values() if isinstance(client, SignalingProtocol)]

    add("losses", lambda: switchboard.turn(now()), losses.TURN_S)
    add("hello", lambda: front.signaling.expire(settings.hello_timeout_s), HELLO_TURN_S)
    add("database", front.writer.probe, EXPIRE_TURN_S)
    add("pool", front.pool.sweep, SWEEP_TURN_S)
    add("mailboxes", lambda: switchboard.mailboxes.expire(now()), EXPIRE_TURN_S)
    if settings.keepalive_interval_s:
        add("keepalive", KeepAlive(settings.keepalive_interval_s, clients).turn, keepalive.TURN_S)
