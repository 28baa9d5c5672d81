"""The federation that is killed: tiny data, a model without text, real processes with TLS."""

import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from server.flower_link import Control
from silotune.supervised import socket_path
from simulations.chaos.hosts import Host

__all__ = ["JOB", "Setting", "make"]

JOB = "chaos"
_ROOT = Path(__file__).parents[2]
_RUN = """\
nodes = {merchants}
quorum = 0.5
cohort_min = {cohort}
deadline = 900
ask_again = 60

[task]
first = 2024-02-05T00:00:00
split = 2024-05-20T00:00:00
last = 2024-07-01T00:00:00
category_level = 2
train_visits = 1
test_visits = 1

[model]
use_text = false

[job]
name = "{job}"
rounds = {rounds}
epsilon = 50.0

[job.private]
noise_multiplier = 12.0
clip_norm = 4.0
sampling_rate = 0.1
examples_per_user = 8
steps = {steps}
learning_rate = 0.5
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Size of the federation and of the trouble."""

    merchants: int
    rounds: int
    kills: int
    seed: int
    gap: float
    """Mean seconds between two kills."""
    users: int = 400
    steps: int = 800
    """Users and steps make seconds of training, so that kills fall into it."""

    @property
    def interval(self) -> float:
        """Seconds that a silo takes to answer at least, so that kills fall into every round."""
        return round(self.gap * self.kills / self.rounds, 1)


def make(folder: Path, setting: Setting) -> list[Host]:
    """Make and start aggregator and merchants in ``folder``, and enrol them; aggregator first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    run = folder / f"{JOB}.toml"
    text = _RUN.format(
        merchants=setting.merchants,
        cohort=min(2, setting.merchants),
        job=JOB,
        rounds=setting.rounds,
        steps=setting.steps,
    )
    run.write_text(text, encoding="utf-8")
    size = ("--merchants", setting.merchants, "--users", setting.users)
    silotune("data", "synthetic", folder / "silos", *size, "--quiet")
    aggregator = folder / "aggregator"
    silotune("server", "init", aggregator, "--address", address, "--listen", "127.0.0.1")
    silos = sorted((folder / "silos").iterdir())
    invitation = aggregator / "invitation.toml"
    silotune(*("client", "init", *silos, "--invitation", invitation, "--run", run, "--epsilon", 50))
    for silo in silos:
        policy = silo / "policy.toml"
        kept = policy.read_text(encoding="utf-8")
        kept = kept.replace("reply_interval = 0.0", f"reply_interval = {setting.interval}")
        kept = kept.replace("steps_max = 100", f"steps_max = {setting.steps}")
        policy.write_text(kept, encoding="utf-8")
    silotune("client", "enrol", *silos, "--out", folder / "enrolments")
    hosts = [Host("server", aggregator), *(Host("client", silo) for silo in silos)]
    started(hosts[:1])
    silotune("server", "enrol", aggregator, *(folder / "enrolments").iterdir())
    started(hosts[1:])
    return hosts


def started(hosts: list[Host], seconds: float = 300.0) -> None:
    """Start hosts and return when all their processes do their work."""
    for host in hosts:
        host.start()
    until = time.monotonic() + seconds
    while not all(host.is_ready() for host in hosts):
        if time.monotonic() > until:
            raise SystemExit(f"did not start within {seconds:.0f} s; see the logs in {hosts}")
        time.sleep(0.2)


def silotune(*arguments: object) -> str:
    """Run the command that people type; return what it said."""
    done = subprocess.run(  # noqa: S603  # our own command
        [sys.executable, "-m", "silotune.cli", *map(str, arguments)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"silotune {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def node_numbers(aggregator: Path) -> dict[str, int]:
    """Return each merchant's node at the running aggregator, by name."""
    with Control(socket_path(aggregator, "superlink.sock")) as control:
        return {node.name: node.node_id for node in control.nodes()}
