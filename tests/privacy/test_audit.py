"""Estimators on mechanisms whose ε is known: never above it too often, and not idle either."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats

from privacy import audit
from privacy.audit import (
    gaussian_canary_epsilon,
    one_run_epsilon,
    one_run_p_value,
    trial_epsilon,
)
from privacy.audit_curves import (
    Normal,
    advantage_limit,
    auc_limit,
    gaussian_epsilon,
    rate_above,
    rate_below,
    roc,
    tpr_limit,
)
from silotune.errors import PrivacyError

DELTA = 1e-5
SEEDS = 60


def gaussian(sigma, count, seed):
    rng = np.random.default_rng([seed, count])
    included = rng.random(count) < 0.5
    return included + sigma * rng.standard_normal(count), included


def true_epsilon(sigma):
    return gaussian_epsilon(Normal(0, sigma), Normal(1, sigma), delta=DELTA)


def most_errors(seeds, confidence):
    # More wrong bounds than this: by chance once in ten thousand.
    return stats.binom.ppf(1 - 1e-4, seeds, 1 - confidence)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [
        # Steinke et al. 2023, arXiv:2305.08846: appendix D, and section 7 (figure 11, truncated).
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.6755),
    ],
)
def test_one_run_bounds_are_those_of_the_paper(canaries, guesses, correct, delta, published):
    found = audit._largest_refuted(canaries, guesses, correct, delta, 0.05)
    assert found == pytest.approx(published, abs=6e-4)


def test_the_p_value_without_delta_is_the_binomial_tail():
    # Appendix D: 75 of 100 right at ε = log 3.
    p = one_run_p_value(100, 100, 75, epsilon=math.log(3), delta=0.0)
    assert p == pytest.approx(stats.binom.sf(74, 100, 0.75), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("estimator", "share"), [(one_run_epsilon, 0.15), (trial_epsilon, 0.3)])
def test_a_bound_stays_below_the_true_epsilon_and_comes_near(estimator, share, sigma):
    found = np.array(
        [estimator(*gaussian(sigma, 1000, seed), delta=DELTA).epsilon for seed in range(SEEDS)]
    )
    assert (found > true_epsilon(sigma)).sum() <= most_errors(SEEDS, 0.95)
    assert np.median(found) > share * true_epsilon(sigma)


def test_a_bound_on_trials_is_wrong_no_more_often_than_it_says():
    # Few trials and a low confidence: errors do happen, and their number is the promise.
    wrong = sum(
        trial_epsilon(*gaussian(1.0, 400, seed), delta=DELTA, confidence=0.5).mu > 1.0
        for seed in range(200)
    )
    assert wrong <= most_errors(200, 0.5)


def test_the_direct_bound_holds_too_and_is_the_weaker_one():
    bounds = [trial_epsilon(*gaussian(1.0, 1500, seed), delta=DELTA) for seed in range(SEEDS)]
    assert all(0.1 < b.epsilon_any < b.epsilon for b in bounds)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_run_is_nearly_tight_on_randomised_response(epsilon):
    found = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        included = rng.random(2000) < 0.5
        truth = rng.random(2000) < 1 / (1 + math.exp(-epsilon))
        # Ties are broken by what says nothing.
        score = (included == truth) + 0.01 * rng.random(2000)
        found.append(one_run_epsilon(score, included, delta=0.0).epsilon)
    assert (np.array(found) > epsilon).sum() <= most_errors(SEEDS, 0.95)
    assert np.median(found) > 0.7 * epsilon


def test_what_delta_allows_is_not_held_against_the_claim():
    # Names each canary with chance δ and says nothing otherwise: (0, δ)-DP.
    delta, above = 0.05, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        included = rng.random(1000) < 0.5
        named = rng.random(1000) < delta
        score = np.where(named, np.where(included, 1.0, -1.0), 0) + 0.01 * rng.random(1000)
        above += one_run_epsilon(score, included, delta=delta).epsilon > 0.05
        assert one_run_epsilon(score, included, delta=0.0).epsilon > 0.05
    assert above <= most_errors(SEEDS, 0.95)


@pytest.mark.parametrize("estimator", [one_run_epsilon, trial_epsilon])
def test_scores_that_say_nothing_give_no_bound(estimator):
    found = []
    for seed in range(SEEDS):
        score, included = gaussian(1.0, 300, seed)
        found.append(estimator(score - included, included, delta=DELTA).epsilon > 0)
    assert sum(found) <= most_errors(SEEDS, 0.95)


@pytest.mark.parametrize("estimator", [one_run_epsilon, trial_epsilon])
def test_without_noise_the_bound_is_as_high_as_the_canaries_allow(estimator):
    score, included = gaussian(1e-9, 2000, 0)
    assert estimator(score, included, delta=DELTA).epsilon > 4.8


def test_noise_that_is_half_of_the_claimed_exceeds_the_claim():
    for seed in range(SEEDS // 5):
        score, included = gaussian(0.5, 1200, seed)
        found = trial_epsilon(score, included, delta=DELTA, confidence=0.999)
        assert found.epsilon > true_epsilon(1.0)
        assert found.noise_multiplier < 1.0


def test_the_ceiling_is_what_perfect_guesses_would_show():
    score, included = gaussian(1.0, 1000, 0)
    found = one_run_epsilon(score, included, delta=DELTA)
    assert found.epsilon < found.ceiling
    perfect = np.where(np.arange(1000) < 500, 1.0, -1.0)
    best = one_run_epsilon(perfect, perfect > 0, delta=DELTA)
    assert best.epsilon == best.ceiling == found.ceiling


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0])
def test_the_canary_estimate_is_near_the_truth(sigma):
    generator = np.random.default_rng(0)
    score, included = gaussian(sigma, 20_000, 1)
    found = gaussian_canary_epsilon(score, included, delta=DELTA, generator=generator)
    assert found.epsilon == pytest.approx(true_epsilon(sigma), rel=0.1, abs=0.1)
    assert found.low <= found.epsilon <= found.high


def test_the_canary_estimate_without_noise_is_boundless():
    included = np.arange(100) % 2 == 0
    found = gaussian_canary_epsilon(
        included.astype(float), included, delta=DELTA, generator=np.random.default_rng(0)
    )
    assert math.isinf(found.epsilon)


def test_the_gaussian_mechanism_has_the_known_epsilon():
    # Balle and Wang 2018, theorem 8, solved by bisection: σ = 1, δ = 1e-5.
    assert true_epsilon(1.0) == pytest.approx(4.3772, abs=1e-4)


@pytest.mark.parametrize(
    ("out", "inside"),
    [
        (Normal(0, 1), Normal(1, 1)),
        (Normal(0, 1), Normal(1, 1.5)),
        (Normal(2, 1.5), Normal(1, 1)),
        (Normal(0, 1), Normal(0, 1.3)),
        (Normal(0, 1), Normal(-3, 1)),
    ],
)
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_epsilon_of_two_normals_agrees_with_integration(out, inside, delta):
    epsilon = gaussian_epsilon(out, inside, delta=delta)

    def excess(p, q):
        def gap(x):
            high, low = stats.norm.pdf(x, p.mean, p.std), stats.norm.pdf(x, q.mean, q.std)
            return max(0.0, high - math.exp(epsilon) * low)

        grid = np.linspace(-25, 25, 201)
        return sum(integrate.quad(gap, a, b)[0] for a, b in pairwise(grid))

    assert max(excess(inside, out), excess(out, inside)) == pytest.approx(delta, rel=1e-3)


def test_rates_have_clopper_and_pearsons_limits():
    for hits in (0, 3, 50):
        known = stats.binomtest(hits, 50).proportion_ci(0.9, method="exact")
        assert float(rate_below(np.array(hits), 50, 0.05)) == pytest.approx(known.low)
        assert float(rate_above(np.array(hits), 50, 0.05)) == pytest.approx(known.high)


def test_limits_of_an_attack_are_those_of_the_definition():
    fpr = np.linspace(0, 1, 1001)
    limit = tpr_limit(fpr, 1.5, 1e-3)
    fnr = 1 - limit
    # Both inequalities of (ε, δ)-DP, and one of them with equality.
    first = limit - (math.exp(1.5) * fpr + 1e-3)
    second = (1 - fpr) - (math.exp(1.5) * fnr + 1e-3)
    assert (np.maximum(first, second) <= 1e-12).all()
    inner = (limit > 0) & (limit < 1)
    assert np.allclose(np.maximum(first, second)[inner], 0, atol=1e-12)
    assert auc_limit(1.5, 1e-3) == pytest.approx(np.trapezoid(limit, fpr), abs=1e-4)
    assert advantage_limit(1.5, 1e-3) == pytest.approx((limit - fpr).max(), abs=1e-3)
    assert auc_limit(0.0, 0.0) == pytest.approx(0.5, abs=1e-6)


def test_a_curve_treats_equal_scores_alike():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    score, member = rng.integers(0, 5, 300).astype(float), rng.random(300) < 0.4
    curve = roc(score, member)
    assert curve.auc == pytest.approx(metrics.roc_auc_score(member, score))
    assert curve.fpr[0] == curve.tpr[0] == 0
    assert curve.fpr[-1] == curve.tpr[-1] == 1
    assert curve.tpr_at(0.0) == curve.tpr[curve.fpr == 0].max()
    assert roc(np.ones(10), np.arange(10) < 5).advantage == 0


@pytest.mark.parametrize("estimator", [one_run_epsilon, trial_epsilon])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_of_a_training_that_diverged_are_refused(estimator, wrong):
    score, included = gaussian(1.0, 100, 0)
    score[3] = wrong
    with pytest.raises(PrivacyError, match="diverged"):
        estimator(score, included, delta=DELTA)
    with pytest.raises(PrivacyError, match="at least"):
        estimator(score[:1], included[:1], delta=DELTA)
