"""From a scenario to silos with prepared examples: data, exclusions, caches."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from silotune.errors import ConfigError, DataError
from silotune.models.text_model import ModelConfig
from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tasks.base import Examples
from silotune.tasks.registry import AnyTask
from silotune.tasks.several import SeveralTasks, part_of, seeded
from simulations.pool import SiloPool, prepare
from simulations.scenario import DataSource, Scenario

__all__ = [
    "Merchants",
    "make_silos",
    "prepare_merchants",
    "refuse_delta",
    "seeded_model",
    "seeded_task",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Merchants:
    """The merchants of a comparison and those left out."""

    folders: dict[str, SiloFolder]
    data: dict[str, Examples]
    """Features and labels. Tokens and activations stay with the workers."""
    excluded: dict[str, str]
    """Name of a merchant, and why it is left out."""

    def cost(self, name: str) -> int:
        """Return the training examples of a merchant: how long it takes beside the others."""
        return len(self.data[name].rows(test=False))


def make_silos(source: DataSource, data: Path, progress: Progress) -> list[SiloFolder]:
    """Return the scenario's silo folders, made under ``data`` unless they are there already.

    Raises:
        DataError: the source cannot be read or made; nothing half-made is left.
    """
    if source.source == "folder":
        folders = list_silos(Path(source.path or ""))
        if not folders:
            raise DataError(f"{source.path}: holds no silo folder.")
        return folders
    target = data / _folder_name(source)
    if not target.exists():
        # Made beside and renamed: a folder that is there is whole.
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            _make(source, part, progress)
            part.replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return list_silos(target)


def _folder_name(source: DataSource) -> str:
    if source.source == "synthetic" and source.synthetic is not None:
        made = source.synthetic
        rated = f"-rated{made.rated:g}" if made.rated else ""
        return f"synthetic-{made.merchants}x{made.users_per_merchant}-seed{made.seed}{rated}"
    groups = f"-in-{source.groups}" if source.groups else ""
    return f"complete-journey-{source.merchants}{groups}"


def _make(source: DataSource, out: Path, progress: Progress) -> None:
    if source.source == "synthetic" and source.synthetic is not None:
        from silotune.tables.synthetic import generate

        generate(source.synthetic, out, progress)
    else:
        from silotune.tables.complete_journey import convert

        convert(out, merchants=source.merchants, groups=source.groups, progress=progress)


def seeded_task(scenario: Scenario, seed: int) -> AnyTask | SeveralTasks:
    """Return the task of repetition ``seed``: other visits and offers are drawn."""
    return seeded(scenario.task, seed)


def seeded_model(scenario: Scenario, seed: int) -> ModelConfig:
    """Return the model of repetition ``seed``: another A is drawn."""
    lora = scenario.model.lora
    return replace(scenario.model, lora=replace(lora, seed=lora.seed + seed))


def prepare_merchants(
    silos: list[SiloFolder],
    scenario: Scenario,
    pool: SiloPool,
    progress: Progress,
) -> Merchants:
    """Build, tokenise and cache the examples of every merchant; leave out those too small.

    Raises:
        ConfigError: no merchant is left.
    """
    folders: dict[str, SiloFolder] = {}
    data: dict[str, Examples] = {}
    excluded: dict[str, str] = {}
    # Rows of events are what examples are made of; files of one kind compress alike.
    sizes = [sum(f.stat().st_size for f in silo.path.glob("events*")) for silo in silos]
    prepared = pool.each([(prepare, (silo,)) for silo in silos], progress, cost=sizes)
    for silo, examples in zip(silos, prepared, strict=True):
        name = silo.info.name
        reason = _left_out(examples, scenario.task, scenario.data.minimum_users)
        if reason:
            excluded[name] = reason
        else:
            folders[name], data[name] = silo, examples
    if not folders:
        reasons = "; ".join(f"{n}: {r}" for n, r in excluded.items())
        raise ConfigError(f"scenario '{scenario.name}': no merchant is left. {reasons}")
    return Merchants(folders=folders, data=data, excluded=excluded)


def refuse_delta(silo: SiloFolder, scenario: Scenario) -> None:
    """Raise ConfigError unless δ is below one over the merchant's declared users."""
    users, delta = silo.info.nominal_users, scenario.privacy.delta
    if scenario.privacy.epsilons and delta >= 1 / users:
        raise ConfigError(
            f"privacy.delta is {delta:g}; it must be below 1/users, {1 / users:g} at merchant "
            f"'{silo.info.name}'."
        )


def _left_out(examples: Examples, task: AnyTask | SeveralTasks, minimum: int) -> str:
    if not isinstance(task, SeveralTasks):
        return _too_small(examples, minimum)
    for number, own in enumerate(task.tasks):
        if reason := _too_small(part_of(examples, task, number)[0], minimum):
            return f"{own.name}: {reason}"
    return ""


def _too_small(examples: Examples, minimum: int) -> str:
    train, test = examples.rows(test=False), examples.rows(test=True)
    users = len(set(examples.user_E[train].tolist()))
    if users < minimum:
        return f"{users} users before the split; the scenario asks for {minimum}"
    for rows, when in ((train, "before"), (test, "after")):
        if len(np.unique(examples.label_EK[rows], axis=0)) < 2:
            return f"one outcome only {when} the split"
    return ""
