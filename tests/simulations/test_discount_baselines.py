"""Simple methods for a value between bounds, and for a chance that rises with a dose."""

import dataclasses

import numpy as np
import pytest

from silotune.tasks.base import Examples
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.objective import Bounded
from simulations.baselines import METHODS

VALUES = ("mean", "mean-by-group", "median-by-group", "linear-local", "linear-pooled")
DOSES = ("popularity", "logistic-local", "logistic-pooled")
ALL = [(m, "value") for m in VALUES] + [(m, "dose") for m in DOSES]


def a_merchant(kind, rows=600, *, seed=0, slope=6.0):
    generator = np.random.default_rng(seed)
    numeric = generator.random((rows, 3)).astype(np.float32)
    group = generator.integers(0, 6, rows)
    dose = generator.random(rows)
    if kind == "dose":
        logit = 3 * numeric[:, 0] + 0.5 * group - 4 + slope * dose
        label = np.column_stack([generator.random(rows) < 1 / (1 + np.exp(-logit)), dose])
        objective = DoseResponse()
    else:
        value = 0.4 * numeric[:, 0] + 0.05 * group + generator.normal(0, 0.05, rows)
        label, objective = value.clip(0, 1)[:, None], Bounded()
    return Examples(
        text=[""] * rows,
        context=[""] * rows,
        numeric_EF=numeric,
        label_EK=label.astype(np.float32),
        user_E=generator.integers(0, 40, rows),
        visit_E=np.arange(rows),
        group=[f"group {g}" for g in group],
        test_E=generator.random(rows) < 0.4,
        objective=objective,
    )


def quality(examples, out):
    rows = examples.rows(test=True)
    return examples.objective.quality(examples.label_EK[rows], out, examples.visit_E[rows])


@pytest.mark.parametrize(("method", "kind"), ALL)
def test_predictions_stand_in_the_order_of_the_test_rows_and_beat_a_guess(method, kind):
    silos = [a_merchant(kind, seed=s) for s in range(3)]
    for examples, out in zip(silos, METHODS[method](silos), strict=True):
        assert out.shape == (len(examples.rows(test=True)), examples.objective.outputs)
        assert np.isfinite(out).all()
        found = quality(examples, out)
        if kind == "dose":
            assert found["auc"] > 0.55
        else:
            assert found["mae"] < quality(examples, np.zeros_like(out))["mae"]


@pytest.mark.parametrize(("method", "kind"), ALL)
def test_no_test_label_influences_a_prediction(method, kind):
    silos = [a_merchant(kind, seed=s) for s in range(2)]
    changed = []
    for examples in silos:
        label = examples.label_EK.copy()
        label[examples.test_E] = 1 - label[examples.test_E]
        changed.append(dataclasses.replace(examples, label_EK=label))
    for before, after in zip(METHODS[method](silos), METHODS[method](changed), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("method", "kind"), ALL)
@pytest.mark.parametrize("rows", ["no training row", "no test row", "one user", "one outcome"])
def test_poor_data_still_gives_finite_predictions(method, kind, rows):
    examples = a_merchant(kind, 60)
    changes = {
        "no training row": {"test_E": np.ones_like(examples.test_E)},
        "no test row": {"test_E": np.zeros_like(examples.test_E)},
        "one user": {"user_E": np.zeros_like(examples.user_E)},
        "one outcome": {"label_EK": np.zeros_like(examples.label_EK)},
    }
    examples = dataclasses.replace(examples, **changes[rows])
    (out,) = METHODS[method]([examples])
    assert out.shape == (len(examples.rows(test=True)), examples.objective.outputs)
    assert np.isfinite(out).all()


def test_logistic_regression_finds_the_slope_and_one_below_zero_becomes_none():
    objective = DoseResponse()
    (found,) = METHODS["logistic-local"]([a_merchant("dose", 8000)])
    assert objective.slopes(found) == pytest.approx(6.0, abs=0.7)
    (falls,) = METHODS["logistic-local"]([a_merchant("dose", 2000, slope=-6.0)])
    assert objective.slopes(falls).max() < 1e-6
    (flat,) = METHODS["popularity"]([a_merchant("dose")])
    assert objective.slopes(flat).max() < 1e-6


def test_means_and_medians_are_as_worked_out_by_hand():
    # Group a: ten rows; b: two rows, which have no median of their own.
    values = np.array([0.0] * 6 + [0.5] * 4 + [0.3, 0.7] + [0.0] * 3, np.float32)
    examples = dataclasses.replace(
        a_merchant("value", 15),
        group=["a"] * 10 + ["b"] * 2 + ["a", "b", "c"],
        label_EK=values[:, None],
        test_E=np.arange(15) >= 12,
    )
    overall, median = 3.0 / 12, 0.15
    assert METHODS["mean"]([examples])[0][:, 0] == pytest.approx([overall] * 3)
    assert METHODS["mean-by-group"]([examples])[0][:, 0] == pytest.approx(
        [(2 + 10 * overall) / 20, (1 + 10 * overall) / 12, overall]
    )
    assert METHODS["median-by-group"]([examples])[0][:, 0] == pytest.approx([0, median, median])
