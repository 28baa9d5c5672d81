import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privacy.metrics import MetricsPlan, noised_metrics
from privacy.randomness import SeededSource
from server.metrics import MetricsSum, federation_metrics
from silotune.errors import ConfigError, MessageError
from silotune.tasks.metrics import auc as exact_auc

PLAN = MetricsPlan(noise_multiplier=4.0, errors=True, bins=20)


def examples(count, seed=0, outputs=1):
    """Scores that are worth something and are not quite calibrated."""
    generator = np.random.default_rng(seed)
    score = generator.beta(2, 4, (count, outputs))
    label = generator.random((count, outputs)) < 0.1 + 0.7 * score
    return score, label.astype(np.float64)


def sums(score, label, plan):
    """What the silos' releases are noised versions of, when every user has one example."""
    parts = []
    for s, y in zip(score.T, label.T, strict=True):
        if plan.scores:
            cell = np.minimum((s * plan.bins).astype(int), plan.bins - 1) + plan.bins * (y > 0.5)
            unit = np.repeat([plan.negative_weight, 1.0], plan.bins)
            parts.append(unit * np.bincount(cell, minlength=2 * plan.bins))
        if plan.errors:
            error = np.minimum(abs(s - y), plan.error_bound) / plan.error_bound
            parts.append([error.sum(), (1 - error).sum()])
    return torch.from_numpy(np.concatenate(parts).astype(np.float64))


def figures(found):
    """Every estimate of one output under a name of its own."""
    for name in ("auc", "accuracy", "log_loss"):
        bounds = getattr(found, name)
        if bounds is not None:
            yield from ((f"{name}.{b}", getattr(bounds, b)) for b in ("low", "middle", "high"))
    if found.positive_rate is not None:
        yield "positive_rate", found.positive_rate
    if found.mae is not None:
        yield "mae", found.mae
    for i, b in enumerate(found.calibration):
        yield from ((f"rate.{i}", b.rate), (f"share.{i}", b.share))


def repeated(total, plan, std, times=300, shrink=1.0):
    """Share of repetitions in which the un-noised figure lies within two standard errors."""
    truth = {n: e.value for n, e in figures(federation_metrics(total, plan, 0.0)[0])}
    generator = np.random.default_rng(1)
    hits = {n: [] for n in truth}
    for _ in range(times):
        noisy = total + torch.from_numpy(generator.normal(0, std, len(total)))
        for name, e in figures(federation_metrics(noisy, plan, std)[0]):
            if math.isfinite(e.standard_error):
                hits[name].append(abs(e.value - truth[name]) <= 2 * e.standard_error * shrink)
    return {n: (len(h) / times, np.mean(h) if h else math.nan) for n, h in hits.items()}


@pytest.mark.parametrize("std", [4.0, 16.0])
def test_the_true_figure_lies_within_two_standard_errors_as_often_as_it_should(std):
    shares = repeated(sums(*examples(4000), PLAN), PLAN, std)
    for name in ("auc.low", "auc.middle", "auc.high", "accuracy.middle", "log_loss.low", "mae"):
        told, within = shares[name]
        assert told == 1, name
        assert 0.91 <= within <= 0.99, (name, within)
    told = [(n, w) for n, (share, w) in shares.items() if share > 0.9]
    assert len(told) > 20
    assert all(w >= 0.91 for _, w in told), told


def test_weighted_negatives_change_no_figure_and_their_error_is_right():
    rare = examples(4000)[0], examples(4000)[1] * (np.arange(4000) % 4 == 0)[:, None]
    plan = MetricsPlan(noise_multiplier=4.0, bins=10, negative_weight=0.2)
    plain = MetricsPlan(noise_multiplier=4.0, bins=10)
    ours, theirs = (
        dict(figures(federation_metrics(sums(*rare, p), p, 0.0)[0])) for p in (plan, plain)
    )
    assert {n: e.value for n, e in ours.items()} == pytest.approx(
        {n: e.value for n, e in theirs.items()}, nan_ok=True
    )
    shares = repeated(sums(*rare, plan), plan, 8.0)
    for name in ("auc.middle", "accuracy.middle", "log_loss.middle", "positive_rate"):
        told, within = shares[name]
        assert told == 1, name
        assert 0.91 <= within <= 0.99, (name, within)
    for name in ("auc.middle", "log_loss.middle"):
        assert repeated(sums(*rare, plan), plan, 8.0, shrink=0.7)[name][1] < 0.9


