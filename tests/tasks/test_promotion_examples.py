"""Which visits and offers make an example, and what its label is."""

import dataclasses
import datetime as dt

import numpy as np
import pytest


def test_a_purchase_with_a_coupon_counts_and_a_look_does_not(shop):
    events = [
        shop.bought("ann", "milk-1", 1, "v", kind="redeem"),
        *(shop.seen("ann", "bread", 1, "v", kind) for kind in ("view", "click", "cart")),
    ]
    silo = shop.silo_of(events, [shop.promoted("milk-1", 0, 2), shop.promoted("bread", 0, 2)])
    labels = {k[2]: v["label"] for k, v in shop.described(shop.task, silo).items()}
    assert labels == {
        "Dairy > Milk > Whole": np.float32(1).tobytes(),
        "Bakery > Bread > White": np.float32(0).tobytes(),
    }


def test_a_promotion_runs_from_its_start_until_just_before_its_end(shop):
    events = [shop.seen("ann", "tea", day, f"v{day}") for day in range(6)]
    silo = shop.silo_of(events, [shop.promoted("milk-1", 2, 4)])
    days = {(row["time"] - shop.start).days for row in shop.everything._rows(silo)}
    assert days == {2, 3}


def test_a_promoted_category_holds_the_items_under_its_path_and_no_namesakes(shop):
    items = [
        *shop.items,
        ("oat", "Oat drink", "Dairy > Milk Free > Oat", None, None),
        ("rusk", "Rusk", "Bakery", None, None),
    ]
    events = [shop.bought("ann", "skim", 1, "v"), shop.bought("ann", "oat", 1, "v")]
    promotions = [
        shop.promoted(None, 0, 2, category="Dairy > Milk", placement="a"),
        shop.promoted(None, 0, 2, category="Bakery > Bread > White > Sliced", placement="b"),
        shop.promoted(None, 0, 2, category="Nowhere", placement="c"),
    ]
    found = shop.described(shop.task, shop.silo_of(events, promotions, items))
    assert {(k[2], k[3]): v["label"] == np.float32(1).tobytes() for k, v in found.items()} == {
        ("Dairy > Milk > Whole", "a"): False,
        ("Dairy > Milk > Skim", "a"): True,
        ("Bakery > Bread > White", "b"): False,
    }


def test_a_purchase_of_another_user_with_the_same_visit_id_is_not_ones_own(shop):
    events = [shop.bought("ann", "milk-1", 1, "v"), shop.seen("bob", "milk-1", 1, "v")]
    found = shop.described(shop.task, shop.silo_of(events, [shop.promoted("milk-1", 0, 2)]))
    labels = {k[0]: v["label"] for k, v in found.items()}
    assert labels == {
        shop.user("ann"): np.float32(1).tobytes(),
        shop.user("bob"): np.float32(0).tobytes(),
    }


def test_an_item_named_in_a_promotion_counts_before_its_category(shop):
    promotions = [shop.promoted("skim", 0, 2, category="Bakery")]
    found = shop.described(shop.task, shop.silo_of([shop.seen("ann", "tea", 1, "v")], promotions))
    assert [k[2] for k in found] == ["Dairy > Milk > Skim"]


@pytest.mark.parametrize(
    ("level", "groups"),
    [(1, {"Dairy"}), (2, {"Dairy > Milk"}), (9, {"Dairy > Milk > Whole", "Dairy > Milk > Skim"})],
)
def test_the_category_level_says_what_is_one_offer(level, groups, shop):
    silo = shop.silo_of(
        [shop.bought("ann", "skim", 1, "v")],
        [shop.promoted("milk-1", 0, 2), shop.promoted("skim", 0, 2)],
    )
    examples = dataclasses.replace(shop.task, category_level=level).build(silo)
    assert set(examples.group) == groups
    assert examples.label_EK.sum() == 1


def test_the_split_and_the_span_are_kept_to_the_moment(shop):
    moments = {
        "before": shop.task.first - dt.timedelta(seconds=1),
        "first": shop.task.first,
        "train": shop.task.split - dt.timedelta(seconds=1),
        "split": shop.task.split,
        "test": shop.task.last - dt.timedelta(seconds=1),
        "last": shop.task.last,
    }
    events = [
        ("ann", "tea", "view", time, name, None, None, None) for name, time in moments.items()
    ]
    silo = shop.silo_of(events, [shop.promoted("milk-1", -99, 999)])
    examples = shop.everything.build(silo)
    side = dict(
        zip((r["visit_id"] for r in shop.everything._rows(silo)), examples.test_E, strict=True)
    )
    assert side == {
        shop.visit("first"): False,
        shop.visit("train"): False,
        shop.visit("split"): True,
        shop.visit("test"): True,
    }
    assert examples.rows(test=True).tolist() == np.flatnonzero(examples.test_E).tolist()
