"""What the tasks about offers share: which visits meet which offers, and what is said of them.

Text carries who the customer is, their relation to this offer, and the offer. A few numeric
features carry the relation once more, as bounded numbers, because a text encoder reads small
numbers badly. Both use only what the customer did before the visit.
"""

import datetime as dt
import math
from collections.abc import Sequence
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
from silotune.tasks.promotion_sql import STATEMENTS, STATEMENTS_AT
from silotune.tasks.promotion_words import NUMERIC, WARES, context_of, numeric_of, text_of
from silotune.tasks.sql_run import ALL, rows_of

__all__ = ["PromotionSlates"]

_PUBLIC = (
    ("national", "mailer interior page feature", 5, "never bought"),
    ("private", "display front end cap", 20, "bought once, months ago"),
    ("national", "display in-aisle", 15, "never bought"),
    ("private", "mailer front page feature", 30, "bought often, this month"),
    ("national", "display store rear", 10, "never bought"),
    ("national", "mailer back page", 25, "bought sometimes, this week, these items"),
)


@config
class PromotionSlates:
    """Parameters of the tasks. All are public; none depends on a silo's data."""

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
    def simple_methods(self) -> tuple[str, ...]:
        """What sells; logistic regression and boosted trees on the relation features."""
        return ("popularity", "logistic-local", "logistic-pooled", "trees-local", "trees-pooled")

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

    def _labelled(
        self, silo: SiloFolder, objective: Objective, labels: Sequence[Sequence[float]]
    ) -> Examples:
        """Return the examples of ``silo``; ``labels`` are those of the outcomes 0 to 3."""
        rows = self._rows(silo)
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no visit between {self.first:%Y-%m-%d} and {self.last:%Y-%m-%d} "
                "falls within a promotion. Check the task's first, split and last against "
                "`silotune data check`."
            )
        return self._examples(rows, objective, [labels[r["label"]] for r in rows])

    def _asked(
        self, silo: SiloFolder, objective: Objective, date: dt.datetime, most: int | None
    ) -> Examples:
        """Return what can be asked as if everyone seen before ``date`` visited at that moment."""
        moment = dt.timedelta(microseconds=1)
        at = replace(self, first=date - moment, split=date, last=date + moment, test_visits=1)
        known = SiloAsOf.of(silo, date, visit=True, running=True)
        asked = {"least_purchases": 0, "most": ALL if most is None else most}
        found = rows_of(known, STATEMENTS_AT, at._parameters() | asked)  # noqa: SLF001  # own
        rows = [r for r in found if r["test"]]
        if not rows:
            raise NoExamplesError(
                f"{silo.path}: no promotion runs on {date}, or no customer was seen before it. "
                "Ask about a date that the tables cover."
            )
        examples = self._examples(rows, objective, [[math.nan] * objective.outputs] * len(rows))
        return replace(examples, keys={k: v for k, v in examples.keys.items() if k != "visit_id"})

    def _examples(
        self, rows: list[dict[str, Any]], objective: Objective, labels: list[Sequence[float]]
    ) -> Examples:
        return Examples(
            text=[text_of(r) for r in rows],
            context=[context_of(r) for r in rows],
            numeric_EF=np.array([numeric_of(r) for r in rows], dtype=np.float32),
            label_EK=np.array(labels, dtype=np.float32),
            user_E=numbered(r["user_id"] for r in rows),
            visit_E=numbered((r["user_id"], r["visit_id"]) for r in rows),
            group=[r["category"] for r in rows],
            test_E=np.array([r["test"] for r in rows], dtype=np.bool_),
            objective=objective,
            keys=keys_of(
                rows, "user_id", "visit_id", "time", "category", "offer_start", "offer_end"
            ),
        )

    def _rows(self, silo: SiloFolder) -> list[dict[str, Any]]:
        return rows_of(silo, STATEMENTS, self._parameters())

    def _parameters(self) -> dict[str, Any]:
        counts = ("train_visits", "test_visits", "positives", "negatives", "test_negatives")
        fields = ("split", "first", "last", *counts, "usual", "recent", "seed")
        return {"level": self.category_level} | {f: getattr(self, f) for f in fields}
