"""What synthetic people do at a merchant: visits, needs, choices, and the events they leave.

A visit buys from a category with a probability that grows with the person's taste, the days since
the last purchase of it, and the pull of the week's promotions. Within a category the item is a
multinomial-logit choice over appeal, the loved brand, the price after discount, and promotion.
"""

# U users, C categories, I items of the catalogue, W weeks, V visits of one user, K items of the
# largest category, R rows (choices or events).
from dataclasses import dataclass, fields

import numpy as np

from silotune.tables.synthetic_choice import Rows, choose
from silotune.tables.synthetic_world import (
    Catalogue,
    Floats,
    Ints,
    Merchant,
    People,
    SyntheticConfig,
)

__all__ = ["KINDS", "Events", "simulate"]

KINDS = ("view", "click", "cart", "purchase", "redeem", "rate")
VIEW, CLICK, CART, PURCHASE, REDEEM, RATE = range(6)

BASKET = 4.0
"""Mean number of categories a visit would buy from if nothing were at home."""
_BROWSED = 1.5
_CHECKOUT_SECONDS = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Events of a block of people, one entry a row, in no order. Empty numbers are NaN."""

    user_R: Ints
    item_R: Ints
    kind_R: Ints
    second_R: Ints
    """Seconds since the start of the history."""
    visit_R: Ints
    """Number of the user's visit."""
    quantity_R: Floats
    price_R: Floats
    discount_R: Floats


def simulate(
    settings: SyntheticConfig,
    catalogue: Catalogue,
    merchant: Merchant,
    people: People,
    rng: np.random.Generator,
) -> Events:
    """Return what ``people`` do at ``merchant`` over all weeks."""
    days_UV, visits_U = _visits(settings, people, rng)
    liking_UC = _liking(merchant, people)
    bought = _needs(settings, catalogue, merchant, people, days_UV, visits_U, liking_UC, rng)
    browsed = _browsing(days_UV, visits_U, liking_UC, rng)
    bought_item = choose(settings, catalogue, merchant, people, bought, rng, noise=1.0)
    # Looking is less decided than buying.
    browsed_item = choose(settings, catalogue, merchant, people, browsed, rng, noise=2.0)
    sold = (bought_item >= 0, browsed_item >= 0)
    return _events(
        settings,
        merchant,
        (bought[sold[0]], bought_item[sold[0]]),
        (browsed[sold[1]], browsed_item[sold[1]]),
        rng,
    )


