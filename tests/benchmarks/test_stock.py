"""The stock recipe does the same work as silotune's private job, and learns."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from silotune.federation import Job, read_federation
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.metrics import auc
from simulations.benchmarks import stock
from simulations.benchmarks.setting import Setting, plan, read_setting, write_setting


def examples_of(counts):
    user_E = np.repeat(np.arange(len(counts)), counts)
    size = len(user_E)
    return Examples(
        text=[""] * size,
        context=[""] * size,
        numeric_EF=np.zeros((size, 1), np.float32),
        label_EK=np.zeros((size, 1), np.float32),
        user_E=user_E,
        visit_E=np.arange(size),
        group=[""] * size,
        test_E=np.zeros(size, bool),
    )


def job_of(rate=0.25, steps=4, cap=8):
    private = {
        "sampling_rate": rate,
        "steps": steps,
        "examples_per_user": cap,
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "learning_rate": 0.1,
    }
    return Job(name="private", private=private, epsilon=8.0)


def test_without_a_cap_the_stock_recipe_has_the_same_rate_and_steps():
    wanted = plan(examples_of([4] * 50), job_of(cap=8))
    assert (wanted.rate, wanted.steps, wanted.batch_size, wanted.expected) == (0.25, 4, 50, 200)


@pytest.mark.parametrize("counts", [[12] * 40, [1, 2, 30] * 30, list(range(1, 60)), [3] * 7])
@pytest.mark.parametrize(("rate", "steps", "cap"), [(0.25, 4, 8), (0.1, 6, 4), (0.5, 1, 100)])
def test_both_sides_are_expected_to_see_as_many_examples(counts, rate, steps, cap):
    wanted = plan(examples_of(counts), job_of(rate, steps, cap))
    ours = steps * rate * sum(min(c, cap) for c in counts)
    assert wanted.expected == pytest.approx(ours)
    assert wanted.steps * wanted.rate * sum(counts) == pytest.approx(ours, rel=0.1)
    # Opacus takes one over the length of the loader as its rate.
    assert wanted.loader_batches == -(-sum(counts) // wanted.batch_size)


@pytest.fixture
def setting(small_federation, tmp_path):
    """A setting of three small synthetic merchants, one private job."""
    path = small_federation(tmp_path, "private")
    federation = read_federation(path)
    job = federation.jobs[0]
    private = {**job.private, "steps": 4}
    replace(federation, jobs=(replace(job, private=private),), state=str(tmp_path / "s")).save(path)
    made = Setting(folder=str(tmp_path), epsilon=20.0, engine="inline")
    assert read_setting(write_setting(made)) == made
    return made


def test_the_stock_recipe_gets_the_examples_that_silotune_builds(setting, tmp_path):
    from simulations.benchmarks.stock_app import merchant_file

    federation = setting.federation
    for index, path in enumerate(federation.silos):
        stock.export(setting.federation_path, tmp_path, index)
        ours = federation.task.build(SiloFolder.open(Path(path)))
        with np.load(merchant_file(tmp_path, index)) as saved:
            assert saved["text"].tolist() == ours.text
            assert saved["context"].tolist() == ours.context
            assert saved["label"].tolist() == ours.label_EK[:, 0].tolist()
            assert saved["test"].tolist() == ours.test_E.tolist()


@pytest.mark.slow
@pytest.mark.long
def test_the_stock_recipe_learns_and_sees_what_it_should(setting, tmp_path):
    from safetensors.torch import save_file

    from simulations.benchmarks.stock_app import build_model, merchant_file, train_merchant

    plans = [stock.export(setting.federation_path, tmp_path, i) for i in range(2)]
    recipe = stock.make_recipe(setting, tmp_path, 32, plans)
    model = build_model(recipe)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    # The same rank and layers as silotune's adapter: top one of six, query and value.
    assert {n.split(".layer.")[1].split(".")[0] for n in trained if "lora" in n} == {"5"}
    from peft import get_peft_model_state_dict

    state = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}
    assert sum("lora_B" in k for k in state) == 2
    start = state
    # Little noise: what is tested is that it trains, not what privacy costs.
    recipe = replace(recipe, noise_multiplier=0.4)
    lines = []
    for _ in range(8):
        state, seen = train_merchant(recipe, 0, state)
        lines.append(json.dumps({"merchant": 0, **seen}))
        assert seen["steps"] == plans[0].steps
        rows = seen["num-examples"]
        mean = seen["steps"] * plans[0].rate * rows
        assert abs(seen["seen"] - mean) < 5 * np.sqrt(mean)
    assert all(not state[k].equal(start[k]) for k in state if "lora_B" in k or "classifier" in k)
    save_file(state, tmp_path / "adapter.safetensors")
    (tmp_path / "seen.jsonl").write_text("\n".join(lines), encoding="utf-8")
    from simulations.benchmarks.stock_app import logits

    with np.load(merchant_file(tmp_path, 0)) as saved:
        labels = saved["label"][~saved["test"]]
    trained_auc = auc(labels, logits(recipe, state, 0, model, test=False))
    assert trained_auc > 0.6
