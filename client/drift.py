"""Drift: how far features and scores of a merchant's customers moved between two dates.

For the merchant's own eyes. It is computed from raw behaviour without noise: it is no release,
and no message carries it.

Shape suffixes: E examples, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from client.score import Scored
from silotune.errors import DataError
from silotune.tasks.objective import Classes

__all__ = ["Drift", "drift_of", "stability_index"]

_BINS = 10
_SOME, _MUCH = 0.1, 0.25
"""Of the index: the customary thresholds (Siddiqi 2006, Credit Risk Scorecards)."""
_SURE = 0.99
"""Of a larger index than chance gives, before it is called drift."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How one column moved."""

    name: str
    index: float
    """Population stability index: 0 where nothing moved."""
    chance: float
    """What the index stays below in 99 of 100 cases where nothing moved: few customers, much."""
    before: float
    """Mean at the earlier date."""
    now: float

    @property
    def verdict(self) -> str:
        """'much', 'some', 'little', or 'too few customers to tell'."""
        if self.index < _SOME:
            return "little"
        if self.index < self.chance:
            return "too few customers to tell"
        return "much" if self.index >= _MUCH else "some"


def drift_of(
    before: Sequence[Scored], now: Sequence[Scored], numeric_names: Sequence[str]
) -> list[Drift]:
    """Return the drift of every numeric feature and every score, the inputs first.

    Args:
        before: the parts of the earlier date.
        now: those of the later one, by the same model.
        numeric_names: of the task.
    """
    objective = now[0].examples.objective
    scores = objective.names if isinstance(objective, Classes) else ("score",)
    columns = [
        (
            name,
            np.concatenate([p.examples.numeric_EF[p.rows, i] for p in before]),
            np.concatenate([p.examples.numeric_EF[p.rows, i] for p in now]),
        )
        for i, name in enumerate(numeric_names)
    ]
    for k, name in enumerate(scores):
        old, new = (np.concatenate([p.score_EK[:, k] for p in side]) for side in (before, now))
        columns.append((name, old, new))
    found = []
    for name, old_E, new_E in columns:
        index, bins = stability_index(old_E, new_E)
        # Twice the divergence of two samples of one law: chi-square (Yurdakul 2018).
        unit = 1 / len(old_E) + 1 / len(new_E)
        chance = float(chi2.ppf(_SURE, bins - 1)) * unit if bins > 1 else 0.0
        means = {"before": float(np.mean(old_E)), "now": float(np.mean(new_E))}
        found.append(Drift(name=name, index=index, chance=chance, **means))
    return found


def stability_index(before_E: ArrayLike, now_E: ArrayLike) -> tuple[float, int]:
    """Return the population stability index and the number of bins.

    Bins are the tenths of ``before_E``, fewer where values tie; a bin's share is counted with half
    a row more, so that an empty bin has a logarithm.

    Raises:
        DataError: one side is empty, or holds a value that is no number.
    """
    old_E, new_E = np.asarray(before_E, np.float64), np.asarray(now_E, np.float64)
    if not (old_E.size and new_E.size and np.isfinite(old_E).all() and np.isfinite(new_E).all()):
        raise DataError("drift: both dates need values, all of them numbers.")
    tenths = np.linspace(0, 1, _BINS + 1)[1:-1]
    # Values that were seen: an edge between two values that many share would bound an empty bin.
    edges_B = np.unique(np.quantile(old_E, tenths, method="inverted_cdf"))
    edges_B = edges_B[edges_B > old_E.min()]
    share_B, theirs_B = _shares(old_E, edges_B), _shares(new_E, edges_B)
    return float(((theirs_B - share_B) * np.log(theirs_B / share_B)).sum()), len(share_B)


def _shares(value_E: NDArray[np.float64], edges_B: NDArray[np.float64]) -> NDArray[np.float64]:
    # Right of an edge, so that a value that many share has a bin of its own.
    counts = np.bincount(np.searchsorted(edges_B, value_E, "right"), minlength=len(edges_B) + 1)
    found: NDArray[np.float64] = (counts + 0.5) / (counts + 0.5).sum()
    return found
