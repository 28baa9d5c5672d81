"""What the releases of a silo cost together: ε at a given δ, noise and steps for a given ε.

Unit: one user of one merchant. Neighbours: add or remove one user. Mechanism: Poisson
sampled Gaussian, composed over steps, rounds, tasks and runs. Accountants: Opacus' PRV
(Gopi et al. 2021, arXiv:2106.02848), and Opacus' RDP (Mironov et al. 2019,
arXiv:1908.10530) where PRV cannot answer. Both are upper bounds.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from privacy.accountants import History, prv, rdp, representable
from silotune.config import config
from silotune.errors import ConfigError, PrivacyError

__all__ = [
    "MOST_STEPS",
    "GaussianEvent",
    "calibrate_noise",
    "epsilon_by_rdp",
    "epsilon_spent",
    "release_epsilon",
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


# Silos of a simulation are asked the same; the accountant need not answer twice.
@lru_cache(maxsize=64)
def release_epsilon(event: GaussianEvent, delta: float) -> float:
    """Return ε of one release alone at ``delta``; infinite where no accountant bounds it.

    Unit: one user of one merchant. Neighbours: add or remove one user.
    """
    try:
        return epsilon_spent([event], delta=delta)
    except PrivacyError:
        return math.inf


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

    def spent(sigma: float) -> float:
        event = GaussianEvent(sampling_rate=sampling_rate, noise_multiplier=sigma, steps=steps)
        return _spent_or_infinite([*other_events, event], delta)

    low, high = 0.05, 1.0
    at_low, at_high = math.inf, spent(high)
    while at_high > epsilon:
        low, at_low, high = high, at_high, 2 * high
        if high > 1e4:
            raise PrivacyError(
                f"ε={epsilon} at δ={delta} cannot be kept over {steps} steps at rate "
                f"{sampling_rate}{' beside what else is released' if other_events else ''}."
            )
        at_high = spent(high)
    # An answer costs a composition. ε is near a power of σ, so that a line through the logs of
    # both ends is soon right; a step to each side of it then closes the bracket. Whenever two
    # such steps do not halve the bracket, a bisection does.
    side, queried, width = 1, 0, high - low
    while high - low > tolerance * high:
        bisect = not math.isfinite(at_low) or (queried % 2 == 0 and high - low > width / 2)
        if queried % 2 == 0:
            width = high - low
        middle = (low + high) / 2
        if not bisect:
            line = _on_line(low, at_low, high, at_high, epsilon) * (1 + side * tolerance / 3)
            middle = line if low < line < high else middle
        queried += 1
        at_middle = spent(middle)
        if at_middle <= epsilon:
            high, at_high, side = middle, at_middle, -1
        else:
            low, at_low, side = middle, at_middle, 1
    return high


def _on_line(low: float, at_low: float, high: float, at_high: float, epsilon: float) -> float:
    """Return where a power law through both points is ``epsilon``; ``high`` where none goes.

    >>> round(_on_line(1.0, 8.0, 4.0, 2.0, 4.0), 6)
    2.0
    """
    if not 0 < at_high < at_low:
        return high
    share = math.log(at_low / epsilon) / math.log(at_low / at_high)
    return float(low * (high / low) ** share)


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
    return _spent_or_infinite(events, delta, bound) <= epsilon


def _spent_or_infinite(
    events: Sequence[GaussianEvent], delta: float, bound: Callable[..., float] = epsilon_spent
) -> float:
    # What nothing bounds fits no budget: the search goes on with more noise or fewer steps.
    try:
        return bound(events, delta=delta)
    except PrivacyError:
        return math.inf


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
