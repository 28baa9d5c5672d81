"""What simple methods score on the same examples: the numbers a language model must beat.

Each learns from training rows alone and returns logits of the test rows, in the order of
``examples.rows(test=True)``: one column for a yes or no, one for each class, or values between
the bounds. None is private.

Shape suffixes: E examples, F numeric features, G groups, K outputs, C classes that were seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from silotune.tasks.base import Examples
from silotune.tasks.dose_response import DoseResponse
from silotune.tasks.objective import Binary, Classes
from simulations.baselines_text import TEXT_METHODS
from simulations.baselines_values import by_group, flat, linear

__all__ = ["METHODS", "Method", "logistic", "popularity", "trees"]

Method = Callable[[Sequence[Examples]], Sequence[NDArray[np.float64]]]
"""From the examples of every merchant to the logits, (E, K), of every merchant's test rows."""

_Floats = NDArray[np.float64]
_Classifier = Any  # scikit-learn publishes no types

_PRIOR_ROWS = 10.0
"""Rows that the overall rate counts for in a group's rate."""
_INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Candidates for C of `LogisticRegression`, strongest penalty first."""
_FOLDS = 5
_TREES = (10, 20, 40, 80, 160)
"""Candidates for how many trees are added up."""


def popularity(examples: Examples) -> _Floats:
    """Score an example by what its group did in the training rows, (E, K).

    The group's rate, or that of each class, is drawn towards the overall rate, which counts as
    ten further rows; a group that training never saw has the overall rate.
    """
    objective = examples.objective
    if isinstance(objective, DoseResponse):
        # What sells, at any dose.
        logits_E1 = popularity(_at_dose(examples, 0.0))
        return np.column_stack([logits_E1, objective.sensitivities(np.zeros(len(logits_E1)))])
    train, test = examples.rows(test=False), examples.rows(test=True)
    _, group_E = np.unique(np.asarray(examples.group, dtype=object), return_inverse=True)
    label_EK = examples.label_EK[train].astype(np.float64)
    seen_G = np.bincount(group_E[train], minlength=len(examples))
    columns = []
    for label_E in label_EK.T:
        taken_G = np.bincount(group_E[train], weights=label_E, minlength=len(examples))
        rate_G = (taken_G + _PRIOR_ROWS * _overall_rate(label_E)) / (seen_G + _PRIOR_ROWS)
        columns.append(rate_G[group_E[test]])
    rate_EK = np.stack(columns, axis=1)
    # Softmax turns logarithms of rates into the rates over their sum.
    return np.log(rate_EK) if _classes(examples) else _logit(rate_EK)


def logistic(examples_list: Sequence[Examples], *, pooled: bool) -> list[_Floats]:
    """Score by logistic regression on the numeric features; one array (E, K) per merchant.

    Several classes: multinomial. A chance that rises with a dose: the dose is one more feature,
    left out where its weight would be below 0.

    The penalty is the one with the least log loss in cross-validation on the training rows,
    in which all rows of a user lie in the same fold. A merchant whose training rows are all
    of one class, or missing, gets its smoothed rate for every row.

    Args:
        examples_list: one entry per merchant.
        pooled: one regression on everyone's training rows, which no merchant could run
            without seeing the others' customers; False: one per merchant, on its own.
    """
    if not pooled:
        return [found for e in examples_list for found in logistic([e], pooled=True)]
    if isinstance(examples_list[0].objective, DoseResponse):
        return _dose_logistic(examples_list, examples_list[0].objective)
    fitted = _fit_chosen(examples_list)
    return [fitted.logits(e.numeric_EF[e.rows(test=True)]) for e in examples_list]


def trees(examples_list: Sequence[Examples], *, pooled: bool) -> list[_Floats]:
    """Score by gradient-boosted trees on the numeric features; one array (E, K) per merchant.

    Histogram trees as scikit-learn has them, after LightGBM (Ke et al. 2017): at most 15 leaves
    with 20 rows each. How many is chosen as the penalty of `logistic` is; ``pooled`` as there.
    """
    if not pooled:
        return [found for e in examples_list for found in trees([e], pooled=True)]
    numeric_EF, label_EK, user_E = _training_rows(examples_list)
    count = _chosen_trees(numeric_EF, label_EK, user_E, _loss_of(examples_list[0]))
    fitted = _fit(numeric_EF, label_EK, _boosted(count))
    return [fitted.logits(e.numeric_EF[e.rows(test=True)]) for e in examples_list]


METHODS: Mapping[str, Method] = {
    "popularity": lambda silos: [popularity(e) for e in silos],
    # Rates of recency × frequency × money: the task's groups.
    "rfm-rules": lambda silos: [popularity(e) for e in silos],
    "logistic-local": lambda silos: logistic(silos, pooled=False),
    "logistic-pooled": lambda silos: logistic(silos, pooled=True),
    "mean": lambda silos: [flat(e) for e in silos],
    "mean-by-group": lambda silos: [by_group(e, median=False) for e in silos],
    "median-by-group": lambda silos: [by_group(e, median=True) for e in silos],
    "linear-local": lambda silos: linear(silos, pooled=False),
    "linear-pooled": lambda silos: linear(silos, pooled=True),
    "trees-local": lambda silos: trees(silos, pooled=False),
    "trees-pooled": lambda silos: trees(silos, pooled=True),
    **TEXT_METHODS,
}
"""Simple methods by the name of their arm; a task says which of them are its own."""


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A classifier, or the same logits for every row where there is one class only."""

    model: _Classifier | None
    constant_K: _Floats
    """Logits before, or in place of, the model's: those of classes that it has not seen."""

    def logits(self, numeric_EF: NDArray[np.floating]) -> _Floats:
        # scikit-learn refuses an empty array.
        if self.model is None or not len(numeric_EF):
            return np.repeat(self.constant_K[None], len(numeric_EF), axis=0)
        return self.spread(self.model.decision_function(numeric_EF.astype(np.float64)))

    def spread(self, found: _Floats) -> _Floats:
        """Return what the model decided on the classes that it has seen as logits of all."""
        out_EK = np.repeat(self.constant_K[None], len(found), axis=0)
        if len(self.constant_K) == 1:
            return found[:, None]
        if found.ndim == 1:
            found = np.stack([np.zeros_like(found), found], axis=1)
        seen_C = np.asarray(getattr(self.model, "classes_", ())).astype(int)
        out_EK[:, seen_C] = found - _log_sum(found)
        return out_EK


