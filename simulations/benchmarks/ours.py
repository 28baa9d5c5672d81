"""Run silotune's private job on a setting: ``train`` is timed as a whole process, ``score`` is not.

The same pieces as `silotune simulate`, without its other arms: worker processes build, tokenise and
store the examples, then the rounds run on the pool's workers with `client.client_app`.
"""

import json
import pkgutil
from pathlib import Path

import numpy as np
import torch
import typer

from client.worker import worker_for
from server.run_store import RunStore
from silotune.federation import build_model
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.metrics import auc
from simulations.benchmarks.setting import Setting, read_setting
from simulations.flower_engine import run_flower
from simulations.inline_engine import run_inline
from simulations.pool import SiloPool, prepare
from simulations.pool import score as logits
from simulations.pool_engine import APP, run_pool

__all__ = ["app", "prepare_all", "rounds", "score", "train", "workers_of"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("train")
def train_command(setting: Path) -> None:
    """Prepare and train all rounds."""
    train(read_setting(setting))


@app.command("rounds")
def rounds_command(setting: Path) -> None:
    """Train all rounds on what `prepare` left."""
    wanted = read_setting(setting)
    with workers_of(wanted) as pool:
        rounds(wanted, pool)


@app.command("prepare")
def prepare_command(setting: Path) -> None:
    """Build, tokenise and store the examples of every silo."""
    wanted = read_setting(setting)
    with workers_of(wanted) as pool:
        prepare_all(wanted, pool)


@app.command("score")
def score_command(setting: Path) -> None:
    """Score the last adapter on every merchant's test rows."""
    score(read_setting(setting))


def train(setting: Setting) -> None:
    """Prepare, then run all rounds."""
    with workers_of(setting) as pool:
        prepare_all(setting, pool)
        rounds(setting, pool)


def workers_of(setting: Setting) -> SiloPool:
    """Return the setting's worker processes; they start with the first call."""
    # The work is in worker processes; this one must not take a processor from them.
    torch.set_num_threads(1)
    Path(setting.federation.state).mkdir(parents=True, exist_ok=True)
    return SiloPool(setting.federation_path, setting.workers)


def prepare_all(setting: Setting, pool: SiloPool) -> None:
    """Build, tokenise and store the examples of every silo."""
    silos = [SiloFolder.open(Path(s)) for s in setting.federation.silos]
    pool.each([(prepare, (silo,)) for silo in silos], lambda *_: None)


def rounds(setting: Setting, pool: SiloPool, app: str = APP) -> None:
    """Run all rounds that the state does not hold yet; ``app`` is the ClientApp."""
    nodes = len(setting.federation.silos)
    match setting.engine:
        case "inline":
            run_inline(pool.federation, nodes)
        case "flower":
            run_flower(
                pool.federation, nodes, workers=setting.workers, app=pkgutil.resolve_name(app)
            )
        case _:
            run_pool(nodes, pool, app=app)


def score(setting: Setting) -> dict[str, float]:
    """Write and return the mean AUC over merchants, and the seconds of every round."""
    federation, job = setting.federation, setting.job
    model = build_model(federation.models, job.model, federation.task)
    store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
    adapter_D = store.load(job.rounds - 1)
    worker = worker_for(setting.federation_path)
    values = []
    for path in federation.silos:
        silo = SiloFolder.open(Path(path))
        examples = worker.data(silo, job.model).examples
        scores = logits(worker, silo, job.model, adapter_D)
        values.append(auc(examples.label_EK[examples.test_E, 0], scores))
    result = {
        "auc": float(np.mean(values)),
        "rounds": float(sum(r["seconds"] for r in store.records())),
    }
    text = json.dumps(result)
    (Path(setting.folder) / "score.json").write_text(text, encoding="utf-8")
    return result


if __name__ == "__main__":
    app()
