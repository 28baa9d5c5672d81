"""What the releases of a silo cost together: ε at a given δ, noise and steps for a given ε.

Unit: one user of one merchant. Neighbours: add or remove one user. Mechanism: Poisson
sampled Gaussian, composed over steps, rounds, tasks and runs. Accountants: Opacus' PRV
(Gopi et al. 2021, arXiv:2106.02848), and Opacus' RDP (Mironov et al. 2019,
arXiv:1908.10530) where PRV cannot answer. Both are upper bounds.
"""

import math
from collections.abc import Callable, Sequence

from privacy.accountants import History, prv, rdp, representable
from silotune.config import config
from silotune.errors import ConfigError, PrivacyError

__all__ = [
    "MOST_STEPS",
    "GaussianEvent",
    "calibrate_noise",
    "epsilon_by_rdp",
    "epsilon_spent",
    "steps_left",
]

MOST_STEPS = 10**9
"""`steps_left` counts no further: no training is longer."""


@config
class GaussianEvent:
    """``steps`` releases of a Poisson-sampled Gaussian mechanism."""

    sampling_rate: float
    """q, in (0, 1]."""
    noise_multiplier: float
    """Standard deviation of the noise over the sensitivity, > 0."""
    steps: int
    """How many times, > 0."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(f"sampling_rate is {self.sampling_rate}; it must be in (0, 1].")
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier}; it must be > 0.")
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1.")


def epsilon_spent(events: Sequence[GaussianEvent], *, delta: float) -> float:
    """Return an upper bound on ε of the composed events. Nothing released costs 0.

    Unit: one user of one merchant. Neighbours: add or remove one user.

    Raises:
        ConfigError: δ outside (0, 1).
        PrivacyError: no accountant gives a finite bound.
    """
    _check_delta(delta)
    if not events:
        return 0.0
    history = _merged(events)
    # First: it tells PRV how wide a grid to lay, and whether to try at all.
    by_rdp = rdp(history, delta)
    by_prv = prv(history, delta, by_rdp)
    return _finite(by_rdp if by_prv is None else by_prv, history, delta)


def epsilon_by_rdp(events: Sequence[GaussianEvent], *, delta: float) -> float:
    """Return ε of the composed events by RDP alone: some tenth above `epsilon_spent`.

    Unit, neighbours and errors as there. The conversion from RDP is Balle et al. (2020),
    arXiv:1905.09982, theorem 21.
    """
    _check_delta(delta)
    if not events:
        return 0.0
    history = _merged(events)
    return _finite(rdp(history, delta), history, delta)


def calibrate_noise(
    epsilon: float,
    *,
    delta: float,
    sampling_rate: float,
    steps: int,
    other_events: Sequence[GaussianEvent] = (),
    tolerance: float = 1e-3,
) -> float:
    """Return the smallest noise multiplier, up to ``tolerance``, that keeps ε in the target.

    Args:
        epsilon: of one user over ``other_events`` and all ``steps``, as `epsilon_spent` counts it.
        delta: of the same guarantee.
        sampling_rate: q of every step.
        steps: of the whole plan: steps of a round × rounds.
        other_events: what else the same budget has to pay for.
        tolerance: relative.

    Raises:
        ConfigError: ε not above 0.
        PrivacyError: no noise multiplier up to 10,000 keeps it.
    """
    _check_target(epsilon)

    def fits(sigma: float) -> bool:
        event = GaussianEvent(sampling_rate=sampling_rate, noise_multiplier=sigma, steps=steps)
        return _fits([*other_events, event], epsilon, delta)

    low, high = 0.05, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > 1e4:
            raise PrivacyError(
                f"ε={epsilon} at δ={delta} cannot be kept over {steps} steps at rate "
                f"{sampling_rate}{' beside what else is released' if other_events else ''}."
            )
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def steps_left(
    events: Sequence[GaussianEvent],
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    noise_multiplier: float,
) -> int:
    """Return how many more steps of a plan a budget allows after ``events``.

    So many keep ε ≤ ``epsilon`` as `epsilon_spent` counts it, and one more would pass it.
    0 when the first would; `MOST_STEPS` when so many fit.

    Args:
        events: all that the same users have been charged with so far.
        epsilon: the budget of one user, > 0.
        delta: of the same guarantee.
        sampling_rate: q of the steps to come.
        noise_multiplier: σ of the steps to come.

    Raises:
        ConfigError: a value out of range.
    """
    _check_target(epsilon)

    def fits(steps: int, bound: Callable[..., float] = epsilon_spent) -> bool:
        more = GaussianEvent(
            sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps
        )
        return _fits([*events, more], epsilon, delta, bound)

    # RDP answers at once, and is near.
    near = _most(lambda n: fits(n, epsilon_by_rdp), MOST_STEPS)
    return _most(fits, MOST_STEPS, near=near)


def _most(fits: Callable[[int], bool], ceiling: int, *, near: int = 0) -> int:
    """Return n, up to ``ceiling``, that fits where n + 1 does not; quicker with n ``near``.

    >>> _most(lambda n: n <= 37, 100), _most(lambda n: False, 100), _most(lambda n: True, 100)
    (37, 0, 100)
    >>> [_most(lambda n: n <= 37, 100, near=n) for n in (1, 30, 36, 37, 38, 100)]
    [37, 37, 37, 37, 37, 37]
    """
    low, high, stride = 0, max(1, near), max(1, near // 16)
    while high <= ceiling and fits(high):
        low, high, stride = high, high + stride, 2 * stride
    high = min(high, ceiling + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(
    events: Sequence[GaussianEvent],
    epsilon: float,
    delta: float,
    bound: Callable[..., float] = epsilon_spent,
) -> bool:
    # What nothing bounds fits no budget: the search goes on with more noise or fewer steps.
    try:
        return bound(events, delta=delta) <= epsilon
    except PrivacyError:
        return False


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta is {delta}; it must be above 0 and below 1.")


def _check_target(epsilon: float) -> None:
    if not epsilon > 0:
        raise ConfigError(f"epsilon is {epsilon}; it must be > 0. 8 is a common first value.")


def _finite(epsilon: float, history: History, delta: float) -> float:
    if not math.isfinite(epsilon):
        raise PrivacyError(
            f"no accountant bounds ε of {history} at δ={delta}: more noise, fewer steps, or a "
            "larger δ is needed."
        )
    return epsilon


def _merged(events: Sequence[GaussianEvent]) -> History:
    # Equal events are one entry: PRV composes n equal steps in one transform, and loses less
    # to rounding.
    counts: dict[tuple[float, float], int] = {}
    for e in events:
        key = representable(e.noise_multiplier, e.sampling_rate)
        counts[key] = counts.get(key, 0) + e.steps
    return [(sigma, q, n) for (sigma, q), n in sorted(counts.items())]
