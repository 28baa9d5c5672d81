"""Flower ServerApp: runs the jobs of a federation file one after another."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.rounds import RoundOptions, run_job
from server.run_store import RunStore
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
    models = {
        name: build_model(federation.models, name, federation.task)
        for name in {job.model for job in federation.jobs}
    }
    for job in federation.jobs:
        model = models[job.model]
        store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
        options = RoundOptions(nodes=len(federation.silos), stop=stop)
        run_job(grid, job, model, store, options, on_reply, task=federation.task.name)
