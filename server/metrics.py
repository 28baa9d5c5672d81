"""Quality over the federation, from the silos' noised histograms and sums.

Every figure comes with the standard error that the noise implies (delta method); the chance of
the choice of test users is not part of it. A figure whose denominator cannot be told from noise
is NaN with an infinite error. Noised counts may be negative and enter as they are: cutting them
at 0 would add a positive sum of nothing but noise over the empty bins.

What falls into one bin cannot be ordered. Where that matters, a figure has bounds: what it would
be at the worst and at the best order within the bins.

Shape suffixes: B bins, C cells of one output's block, L labels, D numbers released.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.metrics import MetricsPlan
from silotune.errors import ConfigError, MessageError

__all__ = [
    "Bounds",
    "CalibrationBin",
    "Estimate",
    "MetricsSum",
    "OutputMetrics",
    "federation_metrics",
]

_Floats = NDArray[np.float64]

_TOLD_FROM_NOISE = 5.0
"""A denominator must be this many of its standard deviations above 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure and the standard deviation that the noise gives it."""

    value: float
    """NaN where the noise leaves nothing to tell."""
    standard_error: float
    """Infinite where the noise leaves nothing to tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """A figure that the bins leave open: the least, the even and the most it can be."""

    low: Estimate
    middle: Estimate
    high: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """What share of the examples with a score within [start, end) was positive."""

    start: float
    end: float
    rate: Estimate
    share: Estimate
    """Of all examples that lie in this bin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputMetrics:
    """Quality of one output of the head. None: the plan did not release it."""

    auc: Bounds | None = None
    accuracy: Bounds | None = None
    """Of calling positive what scores 0.5 or more."""
    log_loss: Bounds | None = None
    """In nats, of scores kept ``score_floor`` away from 0 and 1."""
    positive_rate: Estimate | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    mae: Estimate | None = None
    """Mean absolute error up to the plan's bound, in label units."""


class MetricsSum:
    """Sum of the silos' releases, folded in as they come.

    One silo adds what it likes: a liar is bounded by nothing but finiteness here.
    """

    def __init__(self, plan: MetricsPlan) -> None:
        self._plan = plan
        self._sum_D = torch.zeros(plan.size, dtype=torch.float64)
        self.count = 0

    def add(self, release_D: Tensor) -> None:
        """Fold in one silo's release, (D,). Raises MessageError on anything else."""
        if release_D.shape != self._sum_D.shape:
            raise MessageError(f"metrics have shape {tuple(release_D.shape)}.")
        if release_D.dtype != torch.float32 or not torch.isfinite(release_D).all():
            raise MessageError("metrics hold something that is not a finite float32 number.")
        self._sum_D += release_D.double()
        self.count += 1

    def sum(self) -> Tensor:
        """Return the sum so far, (D,) float64."""
        return self._sum_D.clone()

    def metrics(self, *, score_floor: float = 1e-3) -> tuple[OutputMetrics, ...]:
        """Return the quality of each output, the noise of all silos counted."""
        noise_std = math.sqrt(self.count) * self._plan.noise_std
        return federation_metrics(self._sum_D, self._plan, noise_std, score_floor=score_floor)


def federation_metrics(
    sum_D: Tensor, plan: MetricsPlan, noise_std: float, *, score_floor: float = 1e-3
) -> tuple[OutputMetrics, ...]:
    """Return the quality of each output, from the sum over silos.

    Args:
        sum_D: noised sums as `privacy.metrics` describes them, (D,).
        plan: what was released.
        noise_std: standard deviation of the noise on each number of ``sum_D``.
        score_floor: log loss takes scores as at least this far from 0 and 1.

    Raises:
        MessageError: ``sum_D`` is not (D,).
        ConfigError: ``score_floor`` is not above 0 and below 0.5.
    """
    if not 0 < score_floor < 0.5:
        raise ConfigError(f"score_floor is {score_floor}; it must be above 0 and below 0.5.")
    if sum_D.shape != (plan.size,):
        raise MessageError(f"metrics have shape {tuple(sum_D.shape)}.")
    outputs = sum_D.double().numpy().reshape(plan.outputs, plan.output_size)
    return tuple(_output(row, plan, noise_std, score_floor) for row in outputs)


