"""The aggregator's certificates: an authority of its own, and a server certificate from it."""

import datetime as dt
import hashlib
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy.durable import write_whole
from silotune.errors import ConfigError

__all__ = ["certificate_sha256", "check_dates", "make_authority", "make_server_certificate"]

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
_CLOCKS = dt.timedelta(minutes=5)
"""The other side's clock may be behind by so much."""


def make_authority(folder: Path, name: str) -> None:
    """Write ``ca.crt`` and ``ca.key`` (0600), ECDSA P-384, for ten years."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _name(f"{name} authority")
    certificate = (
        _builder(subject, subject, key, days=_AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    _write(folder / "ca.key", key)
    write_whole(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(folder: Path, name: str, hosts: list[str]) -> None:
    """Write ``server.crt`` and ``server.key`` (0600), signed by the authority in ``folder``.

    Args:
        folder: with ``ca.crt`` and ``ca.key``.
        name: of the aggregator.
        hosts: host names and addresses under which merchants reach it.
    """
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'ca.key'}: not an elliptic-curve key.")
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _builder(_name(name), authority.subject, key, days=_SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write(folder / "server.key", key)
    write_whole(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM))


def certificate_sha256(path: Path) -> str:
    """Return the SHA-256 of the first certificate in the PEM file ``path``, over its DER form.

    Raises:
        ConfigError: there is none.
    """
    return hashlib.sha256(_read(path).public_bytes(serialization.Encoding.DER)).hexdigest()


def check_dates(path: Path) -> None:
    """Check that the certificate in ``path`` is valid now: no merchant connects to another.

    Raises:
        ConfigError: it has expired, is not yet valid, or is none.
    """
    certificate, now = _read(path), dt.datetime.now(dt.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise ConfigError(
            f"{path}: expired on {ends:%Y-%m-%d %H:%M} UTC, and merchants refuse it. Make a new "
            "one with `silotune server renew`, or put your own authority's in its place, and send "
            "every merchant the new invitation."
        )
    if now < begins:
        raise ConfigError(
            f"{path}: valid from {begins:%Y-%m-%d %H:%M} UTC on; this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}. Set the clock by a time service."
        )


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a PEM certificate ({error}).") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_whole(path, pem)
