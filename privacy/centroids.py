"""Where customers gather, as a silo may say it: noised sums and counts of clusters.

Lloyd's algorithm with noise in every step (SuLQ k-means, Blum et al. 2005; Su et al. 2016,
arXiv:1504.05998). It begins with public centroids. In a step every user is assigned to the
nearest centroid, and the sums and counts of all clusters are noised together; the next centroids
are computed from the noised numbers alone. The last step's sums and counts are released; the
steps before it are charged alike, since the last one depends on them.

A user adds one vector: nothing but in its own cluster, and there the point, clipped to norm 1,
and a count of 1, weighted so that the norm of both together is 1 at most. That is the sensitivity
of a step; the unit is one user, neighbours add or remove one. No sampling. Which cluster a user
is in shows in no other way, and no number of users exists in it without noise.

Shape suffixes: E points, U users, K clusters, P axes, D = K (P + 1) numbers released.
"""

import math
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

__all__ = ["MECHANISM", "CentroidPlan", "noised_centroids", "read_centroids"]

_Floats = NDArray[np.float64]

MECHANISM = "discrete-gaussian"
"""How the noise is drawn, always; see `privacy.discrete`."""

_SENSITIVITY = 1.0
"""L2 norm of what one user adds to a step, at most."""
_GROUP = 2**20
"""Numbers of per-user vectors held at once."""
_MOST_NUMBERS = 2**17
_TELLING = 3.0
"""Standard deviations of its noise that a count must reach before its sum is divided by it."""


@config
class CentroidPlan:
    """What one release of centroids holds and with how much noise. All public."""

    noise_multiplier: float
    """Standard deviation of the noise on every number of a step, over what one user adds."""
    clusters: int = 8
    axes: int = 8
    """Coordinates of a point; more of them share the same norm and are noisier."""
    steps: int = 1
    """Steps of Lloyd's algorithm; each is charged."""
    count_share: float = 0.25
    """Share of a user's squared norm that the count has; the rest is the point's."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        for field in ("clusters", "axes", "steps"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if not 0 < self.count_share < 1:
            raise ConfigError(f"count_share is {self.count_share}; it must be between 0 and 1.")
        if self.size > _MOST_NUMBERS:
            raise ConfigError(
                f"clusters and axes make {self.size} numbers; {_MOST_NUMBERS} at most."
            )
        # Also the noise multiplier's range.
        discrete_plan(self.size, clip_norm=_SENSITIVITY, noise_multiplier=self.noise_multiplier)

    @property
    def names(self) -> tuple[str, ...]:
        """Return what is released, as a policy names it."""
        return ("centroids",)

    @property
    def size(self) -> int:
        """Numbers released, D."""
        return self.clusters * (self.axes + 1)

    @property
    def event(self) -> GaussianEvent:
        """What one release costs. Charge it before calling `noised_centroids`."""
        return GaussianEvent(
            sampling_rate=1.0, noise_multiplier=self.noise_multiplier, steps=self.steps
        )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each number of one release."""
        plan = discrete_plan(
            self.size, clip_norm=_SENSITIVITY, noise_multiplier=self.noise_multiplier
        )
        return plan.noise_std


