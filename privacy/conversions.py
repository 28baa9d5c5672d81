"""One guarantee said in other units: an example, a group of users, a user of several merchants.

The unit of silotune is a user of one merchant, one clip per user and step: there
`privacy.accounting` is exact about the mechanism and nothing needs converting. Here is what
the same releases mean for other units, and what example-level DP-SGD would mean for a user.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.accountants import ORDERS, SERIES_ERROR, epsilon_of_rdp, representable
from privacy.accounting import GaussianEvent, epsilon_spent
from silotune.errors import ConfigError, PrivacyError

__all__ = [
    "epsilon_of_group",
    "epsilon_of_user_of_examples",
    "epsilon_over_merchants",
    "guarantee_of_example",
    "guarantee_of_group",
    "guarantee_over_merchants",
]

_MOST_USERS = 256
# Standard deviations past the last mode: what is left out is below 1e-40 of the moment.
_TAIL = 14.0
_MOST_POINTS = 2**19


def guarantee_of_group(epsilon: float, delta: float, *, users: int) -> tuple[float, float]:
    """Return (ε, δ) for any ``users`` users added or removed together, from that of one.

    (kε, δ (e^kε - 1) / (e^ε - 1)): k steps from one data set to the other, each of (ε, δ).
    After Vadhan (2017), The Complexity of Differential Privacy, lemma 2.2, whose proof adds up
    δ e^iε. Holds for every mechanism, and for groups of which some are added and some removed.
    δ may pass 1: then nothing is promised.

    Raises:
        ConfigError: ε negative, δ outside [0, 1] or ``users`` below 1.

    >>> guarantee_of_group(1.0, 1e-6, users=1)
    (1.0, 1e-06)
    """
    _check_pair(epsilon, delta)
    if users < 1:
        raise ConfigError(f"users is {users}; a group has at least 1.")
    # A sum, not the quotient: at ε = 0 it is k.
    try:
        factor = math.fsum(math.exp(i * epsilon) for i in range(users))
    except OverflowError:
        factor = math.inf
    return users * epsilon, delta * factor if delta else 0.0


def guarantee_of_example(epsilon: float, delta: float) -> tuple[float, float]:
    """Return (ε, δ) for one example added to, or removed from, a user who keeps others.

    (2ε, δ (1 + e^ε)). User-level neighbours differ in a whole user; the way from a user with
    an example to the same user without it is one removal and one addition, so the group
    formula with k = 2 applies. A user's only example has (ε, δ) itself, and so has the
    question whether someone is a user at all.

    Raises:
        ConfigError: as `guarantee_of_group`.
    """
    return guarantee_of_group(epsilon, delta, users=2)


def guarantee_over_merchants(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (ε, δ) of a user who shops at all these merchants, from each one's guarantee.

    (Σ ε, Σ δ): sequential composition, Dwork and Roth (2014), theorem 3.16. It needs no
    more than the pairs. `epsilon_over_merchants` gives less where the plans are known.

    Raises:
        ConfigError: an ε negative or a δ outside [0, 1].

    >>> guarantee_over_merchants([(8.0, 1e-6), (2.0, 1e-6)])
    (10.0, 2e-06)
    """
    for epsilon, delta in parts:
        _check_pair(epsilon, delta)
    return math.fsum(e for e, _ in parts), math.fsum(d for _, d in parts)


def epsilon_over_merchants(plans: Sequence[Sequence[GaussianEvent]], *, delta: float) -> float:
    """Return ε of a user who shops at all these merchants, one plan each.

    Neighbours: add or remove the user everywhere. Merchants draw their noise apart from one
    another, and a round's model depends on all rounds before it: adaptive composition of all
    events, as within one merchant.

    Raises:
        ConfigError, PrivacyError: as `epsilon_spent`.
    """
    return epsilon_spent([event for plan in plans for event in plan], delta=delta)


def epsilon_of_user_of_examples(
    events: Sequence[GaussianEvent], *, examples: int, delta: float
) -> float:
    """Return ε of a user with ``examples`` examples under example-level DP-SGD.

    There each example is sampled and clipped by itself, so a user is a group of examples:
    `epsilon_of_group` with examples in the place of users. For comparison only; silotune
    clips once per user (Charles et al. 2024, arXiv:2407.07737, compare both).

    Raises:
        ConfigError, PrivacyError: as `epsilon_of_group`.
    """
    return epsilon_of_group(events, users=examples, delta=delta)


