"""Ratings that synthetic people give to what they bought, from tastes that are planted.

What a good is worth to someone is the quality of its brand, which is the same for everyone and
can be read off the title; their taste for the category and for a brand of their own in it, which
their own past tells; how strict they are; and chance.

Shape suffixes: R purchases, U people, B brands.
"""

import numpy as np

from silotune.tables.synthetic_events import PURCHASE, RATE, REDEEM, Events
from silotune.tables.synthetic_words import BRANDS
from silotune.tables.synthetic_world import Catalogue, Floats, People, SyntheticConfig, generator

__all__ = ["brand_quality", "rate", "worth"]

_DAY = 86400
_NOISE = 0.6
"""Of a rating, in stars."""
_MIDDLE = 3.4


def brand_quality(settings: SyntheticConfig) -> Floats:
    """Return what each brand is worth to everyone, (B,), in stars around 0."""
    quality_B: Floats = generator(settings, "brand quality").normal(0, 0.7, len(BRANDS))
    return quality_B


def worth(
    settings: SyntheticConfig, catalogue: Catalogue, people: People, events: Events
) -> Floats:
    """Return what the item of each event is worth to the person, (R,), in stars, unbounded."""
    category_R, brand_R = catalogue.category_I[events.item_R], catalogue.brand_I[events.item_R]
    loved_R = people.favourite_UC[events.user_R, category_R] == brand_R
    # Who looks at the price is hard to please.
    strict_R = people.price_sensitivity_U[events.user_R] - 1
    found_R: Floats = (
        _MIDDLE
        + brand_quality(settings)[brand_R]
        + 0.3 * people.taste_UC[events.user_R, category_R]
        + 0.3 * people.loyalty_U[events.user_R] * loved_R
        - 0.5 * strict_R
    )
    return found_R


def rate(
    settings: SyntheticConfig,
    catalogue: Catalogue,
    people: People,
    events: Events,
    rng: np.random.Generator,
) -> tuple[Events, Floats]:
    """Return ratings of some purchases, one to seven days after, and their stars, 1 to 5."""
    bought = np.flatnonzero((events.kind_R == PURCHASE) | (events.kind_R == REDEEM))
    bought = bought[rng.random(len(bought)) < settings.rated]
    later = events.second_R[bought] + rng.integers(_DAY, 7 * _DAY, size=len(bought))
    kept = later < 7 * _DAY * settings.weeks
    bought, later = bought[kept], later[kept]
    empty = np.full(len(bought), np.nan)
    ratings = Events(
        user_R=events.user_R[bought],
        item_R=events.item_R[bought],
        kind_R=np.full(len(bought), RATE),
        second_R=later,
        visit_R=events.visit_R[bought],
        quantity_R=empty,
        price_R=empty,
        discount_R=empty,
    )
    felt_R = worth(settings, catalogue, people, ratings) + rng.normal(0, _NOISE, len(bought))
    return ratings, np.clip(np.round(felt_R), 1, 5)
