"""Figures as people read them: in sentences, tables and plots."""

import math

from simulations.aggregate import Spread

__all__ = ["difference", "figure", "share", "spread_of"]


def difference(value: float, digits: int = 3) -> str:
    """Return ``value`` with its sign, a minus as wide as a plus.

    >>> difference(-0.0123)
    '−0.012'
    """
    if math.isnan(value):
        return "NaN"
    # Rounded first, so that -0.0001 is no '−0.000'.
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def share(value: float) -> str:
    """Return a share as a percentage."""
    return "NaN" if math.isnan(value) else f"{value:.0%}"


def figure(spread: Spread | None, digits: int = 3, *, std: bool = True) -> str:
    """Return mean, ± standard deviation over seeds; a dash for what was not measured."""
    if spread is None:
        return "—"
    if math.isnan(spread.mean):
        return "NaN"
    after = f" ± {spread.std:.{digits}f}" if std and spread.std is not None else ""
    return f"{spread.mean:.{digits}f}{after}"


def spread_of(spread: Spread, *, shares: bool = False) -> str:
    """Return smallest to largest seed in brackets; nothing for one seed."""
    if len(spread.values) < 2 or math.isnan(spread.mean):
        return ""
    form = share if shares else difference
    low, high = form(spread.low), form(spread.high)
    return "" if low == high else f"[{low} to {high}]"
