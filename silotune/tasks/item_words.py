"""A customer and a candidate as words and bounded numbers. Every edge and scale is public."""

import itertools
import math
from typing import Any

from silotune.tasks.bands import word_for

__all__ = ["NUMERIC", "context_of", "numeric_of", "public_texts", "text_of"]

NUMERIC = (
    "times",
    "share",
    "share_8_weeks",
    "recency_week",
    "recency_month",
    "recency_half_year",
    "due",
    "expected",
    "related_share",
    "related_recency",
    "otherwise_recency",
    "visit_rate",
    "visits_8_weeks",
    "visit_recency",
    "breadth",
    "range",
    "cold_start",
)

_Row = dict[str, Any]


def numeric_of(row: _Row, *, cold_visits: int) -> list[float]:
    """Return the features of `NUMERIC`, each in [0, 1], of a row of `item_sql`."""
    times, visits, since = row["times"], row["visits"], _weeks(row["weeks_since"])
    return [
        min(1.0, math.log1p(times) / 4),
        # +2: a share of one visit is no habit yet.
        times / (visits + 2),
        row["times_8"] / (row["visits_8"] + 2),
        math.exp(-since),
        math.exp(-since / 4),
        math.exp(-since / 26),
        # How long ago beside how long there usually is between: 1/2 is now.
        since / (since + _gap(row)) if times else 0.0,
        # The chance of at least one if they came at the rate so far (Poisson).
        -math.expm1(-row["horizon_weeks"] * times / (row["tenure"] + 4)),
        row["related_times"] / (visits + 2),
        math.exp(-_weeks(row["related_weeks"]) / 4),
        math.exp(-_weeks(row["else_weeks"]) / 4),
        -math.expm1(-row["horizon_weeks"] * row["visits_8"] / 8),
        min(1.0, math.log1p(row["visits_8"]) / 4),
        math.exp(-row["visit_weeks"] / 2),
        row["breadth"] / (row["breadth"] + 20),
        min(1.0, math.log1p(row["items"]) / 8),
        float(visits < cold_visits),
    ]


def _weeks(found: float | None) -> float:
    return math.inf if found is None else float(found)


def _gap(row: _Row) -> float:
    """Return the usual weeks from one time to the next; after one time, all those known of."""
    if row["times"] < 2:
        return max(0.1, float(row["tenure"]))
    between: float = (row["weeks_first"] - row["weeks_since"]) / (row["times"] - 1)
    return max(0.1, between)


def text_of(row: _Row, *, verb: str) -> str:
    """Return what an encoder's states are pooled over: the candidate, and how they relate.

    Args:
        row: of `item_sql`.
        verb: what is asked about, as a participle: bought, clicked.
    """
    path = [row["title"], *reversed(row["category"].split(" > "))]
    related = _share(row["related_times"] / (row["visits"] + 1))
    seen = "" if row["else_weeks"] is None else f", otherwise {_when(row['else_weeks'])}"
    return f"{', '.join(p for p in path if p)}. {_relation(row, verb)}, related {related}{seen}"


def context_of(row: _Row) -> str:
    """Return what the text is read in the light of: who the customer is."""
    usual = ", ".join(row["usual"]) or "unknown"
    recent = ", ".join(row["recent"]) or "unknown"
    edges = ((0.2, "hardly ever"), (0.6, "twice a month"), (1.3, "weekly"))
    often = word_for(row["visits_8"] / 8, edges, "several times a week")
    tenure = word_for(row["tenure"], ((8, "weeks"), (26, "months")), "long")
    return (
        f"comes {often}, last {_when(row['visit_weeks'])}, customer for {tenure}. "
        f"usual: {usual}. recent: {recent}"
    )


def _relation(row: _Row, verb: str) -> str:
    times = row["times"]
    if not times:
        return f"never {verb}"
    when = f"last {_when(row['weeks_since'])}"
    if times == 1:
        return f"{verb} once, {when}"
    gap = _gap(row)
    edges = ((0.7, "several times a week"), (1.5, "weekly"), (3, "every two weeks"), (7, "monthly"))
    due = ((0.5, "not due"), (1.5, "due"), (3, "overdue"))
    return (
        f"{verb} {_share(times / (row['visits'] + 1))}, {word_for(gap, edges, 'rarely')}, {when}, "
        f"{word_for(row['weeks_since'] / gap, due, 'long overdue')}"
    )


def _share(share: float) -> str:
    return word_for(share, ((1e-9, "never"), (0.2, "sometimes"), (0.5, "often")), "always")


def _when(weeks: float) -> str:
    edges = ((1, "this week"), (2, "last week"), (4.5, "this month"))
    return word_for(weeks, edges, "months ago")


def public_texts(verb: str) -> list[str]:
    """Return texts of candidates and customers that do not exist, over the whole range of words."""
    # A length without a common divisor with that of the relations: every ware meets many.
    relations = itertools.cycle(
        {
            "times": times,
            "weeks_since": gap * late if times else None,
            "weeks_first": gap * (late + times - 1),
            "visits": round(times / share),
            "related_times": round(times / share * related),
            "tenure": 40.0,
            "else_weeks": other,
        }
        for times, gap, late, share, related, other in _RELATIONS
    )
    return [
        text_of({"title": None, "category": path, **next(relations)}, verb=verb)
        for path in _PATHS
        for _ in range(3)
    ]


# Times, weeks between, how late beside that, share of visits, share of related, weeks since else.
_RELATIONS = (
    (0, 1.0, 1.0, 0.1, 0.0, None),
    (12, 1.0, 0.4, 0.6, 0.8, None),
    (0, 1.0, 1.0, 0.1, 0.3, 0.5),
    (1, 1.0, 5.0, 0.1, 0.1, None),
    (6, 2.0, 1.0, 0.3, 0.4, None),
    (3, 5.0, 0.2, 0.1, 0.3, 1.5),
    (20, 0.5, 2.0, 0.9, 0.9, 3.0),
    (1, 1.0, 0.5, 0.2, 0.4, None),
    (4, 8.0, 0.5, 0.15, 0.6, None),
    (3, 1.2, 4.0, 0.3, 0.3, 9.0),
    (0, 1.0, 1.0, 0.1, 0.7, None),
)
# Everyday shelves of many kinds of shop: no merchant's catalogue is read for it.
_SHELVES = {
    "grocery": "soft drinks, cereal, canned soup, pasta, rice, coffee, tea, snacks, candy, cookies,"
    " spices, olive oil, baby food, pet food, frozen pizza, ice cream, juice, water",
    "dairy": "milk, cheese, yogurt, butter, eggs",
    "produce": "bananas, apples, berries, potatoes, onions, salad, tomatoes, flowers",
    "meat": "beef, chicken, pork, sausages, fish, bacon",
    "bakery": "bread, cakes, rolls",
    "drugstore": "shampoo, soap, toothpaste, vitamins, makeup, diapers, cold medicine",
    "household": "laundry detergent, paper towels, trash bags, batteries, candles",
    "clothing": "t-shirts, shoes, jeans, socks, jackets, dresses",
    "electronics": "headphones, phones, laptops, cameras",
    "home and garden": "pillows, towels, cookware, paint, tools, garden soil",
    "leisure": "books, toys, magazines, notebooks, sports gear",
}
_PATHS = [f"{shelf} > {ware}" for shelf, wares in _SHELVES.items() for ware in wares.split(", ")]
