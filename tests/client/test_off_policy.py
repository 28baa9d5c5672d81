"""Off-policy estimates, where the truth is known."""

import dataclasses

import numpy as np
import pytest

from client.bayesian_layer import BayesianLayer
from client.exploration import choose, epsilon_greedy
from client.off_policy import Log, cross_fitted, doubly_robust, ips, snips
from silotune.errors import DataError

ACTIONS, FEATURES, ROWS = 5, 2, 600
# In truth: weights of an action, with a bend that no logistic layer knows.
WEIGHTS = np.random.default_rng(7).normal(size=(ACTIONS, FEATURES))


def world(generator, rows=ROWS, contexts=None):
    """Return contexts, chances of a reward for each action, and those of logging and target."""
    x_EF = generator.normal(size=(rows, FEATURES)) if contexts is None else contexts
    logit_EA = x_EF @ WEIGHTS.T - 0.7 + 0.5 * np.sin(3 * x_EF[:, :1])
    reward_EA = 1 / (1 + np.exp(-logit_EA))
    logging_EA = epsilon_greedy(x_EF @ np.roll(WEIGHTS, 1, 0).T, epsilon=0.5)
    target_EA = epsilon_greedy(x_EF @ WEIGHTS.T, epsilon=0.1)
    return x_EF, reward_EA, logging_EA, target_EA


def logged(generator):
    x_EF, reward_EA, logging_EA, target_EA = world(generator)
    choice = choose(logging_EA, generator)
    chance_E = reward_EA[np.arange(ROWS), choice.action_E]
    log = Log(
        action_E=choice.action_E,
        reward_E=(generator.random(ROWS) < chance_E).astype(float),
        propensity_E=choice.propensity_E,
    )
    return log, x_EF, target_EA


def features_of(x_EF):
    ones = np.column_stack([np.ones(len(x_EF)), x_EF])
    return np.einsum("ab,ef->eabf", np.eye(ACTIONS), ones).reshape(len(x_EF), ACTIONS, -1)


def robust(log, x_EF, target_EA):
    prior = BayesianLayer.prior(ACTIONS * (FEATURES + 1), scale=2.0)
    return doubly_robust(log, target_EA, cross_fitted(log, features_of(x_EF), prior))


ESTIMATORS = {
    "ips": lambda log, x_EF, target_EA: ips(log, target_EA),
    "snips": lambda log, x_EF, target_EA: snips(log, target_EA),
    "doubly robust": robust,
}


@pytest.fixture(scope="module")
def truth():
    """Return the target policy's value, from a million contexts."""
    _, reward_EA, _, target_EA = world(np.random.default_rng(0), 1_000_000)
    return float((reward_EA * target_EA).sum(1).mean())


def runs(estimator, truth, count=300):
    """Return (share of intervals that cover, bias over its error, mean error, actual spread)."""
    found = [ESTIMATORS[estimator](*logged(np.random.default_rng([s, 5]))) for s in range(count)]
    value = np.array([f.value for f in found])
    covered = [low <= truth <= high for low, high in (f.interval(0.9) for f in found)]
    spread = value.std()
    bias = (value.mean() - truth) / (spread / np.sqrt(count))
    return np.mean(covered), bias, np.mean([f.standard_error for f in found]), spread


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nine_of_ten_intervals_cover_the_truth_and_the_error_is_the_spread(estimator, truth):
    covered, bias, error, spread = runs(estimator, truth)
    # 300 draws at 0.9: a standard deviation of 0.017.
    assert 0.85 < covered < 0.95
    assert abs(bias) < 3
    assert error == pytest.approx(spread, rel=0.12)


def test_a_model_of_the_rewards_makes_the_interval_narrower(truth):
    errors = {name: runs(name, truth, count=40)[2] for name in ESTIMATORS}
    assert errors["doubly robust"] < errors["snips"] < errors["ips"]
    assert errors["doubly robust"] < 0.85 * errors["ips"]


def test_wrong_propensities_are_told_by_the_mean_weight_and_miss_the_truth(truth):
    covered, right = 0, []
    for seed in range(40):
        log, _, target_EA = logged(np.random.default_rng([seed, 6]))
        wrong = dataclasses.replace(log, propensity_E=np.full(ROWS, 0.3))
        found = ips(wrong, target_EA)
        low, high = found.interval()
        covered += low <= truth <= high
        assert abs(found.mean_weight - 1) > 0.15
        right.append(ips(log, target_EA).mean_weight)
    assert covered < 10
    assert np.mean(right) == pytest.approx(1, abs=0.06)


def test_choices_of_one_user_count_as_one():
    # Thirty choices of each of thirty users, who are always pleased or never.
    covered = {True: 0, False: 0}
    for seed in range(200):
        generator = np.random.default_rng(seed)
        user_E = np.repeat(np.arange(30), 30)
        even = np.full((900, 2), 0.5)
        choice = choose(even, generator)
        log = Log(
            action_E=choice.action_E,
            reward_E=generator.integers(0, 2, 30)[user_E].astype(float),
            propensity_E=choice.propensity_E,
            user_E=user_E,
        )
        for by_user in covered:
            known = log if by_user else dataclasses.replace(log, user_E=None)
            low, high = ips(known, even).interval(0.9)
            covered[by_user] += low <= 0.5 <= high
    assert 0.83 < covered[True] / 200 < 0.95
    assert covered[False] / 200 < 0.5


