"""Training without privacy and without a federation: the limit that private rounds are held to.

- ``peft``: stock transformers and peft in one process, the merchants' examples pooled, the model
  loaded once, texts tokenised once, each batch padded to its longest text, float32, AdamW, as many
  threads as the private run has workers.
- ``cache``: silotune's own model, from cold tables: examples prepared by the same worker
  processes, the frozen layers run once, then batches of one merchant each in one process with as
  many threads as workers. What privacy, rounds and messages add on top of the same arithmetic.

Both see as many examples as the private job is expected to see.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn

from simulations.benchmarks.ours import prepare_all, workers_of
from simulations.benchmarks.setting import Setting, plan, read_setting

__all__ = ["app", "train_cache", "train_peft"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_BATCH = 32


@app.command("peft")
def peft_command(setting: Path) -> None:
    """Take stock transformers and peft."""
    train_peft(read_setting(setting))


@app.command("cache")
def cache_command(setting: Path) -> None:
    """Take silotune's model and its cache."""
    train_cache(read_setting(setting))


def train_peft(setting: Setting) -> int:
    """Train; return the examples seen."""
    from simulations.benchmarks.stock import export_all, make_recipe
    from simulations.benchmarks.stock_app import build_model, merchant_file, tokenise

    out = Path(setting.folder) / "limit"
    plans = export_all(setting, out)
    torch.set_num_threads(setting.workers)
    job = setting.job
    federation = setting.federation
    recipe = make_recipe(setting, out, federation.models[job.model].max_tokens, plans)
    texts, contexts, labels = [], [], []
    for index in range(len(plans)):
        with np.load(merchant_file(out, index)) as saved:
            rows = np.flatnonzero(~saved["test"])
            texts += saved["text"][rows].tolist()
            contexts += saved["context"][rows].tolist()
            labels.append(saved["label"][rows])
    encoded = tokenise(recipe, texts, contexts, padding=False)
    label_E = torch.from_numpy(np.concatenate(labels)).long()
    model = build_model(recipe)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=setting.learning_rate)
    generator = np.random.default_rng(0)
    wanted = round(job.rounds * sum(p.expected for p in plans))
    seen = 0
    while seen < wanted:
        rows = generator.choice(len(texts), min(_BATCH, wanted - seen), replace=False)
        optimizer.zero_grad()
        batch = _padded([encoded["input_ids"][i] for i in rows])
        torch.autograd.backward(model(**batch, labels=label_E[rows]).loss)
        optimizer.step()
        seen += len(rows)
    _note(setting, seen)
    return seen


def train_cache(setting: Setting) -> int:
    """Train; return the examples seen."""
    from client.trainer import PlainConfig, make_optimizer
    from client.worker import worker_for
    from silotune.tables.silo_folder import SiloFolder

    with workers_of(setting) as pool:
        prepare_all(setting, pool)
    worker, job = worker_for(setting.federation_path), setting.job
    # After the worker, which sets the threads of a worker process.
    torch.set_num_threads(setting.workers)
    silos = [SiloFolder.open(Path(s)) for s in setting.federation.silos]
    model, data = worker.model(job.model), [worker.data(s, job.model) for s in silos]
    wanted = round(job.rounds * sum(plan(d.examples, job).expected for d in data))
    rows = [d.examples.rows(test=False) for d in data]
    share = np.array([len(r) for r in rows], dtype=float)
    optimizer, _ = make_optimizer(model, PlainConfig(), max(1, wanted // _BATCH))
    generator, device = np.random.default_rng(0), next(model.parameters()).device
    seen = 0
    while seen < wanted:
        index = int(generator.choice(len(silos), p=share / share.sum()))
        size = min(_BATCH, wanted - seen, len(rows[index]))
        batch = data[index].batch(generator.choice(rows[index], size, replace=False), device)
        summed = data[index].examples.objective.loss(batch.logits(model), batch.label_EK)
        loss = summed / size
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        seen += size
    _note(setting, seen)
    return seen


def _padded(ids: list[list[int]]) -> dict[str, Any]:
    parts = [torch.tensor(i) for i in ids]
    ids_ET = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    length_E = torch.tensor([len(i) for i in ids])
    mask_ET = (torch.arange(ids_ET.shape[1]) < length_E[:, None]).long()
    return {"input_ids": ids_ET, "attention_mask": mask_ET}


def _note(setting: Setting, seen: int) -> None:
    text = json.dumps({"seen": seen})
    (Path(setting.folder) / "limit.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
