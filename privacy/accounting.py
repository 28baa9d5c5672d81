"""What the releases of a silo cost together: ε at a given δ, and noise for a given ε.

Unit: one user of one merchant. Neighbours: add or remove one user. Mechanism: Poisson
sampled Gaussian, composed over steps, rounds, tasks and runs. Accountants: Opacus' PRV
(Gopi et al. 2021, arXiv:2106.02848), and Opacus' RDP (Mironov et al. 2019,
arXiv:1908.10530) where PRV cannot answer. Both are upper bounds.
"""

import math
import warnings
from collections.abc import Sequence

from silotune.config import config
from silotune.errors import ConfigError, PrivacyError

__all__ = ["GaussianEvent", "calibrate_noise", "epsilon_spent"]


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
    if not 0 < delta < 1:
        raise ConfigError(f"delta is {delta}; it must be above 0 and below 1.")
    if not events:
        return 0.0
    history = _merged(events)
    prv = _prv(history, delta)
    epsilon = _rdp(history, delta) if prv is None else prv
    if not math.isfinite(epsilon) or epsilon < 0:
        raise PrivacyError(
            f"no accountant bounds ε of {history} at δ={delta}: more noise, fewer steps, or a "
            "larger δ is needed."
        )
    return epsilon


def calibrate_noise(
    epsilon: float, *, delta: float, sampling_rate: float, steps: int, tolerance: float = 1e-3
) -> float:
    """Return the smallest noise multiplier, up to ``tolerance``, that keeps ε in the target.

    Raises:
        ConfigError: ε not above 0.
        PrivacyError: no noise multiplier up to 10,000 keeps it.
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon is {epsilon}; it must be > 0. 8 is a common first value.")

    def fits(sigma: float) -> bool:
        event = GaussianEvent(sampling_rate=sampling_rate, noise_multiplier=sigma, steps=steps)
        return epsilon_spent([event], delta=delta) <= epsilon

    low, high = 0.05, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > 1e4:
            raise PrivacyError(
                f"ε={epsilon} at δ={delta} cannot be kept over {steps} steps at rate "
                f"{sampling_rate}."
            )
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _merged(events: Sequence[GaussianEvent]) -> list[tuple[float, float, int]]:
    # Opacus' own form: (noise multiplier, rate, steps). Equal events are one entry: PRV
    # composes n equal steps in one transform, and loses less to rounding.
    counts: dict[tuple[float, float], int] = {}
    for e in events:
        key = (e.noise_multiplier, e.sampling_rate)
        counts[key] = counts.get(key, 0) + e.steps
    return [(sigma, q, n) for (sigma, q), n in sorted(counts.items())]


def _prv(history: list[tuple[float, float, int]], delta: float) -> float | None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    try:
        with warnings.catch_warnings():
            # An overflow is a mechanism that PRV cannot represent; log(1 - q) at q = 1 is not.
            warnings.simplefilter("error", RuntimeWarning)
            warnings.filterwarnings("ignore", "divide by zero", RuntimeWarning)
            # Of the RDP bound that sizes PRV's grid: a wider grid than needed, no smaller ε.
            warnings.simplefilter("ignore", UserWarning)
            epsilon = float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, RuntimeWarning, ArithmeticError, MemoryError):
        return None
    return epsilon if math.isfinite(epsilon) and epsilon > 0 else None


def _rdp(history: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = history
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound holds, it is only less tight.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return float(accountant.get_epsilon(delta))
        except ArithmeticError:
            return math.inf
