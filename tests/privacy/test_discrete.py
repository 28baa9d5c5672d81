import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from privacy import discrete
from privacy.discrete import (
    accounted_noise_multiplier,
    discrete_noisy_sum,
    discrete_plan,
)
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import ConfigError, PrivacyError

# The secure source cannot be seeded: every bound leaves a chance below 1e-6 to a right sampler.
CHANCE = 1e-6
SOURCES = {"secure": SecureSource, "seeded": lambda: SeededSource(1)}


@pytest.fixture(params=SOURCES)
def source(request):
    return SOURCES[request.param]()


@pytest.fixture
def silent(monkeypatch):
    """The mechanism without its noise; what was asked of the sampler is listed."""
    asked = []

    def zeros(count, std, source):
        asked.append((count, std))
        return np.zeros(count, np.int64)

    monkeypatch.setattr(discrete, "discrete_gaussian", zeros)
    return asked


def rows_of(dtype):
    width = np.dtype(dtype).itemsize * 8
    special = [np.nan, np.inf, -np.inf, float(np.finfo(dtype).max), 1e-45, 0.0, 0.5, -1.0]
    values = st.one_of(st.floats(width=width), st.sampled_from(special))
    return npst.arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=values)


ROWS = st.sampled_from([np.float32, np.float64]).flatmap(rows_of)
CLIPS = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.5, 1.0, 3.0]))
GRIDS = st.one_of(st.none(), st.integers(4, 24))


def step_of(grid, clip):
    return None if grid is None else 2.0 ** (math.floor(math.log2(clip)) - grid)


@given(ROWS, st.integers(0, 3), CLIPS, GRIDS, st.integers(1, 3))
def test_one_user_moves_the_sum_by_at_most_the_clip_norm(rows, user, clip, grid, parts):
    grads = torch.from_numpy(rows)
    user %= len(grads)
    size = grads.shape[1]
    grid = step_of(grid, clip)
    plan = discrete_plan(size, clip_norm=clip, noise_multiplier=1.0, grid=grid)

    def total(users):
        source = SeededSource(3)
        how = {"clip_norm": clip, "noise_multiplier": 1.0, "source": source, "grid": grid}
        return discrete_noisy_sum(users.split(parts), size, **how).tolist()

    with_user, without = total(grads), total(torch.cat([grads[:user], grads[user + 1 :]]))
    # Rational arithmetic: no tolerance at all.
    moved = [Fraction(a) - Fraction(b) for a, b in zip(with_user, without, strict=True)]
    assert sum(m * m for m in moved) <= Fraction(clip) ** 2
    assert all((m / Fraction(plan.step)).denominator == 1 for m in moved)


def test_rounding_cannot_lift_a_user_above_the_clip_norm(silent):
    # Every coordinate of the longest allowed user is rounded up on this grid.
    size, clip = 64, 1.0
    plan = discrete_plan(size, clip_norm=clip, noise_multiplier=1.0, grid=2.0**-5)
    worst = (np.arange(1, 9).repeat(8) % 4 + 0.501) * plan.step
    worst *= plan.inner_clip / np.linalg.norm(worst)
    for scale in np.linspace(0.5, 3, 200):
        grads = torch.from_numpy(worst * scale)[None]
        how = {"clip_norm": clip, "noise_multiplier": 1.0, "source": None, "grid": 2.0**-5}
        out = discrete_noisy_sum([grads], size, **how)
        assert sum(Fraction(v) ** 2 for v in out.tolist()) <= 1
        # And the bound is used: the user is not thrown away.
        assert scale < 1 or out.norm() > 0.7


@pytest.mark.parametrize("grid", [None, 2.0**-4])
def test_a_user_within_the_clip_is_moved_by_half_a_step_at_most(silent, grid):
    grads = torch.randn(1, 16, generator=torch.Generator().manual_seed(4)).double() / 8
    plan = discrete_plan(16, clip_norm=1.0, noise_multiplier=1.0, grid=grid)
    how = {"clip_norm": 1.0, "noise_multiplier": 1.0, "source": None, "grid": grid}
    moved = discrete_noisy_sum([grads], 16, **how) - grads[0]
    assert plan.step / 4 < moved.abs().max() <= plan.step / 2


