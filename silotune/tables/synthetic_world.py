"""What synthetic merchants share: the catalogue, the people; and what sets each one apart.

Everything is a pure function of the configuration's seed and the numbers of merchant and block,
so that any part can be made again alone: a person who shops at two merchants is the same person.
"""

# U users, C categories, I items of the catalogue, W weeks.
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from silotune.config import config
from silotune.errors import ConfigError
from silotune.tables.synthetic_words import ADJECTIVES, AGES, BRANDS, CATEGORIES, PLACEMENTS

__all__ = [
    "Catalogue",
    "Merchant",
    "People",
    "SyntheticConfig",
    "generator",
    "make_catalogue",
    "make_merchant",
    "people_of",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BLOCK = 1024
"""People made and simulated together: bounds memory, whatever the number of users."""
_BRANDS_PER_CATEGORY = 5
_DEPTHS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@config
class SyntheticConfig:
    """Size and character of a synthetic federation."""

    merchants: int = 8
    """Number of silos."""
    users_per_merchant: int = 100
    """Customers of each merchant; those without a visit leave no event."""
    items: int = 240
    """Items each merchant sells; at least ``categories``."""
    categories: int = 24
    """Categories of goods, 2 to 40."""
    weeks: int = 26
    """Length of the history."""
    visits_per_user: float = 20.0
    """Mean number of visits of one user over all weeks."""
    promotions_per_week: int = 12
    """Items each merchant promotes in a week; at most ``items``."""
    promotion_effect: float = 1.0
    """Scale of what promotions do, on top of making goods cheaper; 0: not noticed at all."""
    heterogeneity: float = 0.5
    """How much merchants differ in assortment, prices and taste: 0 not at all, 1 most."""
    overlap: float = 0.2
    """Share of a merchant's users who also shop at another merchant. One merchant has none."""
    rated: float = 0.0
    """Share of purchases that get a rating of 1 to 5 stars, days later; 0: there are none. The
    other events are the same whatever it is."""
    seed: int = 0
    """The same seed gives the same tables."""

    def __post_init__(self) -> None:
        _in_range(self, "merchants", 1, 100_000)
        _in_range(self, "users_per_merchant", 1, 10_000_000)
        _in_range(self, "categories", 2, len(CATEGORIES))
        _in_range(self, "items", self.categories, 20_000)
        _in_range(self, "weeks", 1, 520)
        _in_range(self, "visits_per_user", 0.1, 1000)
        _in_range(self, "promotions_per_week", 0, self.items)
        _in_range(self, "promotion_effect", 0, 10)
        _in_range(self, "heterogeneity", 0, 1)
        _in_range(self, "overlap", 0, 1)
        _in_range(self, "rated", 0, 1)
        _in_range(self, "seed", 0, 2**63 - 1)

    @property
    def shared(self) -> int:
        """Users a merchant takes over from its neighbour; as many of its own go on to the next."""
        return round(self.overlap * self.users_per_merchant / 2) if self.merchants > 1 else 0


def _in_range(owner: SyntheticConfig, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    # `not` catches NaN.
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be from {low} to {high}.")


def generator(settings: SyntheticConfig, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the stream of random numbers for one purpose; streams do not share numbers."""
    tag = int.from_bytes(purpose.encode(), "little")
    return np.random.default_rng([settings.seed, tag, *numbers])


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """All items there are; each merchant sells half of them."""

    category_I: Ints
    brand_I: Ints
    price_I: Floats
    appeal_I: Floats
    titles: list[str]
    sizes: list[str]
    brands_CB: Ints
    """Brands that sell in each category."""

    def path(self, category: int) -> str:
        """Return the category path of category number ``category``."""
        return f"{CATEGORIES[category].department} > {CATEGORIES[category].name}"


def make_catalogue(settings: SyntheticConfig) -> Catalogue:
    """Make the catalogue. The first half is what every merchant sells at heterogeneity 0."""
    rng = generator(settings, "catalogue")
    count, categories = 2 * settings.items, settings.categories
    category_I = np.arange(count) % categories
    brands_CB = np.array(
        [rng.choice(len(BRANDS), _BRANDS_PER_CATEGORY, replace=False) for _ in range(categories)]
    )
    brand_I = brands_CB[category_I, rng.integers(_BRANDS_PER_CATEGORY, size=count)]
    typical_C = np.array([c.price for c in CATEGORIES[:categories]])
    titles, sizes = [], []
    for category, brand, draw in zip(
        category_I, brand_I, rng.integers(2**31, size=(count, 3)), strict=True
    ):
        kind = CATEGORIES[category]
        noun, size = kind.nouns[draw[0] % len(kind.nouns)], kind.sizes[draw[1] % len(kind.sizes)]
        titles.append(f"{BRANDS[brand]} {ADJECTIVES[draw[2] % len(ADJECTIVES)]} {noun}, {size}")
        sizes.append(size)
    return Catalogue(
        category_I=category_I,
        brand_I=brand_I,
        price_I=typical_C[category_I] * rng.lognormal(0, 0.3, count),
        appeal_I=rng.normal(0, 0.7, count),
        titles=titles,
        sizes=sizes,
        brands_CB=brands_CB,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Merchant:
    """One merchant: what it sells, at which price, and what it promotes when."""

    number: int
    items_S: Ints
    """Catalogue numbers of the items sold."""
    price_I: Floats
    popularity_C: Floats
    """Log popularity of the categories among the merchant's customers."""
    promotions: list[tuple[int, int, int, float]]
    """(week, item or -1 - category, placement, depth)."""
    depth_WI: Floats
    pull_WI: Floats
    """How much an item's promotion draws: placement and depth, log scale; 0 without one."""
    coupon_WI: NDArray[np.bool_]


def make_merchant(settings: SyntheticConfig, catalogue: Catalogue, number: int) -> Merchant:
    """Make merchant ``number``."""
    rng = generator(settings, "merchant", number)
    differs, count = settings.heterogeneity, len(catalogue.category_I)
    swapped = round(differs * settings.items / 2)
    kept = rng.permutation(settings.items)[swapped:]
    added = settings.items + rng.permutation(count - settings.items)[:swapped]
    items_S = np.sort(np.concatenate([kept, added]))
    common_C = generator(settings, "popularity").normal(0, 0.5, settings.categories)
    level = np.exp(differs * rng.normal(0, 0.15))
    price_I = level * catalogue.price_I * np.exp(differs * rng.normal(0, 0.05, count))
    promotions = _promotions(settings, items_S, rng)
    shape = (settings.weeks, count)
    depth_WI, pull_WI, coupon_WI = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
    for week, target, place, depth in promotions:
        which = target if target >= 0 else catalogue.category_I == -1 - target
        depth_WI[week, which] = depth
        pull_WI[week, which] = settings.promotion_effect * (PLACEMENTS[place].pull + 2 * depth)
        coupon_WI[week, which] = PLACEMENTS[place].mechanic == "coupon"
    return Merchant(
        number=number,
        items_S=items_S,
        # Half a cent of rounding would make the sums of receipts look odd.
        price_I=np.maximum(np.round(price_I, 2), 0.05),
        popularity_C=common_C + differs * rng.normal(0, 1, settings.categories),
        promotions=promotions,
        depth_WI=depth_WI,
        pull_WI=pull_WI,
        coupon_WI=coupon_WI,
    )


def _promotions(
    settings: SyntheticConfig, items_S: Ints, rng: np.random.Generator
) -> list[tuple[int, int, int, float]]:
    """Draw each week's promoted items and, in every other week, one promoted category."""
    rows = []
    for week in range(settings.weeks):
        # Category first: where both hold, the item's own promotion counts.
        if settings.promotions_per_week and rng.random() < 0.5:
            target = -1 - int(rng.integers(settings.categories))
            rows.append((week, target, int(rng.integers(len(PLACEMENTS))), 0.1))
        for item in rng.choice(items_S, settings.promotions_per_week, replace=False):
            place = int(rng.integers(len(PLACEMENTS)))
            rows.append((week, int(item), place, float(rng.choice(_DEPTHS))))
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class People:
    """Latent traits of a block of people: what a model should find out."""

    number_U: Ints
    """Number of the person in the whole federation."""
    activity_U: Floats
    """Visits, relative to the mean."""
    taste_UC: Floats
    """Log preference for each category."""
    interval_UC: Floats
    """Days between purchases of a category, when the person likes it as others do."""
    favourite_UC: Ints
    """Brand the person is loyal to in each category."""
    loyalty_U: Floats
    price_sensitivity_U: Floats
    age_U: Ints
    """Index in `AGES`; leans the taste."""

    def __getitem__(self, index: slice | Ints) -> "People":
        """Return the people at ``index``."""
        return People(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def people_of(settings: SyntheticConfig, catalogue: Catalogue, merchant: int) -> Iterator[People]:
    """Yield the customers of ``merchant`` in blocks: its own, then those of its neighbour."""
    own = settings.users_per_merchant - settings.shared
    neighbour = (merchant - 1) % settings.merchants
    for home, count in ((merchant, own), (neighbour, settings.shared)):
        for block, start in enumerate(range(0, count, BLOCK)):
            people = _people(settings, catalogue, home, block)
            yield people[: min(BLOCK, count - start)]


def _people(settings: SyntheticConfig, catalogue: Catalogue, home: int, block: int) -> People:
    """Make block ``block`` of the people who belong to merchant ``home``; always a whole block."""
    rng = generator(settings, "people", home, block)
    size, categories = BLOCK, settings.categories
    age_U = rng.integers(len(AGES), size=size)
    lean_AC = generator(settings, "ages").normal(0, 0.4, (len(AGES), categories))
    rhythm_C = np.array([c.rhythm for c in CATEGORIES[:categories]])
    pick_UC = rng.integers(_BRANDS_PER_CATEGORY, size=(size, categories))
    return People(
        number_U=home * settings.users_per_merchant + block * BLOCK + np.arange(size),
        activity_U=rng.gamma(4, 0.25, size),
        taste_UC=lean_AC[age_U] + rng.normal(0, 1, (size, categories)),
        interval_UC=rhythm_C * rng.lognormal(0, 0.3, (size, categories)),
        favourite_UC=catalogue.brands_CB[np.arange(categories), pick_UC],
        loyalty_U=rng.gamma(2, 0.75, size),
        price_sensitivity_U=rng.gamma(4, 0.25, size),
        age_U=age_U,
    )