def test_doubly_robust_stands_on_either_foot(truth):
    # A model that knows nothing, and propensities that are right; a model that knows all, and
    # propensities that are wrong.
    values = {"right propensities": [], "right model": []}
    for seed in range(60):
        log, x_EF, target_EA = logged(np.random.default_rng([seed, 8]))
        nothing = np.full((ROWS, ACTIONS), 0.9)
        values["right propensities"].append(doubly_robust(log, target_EA, nothing).value)
        wrong = dataclasses.replace(log, propensity_E=np.full(ROWS, 0.3))
        _, reward_EA, _, _ = world(None, contexts=x_EF)
        values["right model"].append(doubly_robust(wrong, target_EA, reward_EA).value)
    for value in values.values():
        assert abs(np.mean(value) - truth) < 3.5 * np.std(value) / np.sqrt(60)


def test_a_small_log_by_hand():
    log = Log(
        action_E=np.array([0, 1, 1, 0]),
        reward_E=np.array([1.0, 0.0, 1.0, 0.0]),
        propensity_E=np.array([0.5, 0.5, 0.25, 0.8]),
    )
    target = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    # Weights 2, 1, 2, 0.25; rewards 1, 0, 1, 0.
    found = ips(log, target)
    assert found.value == pytest.approx(1.0)
    # Parts 2, 0, 2, 0 around 1: a variance of 4/3 over four rows.
    assert found.standard_error == pytest.approx(np.sqrt(4 / 3 / 4))
    assert found.mean_weight == pytest.approx(5.25 / 4)
    assert found.effective_rows == pytest.approx(5.25**2 / (4 + 1 + 4 + 0.0625))
    assert snips(log, target).value == pytest.approx(4 / 5.25)
    predicted = np.array([[0.5, 0.1], [0.5, 0.1], [0.5, 0.1], [0.5, 0.1]])
    parts = [0.5 + 2 * 0.5, 0.3 - 0.1, 0.3 + 2 * 0.9, 0.18 - 0.25 * 0.5]
    assert doubly_robust(log, target, predicted).value == pytest.approx(np.mean(parts))
    by_user = dataclasses.replace(log, user_E=np.array([7, 7, 3, 3]))
    # Of each user 0 above the mean: parts 2 and 0, twice.
    assert ips(by_user, target).standard_error == pytest.approx(0.0)
    # One user is 1 above, the other 1 below: a variance of 2 over two users, of four rows.
    unlike = dataclasses.replace(log, user_E=np.array([7, 3, 3, 3]))
    assert ips(unlike, target).standard_error == pytest.approx(2 / 4)
    one_user = dataclasses.replace(log, user_E=np.zeros(4, int))
    assert np.isnan(ips(one_user, target).standard_error)


def test_predictions_for_a_row_do_not_know_its_users_rewards():
    log, x_EF, _ = logged(np.random.default_rng(2))
    log = dataclasses.replace(log, user_E=np.random.default_rng(3).integers(0, 30, ROWS))
    prior = BayesianLayer.prior(ACTIONS * (FEATURES + 1))
    was = cross_fitted(log, features_of(x_EF), prior)
    user = log.user_E[0]
    reward = np.where(log.user_E == user, 1 - log.reward_E, log.reward_E)
    is_ = cross_fitted(dataclasses.replace(log, reward_E=reward), features_of(x_EF), prior)
    own = log.user_E == user
    np.testing.assert_array_equal(was[own], is_[own])
    assert not np.array_equal(was[~own], is_[~own])


LOG = Log(action_E=np.array([0, 1]), reward_E=np.ones(2), propensity_E=np.full(2, 0.5))
EVEN = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dataclasses.replace(LOG, propensity_E=np.array([0.5, 0.0])), "0.0 at row 1"),
        (lambda: dataclasses.replace(LOG, propensity_E=np.array([1.5, 0.5])), "1.5 at row 0"),
        (lambda: dataclasses.replace(LOG, reward_E=np.array([1.0, np.nan])), "nan at row 1"),
        (lambda: dataclasses.replace(LOG, action_E=np.array([0, -1])), "-1 at row 1"),
        (lambda: dataclasses.replace(LOG, reward_E=np.ones(3)), "action_E has 2 rows"),
        (lambda: ips(LOG, EVEN[:1]), "the log has 2 rows"),
        (lambda: ips(LOG, np.ones((2, 1))), "target_EA knows fewer"),
        (lambda: ips(LOG, EVEN * 0.9), "add up to 1"),
        (lambda: snips(LOG, [[0.0, 1.0], [1.0, 0.0]]), "never does what was logged"),
        (lambda: doubly_robust(LOG, EVEN, np.ones((2, 3))), "of the shape"),
        (lambda: doubly_robust(LOG, EVEN, EVEN * np.nan), "must be finite"),
        (lambda: cross_fitted(LOG, np.ones((2, 2, 1)), BayesianLayer.prior(1), folds=1), "1 folds"),
    ],
)
def test_a_log_or_a_policy_that_cannot_be_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