def test_integers_above_the_bound_are_dropped_even_if_clipping_fails(silent, monkeypatch):
    monkeypatch.setattr("privacy.dp_sgd.clip_user_gradients", lambda rows, clip: rows.double())
    how = {"clip_norm": 1.0, "noise_multiplier": 1.0, "source": None}
    assert not discrete_noisy_sum([torch.full((1, 4), 3.0)], 4, **how).any()


@given(ROWS, CLIPS, GRIDS, st.floats(0.3, 30.0))
def test_every_output_lies_on_the_grid_whatever_the_data_is(rows, clip, grid, noise):
    size = rows.shape[1]
    how = {"clip_norm": clip, "noise_multiplier": noise, "grid": step_of(grid, clip)}
    plan = discrete_plan(size, **how)
    assert math.frexp(plan.step)[0] == 0.5
    out = discrete_noisy_sum([torch.from_numpy(rows)], size, source=SecureSource(), **how)
    assert out.dtype == torch.float64
    assert all((Fraction(v) / Fraction(plan.step)).denominator == 1 for v in out.tolist())


def test_the_gaps_of_floating_point_give_nothing_away():
    # Mironov's attack: a sum of 1 leaves small noise without its lowest bits, a sum of 0 does not.
    def coarse(outputs):
        scaled = np.abs(outputs[np.abs(outputs) < 0.25]) * 2.0**54
        return (scaled == np.floor(scaled)).mean()

    n, source = 20_000, SecureSource()
    noise = source.gaussian(n) * 0.1
    assert coarse((1.0 + noise) - 1.0) == 1
    assert coarse(noise) < 0.9
    how = {"clip_norm": 1.0, "noise_multiplier": 0.1, "source": source}
    seen = []
    for value in (0.0, 1 / math.sqrt(n), 0.123456789 / math.sqrt(n)):
        out = discrete_noisy_sum([torch.full((1, n), value).double()], n, **how).numpy()
        step = discrete_plan(n, clip_norm=1.0, noise_multiplier=0.1).step
        seen.append(np.bincount((out / step).astype(np.int64) & 15, minlength=16))
        assert coarse(out) == 1
    assert stats.chi2_contingency(np.array(seen)).pvalue > CHANCE


@pytest.mark.parametrize(("claimed", "accepted"), [(1.0, True), (0.97, False), (1.03, False)])
@pytest.mark.parametrize("users", [0, 5])
def test_noise_has_the_claimed_std_whatever_the_cohort_is(source, users, claimed, accepted):
    size = 80_000
    how = {"clip_norm": 0.5, "noise_multiplier": 2.0}
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, size, generator=generator) for _ in range(users)]
    out = discrete_noisy_sum(parts, size, source=source, **how)
    clipped = sum((p[0].double() / p.norm() * 0.5 for p in parts), torch.zeros(size))
    std = claimed * 2.0 * 0.5
    tail = stats.chi2.cdf(float(((out - clipped) / std).square().sum()), size)
    assert (CHANCE < tail < 1 - CHANCE) == accepted
    if accepted:
        assert stats.kstest((out - clipped).numpy(), "norm", args=(0, std)).pvalue > CHANCE


@pytest.mark.parametrize("parts", [[], [torch.zeros(0, 1000)]])
def test_an_empty_cohort_still_releases_noise(parts):
    how = {"clip_norm": 0.5, "noise_multiplier": 2.0, "source": SecureSource()}
    out = discrete_noisy_sum(parts, 1000, **how)
    assert out.shape == (1000,)
    assert torch.unique(out).numel() > 800


def test_noise_is_drawn_once_whatever_the_cohort_is(silent):
    how = {"clip_norm": 0.5, "noise_multiplier": 2.0, "source": None}
    for users in (0, 1, 5):
        discrete_noisy_sum([torch.ones(1, 8)] * users, 8, **how)
    assert len(set(silent)) == 1
    assert len(silent) == 3


def test_two_releases_do_not_share_their_noise():
    how = {"clip_norm": 1.0, "noise_multiplier": 4.0, "source": SecureSource()}
    one, other = (discrete_noisy_sum([], 200, **how) for _ in range(2))
    assert np.intersect1d(one, other).size < 20
    assert not torch.equal(one, other)


