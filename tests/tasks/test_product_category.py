"""Product category: which products are whose examples, on which side, in which class."""

import dataclasses
import datetime as dt
import hashlib
import random

import numpy as np
import pytest

from silotune.errors import ConfigError
from tests.tasks.products import DAY, ITEMS, START, TASK, USERS, WARES


def held_out(name, seed=0, share=0.5):
    digest = hashlib.sha256(f"{seed}:{name.lower()}".encode()).hexdigest()
    return int(digest[:8], 16) < share * 2**32


def some_events(shop, generator, count=120):
    items = [item for item, *_ in ITEMS]
    return [
        shop.bought(generator.choice(USERS), generator.choice(items), day, f"v{day}-{n}")
        for n, day in enumerate(generator.choices(range(-5, 110), k=count))
    ]


def described(shop, task, silo):
    """Return {(user, item): (day, test, class, text, context, numbers)}, in order."""
    examples = task.build(silo)
    names = {shop.user(u): u for u in USERS}
    keys = zip(*(examples.keys[k] for k in ("user_id", "item_id", "time")), strict=True)
    labels = task.objective.outcomes(examples.label_EK)["label"]
    out = {}
    for i, (user, item, time) in enumerate(keys):
        assert (names[user], item) not in out
        out[names[user], item] = (
            (time - START) // DAY,
            bool(examples.test_E[i]),
            labels[i],
            examples.text[i],
            examples.context[i],
            tuple(examples.numeric_EF[i]),
        )
    assert len(examples) == len(out)
    return out


def split_names():
    """Return a name of dairy that trains, and one that is held out."""
    train, test = (next(n for n in WARES["Dairy"] if held_out(n) is side) for side in (False, True))
    return train.lower(), test.lower()


def test_a_product_trains_before_the_split_or_is_held_out_and_tests_after_it(shop):
    train, test = split_names()
    events = [
        shop.bought("ann", f"{train}-1 l", -1, "v0"),
        # Again, and in another size: one example, of the first time within the span.
        shop.bought("ann", f"{train}-2 l", 3, "v1"),
        shop.bought("ann", f"{train}-1 l", 4, "v2", kind="redeem"),
        shop.bought("ann", f"{train}-1 l", 60, "v3"),
        shop.bought("ann", f"{test}-1 l", 5, "v4"),
        shop.bought("ann", f"{test}-1 l", 50, "v5"),
        shop.bought("ann", f"{test}-1 l", 70, "v6"),
        shop.bought("bob", f"{test}-2 l", 100, "v7"),
        shop.bought("bob", f"{train}-2 l", 49, "v8"),
        shop.seen("cid", f"{train}-2 l", 49, "v9"),
        shop.bought("dot", "puzzle-1 l", 9, "v10"),
    ]
    silo = shop.silo_of(events, [], ITEMS)
    found = described(shop, TASK, silo)
    assert {k: v[:3] for k, v in found.items()} == {
        ("ann", f"{train}-2 l"): (3, False, "dairy"),
        ("ann", f"{test}-1 l"): (50, True, "dairy"),
        ("bob", f"{train}-2 l"): (49, False, "dairy"),
    }
    _, _, _, text, context, numbers = found["ann", f"{train}-2 l"]
    assert (text, context) == (train.capitalize(), "brand: Farm. size: 2 l")
    assert numbers == pytest.approx([1, np.log1p(2000) / np.log1p(10_000), 0, 1])
    looked = described(shop, dataclasses.replace(TASK, event="any"), silo)
    assert looked.keys() - found.keys() == {("cid", f"{train}-2 l")}


def test_a_name_is_held_out_at_every_merchant_whatever_its_id_size_and_letters(shop):
    names = [n for some in WARES.values() for n in some]
    items = [(f"x{i}", f"{n.upper()}", "Dairy", None, None) for i, n in enumerate(names)]
    here, there = shop.silo_of([], [], ITEMS), shop.silo_of([], [], items)
    for seed in range(3):
        task = dataclasses.replace(TASK, seed=seed)
        expected = {n.lower(): held_out(n, seed) for n in names}
        assert 0 < sum(expected.values()) < len(names)
        for silo in (here, there):
            assert {r["name"]: r["test"] for r in task.catalogue(silo)} == expected
    many = dataclasses.replace(TASK, held_out=0.9).catalogue(here)
    few = dataclasses.replace(TASK, held_out=0.1).catalogue(here)
    assert sum(r["test"] for r in few) < 20 < 40 < sum(r["test"] for r in many)


