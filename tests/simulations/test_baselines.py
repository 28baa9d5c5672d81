from dataclasses import replace

import numpy as np
import pytest

from silotune.tasks.base import Examples
from silotune.tasks.metrics import auc
from simulations.baselines import logistic, popularity, trees

METHODS = {
    "popularity": lambda silos: [popularity(e) for e in silos],
    "logistic per merchant": lambda silos: logistic(silos, pooled=False),
    "logistic pooled": lambda silos: logistic(silos, pooled=True),
    "trees": lambda silos: trees(silos, pooled=False),
    "pooled trees": lambda silos: trees(silos, pooled=True),
}


def a_merchant(rows=400, *, seed=0, weight=4.0):
    """Examples whose label depends on the first feature and on the group."""
    generator = np.random.default_rng(seed)
    numeric = generator.random((rows, 3)).astype(np.float32)
    group = generator.integers(0, 6, rows)
    logit = weight * (numeric[:, 0] - 0.5) + 0.8 * group - 2
    label = generator.random(rows) < 1 / (1 + np.exp(-logit))
    return Examples(
        text=[""] * rows,
        context=[""] * rows,
        numeric_EF=numeric,
        label_EK=label[:, None].astype(np.float32),
        user_E=generator.integers(0, 40, rows),
        visit_E=np.arange(rows) // 5,
        group=[f"group {g}" for g in group],
        test_E=generator.random(rows) < 0.4,
    )


def select(examples, kept):
    return replace(
        examples,
        **{
            f: (
                np.array(getattr(examples, f))[kept]
                if f.endswith(("_E", "_EF", "_EK"))
                else [v for v, k in zip(getattr(examples, f), kept, strict=True) if k]
            )
            for f in (
                "text",
                "context",
                "numeric_EF",
                "label_EK",
                "user_E",
                "visit_E",
                "group",
                "test_E",
            )
        },
    )


@pytest.fixture(scope="module")
def silos():
    return [a_merchant(seed=0), a_merchant(seed=1), a_merchant(rows=60, seed=2)]


@pytest.mark.parametrize("method", METHODS)
def test_scores_stand_in_the_order_of_the_test_rows_and_beat_chance(method, silos):
    for examples, logits in zip(silos, METHODS[method](silos), strict=True):
        test = examples.rows(test=True)
        assert logits.shape == (len(test), 1)
        # Leaves of 20 rows need more than the 36 that the smallest merchant has.
        if method != "trees" or len(examples) > 60:
            assert auc(examples.label_EK[test], logits) > 0.6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("corrupt", ["flip", "shuffle", "nan"])
def test_no_test_label_influences_a_score(method, corrupt, silos):
    changed = []
    for examples in silos:
        label = examples.label_EK.copy()
        test = examples.rows(test=True)
        label[test] = {
            "flip": 1 - label[test],
            "shuffle": np.random.default_rng(5).permutation(label[test]),
            "nan": np.full_like(label[test], np.nan),
        }[corrupt]
        changed.append(replace(examples, label_EK=label))
    for before, after in zip(METHODS[method](silos), METHODS[method](changed), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("method", METHODS)
def test_no_test_row_influences_the_score_of_another(method, silos):
    scores = METHODS[method](silos)
    # Every second test row goes, and what it said of features, users and groups with it.
    kept = []
    for examples in silos:
        keep = ~examples.test_E | (np.cumsum(examples.test_E) % 2 == 0)
        kept.append(select(examples, keep))
    for examples, before, after in zip(silos, scores, METHODS[method](kept), strict=True):
        keep = (np.cumsum(examples.test_E) % 2 == 0)[examples.rows(test=True)]
        np.testing.assert_array_equal(before[keep], after)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_label_does_influence_the_scores(method, silos):
    label = silos[0].label_EK.copy()
    rows = silos[0].rows(test=False)
    label[rows] = 1 - label[rows]
    changed = [replace(silos[0], label_EK=label), *silos[1:]]
    assert not np.array_equal(METHODS[method](silos)[0], METHODS[method](changed)[0])


def test_popularity_is_the_smoothed_rate_of_the_group():
    # Group a: 3 of 4; b: 0 of 2; c only in the test. Overall (3 + 1) / (6 + 2).
    examples = replace(
        select(a_merchant(9), np.ones(9, bool)),
        group=list("aaaabbabc"),
        label_EK=np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0]], np.float32).T,
        test_E=np.array([0, 0, 0, 0, 0, 0, 1, 1, 1], bool),
    )
    rates = 1 / (1 + np.exp(-popularity(examples)[:, 0]))
    assert rates == pytest.approx([(3 + 10 * 0.5) / 14, (0 + 10 * 0.5) / 12, 0.5])


def test_one_merchant_alone_learns_from_no_other(silos):
    alone = logistic([silos[0]], pooled=False)[0]
    np.testing.assert_array_equal(alone, logistic(silos, pooled=False)[0])
    assert not np.array_equal(alone, logistic(silos, pooled=True)[0])


def test_pooling_helps_a_merchant_with_few_rows():
    merchants = [a_merchant(seed=s) for s in range(5)]
    few = a_merchant(rows=2000, seed=9)
    few = select(few, few.test_E | (np.cumsum(~few.test_E) <= 12))
    test = few.rows(test=True)
    alone = logistic([few], pooled=False)[0]
    pooled = logistic([*merchants, few], pooled=True)[-1]
    assert auc(few.label_EK[test], pooled) > auc(few.label_EK[test], alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ["one class", "no training row", "no test row", "one user"])
def test_poor_data_still_gives_finite_scores(method, rows):
    examples = a_merchant(50)
    if rows == "one class":
        examples = replace(examples, label_EK=np.zeros_like(examples.label_EK))
    elif rows == "no training row":
        examples = replace(examples, test_E=np.ones_like(examples.test_E))
    elif rows == "no test row":
        examples = replace(examples, test_E=np.zeros_like(examples.test_E))
    else:
        examples = replace(examples, user_E=np.zeros_like(examples.user_E))
    (logits,) = METHODS[method]([examples])
    assert logits.shape == (len(examples.rows(test=True)), 1)
    assert np.isfinite(logits).all()


def test_no_row_of_a_user_is_held_out_while_another_trains():
    # Features that name the user, labels that are the user's own: only a split by user sees
    # that nothing generalises, and chooses the strongest penalty.
    users = np.repeat(np.arange(60), 10)
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 60)[users].astype(np.float32)
    base = a_merchant(rows=600)
    examples = replace(
        base,
        user_E=users,
        numeric_EF=np.eye(60, dtype=np.float32)[users],
        label_EK=label[:, None],
        test_E=np.arange(600) % 10 == 9,
    )
    assert np.abs(logistic([examples], pooled=True)[0]).max() < 0.5
