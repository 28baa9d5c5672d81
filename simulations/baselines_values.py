"""Simple methods for a value between bounds: one flat value, one for each group, a regression.

As in `simulations.baselines`: each learns from training rows alone and returns one column for the
test rows. None is private.

Shape suffixes: E examples, F numeric features, G groups.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

from silotune.tasks.base import Examples

__all__ = ["by_group", "flat", "linear"]

_Floats = NDArray[np.float64]

_PRIOR_ROWS = 10
"""Rows below which a group's median is not its own, and that the overall mean counts for."""
_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5


def flat(examples: Examples) -> _Floats:
    """Predict the mean of the training rows for everyone, (E, 1)."""
    train, test = examples.rows(test=False), examples.rows(test=True)
    return np.full((len(test), 1), _overall(examples.label_EK[train], np.mean))


def by_group(examples: Examples, *, median: bool) -> _Floats:
    """Predict the mean or the median of the example's group, (E, 1).

    A mean is drawn towards the overall mean, which counts as ten rows. A group of fewer than ten
    rows has the overall median.
    """
    train, test = examples.rows(test=False), examples.rows(test=True)
    _, group_E = np.unique(np.asarray(examples.group, dtype=object), return_inverse=True)
    label_E = examples.label_EK[train, 0].astype(np.float64)
    overall = _overall(label_E, np.median if median else np.mean)
    groups = int(group_E.max(initial=0)) + 1
    seen_G = np.bincount(group_E[train], minlength=groups)
    if median:
        value_G = np.full(groups, overall)
        order = np.argsort(group_E[train], kind="stable")
        parts = np.split(label_E[order], np.cumsum(seen_G)[:-1])
        for group in np.flatnonzero(seen_G >= _PRIOR_ROWS):
            value_G[group] = np.median(parts[group])
    else:
        sum_G = np.bincount(group_E[train], weights=label_E, minlength=groups)
        value_G = (sum_G + _PRIOR_ROWS * overall) / (seen_G + _PRIOR_ROWS)
    return value_G[group_E[test]][:, None]


def linear(examples_list: Sequence[Examples], *, pooled: bool) -> list[_Floats]:
    """Predict by ridge regression on the numeric features; one array (E, 1) per merchant.

    The penalty is the one with the least squared error in cross-validation on the training rows,
    in which all rows of a user lie in the same fold.

    Args:
        examples_list: one entry per merchant.
        pooled: one regression on everyone's training rows, which no merchant could run.
    """
    if pooled:
        predict = _fit(examples_list)
        return [predict(e.numeric_EF[e.rows(test=True)]) for e in examples_list]
    return [_fit([e])(e.numeric_EF[e.rows(test=True)]) for e in examples_list]


def _fit(examples_list: Sequence[Examples]) -> Callable[[NDArray[np.float32]], _Floats]:
    rows = [e.rows(test=False) for e in examples_list]
    pairs = list(zip(examples_list, rows, strict=True))
    numeric_EF = np.concatenate([e.numeric_EF[r] for e, r in pairs]).astype(np.float64)
    label_E = np.concatenate([e.label_EK[r, 0] for e, r in pairs]).astype(np.float64)
    # The same index means another user in another merchant.
    owner_E = [f"{i}/{u}" for i, (e, r) in enumerate(pairs) for u in e.user_E[r].tolist()]
    users = len(set(owner_E))
    if users < 2:
        value = _overall(label_E, np.mean)
        return lambda found_EF: np.full((len(found_EF), 1), value)
    folds = list(GroupKFold(min(_FOLDS, users)).split(numeric_EF, groups=owner_E))
    model = RidgeCV(alphas=_PENALTIES, cv=folds).fit(numeric_EF, label_E)

    def predict(found_EF: NDArray[np.float32]) -> _Floats:
        # scikit-learn refuses an empty array.
        if not len(found_EF):
            return np.empty((0, 1))
        out: _Floats = model.predict(found_EF.astype(np.float64))[:, None]
        return out

    return predict


def _overall(label: NDArray[np.floating], middle: Callable[..., np.floating]) -> float:
    # Nothing was seen: any value between the bounds is as good.
    return float(middle(label)) if label.size else 0.0
