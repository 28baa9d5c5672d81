"""The choice of an item within a category: multinomial logit, over chunks of bounded size.

Utility: appeal, the loved brand, the price after discount, the pull of a promotion, and noise.
"""

# U users, C categories, I items of the catalogue, W weeks, K items of the largest category,
# R rows (choices).
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune.tables.synthetic_world import (
    Catalogue,
    Floats,
    Ints,
    Merchant,
    People,
    SyntheticConfig,
)

__all__ = ["Rows", "choose"]

_CHUNK_CELLS = 4_000_000
"""Bound of one temporary array of the choice: 32 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Choices to make: who, at which visit, from which category."""

    user_R: Ints
    visit_R: Ints
    category_R: Ints
    day_R: Floats

    def weeks(self, settings: SyntheticConfig) -> Ints:
        """Return the week of each row."""
        return np.minimum(self.day_R // 7, settings.weeks - 1).astype(np.int64)

    def __getitem__(self, index: Ints | NDArray[np.bool_] | slice) -> "Rows":
        """Return the rows at ``index``."""
        return Rows(
            user_R=self.user_R[index],
            visit_R=self.visit_R[index],
            category_R=self.category_R[index],
            day_R=self.day_R[index],
        )


def choose(
    settings: SyntheticConfig,
    catalogue: Catalogue,
    merchant: Merchant,
    people: People,
    rows: Rows,
    rng: np.random.Generator,
    *,
    noise: float,
) -> Ints:
    """Return the item chosen in each row; -1 where the merchant sells none of the category."""
    shelf_CK = _shelves(settings, catalogue, merchant)
    week_R = rows.weeks(settings)
    chosen_R = np.full(len(week_R), -1)
    typical_C = np.array(
        [np.log(catalogue.price_I[catalogue.category_I == c]).mean() for c in range(len(shelf_CK))]
    )
    step = max(1, _CHUNK_CELLS // shelf_CK.shape[1])
    for start in range(0, len(week_R), step):
        part = rows[start : start + step]
        item_RK = shelf_CK[part.category_R]
        week = week_R[start : start + step, None]
        price_RK = merchant.price_I[item_RK] * (1 - merchant.depth_WI[week, item_RK])
        dearness_RK = np.log(price_RK) - typical_C[part.category_R][:, None]
        loved_R = people.favourite_UC[part.user_R, part.category_R]
        utility_RK = (
            catalogue.appeal_I[item_RK]
            + people.loyalty_U[part.user_R][:, None]
            * (catalogue.brand_I[item_RK] == loved_R[:, None])
            - 2 * people.price_sensitivity_U[part.user_R][:, None] * dearness_RK
            + merchant.pull_WI[week, item_RK]
            + noise * rng.gumbel(size=item_RK.shape)
        )
        utility_RK[item_RK < 0] = -np.inf
        best_R = utility_RK.argmax(axis=1)
        chosen_R[start : start + step] = item_RK[np.arange(len(best_R)), best_R]
    return chosen_R


def _shelves(settings: SyntheticConfig, catalogue: Catalogue, merchant: Merchant) -> Ints:
    """Return the items sold in each category, filled up with -1."""
    kinds_S = catalogue.category_I[merchant.items_S]
    counts_C = np.bincount(kinds_S, minlength=settings.categories)
    shelf_CK = np.full((settings.categories, max(1, int(counts_C.max()))), -1)
    for category in range(settings.categories):
        shelf_CK[category, : counts_C[category]] = merchant.items_S[kinds_S == category]
    return shelf_CK
