"""Makes an aggregator's folder and lets merchants in."""

import secrets
from dataclasses import asdict
from pathlib import Path

import httpx

from privacy.durable import write_whole
from server.certificates import certificate_sha256, make_authority, make_server_certificate
from server.config import ServerConfig, read_server
from server.flower_link import Control
from silotune.config import from_mapping
from silotune.errors import ConfigError
from silotune.invitation import Invitation, read_enrolment
from silotune.supervised import socket_path
from silotune.supervision import read_state
from silotune.toml_text import toml_text

__all__ = ["OwnCertificate", "control", "enrol", "init", "renew"]

OwnCertificate = tuple[Path, Path, Path]
"""Certificate, key and authority that an operator brings."""


def init(
    folder: Path,
    *,
    name: str,
    address: str,
    listen: str,
    own: OwnCertificate | None = None,
) -> Invitation:
    """Make an aggregator's folder; return the invitation, which is also in it.

    Args:
        folder: to make.
        name: of the aggregator, for people.
        address: HOST:PORT that merchants use; the certificate is for this host.
        listen: address of the network interface.
        own: certificates of the operator; None: make an authority and a certificate.

    Raises:
        ConfigError: the folder has an aggregator, or an argument is wrong.
    """
    if (folder / "server.toml").exists():
        raise ConfigError(f"{folder}: is an aggregator's folder already.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"address is {address!r}; write HOST:PORT.")
    files = dict(zip(("certificate", "key", "ca"), map(str, own or ()), strict=False))
    settings = from_mapping(
        ServerConfig,
        {"name": name, "host": listen, "port": int(port), "public_address": address, **files},
        where="server.toml",
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own is None:
        make_authority(folder, name)
        make_server_certificate(folder, name, [host])
    write_whole(folder / "superexec.secret", secrets.token_bytes(32))
    invitation = _invite(folder, settings)
    # Last: a folder that has it is whole.
    write_whole(folder / "server.toml", f"{toml_text(asdict(settings))}\n".encode())
    return invitation


def renew(folder: Path) -> Invitation:
    """Make a new server certificate of the folder's own authority; return the new invitation.

    It counts from the next start on. Merchants accept it once they have put the invitation into
    their client.toml and its digest into their policy.toml.

    Raises:
        ConfigError: the operator brought the certificates, or the folder is none of an aggregator.
    """
    settings = read_server(folder)
    if not (folder / "ca.key").exists():
        raise ConfigError(
            f"{folder}: has no ca.key: its certificates came from another authority. Put a new "
            f"certificate and key at {settings.certificate} and {settings.key}."
        )
    host = settings.public_address.rpartition(":")[0]
    make_server_certificate(folder, settings.name, [host])
    return _invite(folder, settings)


def _invite(folder: Path, settings: ServerConfig) -> Invitation:
    invitation = Invitation(
        name=settings.name,
        address=settings.public_address,
        certificate_sha256=certificate_sha256(folder / settings.certificate),
        ca=(folder / settings.ca).read_text(encoding="ascii"),
    )
    text = "# For merchants; nothing in it is secret.\n" + toml_text(asdict(invitation))
    write_whole(folder / "invitation.toml", f"{text}\n".encode())
    return invitation


def control(folder: Path) -> Control:
    """Return the running SuperLink's Control API. Raises ConfigError when it does not run."""
    read_server(folder)
    state = read_state(folder)
    if state is None or not state["processes"].get("superlink", {}).get("ready"):
        raise ConfigError(f"{folder}: is not running; start it with `silotune server start`.")
    return Control(socket_path(folder, "superlink.sock"))


def enrol(folder: Path, file: Path) -> int:
    """Let the merchant of the enrolment ``file`` in; return its node's number.

    Raises:
        ConfigError: the file is wrong, the name is another merchant's, or the aggregator does
            not run.
    """
    asked = read_enrolment(file)
    kept = folder / "merchants" / f"{asked.name}.json"
    if kept.exists() and read_enrolment(kept).public_key != asked.public_key:
        raise ConfigError(f"{file}: '{asked.name}' is enrolled with another key already.")
    with control(folder) as link:
        known = {n.public_key: n for n in link.nodes() if n.status != "unregistered"}
        key = asked.public_key.encode()
        if key in known:
            node = known[key].node_id
        else:
            try:
                node = link.register(key, asked.name)
            except httpx.HTTPStatusError as error:
                raise ConfigError(f"{file}: the key is refused: {error.response.text}.") from error
    write_whole(kept, asked.text().encode())
    # Whose release is whose, for readers that do not ask the SuperLink.
    write_whole(kept.with_suffix(".node"), f"{node}\n".encode())
    return node
