"""TLS of listening endpoints: what is spoken, who is let in, and what happens when the files change."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from kollator.net.endpoints import EndpointError
from kollator.net.tls import CIPHERS, FILE_BYTES, check_authorities
from tests.certificates import Authority, self_signed_pem, write_pair
from tests.endpoints import ROOT, EndpointTestCase, trusting

OTHER = Authority("other.example")
INTERMEDIATE = Authority("intermediate.example", ROOT)


class VersionTests(EndpointTestCase):
    """What is spoken."""

    def test_nothing_older_than_1_2(self) -> None:
        """Without it a client could be talked down to a TLS that is broken."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old = trusting()
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
        for method in (None, "TLS_METHOD", "TLS_SERVER_METHOD", "SSLv23_METHOD", "TLSv1_2_METHOD"):
            endpoint, server = self.endpoint(self.described(*([f"sslmethod={method}"] if method else [])))
            used = self.credentials(endpoint)._options.getContext().set_options(0)
            for forbidden in (SSL.OP_NO_SSLv3, SSL.OP_NO_TLSv1, SSL.OP_NO_TLSv1_1):  # a newer OpenSSL may lack them
                self.assertEqual(used & forbidden, forbidden)
            self.assert_refused(server, old, "(?i)alert.protocol.version")
            spoken = self.call(server).tls.version()
            self.assertEqual(spoken, "TLSv1.2" if method == "TLSv1_2_METHOD" else "TLSv1.3")

    def test_who_asks_for_older_ones(self) -> None:
        """Without it an operator would think that old clients can connect, or that nothing is wrong with it."""
        for method in ("TLSv1_METHOD", "TLSv1_1_METHOD", "SSLv3_METHOD", "DTLS_METHOD", "nonsense", ""):
            problem = f"^sslmethod={method} is not TLS 1.2 or newer; leave sslmethod out"
            with self.assertRaisesRegex(EndpointError, problem):
                self.endpoint(self.described(f"sslmethod={method}"))

    def test_ciphers(self) -> None:
        """Without it recorded connections could be read by whoever gets the key later, or padding be guessed."""
        _, server = self.endpoint()
        for spared in ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"):
            client = trusting()
            client.maximum_version = ssl.TLSVersion.TLSv1_2
            client.set_ciphers(spared)
            self.assert_refused(server, client, "(?i)handshake.failure")
        chooser: Any = CIPHERS
        names = [cipher.fullName for cipher in chooser.selectCiphers(chooser._ciphers)]
        self.assertGreater(len(names), 5)
        for name in names:
            self.assertRegex(name, r"^(TLS_|ECDHE-|DHE-).*(GCM|CHACHA20)", name)


