"""The private metrics of a run folder, as table and report show them. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.records import Record

__all__ = ["FIGURES", "Measured", "estimate", "measured"]

FIGURES = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "log_loss": "Log loss",
    "positive_rate": "Positives",
}
"""Figures of `server.metrics.OutputMetrics` that are shown, with their names for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One figure of one arm, mean over seeds."""

    value: float
    """NaN where the noise left nothing to tell in a seed."""
    standard_error: float
    low: float
    """What it would be at the worst order within the bins."""
    high: float
    noiseless: float
    """The same sums without noise: what ``value`` and its error are about."""
    exact: float
    """Over every test example of the federation, each counting the same."""


def measured(records: Sequence[Record]) -> dict[str, dict[str, Measured]]:
    """Return by arm, then by figure, what was measured; the last record of a seed counts."""
    found: dict[str, dict[str, dict[int, Record]]] = {}
    for record in records:
        if record["kind"] == "private-metrics":
            of_arm = found.setdefault(record["arm"], {})
            of_arm.setdefault(record["metric"], {})[record["seed"]] = record
    return {
        arm: {name: _over_seeds(list(seeds.values())) for name, seeds in figures.items()}
        for arm, figures in found.items()
    }


def estimate(figure: Measured) -> str:
    """Return the measured value and its standard error; a word where the noise hides it."""
    if math.isnan(figure.value):
        return "hidden by noise"
    return f"{figure.value:.3f} ± {figure.standard_error:.3f}"


def _over_seeds(seeds: Sequence[Record]) -> Measured:
    def mean(field: str) -> float:
        return float(np.mean([_number(r.get(field)) for r in seeds]))

    # The seeds' noises are independent.
    errors = [_number(r.get("standard_error")) for r in seeds]
    return Measured(
        value=mean("value"),
        standard_error=math.sqrt(sum(e**2 for e in errors)) / len(seeds),
        low=mean("low"),
        high=mean("high"),
        noiseless=mean("noiseless"),
        exact=mean("exact"),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
