"""Several tasks in one adapter: read, joined by user, each learned and judged by its own head."""

import datetime as dt
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from silotune.config import config, from_mapping
from silotune.errors import ConfigError, DataError, NoExamplesError
from silotune.federation import model_for, read_federation
from silotune.models.heads import adapter_of_part
from silotune.models.text_model import ModelConfig
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.customers import CustomerChurn, CustomerSegment
from silotune.tasks.discounts import DiscountDepth
from silotune.tasks.names import names_in
from silotune.tasks.several import (
    OneOrSeveral,
    SeveralTasks,
    joined,
    part_of,
    parts_of,
    read_tasks,
    seeded,
)

SPAN = {
    "first": dt.datetime.fromisoformat("2024-02-12"),
    "split": dt.datetime.fromisoformat("2024-04-01"),
    "last": dt.datetime.fromisoformat("2024-05-20"),
}
CHURN = CustomerChurn(**SPAN, horizon_days=7)
SEGMENT = CustomerSegment(**SPAN, horizon_days=14, at_risk_below=5.0, high_value_from=40.0)
BOTH = SeveralTasks(tasks=(CHURN, SEGMENT))
EVERY = SeveralTasks(tasks=(CHURN, SEGMENT, DiscountDepth(**SPAN)), weights=(1.0, 2.0, 0.5))


@config
class File:
    task: OneOrSeveral


@pytest.fixture(scope="module")
def silo(small_federation, tmp_path_factory):
    path = small_federation(tmp_path_factory.mktemp("heads"), "numeric")
    return SiloFolder.open(Path(read_federation(path).silos[0]))


@pytest.fixture(scope="module")
def examples(silo):
    return BOTH.build(silo)


def test_a_file_holds_one_task_or_a_list_of_them():
    for task in (CHURN, BOTH, EVERY):
        raw = asdict(task)
        assert from_mapping(File, {"task": raw}, where="x").task == task
        assert read_tasks(raw, where="x") == task
    old = {**SPAN}
    assert from_mapping(File, {"task": old}, where="x").task.name == "promotion-response"
    assert BOTH.name == "customer-churn+customer-segment"
    assert names_in(BOTH.name) == ("customer-churn", "customer-segment")
    assert parts_of(CHURN) == (CHURN,)
    assert parts_of(BOTH) == (CHURN, SEGMENT)
    assert [t.seed for t in seeded(BOTH, 3).tasks] == [3, 3]
    assert seeded(CHURN, 2).seed == 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"tasks": [asdict(CHURN)]}, "two or more different tasks"),
        ({"tasks": [asdict(CHURN), asdict(CHURN)]}, "two or more different tasks"),
        ({"tasks": [asdict(CHURN), asdict(SEGMENT)], "weights": [1.0]}, "1 values for 2 tasks"),
        ({"tasks": [asdict(CHURN), asdict(SEGMENT)], "weights": [1.0, 0.0]}, "must be > 0"),
        ({"tasks": [asdict(CHURN), {"name": "weather"}]}, r"tasks\[1\].*weather"),
        (
            {"tasks": [asdict(CHURN), asdict(SEGMENT) | {"horizon_dys": 3}]},
            r"horizon_dys'; did you mean 'horizon_days'",
        ),
        ({"tasks": [asdict(CHURN), asdict(SEGMENT)], "wights": [1.0]}, "did you mean 'weights'"),
    ],
)
def test_what_is_wrong_with_a_list_of_tasks_is_named(raw, words):
    with pytest.raises(ConfigError, match=words):
        from_mapping(File, {"task": raw}, where="x")


def test_a_user_of_one_task_is_the_same_user_in_the_other(silo, examples):
    churn, segment = CHURN.build(silo), SEGMENT.build(silo)
    known = [*churn.keys["user_id"], *segment.keys["user_id"]]
    assert examples.keys["user_id"] == known
    # Not so before: each task counts its own users.
    assert churn.keys["user_id"] != segment.keys["user_id"][: len(churn)]
    pairs = set(zip(known, examples.user_E.tolist(), strict=True))
    assert len(pairs) == len(set(known)) == examples.users
    both = set(churn.keys["user_id"]) & set(segment.keys["user_id"])
    assert both


def test_each_row_has_its_own_tasks_label_features_and_visit(silo, examples):
    for number, task in enumerate(BOTH.tasks):
        alone = task.build(silo)
        part, rows = part_of(examples, BOTH, number)
        assert np.array_equal(part.label_EK, alone.label_EK)
        assert np.array_equal(part.numeric_EF, alone.numeric_EF)
        assert np.array_equal(part.test_E, alone.test_E)
        assert part.text == alone.text
        assert part.context == alone.context
        assert part.objective == task.objective
        # The same users and visits, under other numbers.
        for ours, theirs in ((part.user_E, alone.user_E), (part.visit_E, alone.visit_E)):
            assert len(set(zip(ours, theirs, strict=True))) == len(set(theirs))
        other = BOTH.objective.columns(1 - number)
        assert np.isnan(examples.label_EK[rows][:, other]).all()
    visits = [set(part_of(examples, BOTH, n)[0].visit_E.tolist()) for n in (0, 1)]
    assert not visits[0] & visits[1]


