"""The chance never falls as the dose rises, whatever a head says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from client.self_check import check_once
from privacy.gradients import UserGradients
from silotune.errors import ConfigError
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.metrics import auc, log_loss

DOSE = DoseResponse()
NUMBERS = st.floats(-1e6, 1e6)
LOGITS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20)
DOSES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(LOGITS, DOSES, st.floats(0.01, 100))
def test_no_curve_falls_whatever_the_outputs_are(logits, doses, steepness):
    curve = DoseResponse(steepness=steepness).curve(np.array(logits), sorted(doses))
    assert curve.shape == (len(logits), len(doses))
    assert ((curve >= 0) & (curve <= 1)).all()
    assert (np.diff(curve, axis=1) >= 0).all()


@given(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), st.floats(0, 0.9), st.floats(0.01, 0.1))
def test_a_curve_rises_where_it_can(logits, dose, more):
    low, high = DOSE.curve(np.array([logits]), [dose, dose + more])[0]
    assert high > low


def test_the_loss_is_the_cross_entropy_at_the_rows_own_dose():
    logits = torch.tensor([[0.3, -1.0], [-2.0, 0.5], [1.0, 2.0]])
    labels = torch.tensor([[1.0, 0.2], [0.0, 0.0], [1.0, 0.5]])
    slope = [4 * math.log1p(math.exp(b)) for b in (-1.0, 0.5, 2.0)]
    expected = functional.binary_cross_entropy_with_logits(
        torch.tensor([0.3 + 0.2 * slope[0], -2.0, 1.0 + 0.5 * slope[2]]),
        labels[:, 0],
        reduction="sum",
    )
    assert DOSE.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    chances = [DOSE.curve(logits[i : i + 1], [labels[i, 1]])[0, 0] for i in range(3)]
    assert -np.log([chances[0], 1 - chances[1], chances[2]]).sum() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_a_dose_outside_its_range_counts_as_the_nearest_bound():
    logits = torch.tensor([[0.3, 1.0]])
    for odd, bound in ((-7.0, 0.0), (1e9, 1.0)):
        found, expected = (DOSE.loss(logits, torch.tensor([[1.0, d]])) for d in (odd, bound))
        assert found == expected
        assert DOSE.quality(np.array([[1, odd]]), logits, [0])["log_loss"] == pytest.approx(
            expected.item(), rel=1e-6
        )


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_no_example_has_a_gradient_beyond_the_bound(size):
    generator = torch.Generator().manual_seed(1)
    logits = (3 * size * torch.randn(200, 2, generator=generator)).requires_grad_()
    labels = DOSE.made_up_labels(200, generator)
    DOSE.loss(logits, labels).backward()
    assert logits.grad.norm(dim=1).max() <= math.sqrt(1 + DOSE.steepness**2) + 1e-5
    assert logits.grad.norm(dim=1).max() > 1


def test_quality_is_that_of_the_chances_at_the_rows_own_doses():
    logits = np.array([[0.0, 0.0], [0.0, 0.0], [-1.0, 3.0], [-1.0, 3.0]])
    labels = np.array([[1, 0.5], [0, 0.0], [1, 0.4], [0, 0.1]])
    own = logits[:, 0] + 4 * np.log1p(np.exp(logits[:, 1])) * labels[:, 1]
    found = DOSE.quality(labels, logits, np.arange(4))
    assert found["auc"] == auc(labels[:, 0], own) == 1.0
    assert found["log_loss"] == log_loss(labels[:, 0], own)
    assert sum(rows for *_, rows in DOSE.calibration(labels, logits)) == 4
    logits[1, 1] = np.nan
    assert all(map(math.isnan, DOSE.quality(labels, logits, np.arange(4)).values()))


@given(st.lists(st.floats(0, 1e4), min_size=1))
def test_an_output_can_be_made_for_every_slope(slopes):
    outputs = DOSE.sensitivities(slopes)
    assert np.isfinite(outputs).all()
    logits = np.column_stack([np.zeros(len(slopes)), outputs])
    assert DOSE.slopes(logits) == pytest.approx(np.array(slopes), rel=1e-6, abs=1e-10)
    assert DOSE.scores(logits)[:, 0] == pytest.approx(0.5)


def test_the_gradients_of_each_user_are_exact():
    model = TextModel(ModelConfig(use_text=False), numeric_size=4, outputs=2)
    gradients = UserGradients(model)
    try:
        check_once(model, gradients, DOSE)
    finally:
        gradients.remove()


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_a_steepness_that_is_none_is_named(wrong):
    with pytest.raises(ConfigError, match="steepness"):
        DoseResponse(steepness=wrong)
