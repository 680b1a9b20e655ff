"""Certificates of links, over real sockets on this machine: who is linked, who is not, and what is said about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from kollator.cluster.links import LinkError
from kollator.cluster.worker_sync import PATH, WorkerSyncFactory
from kollator.web.door import DoorFactory
from kollator.web.site import FrontSite
from tests.certificates import Authority, write_pair
from tests.test_link_sockets import Front, restore_roots

reactor: Any = real_reactor
TIMEOUT_S = 60.0
ROOT, OTHER = Authority(), Authority("other.example")


class Log:
    """The lines of the cluster's log, and Deferreds for those that are waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._awaited: list[tuple[str, Deferred[str]]] = []

    def __call__(self, event: Any) -> None:
        if event["log_namespace"] == "kollator:cluster":
            line = event["log_format"].format(**event)
            self.lines.append(line)
            for pattern, waiting in self._awaited:
                if re.search(pattern, line) and not waiting.called:
                    waiting.callback(line)

    def line(self, pattern: str) -> Deferred[str]:
        """Fires with the next line like that, or the one that there was."""
        waiting: Deferred[str] = Deferred()
        self._awaited.append((pattern, waiting))
        for line in self.lines:
            if re.search(pattern, line):
                waiting.callback(line)
                break
        return waiting


class CertificateTestCase(TestCase):
    """Front "b" listens, front "a" dials; "b" has a certificate of ``ROOT`` for localhost."""

    timeout = TIMEOUT_S

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.listening_pair = write_pair(self.folder / "b", ROOT.issue("localhost"))
        self.roots = self.trusted("roots", ROOT)
        self.log = Log()
        observer: Any = self.log
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def trusted(self, name: str, *authorities: Authority) -> Path:
        """A folder of authorities."""
        folder = self.folder / name
        folder.mkdir()
        for number, authority in enumerate(authorities):
            (folder / f"{number}.pem").write_text(authority.pem)
        return folder

    def start(self, front: Front) -> Front:
        """Starts it, and stops it with the test."""
        front.links.startService()
        self.addCleanup(front.links.stopService)
        return front

    def ssl(self) -> str:
        """Where "b" listens."""
        key, certificate = self.listening_pair
        return f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"

    def listen(self, client_ca: Path | None = None) -> Front:
        """Starts "b", which cannot dial itself."""
        return self.start(Front("b", "a", "tcp:127.0.0.1:1", (self.ssl(),),
                                client_ca=None if client_ca is None else str(client_ca)))

    def dial(self, endpoint: str) -> Front:
        """Starts "a"."""
        return self.start(Front("a", "b", endpoint))

    def tls(self, port: int, pair: tuple[Path, Path] | None = None, roots: Path | None = None) -> str:
        """How "a" dials."""
        own = "" if pair is None else f":privateKey={pair[0]}:certificate={pair[1]}"
        return f"tls:localhost:{port}:trustRoots={roots or self.roots}{own}"


