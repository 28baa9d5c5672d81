"""Personalised discount: how deep a customer buys, and how a depth changes whether they buy.

Both tasks ask about what a customer has bought before, at visits of theirs. Text and numeric
features are those of promotion response, without the depth that is asked about.

What they learn is what happened at the depths that a merchant chose to give. Depths that were
given to those who would buy anyway look as if they worked: before money is spent on it, see
`client.discount_value`.
"""

import datetime as dt
from typing import Any, Literal

import numpy as np

from silotune.config import config
from silotune.errors import ConfigError, DataError
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, keys_of
from silotune.tasks.checks import check_counts, check_span
from silotune.tasks.discount_sql import DEPTH_STATEMENTS, RESPONSE_STATEMENTS
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.objective import Bounded, Objective
from silotune.tasks.promotion_words import NUMERIC, WARES, context_of, numeric_of, text_of
from silotune.tasks.sql_run import rows_of

__all__ = ["DiscountDepth", "DiscountResponse"]

_RELATIONS = (
    "bought once, months ago",
    "bought often, this month, usually 20 percent off",
    "bought sometimes, this week, usually 5 percent off",
    "bought always, this week",
    "bought sometimes, months ago, usually 40 percent off",
    "bought often, this week, usually 10 percent off",
)
_OFFERS = (
    "national brand, mailer interior page feature",
    "private brand, display front end cap",
    "national brand, display in-aisle",
    "private brand, mailer front page feature",
    "national brand, display store rear",
    "national brand, mailer back page",
)


