"""Run the stock recipe on a setting: ``train`` is timed as a whole process, ``score`` is not.

Flower's simulation as its documentation starts it from Python: `run_simulation` with a `ServerApp`
that calls the FedAvg strategy's ``start`` (flower.ai/docs/framework, "Use strategies" and "Run
simulations"). Kinder than the defaults: one processor for each ClientApp and as many of
them at once as there are workers, where two processors for one ClientApp are the default; examples
are made once, by as many processes, and not again for every message.
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import typer

from privacy.accounting import calibrate_noise
from silotune.federation import read_federation
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.metrics import auc
from simulations.benchmarks.setting import Plan, Setting, plan, read_setting

__all__ = ["app", "export", "make_recipe", "score", "train"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("train")
def train_command(setting: Path, out: Path, length: int) -> None:
    """Train all rounds; the last adapter goes to OUT."""
    train(read_setting(setting), out, length)


@app.command("score")
def score_command(setting: Path, out: Path) -> None:
    """Score the adapter in OUT on every merchant's test rows."""
    score(read_setting(setting), out)


def train(setting: Setting, out: Path, length: int) -> None:
    """Export the examples, run Flower's simulation, save the last adapter to ``out``."""
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from simulations.benchmarks.stock_app import STOCK_VARIABLE, app, build_model

    out.mkdir(parents=True, exist_ok=True)
    plans = export_all(setting, out)
    recipe = make_recipe(setting, out, length, plans)
    nodes, rounds = len(plans), setting.job.rounds
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        initial = ArrayRecord(get_peft_model_state_dict(build_model(recipe)))
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=nodes,
            min_available_nodes=nodes,
        )
        result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds)
        save_file(result.arrays.to_torch_state_dict(), out / "adapter.safetensors")

    os.environ[STOCK_VARIABLE] = str(out / "recipe.json")
    resources: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": setting.workers, "include_dashboard": False},
    }
    run_simulation(
        server_app=server, client_app=app, num_supernodes=nodes, backend_config=resources
    )


def make_recipe(setting: Setting, out: Path, length: int, plans: list[Plan]) -> Any:
    """Write the recipe file; the noise covers the merchant with the largest rate."""
    from dataclasses import asdict

    from simulations.benchmarks.stock_app import Recipe

    federation, job = setting.federation, setting.job
    model = federation.models[job.model]
    # Most steps at the highest rate: every merchant's budget holds.
    sigma = calibrate_noise(
        setting.epsilon,
        delta=federation.delta,
        sampling_rate=max(p.rate for p in plans),
        steps=job.rounds * max(p.steps for p in plans),
    )
    recipe = Recipe(
        folder=str(out.resolve()),
        base=model.base,
        lora=model.lora,
        length=length,
        learning_rate=setting.learning_rate,
        clip_norm=1.0,
        noise_multiplier=sigma,
        delta=federation.delta,
    )
    (out / "recipe.json").write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    return recipe


def export_all(setting: Setting, out: Path) -> list[Plan]:
    """Export every merchant's examples in the setting's number of processes."""
    path, count = setting.federation_path, len(setting.federation.silos)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(setting.workers, mp_context=context) as pool:
        return list(pool.map(export, [path] * count, [out] * count, range(count)))


def export(federation: Path, out: Path, index: int) -> Plan:
    """Write the examples of silo ``index`` as texts, and return how to sample them."""
    from simulations.benchmarks.stock_app import merchant_file

    settings = read_federation(federation)
    examples = settings.task.build(SiloFolder.open(Path(settings.silos[index])))
    wanted = plan(examples, settings.jobs[0])
    path = merchant_file(out, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        text=np.array(examples.text, dtype=np.str_),
        context=np.array(examples.context, dtype=np.str_),
        label=examples.label_EK[:, 0].astype(np.int8),
        test=examples.test_E,
        steps=wanted.steps,
        batch_size=wanted.batch_size,
        expected=wanted.expected,
    )
    return wanted


def score(setting: Setting, out: Path) -> dict[str, float]:
    """Write and return the mean AUC over merchants and the examples seen in all."""
    from safetensors.torch import load_file

    from silotune.config import from_mapping
    from simulations.benchmarks.stock_app import Recipe, build_model, logits, merchant_file

    raw = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    recipe = from_mapping(Recipe, raw, where="recipe.json")
    state, model = load_file(out / "adapter.safetensors"), build_model(recipe)
    values, expected = [], 0.0
    for index in range(len(setting.federation.silos)):
        with np.load(merchant_file(out, index)) as saved:
            labels = saved["label"][saved["test"]]
            expected += float(saved["expected"]) * setting.job.rounds
        values.append(auc(labels, logits(recipe, state, index, model)))
    seen = out / "seen.jsonl"
    lines = [json.loads(x) for x in seen.read_text(encoding="utf-8").splitlines()]
    result = {
        "auc": float(np.mean(values)),
        "seen": float(sum(x["seen"] for x in lines)),
        "expected": expected,
        "epsilon_reported": max(x["epsilon"] for x in lines),
    }
    (out / "score.json").write_text(json.dumps(result), encoding="utf-8")
    return result


if __name__ == "__main__":
    app()
