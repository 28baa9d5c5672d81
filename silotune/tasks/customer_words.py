"""A customer's past as words, bounded numbers and an RFM cell. Every edge and scale is public."""

import itertools
import math
from typing import Any

from silotune.tasks.bands import word_for

__all__ = [
    "NUMERIC",
    "context_of",
    "group_of",
    "made_up_rows",
    "numeric_of",
    "public_texts",
    "text_of",
]

NUMERIC = (
    "recency_fortnight",
    "recency_two_months",
    "overdue",
    "visits_ever",
    "visits_12_weeks",
    "visits_4_weeks",
    "active_weeks",
    "tenure",
    "spend_ever",
    "spend_12_weeks",
    "spend_4_weeks",
    "basket",
    "visit_trend",
    "spend_trend",
    "breadth",
    "deal_share",
    "coupon_share",
)

_Row = dict[str, Any]


def numeric_of(row: _Row) -> list[float]:
    """Return the features of `NUMERIC`, each in [0, 1], of a row of `customer_sql`."""
    weeks, tenure = row["weeks_since"], row["tenure"]
    return [
        math.exp(-weeks / 2),
        math.exp(-weeks / 8),
        # How long they have been away beside how long they usually are: 1/2 is as usual.
        weeks / (weeks + _gap(row)),
        _count(row["visits"], 5),
        _count(row["visits_12"], 4),
        _count(row["visits_4"], 3),
        row["active_weeks"] / 12,
        tenure / (tenure + 26),
        _money(row["spend"] / max(tenure, 1.0)),
        _money(row["spend_12"] / 12),
        _money(row["spend_4"] / 4),
        _money(row["spend"] / row["visits"]),
        # A third of what twelve weeks held is as usual; +1: little seen is no trend.
        (row["visits_4"] + 1 / 3) / (row["visits_12"] + 1),
        min(1.0, (max(0.0, row["spend_4"]) + 5) / (max(0.0, row["spend_12"]) + 15)),
        row["families_12"] / (row["families_12"] + 10),
        float(row["deal_share"]),
        float(row["coupon_share"]),
    ]


def _gap(row: _Row) -> float:
    """Return the usual weeks from one visit to the next; at least half a day's worth of one."""
    between: float = (row["tenure"] - row["weeks_since"]) / max(1, row["visits"] - 1)
    return max(0.1, between)


def _count(number: int, scale: float) -> float:
    return min(1.0, math.log1p(number) / scale)


def _money(amount: float) -> float:
    # exp(6) is about 400, in the currency of the tables.
    return min(1.0, math.log1p(max(0.0, amount)) / 6)


def text_of(row: _Row) -> str:
    """Return what an encoder's states are pooled over: when, how often, how much, and where to."""
    return (
        f"last visit {_when(row['weeks_since'])}, {_overdue(row)}. "
        f"comes {_often(row)}, {_trend(row['visits_4'], row['visits_12'], 'visits')}. "
        f"spends {_spend(row['spend_12'] / 12)}, {_trend(row['spend_4'], row['spend_12'], 'spend')}"
        f". customer for {_tenure(row['tenure'])}"
    )


def context_of(row: _Row) -> str:
    """Return what the text is read in the light of: habits."""
    usual = ", ".join(row["usual"]) or "unknown"
    recent = ", ".join(row["recent"]) or "unknown"
    return (
        f"usual: {usual}. recent: {recent}. {_habit(row['deal_share'], 'deals')}, "
        f"{_habit(2 * row['coupon_share'], 'coupons')}"
    )


def group_of(row: _Row) -> str:
    """Return the customer's RFM cell: recency, frequency and money in three or four steps each."""
    recency = _step(row["weeks_since"], (1, 2, 4))
    frequency = _step(row["visits_12"], (3, 6, 12))
    money = _step(row["spend_12"] / 12, (5, 25))
    return f"R{recency} F{frequency} M{money}"


def _step(value: float, edges: tuple[int, ...]) -> int:
    return sum(value >= edge for edge in edges)


def _when(weeks: float) -> str:
    edges = ((0.5, "days ago"), (1, "this week"), (2, "last week"), (4.5, "weeks ago"))
    return word_for(weeks, edges, "months ago")


def _overdue(row: _Row) -> str:
    edges = ((0.5, "soon after the one before"), (1.5, "as usual"), (3, "later than usual"))
    return word_for(row["weeks_since"] / _gap(row), edges, "long overdue")


def _often(row: _Row) -> str:
    edges = ((0.1, "hardly ever"), (0.25, "once a month"), (0.6, "twice a month"), (1.2, "weekly"))
    return word_for(row["visits_12"] / 12, edges, "several times a week")


def _trend(four: float, twelve: float, what: str) -> str:
    if twelve <= 0:
        return f"no {what} lately"
    # Of twelve weeks, the last four hold a third where nothing changes.
    edges = ((0.01, f"no {what} this month"), (0.2, f"less {what}"), (0.47, f"steady {what}"))
    return word_for(four / twelve, edges, f"more {what}")


def _spend(amount: float) -> str:
    edges = ((2, "nearly nothing"), (8, "little"), (20, "some"), (45, "much"))
    return word_for(amount, edges, "very much")


def _tenure(weeks: float) -> str:
    return word_for(weeks, ((8, "weeks"), (20, "months"), (40, "half a year")), "long")


def _habit(share: float, what: str) -> str:
    return f"{'many' if share > 0.5 else 'some' if share > 0.1 else 'no'} {what}"


def public_texts() -> list[str]:
    """Return texts of customers who do not exist, over the whole range of the words."""
    return [text_of(row) for row in made_up_rows()]


def made_up_rows() -> list[_Row]:
    """Return rows as `customer_sql` gives them, of customers who do not exist."""
    rows = []
    for step, (weeks, visits, share) in enumerate(itertools.product(_WEEKS, _VISITS, _SHARES)):
        spend, tenure = _SPENDS[step % len(_SPENDS)], _TENURES[step % len(_TENURES)]
        deals = _DEALS[step % len(_DEALS)]
        rows.append(
            {
                "weeks_since": weeks,
                "tenure": tenure + weeks,
                "visits": 1 + round(visits * tenure / 12),
                "visits_12": visits,
                "visits_4": round(share * visits),
                "active_weeks": min(12, visits),
                "spend": spend * max(1.0, tenure / 12),
                "spend_12": spend,
                "spend_4": share * spend,
                "families_12": 2 * visits,
                "deal_share": deals,
                "coupon_share": deals / 10,
                "usual": [],
                "recent": [],
            }
        )
    return rows


_WEEKS = (0.3, 0.8, 1.6, 3.0, 6.0)
_VISITS = (1, 2, 5, 10, 20)
_SHARES = (0.0, 0.1, 0.35, 0.7)
# Of lengths without a common divisor with that of the shares: every word meets every other.
_SPENDS = (10.0, 60.0, 150.0, 400.0, 900.0)
_TENURES = (5.0, 15.0, 60.0)
_DEALS = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9)
