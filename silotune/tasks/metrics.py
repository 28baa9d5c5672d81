"""How good binary scores are: overall (AUC, log loss), as chances, and within each visit.

Labels are 0 or 1. No metric depends on the order of the rows: where scores tie, it is the
expected value over all orders of the tied rows. A score that is NaN makes every metric NaN, so
that a model that diverged cannot look good; so does a question that has no answer (AUC with
one class, no visit with a positive).

Shape suffixes: E examples, G groups of rows that tie, V visits.
"""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from silotune.errors import DataError

__all__ = [
    "auc",
    "calibration_bins",
    "calibration_error",
    "log_loss",
    "ndcg_at",
    "quality",
    "recall_at",
]

_Floats = NDArray[np.float64]


def quality(label_E: ArrayLike, logit_E: ArrayLike, visit_E: ArrayLike) -> dict[str, float]:
    """Return auc, log_loss, calibration_error, ndcg and recall (both at 10) of ``logit_E``."""
    return {
        "auc": auc(label_E, logit_E),
        "log_loss": log_loss(label_E, logit_E),
        "calibration_error": calibration_error(label_E, logit_E),
        "ndcg": ndcg_at(label_E, logit_E, visit_E),
        "recall": recall_at(label_E, logit_E, visit_E),
    }


def auc(label_E: ArrayLike, score_E: ArrayLike) -> float:
    """Return the chance that a positive scores above a negative; a tie counts half."""
    labels_E, scores_E = _aligned(label_E, score_E)
    positives = labels_E.sum()
    negatives = labels_E.size - positives
    if not positives or not negatives or np.isnan(scores_E).any():
        return float("nan")
    _, group_E, count_G = np.unique(scores_E, return_inverse=True, return_counts=True)
    # Ranks from 1; tied rows share the mean of theirs.
    rank_E = (np.cumsum(count_G) - (count_G - 1) / 2)[group_E]
    above = rank_E @ labels_E - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def log_loss(label_E: ArrayLike, logit_E: ArrayLike) -> float:
    """Return the mean cross-entropy in nats, computed from logits of any size."""
    labels_E, logits_E = _aligned(label_E, logit_E)
    # Asked first: the logarithm of a NaN is a warning as well.
    if not labels_E.size or np.isnan(logits_E).any():
        return float("nan")
    return float(np.logaddexp(0, np.where(labels_E > 0, -logits_E, logits_E)).mean())


def calibration_error(label_E: ArrayLike, logit_E: ArrayLike, bins: int = 10) -> float:
    """Return the mean distance of predicted chance and rate over ``calibration_bins``.

    The expected calibration error with bins of equal mass (Nixon et al. 2019,
    arXiv:1904.01685).
    """
    found = calibration_bins(label_E, logit_E, bins)
    rows = sum(count for _, _, count in found)
    if not rows:
        return float("nan")
    return sum(count * abs(score - rate) for score, rate, count in found) / rows


def calibration_bins(
    label_E: ArrayLike, logit_E: ArrayLike, bins: int = 10
) -> list[tuple[float, float, int]]:
    """Return (mean predicted chance, rate of positives, rows) of bins of equal mass.

    Lowest chance first. The bins' sizes differ by one row at most; with fewer rows than
    ``bins`` each row is one. Rows of one score that fall on both sides of an edge count with
    their mean label on both.
    """
    labels_E, logits_E = _aligned(label_E, logit_E)
    if np.isnan(logits_E).any():
        return [(float("nan"), float("nan"), labels_E.size)]
    chance_E = np.exp(-np.logaddexp(0, -logits_E))
    value_G, group_E, count_G = np.unique(chance_E, return_inverse=True, return_counts=True)
    rate_G = np.bincount(group_E, weights=labels_E) / count_G
    chance_E, rate_E = np.repeat(value_G, count_G), np.repeat(rate_G, count_G)
    edges = np.linspace(0, labels_E.size, min(bins, labels_E.size) + 1).round().astype(int)
    return [
        (float(chance_E[low:high].mean()), float(rate_E[low:high].mean()), int(high - low))
        for low, high in itertools.pairwise(edges)
    ]


