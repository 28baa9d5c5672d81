"""Ratings: what is asked, what is said, what is never looked at."""

import dataclasses
import datetime as dt
import math
import random

import numpy as np
import pyarrow as pa
import pytest

from silotune.errors import ConfigError, NoExamplesError
from silotune.tasks.objective import Bounded
from silotune.tasks.product_rating import ProductRating

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
SPAN = {"first": START, "split": START + 60 * DAY, "last": START + 120 * DAY}
TASK = ProductRating(**SPAN, train_ratings=999, test_ratings=999)
USERS = ("ann", "bob", "cid", "dot", "eva")
MORE = [(f"i{k}", "x", f"All > Kind {k % 3} > Sort {k % 4}", f"b{k % 2}", None) for k in range(8)]


@pytest.fixture(scope="module")
def rated(shop):
    """Return the function that writes events and ratings, (user, item, time, stars), as a silo."""
    columns = shop.columns["events"] | {"rating": pa.float64()}

    def write(events, ratings, items=shop.items):
        rows = [(*e, None) for e in events]
        rows += [
            (u, i, "rate", time, None, None, None, None, stars) for u, i, time, stars in ratings
        ]
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        return shop.silo_of(pa.Table.from_pylist(found, pa.schema(columns)), [], items)

    return write


def on(day):
    return START + day * DAY


@pytest.fixture(scope="module")
def small(shop, rated):
    events = [
        shop.bought("ann", "milk-1", -14, "a1"),
        shop.bought("ann", "milk-2", 0, "a2"),
        shop.bought("ann", "milk-1", 1, "a3"),
        shop.seen("ann", "skim", 2, "a4"),
        shop.bought("ann", "skim", 40, "a5"),
    ]
    ratings = [
        # History alone, of the same brand and category as skim; 4 of 1 to 5 is 0.75.
        ("ann", "milk-1", on(-3), 4.0),
        # A change of mind: not asked about, but known from then on.
        ("ann", "milk-1", on(5), 1.0),
        ("ann", "milk-2", on(6), 2.0),
        # At the same moment: neither knows of the other. 9 is beyond the best there is.
        ("ann", "skim", on(15), 5.0),
        ("ann", "tea", on(15), 9.0),
        ("ann", "bread", on(60), 3.0),
        ("bob", "tea", on(60), 1.0),
        # From `last` on.
        ("bob", "bread", on(120), 5.0),
    ]
    return rated(events, ratings)


def asked(shop, task, silo):
    """Return {(user, item): index of the example}."""
    names = {shop.user(u): u for u in USERS}
    keys = task.build(silo).keys
    found = {
        (names[u], item): i
        for i, (u, item) in enumerate(zip(keys["user_id"], keys["item_id"], strict=True))
    }
    assert len(found) == len(keys["user_id"])
    return found


def test_each_first_rating_is_asked_about_on_its_side_of_the_split(shop, small):
    rows, examples = asked(shop, TASK, small), TASK.build(small)
    found = {k: (examples.label_EK[i, 0], bool(examples.test_E[i])) for k, i in rows.items()}
    assert found == {
        ("ann", "milk-2"): (0.25, False),
        ("ann", "skim"): (1.0, False),
        ("ann", "tea"): (1.0, False),
        ("ann", "bread"): (0.5, True),
        ("bob", "tea"): (0.0, True),
    }
    assert examples.objective == Bounded(low=0.0, high=1.0, delta=0.25)
    assert examples.keys["time"][rows["ann", "bread"]] == on(60)
    assert examples.group[rows["ann", "tea"]] == "Tea"


def test_a_scale_of_thumbs_is_a_scale(shop, rated):
    silo = rated([], [("ann", "tea", on(1), -1.0), ("ann", "bread", on(1), 1.0)])
    task = dataclasses.replace(TASK, lowest=-1.0, highest=1.0)
    rows, examples = asked(shop, task, silo), task.build(silo)
    assert examples.label_EK[rows["ann", "tea"], 0] == 0.0
    assert examples.label_EK[rows["ann", "bread"], 0] == 1.0


