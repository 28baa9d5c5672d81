"""Customers in plain words for the merchant's own people: bands with public edges.

Other words than those of the examples' texts: a person wants the figures of a band, a model the
words that its base knows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from silotune.tasks.base import Traits

__all__ = ["traits_of"]

_Edges = tuple[tuple[float, str], ...]


def traits_of(rows: Sequence[dict[str, Any]]) -> Traits:
    """Return the traits of rows of `customer_sql`, one row for a customer."""
    return Traits(
        user_id=[row["user_id"] for row in rows],
        words={
            name: [_band(value(row), edges, last) for row in rows]
            for name, (value, edges, last) in _TRAITS.items()
        },
        habits=[list(row["usual"]) for row in rows],
    )


def _band(value: float, edges: _Edges, last: str) -> str:
    return next((word for edge, word in edges if value < edge), last)


def _trend(row: dict[str, Any]) -> float:
    # Of twelve weeks, the last four hold a third where nothing changes.
    return float(row["visits_4"] / row["visits_12"]) if row["visits_12"] else 0.0


_TRAITS: dict[str, tuple[Callable[[dict[str, Any]], float], _Edges, str]] = {
    "last visit": (
        lambda row: float(row["weeks_since"]),
        ((1, "within a week"), (2, "one to two weeks ago"), (4, "two to four weeks ago")),
        "more than four weeks ago",
    ),
    "visits": (
        lambda row: row["visits_12"] / 12,
        ((0.2, "less than once a month"), (0.6, "once or twice a month"), (1.2, "about weekly")),
        "more than weekly",
    ),
    "visits lately": (_trend, ((0.2, "fewer"), (0.47, "as before")), "more"),
    "spend a week": (
        lambda row: row["spend_12"] / 12,
        ((2, "under 2"), (8, "2 to 8"), (20, "8 to 20"), (45, "20 to 45"), (90, "45 to 90")),
        "90 or more",
    ),
    "purchases at a discount": (
        lambda row: float(row["deal_share"]),
        ((0.1, "under a tenth"), (1 / 3, "a tenth to a third"), (0.5, "a third to a half")),
        "half or more",
    ),
    "coupons": (lambda row: float(row["coupon_share"]), ((0.005, "hardly ever"),), "used"),
    "customer for": (
        lambda row: float(row["tenure"]),
        ((8, "less than two months"), (26, "two to six months")),
        "more than half a year",
    ),
}
