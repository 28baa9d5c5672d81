"""Caps, seed and span of the task, and what is refused."""

import dataclasses
import datetime as dt

import numpy as np
import pytest

from silotune.errors import ConfigError, DataError

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")


@pytest.fixture(scope="module")
def busy(shop):
    """Two customers with 20 visits on each side of the split; 12 offers run, 5 are taken up."""
    items = [(f"i{k}", "x", f"All > Kind > Sort {k:02}", None, None) for k in range(12)]
    events = [
        shop.bought(who, f"i{k}", day, f"{who} {day}")
        for who in ("ann", "bob")
        for day in (*range(1, 21), *range(61, 81))
        for k in range(5)
    ]
    return shop.silo_of(events, [shop.promoted(i[0], 0, 200) for i in items], items)


@pytest.mark.parametrize("seed", [0, 1])
def test_caps_hold_for_each_user_and_visit(shop, seed, busy):
    task = dataclasses.replace(shop.task, train_visits=3, test_visits=5, positives=2, seed=seed)
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
                assert (labels == 0).sum() == (min(task.test_negatives, 7) if test else negatives)


def test_the_seed_chooses_other_visits_and_the_same_seed_the_same(shop, busy):
    one, same = shop.described(shop.task, busy), shop.described(shop.task, busy)
    other = shop.described(dataclasses.replace(shop.task, seed=1), busy)
    assert list(one.items()) == list(same.items())
    assert {k[1] for k in one} != {k[1] for k in other}


@pytest.mark.parametrize(
    ("days", "promotions"),
    [
        ([1, 61], []),
        ([1, 61], [("milk-1", 5, 9)]),
        ([-1, 120], [("milk-1", -99, 999)]),
        ([1, 61], [("no such item", -99, 999)]),
    ],
)
def test_a_silo_without_a_visit_within_a_promotion_is_an_error(days, promotions, shop):
    silo = shop.silo_of(
        [shop.bought("ann", "milk-1", d, f"v{d}") for d in days],
        [shop.promoted(*p) for p in promotions],
    )
    with pytest.raises(
        DataError, match=rf"{silo.path}: no visit between 2024-01-01 and 2024-04-30"
    ):
        shop.task.build(silo)


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
def test_parameters_out_of_range_are_refused_by_name(shop, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(shop.task, **wrong)