class ClientCertificateTests(CertificateTestCase):
    """PEER_CLIENT_CA."""

    def setUp(self) -> None:
        super().setUp()
        self.authorities = self.folder / "clients.pem"
        self.authorities.write_text(OTHER.pem)
        self.pair = write_pair(self.folder / "a", OTHER.issue("a.example"))

    @inlineCallbacks
    def test_the_right_one(self) -> Any:
        """Without it two data centres could not ask each other's fronts for certificates."""
        other = self.listen(self.authorities)
        one = self.dial(self.tls(other.port, self.pair))
        peers = yield gatherResults([one.established, other.established])
        self.assertEqual(peers, ["b", "a"])

    @inlineCallbacks
    def test_none_and_a_foreign_one(self) -> Any:
        """Without it who has got hold of the cluster key could link in from anywhere; both ends count and say it."""
        other = self.listen(self.authorities)
        foreign = write_pair(self.folder / "c", ROOT.issue("a.example"))
        for pair, told in ((None, "certificate required"), (foreign, "unknown ca")):
            before = other.reasons.count("tls")
            one = self.dial(self.tls(other.port, pair))
            # Not always at once: what the dialler has sent meanwhile may cost it the alert (RFC 2525, 2.17).
            yield self.log.line(rf"^b cannot be linked at tls:localhost:\d+:.*: tls \(.*{told}")
            self.assertFalse(one.links.up() | other.links.up())
            self.assertIn("tls", one.reasons)
            self.assertGreater(other.reasons.count("tls"), before)
            yield one.links.stopService()

    @inlineCallbacks
    def test_it_is_said_once_in_a_while(self) -> Any:
        """Without it one front with an old certificate would fill the log of all others."""
        other = self.listen(self.authorities)
        self.dial(self.tls(other.port))
        while other.reasons.count("tls") < 4:
            yield other.refused(1)
        said = [line for line in self.log.lines if line.startswith("a link from")]
        self.assertEqual(len(said), 1)
        self.assertRegex(said[0], r"^a link from 127\.0\.0\.1 was refused: tls \(.*did not return a certificate")

    @inlineCallbacks
    def test_a_certificate_that_was_renewed(self) -> Any:
        """Without it a front would dial with the certificate of its start until it is started again."""
        other = self.listen(self.authorities)
        write_pair(self.folder / "a", ROOT.issue("a.example"))
        one = self.dial(self.tls(other.port, self.pair))
        yield other.refused(1)
        (self.folder / "a" / "front.crt").write_text("half")
        one.links.reload_routes()
        line = yield self.log.line("stays as it was")
        self.assertRegex(line, "^tls:localhost:.* stays as it was: ")
        write_pair(self.folder / "a", OTHER.issue("a.example"))
        one.links.reload_routes()
        yield gatherResults([one.established, other.established])

    @inlineCallbacks
    def test_a_listening_certificate_that_was_renewed(self) -> Any:
        """Without it links would be lost when a certificate is renewed, or be made with the old one."""
        other = self.listen(self.authorities)
        one = self.dial(self.tls(other.port, self.pair))
        yield gatherResults([one.established, other.established])
        write_pair(self.folder / "b", OTHER.issue("localhost"))
        (credentials,) = other.links.credentials
        self.assertTrue(credentials.reload())
        self.assertEqual((one.links.up(), other.links.up()), ({"b"}, {"a"}))
        one.links.cut("b")
        line = yield self.log.line("^b cannot be linked")
        self.assertRegex(line, r"tls \(.*certificate verify failed")


class HostTests(CertificateTestCase):
    """Whom a front takes for its peer."""

    @inlineCallbacks
    def refused(self, one: Front, why: str) -> Any:
        """Waits until "a" says so, and counts it as TLS."""
        line = yield self.log.line("^b cannot be linked")
        self.assertRegex(line, rf"^b cannot be linked at (tls|wss):.*: tls \(.*{why}")
        self.assertEqual(one.reasons[0], "tls")
        self.assertFalse(one.links.up())

    def test_another_name(self) -> Any:
        """Without it whoever has any certificate of the same authority could stand between two fronts."""
        self.listening_pair = write_pair(self.folder / "b", ROOT.issue("elsewhere.example", "127.0.0.2"))
        port = self.listen().port
        return self.refused(self.dial(self.tls(port)), "VerificationError|mismatch|Mismatch")

    def test_another_address(self) -> Any:
        """Without it the same would hold where peers are named by their address."""
        self.listening_pair = write_pair(self.folder / "b", ROOT.issue("localhost", "127.0.0.2"))
        endpoint = self.tls(self.listen().port).replace("localhost", "127.0.0.1")
        return self.refused(self.dial(endpoint), "VerificationError|mismatch|Mismatch")

    def test_an_unknown_authority(self) -> Any:
        """Without it whoever makes a certificate could stand between two fronts."""
        port = self.listen().port
        return self.refused(self.dial(self.tls(port, roots=self.trusted("others", OTHER))), "certificate verify failed")

    def web(self, *names: str, authority: Authority = ROOT) -> str:
        """Opens a door with ``/worker-sync`` behind it, trusts ``ROOT``; returns the URL."""
        other = self.start(Front("b", "a", "tcp:127.0.0.1:1", ("tcp:0:interface=127.0.0.1",)))
        self.listening_pair = write_pair(self.folder / "b", authority.issue(*names))
        door = DoorFactory(clock=reactor, header_timeout_s=30)
        site: Any = FrontSite(None, reactor)
        upgrades = {PATH.encode(): WorkerSyncFactory(other.links.acceptor, reactor)}
        door.open(site=site, upgrades=upgrades, admission=lambda peer, fields: None)
        port: Any = self.successResultOf(serverFromString(reactor, self.ssl()).listen(door))
        self.addCleanup(port.stopListening)
        self.addCleanup(restore_roots, os.environ.get("SSL_CERT_FILE"))
        os.environ["SSL_CERT_FILE"] = str(self.roots / "0.pem")
        return f"wss://localhost:{port.getHost().port}/worker-sync"

    def test_another_name_by_url(self) -> Any:
        """Without it ``wss://`` would be checked less than ``tls:``."""
        return self.refused(self.dial(self.web("elsewhere.example")), "VerificationError|mismatch|Mismatch")

    def test_an_unknown_authority_by_url(self) -> Any:
        """Without it the same would hold for certificates of anybody's making."""
        return self.refused(self.dial(self.web("localhost", authority=OTHER)), "certificate verify failed")


