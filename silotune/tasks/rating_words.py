"""A customer and an item not rated yet, as words and bounded numbers. Every scale is public."""

import itertools
import math
from typing import Any

from silotune.tasks import product_words
from silotune.tasks.bands import word_for

__all__ = ["NUMERIC", "context_of", "numeric_of", "public_texts", "text_of"]

NUMERIC = (
    "times_bought",
    "recency_half_year",
    "looked_at",
    "category_share",
    "ratings",
    "mean",
    "brand_mean",
    "brand_known",
    "category_mean",
    "category_known",
    *product_words.NUMERIC,
)

_Row = dict[str, Any]


def numeric_of(row: _Row) -> list[float]:
    """Return the features of `NUMERIC`, each in [0, 1], of a row of `rating_sql`."""
    weeks = math.inf if row["weeks_since"] is None else float(row["weeks_since"])
    own = _mean(row)
    return [
        min(1.0, math.log1p(row["times"]) / 4),
        math.exp(-weeks / 26),
        float(row["looked"]),
        # +2: a share of one visit is no habit yet.
        row["category_visits"] / (row["visits"] + 2),
        min(1.0, math.log1p(row["ratings"]) / 6),
        own,
        *_of(row, "brand", own),
        *_of(row, "category", own),
        *product_words.numeric_of(row),
    ]


def _mean(row: _Row) -> float:
    """Return the customer's mean rating; the middle of the scale counts as one of them."""
    return float((row["total"] + 0.5) / (row["ratings"] + 1))


def _of(row: _Row, what: str, own: float) -> tuple[float, float]:
    """Return their mean rating of the same brand or category, and how much there is to it."""
    count = row[f"{what}_ratings"]
    return (row[f"{what}_total"] + own) / (count + 1), count / (count + 1)


def text_of(row: _Row) -> str:
    """Return what an encoder's states are pooled over: the item, and how they relate to it."""
    path = [product_words.text_of(row), *reversed(row["category"].split(" > "))]
    own = _mean(row)
    said = [_bought(row)]
    for what in ("brand", "category"):
        mean, known = _of(row, what, own)
        if known:
            said.append(f"{what} rated {_grade(mean)}")
    return f"{', '.join(p for p in path if p)}. {', '.join(said)}"


def context_of(row: _Row) -> str:
    """Return what the text is read in the light of: brand and size, and who rates."""
    count = word_for(row["ratings"], ((1, "no"), (5, "few"), (20, "some")), "many")
    liked, disliked = (", ".join(row[what]) or "unknown" for what in ("liked", "disliked"))
    return (
        f"{product_words.context_of(row)}. {count} ratings, {_grade(_mean(row))}. "
        f"liked: {liked}. disliked: {disliked}"
    )


def _bought(row: _Row) -> str:
    if not row["times"]:
        return "looked at, never bought" if row["looked"] else "never bought"
    how = word_for(row["times"], ((2, "once"), (5, "sometimes")), "often")
    when = word_for(row["weeks_since"], ((1, "this week"), (4.5, "this month")), "months ago")
    return f"bought {how}, {when}"


def _grade(value: float) -> str:
    edges = ((0.2, "very low"), (0.4, "low"), (0.6, "middling"), (0.8, "high"))
    return word_for(value, edges, "very high")


def public_texts() -> list[str]:
    """Return made-up items and relations, in the words of the examples' texts."""
    # Of lengths without a common divisor with that of the titles: every word meets many.
    past, means = itertools.cycle(_BOUGHT), itertools.cycle((0.05, 0.3, 0.5, 0.7, 0.95))
    rows: list[_Row] = []
    for title in product_words.public_texts():
        (times, weeks, looked), mean = next(past), next(means)
        row = {"title": title, "category": "", "times": times, "weeks_since": weeks}
        ratings = {"ratings": 9, "brand_ratings": 3 * bool(times), "category_ratings": 9}
        totals = {name.replace("ratings", "total"): mean * n for name, n in ratings.items()}
        rows.append(row | {"looked": looked} | ratings | totals)
    return [text_of(row) for row in rows]


# Times bought, weeks since, whether looked at without that.
_BOUGHT = (
    (1, 0.5, False),
    (0, None, False),
    (3, 2.0, False),
    (0, None, True),
    (9, 0.5, False),
    (1, 20.0, False),
    (6, 9.0, False),
)