def _dose_logistic(examples_list: Sequence[Examples], objective: DoseResponse) -> list[_Floats]:
    fitted = _fit_chosen([_at_dose(e) for e in examples_list])
    out = []
    for examples in examples_list:
        rows = examples.rows(test=True)
        low, high = (
            fitted.logits(_at_dose(examples, d).numeric_EF[rows])[:, 0] for d in (0.0, 1.0)
        )
        out.append((low, high - low))
    if any((slope_E < 0).any() for _, slope_E in out):
        fitted = _fit_chosen([_at_dose(e, 0.0) for e in examples_list])
        out = []
        for examples in examples_list:
            still = _at_dose(examples, 0.0).numeric_EF[examples.rows(test=True)]
            out.append((fitted.logits(still)[:, 0], np.zeros(len(still))))
    return [np.column_stack([low, objective.sensitivities(slope)]) for low, slope in out]


def _at_dose(examples: Examples, dose: float | None = None) -> Examples:
    """Return a yes or no with the dose as its last feature: each row's own, or ``dose``."""
    own_E1 = examples.label_EK[:, 1:].clip(0.0, 1.0)
    dose_E1 = own_E1 if dose is None else np.full_like(own_E1, dose)
    return replace(
        examples,
        numeric_EF=np.concatenate([examples.numeric_EF, dose_E1], axis=1),
        label_EK=examples.label_EK[:, :1],
        objective=Binary(),
    )


def _fit_chosen(examples_list: Sequence[Examples]) -> _Fitted:
    numeric_EF, label_EK, user_E = _training_rows(examples_list)
    penalty = _chosen_penalty(numeric_EF, label_EK, user_E, _loss_of(examples_list[0]))
    return _fit(numeric_EF, label_EK, _regression(penalty))


