"""What holds of the examples of any shop, however awkward."""

import dataclasses
import datetime as dt
import random

import numpy as np
import pyarrow as pa
import pytest

from silotune.tables.silo_folder import SiloFolder

# A made-up shop that is as awkward as a real one may be: visits of several days, visit ids
# that customers share or lack, visits that begin at the same moment, baskets with one time.
USERS = ("ann", "bob", "cid", "dot", "eva")
MORE = [(f"i{k}", "x", f"All > Kind {k % 3} > Sort {k % 4}", f"b{k % 2}", None) for k in range(8)]


def an_event(shop, rng, who, first_hour, last_hour):
    item = rng.choice(shop.items + MORE)[0]
    time = shop.start + dt.timedelta(hours=rng.randrange(first_hour, last_hour, 8))
    visit_id = rng.choice([None, f"v{rng.randrange(12)}", f"{who} {time:%j}", f"{who} {time:%j%H}"])
    price, kind = rng.choice([1.1, 2.3, 40.0]), rng.choice(["purchase"] * 4 + ["redeem", "view"])
    discount = rng.choice([0.0, 0.0, 0.1, 0.35]) * price
    return (who, item, kind, time, visit_id, float(rng.randrange(1, 4)), price, discount)


def a_shop(shop, rng):
    # A few hours of the day only: many events meet.
    events = [an_event(shop, rng, who, -20 * 24, 90 * 24) for who in USERS for _ in range(60)]
    promotions = []
    for slot in range(10):
        start = rng.randrange(-20, 80)
        item = rng.choice([None, rng.choice(shop.items + MORE)[0]])
        category = None if item else rng.choice(["Dairy", "All > Kind 1", "Bakery > Bread"])
        end = start + rng.randrange(10, 90)
        promotions.append(
            shop.promoted(
                item, start, end, category=category, placement=f"slot {slot}", depth=rng.random()
            )
        )
    return events, promotions


def features(description):
    return {k: (v["text"], v["context"], v["numeric"]) for k, v in description.items()}


@pytest.mark.parametrize("seed", range(8))
def test_nothing_after_the_start_of_a_visit_changes_what_is_said_of_it(shop, seed):
    rng = random.Random(seed)
    events, promotions = a_shop(shop, rng)
    items = shop.items + MORE
    before = shop.silo_of(events, promotions, items)
    rows = shop.everything._rows(before)
    row = rng.choice(rows)
    who = next(u for u in USERS if shop.user(u) == row["user_id"])
    now = row["time"]
    past = [e for e in events if e[0] == who and e[3] < now]
    # Of the visits that begin now, everything but one event is another one.
    kept = {e[4]: e for e in events if e[0] == who and e[3] == now}
    present = [
        *kept.values(),
        *(
            (
                *rng.choice([*kept.values()])[:1],
                *an_event(shop, rng, who, 0, 8)[1:3],
                now,
                v,
                9.0,
                7.7,
                0.7,
            )
            for v in kept
        ),
    ]
    hour = round((now - shop.start) / dt.timedelta(hours=1))
    future = [an_event(shop, rng, who, hour + 8, 100 * 24) for _ in range(40)]
    visits = [e[4] for e in past + present]
    future += [
        (*an_event(shop, rng, who, hour + 8, 100 * 24)[:4], v, 1.0, 5.0, 2.0) for v in visits
    ]
    strangers = [
        an_event(shop, rng, u, -20 * 24, 90 * 24) for u in USERS if u != who for _ in range(20)
    ]
    after = shop.silo_of(past + present + future + strangers, promotions, items)
    seen_then = {
        (r["user_id"], r["visit_id"], r["category"], r["placement"])
        for r in rows
        if r["user_id"] == shop.user(who) and r["time"] <= now
    }
    assert seen_then
    was = features(shop.described(shop.everything, before))
    is_ = features(shop.described(shop.everything, after))
    assert {k: was[k] for k in seen_then} == {k: is_.get(k) for k in seen_then}


@pytest.mark.parametrize("caps", [True, False], ids=["caps", "no caps"])
@pytest.mark.parametrize("seed", range(6))
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, seed, caps):
    task = shop.task if caps else shop.everything
    events, promotions = a_shop(shop, random.Random(seed))
    who = USERS[seed % len(USERS)]
    whole = shop.described(task, shop.silo_of(events, promotions, shop.items + MORE))
    rest = [e for e in events if e[0] != who]
    without = shop.described(task, shop.silo_of(rest, promotions, shop.items + MORE))
    assert any(k[0] == shop.user(who) for k in whole)
    # In their order, too.
    assert list(without.items()) == [(k, v) for k, v in whole.items() if k[0] != shop.user(who)]


def test_rows_of_one_index_are_of_one_user_and_one_visit(shop):
    events, promotions = a_shop(shop, random.Random(1))
    silo = shop.silo_of(events, promotions, shop.items + MORE)
    rows, examples = shop.task._rows(silo), shop.task.build(silo)
    users = {(r["user_id"], u) for r, u in zip(rows, examples.user_E.tolist(), strict=True)}
    assert sorted(u for _, u in users) == list(range(len(USERS)))
    assert len({name for name, _ in users}) == len(USERS)
    # Two customers may have the same visit id.
    pairs = {
        ((r["user_id"], r["visit_id"]), v)
        for r, v in zip(rows, examples.visit_E.tolist(), strict=True)
    }
    assert sorted(v for _, v in pairs) == list(range(len({name for name, _ in pairs})))


def test_features_lie_between_zero_and_one(shop):
    events, promotions = a_shop(shop, random.Random(2))
    numeric = shop.everything.build(shop.silo_of(events, promotions, shop.items + MORE)).numeric_EF
    assert numeric.min() == 0
    assert (numeric.max(axis=0) > 0.05).all()
    assert numeric.max() <= 1


def test_the_number_of_threads_changes_no_bit_of_a_row(shop, monkeypatch):
    # Sums of floats depend on how rows are shared out, and so on who else is there.
    count, generator = 260_000, np.random.default_rng(0)
    hours = generator.integers(-300 * 24, 60 * 24, count).astype("timedelta64[h]")
    events = pa.table(
        {
            "user_id": np.array(["ann", "bob"])[np.arange(count) % 2],
            "item_id": np.array([i[0] for i in MORE])[generator.integers(0, 2, count)],
            "kind": np.full(count, "purchase"),
            "time": np.datetime64(shop.start, "us") + hours,
            "visit_id": np.char.add("v", (np.arange(count) // 3).astype(str)),
            "quantity": np.ones(count),
            "price": generator.uniform(1, 9, count),
            "discount": generator.uniform(0, 1, count),
        },
        schema=pa.schema(shop.columns["events"]),
    )
    silo = shop.silo_of(events, [shop.promoted(i[0], -300, 100) for i in MORE[:2]], MORE)
    task = dataclasses.replace(shop.task, train_visits=4)
    connect = SiloFolder.connect
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(SiloFolder, "connect", lambda s, t=threads: connect(s, threads=t))
        found.append(task._rows(silo))
    assert len(found[0]) == 16
    assert found[0] == found[1]
