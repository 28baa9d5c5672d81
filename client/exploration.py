"""What to show whom: policies that exploit what is known, and explore what is not.

Every policy gives the chance of each action, not only an action. Write the chance of the one
that was taken, its propensity, beside what came of it: later policies can then be judged on the
log alone (`client.off_policy`). What is logged about users stays in the silo.

Shape suffixes: E contexts, A actions, F features, S draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.bayesian_layer import BayesianLayer
from silotune.errors import DataError

__all__ = ["Choice", "choose", "epsilon_greedy", "thompson"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What was taken, and the chance that it had."""

    action_E: NDArray[np.int64]
    propensity_E: _Floats


def choose(chance_EA: ArrayLike, generator: np.random.Generator) -> Choice:
    """Draw one action for each context by its chances.

    Raises:
        DataError: a row of chances is negative somewhere or does not add up to 1.
    """
    chances = np.asarray(chance_EA, np.float64)
    if (chances < 0).any() or not np.allclose(chances.sum(1), 1):
        raise DataError("chance_EA must hold chances that add up to 1 in each row.")
    reached_EA = chances.cumsum(1)
    # Of the row's own sum: rounding must not leave a gap above the last action.
    at_E = generator.random(len(chances)) * reached_EA[:, -1]
    action_E = (reached_EA <= at_E[:, None]).sum(1)
    return Choice(action_E, np.take_along_axis(chances, action_E[:, None], 1)[:, 0])


def epsilon_greedy(score_EA: ArrayLike, *, epsilon: float) -> _Floats:
    """Return the chances, (E, A), of taking the best but with chance ``epsilon`` any.

    Args:
        score_EA: higher is better; the best of equal ones share. -inf: not on offer.
        epsilon: 0 exploits only, 1 is uniform over what is on offer.

    Raises:
        DataError: a NaN, a context without an action, or ``epsilon`` outside [0, 1].
    """
    scores, uniform_EA = _on_offer(score_EA, epsilon)
    best_EA = scores == scores.max(1, keepdims=True)
    chances: _Floats = (1 - epsilon) * best_EA / best_EA.sum(1, keepdims=True)
    return chances + epsilon * uniform_EA


def thompson(
    layer: BayesianLayer,
    features_EAF: ArrayLike,
    generator: np.random.Generator,
    *,
    offset_EA: ArrayLike = 0.0,
    draws: int = 100,
    epsilon: float = 0.0,
) -> _Floats:
    """Return the chances, (E, A), of Thompson sampling: that an action is the best.

    The weights are drawn ``draws`` times; one of the draws, at random, then decides. Given the
    draws the chances are exact, so that a log of propensities is unbiased however few they are
    (the chance over all weights has no closed form).

    Args:
        layer: what is known of the actions' features.
        features_EAF: of each action in each context.
        generator: draws the weights.
        offset_EA: logits of the scoring model. -inf: not on offer.
        draws: more of them give finer chances; an action that no draw prefers has chance 0.
        epsilon: share of choices that are uniform. Above 0, every action on offer can be
            judged from the log.

    Raises:
        DataError: a NaN, a context without an action, or ``epsilon`` outside [0, 1].
    """
    features = np.asarray(features_EAF, np.float64)
    offsets, uniform_EA = _on_offer(np.broadcast_to(offset_EA, features.shape[:2]), epsilon)
    if draws < 1:
        raise DataError(f"draws is {draws}; it must be at least 1.")
    count_EA = np.zeros(features.shape[:2])
    row_E = np.arange(len(features))
    for weight_F in layer.draws(draws, generator):
        logit_EA = features @ weight_F + offsets
        if np.isnan(logit_EA).any():
            raise DataError("features_EAF holds a NaN.")
        count_EA[row_E, logit_EA.argmax(1)] += 1
    return (1 - epsilon) * count_EA / draws + epsilon * uniform_EA


def _on_offer(score_EA: ArrayLike, epsilon: float) -> tuple[_Floats, _Floats]:
    scores = np.asarray(score_EA, np.float64)
    offered_EA = scores > -np.inf
    if np.isnan(scores).any() or not offered_EA.any(1).all():
        raise DataError("each context needs an action with a score that is no NaN and not -inf.")
    if not 0 <= epsilon <= 1:
        raise DataError(f"epsilon is {epsilon}; it must be in [0, 1].")
    return scores, offered_EA / offered_EA.sum(1, keepdims=True)