def test_a_task_that_does_not_name_its_users_is_refused(silo):
    churn, segment = CHURN.build(silo), SEGMENT.build(silo)
    nameless = Examples(
        **{f: getattr(segment, f) for f in Examples.__dataclass_fields__ if f != "keys"}
    )
    with pytest.raises(DataError, match="'customer-segment' does not say whose"):
        joined(BOTH, [churn, nameless])


def test_a_task_without_examples_has_no_rows_and_the_others_are_as_before(silo):
    nobody = replace(CHURN, least_visits=10_000)
    for tasks, empty in (((nobody, SEGMENT), 0), ((SEGMENT, nobody), 1)):
        both = SeveralTasks(tasks=tasks)
        examples = both.build(silo)
        part, rows = part_of(examples, both, empty)
        assert len(part) == len(rows) == 0
        other, _ = part_of(examples, both, 1 - empty)
        alone = SEGMENT.build(silo)
        assert np.array_equal(other.numeric_EF, alone.numeric_EF)
        assert np.array_equal(other.label_EK, alone.label_EK)
        assert examples.users == alone.users
        # Its head stands still, the other one learns.
        logits_EK = torch.zeros(len(examples), both.outputs, requires_grad=True)
        torch.autograd.backward(both.objective.loss(logits_EK, torch.from_numpy(examples.label_EK)))
        moved_K = logits_EK.grad.abs().sum(0) > 0
        assert not moved_K[both.objective.columns(empty)].any()
        assert moved_K[both.objective.columns(1 - empty)].all()
        quality = both.objective.quality(
            examples.label_EK, np.zeros((len(examples), both.outputs)), examples.visit_E
        )
        assert np.isnan(quality["customer-churn: auc"])
        assert np.isfinite(quality["customer-segment: auc"])
    with pytest.raises(NoExamplesError):
        SeveralTasks(tasks=(nobody, replace(SEGMENT, least_visits=10_000))).build(silo)


def a_batch(examples, objective, count=40):
    generator = torch.Generator().manual_seed(0)
    rows = np.linspace(0, len(examples) - 1, count).astype(int)
    logits = torch.randn(count, objective.outputs, generator=generator, requires_grad=True)
    return rows, logits, torch.from_numpy(examples.label_EK[rows])


def test_the_loss_is_the_weighted_sum_of_each_tasks_own_over_its_rows(silo):
    objective, examples = EVERY.objective, EVERY.build(silo)
    rows, logits, label = a_batch(examples, objective)
    expected = 0.0
    for number, (task, weight) in enumerate(zip(EVERY.tasks, EVERY.weights, strict=True)):
        own = torch.from_numpy(objective.rows_of(number, label.numpy()))
        assert 0 < int(own.sum()) < len(rows)
        block = objective.columns(number)
        expected = expected + weight * task.objective.loss(logits[own, block], label[own, block])
    loss = objective.loss(logits, label)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(grad).all()
    # A row moves the outputs of its own task and no other.
    assert torch.equal(grad != 0, (grad != 0) & ~label.isnan())
    assert bool((grad != 0).any(0).all())


def test_quality_is_that_of_each_task_and_their_mean(silo, examples):
    objective = BOTH.objective
    rows, logits, label = a_batch(examples, objective, 60)
    visit = examples.visit_E[rows]
    found = objective.quality(label.numpy(), logits.detach().numpy(), visit)
    areas = []
    for number, task in enumerate(BOTH.tasks):
        own = objective.rows_of(number, label.numpy())
        block = objective.columns(number)
        alone = task.objective.quality(
            label.numpy()[own][:, block], logits.detach().numpy()[own][:, block], visit[own]
        )
        assert found[f"{task.name}: auc"] == alone["auc"]
        areas.append(alone["auc"])
    assert found["auc"] == pytest.approx(np.mean(areas))
    scores = objective.scores(logits.detach().numpy())
    assert scores.shape == (60, len(objective.score_names))
    assert np.allclose(scores[:, 1:].sum(1), 1)
    outcomes = objective.outcomes(label.numpy())
    churned = objective.rows_of(0, label.numpy())
    assert [v is not None for v in outcomes["customer-churn: label"]] == churned.tolist()


def test_a_head_reads_its_own_features_and_its_part_scores_alone_as_it_does_together(examples):
    cfg = ModelConfig(use_text=False)
    model = model_for(cfg, BOTH)
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(model.layout.size, generator=generator)
    model.load_adapter(flat)
    for number, task in enumerate(BOTH.tasks):
        part, rows = part_of(examples, BOTH, number)
        alone = model_for(cfg, task)
        alone.load_adapter(adapter_of_part(flat, model.layout, number, alone.layout))
        with torch.no_grad():
            whole = model(None, None, torch.from_numpy(examples.numeric_EF[rows]))
            own = alone(None, None, torch.from_numpy(part.numeric_EF))
        assert torch.equal(whole[:, BOTH.objective.columns(number)], own)
    # What one task is alone: the same names as ever.
    assert model_for(cfg, CHURN).layout.names == ("head.score.bias", "head.score.weight")