def _output(row: _Floats, plan: MetricsPlan, noise: float, floor: float) -> OutputMetrics:
    mae = None
    if plan.errors:
        mae = _weighted_mean(row[-2:], np.array([plan.error_bound, 0.0]), np.full(2, noise))
    if not plan.scores:
        return OutputMetrics(mae=mae)
    # Negatives came in with their weight. Without it, what is left on them is larger noise.
    unit_C = np.repeat([1 / plan.negative_weight, 1.0], plan.bins)
    counts, noise_C = row[: 2 * plan.bins] * unit_C, noise * unit_C
    edges = np.linspace(0, 1, plan.bins + 1)
    return OutputMetrics(
        auc=_auc(counts, noise_C),
        accuracy=_accuracy(counts, edges, noise_C),
        log_loss=_log_loss(counts, edges, noise_C, floor),
        positive_rate=_weighted_mean(counts, np.repeat([0.0, 1.0], plan.bins), noise_C),
        calibration=tuple(_calibration(counts, edges, noise_C)),
        mae=mae,
    )


def _weighted_mean(counts_C: _Floats, weight_C: _Floats, noise_C: _Floats) -> Estimate:
    """Return Σ weight × count / Σ count and its error, by the delta method."""
    total = counts_C.sum()
    if not total > _TOLD_FROM_NOISE * float(np.linalg.norm(noise_C)):
        return Estimate(value=math.nan, standard_error=math.inf)
    mean = float(weight_C @ counts_C / total)
    error = float(np.linalg.norm(noise_C * (weight_C - mean))) / total
    # No mean lies outside its weights: moving it in can only bring it nearer.
    value = min(max(mean, float(weight_C.min())), float(weight_C.max()))
    return Estimate(value=value, standard_error=float(error))


def _accuracy(counts_C: _Floats, edges: _Floats, noise_C: _Floats) -> Bounds:
    # Chance with which an example of the bin is called positive; open if 0.5 lies inside it.
    sure_B = (edges[:-1] >= 0.5).astype(np.float64)
    possible_B = (edges[1:] > 0.5).astype(np.float64)
    even_B = (sure_B + possible_B) / 2
    right = (
        np.concatenate([1 - possible_B, sure_B]),
        np.concatenate([1 - even_B, even_B]),
        np.concatenate([1 - sure_B, possible_B]),
    )
    low, middle, high = (_weighted_mean(counts_C, w, noise_C) for w in right)
    return Bounds(low=low, middle=middle, high=high)


def _log_loss(counts_C: _Floats, edges: _Floats, noise_C: _Floats, floor: float) -> Bounds:
    kept = np.clip(edges, floor, 1 - floor)
    # A negative's loss grows with the score, a positive's falls.
    least = np.concatenate([-np.log1p(-kept[:-1]), -np.log(kept[1:])])
    most = np.concatenate([-np.log1p(-kept[1:]), -np.log(kept[:-1])])
    low, middle, high = (
        _weighted_mean(counts_C, w, noise_C) for w in (least, (least + most) / 2, most)
    )
    return Bounds(low=low, middle=middle, high=high)


def _calibration(counts_C: _Floats, edges: _Floats, noise_C: _Floats) -> list[CalibrationBin]:
    bins = edges.size - 1
    found = []
    for b in range(bins):
        own = np.tile(np.arange(bins) == b, 2)
        found.append(
            CalibrationBin(
                start=float(edges[b]),
                end=float(edges[b + 1]),
                rate=_weighted_mean(counts_C[own], np.array([0.0, 1.0]), noise_C[own]),
                share=_weighted_mean(counts_C, 1.0 * own, noise_C),
            )
        )
    return found


def _auc(counts_C: _Floats, noise_C: _Floats) -> Bounds:
    low, middle, high = (_ranked(counts_C, noise_C, tie) for tie in (0.0, 0.5, 1.0))
    return Bounds(low=low, middle=middle, high=high)


def _ranked(counts_C: _Floats, noise_C: _Floats, tie: float) -> Estimate:
    """Return the chance that a positive lies above a negative; ``tie``: within one bin."""
    (negative_B, positive_B), noise_LB = counts_C.reshape(2, -1), noise_C.reshape(2, -1)
    negatives, positives = negative_B.sum(), positive_B.sum()
    least = _TOLD_FROM_NOISE * np.linalg.norm(noise_LB, axis=1)
    if not (negatives > least[0] and positives > least[1]):
        return Estimate(value=math.nan, standard_error=math.inf)
    # Noise of different cells is independent, so the products below have the right mean.
    below_B = (np.cumsum(negative_B) - negative_B + tie * negative_B) / negatives
    above_B = (positives - np.cumsum(positive_B) + tie * positive_B) / positives
    auc = float(positive_B @ below_B / positives)
    slope_C = np.concatenate([(above_B - auc) / negatives, (below_B - auc) / positives])
    error = float(np.linalg.norm(noise_C * slope_C))
    return Estimate(value=min(max(auc, 0.0), 1.0), standard_error=error)
