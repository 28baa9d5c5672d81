"""Batches of about equal cost: sorted by length, padded little, bounded by tokens."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["token_batches"]


def token_batches(
    rows: NDArray[np.int64], length_E: NDArray[np.int64], budget: int
) -> Iterator[NDArray[np.int64]]:
    """Yield ``rows`` in groups of similar length with at most ``budget`` padded tokens each.

    Longest first: a batch that does not fit into memory fails at once, not at the end. A row
    longer than the budget is a batch of its own.

    Args:
        rows: indices into ``length_E``.
        length_E: tokens of every example.
        budget: longest length times number of rows, at most.
    """
    order = rows[np.argsort(-length_E[rows], kind="stable")]
    start = 0
    while start < len(order):
        size = max(1, budget // int(max(1, length_E[order[start]])))
        yield order[start : start + size]
        start += size
