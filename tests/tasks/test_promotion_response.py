import dataclasses
import datetime as dt
import math
import random

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from silotune.errors import ConfigError, DataError
from silotune.tables.keyed_hash import hash_id
from silotune.tables.silo_folder import SiloFolder, write_silo
from silotune.tasks.promotion_response import PromotionResponse

KEY = bytes(32)
DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
TASK = PromotionResponse(first=START, split=START + 60 * DAY, last=START + 120 * DAY)
EVERYTHING = dataclasses.replace(
    TASK, train_visits=999, test_visits=999, positives=999, negatives=999, test_negatives=999
)
_TEXT, _NUMBER, _TIME = pa.string(), pa.float64(), pa.timestamp("us")
COLUMNS = {
    "events": {
        "user_id": _TEXT,
        "item_id": _TEXT,
        "kind": _TEXT,
        "time": _TIME,
        "visit_id": _TEXT,
        "quantity": _NUMBER,
        "price": _NUMBER,
        "discount": _NUMBER,
    },
    "items": dict.fromkeys(("item_id", "title", "category", "brand", "size"), _TEXT),
    "promotions": {
        "item_id": _TEXT,
        "category": _TEXT,
        "start": _TIME,
        "end": _TIME,
        "placement": _TEXT,
        "mechanic": _TEXT,
        "depth": _NUMBER,
    },
}


def on(day, hour=0):
    return START + day * DAY + dt.timedelta(hours=hour)


def bought(user, item, day, visit, *, price=2.0, discount=0.0, quantity=1.0, kind="purchase"):
    return (user, item, kind, on(day), visit, quantity, price, discount)


def seen(user, item, day, visit, kind="view"):
    return (user, item, kind, on(day), visit, None, None, None)


def promoted(item, start, end, *, category=None, placement="shelf", mechanic="display", depth=0.2):
    return (item, category, on(start), on(end), placement, mechanic, depth)


ITEMS = [
    ("milk-1", "Whole milk", "Dairy > Milk > Whole", "Farm", "1 l"),
    ("milk-2", "Whole milk", "Dairy > Milk > Whole", "Store", "1 l"),
    ("skim", "Skim milk", "Dairy > Milk > Skim", "Farm", "1 l"),
    ("bread", "White bread", "Bakery > Bread > White > Sliced", None, None),
    ("tea", "Tea", "Drinks", "Leaf", None),
]


