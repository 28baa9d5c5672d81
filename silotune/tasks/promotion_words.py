"""A customer's past with what is offered, as words and bounded numbers. Every scale is public."""

import math
from typing import Any

__all__ = ["NUMERIC", "WARES", "context_of", "numeric_of", "text_of"]

NUMERIC = (
    "category_visits",
    "category_share",
    "recency_month",
    "recency_half_year",
    "item_visits",
    "usual_depth",
)

# Everyday wares of many kinds of shop: the public ground on which the text part of the head
# is centred and scaled. No merchant's catalogue is read for it.
WARES = (  # noqa: SIM905  # a list of a hundred lines reads worse
    "milk, bread, bananas, cheese, yogurt, eggs, butter, coffee, tea, cola, beer, wine, water, "
    "orange juice, apples, grapes, tomatoes, potatoes, onions, lettuce, chicken, beef, pork, "
    "sausage, bacon, fish, shrimp, frozen pizza, frozen vegetables, ice cream, cereal, oatmeal, "
    "pasta, rice, soup, canned beans, tuna, peanut butter, jam, honey, sugar, flour, salt, spices, "
    "olive oil, ketchup, mustard, salad dressing, potato chips, crackers, cookies, candy, "
    "chocolate, gum, nuts, dog food, cat food, diapers, baby food, shampoo, soap, toothpaste, "
    "deodorant, razors, lotion, makeup, vitamins, cold medicine, bandages, laundry detergent, "
    "dish soap, paper towels, toilet paper, trash bags, batteries, light bulbs, magazines, "
    "greeting cards, flowers, toys, t-shirts, shoes, jeans, socks, jacket, headphones, "
    "phone case, laptop, camera, books, notebook, pens, garden soil, tools, paint, charcoal, "
    "bath towels, pillows, candles, cookware"
).split(", ")


def numeric_of(row: dict[str, Any]) -> list[float]:
    """Return the features of `NUMERIC`, each in [0, 1], of a row of `promotion_sql`."""
    visits, past = row["category_visits"], row["past_visits"]
    weeks = math.inf if row["weeks_since"] is None else row["weeks_since"]
    return [
        min(1.0, math.log1p(visits) / 4),
        # +2: a share after one visit is no habit yet.
        visits / (past + 2),
        math.exp(-weeks / 4),
        math.exp(-weeks / 26),
        row["item_visits"] / (past + 2),
        float(row["usual_depth"]),
    ]


def text_of(row: dict[str, Any]) -> str:
    """Return what an encoder's states are pooled over: the offer, and the relation to it."""
    path = row["category"].split(" > ")
    parts = [path[-1], *reversed(path[1:-1]), f"{row['brand']} brand" if row["brand"] else ""]
    where = " ".join(w for w in (row["mechanic"], row["placement"]) if w)
    depth = f"{round(20 * row['depth']) * 5} percent off" if row["depth"] >= 0.025 else ""
    offer = ", ".join(p for p in (*parts, where, depth) if p)
    return f"{offer}. {_relation(row)}"


def context_of(row: dict[str, Any]) -> str:
    """Return what the text is read in the light of: habits."""
    usual = ", ".join(row["usual"]) or "unknown"
    recent = ", ".join(row["recent"]) or "unknown"
    return (
        f"spends {_spend(row['spend'])}, {_habit(row['deal_share'], 'deals')}, "
        f"{_habit(2 * row['coupon_share'], 'coupons')}. usual: {usual}. recent: {recent}"
    )


def _relation(row: dict[str, Any]) -> str:
    visits = row["category_visits"]
    if not visits:
        return "never bought"
    share = visits / row["past_visits"]
    how = (
        "always"
        if share > 0.5
        else "often"
        if share > 0.2
        else "sometimes"
        if visits > 1
        else "once"
    )
    weeks = row["weeks_since"]
    when = "this week" if weeks < 1 else "this month" if weeks < 4.5 else "months ago"
    same = ", these items" if row["item_visits"] else ""
    usual = round(20 * row["usual_depth"]) * 5
    return f"bought {how}, {when}{same}" + (f", usually {usual} percent off" if usual else "")


def _spend(amount: float) -> str:
    # Public edges, in the currency of the tables.
    for edge, word in ((10, "little"), (30, "some"), (70, "much")):
        if amount < edge:
            return word
    return "very much"


def _habit(share: float, what: str) -> str:
    return f"{'many' if share > 0.5 else 'some' if share > 0.1 else 'no'} {what}"
