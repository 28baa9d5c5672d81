import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from privacy.dp_sgd import DPConfig, clip_user_gradients, noisy_mean
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import ConfigError, PrivacyError

CHANCE = 1e-6
SETTINGS = DPConfig(clip_norm=0.5, noise_multiplier=2.0, sampling_rate=0.25)


class Silent:
    """A source without noise, which counts what it was asked for."""

    is_private = False

    def __init__(self):
        self.asked = []

    def uniform(self, count):
        raise AssertionError("the noise is Gaussian")

    def gaussian(self, count):
        self.asked.append(count)
        return np.zeros(count)


def rows_of(dtype):
    width = np.dtype(dtype).itemsize * 8
    values = st.one_of(
        st.floats(width=width),
        st.sampled_from([np.nan, np.inf, -np.inf, float(np.finfo(dtype).max), 1e-45, 0.0]),
    )
    return npst.arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=values)


ROWS = st.sampled_from([np.float32, np.float64]).flatmap(rows_of)
CLIPS = st.floats(1e-6, 1e6)


@given(ROWS, CLIPS)
def test_no_user_is_longer_than_the_clip_norm_whatever_it_sends(rows, clip):
    clipped = clip_user_gradients(torch.from_numpy(rows), clip)
    assert clipped.dtype == torch.float64
    # hypot rounds correctly: not a hair above.
    assert all(math.hypot(*row) <= clip for row in clipped.tolist())


@given(ROWS, CLIPS)
def test_clipping_keeps_the_direction_and_short_rows(rows, clip):
    clipped = clip_user_gradients(torch.from_numpy(rows), clip).numpy()
    for before, after in zip(rows.astype(np.float64), clipped, strict=True):
        norm = math.hypot(*before)
        if not np.isfinite(before).all():
            assert not after.any()
        elif norm <= clip:
            np.testing.assert_allclose(after, before, rtol=1e-9)
        elif norm < 1e150:
            np.testing.assert_allclose(after, before / norm * clip, rtol=1e-9, atol=1e-300)


@given(ROWS, st.integers(0, 3), CLIPS, st.integers(1, 3))
def test_one_user_moves_the_sum_by_at_most_the_clip_norm(rows, user, clip, parts):
    grads = torch.from_numpy(rows)
    user %= len(grads)
    settings = DPConfig(clip_norm=clip, noise_multiplier=1.0, sampling_rate=1.0)
    size = grads.shape[1]

    def total(users):
        # However the users are grouped.
        return noisy_mean(users.split(parts), size, settings, 1, Silent()).double()

    with_user = total(grads)
    without = total(torch.cat([grads[:user], grads[user + 1 :]]))
    assert torch.isfinite(with_user).all()
    rounding = float(torch.finfo(torch.float32).eps * (with_user.norm() + without.norm()))
    assert (with_user - without).norm() <= clip + rounding


def test_a_user_is_clipped_once_and_not_its_neighbours_share():
    grads = torch.tensor([[30.0, 40.0], [0.03, 0.04]])
    clipped = clip_user_gradients(grads, 0.5)
    torch.testing.assert_close(clipped, torch.tensor([[0.3, 0.4], [0.03, 0.04]]).double())


@pytest.mark.parametrize("parts", [[], [torch.zeros(0, 1000)]])
def test_an_empty_cohort_still_releases_noise(parts):
    release = noisy_mean(parts, 1000, SETTINGS, 100, SecureSource())
    assert release.shape == (1000,)
    assert release.dtype == torch.float32
    assert torch.unique(release).numel() > 990
    silent = Silent()
    assert not noisy_mean(parts, 1000, SETTINGS, 100, silent).any()
    assert silent.asked == [1000]


@pytest.mark.parametrize(
    ("claimed", "accepted"), [(1.0, True), (0.97, False), (1.03, False), (0.5, False), (2, False)]
)
@pytest.mark.parametrize("users", [0, 1, 7])
@pytest.mark.parametrize("source", [SecureSource(), SeededSource(0)], ids=["secure", "seeded"])
def test_noise_has_the_claimed_std_and_no_other(claimed, accepted, users, source):
    size = 100_000
    grads = torch.randn(users, size, generator=torch.Generator().manual_seed(0))
    parts = [g[None] for g in grads]
    release = noisy_mean(parts, size, SETTINGS, 30, source)
    noise = release - noisy_mean(parts, size, SETTINGS, 30, Silent())
    # σ × clip over rate × nominal users, whatever the cohort is.
    std = claimed * 2.0 * 0.5 / (0.25 * 30)
    tail = stats.chi2.cdf(float((noise.double() / std).square().sum()), size)
    assert (CHANCE < tail < 1 - CHANCE) == accepted
    if accepted:
        assert stats.kstest(noise.numpy() / std, "norm").pvalue > CHANCE


def test_noise_is_drawn_once_a_step_whatever_the_cohort_is():
    for users in (0, 1, 5):
        silent = Silent()
        noisy_mean([torch.ones(1, 8)] * users, 8, SETTINGS, 10, silent)
        assert silent.asked == [8]


def test_two_steps_do_not_share_their_noise():
    source = SecureSource()
    one, other = (noisy_mean([], 100, SETTINGS, 10, source) for _ in range(2))
    assert not np.intersect1d(one.numpy(), other.numpy()).size


def test_the_divisor_is_public():
    user = torch.tensor([[0.3, -0.4, 0.0]])
    alone = noisy_mean([user], 3, SETTINGS, 20, Silent())
    torch.testing.assert_close(alone, user[0] / (0.25 * 20))
    # Users who add nothing change nothing: the cohort's size does not enter.
    crowd = torch.cat([user, torch.zeros(50, 3)])
    assert torch.equal(noisy_mean([crowd], 3, SETTINGS, 20, Silent()), alone)


def test_a_user_with_a_nan_is_as_if_absent():
    grads = torch.tensor([[0.1, 0.2], [torch.nan, 0.1], [torch.inf, -torch.inf], [0.2, 0.1]])
    release = noisy_mean([grads], 2, SETTINGS, 20, Silent())
    assert torch.equal(release, noisy_mean([grads[[0, 3]]], 2, SETTINGS, 20, Silent()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_norm": 0.0},
        {"clip_norm": -1.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"sampling_rate": math.nan},
        {"examples_per_user": 0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    good = {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.1}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DPConfig(**(good | wrong))


@pytest.mark.parametrize("shape", [(2, 1), (2, 4), (3,), (1, 2, 3), (2, 0)])
def test_gradients_of_another_width_are_refused(shape):
    settings = DPConfig(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5)
    with pytest.raises(PrivacyError, match="not"):
        noisy_mean([torch.ones(shape)], 3, settings, 10, SeededSource(0))
