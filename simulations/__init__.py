"""Many silos on one machine: scenarios, engines, baselines, comparison and report."""

import silotune as _silotune  # noqa: F401  # its switches come before Flower is imported
