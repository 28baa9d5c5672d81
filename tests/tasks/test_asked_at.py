"""Questions about a date whose future nobody knows: of the tasks that were asked at visits."""

import dataclasses
import datetime as dt
import random

import numpy as np
import pytest

from silotune.errors import NoExamplesError
from silotune.tasks.discounts import DiscountDepth, DiscountResponse
from silotune.tasks.item_interest import ItemInterest
from silotune.tasks.promotion_outcome import PromotionOutcome
from silotune.tasks.promotion_response import PromotionResponse

USERS = ("ann", "bob", "cid")
DATE_DAY = 50


@pytest.fixture(scope="module")
def tasks(shop):
    span = {"first": shop.task.first, "split": shop.task.split, "last": shop.task.last}
    return {
        "depth": DiscountDepth(**span, category_level=2),
        "response": DiscountResponse(**span, category_level=2, test_offers=99),
        "interest": ItemInterest(**span, category_level=2, slate=3, habits=2),
        "promotion": PromotionResponse(**span, category_level=2),
        "outcome": PromotionOutcome(**span, category_level=2),
    }


NAMES = ("depth", "response", "interest", "promotion", "outcome")


def date_of(shop):
    return shop.start + dt.timedelta(days=DATE_DAY)


def some_events(shop, rng, first, last, count=40):
    def one(who):
        item, day = rng.choice(shop.items)[0], rng.randrange(first, last)
        return shop.bought(who, item, day, f"{who}{day}", discount=rng.choice([0.0, 0.4, 0.8]))

    return [one(who) for who in USERS for _ in range(count)]


def offers(shop):
    return [shop.promoted(i[0], DATE_DAY - 10, DATE_DAY + 10, depth=0.3) for i in shop.items] + [
        shop.promoted("tea", day, day + 3, depth=0.1) for day in range(0, 100, 5)
    ]


def said(examples, rows=None):
    rows = range(len(examples)) if rows is None else rows
    names = [n for n in examples.keys if n not in ("visit_id", "time", "date")]
    numeric = examples.numeric_EF.tolist()
    found = {
        tuple(examples.keys[n][i] for n in names): (
            examples.text[i],
            examples.context[i],
            numeric[i],
        )
        for i in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_happens_from_the_date_on_is_not_read(shop, tasks, name):
    rng = random.Random(3)
    past = some_events(shop, rng, -30, DATE_DAY)
    found = []
    for future in (some_events(shop, rng, DATE_DAY, 119), some_events(shop, rng, DATE_DAY, 60), []):
        examples = tasks[name].build_at(shop.silo_of(past + future, offers(shop)), date_of(shop))
        assert examples.test_E.all()
        assert np.isnan(examples.label_EK).all()
        assert examples.label_EK.shape == (len(examples), tasks[name].outputs)
        assert "visit_id" not in examples.keys
        found.append(list(said(examples).items()))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 5


@pytest.mark.parametrize("name", ["depth", "response"])
def test_the_question_is_the_one_of_a_visit_at_that_moment(shop, tasks, name):
    past = some_events(shop, random.Random(4), -30, DATE_DAY)
    # Everyone buys everything then: whatever can be asked is.
    basket = [
        shop.bought(who, item[0], DATE_DAY, f"{who} now", discount=0.4)
        for who in USERS
        for item in shop.items
    ]
    silo = shop.silo_of(past + basket, offers(shop))
    own = dataclasses.replace(tasks[name], split=date_of(shop), test_visits=99)
    if name == "depth":
        own = dataclasses.replace(own, test_purchases=99)
    examples = own.build(silo)
    moment = [i for i in range(len(examples)) if examples.keys["time"][i] == date_of(shop)]
    assert len(moment) > 6
    assert said(tasks[name].build_at(silo, date_of(shop))) == said(examples, moment)


def test_a_date_of_the_calendar_has_the_slate_that_a_test_has(shop, tasks):
    task = dataclasses.replace(tasks["interest"], split=date_of(shop), test_dates=99)
    silo = shop.silo_of(some_events(shop, random.Random(5), -30, 119), [])
    examples = task.build(silo)
    own = [i for i in examples.rows(test=True) if examples.keys["date"][i] == date_of(shop)]
    at = task.build_at(silo, date_of(shop))
    assert [examples.text[i] for i in own] == at.text
    assert [examples.keys["thing"][i] for i in own] == at.keys["thing"]
    np.testing.assert_array_equal(examples.numeric_EF[own], at.numeric_EF)


@pytest.mark.parametrize("name", NAMES)
def test_a_cap_keeps_for_each_customer_what_they_took_most(shop, tasks, name):
    silo = shop.silo_of(some_events(shop, random.Random(6), -30, DATE_DAY), offers(shop))
    whole = tasks[name].build_at(silo, date_of(shop))
    few = tasks[name].build_at(silo, date_of(shop), most=2)
    assert said(few).items() <= said(whole).items()
    for user in range(few.users):
        kept = few.numeric_EF[few.user_E == user, 0]
        everything = sorted(whole.numeric_EF[whole.user_E == user, 0], reverse=True)
        assert sorted(kept, reverse=True) == everything[:2]
    assert few.users == whole.users == len(USERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_date_before_everything_has_no_question(shop, tasks, name):
    silo = shop.silo_of(some_events(shop, random.Random(7), 0, 30), offers(shop))
    with pytest.raises(NoExamplesError):
        tasks[name].build_at(silo, shop.start - dt.timedelta(days=5))
