"""What a round costs when there is next to nothing to train: silotune and stock Flower.

    python -m simulations.benchmarks.rounds_idle [FOLDER] [--rounds 5] [--runs 3] [--nodes 3]

Real processes on this machine; both deployments are up, and run in turn. silotune's has what
people start:
TLS, node keys, SQLite, ledger and gate. Stock Flower's is what its documentation shows first:
without TLS and keys, state in memory, a ClientApp of four lines that sends back an array of the
same length. A round is from one finished round to the next; the median is shown. Memory is of
silotune's merchant: SuperNode, supervisor and the process with metrics and dashboard.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from simulations.benchmarks.stock_deployment import (
    StockDeployment,
    free_port,
    stock_deployment,
    tree_seconds,
    wait_until,
)

__all__ = ["Ours", "Stock", "main", "ours"]

_RUN = """\
nodes = {nodes}
quorum = 1.0
deadline = 120

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
name = "{name}"
rounds = {rounds}
epsilon = 8.0

[job.private]
noise_multiplier = 8.0
clip_norm = 4.0
sampling_rate = 0.1
examples_per_user = 1
steps = 1
learning_rate = 0.5
"""
_PROJECT = """\
[project]
name = "idle"
version = "1.0.0"
description = "Sends an array back."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "idle"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
rounds = 3
nodes = 3
length = 100
times = ""
"""
_CLIENT = """\
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    content = RecordDict({
        "arrays": message.content["arrays"],
        "metrics": MetricRecord({"num-examples": 1}),
    })
    return Message(content=content, reply_to=message)
"""
_SERVER = """\
import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        made = super().aggregate_train(server_round, replies)
        with open(self.times, "a") as file:
            file.write(f"{time.time()}\\n")
        return made


@app.main()
def main(grid, context):
    settings = context.run_config
    nodes = settings["nodes"]
    strategy = Timed(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_evaluate_nodes=0,
        min_available_nodes=nodes,
    )
    strategy.times = settings["times"]
    arrays = ArrayRecord([np.zeros(settings["length"], dtype=np.float32)])
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=settings["rounds"])
"""
_NUMBERS = 20
"""About as many as the model without text has."""
_LONGEST = 120.0
"""Seconds of one round, at most."""


class Stock:
    """Stock Flower, running.

    Args:
        folder: for its app and the times of rounds.
        running: SuperLink and SuperNodes.
        length: of the array that travels.
    """

    def __init__(self, folder: Path, running: StockDeployment, *, nodes: int, length: int) -> None:
        self._running, self._app = running, folder / "app"
        self._nodes, self._length, self._times = nodes, length, folder / "times"
        self._app.mkdir(parents=True)
        for name, text in (
            ("pyproject.toml", _PROJECT),
            ("client_app.py", _CLIENT),
            ("server_app.py", _SERVER),
        ):
            (self._app / name).write_text(text, encoding="utf-8")

    def rounds(self, count: int) -> list[float]:
        """Return the seconds of each round but the first, of a run of ``count``."""
        self._times.write_text("")
        settings = {"rounds": count, "nodes": self._nodes, "length": self._length}
        text = " ".join(f"{key}={value}" for key, value in settings.items())
        self._running.run(self._app, "--run-config", f'{text} times="{self._times}"')
        wait_until(lambda: len(self._done()) == count, _LONGEST * count, "stock Flower's rounds")
        return _between(self._done())

    def cpu(self) -> float:
        """Return the processor seconds so far."""
        return sum(tree_seconds(p.pid) for p in self._running.processes.values())

    def _done(self) -> list[float]:
        return [float(line) for line in self._times.read_text().splitlines()]


class Ours:
    """An aggregator and merchants, running."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs = folder, 0
        self.silos = sorted((folder / "silos").iterdir())

    def rounds(self, count: int) -> list[float]:
        """Return the seconds of each round but the first, of a run of ``count``."""
        self._runs += 1
        name = f"idle-{self._runs}"
        nodes = len(self.silos)
        text = _RUN.format(nodes=nodes, rounds=count, name=name)
        (self._folder / f"{name}.toml").write_text(text, encoding="utf-8")
        _silotune(self._folder, f"server run aggregator {name}.toml")
        files = self._folder.glob(f"aggregator/runs/{name}/rounds/round-*.safetensors")
        return _between(sorted(p.stat().st_mtime for p in files))

    def cpu(self) -> float:
        """Return the processor seconds so far."""
        folders = (self._folder / "aggregator", *self.silos)
        return sum(tree_seconds(_state(f)["pid"]) for f in folders)

    def memory(self) -> dict[str, float]:
        """Return MiB, proportional set size, of a merchant's processes that hold no data."""
        state = _state(self.silos[0])
        pids = {"supervisor": state["pid"]}
        pids |= {name: p["pid"] for name, p in state["processes"].items() if name != "daemon"}
        return {name: _pss(pid) for name, pid in pids.items()}


