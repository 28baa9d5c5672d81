"""Forgetting: what an adapter that goes on on newer weeks loses on the older ones."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from simulations.apart import WEEKS, part_tables
from simulations.judged import MainMetric
from simulations.records import Record

__all__ = ["ANEW", "BEFORE", "NEWER", "OLDER", "Forgetting", "continued_arm", "forgetting_words"]

OLDER, NEWER = "older weeks", "newer weeks"
BEFORE, ANEW = "federated", "anew"
"""Arms: what the older weeks gave, and the newer weeks alone."""
_CONTINUED = "continued-keep"


def continued_arm(keep: float) -> str:
    """Return the name of the arm that keeps the share ``keep`` of the old adapter a round."""
    return f"{_CONTINUED}{keep:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetting:
    """One metric on test rows of older weeks and of newer ones, before and after going on.

    The older test rows lie before the newer training rows, and none of them is trained on.
    """

    older_before: float
    older_after: float
    newer_before: float
    newer_after: float
    larger_is_better: bool
    """Of the metric."""

    @property
    def forgot(self) -> float:
        """How much worse it is on the older weeks; below 0: better."""
        worse = self.older_before - self.older_after
        return worse if self.larger_is_better else -worse

    @property
    def learned(self) -> float:
        """How much better it is on the newer weeks; below 0: worse."""
        better = self.newer_after - self.newer_before
        return better if self.larger_is_better else -better


def forgetting_words(records: Iterable[Record], main: MainMetric) -> list[str]:
    """Return a sentence for each way to go on; none where a run did not go on."""
    tables = [t for t in part_tables(records) if t.by == WEEKS]
    figures = {
        arm.name: [math.nan if value is None else value.mean for value in values]
        for table in tables
        for arm, values in table.rows
    }
    before = figures.pop(BEFORE, None)
    if before is None:
        return []
    found = []
    for arm, (older, newer) in figures.items():
        if not arm.startswith(_CONTINUED):
            continue
        of = Forgetting(
            older_before=before[0],
            older_after=older,
            newer_before=before[1],
            newer_after=newer,
            larger_is_better=main.larger_is_better,
        )
        found.append(f"{_how(arm)}: {_sentence(of, main)}")
    return found


def _how(arm: str) -> str:
    keep = float(arm.removeprefix(_CONTINUED))
    return f"Going on with {keep:.0%} of the old adapter put back a round" if keep else "Going on"


def _sentence(of: Forgetting, main: MainMetric) -> str:
    if math.isnan(of.forgot) or math.isnan(of.learned):
        return "cannot be judged: a figure is missing."
    learned = "gains" if of.learned >= 0 else "loses"
    forgot = "forgets" if of.forgot >= 0 else "gains"
    return (
        f"{learned} {abs(of.learned):.3f} {main.unit} on the newer weeks, and {forgot} "
        f"{abs(of.forgot):.3f} on the older ones."
    )
