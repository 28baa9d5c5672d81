import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.randomness import SecureSource, SeededSource
from privacy.sampling import cap_examples, poisson_users

CHANCE = 1e-6


class Fixed:
    """A source whose next uniform draws are given."""

    is_private = False

    def __init__(self, draws):
        self.draws = np.array(draws)

    def uniform(self, count):
        assert count == len(self.draws)
        return self.draws

    def gaussian(self, count):
        raise AssertionError("sampling needs no Gaussian")


def samples(users, rate, times, seed=0):
    source = SeededSource(seed)
    taken = np.zeros((times, users), bool)
    for row in taken:
        row[poisson_users(users, rate, source)] = True
    return taken


@pytest.mark.parametrize(
    ("claimed_rate", "accepted"), [(0.3, True), (0.28, False), (0.32, False), (0.7, False)]
)
def test_each_user_takes_part_with_the_claimed_rate_and_no_other(claimed_rate, accepted):
    counts = samples(20, 0.3, 20_000).sum(axis=0)
    # Over every user apart: none may be favoured.
    worst = min(stats.binomtest(int(c), 20_000, claimed_rate).pvalue for c in counts)
    assert (worst > CHANCE) == accepted


def test_the_size_varies_as_of_independent_users():
    sizes = samples(50, 0.2, 20_000).sum(axis=1)
    expected = 20_000 * stats.binom.pmf(np.arange(51), 50, 0.2)
    common = expected > 20
    observed = np.bincount(sizes, minlength=51)
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(observed, expected).pvalue > CHANCE


def test_users_take_part_independently_of_each_other_and_of_the_step_before():
    taken = samples(6, 0.4, 30_000).astype(float)
    pairs = [(a, b) for a in range(6) for b in range(a)]
    assert min(stats.pearsonr(taken[:, a], taken[:, b]).pvalue for a, b in pairs) > CHANCE
    assert min(stats.pearsonr(taken[1:, a], taken[:-1, a]).pvalue for a in range(6)) > CHANCE


def test_the_sample_may_be_empty():
    empty = (~samples(3, 0.1, 5_000).any(axis=1)).sum()
    assert stats.binomtest(int(empty), 5_000, 0.9**3).pvalue > CHANCE
    assert poisson_users(0, 0.5, SecureSource()).size == 0


def test_rate_one_takes_everyone():
    assert poisson_users(1000, 1.0, SecureSource()).tolist() == list(range(1000))


def test_a_user_is_taken_when_its_own_draw_lies_below_the_rate():
    below = np.nextafter(0.25, 0)
    assert poisson_users(4, 0.25, Fixed([0.25, below, 0.0, 0.9])).tolist() == [1, 2]


def test_one_user_more_changes_no_others_chance():
    # The same draws: the users before the new one are taken or not as they were.
    draws = SeededSource(4).uniform(101)
    before = poisson_users(100, 0.3, Fixed(draws[:100]))
    after = poisson_users(101, 0.3, Fixed(draws))
    assert np.array_equal(before, after[after < 100])


@given(st.integers(0, 30), st.integers(1, 20))
def test_a_cap_keeps_the_limit_and_repeats_nothing(count, limit):
    rows = np.arange(100, 100 + count)
    kept = cap_examples(rows, limit, SeededSource(count))
    assert len(kept) == min(count, limit)
    assert len(set(kept.tolist())) == len(kept)
    assert set(kept.tolist()) <= set(rows.tolist())


def test_rows_within_the_cap_stay_as_they_are():
    rows = np.array([7, 3, 5])
    assert np.array_equal(cap_examples(rows, 3, SeededSource(0)), rows)


def test_a_cap_favours_no_row():
    source = SeededSource(0)
    kept = np.concatenate([cap_examples(np.arange(10), 3, source) for _ in range(20_000)])
    assert stats.chisquare(np.bincount(kept, minlength=10)).pvalue > CHANCE
