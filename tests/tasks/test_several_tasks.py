"""Every task through the same federation: trained in silos, charged, refused, scored."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from client.prepared import load_or_prepare
from client.worker import Worker
from privacy.ledger import Ledger
from server.run_store import RunStore
from silotune.errors import ConfigError, PolicyError
from silotune.federation import Job, build_model, read_federation
from silotune.messages import MetricsRequest, TrainRequest
from silotune.tables.silo_folder import SiloFolder
from simulations.inline_engine import run_inline

SPAN = {"first": "2024-02-12", "split": "2024-04-01", "last": "2024-05-20"}
TASKS = {
    "customer-churn": {"horizon_days": 7},
    "customer-segment": {"horizon_days": 14, "at_risk_below": 5.0, "high_value_from": 40.0},
}
PLAIN = {"epochs": 3.0, "learning_rate": 0.5, "optimizer": "sgd", "batch_size": 16}
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


@pytest.fixture(scope="module", params=TASKS)
def federation(request, small_federation, tmp_path_factory):
    """A federation file of three merchants with another task, after its rounds."""
    state = tmp_path_factory.mktemp("federation")
    path = small_federation(state, *JOBS)
    raw = json.loads(path.read_text())
    raw["task"] = {"name": request.param, **SPAN, **TASKS[request.param]}
    path.write_text(json.dumps(raw))
    run_inline(path, 3)
    return read_federation(path)


def merchants(federation):
    model = build_model(federation.models, "numeric", federation.task)
    folders = [SiloFolder.open(Path(s)) for s in federation.silos]
    return model, [load_or_prepare(f, federation.task, model) for f in folders]


def last_adapter(federation, job, model):
    store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
    return store.load(job.rounds - 1)


def test_federated_training_learns_the_task(federation):
    model, data = merchants(federation)
    objective = federation.task.objective
    areas = {}
    for arm, adapter in (
        ("start", torch.zeros(model.layout.size)),
        ("plain", last_adapter(federation, JOBS[0], model)),
    ):
        model.load_adapter(adapter)
        found = []
        for silo in data:
            # As it comes from the cache, too.
            assert silo.examples.objective == objective
            rows = silo.examples.rows(test=True)
            found.append(
                objective.quality(
                    silo.examples.label_EK[rows],
                    silo.scores(model, rows),
                    silo.examples.visit_E[rows],
                )
            )
        areas[arm] = float(np.mean([f["auc"] for f in found]))
    assert areas["start"] == 0.5
    assert areas["plain"] > 0.6


def test_private_training_moves_the_adapter_and_charges_every_merchant(federation):
    model, _ = merchants(federation)
    assert last_adapter(federation, JOBS[1], model).norm() > 0
    for silo in federation.silos:
        name = SiloFolder.open(Path(silo)).info.name
        with Ledger(Path(federation.state) / "ledgers" / "private" / f"{name}.db") as ledger:
            (reserved,) = [e for e in ledger.entries if e.kind == "reserve"]
        assert reserved.body["what"]["task"] == federation.task.name


@pytest.fixture
def silo_and_request(federation, tmp_path):
    """The first silo, with a ledger of its own, and a private request that it accepts."""
    worker = Worker(read_federation_elsewhere(federation, tmp_path))
    model = worker.model("numeric")
    ask = {
        "job": "private",
        "round": 0,
        "task": federation.task.name,
        "model": "numeric",
        "base_digest": model.base_digest,
        "layout_digest": model.layout.digest,
    }
    with worker.silo(0, JOBS[1], 0) as silo:
        yield silo, ask, model


def read_federation_elsewhere(federation, folder):
    path = folder / "federation.json"
    raw = {**asdict(federation), "state": str(folder)}
    path.write_text(json.dumps(raw, default=str))
    return read_federation(path)


def test_a_request_for_a_task_outside_the_policy_is_refused_and_costs_nothing(silo_and_request):
    silo, ask, model = silo_and_request
    start = model.adapter()
    for name in ("promotion-response", "no such task"):
        with pytest.raises(PolicyError, match="task"):
            silo.train(TrainRequest(**{**ask, "task": name}, private=PRIVATE), start, model)
    assert not [e for e in silo.ledger.entries if e.kind == "reserve"]
    silo.train(TrainRequest(**ask, private=PRIVATE), start, model)
    assert [e for e in silo.ledger.entries if e.kind == "reserve"]


def test_private_metrics_are_refused_where_the_outcome_is_no_yes_or_no(silo_and_request):
    silo, ask, model = silo_and_request
    outputs = model.head.score.out_features
    plan = {"noise_multiplier": 50.0, "bins": 4.0, "outputs": float(outputs)}
    request = MetricsRequest(**ask, metrics=plan)
    # The binary task comes as far as the policy, which allows no metrics here.
    expected = PolicyError if outputs == 1 else ConfigError
    with pytest.raises(expected, match="metrics"):
        silo.measure(request, model.adapter(), model)
    assert not [e for e in silo.ledger.entries if e.kind == "reserve"]
