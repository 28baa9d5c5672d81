"""Quality of some examples apart from the others: customers that little is known of yet.

What it says is about a silo's own customers, and stays there.

Shape suffixes: E examples, K outputs of the head.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from silotune.errors import DataError
from silotune.tasks.base import Examples, Task

__all__ = ["FEW_VISITS", "has_history", "quality_apart"]

FEW_VISITS = 8
"""Visits below which a customer's history is little, where a task counts them as a feature."""

_LITTLE: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.bool_]]] = {
    "cold_start": lambda value_E: value_E == 1,
    # As `silotune.tasks.customer_words` scales a number of visits, halfway to the next.
    "visits_ever": lambda value_E: value_E < math.log1p(FEW_VISITS - 0.5) / 5,
}
"""Features that tell little history, and where they do."""


def has_history(task: Task) -> str | None:
    """Return the feature of ``task`` that tells customers of little history; None: it has none."""
    return next((name for name in _LITTLE if name in task.numeric_names), None)


def quality_apart(
    task: Task, examples: Examples, logits_EK: ArrayLike, *, feature: str = "cold_start"
) -> dict[bool, dict[str, float]]:
    """Return the metrics of the test rows that ``feature`` marks (True), and of the others.

    Each with ``rows``, how many there are. A part without rows has metrics that are NaN.

    Args:
        task: which names the features.
        examples: of one silo.
        logits_EK: of the test rows, in their order, as a model or a simple method gives them.
        feature: a numeric feature: one that `has_history` gives, or one that is 0 or 1.

    Raises:
        DataError: the task has no such feature, or the logits are not those of the test rows.
    """
    if feature not in task.numeric_names:
        raise DataError(
            f"{task.name} has no feature {feature!r}; it has {', '.join(task.numeric_names)}."
        )
    test, logits = examples.rows(test=True), np.asarray(logits_EK)
    if len(logits) != len(test):
        raise DataError(f"{len(logits)} logits stand against {len(test)} test rows.")
    value_E = examples.numeric_EF[test, task.numeric_names.index(feature)]
    in_part_E = _LITTLE.get(feature, _LITTLE["cold_start"])(value_E)
    found = {}
    for part in (True, False):
        kept = in_part_E == part
        rows = test[kept]
        metrics = task.objective.quality(
            examples.label_EK[rows], logits[kept], examples.visit_E[rows]
        )
        found[part] = {**metrics, "rows": float(len(rows))}
    return found
