"""Churn and segment: what is asked, what is said of the customer, and what is never looked at."""

import dataclasses
import datetime as dt
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from silotune.errors import ConfigError, DataError
from silotune.tasks.customer_words import NUMERIC, group_of, numeric_of, text_of
from silotune.tasks.customers import CustomerChurn, CustomerSegment

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
SPAN = {
    "first": START,
    "split": START + 56 * DAY,
    "last": START + 112 * DAY,
    "horizon_days": 14,
    "step_days": 14,
    "active_days": 28,
    "least_visits": 2,
    "train_dates": 99,
    "test_dates": 99,
}
CHURN = CustomerChurn(**SPAN)
SEGMENT = CustomerSegment(**SPAN, at_risk_below=2.0, high_value_from=100.0)
USERS = ("ann", "bob", "cid", "dot", "eva")


@pytest.fixture(scope="module")
def small(shop):
    events = [
        # Before `first`: history alone.
        shop.bought("ann", "milk-1", -10, "a1"),
        shop.bought("ann", "bread", -10, "a1", price=25.0, discount=5.0),
        shop.bought("ann", "milk-1", -3, "a2", discount=1.0, kind="redeem"),
        shop.seen("ann", "tea", -2, "a2b"),
        # On a date, to the microsecond: the date's future, and the end of the weeks before it.
        shop.bought("ann", "tea", 14, "a3", price=500.0),
        # One visit is not enough to be asked about; a click is none.
        shop.bought("bob", "bread", -5, "b1"),
        shop.seen("bob", "bread", -4, "b2", "click"),
        # In the test weeks; what is no longer sold counts too.
        shop.bought("cid", "gone", 50, "c1", price=30.0),
        shop.bought("cid", "milk-1", 55, "c2", price=3.0),
        shop.bought("cid", "milk-1", 60, "c3", price=3.0),
        shop.bought("cid", "milk-1", 97, "c4", price=3.0),
        shop.bought("cid", "milk-1", 111, "c5", price=300.0),
    ]
    return shop.silo_of(events, [])


def day(row):
    return (row["date"] - START) // DAY


def asked(shop, task, silo):
    """Return {(user, day of the date): index of the example}."""
    names = {shop.user(u): u for u in USERS}
    return {(names[r["user_id"]], day(r)): i for i, r in enumerate(task._rows(silo))}


def test_who_is_asked_about_and_what_became_of_them_is_as_worked_out_by_hand(shop, small):
    rows, examples = asked(shop, CHURN, small), CHURN.build(small)
    found = {k: (examples.label_EK[i, 0], bool(examples.test_E[i])) for k, i in rows.items()}
    assert found == {
        # Nothing from day 0 until before day 14.
        ("ann", 0): (1.0, False),
        ("ann", 14): (0.0, False),
        ("ann", 28): (1.0, False),
        # The last purchase is 28 days ago to the microsecond; at 56 it is more.
        ("ann", 42): (1.0, False),
        ("cid", 56): (0.0, True),
        ("cid", 70): (1.0, True),
        # Nothing in [84, 98) but the visit of day 97.
        ("cid", 84): (0.0, True),
        ("cid", 98): (0.0, True),
    }
    assert examples.label_EK.shape == (8, 1)
    assert len({examples.user_E[rows["ann", d]] for d in (0, 14, 28, 42)}) == 1
    assert examples.users == 2


def test_the_segment_is_the_spend_of_the_weeks_after_over_their_number(shop, small):
    rows, examples = asked(shop, SEGMENT, small), SEGMENT.build(small)
    found = {k: examples.label_EK[i].tolist() for k, i in rows.items()}
    risk, regular, high = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
    assert found == {
        ("ann", 0): risk,
        # 500 in two weeks.
        ("ann", 14): high,
        ("ann", 28): risk,
        ("ann", 42): risk,
        # 3 in two weeks is 1.50 a week.
        ("cid", 56): risk,
        ("cid", 70): risk,
        ("cid", 84): risk,
        ("cid", 98): high,
    }
    task = dataclasses.replace(SEGMENT, at_risk_below=1.5, high_value_from=250.0)
    examples = task.build(small)
    assert examples.label_EK[rows["cid", 56]].tolist() == regular
    assert examples.label_EK[rows["ann", 14]].tolist() == high
    assert examples.label_EK[rows["cid", 98]].tolist() == regular


