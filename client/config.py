"""The merchant's ``client.toml``: which aggregator, which task and model, how to run.

It lies in the silo folder, beside ``policy.toml``, ``node.key`` and the ledger.
"""

from pathlib import Path
from typing import Any

from silotune.config import config, from_toml
from silotune.errors import ConfigError
from silotune.invitation import Invitation
from silotune.observe_config import ObserveConfig

__all__ = ["ClientConfig", "read_client"]


@config
class ClientConfig:
    """How a merchant takes part. Nothing a server sends changes it."""

    server: Invitation
    task: dict[str, Any]
    """One of `silotune.tasks.registry.TASKS`, by its ``name``, as agreed with the aggregator; or
    ``tasks``, a list of them, that share one adapter."""
    model: dict[str, Any]
    """`silotune.models.text_model.ModelConfig`, as agreed. ``base`` may be another folder with
    the same model: its digest counts."""
    tasks: tuple[dict[str, Any], ...] = ()
    """Further tasks, each with an adapter of its own; the same ledger pays for them."""
    node_user: str | None = "nobody"
    """Account of the process that talks to the aggregator, where started as root. It sees no
    data. An account of its own is better than 'nobody'."""
    threads: int = 1
    """Processor threads for training."""
    anchor: str | None = None
    """File that remembers the ledger's newest entry, best on another disk. None: beside it."""
    noise_seed: int | None = None
    """Makes noise reproducible, and protects nobody. Only for tests; the policy must allow it."""
    observe: ObserveConfig = ObserveConfig()
    """Metrics, health and dashboard for the merchant's own people."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1.")


def read_client(folder: Path) -> ClientConfig:
    """Read the configuration of the merchant in ``folder``. Raises ConfigError."""
    path = folder / "client.toml"
    if not path.exists():
        raise ConfigError(f"{folder}: has no client.toml; make one with `silotune client init`.")
    return from_toml(ClientConfig, path)
