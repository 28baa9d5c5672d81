"""Several tasks in a comparison: simple methods and exports for each of them.

Shape suffixes: E examples, K outputs of the head.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from silotune.federation import model_for
from silotune.models.export import export_adapter
from silotune.models.heads import adapter_of_part
from silotune.models.text_model import TextModel
from silotune.tasks.base import Examples
from silotune.tasks.registry import AnyTask, task_mapping
from silotune.tasks.several import SeveralTasks, part_of
from simulations.baselines import Method

__all__ = ["by_simple_method", "export_tasks"]


def by_simple_method(
    task: AnyTask | SeveralTasks, method: Method, silos: Sequence[Examples]
) -> Sequence[NDArray[np.float64]]:
    """Return the logits of ``method`` on every silo's test rows, (E, K); each task by itself."""
    if not isinstance(task, SeveralTasks):
        return method(silos)
    objective = task.objective
    out = [np.zeros((len(e.rows(test=True)), task.outputs)) for e in silos]
    for number in range(len(task.tasks)):
        parts = [part_of(examples, task, number) for examples in silos]
        found = method([part for part, _ in parts])
        for logits_EK, examples, (_, rows), own in zip(out, silos, parts, found, strict=True):
            kept = np.flatnonzero(np.isin(examples.rows(test=True), rows))
            logits_EK[kept, objective.columns(number)] = own
    return out


def export_tasks(
    model: TextModel, adapter_D: Tensor, task: AnyTask | SeveralTasks, folder: Path
) -> None:
    """Export an adapter into ``folder``; one of several heads as a folder for each task."""
    if not isinstance(task, SeveralTasks):
        model.load_adapter(adapter_D)
        export_adapter(model, folder, numeric_names=task.numeric_names, task=task_mapping(task))
        return
    for number, own in enumerate(task.tasks):
        alone = model_for(model.cfg, own)
        alone.load_adapter(adapter_of_part(adapter_D, model.layout, number, alone.layout))
        export_adapter(
            alone, folder / own.name, numeric_names=own.numeric_names, task=task_mapping(own)
        )
