"""Flower as its documentation starts it: SuperLink, SuperNodes, ``flwr run``. No silotune in it.

Loopback, without TLS and without node keys. For comparison, and for runs in a trusted setting.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from simulations.benchmarks.harness import BenchmarkError

__all__ = ["StockDeployment", "free_port", "stock_deployment", "tree_seconds", "wait_until"]

_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_START = 180.0
"""Seconds until SuperLink and nodes must be there."""


@dataclass(frozen=True, kw_only=True)
class StockDeployment:
    """A running SuperLink with SuperNodes."""

    folder: Path
    environment: Mapping[str, str]
    processes: Mapping[str, subprocess.Popen[bytes]]

    def run(self, app: Path, *options: str) -> str:
        """Submit the app in folder ``app`` by ``flwr run``; return what it printed.

        Raises:
            BenchmarkError: it refused.
        """
        done = subprocess.run(  # noqa: S603  # flwr's own command
            [_command("flwr"), "run", str(app), "local", *options],
            env=os.environ | dict(self.environment),
            capture_output=True,
            text=True,
            timeout=2 * _START,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"flwr run {app}: {done.stdout}{done.stderr}")
        return done.stdout

    def logs(self) -> str:
        """Return the end of what the processes wrote."""
        return "\n".join(f"== {p}\n{p.read_text()[-3000:]}" for p in self.folder.glob("*.log"))


@contextmanager
def stock_deployment(
    folder: Path, node_configs: Sequence[str], environment: Mapping[str, str]
) -> Iterator[StockDeployment]:
    """Yield a SuperLink and one SuperNode for each of ``node_configs``; then end them.

    Args:
        folder: for logs and Flower's configuration.
        node_configs: ``--node-config`` of each node.
        environment: for all of them, and so for the apps that they start.

    Raises:
        BenchmarkError: one does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "flwr"
    home.mkdir(exist_ok=True)
    port = free_port()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{address}"\n'
        "insecure = true\n"
    )
    variables = {**_QUIET, "FLWR_HOME": str(home), **environment}
    commands = {
        "superlink": [
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
            # Otherwise it would fetch the app's dependencies from the network.
            "--disable-runtime-dependency-installation",
        ]
    }
    for number, config in enumerate(node_configs):
        commands[f"node{number}"] = [
            *("flower-supernode", "--insecure", "--superlink", address),
            *("--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config),
        ]
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as ends:
        for name, command in commands.items():
            processes[name] = _start(command, folder / f"{name}.log", variables)
            ends.callback(_end, processes[name])
            if name == "superlink":
                wait_until(lambda: _answers(address), _START, f"{folder}: the SuperLink")
        wait_until(
            lambda: all(
                "SuperNode ID" in (folder / f"{name}.log").read_text()
                for name in processes
                if name != "superlink"
            ),
            _START,
            f"{folder}: the nodes",
        )
        yield StockDeployment(folder=folder, environment=variables, processes=processes)


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(there: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once ``there`` is true. Raises BenchmarkError after ``seconds``."""
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            raise BenchmarkError(f"{what} not there after {seconds:.0f} s.")
        time.sleep(0.3)


def _command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _start(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(  # noqa: S603  # flwr's own commands
            [_command(command[0]), *command[1:]],
            # Its children find Python's commands by this.
            env=os.environ
            | dict(environment)
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def tree_seconds(root: int) -> float:
    """Return the processor seconds of a process and its descendants, those that ended included."""
    parents: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
            # Own user and system time, and of children that were waited for.
            spent[int(folder.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    whole, left = 0.0, [root]
    while left:
        pid = left.pop()
        whole += spent.get(pid, 0.0)
        left += parents.get(pid, [])
    return whole


def _end(process: subprocess.Popen[bytes]) -> None:
    # With the processes that it started: they have its session.
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
