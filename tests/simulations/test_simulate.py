"""The whole comparison, small: real silos, real training, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from dp_accounting import dp_event, pld

from simulations.run_folder import RunFolder

SCENARIO = """
name = "small"
description = "three small merchants and one that is too small"
engine = "inline"
workers = 2

[data]
source = "folder"
path = "{silos}"
minimum_users = 20

[task]
first = 2024-01-22T00:00:00
split = 2024-04-15T00:00:00
last = 2024-05-20T00:00:00
category_level = 2
train_visits = 1
test_visits = 1

[model]
precision = "float32"

[model.lora]
rank = 2
top_layers = 1

[federated]
rounds = 2

[privacy]
epsilons = [8.0]
delta = 1e-3
rounds = 2
steps = 2

[local]
epochs = 1
pooled_epochs = 1
"""


def _silotune(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "silotune.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from silotune.tables.synthetic import SyntheticConfig, generate

    folder = tmp_path_factory.mktemp("simulate")
    generate(SyntheticConfig(merchants=3, users_per_merchant=40, weeks=20, seed=3), folder / "s")
    generate(SyntheticConfig(merchants=1, users_per_merchant=8, weeks=20, seed=4), folder / "t")
    tiny = (folder / "t" / "merchant-0001").rename(folder / "s" / "tiny")
    about = tiny / "silo.toml"
    about.write_text(about.read_text().replace("merchant-0001", "tiny"))
    (folder / "small.toml").write_text(SCENARIO.format(silos=folder / "s"))
    return folder


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that a person interrupted when its first scores were there."""
    return _interrupted(folder, "inline", "run", "metrics.jsonl")


