"""The hardened Gaussian mechanism: an integer sum, an exact discrete Gaussian, one fixed grid.

Float noise leaves gaps that depend on what it was added to (Mironov 2012). Here every user's
clipped vector is rounded to whole steps of a public grid, the sum and the noise are integers,
and every output is a whole number of steps whatever the data is.

Noise. The discrete Gaussian of Canonne, Kamath and Steinke (2020), arXiv:2004.00010: k has
weight exp(-k²/2S²), S a whole number of steps. Drawn exactly: by comparing uniform integers
only. Chances exp(-x) by their algorithm 1; the rejection from a whole part and a fraction by
Karney (2016), arXiv:1303.6257, algorithm D.

Sensitivity. Rounding to the nearest step γ moves a vector of D numbers by γ√D/2 at most, so
users are clipped to C - γ√D/2 before it and stay within C after it (triangle inequality; the
alternative, a larger sensitivity, is that of Kairouz, Liu and Steinke 2021,
arXiv:2102.06387, section 4). The bound is enforced on the integers once more, exactly.

Accounting. Any accountant of the continuous Gaussian, Poisson sampling and composition
included. Put w = 2 and c² = S² - w². Add to the integer sum a continuous Gaussian of standard
deviation c steps, then round x to the integer k with chance φ_w(k - x) / Θ(x), where
Θ(x) = Σ_j φ_w(j - x) and φ_w is the density of N(0, w²): a post-processing that does not see the
data. Since φ_c * φ_w = φ_S, its output has the discrete Gaussian's weights up to factors Θ. By
Poisson summation |Θ(x) - 1| <= η = 2 Σ_{m>=1} exp(-2π²w²m²) < 1.1e-34, so the two mechanisms
differ by a factor within exp(±2.2e-34) for each number, on every data set and hence under
sampling. Over n numbers in all releases, (ε, δ) of the continuous mechanism becomes
(ε + 4.4e-34 n, δ exp(2.2e-34 n)): for n = 1e15 below a double's rounding of ε and of δ. The
noise is made large enough that sqrt(S² - 4) is at least the nominal deviation, so the nominal
noise multiplier may be accounted as it is.

Not covered: the time a draw takes depends on the noise drawn (not on the data). Assumed: a user's
vector depends on that user alone; batched float kernels may keep that up to rounding only.

Shape suffixes: U users, D numbers in one vector.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.randomness import RandomSource
from silotune.errors import ConfigError, PrivacyError

__all__ = [
    "DiscretePlan",
    "accounted_noise_multiplier",
    "discrete_gaussian",
    "discrete_noisy_sum",
    "discrete_plan",
]

_SMOOTHING = 4
"""w² of the module's proof, in squared steps."""

_STEPS_PER_NORM = 2**11
"""Steps in clip / √D of the grid chosen here: rounding takes 1/4096 of the clip."""

_STEPS_PER_STD = 2**10
"""Steps in one standard deviation of the noise, at least, on the grid chosen here."""

_MOST_STEPS = 2**30
"""Steps in the clip norm, at most: squares and sums stay within 64 bits."""

_MOST_STD = 2**55
"""Steps in one standard deviation, at most: 60 of them stay within 64 bits."""

