"""Classes whose first one is "nothing happened": rows are ranked by the chance of the others.

Shape suffixes: E examples, K outputs of the head.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from silotune.tasks.metrics import ndcg_at, recall_at
from silotune.tasks.objective import Classes

__all__ = ["RankedClasses"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedClasses(Classes):
    """`Classes` of which the first is nothing; the examples of a visit are ranked."""

    def quality(
        self, label_EK: ArrayLike, logits_EK: ArrayLike, visit_E: ArrayLike
    ) -> dict[str, float]:
        """Return what `Classes.quality` does, and ndcg and recall (at 10) of the other classes.

        Ranked by the chance that anything happened; whatever did counts alike.
        """
        found = Classes.quality(self, label_EK, logits_EK, visit_E)
        logits = np.asarray(logits_EK, np.float64)
        # An infinite logit makes its row NaN, which every metric passes on.
        with np.errstate(invalid="ignore"):
            score_E = np.logaddexp.reduce(logits[:, 1:], axis=1) - logits[:, 0]
        happened_E = 1.0 - np.asarray(label_EK, np.float64)[:, 0]
        ranked = {"ndcg": ndcg_at, "recall": recall_at}
        return found | {name: of(happened_E, score_E, visit_E) for name, of in ranked.items()}
