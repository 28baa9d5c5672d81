"""Ratings through a federation: learned in silos, with and without noise."""

import json
from pathlib import Path

import numpy as np

from client.prepared import load_or_prepare
from server.run_store import RunStore
from silotune.federation import Job, build_model, read_federation
from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from simulations.baselines_values import flat
from simulations.inline_engine import run_inline

PLAIN = {"epochs": 4.0, "learning_rate": 0.2, "optimizer": "sgd", "batch_size": 16}
PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.0,
    "sampling_rate": 0.5,
    "examples_per_user": 8,
    "steps": 2,
    "learning_rate": 0.5,
}


def test_a_federation_learns_what_the_mean_does_not_tell(small_federation, tmp_path):
    made = SyntheticConfig(merchants=3, users_per_merchant=40, weeks=20, seed=3, rated=0.5)
    generate(made, tmp_path / "silos")
    silos = list_silos(tmp_path / "silos")
    path = small_federation(
        tmp_path,
        Job(name="plain", model="numeric", rounds=3, plain=PLAIN),
        Job(name="private", model="numeric", rounds=1, private=PRIVATE, epsilon=20.0),
    )
    raw = json.loads(path.read_text())
    span = {"first": "2024-01-22", "split": "2024-04-01", "last": "2024-05-20"}
    raw["task"] = {"name": "product-rating", **span}
    raw["silos"] = [str(silo.path) for silo in silos]
    path.write_text(json.dumps(raw))
    run_inline(path, 3)
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    objective = federation.task.objective
    store = {
        n: RunStore(tmp_path / "rounds" / n, model.layout.digest) for n in ("plain", "private")
    }
    assert store["private"].load(0).norm() > 0
    model.load_adapter(store["plain"].load(2))
    errors = []
    for silo in federation.silos:
        data = load_or_prepare(SiloFolder.open(Path(silo)), federation.task, model)
        rows = data.examples.rows(test=True)
        label_EK, visit_E = data.examples.label_EK[rows], data.examples.visit_E[rows]
        found = (data.scores(model, rows), flat(data.examples))
        errors.append([objective.quality(label_EK, f, visit_E)["mae"] for f in found])
    learned, mean = np.mean(errors, axis=0)
    assert learned < 0.93 * mean
