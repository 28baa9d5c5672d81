"""Curves that an audit compares: error rates of an attack, and what (ε, δ)-DP allows them.

FPR: chance that the attacker names someone who is not in the data. TPR: chance that it names
someone who is. N guesses.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

__all__ = [
    "Normal",
    "Roc",
    "advantage_limit",
    "auc_limit",
    "gaussian_epsilon",
    "rate_above",
    "rate_below",
    "roc",
    "tpr_limit",
]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_LARGEST = 1e4
"""ε above it means: not private at all."""


def rate_below(hits: NDArray[np.int64], trials: int, chance: float) -> Floats:
    """Return lower limits of success rates, each wrong with at most ``chance``.

    One-sided, Clopper and Pearson (1934).
    """
    low: Floats = np.where(hits > 0, stats.beta.ppf(chance, hits, trials - hits + 1), 0.0)
    return low


def rate_above(hits: NDArray[np.int64], trials: int, chance: float) -> Floats:
    """Return upper limits of success rates, each wrong with at most ``chance``."""
    high: Floats = 1 - rate_below(trials - hits, trials, chance)
    return high


def tpr_limit(fpr: Floats, epsilon: float, delta: float) -> Floats:
    """Return the largest TPR that any attack on an (ε, δ)-DP release has at each FPR.

    Kairouz, Oh and Viswanath (2015), arXiv:1311.0776, theorem 2.1.
    """
    with np.errstate(over="ignore"):
        near = np.exp(epsilon) * fpr + delta
    far = 1 - math.exp(-epsilon) * (1 - delta - fpr)
    limit: Floats = np.clip(np.minimum(near, far), 0.0, 1.0)
    return limit


def auc_limit(epsilon: float, delta: float) -> float:
    """Return the largest area under the ROC curve that (ε, δ)-DP allows."""
    # From 0 in geometric steps: the curve's corner lies at FPR of about exp(-ε).
    fpr = np.concatenate([[0.0], np.geomspace(1e-12, 1.0, 20_001)])
    return float(np.trapezoid(tpr_limit(fpr, epsilon, delta), fpr))


def advantage_limit(epsilon: float, delta: float) -> float:
    """Return the largest TPR - FPR that (ε, δ)-DP allows."""
    return math.tanh(epsilon / 2) * (1 - delta) + delta


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """How an attack does at every threshold; from (0, 0) to (1, 1)."""

    fpr: Floats
    tpr: Floats
    auc: float

    def tpr_at(self, fpr: float) -> float:
        """Return the TPR of the lowest threshold whose FPR is at most ``fpr``."""
        return float(self.tpr[np.flatnonzero(self.fpr <= fpr)[-1]])

    @property
    def advantage(self) -> float:
        """Largest TPR - FPR. Chosen after the fact: above 0 by luck too."""
        return float((self.tpr - self.fpr).max())


def roc(scores: Floats, member: Flags) -> Roc:
    """Return the ROC curve of ``scores``, (N,), higher meaning member, against ``member``."""
    order = np.argsort(-scores, kind="stable")
    hit = member[order]
    # Equal scores fall together: one threshold cannot part them.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    tpr = np.concatenate([[0.0], np.cumsum(hit)[last] / max(1, hit.sum())])
    fpr = np.concatenate([[0.0], np.cumsum(~hit)[last] / max(1, (~hit).sum())])
    return Roc(fpr, tpr, float(np.trapezoid(tpr, fpr)))


@dataclass(frozen=True, slots=True)
class Normal:
    """A normal distribution of scores."""

    mean: float
    std: float


def gaussian_epsilon(out: Normal, inside: Normal, *, delta: float) -> float:
    """Return the smallest ε for which the two distributions of a score are (ε, δ)-close.

    Exact for normals, in both directions. With equal widths this is the analytic Gaussian
    mechanism (Balle and Wang 2018, arXiv:1805.06530); with others, Andrew et al. (2023),
    arXiv:2302.03098, section 3. Infinite when above 10,000.
    """

    def excess(epsilon: float) -> float:
        return max(_divergence(inside, out, epsilon), _divergence(out, inside, epsilon)) - delta

    if excess(0.0) <= 0:
        return 0.0
    if excess(_LARGEST) > 0:
        return math.inf
    return float(optimize.brentq(excess, 0.0, _LARGEST, xtol=1e-9))


def _divergence(p: Normal, q: Normal, epsilon: float) -> float:
    """Return P(S) - exp(ε) Q(S) of the set S where p > exp(ε) q: the hockey-stick divergence."""
    # log p/q = a x² + b x + c, x in units of q's width around its mean.
    mean, std = (p.mean - q.mean) / q.std, p.std / q.std
    a = 0.5 - 0.5 / std**2
    b = mean / std**2
    c = -0.5 * (mean / std) ** 2 - math.log(std) - epsilon
    pieces: list[tuple[float, float]] = []
    if abs(a) < 1e-9:
        if b == 0:
            return max(0.0, -math.expm1(epsilon))
        pieces = [(-c / b, math.inf) if b > 0 else (-math.inf, -c / b)]
    elif (square := b * b - 4 * a * c) > 0:
        root = math.sqrt(square)
        low, high = sorted(((-b - root) / (2 * a), (-b + root) / (2 * a)))
        pieces = [(-math.inf, low), (high, math.inf)] if a > 0 else [(low, high)]
    elif a > 0:
        pieces = [(-math.inf, math.inf)]
    total = 0.0
    for start, end in pieces:
        of_p = _log_mass((start - mean) / std, (end - mean) / std)
        of_q = epsilon + _log_mass(start, end)
        total += math.exp(of_p) - (math.exp(of_q) if of_q < 0 else math.exp(min(of_q, of_p)))
    return total


def _log_mass(start: float, end: float) -> float:
    """Return log of the standard normal's mass between two points, also far out."""
    if start > 0:
        start, end = -end, -start
    high, low = float(special.log_ndtr(end)), float(special.log_ndtr(start))
    if low >= high:
        return -math.inf
    return high + math.log1p(-math.exp(low - high))
