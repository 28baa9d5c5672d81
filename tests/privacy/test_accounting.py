"""ε against golden numbers, against another library, and against closed forms."""

import math
import warnings

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import log_ndtr

from privacy import accounting
from privacy.accounting import GaussianEvent, calibrate_noise, epsilon_spent
from silotune.errors import ConfigError, PrivacyError


def event(rate, noise, steps):
    return GaussianEvent(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def by_pld(events, delta):
    """ε by dp-accounting: another library, another accountant, add or remove one."""
    composed = None
    for e in events:
        one = pld.from_gaussian_mechanism(
            e.noise_multiplier,
            sampling_prob=e.sampling_rate,
            value_discretization_interval=1e-4,
        ).self_compose(e.steps)
        composed = one if composed is None else composed.compose(one)
    return composed.get_epsilon_for_delta(delta)


def exact(noise, steps, delta):
    """ε of Gaussians without sampling. Balle and Wang (2018), arXiv:1805.06530, theorem 8."""
    mu = math.sqrt(steps) / noise

    def gap(epsilon):
        above = log_ndtr(mu / 2 - epsilon / mu)
        below = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return above + math.log1p(-math.exp(below - above)) - math.log(delta)

    return optimize.brentq(gap, 1e-3, mu**2 + 40 * mu + 50)


# PLD: dp-accounting 0.6.0, interval 1e-4. PRV and RDP: Opacus 1.6.0.
REFERENCE = [
    ([(0.04, 1.5, 2250)], 1e-5, 6.769, 6.779, 7.329),
    ([(0.01, 1.0, 1000)], 1e-5, 1.828, 1.838, 2.101),
    ([(0.01, 1.1, 10000)], 1e-5, 5.193, 5.203, 5.632),
    ([(0.25, 3.0, 200)], 1e-4, 4.887, 4.897, 5.385),
    ([(1, 10, 100)], 1e-5, 4.377, 4.387, 4.729),
    ([(1, 1, 1)], 1e-5, 4.377, 4.387, 4.729),
    ([(0.02, 1.0, 100), (0.05, 1.5, 50)], 1e-5, 1.776, 1.786, None),
]


@pytest.mark.parametrize(("plan", "delta", "pld_", "prv", "rdp"), REFERENCE)
def test_epsilon_is_that_of_the_reference_table(plan, delta, pld_, prv, rdp):
    events = [event(*p) for p in plan]
    epsilon = epsilon_spent(events, delta=delta)
    assert epsilon == pytest.approx(prv, rel=0.01)
    assert epsilon >= pld_ * 0.995
    if rdp is not None:
        assert accounting._rdp(accounting._merged(events), delta) == pytest.approx(rdp, rel=1e-3)


@pytest.fixture(scope="module")
def calibrated():
    return {
        target: calibrate_noise(target, delta=1e-4, sampling_rate=0.5, steps=10)
        for target in (8.0, 2.0)
    }


@pytest.mark.parametrize("target", [8.0, 2.0])
def test_noise_for_a_target_keeps_it_by_another_library_too(target, calibrated):
    plan = [event(0.5, calibrated[target], 10)]
    independent = by_pld(plan, 1e-4)
    assert independent <= target
    assert independent == pytest.approx(epsilon_spent(plan, delta=1e-4), rel=0.02)


@pytest.mark.parametrize("target", [8.0, 2.0])
def test_noise_for_a_target_is_no_larger_than_needed(target, calibrated):
    noise = calibrated[target]
    assert epsilon_spent([event(0.5, noise, 10)], delta=1e-4) <= target
    less = event(0.5, noise * (1 - 2e-3), 10)
    assert epsilon_spent([less], delta=1e-4) > target


def test_noise_is_calibrated_to_the_tolerance_asked_for():
    tight = calibrate_noise(3.0, delta=1e-5, sampling_rate=1.0, steps=1, tolerance=1e-4)
    low, high = (epsilon_spent([event(1.0, s * tight, 1)], delta=1e-5) for s in (1, 1 - 2e-4))
    assert low <= 3.0 < high


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_a_target_of_nothing_is_refused(epsilon):
    with pytest.raises(ConfigError, match="epsilon is"):
        calibrate_noise(epsilon, delta=1e-5, sampling_rate=0.1, steps=1)


def test_a_target_that_no_noise_keeps_is_refused():
    with pytest.raises(PrivacyError, match=r"ε=1e-06 .* cannot be kept over 5 steps"):
        calibrate_noise(1e-6, delta=1e-5, sampling_rate=0.1, steps=5)


EVENTS = st.builds(
    event,
    st.one_of(st.floats(0.005, 1), st.just(1.0)),
    st.floats(1.5, 15),
    st.integers(1, 60),
)


@settings(max_examples=30)
@given(st.lists(EVENTS, min_size=1, max_size=2), st.floats(-8, -3).map(lambda x: 10**x))
def test_any_plan_costs_what_another_library_says_and_no_less(plan, delta):
    reference = by_pld(plan, delta)
    assume(reference < 200)
    epsilon = epsilon_spent(plan, delta=delta)
    assert epsilon >= reference * 0.995
    # PRV's own margin is 0.01; RDP stands in where PRV has no answer, and is looser.
    assert epsilon <= reference * 1.25 + 0.03


@settings(max_examples=30)
@given(st.floats(0.5, 30), st.integers(1, 50), st.floats(-30, -2).map(lambda x: 10**x))
def test_without_sampling_no_delta_gives_less_than_the_closed_form(noise, steps, delta):
    epsilon = epsilon_spent([event(1.0, noise, steps)], delta=delta)
    truth = exact(noise, steps, delta)
    assert epsilon >= truth * (1 - 1e-9)
    rdp = accounting._rdp([(noise, 1.0, steps)], delta)
    assert epsilon <= max(truth * 1.01 + 0.02, rdp)


def fails_with(outcome):
    class Accountant:
        def get_epsilon(self, delta):
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


def test_a_delta_too_small_for_prv_falls_back_to_rdp_by_itself():
    history = [(1.0, 1.0, 1)]
    assert accounting._prv(history, 1e-20) is None
    epsilon = epsilon_spent([event(1.0, 1.0, 1)], delta=1e-20)
    assert epsilon == accounting._rdp(history, 1e-20)
    assert exact(1.0, 1, 1e-20) <= epsilon


@pytest.mark.parametrize("noise", [1e-200, 1e300])
def test_where_no_accountant_answers_the_plan_is_refused(noise):
    with pytest.raises(PrivacyError, match="no accountant bounds"):
        epsilon_spent([event(0.5, noise, 1)], delta=1e-5)


@pytest.mark.parametrize(
    ("plan", "delta"),
    [((1, 1e-3, 1), 1e-5), ((0.1, 1.0, 10**7), 1e-5), ((0.5, 1, 1), 1e-320)],
)
def test_extreme_plans_warn_of_nothing(plan, delta):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert epsilon_spent([event(*plan)], delta=delta) > 0


def test_nothing_released_costs_nothing():
    assert epsilon_spent([], delta=1e-5) == 0


def test_the_order_and_the_grouping_of_events_do_not_matter():
    parts = [event(0.1, 1.0, 20), event(0.3, 2.0, 5), event(0.1, 1.0, 30)]
    whole = [event(0.3, 2.0, 5), event(0.1, 1.0, 50)]
    assert epsilon_spent(parts, delta=1e-5) == epsilon_spent(whole, delta=1e-5)


def test_every_event_of_a_history_counts():
    base = [event(0.1, 1.0, 20)]
    before = epsilon_spent(base, delta=1e-5)
    assert epsilon_spent([*base, event(0.1, 1.0, 1)], delta=1e-5) > before + 0.01
    assert epsilon_spent([*base, event(0.5, 2.0, 1)], delta=1e-5) > before + 0.01
    assert epsilon_spent(base + base, delta=1e-5) == epsilon_spent(
        [event(0.1, 1.0, 40)], delta=1e-5
    )


@pytest.mark.parametrize(
    "dearer",
    [(0.2, 1.0, 20, 1e-5), (0.1, 0.9, 20, 1e-5), (0.1, 1.0, 25, 1e-5), (0.1, 1.0, 20, 1e-6)],
)
def test_more_sampling_less_noise_more_steps_or_less_delta_cost_more(dearer):
    *plan, delta = dearer
    base = epsilon_spent([event(0.1, 1.0, 20)], delta=1e-5)
    assert epsilon_spent([event(*plan)], delta=delta) > base + 0.05


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_out_of_range_is_refused(delta):
    with pytest.raises(ConfigError, match="delta is"):
        epsilon_spent([event(0.1, 1.0, 1)], delta=delta)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("sampling_rate", math.nan),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("steps", 0),
    ],
)
def test_events_out_of_range_are_refused_by_name(field, value):
    good = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 1}
    with pytest.raises(ConfigError, match=f"{field} is"):
        GaussianEvent(**(good | {field: value}))
