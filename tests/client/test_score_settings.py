"""With what a task is scored: which adapter, task and model, and what is refused."""

import datetime as dt
import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from client.config import ClientConfig
from client.kept_adapters import keep_adapter, kept_adapters
from client.score import Asked, score_silo
from client.score_file import write_scores
from client.score_settings import score_settings
from silotune.errors import ConfigError, DataError, ModelError
from silotune.invitation import Invitation
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.stored import read_adapter
from silotune.tasks.registry import task_mapping
from silotune.toml_text import toml_text
from tests.client.scoring import (
    CHURN,
    DATE,
    SEGMENT,
    exported,
)


def ask(kind, model, task, round_, job="r/../1"):
    known = {"job": job, "round": round_, "task": task.name, "model": "text"}
    known |= {"base_digest": model.base_digest, "layout_digest": model.layout.digest}
    more = {"metrics": {}} if kind is MetricsRequest else {"plain": {}}
    return kind(**known, **more)


def test_the_daemon_keeps_the_newest_aggregate_of_each_run_and_it_is_used(silo, tmp_path):
    model = exported(CHURN, tmp_path / "a")
    size = model.layout.size
    keep_adapter(silo.path, ask(TrainRequest, model, CHURN, 0), torch.zeros(size))
    assert kept_adapters(silo.path, CHURN.name) == []
    with pytest.raises(ModelError, match="holds no adapter of task 'customer-churn'"):
        score_settings(silo.path, CHURN.name)
    keep_adapter(silo.path, ask(TrainRequest, model, CHURN, 1), torch.full((size,), 0.1))
    keep_adapter(silo.path, ask(MetricsRequest, model, CHURN, 1), torch.full((size,), 0.2))
    keep_adapter(silo.path, ask(TrainRequest, model, SEGMENT, 3, "other"), torch.zeros(size))
    (kept,) = kept_adapters(silo.path, CHURN.name)
    assert (kept.job, kept.rounds) == ("r/../1", 2)
    assert kept.path.parent == silo.path / "adapters"
    assert kept.path.stat().st_mode & 0o777 == 0o600
    (silo.path / "run.toml").write_text(
        "[task]\nname = 'customer-churn'\nfirst = 2024-02-12T00:00:00\n"
        "split = 2024-04-01T00:00:00\nlast = 2024-05-20T00:00:00\nhorizon_days = 7\n"
        "[model]\nuse_text = false\n[job]\nname = 'r'\n[job.plain]\n"
    )
    with pytest.raises(ConfigError, match="run file with --run"):
        score_settings(silo.path, CHURN.name)
    settings = score_settings(silo.path, CHURN.name, run=silo.path / "run.toml")
    scored = score_silo(settings, silo, Asked(as_of=DATE))
    model.load_adapter(torch.full((size,), 0.2))
    with torch.no_grad():
        numeric = torch.from_numpy(CHURN.build_at(silo, DATE).numeric_EF)
        logits = model(None, None, numeric).numpy()
    np.testing.assert_allclose(scored.score_EK, CHURN.objective.scores(logits), rtol=1e-5)
    with pytest.raises(ModelError, match="of run 'x'"):
        score_settings(silo.path, CHURN.name, job="x")


def test_only_so_many_runs_are_kept(silo, tmp_path):
    model = exported(CHURN, tmp_path / "a")
    for number in range(20):
        flat = torch.zeros(model.layout.size)
        keep_adapter(silo.path, ask(TrainRequest, model, CHURN, 1, f"job {number}"), flat)
        for kept in kept_adapters(silo.path, CHURN.name):
            # A file system's clock may not tell them apart.
            if kept.job == f"job {number}":
                os.utime(kept.path, (number, number))
    assert [k.job for k in kept_adapters(silo.path, CHURN.name)] == [
        f"job {number}" for number in range(4, 20)
    ]


def test_two_runs_whose_names_make_one_file_name_do_not_share_it(silo, tmp_path):
    model = exported(CHURN, tmp_path / "a")
    jobs = ("a/b", "a_b", "../../b", "x" * 90, "x" * 91)
    for value, job in enumerate(jobs):
        flat = torch.full((model.layout.size,), float(value))
        keep_adapter(silo.path, ask(TrainRequest, model, CHURN, 1, job), flat)
    found = {k.job: read_adapter(k.path, model)[0] for k in kept_adapters(silo.path, CHURN.name)}
    assert found == {job: value for value, job in enumerate(jobs)}
    assert {p.parent for p in silo.path.rglob("*.safetensors")} == {silo.path / "adapters"}


@pytest.mark.parametrize("change", [{"base_digest": "0" * 64}, {"layout_digest": "0" * 64}])
def test_a_kept_adapter_of_another_base_or_layout_is_not_used(silo, tmp_path, change):
    model = exported(CHURN, tmp_path / "a")
    what = replace(ask(TrainRequest, model, CHURN, 1), **change)
    keep_adapter(silo.path, what, torch.zeros(model.layout.size))
    (kept,) = kept_adapters(silo.path, CHURN.name)
    with pytest.raises(ModelError, match=r"is for base model|of another layout"):
        read_adapter(kept.path, model)


