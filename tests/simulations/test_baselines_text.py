"""Simple methods that read texts: right order, no test label, and the words do the work."""

from dataclasses import replace

import numpy as np
import pytest

from silotune.tasks.base import Examples
from silotune.tasks.objective import Binary, Classes
from simulations.baselines import METHODS

WORDS = {
    "drink": ("green tea", "black tea", "apple juice", "orange juice", "cold beer", "lemonade"),
    "bread": ("rye bread", "wheat bread", "bread roll", "white toast", "sweet roll", "bagel"),
    "toy": ("doll house", "toy car", "wooden toy", "puzzle game", "board game", "teddy bear"),
}
NAMES = tuple(WORDS)
CLASSES = Classes(names=(*NAMES, "never seen"))
TEXT_METHODS = ("tfidf-local", "tfidf-pooled", "frozen-local", "frozen-pooled")


def a_merchant(rows=90, *, seed=0, names=NAMES):
    """Examples whose class is what their words say; every name is on one side of the split."""
    generator = np.random.default_rng(seed)
    named = [(name, text) for name in names for text in WORDS[name]]
    drawn = [named[i] for i in generator.integers(0, len(named), rows)]
    return Examples(
        text=[text for _, text in drawn],
        context=["size: unknown"] * rows,
        numeric_EF=np.zeros((rows, 1), np.float32),
        label_EK=np.eye(4, dtype=np.float32)[[NAMES.index(name) for name, _ in drawn]],
        user_E=generator.integers(0, 20, rows),
        visit_E=np.arange(rows),
        group=[text for _, text in drawn],
        test_E=np.array([named.index(d) % 3 == 0 for d in drawn]),
        objective=CLASSES,
    )


@pytest.fixture(scope="module")
def silos():
    return [a_merchant(seed=0), a_merchant(seed=1), a_merchant(30, seed=2, names=("toy", "bread"))]


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_scores_stand_in_the_order_of_the_test_rows_and_beat_chance(method, silos):
    for examples, logits in zip(silos, METHODS[method](silos), strict=True):
        rows = examples.rows(test=True)
        assert logits.shape == (len(rows), 4)
        found = CLASSES.quality(examples.label_EK[rows], logits, examples.visit_E[rows])
        assert found["auc"] > (0.7 if method.startswith("frozen") else 0.55)
        # As good as never, and yet no infinity where it should happen.
        assert CLASSES.scores(logits)[:, 3].max() < 0.05
        assert np.isfinite(logits).all()


def test_a_frozen_encoder_knows_words_that_training_never_saw(silos):
    areas = {}
    for method in TEXT_METHODS:
        rows = silos[0].rows(test=True)
        logits = METHODS[method](silos)[0]
        areas[method] = CLASSES.quality(silos[0].label_EK[rows], logits, rows)["auc"]
    assert areas["frozen-local"] > areas["tfidf-local"]
    assert areas["frozen-pooled"] > areas["tfidf-pooled"]


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_no_test_label_influences_a_score_and_every_training_label_may(method, silos):
    before = METHODS[method](silos)
    for side, same in ((True, True), (False, False)):
        changed = []
        for examples in silos:
            label = examples.label_EK.copy()
            rows = examples.rows(test=side)
            label[rows] = np.roll(label[rows][:, :3], 1, axis=1) @ np.eye(3, 4)
            changed.append(replace(examples, label_EK=label))
        after = METHODS[method](changed)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)) is same


@pytest.mark.parametrize("method", ["tfidf", "frozen"])
def test_alone_means_alone_and_pooled_means_pooled(method, silos):
    alone = METHODS[f"{method}-local"](silos)[0]
    pooled = METHODS[f"{method}-pooled"](silos)[0]
    others = [silos[0], a_merchant(seed=9)]
    assert np.array_equal(METHODS[f"{method}-local"](others)[0], alone)
    assert not np.array_equal(METHODS[f"{method}-pooled"](others)[0], pooled)


def test_a_merchant_of_one_class_gets_its_smoothed_rates(silos):
    one = a_merchant(40, names=("toy",))
    (logits,) = METHODS["tfidf-local"]([one])
    train = len(one.rows(test=False))
    expected = np.array([1, 1, train + 1, 1]) / (train + 4)
    assert np.allclose(np.exp(logits), expected)


def test_a_yes_or_no_is_scored_by_one_logit(silos):
    examples = replace(silos[0], label_EK=silos[0].label_EK[:, :1].copy(), objective=Binary())
    rows = examples.rows(test=True)
    (logits,) = METHODS["frozen-local"]([examples])
    assert logits.shape == (len(rows), 1)
    assert Binary().quality(examples.label_EK[rows], logits, rows)["auc"] > 0.7
