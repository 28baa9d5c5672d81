"""Makes a silo folder a merchant that can take part, and writes its enrolment."""

import contextlib
import os
import re
import secrets
from dataclasses import asdict
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.accepted import AcceptedRun, read_run
from client.config import ClientConfig, read_client
from privacy.durable import write_whole
from privacy.policy import ANY_RUN, Policy
from silotune.config import from_toml
from silotune.errors import ConfigError
from silotune.invitation import Enrolment, Invitation
from silotune.models.base import base_digest, load_base
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.names import names_in
from silotune.toml_text import toml_text

__all__ = ["accept", "enrolment", "init"]

_RUNS = re.compile(r"^runs *= *\[[^\]\n]*\]", re.MULTILINE)
_POLICY = """\
# The merchant's own limits. No server can change them; a request that passes one is refused
# whole, and the server learns the limit's name only.

# Budget of each customer, for the life of the ledger, over all tasks and runs. When it is spent,
# this silo releases nothing more. 8 is a common first value; smaller protects more.
epsilon = {epsilon}
# Chance that the guarantee fails: well below one over the number of customers, {users} here.
delta = {delta}

# Base models whose adapters may be trained, by digest ('none': no text). This is {base}.
base_digests = ["{digest}"]
# Aggregators that may ask, by the digest of their certificate. This is '{server}'.
servers = ["{identity}"]
tasks = [{tasks}]
# Run files whose requests are answered, by digest: read them in runs/. `silotune client accept`
# adds one. "any": whatever is inside the limits below.
runs = ["{run}"]

# Least noise of a step, in units of the clip norm, and the kinds of noise.
noise_multiplier_min = 0.5
mechanisms = ["gaussian", "discrete-gaussian"]
# The largest clip norm, share of customers in a step, steps of a request, and examples of one
# customer in a step.
clip_norm_max = 10.0
sampling_rate_max = 0.5
steps_max = 100
examples_per_user_max = 64
# Above 0: a reply leaves at a multiple of so many seconds after the request.
reply_interval = 0.0

# Never for real customers: training without privacy, and noise that can be made again.
plain_training = false
seeded_noise = false

# Noised sums about quality that may leave, and the most each release may cost of epsilon:
# [metrics]
# scores = 0.5
# Noised centroids of customers leave when you give the command `silotune client centroids`:
# centroids = 0.5
"""


def init(folder: Path, invitation: Path, run: Path, *, epsilon: float = 8.0) -> str:
    """Make ``client.toml``, ``policy.toml``, node key and secret in a silo folder.

    A ``policy.toml`` that is there stays as it is. Returns the aggregator's identity, for the
    operator to compare with what the aggregator says over another channel.

    Args:
        folder: made by `silotune data import`.
        invitation: file of the aggregator.
        run: its run file; gives task and model.
        epsilon: budget of each customer.

    Raises:
        ConfigError: a file is wrong, or the folder takes part already.
        DataError: it is no silo folder.
    """
    silo = SiloFolder.open(folder)
    if (folder / "client.toml").exists():
        raise ConfigError(f"{folder}: has a client.toml already.")
    server, (agreed, digest) = from_toml(Invitation, invitation), read_run(run)
    write_new(folder / "node.key", _new_key())
    write_new(folder / "superexec.secret", secrets.token_bytes(32))
    _keep_run(folder, agreed, run)
    _write_policy(folder, silo, server, agreed, epsilon, digest)
    settings = ClientConfig(server=server, task=asdict(agreed.task), model=asdict(agreed.model))
    head = "# Which aggregator, task and model; see client/config.py for every key.\n"
    # Last: a folder that has it is whole.
    write_whole(folder / "client.toml", f"{head}{toml_text(asdict(settings))}\n".encode())
    return server.identity


def accept(folder: Path, run: Path) -> str:
    """Add the aggregator's run file ``run`` to what a merchant's policy lists; return its digest.

    A daemon that is running goes by it after its next start.

    Raises:
        ConfigError: the file is wrong, another accepted run has its job's name, or ``runs`` in
            ``policy.toml`` is not one list in one line.
    """
    read_client(folder)
    agreed, digest = read_run(run)
    path = folder / "policy.toml"
    policy, text = from_toml(Policy, path), path.read_text(encoding="utf-8")
    if digest in policy.runs or ANY_RUN in policy.runs:
        return digest
    lines = _RUNS.findall(text)
    if len(lines) != 1:
        raise ConfigError(f"{path}: write {digest!r} into its list 'runs' by hand.")
    _keep_run(folder, agreed, run)
    listed = ", ".join(f'"{r}"' for r in (*policy.runs, digest))
    write_whole(path, text.replace(lines[0], f"runs = [{listed}]").encode())
    from_toml(Policy, path)
    return digest


def _keep_run(folder: Path, agreed: AcceptedRun, run: Path) -> None:
    kept = folder / "runs" / f"{agreed.job.name}.toml"
    kept.parent.mkdir(exist_ok=True)
    if kept.exists() and read_run(kept)[1] != read_run(run)[1]:
        raise ConfigError(f"{kept}: is another run of this name, and was accepted.")
    write_whole(kept, run.read_bytes())


def enrolment(folder: Path) -> Enrolment:
    """Return all that the aggregator is told: name, public key, declared number of users."""
    read_client(folder)
    info = SiloFolder.open(folder).info
    key = serialization.load_pem_private_key((folder / "node.key").read_bytes(), None)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Enrolment(
        name=info.name, public_key=public.decode("ascii"), nominal_users=info.nominal_users
    )


def write_new(path: Path, content: bytes) -> None:
    """Write ``path``, mode 0600, unless it is there: a key that is enrolled is not lost."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write_policy(
    folder: Path,
    silo: SiloFolder,
    server: Invitation,
    agreed: AcceptedRun,
    epsilon: float,
    digest: str,
) -> None:
    path, users = folder / "policy.toml", silo.info.nominal_users
    if path.exists():
        from_toml(Policy, path)
        return
    model = agreed.model
    base = load_base(model.base, gguf_file=model.gguf_file) if model.use_text else None
    text = _POLICY.format(
        epsilon=float(epsilon),
        # A tenth of one over the users, as a power of ten.
        delta=f"1e-{len(str(10 * users))}",
        users=users,
        base=model.base if base is not None else "without text",
        digest="none" if base is None else base_digest(base),
        server=server.name,
        identity=server.identity,
        tasks=", ".join(f'"{name}"' for name in names_in(agreed.task.name)),
        run=digest,
    )
    write_whole(path, text.encode())
    from_toml(Policy, path)
