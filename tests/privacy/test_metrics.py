import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy import discrete, metrics
from privacy.accounting import GaussianEvent
from privacy.metrics import MetricsPlan, noised_metrics
from privacy.randomness import SecureSource, SeededSource
from silotune.errors import ConfigError, DataError

CHANCE = 1e-6


class Silence:
    """Stands for the noise: nothing is added, and what was asked for is kept."""

    def __init__(self):
        self.asked = []

    def __call__(self, count, std, source):
        self.asked.append((count, std))
        return np.zeros(count, np.int64)


@pytest.fixture
def silent(monkeypatch):
    silence = Silence()
    monkeypatch.setattr(discrete, "discrete_gaussian", silence)
    return silence


def release(score, label, user, plan, source=None):
    columns = [np.asarray(x, np.float64).reshape(-1, plan.outputs) for x in (score, label)]
    return noised_metrics(*columns, np.asarray(user, np.int64), plan, source or SeededSource(0))


PLANS = st.builds(
    MetricsPlan,
    noise_multiplier=st.just(2.0),
    scores=st.just(True),
    errors=st.booleans(),
    outputs=st.integers(1, 3),
    bins=st.integers(1, 7),
    examples_per_user=st.integers(4, 30),
    error_bound=st.sampled_from([1e-300, 0.5, 1.0, 1e300]),
    negative_weight=st.sampled_from([1.0, 0.1, 1e-6]),
) | st.builds(
    MetricsPlan,
    noise_multiplier=st.just(2.0),
    scores=st.just(False),
    errors=st.just(True),
    error_bound=st.sampled_from([0.1, 3.0]),
)
ANY = st.one_of(
    st.floats(),
    st.floats(0, 1),
    st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324]),
)


