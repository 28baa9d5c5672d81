"""Item interest: who is asked about what, and what is said of it."""

import collections
import dataclasses
import datetime as dt
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from silotune.errors import ConfigError, DataError
from silotune.tasks.item_words import NUMERIC, numeric_of, text_of
from tests.tasks.items import DAY, START, TASK, USERS, asked

MILK, BREAD, DRINKS = "Dairy > Milk", "Bakery > Bread", "Drinks"


@pytest.fixture(scope="module")
def small(shop):
    events = [
        # Before `first`: history alone. Two items of one category in a visit are once.
        shop.bought("ann", "milk-1", -10, "a1"),
        shop.bought("ann", "skim", -10, "a1"),
        shop.bought("ann", "bread", -10, "a1"),
        shop.bought("ann", "milk-2", -3, "a2", kind="redeem"),
        shop.seen("ann", "tea", -2, "a2b"),
        # On a date, to the microsecond: the date's future, and the end of the days before it.
        shop.bought("ann", "tea", 14, "a3"),
        # A look is no purchase, though who looks is there; what is no longer sold is nothing.
        shop.seen("bob", "bread", 5, "b1", "click"),
        shop.seen("bob", "bread", 20, "b2", "click"),
        shop.bought("bob", "gone", 21, "b3"),
        shop.bought("cid", "skim", 60, "c1"),
        shop.bought("cid", "milk-1", 71, "c2"),
    ]
    return shop.silo_of(events, [])


def labels(shop, task, silo):
    examples = task.build(silo)
    return {k: examples.label_EK[i, 0] for k, i in asked(shop, task, silo).items()}


def test_who_is_asked_about_what_and_what_they_did_is_as_worked_out_by_hand(shop, small):
    found, examples = labels(shop, TASK, small), TASK.build(small)
    days = {who: {d for w, d, _ in found if w == who} for who in USERS}
    # The last event is 28 days ago to the microsecond at 42, or less.
    assert days == {
        "ann": {0, 14, 28, 42},
        "bob": {14, 28, 42},
        "cid": {70, 84, 98},
        "dot": set(),
        "eva": set(),
    }
    # A range of three is asked about whole.
    assert {c for *_, c in found} == {MILK, BREAD, DRINKS}
    assert len(found) == 10 * 3
    assert {k for k, taken in found.items() if taken} == {("ann", 14, DRINKS), ("cid", 70, MILK)}
    index = asked(shop, TASK, small)
    assert {bool(examples.test_E[i]) for k, i in index.items() if k[0] == "cid"} == {True}
    assert {bool(examples.test_E[i]) for k, i in index.items() if k[0] != "cid"} == {False}
    assert {examples.group[i] == k[2] for k, i in index.items()} == {True}
    # One customer is one user, one date of theirs one visit.
    assert examples.users == 3
    assert len({(k[:2], examples.visit_E[i]) for k, i in index.items()}) == 10
    assert len(set(examples.visit_E.tolist())) == 10


def test_what_is_said_is_as_worked_out_by_hand(shop, small):
    index, examples = asked(shop, TASK, small), TASK.build(small)
    ann = {c: examples.text[index["ann", 0, c]] for c in (MILK, BREAD, DRINKS)}
    assert ann == {
        MILK: "Milk, Dairy. bought always, weekly, last this week, not due, related always",
        BREAD: "Bread, Bakery. bought once, last last week, related often",
        DRINKS: "Drinks. never bought, related never, otherwise this week",
    }
    assert examples.context[index["ann", 0, MILK]] == (
        "comes twice a month, last this week, customer for weeks. usual: Milk, Bread. "
        "recent: Milk, Bread"
    )
    assert examples.context[index["bob", 14, MILK]].endswith("usual: unknown. recent: unknown")
    numeric = dict(zip(NUMERIC, examples.numeric_EF[index["ann", 0, MILK]].tolist(), strict=True))
    tenure, since = 10 / 7, 3 / 7
    assert numeric == pytest.approx(
        {
            "times": math.log(3) / 4,
            "share": 2 / 5,
            "share_8_weeks": 2 / 5,
            "recency_week": math.exp(-since),
            "recency_month": math.exp(-since / 4),
            "recency_half_year": math.exp(-since / 26),
            # One week between the two.
            "due": since / (since + 1),
            "expected": 1 - math.exp(-2 * 2 / (tenure + 4)),
            "related_share": 2 / 5,
            "related_recency": math.exp(-since / 4),
            "otherwise_recency": 0.0,
            "visit_rate": 1 - math.exp(-2 * 3 / 8),
            "visits_8_weeks": math.log(4) / 4,
            "visit_recency": math.exp(-2 / 7 / 2),
            "breadth": 2 / 22,
            "range": math.log(4) / 8,
            "cold_start": 1.0,
        },
        abs=1e-6,
    )
    tea = dict(zip(NUMERIC, examples.numeric_EF[index["ann", 0, DRINKS]].tolist(), strict=True))
    assert tea["otherwise_recency"] == pytest.approx(math.exp(-2 / 7 / 4))
    unknown = ("times", "share", "recency_half_year", "due", "expected", "related_recency")
    assert [tea[name] for name in unknown] == [0.0] * 6


def test_clicks_are_asked_about_with_the_same_builder(shop, small):
    task = dataclasses.replace(TASK, event="click")
    found, examples = labels(shop, task, small), task.build(small)
    assert {k for k, taken in found.items() if taken} == {("bob", 14, BREAD)}
    index = asked(shop, task, small)
    assert examples.text[index["bob", 28, BREAD]] == (
        "Bread, Bakery. clicked always, every two weeks, last last week, due, related always"
    )
    assert examples.text[index["ann", 0, BREAD]] == (
        "Bread, Bakery. never clicked, related never, otherwise last week"
    )
    assert all("clicked" in text for text in task.public_texts())


