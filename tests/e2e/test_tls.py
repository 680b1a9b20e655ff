"""TLS of real fronts: certificates that change while connections are open, and fronts that ask for each other's."""

from __future__ import annotations

import os
import re
import signal
import ssl
import warnings
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import Authority, write_pair
from tests.e2e.cluster import CLUSTER_KEY, free_ports, until
from tests.e2e.contract_client import Client, ask
from tests.e2e.processes import Front, new_folder
from tests.e2e.test_start_errors import Case, StartErrorTestCase

ROOT, OTHER = Authority(), Authority("other.example")
PADDED_BYTES = 4096
"""Every file has that size, so that one can be replaced without a change that can be seen from outside."""


def padded(pair: tuple[str, str]) -> tuple[str, str]:
    """A key and a certificate, both with empty lines up to the same size."""
    key, certificate = (text.ljust(PADDED_BYTES, "\n") for text in pair)
    return key, certificate


def shown(port: int, tls: ssl.SSLContext) -> int:
    """The number of the certificate that a front shows."""
    client = Client(port, tls=tls)
    try:
        told = client.socket.socket
        assert isinstance(told, ssl.SSLSocket)
        certificate = told.getpeercert(binary_form=True)
        assert certificate is not None
        return x509.load_der_x509_certificate(certificate).serial_number
    finally:
        client.close()


