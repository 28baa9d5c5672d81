"""Flower ServerApp: runs the jobs of a federation file one after another."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import RoundOptions, run_job
from server.run_store import RunStore
from server.starts import start_of
from silotune.errors import ConfigError
from silotune.federation import FEDERATION_VARIABLE, build_model, read_federation

__all__ = ["app", "run_federation"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration or the environment names."""
    named = context.run_config.get("federation") or os.environ.get(FEDERATION_VARIABLE)
    if not named:
        raise ConfigError(
            "no federation file: give --run-config 'federation=\"PATH\"' or set "
            f"{FEDERATION_VARIABLE}; `silotune simulate` writes one into its run folder."
        )
    run_federation(grid, Path(str(named)))


def run_federation(
    grid: Grid,
    path: Path,
    on_reply: Callable[[str, int, int], None] = lambda *_: None,
    stop: Event | None = None,
) -> None:
    """Run all jobs of the federation file ``path``; a job that is done is not run again."""
    stop = stop or Event()
    federation = read_federation(path)
    tasks = {job.name: federation.task_of(job) for job in federation.jobs}
    wanted = {(job.model, tasks[job.name].name): tasks[job.name] for job in federation.jobs}
    models = {key: build_model(federation.models, key[0], task) for key, task in wanted.items()}
    for job in federation.jobs:
        model = models[job.model, tasks[job.name].name]
        rounds = Path(federation.state) / "rounds"
        store = RunStore(rounds / job.name, model.layout.digest)
        options = RoundOptions(nodes=len(federation.silos), stop=stop)
        run_job(
            grid,
            job,
            model,
            store,
            options,
            on_reply,
            task=tasks[job.name].name,
            start_D=start_of(job, model, rounds),
        )