def test_what_is_said_of_a_customer_and_an_item_is_as_worked_out_by_hand(shop, small):
    rows, examples = asked(shop, TASK, small), TASK.build(small)
    skim = rows["ann", "skim"]
    assert examples.text[skim] == (
        "Skim milk, Milk, Dairy. looked at, never bought, brand rated low, category rated low"
    )
    assert examples.context[skim] == (
        "brand: Farm. size: 1 l. few ratings, low. liked: unknown. disliked: Store Milk"
    )
    # 0.75, 0 and 0.25 before, and the middle of the scale.
    own = (0.75 + 0.0 + 0.25 + 0.5) / 4
    found = dict(zip(TASK.numeric_names, examples.numeric_EF[skim].tolist(), strict=True))
    assert found == pytest.approx(
        {
            "times_bought": 0.0,
            "recency_half_year": 0.0,
            "looked_at": 1.0,
            # Three visits of milk among three at which anything was bought.
            "category_share": 3 / 5,
            "ratings": math.log(4) / 6,
            "mean": own,
            # Both ratings of milk-1, of the same farm.
            "brand_mean": (0.75 + own) / 3,
            "brand_known": 2 / 3,
            "category_mean": (0.75 + 0.0 + 0.25 + own) / 4,
            "category_known": 3 / 4,
            "has_size": 1.0,
            "amount": pytest.approx(math.log(1001) / math.log(10001), abs=1e-3),
            "by_count": 0.0,
            "by_volume": 1.0,
        },
        abs=1e-6,
    )
    bought = dict(zip(TASK.numeric_names, examples.numeric_EF[rows["ann", "milk-2"]], strict=True))
    assert bought["times_bought"] == pytest.approx(math.log(2) / 4)
    assert bought["recency_half_year"] == pytest.approx(math.exp(-6 / 7 / 26))


# A made-up shop that is as awkward as a real one may be.
def some_events(shop, rng, users=USERS, count=40, first=-80, last=200):
    def one(who):
        item, time = rng.choice([*shop.items, *MORE, ("gone",)])[0], rng.randrange(first, last) / 2
        kind = rng.choice(["purchase"] * 3 + ["redeem", "view", "click"])
        visit_id = rng.choice([None, f"{who} {time}"])
        return (who, item, kind, on(time), visit_id, 1.0, 2.0, 0.0)

    return [one(who) for who in users for _ in range(count)]


def some_ratings(shop, rng, users=USERS, count=40, first=-80, last=240):
    return [
        (who, rng.choice([*shop.items, *MORE, ("gone",)])[0], on(rng.randrange(first, last) / 2), s)
        for who in users
        for s in rng.choices([0.0, 1.0, 2.0, 3.5, 4.0, 5.0], k=count)
    ]


def described(examples):
    """Return {key: all that an example says}."""
    keys = list(zip(*(examples.keys[n] for n in ("user_id", "time", "item_id")), strict=True))
    assert len(set(keys)) == len(keys)
    return {
        key: (
            examples.text[i],
            examples.context[i],
            examples.numeric_EF[i].tobytes(),
            examples.group[i],
            bool(examples.test_E[i]),
            examples.label_EK[i].tobytes(),
        )
        for i, key in enumerate(keys)
    }


@pytest.mark.parametrize("seed", range(4))
def test_nothing_from_a_moment_on_changes_what_is_said_at_it(shop, rated, seed):
    rng = random.Random(seed)
    events, ratings = some_events(shop, rng), some_ratings(shop, rng, count=12)
    items = [*shop.items, *MORE]
    was = described(TASK.build(rated(events, ratings, items)))
    who = rng.choice(sorted({k[0] for k in was}))
    # The second of them: something is before it, and more after.
    now = sorted(k[1] for k in was if k[0] == who)[1]
    name = next(u for u in USERS if shop.user(u) == who)
    # What was asked at that moment stays; all else that is not before it becomes another future.
    events = [
        e if e[0] != name or e[3] < now else (e[0], "tea", "redeem", e[3] + DAY / 4, *e[4:])
        for e in events
    ]
    ratings = [
        r if r[0] != name or r[2] <= now else (*r[:2], r[2] + DAY / 4, 5.0 - r[3]) for r in ratings
    ]
    # At the moment itself they buy everything, and rate all that they had not.
    events += [(name, i[0], "purchase", now, None, 1.0, 2.0, 0.0) for i in items]
    had = {r[1] for r in ratings if r[0] == name and r[2] <= now}
    ratings += [(name, i[0], now, 5.0) for i in items if i[0] not in had]
    is_ = described(TASK.build(rated(events, ratings, items)))
    seen = {k for k in was if k[0] != who or k[1] <= now}
    assert any(k[:2] == (who, now) for k in seen)
    assert {k: is_.get(k) for k in seen} == {k: was[k] for k in seen}
    assert is_ != was


