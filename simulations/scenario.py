"""Scenarios: small TOML files that say which data, which training and which comparisons."""

import datetime as dt
from pathlib import Path
from typing import Literal

from client.trainer import PlainConfig
from privacy.metrics import MetricsPlan
from silotune.config import config, from_toml
from silotune.encoding import Encoding
from silotune.errors import ConfigError
from silotune.models.text_model import ModelConfig
from silotune.tables.synthetic import SyntheticConfig
from silotune.tasks.checks import check_span
from silotune.tasks.several import OneOrSeveral, SeveralTasks

__all__ = [
    "Continued",
    "DataSource",
    "FederatedTraining",
    "LocalTraining",
    "PrivateTraining",
    "Scenario",
    "load_scenario",
    "scenario_names",
]

_FOLDER = Path(__file__).parent / "scenarios"


@config
class DataSource:
    """Where the merchants come from."""

    source: Literal["complete-journey", "synthetic", "folder"]
    merchants: int = 16
    """Complete Journey: stores, largest first."""
    groups: int | None = None
    """Complete Journey: join the stores into so many bigger merchants."""
    synthetic: SyntheticConfig | None = None
    """Parameters of the generator."""
    path: str | None = None
    """Folder of silo folders, for source 'folder'."""
    minimum_users: int = 50
    """A merchant with fewer users before the split is left out, and named in the report."""

    def __post_init__(self) -> None:
        """Check what belongs together. Raises ConfigError."""
        if self.merchants < 1:
            raise ConfigError(f"merchants is {self.merchants}; it must be at least 1.")
        if self.source == "folder" and not self.path:
            raise ConfigError("path is missing; source 'folder' needs it.")
        if self.source == "synthetic" and self.synthetic is None:
            raise ConfigError("table data.synthetic is missing; source 'synthetic' needs it.")


