import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from silotune.errors import DataError
from silotune.tasks.metrics import (
    auc,
    calibration_bins,
    calibration_error,
    log_loss,
    ndcg_at,
    quality,
    recall_at,
)

# Few distinct scores: ties are the rule.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from([-800.0, -3.0, -0.5, -0.0, 0.0, 0.25, 2.0, 40.0, 800.0]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=60,
)
METRICS = {
    "auc": lambda y, z, v: auc(y, z),
    "log_loss": lambda y, z, v: log_loss(y, z),
    "calibration_error": lambda y, z, v: calibration_error(y, z, 4),
    "ndcg": lambda y, z, v: ndcg_at(y, z, v, 3),
    "recall": lambda y, z, v: recall_at(y, z, v, 3),
}


def columns(rows):
    labels, scores, visits = zip(*rows, strict=True)
    return np.array(labels, np.float32), np.array(scores, np.float64), np.array(visits)


def a_federation(rows=100_000):
    generator = np.random.default_rng(0)
    visits = np.sort(generator.integers(0, rows // 9, rows))
    logits = generator.standard_normal(rows).astype(np.float32).round(3)
    labels = generator.random(rows) < 1 / (1 + np.exp(1 - logits))
    return labels.astype(np.float32), logits, visits


@given(ROWS)
def test_auc_is_that_of_scikit_learn(rows):
    labels, scores, _ = columns(rows)
    if len(set(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores))
    else:
        assert np.isnan(auc(labels, scores))


@given(ROWS)
def test_auc_is_the_chance_that_a_positive_scores_above_a_negative(rows):
    labels, scores, _ = columns(rows)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-15, 15)), min_size=1))
def test_log_loss_is_that_of_scikit_learn(rows):
    labels, logits = np.array(rows).T
    expected = reference.log_loss(labels, 1 / (1 + np.exp(-logits)), labels=[0, 1])
    assert log_loss(labels, logits) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_log_loss_of_huge_logits_is_their_size_when_wrong_and_zero_when_right():
    assert log_loss([0, 1], [1e6, -1e6]) == pytest.approx(1e6)
    assert log_loss([1, 0], [1e6, -1e6]) == 0
    assert log_loss([1, 0], [np.inf, -np.inf]) == 0
    assert log_loss([0], [np.inf]) == np.inf


@given(ROWS, st.integers(1, 8))
def test_ndcg_is_the_mean_of_scikit_learn_over_visits_with_a_positive(rows, k):
    labels, scores, visits = columns(rows)
    per_visit = []
    for visit in np.unique(visits):
        own = visits == visit
        # scikit-learn refuses a visit of one row: its positive is first.
        if labels[own].any():
            y, z = labels[own][None], scores[own][None]
            per_visit.append(reference.ndcg_score(y, z, k=k) if own.sum() > 1 else 1.0)
    expected = np.mean(per_visit) if per_visit else np.nan
    assert ndcg_at(labels, scores, visits, k) == pytest.approx(expected, nan_ok=True)


@given(ROWS, st.integers(1, 4))
def test_recall_is_its_mean_over_random_orders_of_ties(rows, k):
    labels, scores, visits = columns(rows)
    per_visit = []
    for visit in np.unique(visits):
        y, z = labels[visits == visit], scores[visits == visit]
        if not y.any():
            continue
        hits = 0.0
        for score in set(z[y == 1]):
            above, tied = (z > score).sum(), (z == score).sum()
            # Each of the tied rows stands in a free place among the first k equally often.
            chance = min(max(k - above, 0), tied) / tied
            hits += chance * y[z == score].sum()
        per_visit.append(hits / y.sum())
    expected = np.mean(per_visit) if per_visit else np.nan
    assert recall_at(labels, scores, visits, k) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_no_metric_depends_on_the_order_of_the_rows(name, rows, seed):
    columns_E = columns(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    before = METRICS[name](*columns_E)
    after = METRICS[name](*(c[order] for c in columns_E))
    assert after == pytest.approx(before, nan_ok=True, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_nan_score_makes_every_metric_nan(name):
    assert np.isnan(METRICS[name]([1, 0, 1], [0.1, np.nan, 3.0], [0, 0, 1]))


@pytest.mark.parametrize("name", METRICS)
def test_infinite_scores_tie_with_each_other(name):
    labels, visits = [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]
    infinite = METRICS[name](labels, [np.inf, np.inf, 1, -np.inf, -np.inf], visits)
    # Far out: where a probability and a loss can no longer tell 1e9 from infinity, or can.
    finite = METRICS[name](labels, [1e9, 1e9, 1, -1e9, -1e9], visits)
    if name == "log_loss":
        assert (infinite, finite > 1e8) == (np.inf, True)
    else:
        assert infinite == pytest.approx(finite)


def test_bins_have_equal_mass_rising_chance_and_hold_every_row():
    labels, logits, _ = a_federation(10_007)
    bins = calibration_bins(labels, logits, 10)
    scores, rates, counts = np.array(bins).T
    assert set(counts) == {1000, 1001}
    assert (np.diff(scores) > 0).all()
    assert counts @ rates == pytest.approx(labels.sum())
    assert counts @ scores == pytest.approx((1 / (1 + np.exp(-logits.astype(float)))).sum())


@pytest.mark.parametrize(("shift", "calibrated"), [(-1.0, True), (0.0, False), (-2.0, False)])
def test_calibration_error_knows_the_true_chance_from_a_shifted_one(shift, calibrated):
    labels, logits, _ = a_federation()
    assert (calibration_error(labels, logits + shift) < 0.01) == calibrated


def test_calibration_error_of_known_bins():
    # Chances 0.5, 0.5 | 0.8, 0.8; rates 0 | 1.
    logits = [0, 0, np.log(4), np.log(4)]
    assert calibration_bins([0, 0, 1, 1], logits, 2) == [
        (pytest.approx(0.5), 0.0, 2),
        (pytest.approx(0.8), 1.0, 2),
    ]
    assert calibration_error([0, 0, 1, 1], logits, 2) == pytest.approx((0.5 + 0.2) / 2)


def test_fewer_rows_than_bins_and_none_at_all():
    assert [count for _, _, count in calibration_bins([1, 0], [0, 1])] == [1, 1]
    assert calibration_bins([], []) == []
    assert all(np.isnan(v) for v in quality([], [], []).values())


def test_visits_without_a_positive_do_not_count():
    labels, scores, visits = [1, 0, 0, 0], [2, 1, 2, 1], [7, 7, 3, 3]
    assert ndcg_at(labels, scores, visits) == recall_at(labels, scores, visits, 1) == 1


def test_quality_names_its_metrics_and_takes_columns_of_one():
    labels, logits, visits = a_federation(500)
    found = quality(labels[:, None], logits[:, None], visits)
    assert found == quality(labels, logits, visits)
    assert list(found) == ["auc", "log_loss", "calibration_error", "ndcg", "recall"]
    assert found["auc"] == auc(labels, logits)
    assert found["ndcg"] == ndcg_at(labels, logits, visits, 10)


@pytest.mark.parametrize("scores", [[[0.1, 0.2], [0.3, 0.4]], [0.1], 0.5])
def test_scores_that_do_not_stand_one_per_label_are_refused(scores):
    with pytest.raises(DataError, match=r"one number per example|stand against"):
        auc([0, 1], scores)


def test_a_hundred_thousand_rows_take_less_than_a_second_and_warn_of_nothing():
    labels, logits, visits = a_federation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.process_time()
        quality(labels, logits, visits)
        # Measured: 0.1 s. The room is for a loaded machine; a loop over visits takes 3 s.
        assert time.process_time() - start < 1
