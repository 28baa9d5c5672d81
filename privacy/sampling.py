"""Which users take part in a step: Poisson sampling, as the accountant assumes."""

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import RandomSource

__all__ = ["cap_examples", "poisson_users"]


def poisson_users(users: int, rate: float, source: RandomSource) -> NDArray[np.int64]:
    """Return the indices of the sampled users: each one independently with chance ``rate``.

    The sample may be empty; the step must then still add its noise and count. Its size is
    private. Args: ``users``, how many the silo has (private); ``rate``, public, in (0, 1].
    """
    return np.flatnonzero(source.uniform(users) < rate)


def cap_examples(rows: NDArray[np.int64], limit: int, source: RandomSource) -> NDArray[np.int64]:
    """Return at most ``limit`` of one user's rows, chosen uniformly.

    Bounds a step's cost per user. It is no part of the guarantee: the clip is.
    """
    if len(rows) <= limit:
        return rows
    return rows[np.argsort(source.uniform(len(rows)))[:limit]]
