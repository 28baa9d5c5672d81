"""What the weeks to come hold of a customer: will they stay away, and what will they be worth?

Both tasks look at a customer from dates of a public calendar. Text says in words, and numeric
features in bounded numbers, what the customer did before the date: recency, frequency, money
(RFM), habits and trend. The label comes from the weeks after it. All scales are public.
"""

import datetime as dt
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from silotune.config import config
from silotune.errors import ConfigError, NoExamplesError
from silotune.tables.as_of import SiloAsOf
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, Traits, keys_of, numbered
from silotune.tasks.checks import check_counts, check_horizon
from silotune.tasks.customer_sql import STATEMENTS
from silotune.tasks.customer_traits import traits_of
from silotune.tasks.customer_words import (
    NUMERIC,
    context_of,
    group_of,
    made_up_rows,
    numeric_of,
    text_of,
)
from silotune.tasks.customer_words import public_texts as made_up_texts
from silotune.tasks.objective import Binary, Classes, Objective
from silotune.tasks.sql_run import rows_of

__all__ = ["CustomerChurn", "CustomerSegment"]


@config
class _Snapshots:
    """Which customers are looked at, and when. All is public; none depends on a silo's data."""

    first: dt.datetime
    """The first training date; what is before it is history only."""
    split: dt.datetime
    """The first test date. The weeks that label a training example end by it."""
    last: dt.datetime
    """The weeks that label a test example end by it."""
    horizon_days: int = 42
    """Days after a date that make the label."""
    step_days: int = 14
    """Days from one date to the next."""
    active_days: int = 56
    """Who bought nothing in so many days before a date is not asked about: gone already."""
    least_visits: int = 3
    """Who made fewer purchases before a date is not asked about: nothing is known yet."""
    train_dates: int = 6
    """Dates per user before the split. A cap per user, never over users."""
    test_dates: int = 3
    """Dates per user after the split."""
    category_level: int = 3
    """One level above this of the category path makes the names of habits in the text."""
    usual: int = 4
    """Usual categories named in the text."""
    recent: int = 3
    """Recent categories named in the text."""
    seed: int = 0
    """Chooses dates, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_counts(self, *_COUNTS)
        check_horizon(self.first, self.split, self.last, self.horizon_days)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Recency, frequency, money, habits and trend."""
        return NUMERIC

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """RFM rules, and logistic regression on the numeric features."""
        return ("rfm-rules", "logistic-local", "logistic-pooled")

    def public_texts(self) -> list[str]:
        """Made-up customers, in the words of the examples' texts."""
        return made_up_texts()

    def made_up(self) -> Examples:
        """Return customers who do not exist; see `silotune.tasks.base.DescribesCustomers`."""
        rows = [
            row | {"user_id": f"nobody-{i}", "date": None, "test": True}
            for i, row in enumerate(made_up_rows())
        ]
        return _examples(Binary(), [[math.nan]] * len(rows), rows)

    def traits_at(self, silo: SiloFolder, date: dt.datetime) -> Traits:
        """Say what every customer is like who is active on ``date``, in bands of words.

        Raises:
            DataError: no customer is.
        """
        # More than a text names: a profile asks what many have in common.
        more = replace(self, usual=max(self.usual, _HABITS))
        return traits_of(more._rows_at(silo, date))  # noqa: SLF001  # own

    def _build(
        self, silo: SiloFolder, objective: Objective, labels: list[list[float]], rows: list[Any]
    ) -> Examples:
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no customer bought {self.least_visits} times before a date between "
                f"{self.first:%Y-%m-%d} and {self.last:%Y-%m-%d}, and within {self.active_days} "
                "days of it. Check the task's first, split and last against `silotune data check`."
            )
        return _examples(objective, labels, rows)

    def _build_at(self, silo: SiloFolder, objective: Objective, date: dt.datetime) -> Examples:
        rows = self._rows_at(silo, date)
        return _examples(objective, [[math.nan] * objective.outputs] * len(rows), rows)

    def _rows_at(self, silo: SiloFolder, date: dt.datetime) -> list[dict[str, Any]]:
        weeks = dt.timedelta(days=self.horizon_days)
        at = replace(self, first=date - weeks, split=date, last=date + weeks, test_dates=1)
        rows = [r for r in at._rows(SiloAsOf.of(silo, date)) if r["test"]]  # noqa: SLF001  # own
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no customer bought {self.least_visits} times before {date}, the "
                f"last time within {self.active_days} days of it. Ask about a date that the tables "
                "cover."
            )
        return rows

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        return rows_of(
            silo,
            STATEMENTS,
            {
                "level": self.category_level,
                "first": self.first,
                "split": self.split,
                "last": self.last,
                "horizon": self.horizon_days,
                "step": self.step_days,
                "active": self.active_days,
                "least_visits": self.least_visits,
                "train_dates": self.train_dates,
                "test_dates": self.test_dates,
                "usual": self.usual,
                "recent": self.recent,
                "seed": self.seed,
            },
        )


