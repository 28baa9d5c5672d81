"""What becomes of an offer: known outcomes of a small shop, and what is never looked at."""

import dataclasses
import random

import numpy as np
import pytest

from silotune.tasks.metrics import ndcg_at
from silotune.tasks.promotion_outcome import PromotionOutcome
from silotune.tasks.promotion_response import PromotionResponse
from silotune.tasks.ranked_classes import RankedClasses

PLAIN, DEAL, COUPON = "bought", "bought at a discount", "bought with a coupon"


@pytest.fixture(scope="module")
def task(shop):
    span = {"first": shop.task.first, "split": shop.task.split, "last": shop.task.last}
    return PromotionOutcome(**span)


def outcomes(task, silo):
    """Return {(user, category): class}."""
    examples = task.build(silo)
    names = task.objective.outcomes(examples.label_EK)["label"]
    assert (examples.label_EK.sum(1) == 1).all()
    return dict(zip(zip(examples.keys["user_id"], examples.group, strict=True), names, strict=True))


def test_the_outcome_is_the_most_that_happened_with_any_item_of_the_offer(shop, task):
    milk = {"kind": "redeem", "discount": 0.5}
    events = [
        shop.bought("ann", "milk-1", 1, "a"),
        shop.bought("bob", "milk-1", 1, "b"),
        shop.bought("bob", "milk-2", 1, "b", discount=0.4),
        shop.bought("cid", "milk-2", 1, "c", discount=0.4),
        shop.bought("cid", "milk-1", 1, "c", **milk),
        # Not of the offer, not of the visit, not bought.
        shop.bought("dot", "skim", 1, "d", discount=0.4),
        shop.bought("dot", "milk-1", -1, "d2", discount=0.4),
        shop.seen("dot", "milk-1", 1, "d"),
        # A coupon that took nothing off is a coupon.
        shop.bought("eva", "milk-1", 1, "e", kind="redeem"),
    ]
    promotions = [shop.promoted(item, 0, 2) for item in ("milk-1", "milk-2", "bread")]
    silo = shop.silo_of(events, promotions)
    found = outcomes(task, silo)
    milk = {u: found[shop.user(u), "Dairy > Milk > Whole"] for u in ("ann", "bob", "cid", "dot")}
    assert milk == {"ann": PLAIN, "bob": DEAL, "cid": DEAL, "dot": "ignored"}
    assert {o for (_, category), o in found.items() if "Bread" in category} == {"ignored"}
    apart = outcomes(dataclasses.replace(task, coupons_apart=True), silo)
    assert apart[shop.user("cid"), "Dairy > Milk > Whole"] == COUPON
    assert apart[shop.user("eva"), "Dairy > Milk > Whole"] == COUPON
    assert apart[shop.user("bob"), "Dairy > Milk > Whole"] == DEAL
    assert found[shop.user("eva"), "Dairy > Milk > Whole"] == DEAL


USERS = ("ann", "bob", "cid", "dot")


def some_events(shop, rng, first, last, count=60):
    def one(who):
        item, day = rng.choice(shop.items)[0], rng.randrange(first, last)
        off, kind = rng.choice([0.0, 0.5]), rng.choice(["purchase"] * 3 + ["redeem", "view"])
        return shop.bought(who, item, day, f"{who}{day}", discount=off, kind=kind)

    return [one(who) for who in USERS for _ in range(count)]


def some_promotions(shop, rng):
    items = [i[0] for i in shop.items]
    return [
        shop.promoted(rng.choice(items), day, day + 9, placement=f"p{day}", depth=rng.random())
        for day in range(0, 118, 3)
    ]


def test_it_asks_what_promotion_response_asks(shop, task):
    rng = random.Random(0)
    silo = shop.silo_of(some_events(shop, rng, -20, 110), some_promotions(shop, rng))
    fields = {f.name for f in dataclasses.fields(PromotionResponse)} - {"name"}
    response = PromotionResponse(**{f: getattr(task, f) for f in fields}).build(silo)
    examples = task.build(silo)
    assert examples.text == response.text
    assert examples.keys == response.keys
    np.testing.assert_array_equal(examples.numeric_EF, response.numeric_EF)
    np.testing.assert_array_equal(1 - examples.label_EK[:, :1], response.label_EK)
    assert set(examples.label_EK.argmax(1)) == {0, 1, 2}


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_after_a_visit_changes_nothing_of_it(shop, task, seed):
    rng = random.Random(seed)
    promotions, past = some_promotions(shop, rng), some_events(shop, rng, -20, 60)
    futures = [some_events(shop, rng, 60, 115) for _ in range(2)]
    everything = dataclasses.replace(
        task, train_visits=999, positives=999, negatives=999, coupons_apart=True
    )

    def train(future):
        examples = everything.build(shop.silo_of(past + future, promotions))
        return [
            (examples.text[i], examples.context[i], examples.label_EK[i].tolist())
            for i in examples.rows(test=False)
        ], examples.rows(test=True)

    (one, tested), (other, _) = map(train, futures)
    assert one == other
    assert len(one) > 50
    assert len(tested) > 20


def test_offers_are_ranked_by_the_chance_that_anything_is_bought():
    objective = RankedClasses(names=("ignored", "bought", "deal"))
    rng = np.random.default_rng(0)
    label, visit = np.eye(3)[rng.integers(0, 3, 60)], np.repeat(np.arange(10), 6)
    logits = rng.normal(size=(60, 3))
    found = objective.quality(label, logits, visit)
    chance = objective.scores(logits)
    assert found["ndcg"] == pytest.approx(ndcg_at(1 - label[:, 0], 1 - chance[:, 0], visit))
    assert found["recall"] == 1.0  # of six, ten are taken
    # Which of the other classes it was does not matter for the order.
    turned = objective.quality(label[:, [0, 2, 1]], logits[:, [0, 2, 1]], visit)
    assert turned == pytest.approx(found)
    logits[3] = np.nan
    assert np.isnan([*objective.quality(label, logits, visit).values()]).all()
