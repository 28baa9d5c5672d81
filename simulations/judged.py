"""By which metric the arms of a run are compared, and what metrics are called."""

from silotune.config import config
from silotune.tasks.objective import Classes, Objective
from silotune.tasks.several_objective import SeveralObjectives

__all__ = ["METRICS", "MainMetric", "in_sentence", "main_of"]

METRICS = {
    "auc": "AUC",
    "log_loss": "Log loss",
    "mae": "Mean error",
    "rmse": "Root mean square error",
    "accuracy": "Accuracy",
    "calibration_error": "Calibration error",
    "ndcg": "NDCG@10",
    "recall": "Recall@10",
}
"""Metrics of a score record, and what they are called."""


@config
class MainMetric:
    """The metric by which a task's objective compares. The defaults are those of a yes or no."""

    key: str = "auc"
    """In the records."""
    name: str = METRICS["auc"]
    """For people, at the beginning of a line."""
    larger_is_better: bool = True
    of_classes: bool = False
    """Whether the chance that is held against what happened is that of the likeliest class."""

    @property
    def words(self) -> str:
        """The name within a sentence."""
        return in_sentence(self.name)

    @property
    def unit(self) -> str:
        """What stands after a difference: 'AUC', 'in mean error'."""
        return self.words if self.larger_is_better else f"in {self.words}"

    @property
    def axis(self) -> str:
        """The name where figures are read without a sentence."""
        return self.name if self.larger_is_better else f"{self.name} (smaller is better)"

    @property
    def names(self) -> dict[str, str]:
        """`METRICS` as they are called in this run, the main one first."""
        return {self.key: self.name} | {k: n for k, n in METRICS.items() if k != self.key}


def main_of(objective: Objective) -> MainMetric:
    """Return what ``objective`` compares by."""
    classes = isinstance(objective, Classes)
    name = METRICS.get(objective.main, objective.main)
    if isinstance(objective, SeveralObjectives):
        name = f"Mean {in_sentence(name)} of the tasks"
    return MainMetric(
        key=objective.main,
        # The mean over classes of the area of one against the rest.
        name=f"Macro {name}" if classes and objective.main == "auc" else name,
        larger_is_better=objective.larger_is_better,
        of_classes=classes,
    )


def in_sentence(text: str) -> str:
    """Return a name as it stands within a sentence.

    >>> in_sentence("Macro AUC"), in_sentence("RFM rules"), in_sentence("NDCG@10")
    ('macro AUC', 'RFM rules', 'NDCG@10')
    """
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
