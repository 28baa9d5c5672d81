"""The merchant's side: the silo (tables, trainer, privacy) and the Flower ClientApp before it."""

import silotune as _silotune  # noqa: F401  # its switches come before Flower is imported
