"""What the discount tasks share: which visits are looked at, and what is said of them."""

import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np

from silotune.config import config
from silotune.errors import NoExamplesError
from silotune.tables.as_of import SiloAsOf
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, keys_of, numbered
from silotune.tasks.checks import check_counts, check_span
from silotune.tasks.objective import Objective
from silotune.tasks.promotion_words import context_of, text_of
from silotune.tasks.sql_run import ALL, rows_of

__all__ = ["DiscountVisits", "nobody", "without_visit"]


@config
class DiscountVisits:
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
        *names: str,
    ) -> Examples:
        return Examples(
            # The depth is the question; these items are the whole category of `discount-depth`.
            text=[text_of(r | {"depth": 0.0}) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array(numeric, dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=numbered(r["user_id"] for r in rows),
            visit_E=numbered((r["user_id"], r["visit_id"]) for r in rows),
            group=[r["category"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=objective,
            keys=keys_of(rows, "user_id", "visit_id", "time", "category", *names),
        )

    def _rows_at(
        self, silo: SiloFolder, date: dt.datetime, most: int | None, statements: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        """Return what can be asked as if everyone seen before ``date`` visited at that moment."""
        moment = dt.timedelta(microseconds=1)
        at = replace(self, first=date - moment, split=date, last=date + moment, test_visits=1)
        known = SiloAsOf.of(silo, date, visit=True, running=True)
        asked = {"most": ALL if most is None else most}
        rows = rows_of(known, statements, at._parameters() | asked)  # noqa: SLF001  # own
        return [r for r in rows if r["test"]]

    def _nothing(self, silo: SiloFolder, what: str) -> NoExamplesError:
        return NoExamplesError(
            f"{silo.path}: between {self.first:%Y-%m-%d} and {self.last:%Y-%m-%d} {what}. Check "
            "the task's first, split, last and least_purchases against `silotune data check`."
        )


def nobody(silo: SiloFolder, date: dt.datetime, what: str) -> NoExamplesError:
    """Return the error of a date with nothing to ask; ``what`` else may be the reason."""
    return NoExamplesError(
        f"{silo.path}: {what}no customer bought anything before {date} as often as the task's "
        "least_purchases. Ask about a date that the tables cover."
    )


def without_visit(examples: Examples) -> Examples:
    """Return the same rows, without the name of a visit that stands for none."""
    return replace(examples, keys={k: v for k, v in examples.keys.items() if k != "visit_id"})
