"""The aggregator's side: Flower ServerApp, rounds, aggregation."""

import silotune as _silotune  # noqa: F401  # its switches come before Flower is imported
