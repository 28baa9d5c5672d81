"""Both discount tasks through the same federation: trained in silos, with and without noise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.prepared import load_or_prepare
from server.run_store import RunStore
from silotune.federation import Job, build_model, read_federation
from silotune.tables.silo_folder import SiloFolder
from simulations.inline_engine import run_inline

SPAN = {"first": "2024-01-22", "split": "2024-04-01", "last": "2024-05-20", "category_level": 2}
PLAIN = {"epochs": 4.0, "learning_rate": 0.2, "optimizer": "sgd", "batch_size": 16}
PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.0,
    "sampling_rate": 0.5,
    "examples_per_user": 8,
    "steps": 2,
    "learning_rate": 0.5,
}
JOBS = (
    Job(name="plain", model="numeric", rounds=3, plain=PLAIN),
    Job(name="private", model="numeric", rounds=1, private=PRIVATE, epsilon=20.0),
)


@pytest.mark.parametrize("name", ["discount-depth", "discount-response"])
def test_a_federation_learns_a_discount_task(name, small_federation, tmp_path):
    path = small_federation(tmp_path, *JOBS)
    raw = json.loads(path.read_text())
    raw["task"] = {"name": name, **SPAN}
    path.write_text(json.dumps(raw))
    run_inline(path, 3)
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    objective = federation.task.objective
    store = {j.name: RunStore(tmp_path / "rounds" / j.name, model.layout.digest) for j in JOBS}
    assert store["private"].load(0).norm() > 0
    error = "log_loss" if name == "discount-response" else "rmse"
    quality = []
    for adapter in (torch.zeros(model.layout.size), store["plain"].load(2)):
        model.load_adapter(adapter)
        found = []
        for silo in federation.silos:
            data = load_or_prepare(SiloFolder.open(Path(silo)), federation.task, model)
            # As it comes from the cache, too.
            assert data.examples.objective == objective
            rows = data.examples.rows(test=True)
            label_EK, visit_E = data.examples.label_EK[rows], data.examples.visit_E[rows]
            found.append(objective.quality(label_EK, data.scores(model, rows), visit_E))
        quality.append({k: float(np.mean([f[k] for f in found])) for k in found[0]})
    assert quality[1][error] < 0.97 * quality[0][error]
    if name == "discount-response":
        assert quality[1]["auc"] > 0.55
