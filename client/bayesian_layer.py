"""A Bayesian last layer: not only what a score is, but how sure it is. Local to the silo.

The scoring model stays as it is. Above its frozen features, pooled embeddings or the numeric
features of a task, lies a logistic layer whose weights have a normal distribution: Laplace's
approximation around the most probable weights (MacKay 1992), updated as labels come in, the
posterior of one batch being the prior of the next (Chapelle and Li 2011). The model's own logit
comes in as an offset: where nothing was learnt here, the model speaks.

What the layer learns is about the silo's own users and has no noise in it: it never leaves.

Shape suffixes: E examples, F features, S draws.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from silotune.errors import DataError

__all__ = ["BayesianLayer"]

_Floats = NDArray[np.float64]
_STEPS = 100


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BayesianLayer:
    """Weights with mean ``mean_F`` and covariance the inverse of ``precision_FF``."""

    mean_F: _Floats
    precision_FF: _Floats
    _factor: tuple[_Floats, bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Factorise the precision. Raises DataError if it is not positive definite."""
        try:
            factor = cho_factor(self.precision_FF, lower=True)
        except (np.linalg.LinAlgError, ValueError) as error:
            raise DataError(
                f"precision_FF must be finite and positive definite ({error})."
            ) from None
        object.__setattr__(self, "_factor", factor)

    @classmethod
    def prior(cls, features: int, *, scale: float = 1.0) -> "BayesianLayer":
        """Return independent weights around 0 with standard deviation ``scale``, in logits."""
        return cls(mean_F=np.zeros(features), precision_FF=np.eye(features) / scale**2)

    def updated(
        self, features_EF: ArrayLike, label_E: ArrayLike, offset_E: ArrayLike = 0.0
    ) -> "BayesianLayer":
        """Return what is known after these labels, with ``self`` as the prior.

        Args:
            features_EF: frozen features.
            label_E: 0 or 1.
            offset_E: logits of the scoring model.

        Raises:
            DataError: shapes that do not fit, a label that is not 0 or 1, a number not finite.
        """
        features, offset_E = self._checked(features_EF, offset_E)
        labels = np.asarray(label_E, np.float64)
        if labels.shape != (len(features),) or not np.isin(labels, (0, 1)).all():
            raise DataError(f"label_E must hold 0 or 1 for each of {len(features)} examples.")

        def cost(weight_F: _Floats) -> float:
            logit_E = offset_E + features @ weight_F
            away_F = weight_F - self.mean_F
            loss = np.logaddexp(0.0, np.where(labels > 0, -logit_E, logit_E)).sum()
            return float(loss + away_F @ self.precision_FF @ away_F / 2)

        weight_F, now = self.mean_F, cost(self.mean_F)
        for _ in range(_STEPS):
            chance_E = _sigmoid(offset_E + features @ weight_F)
            slope_F = features.T @ (chance_E - labels)
            slope_F += self.precision_FF @ (weight_F - self.mean_F)
            step_F = cho_solve(cho_factor(self._curvature(features, chance_E)), slope_F)
            # Far from the optimum a whole Newton step may climb: halve it until it does not.
            length = 1.0
            while (then := cost(weight_F - length * step_F)) > now and length > 1e-8:
                length /= 2
            if now - then <= 1e-12 * (1 + abs(now)):
                break
            weight_F, now = weight_F - length * step_F, then
        chance_E = _sigmoid(offset_E + features @ weight_F)
        return BayesianLayer(mean_F=weight_F, precision_FF=self._curvature(features, chance_E))

    def moments(self, features_EF: ArrayLike, offset_E: ArrayLike = 0.0) -> tuple[_Floats, _Floats]:
        """Return mean and variance of the logits, (E,) both."""
        features, offset_E = self._checked(features_EF, offset_E)
        spread_FE = solve_triangular(self._factor[0], features.T, lower=True)
        return offset_E + features @ self.mean_F, (spread_FE**2).sum(0)

    def chance(self, features_EF: ArrayLike, offset_E: ArrayLike = 0.0) -> _Floats:
        """Return the chance of a 1 over all weights, (E,): nearer 1/2 where less is known.

        MacKay's approximation of the logistic-normal integral.
        """
        mean_E, variance_E = self.moments(features_EF, offset_E)
        return _sigmoid(mean_E / np.sqrt(1 + np.pi * variance_E / 8))

    def covariance(self) -> _Floats:
        """Return the weights' covariance, (F, F)."""
        found: _Floats = cho_solve(self._factor, np.eye(len(self.mean_F)))
        return found

    def draws(self, count: int, generator: np.random.Generator) -> _Floats:
        """Return ``count`` draws of the weights, (S, F)."""
        noise_FS = generator.standard_normal((len(self.mean_F), count))
        spread_FS: _Floats = solve_triangular(self._factor[0], noise_FS, lower=True, trans="T")
        return self.mean_F + spread_FS.T

    def _curvature(self, features_EF: _Floats, chance_E: _Floats) -> _Floats:
        weighted_EF = features_EF * (chance_E * (1 - chance_E))[:, None]
        found: _Floats = self.precision_FF + features_EF.T @ weighted_EF
        return found

    def _checked(self, features_EF: ArrayLike, offset_E: ArrayLike) -> tuple[_Floats, _Floats]:
        features = np.asarray(features_EF, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean_F):
            raise DataError(f"features_EF is {features.shape}; expected (E, {len(self.mean_F)}).")
        offsets = np.broadcast_to(np.asarray(offset_E, np.float64), (len(features),))
        if not (np.isfinite(features).all() and np.isfinite(offsets).all()):
            raise DataError("features and offsets must be finite.")
        return features, offsets


def _sigmoid(logit_E: _Floats) -> _Floats:
    found: _Floats = np.exp(-np.logaddexp(0.0, -logit_E))
    return found
