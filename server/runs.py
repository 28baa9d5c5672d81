"""Runs that the aggregator was asked for: what to train, how far it is. Durable."""

import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any, Literal

from privacy.durable import write_whole
from server.rounds import RoundOptions
from silotune.config import config, from_mapping, from_toml
from silotune.errors import ConfigError
from silotune.federation import Job
from silotune.models.text_model import ModelConfig
from silotune.tasks.several import OneOrSeveral

__all__ = ["Run", "RunFile", "RunStatus", "list_runs", "submit"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@config
class RunFile:
    """One federated training, as a TOML file. Public: merchants get it too."""

    task: OneOrSeveral
    model: ModelConfig = ModelConfig()
    job: Job
    """Its name is the run's. A private one says noise, clip, rate and steps; every merchant's
    policy has the last word."""
    nodes: int
    """Merchants to wait for before the first round."""
    quorum: float = 0.5
    """Share of those asked whose updates make a round. Later rounds start when so many of
    ``nodes`` are connected."""
    cohort_min: int = 1
    """Fewest updates that make a round, however few merchants are connected."""
    deadline: float = 3600.0
    """Seconds after which a round is done without those who are late."""
    ask_again: float = 300.0
    """Seconds of silence after which a merchant is asked again; doubles each time. One whose
    processes were started again is asked at once."""

    update_norm_max: float = 1e4
    """L2 norm above which a merchant's update is dropped: what one merchant can do at most."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not _NAME.fullmatch(self.job.name):
            raise ConfigError(f"job.name is {self.job.name!r}; letters, digits, '-', '_', '.'.")
        if self.job.model != "text":
            raise ConfigError(f"job.model is {self.job.model!r}; a run has one model, 'text'.")
        if self.job.metrics is not None and not self.task.objective.private_histograms:
            raise ConfigError(
                f"job.metrics is there; task '{self.task.name}' has no yes or no to measure "
                "privately. Leave it out."
            )
        if self.nodes < 1:
            raise ConfigError(f"nodes is {self.nodes}; it must be at least 1.")
        if not 0 < self.quorum <= 1:
            raise ConfigError(f"quorum is {self.quorum}; it must be in (0, 1].")
        if not 1 <= self.cohort_min <= self.nodes:
            raise ConfigError(
                f"cohort_min is {self.cohort_min}; it must be 1 to nodes, {self.nodes}."
            )
        for name in ("deadline", "ask_again", "update_norm_max"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be > 0 and finite.")

    def options(self, stop: Event) -> RoundOptions:
        """Return when rounds start and end."""
        return RoundOptions(
            nodes=self.nodes,
            quorum=self.quorum,
            cohort_min=self.cohort_min,
            deadline=self.deadline,
            ask_again=self.ask_again,
            update_norm_max=self.update_norm_max,
            stop=stop,
        )


@config
class RunStatus:
    """How far a run is."""

    state: Literal["waiting", "running", "finished", "failed"]
    flower_run: int = 0
    """Number that Flower gave it; another one after each restart of the executor."""
    message: str = ""
    """Why it failed."""
    submitted: float = 0.0
    """Seconds since 1970."""
    starts: int = 0
    """How often an executor took it up."""


class Run:
    """A run in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name

    @property
    def rounds(self) -> Path:
        """Folder of its `server.run_store.RunStore`."""
        return self.folder / "rounds"

    def file(self) -> RunFile:
        """Return what was asked for. Raises ConfigError."""
        return from_toml(RunFile, self.folder / "run.toml")

    def status(self) -> RunStatus:
        """Return how far it is. Raises ConfigError."""
        path = self.folder / "status.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: damaged ({error}).") from error
        return from_mapping(RunStatus, raw, where=str(path))

    def note(self, **changes: Any) -> RunStatus:
        """Change the status; durable when this returns."""
        status = replace(self.status(), **changes)
        _write(self.folder, status)
        return status


def submit(server: Path, path: Path) -> Run:
    """Queue the run that the TOML file ``path`` asks for; one that failed is taken up again.

    Raises:
        ConfigError: the file is wrong, or a run of that name is there and not failed, or it is
            for another file.
    """
    asked = from_toml(RunFile, path)
    run = Run(server / "runs" / asked.job.name)
    if (run.folder / "status.json").exists():
        if run.file() != asked:
            raise ConfigError(f"{run.folder}: is another run of this name; name yours otherwise.")
        if run.status().state != "failed":
            raise ConfigError(f"run '{run.name}' is {run.status().state} already.")
        run.note(state="waiting", message="")
        return run
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / "run.toml", path.read_bytes())
    # The status last: a run that has one is whole.
    _write(run.folder, RunStatus(state="waiting", submitted=time.time()))
    return run


def list_runs(server: Path) -> list[Run]:
    """Return the aggregator's runs, oldest first."""
    runs = [Run(p.parent) for p in (server / "runs").glob("*/status.json")]
    return sorted(runs, key=lambda r: (r.status().submitted, r.name))


def _write(folder: Path, status: RunStatus) -> None:
    write_whole(folder / "status.json", json.dumps(asdict(status)).encode())