def test_items_are_candidates_too(shop, small):
    task = dataclasses.replace(TASK, candidate="item", slate=9)
    index, examples = asked(shop, task, small), task.build(small)
    assert {c for *_, c in index} == {"milk-1", "milk-2", "skim", "bread", "tea"}
    assert examples.text[index["ann", 0, "milk-2"]] == (
        "Whole milk, Milk, Dairy. bought once, last this week, related always"
    )
    # By the title, which two items share.
    assert "usual: Whole milk, Skim milk" not in examples.context[index["ann", 0, "bread"]]
    assert "usual: Whole milk, White bread, Whole milk" in examples.context[index["ann", 0, "tea"]]
    taken = {k for k, i in index.items() if examples.label_EK[i, 0]}
    assert taken == {("ann", 14, "tea"), ("cid", 70, "milk-1")}


def test_a_public_list_bounds_what_is_asked_about_and_not_what_is_known(shop, small):
    task = dataclasses.replace(TASK, candidates=(BREAD, DRINKS, "Fruit"))
    index, examples = asked(shop, task, small), task.build(small)
    assert {c for *_, c in index} == {BREAD, DRINKS}
    assert "usual: Milk, Bread" in examples.context[index["ann", 0, BREAD]]
    with pytest.raises(DataError, match="none of the candidates is sold here"):
        dataclasses.replace(TASK, candidates=("Fruit",)).build(small)


def test_habits_are_candidates_and_others_are_as_likely_as_they_hold_items(shop):
    # 300 categories, the next twenty after the first of ten items each; 100 customers who bought
    # of the first.
    kinds = [*range(300), *(k % 20 + 1 for k in range(180))]
    items = [(f"i{i}", "x", f"All > Kind {k:03}", None, None) for i, k in enumerate(kinds)]
    events = [shop.bought(f"u{u}", "i0", -5, f"u{u}") for u in range(100)]
    silo = shop.silo_of(events, [], items)
    first = "All > Kind 000"
    drawn = counted(dataclasses.replace(TASK, slate=10), silo, first)
    wide = [drawn.pop(f"All > Kind {k:03}") for k in range(1, 21)]
    # Nine draws of a weight of 479: a chance of about 0.17 in each of 200 slates, or 0.02.
    assert 29 < np.mean(wide) < 38
    assert min(wide) > max(drawn.values())
    assert 3.5 < np.mean(list(drawn.values())) < 4.5
    # All items are alike, and most are left out before the sort.
    drawn = counted(dataclasses.replace(TASK, candidate="item", slate=10), silo, "i0")
    # 1,800 draws from 479: 3.8 each, with a standard deviation of 1.9.
    assert len(drawn) > 450
    assert max(drawn.values()) < 14


def counted(task, silo, habit):
    """Return how often each was drawn into 200 slates of ten, each of which holds the habit."""
    slates = collections.defaultdict(set)
    for row in task._rows(silo):
        slates[row["user_id"], row["date"]].add(row["thing"])
    assert len(slates) == 200
    assert all(habit in slate and len(slate) == 10 for slate in slates.values())
    found = collections.Counter(thing for slate in slates.values() for thing in slate)
    del found[habit]
    return found


@given(st.data())
def test_features_lie_between_zero_and_one_and_every_relation_has_words(data):
    weeks = st.floats(0.0, 60.0)
    times, related = data.draw(st.integers(0, 500)), data.draw(st.integers(0, 500))
    since = data.draw(weeks) if times else None
    visits = max(times, related, 1) + data.draw(st.integers(0, 500))
    row = {
        "title": None,
        "category": "a > b",
        "times": times,
        "times_8": data.draw(st.integers(0, times)),
        "weeks_since": since,
        "weeks_first": None if since is None else since + data.draw(weeks),
        "related_times": related,
        "related_weeks": data.draw(weeks) if related else None,
        "else_weeks": data.draw(st.none() | weeks),
        "visits": visits,
        "visits_8": data.draw(st.integers(times, visits)),
        "visit_weeks": data.draw(weeks),
        "tenure": data.draw(st.floats(0.0, 300.0)),
        "breadth": data.draw(st.integers(0, 10_000)),
        "items": data.draw(st.integers(1, 100_000)),
        "horizon_weeks": data.draw(st.floats(0.1, 20.0)),
    }
    numbers = numeric_of(row, cold_visits=4)
    assert len(numbers) == len(NUMERIC)
    assert all(0 <= n <= 1 for n in numbers)
    assert text_of(row, verb="bought").startswith("b, a. ")


def test_a_silo_that_nobody_can_be_asked_about_in_is_an_error(shop):
    silo = shop.silo_of([shop.bought("ann", "tea", -40, "v")], [])
    with pytest.raises(DataError, match="no customer was seen within 28 days"):
        TASK.build(silo)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": START + 43 * DAY},
        {"split": START + 99 * DAY},
        {"first": START.replace(tzinfo=dt.UTC)},
        {"habits": -1},
        {"habits": 5},
        {"candidates": ("Dairy > Milk > Whole",)},
        *(
            {field: 0}
            for field in (
                "horizon_days",
                "step_days",
                "active_days",
                "train_dates",
                "test_dates",
                "category_level",
                "slate",
                "train_candidates",
                "cold_visits",
            )
        ),
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(TASK, **wrong)
