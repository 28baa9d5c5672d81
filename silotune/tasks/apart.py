"""Quality of some examples apart from the others: customers that little is known of yet.

What it says is about a silo's own customers, and stays there.

Shape suffixes: E examples, K outputs of the head.
"""

import numpy as np
from numpy.typing import ArrayLike

from silotune.errors import DataError
from silotune.tasks.base import Examples, Task

__all__ = ["quality_apart"]


def quality_apart(
    task: Task, examples: Examples, logits_EK: ArrayLike, *, feature: str = "cold_start"
) -> dict[bool, dict[str, float]]:
    """Return the metrics of the test rows whose ``feature`` is 1 (True), and of the others.

    Each with ``rows``, how many there are. A part without rows has metrics that are NaN.

    Args:
        task: which names the features.
        examples: of one silo.
        logits_EK: of the test rows, in their order, as a model or a simple method gives them.
        feature: a numeric feature that is 0 or 1.

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
    in_part_E = examples.numeric_EF[test, task.numeric_names.index(feature)] == 1
    found = {}
    for part in (True, False):
        kept = in_part_E == part
        rows = test[kept]
        metrics = task.objective.quality(
            examples.label_EK[rows], logits[kept], examples.visit_E[rows]
        )
        found[part] = {**metrics, "rows": float(len(rows))}
    return found