def _examples(objective: Objective, labels: list[list[float]], rows: list[Any]) -> Examples:
    return Examples(
        text=[text_of(r) for r in rows],
        context=[context_of(r) for r in rows],
        numeric_EF=np.array([numeric_of(r) for r in rows], dtype=np.float32),
        label_EK=np.array(labels, dtype=np.float32),
        user_E=numbered(r["user_id"] for r in rows),
        visit_E=np.arange(len(rows), dtype=np.int64),
        group=[group_of(r) for r in rows],
        test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
        objective=objective,
        keys=keys_of(rows, "user_id", "date"),
    )


_HABITS = 12
_COUNTS = (
    "horizon_days",
    "step_days",
    "active_days",
    "least_visits",
    "train_dates",
    "test_dates",
    "category_level",
)


@config
class CustomerChurn(_Snapshots):
    """Will this customer buy nothing at all in the weeks to come?"""

    name: Literal["customer-churn"] = "customer-churn"

    @property
    def objective(self) -> Binary:
        """Stays away or not."""
        return Binary()

    @property
    def outputs(self) -> int:
        """One logit."""
        return self.objective.outputs

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; label 1 is a customer who left.

        Raises:
            NoExamplesError: no customer can be asked about.
        """
        rows = self._rows(silo)
        labels = [[float(r["future_visits"] == 0)] for r in rows]
        return self._build(silo, self.objective, labels, rows)

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about every customer who is active on ``date``; see `silotune.tasks.base.AsksAt`."""
        del most  # a customer is one question
        return self._build_at(silo, self.objective, date)


_SEGMENTS = ("at risk", "regular", "high value")


@config
class CustomerSegment(_Snapshots):
    """Which segment will this customer be in, by what they spend in the weeks to come?"""

    name: Literal["customer-segment"] = "customer-segment"
    at_risk_below: float = 3.0
    """Spend per week, in the currency of the tables, below which a customer is at risk."""
    high_value_from: float = 30.0
    """Spend per week from which a customer is of high value; between the two: regular."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        super().__post_init__()
        if not 0 < self.at_risk_below < self.high_value_from < float("inf"):
            raise ConfigError(
                f"at_risk_below and high_value_from are {self.at_risk_below} and "
                f"{self.high_value_from}; they must be above 0 and in this order."
            )

    @property
    def objective(self) -> Classes:
        """At risk, regular, high value."""
        return Classes(names=_SEGMENTS)

    @property
    def outputs(self) -> int:
        """One logit for each segment."""
        return self.objective.outputs

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; labels are one-hot.

        Raises:
            NoExamplesError: no customer can be asked about.
        """
        rows = self._rows(silo)
        segments = [self._segment(r["future_spend"] / (self.horizon_days / 7)) for r in rows]
        one_hot = [[float(s == k) for k in range(len(_SEGMENTS))] for s in segments]
        return self._build(silo, self.objective, one_hot, rows)

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask about every customer who is active on ``date``; see `silotune.tasks.base.AsksAt`."""
        del most  # a customer is one question
        return self._build_at(silo, self.objective, date)

    def _segment(self, spend: float) -> int:
        return int(spend >= self.at_risk_below) + int(spend >= self.high_value_from)
