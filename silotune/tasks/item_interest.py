"""Item interest: will this customer buy from this category, or this item, in the days to come?

A customer is looked at from dates of a public calendar and asked about candidates: what they
buy most, and others that a hash draws from the range, or from a public list. The candidates of
one customer and date are ranked. The same task on clicks or views is response to what is shown.
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
from silotune.tasks.base import Examples, keys_of, numbered
from silotune.tasks.checks import check_counts, check_horizon, check_slate
from silotune.tasks.item_sql import STATEMENTS
from silotune.tasks.item_words import NUMERIC, context_of, numeric_of, text_of
from silotune.tasks.item_words import public_texts as made_up_texts
from silotune.tasks.objective import Binary
from silotune.tasks.sql_run import rows_of

__all__ = ["ItemInterest"]

_KINDS = {"purchase": ["purchase", "redeem"], "click": ["click"], "view": ["view"]}
_VERBS = {"purchase": "bought", "click": "clicked", "view": "viewed"}
_COUNTS = (
    "horizon_days",
    "step_days",
    "active_days",
    "train_dates",
    "test_dates",
    "category_level",
    "slate",
    "train_candidates",
    "cold_visits",
)


@config
class ItemInterest:
    """Parameters of the task. All are public; none depends on a silo's data."""

    name: Literal["item-interest"] = "item-interest"
    first: dt.datetime
    """The first training date; what is before it is history only."""
    split: dt.datetime
    """The first test date. The days that label a training example end by it."""
    last: dt.datetime
    """The days that label a test example end by it."""
    event: Literal["purchase", "click", "view"] = "purchase"
    """What is asked about. Purchases include those paid with a coupon."""
    candidate: Literal["category", "item"] = "category"
    """What one is asked about with."""
    category_level: int = 2
    """Levels of the category path that make a category."""
    candidates: tuple[str, ...] = ()
    """The federation's public list of category paths, or of item ids. Empty: each merchant's
    whole range, which must then not depend on who its customers are."""
    horizon_days: int = 14
    """Days after a date that make the label."""
    step_days: int = 14
    """Days from one date to the next."""
    active_days: int = 56
    """Who was not seen in so many days before a date is not asked about: gone already."""
    train_dates: int = 2
    """Dates per user before the split. A cap per user, never over users."""
    test_dates: int = 2
    """Dates per user after the split."""
    slate: int = 20
    """Candidates of a customer at a date."""
    habits: int = 10
    """How many of them are what the customer took most often before, at most. A hash draws the
    others from the rest."""
    train_candidates: int = 6
    """How many of a training date's candidates are kept, drawn by hash."""
    cold_visits: int = 4
    """Who made fewer visits before a date is marked as a cold start."""
    usual: int = 4
    """Usual categories named in the context."""
    recent: int = 3
    """Recent categories named in the context."""
    seed: int = 0
    """Chooses dates and candidates, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_counts(self, *_COUNTS)
        check_slate(self.habits, self.slate)
        check_horizon(self.first, self.split, self.last, self.horizon_days)
        for path in self.candidates if self.candidate == "category" else ():
            if path.count(" > ") >= self.category_level:
                raise ConfigError(
                    f"candidates holds {path!r}, which has more than category_level = "
                    f"{self.category_level} levels."
                )

    @property
    def objective(self) -> Binary:
        """Taken or not; the candidates of a customer and date are ranked."""
        return Binary(ranked=True)

    @property
    def outputs(self) -> int:
        """One logit."""
        return self.objective.outputs

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """What sells; logistic regression and boosted trees on the relation features."""
        return ("popularity", "logistic-local", "logistic-pooled", "trees-local")

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """How often, how recently and how regularly; who the customer is."""
        return NUMERIC

    def public_texts(self) -> list[str]:
        """Made-up candidates and relations, in the words of the examples' texts."""
        return made_up_texts(_VERBS[self.event])

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order.

        Raises:
            NoExamplesError: nobody can be asked about, or there is nothing to ask about.
        """
        rows = self._rows(silo)
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no customer was seen within {self.active_days} days before a date "
                f"between {self.first:%Y-%m-%d} and {self.last:%Y-%m-%d}, or none of the "
                "candidates is sold here. Check the task's first, split, last and candidates "
                "against `silotune data check`."
            )
        return self._examples(rows, [[r["label"]] for r in rows])

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask every customer who is active on ``date`` about a slate of candidates.

        Of ``slate`` candidates, as training and tests do; see `silotune.tasks.base.AsksAt`.
        """
        days = dt.timedelta(days=self.horizon_days)
        slate = self.slate if most is None else min(self.slate, most)
        at = replace(self, first=date - days, split=date, last=date + days, test_dates=1)
        at = replace(at, slate=slate, habits=min(self.habits, slate))
        rows = [r for r in at._rows(SiloAsOf.of(silo, date)) if r["test"]]  # noqa: SLF001  # own
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no customer was seen within {self.active_days} days before {date}, "
                "or none of the candidates is sold here. Ask about a date that the tables cover."
            )
        return self._examples(rows, [[math.nan]] * len(rows))

    def _examples(self, rows: list[dict[str, Any]], labels: list[list[float]]) -> Examples:
        numeric = [numeric_of(r, cold_visits=self.cold_visits) for r in rows]
        return Examples(
            text=[text_of(r, verb=_VERBS[self.event]) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array(numeric, dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=numbered(r["user_id"] for r in rows),
            visit_E=numbered((r["user_id"], r["date"]) for r in rows),
            group=[r["thing"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=self.objective,
            keys=keys_of(rows, "user_id", "date", "thing"),
        )

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        return rows_of(
            silo,
            STATEMENTS,
            {
                "level": self.category_level,
                "by_item": self.candidate == "item",
                "candidates": list(self.candidates),
                "kinds": _KINDS[self.event],
                "first": self.first,
                "split": self.split,
                "last": self.last,
                "horizon": self.horizon_days,
                "step": self.step_days,
                "active": self.active_days,
                "train_dates": self.train_dates,
                "test_dates": self.test_dates,
                "habits": self.habits,
                "slate": self.slate,
                "train_candidates": self.train_candidates,
                "usual": self.usual,
                "recent": self.recent,
                "seed": self.seed,
            },
        )
