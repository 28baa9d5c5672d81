"""What a head is trained and judged by: a loss, what its logits mean, and metrics.

A loss is a sum over examples, so that the gradient of a user is the sum of its examples' own.
Whatever the loss is, each user's gradient is clipped to one norm, and one user moves a step by
no more than that: privacy does not depend on the objective. How well training goes does: a
gradient with respect to the logits is bounded here for every objective, so that one odd label
does not use up its user's whole clip.

Shape suffixes: E examples, K outputs of the head.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from silotune.errors import ConfigError
from silotune.tasks.metrics import auc, calibration_bins, calibration_error, quality

if TYPE_CHECKING:
    # Aggregator and merchant read task files in processes that never load torch.
    import torch
    from torch import Tensor

__all__ = ["Binary", "Bounded", "Classes", "Objective"]

_Floats = NDArray[np.float64]
_Bin = tuple[float, float, int]


class Objective(Protocol):
    """What the outputs of a head stand for. Frozen: two are equal if they are the same."""

    @property
    def outputs(self) -> int:
        """Outputs of the head, and columns of a label, K."""
        ...

    @property
    def main(self) -> str:
        """Key of the metric by which arms are compared."""
        ...

    @property
    def larger_is_better(self) -> bool:
        """Of the main metric."""
        ...

    @property
    def private_histograms(self) -> bool:
        """Whether `privacy.metrics` can measure it: labels 0 or 1, scores that are chances."""
        ...

    def loss(self, logits_EK: "Tensor", label_EK: "Tensor") -> "Tensor":
        """Return the loss summed over examples, a number in nats or units of the label."""
        ...

    def scores(self, logits_EK: NDArray[np.floating]) -> _Floats:
        """Return what a user of the model reads, (E, K): chances, or predicted values."""
        ...

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the columns of `scores`."""
        ...

    def outcomes(self, label_EK: NDArray[np.floating]) -> dict[str, list[Any]]:
        """Return what happened, as a person reads it: columns by name, E values each."""
        ...

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return every metric by its key; NaN where it has no answer."""
        ...

    def calibration(self, label_EK: ArrayLike, logits_EK: ArrayLike) -> list[_Bin]:
        """Return (mean predicted chance, rate, rows) by bin; empty where there are no chances."""
        ...

    def made_up_labels(self, count: int, generator: "torch.Generator") -> "Tensor":
        """Return labels of nobody, (count, K), for self-tests."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Binary:
    """Yes or no: one logit, label 0 or 1, cross-entropy. Gradients of a logit lie in [-1, 1]."""

    outputs: ClassVar[int] = 1
    main: ClassVar[str] = "auc"
    larger_is_better: ClassVar[bool] = True
    private_histograms: ClassVar[bool] = True
    score_names: ClassVar[tuple[str, ...]] = ("score",)

    ranked: bool = False
    """Whether the examples of a visit are ranked against each other: NDCG and recall count."""

    def loss(self, logits_EK: "Tensor", label_EK: "Tensor") -> "Tensor":
        """Return the summed cross-entropy, nats."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(logits_EK, label_EK, reduction="sum")

    def scores(self, logits_EK: NDArray[np.floating]) -> _Floats:
        """Return the chance of a yes, (E, 1)."""
        return np.exp(-np.logaddexp(0.0, -np.asarray(logits_EK, np.float64)))

    def outcomes(self, label_EK: NDArray[np.floating]) -> dict[str, list[Any]]:
        """Return ``label``, 0 or 1."""
        return {"label": label_EK[:, 0].tolist()}

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return auc, log_loss, calibration_error and, if ranked, ndcg and recall."""
        found = quality(label_EK, logits_EK, visit_E)
        return found if self.ranked else {k: found[k] for k in _UNRANKED}

    def calibration(self, label_EK: ArrayLike, logits_EK: ArrayLike) -> list[_Bin]:
        """Return `silotune.tasks.metrics.calibration_bins`."""
        return calibration_bins(label_EK, logits_EK)

    def made_up_labels(self, count: int, generator: "torch.Generator") -> "Tensor":
        """Return zeros and ones, (count, 1)."""
        import torch

        return torch.rand(count, 1, generator=generator).round()


