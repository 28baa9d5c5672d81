"""Opacus' accountants where they would answer too little, never, or not at all."""

import inspect
import math

import numpy as np
import pytest

from privacy import accountants, accounting
from privacy.accounting import GaussianEvent, epsilon_by_rdp, epsilon_spent
from silotune.errors import PrivacyError


def event(rate, noise, steps):
    return GaussianEvent(sampling_rate=rate, noise_multiplier=noise, steps=steps)


@pytest.mark.parametrize(
    ("mu", "steps", "delta"),
    [(3.0, 10**5, 1e-12), (1.0, 10**5, 1e-10), (1.0, 10**4, 1e-10), (0.3, 10**5, 1e-11)],
)
def test_rounding_in_long_plans_at_small_delta_never_gives_less_than_the_closed_form(
    mu, steps, delta, exact
):
    # Opacus' PRV by itself: 24.25 for 25.09, 6.537 for 6.548, …, 1.913 for 1.915.
    noise = math.sqrt(steps) / mu
    assert epsilon_spent([event(1.0, noise, steps)], delta=delta) >= exact(noise, steps, delta)


def test_no_number_of_steps_is_so_large_that_rounding_hides_the_cost(exact):
    # By the central limit theorem the same as one Gaussian of σ = 2.
    many = [event(0.5, 1e8, 10**16)]
    assert epsilon_spent(many, delta=1e-5) >= exact(2.0, 1, 1e-5)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 3 * 10**6), (200.0, 10**8)])
def test_more_steps_than_prv_is_good_for_go_to_rdp(noise, steps, exact):
    q = 1e-4
    plan = [event(q, noise, steps)]
    epsilon = epsilon_spent(plan, delta=1e-5)
    assert epsilon == epsilon_by_rdp(plan, delta=1e-5)
    # Central limit: one Gaussian of σ = 1/(q √(n (e^(1/σ²) - 1))).
    mu = q * math.sqrt(steps * math.expm1(noise**-2))
    assert exact(1 / mu, 1, 1e-5) * 0.99 <= epsilon <= exact(1 / mu, 1, 1e-5) * 1.25 + 0.05


def fails_with(outcome):
    class Accountant:
        def get_epsilon(self, delta, *, eps_error, delta_error):
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is Warning:
                return np.float64(1e300) * 1e300
            return outcome

    return Accountant


@pytest.mark.parametrize(
    "outcome",
    [
        ValueError("discrete mean is not close"),
        RuntimeError("no solution"),
        OverflowError(),
        MemoryError(),
        Warning,
        math.nan,
        math.inf,
        -1.0,
        0.0,
    ],
    ids=repr,
)
def test_where_prv_has_no_answer_rdp_stands_in_and_is_no_smaller(outcome, monkeypatch):
    import opacus.accountants

    monkeypatch.setattr(opacus.accountants, "PRVAccountant", fails_with(outcome))
    plan = [event(0.25, 3.0, 200)]
    # The reference table: PLD 4.887, RDP 5.385.
    assert epsilon_spent(plan, delta=1e-4) == pytest.approx(5.385, rel=1e-3)


def test_a_delta_too_small_for_prv_falls_back_to_rdp_by_itself(exact):
    history = [(1.0, 1.0, 1)]
    by_rdp = accountants.rdp(history, 1e-20)
    assert accountants.prv(history, 1e-20, by_rdp) is None
    epsilon = epsilon_spent([event(1.0, 1.0, 1)], delta=1e-20)
    assert epsilon == by_rdp
    assert exact(1.0, 1, 1e-20) <= epsilon


def test_rounding_of_prv_is_taken_from_delta(monkeypatch):
    import opacus.accountants

    asked = []

    class Accountant:
        def get_epsilon(self, delta, *, eps_error, delta_error):
            asked.append((eps_error, delta_error))
            return 1.0

    monkeypatch.setattr(opacus.accountants, "PRVAccountant", Accountant)
    for steps, by_rdp in ((1, 5.0), (10**4, 0.5), (10**4, 40.0)):
        assert accountants.prv([(1.0, 0.1, steps)], 1e-10, by_rdp) == 1.0
    # A fifth of δ may be rounding, and no more than a quarter.
    assert accountants.prv([(1.0, 0.1, 10**4)], 7e-11, 5.0) is None
    u = 2.0**-52
    assert asked == [
        (0.01, pytest.approx(1e-13)),
        (0.005, pytest.approx(8e4 * u)),
        (0.04, pytest.approx(8e4 * u)),
    ]


def test_a_grid_too_large_for_the_memory_is_never_laid(monkeypatch):
    plan = [event(0.2, 1.0 + i / 100, 1000) for i in range(5)]
    monkeypatch.setattr(accountants, "_MOST_POINTS", 2**16)
    assert epsilon_spent(plan, delta=1e-5) == epsilon_by_rdp(plan, delta=1e-5)


@pytest.mark.parametrize("noise", [1e-200, 1e-150, 1e-4])
def test_where_no_accountant_answers_the_plan_is_refused(noise):
    for bound in (epsilon_spent, epsilon_by_rdp):
        with pytest.raises(PrivacyError, match="no accountant bounds"):
            bound([event(0.5, noise, 1)], delta=1e-5)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("plan", "limit"),
    [
        ((1e-310, 1.0, 1), 0.002),
        ((0.5, 1e300, 10), 0.03),
        ((0.5, 1e-3, 1), math.inf),
        ((1 - 1e-16, 1.0, 1), 4.4),
        ((0.5, 999.0, 10), 0.03),
        ((0.5, 101.0, 10**7), math.inf),
    ],
    ids=str,
)
def test_no_request_makes_the_accountant_run_for_ever(plan, limit):
    assert 0 <= epsilon_spent([event(*plan)], delta=1e-5) <= limit


def test_a_plan_beyond_what_libraries_represent_costs_no_less_than_its_neighbour():
    # A rate rounded up to 1 costs what rate 1 costs; noise is only ever rounded down.
    assert accountants.representable(1.0, 1 - 1e-12) == (1.0, 1.0)
    assert accountants.representable(1.0, 0.9) == (1.0, 0.9)
    assert accountants.representable(1e300, 1e-300) == (1e9, 1e-12)
    assert accountants.representable(1e-300, 1.0) == (1e-300, 1.0)


def test_rdp_where_noise_is_large_is_a_bound_at_every_order():
    steps = [accountants._rdp_of_a_step(noise, 0.3) for noise in (99.9, 100.1)]
    # A little more noise, and fractional orders take the next whole one's divergence.
    for order, below, above in zip(accountants.ORDERS, *steps, strict=True):
        assert below * 0.99 <= above <= below * (math.ceil(order) / order + 1e-2)


def test_a_loss_that_delta_alone_covers_costs_nothing_not_less():
    assert epsilon_by_rdp([event(0.01, 50.0, 1)], delta=0.5) == 0.0


def test_the_accountant_that_reports_too_little_is_not_offered():
    # Opacus' 'gdp': 2.228 where PLD says 3.765.
    for module in (accountants, accounting):
        assert "GaussianAccountant" not in inspect.getsource(module)
        assert not any("gdp" in name.lower() for name in vars(module))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.9])
def test_a_step_is_never_so_small_that_rounding_makes_it_free(rate):
    # Small losses: the divergence is α q² / 2σ², here 1e-17 and less, below one rounding of 1.
    for noise in (1e8, 1e9):
        for order, found in zip(
            accountants.ORDERS, accountants._rdp_of_a_step(noise, rate), strict=True
        ):
            assert found >= order * rate**2 / noise**2 / 2