def epsilon_of_group(events: Sequence[GaussianEvent], *, users: int, delta: float) -> float:
    """Return an upper bound on ε of ``users`` users who are all added, or all removed.

    The tighter of the two: `guarantee_of_group` needs no more than (ε, δ), this the events.

    In a step J ~ Binomial(k, q) of the group are sampled and move the sum by at most J
    clips. Ganesh (2024), arXiv:2401.10294: the pair Σ b_j N(j, σ²) against N(0, σ²)
    dominates. To see it, take any set A with a = N(0, σ²)(A): a shift v gives A at most
    Φ(Φ⁻¹(a) + |v|/σ) and at least Φ(Φ⁻¹(a) - |v|/σ) by Neyman and Pearson, |v| ≤ j, and a half
    line reaches both bounds for all j at once; which other users are sampled adds nothing by
    joint convexity. Dominating pairs compose (Zhu et al. 2022, arXiv:2106.08567, theorem 10).
    Their Rényi divergences are integrated numerically in both directions.

    Args:
        events: of which each user's part is known.
        users: k, at most 256.
        delta: of the group's guarantee, in (0, 1).

    Raises:
        ConfigError: δ or ``users`` out of range.
        PrivacyError: no order bounds it.
    """
    if not 1 <= users <= _MOST_USERS:
        raise ConfigError(f"users is {users}; it must be from 1 to {_MOST_USERS}.")
    if users == 1 or not events:
        return epsilon_spent(events, delta=delta)
    if not 0 < delta < 1:
        raise ConfigError(f"delta is {delta}; it must be above 0 and below 1.")
    total = np.zeros(len(ORDERS))
    for e in events:
        sigma, rate = representable(e.noise_multiplier, e.sampling_rate)
        total += e.steps * np.array(_rdp_of_group(sigma, rate, users))
    epsilon = epsilon_of_rdp(total, delta)
    if not math.isfinite(epsilon):
        raise PrivacyError(
            f"nothing bounds ε of {users} users together at δ={delta}: more noise, fewer steps, "
            "or a smaller group is needed."
        )
    return epsilon


@lru_cache(maxsize=1024)
def _rdp_of_group(sigma: float, rate: float, users: int) -> tuple[float, ...]:
    """Return the RDP of one step for a group, one for each of `ORDERS`; may be infinite."""
    # The losses bend over a length of σ/k: ten points there, and the trapezoidal rule, which
    # for such analytic integrands converges exponentially, is exact to rounding.
    spacing = min(0.1, 0.1 * sigma / users)
    orders = [a for a in ORDERS if a * users / sigma + _TAIL <= spacing * _MOST_POINTS / 2]
    if not orders:
        return (math.inf,) * len(ORDERS)
    reach = max(orders) * users / sigma + _TAIL
    z_N = np.arange(-reach, reach, spacing)
    loss_N = _loss(z_N, sigma, rate, users)
    found = {}
    for a in orders:
        inside = np.abs(z_N) <= a * users / sigma + _TAIL
        z, loss = z_N[inside], loss_N[inside]
        log_moment = max(_log_mean(a * loss, z), _log_mean((1 - a) * loss, z))
        found[a] = (log_moment + SERIES_ERROR) / (a - 1)
    return tuple(found.get(a, math.inf) for a in ORDERS)


def _loss(z_N: NDArray[np.float64], sigma: float, rate: float, users: int) -> NDArray[np.float64]:
    """Return log of Σ b_j N(j, σ²) over N(0, σ²) at ``z_N`` standard deviations."""
    total_N = np.full(len(z_N), -np.inf)
    for j in range(users + 1):
        if rate == 1 and j < users:
            continue
        weight = math.log(math.comb(users, j)) + j * math.log(rate)
        weight += (users - j) * math.log1p(-rate) if j < users else 0.0
        total_N = np.logaddexp(total_N, weight + j / sigma * z_N - (j / sigma) ** 2 / 2)
    return total_N


def _log_mean(exponent_N: NDArray[np.float64], z_N: NDArray[np.float64]) -> float:
    # Over the same sum of the normal density alone: what the grid misses cancels.
    log_N = exponent_N - z_N**2 / 2
    peak = float(log_N.max())
    return peak + math.log(np.exp(log_N - peak).sum() / np.exp(-(z_N**2) / 2).sum())


def _check_pair(epsilon: float, delta: float) -> None:
    if not epsilon >= 0:
        raise ConfigError(f"epsilon is {epsilon}; it must be at least 0.")
    if not 0 <= delta <= 1:
        raise ConfigError(f"delta is {delta}; it must be from 0 to 1.")
