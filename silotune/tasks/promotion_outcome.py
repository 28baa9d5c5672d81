"""Promotion outcome: will this customer, on this visit, ignore this offer, buy, or buy the deal?"""

import datetime as dt
from typing import Literal

from silotune.config import config
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.promotion_slates import PromotionSlates
from silotune.tasks.ranked_classes import RankedClasses

__all__ = ["PromotionOutcome"]

_LEVELS = ("ignored", "bought", "bought at a discount")
_COUPON = "bought with a coupon"


@config
class PromotionOutcome(PromotionSlates):
    """What becomes of an offer at a visit: the most that happened with any item of it.

    *Ignored*: nothing of it was bought. *Bought*: at list price, so the promotion gave nothing
    away. *Bought at a discount*: the price was lower, with or without a coupon.
    """

    name: Literal["promotion-outcome"] = "promotion-outcome"
    coupons_apart: bool = False
    """Whether a purchase with a coupon is a class of its own. Rare in most shops: a merchant of
    a few hundred customers has too few to measure it by."""

    @property
    def objective(self) -> RankedClasses:
        """The outcomes, from nothing to the deal; the offers of a visit are ranked."""
        return RankedClasses(names=(*_LEVELS, _COUPON) if self.coupons_apart else _LEVELS)

    @property
    def outputs(self) -> int:
        """One logit for each outcome."""
        return self.objective.outputs

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; labels are one-hot.

        Raises:
            NoExamplesError: no visit meets a running promotion within the time span.
        """
        # A coupon is a discount where it is not apart.
        last = self.outputs - 1
        one_hot = [
            [float(min(level, last) == k) for k in range(self.outputs)] for level in range(4)
        ]
        return self._labelled(silo, self.objective, one_hot)

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about the offers that run on ``date``, to every customer seen before it.

        As if all of them visited at that moment; see `silotune.tasks.base.AsksAt`.
        """
        return self._asked(silo, self.objective, date, most)
