"""Depth and response: what is asked, what is said, and what is never looked at."""

import dataclasses
import datetime as dt
import math
import random

import numpy as np
import pytest

from silotune.errors import ConfigError, DataError
from silotune.tasks.discounts import DiscountDepth, DiscountResponse
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.objective import Bounded

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
SPAN = {"first": START, "split": START + 60 * DAY, "last": START + 120 * DAY}
MANY = {"train_visits": 999, "test_visits": 999}
DEPTH = DiscountDepth(**SPAN, **MANY, train_purchases=999, test_purchases=999)
RESPONSE = DiscountResponse(**SPAN, **MANY, train_offers=999, test_offers=999)
BOTH = pytest.mark.parametrize("task", [DEPTH, RESPONSE], ids=lambda t: t.name)
USERS = ("ann", "bob", "cid", "dot", "eva")
MORE = [(f"i{k}", "x", f"All > Kind {k % 3} > Sort {k % 4}", f"b{k % 2}", None) for k in range(8)]


@pytest.fixture(scope="module")
def small(shop):
    events = [
        # Before `first`: history alone. Milk at half its price, then at the whole.
        shop.bought("ann", "milk-1", -20, "a1", price=4.0, discount=2.0),
        shop.bought("ann", "milk-2", -6, "a2", price=4.0),
        shop.bought("ann", "tea", -6, "a2"),
        # Two lines of milk: 0.5 of 2 and 3 times 1 of 5 off; bread was never bought before.
        shop.bought("ann", "milk-1", 8, "a3", price=2.0, discount=0.5),
        shop.bought("ann", "milk-2", 8, "a3", price=5.0, discount=1.0, quantity=3.0),
        shop.bought("ann", "bread", 8, "a3", discount=1.0),
        # A price of nothing has no depth.
        shop.bought("ann", "tea", 8, "a3", price=0.0),
        shop.bought("ann", "bread", 70, "a4", price=3.0, discount=3.0),
        shop.seen("bob", "milk-1", 8, "b1"),
        shop.bought("bob", "milk-1", 9, "b2", discount=1.0),
    ]
    promotions = [
        shop.promoted("milk-1", 0, 20, depth=0.25),
        shop.promoted("bread", 0, 20, depth=0.1),
        shop.promoted("tea", 5, 8, depth=0.3),
        shop.promoted("tea", 8, 10, depth=0.4),
        shop.promoted("bread", 60, 80, depth=0.5, placement="front"),
        shop.promoted("milk-2", 60, 80, depth=None),
    ]
    return shop.silo_of(events, promotions)


def asked(shop, task, silo):
    """Return {(user, visit, category): index of the example}."""
    rows = task._rows(silo)
    keys = [(r["user_id"], r["visit_id"], r["category"], r["time"], r["placement"]) for r in rows]
    assert len(set(keys)) == len(keys)
    return {k: i for i, k in enumerate(keys)}


def by_name(shop, task, silo):
    names = {shop.user(u): u for u in USERS}
    visits = {shop.visit(v): v for v in ("a1", "a2", "a3", "a4", "b1", "b2")}
    return {
        (names[user], visits[visit], category.split(" > ")[-1]): i
        for (user, visit, category, *_), i in asked(shop, task, silo).items()
    }


def test_depth_is_the_discount_over_the_list_price_of_a_category_bought_before(shop, small):
    rows, examples = by_name(shop, DEPTH, small), DEPTH.build(small)
    found = {k: (examples.label_EK[i, 0], bool(examples.test_E[i])) for k, i in rows.items()}
    # 3.5 off of 17; bread at its second purchase; bob's first milk is not asked about.
    assert found == {
        ("ann", "a3", "Whole"): (pytest.approx(3.5 / 17), False),
        ("ann", "a4", "White"): (1.0, True),
    }
    assert examples.objective == Bounded(low=0.0, high=1.0, delta=0.1)
    assert examples.label_EK.shape == (2, 1)


