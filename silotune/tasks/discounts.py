"""Personalised discount: how deep a customer buys, and how a depth changes whether they buy.

Both tasks ask about what a customer has bought before, at visits of theirs. Text and numeric
features are those of promotion response, without the depth that is asked about.

What they learn is what happened at the depths that a merchant chose to give. Depths that were
given to those who would buy anyway look as if they worked: before money is spent on it, see
`client.discount_value`.
"""

import datetime as dt
import math
from typing import Any, Literal

from silotune.config import config
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.checks import check_counts, check_huber
from silotune.tasks.discount_sql import (
    DEPTH_STATEMENTS,
    DEPTH_STATEMENTS_AT,
    RESPONSE_STATEMENTS,
    RESPONSE_STATEMENTS_AT,
)
from silotune.tasks.discount_visits import DiscountVisits, nobody, without_visit
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.objective import Bounded
from silotune.tasks.promotion_words import NUMERIC, WARES, numeric_of
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
class DiscountDepth(DiscountVisits):
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
        check_huber(self.huber_delta)

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
            NoExamplesError: nobody bought again what they had bought before.
        """
        rows = self._rows(silo)
        if not rows:
            raise self._nothing(silo, "nobody buys again what they bought before")
        return self._said(rows, [[r["label"]] for r in rows])

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask at which depth every customer would buy what they know, on ``date``.

        See `silotune.tasks.base.AsksAt`.
        """
        rows = self._rows_at(silo, date, most, DEPTH_STATEMENTS_AT)
        if not rows:
            raise nobody(silo, date, "")
        return without_visit(self._said(rows, [[math.nan]] * len(rows)))

    def _said(self, rows: list[dict[str, Any]], labels: list[list[float]]) -> Examples:
        numeric = [_depth_numeric(r) for r in rows]
        # All items of the category are "these items".
        said = [r | {"item_visits": 0} for r in rows]
        return self._examples(said, self.objective, numeric, labels)

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
class DiscountResponse(DiscountVisits):
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
            NoExamplesError: no visit meets a promotion of what its customer has bought before.
        """
        rows = self._rows(silo)
        if not rows:
            raise self._nothing(silo, "no visit meets a promotion of what its customer knows")
        return self._said(rows, [[float(r["label"]), float(r["depth"])] for r in rows])

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about the offers of what a customer knows that run on ``date``.

        See `silotune.tasks.base.AsksAt`. The scores hold for every depth; ``depth`` is the
        offer's own.
        """
        rows = self._rows_at(silo, date, most, RESPONSE_STATEMENTS_AT)
        if not rows:
            raise nobody(silo, date, "no promotion of it runs then, or ")
        return without_visit(self._said(rows, [[math.nan, math.nan]] * len(rows)))

    def _said(self, rows: list[dict[str, Any]], labels: list[list[float]]) -> Examples:
        numeric = [numeric_of(r) for r in rows]
        offer = ("offer_start", "offer_end", "depth")
        return self._examples(rows, self.objective, numeric, labels, *offer)

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        own = {"train_offers": self.train_offers, "test_offers": self.test_offers}
        return rows_of(silo, RESPONSE_STATEMENTS, self._parameters() | own)
