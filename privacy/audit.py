"""Empirical lower bounds on ε from what an adversary saw: evidence against a claim, no proof of it.

Each estimator takes the adversary's score for every canary user and whether that user took part.
Unit: one user. Neighbours: add or remove one user. The adversary chose the canaries, knows all
other users, and sees whatever its scores are made from. A bound is wrong (above the true ε) with
a chance of at most 1 - confidence.

Shape suffixes: M canaries of one run, N independent trials.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from privacy.audit_curves import Normal, gaussian_epsilon, rate_above, rate_below
from silotune.errors import PrivacyError

__all__ = [
    "CanaryEstimate",
    "OneRunBound",
    "TrialBound",
    "gaussian_canary_epsilon",
    "one_run_epsilon",
    "one_run_p_value",
    "trial_epsilon",
]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_SHARES = tuple((s, s) for s in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)) + tuple(
    (s, 0.0) for s in (1 / 16, 1 / 8, 1 / 4, 0.45)
)
"""Shares of the canaries guessed to be in and out; the adversary abstains from the others. With
Poisson sampling a canary that took part may never have been drawn: only 'in' is then sure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunBound:
    """What one run with many canaries shows."""

    epsilon: float
    """The release is not (ε', δ)-DP for any ε' below, at the confidence asked for."""
    guesses: int
    correct: int
    ceiling: float
    """What the bound would be had every canary been guessed right: it cannot show more."""


