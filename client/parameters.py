"""Parameters that a training request carries, and what they must be."""

import math
from typing import Literal

from client.trainer import PlainConfig
from privacy.dp_sgd import DPConfig
from silotune.config import config
from silotune.errors import ConfigError

__all__ = ["PlainParameters", "PrivateParameters"]


@config
class PrivateParameters:
    """What `silotune.messages.TrainRequest.private` holds."""

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    examples_per_user: int
    steps: int
    learning_rate: float
    mechanism: Literal["gaussian", "discrete-gaussian"] = "gaussian"

    def __post_init__(self) -> None:
        """Check what `DPConfig` does not know. Raises ConfigError."""
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be > 0, finite.")

    def settings(self) -> DPConfig:
        """Return what a step takes. Raises ConfigError."""
        return DPConfig(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            examples_per_user=self.examples_per_user,
            mechanism=self.mechanism,
        )


@config
class PlainParameters:
    """What `silotune.messages.TrainRequest.plain` holds."""

    learning_rate: float
    optimizer: Literal["sgd", "adam"]
    batch_size: int
    epochs: float

    def settings(self) -> PlainConfig:
        """Return what the optimiser takes. Raises ConfigError."""
        return PlainConfig(
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
        )