def table(name, rows):
    schema = pa.schema(COLUMNS[name])
    dicts = [dict(zip(schema.names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(dicts, schema=schema)


@pytest.fixture(scope="module")
def silo_of(tmp_path_factory):
    """Return the silo that holds the rows; the key, and so every id, is always the same."""

    def write(events, promotions, items=ITEMS):
        out = tmp_path_factory.mktemp("silo") / "shop"
        with duckdb.connect() as con:
            for name, rows in (("events", events), ("items", items), ("promotions", promotions)):
                con.register(name, rows if isinstance(rows, pa.Table) else table(name, rows))
            sources = {name: f"SELECT * FROM {name}" for name in COLUMNS}
            write_silo(con, sources, out, name="shop", nominal_users=10, key=KEY)
        return SiloFolder.open(out)

    return write


def described(task, silo):
    """Return {(user, visit, offer): everything the example says} of a silo's examples."""
    rows, examples = task._rows(silo), task.build(silo)
    assert len(rows) == len(examples)
    out = {}
    for i, row in enumerate(rows):
        key = (row["user_id"], row["visit_id"], row["category"], row["placement"])
        assert key not in out
        out[key] = {
            "text": examples.text[i],
            "context": examples.context[i],
            "numeric": examples.numeric_EF[i].tobytes(),
            "label": examples.label_EK[i].tobytes(),
            "group": examples.group[i],
            "test": bool(examples.test_E[i]),
        }
    return out


def features(description):
    return {k: (v["text"], v["context"], v["numeric"]) for k, v in description.items()}


def user(name):
    return hash_id(name, key=KEY)


def visit(name):
    return hash_id(f"visit:{name}", key=KEY)


@pytest.fixture(scope="module")
def small(silo_of):
    events = [
        # Before `first`: history alone.
        bought("ann", "milk-2", -21, "v1", discount=0.6),
        bought("ann", "bread", -21, "v1", price=25.0),
        # Two lines, one visit.
        bought("ann", "milk-1", -14, "v2", kind="redeem"),
        bought("ann", "milk-1", -14, "v2", kind="redeem"),
        seen("ann", "tea", -13, "v2b"),
        # The visit that is asked about: takes the milk on offer, not the bread.
        bought("ann", "milk-1", 0, "v3"),
        bought("ann", "tea", 0, "v3", price=500.0),
        # A stranger with habits of his own.
        bought("bob", "bread", -5, "w1", price=100.0, discount=100.0),
        seen("bob", "bread", 3, "w2", "click"),
    ]
    promotions = [
        promoted("milk-1", 0, 7),
        promoted("bread", 0, 7, placement=None, mechanic="mailer", depth=None),
        promoted("skim", 1, 7, placement="later"),
        promoted("tea", -7, 0, placement="ended"),
    ]
    return silo_of(events, promotions)


def test_the_examples_of_a_small_shop_are_those_worked_out_by_hand(small):
    examples = TASK.build(small)
    rows = TASK._rows(small)
    milk, bread, skim = "Dairy > Milk > Whole", "Bakery > Bread > White", "Dairy > Milk > Skim"
    ann = "spends some, some deals, many coupons. usual: Milk, Bread. recent: Milk, Bread"
    bob = "spends little, many deals, no coupons. usual: Bread. recent: Bread"
    never = [0.0] * 6
    expected = {
        # Two of two visits bought milk, the last 2 weeks ago, one of them the milk on offer;
        # 30 percent off on one line, nothing off on two.
        ("ann", milk): (
            (
                "Whole, Milk, farm brand, display shelf, 20 percent off. "
                "bought always, this month, these items, usually 10 percent off"
            ),
            ann,
            [math.log(3) / 4, 2 / 4, math.exp(-2 / 4), math.exp(-2 / 26), 1 / 4, 0.1],
            1.0,
        ),
        ("ann", bread): (
            "White, Bread, mailer. bought often, this month, these items",
            ann,
            [math.log(2) / 4, 1 / 4, math.exp(-3 / 4), math.exp(-3 / 26), 1 / 4, 0.0],
            0.0,
        ),
        # A click is no purchase; what was bought at no price at all was 100 percent off.
        ("bob", bread): (
            "White, Bread, mailer. bought always, this month, these items, usually 100 percent off",
            bob,
            [math.log(2) / 4, 1 / 3, math.exp(-8 / 28), math.exp(-8 / 182), 1 / 3, 1.0],
            0.0,
        ),
        ("bob", milk): (
            "Whole, Milk, farm brand, display shelf, 20 percent off. never bought",
            bob,
            never,
            0.0,
        ),
        ("bob", skim): (
            "Skim, Milk, farm brand, display later, 20 percent off. never bought",
            bob,
            never,
            0.0,
        ),
    }
    found = {}
    for i, row in enumerate(rows):
        name = {user("ann"): "ann", user("bob"): "bob"}[row["user_id"]]
        found[name, examples.group[i]] = (
            examples.text[i],
            examples.context[i],
            pytest.approx(examples.numeric_EF[i].tolist(), rel=1e-6, abs=1e-7),
            float(examples.label_EK[i, 0]),
        )
    assert expected == found
    assert examples.numeric_EF.dtype == examples.label_EK.dtype == np.float32
    assert not examples.test_E.any()
    names = [row["user_id"] for row in rows]
    assert [names.index(n) for n in names] == [
        examples.user_E.tolist().index(u) for u in examples.user_E
    ]
    assert examples.users == len(set(examples.visit_E.tolist())) == 2


def test_the_numeric_features_are_the_named_ones(small):
    assert len(TASK.numeric_names) == TASK.build(small).numeric_EF.shape[1] == 6


def test_a_purchase_with_a_coupon_counts_and_a_look_does_not(silo_of):
    events = [
        bought("ann", "milk-1", 1, "v", kind="redeem"),
        *(seen("ann", "bread", 1, "v", kind) for kind in ("view", "click", "cart")),
    ]
    silo = silo_of(events, [promoted("milk-1", 0, 2), promoted("bread", 0, 2)])
    labels = {k[2]: v["label"] for k, v in described(TASK, silo).items()}
    assert labels == {
        "Dairy > Milk > Whole": np.float32(1).tobytes(),
        "Bakery > Bread > White": np.float32(0).tobytes(),
    }


def test_a_promotion_runs_from_its_start_until_just_before_its_end(silo_of):
    events = [seen("ann", "tea", day, f"v{day}") for day in range(6)]
    silo = silo_of(events, [promoted("milk-1", 2, 4)])
    days = {(row["time"] - START).days for row in EVERYTHING._rows(silo)}
    assert days == {2, 3}


def test_another_item_of_the_category_is_not_the_item_on_offer(silo_of):
    events = [bought("ann", "milk-2", -7, "v1"), bought("ann", "milk-2", 1, "v2")]
    silo = silo_of(events, [promoted("milk-1", 0, 2)])
    examples = TASK.build(silo)
    assert examples.label_EK.tolist() == [[0.0]]
    assert "these items" not in examples.text[0]
    category_visits, *_, item_visits, _ = examples.numeric_EF[0]
    assert (category_visits > 0, item_visits) == (True, 0)


def test_a_promoted_category_holds_the_items_under_its_path_and_no_namesakes(silo_of):
    items = [
        *ITEMS,
        ("oat", "Oat drink", "Dairy > Milk Free > Oat", None, None),
        ("rusk", "Rusk", "Bakery", None, None),
    ]
    events = [bought("ann", "skim", 1, "v"), bought("ann", "oat", 1, "v")]
    promotions = [
        promoted(None, 0, 2, category="Dairy > Milk", placement="a"),
        promoted(None, 0, 2, category="Bakery > Bread > White > Sliced", placement="b"),
        promoted(None, 0, 2, category="Nowhere", placement="c"),
    ]
    found = described(TASK, silo_of(events, promotions, items))
    assert {(k[2], k[3]): v["label"] == np.float32(1).tobytes() for k, v in found.items()} == {
        ("Dairy > Milk > Whole", "a"): False,
        ("Dairy > Milk > Skim", "a"): True,
        ("Bakery > Bread > White", "b"): False,
    }


def test_a_purchase_of_another_user_with_the_same_visit_id_is_not_ones_own(silo_of):
    events = [bought("ann", "milk-1", 1, "v"), seen("bob", "milk-1", 1, "v")]
    found = described(TASK, silo_of(events, [promoted("milk-1", 0, 2)]))
    labels = {k[0]: v["label"] for k, v in found.items()}
    assert labels == {user("ann"): np.float32(1).tobytes(), user("bob"): np.float32(0).tobytes()}


def test_an_item_named_in_a_promotion_counts_before_its_category(silo_of):
    promotions = [promoted("skim", 0, 2, category="Bakery")]
    found = described(TASK, silo_of([seen("ann", "tea", 1, "v")], promotions))
    assert [k[2] for k in found] == ["Dairy > Milk > Skim"]


@pytest.mark.parametrize(
    ("level", "groups"), [(1, {"Dairy"}), (2, {"Dairy > Milk"}), (9, {ITEMS[0][2], ITEMS[2][2]})]
)
def test_the_category_level_says_what_is_one_offer(level, groups, silo_of):
    silo = silo_of(
        [bought("ann", "skim", 1, "v")], [promoted("milk-1", 0, 2), promoted("skim", 0, 2)]
    )
    examples = dataclasses.replace(TASK, category_level=level).build(silo)
    assert set(examples.group) == groups
    assert examples.label_EK.sum() == 1


def test_the_split_and_the_span_are_kept_to_the_moment(silo_of):
    moments = {
        "before": TASK.first - dt.timedelta(seconds=1),
        "first": TASK.first,
        "train": TASK.split - dt.timedelta(seconds=1),
        "split": TASK.split,
        "test": TASK.last - dt.timedelta(seconds=1),
        "last": TASK.last,
    }
    events = [
        ("ann", "tea", "view", time, name, None, None, None) for name, time in moments.items()
    ]
    silo = silo_of(events, [promoted("milk-1", -99, 999)])
    examples = EVERYTHING.build(silo)
    side = dict(zip((r["visit_id"] for r in EVERYTHING._rows(silo)), examples.test_E, strict=True))
    assert side == {
        visit("first"): False,
        visit("train"): False,
        visit("split"): True,
        visit("test"): True,
    }
    assert examples.rows(test=True).tolist() == np.flatnonzero(examples.test_E).tolist()


@pytest.fixture(scope="module")
def busy(silo_of):
    """Two customers with 20 visits on each side of the split; 12 offers run, 5 are taken up."""
    items = [(f"i{k}", "x", f"All > Kind > Sort {k:02}", None, None) for k in range(12)]
    events = [
        bought(who, f"i{k}", day, f"{who} {day}")
        for who in ("ann", "bob")
        for day in (*range(1, 21), *range(61, 81))
        for k in range(5)
    ]
    return silo_of(events, [promoted(i[0], 0, 200) for i in items], items)


@pytest.mark.parametrize("seed", [0, 1])
def test_caps_hold_for_each_user_and_visit(seed, busy):
    task = dataclasses.replace(TASK, train_visits=3, test_visits=5, positives=2, seed=seed)
    examples = task.build(busy)
    for one in range(2):
        for test, visits, negatives in ((False, 3, 4), (True, 5, 7)):
            own = (examples.user_E == one) & (examples.test_E == test)
            chosen = np.unique(examples.visit_E[own])
            # As many as there may be: the cap is each user's own, not one for all.
            assert len(chosen) == visits
            for v in chosen:
                labels = examples.label_EK[examples.visit_E == v, 0]
                assert (labels == 1).sum() == 2
                assert (labels == 0).sum() == min(task.test_negatives, 7) if test else negatives


def test_the_seed_chooses_other_visits_and_the_same_seed_the_same(busy):
    one, same = described(TASK, busy), described(TASK, busy)
    other = described(dataclasses.replace(TASK, seed=1), busy)
    assert list(one.items()) == list(same.items())
    assert {k[1] for k in one} != {k[1] for k in other}


@pytest.mark.parametrize(
    ("days", "promotions"),
    [
        ([1, 61], []),
        ([1, 61], [promoted("milk-1", 5, 9)]),
        ([-1, 120], [promoted("milk-1", -99, 999)]),
        ([1, 61], [promoted("no such item", -99, 999)]),
    ],
)
def test_a_silo_without_a_visit_within_a_promotion_is_an_error(days, promotions, silo_of):
    silo = silo_of([bought("ann", "milk-1", d, f"v{d}") for d in days], promotions)
    with pytest.raises(
        DataError, match=rf"{silo.path}: no visit between 2024-01-01 and 2024-04-30"
    ):
        TASK.build(silo)


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": START},
        {"last": START + 60 * DAY},
        {"category_level": 0},
        {"train_visits": 0},
        {"test_visits": 0},
        {"positives": 0},
        {"negatives": 0},
        {"test_negatives": 0},
        {"split": (START + 60 * DAY).replace(tzinfo=dt.UTC)},
        {
            f: (START + n * DAY).replace(tzinfo=dt.UTC)
            for n, f in enumerate(("first", "split", "last"))
        },
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(TASK, **wrong)


def test_public_texts_are_the_same_everywhere_and_need_no_silo():
    texts = TASK.public_texts()
    assert (
        texts
        == PromotionResponse(
            first=START, split=START + DAY, last=START + 2 * DAY, seed=9
        ).public_texts()
    )
    assert len(set(texts)) == len(texts) > 100


# A made-up shop that is as awkward as a real one may be: visits of several days, visit ids
# that customers share or lack, visits that begin at the same moment, baskets with one time.
USERS = ("ann", "bob", "cid", "dot", "eva")
MORE = [(f"i{k}", "x", f"All > Kind {k % 3} > Sort {k % 4}", f"b{k % 2}", None) for k in range(8)]


def an_event(rng, who, first_hour, last_hour):
    item = rng.choice(ITEMS + MORE)[0]
    time = START + dt.timedelta(hours=rng.randrange(first_hour, last_hour, 8))
    visit_id = rng.choice([None, f"v{rng.randrange(12)}", f"{who} {time:%j}", f"{who} {time:%j%H}"])
    price, kind = rng.choice([1.1, 2.3, 40.0]), rng.choice(["purchase"] * 4 + ["redeem", "view"])
    discount = rng.choice([0.0, 0.0, 0.1, 0.35]) * price
    return (who, item, kind, time, visit_id, float(rng.randrange(1, 4)), price, discount)


def a_shop(rng):
    # A few hours of the day only: many events meet.
    events = [an_event(rng, who, -20 * 24, 90 * 24) for who in USERS for _ in range(60)]
    promotions = []
    for slot in range(10):
        start = rng.randrange(-20, 80)
        item = rng.choice([None, rng.choice(ITEMS + MORE)[0]])
        category = None if item else rng.choice(["Dairy", "All > Kind 1", "Bakery > Bread"])
        end = start + rng.randrange(10, 90)
        promotions.append(
            promoted(
                item, start, end, category=category, placement=f"slot {slot}", depth=rng.random()
            )
        )
    return events, promotions


@pytest.mark.parametrize("seed", range(8))
def test_nothing_after_the_start_of_a_visit_changes_what_is_said_of_it(silo_of, seed):
    rng = random.Random(seed)
    events, promotions = a_shop(rng)
    items = ITEMS + MORE
    before = silo_of(events, promotions, items)
    rows = EVERYTHING._rows(before)
    row = rng.choice(rows)
    who = next(u for u in USERS if user(u) == row["user_id"])
    now = row["time"]
    past = [e for e in events if e[0] == who and e[3] < now]
    # Of the visits that begin now, everything but one event is another one.
    kept = {e[4]: e for e in events if e[0] == who and e[3] == now}
    present = [
        *kept.values(),
        *(
            (
                *rng.choice([*kept.values()])[:1],
                *an_event(rng, who, 0, 8)[1:3],
                now,
                v,
                9.0,
                7.7,
                0.7,
            )
            for v in kept
        ),
    ]
    hour = round((now - START) / dt.timedelta(hours=1))
    future = [an_event(rng, who, hour + 8, 100 * 24) for _ in range(40)]
    visits = [e[4] for e in past + present]
    future += [(*an_event(rng, who, hour + 8, 100 * 24)[:4], v, 1.0, 5.0, 2.0) for v in visits]
    strangers = [an_event(rng, u, -20 * 24, 90 * 24) for u in USERS if u != who for _ in range(20)]
    after = silo_of(past + present + future + strangers, promotions, items)
    seen_then = {
        (r["user_id"], r["visit_id"], r["category"], r["placement"])
        for r in rows
        if r["user_id"] == user(who) and r["time"] <= now
    }
    assert seen_then
    was, is_ = features(described(EVERYTHING, before)), features(described(EVERYTHING, after))
    assert {k: was[k] for k in seen_then} == {k: is_.get(k) for k in seen_then}


@pytest.mark.parametrize("task", [TASK, EVERYTHING], ids=["caps", "no caps"])
@pytest.mark.parametrize("seed", range(6))
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(silo_of, seed, task):
    events, promotions = a_shop(random.Random(seed))
    who = USERS[seed % len(USERS)]
    whole = described(task, silo_of(events, promotions, ITEMS + MORE))
    rest = [e for e in events if e[0] != who]
    without = described(task, silo_of(rest, promotions, ITEMS + MORE))
    assert any(k[0] == user(who) for k in whole)
    # In their order, too.
    assert list(without.items()) == [(k, v) for k, v in whole.items() if k[0] != user(who)]


def test_rows_of_one_index_are_of_one_user_and_one_visit(silo_of):
    events, promotions = a_shop(random.Random(1))
    silo = silo_of(events, promotions, ITEMS + MORE)
    rows, examples = TASK._rows(silo), TASK.build(silo)
    users = {(r["user_id"], u) for r, u in zip(rows, examples.user_E.tolist(), strict=True)}
    assert sorted(u for _, u in users) == list(range(len(USERS)))
    assert len({name for name, _ in users}) == len(USERS)
    # Two customers may have the same visit id.
    pairs = {
        ((r["user_id"], r["visit_id"]), v)
        for r, v in zip(rows, examples.visit_E.tolist(), strict=True)
    }
    assert sorted(v for _, v in pairs) == list(range(len({name for name, _ in pairs})))


def test_features_lie_between_zero_and_one(silo_of):
    events, promotions = a_shop(random.Random(2))
    numeric = EVERYTHING.build(silo_of(events, promotions, ITEMS + MORE)).numeric_EF
    assert numeric.min() == 0
    assert (numeric.max(axis=0) > 0.05).all()
    assert numeric.max() <= 1


def test_the_number_of_threads_changes_no_bit_of_a_row(silo_of, monkeypatch):
    # Sums of floats depend on how rows are shared out, and so on who else is there.
    count, generator = 260_000, np.random.default_rng(0)
    hours = generator.integers(-300 * 24, 60 * 24, count).astype("timedelta64[h]")
    events = pa.table(
        {
            "user_id": np.array(["ann", "bob"])[np.arange(count) % 2],
            "item_id": np.array([i[0] for i in MORE])[generator.integers(0, 2, count)],
            "kind": np.full(count, "purchase"),
            "time": np.datetime64(START, "us") + hours,
            "visit_id": np.char.add("v", (np.arange(count) // 3).astype(str)),
            "quantity": np.ones(count),
            "price": generator.uniform(1, 9, count),
            "discount": generator.uniform(0, 1, count),
        },
        schema=pa.schema(COLUMNS["events"]),
    )
    silo = silo_of(events, [promoted(i[0], -300, 100) for i in MORE[:2]], MORE)
    task = dataclasses.replace(TASK, train_visits=4)
    connect = SiloFolder.connect
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(SiloFolder, "connect", lambda s, t=threads: connect(s, threads=t))
        found.append(task._rows(silo))
    assert len(found[0]) == 16
    assert found[0] == found[1]
