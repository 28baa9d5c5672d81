"""Other units: against closed forms, against another library, and against worse claims."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.stats import binom

from privacy import accountants, conversions
from privacy.accounting import GaussianEvent, epsilon_by_rdp, epsilon_spent
from privacy.conversions import (
    epsilon_of_group,
    epsilon_of_user_of_examples,
    epsilon_over_merchants,
    guarantee_of_example,
    guarantee_of_group,
    guarantee_over_merchants,
)
from silotune.errors import ConfigError, PrivacyError


def event(rate, noise, steps):
    return GaussianEvent(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def of_group_by_pld(e, users, delta):
    """ε by dp-accounting's mixture of Gaussians, both directions."""
    one = pld.from_mixture_gaussian_mechanism(
        e.noise_multiplier,
        list(range(users + 1)),
        list(binom.pmf(range(users + 1), users, e.sampling_rate)),
        value_discretization_interval=1e-3,
    )
    return one.self_compose(e.steps).get_epsilon_for_delta(delta)


@pytest.mark.parametrize("users", [2, 4, 8])
@pytest.mark.parametrize("plan", [(0.04, 4.0, 300), (0.3, 10.0, 20), (0.01, 2.0, 1000)], ids=str)
def test_a_group_costs_what_another_library_says_and_no_less(plan, users):
    e = event(*plan)
    reference = of_group_by_pld(e, users, 1e-5)
    epsilon = epsilon_of_group([e], users=users, delta=1e-5)
    # Rényi divergences cost a tenth or so, as for one user.
    assert reference * 0.995 <= epsilon <= reference * 1.2 + 0.1


@pytest.mark.parametrize("users", [2, 5])
def test_a_group_without_sampling_moves_the_sum_by_a_clip_each(users, exact):
    epsilon = epsilon_of_group([event(1.0, 20.0, 10)], users=users, delta=1e-6)
    assert epsilon >= exact(20.0 / users, 10, 1e-6)
    as_one = epsilon_by_rdp([event(1.0, 20.0 / users, 10)], delta=1e-6)
    assert epsilon == pytest.approx(as_one, rel=1e-9)


@pytest.mark.parametrize(
    ("rate", "noise"), [(0.3, 1.0), (0.01, 0.5), (0.9, 3.0), (1.0, 2.0), (1e-4, 20.0)]
)
def test_a_group_of_one_diverges_as_one_user_does(rate, noise):
    # Another way to the same numbers: Opacus' series, one direction, here both by quadrature.
    ours = np.array(conversions._rdp_of_group(noise, rate, 1))
    theirs = np.array(accountants._rdp_of_a_step(noise, rate))
    scale = np.array(accountants.ORDERS) - 1
    assert np.isfinite(ours).all()
    assert np.abs((ours - theirs) * scale).max() < 1e-8 * max(1, (theirs * scale).max())
    assert np.abs((ours - theirs) * scale)[:30].max() < 2e-12 * max(1, (theirs * scale)[:30].max())


def test_both_directions_of_a_group_count():
    # At rate 1 they are the same; below it, the one that adds is no larger, and never missed.
    z = np.arange(-60, 60, 0.01)
    loss = conversions._loss(z, 1.0, 0.5, 2)
    remove, add = (conversions._log_mean(x, z) for x in (4 * loss, -3 * loss))
    assert 0 < add < remove
    assert conversions._rdp_of_group(1.0, 0.5, 2)[accountants.ORDERS.index(4.0)] == pytest.approx(
        remove / 3, rel=1e-9
    )


def test_a_group_of_one_user_costs_what_the_user_costs():
    plan = [event(0.1, 2.0, 20), event(0.2, 3.0, 5)]
    assert epsilon_of_group(plan, users=1, delta=1e-5) == epsilon_spent(plan, delta=1e-5)
    assert epsilon_of_group([], users=4, delta=1e-5) == 0.0


def test_every_event_and_every_user_of_a_group_counts():
    plan = [event(0.1, 4.0, 20), event(0.2, 6.0, 5)]
    both = epsilon_of_group(plan, users=3, delta=1e-5)
    for part in plan:
        assert epsilon_of_group([part], users=3, delta=1e-5) < both - 0.01
    assert epsilon_of_group([plan[0], plan[0]], users=3, delta=1e-5) == pytest.approx(
        epsilon_of_group([event(0.1, 4.0, 40)], users=3, delta=1e-5)
    )
    growing = [epsilon_of_group(plan, users=k, delta=1e-5) for k in (1, 2, 3, 4, 8)]
    assert growing == sorted(growing)
    assert growing[-1] > 4 * growing[0]


def test_knowing_the_events_gives_a_group_less_than_the_formula():
    plan = [event(0.04, 2.0, 500)]
    known = epsilon_of_group(plan, users=4, delta=1e-5)
    # The largest δ of one user whose group of four has δ at most 1e-5.
    low = next(
        d
        for d in np.logspace(-5, -20, 61)
        if guarantee_of_group(epsilon_spent(plan, delta=d), d, users=4)[1] <= 1e-5
    )
    assert known < guarantee_of_group(epsilon_spent(plan, delta=low), low, users=4)[0]


