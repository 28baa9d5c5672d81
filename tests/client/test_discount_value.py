"""Doubly robust estimates: right where one of two models is, and refused where no log can say."""

import numpy as np
import pytest

from client.discount_value import DiscountLog, OverlapRules, estimate_change, fit_propensities
from silotune.errors import ConfigError, DataError

EFFECT = np.array([0.0, 1.0, 3.0])


def a_log(seed=0, users=2000, each=2, *, predicted="right", propensity="known"):
    """Log of outcomes 2 x + EFFECT[depth] + noise; who has a large x is offered more."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    x = np.repeat(rng.random(users), each)
    # Users have a common noise: rows are not independent.
    noise = np.repeat(rng.normal(0, 0.5, users), each) + rng.normal(0, 0.5, users * each)
    weight = np.exp(2 * (x[:, None] - 0.5) * np.array([-1.0, 0.0, 1.0]))
    chance = weight / weight.sum(axis=1, keepdims=True)
    shown = (np.cumsum(chance, axis=1)[:, :-1] < rng.random(len(x))[:, None]).sum(axis=1)
    outcome = 2 * x + EFFECT[shown] * x + noise
    expected = 2 * x[:, None] + EFFECT * x[:, None]
    model = {"right": expected, "wrong": np.full_like(expected, 7.0) + EFFECT[::-1]}[predicted]
    if propensity == "fitted":
        chance = fit_propensities(x[:, None], shown, user, depths=3)
    elif propensity == "wrong":
        chance = np.full_like(chance, 1 / 3)
    log = DiscountLog(
        user_R=user,
        shown_R=shown,
        outcome_R=outcome,
        propensity_RD=chance,
        predicted_RD=model,
    )
    # Deep for a large x, nothing for a small one.
    policy = np.where(x > 0.5, 2, 0)
    return log, policy, x


def truth(x):
    # Against one flat depth, the middle one.
    return float(np.where(x > 0.5, 2 * x, -x).mean())


@pytest.mark.parametrize(
    ("predicted", "propensity"),
    [("right", "known"), ("wrong", "known"), ("right", "wrong"), ("wrong", "fitted")],
)
def test_the_estimate_is_right_if_one_of_the_two_models_is(predicted, propensity):
    errors = []
    for seed in range(8):
        log, policy, x = a_log(seed, predicted=predicted, propensity=propensity)
        found = estimate_change(log, policy, np.ones_like(policy))
        errors.append((found.change - truth(x)) / found.standard_error)
    assert abs(np.mean(errors)) < 3 / np.sqrt(8)
    assert np.max(np.abs(errors)) < 4


def test_both_wrong_is_biased_and_so_is_a_comparison_of_who_got_what():
    log, policy, x = a_log(users=20_000, predicted="wrong", propensity="wrong")
    found = estimate_change(log, policy, np.ones_like(policy))
    assert abs(found.change - truth(x)) > 4 * found.standard_error
    naive = log.outcome_R[log.shown_R == 2].mean() - log.outcome_R[log.shown_R == 0].mean()
    assert naive > 1.3 * (3 * x).mean()


def test_the_standard_error_is_the_spread_over_logs_and_knows_that_users_have_several_rows():
    found = [
        estimate_change(log, policy, np.ones_like(policy))
        for log, policy, _ in (a_log(seed, 300, 6) for seed in range(150))
    ]
    spread = np.std([f.change for f in found])
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.15)
    log, policy, _ = a_log(0, 300, 6)
    # The same rows as if each were someone else's.
    alone = DiscountLog(
        user_R=np.arange(1800),
        shown_R=log.shown_R,
        outcome_R=log.outcome_R,
        propensity_RD=log.propensity_RD,
        predicted_RD=log.predicted_RD,
    )
    naive = estimate_change(alone, policy, np.ones_like(policy))
    assert naive.change == found[0].change
    assert naive.standard_error < 0.85 * found[0].standard_error


def test_an_estimate_is_as_worked_out_by_hand():
    log = DiscountLog(
        user_R=np.array([5, 5, 9]),
        shown_R=np.array([1, 0, 1]),
        outcome_R=np.array([3.0, 1.0, 2.0]),
        propensity_RD=np.array([[0.5, 0.5], [0.8, 0.2], [0.6, 0.4]]),
        predicted_RD=np.array([[1.0, 2.0], [0.5, 1.5], [1.0, 1.0]]),
    )
    rules = OverlapRules(least_effective_rows=1)
    found = estimate_change(log, np.array([1, 1, 1]), np.array([0, 0, 0]), overlap=rules)
    # (2 + (3 - 2)/0.5) - 1, 1.5 - (0.5 + (1 - 0.5)/0.8), (1 + (2 - 1)/0.4) - 1.
    scores = np.array([3.0, 0.375, 2.5])
    assert found.change == pytest.approx(scores.mean())
    off = scores - scores.mean()
    by_user = np.array([off[0] + off[1], off[2]]) / 3
    assert found.standard_error == pytest.approx(np.sqrt(2 * (by_user**2).sum()))
    assert found.predicted == pytest.approx((1 + 1 + 0) / 3)
    # Student's with one degree of freedom.
    assert found.high - found.change == pytest.approx(12.7062 * found.standard_error, rel=1e-4)
    # The log agrees once with no discount, twice with the depth: (2 + 2.5)² / (4 + 6.25).
    assert found.effective_rows == pytest.approx(1.0)
    assert (found.rows, found.users) == (3, 2)


def test_a_log_that_hardly_ever_offers_a_depth_is_refused_or_warned_of():
    log, policy, _ = a_log()
    chance = log.propensity_RD.copy()
    rare = np.flatnonzero((policy == 2) & (log.shown_R != 2))[:40]
    chance[rare] = [0.495, 0.495, 0.01]
    changed = DiscountLog(
        user_R=log.user_R,
        shown_R=log.shown_R,
        outcome_R=log.outcome_R,
        propensity_RD=chance,
        predicted_RD=log.predicted_RD,
    )
    flat = np.ones_like(policy)
    found = estimate_change(changed, policy, flat)
    assert found.rows_below == pytest.approx(40 / len(policy))
    assert "hardly ever offered" in str(found)
    assert estimate_change(log, policy, flat).warnings == ()
    with pytest.raises(
        DataError, match=r"in 1\.0% of the rows .* below 0\.02; 0\.5% are the limit"
    ):
        estimate_change(changed, policy, flat, overlap=OverlapRules(most_rows_below=0.005))
    with pytest.raises(DataError, match="effective rows; 1e\\+06 are needed"):
        estimate_change(log, policy, flat, overlap=OverlapRules(least_effective_rows=1e6))


def test_rows_at_which_the_policies_agree_need_no_overlap_and_change_nothing():
    log, policy, _ = a_log()
    same = estimate_change(log, policy, policy)
    assert (same.change, same.standard_error) == (0, 0)
    assert "the same in every row" in str(same)


def test_propensities_of_a_row_come_from_other_users_alone():
    log, _, x = a_log(users=200)
    before = fit_propensities(x[:, None], log.shown_R, log.user_R, depths=3)
    shown = log.shown_R.copy()
    own = log.user_R == 7
    shown[own] = 2 - shown[own]
    after = fit_propensities(x[:, None], shown, log.user_R, depths=3)
    np.testing.assert_array_equal(before[own], after[own])
    assert not np.array_equal(before, after)
    assert np.abs(before - log.propensity_RD).mean() < 0.1
    # Nobody else was offered anything: nothing is known of the depth that one user got.
    lonely = np.where(own, 1, 0)
    found = fit_propensities(x[:, None], lonely, log.user_R, depths=3)
    assert (found[own] == [1, 0, 0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity_RD": np.array([[0.5, 0.4], [0.5, 0.5]])}, "row 0: propensities"),
        ({"propensity_RD": np.array([[0.5, 0.5], [1.0, 0.0]])}, "the propensities are wrong"),
        ({"outcome_R": np.array([1.0, np.nan])}, "row 1"),
        ({"shown_R": np.array([0, 2])}, "shown_R must hold indices from 0 to 1"),
        ({"predicted_RD": np.zeros((2, 3))}, "predicted_RD"),
        ({"outcome_R": np.zeros(3)}, "have 2, 2 and 3 rows"),
    ],
)
def test_a_log_that_cannot_be_is_refused(change, message):
    sound = {
        "user_R": np.array([0, 1]),
        "shown_R": np.array([0, 1]),
        "outcome_R": np.ones(2),
        "propensity_RD": np.full((2, 2), 0.5),
        "predicted_RD": np.zeros((2, 2)),
    }
    DiscountLog(**sound)
    with pytest.raises(DataError, match=message):
        DiscountLog(**sound | change)


@pytest.mark.parametrize(
    "wrong", [{"least_propensity": 0.0}, {"most_rows_below": 1.5}, {"least_effective_rows": 0.0}]
)
def test_rules_of_overlap_that_cannot_be_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OverlapRules(**wrong)


def test_one_user_is_no_sample():
    log, policy, _ = a_log(users=1, each=400)
    with pytest.raises(DataError, match="1 users"):
        estimate_change(log, policy, np.ones_like(policy))