def _training_rows(
    examples_list: Sequence[Examples],
) -> tuple[_Floats, _Floats, NDArray[np.int64]]:
    """Return features, labels and users; the users of two merchants differ."""
    rows = [e.rows(test=False) for e in examples_list]
    pairs = list(zip(examples_list, rows, strict=True))
    numeric_EF = np.concatenate([e.numeric_EF[r] for e, r in pairs]).astype(np.float64)
    label_EK = np.concatenate([e.label_EK[r] for e, r in pairs]).astype(np.float64)
    # The same index means another user in another merchant.
    owner_E2 = np.concatenate(
        [np.stack([np.full(len(r), i), e.user_E[r]], axis=1) for i, (e, r) in enumerate(pairs)]
    )
    _, user_E = np.unique(owner_E2, axis=0, return_inverse=True)
    return numeric_EF, label_EK, user_E


def _loss_of(examples: Examples) -> Callable[[_Floats, _Floats], float]:
    def loss(label_EK: _Floats, logits_EK: _Floats) -> float:
        visits = np.zeros(len(label_EK))
        return examples.objective.quality(label_EK, logits_EK, visits)["log_loss"]

    return loss


def _chosen_penalty(
    numeric_EF: _Floats,
    label_EK: _Floats,
    user_E: NDArray[np.int64],
    loss: Callable[[_Floats, _Floats], float],
) -> float:
    parts = _folds(label_EK, user_E)
    if not parts:
        return 1.0
    losses = []
    for penalty in _INVERSE_PENALTIES:
        logits_EK = np.empty_like(label_EK)
        for fit, held_out in parts:
            fitted = _fit(numeric_EF[fit], label_EK[fit], _regression(penalty))
            logits_EK[held_out] = fitted.logits(numeric_EF[held_out])
        losses.append(loss(label_EK, logits_EK))
    return _INVERSE_PENALTIES[int(np.argmin(losses))]


def _chosen_trees(
    numeric_EF: _Floats,
    label_EK: _Floats,
    user_E: NDArray[np.int64],
    loss: Callable[[_Floats, _Floats], float],
) -> int:
    parts = _folds(label_EK, user_E)
    if not parts:
        return max(_TREES)
    logits = {count: np.empty_like(label_EK) for count in _TREES}
    for fit, held_out in parts:
        fitted = _fit(numeric_EF[fit], label_EK[fit], _boosted(max(_TREES)))
        for logits_EK in logits.values():
            logits_EK[held_out] = fitted.constant_K
        if isinstance(fitted.model, HistGradientBoostingClassifier):
            # One fit knows the sums of fewer trees too.
            stages = fitted.model.staged_decision_function(numeric_EF[held_out])
            for count, found in enumerate(stages, start=1):
                if count in logits:
                    logits[count][held_out] = fitted.spread(found)
    losses = [loss(label_EK, logits_EK) for logits_EK in logits.values()]
    return _TREES[int(np.argmin(losses))]


def _folds(
    label_EK: _Floats, user_E: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (fit, held out) with all rows of a user in one fold; none where it cannot be."""
    folds = min(_FOLDS, np.unique(user_E).size)
    if folds < 2 or np.unique(label_EK, axis=0).shape[0] < 2:
        return []
    return list(GroupKFold(folds).split(user_E, groups=user_E))


def _regression(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=1000)


def _boosted(count: int) -> HistGradientBoostingClassifier:
    # Its own early stopping would hold out rows of users that it trains on.
    return HistGradientBoostingClassifier(
        max_iter=count, max_leaf_nodes=15, early_stopping=False, random_state=0
    )


def _fit(numeric_EF: _Floats, label_EK: _Floats, model: _Classifier) -> _Fitted:
    several = label_EK.shape[1] > 1
    rate_K = np.array([_overall_rate(label_E) for label_E in label_EK.T])
    constant_K = np.log(rate_K) if several else _logit(rate_K)
    class_E = label_EK.argmax(1) if several else label_EK[:, 0]
    if np.unique(class_E).size < 2:
        return _Fitted(None, constant_K)
    return _Fitted(model.fit(numeric_EF, class_E), constant_K)


def _log_sum(logits_EC: _Floats) -> _Floats:
    out: _Floats = np.logaddexp.reduce(logits_EC, axis=1, keepdims=True)
    return out


def _classes(examples: Examples) -> bool:
    return isinstance(examples.objective, Classes)


def _overall_rate(label_E: _Floats) -> float:
    # Laplace: neither 0 nor 1, whose logits are infinite.
    return float((label_E.sum() + 1) / (len(label_E) + 2))


def _logit(rate: _Floats) -> _Floats:
    out: _Floats = np.log(rate) - np.log1p(-rate)
    return out
