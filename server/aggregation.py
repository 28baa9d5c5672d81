"""Folding updates into one: weights are public constants, never counts that a client reports."""

import torch
from torch import Tensor

from silotune.errors import MessageError

__all__ = ["StreamingMean"]


class StreamingMean:
    """Mean of updates folded in as they come; memory is constant in their number.

    Every silo weighs the same: a count reported by a client would be both a release of
    private information and a lever for a malicious one.

    >>> mean = StreamingMean(2)
    >>> mean.add(torch.tensor([1.0, 2.0]))
    >>> mean.add(torch.tensor([3.0, 2.0]))
    >>> mean.value()
    tensor([2., 2.])
    """

    def __init__(self, size: int) -> None:
        # float64: the order of arrival must not show in the float32 result.
        self._sum_D = torch.zeros(size, dtype=torch.float64)
        self.count = 0

    @property
    def size(self) -> int:
        """Numbers in one update."""
        return len(self._sum_D)

    def add(self, update_D: Tensor) -> None:
        """Fold in one update, (size,). Raises MessageError on another shape."""
        if update_D.shape != self._sum_D.shape:
            raise MessageError(f"update has shape {tuple(update_D.shape)}.")
        self._sum_D += update_D.double()
        self.count += 1

    def value(self) -> Tensor:
        """Return the mean, float32, (size,). Raises MessageError when nothing was added."""
        if not self.count:
            raise MessageError("no update was received.")
        return (self._sum_D / self.count).float()
