"""Quality of parts of the test rows: by task, by how much is known of a customer, by weeks.

Shape suffixes: E examples, K outputs of the head.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.tasks.apart import has_history, quality_apart
from silotune.tasks.base import Examples, Task
from silotune.tasks.several import SeveralTasks, part_of
from simulations.aggregate import Spread
from simulations.arm_labels import Arm, in_order
from simulations.judged import METRICS, in_sentence
from simulations.records import Record

__all__ = ["HISTORY", "TASKS", "WEEKS", "PartTable", "part_tables", "parts_of_test"]

TASKS, HISTORY, WEEKS = "task", "history", "weeks"
"""What parts are made by."""

_TITLES = {
    TASKS: "Each task",
    HISTORY: "Customers with little history",
    WEEKS: "Older and newer weeks",
}
_LITTLE, _OTHERS = "little history", "the others"


def parts_of_test(
    task: Task, examples: Examples, logits_EK: NDArray[np.floating]
) -> Iterator[dict[str, Any]]:
    """Yield what a record of kind 'part' says of each part of a silo's test rows.

    Args:
        task: one, or several.
        examples: of one silo.
        logits_EK: of its test rows, in their order.
    """
    if not isinstance(task, SeveralTasks):
        yield from _by_history(task, examples, logits_EK)
        return
    test = examples.rows(test=True)
    objective = task.objective
    for number, own in enumerate(task.tasks):
        part, rows = part_of(examples, task, number)
        kept = np.isin(test, rows)
        logits = np.asarray(logits_EK)[kept][:, objective.columns(number)]
        shown = part.rows(test=True)
        metrics = own.objective.quality(part.label_EK[shown], logits, part.visit_E[shown])
        yield _part(TASKS, own.name, own, metrics | {"rows": float(len(shown))})
        yield from _by_history(own, part, logits, f"{own.name}, ")


def _by_history(
    task: Task, examples: Examples, logits_EK: NDArray[np.floating], before: str = ""
) -> Iterator[dict[str, Any]]:
    feature = has_history(task)
    if feature is None:
        return
    for little, metrics in quality_apart(task, examples, logits_EK, feature=feature).items():
        yield _part(HISTORY, before + (_LITTLE if little else _OTHERS), task, metrics)


def _part(by: str, part: str, task: Task, metrics: Mapping[str, float]) -> dict[str, Any]:
    return {"by": by, "part": part, "metric": task.objective.main, **metrics}


@dataclass(frozen=True, kw_only=True, slots=True)
class PartTable:
    """The main metric of every arm on each part of the test rows."""

    by: str
    title: str
    columns: tuple[str, ...]
    """Parts, with their metric."""
    rows: tuple[tuple[Arm, tuple[Spread | None, ...]], ...]
    """None: nobody could compute it."""
    counts: tuple[int, ...]
    """Test rows of each part, all merchants of the first seed."""


def part_tables(records: Iterable[Record]) -> list[PartTable]:
    """Return a table for each way that ``records`` divide the test rows.

    A figure is the mean over the merchants where it has an answer, within a seed.
    """
    by: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == "part":
            by.setdefault(record["by"], []).append(record)
    return [_table(name, found) for name, found in by.items()]


def _table(by: str, records: Sequence[Record]) -> PartTable:
    parts = list(dict.fromkeys(r["part"] for r in records))
    # The last one counts where an arm was scored twice.
    cells = {(r["arm"], r["part"], r["seed"], r["merchant"]): r for r in records}
    arms = in_order({arm for arm, *_ in cells})
    metric = {r["part"]: r["metric"] for r in records}
    names = {p: METRICS.get(metric[p], metric[p]) for p in parts}
    first = min(seed for _, _, seed, _ in cells)
    counts = []
    for part in parts:
        arm = next(a for a, p, *_ in cells if p == part)
        found = [r for (a, p, s, _), r in cells.items() if (a, p, s) == (arm, part, first)]
        counts.append(round(sum(r.get("rows") or 0 for r in found)))
    return PartTable(
        by=by,
        title=_TITLES.get(by, by),
        columns=tuple(f"{in_sentence(names[p])}, {p}" for p in parts),
        rows=tuple(
            (arm, tuple(_figure(cells, arm.name, p, metric[p]) for p in parts)) for arm in arms
        ),
        counts=tuple(counts),
    )


def _figure(
    cells: Mapping[tuple[str, str, int, str], Record], arm: str, part: str, metric: str
) -> Spread | None:
    by_seed: dict[int, list[float]] = {}
    for (of, where, seed, _), record in cells.items():
        value = record.get(metric)
        if (of, where) == (arm, part) and value is not None and math.isfinite(value):
            by_seed.setdefault(seed, []).append(value)
    return Spread(tuple(statistics.fmean(v) for v in by_seed.values())) if by_seed else None
