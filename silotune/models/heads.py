"""Heads of several tasks side by side, above one adapted base.

Shape suffixes: E examples, H hidden size, F numeric features, K outputs, D adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from silotune.models.adapter import AdapterLayout
from silotune.models.head import Head

__all__ = ["HeadShape", "Heads", "adapter_of_part"]

_PART = "head.parts.{}."


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShape:
    """What the head of one task reads and says."""

    numeric: int
    """Numeric features, F."""
    outputs: int
    """K."""
    public_texts: tuple[str, ...] = ()
    """Of the task; centre and whiten the text part of its head."""


class Heads(nn.Module):
    """One head a task; each reads its own block of the features and fills its own outputs.

    Every head is called on every example: a layer that saw some of a batch only would have no
    gradient per example. A loss that reads an example's own outputs alone leaves the gradient of
    the other heads at exactly zero.
    """

    def __init__(self, parts: Sequence[Head], shapes: Sequence[HeadShape]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = [shape.numeric for shape in shapes]

    def forward(self, pooled_EH: Tensor | None, numeric_EF: Tensor) -> Tensor:
        """Return the logits of all heads beside each other, (E, K)."""
        blocks = torch.split(numeric_EF, self.sizes, dim=1)
        found = [head(pooled_EH, own) for head, own in zip(self.parts, blocks, strict=True)]
        return torch.cat(found, dim=1)


def adapter_of_part(
    flat_D: Tensor, layout: AdapterLayout, number: int, alone: AdapterLayout
) -> Tensor:
    """Return the adapter of one task out of that of several: the shared factors and its head.

    Args:
        flat_D: adapter of the model with several heads.
        layout: of that model.
        number: which task, counted from 0.
        alone: layout of a model for that task alone.

    Raises:
        ModelError: the layouts are not of the same base and LoRA, or the vector is not one.
    """
    own, heads = _PART.format(number), _PART.partition("{")[0]
    found = {
        name.replace(own, "head."): tensor
        for name, tensor in layout.split(flat_D).items()
        if name.startswith(own) or not name.startswith(heads)
    }
    return alone.flatten(found)
