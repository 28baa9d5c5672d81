"""Rounds on newer weeks that start from the adapter of the older ones, and what that forgets."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from server.run_store import RunStore
from silotune.errors import ConfigError
from silotune.federation import Federation, Job
from silotune.models.text_model import TextModel
from silotune.tasks.registry import AnyTask
from silotune.tasks.several import SeveralTasks
from simulations.apart import WEEKS
from simulations.forgetting import ANEW, BEFORE, NEWER, OLDER, continued_arm
from simulations.pool import SiloPool, score
from simulations.preparation import Merchants
from simulations.scenario import Continued, Scenario

__all__ = ["continued_federation", "newer_scenario", "records_of_weeks"]


def newer_scenario(scenario: Scenario, weeks: Continued) -> Scenario:
    """Return ``scenario`` with its task on the newer weeks. Raises ConfigError for several."""
    return replace(scenario, task=_on(scenario.task, weeks), continued=None)


def _on(task: AnyTask | SeveralTasks, weeks: Continued) -> AnyTask:
    if isinstance(task, SeveralTasks):
        raise ConfigError("continued is of one task; leave it out, or task.tasks.")
    return replace(task, first=weeks.first, split=weeks.split, last=weeks.last)


def continued_federation(federation: Federation, weeks: Continued, job: Job) -> Federation:
    """Return the federation on the newer weeks: one job for each share kept, and one anew.

    Args:
        federation: on the older weeks; its rounds are done.
        weeks: the newer ones.
        job: whose last adapter is the start.
    """
    start = str(Path(federation.state) / "rounds" / job.name)
    fresh = replace(job, name=ANEW, rounds=weeks.rounds)
    again = [
        replace(fresh, name=continued_arm(keep), start=start, keep_start=keep)
        for keep in weeks.keeps
    ]
    state = Path(federation.state) / "continued"
    return replace(
        federation, task=_on(federation.task, weeks), jobs=(*again, fresh), state=str(state)
    )


def records_of_weeks(
    federations: tuple[Federation, Federation],
    pools: tuple[SiloPool, SiloPool],
    merchants: tuple[Merchants, Merchants],
    model: TextModel,
    progress: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    """Yield records of kind 'part': every arm on the test rows of older and of newer weeks.

    Args:
        federations: on the older weeks and on the newer ones.
        pools: of each.
        merchants: those that take part in each.
        model: with text; gives the layout.
        progress: called with (arms done, of how many).
    """
    newer, arms = federations[1], {}
    for federation in federations:
        for job in federation.jobs:
            if federation is newer or job.name == BEFORE:
                folder = Path(federation.state) / "rounds" / job.name
                arms[job.name] = RunStore(folder, model.layout.digest).load(job.rounds - 1)
    both = [n for n in merchants[0].folders if n in merchants[1].folders]
    for done, (arm, adapter_D) in enumerate(arms.items()):
        for weeks, pool, of in zip((OLDER, NEWER), pools, merchants, strict=True):
            calls = [(score, (of.folders[n], "text", adapter_D)) for n in both]
            for name, logits in zip(both, pool.each(calls, lambda *_: None), strict=True):
                yield {"arm": arm, "merchant": name} | _figures(of, name, logits, weeks)
        progress(done + 1, len(arms))


def _figures(of: Merchants, name: str, logits: Any, weeks: str) -> dict[str, Any]:
    examples = of.data[name]
    test = examples.rows(test=True)
    found = examples.objective.quality(
        examples.label_EK[test], np.asarray(logits), examples.visit_E[test]
    )
    known: dict[str, Any] = {"by": WEEKS, "part": weeks, "metric": examples.objective.main}
    return known | {"rows": float(len(test))} | found
