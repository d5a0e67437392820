"""Certificates of authorities that nobody trusts but a test."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raycache.settings import TlsFiles

DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """Signs certificates.

    Args:
        directory: where the files go.
        name: of the authority.
    """

    directory: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        self._certificate = self._builder(self.name, self._key, []).add_extension(constraint, True)
        self._signed = self._certificate.sign(self._key, hashes.SHA256())
        self.path = self.directory / f"{self.name}.pem"
        self.path.write_bytes(self._signed.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, addresses: Sequence[str] = ("127.0.0.1",), mutual: bool = False) -> TlsFiles:
        """Files of a process with a certificate for some IP addresses, written over those of the same name."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._builder(name, key, addresses).sign(self._key, hashes.SHA256())
        cert, secret = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return TlsFiles(str(self.path), str(cert), str(secret), mutual)

    def trusted(self) -> TlsFiles:
        """Files of a client that has no certificate."""
        return TlsFiles(str(self.path))

    def _builder(
        self, name: str, key: ec.EllipticCurvePrivateKey, addresses: Sequence[str]
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )
        if addresses:
            names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        return builder
