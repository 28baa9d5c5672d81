"""What `client.score` scores with: the task, the model and the adapter, from what a silo holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.accepted import AcceptedRun, read_run
from client.config import read_client
from client.kept_adapters import kept_adapters
from silotune.config import from_mapping
from silotune.errors import ConfigError, ModelError
from silotune.models.stored import about_of, adapter_file
from silotune.models.text_model import ModelConfig
from silotune.tasks.names import names_in
from silotune.tasks.registry import TASKS, AnyTask, read_task, task_mapping
from silotune.tasks.several import SeveralTasks, read_tasks

__all__ = ["LOCAL", "ScoreSettings", "kept_settings", "score_settings"]

LOCAL = "local"
"""Folder of the silo with the merchant's local adapters, one folder for a task."""
_ELSEWHEN = {"first", "split", "last", "seed"}
"""Keys of a task that say which examples were trained on: an adapter knows nothing of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """Everything but the tables."""

    task: AnyTask
    model: ModelConfig
    adapter: Path
    """An export, or a flat file; see `silotune.models.stored`."""
    about: Mapping[str, Any]
    """What the adapter says of itself."""
    threads: int | None
    """As the merchant configured; None: nothing configured."""
    shared: SeveralTasks | None = None
    """The tasks that the adapter has a head for each; None: it is of ``task`` alone."""


def score_settings(
    silo: Path,
    task: str,
    *,
    adapter: Path | None = None,
    run: Path | None = None,
    job: str | None = None,
    local: bool = True,
) -> ScoreSettings:
    """Find what to score ``task`` with.

    The adapter is ``adapter``; else the merchant's local one in ``silo/local/TASK``; else the
    newest that its daemon was sent. Task and model are those of ``run``; else of the silo's
    ``client.toml``; else of the accepted runs; else those that the adapter says it is for.

    Args:
        silo: its folder.
        task: name.
        adapter: an exported folder, a run's folder or a round's file.
        run: the aggregator's run file.
        job: of which run the daemon's adapter shall be.
        local: whether a local adapter is looked for.

    Raises:
        ConfigError: no such task; no, or several, settings for it; the adapter is of another task.
        ModelError: there is no adapter.
    """
    if task not in TASKS:
        raise ConfigError(f"no task is called '{task}'; known tasks: {', '.join(TASKS)}.")
    path = adapter_file(adapter) if adapter else _held(silo, task, job, local=local)
    about = about_of(path)
    trained = about.get("task")
    name = trained.get("name") if isinstance(trained, dict) else trained
    if name is not None and task not in names_in(name):
        raise ConfigError(f"{path}: is an adapter of task '{name}', not of '{task}'.")
    whole, model, threads = _configured(silo, name or task, run, about, path)
    shared = whole if isinstance(whole, SeveralTasks) else None
    parts = whole.tasks if isinstance(whole, SeveralTasks) else (whole,)
    configured = next(t for t in parts if t.name == task)
    if isinstance(trained, dict):
        _refuse_other(path, task_mapping(configured), read_task(trained, where=f"{path}: task"))
    numeric = about.get("numeric")
    if numeric is not None and tuple(numeric) != configured.numeric_names:
        raise ConfigError(
            f"{path}: reads the features {', '.join(map(str, numeric))}; task '{task}' has "
            f"{', '.join(configured.numeric_names)}. It was made by another version of silotune."
        )
    return ScoreSettings(
        task=configured, model=model, adapter=path, about=about, threads=threads, shared=shared
    )


def kept_settings(silo: Path, task: str, *, job: str | None = None) -> ScoreSettings:
    """Return `score_settings` with the newest adapter that an aggregator sent, never another.

    A local adapter, or one from an unknown place, may have been trained on these customers without
    noise: what is computed with it must not leave.

    Args:
        silo: its folder.
        task: name.
        job: of which run; None: any.

    Raises:
        ConfigError, ModelError: as `score_settings`.
    """
    if task not in TASKS:
        raise ConfigError(f"no task is called '{task}'; known tasks: {', '.join(TASKS)}.")
    return score_settings(silo, task, adapter=_held(silo, task, job, local=False))


def _held(silo: Path, task: str, job: str | None, *, local: bool) -> Path:
    own = silo / LOCAL / task
    if local and job is None and own.exists():
        return adapter_file(own)
    kept = [k for k in kept_adapters(silo, task) if job in (None, k.job)]
    if not kept:
        of = f"of run '{job}'" if job else f"of task '{task}'"
        raise ModelError(
            f"{silo}: holds no adapter {of}. Take part in a run of it, or name one with --adapter: "
            "an exported folder, or a round's file from the aggregator."
        )
    return kept[-1].path


def _configured(
    silo: Path, task: str, run: Path | None, about: Mapping[str, Any], adapter: Path
) -> tuple[AnyTask | SeveralTasks, ModelConfig, int | None]:
    # ``task`` is the whole name that the adapter has, of several tasks too.
    if run is not None:
        asked, _ = read_run(run)
        if asked.task.name != task:
            raise ConfigError(f"{run}: is a run of task '{asked.task.name}', not of '{task}'.")
        return asked.task, asked.model, None
    threads = None
    path = silo / "client.toml"
    if path.exists():
        settings = read_client(silo)
        threads = settings.threads
        every = [read_tasks(t, where=f"{path}: task") for t in (settings.task, *settings.tasks)]
        own = next((t for t in every if t.name == task), None)
        if own is not None:
            return own, from_mapping(ModelConfig, settings.model, where=f"{path}: model"), threads
    found = _accepted(silo, task, about.get("job"))
    if found is not None:
        return found.task, found.model, threads
    trained, model = about.get("task"), about.get("model")
    if not isinstance(trained, dict) or not isinstance(model, dict):
        raise ConfigError(
            f"{silo}: neither client.toml nor runs/ says how task '{task}' and its model are set, "
            f"and {adapter} does not either. Give the aggregator's run file with --run."
        )
    return (
        read_tasks(trained, where=f"{adapter}: task"),
        from_mapping(ModelConfig, model, where=f"{adapter}: model"),
        threads,
    )


def _accepted(silo: Path, task: str, job: object) -> AcceptedRun | None:
    runs = [read_run(p)[0] for p in sorted((silo / "runs").glob("*.toml"))]
    runs = [r for r in runs if r.task.name == task]
    runs = [r for r in runs if r.job.name == job] or runs
    if any((r.task, r.model) != (runs[0].task, runs[0].model) for r in runs):
        names = ", ".join(f"{r.job.name}.toml" for r in runs)
        raise ConfigError(
            f"{silo / 'runs'}: several runs of task '{task}' differ: {names}. Name one with --run."
        )
    return runs[0] if runs else None


def _refuse_other(adapter: Path, ours: Mapping[str, Any], trained: AnyTask) -> None:
    theirs = asdict(trained)
    for key, value in ours.items():
        if key not in _ELSEWHEN and theirs.get(key) != value:
            raise ConfigError(
                f"{adapter}: was trained with task.{key} = {theirs.get(key)!r}; the silo's is "
                f"{value!r}. Give the run file of the adapter with --run."
            )