@pytest.mark.parametrize("shrink", [0.5, 0.7])
def test_standard_errors_that_are_too_small_are_told_from_right_ones(shrink):
    shares = repeated(sums(*examples(4000), PLAN), PLAN, 8.0, shrink=shrink)
    for name in ("auc.middle", "accuracy.middle", "log_loss.middle", "positive_rate", "mae"):
        assert shares[name][1] < 0.9, name


def test_a_wrong_claim_of_the_noise_gives_standard_errors_in_proportion():
    total = sums(*examples(4000), PLAN)
    one, other = (dict(figures(federation_metrics(total, PLAN, s)[0])) for s in (2.0, 4.0))
    assert other["auc.middle"].standard_error == pytest.approx(2 * one["auc.middle"].standard_error)


def test_noise_in_empty_bins_does_not_pull_a_figure_to_one_side():
    # 180 of 200 bins are empty: noise cut at 0 would fill them and pull the AUC towards 1/2.
    plan = MetricsPlan(noise_multiplier=1.0, bins=200)
    generator = np.random.default_rng(5)
    score = 0.45 + 0.1 * generator.random((3000, 1))
    total = sums(score, (generator.random((3000, 1)) < 10 * (score - 0.45)).astype(float), plan)
    truth = federation_metrics(total, plan, 0.0)[0]
    found = [
        federation_metrics(total + torch.from_numpy(generator.normal(0, 8, 400)), plan, 8.0)[0]
        for _ in range(300)
    ]
    for name in ("auc", "accuracy", "log_loss"):
        values = np.array([getattr(f, name).middle.value for f in found])
        off = abs(values.mean() - getattr(truth, name).middle.value)
        assert off < 4 * values.std() / math.sqrt(300), name


SCORES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 0.25]))
PAIRS = st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=1, max_size=40)


@given(PAIRS, st.integers(1, 9))
def test_figures_without_bins_lie_within_their_bounds(pairs, bins):
    plan = MetricsPlan(noise_multiplier=1.0, errors=True, bins=bins)
    score, label = (np.array(x, float)[:, None] for x in zip(*pairs, strict=True))
    found = federation_metrics(sums(score, label, plan), plan, 0.0)[0]
    kept = np.clip(score, 1e-3, 1 - 1e-3)
    exact = {
        "auc": exact_auc(label, score),
        "accuracy": ((score >= 0.5) == label).mean(),
        "log_loss": -np.log(np.where(label > 0, kept, 1 - kept)).mean(),
    }
    for name, value in exact.items():
        bounds = getattr(found, name)
        if math.isnan(value):
            assert math.isnan(bounds.middle.value)
            assert bounds.middle.standard_error == math.inf
        else:
            assert bounds.low.value - 1e-9 <= value <= bounds.high.value + 1e-9, name
            assert bounds.low.value <= bounds.middle.value <= bounds.high.value
    assert found.mae.value == pytest.approx(abs(score - label).mean())
    assert found.positive_rate.value == pytest.approx(label.mean())
    for b in found.calibration:
        inside = (score >= b.start) & ((score < b.end) | (b.end == 1))
        # Scores a rounding away from an edge may count on its other side.
        near = (abs(score - b.start) < 1e-9) | (abs(score - b.end) < 1e-9)
        if inside.any() and not near.any():
            assert b.rate.value == pytest.approx(label[inside].mean())
            assert b.share.value == pytest.approx(inside.mean())


def test_many_bins_close_the_bounds():
    score, label = examples(3000)
    plan = MetricsPlan(noise_multiplier=1.0, bins=1000)
    found = federation_metrics(sums(score, label, plan), plan, 0.0)[0]
    for bounds in (found.auc, found.accuracy, found.log_loss):
        assert bounds.high.value - bounds.low.value < 0.01
    # 0.5 is an edge of an even number of bins: nothing is open.
    assert found.accuracy.low == found.accuracy.high
    assert found.auc.middle.value == pytest.approx(exact_auc(label, score), abs=1e-3)


def test_one_bin_leaves_order_open_and_says_so():
    plan = MetricsPlan(noise_multiplier=1.0, bins=1)
    found = federation_metrics(sums(*examples(500), plan), plan, 1.0)[0]
    assert (found.auc.low.value, found.auc.middle.value, found.auc.high.value) == (0, 0.5, 1)
    assert (found.accuracy.low.value, found.accuracy.high.value) == (0, 1)


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_one_class_gives_no_auc_but_the_other_figures(only):
    score, label = examples(2000)
    total = sums(score, label * 0 + only, PLAN)
    noisy = total + torch.from_numpy(np.random.default_rng(2).normal(0, 4, len(total)))
    found = federation_metrics(noisy, PLAN, 4.0)[0]
    assert math.isnan(found.auc.middle.value)
    assert found.auc.high.standard_error == math.inf
    assert found.positive_rate.value == pytest.approx(only, abs=0.05)
    assert math.isfinite(found.accuracy.middle.standard_error)


