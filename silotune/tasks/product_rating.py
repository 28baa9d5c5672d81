"""Product rating: what does this customer think of this item?

A customer is asked about an item they have not rated before, at the moment they do. What they
did and rated until then, and the item's own words, are all there is to tell it by: what others
think of an item is a number over users, and is read nowhere.
"""

import datetime as dt
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from silotune.config import config
from silotune.errors import ConfigError, NoExamplesError
from silotune.tables.as_of import SiloAsOf
from silotune.tables.schema import RATINGS
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, keys_of, numbered
from silotune.tasks.checks import check_counts, check_huber, check_slate, check_span
from silotune.tasks.objective import Bounded
from silotune.tasks.rating_sql import STATEMENTS, STATEMENTS_AT
from silotune.tasks.rating_words import NUMERIC, context_of, numeric_of, public_texts, text_of
from silotune.tasks.sql_run import rows_of

__all__ = ["ProductRating"]


@config
class ProductRating:
    """Parameters of the task. All are public; none depends on a silo's data."""

    name: Literal["product-rating"] = "product-rating"
    first: dt.datetime
    """Ratings before it are history only."""
    split: dt.datetime
    """Ratings before it train, ratings from it on test."""
    last: dt.datetime
    """Ratings from it on are ignored."""
    lowest: float = 1.0
    """The worst rating there is, on the merchants' own scale; it is learned as 0."""
    highest: float = 5.0
    """The best one, learned as 1. What lies outside counts as the nearest of the two."""
    category_level: int = 2
    """Levels of the category path that make a category."""
    train_ratings: int = 16
    """Ratings per user before the split. A cap per user, never over users."""
    test_ratings: int = 16
    """Ratings per user after the split."""
    slate: int = 20
    """Items not rated yet that a customer is asked about on a date."""
    habits: int = 10
    """How many of them are what the customer bought most often before, at most. A hash draws the
    others from the range."""
    named: int = 3
    """Goods rated high, and rated low, that are named in the context."""
    huber_delta: float = 0.25
    """Error at which the loss turns from squared to linear, as a share of the scale: a star of
    five is a quarter."""
    seed: int = 0
    """Chooses ratings and items, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_span(self.first, self.split, self.last)
        check_counts(self, "category_level", "train_ratings", "test_ratings", "slate", "named")
        check_slate(self.habits, self.slate)
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise ConfigError(
                f"lowest and highest are {self.lowest}, {self.highest}; they must be in order."
            )
        check_huber(self.huber_delta)

    @property
    def objective(self) -> Bounded:
        """A place on the scale, in [0, 1]."""
        return Bounded(low=0.0, high=1.0, delta=self.huber_delta)

    @property
    def outputs(self) -> int:
        """One value."""
        return self.objective.outputs

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """What everyone gives; what an item is given; regression on the features."""
        return ("mean", "mean-by-group", "median-by-group", "linear-local", "linear-pooled")

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """What the customer did with the item, and how they rated what is like it."""
        return NUMERIC

    def public_texts(self) -> list[str]:
        """Made-up items and relations, in the words of the examples' texts."""
        return public_texts()

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order; the label is the scaled rating.

        Raises:
            NoExamplesError: nobody rated anything then.
        """
        rows = self._rows(silo, STATEMENTS)
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: nobody rated an item for the first time between "
                f"{self.first:%Y-%m-%d} and {self.last:%Y-%m-%d}. Ratings are events of kind "
                "'rate' (docs/data.md); check the task's first and last."
            )
        return self._examples(rows, [[r["label"]] for r in rows])

    def build_at(self, silo: SiloFolder, date: dt.datetime, *, most: int | None = None) -> Examples:
        """Ask every customer seen before ``date`` about items that they have not rated.

        Of ``slate`` items; see `silotune.tasks.base.AsksAt`.
        """
        slate = self.slate if most is None else min(self.slate, most)
        at = replace(self, slate=slate, habits=min(self.habits, slate))
        moment = dt.timedelta(microseconds=1)
        at = replace(at, first=date - moment, split=date, last=date + moment)
        rows = at._rows(SiloAsOf.of(silo, date), STATEMENTS_AT)  # noqa: SLF001  # own
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: there are no ratings, or no customer was seen before {date}. Ask "
                "about a date that the tables cover."
            )
        return self._examples(rows, [[math.nan]] * len(rows))

    def _examples(self, rows: list[dict[str, Any]], labels: list[list[float]]) -> Examples:
        return Examples(
            text=[text_of(r) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array([numeric_of(r) for r in rows], dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=numbered(r["user_id"] for r in rows),
            visit_E=numbered((r["user_id"], r["time"]) for r in rows),
            group=[r["title"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=self.objective,
            keys=keys_of(rows, "user_id", "time", "item_id", "title"),
        )

    def _rows(self, silo: SiloFolder, statements: tuple[str, ...]) -> list[dict[str, Any]]:
        if not silo.has(RATINGS):
            return []
        fields = ("first", "split", "last", "lowest", "highest", "train_ratings", "test_ratings")
        own = {f: getattr(self, f) for f in (*fields, "slate", "habits", "named", "seed")}
        return rows_of(silo, statements, {"level": self.category_level} | own)
