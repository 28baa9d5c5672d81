"""Coupon campaigns: who is asked about, who redeemed, and what is never looked at."""

import dataclasses
import datetime as dt
import random

import numpy as np
import pytest

from silotune.errors import NoExamplesError
from silotune.tasks.coupon_redemption import CouponRedemption
from silotune.tasks.coupon_words import NUMERIC, kind_of, public_texts

USERS = ("ann", "bob", "cid", "dot")


@pytest.fixture(scope="module")
def task(shop):
    # Split on day 60, end on day 120.
    span = {"first": shop.task.first, "split": shop.task.split, "last": shop.task.last}
    return CouponRedemption(**span, horizon_days=20)


def campaign(shop, name, items, start, end):
    return [
        shop.promoted(item, start, end, placement=name, mechanic="campaign", depth=None)
        for item in items
    ]


def labels(shop, task, silo):
    """Return {(user, campaign): (label, whether of a test campaign)}."""
    examples = task.build(silo)
    names = {shop.user(u): u for u in USERS}
    users = [names[u] for u in examples.keys["user_id"]]
    keys = zip(users, examples.keys["campaign"], strict=True)
    values = zip(examples.label_EK[:, 0].tolist(), examples.test_E.tolist(), strict=True)
    found = dict(zip(keys, values, strict=True))
    assert len(found) == len(examples)
    return found


def known(shop, *users):
    return [shop.bought(u, "tea", -9, f"{u} old") for u in users]


def test_who_was_sent_a_campaign_is_asked_about_and_redeems_with_a_coupon_of_it(shop, task):
    promotions = campaign(shop, "spring 1", ["milk-1", "bread"], 10, 25)
    events = [
        *known(shop, *USERS),
        shop.bought("ann", "bread", 12, "a", kind="redeem"),
        # Bought without one; with one of another item; before and after.
        shop.bought("bob", "bread", 12, "b"),
        shop.bought("bob", "skim", 12, "b", kind="redeem"),
        shop.bought("cid", "bread", 9, "c", kind="redeem"),
        shop.bought("cid", "bread", 25, "c2", kind="redeem"),
        # Not sent.
        shop.bought("dot", "bread", 12, "d", kind="redeem"),
    ]
    sent = {"ann": "spring 1", "bob": " spring 1; other", "cid": "x;spring 1", "dot": "spring 12"}
    silo = shop.silo_of(events, promotions, campaigns=sent)
    expected = {("ann", "spring 1"): 1.0, ("bob", "spring 1"): 0.0, ("cid", "spring 1"): 0.0}
    assert labels(shop, task, silo) == {k: (v, False) for k, v in expected.items()}
    # Where nobody says who was sent what, everyone was.
    everyone = labels(shop, task, shop.silo_of(events, promotions))
    assert everyone == {k: (v, False) for k, v in (expected | {("dot", "spring 1"): 1.0}).items()}


def test_a_category_may_be_what_the_coupons_are_for(shop, task):
    promotion = shop.promoted(
        None, 10, 25, category="Dairy", placement="dairy 3", mechanic="campaign"
    )
    events = [*known(shop, "ann"), shop.bought("ann", "skim", 12, "a", kind="redeem")]
    silo = shop.silo_of(events, [promotion], campaigns={"ann": "dairy 3"})
    assert labels(shop, task, silo) == {("ann", "dairy 3"): (1.0, False)}


def test_campaigns_train_that_are_over_by_the_split_and_test_that_begin_from_it(shop, task):
    spans = {
        "before": (-1, 9),
        "first": (0, 9),
        "over": (50, 60),
        # Looked at for 20 days of it, which are over by the split.
        "long": (40, 99),
        "astride": (41, 99),
        "split": (60, 70),
        "test": (101, 120),
        "late": (101, 121),
    }
    promotions = [p for n, (a, b) in spans.items() for p in campaign(shop, n, ["tea"], a, b)]
    silo = shop.silo_of(known(shop, "ann"), promotions, campaigns={"ann": ";".join(spans)})
    found = {name: test for (_, name), (_, test) in labels(shop, task, silo).items()}
    train = dict.fromkeys(("first", "over", "long"), False)
    assert found == train | {"split": True, "test": True}
    few = dataclasses.replace(task, train_campaigns=2, test_campaigns=1)
    found = labels(shop, few, silo)
    assert sorted(test for _, test in found.values()) == [False, False, True]


