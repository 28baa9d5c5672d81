"""Wall time of a simulation's rounds over what its training takes, shared among workers.

Seconds of all rounds, as the aggregator's run store has them, over the seconds that the workers
spend training (`client.trainer.train_private`), divided by the workers. 1.00 is a simulation in
which nothing but training takes time and no worker ever waits. As in a simulation, the examples
were prepared before. On Flower's engine the start of Ray is not part of it, that of its workers is.

Training is timed where it runs, beside the other workers: what two processes take from each
other's caches is part of both sides of the ratio.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import typer
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import client.silo
from client.client_app import answer
from server.run_store import RunStore
from silotune.federation import build_model
from simulations.benchmarks.ours import prepare_all, rounds, workers_of
from simulations.benchmarks.setting import read_setting

__all__ = ["app", "measure"]

_TIMES = "SILOTUNE_BENCHMARK_TIMES"

app = ClientApp()


@app.train()
@app.evaluate()
def timed(message: Message, context: Context) -> Message:
    """Answer as a silo does, and write down how long training took."""
    # By name at run time: what the silo calls is what is wrapped.
    silo: Any = client.silo
    real = silo.train_private

    def train(*args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        real(*args, **kwargs)
        line = f"{time.perf_counter() - began}\n"
        # One write of a short line to a file that is appended to: whole, whoever else writes.
        with Path(os.environ[_TIMES]).open("a", encoding="utf-8", buffering=1) as file:
            file.write(line)

    silo.train_private = train
    try:
        return answer(message, context)
    finally:
        silo.train_private = real


def measure(setting_path: Path, out: Path) -> dict[str, float]:
    """Run all rounds of a setting whose examples are prepared; write and return the figures.

    Args:
        setting_path: as `simulations.benchmarks.setting.write_setting` left it.
        out: JSON file for the result; the times lie beside it.
    """
    setting = read_setting(setting_path)
    setting.forget()
    times = out.with_suffix(".times")
    times.unlink(missing_ok=True)
    os.environ[_TIMES] = str(times.resolve())
    federation, job = setting.federation, setting.job
    with workers_of(setting) as pool:
        if setting.engine == "pool":
            prepare_all(setting, pool)
        began = time.perf_counter()
        rounds(setting, pool, "simulations.benchmarks.overhead:app")
        whole = time.perf_counter() - began
    model = build_model(federation.models, job.model, federation.task)
    store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
    seconds = [float(record["seconds"]) for record in store.records()]
    trained = [float(line) for line in times.read_text(encoding="utf-8").splitlines()]
    messages = len(federation.silos) * job.rounds
    if len(trained) != messages:
        raise RuntimeError(f"{len(trained)} trainings were timed, not {messages}.")
    share = sum(trained) / setting.workers
    later = sum(trained[len(federation.silos) :]) / setting.workers
    result = {
        "merchants": float(len(federation.silos)),
        "rounds": sum(seconds),
        "training": share,
        "ratio": sum(seconds) / share,
        "ratio_later": sum(seconds[1:]) / later if later else float("nan"),
        "whole": whole,
    }
    out.write_text(json.dumps(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    typer.run(measure)
