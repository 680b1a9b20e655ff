"""TLS of the listening endpoints: TLS 1.2 or newer, good ciphers, certificates that change while the front runs.

Connections are made with what was loaded last: a reload is for new handshakes, those that are through go on. No
session is resumed, so nothing of an old certificate or of an old authority outlives the reload.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, Error, PKey, X509StoreFlags
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import (
    AcceptableCiphers,
    Certificate,
    CertificateOptions,
    DiffieHellmanParameters,
    TLSVersion,
    trustRootFromCertificates,
)
from twisted.logger import Logger
from twisted.python.filepath import FilePath
from zope.interface import implementer

from kollator.net.endpoints import EndpointError

log = Logger("kollator:tls")

FILE_BYTES = 1_048_576
"""More than any certificate or list of authorities has."""
CIPHERS = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!DSS")
"""For TLS 1.2: forward secrecy and authenticated encryption only, as Mozilla's "intermediate" has it. TLS 1.3 has none
that is not so. DHE takes ``dhParameters``."""

_ANY_VERSION = ("TLS_METHOD", "TLS_SERVER_METHOD", "SSLv23_METHOD")
_ONE_VERSION = {"TLSv1_2_METHOD": TLSVersion.TLSv1_2}


@implementer(IOpenSSLServerConnectionCreator)
class Credentials:
    """The private key and the certificate of one TLS endpoint, in PEM files that may be replaced at any time.

    ``certificate`` may hold the chain too, the endpoint's own certificate first, as ``chain`` does without that one.
    ``dh_parameters`` allows DHE. ``client_ca`` is a file of authorities: with it only clients are let in that show a
    certificate signed by one of them. ``method`` is the ``sslmethod`` of an endpoint string.

    Raises ``EndpointError``.
    """

    def __init__(
        self,
        private_key: str,
        certificate: str,
        *,
        chain: str | None = None,
        dh_parameters: str | None = None,
        client_ca: str | None = None,
        method: str | None = None,
    ) -> None:
        self._named = {"privateKey": private_key, "certKey": certificate}
        for name, path in (("extraCertChain", chain), ("dhParameters", dh_parameters), ("PEER_CLIENT_CA", client_ca)):
            if path is not None:
                self._named[name] = path
        self.certificate = certificate
        self.files = tuple(dict.fromkeys(self._named.values()))
        """The files to watch."""
        self._newest = _newest(method)
        self._contents = self._read()
        self._options = self._load(self._contents)

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        """The TLS of one new connection, with the certificate of this moment."""
        return self._options.serverConnectionForTLS(protocol)

    def reload(self) -> bool:
        """Reads the files again; True when something new was taken. What cannot be used is said and left alone.

        That keeps an endpoint alive while its files are being replaced one after the other.
        """
        try:
            contents = self._read()
            if contents == self._contents:
                return False
            self._options = self._load(contents)
        except EndpointError as problem:
            log.warn("{problem}; new connections get the certificate that was there before", problem=str(problem))
            return False
        self._contents = contents
        log.info(
            "the certificate in {certificate} was read again; it is good until {until}",
            certificate=self.certificate,
            until=f"{self._certificates(contents, 'certKey')[0].not_valid_after_utc:%Y-%m-%d %H:%M UTC}",
        )
        return True

    def _read(self) -> dict[str, bytes]:
        return {name: _content(f"{name}: {path}", path) for name, path in self._named.items()}

    def _certificates(self, contents: dict[str, bytes], name: str) -> list[x509.Certificate]:
        return _certificates(contents[name], f"{name}: {self._named[name]}") if name in self._named else []

    def _load(self, contents: dict[str, bytes]) -> Any:
        own, *chain = self._certificates(contents, "certKey")
        chain += self._certificates(contents, "extraCertChain")
        trusted = self._certificates(contents, "PEER_CLIENT_CA")
        authorities = [Certificate.loadPEM(one.public_bytes(Encoding.PEM)) for one in trusted]
        key = self._key(contents["privateKey"], own)
        dh = self._named.get("dhParameters")
        try:
            options: Any = CertificateOptions(
                privateKey=key,
                certificate=X509.from_cryptography(own),
                extraCertChain=[X509.from_cryptography(one) for one in chain],
                dhParameters=None if dh is None else DiffieHellmanParameters.fromFile(FilePath(dh)),
                acceptableCiphers=CIPHERS,
                raiseMinimumTo=TLSVersion.TLSv1_2,
                lowerMaximumSecurityTo=self._newest,
                trustRoot=trustRootFromCertificates(authorities) if authorities else None,
            )
            context = options.getContext()  # made now, so that what is wrong comes out now
        except (Error, SSL.Error, ValueError) as problem:
            raise EndpointError(f"certKey: {self.certificate} cannot be used: {_openssl(problem)}") from None
        if authorities:
            # An authority may be an intermediate one: what the operator names is where trust begins.
            context.get_cert_store().set_flags(X509StoreFlags.PARTIAL_CHAIN)
        return options

    def _key(self, content: bytes, certificate: x509.Certificate) -> PKey:
        path = self._named["privateKey"]
        try:
            # OpenSSL itself would ask for the password of an encrypted key, on the terminal, and wait.
            key: Any = load_pem_private_key(content, None)
            public, form = key.public_key(), (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            belongs = public.public_bytes(*form) == certificate.public_key().public_bytes(*form)
            loaded = PKey.from_cryptography_key(key)
        except TypeError:
            raise EndpointError(f"privateKey: {path} is encrypted, or of a kind that TLS does not take") from None
        except Exception:  # whatever is in the file
            raise EndpointError(f"privateKey: {path} holds no private key in PEM form") from None
        if not belongs:
            raise EndpointError(f"privateKey: {path} does not belong to the certificate in {self.certificate}")
        return loaded


def check_authorities(path: str) -> None:
    """Raises ``EndpointError`` when ``path`` is not a PEM file of certificates."""
    _certificates(_content(path), path)


def _newest(method: str | None) -> Any:
    """The highest version that ``sslmethod`` allows; None for all."""
    if method is None or method in _ANY_VERSION:
        return None
    if method not in _ONE_VERSION:
        allowed = ", ".join((*_ANY_VERSION[:1], *_ONE_VERSION))
        raise EndpointError(
            f"sslmethod={method} is not TLS 1.2 or newer; leave sslmethod out, or write one of {allowed}"
        )
    return _ONE_VERSION[method]


# -- files ------------------------------------------------------------------------------------------------------------


def _content(what: str, path: str = "") -> bytes:
    try:
        with open(path or what, "rb") as file:
            content = file.read(FILE_BYTES + 1)
    except (OSError, ValueError) as problem:
        raise EndpointError(f"{what} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if len(content) > FILE_BYTES:
        raise EndpointError(f"{what} is larger than {FILE_BYTES} bytes")
    return content


def _certificates(content: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except Exception:  # whatever is in the file
        raise EndpointError(f"{what} holds no certificate in PEM form, or a broken one") from None


def _openssl(problem: Exception) -> str:
    """What OpenSSL says, without its numbers."""
    entries = problem.args[0] if problem.args else None
    if isinstance(entries, (list, tuple)) and entries:
        return "; ".join(str(entry[-1]) for entry in entries)
    return " ".join(str(problem).split()) or type(problem).__name__
