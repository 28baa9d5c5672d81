"""Item interest: what holds of any shop, and what is never looked at."""

import collections
import dataclasses
import random

import numpy as np
import pytest

from silotune.errors import DataError
from silotune.tasks.apart import quality_apart
from silotune.tasks.item_words import NUMERIC
from tests.tasks.items import DAY, START, TASK, USERS, asked

MORE = [(f"i{k}", f"Thing {k}", f"All > Kind {k % 6} > Sort {k}", None, None) for k in range(12)]


# A made-up shop that is as awkward as a real one may be: visits of several days, visit ids
# that customers share or lack, purchases at the very moment of a date.
def an_event(shop, rng, who, first, last):
    item = rng.choice([*shop.items, *MORE, ("gone",)])[0]
    time = START + rng.randrange(first, last) * DAY / 2
    visit_id = rng.choice([None, f"v{rng.randrange(12)}", f"{who} {time:%j%H}"])
    kind = rng.choice(["purchase"] * 4 + ["redeem", "view", "click"])
    return (who, item, kind, time, visit_id, 1.0, 2.0, 0.0)


def some_events(shop, rng, users=USERS, count=40, first=-120, last=230):
    return [an_event(shop, rng, who, first, last) for who in users for _ in range(count)]


def silo_of(shop, events):
    return shop.silo_of(events, [], shop.items + MORE)


def described(shop, task, silo, *, with_labels=True):
    examples = task.build(silo)
    return {
        key: (
            examples.text[i],
            examples.context[i],
            examples.numeric_EF[i].tobytes(),
            examples.group[i],
            bool(examples.test_E[i]),
            examples.label_EK[i].tobytes() if with_labels else b"",
        )
        for key, i in asked(shop, task, silo).items()
    }


@pytest.mark.parametrize("event", ["purchase", "click"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_from_the_date_on_changes_a_candidate_or_what_is_said_of_it(shop, seed, event):
    task = dataclasses.replace(TASK, event=event, train_candidates=3)
    rng = random.Random(seed)
    events = some_events(shop, rng)
    date = START + 14 * rng.randrange(8) * DAY
    past = [e for e in events if e[3] < date]
    half_days = round((date - START) / DAY * 2)
    # A visit of the past that goes on is the future from the date on.
    future = [
        (*an_event(shop, rng, e[0], half_days, 230)[:4], e[4], 9.0, 7.7, 0.7)
        for e in rng.sample(past, 20)
    ]
    future += some_events(shop, rng, count=10, first=half_days)
    was = described(shop, task, silo_of(shop, events), with_labels=False)
    seen = {k: v for k, v in was.items() if START + k[1] * DAY <= date}
    assert any(START + k[1] * DAY == date for k in seen)
    for other in (past + future, past):
        is_ = described(shop, task, silo_of(shop, other), with_labels=False)
        assert {k: v for k, v in is_.items() if START + k[1] * DAY <= date} == seen


@pytest.mark.parametrize("seed", range(2))
def test_nothing_from_the_split_on_changes_a_training_example_or_its_label(shop, seed):
    rng = random.Random(seed)
    events = some_events(shop, rng)
    before = [e for e in events if e[3] < TASK.split]
    after = some_events(shop, rng, first=112)
    was = described(shop, TASK, silo_of(shop, events))
    is_ = described(shop, TASK, silo_of(shop, before + after))
    test = 4
    train = {k: v for k, v in was.items() if not v[test]}
    assert len(train) > 10
    assert {k: v for k, v in is_.items() if not v[test]} == train
    assert all(START + (k[1] + TASK.horizon_days) * DAY <= TASK.split for k in train)
    assert all(START + k[1] * DAY >= TASK.split for k in was if k not in train)


@pytest.mark.parametrize("caps", [False, True], ids=["all", "caps"])
@pytest.mark.parametrize("seed", range(2))
def test_one_user_more_or_less_leaves_every_other_row_as_it_is(shop, seed, caps):
    task = TASK
    if caps:
        task = dataclasses.replace(TASK, train_dates=2, test_dates=1, train_candidates=2)
    events, who = some_events(shop, random.Random(seed)), USERS[seed]
    whole = described(shop, task, silo_of(shop, events))
    without = described(shop, task, silo_of(shop, [e for e in events if e[0] != who]))
    assert any(k[0] == who for k in whole)
    # In their order, too.
    assert list(without.items()) == [(k, v) for k, v in whole.items() if k[0] != who]


def test_training_asks_about_some_of_the_candidates_that_a_test_would(shop):
    silo = silo_of(shop, some_events(shop, random.Random(0), count=80))
    few = asked(shop, dataclasses.replace(TASK, train_candidates=3), silo)
    whole = asked(shop, TASK, silo)
    assert set(few) < set(whole)
    split = (TASK.split - START) // DAY
    for index, train in ((few, 3), (whole, 4)):
        count = collections.Counter(k[:2] for k in index)
        assert all(n == (4 if k[1] >= split else train) for k, n in count.items())
    # Dates, too, are drawn for each user alone, and the seed draws others.
    task = dataclasses.replace(TASK, train_dates=2, test_dates=1)
    for other in (task, dataclasses.replace(task, seed=1)):
        days = collections.Counter(
            (w, d >= split) for w, d in {k[:2] for k in asked(shop, other, silo)}
        )
        assert days == {(w, test): 1 if test else 2 for w in USERS for test in (False, True)}
    assert set(asked(shop, dataclasses.replace(TASK, seed=1), silo)) != set(whole)


def test_a_customer_of_few_visits_is_marked_and_reported_apart(shop):
    rng = random.Random(5)
    new = some_events(shop, rng, users=("eva",), count=8, first=110, last=200)
    silo = silo_of(shop, some_events(shop, rng, users=USERS[:4], count=30) + new)
    task = dataclasses.replace(TASK, cold_visits=10)
    rows, examples = task._rows(silo), task.build(silo)
    cold_E = np.array([r["visits"] < 10 for r in rows])
    np.testing.assert_array_equal(examples.numeric_EF[:, NUMERIC.index("cold_start")], cold_E)
    test = examples.rows(test=True)
    logits = examples.numeric_EF[test, :1]
    found = quality_apart(task, examples, logits)
    for cold in (True, False):
        kept = cold_E[test] == cold
        assert found[cold]["rows"] == kept.sum() > 0
        alone = task.objective.quality(
            examples.label_EK[test][kept], logits[kept], examples.visit_E[test][kept]
        )
        assert {k: v for k, v in found[cold].items() if k != "rows"} == alone
    nobody = quality_apart(task, examples, logits, feature="times")[True]
    assert nobody["rows"] == 0
    assert np.isnan(nobody["auc"])
    with pytest.raises(DataError, match="has no feature 'gold_start'"):
        quality_apart(task, examples, logits, feature="gold_start")
    with pytest.raises(DataError, match="test rows"):
        quality_apart(task, examples, logits[1:])


def test_public_texts_name_every_word_of_a_relation_that_an_example_may(shop):
    public = {word for text in TASK.public_texts() for word in text.split(". ")[1].split()}
    silo = silo_of(shop, some_events(shop, random.Random(3), count=120))
    said = {word for text in TASK.build(silo).text for word in text.split(". ")[1].split()}
    assert said <= public
    assert len(set(TASK.public_texts())) > 100
