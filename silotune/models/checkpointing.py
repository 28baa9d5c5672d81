"""Compute a layer's activations again in the backward pass in place of keeping them.

For bases whose trained layers do not fit into memory with what a step keeps (Chen et al. 2016,
arXiv:1604.06174). Layers below the lowest LoRA layer keep nothing anyway, and the last layer's
activations are needed as soon as the backward pass begins: both are left as they are.
"""

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from silotune.models.base import layer_list

__all__ = ["checkpoint_layers"]


def checkpoint_layers(model: nn.Module, lowest: int) -> int:
    """Make the layers of ``model`` from ``lowest`` on, but the last, keep only their input.

    Args:
        model: bare transformer, as `load_base` returns it; LoRA may be in it.
        lowest: layer below which nothing trains, counted from 0.

    Returns:
        How many layers that is; 0 where one layer trains.
    """
    layers = layer_list(model)[lowest:-1]
    for layer in layers:
        # Bound to the layer: a deep copy of the model then computes with its own weights.
        layer.__dict__["forward"] = MethodType(_again, layer)
    return len(layers)


def _again(layer: Any, *args: Any, **kwargs: Any) -> Any:
    whole = type(layer).forward
    if not torch.is_grad_enabled():
        return whole(layer, *args, **kwargs)

    def run(*args: Any) -> Any:
        return whole(layer, *args, **kwargs)

    # Not reentrant: that form loses the gradient where a layer's input needs none, as above a
    # frozen prefix.
    return checkpoint(run, *args, use_reentrant=False)
