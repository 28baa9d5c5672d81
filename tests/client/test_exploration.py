"""Policies: their chances are what they do, and exploring costs less than not to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.bayesian_layer import BayesianLayer
from client.exploration import choose, epsilon_greedy, thompson
from silotune.errors import DataError


def test_greedy_takes_the_best_equal_ones_share_and_epsilon_is_uniform_over_the_offer():
    score = [[3.0, 1.0, 3.0, -np.inf]]
    assert epsilon_greedy(score, epsilon=0.0).tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert epsilon_greedy(score, epsilon=0.3) == pytest.approx(np.array([[0.45, 0.1, 0.45, 0.0]]))
    assert epsilon_greedy(score, epsilon=1.0) == pytest.approx(np.array([[1, 1, 1, 0]]) / 3)


def test_thompson_takes_an_action_as_often_as_it_is_the_best_of_the_draws():
    # Two actions, normal around 0.5 and 0 with deviations 1 and 2: a normal difference.
    layer = BayesianLayer(mean_F=np.array([0.5, 0.0]), precision_FF=np.diag([1, 1 / 4]))
    features = np.eye(2)[None]
    generator = np.random.default_rng(0)
    chances = thompson(layer, features, generator, draws=20_000)
    # Φ(0.5 / √5), SciPy 1.16.
    assert chances[0, 0] == pytest.approx(0.58847, abs=0.015)
    floor = thompson(layer, features, generator, draws=20_000, epsilon=0.5)
    assert floor[0, 0] == pytest.approx(0.5 * 0.58847 + 0.25, abs=0.015)
    sure = BayesianLayer(mean_F=layer.mean_F, precision_FF=np.eye(2) * 1e8)
    assert thompson(sure, features, generator).tolist() == [[1.0, 0.0]]
    # The model's word for the second action, and the first not on offer.
    for offset in ([[0.0, 9.0]], [[-np.inf, 0.0]]):
        found = thompson(sure, features, generator, offset_EA=offset, epsilon=0.2)
        assert found[0, 1] == pytest.approx(0.9 if offset[0][0] == 0 else 1.0)


@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 1000))
def test_chances_add_up_and_propensities_are_those_of_what_was_taken(actions, epsilon, seed):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(5, actions, 3))
    layer = BayesianLayer.prior(3)
    greedy = epsilon_greedy(generator.integers(0, 3, (5, actions)), epsilon=epsilon)
    for chances in (greedy, thompson(layer, features, generator, draws=7, epsilon=epsilon)):
        assert chances.min() >= 0
        np.testing.assert_allclose(chances.sum(1), 1)
        choice = choose(chances, generator)
        assert choice.propensity_E.min() > 0
        np.testing.assert_array_equal(chances[np.arange(5), choice.action_E], choice.propensity_E)


def test_actions_are_taken_as_often_as_their_chances_say():
    chances = np.array([0.0, 0.2, 0.0, 0.7, 0.1, 0.0])
    choice = choose(np.tile(chances, (50_000, 1)), np.random.default_rng(3))
    share = np.bincount(choice.action_E, minlength=6) / 50_000
    np.testing.assert_allclose(share, chances, atol=0.01)
    assert share[chances == 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose([[0.5, 0.4]], np.random.default_rng(0)), "add up to 1"),
        (lambda: choose([[1.5, -0.5]], np.random.default_rng(0)), "add up to 1"),
        (lambda: epsilon_greedy([[1.0]], epsilon=1.1), "epsilon is 1.1"),
        (lambda: epsilon_greedy([[np.nan]], epsilon=0.1), "no NaN"),
        (lambda: epsilon_greedy([[-np.inf, -np.inf]], epsilon=0.1), "not -inf"),
        (
            lambda: thompson(BayesianLayer.prior(1), [[[1.0]]], np.random.default_rng(0), draws=0),
            "draws is 0",
        ),
        (
            lambda: thompson(BayesianLayer.prior(1), [[[np.nan]]], np.random.default_rng(0)),
            "holds a NaN",
        ),
    ],
)
def test_what_is_no_policy_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


ACTIONS, ROUNDS, BATCH = 10, 150, 40


def regret_of(policy, seed):
    """Return what a policy loses against knowing all, over ROUNDS batches of choices.

    Every action has a weight of its own: what is never tried is never learnt. The prior expects
    a little less of them than is true, so that the first that pleases looks good.
    """
    world, generator = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    chance_A = 1 / (1 + np.exp(2 - world.normal(size=ACTIONS)))
    layer = BayesianLayer(mean_F=np.full(ACTIONS, -3.0), precision_FF=np.eye(ACTIONS) * 2)
    features, lost = np.tile(np.eye(ACTIONS), (BATCH, 1, 1)), 0.0
    for _ in range(ROUNDS):
        action_E = choose(policy(layer, features, generator), generator).action_E
        taken_E = chance_A[action_E]
        lost += float((chance_A.max() - taken_E).sum())
        reward_E = (world.random(BATCH) < taken_E).astype(float)
        layer = layer.updated(np.eye(ACTIONS)[action_E], reward_E)
    return lost


def greedy(epsilon):
    def policy(layer, features, _):
        score_A = layer.chance(features[0])
        return epsilon_greedy(np.tile(score_A, (len(features), 1)), epsilon=epsilon)

    return policy


def test_thompson_loses_less_than_epsilon_greedy_and_that_less_than_greedy():
    policies = {
        "thompson": lambda layer, f, g: thompson(layer, f, g, draws=10),
        "epsilon": greedy(0.1),
        "greedy": greedy(0.0),
    }
    lost = {name: [regret_of(p, seed) for seed in range(12)] for name, p in policies.items()}
    mean = {name: np.mean(values) for name, values in lost.items()}
    print(mean)
    assert mean["thompson"] < 0.7 * mean["epsilon"]
    assert mean["epsilon"] < 0.8 * mean["greedy"]
