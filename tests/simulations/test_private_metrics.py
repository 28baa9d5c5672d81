from dataclasses import replace

import pytest

from privacy.accounting import GaussianEvent, epsilon_spent
from silotune.errors import ConfigError
from simulations.private_metrics import noise_for
from simulations.scenario import PrivateTraining

PRIVATE = PrivateTraining(rounds=2, steps=2)


def test_training_and_metrics_fit_into_epsilon_together_and_waste_little():
    sigma, metrics = noise_for(2.0, PRIVATE)
    alone, none = noise_for(2.0, replace(PRIVATE, metrics_share=0.0))
    assert none is None
    assert sigma == pytest.approx(1.02 * alone)
    training = GaussianEvent(sampling_rate=0.25, noise_multiplier=sigma, steps=4)

    def spent(factor):
        noise = factor * metrics["noise_multiplier"]
        event = GaussianEvent(sampling_rate=1.0, noise_multiplier=noise, steps=1)
        return epsilon_spent([training, event], delta=PRIVATE.delta)

    assert spent(1.0) <= 2.0 < spent(0.98)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics_share": -0.1}, "metrics_share is -0.1"),
        ({"metrics_share": float("nan")}, "metrics_share is nan"),
        ({"metrics_bins": 0}, "metrics_bins is 0"),
        ({"metrics_negative_weight": 0.0}, "metrics_negative_weight is 0.0"),
    ],
)
def test_impossible_metrics_are_named(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(PRIVATE, **change)
