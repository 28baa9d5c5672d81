"""Labels under a budget: what is chosen, and what it is worth beside chance."""

import itertools

import numpy as np
import pytest

from client.bayesian_layer import BayesianLayer
from client.labelling import most_telling, most_uncertain
from silotune.errors import DataError
from silotune.tasks.metrics import log_loss

PRIOR = BayesianLayer.prior(3)


def test_the_most_uncertain_are_those_nearest_to_a_half():
    layer = BayesianLayer(mean_F=np.array([1.0]), precision_FF=np.eye(1) * 1e6)
    assert most_uncertain(layer, [[3.0], [-0.1], [0.5], [-4.0]], 2).tolist() == [1, 2]
    assert most_uncertain(layer, [[3.0], [-0.1]], 1, [-3.0, 0.0]).tolist() == [0]


def doubt_after(layer, features, rows):
    """Return the summed variance of the chances, by the precision written out."""
    mean_E = features @ layer.mean_F
    curve_E = 1 / (1 + np.exp(-mean_E)) / (1 + np.exp(mean_E))
    precision = layer.precision_FF.copy()
    for row in rows:
        precision += curve_E[row] * np.outer(features[row], features[row])
    variance_E = (features @ np.linalg.inv(precision) * features).sum(1)
    return float((curve_E**2 * variance_E).sum())


def test_each_row_takes_away_the_most_doubt_given_those_before_it():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(25, 3)) * [1.0, 0.3, 2.0]
    layer = PRIOR.updated(features[:6], [0, 1, 1, 0, 1, 0])
    chosen = most_telling(layer, features, 4).tolist()
    assert len(set(chosen)) == 4
    for count in range(4):
        left = [r for r in range(25) if r not in chosen[:count]]
        best = min(left, key=lambda r: doubt_after(layer, features, [*chosen[:count], r]))
        assert chosen[count] == best
    pairs = (doubt_after(layer, features, p) for p in itertools.combinations(range(25), 2))
    assert doubt_after(layer, features, chosen[:2]) < 1.02 * min(pairs)


def test_all_rows_are_chosen_where_the_budget_is_larger():
    features = np.random.default_rng(1).normal(size=(5, 3))
    assert sorted(most_telling(PRIOR, features, 9).tolist()) == list(range(5))
    assert sorted(most_uncertain(PRIOR, features, 9).tolist()) == list(range(5))
    for choose in (most_telling, most_uncertain):
        with pytest.raises(DataError, match="budget is 0"):
            choose(PRIOR, features, 0)


def test_telling_labels_teach_more_than_as_many_at_random():
    # Few customers are unlike the others, and unlike in ways that matter.
    losses = {"telling": [], "random": []}
    for seed in range(20):
        generator = np.random.default_rng(seed)
        weights = generator.normal(size=8) * 1.5
        scale = np.where(generator.random((1500, 8)) < 0.1, 2.0, 0.1)
        features = generator.normal(size=(1500, 8)) * scale
        labels = (generator.random(1500) < 1 / (1 + np.exp(-features @ weights))).astype(float)
        pool, test = features[:1000], features[1000:]
        prior = BayesianLayer.prior(8, scale=1.5)
        rows = {
            "telling": most_telling(prior, pool, 40),
            "random": generator.choice(1000, 40, replace=False),
        }
        for name, chosen in rows.items():
            layer = prior.updated(pool[chosen], labels[chosen])
            chance = layer.chance(test)
            losses[name].append(log_loss(labels[1000:], np.log(chance) - np.log1p(-chance)))
    print({name: np.mean(values) for name, values in losses.items()})
    better = np.array(losses["random"]) - np.array(losses["telling"])
    assert better.mean() > 3 * better.std() / np.sqrt(len(better))
