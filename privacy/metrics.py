"""What a silo may say about quality: noised histograms and sums, bounded per user.

One release of the Gaussian mechanism over all test users (no sampling). The unit is one user,
neighbours add or remove one. No count of users or examples exists in it without noise.

The vector holds, for each output k of the head in turn, the blocks that the plan names:

    scores  (2, bins)  examples of label 0, then of label 1, by bin of the score
    errors  (2,)       Σ e/bound and Σ (1 - e/bound), e the absolute error up to the bound

A user adds at most `MetricsPlan.examples_per_user` examples. Each of its blocks is scaled to L2
norm sqrt(1/blocks) at most, so the user adds a vector of norm 1 at most. Sums are in this unit:
the examples of a user with many of them weigh less each.

Where positives are rare, negatives would fill a user's norm and leave the positives below the
noise. Examples of label 0 therefore enter as `MetricsPlan.negative_weight`, before the scaling;
the reader divides their sums by it, which takes their noise up and that of the positives down.

Shape suffixes: E examples, K outputs, U users, D numbers released.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.accounting import GaussianEvent
from privacy.discrete import discrete_noisy_sum, discrete_plan
from privacy.randomness import RandomSource
from silotune.config import config
from silotune.errors import ConfigError, DataError

__all__ = ["MetricsPlan", "noised_metrics"]

_Floats = NDArray[np.float64]

_SENSITIVITY = 1.0
"""L2 norm of what one user adds, at most."""

_GROUP = 2**20
"""Numbers of per-user vectors held at once."""

_MOST_NUMBERS = 2**17
"""Numbers of one release, at most: a plan comes from outside, and takes memory."""


@config
class MetricsPlan:
    """What one evaluation releases and with how much noise. All public."""

    noise_multiplier: float
    """Standard deviation of the noise on every number, over what one user adds."""
    scores: bool = True
    """Release the histogram of scores by label: AUC, accuracy, log loss, calibration."""
    errors: bool = False
    """Release the sum of absolute errors: MAE."""
    outputs: int = 1
    """Outputs of the head, K."""
    bins: int = 20
    """Bins of the score, equally wide over [0, 1]."""
    negative_weight: float = 1.0
    """What an example of label 0 counts in ``scores``; about the share of positives is best."""
    examples_per_user: int = 16
    """Test examples of one user that count, at most; chosen at random."""
    error_bound: float = 1.0
    """Absolute errors above it count as it. In label units."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not (self.scores or self.errors):
            raise ConfigError("scores and errors are both off; at least one must be on.")
        for field in ("outputs", "bins", "examples_per_user"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if not 0 < self.error_bound < np.inf:
            raise ConfigError(f"error_bound is {self.error_bound}; it must be > 0 and finite.")
        if not 1e-6 <= self.negative_weight <= 1:
            raise ConfigError(
                f"negative_weight is {self.negative_weight}; it must be between 1e-6 and 1."
            )
        if self.size > _MOST_NUMBERS:
            raise ConfigError(
                f"bins and outputs make {self.size} numbers; {_MOST_NUMBERS} at most."
            )
        # Also the noise multiplier's range.
        discrete_plan(self.size, clip_norm=_SENSITIVITY, noise_multiplier=self.noise_multiplier)

    @property
    def names(self) -> tuple[str, ...]:
        """Return what is released, as a policy names it."""
        return ("scores",) * self.scores + ("errors",) * self.errors

    @property
    def output_size(self) -> int:
        """Numbers of one output."""
        return 2 * self.bins * self.scores + 2 * self.errors

    @property
    def size(self) -> int:
        """Numbers released, D."""
        return self.outputs * self.output_size

    @property
    def event(self) -> GaussianEvent:
        """What one release costs. Charge it before calling `noised_metrics`."""
        return GaussianEvent(sampling_rate=1.0, noise_multiplier=self.noise_multiplier, steps=1)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each number of one release."""
        plan = discrete_plan(
            self.size, clip_norm=_SENSITIVITY, noise_multiplier=self.noise_multiplier
        )
        return plan.noise_std


def noised_metrics(
    score_EK: NDArray[np.floating],
    label_EK: NDArray[np.floating],
    user_E: NDArray[np.int64],
    plan: MetricsPlan,
    source: RandomSource,
) -> Tensor:
    """Return the release described in the module, float32, (D,).

    The caller has charged ``plan.event`` and hands over every test example of the silo. An
    example whose score or label is NaN in an output is left out of that output; a score outside
    [0, 1] counts as the nearest of them. Without any example the result is noise alone.

    Args:
        score_EK: predictions; chances, not logits, where the plan releases scores.
        label_EK: 0 or 1 where the plan releases scores (above 0.5 counts as 1), else any number.
        user_E: whose example it is; any integers.
        plan: what to release.
        source: of the noise and of the choice of examples; cryptographic in a real run.

    Raises:
        DataError: the arrays are not (E, K), (E, K), (E,). Nothing about their content is said.
    """
    shape = (len(user_E), plan.outputs)
    if user_E.ndim != 1 or score_EK.shape != shape or label_EK.shape != shape:
        raise DataError(
            f"metrics take scores and labels (examples, {plan.outputs}) and users (examples,)."
        )
    rows, user = _capped(user_E, plan.examples_per_user, source)
    score, label = score_EK[rows].astype(np.float64), label_EK[rows].astype(np.float64)
    noisy_D = discrete_noisy_sum(
        _user_vectors(score, label, user, plan),
        plan.size,
        clip_norm=_SENSITIVITY,
        noise_multiplier=plan.noise_multiplier,
        source=source,
    )
    return noisy_D.float()


def _capped(
    user_E: NDArray[np.int64], limit: int, source: RandomSource
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows, ``limit`` of each user at most, sorted by user; and users from 0 on."""
    _, user_E = np.unique(user_E, return_inverse=True)
    order = np.lexsort((source.uniform(len(user_E)), user_E))
    sizes_U = np.bincount(user_E)
    place_E = np.arange(len(order)) - np.repeat(np.cumsum(sizes_U) - sizes_U, sizes_U)
    rows = order[place_E < limit]
    return rows, user_E[rows]


def _user_vectors(
    score_EK: _Floats, label_EK: _Floats, user_E: NDArray[np.int64], plan: MetricsPlan
) -> Iterator[Tensor]:
    """Yield the vectors of groups of whole users, (U, D), each of norm 1 at most."""
    users = int(user_E[-1]) + 1 if user_E.size else 0
    group = max(1, _GROUP // plan.size)
    for start in range(0, users, group):
        count = min(group, users - start)
        a, b = np.searchsorted(user_E, (start, start + count))
        owner = user_E[a:b] - start
        blocks = []
        for score, label in zip(score_EK[a:b].T, label_EK[a:b].T, strict=True):
            if plan.scores:
                counts = _histogram(score, label, owner, count, plan.bins)
                blocks.append(counts * np.repeat([plan.negative_weight, 1.0], plan.bins))
            if plan.errors:
                blocks.append(_errors(score, label, owner, count, plan.error_bound))
        bound = _SENSITIVITY / np.sqrt(len(blocks))
        yield torch.from_numpy(np.concatenate([_bounded(x, bound) for x in blocks], axis=1))


def _histogram(
    score_E: _Floats, label_E: _Floats, owner_E: NDArray[np.int64], users: int, bins: int
) -> _Floats:
    """Return each user's counts by label and bin, (U, 2 bins)."""
    known = ~(np.isnan(score_E) | np.isnan(label_E))
    # Clipped before it is scaled: an infinity has no place among the integers.
    chance = np.clip(score_E[known], 0, 1)
    cell = np.minimum((chance * bins).astype(np.int64), bins - 1) + bins * (label_E[known] > 0.5)
    counts = np.bincount(owner_E[known] * 2 * bins + cell, minlength=users * 2 * bins)
    return counts.reshape(users, 2 * bins).astype(np.float64)


def _errors(
    score_E: _Floats, label_E: _Floats, owner_E: NDArray[np.int64], users: int, bound: float
) -> _Floats:
    """Return each user's sum of errors over the bound, and of what is left of it to 1: (U, 2)."""
    with np.errstate(invalid="ignore", over="ignore"):
        error_E = np.minimum(np.abs(score_E - label_E), bound) / bound
    # Infinity less infinity is no error that could be counted.
    known = ~np.isnan(error_E)
    error_E, owner_E = error_E[known], owner_E[known]
    sums = [np.bincount(owner_E, x, minlength=users) for x in (error_E, 1 - error_E)]
    return np.stack(sums, axis=1)


def _bounded(block: _Floats, bound: float) -> _Floats:
    norms = np.linalg.norm(block, axis=1, keepdims=True)
    scaled: _Floats = block * bound / np.maximum(norms, bound)
    return scaled
