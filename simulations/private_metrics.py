"""What a federation could measure privately, beside what only a simulation knows.

Shape suffixes: E examples, C cells of one output's block.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.accounting import GaussianEvent, calibrate_noise
from privacy.metrics import MetricsPlan
from server.evaluation import measured_quality
from server.metrics import Bounds, Estimate, OutputMetrics, federation_metrics
from silotune.config import from_mapping
from silotune.tasks.base import Examples
from silotune.tasks.metrics import auc, log_loss
from simulations.measured import FIGURES
from simulations.scenario import PrivateTraining

__all__ = ["noise_for", "records_of"]


def noise_for(epsilon: float, private: PrivateTraining) -> tuple[float, dict[str, float] | None]:
    """Return the noise multiplier of training, and the metrics plan that fits beside it into ε.

    Training takes `PrivateTraining.metrics_share` more noise than it would alone; the metrics
    of the last round take what that leaves. None: no metrics.
    """
    steps, rate = private.rounds * private.steps, private.sampling_rate
    alone = calibrate_noise(epsilon, delta=private.delta, sampling_rate=rate, steps=steps)
    if private.metrics_share == 0:
        return alone, None
    sigma = (1 + private.metrics_share) * alone
    training = GaussianEvent(sampling_rate=rate, noise_multiplier=sigma, steps=steps)
    noise = calibrate_noise(
        epsilon,
        delta=private.delta,
        sampling_rate=1.0,
        steps=1,
        other_events=[training],
        tolerance=1e-2,
    )
    return sigma, {
        "noise_multiplier": noise,
        "bins": private.metrics_bins,
        "negative_weight": private.metrics_negative_weight,
    }


def records_of(
    stored: Mapping[str, Any], silos: Sequence[tuple[Examples, NDArray[np.floating]]]
) -> Iterator[dict[str, float | str | int]]:
    """Yield one record's fields for each figure.

    Args:
        stored: what `server.run_store.RunStore.metrics` gives.
        silos: examples of each silo and the logits of its test rows, in their order, (E, 1).
    """
    plan = from_mapping(MetricsPlan, stored["plan"], where="stored metrics")
    (private,) = measured_quality(dict(stored))
    flat = [(e, logits_EK.reshape(-1)) for e, logits_EK in silos]
    total_C = torch.from_numpy(sum(_sums(e, logits, plan) for e, logits in flat))
    (clear,) = federation_metrics(total_C, plan, 0.0)
    exact = _exact(flat)
    for name in FIGURES:
        ours, theirs = _bounds(private, name), _bounds(clear, name)
        yield {
            "metric": name,
            "value": ours.middle.value,
            "standard_error": ours.middle.standard_error,
            "low": ours.low.value,
            "low_error": ours.low.standard_error,
            "high": ours.high.value,
            "high_error": ours.high.standard_error,
            "noiseless": theirs.middle.value,
            "noiseless_low": theirs.low.value,
            "noiseless_high": theirs.high.value,
            "exact": exact[name],
            "noise_multiplier": plan.noise_multiplier,
            "replies": stored["replies"],
        }


def _bounds(found: OutputMetrics, name: str) -> Bounds:
    figure = getattr(found, name)
    return (
        Bounds(low=figure, middle=figure, high=figure) if isinstance(figure, Estimate) else figure
    )


def _sums(
    examples: Examples, logit_E: NDArray[np.floating], plan: MetricsPlan
) -> NDArray[np.float64]:
    """Return one silo's sums without noise, (C,), written anew: not by what it is to judge."""
    rows = examples.rows(test=True)
    label_E, user_E = examples.label_EK[rows, 0] > 0.5, examples.user_E[rows]
    bin_E = np.minimum((_chance(logit_E) * plan.bins).astype(int), plan.bins - 1)
    total_C = np.zeros(2 * plan.bins)
    for user in np.unique(user_E):
        # A silo draws which examples of a user count. Where none has too many, all do.
        own = np.flatnonzero(user_E == user)[: plan.examples_per_user]
        vector_C = np.zeros_like(total_C)
        weight = np.where(label_E[own], 1.0, plan.negative_weight)
        np.add.at(vector_C, bin_E[own] + plan.bins * label_E[own], weight)
        total_C += vector_C / max(1.0, float(np.linalg.norm(vector_C)))
    return total_C


def _chance(logit_E: NDArray[np.floating]) -> NDArray[np.float64]:
    return torch.from_numpy(np.asarray(logit_E)).double().sigmoid().numpy()


def _exact(silos: Sequence[tuple[Examples, NDArray[np.floating]]]) -> dict[str, float]:
    label_E = np.concatenate([e.label_EK[e.test_E, 0] for e, _ in silos])
    logit_E = np.concatenate([logits for _, logits in silos])
    return {
        "auc": auc(label_E, logit_E),
        "accuracy": float(((logit_E >= 0) == (label_E > 0.5)).mean()),
        "log_loss": log_loss(label_E, logit_E),
        "positive_rate": float((label_E > 0.5).mean()),
    }