@pytest.mark.parametrize("users", [1, 2, 3, 7])
def test_the_group_formula_is_that_of_steps_from_one_user_to_the_next(users):
    delta = 0.0
    for _ in range(users):
        delta = 1e-9 + math.exp(0.7) * delta
    assert guarantee_of_group(0.7, 1e-9, users=users) == pytest.approx((0.7 * users, delta))


@pytest.mark.parametrize("users", [2, 4])
def test_the_group_formula_covers_what_a_group_really_loses(users, exact):
    # A Gaussian that users move by one clip each; the formula from the exact ε of one.
    one = exact(5.0, 1, 1e-6)
    epsilon, delta = guarantee_of_group(one, 1e-6, users=users)
    assert exact(5.0 / users, 1, delta) <= epsilon
    # At the δ of one user, ε of one user times the group's size would be too little to claim.
    assert exact(5.0 / users, 1, 1e-6) > epsilon


def test_a_group_without_a_delta_or_an_epsilon_is_no_special_case():
    assert guarantee_of_group(0.0, 1e-6, users=5) == (0.0, pytest.approx(5e-6))
    assert guarantee_of_group(3.0, 0.0, users=1000) == (3000.0, 0.0)
    assert guarantee_of_group(3.0, 1e-6, users=1000) == (3000.0, math.inf)


def test_one_example_of_a_user_who_keeps_others_costs_two_users(exact):
    # Its removal may turn a user's clipped gradient round: the sum moves by two clips.
    one = exact(5.0, 1, 1e-6)
    epsilon, delta = guarantee_of_example(one, 1e-6)
    assert epsilon == 2 * one
    assert delta == pytest.approx(1e-6 * (1 + math.exp(one)))
    assert one < exact(2.5, 1, delta) <= epsilon


def test_a_user_of_example_level_training_is_a_group_of_examples():
    plan = [event(0.02, 2.0, 200)]
    claimed = epsilon_spent(plan, delta=1e-5)
    user = epsilon_of_user_of_examples(plan, examples=16, delta=1e-5)
    assert user == epsilon_of_group(plan, users=16, delta=1e-5)
    assert user > 10 * claimed


def test_a_user_of_several_merchants_pays_at_each(by_pld):
    plans = [[event(0.1, 2.0, 20)], [event(0.2, 3.0, 10), event(0.1, 2.0, 5)]]
    together = epsilon_over_merchants(plans, delta=1e-5)
    assert together >= by_pld([e for plan in plans for e in plan], 1e-5) * 0.995
    alone = [(epsilon_spent(plan, delta=5e-6), 5e-6) for plan in plans]
    assert together > max(e for e, _ in alone)
    epsilon, delta = guarantee_over_merchants(alone)
    assert (epsilon, delta) == (sum(e for e, _ in alone), 1e-5)
    assert together < epsilon
    assert epsilon_over_merchants([], delta=1e-5) == 0.0


@pytest.mark.parametrize("users", [0, -1, 257])
def test_a_group_of_no_size_is_refused(users):
    with pytest.raises(ConfigError, match="users is"):
        epsilon_of_group([event(0.1, 1.0, 1)], users=users, delta=1e-5)
    if users < 1:
        with pytest.raises(ConfigError, match="users is"):
            guarantee_of_group(1.0, 1e-5, users=users)


@pytest.mark.parametrize(
    ("epsilon", "delta", "named"),
    [(-0.1, 0.1, "epsilon"), (math.nan, 0.1, "epsilon"), (1.0, -0.1, "delta"), (1.0, 1.1, "delta")],
)
def test_a_pair_that_is_no_guarantee_is_refused(epsilon, delta, named):
    with pytest.raises(ConfigError, match=f"{named} is"):
        guarantee_of_group(epsilon, delta, users=2)
    with pytest.raises(ConfigError, match=f"{named} is"):
        guarantee_over_merchants([(1.0, 0.0), (epsilon, delta)])


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_a_group_needs_a_delta(delta):
    with pytest.raises(ConfigError, match="delta is"):
        epsilon_of_group([event(0.1, 1.0, 1)], users=2, delta=delta)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("plan", [(0.5, 1e-9, 1), (1e-310, 1e-3, 1), (1.0, 1e-200, 1)], ids=str)
def test_a_group_that_nothing_bounds_is_refused(plan):
    with pytest.raises(PrivacyError, match="nothing bounds ε of 8 users"):
        epsilon_of_group([event(*plan)], users=8, delta=1e-5)


@pytest.mark.timeout(60)
def test_a_large_group_under_little_noise_still_has_a_bound():
    e = event(1.0, 2.0, 1)
    assert epsilon_of_group([e], users=256, delta=1e-5) >= 128**2 / 2
    assert epsilon_of_group([event(1e-310, 1e300, 1)], users=256, delta=1e-5) < 0.1