@config
class _Visits:
    """Which visits are looked at. All is public; none depends on a silo's data."""

    split: dt.datetime
    """Visits before it train, visits from it on test."""
    first: dt.datetime
    """Visits before it are history only."""
    last: dt.datetime
    """Visits from it on are ignored."""
    category_level: int = 3
    """Levels of the category path that make one category."""
    train_visits: int = 4
    """Visits per user before the split. A cap per user, never over users."""
    test_visits: int = 4
    """Visits per user after the split."""
    least_purchases: int = 1
    """Earlier visits at which a customer must have bought a category to be asked about it."""
    usual: int = 3
    """Usual categories named in the text."""
    recent: int = 2
    """Recent categories named in the text."""
    seed: int = 0
    """Chooses visits and categories, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_span(self.first, self.split, self.last)
        check_counts(self, "category_level", "train_visits", "test_visits", "least_purchases")

    def _parameters(self) -> dict[str, Any]:
        fields = ("split", "first", "last", "train_visits", "test_visits", "least_purchases")
        named = {field: getattr(self, field) for field in (*fields, "usual", "recent", "seed")}
        return {"level": self.category_level} | named

    def _examples(
        self,
        rows: list[dict[str, Any]],
        objective: Objective,
        numeric: list[list[float]],
        labels: list[list[float]],
    ) -> Examples:
        users = {u: i for i, u in enumerate(dict.fromkeys(r["user_id"] for r in rows))}
        pairs = [(r["user_id"], r["visit_id"]) for r in rows]
        visits = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        return Examples(
            # The depth is the question; these items are the whole category of `discount-depth`.
            text=[text_of(r | {"depth": 0.0}) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array(numeric, dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=np.array([users[r["user_id"]] for r in rows], dtype=np.int64),
            visit_E=np.array([visits[pair] for pair in pairs], dtype=np.int64),
            group=[r["category"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=objective,
            keys=keys_of(rows, "user_id", "visit_id", "time", "category"),
        )

    def _nothing(self, silo: SiloFolder, what: str) -> DataError:
        return DataError(
            f"{silo.path}: between {self.first:%Y-%m-%d} and {self.last:%Y-%m-%d} {what}. Check "
            "the task's first, split, last and least_purchases against `silotune data check`."
        )


@config
class DiscountDepth(_Visits):
    """How deep is the discount at which this customer next buys this category?"""

    name: Literal["discount-depth"] = "discount-depth"
    train_purchases: int = 4
    """Categories per training visit, at most."""
    test_purchases: int = 4
    """Categories per test visit, at most."""
    huber_delta: float = 0.1
    """Depth at which the loss turns from squared to linear: near the median, as the MAE asks."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        super().__post_init__()
        check_counts(self, "train_purchases", "test_purchases")
        if not 0 < self.huber_delta <= 1:
            raise ConfigError(f"huber_delta is {self.huber_delta}; it must be in (0, 1].")

    @property
    def objective(self) -> Bounded:
        """A share of the list price, in [0, 1]."""
        return Bounded(low=0.0, high=1.0, delta=self.huber_delta)

    @property
    def outputs(self) -> int:
        """One value."""
        return self.objective.outputs

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """One flat depth; the mean and median of a category; regression on the features."""
        return ("mean", "mean-by-group", "median-by-group", "linear-local", "linear-pooled")

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """How often, how recently and how deep this customer bought the category, and deals."""
        return (*(n for n in NUMERIC if n != "item_visits"), *_DEPTHS)

    def public_texts(self) -> list[str]:
        """Made-up goods and relations, in the words of the examples' texts."""
        return [
            f"{ware}. {relation}"
            for i, ware in enumerate(WARES)
            for relation in (_RELATIONS[i % 3], _RELATIONS[3 + i % 3])
        ]

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; the label is discount / list price.

        Raises:
            DataError: nobody bought again what they had bought before.
        """
        rows = self._rows(silo)
        if not rows:
            raise self._nothing(silo, "nobody buys again what they bought before")
        numeric = [_depth_numeric(r) for r in rows]
        # All items of the category are "these items".
        said = [r | {"item_visits": 0} for r in rows]
        return self._examples(said, self.objective, numeric, [[r["label"]] for r in rows])

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        own = {
            "train_purchases": self.train_purchases,
            "test_purchases": self.test_purchases,
        }
        return rows_of(silo, DEPTH_STATEMENTS, self._parameters() | own)


_DEPTHS = ("recent_depth", "deepest", "category_deals", "deal_share", "coupon_share")


def _depth_numeric(row: dict[str, Any]) -> list[float]:
    relation = dict(zip(NUMERIC, numeric_of(row), strict=True))
    del relation["item_visits"]
    return [*relation.values(), *(float(row[name]) for name in _DEPTHS)]


@config
class DiscountResponse(_Visits):
    """Will this customer, on this visit, buy from this offer, as a function of its depth?

    The chance never falls as the depth rises; see `DoseResponse`.
    """

    name: Literal["discount-response"] = "discount-response"
    train_offers: int = 8
    """Offers per training visit, at most, drawn without a look at what was bought."""
    test_offers: int = 8
    """Offers per test visit, at most."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        super().__post_init__()
        check_counts(self, "train_offers", "test_offers")

    @property
    def objective(self) -> DoseResponse:
        """Bought or not at the offer's depth."""
        return DoseResponse()

    @property
    def outputs(self) -> int:
        """A level and a sensitivity."""
        return self.objective.outputs

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """What sells at this merchant; logistic regression on relation features and depth."""
        return ("popularity", "logistic-local", "logistic-pooled")

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """How often, how recently, at which depth this customer bought what is offered."""
        return NUMERIC

    def public_texts(self) -> list[str]:
        """Made-up offers and relations, in the words of the examples' texts."""
        return [
            f"{ware}, {_OFFERS[k]}. {_RELATIONS[k]}"
            for i, ware in enumerate(WARES)
            for k in (i % 3, 3 + i % 3)
        ]

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; labels are (bought, depth).

        Raises:
            DataError: no visit meets a promotion of what its customer has bought before.
        """
        rows = self._rows(silo)
        if not rows:
            raise self._nothing(silo, "no visit meets a promotion of what its customer knows")
        labels = [[float(r["label"]), float(r["depth"])] for r in rows]
        return self._examples(rows, self.objective, [numeric_of(r) for r in rows], labels)

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        own = {"train_offers": self.train_offers, "test_offers": self.test_offers}
        return rows_of(silo, RESPONSE_STATEMENTS, self._parameters() | own)
