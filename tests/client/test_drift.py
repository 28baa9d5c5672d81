"""Drift is seen where there is some, and not where there is only chance."""

import numpy as np
import pytest

from client.drift import Drift, drift_of, stability_index
from client.score import Scored
from silotune.errors import DataError
from silotune.tasks.base import Examples


def test_the_index_is_the_sum_worked_out_by_hand():
    # Two values: one edge at 1; 3 of 4 against 1 of 4, with half a row more in each bin.
    before, now = [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]
    old, new = np.array([1.5, 3.5]) / 5, np.array([3.5, 1.5]) / 5
    expected = float(((new - old) * np.log(new / old)).sum())
    index, bins = stability_index(before, now)
    assert bins == 2
    assert index == pytest.approx(expected)
    assert stability_index(before, before) == (0.0, 2)


def scored(score_E, seed=0):
    count = len(score_E)
    numeric = np.random.default_rng(seed).random((count, 2)).astype(np.float32)
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=numeric,
        label_EK=np.zeros((count, 1), np.float32),
        user_E=np.arange(count),
        visit_E=np.arange(count),
        group=[""] * count,
        test_E=np.ones(count, bool),
    )
    score_EK = np.asarray(score_E)[:, None]
    return Scored(
        examples=examples, rows=np.arange(count), logit_EK=score_EK, score_EK=score_EK, date=None
    )


@pytest.mark.parametrize(
    ("count", "shift", "verdict"), [(2000, 0.0, "little"), (2000, 0.3, "much")]
)
def test_a_moved_score_is_told_from_one_that_did_not_move(count, shift, verdict):
    generator = np.random.default_rng(1)
    before, now = generator.random(count), generator.random(count) * (1 - shift) + shift
    *inputs, score = drift_of([scored(before, 1)], [scored(now, 2)], ("a", "b"))
    assert [d.name for d in inputs] == ["a", "b"]
    assert {d.verdict for d in inputs} == {"little"}
    assert score.verdict == verdict
    assert score.now - score.before == pytest.approx(shift / 2, abs=0.03)


def test_chance_among_few_customers_is_not_called_drift():
    generator = np.random.default_rng(2)
    pairs = [(generator.random(30), generator.random(30)) for _ in range(300)]
    found = [drift_of([scored(a)], [scored(b)], ())[0] for a, b in pairs]
    # The index alone would cry drift most of the time.
    assert np.mean([d.index > 0.25 for d in found]) > 0.5
    assert np.mean([d.verdict in ("some", "much") for d in found]) < 0.03


def test_chance_is_that_of_two_samples_of_their_own_sizes():
    before, now = np.arange(100.0), np.arange(400.0) / 4
    # Tables of chi-square: 21.666 is passed in one of 100 cases with nine degrees of freedom.
    assert drift_of([scored(before)], [scored(now)], ())[0].chance == pytest.approx(
        21.666 * (1 / 100 + 1 / 400), rel=1e-4
    )
    # One bin: nothing can have moved.
    assert drift_of([scored(np.ones(9))], [scored(np.ones(9))], ())[0].chance == 0


def test_verdicts_follow_the_thresholds():
    known = {"name": "x", "before": 0.0, "now": 0.0}
    at = [(0.09, 0.0), (0.12, 0.05), (0.12, 0.2), (0.3, 0.2), (0.3, 0.4)]
    assert [Drift(index=i, chance=c, **known).verdict for i, c in at] == [
        "little",
        "some",
        "too few customers to tell",
        "much",
        "too few customers to tell",
    ]


@pytest.mark.parametrize("bad", [[], [float("nan")]])
def test_nothing_and_no_numbers_are_refused(bad):
    with pytest.raises(DataError, match="drift"):
        stability_index([1.0, 2.0], bad)