def one_run_p_value(
    canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float
) -> float:
    """Return the largest chance of so many correct guesses if the release were (ε, δ)-DP.

    Each canary takes part with chance 1/2, independently. Steinke, Nasr and Jagielski (2023),
    arXiv:2305.08846, theorem 5.2 and appendix D.
    """
    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, accuracy))
    if delta == 0:
        return tail
    steps = np.arange(1, correct + 1)
    # P[v > Binomial >= v - i] over i, largest i by i: how far δ can lift the tail.
    below = np.cumsum(stats.binom.pmf(correct - steps, guesses, accuracy))
    lift = float((below / steps).max(initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * lift)


def one_run_epsilon(
    scores_M: Floats, included_M: Flags, *, delta: float, confidence: float = 0.95
) -> OneRunBound:
    """Bound ε from below by one run (Steinke et al. 2023, arXiv:2305.08846).

    The adversary guesses 'took part' for the highest scores and 'did not' for the lowest.
    Several numbers of guesses are tried; the confidence is shared among them (Bonferroni), so
    that the best may be reported.

    Args:
        scores_M: higher means took part.
        included_M: the truth; each drawn with chance 1/2, independently, before the run.
        delta: of the claim.
        confidence: chance, at least, that the bound holds.

    Raises:
        PrivacyError: fewer than 2 canaries, or a score that is not a number.
    """
    _refuse_unusable(scores_M, included_M, least=2)
    count = len(scores_M)
    order = np.argsort(-scores_M, kind="stable")
    chance = (1 - confidence) / len(_SHARES)
    best = OneRunBound(epsilon=0.0, guesses=0, correct=0, ceiling=0.0)
    ceiling = 0.0
    for inside, outside in _SHARES:
        high, low = max(1, int(inside * count)), int(outside * count)
        guesses = high + low
        correct = int(included_M[order[:high]].sum() + (~included_M[order[count - low :]]).sum())
        ceiling = max(ceiling, _largest_refuted(count, guesses, guesses, delta, chance))
        p = one_run_p_value(count, guesses, correct, epsilon=best.epsilon, delta=delta)
        if p < chance:
            epsilon = _largest_refuted(count, guesses, correct, delta, chance)
            best = OneRunBound(epsilon=epsilon, guesses=guesses, correct=correct, ceiling=0.0)
    return replace(best, ceiling=ceiling)


@functools.lru_cache(maxsize=1024)
def _largest_refuted(canaries: int, guesses: int, correct: int, delta: float, p: float) -> float:
    def refuted(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon=epsilon, delta=delta) < p

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialBound:
    """What many independent runs, each with or without one canary, show."""

    epsilon: float
    """Lower bound, if the trade-off of errors is that of a Gaussian mechanism."""
    epsilon_any: float
    """Lower bound for any mechanism whatever; never above log(number of trials)."""
    mu: float
    """Lower bound on sensitivity over the noise's standard deviation."""
    tpr: float
    fpr: float

    @property
    def noise_multiplier(self) -> float:
        """Upper bound on the noise's standard deviation over the sensitivity."""
        return 1 / self.mu if self.mu > 0 else math.inf


def trial_epsilon(
    scores_N: Floats, included_N: Flags, *, delta: float, confidence: float = 0.95
) -> TrialBound:
    """Bound ε of a Gaussian mechanism from below by independent trials.

    The first quarter of the trials chooses threshold and direction, the others count errors.
    Both error rates get Clopper-Pearson limits that hold together at ``confidence``, and
    μ ≥ Φ⁻¹(TPR) - Φ⁻¹(FPR) gives ε at δ (Nasr et al. 2023, arXiv:2302.07956, section 4).

    Args:
        scores_N: one score per trial, any monotone statistic.
        included_N: whether the canary took part.
        delta: of the claim.
        confidence: chance, at least, that the bounds hold.

    Raises:
        PrivacyError: fewer than 8 trials, or a score that is not a number.
    """
    _refuse_unusable(scores_N, included_N, least=8)
    pilot = len(scores_N) // 4
    chance = (1 - confidence) / 2
    first, flags = scores_N[:pilot], included_N[:pilot]
    edges = np.unique(np.quantile(first, np.linspace(0, 1, 33)))
    # Between the values: a threshold on a value would hang on its last bit.
    cuts = np.concatenate([(edges[:-1] + edges[1:]) / 2, edges[:1]])
    found = [
        (float(_mu(*_limits(sign * first, flags, sign * cut, chance))), sign, cut)
        for sign in (1.0, -1.0)
        for cut in cuts
    ]
    _, sign, cut = max(found)
    scores, member = sign * scores_N[pilot:], included_N[pilot:]
    tpr, fpr = _limits(scores, member, sign * cut, chance)
    mu = max(0.0, _mu(tpr, fpr))
    # The other direction of the definition: 'not in the data' is the rarer event.
    ratios = [(tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr)]
    return TrialBound(
        epsilon=gaussian_epsilon(Normal(0.0, 1.0), Normal(mu, 1.0), delta=delta),
        epsilon_any=max(0.0, *(math.log(r) for r in ratios if r > 0)),
        mu=mu,
        tpr=tpr,
        fpr=fpr,
    )


def _limits(scores: Floats, member: Flags, cut: float, chance: float) -> tuple[float, float]:
    """Return a lower limit of the TPR and an upper limit of the FPR."""
    above = scores > cut
    inside, outside = int(member.sum()), int((~member).sum())
    if not inside or not outside:
        return 0.0, 1.0
    hits, alarms = np.array(int((above & member).sum())), np.array(int((above & ~member).sum()))
    tpr, fpr = rate_below(hits, inside, chance), rate_above(alarms, outside, chance)
    return float(tpr), float(fpr)


def _mu(tpr: float, fpr: float) -> float:
    if tpr <= 0 or fpr >= 1:
        return -math.inf
    return float(special.ndtri(tpr) - special.ndtri(fpr))


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryEstimate:
    """Where the scores of canaries lie; an estimate of ε, with no confidence attached."""

    epsilon: float
    low: float
    """2.5th percentile over resampled canaries."""
    high: float
    """97.5th percentile."""
    inside: Normal
    out: Normal


def gaussian_canary_epsilon(
    scores_M: Floats,
    included_M: Flags,
    *,
    delta: float,
    generator: np.random.Generator,
    resamples: int = 200,
) -> CanaryEstimate:
    """Estimate ε as that of telling two fitted normals apart (Andrew et al. 2023).

    arXiv:2302.03098, algorithm 1 with the canaries that took no part in place of the analytic
    null. A measurement, not a bound: it takes the scores for normal and the canaries for the
    worst case.

    Raises:
        PrivacyError: fewer than 4 canaries on either side, or a score that is not a number.
    """
    _refuse_unusable(scores_M, included_M, least=8)
    inside, out = scores_M[included_M], scores_M[~included_M]
    if min(len(inside), len(out)) < 4:
        raise PrivacyError("fewer than 4 canaries took part, or did not; use more canaries.")

    def estimate(a: Floats, b: Floats) -> float:
        return gaussian_epsilon(_fitted(b), _fitted(a), delta=delta)

    drawn = [
        estimate(generator.choice(inside, len(inside)), generator.choice(out, len(out)))
        for _ in range(resamples)
    ]
    # Read off, not interpolated: some may be infinite.
    drawn.sort()
    low, high = drawn[int(0.025 * resamples)], drawn[int(0.975 * (resamples - 1))]
    return CanaryEstimate(
        epsilon=estimate(inside, out),
        low=low,
        high=high,
        inside=_fitted(inside),
        out=_fitted(out),
    )


def _fitted(scores: Floats) -> Normal:
    mean, std = float(scores.mean()), float(scores.std(ddof=1))
    # No spread at all: as near to none as the numbers can say.
    return Normal(mean, max(std, 1e-9 * max(1.0, abs(mean))))


def _refuse_unusable(scores: Floats, included: Flags, *, least: int) -> None:
    if len(scores) < least or scores.shape != included.shape:
        raise PrivacyError(f"{len(scores)} scores; an audit needs at least {least}, one per flag.")
    if not np.isfinite(scores).all():
        raise PrivacyError("a score is not a finite number; the audited training diverged.")
