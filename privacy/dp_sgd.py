"""User-level DP-SGD: one clipped contribution per user and step, noise, public normaliser.

Shape suffixes: U users, D parameters.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from privacy.discrete import discrete_noisy_sum
from privacy.randomness import RandomSource
from silotune.config import config
from silotune.errors import ConfigError, PrivacyError

__all__ = ["DPConfig", "clip_user_gradients", "noisy_mean"]

_COLUMNS = 8192
"""Parameters that are turned into float64 at once: a block stays in the processor's cache."""


@config
class DPConfig:
    """Parameters of one private training. All public."""

    clip_norm: float
    """L2 bound of one user's gradient, in gradient units."""
    noise_multiplier: float
    """Standard deviation of the noise over ``clip_norm``."""
    sampling_rate: float
    """Chance with which a user takes part in a step, q."""
    examples_per_user: int = 16
    """Examples of one user in one step, at most. Bounds the cost, not the privacy."""
    mechanism: Literal["gaussian", "discrete-gaussian"] = "gaussian"
    """Float64 noise as a sum of four Gaussians, or exact noise on a grid (`privacy.discrete`),
    which no floating-point attack can see through. Both cost what ``noise_multiplier`` says."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        for field in ("clip_norm", "noise_multiplier"):
            value = getattr(self, field)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{field} is {value}; it must be > 0 and finite.")
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(
                f"sampling_rate is {self.sampling_rate}; it must be above 0 and at most 1."
            )
        if self.examples_per_user < 1:
            raise ConfigError(f"examples_per_user is {self.examples_per_user}; at least 1.")


def clip_user_gradients(grads_UD: Tensor, clip_norm: float) -> Tensor:
    """Scale each user's gradient to L2 norm ``clip_norm`` at most, in float64.

    One user moves the sum of the rows by at most ``clip_norm``: the sensitivity that
    `privacy.accounting` assumes. Flat clipping, Abadi et al. (2016), arXiv:1607.00133.
    A row with a NaN or an infinity becomes zero: passing it on would make the whole sum
    NaN and so reveal that the user is there.

    Args:
        grads_UD: one row per sampled user, (users, parameters), loss units per parameter.
        clip_norm: the bound, > 0.
    """
    factor_U = _clip_factors(grads_UD, clip_norm)
    return _finite(grads_UD.double(), factor_U) * factor_U[:, None]


def _clip_factors(grads_UD: Tensor, clip_norm: float) -> Tensor:
    """Return what each row is multiplied by, float64, (U,); 0 for a row that is not finite."""
    squares_U = torch.zeros(len(grads_UD), dtype=torch.float64, device=grads_UD.device)
    for columns in _blocks(grads_UD):
        squares_U += columns.double().square().sum(1)
    # A hair below the bound: rounding must not lift a norm above it. Blocks keep the error of
    # the sums below (_COLUMNS + D / _COLUMNS) roundings, a tenth of the hair.
    factor_U = clip_norm * (1 - 1e-11) / squares_U.sqrt().clamp_min(clip_norm)
    return torch.where(torch.isfinite(squares_U), factor_U, torch.zeros_like(factor_U))


def _clipped_sum(grads_UD: Tensor, clip_norm: float) -> Tensor:
    """Return the sum of the rows of `clip_user_gradients`, (D,), without a copy of them."""
    factor_U = _clip_factors(grads_UD, clip_norm)
    return torch.cat([factor_U @ _finite(c.double(), factor_U) for c in _blocks(grads_UD)])


def _blocks(grads_UD: Tensor) -> tuple[Tensor, ...]:
    return torch.split(grads_UD, _COLUMNS, dim=1)


def _finite(grads_UD: Tensor, factor_U: Tensor) -> Tensor:
    # Zero times NaN is NaN: the factor alone would not drop the row.
    dropped_U = factor_U == 0
    return grads_UD.masked_fill(dropped_U[:, None], 0.0) if dropped_U.any() else grads_UD


def noisy_mean(
    parts: Iterable[Tensor],
    size: int,
    settings: DPConfig,
    nominal_users: int,
    source: RandomSource,
) -> Tensor:
    """Return the private gradient of one step, float32, (D,).

    (sum over sampled users of their clipped gradients + noise) / (q × nominal users). The
    divisor is public; the realised sample size is not used. With no part at all, an empty
    Poisson sample, the result is noise alone and the step counts all the same.

    Args:
        parts: unclipped gradients of the sampled users, (U, D) each; every user is whole
            within one part.
        size: parameters, D.
        settings: clip, noise and rate.
        nominal_users: the silo's declared number of users, public.
        source: cryptographic in a real run.

    Raises:
        PrivacyError: a part is not (U, D).
    """
    divisor = settings.sampling_rate * nominal_users
    if settings.mechanism == "discrete-gaussian":
        discrete_D = discrete_noisy_sum(
            parts,
            size,
            clip_norm=settings.clip_norm,
            noise_multiplier=settings.noise_multiplier,
            source=source,
        )
        return (discrete_D / divisor).float()
    total_D = torch.zeros(size, dtype=torch.float64)
    for grads_UD in parts:
        # One column would be added to all: a user's clip would hold for each, not for their sum.
        if grads_UD.dim() != 2 or grads_UD.shape[1] != size:
            raise PrivacyError(f"gradients are not (users, {size}).")
        total_D += _clipped_sum(grads_UD, settings.clip_norm).cpu()
    std = settings.noise_multiplier * settings.clip_norm
    total_D += std * torch.from_numpy(source.gaussian(size))
    return (total_D / divisor).float()