_UNRANKED = ("auc", "log_loss", "calibration_error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """One of several classes: a logit for each, one-hot label, cross-entropy of the softmax.

    The gradient of an example's logits has an L2 norm of at most √2.
    """

    main: ClassVar[str] = "auc"
    larger_is_better: ClassVar[bool] = True
    # They know one yes or no.
    private_histograms: ClassVar[bool] = False

    names: tuple[str, ...]
    """Of the classes, in the order of the outputs."""

    def __post_init__(self) -> None:
        """Check the names. Raises ConfigError."""
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ConfigError(f"names is {self.names}; give two or more different classes.")

    @property
    def outputs(self) -> int:
        """One logit for each class."""
        return len(self.names)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.names

    def outcomes(self, label_EK: NDArray[np.floating]) -> dict[str, list[Any]]:
        """Return ``label``, the name of the class."""
        return {"label": [self.names[k] for k in label_EK.argmax(1)]}

    def loss(self, logits_EK: "Tensor", label_EK: "Tensor") -> "Tensor":
        """Return the summed cross-entropy, nats."""
        return -(label_EK * logits_EK.log_softmax(1)).sum()

    def scores(self, logits_EK: NDArray[np.floating]) -> _Floats:
        """Return the chance of each class, (E, K); rows add up to 1."""
        found: _Floats = np.exp(_log_softmax(logits_EK))
        return found

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return auc (macro, one against the rest), accuracy, log_loss and calibration_error.

        A class that no row, or every row, belongs to has no AUC; the mean is over the others,
        and NaN where there are none. The calibration error is that of the most likely class
        (Guo et al. 2017, arXiv:1706.04599), with bins of equal mass.
        """
        del visit_E
        label, log_chance_EK = np.asarray(label_EK, np.float64), _log_softmax(logits_EK)
        if np.isnan(log_chance_EK).any() or not len(label):
            return dict.fromkeys(("auc", "accuracy", "log_loss", "calibration_error"), float("nan"))
        # Log chances put the rows in another order than logits do: a class is likely or not
        # beside the others.
        areas = [auc(label[:, k], log_chance_EK[:, k]) for k in range(self.outputs)]
        known = [area for area in areas if not np.isnan(area)]
        right_E, confidence_E = self._top(label, log_chance_EK)
        return {
            "auc": float(np.mean(known)) if known else float("nan"),
            "accuracy": float(right_E.mean()),
            "log_loss": float(-(label * log_chance_EK).sum(1).mean()),
            "calibration_error": calibration_error(right_E, confidence_E),
        }

    def calibration(self, label_EK: ArrayLike, logits_EK: ArrayLike) -> list[_Bin]:
        """Return (mean confidence, accuracy, rows) of the most likely class."""
        label = np.asarray(label_EK, np.float64)
        return calibration_bins(*self._top(label, _log_softmax(logits_EK)))

    def _top(self, label_EK: _Floats, log_chance_EK: _Floats) -> tuple[_Floats, _Floats]:
        """Return whether the likeliest class is right, and the logit of its chance; (E,) both."""
        top_E = log_chance_EK.argmax(1)[:, None]
        log_top_E = np.take_along_axis(log_chance_EK, top_E, 1)[:, 0]
        with np.errstate(divide="ignore"):
            # A chance that rounds to 1 has an infinite logit, which the bins take.
            confidence_E = log_top_E - np.log(-np.expm1(log_top_E))
        return np.take_along_axis(label_EK, top_E, 1)[:, 0], confidence_E

    def made_up_labels(self, count: int, generator: "torch.Generator") -> "Tensor":
        """Return one-hot rows, (count, K)."""
        import torch

        return torch.eye(self.outputs)[torch.randint(self.outputs, (count,), generator=generator)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    """A number between public bounds: one output, Huber loss (Huber 1964).

    Labels outside the bounds count as the nearest bound, and beyond ``delta`` the loss grows
    linearly: the gradient of an output lies in [-delta, delta], where that of a squared error
    would be as large as the largest label.
    """

    outputs: ClassVar[int] = 1
    main: ClassVar[str] = "mae"
    larger_is_better: ClassVar[bool] = False
    private_histograms: ClassVar[bool] = False
    score_names: ClassVar[tuple[str, ...]] = ("score",)

    low: float = 0.0
    high: float = 1.0
    delta: float = 1.0
    """Where the loss turns from squared to linear, in units of the label."""

    def __post_init__(self) -> None:
        """Check the bounds. Raises ConfigError."""
        if not -np.inf < self.low < self.high < np.inf:
            raise ConfigError(f"low and high are {self.low}, {self.high}; they must be in order.")
        if not 0 < self.delta < np.inf:
            raise ConfigError(f"delta is {self.delta}; it must be > 0.")

    def loss(self, logits_EK: "Tensor", label_EK: "Tensor") -> "Tensor":
        """Return the summed Huber loss."""
        from torch.nn import functional

        bounded_EK = label_EK.clamp(self.low, self.high)
        return functional.huber_loss(logits_EK, bounded_EK, reduction="sum", delta=self.delta)

    def scores(self, logits_EK: NDArray[np.floating]) -> _Floats:
        """Return the predicted value within the bounds, (E, 1)."""
        return np.clip(np.asarray(logits_EK, np.float64), self.low, self.high)

    def outcomes(self, label_EK: NDArray[np.floating]) -> dict[str, list[Any]]:
        """Return ``label``, the value."""
        return {"label": label_EK[:, 0].tolist()}

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return mae and rmse of labels and predictions, both within the bounds."""
        del visit_E
        label = np.clip(np.asarray(label_EK, np.float64), self.low, self.high)
        error_EK = self.scores(np.asarray(logits_EK)) - label
        if not error_EK.size:
            return {"mae": float("nan"), "rmse": float("nan")}
        return {
            "mae": float(np.abs(error_EK).mean()),
            "rmse": float(np.sqrt((error_EK**2).mean())),
        }

    def calibration(self, label_EK: ArrayLike, logits_EK: ArrayLike) -> list[_Bin]:
        """Return nothing: a value is no chance."""
        del label_EK, logits_EK
        return []

    def made_up_labels(self, count: int, generator: "torch.Generator") -> "Tensor":
        """Return values within the bounds, (count, 1)."""
        import torch

        return self.low + (self.high - self.low) * torch.rand(count, 1, generator=generator)


def _log_softmax(logits_EK: ArrayLike) -> _Floats:
    logits = np.asarray(logits_EK, np.float64)
    # An infinite logit makes its row NaN, which every metric passes on.
    with np.errstate(invalid="ignore"):
        found: _Floats = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return found
