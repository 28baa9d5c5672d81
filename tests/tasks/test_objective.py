"""Losses against torch's own, their bounds, and metrics worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from silotune.errors import ConfigError
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.metrics import auc, log_loss
from silotune.tasks.objective import Binary, Bounded, Classes

THREE = Classes(names=("a", "b", "c"))
ALL = [Binary(), THREE, Bounded(low=-1.0, high=2.0, delta=0.5)]


def drawn(objective, rows=50):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(rows, objective.outputs, generator=generator)
    return logits, objective.made_up_labels(rows, generator)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_the_loss_is_the_sum_of_the_examples_own(objective):
    logits, labels = drawn(objective)
    assert labels.shape == logits.shape
    each = [objective.loss(logits[i : i + 1], labels[i : i + 1]) for i in range(50)]
    whole = objective.loss(logits, labels).item()
    assert whole == pytest.approx(torch.stack(each).sum().item(), rel=1e-5)


def test_losses_are_those_of_torch():
    logits, labels = drawn(Binary())
    assert torch.equal(
        Binary().loss(logits, labels),
        functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum"),
    )
    logits, labels = drawn(THREE)
    expected = functional.cross_entropy(logits, labels.argmax(1), reduction="sum")
    assert THREE.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "bound"), [(Binary(), 1.0), (THREE, math.sqrt(2)), (Bounded(delta=0.5), 0.5)]
)
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_no_example_has_a_gradient_of_its_logits_beyond_the_bound(objective, bound, size):
    logits, labels = drawn(objective)
    logits = (size * logits).requires_grad_()
    if isinstance(objective, Bounded):
        labels = size * 1e3 * (labels - 0.5)
    objective.loss(logits, labels).backward()
    assert logits.grad.norm(dim=1).max() <= bound + 1e-6
    assert logits.grad.norm(dim=1).max() > 0.4 * bound


def test_chances_of_classes_add_up_to_one_and_values_stay_within_bounds():
    logits = np.array([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], np.float32)
    assert THREE.scores(logits) == pytest.approx(np.array([[1, 0, 0], [1 / 3] * 3]))
    assert Binary().scores(np.array([[0.0], [-1e4], [1e4]]))[:, 0] == pytest.approx([0.5, 0, 1])
    assert Bounded(low=-1, high=2).scores(np.array([[-9.0], [0.5], [9.0]]))[:, 0].tolist() == [
        -1,
        0.5,
        2,
    ]


def test_binary_quality_is_that_of_its_one_column():
    logits, labels = (t.numpy() for t in drawn(Binary()))
    visits = np.arange(50) // 5
    ranked = Binary(ranked=True).quality(labels, logits, visits)
    assert set(ranked) == {"auc", "log_loss", "calibration_error", "ndcg", "recall"}
    alone = Binary().quality(labels, logits, visits)
    assert set(alone) == {"auc", "log_loss", "calibration_error"}
    assert alone["auc"] == ranked["auc"] == auc(labels, logits)
    assert alone["log_loss"] == log_loss(labels, logits)


def test_quality_of_classes_is_as_worked_out_by_hand():
    chances = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.3, 0.6, 0.1], [0.65, 0.25, 0.1]])
    # Any shift of a row's logits is the same chances.
    logits = np.log(chances) + np.array([[0.0], [5.0], [-3.0], [100.0]])
    labels = np.eye(3)[[0, 0, 1, 1]]
    found = THREE.quality(labels, logits, np.arange(4))
    assert found["accuracy"] == 0.5
    assert found["log_loss"] == pytest.approx(-np.mean(np.log([0.7, 0.4, 0.6, 0.25])))
    # a: 0.7, 0.4 against 0.3, 0.65: three of four; b: 0.6, 0.25 against 0.2, 0.5: three of four.
    # Nobody is of class c: it has no area, and takes nothing from the mean.
    assert found["auc"] == pytest.approx(0.75)
    # Top chances 0.7 right, 0.5 wrong, 0.6 right, 0.65 wrong.
    assert found["calibration_error"] == pytest.approx((0.3 + 0.5 + 0.4 + 0.65) / 4)
    assert sum(rows for _, _, rows in THREE.calibration(labels, logits)) == 4


def test_a_model_that_diverged_looks_good_by_no_metric_and_a_certain_one_has_an_answer():
    labels = np.eye(3)[[0, 1, 2]]
    for broken in (np.nan, np.inf):
        logits = np.zeros((3, 3))
        logits[1, 2] = broken
        assert all(map(math.isnan, THREE.quality(labels, logits, np.arange(3)).values()))
    certain = THREE.quality(labels, 1e5 * labels, np.arange(3))
    assert certain == {"auc": 1.0, "accuracy": 1.0, "log_loss": 0.0, "calibration_error": 0.0}
    nan = Bounded().quality(np.zeros((2, 1)), np.array([[np.nan], [0.0]]), np.arange(2))
    assert all(map(math.isnan, nan.values()))


def test_errors_of_values_are_between_values_within_the_bounds():
    objective = Bounded(low=0.0, high=1.0)
    found = objective.quality(np.array([[0.0], [7.0]]), np.array([[0.5], [-3.0]]), np.arange(2))
    assert found == pytest.approx({"mae": 0.75, "rmse": math.sqrt((0.25 + 1) / 2)})
    assert objective.calibration(np.zeros((2, 1)), np.zeros((2, 1))) == []
    assert (objective.main, objective.larger_is_better) == ("mae", False)


@pytest.mark.parametrize("names", [(), ("a",), ("a", "a")])
def test_classes_need_two_different_names(names):
    with pytest.raises(ConfigError, match="names"):
        Classes(names=names)


@pytest.mark.parametrize("wrong", [{"low": 1.0}, {"high": np.inf}, {"delta": 0.0}])
def test_bounds_must_be_in_order(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Bounded(**wrong)


@pytest.mark.parametrize("objective", [*ALL, DoseResponse()], ids=lambda o: type(o).__name__)
def test_scores_and_outcomes_have_a_name_for_each_column(objective):
    logits, labels = drawn(objective)
    assert objective.scores(logits.numpy()).shape == (50, len(objective.score_names))
    told = objective.outcomes(labels.numpy())
    assert all(len(values) == 50 for values in told.values())
    assert not told.keys() & set(objective.score_names)
    assert "label" in told


def test_outcomes_are_what_the_labels_say():
    assert THREE.outcomes(np.eye(3, dtype=np.float32)[[2, 0]]) == {"label": ["c", "a"]}
    told = DoseResponse().outcomes(np.array([[1.0, 0.25], [0.0, 0.5]], np.float32))
    assert told == {"label": [1.0, 0.0], "dose": [0.25, 0.5]}
