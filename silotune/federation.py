"""One federation as a file that aggregator and simulated silos both read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from silotune.config import config, from_mapping
from silotune.encoding import Encoding
from silotune.errors import ConfigError
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.registry import AnyTask

__all__ = ["FEDERATION_VARIABLE", "Federation", "Job", "build_model", "read_federation"]

FEDERATION_VARIABLE = "SILOTUNE_FEDERATION"
"""Environment variable with the path of the federation file, for worker processes."""


@config
class Job:
    """One training by federated rounds."""

    name: str
    """Names the run's state, and the account in every ledger."""
    model: str = "text"
    """Key of `Federation.models`."""
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

    task: AnyTask
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


def build_model(models: Mapping[str, ModelConfig], name: str, task: AnyTask) -> TextModel:
    """Build model ``name`` for ``task``. Raises ConfigError when it is not configured."""
    if name not in models:
        raise ConfigError(f"model '{name}' is not configured; known: {', '.join(sorted(models))}.")
    return TextModel(
        models[name],
        numeric_size=len(task.numeric_names),
        outputs=task.outputs,
        public_texts=task.public_texts(),
    )
