"""What an example says of the offer and of the customer."""

import datetime as dt
import math

import numpy as np
import pytest

from silotune.tasks.promotion_response import PromotionResponse

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")


@pytest.fixture(scope="module")
def small(shop):
    events = [
        # Before `first`: history alone.
        shop.bought("ann", "milk-2", -21, "v1", discount=0.6),
        shop.bought("ann", "bread", -21, "v1", price=25.0),
        # Two lines, one visit.
        shop.bought("ann", "milk-1", -14, "v2", kind="redeem"),
        shop.bought("ann", "milk-1", -14, "v2", kind="redeem"),
        shop.seen("ann", "tea", -13, "v2b"),
        # The visit that is asked about: takes the milk on offer, not the bread.
        shop.bought("ann", "milk-1", 0, "v3"),
        shop.bought("ann", "tea", 0, "v3", price=500.0),
        # A stranger with habits of his own.
        shop.bought("bob", "bread", -5, "w1", price=100.0, discount=100.0),
        shop.seen("bob", "bread", 3, "w2", "click"),
    ]
    promotions = [
        shop.promoted("milk-1", 0, 7),
        shop.promoted("bread", 0, 7, placement=None, mechanic="mailer", depth=None),
        shop.promoted("skim", 1, 7, placement="later"),
        shop.promoted("tea", -7, 0, placement="ended"),
    ]
    return shop.silo_of(events, promotions)


def test_the_examples_of_a_small_shop_are_those_worked_out_by_hand(shop, small):
    examples = shop.task.build(small)
    rows = shop.task._rows(small)
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
        name = {shop.user("ann"): "ann", shop.user("bob"): "bob"}[row["user_id"]]
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


def test_the_numeric_features_are_the_named_ones(shop, small):
    assert len(shop.task.numeric_names) == shop.task.build(small).numeric_EF.shape[1] == 6


def test_another_item_of_the_category_is_not_the_item_on_offer(shop):
    events = [shop.bought("ann", "milk-2", -7, "v1"), shop.bought("ann", "milk-2", 1, "v2")]
    silo = shop.silo_of(events, [shop.promoted("milk-1", 0, 2)])
    examples = shop.task.build(silo)
    assert examples.label_EK.tolist() == [[0.0]]
    assert "these items" not in examples.text[0]
    category_visits, *_, item_visits, _ = examples.numeric_EF[0]
    assert (category_visits > 0, item_visits) == (True, 0)


def test_public_texts_are_the_same_everywhere_and_need_no_silo(shop):
    texts = shop.task.public_texts()
    assert (
        texts
        == PromotionResponse(
            first=shop.start, split=shop.start + DAY, last=shop.start + 2 * DAY, seed=9
        ).public_texts()
    )
    assert len(set(texts)) == len(texts) > 100
