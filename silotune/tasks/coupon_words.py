"""A customer and a campaign of coupons as words and bounded numbers. Every scale is public."""

import itertools
import math
import re
from typing import Any

from silotune.tasks.promotion_words import WARES

__all__ = ["NUMERIC", "kind_of", "numeric_of", "public_texts", "text_of"]

NUMERIC = (
    "item_share",
    "items_known",
    "item_recency",
    "category_share",
    "coupon_visits",
    "coupon_share",
    "coupon_recency_month",
    "coupon_recency_half_year",
    "campaigns_sent",
    "campaigns_redeemed",
    "visit_rate",
    "visit_recency",
    "deal_share",
    "range",
    "weeks",
)

_Row = dict[str, Any]


def numeric_of(row: _Row) -> list[float]:
    """Return the features of `NUMERIC`, each in [0, 1], of a row of `coupon_sql`."""
    past = row["past_visits"] + 2  # a share of one visit is no habit yet
    coupon = _weeks(row["coupon_weeks"])
    return [
        row["item_visits"] / past,
        min(1.0, math.log1p(row["items_known"]) / 5),
        math.exp(-_weeks(row["item_weeks"]) / 4),
        row["category_visits"] / past,
        min(1.0, math.log1p(row["coupon_visits"]) / 4),
        row["coupon_visits"] / past,
        math.exp(-coupon / 4),
        math.exp(-coupon / 26),
        min(1.0, math.log1p(row["sent"]) / 3),
        row["redeemed"] / (row["sent"] + 1),
        -math.expm1(-row["visits_8"] / 8),
        math.exp(-_weeks(row["visit_weeks"]) / 2),
        float(row["deal_share"]),
        min(1.0, math.log1p(row["items"]) / 11),
        min(1.0, row["weeks"] / 10),
    ]


def kind_of(name: str) -> str:
    """Return a campaign's name without what tells it from the others of its kind.

    >>> kind_of("type a campaign 18")
    'type a campaign'
    """
    return " ".join(re.sub(r"[\d#_/.-]+", " ", name).split()) or "campaign"


def text_of(row: _Row) -> str:
    """Return what an encoder's states are pooled over: the campaign, and how they relate to it."""
    weeks = max(1, round(row["weeks"]))
    campaign = f"{kind_of(row['name'])}, {weeks} weeks, coupons for {', '.join(row['themes'])}"
    past = row["past_visits"] + 1
    items = _share(row["item_visits"] / past)
    bought = f"these items bought {items}"
    if row["item_visits"]:
        bought += f", last {_when(row['item_weeks'])}"
    if row["known"]:
        bought += f", buys {', '.join(row['known'])}"
    used = f"coupons used {_share(row['coupon_visits'] / past)}"
    if row["coupon_visits"]:
        used += f", last {_when(row['coupon_weeks'])}"
    sent = "first campaign"
    if row["sent"]:
        sent = f"earlier campaigns redeemed {_share(row['redeemed'] / row['sent'])}"
    return f"{campaign}. {bought}. {used}, {sent}"


def public_texts() -> list[str]:
    """Return made-up campaigns and customers, in the words of the examples' texts."""
    relations = itertools.cycle(_RELATIONS)
    found = []
    for i, ware in enumerate(WARES):
        times, since, used, sent, redeemed = next(relations)
        themes = [ware, WARES[(i + 7) % len(WARES)], WARES[(i + 31) % len(WARES)]]
        row = {
            "name": ("coupon campaign", "type a campaign", "newsletter")[i % 3],
            "weeks": 4 + i % 5,
            "themes": themes,
            "known": themes[: 1 + i % 2] if times else [],
            "past_visits": 30,
            "item_visits": times,
            "item_weeks": since if times else None,
            "coupon_visits": used,
            "coupon_weeks": since + 1 if used else None,
            "sent": sent,
            "redeemed": redeemed,
        }
        found.append(text_of(row))
    return found


# Visits with the items, weeks since, visits with a coupon, campaigns sent, redeemed.
_RELATIONS = (
    (0, 0.0, 0, 0, 0),
    (25, 0.5, 2, 3, 0),
    (3, 1.5, 0, 1, 0),
    (10, 3.0, 8, 5, 4),
    (0, 0.0, 20, 2, 1),
    (1, 20.0, 1, 6, 1),
    (18, 0.2, 0, 4, 0),
)


def _weeks(found: float | None) -> float:
    return math.inf if found is None else float(found)


def _share(share: float) -> str:
    edges = ((1e-9, "never"), (0.2, "sometimes"), (0.5, "often"))
    return next((word for edge, word in edges if share < edge), "mostly")


def _when(weeks: float) -> str:
    edges = ((1, "this week"), (2, "last week"), (4.5, "this month"))
    return next((word for edge, word in edges if weeks < edge), "months ago")
