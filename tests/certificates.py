"""Certificates for the tests of TLS: signed by themselves, or by an authority of the test's own."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

PEM = serialization.Encoding.PEM


def _made(
    subject: str, names: tuple[str, ...], ca: bool, issuer: Authority | None = None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    signing = key if issuer is None else issuer.key
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(text)) if text[-1].isdigit() else x509.DNSName(text) for text in names
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(subject) if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(_usage(ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return key, builder.sign(signing, SHA256())


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> tuple[str, str]:
    encoded_key = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return encoded_key.decode("ascii"), certificate.public_bytes(PEM).decode("ascii")


def self_signed(*names: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A fresh key and its certificate, good for a day, for host names and IPv4 addresses."""
    return _made("front.example", names, ca=True)


def self_signed_pem(*names: str) -> tuple[str, str]:
    """The same, both as PEM: key and certificate."""
    return _pem(*self_signed(*names))


class Authority:
    """An authority that signs certificates; with an ``issuer`` an intermediate one."""

    def __init__(self, subject: str = "authority.example", issuer: Authority | None = None) -> None:
        self.key, self.certificate = _made(subject, (), ca=True, issuer=issuer)
        _, self.pem = _pem(self.key, self.certificate)

    def issue(self, *names: str) -> tuple[str, str]:
        """A key and a certificate for these names, both as PEM."""
        return _pem(*_made("front.example", names, ca=False, issuer=self))


def write_pair(folder: Path, pair: tuple[str, str], name: str = "front") -> tuple[Path, Path]:
    """Writes a key and a certificate, both in PEM, and returns the paths of ``NAME.key`` and ``NAME.crt``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{name}.key", folder / f"{name}.crt"
    for file, text in zip(files, pair, strict=True):
        file.write_text(text)
    return files