class StartTests(SynchronousTestCase):
    """What can be wrong with PEER_CLIENT_CA at the start."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        key, certificate = write_pair(self.folder, ROOT.issue("localhost"))
        self.authorities = self.folder / "clients.pem"
        self.authorities.write_text(ROOT.pem)
        self.ssl = f"ssl:9443:privateKey={key}:certKey={certificate}"

    def front(self, *listen: str, client_ca: str | None = None) -> Front:
        """A front on a reactor in memory."""
        memory: Any = MemoryReactorClock()
        return Front("b", "a", "tcp:127.0.0.1:1", listen, client_ca=client_ca or str(self.authorities), on=memory)

    def test_nobody_would_be_asked(self) -> None:
        """Without it an operator would believe that links are checked, and they would not be."""
        for listen in ((), ("tcp:9090",), ("tcp:9090", "haproxy:tcp:9091")):
            front = self.front(*listen)
            with self.assertRaises(LinkError) as raised:
                front.links.privilegedStartService()
            self.assertRegex(
                str(raised.exception),
                "^PEER_CLIENT_CA: PEER_LISTEN has no ssl: endpoint, .*; write one like ssl:9443:.*, or leave PEER_CLIE")
            self.assertEqual(front.links.ports, [], "nothing is open before that is said")

    def test_no_cluster(self) -> None:
        """Without it a front could not be taken out of its cluster by leaving out PEERS alone."""
        alone = Front("b", None, "", (), client_ca=str(self.authorities))
        alone.links.privilegedStartService()

    def test_beside_an_endpoint_that_does_not_ask(self) -> None:
        """Without it a second way in would go unnoticed."""
        log = Log()
        observer: Any = log
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        front = self.front(self.ssl, "tcp:9090")
        front.links.privilegedStartService()
        self.assertEqual(log.lines, ["PEER_CLIENT_CA is nothing to tcp:9090: it is no ssl: endpoint"])
        self.assertEqual(len(front.links.credentials), 1)
        self.assertIn(str(self.authorities), front.links.credentials[0].files)

    def test_the_file(self) -> None:
        """Without it a slip in one setting would be called one in another."""
        broken = self.folder / "broken.pem"
        broken.write_text("nothing")
        said: Callable[[str], str] = lambda path: self._said(self.front(self.ssl, client_ca=path))  # noqa: E731
        remedy = "; name a PEM file of certificates$"
        self.assertRegex(said("/nowhere"), "^PEER_CLIENT_CA: /nowhere cannot be read: No such file.*" + remedy)
        self.assertRegex(said(str(broken)), f"^PEER_CLIENT_CA: {broken} holds no certificate.*" + remedy)

    def _said(self, front: Front) -> str:
        with self.assertRaises(LinkError) as raised:
            front.links.privilegedStartService()
        return str(raised.exception)
