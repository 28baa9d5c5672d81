"""Centroids: one user moves them by no more than is charged, and the noise is what is charged."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import privacy.centroids
from privacy.accounting import GaussianEvent, epsilon_spent, release_epsilon
from privacy.centroids import CentroidPlan, noised_centroids, read_centroids
from privacy.discrete import _rounded, discrete_plan
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import ConfigError, DataError

CHANCE = 1e-6
PLAN = CentroidPlan(noise_multiplier=4.0, clusters=3, axes=2)
INITIAL = np.array([[0.0, 0.5], [0.5, -0.5], [-0.5, -0.5]])

NUMBERS = st.one_of(
    st.floats(-3, 3), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1e308])
)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 9)), max_size=40)


def sums_of(points, users, plan=PLAN, initial=INITIAL):
    """The integers that noise is added to, and their steps: exactly what the release rests on."""
    grid = discrete_plan(plan.size, clip_norm=1.0, noise_multiplier=plan.noise_multiplier)
    points = privacy.centroids._clipped(privacy.centroids._one_each(points, users))
    total = torch.zeros(plan.size, dtype=torch.int64)
    for part in privacy.centroids._user_vectors(points, initial, plan):
        total += _rounded(part, grid).sum(0)
    return total, grid


def arrays(drawn):
    points = np.array([d[:2] for d in drawn], dtype=np.float64).reshape(-1, 2)
    return points, np.array([d[2] for d in drawn], dtype=np.int64)


@given(POINTS, st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5), st.data())
def test_one_user_moves_the_sums_by_no_more_than_the_sensitivity_exactly(drawn, own, data):
    """Neighbouring tables: all rows of one user more, wherever they stand among the others."""
    share = data.draw(st.sampled_from([0.01, 0.25, 0.9]))
    plan = CentroidPlan(noise_multiplier=4.0, clusters=3, axes=2, count_share=share)
    more = [*drawn, *((x, y, 77) for x, y in own)]
    more = data.draw(st.permutations(more))
    without, grid = sums_of(*arrays([d for d in more if d[2] != 77]), plan)
    with_user, _ = sums_of(*arrays(more), plan)
    moved = (with_user - without).tolist()
    # Whole numbers, compared with the bound that the accountant is told: no rounding anywhere.
    assert sum(m * m for m in moved) <= grid.most_squared
    assert grid.most_squared * grid.step**2 <= 1.0
    # A user shows in one cluster at most.
    blocks = np.array(moved).reshape(3, 3)
    assert (np.abs(blocks).sum(1) > 0).sum() <= 1


def test_the_attack_that_a_missing_clip_would_allow_is_seen(monkeypatch):
    """The test above can fail: a user far away, several rows of one user taken as several users."""
    far = np.array([[1e6, 0.0]])
    moved, grid = sums_of(far, np.array([0]))
    assert (moved * moved).sum() <= grid.most_squared
    assert float(moved.double().norm()) * grid.step > 0.99
    rows = np.repeat([[1.0, 0.0]], 5, axis=0)
    once, _ = sums_of(rows, np.zeros(5, np.int64))
    often, _ = sums_of(rows, np.arange(5))
    assert (often == 5 * once).all()
    assert (often * often).sum() > grid.most_squared


def test_without_noise_it_is_lloyds_step_worked_out_by_hand():
    points = np.array([[0.0, 0.4], [0.2, 0.6], [0.6, -0.4], [3.0, -4.0]])
    users = np.array([4, 4, 5, 6])
    total, grid = sums_of(points, users)
    blocks = total.double().numpy().reshape(3, 3) * grid.step
    point, count = np.sqrt(0.75), np.sqrt(0.25)
    expected = [
        # Both rows of user 4 are one point, their mean.
        [point * 0.1, point * 0.5, count],
        # (3, -4) is clipped to (0.6, -0.8).
        [point * 1.2, point * -1.2, 2 * count],
        [0, 0, 0],
    ]
    np.testing.assert_allclose(blocks, expected, atol=2e-3)
    centroids, counts = read_centroids(torch.from_numpy(blocks).reshape(-1), quiet(), INITIAL)
    np.testing.assert_allclose(counts, [1, 2, 0], atol=1e-2)
    np.testing.assert_allclose(centroids, [[0.1, 0.5], [0.6, -0.6], [-0.5, -0.5]], atol=1e-2)


def quiet(**changes):
    return CentroidPlan(**({"noise_multiplier": 0.01, "clusters": 3, "axes": 2} | changes))


@pytest.mark.parametrize(("claimed", "accepted"), [(1.0, True), (0.9, False), (1.1, False)])
def test_the_noise_is_of_the_charged_size_and_no_other(claimed, accepted):
    plan = CentroidPlan(noise_multiplier=4.0, clusters=500, axes=3)
    initial = np.random.default_rng(0).random((500, 3))
    points, users = np.random.default_rng(1).random((60, 3)), np.arange(60)
    out = noised_centroids(points, users, initial, plan, SecureSource()).double()
    total, grid = sums_of(points, users, plan, initial)
    noise = (out - total.double() * grid.step).numpy() / (claimed * plan.event.noise_multiplier)
    tail = stats.chi2.cdf((noise**2).sum(), noise.size)
    assert (CHANCE < tail < 1 - CHANCE) == accepted


def test_no_user_at_all_is_noise_alone_of_the_same_shape():
    out = noised_centroids(np.empty((0, 2)), np.empty(0, np.int64), INITIAL, PLAN, SecureSource())
    assert out.shape == (9,)
    assert out.dtype == torch.float32
    assert out.abs().min() > 0


def test_every_step_is_charged_and_has_noise_of_its_own():
    plan = quiet(steps=3, noise_multiplier=2.0)
    assert plan.event == GaussianEvent(sampling_rate=1.0, noise_multiplier=2.0, steps=3)
    assert release_epsilon(plan.event, 1e-5) == epsilon_spent([plan.event], delta=1e-5)
    drawn = []

    class Counting(SeededSource):
        def integers(self, count, below):
            drawn.append(count)
            return super().integers(count, below)

    one, three = [], []
    for steps, into in ((1, one), (3, three)):
        drawn.clear()
        noised_centroids(
            np.empty((0, 2)), np.empty(0, np.int64), INITIAL, quiet(steps=steps), Counting(0)
        )
        into.extend(drawn)
    assert sum(three) > 2 * sum(one)


def test_more_steps_find_planted_clusters_through_the_noise():
    generator = np.random.default_rng(5)
    true = np.array([[0.0, 0.8], [0.7, -0.2], [-0.7, -0.2]])
    points = true[np.arange(3000) % 3] + 0.05 * generator.normal(size=(3000, 2))
    plan = CentroidPlan(noise_multiplier=5.0, clusters=3, axes=2, steps=4)
    out = noised_centroids(points, np.arange(3000), INITIAL, plan, SeededSource(3))
    centroids, counts = read_centroids(out, plan, INITIAL)
    np.testing.assert_allclose(centroids, true, atol=0.05)
    np.testing.assert_allclose(counts, 1000, atol=60)


def test_a_count_within_its_noise_leaves_the_centroid_where_it_was():
    noisy = torch.tensor([0.4, 0.4, 20.0] * 3)
    centroids, _ = read_centroids(noisy, PLAN, INITIAL)
    assert (np.linalg.norm(centroids - INITIAL, axis=1) > 0).all()
    noisy = torch.tensor([50.0, 50.0, 11.9] * 3)
    centroids, _ = read_centroids(noisy, PLAN, INITIAL)
    assert (centroids == INITIAL).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier is nan"),
        ({"clusters": 0}, "clusters is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"count_share": 1.0}, "count_share is 1.0"),
        ({"clusters": 10**6}, "131072 at most"),
    ],
)
def test_a_plan_out_of_range_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        quiet(**change)


@pytest.mark.parametrize(
    ("points", "users", "initial"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.int64), INITIAL),
        (np.zeros((2, 2)), np.zeros(3, np.int64), INITIAL),
        (np.zeros((2, 2)), np.zeros(2, np.int64), INITIAL[:2]),
        (np.zeros((2, 2)), np.zeros(2, np.int64), INITIAL * np.nan),
    ],
)
def test_wrong_shapes_are_refused(points, users, initial):
    with pytest.raises(DataError, match="centroids"):
        noised_centroids(points, users, initial, PLAN, SeededSource(0))
