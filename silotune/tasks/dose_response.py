"""The objective of a yes whose chance can only rise with a dose: a discount's depth.

The head never sees the dose. It says a level a and a sensitivity b of each example, and the
logit is ``a + steepness · softplus(b) · dose``: whatever the two outputs are, the chance does not
fall as the dose rises. A dose among the features would leave that to luck, and a curve that falls
makes an allocation pay for nothing.

Shape suffixes: E examples, K = 2 outputs (level, sensitivity) or labels (yes, dose), D doses.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from silotune.errors import ConfigError
from silotune.tasks.metrics import auc, calibration_bins, calibration_error, log_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["DoseResponse"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DoseResponse:
    """Yes or no at a dose in [0, 1]: two outputs, labels (yes, dose), cross-entropy.

    The gradient of an example's outputs has an L2 norm of at most √(1 + steepness²). Doses
    outside [0, 1] count as the nearest bound.
    """

    outputs: ClassVar[int] = 2
    main: ClassVar[str] = "auc"
    larger_is_better: ClassVar[bool] = True
    # They would take the dose for a second outcome.
    private_histograms: ClassVar[bool] = False
    score_names: ClassVar[tuple[str, ...]] = ("score", "slope")

    steepness: float = 4.0
    """Scale of the sensitivity. A head that starts at 0 starts with ``steepness · ln 2`` of logit
    for a dose of 1. Public."""

    def __post_init__(self) -> None:
        """Check the scale. Raises ConfigError."""
        if not 0 < self.steepness < np.inf:
            raise ConfigError(f"steepness is {self.steepness}; it must be > 0.")

    def loss(self, logits_EK: "Tensor", label_EK: "Tensor") -> "Tensor":
        """Return the cross-entropy at each example's own dose, summed, nats."""
        from torch.nn import functional

        dose_E = label_EK[:, 1].clamp(0.0, 1.0)
        slope_E = self.steepness * functional.softplus(logits_EK[:, 1])
        return functional.binary_cross_entropy_with_logits(
            logits_EK[:, 0] + slope_E * dose_E, label_EK[:, 0], reduction="sum"
        )

    def slopes(self, logits_EK: ArrayLike) -> _Floats:
        """Return what a dose of 1 adds to the logit, (E,); never below 0."""
        # An output that is NaN makes its row NaN, which every metric passes on.
        with np.errstate(invalid="ignore"):
            softplus_E = np.logaddexp(0.0, np.asarray(logits_EK, np.float64)[:, 1])
        found: _Floats = self.steepness * softplus_E
        return found

    def sensitivities(self, slope_E: ArrayLike) -> _Floats:
        """Return the second output that has these slopes, (E,); the inverse of `slopes`.

        A slope below ``1e-12 · steepness`` counts as that: the output of 0 is infinite.
        """
        part_E = np.maximum(np.asarray(slope_E, np.float64) / self.steepness, 1e-12)
        # log(exp(x) - 1), without the overflow of a large x.
        found: _Floats = part_E + np.log(-np.expm1(-part_E))
        return found

    def curve(self, logits_EK: ArrayLike, dose_D: ArrayLike) -> _Floats:
        """Return the chance of a yes at every dose, (E, D); rows never fall as doses rise."""
        level_E = np.asarray(logits_EK, np.float64)[:, 0]
        dose = np.clip(np.asarray(dose_D, np.float64), 0.0, 1.0)
        logit_ED = level_E[:, None] + self.slopes(logits_EK)[:, None] * dose
        return np.exp(-np.logaddexp(0.0, -logit_ED))

    def scores(self, logits_EK: NDArray[np.floating]) -> _Floats:
        """Return the chance without a dose, and what a dose of 1 adds to the logit, (E, 2)."""
        return np.stack([self.curve(logits_EK, [0.0])[:, 0], self.slopes(logits_EK)], axis=1)

    def outcomes(self, label_EK: NDArray[np.floating]) -> dict[str, list[Any]]:
        """Return ``label``, 0 or 1, and ``dose``, in [0, 1]."""
        return {"label": label_EK[:, 0].tolist(), "dose": label_EK[:, 1].tolist()}

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return auc, log_loss and calibration_error of the chances at the rows' own doses."""
        del visit_E
        yes_E, logit_E = self._at_own_dose(label_EK, logits_EK)
        return {
            "auc": auc(yes_E, logit_E),
            "log_loss": log_loss(yes_E, logit_E),
            "calibration_error": calibration_error(yes_E, logit_E),
        }

    def calibration(
        self, label_EK: ArrayLike, logits_EK: ArrayLike
    ) -> list[tuple[float, float, int]]:
        """Return `silotune.tasks.metrics.calibration_bins` at the rows' own doses."""
        return calibration_bins(*self._at_own_dose(label_EK, logits_EK))

    def made_up_labels(self, count: int, generator: "torch.Generator") -> "Tensor":
        """Return zeros and ones with doses in [0, 1], (count, 2)."""
        import torch

        drawn = torch.rand(count, 2, generator=generator)
        return torch.stack([drawn[:, 0].round(), drawn[:, 1]], dim=1)

    def _at_own_dose(self, label_EK: ArrayLike, logits_EK: ArrayLike) -> tuple[_Floats, _Floats]:
        label, logits = np.asarray(label_EK, np.float64), np.asarray(logits_EK, np.float64)
        dose_E = np.clip(label[:, 1], 0.0, 1.0)
        return label[:, 0], logits[:, 0] + self.slopes(logits) * dose_E