@pytest.mark.parametrize("seed", range(3))
def test_no_name_is_on_both_sides(shop, seed):
    silo = shop.silo_of(some_events(shop, random.Random(seed)), [], ITEMS)
    examples = TASK.build(silo)
    names = np.array(examples.group)
    assert set(names[examples.test_E]).isdisjoint(names[~examples.test_E])
    assert all(examples.test_E == [held_out(n) for n in names])
    assert examples.test_E.any()
    assert not examples.test_E.all()


@pytest.mark.parametrize("seed", range(3))
def test_the_future_changes_no_training_row_and_the_past_no_test_row(shop, seed):
    events = some_events(shop, random.Random(seed))
    before = [e for e in events if e[3] < TASK.split]
    after = [e for e in events if e[3] >= TASK.split]
    moved = [(*e[:3], e[3] + 7 * DAY, *e[4:]) for e in after]
    whole = described(shop, TASK, shop.silo_of(events, [], ITEMS))
    for changed in (before + moved, after):
        other = described(shop, TASK, shop.silo_of(changed, [], ITEMS))
        test = changed is after
        assert {k: v for k, v in other.items() if v[1] is test} == {
            k: v for k, v in whole.items() if v[1] is test
        }
    assert all((v[0] >= 50) is v[1] and 0 <= v[0] < 100 for v in whole.values())


@pytest.mark.parametrize("caps", [{}, {"train_products": 2, "test_products": 1}])
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, caps):
    task = dataclasses.replace(TASK, **caps)
    events = some_events(shop, random.Random(7))
    whole = described(shop, task, shop.silo_of(events, [], ITEMS))
    for who in USERS:
        rest = shop.silo_of([e for e in events if e[0] != who], [], ITEMS)
        without = described(shop, task, rest)
        assert list(without.items()) == [(k, v) for k, v in whole.items() if k[0] != who]
        if caps:
            assert sum(k[0] == who and not v[1] for k, v in whole.items()) == 2
            assert sum(k[0] == who and v[1] for k, v in whole.items()) == 1


def test_a_title_that_names_its_class_is_no_example_unless_asked_for(shop):
    items = [
        ("a", "Dairy spread", "Dairy", None, None),
        ("b", "Spread without DAIRY, 1 l", "Dairy", None, "1 l"),
        ("c", "Dairymaid spread", "Dairy", None, None),
        ("d", "Dairy bread", "Bakery", None, None),
    ]
    events = [shop.bought("ann", item, day, "v") for item, *_ in items for day in (1, 60)]
    silo = shop.silo_of(events, [], items)
    assert {item for _, item in described(shop, TASK, silo)} == {"c", "d"}
    named = dataclasses.replace(TASK, named=True)
    assert {item for _, item in described(shop, named, silo)} == {"a", "b", "c", "d"}


def test_every_product_can_be_asked_about_whoever_bought_it(shop):
    silo = shop.silo_of([], [], ITEMS)
    asked = TASK.build_at(silo, START)
    assert asked.keys["item_id"] == sorted(item for item, *_ in ITEMS)
    assert "user_id" not in asked.keys
    assert asked.test_E.all()
    assert np.isnan(asked.label_EK).all()
    assert set(asked.keys["class"]) == {"dairy", "bakery", "drinks", None}
    assert asked.text[0] == "Bagel"


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": START},
        {"first": START.replace(tzinfo=dt.UTC)},
        {"classes": ("dairy",)},
        {"classes": ("dairy", "dairy")},
        {"classes": ("dairy", "")},
        {"classes_held": 1},
        {"classes_held": 4},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"category_level": 0},
        {"train_products": 0},
        {"test_products": 0},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(TASK, **wrong)
