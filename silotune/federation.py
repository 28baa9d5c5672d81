"""One federation as a file that aggregator and simulated silos both read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from silotune.config import config, from_mapping
from silotune.encoding import Encoding
from silotune.errors import ConfigError
from silotune.models.heads import HeadShape
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.base import Task
from silotune.tasks.registry import AnyTask
from silotune.tasks.several import OneOrSeveral, SeveralTasks, parts_of

__all__ = [
    "FEDERATION_VARIABLE",
    "Federation",
    "Job",
    "build_model",
    "model_for",
    "read_federation",
]

FEDERATION_VARIABLE = "SILOTUNE_FEDERATION"
"""Environment variable with the path of the federation file, for worker processes."""


@config
class Job:
    """One training by federated rounds."""

    name: str
    """Names the run's state, and the account in every ledger."""
    model: str = "text"
    """Key of `Federation.models`."""
    task: str | None = None
    """Name of one of the federation's tasks. None: `Federation.task`."""
    account: str | None = None
    """Jobs of one account are paid for from one ``epsilon`` of the same users, in a simulation as
    in a silo, which has one ledger. None: an account of its own, named like the job: what a
    simulation compares instead of running it all on the same users."""
    start: str | None = None
    """Adapter to start from: a job of the federation that ran before, or a path at the aggregator
    (an exported adapter, a run's folder, a file of a round). None: zero."""
    keep_start: float = 0.0
    """Share of the starting adapter that is put back after each round, against forgetting what it
    knew: the proximal step of the L2-SP penalty (Li et al. 2018, arXiv:1802.01483) of weight
    ``keep_start / (1 - keep_start)``. Costs no privacy: it sees adapters only."""
    rounds: int = 5
    server_momentum: float = 0.0
    """Share of the last round's movement that the next one keeps (Hsu et al. 2019,
    arXiv:1909.06335). Costs no privacy: it sees adapters only."""
    private: dict[str, float | str] | None = None
    """What `TrainRequest.private` carries; None trains without privacy."""
    plain: dict[str, float | str] | None = None
    epsilon: float | None = None
    """Budget per user that the silos' policy allows this job. None: plain jobs only."""
    encoding: Encoding = "float32"
    """How updates travel to the aggregator (`silotune.encoding`)."""
    metrics: dict[str, float] | None = None
    """`privacy.metrics.MetricsPlan` of what the silos release about quality, inside ``epsilon``.
    None: nothing."""
    metrics_every: int | None = None
    """Measure after every so many rounds, beside the last. None: after the last only."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}; it must be at least 1.")
        if not 0 <= self.server_momentum < 1:
            raise ConfigError(
                f"job '{self.name}': server_momentum is {self.server_momentum}; it must be at "
                "least 0 and below 1."
            )
        if not 0 <= self.keep_start < 1:
            raise ConfigError(
                f"job '{self.name}': keep_start is {self.keep_start}; it must be at least 0 and "
                "below 1."
            )
        if self.keep_start and self.start is None:
            raise ConfigError(f"job '{self.name}': keep_start needs a start to keep.")
        if (self.private is None) == (self.plain is None):
            raise ConfigError(f"job '{self.name}' needs exactly one of private and plain.")
        if self.private is not None and self.epsilon is None:
            raise ConfigError(f"job '{self.name}' is private and has no epsilon.")
        if self.metrics is not None and self.private is None:
            raise ConfigError(f"job '{self.name}' is plain; only private jobs release metrics.")
        if self.metrics_every is not None and self.metrics_every < 1:
            raise ConfigError(
                f"job '{self.name}': metrics_every is {self.metrics_every}; it must be at least 1."
            )


@config
class Federation:
    """Models, jobs and, in a simulation, the silos that take part."""

    task: OneOrSeveral
    """What jobs learn that name no task: one, or several for one adapter with a head for each."""
    models: dict[str, ModelConfig]
    jobs: tuple[Job, ...]
    silos: tuple[str, ...]
    """Silo folders; the simulation's node i serves the i-th."""
    state: str
    """Folder for adapters by round (aggregator) and ledgers (silos)."""
    delta: float
    """δ of every private job."""
    noise_seed: int | None = None
    """Seeded noise makes a simulation repeatable, and not private. None: cryptographic."""
    threads: int = 1
    """Processor threads of one worker."""
    tasks: tuple[OneOrSeveral, ...] = ()
    """Further tasks, for jobs that name one: an adapter for each."""

    def __post_init__(self) -> None:
        """Check what belongs together. Raises ConfigError."""
        names = [task.name for task in (self.task, *self.tasks)]
        if len(set(names)) < len(names):
            raise ConfigError(f"tasks: {', '.join(names)} are not all different.")
        budgets: dict[str, float | None] = {}
        for job in self.jobs:
            if job.task is not None and job.task not in names:
                raise ConfigError(
                    f"job '{job.name}': task '{job.task}' is not of this federation; it has "
                    f"{', '.join(names)}."
                )
            if budgets.setdefault(job.account or job.name, job.epsilon) != job.epsilon:
                raise ConfigError(
                    f"job '{job.name}': epsilon is {job.epsilon}; the jobs of account "
                    f"'{job.account}' share one budget and must name the same."
                )

    def task_of(self, job: Job) -> AnyTask | SeveralTasks:
        """Return what ``job`` learns."""
        every = {task.name: task for task in (self.task, *self.tasks)}
        return self.task if job.task is None else every[job.task]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, default=str), encoding="utf-8")


def read_federation(path: Path) -> Federation:
    """Read what `Federation.save` wrote. Raises ConfigError naming file and key."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `silotune simulate` writes it.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}.") from error
    return from_mapping(Federation, raw, where=str(path))


def build_model(models: Mapping[str, ModelConfig], name: str, task: Task) -> TextModel:
    """Build model ``name`` for ``task``. Raises ConfigError when it is not configured."""
    if name not in models:
        raise ConfigError(f"model '{name}' is not configured; known: {', '.join(sorted(models))}.")
    return model_for(models[name], task)


def model_for(cfg: ModelConfig, task: Task) -> TextModel:
    """Build a model with a head for ``task``, or one for each of several.

    Raises:
        ModelError: as `silotune.models.text_model.TextModel`.
    """
    parts = parts_of(task)
    shapes = [
        HeadShape(
            numeric=len(part.numeric_names),
            outputs=part.outputs,
            public_texts=tuple(part.public_texts()),
        )
        for part in parts
    ]
    return TextModel(
        cfg,
        numeric_size=len(task.numeric_names),
        outputs=task.outputs,
        public_texts=task.public_texts(),
        heads=shapes if len(parts) > 1 else (),
    )
