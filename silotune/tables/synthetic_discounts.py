"""Personal discounts of synthetic people, logged with their propensities, and the planted truth.

The tables' promotions are the same for everyone, so that no table says what another depth would
have done to one customer. Here each offer is one customer's own: its depth is drawn from chances
that depend on what the merchant sees of the customer. Whoever buys on deal, and buys the category
anyway, is offered deeper discounts: comparing depths without regard to who got them is biased.
Who reacts to a depth is planted: `People.price_sensitivity_U`, which also drives the tables.

Shape suffixes: U people, C categories, R offers, D depths, F features.
"""

from dataclasses import dataclass

import numpy as np

from silotune.errors import ConfigError
from silotune.tables.synthetic_words import CATEGORIES
from silotune.tables.synthetic_world import (
    Floats,
    Ints,
    People,
    SyntheticConfig,
    generator,
    make_catalogue,
    people_of,
)

__all__ = ["DEPTHS", "FEATURES", "PersonalOffers", "personal_offers"]

DEPTHS = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
"""Depths that are offered; the first is no discount."""
FEATURES = ("deal_share", "category_visits", "visits")
"""What the merchant has counted of the customer before the offer, each in [0, 1]."""

_UNIT_COST = 0.5
"""Of the list price."""
_LEVEL = -2.0
_TASTE = 0.8
_SLOPE = 7.0
"""What a depth of 1 adds to the logit of someone of mean sensitivity."""
_EXPLORED = 0.4
"""Share of offers whose depth is drawn evenly, whoever the customer is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PersonalOffers:
    """Offers, one a row, with what only the generator knows in the last field."""

    user_R: Ints
    feature_RF: Floats
    price_R: Floats
    unit_cost_R: Floats
    propensity_RD: Floats
    """Chance of each depth to be offered; rows add up to 1, none is 0."""
    shown_R: Ints
    """Index of the depth that was offered."""
    bought_R: Floats
    """1 or 0."""
    true_chance_RD: Floats
    """Chance to buy at each depth: the truth that estimates are held against, for tests alone."""


def personal_offers(
    settings: SyntheticConfig, *, merchant: int = 0, offers_per_user: int = 4
) -> PersonalOffers:
    """Make offers to all customers of a merchant; a pure function of its arguments.

    Raises:
        ConfigError: no such merchant, or no offer.
    """
    if not 0 <= merchant < settings.merchants:
        raise ConfigError(f"merchant is {merchant}; there are {settings.merchants}, from 0.")
    if offers_per_user < 1:
        raise ConfigError(f"offers_per_user is {offers_per_user}; it must be at least 1.")
    parts, first = [], 0
    blocks = people_of(settings, make_catalogue(settings), merchant)
    for number, people in enumerate(blocks):
        rng = generator(settings, "personal offers", merchant, number)
        parts.append(_offers(settings, people, offers_per_user, first, rng))
        first += len(people.number_U)
    return PersonalOffers(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _NAMES}
    )


_NAMES = tuple(PersonalOffers.__dataclass_fields__)


def _offers(
    settings: SyntheticConfig, people: People, each: int, first: int, rng: np.random.Generator
) -> PersonalOffers:
    users = len(people.number_U)
    person_R = np.repeat(np.arange(users), each)
    category_R = rng.integers(settings.categories, size=users * each)
    taste_R = people.taste_UC[person_R, category_R]
    feature_RF = _counted(settings, people, person_R, taste_R, rng)
    propensity_RD = _logging(feature_RF)
    # Inverse of the distribution function, one draw a row.
    steps_RD = np.cumsum(propensity_RD, axis=1)
    draw_R = rng.random(len(person_R)) * steps_RD[:, -1]
    shown_R = (steps_RD <= draw_R[:, None]).sum(axis=1)
    slope_R = _SLOPE * people.price_sensitivity_U[person_R]
    logit_RD = _LEVEL + _TASTE * taste_R[:, None] + slope_R[:, None] * DEPTHS
    true_chance_RD = 1 / (1 + np.exp(-logit_RD))
    chance_R = true_chance_RD[np.arange(len(shown_R)), shown_R]
    typical_C = np.array([c.price for c in CATEGORIES[: settings.categories]])
    price_R = np.round(typical_C[category_R] * rng.lognormal(0, 0.2, len(person_R)), 2)
    return PersonalOffers(
        user_R=first + person_R,
        feature_RF=feature_RF,
        price_R=price_R,
        unit_cost_R=_UNIT_COST * price_R,
        propensity_RD=propensity_RD,
        shown_R=shown_R,
        bought_R=(rng.random(len(chance_R)) < chance_R).astype(np.float64),
        true_chance_RD=true_chance_RD,
    )


def _counted(
    settings: SyntheticConfig,
    people: People,
    person_R: Ints,
    taste_R: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Return `FEATURES`: counts of earlier purchases, as uncertain as counts are."""
    purchases_U = 1 + rng.poisson(settings.visits_per_user * people.activity_U)
    drawn_to_deals_U = 1 / (1 + np.exp(-2.5 * (people.price_sensitivity_U - 1)))
    deals_U = rng.binomial(purchases_U, drawn_to_deals_U)
    category_R = rng.poisson(3 * np.exp(taste_R))
    columns = (
        ((deals_U + 1) / (purchases_U + 2))[person_R],
        np.minimum(1.0, np.log1p(category_R) / 4),
        np.minimum(1.0, np.log1p(purchases_U) / 6)[person_R],
    )
    return np.stack(columns, axis=1)


def _logging(feature_RF: Floats) -> Floats:
    """Return the chances with which the merchant drew the depths that it offered."""
    leaning_R = 3 * (feature_RF[:, 0] - 0.5) + 2 * (feature_RF[:, 1] - 0.3)
    score_RD = 5 * leaning_R[:, None] * (DEPTHS - DEPTHS.mean())
    weight_RD = np.exp(score_RD)
    chosen_RD = weight_RD / weight_RD.sum(axis=1, keepdims=True)
    propensity_RD: Floats = _EXPLORED / len(DEPTHS) + (1 - _EXPLORED) * chosen_RD
    return propensity_RD