def test_the_local_adapter_is_taken_before_the_federations(silo, tmp_path):
    model = exported(CHURN, tmp_path / "a")
    flat = torch.zeros(model.layout.size)
    keep_adapter(silo.path, ask(TrainRequest, model, CHURN, 1), flat)
    local = silo.path / "local" / CHURN.name
    exported(CHURN, local, seed=1)
    assert score_settings(silo.path, CHURN.name).adapter == local
    with pytest.raises(ConfigError, match="--run"):
        # Found, and it does not say of which settings it is.
        score_settings(silo.path, CHURN.name, local=False)
    assert score_settings(silo.path, CHURN.name, adapter=tmp_path / "a").adapter == tmp_path / "a"


def run_file(folder, name, **changes):
    path = folder / "runs" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    model = {"use_text": False}
    raw = {"task": task_mapping(CHURN) | changes, "model": model}
    path.write_text(toml_text(raw | {"job": {"name": name, "plain": {"epochs": 1.0}}}))


def test_task_and_model_are_those_of_the_merchants_own_files(silo, tmp_path):
    model = exported(CHURN, tmp_path / "a")
    flat = torch.zeros(model.layout.size)
    keep_adapter(silo.path, ask(TrainRequest, model, CHURN, 1, "one"), flat)
    # The task of client.toml is another: the accepted runs say.
    server = Invitation(name="a", address="a:1", certificate_sha256="0" * 64, ca="x")
    raw = {"task": task_mapping(SEGMENT), "model": {"use_text": False}, "threads": 2}
    own = ClientConfig(server=server, **raw)
    (silo.path / "client.toml").write_text(toml_text(asdict(own)))
    run_file(silo.path, "one", usual=2)
    run_file(silo.path, "two", usual=3)
    found = score_settings(silo.path, CHURN.name)
    assert (found.task, found.threads) == (replace(CHURN, usual=2), 2)
    # An export does not name its run, and could be of either.
    with pytest.raises(ConfigError, match=r"differ: one\.toml, two\.toml"):
        score_settings(silo.path, CHURN.name, adapter=tmp_path / "a")
    exported(SEGMENT, tmp_path / "b")
    assert score_settings(silo.path, SEGMENT.name, adapter=tmp_path / "b").task == SEGMENT
    moved = replace(SEGMENT, horizon_days=21)
    exported(moved, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"trained with task\.horizon_days = 21"):
        score_settings(silo.path, SEGMENT.name, adapter=tmp_path / "c")


def test_what_cannot_be_scored_is_refused_with_the_remedy(silo, tmp_path):
    adapter = tmp_path / "a"
    exported(CHURN, adapter)
    with pytest.raises(ConfigError, match="known tasks: promotion-response"):
        score_settings(silo.path, "churn", adapter=adapter)
    with pytest.raises(ConfigError, match="adapter of task 'customer-churn'"):
        score_settings(silo.path, "customer-segment", adapter=adapter)
    settings = score_settings(silo.path, CHURN.name, adapter=adapter)
    with pytest.raises(DataError, match="Ask about a date that the tables"):
        score_silo(settings, silo, Asked(as_of=dt.datetime.fromisoformat("2031-01-01")))
    scored = score_silo(settings, silo, Asked(as_of=DATE))
    with pytest.raises(ConfigError, match="--with-labels"):
        write_scores([scored], settings, tmp_path / "s.parquet", with_labels=True)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_scores([scored], settings, silo.path / "silo.toml" / "s.parquet")
    about = json.loads((adapter / "silotune.json").read_text())
    changed = about | {"numeric": ["height"]}
    (adapter / "silotune.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="reads the features height"):
        score_settings(silo.path, CHURN.name, adapter=adapter)
    changed = about | {"task": about["task"] | {"horizon_days": 21}}
    (adapter / "silotune.json").write_text(json.dumps(changed))
    run = tmp_path / "run.toml"
    run.write_text(
        "[task]\nname = 'customer-churn'\nfirst = 2024-02-12T00:00:00\n"
        "split = 2024-04-01T00:00:00\nlast = 2024-05-20T00:00:00\nhorizon_days = 7\n"
        "[model]\nuse_text = false\n[job]\nname = 'r'\n[job.plain]\n"
    )
    with pytest.raises(ConfigError, match=r"task\.horizon_days = 21; the silo's is 7"):
        score_settings(silo.path, CHURN.name, adapter=adapter, run=run)
    exported(SEGMENT, tmp_path / "b")
    with pytest.raises(ConfigError, match="a run of task 'customer-churn'"):
        score_settings(silo.path, SEGMENT.name, adapter=tmp_path / "b", run=run)