@pytest.mark.parametrize("task", [TASK, dataclasses.replace(TASK, train_ratings=3, test_ratings=1)])
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, rated, task):
    rng = random.Random(1)
    events, ratings, items = some_events(shop, rng), some_ratings(shop, rng), [*shop.items, *MORE]
    whole = described(task.build(rated(events, ratings, items)))
    rest = ([row for row in rows if row[0] != "bob"] for rows in (events, ratings))
    without = described(task.build(rated(*rest, items)))
    assert any(k[0] == shop.user("bob") for k in whole)
    kept = {k: v for k, v in whole.items() if k[0] != shop.user("bob")}
    assert list(without.items()) == list(kept.items())


def test_a_cap_is_per_user_and_side(shop, rated):
    rng = random.Random(2)
    silo = rated(some_events(shop, rng), some_ratings(shop, rng), [*shop.items, *MORE])
    examples = dataclasses.replace(TASK, train_ratings=3, test_ratings=2).build(silo)
    for user in range(examples.users):
        own = examples.user_E == user
        assert (own & ~examples.test_E).sum() <= 3
        assert (own & examples.test_E).sum() <= 2
    assert np.isfinite(examples.label_EK).all()
    assert examples.numeric_EF.min() >= 0
    assert examples.numeric_EF.max() <= 1
    assert len(set(TASK.public_texts())) > 100


def test_on_a_date_it_asks_about_what_was_not_rated_and_reads_nothing_later(shop, rated):
    rng, items = random.Random(3), [*shop.items, *MORE]
    # Eva only rates, dot only shops.
    events = some_events(shop, rng, users=("ann", "bob", "dot"), count=9)
    ratings = some_ratings(shop, rng, users=("ann", "bob", "eva"), count=9)
    date, task = on(30), dataclasses.replace(TASK, slate=6, habits=2)
    past = ([e for e in events if e[3] < date], [r for r in ratings if r[2] < date])
    # A rating of another kind later: everyone gives everything one star, and buys it.
    late = [(u, i[0], date, 1.0) for u in USERS for i in items]
    sold = [(u, i[0], "purchase", date, None, 1.0, 2.0, 0.0) for u in USERS for i in items]
    found = [
        described(task.build_at(rated(*tables, items), date))
        for tables in (past, (events, ratings), (past[0] + sold, past[1] + late))
    ]
    assert {k: v[:-1] for k, v in found[0].items()} == {k: v[:-1] for k, v in found[1].items()}
    assert {k: v[:-1] for k, v in found[0].items()} == {k: v[:-1] for k, v in found[2].items()}
    known = {(shop.user(u), i) for u, i, *_ in past[1]}
    for name in USERS:
        user = shop.user(name)
        mine = {k[2] for k in found[0] if k[0] == user}
        open_ = {i[0] for i in items} - {i for u, i in known if u == user}
        assert mine <= open_
        if name == "cid":
            # Never seen before.
            assert not mine
            continue
        assert len(mine) == min(6, len(open_))
        bought = [e[1] for e in past[0] if e[0] == name and e[2] in ("purchase", "redeem")]
        often = sorted((bought.count(i) for i in open_), reverse=True)[:2]
        assert sorted((bought.count(i) for i in mine), reverse=True)[:2] == often
    examples = task.build_at(rated(*past, items), date, most=1)
    assert len(examples) == examples.users == 4
    assert np.isnan(examples.label_EK).all()
    assert examples.test_E.all()


def test_without_ratings_there_is_nothing_to_ask(shop, rated):
    silo = rated([shop.bought("ann", "tea", 1, "v")], [])
    with pytest.raises(NoExamplesError, match="events of kind 'rate'"):
        TASK.build(silo)
    with pytest.raises(NoExamplesError, match="there are no ratings"):
        TASK.build_at(silo, on(30))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": START}, "must follow one another"),
        ({"lowest": 5.0}, "lowest and highest are 5.0, 5.0"),
        ({"highest": math.nan}, "they must be in order"),
        ({"huber_delta": 0.0}, "huber_delta is 0.0"),
        ({"train_ratings": 0}, "train_ratings is 0"),
        ({"habits": 21}, "habits is 21"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TASK, **wrong)
