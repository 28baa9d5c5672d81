"""silotune: federated, user-level differentially private LoRA fine-tuning for merchants."""

import os
from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("silotune")

# Before anything imports them: neither Flower nor Ray reports usage from a merchant's machine.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
