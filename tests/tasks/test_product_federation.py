"""Product category through a whole federation: words are learned, charged, and of every class."""

import json
from pathlib import Path

import numpy as np

from client.prepared import load_or_prepare
from client.worker import Worker
from privacy.ledger import Ledger
from server.run_store import RunStore
from silotune.federation import Job, build_model, read_federation
from silotune.tables.silo_folder import SiloFolder
from simulations.inline_engine import run_inline
from simulations.pool import with_texts

# Each merchant takes part in three of them.
TASK = {
    "name": "product-category",
    "first": "2024-01-01",
    "split": "2024-04-01",
    "last": "2024-05-20",
    "classes": ["dairy", "drinks", "produce", "snacks", "household"],
    "classes_held": 3,
    "train_products": 4,
    "test_products": 3,
    "named": True,
}
PLAIN = {"epochs": 1.0, "learning_rate": 0.2, "optimizer": "sgd", "batch_size": 16}
PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.0,
    "sampling_rate": 0.2,
    "examples_per_user": 4,
    "steps": 1,
    "learning_rate": 0.5,
}
JOBS = (
    Job(name="plain", rounds=2, plain=PLAIN),
    Job(name="private", rounds=1, private=PRIVATE, epsilon=20.0),
)


def test_a_federation_learns_classes_of_products_whose_names_nobody_trained_on(
    small_federation, tmp_path
):
    path = small_federation(tmp_path, *JOBS)
    raw = json.loads(path.read_text())
    raw["task"] = TASK
    path.write_text(json.dumps(raw))
    run_inline(path, 3)
    federation = read_federation(path)
    model = build_model(federation.models, "text", federation.task)
    store = {j.name: RunStore(tmp_path / "rounds" / j.name, model.layout.digest) for j in JOBS}
    start_D = model.adapter()
    assert not store["private"].load(0).equal(start_D)
    held, areas = [], {"start": [], "plain": []}
    for silo in map(SiloFolder.open, map(Path, federation.silos)):
        # As it comes from the cache, too.
        data = load_or_prepare(silo, federation.task, model)
        rows = data.examples.rows(test=True)
        held.append(frozenset(np.flatnonzero(data.examples.label_EK.sum(0)).tolist()))
        for arm, adapter_D in (("start", start_D), ("plain", store["plain"].load(1))):
            model.load_adapter(adapter_D)
            figures = federation.task.objective.quality(
                data.examples.label_EK[rows], data.scores(model, rows), rows
            )
            areas[arm].append(figures["auc"])
        with Ledger(tmp_path / "ledgers" / "private" / f"{silo.info.name}.db") as ledger:
            (reserved,) = [e for e in ledger.entries if e.kind == "reserve"]
        assert reserved.body["what"]["task"] == "product-category"
        # What a simple method reads has its texts, and the same rows.
        again = with_texts(Worker(federation), silo)
        assert np.array_equal(again.label_EK, data.examples.label_EK)
        assert np.array_equal(again.test_E, data.examples.test_E)
        assert all(again.text)
        assert not any(data.examples.text)
    assert np.mean(areas["start"]) == 0.5
    assert np.mean(areas["plain"]) > 0.8
    # Label sets differ, the head does not.
    assert {len(h) for h in held} == {3}
    assert len(set(held)) > 1
    assert model.head.score.out_features == 5