@contextmanager
def ours(folder: Path, *, nodes: int) -> Iterator[Ours]:
    """Yield an aggregator with ``nodes`` merchants as the command line starts them."""
    folder.mkdir(parents=True)
    first = _RUN.format(nodes=nodes, rounds=1, name="idle")
    (folder / "run.toml").write_text(first, encoding="utf-8")
    _silotune(folder, f"data synthetic silos --merchants {nodes} --users 60 --quiet")
    silos = [str(p) for p in sorted((folder / "silos").iterdir())]
    address = f"127.0.0.1:{free_port()}"
    try:
        _silotune(folder, f"server init aggregator --address {address} --listen 127.0.0.1")
        _silotune(folder, "server start aggregator")
        agreed = "--invitation aggregator/invitation.toml --run run.toml"
        _silotune(folder, f"client init {agreed}", *silos)
        for policy in folder.glob("silos/*/policy.toml"):
            # Each measured run is another: these merchants accept any.
            text = policy.read_text(encoding="utf-8")
            policy.write_text(re.sub("(?m)^runs = .*$", 'runs = ["any"]', text), encoding="utf-8")
        _silotune(folder, "client enrol --out enrolments", *silos)
        enrolments = sorted(str(p) for p in (folder / "enrolments").iterdir())
        _silotune(folder, "server enrol aggregator", *enrolments)
        _silotune(folder, "client start", *silos)
        yield Ours(folder)
    finally:
        _silotune(folder, "client stop", *silos)
        _silotune(folder, "server stop aggregator")


def _between(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _state(folder: Path) -> Any:
    return json.loads((folder / "run" / "state.json").read_text(encoding="utf-8"))


def _silotune(folder: Path, line: str, *more: str) -> None:
    command = [sys.executable, "-m", "silotune.cli", *line.split(), *more]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> int:
    """Run both and print; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="of a run")
    parser.add_argument("--runs", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--nodes", type=int, default=3)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="silotune-idle-"))
    configs = [f"partition-id={n} num-partitions={asked.nodes}" for n in range(asked.nodes)]
    seconds: dict[str, list[float]] = {"silotune": [], "stock": []}
    cpu = dict.fromkeys(seconds, 0.0)
    with (
        ours(folder / "silotune", nodes=asked.nodes) as mine,
        stock_deployment(folder / "stock", configs, {}) as running,
    ):
        theirs = Stock(folder / "stock", running, nodes=asked.nodes, length=_NUMBERS)
        for _ in range(asked.runs):
            # In turn: what else the machine does falls on both.
            for name, side in (("silotune", mine), ("stock", theirs)):
                before = side.cpu()
                seconds[name] += side.rounds(asked.rounds)
                cpu[name] += side.cpu() - before
                print(f"{name}: {[round(s, 2) for s in seconds[name]]}", flush=True)
        memory = mine.memory()
    ratio = statistics.median(seconds["silotune"]) / statistics.median(seconds["stock"])
    for name, each in seconds.items():
        print(
            f"{name:<9} {statistics.median(each):6.2f} s a round, median of {len(each)}; "
            f"{cpu[name] / (asked.runs * asked.rounds):.2f} s of processor, start of a run included"
        )
    parts = ", ".join(f"{name} {mib:.0f}" for name, mib in memory.items())
    whole = sum(memory.values())
    print(
        f"ratio {ratio:.2f} (target 0.5), of processor {cpu['silotune'] / cpu['stock']:.2f}\n"
        f"beside a merchant's daemon, PSS: {parts}: {whole:.0f} MiB (target 300)"
    )
    return int(ratio > 0.5 or whole > 300)


if __name__ == "__main__":
    sys.exit(main())