@config
class LocalTraining:
    """Training that never leaves a merchant, and the pooled ceiling."""

    optimizer: PlainConfig = PlainConfig(learning_rate=0.05)
    epochs: float = 3
    """Passes of each merchant alone."""
    pooled_epochs: float = 2
    """Passes over all merchants' examples together."""
    pooled_rate: float = 0.1
    """Learning rate of that."""
    after_epochs: float = 1
    """Passes of the local adapter that follows a federated one."""
    after_rate: float = 0.04
    """Learning rate of that local adapter."""
    own_share: float = 0.2
    """Share of the merchant's own adapter in it, the rest from the federation (interpolation
    of Mansour et al. 2020, arXiv:2002.10619). Where no noise was added."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if not 0 <= self.own_share <= 1:
            raise ConfigError(f"own_share is {self.own_share}; it must be in [0, 1].")


def _check_momentum(value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"server_momentum is {value}; it must be at least 0 and below 1.")


@config
class FederatedTraining:
    """Federated rounds without noise."""

    rounds: int = 4
    epochs: float = 1
    """Passes over a merchant's examples in a round."""
    optimizer: PlainConfig = PlainConfig(learning_rate=0.1)
    server_momentum: float = 0.0
    """`silotune.federation.Job.server_momentum` of these rounds."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        _check_momentum(self.server_momentum)


@config
class PrivateTraining:
    """Federated rounds under user-level differential privacy, once for each ε."""

    epsilons: tuple[float, ...] = (8.0, 2.0)
    """Budget per user over all rounds."""
    delta: float = 1e-4
    """Must be below one over every merchant's number of users."""
    rounds: int = 4
    steps: int = 4
    """DP-SGD steps of a merchant in a round."""
    sampling_rate: float = 0.25
    clip_norm: float = 4.0
    learning_rates: tuple[float, ...] = (0.5, 0.5)
    """Of plain SGD on the noised mean, in a silo, for each ε: more noise, smaller steps."""
    server_momentum: float = 0.5
    own_shares: tuple[float, ...] = (0.2, 0.65)
    """`LocalTraining.own_share` for each ε: more noise, more of the merchant's own."""
    examples_per_user: int = 8
    numeric_learning_rate: float = 0.5
    """Learning rate of the model without text."""
    mechanism: Literal["gaussian", "discrete-gaussian"] = "gaussian"
    """Float64 noise, or the hardened discrete one."""
    metrics_share: float = 0.02
    """How much more noise training takes, so that metrics of the last round fit into the same
    ε. 0: no metrics."""
    metrics_bins: int = 10
    """`privacy.metrics.MetricsPlan.bins`: more of them tell finer, under more noise."""
    metrics_negative_weight: float = 0.1
    """`privacy.metrics.MetricsPlan.negative_weight`: about the share of positives."""
    noise: Literal["secure", "seeded"] = "secure"
    """Seeded noise repeats a run exactly, and is marked as not private everywhere."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        for epsilon in self.epsilons:
            if not epsilon > 0:
                raise ConfigError(
                    f"epsilons holds {epsilon}; each must be > 0. 8 is a common first value."
                )
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is {self.delta}; it must be above 0 and below 1/users.")
        if not 0 <= self.metrics_share <= 1:
            raise ConfigError(f"metrics_share is {self.metrics_share}; it must be in [0, 1].")
        for own, field in (
            ("metrics_bins", "bins"),
            ("metrics_negative_weight", "negative_weight"),
        ):
            try:
                MetricsPlan(noise_multiplier=1.0, **{field: getattr(self, own)})
            except ConfigError as error:
                raise ConfigError(f"metrics_{error}") from None
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(f"sampling_rate is {self.sampling_rate}; it must be in (0, 1].")
        for name in ("learning_rates", "own_shares"):
            values = getattr(self, name)
            if len(values) < len(self.epsilons):
                raise ConfigError(
                    f"{name} has {len(values)} values for {len(self.epsilons)} epsilons; give one "
                    "for each."
                )
        for rate in self.learning_rates:
            if not rate > 0:
                raise ConfigError(f"learning_rates holds {rate}; each must be > 0.")
        for share in self.own_shares:
            if not 0 <= share <= 1:
                raise ConfigError(f"own_shares holds {share}; each must be in [0, 1].")
        _check_momentum(self.server_momentum)
        for field in (
            "rounds",
            "steps",
            "clip_norm",
            "numeric_learning_rate",
            "examples_per_user",
        ):
            if not getattr(self, field) > 0:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be > 0.")


@config
class Continued:
    """Rounds on newer weeks, without noise, that start from what the older weeks gave."""

    first: dt.datetime
    """As of the task. Not before the task's own ``last``: older test rows are not trained on."""
    split: dt.datetime
    last: dt.datetime
    rounds: int = 4
    keeps: tuple[float, ...] = (0.0, 0.3)
    """`silotune.federation.Job.keep_start`, an arm each. 0: no guard against forgetting."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        check_span(self.first, self.split, self.last)
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}; it must be at least 1.")
        for keep in self.keeps:
            if not 0 <= keep < 1:
                raise ConfigError(f"keeps holds {keep}; each must be at least 0 and below 1.")


@config
class Scenario:
    """One comparison, whole."""

    name: str
    description: str
    data: DataSource
    task: OneOrSeveral
    model: ModelConfig = ModelConfig()
    local: LocalTraining = LocalTraining()
    federated: FederatedTraining = FederatedTraining()
    privacy: PrivateTraining = PrivateTraining()
    continued: Continued | None = None
    """Newer weeks to go on with, and how much of the older ones that forgets. None: not."""
    seeds: int = 1
    """Repetitions; each draws other visits, another A, another order and other noise."""
    engine: Literal["pool", "flower", "inline"] = "pool"
    """Rounds on the simulation's own worker processes, on Flower's engine (Ray: several machines),
    or everything in one process."""
    encoding: Encoding = "float32"
    """How updates travel: fewer bits cost no privacy (`silotune.encoding`)."""
    workers: int = 2
    """Worker processes."""
    curve_merchants: int = 4
    """Merchants on which quality per round is measured; the final table uses all."""

    def __post_init__(self) -> None:
        """Check what would fail later. Raises ConfigError."""
        for field in ("seeds", "workers", "curve_merchants"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        self._check_continued()
        if self.model.lora.dora and self.privacy.epsilons:
            raise ConfigError(
                "model.lora.dora has no per-user gradient and cannot be trained privately; "
                "set it to false, or privacy.epsilons to []."
            )

    def _check_continued(self) -> None:
        if self.continued is None:
            return
        if isinstance(self.task, SeveralTasks):
            raise ConfigError("continued is of one task; leave it out, or task.tasks.")
        if self.continued.first < self.task.last:
            raise ConfigError(
                f"continued.first is {self.continued.first}; it must not be before task.last, "
                f"{self.task.last}: older test rows would be trained on."
            )


def scenario_names() -> list[str]:
    """Return the names of the scenarios that come with silotune."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


def load_scenario(name_or_path: str) -> Scenario:
    """Read a scenario by its name, or a TOML file by its path.

    Raises:
        ConfigError: neither; or what is wrong in it, with file and key.
    """
    if name_or_path in scenario_names():
        return from_toml(Scenario, _FOLDER / f"{name_or_path}.toml")
    path = Path(name_or_path)
    if path.suffix != ".toml":
        raise ConfigError(
            f"'{name_or_path}' is neither a TOML file nor a scenario of silotune: "
            f"{', '.join(scenario_names())}."
        )
    return from_toml(Scenario, path)