def _visits(
    settings: SyntheticConfig, people: People, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Return each user's visits in order, in days since the start, and how many there are."""
    visits_U = rng.poisson(settings.visits_per_user * people.activity_U)
    shape = (len(visits_U), max(1, int(visits_U.max(initial=0))))
    day_UV = rng.integers(7 * settings.weeks, size=shape)
    # Open from 8 to 21; a visit ends before the shop closes.
    hour_UV = 8 + 12 * rng.beta(2, 1.5, size=shape)
    days_UV = day_UV + hour_UV / 24
    days_UV[np.arange(shape[1]) >= visits_U[:, None]] = np.inf
    return np.sort(days_UV, axis=1), visits_U


def _liking(merchant: Merchant, people: People) -> Floats:
    """Return each user's liking of each category at this merchant; mean 1 for every user."""
    weight_UC = np.exp(people.taste_UC + merchant.popularity_C)
    liking_UC: Floats = weight_UC / weight_UC.mean(axis=1, keepdims=True)
    return liking_UC


def _needs(
    settings: SyntheticConfig,
    catalogue: Catalogue,
    merchant: Merchant,
    people: People,
    days_UV: Floats,
    visits_U: Ints,
    liking_UC: Floats,
    rng: np.random.Generator,
) -> Rows:
    """Return which categories are bought at which visit.

    One step per visit, all users at once: the next purchase depends on the last one.
    """
    pull_WC = _strongest(settings, catalogue, merchant.pull_WI)
    # Most visits first, so that those who still have a visit are a prefix.
    order_U = np.argsort(-visits_U, kind="stable")
    counts_U, days = visits_U[order_U], days_UV[order_U]
    interval_UC = people.interval_UC[order_U] / np.sqrt(liking_UC[order_U])
    last_UC = -interval_UC * rng.random(interval_UC.shape) * 2
    rate_UC = liking_UC[order_U] * BASKET / settings.categories
    heed_U = 0.7 * people.price_sensitivity_U[order_U]
    users, visits, categories = [], [], []
    for visit in range(days.shape[1]):
        n = int(np.searchsorted(-counts_U, -visit, side="left"))
        day_U = days[:n, visit]
        week_U = np.minimum(day_U // 7, settings.weeks - 1).astype(np.int64)
        need_UC = 1 - np.exp(-(((day_U[:, None] - last_UC[:n]) / interval_UC[:n]) ** 2))
        lift_UC = np.exp(heed_U[:n, None] * pull_WC[week_U])
        chance_UC = 1 - np.exp(-rate_UC[:n] * need_UC * lift_UC)
        buys_UC = rng.random(chance_UC.shape) < chance_UC
        last_UC[:n][buys_UC] = np.broadcast_to(day_U[:, None], buys_UC.shape)[buys_UC]
        user_R, category_R = np.nonzero(buys_UC)
        users.append(order_U[user_R])
        visits.append(np.full(len(user_R), visit))
        categories.append(category_R)
    user_R, visit_R = np.concatenate(users), np.concatenate(visits)
    return Rows(
        user_R=user_R,
        visit_R=visit_R,
        category_R=np.concatenate(categories),
        day_R=days_UV[user_R, visit_R],
    )


def _strongest(settings: SyntheticConfig, catalogue: Catalogue, pull_WI: Floats) -> Floats:
    """Return the strongest pull of each category's items in each week, (weeks, categories)."""
    columns = [
        pull_WI[:, catalogue.category_I == category].max(axis=1)
        for category in range(settings.categories)
    ]
    return np.stack(columns, axis=1)


def _browsing(days_UV: Floats, visits_U: Ints, liking_UC: Floats, rng: np.random.Generator) -> Rows:
    """Return what is looked at without need: categories as the user likes them."""
    user_V = np.repeat(np.arange(len(visits_U)), visits_U)
    visit_V = np.arange(len(user_V)) - np.repeat(np.cumsum(visits_U) - visits_U, visits_U)
    looks_V = rng.poisson(_BROWSED, len(user_V))
    user_R, visit_R = np.repeat(user_V, looks_V), np.repeat(visit_V, looks_V)
    steps_UC = np.cumsum(liking_UC, axis=1) / liking_UC.sum(axis=1, keepdims=True)
    # The last step may round to less than 1.
    steps_UC[:, -1] = 1.0
    category_R = (steps_UC[user_R] <= rng.random(len(user_R))[:, None]).sum(axis=1)
    return Rows(
        user_R=user_R, visit_R=visit_R, category_R=category_R, day_R=days_UV[user_R, visit_R]
    )


def _events(
    settings: SyntheticConfig,
    merchant: Merchant,
    bought: tuple[Rows, Ints],
    browsed: tuple[Rows, Ints],
    rng: np.random.Generator,
) -> Events:
    """Turn choices into events: what is bought was often looked at, what is looked at rarely so."""
    return _joined(
        [
            _receipts(settings, merchant, *bought, rng),
            *_looks(*bought, (0.6, 0.4, 0.3), rng),
            *_looks(*browsed, (1.0, 0.25, 0.04), rng),
        ]
    )


def _receipts(
    settings: SyntheticConfig,
    merchant: Merchant,
    rows: Rows,
    item_R: Ints,
    rng: np.random.Generator,
) -> Events:
    """Return the purchases; a coupon's discount is for those who bring the coupon."""
    week_R = rows.weeks(settings)
    coupon_R = merchant.coupon_WI[week_R, item_R]
    redeemed_R = coupon_R & (rng.random(len(item_R)) < 0.5)
    price_R = merchant.price_I[item_R]
    depth_R = np.where(coupon_R & ~redeemed_R, 0.0, merchant.depth_WI[week_R, item_R])
    return Events(
        user_R=rows.user_R,
        item_R=item_R,
        kind_R=np.where(redeemed_R, REDEEM, PURCHASE),
        second_R=_seconds(rows) + _CHECKOUT_SECONDS,
        visit_R=rows.visit_R,
        quantity_R=1 + rng.poisson(0.25, len(item_R)).astype(np.float64),
        price_R=price_R,
        discount_R=np.round(depth_R * price_R, 2),
    )


def _looks(
    rows: Rows, item_R: Ints, shares: tuple[float, float, float], rng: np.random.Generator
) -> list[Events]:
    """Return views, clicks and carts; each step is taken by some of those who took the last."""
    depth_R = rng.random(len(item_R))
    at_R = _seconds(rows) + rng.integers(_CHECKOUT_SECONDS - 60, size=len(item_R))
    parts = []
    for kind, share in zip((VIEW, CLICK, CART), shares, strict=True):
        index = np.flatnonzero(depth_R < share)
        empty = np.full(len(index), np.nan)
        parts.append(
            Events(
                user_R=rows.user_R[index],
                item_R=item_R[index],
                kind_R=np.full(len(index), kind),
                second_R=at_R[index] + 20 * kind,
                visit_R=rows.visit_R[index],
                quantity_R=empty,
                price_R=empty,
                discount_R=empty,
            )
        )
    return parts


def _seconds(rows: Rows) -> Ints:
    seconds: Ints = (rows.day_R * 86400).astype(np.int64)
    return seconds


def _joined(parts: list[Events]) -> Events:
    names = [f.name for f in fields(Events)]
    return Events(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})