@pytest.fixture(scope="module")
def run(folder, stopped):
    """The same run, finished. What all tests of it see is what is left after an interruption."""
    done = _silotune(folder, "simulate", "small.toml", "--out", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    return RunFolder.open(folder / "run"), done.stdout


def _interrupted(folder, engine, out, there):
    """Send SIGINT once a file ``there`` holds something; exit code, output, scores by then."""
    options = ["--engine", engine, "--out", out, "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "silotune.cli", "simulate", "small.toml", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 240
    while time.monotonic() < until and not any(
        f.stat().st_size for f in (folder / out).glob(there)
    ):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=120)
    return process.returncode, *told, (folder / out / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_every_arm_is_scored_at_every_merchant_and_the_small_one_is_named(run):
    records = [r for r in run[0].records() if r["kind"] == "score"]
    arms = {r["arm"] for r in records}
    assert arms == {
        "popularity",
        "logistic-local",
        "logistic-pooled",
        "trees-local",
        "trees-pooled",
        "local-only",
        "pooled",
        "federated",
        "federated+local",
        "federated-eps8",
        "federated-eps8+local",
        "numeric-federated",
        "numeric-eps8",
    }
    assert len(records) == 3 * len(arms)
    excluded = json.loads((run[0].path / "run.json").read_text())["excluded"]
    assert len(excluded) == 1
    assert "20" in excluded[0]["reason"]
    assert (run[0].path / "report.html").stat().st_size > 10_000
    assert "local-only" in run[1] or "alone" in run[1]


@pytest.mark.slow
def test_metrics_of_every_private_job_lie_within_their_error_bars(run):
    found = [r for r in run[0].records() if r["kind"] == "private-metrics"]
    assert {r["arm"] for r in found} == {"federated-eps8", "numeric-eps8"}
    assert len(found) == 8
    told = [r for r in found if r["value"] is not None]
    assert {"accuracy", "positive_rate"} <= {r["metric"] for r in told}
    for record in told:
        assert abs(record["value"] - record["noiseless"]) <= 4 * record["standard_error"]
    assert "Measured privately" in run[1]


@pytest.mark.slow
def test_epsilon_of_the_report_is_that_of_another_library_within_two_percent(run):
    federation = json.loads((run[0].path / "state/seed-0/federation.json").read_text())
    job = next(j for j in federation["jobs"] if j["name"] == "federated-eps8")
    job, metrics = job["private"], job["metrics"]
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    step = dp_event.PoissonSampledDpEvent(
        job["sampling_rate"], dp_event.GaussianDpEvent(job["noise_multiplier"])
    )
    accountant.compose(step, 4)
    accountant.compose(dp_event.GaussianDpEvent(metrics["noise_multiplier"]))
    independent = accountant.get_epsilon(1e-3)
    last = [r for r in run[0].records() if r["kind"] == "privacy" and r["round"] == 1]
    assert len(last) == 6  # two private jobs at three merchants
    for record in last:
        assert record["epsilon"] == pytest.approx(independent, rel=0.02)
        assert independent * 0.995 <= record["epsilon"] <= 8


@pytest.mark.slow
# peft asks transformers for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_exported_adapter_scores_the_same_in_plain_transformers_and_peft(run):
    from pathlib import Path

    import numpy as np
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from client.prepared import prepare
    from server.run_store import RunStore
    from silotune.federation import build_model, read_federation
    from silotune.models.base import resolve_base
    from silotune.tables.silo_folder import SiloFolder

    state = run[0].path / "state" / "seed-0"
    federation = read_federation(state / "federation.json")
    model = build_model(federation.models, "text", federation.task)
    model.load_adapter(RunStore(state / "rounds" / "federated", model.layout.digest).load(1))
    examples = federation.task.build(SiloFolder.open(Path(federation.silos[0])))
    prepared = prepare(examples, model)
    rows = examples.rows(test=True)[:40]
    ours = prepared.scores(model, rows)[:, 0]

    exported = run[0].path / "adapters" / "federated-seed0"
    base = AutoModel.from_pretrained(resolve_base("minilm"))
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("minilm"))
    plain = PeftModel.from_pretrained(base, exported).eval()
    head = load_file(exported / "head.safetensors")
    theirs = []
    for row in rows:
        tokens = tokenizer(
            examples.text[row],
            examples.context[row],
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        context = [i for i, s in enumerate(tokens.encodings[0].sequence_ids) if s == 1]
        with torch.inference_mode():
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            states = plain(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        pooled = torch.nn.functional.normalize(states[: context[0]].mean(0), dim=0)
        numeric = torch.from_numpy(examples.numeric_EF[row])
        theirs.append(float(head["weight"][0] @ torch.cat([pooled, numeric]) + head["bias"][0]))
    assert np.std(ours) > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["inline", "pool", pytest.param("flower", marks=pytest.mark.long)]
)
def test_a_run_that_is_interrupted_says_so_and_keeps_its_state(folder, engine, request):
    # What is there when the interruption comes: the first scores, or a round on the workers.
    code, out, err, _ = (
        request.getfixturevalue("stopped")
        if engine == "inline"
        else _interrupted(folder, engine, engine, "state/seed-0/rounds/*/rounds.jsonl")
    )
    assert code == 130, err
    assert "The state is kept" in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_was(stopped, run):
    scores = (run[0].path / "metrics.jsonl").read_text()
    assert len(stopped[3]) > 0
    assert scores.startswith(stopped[3])
    assert scores != stopped[3]
    assert run[0].info.status == "finished"


@pytest.mark.slow
def test_a_finished_run_is_not_written_over(folder, run):
    assert run[0].info.status == "finished"
    done = _silotune(folder, "simulate", "small.toml", "--out", "run")
    assert done.returncode == 2
    assert "is finished" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epsilons = [8.0]", "epsilon = [8.0]", "did you mean 'epsilons'"),
        ("epsilons = [8.0]", "epsilons = [0.0]", "must be > 0"),
        ("delta = 1e-3", "delta = 0.5", "below 1/users"),
        ("steps = 2", "clip_norm = -1", "clip_norm is -1"),
        ("steps = 2", "sampling_rate = 1.5", "sampling_rate is 1.5"),
        ("rank = 2", "dora = true", "no per-user gradient"),
        ("rank = 2", 'targets = ["q_proj"]', "it has: "),
        ("rank = 2", "rank = 0", "rank is 0"),
        ('engine = "inline"', 'engine = "spark"', "engine"),
        ("minimum_users = 20", "minimum_users = 5000", "no merchant is left"),
    ],
)
def test_a_bad_scenario_is_refused_in_words_with_exit_code_2(folder, tmp_path, old, new, words):
    text = (folder / "small.toml").read_text()
    assert old in text
    (tmp_path / "bad.toml").write_text(text.replace(old, new, 1))
    done = _silotune(tmp_path, "simulate", "bad.toml", "--quiet")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_scenario_lists_those_there_are(tmp_path):
    done = _silotune(tmp_path, "simulate", "dmo")
    assert done.returncode == 2
    assert "demo" in done.stderr
