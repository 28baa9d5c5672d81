"""ε by others: another library and a closed form, to hold the accountants against."""

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import optimize
from scipy.special import log_ndtr


@pytest.fixture(scope="session")
def by_pld():
    """ε by dp-accounting: another library, another accountant, add or remove one."""

    def epsilon(events, delta):
        composed = None
        for e in events:
            one = pld.from_gaussian_mechanism(
                e.noise_multiplier,
                sampling_prob=e.sampling_rate,
                value_discretization_interval=1e-4,
            ).self_compose(e.steps)
            composed = one if composed is None else composed.compose(one)
        return composed.get_epsilon_for_delta(delta)

    return epsilon


@pytest.fixture(scope="session")
def exact():
    """ε of Gaussians without sampling. Balle and Wang (2018), arXiv:1805.06530, theorem 8."""

    def epsilon(noise, steps, delta):
        mu = math.sqrt(steps) / noise

        def gap(epsilon):
            above = log_ndtr(mu / 2 - epsilon / mu)
            below = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
            return above + math.log1p(-math.exp(below - above)) - math.log(delta)

        return optimize.brentq(gap, 1e-6, mu**2 + 40 * mu + 50)

    return epsilon