_CHUNK = 2**22
"""Numbers of per-user vectors rounded at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscretePlan:
    """Grid, clip and noise of one discrete release. Made of public numbers only."""

    step: float
    """γ, a power of two: every output is a whole number of it."""
    inner_clip: float
    """Users are clipped to this L2 norm before they are rounded."""
    clip_norm: float
    """L2 norm of a user's rounded vector, at most: the sensitivity."""
    most_squared: int
    """The same bound, squared, in squared steps."""
    std_steps: int
    """S, parameter of the discrete Gaussian, in steps."""

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each number, in the unit of the clip."""
        return self.std_steps * self.step


def discrete_plan(
    size: int, *, clip_norm: float, noise_multiplier: float, grid: float | None = None
) -> DiscretePlan:
    """Return grid, inner clip and noise for vectors of ``size`` numbers.

    Args:
        size: numbers in one vector, D.
        clip_norm: C, the sensitivity to keep.
        noise_multiplier: standard deviation to account, over ``clip_norm``.
        grid: step γ, a power of two in the unit of the clip. None: so fine that rounding
            takes 1/4096 of the clip and 0.1% of the noise at most.

    Raises:
        ConfigError: a number is out of range, or the grid too coarse or too fine for the clip.
    """
    if size < 1:
        raise ConfigError(f"size is {size}; it must be at least 1.")
    for name, value in (("clip_norm", clip_norm), ("noise_multiplier", noise_multiplier)):
        if not 2.0**-100 <= value <= 2.0**100:
            raise ConfigError(f"{name} is {value}; it must be > 0, between 2**-100 and 2**100.")
    step = _default_step(size, clip_norm, noise_multiplier) if grid is None else grid
    if not (0 < step < math.inf and math.frexp(step)[0] == 0.5):
        raise ConfigError(f"grid is {step}; it must be a power of two, as 2**-20.")
    norm_steps = Fraction(clip_norm) / Fraction(step)
    if norm_steps > _MOST_STEPS:
        raise ConfigError(
            f"grid is {step}: above 2**30 steps in the clip norm {clip_norm}. Take a coarser grid, "
            "or a larger noise multiplier."
        )
    inner = clip_norm - step * math.sqrt(size) / 2
    if inner < clip_norm / 2:
        raise ConfigError(
            f"grid is {step}: rounding {size} numbers to it takes more than half of the clip "
            f"norm {clip_norm}. Take {clip_norm / math.sqrt(size) / 8:.3g} or less."
        )
    nominal = norm_steps * Fraction(noise_multiplier)
    std = math.isqrt(math.ceil(nominal**2) + _SMOOTHING - 1) + 1
    if std > _MOST_STD:
        raise ConfigError(f"noise_multiplier is {noise_multiplier}: too large for grid {step}.")
    return DiscretePlan(
        step=step,
        inner_clip=inner,
        clip_norm=clip_norm,
        most_squared=math.floor(norm_steps**2),
        std_steps=std,
    )


def _default_step(size: int, clip_norm: float, noise_multiplier: float) -> float:
    finest = clip_norm / math.sqrt(size) / _STEPS_PER_NORM
    wanted = min(finest, clip_norm * noise_multiplier / _STEPS_PER_STD)
    return math.ldexp(1.0, math.frexp(wanted)[1] - 1)


def accounted_noise_multiplier(
    size: int, *, clip_norm: float, noise_multiplier: float, grid: float | None = None
) -> float:
    """Return the noise multiplier of the continuous Gaussian that bounds the discrete release.

    A lower bound on sqrt(S² - 4) steps over ``clip_norm``; never below ``noise_multiplier``, so
    accounting the nominal one is safe as well. Arguments and errors: `discrete_plan`.
    """
    plan = discrete_plan(size, clip_norm=clip_norm, noise_multiplier=noise_multiplier, grid=grid)
    squared = (plan.std_steps**2 - _SMOOTHING) * (Fraction(plan.step) / Fraction(clip_norm)) ** 2
    found = math.sqrt(squared)
    while Fraction(found) ** 2 > squared:
        found = math.nextafter(found, 0)
    return found


def discrete_noisy_sum(
    parts: Iterable[Tensor],
    size: int,
    *,
    clip_norm: float,
    noise_multiplier: float,
    source: RandomSource,
    grid: float | None = None,
) -> Tensor:
    """Return the noised sum of users' clipped, rounded vectors, float64, (D,).

    Unit: one user. Neighbours: add or remove one. Costs at most what a Gaussian mechanism of
    ``noise_multiplier`` does (see the module). Every output is a whole number of grid steps.
    No part at all gives noise alone; a row with a NaN or an infinity counts as zero.

    Args:
        parts: unclipped vectors of the users, (U, D) each; every user is one row.
        size: numbers in one vector, D.
        clip_norm: L2 bound of one user, in the unit of the vectors.
        noise_multiplier: standard deviation of the noise over ``clip_norm``.
        source: cryptographic in a real run.
        grid: step of the grid, see `discrete_plan`.

    Raises:
        ConfigError: a number is out of range (see `discrete_plan`).
        PrivacyError: a part is not (U, D). It would be spread over other numbers unclipped.
    """
    plan = discrete_plan(size, clip_norm=clip_norm, noise_multiplier=noise_multiplier, grid=grid)
    total_D = torch.zeros(size, dtype=torch.int64)
    for grads_UD in parts:
        if grads_UD.dim() != 2 or grads_UD.shape[1] != size:
            raise PrivacyError(f"a part has another shape than (users, {size}).")
        for rows_UD in torch.split(grads_UD, max(1, _CHUNK // size)):
            total_D += _rounded(rows_UD, plan).sum(0).cpu()
    total_D += torch.from_numpy(discrete_gaussian(size, plan.std_steps, source))
    return total_D.double() * plan.step


def _rounded(grads_UD: Tensor, plan: DiscretePlan) -> Tensor:
    # Here: `privacy.dp_sgd` offers this mechanism as one of its own.
    from privacy.dp_sgd import clip_user_gradients

    steps_UD = (clip_user_gradients(grads_UD, plan.inner_clip) / plan.step).round().long()
    # The proof of the bound is about real numbers; this line is about these integers.
    within_U1 = (steps_UD * steps_UD).sum(1, keepdim=True) <= plan.most_squared
    return torch.where(within_U1, steps_UD, torch.zeros_like(steps_UD))


def discrete_gaussian(count: int, std: int, source: RandomSource) -> NDArray[np.int64]:
    """Return ``count`` independent draws k with chance proportional to exp(-k²/2 ``std``²).

    Exact: no floating-point number takes part.

    Args:
        count: how many.
        std: S, a whole number, 1 to 2**55. The standard deviation is S within 1e-6 of it.
        source: cryptographic in a real run.

    Raises:
        PrivacyError: ``std`` is out of range.
    """
    if not 1 <= std <= _MOST_STD:
        raise PrivacyError(f"discrete Gaussian of {std} steps: the range is 1 to 2**55.")
    found = np.empty(0, dtype=np.int64)
    while found.size < count:
        # About half of the trials are accepted; independent of one another, so any may be cut.
        trials = 2 * (count - found.size) + 32
        found = np.concatenate([found, _accepted(trials, std, source)])
    return found[:count]


def _accepted(trials: int, std: int, source: RandomSource) -> NDArray[np.int64]:
    # k = S(v + x) with x = u/S: exp(-(v + x)²/2) = exp(-v²/2) exp(-x)^v exp(-x²/2).
    v = _whole_parts(trials, source)
    u = source.integers(v.size, std)

    def fraction(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return source.integers(rows.size, std) < rows

    keep = _exp_coins(u, lambda r: fraction(r) & fraction(r), 2, source)
    v, u = v[keep], u[keep]
    keep = _all_heads(v, _exp_coins(np.repeat(u, v), fraction, 1, source))
    k = std * v[keep] + u[keep]
    negative = source.integers(k.size, 2) == 1
    # Zero has one sign only.
    signed: NDArray[np.int64] = np.where(negative, -k, k)[~(negative & (k == 0))]
    return signed


def _whole_parts(trials: int, source: RandomSource) -> NDArray[np.int64]:
    """Return draws of v >= 0 with chance proportional to exp(-v²/2), fewer than ``trials``."""
    v = np.zeros(trials, dtype=np.int64)
    active = np.arange(trials)
    while active.size:
        active = active[_exp_coins(active, _certain, 2, source)]
        v[active] += 1
    # Now exp(-v/2); v²/2 = v/2 + v(v - 1)/2.
    rest = v * (v - 1) // 2
    return v[_all_heads(rest, _exp_coins(np.zeros(rest.sum(), np.int64), _certain, 1, source))]


def _exp_coins(
    x: NDArray[np.int64],
    heads: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    divisor: int,
    source: RandomSource,
) -> NDArray[np.bool_]:
    """Return one coin for each entry of ``x``, true with chance exp(-p/divisor).

    Algorithm 1 of Canonne et al.: of coins with chance p/divisor/k, k = 1, 2, …, the first
    that fails has an odd k. ``heads(x)`` is true with chance p.
    """
    odd = np.empty(x.size, dtype=np.bool_)
    active = np.arange(x.size)
    k = 1
    while active.size:
        hit = source.integers(active.size, divisor * k) == 0
        hit[hit] = heads(x[active[hit]])
        odd[active[~hit]] = k % 2 == 1
        active = active[hit]
        k += 1
    return odd


def _certain(x: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.ones(x.size, dtype=np.bool_)


def _all_heads(counts: NDArray[np.int64], coins: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each entry whether all of its ``counts`` coins, in order, are true."""
    owner = np.repeat(np.arange(counts.size), counts)
    met: NDArray[np.bool_] = np.bincount(owner[~coins], minlength=counts.size) == 0
    return met
