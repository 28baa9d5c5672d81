"""What a policy would have earned, from a log of another one's choices.

Needs the propensity of every logged choice: its chance under the policy that made it. The
target policy may prefer only what the logging policy had a chance to take (overlap): what was
never tried has no value in a log. A mean weight that is not near 1 gives missing overlap, or
wrong propensities, away; few effective rows say that the interval leans on few choices.

Dudík, Langford and Li (2011), arXiv:1103.4601; self-normalised: Swaminathan and Joachims (2015).

Shape suffixes: E logged choices, A actions, F features, U users.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.bayesian_layer import BayesianLayer
from silotune.errors import DataError

__all__ = ["Estimate", "Log", "cross_fitted", "doubly_robust", "ips", "snips"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Log:
    """Choices that were made, and what came of them."""

    action_E: NDArray[np.int64]
    """Index of the action, from 0."""
    reward_E: _Floats
    propensity_E: _Floats
    """Chance of the action under the policy that chose it, in (0, 1]."""
    user_E: NDArray[np.int64] | None = None
    """Whose they are. Choices of one user are not independent: errors are then by user."""

    def __post_init__(self) -> None:
        """Check lengths and ranges. Raises DataError, which names the first row."""
        rows = len(self.action_E)
        for name in ("reward_E", "propensity_E", "user_E"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != (rows,):
                raise DataError(f"{name} is {np.shape(values)}; action_E has {rows} rows.")
        if not rows:
            raise DataError("the log is empty.")
        for name, wrong_E in (
            ("propensity_E", ~((self.propensity_E > 0) & (self.propensity_E <= 1))),
            ("reward_E", ~np.isfinite(self.reward_E)),
            ("action_E", np.asarray(self.action_E) < 0),
        ):
            if wrong_E.any():
                row = int(np.flatnonzero(wrong_E)[0])
                raise DataError(
                    f"{name} holds {getattr(self, name)[row]} at row {row}; propensities lie in "
                    "(0, 1], rewards are finite, actions count from 0."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A policy's mean reward per choice."""

    value: float
    standard_error: float
    """NaN with fewer than two users, or choices where users are not known."""
    effective_rows: float
    """Kish's size of an unweighted log as telling as this one."""
    mean_weight: float
    """Of target chance over propensity; 1 but for chance where all is well."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the normal confidence interval. Too narrow where effective rows are few."""
        reach = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.value - reach, self.value + reach


def ips(log: Log, target_EA: ArrayLike) -> Estimate:
    """Return the inverse propensity estimate: unbiased, wide where weights are large.

    Args:
        log: of another policy.
        target_EA: chances of the policy to judge, in the log's contexts.

    Raises:
        DataError: chances that do not fit the log or do not add up to 1.
    """
    weight_E = _weights(log, _checked(log, target_EA))
    return _estimate(log, weight_E, weight_E * log.reward_E)


def snips(log: Log, target_EA: ArrayLike) -> Estimate:
    """Return the self-normalised estimate: slightly biased, within the range of the rewards.

    Its error is that of a ratio of means, to first order. Arguments and errors as `ips`.
    """
    weight_E = _weights(log, _checked(log, target_EA))
    total = weight_E.sum()
    if not total:
        raise DataError("the target policy never does what was logged: nothing can be said of it.")
    value = weight_E @ log.reward_E / total
    return _estimate(log, weight_E, value + weight_E * (log.reward_E - value) / weight_E.mean())


def doubly_robust(log: Log, target_EA: ArrayLike, predicted_EA: ArrayLike) -> Estimate:
    """Return the doubly robust estimate: a model of the rewards, corrected by the log.

    Unbiased if the propensities or the model are right; tighter than `ips` with a good model.

    Args:
        log: of another policy.
        target_EA: chances of the policy to judge.
        predicted_EA: rewards that a model expects of each action, made without the choice that
            it corrects (`cross_fitted`).

    Raises:
        DataError: as `ips`, or a prediction for other actions or not finite.
    """
    target, predicted = _checked(log, target_EA), np.asarray(predicted_EA, np.float64)
    if predicted.shape != target.shape or not np.isfinite(predicted).all():
        raise DataError(f"predicted_EA must be finite and of the shape {target.shape}.")
    weight_E = _weights(log, target)
    expected_E = (target * predicted).sum(1)
    return _estimate(log, weight_E, expected_E + weight_E * (log.reward_E - _taken(predicted, log)))


def cross_fitted(
    log: Log, features_EAF: ArrayLike, prior: BayesianLayer, *, folds: int = 5
) -> _Floats:
    """Return the chance of a reward of 1 for every action, (E, A), without the row's own fold.

    All choices of a user lie in one fold (Chernozhukov et al. 2018).

    Args:
        log: with rewards of 0 or 1.
        features_EAF: of each action in each context.
        prior: what the layer knows before the log.
        folds: parts of the log; two at least.

    Raises:
        DataError: rewards other than 0 and 1, features that do not fit, or too few folds.
    """
    features = np.asarray(features_EAF, np.float64)
    if folds < 2 or len(features) != len(log.action_E):
        raise DataError(f"{folds} folds of {len(features)} rows for {len(log.action_E)} choices.")
    _, user_E = np.unique(_users(log), return_inverse=True)
    taken_EF = features[np.arange(len(features)), log.action_E]
    predicted_EA = np.empty(features.shape[:2])
    for fold in range(folds):
        held_E = user_E % folds == fold
        layer = prior.updated(taken_EF[~held_E], log.reward_E[~held_E])
        flat = layer.chance(features[held_E].reshape(-1, features.shape[2]))
        predicted_EA[held_E] = flat.reshape(-1, features.shape[1])
    return predicted_EA


def _estimate(log: Log, weight_E: _Floats, part_E: _Floats) -> Estimate:
    """Return the mean of ``part_E``, with an error in which a user's parts count as one."""
    value = part_E.mean()
    _, user_E = np.unique(_users(log), return_inverse=True)
    away_U = np.bincount(user_E, weights=part_E - value)
    users, squares = len(away_U), (weight_E**2).sum()
    spread = users / (users - 1) * (away_U**2).sum() if users > 1 else np.nan
    return Estimate(
        value=float(value),
        standard_error=float(np.sqrt(spread) / len(part_E)),
        effective_rows=float(weight_E.sum() ** 2 / squares) if squares else 0.0,
        mean_weight=float(weight_E.mean()),
    )


def _users(log: Log) -> NDArray[np.int64]:
    return np.arange(len(log.action_E)) if log.user_E is None else log.user_E


def _weights(log: Log, target_EA: _Floats) -> _Floats:
    found: _Floats = _taken(target_EA, log) / log.propensity_E
    return found


def _taken(value_EA: _Floats, log: Log) -> _Floats:
    return np.take_along_axis(value_EA, log.action_E[:, None], 1)[:, 0]


def _checked(log: Log, target_EA: ArrayLike) -> _Floats:
    target = np.asarray(target_EA, np.float64)
    if target.ndim != 2 or len(target) != len(log.action_E):
        raise DataError(f"target_EA is {target.shape}; the log has {len(log.action_E)} rows.")
    if log.action_E.max() >= target.shape[1]:
        raise DataError(f"the log has action {log.action_E.max()}; target_EA knows fewer.")
    if not (target >= 0).all() or not np.allclose(target.sum(1), 1):
        raise DataError("target_EA must hold chances that add up to 1 in each row.")
    return target