def ndcg_at(label_E: ArrayLike, score_E: ArrayLike, visit_E: ArrayLike, k: int = 10) -> float:
    """Return the mean normalised discounted gain of the first ``k``, over visits with a positive.

    Järvelin and Kekäläinen (2002), with binary gain and discount 1 / log2(1 + position).
    """

    def discount(position: NDArray[np.int64]) -> _Floats:
        return np.where(position < k, 1 / np.log2(position + 2), 0.0)

    def best(positives_V: NDArray[np.int64]) -> _Floats:
        most = int(positives_V.max(initial=0))
        return np.cumsum(discount(np.arange(most)))[positives_V - 1]

    return _mean_gain(label_E, score_E, visit_E, discount, best)


def recall_at(label_E: ArrayLike, score_E: ArrayLike, visit_E: ArrayLike, k: int = 10) -> float:
    """Return the mean share of a visit's positives in its first ``k``, over visits with one.

    A visit of ``k`` rows or fewer has recall 1, whatever the scores are.
    """
    return _mean_gain(
        label_E,
        score_E,
        visit_E,
        lambda position: (position < k).astype(np.float64),
        lambda positives_V: positives_V.astype(np.float64),
    )


def _mean_gain(
    label_E: ArrayLike,
    score_E: ArrayLike,
    visit_E: ArrayLike,
    weight: Callable[[NDArray[np.int64]], _Floats],
    best: Callable[[NDArray[np.int64]], _Floats],
) -> float:
    """Return the mean over visits of: weights of the positives' positions, over the best.

    Args:
        label_E: 0 or 1.
        score_E: highest first.
        visit_E: rows of one value are ranked against each other.
        weight: of a position within the visit, counted from 0.
        best: sum of weights that a visit with so many positives can reach.
    """
    labels_E, scores_E = _aligned(label_E, score_E)
    _, visits_E = _aligned(label_E, visit_E)
    if not labels_E.any() or np.isnan(scores_E).any():
        return float("nan")
    order = np.lexsort((-scores_E, visits_E))
    labels_E, scores_E, visits_E = labels_E[order], scores_E[order], visits_E[order]
    start_V = np.flatnonzero(_changes(visits_E))
    size_V = np.diff(np.append(start_V, labels_E.size))
    position_E = np.arange(labels_E.size) - np.repeat(start_V, size_V)
    # What stands at a position within a tie is a positive as often as the tie's mean label.
    tie_E = np.cumsum(_changes(visits_E) | _changes(scores_E)) - 1
    mean_E = (np.bincount(tie_E, weights=labels_E) / np.bincount(tie_E))[tie_E]
    positives_V = np.add.reduceat(labels_E, start_V).astype(np.int64)
    gain_V = np.add.reduceat(mean_E * weight(position_E), start_V)
    asked_V = positives_V > 0
    return float((gain_V[asked_V] / best(positives_V[asked_V])).mean())


def _changes(value_E: _Floats) -> NDArray[np.bool_]:
    # Compared, not subtracted: infinite scores tie as well.
    return np.concatenate([[True], value_E[1:] != value_E[:-1]])


def _aligned(label_E: ArrayLike, other_E: ArrayLike) -> tuple[_Floats, _Floats]:
    # (E, 1) is what a head with one output gives. Against (E,) it would broadcast to (E, E).
    labels, others = np.asarray(label_E, np.float64), np.asarray(other_E, np.float64)
    for array in (labels, others):
        if array.ndim == 0 or array.size != len(array):
            raise DataError(f"metrics take one number per example, not an array {array.shape}.")
    if labels.size != others.size:
        raise DataError(f"{labels.size} labels stand against {others.size} scores or visits.")
    return labels.ravel(), others.ravel()
