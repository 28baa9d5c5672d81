"""Coupon redemption: which of a campaign's audience will use a coupon of it?

An example is a customer and a campaign that they were sent, looked at when it begins. Text says in
words, and numeric features in bounded numbers, what the coupons are for, how the customer relates
to it, and how they used coupons before.
"""

import datetime as dt
import math
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from silotune.config import config
from silotune.errors import NoExamplesError
from silotune.tables.as_of import SiloAsOf
from silotune.tables.schema import CAMPAIGNS, USERS
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, keys_of, numbered
from silotune.tasks.checks import check_counts, check_span
from silotune.tasks.coupon_sql import EVERYONE, NAMED, STATEMENTS, STATEMENTS_AT
from silotune.tasks.coupon_words import NUMERIC, kind_of, numeric_of, text_of
from silotune.tasks.coupon_words import public_texts as made_up_texts
from silotune.tasks.objective import Binary
from silotune.tasks.promotion_words import context_of
from silotune.tasks.sql_run import ALL, rows_of

__all__ = ["CouponRedemption"]


@config
class CouponRedemption:
    """Parameters of the task. All are public; none depends on a silo's data."""

    name: Literal["coupon-redemption"] = "coupon-redemption"
    first: dt.datetime
    """Campaigns that begin before it are history only."""
    split: dt.datetime
    """Campaigns that are over by it train, campaigns that begin from it on test."""
    last: dt.datetime
    """Campaigns that are not over by it are left out."""
    horizon_days: int = 42
    """Days after its beginning in which a campaign is looked at, where it runs longer."""
    train_campaigns: int = 8
    """Campaigns per user before the split. A cap per user, never over users."""
    test_campaigns: int = 8
    """Campaigns per user after the split."""
    ranked: Literal["audience", "customer"] = "audience"
    """What the ranking metrics rank: the audience of each campaign, or the campaigns of each
    customer. Training does not depend on it."""
    category_level: int = 3
    """Levels of the category path that make a category; one less names what coupons are for."""
    themes: int = 5
    """How many of those names the text holds."""
    usual: int = 3
    """Usual categories named in the context."""
    recent: int = 2
    """Recent categories named in the context."""
    seed: int = 0
    """Chooses campaigns, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_span(self.first, self.split, self.last)
        check_counts(self, "horizon_days", "train_campaigns", "test_campaigns")
        check_counts(self, "category_level", "themes")

    @property
    def objective(self) -> Binary:
        """Redeemed or not; ranked within a campaign, or within a customer."""
        return Binary(ranked=True)

    @property
    def outputs(self) -> int:
        """One logit."""
        return self.objective.outputs

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """The rate of such campaigns; regression and boosted trees on the relation features."""
        return ("popularity", "logistic-local", "logistic-pooled", "trees-local", "trees-pooled")

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """What they know of what the coupons are for; coupons, campaigns and visits so far."""
        return NUMERIC

    def public_texts(self) -> list[str]:
        """Made-up campaigns and relations, in the words of the examples' texts."""
        return made_up_texts()

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order.

        Label 1: used a coupon here, on an item of the campaign, while it ran. Which coupon it
        was the tables do not say.

        Raises:
            NoExamplesError: no campaign is looked at, or nobody of its audience is known.
        """
        rows = self._rows(silo)
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no campaign between {self.first:%Y-%m-%d} and "
                f"{self.last:%Y-%m-%d} was sent to a customer who was seen before it. Campaigns "
                "are promotions of mechanic 'campaign', audiences the column 'campaigns' of "
                "users; see docs/data.md."
            )
        return self._examples(rows, [[float(r["label"])] for r in rows])

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about the campaigns that run on ``date`` or are to come, of their audiences.

        See `silotune.tasks.base.AsksAt`. What the customers did until ``date`` is known, also of
        a campaign that runs already.
        """
        now = {"now": date, "most": ALL if most is None else most}
        rows = self._rows(SiloAsOf.of(silo, date), STATEMENTS_AT, now)
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no campaign runs on {date} or is to come, or nobody of its "
                "audience was seen before it."
            )
        return self._examples(rows, [[math.nan]] * len(rows))

    def _examples(self, rows: list[dict[str, Any]], labels: list[list[float]]) -> Examples:
        campaigns = [(r["name"], r["start"], r["end"]) for r in rows]
        lists = [r["user_id"] for r in rows] if self.ranked == "customer" else campaigns
        return Examples(
            text=[text_of(r) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array([numeric_of(r) for r in rows], dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=numbered(r["user_id"] for r in rows),
            visit_E=numbered(lists),
            group=[kind_of(r["name"]) for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=self.objective,
            keys={
                **keys_of(rows, "user_id", "time"),
                "campaign": [r["name"] for r in rows],
                **keys_of(rows, "start", "end"),
            },
        )

    def _rows(
        self,
        silo: SiloFolder,
        statements: tuple[str, ...] = STATEMENTS,
        more: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        counts = ("train_campaigns", "test_campaigns", "themes", "usual", "recent", "seed")
        parameters = {f: getattr(self, f) for f in ("first", "split", "last", *counts)}
        parameters |= {"level": self.category_level, "horizon": self.horizon_days} | (more or {})
        audience = NAMED if _names_campaigns(silo) else EVERYONE
        return rows_of(silo, (audience, *statements), parameters)


def _names_campaigns(silo: SiloFolder) -> bool:
    if not silo.has(USERS):
        return False
    return CAMPAIGNS in pq.read_schema(silo.path / f"{USERS.name}.parquet").names
