"""Going on on newer weeks: what is forgotten of the older ones, on data whose drift is known."""

import datetime as dt

import numpy as np
import pytest

from client.prepared import prepare
from client.trainer import PlainConfig, train_plain
from silotune.errors import ConfigError
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.base import Examples
from silotune.tasks.objective import Binary
from simulations.apart import WEEKS, part_tables
from simulations.forgetting import (
    ANEW,
    BEFORE,
    NEWER,
    OLDER,
    Forgetting,
    continued_arm,
    forgetting_words,
)
from simulations.judged import MainMetric
from simulations.scenario import Continued

SETTINGS = PlainConfig(learning_rate=0.3, batch_size=32)


def weeks(rule, seed):
    """1200 customers; the chance of a yes is a logistic function of two features by ``rule``."""
    random = np.random.default_rng(seed)
    numeric = random.random((1200, 2)).astype(np.float32)
    chance = 1 / (1 + np.exp(-8 * ((numeric - 0.5) @ np.array(rule))))
    count = len(numeric)
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=numeric,
        label_EK=(random.random(count) < chance).astype(np.float32)[:, None],
        user_E=np.arange(count),
        visit_E=np.arange(count),
        group=["g"] * count,
        test_E=np.arange(count) % 2 == 0,
    )
    model = TextModel(ModelConfig(use_text=False), numeric_size=2, outputs=1)
    return prepare(examples, model)


def area(model, data):
    rows = data.examples.rows(test=True)
    labels, visits = data.examples.label_EK[rows], data.examples.visit_E[rows]
    return Binary().quality(labels, data.scores(model, rows), visits)["auc"]


def went_on(newer_rule, keep):
    """Train on older weeks, then in rounds on newer ones; return what it did to both."""
    older, newer = weeks((1.0, 0.0), 1), weeks(newer_rule, 2)
    model = TextModel(ModelConfig(use_text=False), numeric_size=2, outputs=1)
    train_plain(model, older, SETTINGS, epochs=6, seed=0)
    start, before = model.adapter(), (area(model, older), area(model, newer))
    for round_ in range(4):
        train_plain(model, newer, SETTINGS, epochs=2, seed=round_)
        model.load_adapter((1 - keep) * model.adapter() + keep * start)
    return Forgetting(
        older_before=before[0],
        older_after=area(model, older),
        newer_before=before[1],
        newer_after=area(model, newer),
        larger_is_better=True,
    )


def test_drift_is_learned_at_the_cost_of_the_older_weeks_and_the_guard_keeps_them():
    free, guarded = (went_on((0.0, 1.0), keep) for keep in (0.0, 0.5))
    # The feature that told the older weeks says nothing of the newer ones: about 0.5 and back.
    assert free.learned == pytest.approx(0.35, abs=0.1)
    assert free.forgot > 0.25
    assert guarded.forgot < 0.6 * free.forgot
    assert guarded.learned > 0.3 * free.learned


def test_without_drift_nothing_is_forgotten():
    same = went_on((1.0, 0.0), 0.0)
    assert abs(same.forgot) < 0.02
    assert abs(same.learned) < 0.02


def test_worse_is_worse_whichever_way_the_metric_goes():
    numbers = {
        "older_before": 0.2,
        "older_after": 0.3,
        "newer_before": 0.5,
        "newer_after": 0.1,
    }
    error = Forgetting(**numbers, larger_is_better=False)
    assert (error.forgot, error.learned) == pytest.approx((0.1, 0.4))
    score = Forgetting(**numbers, larger_is_better=True)
    assert (score.forgot, score.learned) == pytest.approx((-0.1, -0.4))


def records(**arms):
    found = []
    for arm, (older, newer) in arms.items():
        for part, value in ((OLDER, older), (NEWER, newer)):
            for merchant, more in (("a", -0.01), ("b", 0.01)):
                known = {"kind": "part", "seed": 0, "arm": arm.replace("_", "-"), "by": WEEKS}
                found.append(
                    known
                    | {"merchant": merchant, "part": part, "metric": "auc", "rows": 10.0}
                    | {"auc": value + more}
                )
    return found


def test_the_report_says_what_was_gained_and_forgotten():
    found = records(**{BEFORE: (0.8, 0.7), "continued-keep0": (0.74, 0.78)})
    found += records(**{"continued-keep0.3": (0.79, 0.75), ANEW: (0.6, 0.72)})
    first, second = forgetting_words(found, MainMetric())
    assert (
        first
        == "Going on: gains 0.080 AUC on the newer weeks, and forgets 0.060 on the older ones."
    )
    assert second.startswith("Going on with 30% of the old adapter put back a round: gains 0.050")
    (table,) = part_tables(found)
    assert table.columns == ("AUC, older weeks", "AUC, newer weeks")
    assert {arm.label for arm, _ in table.rows} == {
        "Federated, no noise",
        "Gone on",
        "Gone on, 30% put back",
        "Newer weeks alone",
    }
    assert table.counts == (20, 20)
    assert continued_arm(0.3) == "continued-keep0.3"
    assert forgetting_words(records(**{ANEW: (0.5, 0.5)}), MainMetric()) == []


def test_newer_weeks_that_are_not_newer_are_refused():
    at = dt.datetime.fromisoformat
    dates = {"first": at("2024-01-01"), "split": at("2024-02-01"), "last": at("2024-03-01")}
    Continued(**dates)
    with pytest.raises(ConfigError, match="keeps holds 1"):
        Continued(**dates, keeps=(1.0,))
    with pytest.raises(ConfigError, match="must follow"):
        Continued(**dates | {"split": at("2023-02-01")})
