"""Links over real sockets on this machine: TCP, TLS and WebSocket, on free ports."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from kollator.cluster.links import LinkError, Links
from kollator.cluster.wire import Arrived, Changes, Frame, Vote
from kollator.cluster.worker_sync import PATH, WorkerSyncFactory
from kollator.settings import Peer
from kollator.state.changes import Cursor
from kollator.web.door import DoorFactory
from kollator.web.site import FrontSite
from tests.certificates import self_signed_pem

reactor: Any = real_reactor
TIMEOUT_S = 120.0
"""Guards against what never comes."""


def certificate(folder: Path, *names: str) -> str:
    """Makes a certificate for these names, signed by itself; returns the arguments for an ``ssl:`` endpoint."""
    folder.mkdir()
    key, made = self_signed_pem(*names)
    (folder / "front.pem").write_text(made)
    (folder / "key").write_text(key)
    return f"privateKey={folder / 'key'}:certKey={folder / 'front.pem'}"


class Front:
    """The links of one front, and Deferreds for what they tell."""

    def __init__(self, node: str, peer: str | None, endpoint: str, listen: tuple[str, ...] = (), *,
                 client_ca: str | None = None, on: Any = reactor) -> None:
        self.established: Deferred[str] = Deferred()
        self.counted: Deferred[str] = Deferred()
        self.reasons: list[str] = []
        self._refused: list[tuple[int, Deferred[None]]] = []
        self.frames: list[Frame] = []
        self.awaited = 0
        self.all_came: Deferred[list[Frame]] = Deferred()
        self.links = Links(
            node,
            [] if peer is None else [Peer(peer, endpoint)],
            [b"the key"],
            reactor=on,
            listen=listen,
            established=self._established,
            lost=lambda node: None,
            received=self._received,
            random_bytes=os.urandom,
            uniform=random.uniform,
            count=self._counted,
            exempt=lambda address: True,  # all of them have the same
            client_ca=client_ca,
        )

    def _established(self, peer: str) -> None:
        if not self.established.called:
            self.established.callback(peer)

    def refused(self, more: int) -> Deferred[None]:
        """Fires when so many links more are over."""
        waiting: Deferred[None] = Deferred()
        self._refused.append((len(self.reasons) + more, waiting))
        return waiting

    def _counted(self, reason: str) -> None:
        self.reasons.append(reason)
        for number, waiting in self._refused:
            if number == len(self.reasons):
                waiting.callback(None)
        if not self.counted.called:
            self.counted.callback(reason)

    def _received(self, peer: str, frame: Frame) -> None:
        self.frames.append(frame)
        if len(self.frames) == self.awaited:
            self.all_came.callback(self.frames)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.links.ports[0].getHost().port
        return port


class SocketTests(TestCase):
    """Two fronts, of which the first is dialled."""

    timeout = TIMEOUT_S

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.said: Deferred[str] = Deferred()

        def note(event: Any) -> None:
            if event["log_namespace"] == "kollator:cluster" and event.get("peer") == "b" and not self.said.called:
                self.said.callback(event["log_format"].format(**event))

        observer: Any = note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def start(self, front: Front) -> Front:
        """Starts it, and stops it with the test."""
        front.links.startService()
        self.addCleanup(front.links.stopService)
        return front

    def listening(self, description: str) -> Front:
        """A front that is dialled; it cannot dial itself."""
        return self.start(Front("b", "a", "tcp:127.0.0.1:1", (description,)))

    def dialling(self, endpoint: str) -> Front:
        """A front that dials the other one."""
        return self.start(Front("a", "b", endpoint))

    @inlineCallbacks
    def exchange(self, one: Front, other: Front) -> Any:
        """Frames of all sizes, many at once, in both directions."""
        peers = yield gatherResults([one.established, other.established])
        self.assertEqual(peers, ["b", "a"])
        frames: list[Frame] = [Vote(number) for number in range(500)]
        frames += [Changes([], Cursor(), Cursor(), False, [bytes(16)] * 16_000)] * 3
        frames += [Arrived("worker", "w", number) for number in range(500)]
        one.awaited = other.awaited = len(frames)
        for frame in frames:
            self.assertTrue(one.links.send("b", frame))
            self.assertTrue(other.links.send("a", frame))
        came = yield gatherResults([one.all_came, other.all_came])
        self.assertEqual(came, [frames, frames])

    def test_tcp(self) -> Any:
        """Without it the transports of the other tests might not be like real ones."""
        other = self.listening("tcp:0:interface=127.0.0.1")
        return self.exchange(self.dialling(f"tcp:127.0.0.1:{other.port}"), other)

    def test_tls(self) -> Any:
        """Without it links over networks that others share could be read."""
        made = certificate(self.folder / "b", "localhost", "127.0.0.1")
        other = self.listening(f"ssl:0:interface=127.0.0.1:{made}")
        return self.exchange(self.dialling(f"tls:localhost:{other.port}:trustRoots={self.folder / 'b'}"), other)

    @inlineCallbacks
    def test_tls_with_a_certificate_for_another_name(self) -> Any:
        """Without it whoever has any certificate could stand between two fronts; the operator is to see why not."""
        made = certificate(self.folder / "b", "elsewhere")
        other = self.listening(f"ssl:0:interface=127.0.0.1:{made}")
        one = self.dialling(f"tls:localhost:{other.port}:trustRoots={self.folder / 'b'}")
        line = yield self.said
        self.assertRegex(line, "^b cannot be linked at tls:localhost:.*VerificationError")
        self.assertFalse(one.links.up())

    def door(self, other: Front, description: str) -> Any:
        """Opens a door with ``/worker-sync`` behind it; returns its port."""
        door = DoorFactory(clock=reactor, header_timeout_s=TIMEOUT_S)
        site: Any = FrontSite(None, reactor)
        upgrades = {PATH.encode(): WorkerSyncFactory(other.links.acceptor, reactor)}
        door.open(site=site, upgrades=upgrades, admission=lambda peer, fields: None)
        port: Any = self.successResultOf(serverFromString(reactor, description).listen(door))
        self.addCleanup(port.stopListening)
        return port.getHost().port

    def test_websocket(self) -> Any:
        """Without it a front that is reached by its web port alone could not be linked."""
        other = self.listening("tcp:0:interface=127.0.0.1")
        port = self.door(other, "tcp:0:interface=127.0.0.1")
        return self.exchange(self.dialling(f"ws://127.0.0.1:{port}/worker-sync"), other)

    def test_websocket_over_tls(self) -> Any:
        """Without it ``wss://`` would be a promise; the roots are those that OpenSSL is told to trust."""
        made = certificate(self.folder / "b", "localhost", "127.0.0.1")
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = str(self.folder / "b" / "front.pem")
        self.addCleanup(restore_roots, before)
        other = self.listening("tcp:0:interface=127.0.0.1")
        port = self.door(other, f"ssl:0:interface=127.0.0.1:{made}")
        return self.exchange(self.dialling(f"wss://localhost:{port}/worker-sync"), other)

    def test_a_port_in_use(self) -> None:
        """Without it a second front on a machine would start without a sound, and have no links."""
        other = self.listening("tcp:0:interface=127.0.0.1")
        second = Front("c", "a", "tcp:127.0.0.1:1", (f"tcp:{other.port}:interface=127.0.0.1",))
        with self.assertRaises(LinkError) as raised:
            second.links.privilegedStartService()
        self.assertRegex(str(raised.exception), r"^PEER_LISTEN: .* cannot be listened on: .*; stop what uses it")

    @inlineCallbacks
    def test_a_stop_closes_the_other_end_too(self) -> Any:
        """Without it a front that stops would be missed only when it has been silent for a while."""
        other = self.listening("tcp:0:interface=127.0.0.1")
        one = self.dialling(f"tcp:127.0.0.1:{other.port}")
        yield gatherResults([one.established, other.established])
        yield other.links.stopService()
        reason = yield one.counted
        self.assertEqual(reason, "stopping")


def restore_roots(value: str | None) -> None:
    """Sets ``SSL_CERT_FILE`` back to what it was, or to nothing."""
    if value is None:
        del os.environ["SSL_CERT_FILE"]
    else:
        os.environ["SSL_CERT_FILE"] = value
