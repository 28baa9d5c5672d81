"""What simple methods score on the same examples: the numbers a language model must beat.

Each learns from training rows alone and returns logits of the test rows, in the order of
``examples.rows(test=True)``. None is private.

Shape suffixes: E examples, F numeric features, G groups.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from silotune.tasks.base import Examples
from silotune.tasks.metrics import log_loss

__all__ = ["logistic", "popularity"]

_Floats = NDArray[np.float64]

_PRIOR_ROWS = 10.0
"""Rows that the overall rate counts for in a group's rate."""
_INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Candidates for C of `LogisticRegression`, strongest penalty first."""
_FOLDS = 5


def popularity(examples: Examples) -> _Floats:
    """Score an example by how often its group was taken up in the training rows.

    The group's rate is drawn towards the overall rate, which counts as ten further rows; a
    group that training never saw has the overall rate.
    """
    train, test = examples.rows(test=False), examples.rows(test=True)
    _, group_E = np.unique(np.asarray(examples.group, dtype=object), return_inverse=True)
    label_E = examples.label_EK[train, 0].astype(np.float64)
    seen_G = np.bincount(group_E[train], minlength=len(examples))
    taken_G = np.bincount(group_E[train], weights=label_E, minlength=len(examples))
    rate_G = (taken_G + _PRIOR_ROWS * _overall_rate(label_E)) / (seen_G + _PRIOR_ROWS)
    return _logit(rate_G[group_E[test]])


def logistic(examples_list: Sequence[Examples], *, pooled: bool) -> list[_Floats]:
    """Score by logistic regression on the numeric features; one array per merchant.

    The penalty is the one with the least log loss in cross-validation on the training rows,
    in which all rows of a user lie in the same fold. A merchant whose training rows are all
    of one class, or missing, gets its smoothed rate for every row.

    Args:
        examples_list: one entry per merchant.
        pooled: one regression on everyone's training rows, which no merchant could run
            without seeing the others' customers; False: one per merchant, on its own.
    """
    if pooled:
        model = _fit_chosen(examples_list)
        return [_predict(model, e.numeric_EF[e.rows(test=True)]) for e in examples_list]
    return [_predict(_fit_chosen([e]), e.numeric_EF[e.rows(test=True)]) for e in examples_list]


def _fit_chosen(examples_list: Sequence[Examples]) -> LogisticRegression | float:
    rows = [e.rows(test=False) for e in examples_list]
    pairs = list(zip(examples_list, rows, strict=True))
    numeric_EF = np.concatenate([e.numeric_EF[r] for e, r in pairs]).astype(np.float64)
    label_E = np.concatenate([e.label_EK[r, 0] for e, r in pairs]).astype(np.float64)
    # The same index means another user in another merchant.
    owner_E2 = np.concatenate(
        [np.stack([np.full(len(r), i), e.user_E[r]], axis=1) for i, (e, r) in enumerate(pairs)]
    )
    _, user_E = np.unique(owner_E2, axis=0, return_inverse=True)
    return _fit(numeric_EF, label_E, _chosen_penalty(numeric_EF, label_E, user_E))


def _chosen_penalty(numeric_EF: _Floats, label_E: _Floats, user_E: NDArray[np.int64]) -> float:
    folds = min(_FOLDS, np.unique(user_E).size)
    if folds < 2 or np.unique(label_E).size < 2:
        return 1.0
    parts = list(GroupKFold(folds).split(numeric_EF, groups=user_E))
    losses = []
    for penalty in _INVERSE_PENALTIES:
        logit_E = np.empty(len(label_E))
        for fit, held_out in parts:
            model = _fit(numeric_EF[fit], label_E[fit], penalty)
            logit_E[held_out] = _predict(model, numeric_EF[held_out])
        losses.append(log_loss(label_E, logit_E))
    return _INVERSE_PENALTIES[int(np.argmin(losses))]


def _fit(numeric_EF: _Floats, label_E: _Floats, penalty: float) -> LogisticRegression | float:
    """Return the regression, or a logit for every row where there is one class only."""
    if np.unique(label_E).size < 2:
        return float(_logit(np.array(_overall_rate(label_E))))
    return LogisticRegression(C=penalty, max_iter=1000).fit(numeric_EF, label_E)


def _predict(model: LogisticRegression | float, numeric_EF: NDArray[np.floating]) -> _Floats:
    if isinstance(model, float):
        return np.full(len(numeric_EF), model)
    # scikit-learn refuses an empty array.
    if not len(numeric_EF):
        return np.empty(0)
    logit_E: _Floats = model.decision_function(numeric_EF.astype(np.float64))
    return logit_E


def _overall_rate(label_E: _Floats) -> float:
    # Laplace: neither 0 nor 1, whose logits are infinite.
    return float((label_E.sum() + 1) / (len(label_E) + 2))


def _logit(rate: _Floats) -> _Floats:
    out: _Floats = np.log(rate) - np.log1p(-rate)
    return out
