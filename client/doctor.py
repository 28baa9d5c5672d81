"""``silotune client doctor``: what could keep a merchant's silo from its work."""

import datetime as dt
import os
import pwd
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from client.config import ClientConfig, read_client
from client.first_look import trouble_with
from privacy.chain_view import checked_entries
from privacy.ledger_report import verify
from privacy.policy import Policy
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
from silotune.supervision import read_state
from silotune.tables.schema import STORED
from silotune.tables.silo_folder import SiloFolder
from silotune.tls_look import shown_certificate

__all__ = ["client_findings"]

_DAYS = 30
_PRIVATE = (
    *("node.key", "superexec.secret", "observe.token", "user.key"),
    *("ledger.db", "ledger.key", "ledger.anchor", "silo.log"),
    *(f"{table.name}.parquet" for table in STORED if "user_id" in table.names),
)
_GUARDED = ("client.toml", "policy.toml")


def client_findings(folder: Path) -> list[Finding]:
    """Return what is right and wrong with the silo in ``folder``.

    Raises:
        ConfigError: it has no client.toml that can be read.
    """
    settings = read_client(folder)
    checks: list[Check] = [
        ("tables", lambda: _tables(folder)),
        ("policy", lambda: _policy(folder, settings)),
        ("ledger", lambda: _ledger(folder, settings)),
        ("node key", lambda: _key(folder)),
        ("aggregator", lambda: _aggregator(settings)),
        ("clock", lambda: check_clock(folder)),
        ("permissions", lambda: check_permissions(folder, _PRIVATE, _GUARDED)),
        ("account", lambda: _account(settings)),
        ("metrics", lambda: _metrics(settings)),
        ("disk", lambda: check_disk(folder)),
        ("versions", check_versions),
        ("GPU", _gpu),
        ("processes", lambda: check_processes(folder, "silotune client start")),
    ]
    return check_all(checks)


def _tables(folder: Path) -> Finding:
    info = SiloFolder.open(folder).info
    return ok("tables", f"of '{info.name}', {info.nominal_users} users declared")


def _policy(folder: Path, settings: ClientConfig) -> Finding:
    path = folder / "policy.toml"
    policy = from_toml(Policy, path)
    if settings.server.identity not in policy.servers:
        words = f"{path}: does not list the aggregator of client.toml; all is refused"
        remedy = f"If you trust it, add '{settings.server.identity}' to servers."
        return fail("policy", words, remedy)
    words = f"ε = {policy.epsilon:g}, δ = {policy.delta:g} for each user"
    if policy.plain_training or policy.seeded_noise or settings.noise_seed is not None:
        remedy = "Set plain_training and seeded_noise to false, and remove noise_seed."
        return fail("policy", f"{path}: allows what protects nobody", remedy)
    return ok("policy", words)


def _ledger(folder: Path, settings: ClientConfig) -> Finding:
    path = folder / "ledger.db"
    anchor = Path(settings.anchor) if settings.anchor else None
    if not path.exists():
        left = (path.with_suffix(".key"), anchor or path.with_suffix(".anchor"))
        if any(p.exists() for p in left):
            remedy = "Put the newest copy back; without it, what was spent is unknown."
            return fail("ledger", f"{path}: is missing, its key or anchor is there", remedy)
        return ok("ledger", "none yet; the first private training makes it")
    if read_state(folder) is not None:
        # The daemon holds it.
        count = len(checked_entries(path, anchor=anchor))
        return ok("ledger", f"{count} entries as written; the daemon goes on with it")
    found = verify(path, anchor=anchor, wait=1.0)
    return ok("ledger", f"{found.entries} entries as written, ε = {found.epsilon:.3f} spent")


def _key(folder: Path) -> Finding:
    path = folder / "node.key"
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return fail("node key", f"{path}: no elliptic-curve key", "Enrol anew with another key.")
    secret = (folder / "superexec.secret").stat().st_size
    if secret < 16:
        words = f"{folder / 'superexec.secret'}: {secret} bytes"
        return fail("node key", words, "Write 32 random bytes there; node and daemon share it.")
    return ok("node key", f"ECDSA {key.curve.name}")


def _aggregator(settings: ClientConfig) -> Finding:
    # Here: it imports Flower.
    from client.flower_node import pinned_context

    server = settings.server
    context = pinned_context(server.ca, server.certificate_sha256)
    trouble = trouble_with(server.address, context)
    if trouble is not None:
        return fail("aggregator", trouble, "See the message; nothing leaves until it is right.")
    host, _, port = server.address.rpartition(":")
    shown = shown_certificate(host.strip("[]"), int(port), context)
    days = (shown.not_valid_after_utc - dt.datetime.now(dt.UTC)).days
    words = f"{server.address} shows the pinned certificate, {days} days left; clocks agree"
    if days < _DAYS:
        return warn("aggregator", words, "Ask for the next invitation.")
    return ok("aggregator", words)


def _account(settings: ClientConfig) -> Finding:
    if os.geteuid() != 0:
        return ok("account", f"node and daemon run as {pwd.getpwuid(os.geteuid()).pw_name}")
    if settings.node_user is None:
        remedy = "Set node_user in client.toml to an account of its own."
        return warn("account", "the node, which faces the network, runs as root", remedy)
    try:
        found = pwd.getpwnam(settings.node_user)
    except KeyError:
        words = f"node_user '{settings.node_user}' does not exist"
        return fail("account", words, f"useradd --system {settings.node_user}, or name another.")
    if found.pw_uid == 0:
        return fail("account", "node_user is root", "Name an account without rights.")
    if settings.node_user == "nobody":
        words = "the node runs as nobody, which other programs may be too"
        return warn("account", words, "Make an account of its own: useradd --system silotune-node.")
    return ok("account", f"the node runs as {settings.node_user}")


def _metrics(settings: ClientConfig) -> Finding:
    seen = settings.observe
    if seen.is_loopback:
        return ok("metrics", f"on {seen.host}, with the token in observe.token")
    words = f"on {seen.host}: figures that are not noised can be read from other machines"
    return warn("metrics", words, "Set [observe] host to 127.0.0.1.")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return ok("GPU", ", ".join(_cuda(n) for n in range(torch.cuda.device_count())))
    if Path("/dev/nvidia0").exists():
        words = f"there is one, and torch {torch.__version__} cannot use it"
        return warn("GPU", words, "Install torch with CUDA for this driver.")
    return ok("GPU", "none; training uses the processor")


def _cuda(number: int) -> str:
    import torch

    about = torch.cuda.get_device_properties(number)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
