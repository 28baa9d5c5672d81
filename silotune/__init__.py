"""silotune: federated, user-level differentially private LoRA fine-tuning for merchants."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("silotune")