def test_what_is_redeemed_after_the_horizon_does_not_count(shop, task):
    events = [*known(shop, "ann", "bob"), shop.bought("ann", "tea", 29, "a", kind="redeem")]
    events += [shop.bought("bob", "tea", 30, "b", kind="redeem")]
    silo = shop.silo_of(events, campaign(shop, "c", ["tea"], 10, 59))
    assert {u: v[0] for (u, _), v in labels(shop, task, silo).items()} == {"ann": 1.0, "bob": 0.0}


def test_who_was_never_seen_before_a_campaign_is_not_asked_about(shop, task):
    events = [*known(shop, "ann"), shop.bought("bob", "tea", 10, "b", kind="redeem")]
    silo = shop.silo_of(events, campaign(shop, "c", ["tea"], 10, 20))
    assert set(labels(shop, task, silo)) == {("ann", "c")}
    nobody = shop.silo_of(events, campaign(shop, "c", ["tea"], -10, -5))
    with pytest.raises(NoExamplesError, match="mechanic 'campaign'"):
        task.build(nobody)


def test_features_are_counted_by_hand(shop, task):
    promotions = [
        *campaign(shop, "mail 1", ["tea"], 0, 9),
        *campaign(shop, "mail 2", ["bread"], 5, 14),
        *campaign(shop, "mail 3", ["milk-1", "tea"], 28, 42),
    ]
    events = [
        shop.bought("ann", "milk-1", -7, "v1"),
        shop.bought("ann", "milk-2", 0, "v2"),
        shop.bought("ann", "tea", 7, "v3", kind="redeem", discount=0.5),
        shop.bought("ann", "milk-1", 14, "v4"),
        shop.bought("ann", "milk-1", 30, "v5", kind="redeem"),
    ]
    silo = shop.silo_of(events, promotions, campaigns={"ann": "mail 1;mail 2;mail 3"})
    examples = task.build(silo)
    row = examples.keys["campaign"].index("mail 3")
    found = dict(zip(NUMERIC, examples.numeric_EF[row].tolist(), strict=True))
    expected = {
        "item_share": 3 / 6,  # v1, v3 and v4 of four visits
        "items_known": np.log(3) / 5,
        "item_recency": np.exp(-2 / 4),
        "category_share": 4 / 6,
        "coupon_visits": np.log(2) / 4,
        "coupon_share": 1 / 6,
        "coupon_recency_month": np.exp(-3 / 4),
        "coupon_recency_half_year": np.exp(-3 / 26),
        "campaigns_sent": np.log(3) / 3,
        "campaigns_redeemed": 1 / 3,
        "visit_rate": 1 - np.exp(-4 / 8),
        "visit_recency": np.exp(-2 / 2),
        "deal_share": 1 / 4,
        "range": np.log(3) / 11,
        "weeks": 2 / 10,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert examples.label_EK[row] == 1
    assert examples.group[row] == "mail"
    words, bought, used = examples.text[row].split(". ")
    assert words == "mail, 2 weeks, coupons for Drinks, Milk"
    assert bought == "these items bought mostly, last this month, buys Drinks, Milk"
    assert used == ("coupons used often, last this month, earlier campaigns redeemed mostly")


def a_world(shop, rng, first, last, users=USERS, count=50):
    def one(who):
        day, kind = rng.randrange(first, last), rng.choice(["purchase", "redeem", "view"])
        item = rng.choice(shop.items)[0]
        return shop.bought(who, item, day, f"{who}{day}", kind=kind, discount=rng.choice([0, 0.5]))

    return [one(who) for who in users for _ in range(count)]


def campaigns_of(shop, rng):
    items = [i[0] for i in shop.items]
    found = []
    for number in range(14):
        start = rng.randrange(0, 110)
        found += campaign(
            shop, f"mail {number}", rng.sample(items, 3), start, start + rng.randrange(5, 30)
        )
    sent = {u: ";".join(f"mail {n}" for n in range(14) if rng.random() < 0.8) for u in USERS}
    return found, sent


def said(examples, which):
    return {
        (examples.keys["user_id"][i], examples.keys["campaign"][i]): (
            examples.text[i],
            examples.context[i],
            examples.numeric_EF[i].tobytes(),
            bool(examples.test_E[i]),
        )
        for i in range(len(examples))
        if which(i)
    }


@pytest.mark.parametrize("seed", range(4))
def test_nothing_from_the_beginning_of_a_campaign_on_changes_what_is_said_of_it(shop, task, seed):
    rng = random.Random(seed)
    promotions, sent = campaigns_of(shop, rng)
    past, day = a_world(shop, rng, -30, 60), 60
    now = shop.start + day * dt.timedelta(days=1)
    silos = [
        shop.silo_of(past + future, promotions, campaigns=sent)
        for future in (a_world(shop, rng, day, 119), a_world(shop, rng, day, 119), [])
    ]
    built = [task.build(silo) for silo in silos]
    one, other, none = (said(e, lambda i, e=e: e.keys["start"][i] <= now) for e in built)
    assert one == other == none
    assert len(one) > 5
    # The future is what the later campaigns are about.
    assert said(built[0], lambda i: True) != said(built[1], lambda i: True)
    train = [e.label_EK[e.rows(test=False)].tolist() for e in built]
    assert train[0] == train[1] == train[2]


@pytest.mark.parametrize("caps", [False, True], ids=["all", "caps"])
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, task, caps):
    if caps:
        task = dataclasses.replace(task, train_campaigns=2, test_campaigns=1)
    rng = random.Random(7)
    promotions, sent = campaigns_of(shop, rng)
    events = a_world(shop, rng, -30, 119)
    for campaigns in (sent, None):
        whole = task.build(shop.silo_of(events, promotions, campaigns=campaigns))
        rest = {u: c for u, c in sent.items() if u != "bob"} if campaigns else None
        without = task.build(
            shop.silo_of([e for e in events if e[0] != "bob"], promotions, campaigns=rest)
        )
        others = said(whole, lambda i, w=whole: w.keys["user_id"][i] != shop.user("bob"))
        found = said(without, lambda i: True)
        assert list(found.items()) == list(others.items())
        assert len(whole) > len(without) > 3


