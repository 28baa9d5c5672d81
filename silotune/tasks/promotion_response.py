"""Promotion response: will this customer, on this visit, buy from this offer?

Text carries who the customer is, their relation to this offer, and the offer. A few numeric
features carry the relation once more, as bounded numbers, because a text encoder reads small
numbers badly. Both use only what the customer did before the visit.
"""

import datetime as dt
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from silotune.config import config
from silotune.errors import DataError
from silotune.tables.as_of import SiloAsOf
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, keys_of
from silotune.tasks.checks import check_counts, check_span
from silotune.tasks.objective import Binary
from silotune.tasks.promotion_sql import STATEMENTS
from silotune.tasks.promotion_words import NUMERIC, WARES
from silotune.tasks.promotion_words import context_of as _context
from silotune.tasks.promotion_words import numeric_of as _numeric
from silotune.tasks.promotion_words import text_of as _text
from silotune.tasks.sql_run import rows_of

__all__ = ["PromotionResponse"]

_PUBLIC = (
    ("national", "mailer interior page feature", 5, "never bought"),
    ("private", "display front end cap", 20, "bought once, months ago"),
    ("national", "display in-aisle", 15, "never bought"),
    ("private", "mailer front page feature", 30, "bought often, this month"),
    ("national", "display store rear", 10, "never bought"),
    ("national", "mailer back page", 25, "bought sometimes, this week, these items"),
)


@config
class PromotionResponse:
    """Parameters of the task. All are public; none depends on a silo's data."""

    name: Literal["promotion-response"] = "promotion-response"
    """Which task this is; a file that does not say means this one."""
    split: dt.datetime
    """Examples before it train, examples from it on test."""
    first: dt.datetime
    """Visits before it are history only."""
    last: dt.datetime
    """Visits from it on are ignored."""
    category_level: int = 3
    """Levels of the category path that make one offer."""
    train_visits: int = 2
    """Visits per user before the split. A cap per user, never over users."""
    test_visits: int = 2
    """Visits per user after the split."""
    positives: int = 2
    """Offers per visit that were taken up, at most."""
    negatives: int = 4
    """Offers per training visit that were not, at most."""
    test_negatives: int = 9
    """Offers per test visit that were not, at most: what the ranking metrics rank among."""
    usual: int = 3
    """Usual categories named in the text."""
    recent: int = 2
    """Recent categories named in the text."""
    seed: int = 0
    """Chooses visits and offers, by hash."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_span(self.first, self.split, self.last)
        counts = ("category_level", "train_visits", "test_visits", "positives")
        check_counts(self, *counts, "negatives", "test_negatives")

    @property
    def objective(self) -> Binary:
        """Bought or not; the offers of a visit are ranked."""
        return Binary(ranked=True)

    @property
    def outputs(self) -> int:
        """One logit."""
        return self.objective.outputs

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """What sells at this merchant; logistic regression on the relation features."""
        return ("popularity", "logistic-local", "logistic-pooled")

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """How often, how recently, at which depth this customer bought what is offered."""
        return NUMERIC

    def public_texts(self) -> list[str]:
        """Made-up offers and relations, in the words of the examples' texts."""
        return [
            f"{ware}, {brand} brand, {where}, {depth} percent off. {relation}"
            for i, ware in enumerate(WARES)
            for brand, where, depth, relation in (_PUBLIC[i % 3], _PUBLIC[3 + i % 3])
        ]

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of one silo, in a fixed order.

        Raises:
            DataError: no visit of the silo meets a running promotion within the time span.
        """
        rows = self._rows(silo)
        if not rows:
            raise DataError(
                f"{silo.path}: no visit between {self.first:%Y-%m-%d} and {self.last:%Y-%m-%d} "
                "falls within a promotion. Check the task's first, split and last against "
                "`silotune data check`."
            )
        return self._examples(rows, [[r["label"]] for r in rows])

    def build_at(self, silo: SiloFolder, date: dt.datetime) -> Examples:
        """Ask about every offer that runs on ``date``, to every customer seen before it.

        As if all of them visited at that moment; see `silotune.tasks.base.AsksAt`.
        """
        moment = dt.timedelta(microseconds=1)
        at = replace(
            self,
            first=date - moment,
            split=date,
            last=date + moment,
            test_visits=1,
            # Nothing is taken up yet: every offer counts as one that was not.
            test_negatives=2**31 - 1,
        )
        known = SiloAsOf.of(silo, date, visit=True)
        rows = [r for r in at._rows(known) if r["test"]]  # noqa: SLF001  # own
        if not rows:
            raise DataError(
                f"{silo.path}: no promotion runs on {date}, or no customer was seen before it. "
                "Ask about a date that the tables cover."
            )
        found = self._examples(rows, [[math.nan]] * len(rows))
        return replace(found, keys={k: v for k, v in found.keys.items() if k != "visit_id"})

    def _examples(self, rows: list[dict[str, Any]], labels: list[list[float]]) -> Examples:
        users = {u: i for i, u in enumerate(dict.fromkeys(r["user_id"] for r in rows))}
        visits = {
            v: i for i, v in enumerate(dict.fromkeys((r["user_id"], r["visit_id"]) for r in rows))
        }
        return Examples(
            text=[_text(r) for r in rows],
            context=[_context(r) for r in rows],
            numeric_EF=np.array([_numeric(r) for r in rows], dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=np.array([users[r["user_id"]] for r in rows], dtype=np.int64),
            visit_E=np.array([visits[r["user_id"], r["visit_id"]] for r in rows], dtype=np.int64),
            group=[r["category"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=self.objective,
            keys=keys_of(
                rows, "user_id", "visit_id", "time", "category", "offer_start", "offer_end"
            ),
        )

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        parameters = {
            "level": self.category_level,
            "split": self.split,
            "first": self.first,
            "last": self.last,
            "seed": self.seed,
            "train_visits": self.train_visits,
            "test_visits": self.test_visits,
            "positives": self.positives,
            "negatives": self.negatives,
            "test_negatives": self.test_negatives,
            "usual": self.usual,
            "recent": self.recent,
        }
        return rows_of(silo, STATEMENTS, parameters)