def test_a_user_with_a_nan_is_as_if_absent(silent):
    grads = torch.tensor([[0.1, 0.2], [torch.nan, 0.1], [torch.inf, -torch.inf], [0.2, 0.1]])
    how = {"clip_norm": 0.5, "noise_multiplier": 2.0, "source": None}
    found = discrete_noisy_sum([grads], 2, **how)
    assert torch.equal(found, discrete_noisy_sum([grads[[0, 3]]], 2, **how))
    torch.testing.assert_close(found, torch.tensor([0.3, 0.3]).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [30, 40_000])
def test_grouping_and_order_of_users_change_no_bit(silent, size):
    grads = torch.randn(23, size, generator=torch.Generator().manual_seed(1)) * 1e3
    how = {"clip_norm": 0.7, "noise_multiplier": 2.0, "source": None}
    whole = discrete_noisy_sum([grads], size, **how)
    turned = grads.flip(0)
    assert torch.equal(whole, discrete_noisy_sum(turned.split(7), size, **how))
    assert torch.equal(whole, discrete_noisy_sum(turned.split(1), size, **how))


def test_many_rows_are_rounded_a_chunk_at_a_time(silent, monkeypatch):
    grads = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    how = {"clip_norm": 0.7, "noise_multiplier": 2.0, "source": None}
    whole = discrete_noisy_sum([grads], 30, **how)
    monkeypatch.setattr(discrete, "_CHUNK", 50)
    assert torch.equal(whole, discrete_noisy_sum([grads], 30, **how))


@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (8,), (1, 1, 8)])
def test_a_part_that_would_be_spread_over_other_numbers_is_refused(shape):
    how = {"clip_norm": 0.7, "noise_multiplier": 2.0, "source": SecureSource()}
    with pytest.raises(PrivacyError, match="shape"):
        discrete_noisy_sum([torch.ones(shape)], 8, **how)


@given(
    st.integers(1, 10**7),
    st.floats(1e-6, 1e6),
    st.floats(0.05, 500.0),
)
def test_the_accounted_noise_is_never_below_the_nominal_nor_the_real_one_far_above(size, c, noise):
    how = {"clip_norm": c, "noise_multiplier": noise}
    plan = discrete_plan(size, **how)
    accounted = accounted_noise_multiplier(size, **how)
    assert noise <= accounted <= noise * 1.002
    exact = (plan.std_steps**2 - 4) * Fraction(plan.step) ** 2
    assert Fraction(accounted) ** 2 * Fraction(c) ** 2 <= exact
    assert noise * c < plan.noise_std <= noise * c * 1.002
    assert c * (1 - 1 / 4096 - 1e-9) <= plan.inner_clip < c
    assert Fraction(plan.inner_clip) + Fraction(plan.step) * Fraction(math.sqrt(size)) / 2 <= (
        Fraction(c) * (1 + Fraction(1, 2**50))
    )


def test_a_coarse_grid_costs_clip_and_noise_and_never_privacy():
    how = {"clip_norm": 1.0, "noise_multiplier": 0.8, "grid": 0.25}
    plan = discrete_plan(4, **how)
    assert plan.inner_clip == 0.75
    # 0.8 × 4 steps is 3.2: S² must reach 3.2² + 4 = 14.24, so S is 4.
    assert plan.std_steps == 4
    assert accounted_noise_multiplier(4, **how) == pytest.approx(math.sqrt(12) / 4)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"size": 0}, "size"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"noise_multiplier": 1e20}, "too large"),
        ({"noise_multiplier": 1e-12}, "finer|coarser"),
        ({"grid": 0.0}, "grid"),
        ({"grid": -0.5}, "grid"),
        ({"grid": math.nan}, "grid"),
        ({"grid": math.inf}, "grid"),
        ({"grid": 0.01}, "power of two"),
        ({"grid": 1.0}, "more than half"),
        ({"grid": 2.0**-40}, "coarser"),
        ({"grid": 5e-324}, "coarser"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(wrong, match):
    good = {"size": 4, "clip_norm": 1.0, "noise_multiplier": 1.0, "grid": None}
    asked = good | wrong
    with pytest.raises(ConfigError, match=match):
        discrete_plan(asked.pop("size"), **asked)