def test_what_is_said_of_a_customer_and_a_category_is_as_worked_out_by_hand(shop, small):
    rows, examples = by_name(shop, DEPTH, small), DEPTH.build(small)
    milk = rows["ann", "a3", "Whole"]
    assert examples.text[milk] == "Whole, Milk. bought always, this month, usually 25 percent off"
    # Two visits, 2 + 6 paid; one of three lines on deal.
    assert examples.context[milk].startswith("spends little, some deals, no coupons. usual: Milk")
    assert examples.group[milk] == "Dairy > Milk > Whole"
    found = dict(zip(DEPTH.numeric_names, examples.numeric_EF[milk].tolist(), strict=True))
    assert found == pytest.approx(
        {
            "category_visits": math.log(3) / 4,
            "category_share": 2 / 4,
            "recency_month": math.exp(-2 / 4),
            "recency_half_year": math.exp(-2 / 26),
            "usual_depth": 0.25,
            "recent_depth": 0.25,
            "deepest": 0.5,
            "category_deals": 0.5,
            "deal_share": 1 / 3,
            "coupon_share": 0.0,
        },
        abs=1e-6,
    )


def test_an_offer_of_a_known_category_is_asked_about_whether_it_was_taken_or_not(shop, small):
    rows, examples = by_name(shop, RESPONSE, small), RESPONSE.build(small)
    found = {k: (*examples.label_EK[i].tolist(), bool(examples.test_E[i])) for k, i in rows.items()}
    assert found == {
        # milk-1 is promoted and bought; bread is bought, but was never before.
        ("ann", "a3", "Whole"): (1.0, 0.25, False),
        # The second offer of tea begins at the visit; the first ends there.
        ("ann", "a3", "Drinks"): (1.0, pytest.approx(0.4), False),
        ("ann", "a4", "White"): (1.0, 0.5, True),
        # An offer without a depth has depth 0; it was not taken.
        ("ann", "a4", "Whole"): (0.0, 0.0, True),
    }
    assert examples.objective == DoseResponse()


def test_the_depth_that_is_asked_about_is_not_said(shop, small):
    silo, rows = small, by_name(shop, RESPONSE, small)
    text = RESPONSE.build(silo).text[rows["ann", "a3", "Whole"]]
    assert text == (
        "Whole, Milk, farm brand, display shelf. bought always, this month, these items, usually "
        "25 percent off"
    )


# A made-up shop that is as awkward as a real one may be.
def an_event(shop, rng, who, first, last):
    item = rng.choice([*shop.items, *MORE, ("gone",)])[0]
    time = START + rng.randrange(first, last) * DAY / 2
    visit_id = rng.choice([None, f"v{rng.randrange(12)}", f"{who} {time:%j}", f"{who} {time:%j%H}"])
    price, kind = rng.choice([1.1, 2.3, 40.0]), rng.choice(["purchase"] * 4 + ["redeem", "view"])
    discount = rng.choice([0.0, 0.0, 0.1, 0.35]) * price
    return (who, item, kind, time, visit_id, float(rng.randrange(1, 4)), price, discount)


def some_events(shop, rng, users=USERS, count=50, first=-80, last=200):
    return [an_event(shop, rng, who, first, last) for who in users for _ in range(count)]


def some_promotions(shop, rng):
    out = []
    for slot in range(12):
        start = rng.randrange(-20, 100)
        item = rng.choice([None, rng.choice(shop.items + MORE)[0]])
        category = None if item else rng.choice(["Dairy", "All > Kind 1", "Bakery > Bread"])
        words = {"placement": f"slot {slot}", "depth": rng.random()}
        out.append(shop.promoted(item, start, start + 40, category=category, **words))
    return out


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


@BOTH
@pytest.mark.parametrize("seed", range(4))
def test_nothing_from_a_visit_on_changes_what_is_said_at_it(shop, task, seed):
    rng = random.Random(seed)
    events, promotions = some_events(shop, rng), some_promotions(shop, rng)
    items = [*shop.items, *MORE]
    was = described(shop, task, shop.silo_of(events, promotions, items), labels=False)
    who, _, _, now, _ = rng.choice(sorted(was, key=str))
    own = [e for e in events if shop.user(e[0]) == who]
    past = [e for e in events if e not in own] + [e for e in own if e[3] < now]
    # What was bought at the visit, and at visits that still go on, at other prices: the labels
    # change, whether they are asked for does not. Then a future that never was.
    rest = [e for e in own if e[3] >= now]
    begun = {e[4] for e in own if e[3] <= now} | {None}
    present = [(*e[:5], 9.0, 70.0, 7.0) for e in rest if e[4] in begun]
    later = [(*e[:3], e[3] + DAY / 4, f"later {i}", 5.0, 7.0, 0.7) for i, e in enumerate(rest)]
    is_ = described(
        shop, task, shop.silo_of(past + present + later, promotions, items), labels=False
    )
    seen = {k for k in was if k[0] == who and k[3] <= now}
    assert any(k[3] == now for k in seen)
    assert {k: is_.get(k) for k in seen} == {k: was[k] for k in seen}
    assert {k: v for k, v in is_.items() if k[0] != who} == {
        k: v for k, v in was.items() if k[0] != who
    }