def test_no_users_give_no_figure():
    told = 0
    for seed in range(200):
        noise = torch.from_numpy(np.random.default_rng(seed).normal(0, 4, PLAN.size))
        found = federation_metrics(noise, PLAN, 4.0)[0]
        told += sum(math.isfinite(e.standard_error) for _, e in figures(found))
    # 31 sums of noise each, five standard deviations away from 0.
    assert told == 0


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=14, max_size=14),
    st.floats(0, 1e6),
)
def test_whatever_a_silo_sends_gives_figures_in_their_range_or_none(numbers, noise):
    plan = MetricsPlan(noise_multiplier=1.0, errors=True, bins=6)
    found = federation_metrics(torch.tensor(numbers), plan, noise)[0]
    for name, e in figures(found):
        assert e.standard_error >= 0
        if math.isnan(e.value):
            assert e.standard_error == math.inf
        else:
            assert 0 <= e.value <= (7 if name.startswith("log_loss") else 1), name


def test_the_federation_is_judged_from_the_silos_releases():
    # One example a user: what is estimated is the figure over all examples of all silos.
    plan = MetricsPlan(noise_multiplier=5.0, errors=True, outputs=2, bins=40)
    total = MetricsSum(plan)
    scores, labels = [], []
    for silo in range(12):
        score, label = examples(800, seed=silo, outputs=2)
        scores.append(score)
        labels.append(label)
        total.add(noised_metrics(score, label, np.arange(800), plan, SeededSource(silo)))
    score, label = np.concatenate(scores), np.concatenate(labels)
    for k, found in enumerate(total.metrics()):
        s, y = score[:, k], label[:, k]
        for estimate, exact in (
            (found.auc.middle, exact_auc(y, s)),
            (found.accuracy.middle, ((s >= 0.5) == y).mean()),
            (found.positive_rate, y.mean()),
            (found.mae, abs(s - y).mean()),
        ):
            assert 0 < estimate.standard_error < 0.05
            assert abs(estimate.value - exact) < 4 * estimate.standard_error + 2e-3
        for b in found.calibration[4:12]:
            inside = (s >= b.start) & (s < b.end)
            assert abs(b.rate.value - y[inside].mean()) < 4 * b.rate.standard_error + 2e-3


def test_the_noise_of_every_silo_counts():
    one, four = MetricsSum(PLAN), MetricsSum(PLAN)
    total = sums(*examples(4000), PLAN)
    one.add(total.float())
    for _ in range(4):
        four.add((total / 4).float())
    errors = [m.metrics()[0].auc.middle.standard_error for m in (one, four)]
    assert errors[1] == pytest.approx(2 * errors[0], rel=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(PLAN.size + 1),
        torch.zeros(1),
        torch.zeros(1, PLAN.size),
        torch.zeros(PLAN.size, dtype=torch.float64),
        torch.zeros(PLAN.size, dtype=torch.int64),
        torch.full((PLAN.size,), math.nan),
        torch.full((PLAN.size,), math.inf),
    ],
)
def test_a_release_that_is_not_what_was_planned_is_refused_and_not_counted(bad):
    total = MetricsSum(PLAN)
    with pytest.raises(MessageError, match="metrics"):
        total.add(bad)
    assert total.count == 0
    assert math.isnan(total.metrics()[0].auc.middle.value)


def test_only_what_was_released_is_reported():
    plan = MetricsPlan(noise_multiplier=1.0, scores=False, errors=True, error_bound=3.0)
    found = federation_metrics(torch.tensor([100.0, 300.0]), plan, 1.0)[0]
    assert found.mae.value == pytest.approx(0.75)
    assert found.auc is found.accuracy is found.log_loss is found.positive_rate is None
    assert found.calibration == ()
    plan = MetricsPlan(noise_multiplier=1.0)
    assert federation_metrics(sums(*examples(50), plan), plan, 0.0)[0].mae is None
    with pytest.raises(MessageError, match="shape"):
        federation_metrics(torch.zeros(3), plan, 1.0)


@pytest.mark.parametrize("floor", [0.0, 0.5, -1.0, math.nan])
def test_a_floor_out_of_range_is_refused(floor):
    with pytest.raises(ConfigError, match="score_floor"):
        federation_metrics(torch.zeros(PLAN.size), PLAN, 1.0, score_floor=floor)