def test_what_is_said_of_a_customer_is_as_worked_out_by_hand(shop, small):
    rows, examples = asked(shop, CHURN, small), CHURN.build(small)
    ann = rows["ann", 0]
    assert examples.text[ann] == (
        "last visit days ago, soon after the one before. comes once a month, more visits. "
        "spends nearly nothing, more spend. customer for weeks"
    )
    assert examples.context[ann] == (
        "usual: Milk, Bread. recent: Milk, Bread. many deals, many coupons"
    )
    assert examples.group[ann] == "R0 F0 M0"
    weeks, spend = 3 / 7, 2.0 + 20.0 + 1.0
    expected = {
        "recency_fortnight": math.exp(-weeks / 2),
        "recency_two_months": math.exp(-weeks / 8),
        # One week from the first visit to the second.
        "overdue": weeks / (weeks + 1),
        "visits_ever": math.log(3) / 5,
        "visits_12_weeks": math.log(3) / 4,
        "visits_4_weeks": math.log(3) / 3,
        "active_weeks": 2 / 12,
        "tenure": (10 / 7) / (10 / 7 + 26),
        "spend_ever": math.log1p(spend / (10 / 7)) / 6,
        "spend_12_weeks": math.log1p(spend / 12) / 6,
        "spend_4_weeks": math.log1p(spend / 4) / 6,
        "basket": math.log1p(spend / 2) / 6,
        "visit_trend": (2 + 1 / 3) / 3,
        "spend_trend": (spend + 5) / (spend + 15),
        "breadth": 2 / 12,
        "deal_share": 2 / 3,
        "coupon_share": 1 / 3,
    }
    found = dict(zip(CHURN.numeric_names, examples.numeric_EF[ann].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-6)
    # Four weeks on: the windows have moved.
    assert "weeks ago, later than usual" not in examples.text[ann]
    later = dict(zip(NUMERIC, examples.numeric_EF[rows["ann", 42]].tolist(), strict=True))
    assert later["visits_4_weeks"] == pytest.approx(math.log(2) / 3)
    assert later["visits_12_weeks"] == pytest.approx(math.log(4) / 4)
    assert later["active_weeks"] == pytest.approx(3 / 12)


# A made-up shop that is as awkward as a real one may be: visits of several days, visit ids
# that customers share or lack, purchases at the very moment of a date.
def an_event(shop, rng, who, first, last):
    item = rng.choice([*shop.items, ("gone",)])[0]
    time = START + rng.randrange(first, last) * DAY / 2
    visit_id = rng.choice([None, f"v{rng.randrange(12)}", f"{who} {time:%j%H}"])
    price, kind = rng.choice([1.1, 2.3, 40.0]), rng.choice(["purchase"] * 4 + ["redeem", "view"])
    discount = rng.choice([0.0, 0.0, 0.1, 0.35]) * price
    return (who, item, kind, time, visit_id, float(rng.randrange(1, 4)), price, discount)


def some_events(shop, rng, users=USERS, count=40, first=-120, last=230):
    return [an_event(shop, rng, who, first, last) for who in users for _ in range(count)]


def described(shop, task, silo, *, labels=True):
    rows, examples = asked(shop, task, silo), task.build(silo)
    return {
        key: (
            examples.text[i],
            examples.context[i],
            examples.numeric_EF[i].tobytes(),
            examples.group[i],
            bool(examples.test_E[i]),
            examples.label_EK[i].tobytes() if labels else b"",
        )
        for key, i in rows.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_nothing_from_the_date_on_changes_what_is_said_or_whether_it_is(shop, seed):
    rng = random.Random(seed)
    events = some_events(shop, rng)
    date = START + 14 * rng.randrange(8) * DAY
    past = [e for e in events if e[3] < date]
    half_days = round((date - START) / DAY * 2)
    # A visit of the past that goes on is the future from the date on.
    future = [
        (*an_event(shop, rng, e[0], half_days, 230)[:4], e[4], 9.0, 7.7, 0.7)
        for e in rng.sample(past, 20)
    ]
    future += some_events(shop, rng, count=10, first=half_days)
    was = described(shop, CHURN, shop.silo_of(events, []), labels=False)
    is_ = described(shop, CHURN, shop.silo_of(past + future, []), labels=False)
    none = described(shop, CHURN, shop.silo_of(past, []), labels=False)
    seen = {k for k in was if START + k[1] * DAY <= date}
    assert any(START + k[1] * DAY == date for k in seen)
    for other in (is_, none):
        assert {k: v for k, v in other.items() if START + k[1] * DAY <= date} == {
            k: was[k] for k in seen
        }


@pytest.mark.parametrize("task", [CHURN, SEGMENT], ids=lambda t: t.name)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_from_the_split_on_changes_a_training_example_or_its_label(shop, seed, task):
    rng = random.Random(seed)
    events = some_events(shop, rng)
    before = [e for e in events if e[3] < task.split]
    after = some_events(shop, rng, first=112)
    was = described(shop, task, shop.silo_of(events, []))
    is_ = described(shop, task, shop.silo_of(before + after, []))
    test = 4
    train = {k: v for k, v in was.items() if not v[test]}
    assert len(train) > 10
    assert {k: v for k, v in is_.items() if not v[test]} == train
    assert all(
        START + k[1] * DAY + dt.timedelta(days=task.horizon_days) <= task.split for k in train
    )
    assert all(START + k[1] * DAY >= task.split for k in was if k not in train)


@pytest.mark.parametrize("caps", [{}, {"train_dates": 2, "test_dates": 1}], ids=["all", "caps"])
@pytest.mark.parametrize("seed", range(3))
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, seed, caps):
    task = dataclasses.replace(CHURN, **caps)
    events = some_events(shop, random.Random(seed))
    who = USERS[seed]
    whole = described(shop, task, shop.silo_of(events, []))
    rest = [e for e in events if e[0] != who]
    without = described(shop, task, shop.silo_of(rest, []))
    assert any(k[0] == who for k in whole)
    # In their order, too.
    assert list(without.items()) == [(k, v) for k, v in whole.items() if k[0] != who]


def test_the_cap_is_each_users_own_and_the_seed_chooses_the_dates(shop):
    silo = shop.silo_of(some_events(shop, random.Random(0), count=80), [])
    task = dataclasses.replace(CHURN, train_dates=2, test_dates=1)
    examples = task.build(silo)
    for one in range(len(USERS)):
        own = examples.user_E == one
        assert (own & ~examples.test_E).sum() == 2
        assert (own & examples.test_E).sum() == 1
    again, other = task, dataclasses.replace(task, seed=1)
    assert list(asked(shop, again, silo)) == list(asked(shop, task, silo))
    assert set(asked(shop, other, silo)) != set(asked(shop, task, silo))


@given(
    st.floats(0.0, 60.0),
    st.floats(0.0, 60.0),
    st.integers(1, 5000),
    st.data(),
)
def test_features_lie_between_zero_and_one_and_every_customer_has_words(weeks, more, visits, data):
    money = st.floats(-1e9, 1e12, allow_nan=False)
    visits_12 = data.draw(st.integers(0, visits))
    row = {
        "weeks_since": weeks,
        "tenure": weeks + more,
        "visits": visits,
        "visits_12": visits_12,
        "visits_4": data.draw(st.integers(0, visits_12)),
        "active_weeks": data.draw(st.integers(0, 12)),
        "spend": data.draw(money),
        "spend_12": data.draw(money),
        "spend_4": data.draw(money),
        "families_12": data.draw(st.integers(0, 10_000)),
        "deal_share": 1.0,
        "coupon_share": 0.0,
    }
    numbers = numeric_of(row)
    assert len(numbers) == len(NUMERIC)
    assert all(0 <= n <= 1 for n in numbers)
    assert text_of(row)
    assert group_of(row)


def test_public_texts_name_every_word_that_an_example_may(shop):
    public = " ".join(CHURN.public_texts())
    silo = shop.silo_of(some_events(shop, random.Random(3), count=80), [])
    said = {word for text in CHURN.build(silo).text for word in text.split()}
    assert said <= set(public.split())
    assert len(set(CHURN.public_texts())) > 50


def test_a_silo_that_nobody_can_be_asked_about_in_is_an_error(shop):
    silo = shop.silo_of([shop.bought("ann", "tea", 1, "v")], [])
    with pytest.raises(DataError, match="no customer bought 2 times before a date"):
        CHURN.build(silo)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": START + 43 * DAY},
        {"split": START + 99 * DAY},
        {"first": START.replace(tzinfo=dt.UTC)},
        {"horizon_days": 0},
        {"step_days": 0},
        {"active_days": 0},
        {"least_visits": 0},
        {"train_dates": 0},
        {"test_dates": 0},
        {"category_level": 0},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong):
    for task in (CHURN, SEGMENT):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            dataclasses.replace(task, **wrong)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (5.0, 5.0), (5.0, np.inf)])
def test_thresholds_out_of_order_are_refused_by_name(low, high):
    with pytest.raises(ConfigError, match="at_risk_below"):
        dataclasses.replace(SEGMENT, at_risk_below=low, high_value_from=high)