class ReloadTests(EndpointTestCase):
    """Certificates that are replaced while connections are open."""

    def test_new_connections_get_the_new_certificate(self) -> None:
        """Without it every renewal, four a year or more, would cost a restart and every connection."""
        endpoint, server = self.endpoint()
        credentials = self.credentials(endpoint)
        self.assertEqual(credentials.files, (str(self.key), str(self.certificate)))
        old = self.call(server)
        before = old.serial()
        self.assertEqual(self.call(server).serial(), before)
        write_pair(self.folder, ROOT.issue("localhost"))
        with self.logged() as lines:
            self.assertTrue(credentials.reload())
            self.assertFalse(credentials.reload(), "it is the one that there is now")
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], rf"^the certificate in {self.certificate} was read again; it is good until 20")
        new = self.call(server)
        self.assertNotEqual(new.serial(), before)
        for caller in (old, new):
            self.assertEqual(caller.ask(b"still there"), b"192.0.2.7 still there")

    def test_files_that_have_not_changed(self) -> None:
        """Without it each SIGHUP would say of every endpoint that its certificate is new."""
        endpoint, _ = self.endpoint()
        with self.logged() as lines:
            self.assertFalse(self.credentials(endpoint).reload())
        self.assertEqual(lines, [])

    def test_broken_pairs(self) -> None:
        """Without it a renewal that is half written would close the port to everybody until someone looks."""
        endpoint, server = self.endpoint()
        credentials = self.credentials(endpoint)
        serial = self.call(server).serial()
        good_key, good = self.key.read_bytes(), self.certificate.read_bytes()
        key, certificate = (text.encode() for text in ROOT.issue("localhost"))
        locked = serialization.load_pem_private_key(good_key, None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"))
        cases: list[tuple[bytes | None, bytes | None, str]] = [
            (key, good, f"^privateKey: {self.key} does not belong to the certificate in {self.certificate}; new con"),
            (good_key, certificate, f"^privateKey: {self.key} does not belong"),
            (key, certificate[:300], f"^certKey: {self.certificate} holds no certificate in PEM form, or a broken one"),
            (key, certificate[:-40], f"^certKey: {self.certificate} holds no certificate"),
            (key[:100], certificate, f"^privateKey: {self.key} holds no private key"),
            (key, b"", f"^certKey: {self.certificate} holds no certificate"),
            (b"", certificate, f"^privateKey: {self.key} holds no private key"),
            (key, key, f"^certKey: {self.certificate} holds no certificate"),
            (b"\xff" * 100, certificate, f"^privateKey: {self.key} holds no private key"),
            (None, certificate, f"^privateKey: {self.key} cannot be read: No such file"),
            (key, None, f"^certKey: {self.certificate} cannot be read: No such file"),
            (locked, good, f"^privateKey: {self.key} is encrypted"),
            (key, bytes(FILE_BYTES + 1), f"^certKey: {self.certificate} is larger than"),
        ]
        for one, other, problem in cases:
            for file, content in ((self.key, one), (self.certificate, other)):
                file.unlink(missing_ok=True)
                if content is not None:
                    file.write_bytes(content)
            with self.logged() as lines:
                self.assertFalse(credentials.reload())
            self.assertEqual(len(lines), 1, problem)
            self.assertRegex(lines[0], problem)
            self.assertNotIn("\n", lines[0])
            self.assertEqual(self.call(server).serial(), serial)
        write_pair(self.folder, (key.decode(), certificate.decode()))
        self.assertTrue(credentials.reload())
        self.assertNotEqual(self.call(server).serial(), serial)

    def test_no_session_is_resumed(self) -> None:
        """Without it a client could go on with an old certificate, or with one that is not let in any more."""
        for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            endpoint, server = self.endpoint()
            context = trusting()
            context.maximum_version = newest
            for _ in range(2):
                first = self.call(server, context)
                first.ask(b"x")
                again = self.call(server, context, session=first.tls.session)
                self.assertFalse(again.tls.session_reused)
                write_pair(self.folder, ROOT.issue("localhost"))
                self.assertTrue(self.credentials(endpoint).reload())
                again = self.call(server, context, session=first.tls.session)
                self.assertFalse(again.tls.session_reused)
                self.assertEqual(again.ask(b"y"), b"192.0.2.7 y")


class ChainTests(EndpointTestCase):
    """Certificates that an intermediate authority has signed."""

    def test_in_the_certificate_file_or_in_one_of_its_own(self) -> None:
        """Without it browsers would refuse what certbot writes: the chain is in ``fullchain.pem``."""
        key, certificate = INTERMEDIATE.issue("localhost")
        write_pair(self.folder, (key, certificate))
        _, server = self.endpoint()
        self.assert_refused(server, trusting(), "unable to get local issuer certificate")
        chain = self.folder / "chain.pem"
        chain.write_text(INTERMEDIATE.pem)
        endpoint, server = self.endpoint(self.described(f"extraCertChain={chain}"))
        self.assertEqual(self.call(server).ask(b"x"), b"192.0.2.7 x")
        self.assertIn(str(chain), self.credentials(endpoint).files)
        write_pair(self.folder, (key, certificate + INTERMEDIATE.pem))
        _, server = self.endpoint()
        self.assertEqual(self.call(server).ask(b"x"), b"192.0.2.7 x")

    def test_all_in_one_file(self) -> None:
        """Without it an endpoint string that names one file, as Twisted allows, would not start."""
        both = self.folder / "all.pem"
        both.write_text("".join(ROOT.issue("localhost")))
        endpoint, server = self.endpoint(f"ssl:443:{both}")
        self.assertEqual(self.call(server).ask(b"x"), b"192.0.2.7 x")
        self.assertEqual(self.credentials(endpoint).files, (str(both),))


class ClientCertificateTests(EndpointTestCase):
    """Endpoints that ask who is calling."""

    def setUp(self) -> None:
        super().setUp()
        self.authorities = self.folder / "authorities.pem"
        self.authorities.write_text(OTHER.pem)

    def pair(self, authority: Authority, name: str) -> tuple[Path, Path]:
        """A client's key and certificate."""
        return write_pair(self.folder, authority.issue("front-2.example"), name)

    def test_who_is_let_in(self) -> None:
        """Without it anybody who reaches the port could try to be a front."""
        endpoint, server = self.endpoint(client_ca=str(self.authorities))
        self.assertIn(str(self.authorities), self.credentials(endpoint).files)
        known = trusting(pair=self.pair(OTHER, "known"))
        self.assertEqual(self.call(server, known).ask(b"x"), b"192.0.2.7 x")
        self.assert_refused(server, trusting(), "(?i)certificate.required")
        self.assert_refused(server, trusting(pair=self.pair(ROOT, "foreign")), "(?i)unknown.ca")
        itself = write_pair(self.folder, self_signed_pem("front-2.example"), "itself")
        self.assert_refused(server, trusting(pair=itself), "(?i)unknown.ca")

    def test_the_authorities_are_read_again(self) -> None:
        """Without it an authority that must not be trusted any more would be, until the next restart."""
        endpoint, server = self.endpoint(client_ca=str(self.authorities))
        known, coming = trusting(pair=self.pair(OTHER, "known")), trusting(pair=self.pair(ROOT, "coming"))
        self.call(server, known).ask(b"x")
        self.authorities.write_text(OTHER.pem + ROOT.pem)
        self.assertTrue(self.credentials(endpoint).reload())
        for context in (known, coming):
            self.assertEqual(self.call(server, context).ask(b"x"), b"192.0.2.7 x")
        self.authorities.write_text(ROOT.pem)
        self.assertTrue(self.credentials(endpoint).reload())
        self.assert_refused(server, known, "(?i)unknown.ca")
        self.authorities.write_text("nothing")
        with self.logged() as lines:
            self.assertFalse(self.credentials(endpoint).reload())
        self.assertRegex(lines[0], f"^PEER_CLIENT_CA: {self.authorities} holds no certificate")
        self.assert_refused(server, trusting(), "(?i)certificate.required")

    def test_an_intermediate_authority(self) -> None:
        """Without it all that the authority above has signed would have to be let in too."""
        self.authorities.write_text(INTERMEDIATE.pem)
        _, server = self.endpoint(client_ca=str(self.authorities))
        self.call(server, trusting(pair=self.pair(INTERMEDIATE, "below"))).ask(b"x")
        self.assert_refused(server, trusting(pair=self.pair(ROOT, "above")), "(?i)unknown.ca")

    def test_the_file(self) -> None:
        """Without it a slip in PEER_CLIENT_CA would be called one in PEER_LISTEN."""
        check_authorities(str(self.authorities))
        with self.assertRaisesRegex(EndpointError, "^/nowhere cannot be read: No such file"):
            check_authorities("/nowhere")
        with self.assertRaisesRegex(EndpointError, f"^{self.key} holds no certificate"):
            check_authorities(str(self.key))
