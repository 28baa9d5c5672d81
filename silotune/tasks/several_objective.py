"""Several tasks under one loss: every example is of one of them and counts for that one alone.

The gradient of a user is over the shared factors and all heads, summed over the user's examples
of every task, and clipped as one: the bound of one user holds over all tasks together.

Shape suffixes: E examples, K outputs of all heads beside each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from silotune.tasks.objective import Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["SeveralObjectives"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeveralObjectives:
    """Objectives beside each other. A label is NaN in every column but those of its own task."""

    private_histograms: ClassVar[bool] = False

    names: tuple[str, ...]
    """Of the tasks."""
    parts: tuple[Objective, ...]
    """One for each."""
    weights: tuple[float, ...]
    """Factors of their losses."""

    @property
    def outputs(self) -> int:
        """Of all heads together."""
        return sum(part.outputs for part in self.parts)

    @property
    def main(self) -> str:
        """That of the first task."""
        return self.parts[0].main

    @property
    def larger_is_better(self) -> bool:
        """Of the main metric."""
        return self.parts[0].larger_is_better

    @property
    def score_names(self) -> tuple[str, ...]:
        """Each column under its task's name."""
        return tuple(f"{n}: {own}" for n, p, _ in self._blocks() for own in p.score_names)

    def rows_of(self, number: int, label_EK: ArrayLike) -> NDArray[np.bool_]:
        """Return which rows are of task ``number``, (E,)."""
        label = np.asarray(label_EK)
        found: NDArray[np.bool_] = ~np.isnan(label[:, self.columns(number)]).all(1)
        return found

    def columns(self, number: int) -> slice:
        """Return the columns of task ``number`` among outputs and labels."""
        return [block for _, _, block in self._blocks()][number]

    def loss(self, logits_EK: "Tensor", label_EK: "Tensor") -> "Tensor":
        """Return the weighted sum of the tasks' losses, each over its own rows and outputs."""
        losses = []
        for (_, part, block), weight in zip(self._blocks(), self.weights, strict=True):
            # Chosen, not masked: NaN times zero is NaN.
            own_E = ~label_EK[:, block].isnan().all(1)
            losses.append(weight * part.loss(logits_EK[own_E, block], label_EK[own_E, block]))
        return sum(losses[1:], start=losses[0])

    def scores(self, logits_EK: NDArray[np.floating]) -> _Floats:
        """Return what each task's own objective makes of its outputs, (E, K)."""
        logits = np.asarray(logits_EK)
        return np.concatenate([p.scores(logits[:, b]) for _, p, b in self._blocks()], axis=1)

    def outcomes(self, label_EK: NDArray[np.floating]) -> dict[str, list[Any]]:
        """Return what happened, by task; None in the rows of another task."""
        found: dict[str, list[Any]] = {}
        for number, (name, part, block) in enumerate(self._blocks()):
            rows = np.flatnonzero(self.rows_of(number, label_EK))
            for column, values in part.outcomes(label_EK[rows, block]).items():
                whole: list[Any] = [None] * len(label_EK)
                for row, value in zip(rows, values, strict=True):
                    whole[row] = value
                found[f"{name}: {column}"] = whole
        return found

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return every metric as ``task: metric``, and under its own key as mean over tasks.

        The mean is over those tasks that have the metric; NaN where one has no answer.
        """
        label, logits, visit = map(np.asarray, (label_EK, logits_EK, visit_E))
        by_key: dict[str, list[float]] = {}
        apart: dict[str, float] = {}
        for number, (name, part, block) in enumerate(self._blocks()):
            own = self.rows_of(number, label)
            found = part.quality(label[own][:, block], logits[own][:, block], visit[own])
            for key, value in found.items():
                apart[f"{name}: {key}"] = value
                by_key.setdefault(key, []).append(value)
        return {key: float(np.mean(values)) for key, values in by_key.items()} | apart

    def calibration(
        self, label_EK: ArrayLike, logits_EK: ArrayLike
    ) -> list[tuple[float, float, int]]:
        """Return nothing: chances of different things have no curve together."""
        del label_EK, logits_EK
        return []

    def made_up_labels(self, count: int, generator: "torch.Generator") -> "Tensor":
        """Return labels of every task for every row, (count, K): each head is then tested."""
        import torch

        return torch.cat([part.made_up_labels(count, generator) for part in self.parts], dim=1)

    def _blocks(self) -> Iterator[tuple[str, Objective, slice]]:
        start = 0
        for name, part in zip(self.names, self.parts, strict=True):
            yield name, part, slice(start, start + part.outputs)
            start += part.outputs
