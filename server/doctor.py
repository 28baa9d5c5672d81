"""``silotune server doctor``: what could keep the aggregator from its work."""

import datetime as dt
import ipaddress
import socket
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.certificates import certificate_sha256
from server.config import ServerConfig, read_server
from silotune.config import from_toml
from silotune.doctor import (
    Check,
    Finding,
    check_all,
    check_clock,
    check_disk,
    check_permissions,
    check_processes,
    check_versions,
    fail,
    ok,
    warn,
)
from silotune.invitation import Invitation
from silotune.supervision import read_state
from silotune.tls_look import shown_certificate

__all__ = ["server_findings"]

_DAYS = 30
"""Left of a certificate, below which it is time for another."""
_PRIVATE = ("ca.key", "superexec.secret", "observe.token", "state.db")


def server_findings(folder: Path) -> list[Finding]:
    """Return what is right and wrong with the aggregator in ``folder``.

    Raises:
        ConfigError: it has no server.toml that can be read.
    """
    settings = read_server(folder)
    checks: list[Check] = [
        ("certificate", lambda: _certificate(folder, settings)),
        ("authority", lambda: _authority(folder, settings)),
        ("invitation", lambda: _invitation(folder, settings)),
        ("listener", lambda: _listener(folder, settings)),
        ("clock", lambda: check_clock(folder)),
        ("permissions", lambda: check_permissions(folder, (*_PRIVATE, settings.key))),
        ("metrics", lambda: _metrics(settings)),
        ("disk", lambda: check_disk(folder)),
        ("versions", check_versions),
        ("processes", lambda: check_processes(folder, "silotune server start")),
    ]
    return check_all(checks)


def _certificate(folder: Path, settings: ServerConfig) -> Finding:
    path = folder / settings.certificate
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    now = dt.datetime.now(dt.UTC)
    days = (certificate.not_valid_after_utc - now).days
    again = "Make another, and send merchants the new invitation: they pin the old one."
    if now < certificate.not_valid_before_utc:
        return fail("certificate", f"{path}: not yet valid", "Set the clock right.")
    if now > certificate.not_valid_after_utc:
        return fail("certificate", f"{path}: expired {-days} days ago", again)
    key = load_pem_private_key((folder / settings.key).read_bytes(), None)
    if key.public_key() != certificate.public_key():
        words = f"{folder / settings.key}: is not the key of {path}"
        return fail("certificate", words, "Put the right key there.")
    host = settings.public_address.rpartition(":")[0].strip("[]")
    if host not in _names(certificate):
        words = f"{path}: is not for {host}"
        return fail("certificate", words, "Make one for the host of public_address.")
    if days < _DAYS:
        return warn("certificate", f"{path}: {days} days left", again)
    return ok("certificate", f"for {host}, {days} days left")


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        a
        for a in found.get_values_for_type(x509.IPAddress)
        if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return {*found.get_values_for_type(x509.DNSName), *(str(a) for a in addresses)}


def _authority(folder: Path, settings: ServerConfig) -> Finding:
    path = folder / settings.ca
    authority = x509.load_pem_x509_certificate(path.read_bytes())
    certificate = x509.load_pem_x509_certificate((folder / settings.certificate).read_bytes())
    days = (authority.not_valid_after_utc - dt.datetime.now(dt.UTC)).days
    if days < 0:
        return fail("authority", f"{path}: expired {-days} days ago", "Make a new one.")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        words = f"{path}: did not sign {settings.certificate}"
        return fail("authority", words, "Name in server.toml, ca, the one that did.")
    return ok("authority", f"{days} days left")


def _invitation(folder: Path, settings: ServerConfig) -> Finding:
    path = folder / "invitation.toml"
    invited = from_toml(Invitation, path)
    digest = certificate_sha256(folder / settings.certificate)
    if invited.certificate_sha256 != digest:
        words = f"{path}: pins another certificate than {settings.certificate}"
        return fail("invitation", words, "Write the digest there and tell every merchant.")
    if invited.address != settings.public_address:
        words = f"{path}: names {invited.address}, server.toml {settings.public_address}"
        return fail("invitation", words, "Make them the same.")
    return ok("invitation", f"sha256:{digest[:16]}…")


def _listener(folder: Path, settings: ServerConfig) -> Finding:
    where = f"{settings.host}:{settings.port}"
    running = read_state(folder)
    if running is None:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind((settings.host, settings.port))
            except OSError as error:
                words = f"{where}: {error.strerror}"
                return fail("listener", words, "Stop who has it, or change port in server.toml.")
        return ok("listener", f"{where} is free")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    try:
        shown = shown_certificate(host, settings.port)
    except OSError as error:
        remedy = f"Read {folder / 'logs' / 'superlink.log'}."
        return fail("listener", f"{where}: nobody answers ({error})", remedy)
    certificate = x509.load_pem_x509_certificate((folder / settings.certificate).read_bytes())
    if shown != certificate:
        words = f"{where}: shows another certificate than {settings.certificate}"
        return fail("listener", words, "Restart it; or another program has the port.")
    return ok("listener", f"{where} answers with {settings.certificate}")


def _metrics(settings: ServerConfig) -> Finding:
    seen = settings.observe
    if seen.is_loopback:
        return ok("metrics", f"on {seen.host}, with the token in observe.token")
    words = f"on {seen.host}: other machines reach metrics and dashboard, without TLS"
    return warn("metrics", words, "Put a proxy with TLS before it, or set [observe] host.")
