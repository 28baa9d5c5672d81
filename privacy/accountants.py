"""Opacus' accountants, kept to where their answers are upper bounds and come in time.

Opacus' 'gdp' is not offered: it is a limit for many steps, and reports less than is spent.
"""

import math
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["ORDERS", "SERIES_ERROR", "History", "epsilon_of_rdp", "prv", "rdp", "representable"]

History = list[tuple[float, float, int]]
"""Opacus' own form: (noise multiplier, rate, steps)."""

# Outside these the libraries divide by zero or do not end.
_RATES = (1e-12, 1 - 1e-9)
_NOISES = (1e-3, 1e9)
ORDERS = [1 + x / 10 for x in range(1, 100)] + [float(x) for x in range(11, 64)]
ORDERS += [80.0, 100.0, 128.0, 192.0, 256.0, 384.0, 512.0]
"""Of the Rényi divergence: Opacus' own, 1.1 to 63, and some for small ε."""

# Opacus ends the series of a fractional moment, which is 1 or more, at a term of exp(-30).
SERIES_ERROR = 1e-12
_MOST_SERIES_NOISE = 100.0
# Above it Opacus' PRV takes as long to size its grid by such series.
_MOST_PRV_NOISE = 1000.0
# PRV finds a loss's mean to some 1e-9; so many steps add it up to less than its margin.
_MOST_PRV_STEPS = 2**20
# Points of PRV's grids: a gigabyte, and some ten seconds.
_MOST_POINTS = 2**24
# ε by RDP above which PRV's gain is of no use to anyone.
_MOST_PRV_EPSILON = 500.0


def representable(sigma: float, q: float) -> tuple[float, float]:
    """Return (σ, q) of the nearest mechanism that libraries can compute and that costs no less.

    Less noise costs more. So does a higher rate: by joint convexity the loss at rate q is at
    most q/q' times the loss at rate q' > q, in both directions.
    """
    low, high = _RATES
    return min(sigma, _NOISES[1]), 1.0 if q > high else max(q, low)


def prv(history: History, delta: float, by_rdp: float) -> float | None:
    """Return ε by privacy loss random variables; None where that is not a bound in good time.

    Gopi et al. (2021), arXiv:2106.02848. ``by_rdp``: ε by `rdp`, for the grid's width.
    """
    steps = sum(n for *_, n in history)
    if max(sigma for sigma, *_ in history) > _MOST_PRV_NOISE or not by_rdp <= _MOST_PRV_EPSILON:
        return None
    # The Fourier transforms of n steps are off by some n roundings, in units of δ. Opacus does
    # not count them, and reports less than is spent where δ is small: 24.25 for 25.09 at
    # n = 1e5, δ = 1e-12, σ = √n/3.
    rounding = 8 * steps * 2.0**-52
    if rounding > delta / 4 or steps > _MOST_PRV_STEPS:
        return None
    from opacus.accountants import PRVAccountant

    class Bounded(PRVAccountant):  # type: ignore[misc]  # Opacus is untyped
        def _get_domain(self, **given: object) -> object:
            domain = super()._get_domain(**given)
            if domain.size * len(self.history) > _MOST_POINTS:
                raise MemoryError
            return domain

    accountant = Bounded()
    accountant.history = history
    try:
        with warnings.catch_warnings():
            # An overflow is a mechanism that PRV cannot represent; log(1 - q) at q = 1 is not.
            warnings.simplefilter("error", RuntimeWarning)
            warnings.filterwarnings("ignore", "divide by zero", RuntimeWarning)
            # Of the RDP bound that sizes PRV's grid: a wider grid than needed, no smaller ε.
            warnings.simplefilter("ignore", UserWarning)
            epsilon = float(
                accountant.get_epsilon(
                    delta, eps_error=_margin(by_rdp), delta_error=max(delta / 1000, rounding)
                )
            )
    except (ValueError, RuntimeError, RuntimeWarning, ArithmeticError, MemoryError):
        return None
    return epsilon if math.isfinite(epsilon) and epsilon > 0 else None


def _margin(by_rdp: float) -> float:
    # What PRV adds to ε. Opacus' own 0.01 from 1 to 10; a hundredth below, a thousandth above,
    # where 0.01 would take ten times the grid. Its theory holds below 1.
    return max(0.001, by_rdp / 100) if by_rdp < 1 else max(0.01, by_rdp / 1000)


def rdp(history: History, delta: float) -> float:
    """Return ε by Rényi DP (Mironov et al. 2019, arXiv:1908.10530); infinite where it has none."""
    total = np.zeros(len(ORDERS))
    for sigma, q, n in history:
        total += n * np.array(_rdp_of_a_step(sigma, q))
    return epsilon_of_rdp(total, delta)


def epsilon_of_rdp(total: NDArray[np.float64], delta: float) -> float:
    """Return ε of a mechanism whose RDP at each of `ORDERS` is at most ``total``.

    Balle et al. (2020), arXiv:1905.09982, theorem 21. Infinite when no order bounds it.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    if not np.isfinite(total).any():
        return math.inf
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound holds, it is only less tight.
        warnings.simplefilter("ignore", UserWarning)
        epsilon, _ = get_privacy_spent(orders=ORDERS, rdp=total, delta=delta)
    # Below 0 where δ alone covers the loss.
    return max(0.0, float(epsilon))


@lru_cache(maxsize=4096)
def _rdp_of_a_step(sigma: float, q: float) -> tuple[float, ...]:
    """Return upper bounds of the RDP of one step, one for each of `ORDERS`; may be infinite."""
    if sigma < _NOISES[0]:
        return (math.inf,) * len(ORDERS)
    found: dict[float, float] = {}
    for order in sorted(ORDERS, reverse=True):
        # A fractional order's series may take a million terms where noise is large. RDP grows
        # with the order: the next whole one, found before, is a bound.
        known = found.get(float(math.ceil(order))) if sigma > _MOST_SERIES_NOISE else None
        found[order] = _rdp_at(order, sigma, q) if known is None else known
    return tuple(found[order] for order in ORDERS)


def _rdp_at(order: float, sigma: float, q: float) -> float:
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        value = float(compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=order))
    except (ArithmeticError, ValueError):
        return math.inf
    return math.inf if math.isnan(value) else value + SERIES_ERROR / (order - 1)
