"""Promotion response: will this customer, on this visit, buy from this offer?"""

import datetime as dt
from typing import Literal

from silotune.config import config
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.objective import Binary
from silotune.tasks.promotion_slates import PromotionSlates

__all__ = ["PromotionResponse"]


@config
class PromotionResponse(PromotionSlates):
    """Bought from the offer or not; the offers of a visit are ranked."""

    name: Literal["promotion-response"] = "promotion-response"
    """Which task this is; a file that does not say means this one."""

    @property
    def objective(self) -> Binary:
        """Bought or not; the offers of a visit are ranked."""
        return Binary(ranked=True)

    @property
    def outputs(self) -> int:
        """One logit."""
        return self.objective.outputs

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order.

        Raises:
            NoExamplesError: no visit meets a running promotion within the time span.
        """
        return self._labelled(silo, self.objective, [[0.0], [1.0], [1.0], [1.0]])

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about the offers that run on ``date``, to every customer seen before it.

        As if all of them visited at that moment; see `silotune.tasks.base.AsksAt`.
        """
        return self._asked(silo, self.objective, date, most)
