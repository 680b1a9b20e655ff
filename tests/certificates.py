"""Self-signed certificates for the tests of TLS."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256


def self_signed(*names: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A fresh key and its certificate, good for a day, for host names and IPv4 addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "front.example")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(text)) if text[-1].isdigit() else x509.DNSName(text) for text in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return key, certificate


def self_signed_pem(*names: str) -> tuple[str, str]:
    """The same, both as PEM: key and certificate."""
    key, certificate = self_signed(*names)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    encoded_key = key.private_bytes(encoding, form, serialization.NoEncryption())
    return encoded_key.decode("ascii"), certificate.public_bytes(encoding).decode("ascii")