@BOTH
@pytest.mark.parametrize("caps", [True, False], ids=["caps", "no caps"])
@pytest.mark.parametrize("seed", range(2))
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, task, seed, caps):
    if caps:
        own = {"train_visits": 3, "test_visits": 2}
        names = [f.name for f in dataclasses.fields(task) if "purchases" in f.name[4:]]
        own |= dict.fromkeys([n for n in names if n.startswith(("train", "test"))], 1)
        task = dataclasses.replace(task, **own)
    rng = random.Random(seed)
    events, promotions = some_events(shop, rng), some_promotions(shop, rng)
    who, items = USERS[seed], [*shop.items, *MORE]
    whole = described(shop, task, shop.silo_of(events, promotions, items))
    rest = [e for e in events if e[0] != who]
    without = described(shop, task, shop.silo_of(rest, promotions, items))
    own = shop.user(who)
    assert any(k[0] == own for k in whole)
    assert list(without.items()) == [(k, v) for k, v in whole.items() if k[0] != own]


def test_which_offers_are_asked_about_does_not_depend_on_what_was_bought(shop):
    # A draw that looks at the outcome makes a rate of the rows that is no chance.
    rng = random.Random(0)
    events, promotions = some_events(shop, rng, count=80), some_promotions(shop, rng)
    items = [*shop.items, *MORE]
    task = dataclasses.replace(RESPONSE, train_offers=2, test_offers=2)
    was = described(shop, task, shop.silo_of(events, promotions, items), labels=False)
    # Nothing is bought from the first visit on; every visit is still a visit.
    changed = [e if e[3] < START else (*e[:2], "view", *e[3:]) for e in events]
    plain = shop.silo_of([e for e in events if e[3] < START], promotions, items)
    with pytest.raises(DataError):
        task.build(plain)
    is_ = described(shop, task, shop.silo_of(changed, promotions, items), labels=False)
    first = {}
    for key in sorted(was, key=lambda k: k[3]):
        first.setdefault(key[0], key[3])
    now = {k for k in was if k[3] == first[k[0]]}
    assert now
    assert now <= set(is_)


@BOTH
def test_features_lie_between_zero_and_one_and_public_texts_name_the_words(shop, task):
    rng = random.Random(2)
    events, promotions = some_events(shop, rng, count=80), some_promotions(shop, rng)
    examples = task.build(shop.silo_of(events, promotions, [*shop.items, *MORE]))
    assert examples.numeric_EF.min() >= 0
    assert examples.numeric_EF.max() <= 1
    assert (examples.numeric_EF.max(axis=0) > 0).all()
    assert np.isfinite(examples.label_EK).all()
    assert examples.label_EK.shape == (len(examples), task.outputs)
    assert len(set(task.public_texts())) > 100


@pytest.mark.parametrize(
    ("task", "wrong", "message"),
    [
        (DEPTH, {"split": START}, "must follow one another"),
        (DEPTH, {"huber_delta": 0.0}, "huber_delta is 0.0"),
        (DEPTH, {"train_purchases": 0}, "train_purchases is 0"),
        (RESPONSE, {"test_offers": 0}, "test_offers is 0"),
        (RESPONSE, {"least_purchases": 0}, "least_purchases is 0"),
        (RESPONSE, {"first": START.replace(tzinfo=dt.UTC)}, "leave out the zone"),
    ],
)
def test_settings_that_cannot_be_are_named(task, wrong, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(task, **wrong)


@BOTH
def test_a_silo_without_anything_to_ask_about_is_an_error(shop, task):
    silo = shop.silo_of([shop.bought("ann", "tea", 1, "v")], [shop.promoted("tea", 0, 50)])
    with pytest.raises(DataError, match="between 2024-01-01 and 2024-04-30"):
        task.build(silo)
