"""What the layer knows after labels, against what is known by other means."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from client.bayesian_layer import BayesianLayer
from silotune.errors import DataError

PRIOR = BayesianLayer.prior(3, scale=2.0)


def some_rows(count, seed=0, weights=(1.5, -2.0, 0.5), offset=0.0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, len(weights)))
    chance = 1 / (1 + np.exp(-(features @ weights + offset)))
    return features, (generator.random(count) < chance).astype(float)


def test_the_mean_is_that_of_a_regression_with_the_same_penalty():
    features, labels = some_rows(400)
    layer = PRIOR.updated(features, labels)
    model = LogisticRegression(C=4.0, fit_intercept=False, tol=1e-10).fit(features, labels)
    np.testing.assert_allclose(layer.mean_F, model.coef_[0], atol=1e-5)


def test_with_one_weight_it_is_near_the_posterior_on_a_grid():
    features, labels = some_rows(40, weights=(1.0,))
    layer = BayesianLayer.prior(1, scale=1.0).updated(features, labels)
    grid = np.linspace(-4, 6, 4001)
    logit = features * grid
    log_posterior = -(grid**2) / 2 - np.logaddexp(0, np.where(labels[:, None], -logit, logit)).sum(
        0
    )
    density = np.exp(log_posterior - log_posterior.max())
    density /= density.sum()
    mean = density @ grid
    std = np.sqrt(density @ (grid - mean) ** 2)
    assert layer.mean_F[0] == pytest.approx(mean, abs=0.2 * std)
    assert np.sqrt(layer.covariance()[0, 0]) == pytest.approx(std, rel=0.05)
    # The chance of a new row is that over all weights.
    for x in (-2.0, 0.5, 3.0):
        exact = density @ (1 / (1 + np.exp(-x * grid)))
        assert layer.chance([[x]])[0] == pytest.approx(exact, abs=0.02)


def test_rows_in_two_batches_teach_what_they_teach_at_once():
    features, labels = some_rows(600, weights=(0.5, -0.4, 0.2))
    at_once = PRIOR.updated(features, labels)
    first = PRIOR.updated(features[:300], labels[:300])
    then = first.updated(features[300:], labels[300:])
    std = np.sqrt(np.diag(at_once.covariance()))
    assert (np.abs(then.mean_F - at_once.mean_F) < 0.25 * std).all()
    # More rows, less doubt; none at all change nothing.
    assert (np.diag(first.covariance()) > np.diag(then.covariance())).all()
    np.testing.assert_array_equal(PRIOR.updated(features[:0], labels[:0]).mean_F, PRIOR.mean_F)


def test_where_the_model_is_right_nothing_is_added_to_it():
    weights = np.array([1.5, -2.0, 0.5])
    features, labels = some_rows(4000, seed=1)
    layer = PRIOR.updated(features, labels, features @ weights)
    assert (np.abs(layer.mean_F) < 4 * np.sqrt(np.diag(layer.covariance()))).all()
    assert np.abs(layer.mean_F).max() < 0.2
    assert PRIOR.chance(np.zeros((1, 3)), 0.7) == pytest.approx(1 / (1 + np.exp(-0.7)))


def test_draws_have_the_mean_and_the_covariance():
    features, labels = some_rows(60)
    layer = PRIOR.updated(features, labels)
    draws = layer.draws(200_000, np.random.default_rng(0))
    std = np.sqrt(np.diag(layer.covariance()))
    np.testing.assert_allclose(draws.mean(0) - layer.mean_F, 0, atol=0.01 * std.max())
    np.testing.assert_allclose(np.cov(draws.T), layer.covariance(), atol=0.02 * (std**2).max())
    mean_E, variance_E = layer.moments(features, 0.3)
    logits = features @ draws.T + 0.3
    np.testing.assert_allclose(mean_E, logits.mean(1), atol=0.02)
    np.testing.assert_allclose(variance_E, logits.var(1), rtol=0.03)


def test_labels_that_a_line_parts_and_huge_features_have_an_optimum():
    features = np.array([[-1.0], [1.0]] * 50) * 1e3
    labels = (features[:, 0] > 0).astype(float)
    layer = BayesianLayer.prior(1).updated(features, labels)
    # Where the slope of the loss, 100 rows of 1000 exp(-1000 w), is that of the prior, w.
    assert layer.mean_F[0] == pytest.approx(1e5 * np.exp(-1e3 * layer.mean_F[0]), rel=1e-3)


@pytest.mark.parametrize(
    ("features", "labels", "offsets"),
    [
        (np.ones((2, 4)), [0, 1], 0.0),
        (np.ones((2, 3)), [0, 2], 0.0),
        (np.ones((2, 3)), [0, 1, 1], 0.0),
        (np.full((2, 3), np.nan), [0, 1], 0.0),
        (np.ones((2, 3)), [0, 1], np.inf),
    ],
)
def test_what_does_not_fit_is_refused(features, labels, offsets):
    with pytest.raises(DataError):
        PRIOR.updated(features, labels, offsets)


def test_a_precision_without_an_inverse_is_refused():
    with pytest.raises(DataError, match="positive definite"):
        BayesianLayer(mean_F=np.zeros(2), precision_FF=np.ones((2, 2)))