def test_lists_are_audiences_or_customers(shop, task):
    rng = random.Random(1)
    promotions, sent = campaigns_of(shop, rng)
    silo = shop.silo_of(a_world(shop, rng, -30, 119), promotions, campaigns=sent)
    for ranked, key in (("audience", "campaign"), ("customer", "user_id")):
        examples = dataclasses.replace(task, ranked=ranked).build(silo)
        pairs = set(zip(examples.visit_E.tolist(), examples.keys[key], strict=True))
        assert len(pairs) == len(set(examples.keys[key])) == len(set(examples.visit_E.tolist()))
    assert set(examples.label_EK[:, 0].tolist()) == {0.0, 1.0}
    assert (examples.numeric_EF >= 0).all()
    assert (examples.numeric_EF <= 1).all()


def test_on_a_date_campaigns_that_run_or_come_are_asked_about(shop, task):
    promotions = [
        *campaign(shop, "over", ["tea"], 1, 10),
        *campaign(shop, "runs", ["tea"], 5, 30),
        *campaign(shop, "comes", ["bread"], 40, 50),
    ]
    events = [*known(shop, "ann"), shop.bought("ann", "tea", 7, "a", kind="redeem")]
    events += [shop.bought("bob", "tea", 12, "b", kind="redeem")]
    silo = shop.silo_of(events, promotions)
    date = shop.start + dt.timedelta(days=10)
    examples = task.build_at(silo, date)
    assert examples.keys["campaign"] == ["runs", "comes"]
    assert np.isnan(examples.label_EK).all()
    assert examples.test_E.all()
    numeric = dict(zip(NUMERIC, examples.numeric_EF[1], strict=True))
    # Of the two others that were sent it redeemed both until now.
    assert numeric["campaigns_redeemed"] == pytest.approx(2 / 3)
    few = task.build_at(silo, date, most=1)
    assert few.keys["campaign"] == ["runs"]
    with pytest.raises(NoExamplesError, match="no campaign runs"):
        task.build_at(silo, date + dt.timedelta(days=50))


def test_a_campaign_is_no_offer_to_everyone(shop, task):
    from silotune.tasks.promotion_response import PromotionResponse

    events = [*known(shop, "ann"), shop.bought("ann", "tea", 12, "a")]
    open_to_all = [shop.promoted("milk-1", 10, 20)]
    asked = dataclasses.asdict(shop.everything)
    response = PromotionResponse(**asked)
    one = response.build(shop.silo_of(events, open_to_all))
    both = response.build(shop.silo_of(events, open_to_all + campaign(shop, "c", ["tea"], 10, 20)))
    assert one.text == both.text
    assert len(one) == 1


def test_names_lose_their_numbers_and_public_texts_are_many():
    assert [kind_of(n) for n in ("type a campaign 18", "2024-03 spring", "77")] == [
        "type a campaign",
        "spring",
        "campaign",
    ]
    assert len(set(public_texts())) > 50