def noised_centroids(
    point_EP: _Floats,
    user_E: NDArray[np.int64],
    initial_KP: _Floats,
    plan: CentroidPlan,
    source: RandomSource,
) -> Tensor:
    """Return the release described in the module, float32, (D,): K sums, each with its count.

    The caller has charged ``plan.event``. Several points of a user count as their mean; a user
    with one that is not finite adds nothing. Without any user the result is noise alone.

    Args:
        point_EP: of all users; what is further than 1 from the origin is clipped to it. A row
            must depend on its own user alone.
        user_E: whose point it is; any integers.
        initial_KP: public, finite.
        plan: what to release.
        source: of the noise; cryptographic in a real run.

    Raises:
        DataError: the arrays have other shapes. Nothing about their content is said.
    """
    if user_E.ndim != 1 or point_EP.shape != (len(user_E), plan.axes):
        raise DataError(f"centroids take points (rows, {plan.axes}) and users (rows,).")
    if initial_KP.shape != (plan.clusters, plan.axes) or not np.isfinite(initial_KP).all():
        raise DataError(f"initial centroids must be finite, ({plan.clusters}, {plan.axes}).")
    point_UP = _clipped(_one_each(point_EP.astype(np.float64), user_E))
    centroid_KP, noisy_D = initial_KP, torch.zeros(plan.size, dtype=torch.float64)
    for _ in range(plan.steps):
        noisy_D = discrete_noisy_sum(
            _user_vectors(point_UP, centroid_KP, plan),
            plan.size,
            clip_norm=_SENSITIVITY,
            noise_multiplier=plan.noise_multiplier,
            source=source,
        )
        centroid_KP, _ = read_centroids(noisy_D, plan, centroid_KP)
    return noisy_D.float()


def read_centroids(
    noisy_D: Tensor, plan: CentroidPlan, before_KP: _Floats
) -> tuple[_Floats, _Floats]:
    """Return centroids (K, P), of norm 1 at most, and noised counts (K,) of a release.

    A cluster whose count does not stand out of its noise keeps its centroid of ``before_KP``:
    little divided by little is no place. Reads released numbers only, and costs nothing.
    """
    block_KB = noisy_D.double().numpy().reshape(plan.clusters, plan.axes + 1)
    count_K = block_KB[:, -1] / math.sqrt(plan.count_share)
    sum_KP = block_KB[:, :-1] / math.sqrt(1 - plan.count_share)
    telling_K = count_K >= _TELLING * plan.noise_std / math.sqrt(plan.count_share)
    mean_KP = _clipped(sum_KP / np.where(telling_K, count_K, 1.0)[:, None])
    return np.where(telling_K[:, None], mean_KP, before_KP), count_K


def _one_each(point_EP: _Floats, user_E: NDArray[np.int64]) -> _Floats:
    """Return one point for each user, the mean of its own; a row of NaN where one is not finite."""
    # Infinities of both signs have no mean; what is not finite is NaN before it meets another.
    point_EP = np.where(np.isfinite(point_EP).all(1, keepdims=True), point_EP, np.nan)
    _, user_E, count_U = np.unique(user_E, return_inverse=True, return_counts=True)
    sum_UP = np.zeros((len(count_U), point_EP.shape[1]))
    np.add.at(sum_UP, user_E, point_EP / count_U[user_E][:, None])
    return sum_UP


def _clipped(point_UP: _Floats) -> _Floats:
    """Return the points, each of norm 1 at most up to rounding."""
    # By the largest first: the square of a large number is infinite.
    largest_U1 = np.abs(point_UP).max(axis=1, initial=1.0, keepdims=True)
    scaled_UP = point_UP / largest_U1
    norm_U1 = np.linalg.norm(scaled_UP, axis=1, keepdims=True)
    found: _Floats = scaled_UP / np.maximum(norm_U1, 1 / largest_U1)
    return found


def _user_vectors(point_UP: _Floats, centroid_KP: _Floats, plan: CentroidPlan) -> Iterator[Tensor]:
    """Yield the vectors of groups of users, (U, D), each of norm 1 at most up to rounding.

    The mechanism enforces the bound itself, on integers.
    """
    group = max(1, _GROUP // plan.size)
    for start in range(0, len(point_UP), group):
        part_UP = point_UP[start : start + group]
        away_UK = ((part_UP[:, None] - centroid_KP) ** 2).sum(2)
        nearest_U = away_UK.argmin(1)
        vector_UKB = np.zeros((len(part_UP), plan.clusters, plan.axes + 1))
        rows = np.arange(len(part_UP))
        vector_UKB[rows, nearest_U, :-1] = math.sqrt(1 - plan.count_share) * part_UP
        vector_UKB[rows, nearest_U, -1] = math.sqrt(plan.count_share)
        yield torch.from_numpy(vector_UKB.reshape(len(part_UP), plan.size))