@given(st.data(), PLANS, st.integers(0, 40))
def test_one_user_moves_the_release_by_at_most_the_sensitivity(data, plan, count):
    def rows(size):
        return data.draw(st.lists(ANY, min_size=size, max_size=size))

    crowd = [3, -7, 2**62, 3, 3, -7]
    score, label = rows(len(crowd) * plan.outputs), rows(len(crowd) * plan.outputs)
    # One that is repeated is the worst: all of its examples in one cell.
    times = 1 if data.draw(st.booleans()) else count
    own = [rows(plan.outputs * (count // max(times, 1))) * times for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discrete, "discrete_gaussian", Silence())
        without = release(score, label, crowd, plan)
        users = [99] * (len(own[0]) // plan.outputs) + crowd
        with_user = release(own[0] + score, own[1] + label, users, plan)
    assert with_user.dtype == without.dtype == torch.float32
    assert with_user.shape == without.shape == (plan.size,)
    pairs = zip(with_user.tolist(), without.tolist(), strict=True)
    # On this grid float32 is exact for so few users: no tolerance.
    assert sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs) <= 1


@given(st.data(), PLANS, st.integers(0, 9))
def test_every_number_carries_noise_and_shape_and_type_tell_nothing(data, plan, count):
    columns = [data.draw(st.lists(ANY, min_size=n, max_size=n)) for n in [count * plan.outputs] * 2]
    users = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count))
    one, other = (release(*columns, users, plan, SecureSource()) for _ in range(2))
    assert one.shape == (plan.size,)
    assert one.dtype == torch.float32
    assert torch.isfinite(one).all()
    # Two releases of the same data agree in a number with a chance of about 1 in 10,000.
    assert (one != other).sum() >= plan.size - 2


@pytest.mark.parametrize(
    ("claimed", "accepted"), [(1.0, True), (0.97, False), (1.03, False), (0.5, False), (2, False)]
)
@pytest.mark.parametrize("examples", [0, 300])
def test_noise_has_the_claimed_std_and_no_other(claimed, accepted, examples):
    plan = MetricsPlan(noise_multiplier=3.0, bins=50_000, examples_per_user=4)
    users = np.arange(examples) // 3
    score = np.linspace(0, 1, examples)
    out = release(score, score > 0.7, users, plan, SecureSource()).double().numpy()
    # Each of the 100 users has three cells of 1/√3 at most.
    assert plan.noise_std == pytest.approx(3.0, rel=1e-3)
    tail = stats.chi2.cdf(((out / (claimed * 3.0)) ** 2).sum(), out.size)
    assert (CHANCE < tail < 1 - CHANCE) == accepted


def test_the_cost_is_known_before_the_data_is_touched():
    plan = MetricsPlan(noise_multiplier=7.5, outputs=2)
    assert plan.event == GaussianEvent(sampling_rate=1.0, noise_multiplier=7.5, steps=1)
    assert plan.noise_std >= 7.5


def test_the_noise_drawn_is_what_the_cost_says_for_a_sensitivity_of_one(silent):
    plan = MetricsPlan(noise_multiplier=7.5, bins=9)
    for examples in (0, 1, 200):
        release([0.5] * examples, [1] * examples, range(examples), plan)
    assert len(silent.asked) == 3
    assert len(set(silent.asked)) == 1
    count, std = silent.asked[0]
    step = discrete.discrete_plan(plan.size, clip_norm=1.0, noise_multiplier=7.5).step
    assert count == plan.size
    assert std * step >= 7.5


def test_no_total_leaves_without_noise():
    # One example a user: every number, and every sum of numbers, must miss the true count.
    plan = MetricsPlan(noise_multiplier=1.0, errors=True)
    users = np.arange(100)
    missed = [
        abs(float(release([0.3] * 100, [1] * 100, users, plan, SecureSource())[c].sum()) - t)
        for _ in range(50)
        for c, t in ((slice(0, 40), 70.7), (slice(40, 42), 70.7), (slice(26, 27), 70.7))
    ]
    assert min(missed) < 2
    assert np.mean(missed) > 0.5


def test_scores_fall_into_their_bins_by_label(silent):
    plan = MetricsPlan(noise_multiplier=1.0, bins=4)
    score = [0.0, 0.2499, 0.25, 0.5, 0.999, 1.0, 1.5, -3.0, math.inf, -math.inf]
    label = [0, 1, 1, 0, 1, 0, 1, 0, 1, 1]
    out = release(score, label, range(10), plan)
    wanted = torch.tensor([[2.0, 0, 1, 1], [2, 1, 0, 3]])
    torch.testing.assert_close(out.reshape(2, 4), wanted, atol=2e-3, rtol=0)


def test_negatives_enter_with_their_weight_and_leave_the_norm_to_positives(silent):
    plan = MetricsPlan(noise_multiplier=1.0, bins=2, negative_weight=0.1)
    # Ten negatives and a positive of one user, then a negative alone.
    out = release([0.2] * 10 + [0.9, 0.7], [0] * 10 + [1, 0], [1] * 11 + [2], plan)
    whole = math.sqrt(0.5)
    torch.testing.assert_close(out, torch.tensor([whole, 0.1, 0, whole]), atol=2e-3, rtol=0)


def test_errors_are_bounded_and_come_with_what_is_left_to_the_bound(silent):
    plan = MetricsPlan(noise_multiplier=1.0, scores=False, errors=True, error_bound=10.0)
    out = release([3.0, 0.0, 500.0, math.inf], [1.0, 0.0, 0.0, 0.0], range(4), plan)
    # Shares 0.2, 0, 1, 1; the first user's (0.2, 0.8) is within the norm.
    torch.testing.assert_close(out, torch.tensor([2.2, 1.8]), atol=2e-3, rtol=0)


def test_outputs_and_blocks_stand_in_their_order(silent):
    plan = MetricsPlan(noise_multiplier=1.0, errors=True, outputs=2, bins=2)
    out = release([[0.1, 0.9]], [[1.0, 0.0]], [5], plan).reshape(2, 6)
    half = math.sqrt(1 / 4)
    near = half * math.hypot(0.9, 0.1) / max(math.hypot(0.9, 0.1), half)
    shares = [0.9 * near / math.hypot(0.9, 0.1), 0.1 * near / math.hypot(0.9, 0.1)]
    wanted = torch.tensor([[0, 0, half, 0, *shares], [0, half, 0, 0, *shares]])
    torch.testing.assert_close(out, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("missing", ["score", "label"])
def test_a_nan_is_left_out_of_its_output_only(silent, missing):
    plan = MetricsPlan(noise_multiplier=1.0, outputs=2, bins=2, errors=True)
    values = {"score": [[0.1, 0.9]], "label": [[1.0, 0.0]]}
    values[missing] = [[math.nan, values[missing][0][1]]]
    out = release(values["score"], values["label"], [5], plan).reshape(2, 6)
    assert not out[0].any()
    assert out[1].any()


def test_a_user_with_many_examples_counts_no_more_than_the_cap(silent):
    plan = MetricsPlan(noise_multiplier=1.0, bins=50, examples_per_user=4)
    for seed in range(20):
        score = (np.arange(50) + 0.5) / 50
        out = release(score, score * 0, [1] * 50, plan, SeededSource(seed))
        # Four cells of 1/2: norm 1.
        assert sorted(out[out > 0].tolist()) == pytest.approx([0.5] * 4, abs=2e-3)


def test_every_example_of_a_user_has_the_same_chance_to_count(silent):
    plan = MetricsPlan(noise_multiplier=1.0, bins=10, examples_per_user=3)
    score = np.tile((np.arange(10) + 0.5) / 10, 500)
    out = release(score, score * 0, np.repeat(np.arange(500), 10), plan)
    assert stats.chisquare(out[:10].numpy() * math.sqrt(3)).pvalue > CHANCE


def test_neither_order_nor_names_nor_groups_of_users_change_the_sums(silent, monkeypatch):
    plan = MetricsPlan(noise_multiplier=1.0, errors=True)
    generator = np.random.default_rng(0)
    score, label = generator.random(200), generator.random(200) > 0.5
    users = generator.integers(0, 60, 200)
    whole = release(score, label, users, plan)
    order = generator.permutation(200)
    assert torch.equal(whole, release(score[order], label[order], -users[order] * 10**9, plan))
    monkeypatch.setattr(metrics, "_GROUP", 300)
    assert torch.equal(whole, release(score, label, users, plan))


@pytest.mark.parametrize(
    ("score", "label", "user"),
    [((4, 1), (4, 2), (4,)), ((4, 2), (3, 2), (4,)), ((4, 2), (4, 2), (5,)), ((4,), (4,), (4,))],
)
def test_arrays_that_do_not_belong_together_are_refused(score, label, user):
    plan = MetricsPlan(noise_multiplier=1.0, outputs=2)
    with pytest.raises(DataError, match="examples, 2"):
        noised_metrics(np.zeros(score), np.zeros(label), np.zeros(user, int), plan, SecureSource())


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": -1.0},
        {"bins": 0},
        {"outputs": 0},
        {"examples_per_user": 0},
        {"error_bound": 0.0},
        {"error_bound": math.nan},
        {"error_bound": math.inf},
        {"negative_weight": 0.0},
        {"negative_weight": math.nan},
        {"negative_weight": 1.5},
        {"bins": 10**9},
        {"outputs": 10**9},
        {"scores": False},
    ],
)
def test_plans_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MetricsPlan(**({"noise_multiplier": 1.0} | wrong))
