"""From logged personal offers to an allocation that earns more: held against the planted truth."""

import numpy as np
import pytest

from silotune.errors import ConfigError
from silotune.tables.synthetic_discounts import DEPTHS, personal_offers
from silotune.tables.synthetic_world import SyntheticConfig
from simulations.discounts import ResponseCurves, compare

WORLD = SyntheticConfig(merchants=1, users_per_merchant=8000, seed=11)


@pytest.fixture(scope="module")
def offers():
    return personal_offers(WORLD)


def test_offers_are_drawn_as_their_propensities_say_and_bought_as_the_truth_says(offers):
    rows, each = len(offers.user_R), np.arange(len(offers.user_R))
    assert rows == 4 * 8000
    assert offers.propensity_RD.sum(axis=1) == pytest.approx(1)
    assert offers.propensity_RD.min() > 0.05
    # Of those who were as likely to be offered a depth, that share was.
    for depth in range(len(DEPTHS)):
        chance = offers.propensity_RD[:, depth]
        for part in np.array_split(np.argsort(chance), 5):
            off = (offers.shown_R[part] == depth).mean() - chance[part].mean()
            assert abs(off) < 4 * np.sqrt(chance[part].mean() / len(part))
    true = offers.true_chance_RD[each, offers.shown_R]
    assert abs(offers.bought_R.mean() - true.mean()) < 4 * 0.5 / np.sqrt(rows)
    assert (np.diff(offers.true_chance_RD, axis=1) > 0).all()
    # Depths went to those who buy anyway.
    assert np.corrcoef(offers.shown_R, offers.true_chance_RD[:, 0])[0, 1] > 0.1


def test_the_best_depth_differs_between_customers(offers):
    margin = 0.5 - DEPTHS
    best = (offers.true_chance_RD * margin).argmax(axis=1)
    assert (np.bincount(best, minlength=5) > 0.05 * len(best)).sum() >= 3


def test_offers_are_a_function_of_the_seed_alone(offers):
    again = personal_offers(WORLD)
    np.testing.assert_array_equal(offers.bought_R, again.bought_R)
    other = personal_offers(SyntheticConfig(merchants=1, users_per_merchant=8000, seed=12))
    assert not np.array_equal(offers.shown_R, other.shown_R)
    with pytest.raises(ConfigError, match="merchant is 1"):
        personal_offers(WORLD, merchant=1)
    with pytest.raises(ConfigError, match="offers_per_user"):
        personal_offers(WORLD, offers_per_user=0)


def test_curves_that_are_fitted_come_near_the_truth_and_never_fall(offers):
    curves = ResponseCurves.fit(offers.feature_RF, DEPTHS[offers.shown_R], offers.bought_R)
    found = curves.chances(offers.feature_RF)
    assert (np.diff(found, axis=1) > 0).all()
    # As good as three counts may tell, beside one curve for everyone.
    error = np.abs(found - offers.true_chance_RD).mean()
    assert error < 0.75 * np.abs(offers.true_chance_RD.mean(axis=0) - offers.true_chance_RD).mean()
    # Right on the average over everyone, at each depth, though depths were not offered alike.
    assert found.mean(axis=0) == pytest.approx(offers.true_chance_RD.mean(axis=0), abs=0.03)


@pytest.mark.parametrize("known", [True, False], ids=["known", "fitted"])
def test_personal_depths_beat_one_flat_depth_and_the_estimate_covers_the_truth(known):
    flat, segments = compare(WORLD, known=known)
    assert flat.against == "one flat depth"
    assert flat.estimate.low > 0
    assert flat.truth > 0
    assert flat.covered
    assert segments.covered
    # Segments see one of the counts: they take a part of the gain, not all of it.
    assert 0 < segments.truth < flat.truth
