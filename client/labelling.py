"""Which examples to ask a person to label, when only so many can be asked about.

From the doubt of `client.bayesian_layer`, inside the silo. The labels that come back are the
merchant's own; what is chosen here says something of its users, and stays.

Shape suffixes: E examples, F features.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.bayesian_layer import BayesianLayer
from silotune.errors import DataError

__all__ = ["most_telling", "most_uncertain"]

_Floats = NDArray[np.float64]


def most_uncertain(
    layer: BayesianLayer, features_EF: ArrayLike, budget: int, offset_E: ArrayLike = 0.0
) -> NDArray[np.int64]:
    """Return the ``budget`` rows whose chance is nearest to 1/2 (Lewis and Gale 1994).

    Cheap, but near 1/2 is also what is noisy, and alike rows are chosen together.

    Raises:
        DataError: a budget below 1, or features that do not fit.
    """
    chance_E = layer.chance(features_EF, offset_E)
    return np.argsort(np.abs(chance_E - 0.5), kind="stable")[: _checked(budget)]


def most_telling(
    layer: BayesianLayer, features_EF: ArrayLike, budget: int, offset_E: ArrayLike = 0.0
) -> NDArray[np.int64]:
    """Return ``budget`` rows whose labels take away most doubt of all rows' chances, best first.

    Each lowers the expected variance of the chances of all rows by the most, given those before
    it: V-optimal design on Laplace's approximation (Schein and Ungar 2007), greedily. Labels do
    not enter, only where rows lie, so that a batch can be chosen at once.

    Args:
        layer: what is known before.
        features_EF: of all rows that may be labelled.
        budget: how many; no more than there are.
        offset_E: logits of the scoring model.

    Raises:
        DataError: a budget below 1, or features that do not fit.
    """
    features = np.asarray(features_EF, np.float64)
    mean_E, _ = layer.moments(features, offset_E)
    chance_E = np.exp(-np.logaddexp(0.0, -mean_E))
    # A label's information on the logit; also the slope of the chance, whose doubt is to go.
    curve_E = chance_E * (1 - chance_E)
    slope_EF = features * curve_E[:, None]
    aim_FF = slope_EF.T @ slope_EF
    # Rows of features times the covariance, as it is after the rows chosen so far.
    spread_EF = features @ layer.covariance()
    left_E = np.ones(len(features), dtype=bool)
    chosen = []
    for _ in range(min(_checked(budget), len(features))):
        doubt_E = 1 + curve_E * (spread_EF * features).sum(1)
        gain_E = curve_E * ((spread_EF @ aim_FF) * spread_EF).sum(1) / doubt_E
        best = int(np.where(left_E, gain_E, -np.inf).argmax())
        chosen.append(best)
        left_E[best] = False
        # Sherman and Morrison: the covariance after one more row.
        step_F = spread_EF[best].copy()
        spread_EF -= np.outer(features @ step_F, step_F) * (curve_E[best] / doubt_E[best])
    return np.array(chosen, dtype=np.int64)


def _checked(budget: int) -> int:
    if budget < 1:
        raise DataError(f"budget is {budget}; it must be at least 1.")
    return budget