class ReloadTests(SynchronousTestCase):
    """A front with WSS."""

    def setUp(self) -> None:
        folder = new_folder()
        self.key, self.certificate = write_pair(folder, padded(ROOT.issue("localhost")))
        self.tls = ssl.create_default_context(cadata=ROOT.pem)
        self.front = Front(options=("--listen", f"ssl:0:privateKey={self.key}:certKey={self.certificate}"
                                                ":interface=127.0.0.1"), folder=folder).ready()
        self.addCleanup(self.front.kill)
        self.client = Client(self.front.port, tls=self.tls)
        self.addCleanup(self.client.close)
        self.serial = shown(self.front.port, self.tls)

    def assert_renewed(self) -> None:
        """That the new certificate is taken, the old connection goes on, and the front ends well."""
        self.front.await_line(f"the certificate in {self.certificate} was read again; it is good until 20")
        self.assertNotEqual(shown(self.front.port, self.tls), self.serial)
        self.client.synchronise()
        self.client.close()
        self.front.stop()

    def test_hangup(self) -> None:
        """Without it a renewal on a file system that shows no change would need a restart."""
        for file, text in zip((self.key, self.certificate), padded(ROOT.issue("localhost")), strict=True):
            before = file.stat()
            with file.open("r+") as opened:  # the same size, the same inode
                opened.write(text)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.front.signal(signal.SIGHUP)
        self.assert_renewed()

    def test_files_that_change(self) -> None:
        """Without it a renewal would need somebody to tell the front; half of one must not do harm."""
        key, certificate = ROOT.issue("localhost")
        self.key.write_text(key)
        self.front.await_line(f"privateKey: {self.key} does not belong to the certificate in {self.certificate}; new")
        self.assertEqual(shown(self.front.port, self.tls), self.serial)
        self.certificate.write_text(certificate)
        self.assert_renewed()

    def test_old_versions(self) -> None:
        """Without it a client could be talked down to a TLS that is broken."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.tls.minimum_version, self.tls.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        self.tls.set_ciphers("ALL:@SECLEVEL=0")
        with self.assertRaisesRegex(ssl.SSLError, "(?i)alert.protocol.version"):
            ask(self.front.port, "GET", "/health/live", tls=self.tls)
        self.client.synchronise()


class ClientCertificateTests(SynchronousTestCase):
    """Two fronts that both listen for the other and ask for its certificate."""

    def setUp(self) -> None:
        self.folder = new_folder()
        self.authorities = self.folder / "fronts.pem"
        self.authorities.write_text(ROOT.pem)
        (self.folder / "roots").mkdir()
        (self.folder / "roots" / "root.pem").write_text(ROOT.pem)
        one, other, *web = free_ports(4)
        self.peer_ports, self.ports = {"a": one, "b": other}, dict(zip("ab", web, strict=True))

    def start(self, name: str, peer: str, pair: tuple[Path, Path] | None) -> Front:
        """Starts a front that dials the other one with a key and certificate, or with none."""
        key, certificate = write_pair(self.folder, ROOT.issue("localhost"), f"{name}-listens")
        own = "" if pair is None else f":privateKey={pair[0]}:certificate={pair[1]}"
        front = Front({
            "NODE_ID": name, "PORT": str(self.ports[name]), "CLUSTER_KEY": CLUSTER_KEY,
            "PEER_CLIENT_CA": str(self.authorities),
            "PEER_LISTEN": f"ssl:{self.peer_ports[name]}:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
            "PEERS": f"{peer}=tls:localhost:{self.peer_ports[peer]}:trustRoots={self.folder / 'roots'}{own}",
        }).ready()
        self.addCleanup(front.kill)
        return front

    def refused(self, name: str) -> bool:
        """Whether a front has counted links that failed in TLS."""
        metrics = ask(self.ports[name], "GET", "/metrics").body
        return re.search(rb'links_ended_total\{[^}]*reason="tls"[^}]*\} [1-9]', metrics) is not None

    def test_linked(self) -> None:
        """Without it a front with the right certificate would not be let in, or not say that it dials with one."""
        pair = write_pair(self.folder, ROOT.issue("front"), "dials")
        fronts = [self.start("a", "b", pair), self.start("b", "a", pair)]
        for front, name in zip(fronts, ("b", "a"), strict=True):
            front.await_line(f"linked to {name}")
        for front in fronts:
            front.stop()

    def test_none_and_a_foreign_one(self) -> None:
        """Without it the cluster key alone would open a link; both logs say why there is none, and metrics count it."""
        foreign = write_pair(self.folder, OTHER.issue("front"), "dials")
        fronts = [self.start("a", "b", None), self.start("b", "a", foreign)]
        for front in fronts:
            front.await_line("a link from 127.0.0.1 was refused: tls")
        for name in "ab":
            until(lambda name=name: self.refused(name), "a count of tls")  # type: ignore[misc]
        for front, name in zip(fronts, ("b", "a"), strict=True):
            self.assertNotIn(f"linked to {name}", front.log)
            front.stop()


class StartTests(StartErrorTestCase):
    """TLS that cannot be had as it is asked for."""

    def test_start_errors(self) -> None:
        """Without it a front would start with less than its operator asked for."""
        folder = new_folder()
        key, certificate = write_pair(folder, ROOT.issue("localhost"))
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        authorities = folder / "fronts.pem"
        authorities.write_text(ROOT.pem)
        peers = {"PEERS": "b=tcp:127.0.0.1:1", "CLUSTER_KEY": CLUSTER_KEY}
        self.assert_refused([
            Case("LISTEN", {"LISTEN": f"{endpoint}:sslmethod=TLSv1_METHOD"}),
            Case("sslmethod", {"LISTEN": f"{endpoint}:sslmethod=TLSv1_1_METHOD"}),
            Case(f"{key} does not belong", {"LISTEN": endpoint.replace(str(certificate), str(authorities))}),
            Case("PEER_LISTEN", {**peers, "PEER_LISTEN": f"{endpoint}:sslmethod=SSLv3_METHOD"}),
            Case("PEER_CLIENT_CA", {**peers, "PEER_LISTEN": "tcp:0:interface=127.0.0.1",
                                    "PEER_CLIENT_CA": str(authorities)}),
            Case("PEER_CLIENT_CA", {**peers, "PEER_LISTEN": endpoint, "PEER_CLIENT_CA": "/nowhere"}),
            Case("PEER_CLIENT_CA", {**peers, "PEER_LISTEN": endpoint, "PEER_CLIENT_CA": str(key)}),
        ])
